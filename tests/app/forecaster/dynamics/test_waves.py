"""The plane waves follow the discrete dispersion relation, and the scheme keeps its energy."""

from dataclasses import replace

import numpy as np
import pytest

from unipercept.app.forecaster.dynamics.waves import WaveConfig, WaveEquation, wave_dataset
from unipercept.app.forecaster.fields import open_fields
from unipercept.errors import InputError


def test_a_standing_wave_follows_the_discrete_dispersion_relation() -> None:
    config = WaveConfig(rows=32, columns=48, step=0.6)
    model = WaveEquation(config)
    kx, ky = 2 * np.pi * 3 / 48, 2 * np.pi * 2 / 32
    turn = np.arccos(1 - 0.6**2 / 2 * (4 - 2 * np.cos(kx) - 2 * np.cos(ky)))  # omega dt
    shape = np.cos(ky * np.arange(32))[:, None] * np.cos(kx * np.arange(48))[None]
    before, now = shape * np.cos(-turn), shape
    for i in range(1, 401):
        before, now = model.step(before, now)
        if i % 50 == 0:
            assert abs(now - shape * np.cos(turn * i)).max() < 1e-12


@pytest.mark.parametrize("edges", ["periodic", "reflecting"])
def test_energy_stays_without_damping(edges: str) -> None:
    model = WaveEquation(WaveConfig(edges=edges, speed_variation=0.3))
    state = model.initial()
    start = model.energy(*state)
    for _ in range(400):
        state = model.step(*state)
    assert model.energy(*state) == pytest.approx(start, rel=1e-12)


def test_an_absorbing_edge_swallows_most_of_the_wave() -> None:
    model = WaveEquation(WaveConfig(edges="absorbing"))
    state = model.initial()
    start = model.energy(*state)
    for _ in range(600):
        state = model.step(*state)
    assert model.energy(*state) < 0.02 * start


def test_an_unstable_step_is_refused() -> None:
    with pytest.raises(InputError, match="too long"):
        WaveConfig(step=0.8)


def test_the_dataset_is_repeatable_and_the_weather_reader_takes_it() -> None:
    config = WaveConfig(rows=16, columns=24, seed=3)
    first, second = wave_dataset(config, 5), wave_dataset(config, 5)
    assert first.identical(second)
    assert not first.equals(wave_dataset(replace(config, seed=4), 5))
    assert open_fields(first)["height"].shape == (5, 16, 24)
