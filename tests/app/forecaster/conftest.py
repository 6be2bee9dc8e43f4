"""Small weather that tests make: waves on a global grid, as a dataset and as models that move them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from unipercept.app.forecaster.frames import Frames, Grid, Statistics
from unipercept.app.forecaster.model import ForecastModel, new_model

CHANNELS = ("z500", "u10", "t2m")


def waves(n_times: int = 24, rows: int = 8, columns: int = 16, seed: int = 0, start: str = "2020-01-01") -> xr.Dataset:
    """Waves that travel eastwards and a little noise, 6-hourly, in ERA5's names and units."""
    random = np.random.default_rng(seed)
    latitude, longitude = 90 - 180 / rows * (np.arange(rows) + 0.5), np.arange(columns) * 360 / columns
    lam, phi, t = np.deg2rad(longitude), np.deg2rad(latitude)[:, None], np.arange(n_times)[:, None, None]
    wave = np.cos(phi) * np.cos(2 * lam - 0.3 * t) + 0.01 * random.standard_normal((n_times, rows, columns))
    coordinates = {
        "time": np.datetime64(start, "ns") + np.arange(n_times) * np.timedelta64(6, "h"),
        "latitude": latitude,
        "longitude": longitude,
    }
    dims = ("time", "latitude", "longitude")
    return xr.Dataset(
        {
            "geopotential": (
                ("time", "level", *dims[1:]),
                (5.5e4 + 800 * wave)[:, None].astype("f4"),
                {"units": "m2 s-2"},
            ),
            "10m_u_component_of_wind": (dims, (5 * wave + 3).astype("f4"), {"units": "m s-1"}),
            "2m_temperature": (dims, (280 + 9 * np.roll(wave, 2, -1)).astype("f4"), {"units": "K"}),
        },
        coords={**coordinates, "level": ("level", [500], {"units": "hPa"})},
    )


def tiny_model(frames: Frames, /, seed: int = 0, strength: float = 0.05, **settings: object) -> ForecastModel:
    """A model with random weights whose forecasts stay near its input."""
    torch.manual_seed(seed)
    statistics = frames.statistics(slice(None), 6)
    sizes = {"width": 4, "groups": (1,), "kernel_size": 5, "dilation": 1, "ratio": 2, **settings}
    model = new_model("tiny", frames.channels, frames.grid, statistics, units=frames.units, **sizes)
    with torch.no_grad():
        model.network.recover.weight.copy_(torch.randn_like(model.network.recover.weight) * strength)
    return model.eval()


@pytest.fixture
def frames() -> Frames:
    return Frames(waves(), CHANNELS)


@pytest.fixture
def model(frames: Frames) -> ForecastModel:
    return tiny_model(frames)


@pytest.fixture
def other_model(frames: Frames) -> ForecastModel:
    return tiny_model(frames, seed=1)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    waves().to_netcdf(tmp_path / "analyses.nc")
    return tmp_path / "analyses.nc"


__all__ = ["CHANNELS", "Grid", "Statistics", "tiny_model", "waves"]
