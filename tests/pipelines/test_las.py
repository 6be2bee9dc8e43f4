"""LAS and LAZ give the points that were written, about an origin; what does not count is left out,
what is cut short is refused.
"""

import sys

import numpy as np
import pytest

from unipercept.errors import InputError, MissingDependencyError
from unipercept.pipelines import cloud_las
from unipercept.pipelines.detect import detect_modality
from unipercept.pipelines.pointcloud import PointCloudPipeline

laspy = pytest.importorskip("laspy")
ORIGIN = np.array([389_000.0, 5_820_000.0, 34.0])  # UTM metres, as airborne scans have them


def written(path, points, *, version="1.4", point_format=7, **dimensions):
    """The file that laspy makes of Nx3 points, to the millimetre."""
    if path.suffix == ".laz":
        pytest.importorskip("lazrs")
    header = laspy.LasHeader(version=version, point_format=point_format)
    header.offsets, header.scales = ORIGIN, np.full(3, 0.001)
    las = laspy.LasData(header)
    las.x, las.y, las.z = (points + ORIGIN).T
    for name, values in dimensions.items():
        las[name] = values
    las.write(str(path))
    return path


@pytest.fixture
def points():
    return np.random.default_rng(0).uniform(-200, 200, (5_000, 3))


@pytest.mark.parametrize("suffix", ["las", "laz"])
@pytest.mark.parametrize(("version", "point_format"), [("1.2", 3), ("1.4", 7)])
def test_the_points_come_back_about_their_origin(tmp_path, points, suffix, version, point_format, monkeypatch):
    monkeypatch.setattr(cloud_las, "CHUNK_POINTS", 1_999)
    path = written(tmp_path / f"tile.{suffix}", points, version=version, point_format=point_format)
    assert detect_modality(path) == "pointcloud"
    cloud = PointCloudPipeline().read(path)
    assert cloud.points.dtype == np.float32
    error = np.abs(cloud.points + np.array(cloud.facts["origin"]) - ORIGIN - points)
    assert error.max() < 1e-3  # LAS rounds to steps of a millimetre
    assert cloud.facts["format"] == suffix
    assert cloud.facts["n_points"] == len(points)
    assert np.abs(cloud.points).max() < 500


def test_withheld_points_and_noise_are_left_out_and_counted(tmp_path, points):
    classes = np.full(len(points), 2, np.uint8)
    classes[:10], classes[10:30] = 7, 18
    withheld = np.arange(len(points)) >= len(points) - 5
    points[:30] *= 100  # birds
    cloud = PointCloudPipeline().read(written(tmp_path / "tile.laz", points, classification=classes, withheld=withheld))
    assert cloud.facts["noise_points"] == 35
    assert len(cloud.points) == len(points) - 35
    assert np.abs(cloud.points).max() < 500


@pytest.mark.parametrize("suffix", ["las", "laz"])
@pytest.mark.parametrize("kept", [0.5, 0.05, 0.001])
def test_a_file_that_was_cut_short_is_refused_in_a_line(tmp_path, points, suffix, kept):
    path = written(tmp_path / f"tile.{suffix}", points)
    path.write_bytes(path.read_bytes()[: max(60, int(path.stat().st_size * kept))])
    with pytest.raises(InputError, match=f"tile.{suffix}") as caught:
        PointCloudPipeline().read(path)
    assert "\n" not in str(caught.value)


def test_a_file_without_a_point_that_counts_is_refused(tmp_path, points):
    with pytest.raises(InputError, match="no points but noise"):
        PointCloudPipeline().read(written(tmp_path / "a.las", points, classification=np.full(len(points), 7, np.uint8)))
    with pytest.raises(InputError, match="no points"):
        PointCloudPipeline().read(written(tmp_path / "b.las", points[:0]))


def test_what_to_install_is_said(tmp_path, points, monkeypatch):
    path = written(tmp_path / "tile.las", points)
    monkeypatch.setitem(sys.modules, "laspy", None)
    with pytest.raises(MissingDependencyError, match=r"unipercept\[pointcloud\]"):
        PointCloudPipeline().read(path)
