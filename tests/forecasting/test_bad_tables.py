"""Tables as people send them: each is forecast with a notice that names what was done, or refused in one clear line."""

import numpy as np
import pandas as pd
import pytest

import unipercept
from tests.forecasting.tables import LENGTH, PLAIN, QUICK, csv, forecast, hours, months, said, wave, yearly_wave
from unipercept.errors import InputError
from unipercept.forecasting.estimator import TableForecaster
from unipercept.forecasting.forecast import forecast_table
from unipercept.forecasting.settings import QUANTILES


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return forecast(tmp_path_factory.mktemp("plain"), PLAIN)


SAME = {  # name: (bytes, words of a notice); all hold the numbers of PLAIN
    "utf-16": (PLAIN.replace(",", "\t").encode("utf-16"), "text in UTF-16"),
    "utf-16 without its mark": (PLAIN.encode("utf-16-le"), "text in UTF-16-LE"),
    "semicolons, decimal commas, dotted dates": (
        csv(hours().strftime("%d.%m.%Y %H:%M"), [str(v).replace(".", ",") for v in wave()], "Datum;Wärme", ";").encode(
            "latin-1"
        ),
        "decimal commas",
    ),
    "Excel's serial days": (csv((45292 + np.arange(LENGTH) / 24).round(6), wave()), "Excel's serial days"),
    "seconds since 1970": (csv(1704067200 + 3600 * np.arange(LENGTH), wave(), "ts,y"), "as s since 1970"),
    "milliseconds since 1970": (
        csv((1704067200 + 3600 * np.arange(LENGTH)) * 1000, wave(), "timestamp,y"),
        "as ms since 1970",
    ),
    "month first": (csv(hours().strftime("%m/%d/%Y %I:%M %p"), wave()), "month first"),
    "day first": (csv(hours().strftime("%d/%m/%Y %H:%M"), wave()), "day first"),
    "not in order": (
        csv(*zip(*sorted(zip(hours(), wave(), strict=True), key=lambda row: hash(str(row[0]))), strict=True)),
        "they were sorted",
    ),
    "a row repeated": (PLAIN + f"{hours()[50]},{wave()[50]}\n", "repeats a time"),
    "date and time apart": (
        "Date,Time,y\n" + "".join(f"{t.date()},{t.time()},{v}\n" for t, v in zip(hours(), wave(), strict=True)),
        "time of day from column 'Time'",
    ),
    "year, month, day, hour apart": (
        "year,month,day,hour,y\n"
        + "".join(f"{t.year},{t.month},{t.day},{t.hour},{v}\n" for t, v in zip(hours(), wave(), strict=True)),
        "time from columns year",
    ),
    "lines before the table": (
        csv(hours(), wave(), "Report of station 5;;\nunits: kW\n\ndate;y", ";"),
        "3 lines before the table",
    ),
    "no header": (PLAIN.split("\n", 1)[1], "time from column 'column_0'"),
    "an empty column": (
        "".join(line + ",\n" for line in PLAIN.splitlines()).replace("y,\n", "y,z\n", 1),
        "left out, as empty: z",
    ),
    "a column of text": (
        "".join(line + ",ok\n" for line in PLAIN.splitlines()).replace("y,ok\n", "y,state\n", 1),
        "left out, as text: state",
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_numbers_in_other_dress_give_the_same_forecast(tmp_path, plain, name):
    text, words = SAME[name]
    result = forecast(tmp_path, text)
    np.testing.assert_allclose(result.values, plain.values, rtol=1e-9)
    np.testing.assert_array_equal(result.time, plain.time)
    assert said(result, words), result.notices


def test_text_among_numbers_is_named_with_its_row_and_counts_as_missing(tmp_path):
    lines = PLAIN.splitlines()
    lines[31] = f"{hours()[30]},offline"
    lines[78] = f"{hours()[77]},n/a"
    result = forecast(tmp_path, "\n".join(lines) + "\n")
    assert said(result, "(first 'offline' in row 31) counts as missing")
    assert said(result, "2 values are missing")


def test_thousands_and_units_are_numbers(tmp_path):
    result = forecast(tmp_path, csv(hours(), [f'"{1000 * v:,.1f} kWh"' for v in wave()]))
    assert said(result, f"{LENGTH} cells with thousands signs")
    assert 5000 < result.values.mean() < 15000


def test_codes_for_missing_and_infinities_are_no_values(tmp_path):
    values = wave().astype(object)
    values[[5, 6, 100]] = -9999
    values[50] = "inf"
    result = forecast(tmp_path, csv(hours(), values))
    assert said(result, "-9999 is taken as a code for missing")
    assert said(result, "4 values are missing") or said(result, "infinite")
    assert result.prepared.restored(result.prepared.truth).min() > 0 or np.isnan(result.prepared.truth).sum() == 4


def test_spikes_are_limited_in_what_is_learned_and_kept_in_what_is_scored(tmp_path):
    values = wave()
    values[[100, 200]] = [1e5, -4e4]
    result = forecast(tmp_path, csv(hours(), values))
    assert said(result, "2 spikes (largest: y = 100000 at 2024-01-05 04:00:00)")
    kept = result.prepared.restored(result.prepared.truth)[:, 0]
    seen = result.prepared.restored(result.prepared.values)[:, 0]
    assert kept[100] == pytest.approx(1e5)
    assert abs(seen[100]) < 200
    assert np.abs(result.values).max() < 20


@pytest.mark.parametrize(("row", "kept"), [(-13, 122), (-2, 122), (-1, 90_000)])
def test_a_lone_spike_of_a_short_series_is_limited_unless_it_may_be_a_new_level(row, kept):
    values = yearly_wave(60)
    values[row] = 90_000
    seen = forecast_table(months(values), 6, **QUICK).prepared
    assert seen.restored(seen.values)[row, 0] == pytest.approx(kept, rel=0.02)
    assert seen.restored(seen.truth)[row, 0] == pytest.approx(90_000)


@pytest.mark.parametrize("share", [0.0, 0.06])
def test_growth_and_demand_with_zeros_are_no_spikes(share):
    rng = np.random.default_rng(1)
    growth = np.exp(0.3 * np.arange(40))
    demand = np.where(rng.random(40) < share, rng.integers(1, 90, 40), 0)
    demand[20] = 40
    for values in (growth, demand):
        seen = forecast_table(months(values), 6, **QUICK).prepared
        np.testing.assert_allclose(seen.restored(seen.values)[:, 0], values, atol=1e-6)


def test_a_spike_within_the_back_test_does_not_widen_the_intervals_beyond_what_else_was_seen():
    values = yearly_wave(60)
    usual = np.ptp(values)
    values[-5] = 90_000
    spiked = forecast_table(months(values), 6, **QUICK)
    assert (spiked.quantiles[0.975] - spiked.quantiles[0.025]).mean() < 2 * usual


def test_the_last_value_alone_does_not_make_a_forecast_in_logarithms():
    values = yearly_wave(60)
    values[-1] = 90_000
    assert forecast_table(months(values), 6, **QUICK).prepared.power == 1


def test_gaps_stay_gaps(tmp_path):
    lines = [line for i, line in enumerate(PLAIN.splitlines()) if not 40 < i < 90]
    result = forecast(tmp_path, "\n".join(lines) + "\n")
    assert said(result, "49 steps were missing")
    assert np.isnan(result.prepared.values).sum() == 49


def test_a_series_that_ended_is_left_out_and_one_that_ends_a_little_early_is_bridged(tmp_path):
    rows = "".join(
        f"{t},{name},{v}\n"
        for name, end in (("a", 300), ("b", 150), ("c", 290))
        for t, v in list(zip(hours(), wave(), strict=True))[:end]
    )
    result = forecast(tmp_path, "ds,shop,y\n" + rows)
    assert result.variables == ("a", "c")
    assert said(result, "1 series ended before the table did and are not forecast: b")
    assert said(result, "end up to 10 steps before the table")
    assert abs(result.values[:, 0] - result.values[:, 1]).max() < 2


def test_constant_series_go_on_and_widen_nothing(tmp_path):
    result = forecast(tmp_path, "date,y,five\n" + "".join(f"{t},{v},5\n" for t, v in zip(hours(), wave(), strict=True)))
    assert said(result, "constant: five")
    assert (result.quantile(0.025)[:, 1] == 5).all()
    assert (result.quantile(0.975)[:, 1] == 5).all()
    alone = forecast(tmp_path, csv(hours(), np.full(LENGTH, 5)))
    assert (alone.values == 5).all()
    assert said(alone, "no series ever changes")


def test_a_horizon_longer_than_the_history_is_forecast_with_a_warning(tmp_path):
    result = forecast(tmp_path, csv(hours(60), wave(60)), horizon=100)
    assert len(result.values) == 100
    assert said(result, "long for 60 rows of history")
    width = result.quantile(0.9) - result.quantile(0.1)
    assert width[-1] > width[20]


def test_too_few_rows_to_test_is_said(tmp_path):
    result = forecast(tmp_path, csv(hours(5), wave(5)))
    assert said(result, "5 rows are too few for a back-test")
    assert np.isfinite(result.values).all()


@pytest.mark.parametrize("factor", [1e-12, 1e9, 1e300])
def test_numbers_of_any_size_keep_their_digits(tmp_path, plain, factor):
    result = forecast(tmp_path, csv(hours(), [f"{v * factor:.12e}" for v in wave()]))
    np.testing.assert_allclose(result.values / factor, plain.values, rtol=1e-6)


def test_a_high_level_keeps_its_digits(tmp_path, plain):
    result = forecast(tmp_path, csv(hours(), [f"{v + 1e9:.4f}" for v in wave()]))
    np.testing.assert_allclose(result.values - 1e9, plain.values, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("date,y\n2024-01-01,3\n", "1 row of data"),
        ("date,y\n2024-01-01,3\n2024-01-02,4\n", "nothing to forecast from"),
        ("date,y\n", "0 rows"),
        (csv(hours(), [""] * LENGTH), "no value at all in"),
        (csv(hours(), ["foo"] * LENGTH), "no column of numbers"),
        (csv(["01/02/2024", "02/02/2024", "03/02/2024"] * 4, wave(12)), "write them as YYYY-MM-DD"),
        (csv(pd.Timestamp("2024-01-01") + pd.to_timedelta(2.0 ** np.arange(24), unit="s"), wave(24)), "too irregular"),
        (b"PK\x03\x04 and so on", "as a table"),
        (b"\xd0\xcf\x11\xe0 and so on", "old Excel workbook; save it as .xlsx"),
        (b"date,y\n\0\0\0\1", "not text"),
        ("", "empty"),
    ],
)
def test_what_cannot_be_forecast_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        forecast(tmp_path, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "at least 1 step"),
        ({"targets": ("z",)}, "no column 'z'; there are date, y"),
        ({"time": "when"}, "no column 'when'"),
        ({"time": "y"}, "does not read as times"),
        ({"period": 0}, "at least 1 step"),
        ({"methods": ("magic",)}, "unknown method 'magic'"),
        ({"seconds": 0}, "above 0"),
    ],
)
def test_arguments_that_cannot_work_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        forecast(tmp_path, PLAIN, **options)


