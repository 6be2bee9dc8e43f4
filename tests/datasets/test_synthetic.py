"""Generated recordings: seeded, readable by every pipeline, and physically what they claim to be."""

import numpy as np
import pytest

from unipercept.api import detect_modality, pipeline
from unipercept.datasets import synthetic
from unipercept.embedding import MODALITIES


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    for library in ("soundfile", "av", "xarray", "netCDF4"):
        pytest.importorskip(library)
    return synthetic.write_samples(tmp_path_factory.mktemp("samples"))


def test_there_is_one_recording_of_every_modality(samples):
    assert sorted(samples) == sorted(MODALITIES)
    assert all(path.stat().st_size > 0 for path in samples.values())


@pytest.mark.parametrize("modality", MODALITIES)
def test_each_recording_is_recognised_and_embeds(samples, modality):
    assert detect_modality(samples[modality]) == modality
    maps = list(pipeline(modality, device="cpu").maps(samples[modality]))
    assert maps
    assert all(emap.modality == modality and bool(emap.tensor.isfinite().all()) for emap in maps)


@pytest.mark.parametrize("make", [synthetic.picture, synthetic.tone, synthetic.torus], ids=["picture", "tone", "torus"])
def test_a_seed_decides_every_value(make):
    np.testing.assert_array_equal(make(seed=3), make(seed=3))
    assert not np.array_equal(make(seed=3), make(seed=4))


def test_a_seed_decides_tables_and_fields():
    assert synthetic.hourly_load(seed=3).equals(synthetic.hourly_load(seed=3))
    assert not synthetic.hourly_load(seed=3).equals(synthetic.hourly_load(seed=4))
    pytest.importorskip("xarray")
    assert synthetic.weather_state(seed=3).identical(synthetic.weather_state(seed=3))
    assert not synthetic.weather_state(seed=3).equals(synthetic.weather_state(seed=4))


def test_the_tone_stays_within_full_scale():
    wave = synthetic.tone(seconds=1.5)
    assert wave.shape == (24000,)
    assert np.abs(wave).max() <= 1


def test_the_torus_lies_on_its_surface():
    x, y, z = synthetic.torus(500).astype(np.float64).T
    np.testing.assert_allclose((np.hypot(x, y) - 1) ** 2 + z**2, 0.35**2, atol=1e-6)


def test_the_load_repeats_with_the_day():
    load = synthetic.hourly_load()["load"].to_numpy()
    changes = np.diff(load)
    power = np.abs(np.fft.rfft(changes - changes.mean()))
    assert len(changes) / power.argmax() == pytest.approx(24, rel=0.02)


def test_winds_balance_the_geopotential():
    """u = -(1/f) dPhi/dy and v = (1/f) dPhi/dx away from the equator and the poles, against centred differences."""
    pytest.importorskip("xarray")
    state = synthetic.weather_state(n_times=1, rows=96, columns=192)
    phi = state["geopotential"].values[0, 0].astype(np.float64)
    latitude, longitude = np.deg2rad(state["latitude"].values), np.deg2rad(state["longitude"].values)
    radius, coriolis = 6.371e6, 2 * 7.292e-5 * np.sin(latitude)
    u = -(phi[2:] - phi[:-2]) / ((latitude[2:] - latitude[:-2])[:, None] * radius) / coriolis[1:-1, None]
    step = 2 * (longitude[1] - longitude[0]) * radius * np.cos(latitude)[:, None]
    v = (np.roll(phi, -1, axis=1) - np.roll(phi, 1, axis=1)) / step / coriolis[:, None]
    middle = (np.abs(np.rad2deg(latitude)) > 20) & (np.abs(np.rad2deg(latitude)) < 75)
    tolerance = {"rtol": 1e-3, "atol": 0.05}  # float32 geopotential: 4e-3 m2/s2 over 400 km
    np.testing.assert_allclose(
        state["u_component_of_wind"].values[0, 0][1:-1][middle[1:-1]], u[middle[1:-1]], **tolerance
    )
    np.testing.assert_allclose(state["v_component_of_wind"].values[0, 0][middle], v[middle], **tolerance)


def test_the_fields_say_that_they_are_generated_and_in_which_units():
    pytest.importorskip("xarray")
    state = synthetic.weather_state(n_times=1)
    assert state.attrs["source"].startswith("synthetic")
    assert {name: state[name].attrs["units"] for name in state.data_vars} == {
        "geopotential": "m2 s-2",
        "u_component_of_wind": "m s-1",
        "v_component_of_wind": "m s-1",
        "2m_temperature": "K",
    }
    assert np.hypot(state["u_component_of_wind"], state["v_component_of_wind"]).max() < 150
