"""Weather in GRIB: messages of several levels, times and leads become one data set, each where and when it holds."""

import numpy as np
import pytest

from unipercept.app.forecaster.fields import open_fields
from unipercept.pipelines.weather import WeatherPipeline

pytest.importorskip("xarray")


def _write_grib(path, messages):
    """Messages of 30 degrees: short name, pressure or None, day of January 2020, step in hours; and further keys."""
    eccodes = pytest.importorskip("eccodes")
    axes = {
        "Ni": 12, "Nj": 7, "latitudeOfFirstGridPointInDegrees": 90, "latitudeOfLastGridPointInDegrees": -90,
        "longitudeOfFirstGridPointInDegrees": 0, "longitudeOfLastGridPointInDegrees": 330,
        "iDirectionIncrementInDegrees": 30, "jDirectionIncrementInDegrees": 30,
    }  # fmt: skip
    with path.open("wb") as file:
        for name, level, day, step, *others in messages:
            handle = eccodes.codes_grib_new_from_samples(f"regular_ll_{'sfc' if level is None else 'pl'}_grib2")
            keys = {**axes, "dataDate": 20200100 + day, "dataTime": 0, "shortName": name, "stepRange": str(step)}
            keys |= ({} if level is None else {"level": level}) | (others[0] if others else {})
            first = keys.pop("first", 280.0)
            for key, value in keys.items():
                eccodes.codes_set(handle, key, value)
            eccodes.codes_set_values(handle, first + np.arange(84) / 10)
            eccodes.codes_write(handle, file)
            eccodes.codes_release(handle)


def test_grib_of_single_levels_and_times_keeps_them(tmp_path):
    pytest.importorskip("cfgrib")
    path = tmp_path / "single.grib"
    _write_grib(path, [("t", 850, 1, 0), ("u", 500, 1, 0), ("2t", None, 1, 0)])
    emap = next(WeatherPipeline().maps(path))
    assert emap.metadata["channels"] == ["t850", "u500", "t2m"]
    assert emap.metadata["time"].startswith("2020-01-01T00:00")
    _write_grib(path, [("2t", None, 1, 6)])
    emap = next(WeatherPipeline().maps(path))
    assert emap.metadata["time"].startswith("2020-01-01T06:00")
    assert emap.metadata["notes"] == ["these are forecasts of 6 h; their times are the valid ones"]
    _write_grib(path, [("2t", None, 1, step) for step in (6, 12)])
    assert dict(open_fields(path).sizes) == {"time": 1, "prediction_timedelta": 2, "latitude": 7, "longitude": 12}


def test_grib_of_analyses_beside_forecasts_keeps_the_times_of_the_analyses(tmp_path):
    pytest.importorskip("cfgrib")
    path = tmp_path / "mixed.grib"
    for steps in ((6,), (6, 12)):
        _write_grib(path, [("2t", None, 1, 0), *(("tp", None, 1, step) for step in steps)])
        assert next(WeatherPipeline().maps(path)).metadata["time"].startswith("2020-01-01T00:00")


def test_grib_of_several_kinds_of_levels_keeps_those_of_pressures(tmp_path):
    """As GFS, where cfgrib gives six variables called t."""
    pytest.importorskip("cfgrib")
    kinds = {"surface": (0, 290.0), "tropopause": (0, 210.0), "heightAboveGround": (80, 284.0)}
    others = [("t", None, 1, 6, {"typeOfLevel": k, "level": v, "first": at}) for k, (v, at) in kinds.items()]
    others.append(("t", None, 1, 6, {"typeOfLevel": "heightAboveGround", "level": 100, "first": 283.0}))
    levels = [("t", level, 1, 6, {"first": at}) for level, at in ((850, 270.0), (500, 250.0))]
    apart = {"t_tropopause": 210.0, "t_surface": 290.0, "t_heightAboveGround80": 284.0, "t_heightAboveGround100": 283.0}
    for number, on_pressures in enumerate((levels, levels[:1])):
        path = tmp_path / f"{number}.grib"
        _write_grib(path, [*others, *on_pressures, ("2t", None, 1, 6, {"first": 288.0})])
        raw = next(WeatherPipeline().split(WeatherPipeline().read(path)))
        first = {channel.name: float(values[0, 0]) for channel, values in zip(raw.channels, raw.values, strict=True)}
        expected = {f"t{level}": keys["first"] for _, level, _, _, keys in on_pressures} | {"t2m": 288.0} | apart
        assert first == pytest.approx(expected)


def test_grib_of_analyses_and_of_precipitation_stands_at_valid_times(tmp_path):
    """As ERA5: precipitation is a forecast from 6 and 18 h, temperature an analysis of every hour."""
    pytest.importorskip("cfgrib")
    path = tmp_path / "era5.grib"
    hours = range(7, 31)
    analyses = [("2t", None, 1 + h // 24, 0, {"dataTime": h % 24 * 100, "first": 270.0 + h}) for h in hours]
    bases = {h: (h - 7) // 12 * 12 + 6 for h in hours}  # 6 and 18 h, and steps of 1 to 12 h
    sums = [("tp", None, 1, h - b, {"dataTime": b * 100, "first": float(h)}) for h, b in bases.items()]
    _write_grib(path, [*analyses, *sums])
    read = WeatherPipeline().read(path)
    assert (read.dataset["time"].values == np.datetime64("2020-01-01", "h") + np.array(hours)).all()
    values = np.stack([piece.values[:, 0, 0] for piece in WeatherPipeline().split(read)])
    assert np.allclose(values[:, 0], 270.0 + np.array(hours))
    assert np.allclose(values[:, 1], np.array(hours))


def test_grib_of_one_lead_beside_several_holds_at_that_lead_alone(tmp_path):
    pytest.importorskip("cfgrib")
    path = tmp_path / "leads.grib"
    _write_grib(path, [*(("2t", None, 1, step) for step in (6, 12)), ("msl", None, 1, 12, {"first": 1e5})])
    pressure = open_fields(path)["msl"].isel(latitude=0, longitude=0).values.ravel()
    assert np.isnan(pressure[0])
    assert pressure[1] == pytest.approx(1e5)


def test_grib_of_orography_beside_times_has_it_at_all_of_them(tmp_path):
    pytest.importorskip("cfgrib")
    path = tmp_path / "orography.grib"
    _write_grib(path, [*(("2t", None, day, 0) for day in (1, 2)), ("z", None, 1, 0), ("msl", None, 2, 0)])
    pieces = list(WeatherPipeline().split(WeatherPipeline().read(path)))
    missing = {
        channel.name: [bool(np.isnan(p.values[i]).all()) for p in pieces]
        for i, channel in enumerate(pieces[0].channels)
    }
    assert missing == {"z": [False, False], "t2m": [False, False], "msl": [True, False]}