@pytest.mark.parametrize("values", [[3.0, 4.0, 6.0], [3.0, 4.0, 6.0, 7.0]])
def test_a_guess_from_a_few_rows_is_as_wide_as_the_steps_it_has_seen(values):
    frame = pd.DataFrame({"v": values}, index=pd.date_range("2024-01-01", periods=len(values)))
    quantiles = unipercept.forecast(frame, 2, seconds=2).to_dict()["quantiles"]
    low, high = quantiles["0.1"][0][0], quantiles["0.9"][0][0]
    assert low <= values[-1] - 2
    assert high >= values[-1] + 2


def test_minus_signs_of_typesetters_are_minus_signs(tmp_path):
    values = wave() - 10
    result = forecast(tmp_path, csv(hours(), [f"{v:.3f}".replace("-", "\u2212") for v in values]))
    assert np.allclose(result.prepared.restored(result.prepared.truth)[:, 0], values.round(3))


def test_a_series_that_begins_late_takes_no_method_from_the_others(tmp_path):
    frame = pd.DataFrame({"date": hours(), "y": wave(), "late": wave(seed=1)})
    frame.loc[:293, "late"] = np.nan
    result = forecast_table(frame, 12, methods=("naive", "seasonal", "drift"), seconds=5)
    assert {"naive", "seasonal naive", "drift"} <= {one.method.name for one in result.backtest.tested}
    assert np.isnan(result.backtest.truth[..., 1]).any()
    width = result.quantile(0.9) - result.quantile(0.1)
    assert (width[:, 1] > 0).all()


