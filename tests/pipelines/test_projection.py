"""Clouds as pictures: order does not matter, views are rotations, and the learned projection adds up what it should."""

import math

import pytest
import torch

from unipercept.errors import InputError
from unipercept.pipelines.projection import (
    VIEW_ANGLES,
    GeometryPreservingProjection,
    depth_map,
    farthest_points,
    nearest_neighbours,
    rotation,
    scatter_sum,
    shade,
    splat_cells,
    splat_radius,
    unit_sphere,
)


@pytest.fixture
def points():
    generator = torch.Generator().manual_seed(0)
    return unit_sphere(torch.randn(200, 3, generator=generator, dtype=torch.float64))[0]


@pytest.mark.parametrize("angles", VIEW_ANGLES)
def test_views_are_rotations(angles):
    matrix = rotation(angles)
    assert torch.allclose(matrix @ matrix.T, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.linalg.det(matrix).item() == pytest.approx(1)


def test_views_are_seen_from_the_directions_that_models_were_trained_on():
    half, root = 0.5, 0.5**0.5
    towards_viewer = [
        *((0, 0, 1), (1, 0, 0), (0, 0, -1), (-1, 0, 0)),
        *((-root, half, -half), (-root, -half, half), (-root, -half, -half), (-root, half, half)),
        *((0, -1, 0), (0, 1, 0)),
    ]
    found = torch.stack([rotation(angles) for angles in VIEW_ANGLES])
    assert torch.allclose(found[:, 2], torch.tensor(towards_viewer, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(found[:4, 0], torch.tensor([0.0, -1, 0], dtype=torch.float64), atol=1e-12)


def test_a_quarter_turn_about_z_takes_x_to_y():
    turned = torch.tensor([[1.0, 0, 0]], dtype=torch.float64) @ rotation((0, 0, math.pi / 2)).T
    assert torch.allclose(turned, torch.tensor([[0.0, 1, 0]], dtype=torch.float64), atol=1e-12)


def test_the_unit_ball_is_left_exactly(points):
    moved = 3 * points + torch.tensor([5.0, -7, 11], dtype=torch.float64)
    inside, centre, scale = unit_sphere(moved)
    assert inside.norm(dim=1).max().item() == pytest.approx(1)
    assert torch.allclose(centre + scale * inside, moved, atol=1e-12)


@pytest.mark.parametrize("unit", [1e-30, 1e-19, 1e19, 1e30])
def test_the_unit_of_length_leaves_no_trace(points, unit):
    """Squares of such coordinates are 0 or infinite in float32."""
    usual, _, scale = unit_sphere(points.float())
    inside, _, scaled = unit_sphere((points * unit).float())
    assert torch.allclose(inside, usual, atol=1e-6)
    assert scaled == pytest.approx(unit * scale, rel=1e-6)


def test_points_that_coincide_are_in_the_centre():
    inside, centre, scale = unit_sphere(torch.full((500, 3), 0.1))
    assert (inside.abs().max().item(), scale) == (0, 1)
    assert centre.tolist() == pytest.approx([0.1] * 3)


def test_a_rendering_does_not_depend_on_the_order_of_points(points):
    shuffled = points[torch.randperm(len(points))]
    for splat in (0, 2):
        assert torch.equal(depth_map(points, 32, splat), depth_map(shuffled, 32, splat))


def test_the_nearest_point_hides_those_behind():
    cloud = torch.tensor([[0.0, 0, -0.5], [0, 0, 0.7], [0, 0, 0.1], [0.9, 0.9, 0]])
    depth = depth_map(cloud, 4)
    assert depth[2, 2].item() == pytest.approx(0.7)
    assert depth[0, 3].item() == 0
    assert torch.isinf(depth).sum() == 14


def test_points_on_the_edge_of_the_ball_are_in_the_outermost_cells():
    depth = depth_map(torch.tensor([[1.0, 0, 0.1], [0, -1, 0.2], [-1, 0, 0.3], [0, 1, 0.4]]), 4)
    assert torch.isfinite(depth).nonzero().tolist() == [[0, 2], [2, 0], [2, 3], [3, 2]]
    assert depth[torch.isfinite(depth)].tolist() == pytest.approx([0.4, 0.3, 0.1, 0.2])


def test_a_plane_has_one_normal():
    y, x = torch.meshgrid(torch.linspace(-0.9, 0.9, 300), torch.linspace(-0.9, 0.9, 300), indexing="ij")
    slope = 0.5
    plane = torch.stack([x, y, slope * x], dim=-1).reshape(-1, 3)
    picture, hit = shade(depth_map(plane, 64))
    inside = hit.clone()
    inside[:8] = inside[-8:] = inside[:, :8] = inside[:, -8:] = False
    expected = slope / math.sqrt(1 + slope**2)
    assert picture[1][inside].mean().item() == pytest.approx(expected, abs=0.02)
    assert picture[2][inside].abs().mean().item() < 0.02


def test_denser_clouds_need_smaller_splats():
    radii = [splat_radius(n, 224) for n in (10, 100, 1000, 10_000, 10_000_000)]
    assert radii == sorted(radii, reverse=True)
    assert radii[-1] <= 1
    assert splat_radius(5000, 128) == 1  # 1.6 cells apart: a splat of none would leave gaps


def test_scattering_equals_a_loop_from_the_definition(points):
    size, features = 24, torch.randn(200, 5, dtype=torch.float64)
    found = scatter_sum(features, splat_cells(points, size), size)
    low, span = points[:, :2].min(0).values, float((points[:, :2].max(0).values - points[:, :2].min(0).values).max())
    cell = ((points[:, :2] - low) / (span / (size - 3))).floor().long().clamp(max=size - 3)
    box = cell.max(0).values + 3
    shift = [(size - int(b)) // 2 for b in box]
    expected = torch.zeros(5, size, size, dtype=torch.float64)
    for (x, y), feature in zip(cell.tolist(), features, strict=True):
        for dx in range(3):
            for dy in range(3):
                expected[:, y + dy + shift[1], x + dx + shift[0]] += feature
    assert torch.allclose(found, expected, atol=1e-12)
    assert found.sum().item() == pytest.approx(9 * features.sum().item())


def test_farthest_points_and_neighbours_equal_brute_force(points):
    table = torch.cdist(points, points)
    chosen = [0]
    while len(chosen) < 12:
        chosen.append(int(table[chosen].min(0).values.argmax()))
    assert farthest_points(points, 12).tolist() == chosen
    near = nearest_neighbours(points, 6, chunk=50)
    assert torch.equal(near.sort(1).values, table.topk(6, largest=False).indices.sort(1).values)
    assert (near[:, 0] == torch.arange(len(points))).all()


@pytest.mark.parametrize(
    "call", [lambda p: farthest_points(p, 0), lambda p: farthest_points(p, 500), lambda p: splat_cells(p[:0], 24)]
)
def test_what_cannot_be_chosen_is_refused(points, call):
    with pytest.raises(InputError):
        call(points)


def test_the_learned_projection_makes_pictures_and_passes_gradients(points):
    torch.manual_seed(0)
    network = GeometryPreservingProjection(size=32, k=8, n_views=3, width=16)
    pictures = network(points.float(), torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.25, 0.25, 0.25]))
    assert pictures.shape == (3, 3, 32, 32)
    pictures.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
