"""Stored forecasts are scored on common times, always beside persistence and climatology."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from unipercept.app.forecaster.climatology import Climatology, build_climatology, open_climatology, smooth_days
from unipercept.app.forecaster.evaluate import evaluate
from unipercept.app.forecaster.fields import open_fields, sums_since_start
from unipercept.app.forecaster.score_formulas import region_weights
from unipercept.errors import InputError

HOURS = np.timedelta64(6, "h")


def truth_of(n_times: int = 4 * 731, start: str = "2018-01-01", seed: int = 0) -> xr.Dataset:
    """Noise over an annual cycle, 6-hourly, on a coarse global grid."""
    random = np.random.default_rng(seed)
    time = np.datetime64(start, "ns") + np.arange(n_times) * HOURS
    cycle = 1000 * np.cos(2 * np.pi * np.arange(n_times) / 1461)[:, None, None]
    z = 5.5e4 + cycle + 300 * random.normal(size=(n_times, 4, 8))
    return xr.Dataset(
        {"geopotential": (("time", "level", "latitude", "longitude"), z[:, None], {"units": "m2 s-2"})},
        {"time": time, "level": [500], "latitude": [67.5, 22.5, -22.5, -67.5], "longitude": np.arange(8) * 45.0},
    )


def forecast_of(truth: xr.Dataset, inits: slice, n_leads: int = 4, error: float = 100.0) -> xr.Dataset:
    """The truth with noise that grows with the lead."""
    random = np.random.default_rng(1)
    numbers = np.arange(len(truth["time"]))[inits]
    steps = np.arange(1, n_leads + 1)
    z = truth["geopotential"].values[numbers[:, None] + steps]
    z = z + error * steps[None, :, None, None, None] * random.normal(size=z.shape)
    dims = ("time", "prediction_timedelta", "level", "latitude", "longitude")
    return xr.Dataset(
        {"geopotential": (dims, z.astype("f4"), {"units": "m2 s-2"})},
        {
            "time": truth["time"].values[numbers],
            "prediction_timedelta": (steps * HOURS).astype("timedelta64[ns]"),
            **{d: truth[d].values for d in ("level", "latitude", "longitude")},
        },
    )


@pytest.fixture(scope="module")
def truth() -> xr.Dataset:
    return open_fields(truth_of())


def test_the_table_equals_numpy_and_has_both_baselines(truth: xr.Dataset) -> None:
    raw = truth_of()
    forecast = forecast_of(raw, slice(2000, 2040, 2))
    climate = Climatology(build_climatology(truth.sel(time=slice(None, "2018-12-31T18"))))
    result = evaluate({"ours": open_fields(forecast)}, truth, climate)
    assert list(result.table["model"].values) == ["ours", "persistence", "climatology"]
    weights = region_weights(raw["latitude"].values, [np.ones((4, 8), bool)])[0].reshape(4, 8)
    z = raw["geopotential"].values[:, 0]
    for lead in range(4):
        valid = np.arange(2000, 2040, 2) + lead + 1
        found = result.table.isel(lead=lead).sel(region="global", channel="z500")
        ours = forecast["geopotential"].values[:, lead, 0].astype(float)
        expected = {
            "ours": ((ours - z[valid]) ** 2 * weights).sum((1, 2)).mean(),
            "persistence": ((z[np.arange(2000, 2040, 2)] - z[valid]) ** 2 * weights).sum((1, 2)).mean(),
        }
        for name, value in expected.items():
            assert float(found["rmse"].sel(model=name)) == pytest.approx(np.sqrt(value), rel=1e-12)
        assert float(found["rmse_low"].sel(model="ours")) < float(found["rmse"].sel(model="ours"))
    assert (result.table["activity"].sel(model="climatology") == 0).all()
    assert (result.table["acc"].sel(model="ours", region="global") > 0.3).all()


def test_leads_that_leave_the_truth_are_left_out(truth: xr.Dataset) -> None:
    forecast = forecast_of(truth_of(), slice(-8, -4))
    result = evaluate({"ours": open_fields(forecast)}, truth.isel(time=slice(None, -3)))
    counts = result.table["n_forecasts"].sel(model="ours").values
    np.testing.assert_array_equal(counts, [4, 3, 2, 1])


def test_an_ensemble_gets_its_own_scores(truth: xr.Dataset) -> None:
    members = [forecast_of(truth_of(seed=0), slice(100, 110), error=e) for e in (50.0, 100.0, 150.0)]
    ensemble = xr.concat(members, "number").assign_coords(number=range(3))
    table = evaluate({"ours": open_fields(ensemble)}, truth).table
    assert {"crps", "spread_skill", "rank_counts"} <= set(table)
    assert np.isfinite(table["crps"].sel(model="ours")).all()
    assert np.isnan(table["crps"].sel(model="persistence")).all()


def test_scores_are_saved_for_people_and_for_programs(truth: xr.Dataset, tmp_path: Path) -> None:
    result = evaluate({"ours": open_fields(forecast_of(truth_of(), slice(50, 60)))}, truth)
    result.save(tmp_path / "scores.csv")
    result.save(tmp_path / "scores.nc")
    rows = pd.read_csv(tmp_path / "scores.csv")
    here = rows[(rows.model == "ours") & (rows.region == "global") & (rows.lead == 12)].set_index("channel")
    stored = xr.open_dataset(tmp_path / "scores.nc", decode_timedelta=False).sel(model="ours", region="global", lead=12)
    assert here.rmse["z500"] == pytest.approx(float(stored["rmse"].sel(channel="z500")), rel=1e-12)
    assert here.rmse["all"] == pytest.approx(float(stored["overall_rmse"]), rel=1e-12)
    with pytest.raises(InputError, match="saved as"):
        result.save(tmp_path / "scores.xlsx")


def test_a_verdict_names_the_leads_at_which_a_forecast_is_better(truth: xr.Dataset) -> None:
    perfect = forecast_of(truth_of(), slice(50, 60))
    late = perfect.copy(deep=True)
    for variable in late.data_vars.values():
        variable[:, 1:] += 1e6  # exact at the first lead alone
    result = evaluate({"exact": open_fields(perfect), "late": open_fields(late)}, truth)
    days = result.table["lead"].values / 24
    verdicts = result.verdicts()
    assert [line.split(" over all")[0] for line in verdicts] == [
        f"{ours} has a lower RMSE than {rival}"
        for ours, rival in (("exact", "late"), ("exact", "persistence"), ("late", "exact"), ("late", "persistence"))
    ]
    n_channels, n_leads = result.table.sizes["channel"], len(days)
    later = f"{days[1]:g} to {days[-1]:g} d" if n_leads > 2 else f"{days[1]:g} d"
    assert verdicts[0].endswith(
        f"over all channels at {later}; in every channel at {later}; "
        f"in {n_channels * (n_leads - 1)} of {n_channels * n_leads} pairs of channel and lead"
    )
    assert "over all channels at no lead; in every channel at no lead; in 0 of" in verdicts[2]


def test_other_grids_times_and_channels_are_one_line(truth: xr.Dataset) -> None:
    forecast = open_fields(forecast_of(truth_of(), slice(50, 60)))
    with pytest.raises(InputError, match="different grids"):
        evaluate({"ours": forecast.isel(latitude=slice(0, 2))}, truth)
    with pytest.raises(InputError, match="no initial time"):
        evaluate({"ours": forecast}, truth.isel(time=slice(0, 40)))
    with pytest.raises(InputError, match="no t850"):
        evaluate({"ours": forecast}, truth, channels=["t850"])
    with pytest.raises(InputError, match="no forecast"):
        evaluate({"ours": truth}, truth)


def test_the_climatology_is_the_mean_over_years_under_a_triangle(truth: xr.Dataset) -> None:
    found = build_climatology(truth)
    assert dict(found.sizes) == {"hour": 4, "dayofyear": 366, "level": 1, "latitude": 4, "longitude": 8}
    z, times = truth["z"].values[:, 0], pd.DatetimeIndex(truth["time"].values)
    noon = times.hour == 12
    daily = np.stack(
        [z[noon & (times.day_of_year == d)].mean(0) if d < 366 else np.zeros((4, 8)) for d in range(1, 367)]
    )
    daily[365] = daily[364]
    day = 20  # its window reaches over the turn of the year
    offsets = np.arange(-30, 31)
    triangle = 1 - abs(offsets) / 30
    expected = (triangle[:, None, None] * daily[(day - 1 + offsets) % 366]).sum(0) / triangle.sum()
    np.testing.assert_allclose(found["z"].sel(hour=12, dayofyear=day, level=500), expected, rtol=1e-6)


def test_a_climatology_needs_a_whole_year(truth: xr.Dataset) -> None:
    with pytest.raises(InputError, match="whole year"):
        build_climatology(truth.sel(time=slice(None, "2018-06-30")))
    with pytest.raises(InputError, match="no times"):
        build_climatology(truth.isel(time=slice(0)))
    constant = smooth_days(np.full((366, 2), 7.0), np.ones(366, int))
    np.testing.assert_allclose(constant, 7, rtol=1e-14)


def test_day_366_of_a_climatology_is_that_of_leap_years_and_day_365_of_the_others() -> None:
    """WeatherBench 2 fills the day that a common year lacks before it takes the mean over years."""
    raw = truth_of(4 * (365 + 366), start="2019-01-01")
    z, times = raw["geopotential"].values[:, 0], pd.DatetimeIndex(raw["time"].values)
    noon = times.hour == 12
    year = [z[noon & (times.year == y)] for y in (2019, 2020)]
    daily = (np.concatenate([year[0], year[0][-1:]]) + year[1]) / 2
    triangle = (1 - abs(np.arange(-30, 31)) / 30)[:, None, None]
    expected = (triangle * daily[(365 + np.arange(-30, 31)) % 366]).sum(0) / triangle.sum()
    found = build_climatology(open_fields(raw))["z"].sel(hour=12, dayofyear=366, level=500)
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_levels_of_a_climatology_do_not_depend_on_how_many_are_summed_at_once(
    truth: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    three = xr.concat(
        [truth["z"].assign_coords(level=[level]) * f for level, f in ((200, 2), (500, 1), (850, 0.3))], "level"
    )
    fields = xr.Dataset({"z": three.transpose("time", "level", ...), "t2m": truth["z"].isel(level=0, drop=True)})
    fields["lsm"] = truth["z"][0, 0].drop_vars(["time", "level"])  # never changes, so it has no climatology
    whole = build_climatology(fields[["z", "lsm"]])
    monkeypatch.setattr("unipercept.app.forecaster.climatology.SUM_BYTES", 1)
    xr.testing.assert_identical(build_climatology(fields, ["z500"]), whole)
    assert list(whole) == ["z"]


def test_a_climatology_goes_by_day_and_grid_and_not_by_position(truth: xr.Dataset) -> None:
    made, forecast = build_climatology(truth), open_fields(forecast_of(truth_of(), slice(50, 60)))
    turned = Climatology(made.isel(dayofyear=slice(None, None, -1)))
    new_year = np.datetime64("2020-12-31T18")
    np.testing.assert_array_equal(turned.at(new_year, ("z500",)), Climatology(made).at(new_year, ("z500",)))
    with pytest.raises(InputError, match="each once; this one has 365"):
        Climatology(made.isel(dayofyear=slice(0, 365)))
    with pytest.raises(InputError, match="the climatology and the truth lie on different grids"):
        evaluate({"ours": forecast}, truth, Climatology(made.assign_coords(longitude=made["longitude"] + 22.5)))


def test_cells_that_the_truth_never_has_do_not_count(truth: xr.Dataset) -> None:
    """Half of each row is land; scores are those of the other half, which is a grid of its own."""
    forecast, sea = open_fields(forecast_of(truth_of(), slice(50, 60))), {"longitude": slice(0, 4)}
    over_sea = truth.where(truth["longitude"] < 180)
    climate = build_climatology(truth)
    found = evaluate({"ours": forecast}, over_sea, Climatology(build_climatology(over_sea))).table
    wanted = evaluate({"ours": forecast.isel(sea)}, truth.isel(sea), Climatology(climate.isel(sea))).table
    for name in ("rmse", "mae", "bias", "acc", "activity", "overall_rmse"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(found["coverage"].sel(region="global"), 0.5)
    assert np.isnan(found["spectral_distance_db"]).all()  # no spectrum of half a circle
    with pytest.raises(InputError, match="the truth lacks other cells of z500"):
        evaluate({"ours": forecast}, truth.where((truth["longitude"] < 180) | (truth["time"] < truth["time"][52])))
    with pytest.raises(InputError, match="missing at some times"):
        build_climatology(truth.where(truth["time"] < truth["time"][52]))


def test_leads_are_scored_in_blocks_that_fit_memory(truth: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    forecast = open_fields(forecast_of(truth_of(), slice(50, 52)))
    whole = evaluate({"ours": forecast}, truth).table
    monkeypatch.setattr("unipercept.app.forecaster.evaluate.MAX_BLOCK_BYTES", 1)
    xr.testing.assert_identical(evaluate({"ours": forecast}, truth).table, whole)


def test_a_truth_of_one_member_is_taken_and_of_more_refused(truth: xr.Dataset) -> None:
    forecast = open_fields(forecast_of(truth_of(), slice(50, 52)))
    alone = evaluate({"ours": forecast}, truth.expand_dims(number=[0])).table
    xr.testing.assert_identical(alone, evaluate({"ours": forecast}, truth).table)
    with pytest.raises(InputError, match="the truth has 3 members"):
        evaluate({"ours": forecast}, truth.expand_dims(number=[0, 1, 2]))


def test_fields_of_unknown_units_are_not_compared_across_them() -> None:
    """Variables that we know are converted (z in gpm); others come in the unit that their file states."""
    raw = truth_of(40).isel(level=0, drop=True).rename(geopotential="total_precipitation_6hr")
    raw["total_precipitation_6hr"].attrs["units"] = "m"
    leads = {"prediction_timedelta": np.array([6], "timedelta64[h]").astype("timedelta64[ns]")}
    forecast = raw.isel(time=slice(0, 4)).expand_dims(leads)
    evaluate({"ours": open_fields(forecast)}, open_fields(raw))
    forecast["total_precipitation_6hr"].attrs["units"] = "mm"
    with pytest.raises(InputError, match="is in 'mm' in ours and in 'm' in the truth"):
        evaluate({"ours": open_fields(forecast)}, open_fields(raw))


def test_precipitation_that_never_falls_from_lead_to_lead_is_said_to_be_a_sum() -> None:
    rain = abs(np.random.default_rng(0).normal(size=(2, 4, 4, 8))).astype("f4")
    forecast = forecast_of(truth_of(40), slice(0, 2))
    dims = ("time", "prediction_timedelta", "latitude", "longitude")
    steps, sums = (forecast.assign(tp=(dims, values, {"units": "m"})) for values in (rain, rain.cumsum(1)))
    assert sums_since_start(open_fields(steps)) == []
    assert "a sum since the start" in sums_since_start(open_fields(sums))[0]


def test_a_climatology_survives_a_file(truth: xr.Dataset, tmp_path: Path) -> None:
    made = build_climatology(truth)
    made.rename(z="geopotential_mean").to_netcdf(tmp_path / "climate.nc")
    time = np.datetime64("2019-07-04T18")
    got = open_climatology(tmp_path / "climate.nc").at(time, ("z500",))
    np.testing.assert_allclose(got, Climatology(made).at(time, ("z500",)), rtol=1e-7)
    with pytest.raises(InputError, match="no hour 3"):
        Climatology(made).at(np.datetime64("2019-07-04T03"), ("z500",))


def test_persistence_and_climatology_of_the_recorded_region_are_the_published_rows(shared_data: Path) -> None:
    """weather_eraint_weurope, test 2009: persistence 617 m2 s-2 at 1 d with cosine weights, over all cells and days."""
    data = open_fields(shared_data / "weather_eraint_weurope" / "eraint_weurope_2000-2009.nc").sel(time="2009")
    data = data[["z500", "t850", "msl"]].load()
    lead = np.array([1], "timedelta64[D]").astype("timedelta64[ns]")
    persisted = data.isel(time=slice(0, -1)).expand_dims(prediction_timedelta=lead)
    table = evaluate({"ours": open_fields(persisted)}, data, weights="cos").table
    found = table["rmse"].sel(model="persistence", region="global", lead=24)
    assert float(found.sel(channel="z500")) == pytest.approx(617, abs=4)
    assert float(found.sel(channel="t850")) == pytest.approx(2.78, abs=0.02)
    assert float(found.sel(channel="msl")) == pytest.approx(518, abs=4)
