"""Fields of every convention become one layout, lazily."""

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from unipercept.app.forecaster.fields import channel_names, open_fields, select_channel
from unipercept.errors import InputError


def era5(n_times: int = 3) -> xr.Dataset:
    random = np.random.default_rng(0)
    shape = (n_times, 2, 4, 8)
    coordinates = {
        "time": np.datetime64("2020-01-01", "ns") + np.arange(n_times) * np.timedelta64(6, "h"),
        "level": [500, 850],
        "latitude": [67.5, 22.5, -22.5, -67.5],
        "longitude": np.arange(8) * 45.0,
    }
    dims = ("time", "level", "latitude", "longitude")
    return xr.Dataset(
        {
            "geopotential": (dims, random.normal(5e4, 1e3, shape).astype("f4"), {"units": "m2 s-2"}),
            "mean_sea_level_pressure": (
                (dims[0], *dims[2:]),
                random.normal(1e5, 500, shape[:1] + shape[2:]).astype("f4"),
                {"units": "Pa"},
            ),
        },
        coordinates,
    )


def test_a_store_with_longitude_before_latitude_and_other_names_is_the_same_fields() -> None:
    plain = open_fields(era5())
    other = era5().transpose("time", "level", "longitude", "latitude").isel(latitude=slice(None, None, -1))
    other = other.rename(latitude="lat", longitude="lon", level="pressure_level", time="valid_time")
    other["mean_sea_level_pressure"] = (other["mean_sea_level_pressure"] / 100).assign_attrs(units="hPa")
    other = other.rename(geopotential="z").assign_coords(lon=(other["lon"] + 180) % 360 - 180)
    found = open_fields(other)
    assert found["z"].dims == ("time", "level", "latitude", "longitude")
    xr.testing.assert_allclose(found.drop_attrs(), plain.drop_attrs(), rtol=1e-6)


def test_flat_names_become_a_level_axis() -> None:
    data = era5()
    flat = xr.Dataset(
        {f"geopotential_{level}": data["geopotential"].sel(level=level, drop=True) for level in (850, 500)}
    )
    xr.testing.assert_allclose(open_fields(flat)["z"].drop_attrs(), open_fields(data)["z"].drop_attrs())


@pytest.mark.parametrize("kind", ["zarr", "nc"])
def test_files_are_opened_lazily_and_hold_the_same_numbers(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"fields.{kind}"
    era5().to_zarr(path) if kind == "zarr" else era5().to_netcdf(path)
    opened = open_fields(path)
    assert opened["z"].chunks is not None
    np.testing.assert_array_equal(opened["z"].values, era5()["geopotential"].values)


def test_channels_are_found_by_their_names() -> None:
    data = open_fields(era5())
    assert channel_names(data) == ("z500", "z850", "msl")
    found = select_channel(data, "z850")
    assert found.dims == ("time", "latitude", "longitude")
    np.testing.assert_array_equal(found.values, era5()["geopotential"].sel(level=850).values)


def test_leads_and_members_keep_their_dimensions() -> None:
    lead = np.array([6, 12], "timedelta64[h]").astype("timedelta64[ns]")
    data = era5().expand_dims(realization=[0, 1], prediction_timedelta=lead)
    cds = data.rename(
        realization="number", time="forecast_reference_time", prediction_timedelta="forecast_period"
    )  # as the Climate Data Store writes forecasts
    for written in (data, cds):
        opened = open_fields(written)
        assert opened["msl"].dims == ("number", "time", "prediction_timedelta", "latitude", "longitude")
        assert opened.attrs["conversions"] == ""


def test_what_the_documentation_shows_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[3] / "docs" / "weather.md").read_text(encoding="utf-8")
    block = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "open_fields" in block)
    era5().to_netcdf(tmp_path / "era5.nc")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs/weather.md", "exec"), {})


def test_a_channel_that_is_not_there_is_one_line_with_those_that_are() -> None:
    with pytest.raises(InputError, match="no channel t850; there are z500, z850, msl"):
        select_channel(open_fields(era5()), "t850")


def test_a_store_that_is_being_written_is_refused(tmp_path: Path) -> None:
    era5().to_zarr(tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "_progress.json").write_text("{}")
    with pytest.raises(InputError, match="still being written"):
        open_fields(tmp_path / "a.zarr")


def test_a_regional_recording_opens_with_its_channels(shared_data: Path) -> None:
    data = open_fields(shared_data / "weather_eraint_weurope" / "eraint_weurope_2000-2009.nc")
    assert set(channel_names(data)) == {"z500", "t850", "msl"}
    assert float(data["latitude"][0]) == 55


def test_grib_opens_under_short_names(shared_data: Path) -> None:
    data = open_fields(shared_data / "weather_era5_uk_hourly" / "era5_t2m_uk_2019-03-01_to_25.grib")
    assert channel_names(data) == ("t2m",)
    assert data.sizes["time"] == 600
