"""A forecast store scored without this project's code, as WeatherBench 2 (0.2.1) documents it,
gives the scores of `evaluate`.

WeatherBench 2 itself is on no package index. What follows is its data layout and its published
definitions (evaluation.py, metrics.py, docs/source/evaluation.md) in plain xarray: init and valid time
from `time` and `prediction_timedelta`, cell areas between the midpoints of latitudes, the climatology of
the valid hour and day of the year.
"""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from tests.app.forecaster.conftest import CHANNELS, tiny_model, waves
from unipercept.app.forecaster.cascade import Cascade, Stage
from unipercept.app.forecaster.climatology import Climatology, build_climatology
from unipercept.app.forecaster.evaluate import evaluate
from unipercept.app.forecaster.fields import open_fields
from unipercept.app.forecaster.forecast import EnsembleSettings, forecast
from unipercept.app.forecaster.frames import Frames

NAMES = {"geopotential": "z500", "10m_u_component_of_wind": "u10", "2m_temperature": "t2m"}
TIMES = ["2020-03-02T00", "2020-06-03T12", "2020-09-07T18"]


def latitude_weights(latitude: xr.DataArray) -> xr.DataArray:
    """metrics.get_lat_weights: of latitudes in ascending order."""
    radians = np.deg2rad(latitude)
    bounds = np.concatenate([[-np.pi / 2], (radians.values[:-1] + radians.values[1:]) / 2, [np.pi / 2]])
    weights = np.sin(bounds[1:]) - np.sin(bounds[:-1])
    return xr.DataArray(weights / weights.mean(), coords={"latitude": latitude})


def with_valid_time(store: xr.Dataset) -> xr.Dataset:
    """evaluation._decode: the init-time convention."""
    renamed = store.rename(time="init_time", prediction_timedelta="lead_time").sortby("latitude").astype("f8")
    return renamed.assign_coords(valid_time=renamed["init_time"] + renamed["lead_time"])


def spatial_mean(fields: xr.Dataset) -> xr.Dataset:
    """metrics._spatial_average."""
    return fields.weighted(latitude_weights(fields["latitude"])).mean(["latitude", "longitude"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forecasts, members, truth and climatology."""
    folder = tmp_path_factory.mktemp("stores")
    waves(1464).to_zarr(folder / "truth.zarr")
    frames = Frames(folder / "truth.zarr", tuple(NAMES.values()))
    model = tiny_model(Frames(waves(), CHANNELS))
    cascade, members = Cascade([Stage.of(model, 9)]), EnsembleSettings(5, perturbation="tendency", amplitude=0.5)
    for name, ensemble in (("single", None), ("members", members)):
        forecast(cascade, frames, TIMES, 4, folder / f"{name}.zarr", ensemble=ensemble)
    build_climatology(open_fields(folder / "truth.zarr")).to_netcdf(folder / "climate.nc")
    return folder


@pytest.fixture
def stores(folder: Path) -> dict[str, xr.Dataset]:
    """As they lie on disk, none of them opened by this project."""
    found = {
        name: xr.open_zarr(folder / f"{name}.zarr", decode_timedelta=True).load()
        for name in ("truth", "single", "members")
    }
    return {**found, "climate": xr.open_dataset(folder / "climate.nc")}


def assert_equal(table: xr.Dataset, expected: dict[str, xr.Dataset]) -> None:
    """Our table of scores and the expected ones, by score: the same to 1e-12 in every variable and at every lead."""
    for score, values in expected.items():
        for name, channel in NAMES.items():
            np.testing.assert_allclose(
                table[score].sel(channel=channel),
                values[name].squeeze(),
                rtol=1e-12,
                atol=1e-12,
                err_msg=f"{score} {name}",
            )


def test_deterministic_scores_equal_weatherbenchs_definitions(stores: dict[str, xr.Dataset], folder: Path) -> None:
    fields = with_valid_time(stores["single"])
    truth = stores["truth"].sortby("latitude").astype("f8").sel(time=fields["valid_time"])
    climate = stores["climate"].rename(
        {
            s: n
            for s, n in (("z", "geopotential"), ("u10", "10m_u_component_of_wind"), ("t2m", "2m_temperature"))
            if s in stores["climate"]
        }
    )
    climate = climate.sortby("latitude").sel(
        hour=fields["valid_time"].dt.hour, dayofyear=fields["valid_time"].dt.dayofyear
    )
    error = fields - truth
    ours, theirs = fields - climate, truth - climate
    correlation = spatial_mean(ours * theirs) / np.sqrt(spatial_mean(ours**2) * spatial_mean(theirs**2))
    expected = {
        "rmse": np.sqrt(spatial_mean(error**2).mean("init_time")), "mae": spatial_mean(abs(error)).mean("init_time"),
        "bias": spatial_mean(error).mean("init_time"), "acc": correlation.mean("init_time"),
    }  # fmt: skip
    table = evaluate(
        {"single": open_fields(folder / "single.zarr")},
        open_fields(folder / "truth.zarr"),
        Climatology(build_climatology(open_fields(folder / "truth.zarr"))),
    ).table.sel(model="single", region="global")
    assert_equal(table, expected)


def test_ensemble_scores_equal_weatherbenchs_definitions(stores: dict[str, xr.Dataset], folder: Path) -> None:
    fields = with_valid_time(stores["members"])
    truth = stores["truth"].sortby("latitude").astype("f8").sel(time=fields["valid_time"])
    count = fields.sizes["number"]
    pairs = abs(fields - fields.rename(number="other")).sum(["number", "other"]) / (count * (count - 1))
    expected = {
        "crps": spatial_mean(abs(fields - truth).mean("number") - pairs / 2).mean("init_time"),
        "spread": np.sqrt(spatial_mean(fields.var("number", ddof=1)).mean("init_time")),
        "rmse": np.sqrt(spatial_mean((fields.mean("number") - truth) ** 2).mean("init_time")),
    }
    table = evaluate({"members": open_fields(folder / "members.zarr")}, open_fields(folder / "truth.zarr")).table.sel(
        model="members", region="global"
    )
    assert_equal(table, expected)