def test_shares_stay_within_the_whole(tmp_path):
    values = np.clip(
        92 + 8 * np.sin(np.arange(LENGTH) * 2 * np.pi / 24) + np.random.default_rng(0).normal(size=LENGTH) * 4, 0, 100
    )
    result = forecast(tmp_path, csv(hours(), values.round(1), "date,occupied"))
    assert result.quantile(0.975).max() == 100
    assert said(result, "shares of a whole, which no forecast exceeds: occupied (100)")
    other = forecast(tmp_path, csv(hours(), (values + 5).round(1), "date,degrees"))
    assert other.quantile(0.975).max() > 105


def test_a_rise_that_has_come_to_100_may_go_on(tmp_path):
    values = np.concatenate([np.linspace(40, 99.5, 58), [100, 100]]).round(1)
    result = forecast(tmp_path, csv(hours(60), values, "date,sold"))
    assert result.quantile(0.975).max() > 100
    assert not said(result, "no forecast exceeds")


def test_a_running_total_never_falls():
    rng = np.random.default_rng(0)
    used = np.cumsum(rng.gamma(0.3, 10, 120))
    frame = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=120), "meter": used, "left": 5000 - used})
    frame["free"] = used + rng.normal(size=120) * 20
    result = forecast_table(frame, 14, methods=("naive", "seasonal"), seconds=5)
    assert said(result, "only rises or only falls, and so does its forecast: meter, left")
    for level in QUANTILES:
        steps = np.diff(np.concatenate([frame.iloc[-1:, 1:].to_numpy(), result.quantile(level)]), axis=0)
        assert steps[:, 0].min() >= 0 >= steps[:, 1].max()
    assert result.quantile(0.1)[-1, 2] < result.quantile(0.1)[0, 2]
    model = TableForecaster(14, methods=("naive",), seconds=5).fit(frame[:-5])
    later = model.predict_interval(coverage=0.95, history=frame)
    assert (later["meter", "lower"] >= used[-1]).all()


