"""The transforms are exact, and the standard cases of Williamson et al. (1992) come out as they must."""

import numpy as np
import pytest

from unipercept.app.forecaster.dynamics import shallow_water as sw
from unipercept.app.forecaster.dynamics.spectral import GRAVITY, SphericalHarmonics
from unipercept.errors import InputError

T21 = SphericalHarmonics(21, 32, 64)


def random_coefficients(harmonics: SphericalHarmonics, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    size = harmonics.truncation + 1
    coefficients = random.normal(size=(size, size)) + 1j * random.normal(size=(size, size))
    coefficients[np.arange(size)[None] < np.arange(size)[:, None]] = 0
    coefficients[0] = coefficients[0].real
    return coefficients


@pytest.mark.parametrize("harmonics", [T21, SphericalHarmonics(42, 64, 128)])
def test_analysis_undoes_synthesis(harmonics: SphericalHarmonics) -> None:
    coefficients = random_coefficients(harmonics)
    assert abs(harmonics.analyse(harmonics.synthesise(coefficients)) - coefficients).max() < 1e-12


def test_vorticity_and_divergence_survive_the_way_over_winds() -> None:
    vorticity, divergence = random_coefficients(T21), random_coefficients(T21, 1)
    vorticity[0, 0] = divergence[0, 0] = 0
    curl, spread = T21.curl_and_divergence(*T21.winds(vorticity, divergence))
    assert abs(curl - vorticity).max() < 1e-12
    assert abs(spread - divergence).max() < 1e-12


def test_evaluation_on_the_gaussian_latitudes_is_the_synthesis() -> None:
    coefficients = random_coefficients(T21)
    np.testing.assert_allclose(T21.at(T21.latitude, 64).field(coefficients), T21.synthesise(coefficients), atol=1e-12)


def test_a_grid_too_coarse_is_refused() -> None:
    with pytest.raises(InputError, match="T42 needs"):
        SphericalHarmonics(42, 32, 64)


@pytest.mark.parametrize("angle", [0.0, 0.05, np.pi / 2 - 0.05, np.pi / 2])
def test_case_1_the_bell_comes_home_after_twelve_days(angle: float) -> None:
    """Measured against the truncated bell, so that only transport counts; the truncation itself is 0.0371."""
    bell = sw.cosine_bell(T21)
    start = T21.analyse(bell)
    u, v, _, _ = sw.steady_flow(T21, angle)
    end = sw.transport(T21, start, u, v, 12 * 24, 1800)
    truncated, returned = T21.synthesise(start), T21.synthesise(end)
    error = np.sqrt(T21.mean((returned - truncated) ** 2) / T21.mean(bell**2))
    assert error < 1.2e-4  # 16 times less than 1.3e-3 at 3600 s: fourth order
    truncation = np.sqrt(T21.mean((truncated - bell) ** 2) / T21.mean(bell**2))
    assert truncation == pytest.approx(0.0371, abs=2e-4)
    assert T21.mean(returned) == pytest.approx(T21.mean(truncated), rel=1e-12)


@pytest.mark.parametrize("angle", [0.0, np.pi / 4])
def test_case_2_the_steady_flow_stays_for_five_days(angle: float) -> None:
    u, v, geopotential, coriolis = sw.steady_flow(T21, angle)
    model = sw.ShallowWater(T21, damping_hours=None, coriolis=coriolis)
    after = model.fields(model.run(model.state(u, v, geopotential), 5 * 24))[2]
    assert np.sqrt(T21.mean((after - geopotential) ** 2) / T21.mean(geopotential**2)) < 1e-12


@pytest.mark.parametrize("days", [5, pytest.param(15, marks=pytest.mark.slow)])
def test_case_5_flow_over_a_mountain_keeps_mass_and_energy(days: int) -> None:
    u, v, geopotential, _ = sw.steady_flow(T21, 0.0, 20.0, GRAVITY * 5960)
    mountain = sw.cone_mountain(T21)
    model = sw.ShallowWater(T21, ground=mountain)
    start = model.state(u, v, geopotential - mountain)
    end = model.run(start, days * 24)
    assert model.mass(end) == pytest.approx(model.mass(start), rel=1e-13)
    assert abs(model.energy(end) / model.energy(start) - 1) < 6e-5  # 4e-5 in the specification, after 15 days
    assert 25 < abs(model.fields(end)[0]).max() < 60


def test_case_6_the_wave_turns_eastwards_and_keeps_energy() -> None:
    model = sw.ShallowWater(T21)
    start = state = model.state(*sw.rossby_haurwitz(T21))
    phases = [np.angle(state[0, 4, 5])]
    for _ in range(28):
        state = model.run(state, 6)
        phases.append(np.angle(state[0, 4, 5]))
    assert abs(model.energy(state) / model.energy(start) - 1) < 6e-5
    assert model.mass(state) == pytest.approx(model.mass(start), rel=1e-13)
    speed = -np.rad2deg(np.polyfit(np.arange(29) / 4, np.unwrap(phases), 1)[0]) / 4
    assert speed == pytest.approx(11.5, abs=0.2)  # degrees a day; 12.2 without divergence


@pytest.mark.slow
def test_case_6_at_t42_keeps_energy_to_the_stated_figure() -> None:
    harmonics = SphericalHarmonics(42, 64, 128)
    model = sw.ShallowWater(harmonics, step_seconds=600)
    start = model.state(*sw.rossby_haurwitz(harmonics))
    end = model.run(start, 7 * 24)
    assert abs(model.energy(end) / model.energy(start) - 1) < 5e-6
