"""Continuation over the poles and round the earth, against functions on the sphere."""

import numpy as np
import pytest
import torch

from unipercept.app.forecaster.boundary import pad_rows, padding_of, pole_signs
from unipercept.errors import InputError
from unipercept.kernels.depthwise_conv2d.padding import Padding, pad
from unipercept.pipelines.weather_grid import area_weights

GRIDS = [(721, 1440), (33, 64), (32, 64)]


def axes(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Degrees: with both poles for odd rows, cell centres for even ones."""
    latitude = np.linspace(90, -90, rows) if rows % 2 else 90 - 180 / rows * (np.arange(rows) + 0.5)
    return latitude, np.arange(columns) * 360 / columns


def continued(rows: int, columns: int, halo: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Radians of a padded grid; latitudes run on beyond 90 degrees, where cos is negative: the opposite meridian."""
    latitude, longitude = axes(rows, columns)
    a, b = halo
    step = latitude[1] - latitude[0]
    phi = np.deg2rad(latitude[0] + step * np.arange(-a, rows + a))
    lam = np.deg2rad(longitude[1] * np.arange(-b, columns + b))
    return tuple(torch.from_numpy(x) for x in np.meshgrid(phi, lam, indexing="ij"))


def pad_map(
    x: torch.Tensor, rows: int, columns: int, padding: Padding, signs: torch.Tensor | None = None
) -> torch.Tensor:
    """A halo on each side: over the poles first, then round the earth."""
    return pad(pad_rows(x, rows, rows, padding, signs), 0, columns, "cylinder")


@pytest.mark.parametrize(("rows", "columns"), GRIDS)
@pytest.mark.parametrize("halo", [(4, 4), (11, 11), (20, 70)])
def test_a_function_of_the_unit_vector_continues_over_the_poles(rows: int, columns: int, halo: tuple[int, int]) -> None:
    phi, lam = continued(rows, columns, halo)
    x, y, z = phi.cos() * lam.cos(), phi.cos() * lam.sin(), phi.sin()
    field = (x + 2 * y - z) ** 3 + x * z
    a, b = halo
    inside = field[None, None, a : a + rows, b : b + columns]
    padded = pad_map(inside, a, b, padding_of(*axes(rows, columns)))
    assert float((padded[0, 0] - field).abs().max()) < 40 * 6e-16 * float(field.abs().max())


@pytest.mark.parametrize(("rows", "columns"), GRIDS)
def test_a_constant_vector_continues_with_its_sign_turned(rows: int, columns: int) -> None:
    phi, lam = continued(rows, columns, (9, 5))
    vector = (0.3, -1.2, 0.7)
    east = -vector[0] * lam.sin() + vector[1] * lam.cos()
    north = -phi.sin() * (vector[0] * lam.cos() + vector[1] * lam.sin()) + phi.cos() * vector[2]
    fields = torch.stack([east, north])[None]
    padded = pad_map(
        (fields)[..., 9 : 9 + rows, 5 : 5 + columns],
        9,
        5,
        padding_of(*axes(rows, columns)),
        pole_signs(["u10", "v500"]),
    )
    assert float((padded - fields).abs().max()) < 40 * 6e-16


@pytest.mark.parametrize("padding", ["sphere", "sphere_poles"])
def test_each_pole_is_padded_by_itself(padding: str) -> None:
    x, signs = torch.randn(1, 2, 6, 8), pole_signs(["u10", "t2m"])
    assert torch.equal(pad_rows(x, 1, 3, padding, signs), pad_rows(x, 3, 3, padding, signs)[..., 2:, :])


def test_a_region_repeats_its_outermost_rows() -> None:
    x = torch.arange(6.0).view(1, 1, 3, 2)
    assert pad_rows(x, 1, 2, "zero")[0, 0, :, 0].tolist() == [0, 0, 2, 4, 4, 4]


def test_only_wind_components_change_sign() -> None:
    names = ["z500", "u850", "v10", "10u", "u10m", "t2m", "msl", "r50", "vo500", "v"]
    assert pole_signs(names).tolist() == [1, -1, -1, -1, -1, 1, 1, 1, 1, -1]


def test_the_grid_chooses_the_padding() -> None:
    assert padding_of(*axes(33, 64)) == "sphere_poles"
    assert padding_of(*axes(32, 64)) == "sphere"
    assert padding_of(np.linspace(60, -60, 41), axes(32, 64)[1]) == "cylinder"
    assert padding_of(np.linspace(60, 30, 11), np.arange(12) * 2.5) == "zero"
    with pytest.raises(InputError, match="even number of longitudes"):
        padding_of(np.linspace(90, -90, 7), np.arange(9) * 40)


@pytest.mark.parametrize("rows", [16, 32, 94, 640])
def test_a_gaussian_grid_goes_on_over_the_poles(rows: int) -> None:
    """The grid of NCEP, JRA and many climate models: its outermost rows lie 0.77 of a row from the poles."""
    latitude = np.degrees(np.arcsin(np.polynomial.legendre.leggauss(rows)[0]))[::-1]
    longitude = np.arange(2 * rows) * 180 / rows
    assert padding_of(latitude, longitude) == "sphere"
    assert padding_of(latitude[1:], longitude) == "cylinder"
    edges = np.sin(np.deg2rad(np.concatenate([[90], (latitude[1:] + latitude[:-1]) / 2, [-90]])))
    expected = -np.diff(edges) * rows / 2  # as WeatherBench 2: from pole to pole
    assert np.allclose(area_weights(latitude), expected, rtol=1e-12)


def test_winds_of_every_name_turn_round_over_a_pole() -> None:
    names = ["u500", "v50", "u10", "10v", "v10m", "u100m", "u", "w500", "t2m", "ustar", "vis"]
    assert pole_signs(names).tolist() == [-1] * 7 + [1] * 4
