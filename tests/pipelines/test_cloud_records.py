"""Binary PLY and PCD are read record by record: any properties in any order, any chunk, without open3d."""

import sys

import numpy as np
import pytest

from unipercept.errors import InputError
from unipercept.pipelines import cloud_records
from unipercept.pipelines.cloud_records import find_records
from unipercept.pipelines.pointcloud import PointCloudPipeline

FAR = np.array([400_000.0, 5_800_000.0, 30.0])


@pytest.fixture
def points():
    return np.random.default_rng(0).normal(size=(1_000, 3)) + FAR


def ply(path, points, fields, *, order="<", after=""):
    """A binary ply with properties (name, ply type, numpy type)."""
    record = np.zeros(len(points), [(name, order + kind) for name, _, kind in fields])
    for name, column in zip("xyz", points.T, strict=True):
        record[name] = column
    format_ = "binary_little_endian" if order == "<" else "binary_big_endian"
    properties = "".join(f"property {name} {field}\n" for field, name, _ in fields)
    header = (
        f"ply\nformat {format_} 1.0\ncomment made here\nelement vertex {len(points)}\n{properties}{after}end_header\n"
    )
    path.write_bytes(header.encode() + record.tobytes())
    return path


ODD = [("scalar_Intensity", "float", "f4"), ("z", "double", "f8"), ("red", "uchar", "u1"), ("x", "double", "f8"), ("y", "double", "f8")]  # fmt: skip


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("chunk", [1_000_000, 1_000, 333])
def test_odd_properties_in_any_order_give_the_points(tmp_path, points, order, chunk, monkeypatch):
    monkeypatch.setattr(cloud_records, "CHUNK_POINTS", chunk)
    monkeypatch.setitem(sys.modules, "open3d", None)
    cloud = PointCloudPipeline().read(ply(tmp_path / "odd.ply", points, ODD, order=order, after="element face 0\n"))
    assert np.abs(cloud.points + np.array(cloud.facts["origin"]) - points).max() < 1e-6


@pytest.mark.parametrize("chunk", [1_000_000, 100])
def test_points_after_many_that_are_missing_keep_their_detail(tmp_path, points, chunk, monkeypatch):
    """A scanner's rows of sky come first; the origin was sought among them alone."""
    monkeypatch.setattr(cloud_records, "CHUNK_POINTS", chunk)
    monkeypatch.setattr(cloud_records, "ORIGIN_POINTS", 50)
    gaps = np.full((321, 3), np.nan)
    cloud = PointCloudPipeline().read(ply(tmp_path / "scan.ply", np.concatenate([gaps, points]), ODD))
    assert cloud.facts["dropped_points"] == 321
    assert np.abs(cloud.points + np.array(cloud.facts["origin"]) - points).max() < 1e-6


def test_a_binary_pcd_gives_the_points(tmp_path, points, monkeypatch):
    monkeypatch.setitem(sys.modules, "open3d", None)
    record = np.zeros(len(points), [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("normal", "<f4", 3), ("label", "<u2")])
    near = points - FAR
    for name, column in zip("xyz", near.T, strict=True):
        record[name] = column
    header = (
        "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z normal label\nSIZE 4 4 4 4 2\nTYPE F F F F U\nCOUNT 1 1 1 3 1\n"
        f"WIDTH {len(points)}\nHEIGHT 1\nPOINTS {len(points)}\nDATA binary\n"
    )
    (tmp_path / "a.pcd").write_bytes(header.encode() + record.tobytes())
    assert np.array_equal(PointCloudPipeline().read(tmp_path / "a.pcd").points, near.astype(np.float32))


def test_what_is_no_list_of_records_is_left_to_other_readers(tmp_path, points):
    plain = [(name, "float", "f4") for name in "xyz"]
    meshes = ply(tmp_path / "a.ply", points, plain, after="element face 2\nproperty list uchar int vertex_indices\n")
    assert find_records(meshes, ".ply") is None
    listed = [*plain, ("list uchar int neighbours", "", "u1")]
    assert find_records(ply(tmp_path / "b.ply", points, listed), ".ply") is None
    (tmp_path / "c.ply").write_text("ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n0\n")
    assert find_records(tmp_path / "c.ply", ".ply") is None


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("FIELDS x y z\n", ""), ("TYPE F F F\n", ""), ("TYPE F F F", "TYPE F F"), ("TYPE F F F", "TYPE F F ü"), ("SIZE 4 4 4", "SIZE 4 4 0"),
        ("SIZE 4 4 4", "SIZE 4 4 04"), ("COUNT 1 1 1", "COUNT 1 1 1 1"), ("COUNT 1 1 1", "COUNT 1 1 -1"), ("POINTS 9", "POINTS x"),
    ],
)  # fmt: skip
def test_a_pcd_header_that_makes_no_sense_is_refused_in_one_line(tmp_path, good, bad):
    header = (
        "VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 9\nHEIGHT 1\nPOINTS 9\nDATA binary\n"
    )
    assert good in header
    (tmp_path / "a.pcd").write_bytes(header.replace(good, bad).encode() + bytes(9 * 12))
    with pytest.raises(InputError) as refused:
        PointCloudPipeline().read(tmp_path / "a.pcd")
    assert "a.pcd" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_field_of_very_many_numbers_costs_no_memory(tmp_path):
    """A header of a few bytes may claim any number of them."""
    header = (
        "VERSION 0.7\nFIELDS x y z w\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 999999999999\nPOINTS 0\nDATA binary\n"
    )
    (tmp_path / "a.pcd").write_text(header)
    with pytest.raises(InputError, match="no points"):
        PointCloudPipeline().read(tmp_path / "a.pcd")
