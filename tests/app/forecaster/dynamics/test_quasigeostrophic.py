"""The quasi-geostrophic model is weather-like, its inversion is exact, and its lift is balanced and hydrostatic."""

import numpy as np
import pytest

from unipercept.app.forecaster.dynamics.lift import (
    GAS_CONSTANT,
    Lift,
    LiftConfig,
    parabola_weights,
    standard_atmosphere,
)
from unipercept.app.forecaster.dynamics.quasigeostrophic import QuasiGeostrophic, seconds_of
from unipercept.errors import InputError
from unipercept.pipelines.weather_grid import area_weights


@pytest.fixture(scope="module")
def model() -> QuasiGeostrophic:
    return QuasiGeostrophic()


@pytest.fixture(scope="module")
def weather(model: QuasiGeostrophic) -> np.ndarray:
    """A state after 40 days."""
    return model.run(model.initial_state(0.0, seed=0), 0.0, 24 * 40)[0]


def test_potential_vorticity_and_stream_function_are_inverse(model: QuasiGeostrophic, weather: np.ndarray) -> None:
    vorticity = weather[0]
    back = model.potential_vorticity(model.stream_function(vorticity))
    np.testing.assert_allclose(back, vorticity, atol=1e-12 * abs(vorticity).max())


def test_it_is_as_lively_as_the_specification_measured(model: QuasiGeostrophic, weather: np.ndarray) -> None:
    u, v = model.harmonics.winds(model.harmonics.laplacian * model.stream_function(weather[0]))
    cos = np.sqrt(model.harmonics.cos_squared)
    jet = (u / cos).mean(-1)[0]
    assert 40 < jet.max() < 80  # m/s; 49 in the mean over a year
    np.testing.assert_allclose((v / cos).std((1, 2)), (14, 11, 8), rtol=0.35)


def test_a_small_error_grows(model: QuasiGeostrophic, weather: np.ndarray) -> None:
    disturbed = weather.copy()
    disturbed[0, :, 3, 5] += 1e-9
    before = abs(disturbed - weather)[0].max()
    runs = model.run(np.stack([weather, disturbed]), 40 * 86400.0, 24 * 12)[0]
    assert abs(runs[1, 0] - runs[0, 0]).max() > 4 * before


def test_a_batch_is_its_members(model: QuasiGeostrophic, weather: np.ndarray) -> None:
    other = weather * (1 + 1e-6)
    together = model.run(np.stack([weather, other]), 0.0, 6)[0]
    for got, alone in zip(together, (weather, other), strict=True):
        np.testing.assert_allclose(got, model.run(alone, 0.0, 6)[0], atol=1e-13 * abs(alone).max())


def test_stopping_on_the_way_changes_nothing(model: QuasiGeostrophic, weather: np.ndarray) -> None:
    straight, end = model.run(weather, 0.0, 24)
    half, time = model.run(weather, 0.0, 12)
    again, same_end = model.run(half, time, 12)
    assert end == same_end
    np.testing.assert_array_equal(straight, again)


def test_seasons_differ_between_hemispheres(model: QuasiGeostrophic) -> None:
    winter, summer = model._equilibrium_of(1.0), model._equilibrium_of(-1.0)
    u_winter, u_summer = (model.harmonics.winds(model.harmonics.laplacian * x)[0].mean(-1)[0] for x in (winter, summer))
    north = model.harmonics.latitude > 0
    assert u_winter[north].max() > 1.5 * u_summer[north].max()
    assert u_winter[~north].max() < u_summer[~north].max() / 1.5


def test_the_lift_has_plausible_fields_in_canonical_units(model: QuasiGeostrophic, weather: np.ndarray) -> None:
    fields = Lift(model, LiftConfig(levels=(200, 500, 850, 1000)))(weather, 40 * 86400.0)
    assert fields["geopotential"].shape == (4, 32, 64)
    weights = area_weights(LiftConfig().latitude)
    height = (fields["geopotential"].mean(2) * weights).mean(1) / 9.80665
    np.testing.assert_allclose(height, (11790, 5574, 1457, 111), atol=60)  # the standard atmosphere's
    temperature = fields["temperature"][2]
    assert 20 < temperature[14:18].mean() - temperature[[0, 1, -2, -1]].mean() < 70
    assert 93000 < fields["mean_sea_level_pressure"].min() < 100500
    assert 101500 < fields["mean_sea_level_pressure"].max() < 109000
    assert fields["relative_humidity"].min() >= 0
    assert fields["relative_humidity"].max() <= 100
    assert all(np.isfinite(x).all() and x.dtype == np.float32 for x in fields.values())


def test_the_lifted_column_is_hydrostatic(model: QuasiGeostrophic, weather: np.ndarray) -> None:
    """The slope of the anomaly by finite differences is the anomaly of temperature."""
    levels = (499, 500, 501)
    fields = Lift(model, LiftConfig(levels=levels))(weather, 0.0)
    standard_z, standard_t = standard_atmosphere(levels)
    anomaly = fields["geopotential"].astype(float) - standard_z[:, None, None]
    slope = (anomaly[2] - anomaly[0]) / np.log(501 / 499)
    np.testing.assert_allclose(fields["temperature"][1] - standard_t[1], -slope / GAS_CONSTANT, atol=0.02)


def test_winds_of_the_lift_are_geostrophic_in_mid_latitudes(model: QuasiGeostrophic, weather: np.ndarray) -> None:
    config = LiftConfig(rows=64, columns=128, levels=(500,))
    fields = Lift(model, config)(weather, 0.0)
    phi = np.deg2rad(config.latitude)
    slope = np.gradient(fields["geopotential"][0].astype(float), phi * 6.37122e6, axis=0)
    geostrophic = -slope / (2 * 7.292e-5 * np.sin(phi)[:, None])
    rows = (config.latitude > 35) & (config.latitude < 65)
    assert np.corrcoef(geostrophic[rows].ravel(), fields["u_component_of_wind"][0][rows].ravel())[0, 1] > 0.95


def test_the_parabola_goes_through_the_levels_and_exactly_through_parabolas() -> None:
    values, _ = parabola_weights((200, 500, 800))
    np.testing.assert_allclose(values, np.eye(3), atol=1e-13)
    values, slopes = parabola_weights([320.0])
    x = np.log([200, 500, 800])
    assert (values @ (2 * x**2 - x))[0] == pytest.approx(2 * np.log(320) ** 2 - np.log(320), rel=1e-12)
    assert (slopes @ (2 * x**2 - x))[0] == pytest.approx(4 * np.log(320) - 1, rel=1e-10)


def test_the_standard_atmosphere_is_the_published_one() -> None:
    z, t = standard_atmosphere([1013.25, 226.32, 54.749])  # ISO 2533: 0, 11 and 20 km
    np.testing.assert_allclose(z / 9.80665, [0, 11000, 20000], atol=3)
    np.testing.assert_allclose(t, [288.15, 216.65, 216.65], atol=0.02)


@pytest.mark.parametrize("levels", [(), (500, 200), (500, 500), (10, 500)])
def test_levels_out_of_reach_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="levels must"):
        LiftConfig(levels=levels)


def test_model_time_counts_from_2000() -> None:
    assert seconds_of("2000-01-02T06") == 30 * 3600
