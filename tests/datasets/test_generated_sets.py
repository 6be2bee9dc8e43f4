"""Generated sets: same arguments, same samples; labels that follow from how a sample was
made; splits that share nothing.
"""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from unipercept.datasets import labelled_set
from unipercept.datasets.camera_motion import (
    CLASSES,
    MIN_TRACE,
    N_CORNERS,
    N_LAYERS,
    Scenes,
    Studio,
    camera_paths,
    draw_scenes,
)
from unipercept.datasets.shapes3d import mesh, proportions, sample_surface
from unipercept.datasets.things3d import MAKERS, Part, surface
from unipercept.errors import InputError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(10):
        small = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        small.resize((160, 120), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.mark.usefixtures("open3d")
def test_shapes_repeat_and_bands_of_proportions_do_not_meet():
    first, again = (labelled_set("shapes3d", "", "test", per_class=2, n_points=256) for _ in range(2))
    assert (len(first), first[3].input.shape) == (20, (256, 3))
    assert np.array_equal(first[3].input, again[3].input)
    bands = {
        split: {int(proportions(split, np.random.default_rng(i))[0] * 20) for i in range(300)}
        for split in ("train", "validation", "test")
    }
    assert bands["test"] == {2, 7, 12, 17}
    assert not bands["train"] & (bands["test"] | bands["validation"])


@pytest.mark.usefixtures("open3d")
def test_points_spread_evenly_over_a_sphere():
    vertices, triangles = mesh("sphere", 0.5, 0.5)
    points = sample_surface(vertices, triangles, 20_000, np.random.default_rng(0))
    # Archimedes: on a sphere each coordinate is uniform in [-1, 1], so its mean square is a third.
    assert np.allclose((points**2).mean(axis=0) / (points**2).sum(axis=1).mean(), 1 / 3, atol=0.01)


def test_clips_repeat_and_no_file_serves_two_splits(pictures):
    train = labelled_set("camera_motion", pictures, "train", per_class=2)
    again = labelled_set("camera_motion", pictures, "train", per_class=2)
    assert train[5].input.shape == (16, 73, 73, 3)
    assert np.array_equal(train[5].input, again[5].input)
    assert not np.array_equal(train[5].input, labelled_set("camera_motion", pictures, "test", per_class=2)[5].input)


def centroid(frame):
    """Column, row of what is bright."""
    rows, columns = np.nonzero(frame.max(axis=2) > 150)
    return columns.mean(), rows.mean()


def seen(name, depth=0.7, places=((0.0, 0.0), (0.0, 0.0))):
    """16 frames of a white disc before black, and where a cut is."""
    shape = (1, 2, N_LAYERS)
    outline = np.zeros((*shape, N_CORNERS))
    outline[:, :, 0] = np.inf
    outline[:, :, -1] = 0.15 * depth
    picture, place = np.zeros(shape, np.int64), np.zeros((*shape, 2))
    picture[:, :, -1] = 1
    place[0, :, -1] = np.multiply(places, depth)
    depths = np.linspace(1, depth, N_LAYERS) * np.ones(shape)
    pose = np.eye(2) * np.full(shape, 50.0)[..., None, None]
    scenes = Scenes(picture, depths, place, outline, np.full((*shape, 2), 0.5), pose, np.ones((*shape, 3)))
    studio = Studio.of_arrays([np.full((100, 120, 3), level, np.uint8) for level in (0, 255)])
    paths = camera_paths(np.array([CLASSES.index(name)]), 16, np.random.default_rng(1))
    return studio.render(scenes, paths, 96)[0].numpy(), int(paths.cut_at[0])


def moved(frames):
    return np.subtract(centroid(frames[-1]), centroid(frames[0]))


@pytest.mark.parametrize(
    ("name", "axis", "sign"), [("pan left", 0, 1), ("pan right", 0, -1), ("tilt up", 1, 1), ("tilt down", 1, -1)]
)
def test_what_is_seen_moves_against_the_camera(name, axis, sign):
    found = moved(seen(name)[0])
    assert sign * found[axis] > 15
    assert abs(found[1 - axis]) < 5


def growth(name, depth=0.7):
    frames, _ = seen(name, depth)
    return ((frames[-1] > 150).sum() / (frames[0] > 150).sum()) ** 0.5


def test_zoom_enlarges_and_a_roll_turns_the_other_way():
    assert growth("zoom in") > 1.15
    assert moved(seen("roll clockwise", places=((0.3, 0.0),) * 2)[0])[1] < -5  # a thing on the right goes up


def test_a_dolly_moves_near_things_more_and_a_zoom_all_alike():
    assert growth("dolly in", 0.5) > 1.1 * growth("dolly in", 0.9) > 1.05
    assert abs(growth("zoom in", 0.5) / growth("zoom in", 0.9) - 1) < 0.05
    # At the background's depth the two are the same movement, so that size alone tells nothing.
    assert abs(growth("zoom in", 0.99) / growth("dolly in", 0.99) - 1) < 0.03


def test_a_cut_changes_the_scene_at_once():
    frames, cut_at = seen("cut", places=((-0.3, 0.0), (0.3, 0.0)))
    jumps = [abs(centroid(a)[0] - centroid(b)[0]) for a, b in pairwise(frames)]
    assert int(np.argmax(jumps)) + 1 == cut_at
    assert sorted(jumps)[-2] < 2


def test_zooms_and_dollies_of_clips_show_their_depth(pictures):
    studio, rng = Studio(pictures, "validation"), np.random.default_rng(3)
    paths = camera_paths(np.array([CLASSES.index(n) for n in ("zoom in", "dolly out")] * 4), 16, rng)
    plain = draw_scenes(8, len(studio), rng)
    plain.outline[:, :, 1:] = 0  # nothing before the background: no parallax
    assert studio.trace(plain, paths, 73).max() == 0
    shown = studio._with_depth(plain, paths, 73, rng)
    assert studio.trace(shown, paths, 73).min() >= MIN_TRACE
    flat = Studio.of_arrays([np.full((100, 120, 3), 90, np.uint8)] * 2)
    with pytest.raises(InputError, match="no parallax"):
        flat.clips(np.array([CLASSES.index("zoom in")]), rng, size=32)


def test_what_cannot_be_made_is_refused(tmp_path):
    with pytest.raises(InputError, match="at least five"):
        labelled_set("camera_motion", tmp_path)
    assert len(CLASSES) == 13


def test_things_repeat_stand_upright_and_every_kind_can_be_made():
    first, again = (labelled_set("things3d", "", "validation", per_class=1, n_points=128) for _ in range(2))
    assert len(first) == len(MAKERS)
    assert all(np.array_equal(a.input, b.input) for a, b in zip(first, again, strict=True))
    assert all(sample.input.shape == (128, 3) and np.isfinite(sample.input).all() for sample in first)
    rng = np.random.default_rng(0)
    for name, flat in (("wall", False), ("slab", True)):
        points, _ = surface(MAKERS[name](0.5, 0.5), 4000, rng)
        assert bool(np.ptp(points[:, 2]) < 0.2 * np.ptp(points[:, 0])) is flat
    with pytest.raises(InputError, match="at least 1"):
        labelled_set("things3d", "", "train", per_class=0)


@pytest.mark.parametrize("kind", ["box", "cylinder", "ellipsoid"])
def test_points_of_a_part_spread_by_area_and_normals_look_outwards(kind):
    points, normals = surface([Part(kind, (2.0, 2.0, 2.0), (0, 0, 5.0))], 20_000, np.random.default_rng(0))
    centred = points - (0, 0, 5)
    assert np.allclose(np.linalg.norm(normals, axis=1), 1)
    assert ((centred * normals).sum(axis=1) > 0).all()
    # Of a unit cylinder (radius 1, height 2) the caps are a third of the area, of a cube's faces two are.
    if kind != "ellipsoid":
        assert np.isclose((np.abs(normals[:, 2]) > 0.9).mean(), 1 / 3, atol=0.02)
    assert np.isclose(centred.max(), 1, atol=0.01)