def test_what_only_the_owner_can_judge_is_said(tmp_path):
    values = wave()
    stuck = np.where(np.arange(LENGTH) < 250, values, values[249])
    assert said(
        forecast(tmp_path, csv(hours(), stuck)), "has not changed up to the end, for longer than ever before: y"
    )
    rng = np.random.default_rng(0)
    sold = rng.poisson(0.6, LENGTH)
    rows = [f"{t},{v}" for t, v in zip(hours(), sold, strict=True) if v]
    assert said(forecast(tmp_path, "date,sold\n" + "\n".join(rows) + "\n"), "never 0: sold")
    assert not said(forecast(tmp_path, csv(hours(), sold)), "never 0")
    frame = pd.DataFrame({"date": hours(), "y": values, "daily": np.where(np.arange(LENGTH) % 24 == 0, values, np.nan)})
    assert said(forecast_table(frame, 24, **QUICK), "longer steps than the table: daily (24 steps)")


def test_counts_are_not_forecast_in_logarithms():
    rng = np.random.default_rng(3)
    week = 1 + rng.poisson(np.tile([0.1, 0.1, 0.1, 0.2, 0.5, 1.5, 1.0], 50))
    result = forecast_table(pd.DataFrame({"date": pd.date_range("2024-01-01", periods=350), "n": week}), 7, **QUICK)
    assert result.prepared.counts.all()
    assert (result.prepared.power == 1).all()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_series_that_begins_after_all_that_is_learned_raises_no_warning():
    frame = pd.DataFrame({"date": hours(120), "y": wave(120), "late": wave(120, 1)})
    frame.loc[:113, "late"] = np.nan
    result = forecast_table(frame, 6, methods=("naive", "drift", "ets", "theta", "linear"), seconds=5)
    assert np.isfinite(result.values).all()
