"""Windows of real series that train: where they come from, and what is done to them."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from unipercept.datasets import real_series
from unipercept.datasets.real_series import draw_real, draw_window, training_records
from unipercept.errors import InputError

STEPS = 1_000


@pytest.fixture
def data(tmp_path):
    """Sets of the expected layout; every value is the number of its step."""
    steps = np.arange(STEPS, dtype=float)
    ett = pd.DataFrame({"date": steps, "HUFL": steps, "OT": steps})
    for name in ("ETTh1", "ETTh2"):
        (tmp_path / "ett").mkdir(exist_ok=True)
        ett.to_csv(tmp_path / "ett" / f"{name}.csv", index=False)

    def write(path, dims, shape, names):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        lead = dims.index("time")
        values = np.broadcast_to(steps.reshape([-1 if i == lead else 1 for i in range(len(dims))]), shape)
        xr.Dataset(dict.fromkeys(names, (dims, values))).to_netcdf(tmp_path / path)

    grid = ("time", "latitude", "longitude")
    write(
        "era5_point_berlin2017/ERA5_example_data.nc",
        grid,
        (STEPS, 2, 3),
        real_series.ERA5 + real_series.ERA5_BESIDE,
    )
    write("noaa_stations/noaa_us_daily_1990-1992.nc", ("time", "station"), (STEPS, 10), real_series.STATIONS)
    for path, names in real_series.FIELDS:
        write(path, grid, (STEPS, 2, 4), names)
    return tmp_path


def test_what_trains_ends_where_the_benchmark_begins_to_validate(data):
    records = training_records(data)
    for name, series in records.items():
        if name.startswith("station"):
            assert [len(x) for x in series] == [STEPS] * 6  # six of ten stations, all their days
        else:
            assert max(x.max() for x in series) == 0.6 * STEPS - 1


def test_stations_that_train_are_none_of_those_that_validate_or_test(data):
    path = data / "noaa_stations" / "noaa_us_daily_1990-1992.nc"
    marked = np.broadcast_to(np.arange(10.0), (STEPS, 10)) + np.linspace(0, 0.5, STEPS)[:, None]
    path.unlink()
    xr.Dataset(dict.fromkeys(real_series.STATIONS, (("time", "station"), marked))).to_netcdf(path)
    for parts in real_series.station_records(data).values():
        stations = {part: {int(x[0]) for x in series} for part, series in parts.items()}
        assert len(stations["train"]) == 6
        assert set.union(*stations.values()) == set(range(10))
        assert not stations["train"] & (stations["validation"] | stations["test"])


def test_a_window_has_no_level_and_no_unit_and_keeps_its_gaps():
    rng = np.random.default_rng(0)
    series = rng.normal(size=3_000).cumsum()
    series[::40] = np.nan
    windows = [draw_window(1e6 + 1e3 * series, rng) for _ in range(50)]
    for window in windows:
        assert 64 <= len(window) <= 1_024
        assert abs(np.nanmean(window)) < 0.1
        assert np.nanstd(window) == pytest.approx(1, abs=0.3)
        assert np.isnan(window).any()
    assert len({len(window) for window in windows}) > 10


def test_where_nothing_changes_or_little_was_observed_there_is_no_window():
    rng = np.random.default_rng(0)
    assert draw_window(np.full(3_000, 7.0), rng) is None
    assert draw_window(np.where(np.arange(3_000) % 2, np.nan, np.arange(3_000.0)), rng) is None


def test_a_series_shorter_than_the_window_is_taken_whole():
    rng = np.random.default_rng(0)
    assert {len(draw_window(np.arange(50.0), rng)) for _ in range(20)} == {50}


def test_quantities_are_drawn_alike_and_the_same_for_the_same_seed():
    records = {
        "long": [np.random.default_rng(0).normal(size=5_000)] * 9,
        "short": [np.random.default_rng(1).normal(size=900)],
    }
    drawn = [draw_real(records, np.random.default_rng(seed)) for seed in range(200)]
    assert 60 < sum(quantity for _, quantity in drawn) < 140
    again, quantity = draw_real(records, np.random.default_rng(3))
    assert quantity == drawn[3][1]
    assert np.array_equal(again, drawn[3][0], equal_nan=True)


def test_a_set_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="ERA5_example_data"):
        training_records(tmp_path)
