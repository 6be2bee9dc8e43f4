"""Weather: every convention gives the identical map, conversions are said, and bad grids end in one line."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from unipercept.errors import InputError
from unipercept.pipelines.detect import detect_modality
from unipercept.pipelines.weather import WeatherConfig, WeatherPipeline
from unipercept.pipelines.weather_fields import PUYUN69, WB69
from unipercept.pipelines.weather_grid import area_weights
from unipercept.pipelines.weather_units import GRAVITY

xr = pytest.importorskip("xarray")
pytest.importorskip("netCDF4")
pytest.importorskip("zarr")

LATITUDE, LONGITUDE, LEVELS = np.linspace(90, -90, 13), np.arange(0, 360, 15.0), np.array([500, 850])
TIMES = np.datetime64("2024-01-01", "ns") + np.arange(3) * np.timedelta64(6, "h")


@pytest.fixture
def fields():
    """Canonical numbers: (time, level, latitude, longitude), and surface fields without level."""
    rng = np.random.default_rng(0)
    upper, surface = (3, 2, 13, 24), (3, 13, 24)
    return {
        "z": np.reshape([5.4e4, 1.4e4], (2, 1, 1)) + 1e3 * rng.normal(size=upper),
        "u": 10 * rng.normal(size=upper),
        "t2m": 280 + 10 * rng.normal(size=surface),
        "msl": 1e5 + 500 * rng.normal(size=surface),
    }


def dataset(data, latitude=LATITUDE, longitude=LONGITUDE, **coords):
    return xr.Dataset(data, {"latitude": latitude, "longitude": longitude, "time": TIMES, **coords})


def canonical(fields):
    upper, surface = ("time", "level", "latitude", "longitude"), ("time", "latitude", "longitude")
    units = {"z": "m2 s-2", "u": "m s-1", "t2m": "K", "msl": "Pa"}
    data = {k: (upper if v.ndim == 4 else surface, v, {"units": units[k]}) for k, v in fields.items()}
    return dataset(data, level=LEVELS)


def weatherbench(fields):
    """Long names; longitude before latitude; south to north."""
    names = {"z": "geopotential", "u": "u_component_of_wind", "t2m": "2m_temperature", "msl": "mean_sea_level_pressure"}
    found = canonical(fields).rename(names).isel(latitude=slice(None, None, -1))
    return found.transpose("time", "level", "longitude", "latitude")


def climate_data_store(fields):
    """Other names and units: height in gpm, degrees Celsius, hPa, levels in Pa from the
    ground up, longitude from -180.
    """
    found = canonical(fields).rename(
        {
            "z": "gh",
            "level": "plev",
            "latitude": "lat",
            "longitude": "lon",
            "time": "valid_time",
            "u": "ua",
            "t2m": "2t",
        }
    )
    found["gh"] = (found["gh"] / GRAVITY).assign_attrs(units="gpm")
    found["2t"] = (found["2t"] - 273.15).assign_attrs(units="degC")
    found["msl"] = (found["msl"] / 100).assign_attrs(units="hPa")
    found = found.assign_coords(plev=("plev", LEVELS * 100.0, {"units": "Pa"}), number=0, step=np.timedelta64(0, "h"))
    found = found.assign_coords(lon=(found.lon + 180) % 360 - 180).sortby("lon")
    return found.isel(plev=[1, 0])


def flat(fields):
    """A variable a level, as in geopotential_500."""
    found = canonical(fields)
    for level in LEVELS:
        for short, name in (("z", "geopotential"), ("u", "u_component_of_wind")):
            found[f"{name}_{level}"] = found[short].sel(level=level, drop=True)
    return found.drop_vars(["z", "u", "level"])


def by_attributes(fields):
    """Names of its own; what the dimensions are stands in CF attributes, and in times being times."""
    found = canonical(fields).rename(latitude="g0_lat_1", longitude="x", level="lv_ISBL0", time="initial_time0_hours")
    found["g0_lat_1"].attrs = {"units": "degrees_north"}
    found["x"].attrs = {"units": "degree_east"}
    found["lv_ISBL0"].attrs = {"standard_name": "air_pressure", "units": "hPa"}
    found["msl"] = (found["msl"] / 100).assign_attrs(units="millibars")
    found["t2m"] = (found["t2m"] - 273.15).assign_attrs(units="degrees_Celsius")
    return found


@pytest.mark.parametrize("form", [weatherbench, climate_data_store, flat, by_attributes])
@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_every_convention_gives_the_identical_map(tmp_path, fields, form, suffix):
    expected = _maps(canonical(fields))
    path = tmp_path / f"fields.{suffix}"
    form(fields).to_netcdf(path) if suffix == "nc" else form(fields).to_zarr(path, consolidated=False)
    found = list(WeatherPipeline().maps(path))
    assert len(found) == 3
    for a, b in zip(found, expected, strict=True):
        assert a.metadata["channels"] == b.metadata["channels"] == ["z500", "z850", "u500", "u850", "t2m", "msl"]
        assert a.metadata["units"] == b.metadata["units"]
        assert a.metadata["time"] == b.metadata["time"]
        assert torch.allclose(a.tensor, b.tensor, atol=2e-3)
        for name, axis in a.coords.items():
            assert torch.allclose(axis.values, b.coords[name].values)


def _maps(opened, **settings):
    pipe = WeatherPipeline(WeatherConfig(**settings))
    return [pipe.embed(piece) for piece in pipe.split(pipe.read(opened))]


def test_conversions_are_said(fields):
    notes = " ".join(_maps(climate_data_store(fields))[0].metadata["notes"])
    for said in ("levels were in Pa", "gh was in gpm", "2t was in degC", "msl was in hPa", "longitudes were brought"):
        assert said in notes
    assert "latitude ran from south to north; turned round" in _maps(weatherbench(fields))[0].metadata["notes"]


def test_the_axes_run_from_north_and_from_zero_east(fields):
    emap = _maps(weatherbench(fields))[0]
    assert emap.coords["latitude"].values.tolist() == LATITUDE.tolist()
    assert emap.coords["longitude"].values.tolist() == LONGITUDE.tolist()
    assert emap.metadata["wraps"]
    assert emap.metadata["has_poles"]


def test_mean_and_deviation_of_the_metadata_give_the_fields_back(fields):
    emap = _maps(canonical(fields))[1]
    mean, std = (torch.tensor(emap.metadata[k])[:, None, None] for k in ("mean", "std"))
    back = emap.tensor[0].double() * std + mean
    assert np.abs(back[0].numpy() - fields["z"][1, 0]).max() < 0.01
    weights = torch.from_numpy(area_weights(LATITUDE))[:, None]
    assert (emap.tensor[0].double() * weights).mean(dim=(1, 2)).abs().max() < 1e-5
    assert ((emap.tensor[0].double() ** 2 * weights).mean(dim=(1, 2)) - 1).abs().max() < 1e-4


def test_area_weights_are_those_of_the_sphere():
    weights = area_weights(LATITUDE)
    edges = np.deg2rad([90, *(LATITUDE[:-1] + LATITUDE[1:]) / 2, -90])
    expected = np.abs(np.diff(np.sin(edges)))
    assert np.allclose(weights, expected / expected.mean())
    assert np.allclose(area_weights(LATITUDE[:5]), area_weights(LATITUDE[4::-1])[::-1])
    assert (np.diff(area_weights(LATITUDE[:5])) > 0).all()  # from the pole to the equator


def test_missing_cells_are_masked_or_refused(fields):
    fields["t2m"][:, 3:5, 2] = np.nan
    emap = _maps(canonical(fields))[0]
    assert int((~emap.mask).sum()) == 2
    assert emap.metadata["missing_values"] == 2
    assert (emap.tensor[0, 4, 3:5, 2] == 0).all()
    with pytest.raises(InputError, match=r"2 missing values, most in t2m"):
        _maps(canonical(fields), missing="error")


CODES = [
    ("t2m", -9999.0),
    ("t2m", 0.0),
    ("t2m", 1e20),
    ("msl", -32768.0),
    ("u", 9.96921e36),
    ("z", -9999.0),
    ("sst", -999.0),
]


@pytest.mark.parametrize(("name", "code"), CODES)
def test_codes_that_no_attribute_names_are_missing_cells(tmp_path, fields, name, code):
    whole = canonical(fields)
    whole["sst"] = whole.t2m.assign_attrs(units="degC", standard_name="") - 273.15
    gaps = xr.DataArray(np.arange(24) < 3, dims="longitude")
    coded = whole.assign({name: whole[name].where(~gaps, code)})
    coded.to_netcdf(tmp_path / "coded.nc", encoding={n: {"_FillValue": None} for n in coded.data_vars})
    expected = _maps(whole.assign({name: whole[name].where(~gaps)}))
    for a, b in zip(WeatherPipeline().maps(tmp_path / "coded.nc"), expected, strict=True):
        assert torch.allclose(a.tensor, b.tensor)
        assert torch.equal(a.mask, b.mask)
        assert f"{np.float32(code):g} is taken as a code for missing ({name}" in a.metadata["notes"][-1]


def test_values_that_only_look_like_codes_are_kept(fields):
    fields["u"][:, :, 3, 2] = 0.0
    fields["t2m"][:, 3, 2] = 273.15
    celsius = canonical(fields)
    celsius["t2m"] = (celsius.t2m - 273.15).assign_attrs(units="degC")  # 0 degrees
    celsius["flux"] = celsius.u.isel(level=0, drop=True) * 1e5
    celsius["flux"][:, 3, 2] = -9999.0
    celsius["sunshine"] = celsius.t2m * 0 + 5e5 + celsius.flux / 100
    celsius["sunshine"][:, 3, 2] = 0.0  # one night among days
    assert all(emap.metadata["missing_values"] == 0 for emap in _maps(celsius))


@pytest.mark.parametrize(
    ("name", "factor", "offset", "said"),
    [("t2m", 1, -273.15, "t2m is 6"), ("msl", 0.01, 0, "msl is 1000"), ("z", 1 / GRAVITY, 0, "z500 is 55")],
)
def test_a_unit_that_cannot_be_right_is_doubted(fields, name, factor, offset, said):
    fields[name] = fields[name] * factor + offset
    notes = _maps(canonical(fields))[0].metadata["notes"]
    assert any(note.startswith(said) and note.endswith("check its unit") for note in notes), notes


def test_chosen_channels_come_in_their_order_and_missing_ones_are_listed(fields):
    assert _maps(canonical(fields), channels=("msl", "u850"))[0].metadata["channels"] == ["msl", "u850"]
    with pytest.raises(InputError, match=r"lacks z50, z100.* it has z500"):
        _maps(canonical(fields), channels="puyun69")
    assert len(PUYUN69.names) == len(WB69.names) == 69
    assert (PUYUN69.names[0], PUYUN69.names[52], PUYUN69.names[68]) == ("z50", "r50", "msl")


def test_a_number_of_times_is_spread_evenly(fields):
    assert [m.metadata["time"][:13] for m in _maps(canonical(fields), times=2)] == ["2024-01-01T00", "2024-01-01T12"]


def test_given_statistics_are_used(fields):
    statistics = {"msl": (1e5, 500.0)}
    emap = _maps(canonical(fields), channels=("msl",), statistics=statistics)[0]
    assert np.abs(emap.tensor[0, 0].numpy() - (fields["msl"][0] - 1e5) / 500).max() < 1e-4
    with pytest.raises(InputError, match="statistics lack channel t2m"):
        _maps(canonical(fields), channels=("t2m",), statistics=statistics)


def test_a_constant_field_is_zero(fields):
    fields["t2m"][:] = 280.0
    assert torch.count_nonzero(_maps(canonical(fields))[0].tensor[0, 4]) == 0
    fields["t2m"][..., ::2] = np.nextafter(np.float32(280), np.float32(281))  # what is rounding does not become weather
    assert _maps(canonical(fields))[0].tensor[0, 4].abs().max() < 1e-4


@pytest.mark.parametrize(("unit", "factor"), [("hPa", 100), ("kPa", 1000)])
def test_pressure_in_other_units_becomes_pascals(fields, unit, factor):
    other = canonical(fields)
    other["msl"] = (other["msl"] / factor).assign_attrs(units=unit)
    assert _maps(other)[0].metadata["mean"][5] == pytest.approx(_maps(canonical(fields))[0].metadata["mean"][5])


def test_a_region_across_greenwich_stays_in_one_piece(fields):
    region = canonical(fields).assign_coords(longitude=(LONGITUDE + 180) % 360 - 180).sortby("longitude")
    emap = _maps(region.sel(longitude=slice(-45, 45)))[0]
    assert emap.coords["longitude"].values.tolist() == [315, 330, 345, 360, 375, 390, 405]
    assert not emap.metadata["wraps"]


@pytest.mark.parametrize("west", [0, -180])
def test_a_meridian_that_comes_twice_is_left_out(fields, west):
    whole = canonical(fields)
    cut = whole.assign_coords(longitude=(whole.longitude - west) % 360 + west).sortby("longitude")
    seam = cut.isel(longitude=[0]).assign_coords(longitude=[west + 360.0])
    maps = _maps(xr.concat([cut, seam], "longitude"))
    for a, b in zip(maps, _maps(whole), strict=True):
        assert torch.equal(a.tensor, b.tensor)
        assert a.coords["longitude"].values.tolist() == LONGITUDE.tolist()
    assert f"came twice ({west} and {west + 360} degrees)" in maps[0].metadata["notes"][0]


@pytest.mark.parametrize(
    ("name", "unit", "factor", "offset"),
    [
        ("t2m", "℃", 1, 273.15),
        ("t2m", "degree_Kelvin", 1, 0),
        ("t2m", "degF", 5 / 9, 459.67 * 5 / 9),
        ("u10", "m s^-1", 1, 0),
        ("u10", "metre second-1", 1, 0),
        ("u10", "m s−1", 1, 0),
        ("u10", "knots", 1852 / 3600, 0),
        ("gh", "gpdam", 10 * GRAVITY, 0),
        ("q", "g kg**-1", 1e-3, 0),
        ("tp", "mm", 1e-3, 0),
        ("tp", "kg m**-2", 1e-3, 0),
        ("t2m", "degree_C", 1, 273.15),
        ("z", "m²/s²", 1, 0),
        ("z", "m2.s-2", 1, 0),
        ("z", "m+2 s-2", 1, 0),
        ("z", "meters^2 sec^{-2}", 1, 0),
        ("u10", "m.s⁻¹", 1, 0),
        ("q", "grams/kg", 1e-3, 0),
    ],
)
def test_spellings_of_units_are_understood(name, unit, factor, offset):
    values = np.random.default_rng(0).uniform(1, 9, (len(LATITUDE), len(LONGITUDE)))
    array = xr.DataArray(values, {"latitude": LATITUDE, "longitude": LONGITUDE}, ("latitude", "longitude"), name)
    raw = next(WeatherPipeline().split(WeatherPipeline().read(array.assign_attrs(units=unit))))
    assert np.allclose(raw.values[0], values * factor + offset)


def test_the_height_of_a_surface_field_is_no_level(fields):
    surface = canonical(fields)[["t2m"]].assign_coords(level=((), 2.0, {"units": "m"}))
    assert _maps(surface)[0].metadata["channels"] == ["t2m"]


def test_what_is_left_of_members_is_said_once(fields):
    members = canonical(fields).expand_dims(number=[0, 1], step=[0])
    assert _maps(members)[0].metadata["notes"] == ["of the 2 along number the first is taken"]


@pytest.mark.parametrize("lead", [12, np.timedelta64(12, "h")])
def test_a_forecast_stands_at_its_valid_times(fields, lead):
    made = canonical(fields).expand_dims(prediction_timedelta=[lead, 2 * lead])
    made["prediction_timedelta"].attrs = {"units": "hours"} if isinstance(lead, int) else {}
    valid = [str(time) for time in TIMES + np.timedelta64(12, "h")]
    for written in (made, made.isel(prediction_timedelta=0)):
        maps = _maps(written)
        assert [emap.metadata["time"] for emap in maps] == valid
        assert maps[0].metadata["notes"][-1] == "these are forecasts of 12 h; their times are the valid ones"
    assert maps[0].metadata["channels"][0] == "z500"


def test_an_axis_is_found_beside_a_coordinate_of_its_name(fields):
    plain = canonical(fields)
    run = plain.rename(time="valid_time").assign_coords(time=TIMES[0])  # the time that the run began
    cells = plain.rename(latitude="lat", longitude="lon")
    cells = cells.assign_coords(latitude=(("lat", "lon"), np.broadcast_to(LATITUDE[:, None], (13, 24))))
    for written in (run, cells):
        for a, b in zip(_maps(written), _maps(plain), strict=True):
            assert torch.equal(a.tensor, b.tensor)
            assert a.metadata["time"] == b.metadata["time"]


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_packed_numbers_and_gaps_are_decoded(tmp_path, fields, suffix):
    fields["t2m"][:, 3:5, 2] = np.nan
    packed = {"t2m": {"dtype": "int16", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": -32767}}
    path = tmp_path / f"fields.{suffix}"
    found = canonical(fields)[["t2m"]]
    found.to_netcdf(path, encoding=packed) if suffix == "nc" else found.to_zarr(path, encoding=packed)
    for a, b in zip(WeatherPipeline().maps(path), _maps(found), strict=True):
        assert torch.allclose(a.tensor, b.tensor, atol=1e-3)
        assert torch.equal(a.mask, b.mask)


def test_dates_of_a_calendar_without_leap_days_are_the_common_ones(tmp_path, fields):
    pytest.importorskip("cftime")
    found = canonical(fields)
    days = xr.date_range("2024-02-28", periods=3, freq="D", calendar="noleap", use_cftime=True)
    found.assign_coords(time=days).to_netcdf(tmp_path / "n.nc")
    maps = list(WeatherPipeline().maps(tmp_path / "n.nc"))
    assert [m.metadata["time"][:10] for m in maps] == ["2024-02-28", "2024-03-01", "2024-03-02"]
    assert "noleap calendar" in maps[0].metadata["notes"][0]


def test_era5_and_its_preliminary_part_are_combined(fields):
    whole = canonical(fields)
    parts = xr.concat([whole.where(whole.time < TIMES[2]), whole.where(whole.time >= TIMES[2])], dim="expver")
    for a, b in zip(_maps(parts), _maps(whole), strict=True):
        assert torch.allclose(a.tensor, b.tensor, atol=1e-5)


@pytest.mark.parametrize("versions", [(5, 1), ("0005", "0001")])
def test_era5_goes_before_its_preliminary_part_in_any_order(fields, versions):
    whole = canonical(fields)
    parts = xr.concat([whole + 5, whole.where(whole.time < TIMES[2])], dim="expver").assign_coords(
        expver=list(versions)
    )
    read = WeatherPipeline().read(parts).dataset["t2m"].transpose("time", ...).values
    assert np.allclose(read, fields["t2m"] + np.reshape([0, 0, 5], (3, 1, 1)))


@pytest.mark.parametrize("form", ["0 to 360", "-180 to 180"])
def test_greenwich_stays_the_first_column_in_spite_of_rounding(fields, form):
    whole = canonical(fields)
    west = whole.assign_coords(longitude=(LONGITUDE + 180) % 360 - 180).sortby("longitude")
    rounded = whole if form == "0 to 360" else west
    rounded = rounded.assign_coords(longitude=np.where(rounded.longitude == 0, -1e-12, rounded.longitude))
    for a, b in zip(_maps(rounded), _maps(whole), strict=True):
        assert torch.equal(a.tensor, b.tensor)
        assert a.coords["longitude"].values.tolist() == LONGITUDE.tolist()


def test_levels_are_found_by_their_unit_and_a_second_axis_of_pressures_is_not_cut(fields):
    whole = canonical(fields)
    by_unit = whole.rename(level="lv_ISBL1").assign_coords(lv_ISBL1=("lv_ISBL1", LEVELS * 100, {"units": "Pa"}))
    for a, b in zip(_maps(by_unit), _maps(whole), strict=True):
        assert torch.allclose(a.tensor, b.tensor)
        assert a.metadata["channels"] == b.metadata["channels"]
    other = whole.u.rename(level="isobaric3").assign_coords(isobaric3=("isobaric3", [500, 700], {"units": "hPa"}))
    emap = _maps(xr.merge([whole[["z", "t2m"]], other]))[0]
    assert emap.metadata["channels"] == ["z500", "z850", "t2m"]
    assert "u is left out: it lies on isobaric3, not on the levels in hPa" in emap.metadata["notes"]
    with pytest.raises(InputError, match=r"lacks u500; .*; u is left out: it lies on isobaric3"):
        WeatherPipeline(WeatherConfig(channels=("u500",))).read(xr.merge([whole[["z", "t2m"]], other]))


def test_an_axis_of_months_is_no_axis_of_levels(fields):
    months = canonical(fields)[["u", "t2m"]].isel(time=0, drop=True).expand_dims(month=[1, 7])
    for variable in ("u", "u_component_of_wind_500"):
        renamed = months.isel(level=0, drop=True).rename(u=variable)
        maps = _maps(renamed)
        assert maps[0].metadata["channels"] == ["u" if variable == "u" else "u500", "t2m"]
        assert maps[0].metadata["notes"] == ["of the 2 along month the first is taken"]


def test_merra_2_calls_height_h(fields):
    other = canonical(fields).rename(z="H", level="lev")
    other["H"] = (other["H"] / GRAVITY).assign_attrs(units="m", long_name="edge_heights")
    waves = other["msl"].rename("h").assign_attrs(units="m")
    maps = _maps(other), _maps(other.drop_vars("H").assign(h=waves))
    assert maps[0][0].metadata["channels"][:2] == ["z500", "z850"]
    assert torch.allclose(maps[0][0].tensor, _maps(canonical(fields))[0].tensor, atol=2e-3)
    assert maps[1][0].metadata["channels"][-1] == "h"
    top = (
        xr.concat([other["H"]] * 2, "lev")
        .isel(lev=slice(0, 4))
        .assign_coords(lev=("lev", [4, 3, 2, 1], {"units": "hPa"}))
    )
    assert _maps(top.to_dataset())[0].metadata["channels"] == ["z1", "z2", "z3", "z4"]


def test_what_is_not_asked_for_is_no_hindrance(fields):
    other = canonical(fields)
    other["msl"].attrs["units"] = "furlong"
    other["u"].attrs["units"] = "knots"
    chosen = WeatherPipeline(WeatherConfig(channels=("t2m",))).read(other)
    assert [channel.name for channel in chosen.channels] == ["t2m"]
    assert chosen.notes == ()


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("outer", ["", "fields.zarr"])
def test_a_zipped_store_gives_the_same_maps(tmp_path, fields, version, outer):
    canonical(fields).to_zarr(tmp_path / "fields.zarr", zarr_format=version, consolidated=version == 2)
    path = Path(
        shutil.make_archive(str(tmp_path / "f"), "zip", tmp_path if outer else tmp_path / "fields.zarr", outer or None)
    )
    assert detect_modality(path) == "weather"
    for a, b in zip(WeatherPipeline().maps(path), _maps(canonical(fields)), strict=True):
        assert torch.equal(a.tensor, b.tensor)


@pytest.mark.parametrize("chunks", [(1, 2, 13, 24), (3, 1, 5, 7)])
def test_chunks_of_a_store_leave_no_trace(tmp_path, fields, chunks):
    encoding = {name: {"chunks": chunks if v.ndim == 4 else (chunks[0], *chunks[2:])} for name, v in fields.items()}
    canonical(fields).to_zarr(tmp_path / "f.zarr", encoding=encoding, consolidated=False)
    for a, b in zip(WeatherPipeline().maps(tmp_path / "f.zarr"), _maps(canonical(fields)), strict=True):
        assert torch.allclose(a.tensor, b.tensor, atol=1e-5)


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_one_group_is_opened_and_of_several_one_must_be_given(tmp_path, fields, suffix):
    path, whole = tmp_path / f"groups.{suffix}", canonical(fields)
    write = whole.to_netcdf if suffix == "nc" else whole.to_zarr
    write(path, group="era5/hourly")
    for a, b in zip(WeatherPipeline().maps(path), _maps(whole), strict=True):
        assert torch.equal(a.tensor, b.tensor)
    write(path, group="later", mode="a")
    with pytest.raises(InputError, match="the groups /era5/hourly, /later; from Python, give one"):
        WeatherPipeline().read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.assign_coords(longitude=np.linspace(0, 360, 24)), r"0 and 360 degrees\), with other values of z"),
        (lambda d: d.assign_coords(longitude=np.linspace(0, 375, 24)), "more than once"),
        (lambda d: d.assign_coords(longitude=np.r_[LONGITUDE[:-1], np.nan]), "missing longitude values"),
        (lambda d: d.assign_coords(level=("level", [1, 2], {"units": "m"})), "levels in 'm'; expected pressures"),
        (lambda d: d.assign_coords(longitude=np.r_[0, LONGITUDE[:-1]]), "repeats or mixes up"),
        (lambda d: d.assign_coords(latitude=np.sort(np.r_[LATITUDE[:-1], -60])[::-1]), "latitude"),
        (lambda d: d.assign_coords(latitude=LATITUDE**3 / 8100), "uneven latitude"),
        (lambda d: d.rename(latitude="row", longitude="column"), "no latitude grid"),
        (lambda d: d.drop_vars(list(d.data_vars)), "no field"),
        (lambda d: d.assign_coords(level=("level", [50000, 850], {"units": "hPa"})), "no pressures in hPa: 50000, 850"),
        (lambda d: d.assign_coords(level=("level", [0, 1])), "no pressures in hPa: 0, 1"),
        (lambda d: d.assign_coords(level=("level", [90, 137], {"long_name": "model_level_number"})), "on model levels"),
        (lambda d: _numbered(d), r"on model levels \(numbered 60 to 63\)"),
        (lambda d: d[["z"]].rename(level="hybrid"), "z is left out: it lies on hybrid, not on the levels in hPa"),
        (lambda d: _with_rotated_pole(d), "rotated pole"),
        (lambda d: _curvilinear(d), r"one latitude and longitude a cell \(curvilinear\)"),
        (lambda d: d.assign(t2m=d.t2m.assign_attrs(units="furlong")), "'furlong', which is not known"),
    ],
)
def test_grids_that_cannot_be_right_are_refused(fields, change, message):
    with pytest.raises(InputError, match=message) as caught:
        _maps(change(canonical(fields)))
    assert "\n" not in str(caught.value)


def _numbered(fields):
    return xr.concat([fields, fields], "level", data_vars="minimal").assign_coords(level=np.arange(60, 64))


def _with_rotated_pole(fields):
    fields["latitude"].attrs = {"standard_name": "grid_latitude", "units": "degrees"}
    return fields


def _curvilinear(fields):
    plain = fields.rename(latitude="y", longitude="x").drop_vars(["y", "x"])
    grids = np.meshgrid(LATITUDE, LONGITUDE, indexing="ij")
    return plain.assign_coords(lat=(("y", "x"), grids[0]), lon=(("y", "x"), grids[1]))


@pytest.mark.parametrize("fault", ["empty", "text", "cut", "hdf5", "grib", "folder"])
def test_what_is_no_weather_ends_in_one_line(tmp_path, fields, fault, capfd):
    path = tmp_path / "fields.nc"
    if fault == "folder":
        path.mkdir()
    elif fault == "hdf5":
        path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500))
    elif fault == "cut":
        canonical(fields).to_netcdf(path)
        path.write_bytes(path.read_bytes()[:3000])
    else:
        path.write_bytes({"empty": b"", "text": b"hello " * 50, "grib": b"GRIB" + bytes(200)}[fault])
    with pytest.raises(InputError) as caught:
        WeatherPipeline().read(path)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("settings", [{"channels": "all"}, {"times": 0}, {"missing": "ignore"}])
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(InputError, match="must be"):
        WeatherConfig(**settings)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("weather_era5_uk_hourly/era5_t2m_uk_2019-03-01_to_25.grib", (1, 33, 49)),
        ("weather_global_samples/era5-levels-members.grib", (4, 61, 120)),
        ("weather_global_samples/era5_tl31_19590102T00.nc", (261, 32, 64)),
        ("weather_global_samples/eraint_uvz.nc", (9, 241, 480)),
        ("weather_eraint_weurope/eraint_weurope_2000-2009.nc", (3, 11, 13)),
        ("weather_ncep_slp_natl/ncep_slp_2001-2009.nc", (1, 17, 33)),
        ("weather_storm1996/storm1996_0105-0116.nc", (6, 33, 36)),
        ("era5_point_berlin2017/ERA5_example_data.nc", (9, 2, 3)),
    ],
)
def test_real_files_become_maps(shared_data, name, shape):
    emap = next(WeatherPipeline().maps(shared_data / name))
    assert emap.tensor.shape == (1, *shape)
    assert torch.isfinite(emap.tensor).all()


def test_stations_are_no_grid_and_grib_without_the_channel_names_it(shared_data):
    with pytest.raises(InputError, match="no latitude grid"):
        WeatherPipeline().read(shared_data / "noaa_stations" / "noaa_us_daily_1990-1992.nc")
    with pytest.raises(InputError, match=r"lacks z500; it has t2m"):
        grib = shared_data / "weather_era5_uk_hourly" / "era5_t2m_uk_2019-03-01_to_25.grib"
        WeatherPipeline(WeatherConfig(channels=("z500",))).read(grib)


def test_an_array_of_one_field_is_read():
    coords = {"latitude": np.arange(80.0, -81, -20), "longitude": np.arange(0.0, 360, 30)}
    array = xr.DataArray(np.zeros((9, 12)), coords, tuple(coords), "t2m")
    assert [channel.name for channel in WeatherPipeline().read(array).channels] == ["t2m"]
    with pytest.raises(InputError, match="has no name"):
        WeatherPipeline().read(array.rename(None))
    with pytest.raises(TypeError, match="xarray Dataset, got list"):
        WeatherPipeline().read([1])


def test_a_region_across_greenwich_in_degrees_east_stays_in_one_piece():
    longitude = [340.0, 345, 350, 355, 0, 5, 10, 15]
    for order in (range(8), np.argsort(longitude)):  # as it was cut, and sorted
        east = np.array(longitude)[list(order)]
        dataset = xr.Dataset(
            {"t2m": (("latitude", "longitude"), np.tile(east, (5, 1)))},
            coords={"latitude": np.arange(50.0, 25, -5), "longitude": east},
        )
        read = WeatherPipeline().read(dataset)
        assert read.dataset.longitude.values.tolist() == [340, 345, 350, 355, 360, 365, 370, 375]
        assert read.dataset["t2m"].values[0].tolist() == longitude


@pytest.mark.parametrize(
    ("levels", "came"),
    [(["high", "low"], "high, low"), ([500, np.nan], "nan"), ([500, 500], "500, 500"), (None, "without values")],
)
def test_levels_that_are_no_pressures_are_refused(fields, levels, came):
    found = canonical(fields)
    found = found.drop_vars("level") if levels is None else found.assign_coords(level=levels)
    with pytest.raises(InputError, match=f"no usable levels.*{came}"):
        WeatherPipeline().read(found)


def test_radians_are_not_taken_for_degrees(fields):
    found = canonical(fields)
    found = found.assign_coords(latitude=("latitude", np.deg2rad(LATITUDE), {"units": "radians"}))
    with pytest.raises(InputError, match="radians"):
        WeatherPipeline().read(found)


def test_times_that_cannot_be_decoded_end_in_a_line_for_users(tmp_path, fields):
    found = canonical(fields)
    found.assign_coords(time=("time", [0, 1, 2], {"units": "months since 2020-01-01"})).to_netcdf(tmp_path / "m.nc")
    with pytest.raises(InputError, match=r"months since 2020-01-01.*; write them as days since a date$"):
        WeatherPipeline().read(tmp_path / "m.nc")
