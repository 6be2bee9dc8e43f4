"""Fields of every convention become one layout, lazily."""

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from unipercept.app.forecaster.fields import channel_names, doubtful_units, open_fields, select_channel
from unipercept.app.forecaster.frames import Frames
from unipercept.app.forecaster.writer import variables_of
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


def test_the_wind_at_10_m_is_on_no_level_of_10_hpa() -> None:
    axes = {"latitude": [60.0, 50.0, 40.0], "longitude": [0.0, 10.0, 20.0]}
    wind = xr.Dataset({name: (tuple(axes), np.ones((3, 3)), {"units": "m s-1"}) for name in ("u10", "v10")}, axes)
    fields = open_fields(wind)
    assert list(fields.data_vars) == ["u10", "v10"]
    assert "level" not in fields.dims


def test_a_surface_field_never_stands_for_the_upper_air() -> None:
    """The surface's geopotential has the standard name of the one on levels, which WeatherBench 2 stores hold beside
    it; CDS calls the wind 100 m above the ground u100, as we call that at 100 hPa.
    """
    data, wind = era5(), {"units": "m s-1", "standard_name": "eastward_wind"}
    surface, at_100_hpa = data["mean_sea_level_pressure"] / 1e4, data["geopotential"].assign_coords(level=[100, 850])
    data = data.assign_coords(level=[100, 850]).assign(
        geopotential_at_surface=surface[0].drop_vars("time").assign_attrs(units="m2 s-2", standard_name="geopotential"),
        u=(at_100_hpa / 1e4).assign_attrs(wind),
        u100=surface.assign_attrs(wind),
    )
    known = {"z100", "z850", "u100", "u850", "u100m", "msl", "geopotential_at_surface"}
    assert set(Frames(data).channels) == set(channel_names(open_fields(data))) == known
    for given in (data, data[["u100", "geopotential_at_surface", "u", "geopotential"]]):  # in any order
        found, frames = open_fields(given), Frames(given, ("z850", "u100", "u100m"))
        wanted = (data["geopotential"][:, 1], data["u"][:, 0], data["u100"])
        for number, (name, field) in enumerate(zip(frames.channels, wanted, strict=True)):
            np.testing.assert_array_equal(select_channel(found, name).values, field.values)
            np.testing.assert_array_equal(frames.read(range(3))[:, number], field.values)
    assert [v.name for v in variables_of(("u100", "u100m"))] == ["u_component_of_wind", "100m_u_component_of_wind"]


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


@pytest.mark.parametrize(("unit", "numbers"), [("hours", [6, 12]), ("days", [0.25, 0.5])])
def test_leads_as_numbers_are_what_their_unit_says(tmp_path: Path, unit: str, numbers: list[float]) -> None:
    data = era5().expand_dims(prediction_timedelta=numbers)  # integers in hours, as WeatherBench 2 stores them
    data["prediction_timedelta"].attrs["units"] = unit
    data.to_netcdf(tmp_path / "f.nc")
    for written in (data, tmp_path / "f.nc"):
        lead = open_fields(written)["prediction_timedelta"].values
        assert (lead / np.timedelta64(1, "h")).tolist() == [6, 12]
    with pytest.raises(InputError, match="leads without a unit of time"):
        open_fields(data.drop_attrs())


def test_a_forecast_of_one_initial_time_has_that_dimension() -> None:
    lead = np.array([6, 12], "timedelta64[h]").astype("timedelta64[ns]")
    one = era5().isel(time=1).expand_dims(step=lead)
    assert open_fields(one)["msl"].dims == ("time", "prediction_timedelta", "latitude", "longitude")
    assert open_fields(one)["time"].values.tolist() == [era5().time.values[1].astype(int)]


def test_what_comes_twice_is_one_line() -> None:
    with pytest.raises(InputError, match="repeats some of its times, such as 2020-01-01 06:00:00; drop"):
        open_fields(era5().isel(time=[0, 1, 1, 2]))
    lead = np.array([6, 6], "timedelta64[h]").astype("timedelta64[ns]")
    with pytest.raises(InputError, match="repeats some of its leads"):
        open_fields(era5().expand_dims(prediction_timedelta=lead))


def test_codes_are_missing_and_units_that_cannot_be_right_are_doubted() -> None:
    data = era5()
    data["mean_sea_level_pressure"][:, 1, 2] = -9999
    found = open_fields(data)
    assert int(np.isnan(found["msl"]).sum()) == 3
    assert found["msl"].dtype == np.float32
    data["mean_sea_level_pressure"] = (era5()["mean_sea_level_pressure"] / 100).assign_attrs(units="Pa")
    said = doubtful_units(open_fields(data))
    assert [sentence.split(" is ")[0] for sentence in said] == ["z850", "msl"]  # this z850 is as high as z500


def test_a_conversion_reads_nothing(tmp_path: Path) -> None:
    shape = (64, 181, 360)
    field = xr.DataArray(np.zeros(shape, "f4"), dims=("time", "latitude", "longitude"), attrs={"units": "hPa"})
    times = np.datetime64("2020-01-01", "ns") + np.arange(64) * np.timedelta64(6, "h")
    axes = {"time": times, "latitude": np.arange(90.0, -91, -1), "longitude": np.arange(360.0)}
    xr.Dataset({"msl": field}, axes).to_netcdf(tmp_path / "f.nc")
    tracemalloc.start()
    opened = open_fields(tmp_path / "f.nc")
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert opened.attrs["conversions"] == "msl was in hPa; converted to Pa"
    assert held < 4 * np.prod(shape) / 4


def test_what_the_documentation_shows_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[3] / "docs" / "weather.md").read_text(encoding="utf-8")
    block = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "open_fields" in block)
    era5().to_netcdf(tmp_path / "era5.nc")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs/weather.md", "exec"), {})


def test_files_of_the_climate_data_store_become_one_store_as_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[3] / "docs" / "weather.md").read_text(encoding="utf-8")
    block = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "open_mfdataset" in block)
    (tmp_path / "unpacked").mkdir()
    dims, values = ("valid_time", "latitude", "longitude"), np.random.default_rng(0).normal(size=(48, 3, 4))
    days = np.datetime64("2024-01-01", "ns") + np.arange(48) * np.timedelta64(1, "h")
    axes = {"latitude": [60.0, 50.0, 40.0], "longitude": [0.0, 10.0, 20.0, 30.0], "number": 0}
    for name, unit, kind in (("t2m", "K", "instant"), ("tp", "m", "accum")):
        for day in (0, 1):
            span = slice(24 * day, 24 * day + 24)
            coords = {**axes, "valid_time": days[span], "expver": ("valid_time", ["0001"] * 24)}
            made = xr.Dataset({name: (dims, values[span], {"units": unit})}, coords)
            made.to_netcdf(tmp_path / "unpacked" / f"data_stream-oper_stepType-{kind}-{day}.nc")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs/weather.md", "exec"), {})
    fields = open_fields("era5.zarr")
    assert {str(name) for name in fields.data_vars} == {"t2m", "tp"}
    assert np.allclose(fields["tp"].values, values)
    assert (fields["time"].values == days).all()


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
