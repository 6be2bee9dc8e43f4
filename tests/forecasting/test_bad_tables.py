"""Tables as people send them: each is forecast with a notice that names what was done, or refused in one clear line."""

import numpy as np
import pandas as pd
import pytest

import unipercept
from unipercept.errors import InputError
from unipercept.forecasting.forecast import forecast_table

LENGTH = 300


def wave(length: int = LENGTH, seed: int = 0) -> np.ndarray:
    """A daily wave with a little noise."""
    rng = np.random.default_rng(seed)
    return (10 + 3 * np.sin(np.arange(length) * 2 * np.pi / 24) + 0.3 * rng.normal(size=length)).round(3)


def hours(length: int = LENGTH, start: str = "2024-01-01") -> pd.DatetimeIndex:
    return pd.date_range(start, periods=length, freq="h")


def csv(times, values, header: str = "date,y", separator: str = ",") -> str:
    return header + "\n" + "".join(f"{t}{separator}{v}\n" for t, v in zip(times, values, strict=True))


QUICK = {"methods": ("naive", "seasonal"), "seconds": 5}
PLAIN = csv(hours(), wave())


def forecast(tmp_path, text, horizon=24, encoding="utf-8", **options):
    path = tmp_path / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return forecast_table(path, horizon, **(QUICK | options))


def said(result, words):
    return any(words in line for line in result.notices)


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


def months(values) -> pd.DataFrame:
    return pd.DataFrame({"date": pd.date_range("2015-01-01", periods=len(values), freq="MS"), "y": values})


def yearly_wave(length: int) -> np.ndarray:
    return 100 + 20 * np.sin(np.arange(length) * np.pi / 6) + np.random.default_rng(0).normal(size=length)


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


def test_local_clock_changes_are_named(tmp_path):
    local = pd.date_range("2023-10-01", periods=24 * 200, freq="h", tz="Europe/Berlin").tz_localize(None)
    result = forecast(tmp_path, csv(local, wave(len(local))))
    assert said(result, "daylight saving")
    assert str(result.prepared.step) == "1 hour"


def test_times_with_zones_are_kept_in_utc_and_local_days_are_days(tmp_path):
    zoned = pd.date_range("2024-03-01", periods=900, freq="h", tz="Europe/Berlin")
    hourly = forecast(tmp_path, csv([t.isoformat() for t in zoned], wave(900)))
    assert said(hourly, "kept in UTC")
    assert not said(hourly, "missing")
    days = pd.date_range("2023-10-01", periods=200, freq="D", tz="Europe/Berlin")
    daily = forecast(tmp_path, csv([t.isoformat() for t in days], wave(200)))
    assert said(daily, "local midnight")
    assert daily.time[0] == np.datetime64("2024-04-18")


def test_steps_that_change_leave_the_even_end(tmp_path):
    times = pd.date_range("2020-01-01", periods=50, freq="D").append(pd.date_range("2020-02-20", periods=80, freq="MS"))
    result = forecast(tmp_path, csv(times, wave(130)), horizon=6)
    assert said(result, "the step changes")
    assert str(result.prepared.step) == "1 month"
    assert result.time[0] == np.datetime64("2026-11-01")


@pytest.mark.parametrize(
    ("times", "step", "following"),
    [
        (pd.date_range("2015-01-31", periods=96, freq="ME"), "1 month", "2023-01-31"),
        (pd.date_range("2015-01-15", periods=40, freq="D"), "1 day", "2015-02-24"),
        (pd.bdate_range("2020-01-01", periods=200).delete([33, 34]), "1 working day", "2020-10-07"),
        (pd.date_range("1960-01-01", periods=60, freq="YS").strftime("%Y"), "1 year", "2020-01-01"),
        ([f"{2000 + i // 4}Q{i % 4 + 1}" for i in range(80)], "3 months", "2020-01-01"),
        (pd.date_range("2024-01-01", periods=60, freq="D").strftime("%Y%m%d"), "1 day", "2024-03-01"),
    ],
)
def test_calendars_go_on_as_they_should(tmp_path, times, step, following):
    result = forecast(tmp_path, csv(times, wave(len(times))), horizon=2)
    assert str(result.prepared.step) == step
    assert str(result.time[0])[:10] == following


def test_long_format_of_unequal_length(tmp_path):
    rows = "".join(
        f"{t},s{k},{v * (k + 1)}\n" for k in range(3) for t, v in list(zip(hours(), wave(), strict=True))[60 * k :]
    )
    result = forecast(tmp_path, "ds,unique_id,y\n" + rows)
    assert result.variables == ("s0", "s1", "s2")
    assert said(result, "long format: column 'unique_id' names 3 series")
    assert said(result, "unequal length: from 180 to 300 steps")
    assert list(result.to_dataframe().columns[:3]) == ["time", "series", "forecast"]


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


WEEKS = pd.date_range("2021-01-04", periods=140, freq="W-MON")
ISO = WEEKS.isocalendar()


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("year,week,y", [f"{y},{w}" for y, w in zip(ISO["year"], ISO["week"], strict=True)]),
        ("Jahr,KW,y", [f"{y},KW{w:02d}" for y, w in zip(ISO["year"], ISO["week"], strict=True)]),
        ("week,y", [f"{y}{w:02d}" for y, w in zip(ISO["year"], ISO["week"], strict=True)]),
        ("year_week,y", [f"{y}-{w:02d}" for y, w in zip(ISO["year"], ISO["week"], strict=True)]),
    ],
)
def test_years_and_weeks_are_weeks(tmp_path, header, cells):
    result = forecast(tmp_path, csv(cells, wave(140), header), horizon=4)
    assert str(result.prepared.step) == "1 week"
    assert result.time[0] == np.datetime64("2023-09-11")
    assert result.variables == ("y",)


@pytest.mark.parametrize(
    ("header", "cells", "step"),
    [
        ("Year,Month,y", [f"{2015 + i // 12},{pd.Timestamp(2000, i % 12 + 1, 1):%B}" for i in range(80)], "1 month"),
        ("year,quarter,y", [f"{2000 + i // 4},{i % 4 + 1}" for i in range(80)], "3 months"),
        ("Year,Qtr,y", [f"{2000 + i // 4},Q{i % 4 + 1}" for i in range(80)], "3 months"),
    ],
)
def test_a_year_and_its_part_in_two_columns_are_one_time(tmp_path, header, cells, step):
    result = forecast(tmp_path, csv(cells, wave(80), header), horizon=2)
    assert str(result.prepared.step) == step
    assert result.variables == ("y",)
    assert len(result.prepared) == 80


@pytest.mark.parametrize("parts", [tuple("JFMAMJJASOND"), ("Q1", "Q2", "Q3", "Q4")])
def test_months_or_quarters_across_a_year_s_row_go_down(tmp_path, parts):
    count = len(parts)
    names = [f"{pd.Timestamp(2000, i + 1, 1):%b}" for i in range(12)] if count == 12 else list(parts)
    cells = wave(8 * count)
    lines = [",".join(["Year", *names, "Total"])]
    for k in range(8):
        row = [f"{v}" for v in cells[k * count : (k + 1) * count]]
        lines.append(",".join([str(2010 + k), *(row if k < 7 else [row[0], *[""] * (count - 1)]), "1"]))
    result = forecast(tmp_path, "\n".join(lines) + "\n", horizon=2)
    assert len(result.prepared) == 7 * count + 1  # what is still to come is no missing value
    assert np.allclose(result.prepared.restored(result.prepared.truth)[:, 0], cells[: 7 * count + 1])
    assert said(result, "stand across the header")


def shops(starts: tuple[int, int], ends: tuple[int, int], header: str = "date,store,sales") -> str:
    days = pd.date_range("2021-01-01", periods=400, freq="D")
    rows = [
        f"{days[i]:%Y-%m-%d},{name},{scale * v}"
        for name, scale, start, end in zip(("north", "south"), (1, 7), starts, ends, strict=True)
        for i, v in enumerate(wave(400))
        if start <= i < end
    ]
    return header + "\n" + "\n".join(rows) + "\n"


def test_a_series_that_begins_late_is_not_averaged_with_the_others(tmp_path):
    result = forecast(tmp_path, shops((0, 300), (400, 400)), horizon=7)
    assert result.variables == ("north", "south")
    assert not said(result, "averaged")
    assert 4 < np.median(result.values[:, 1] / result.values[:, 0]) < 10


def test_a_series_that_goes_on_where_another_has_ended_is_not_known_in_advance(tmp_path):
    result = forecast(tmp_path, shops((0, 200), (200, 400)), horizon=7)
    assert result.variables == ("south",)
    assert said(result, "ended before the table did and are not forecast: north")
    assert result.time[0] == np.datetime64("2022-02-05")
    wide = pd.DataFrame({"date": pd.date_range("2021-01-01", periods=300), "north": wave(), "south": wave(seed=1)})
    wide.loc[200:, "north"] = np.nan
    assert forecast_table(wide, 7, **QUICK).variables == ("south",)


def test_a_word_beside_rows_that_repeat_names_no_series(tmp_path):
    rng = np.random.default_rng(0)
    days = pd.date_range("2023-01-01", periods=200, freq="D")
    rows = [f"{t:%Y-%m-%d},{rng.choice(['sun', 'rain'])},{v}" for t, v in zip(days, wave(200), strict=True)]
    result = forecast(tmp_path, "date,weather,y\n" + "\n".join(rows + rows[10:20]) + "\n", horizon=7)
    assert result.variables == ("y",)
    assert said(result, "10 rows repeat a time; they were averaged")


def test_what_is_on_and_off_is_no_two_series(tmp_path):
    days = pd.date_range("2023-01-01", periods=200, freq="D")
    rows = [
        f"{t:%Y-%m-%d},{'on' if i % 50 < 30 else 'off'},{v}"
        for i, (t, v) in enumerate(zip(days, wave(200), strict=True))
    ]
    assert forecast(tmp_path, "date,device,y\n" + "\n".join(rows) + "\n", horizon=7).variables == ("y",)


def test_two_columns_together_name_a_series(tmp_path):
    weeks = pd.date_range("2020-02-07", periods=60, freq="W-FRI")
    rows = [
        f"{s},{d},{t:%Y-%m-%d},{s * 10 + d + v}"
        for s in (1, 2)
        for d in (1, 2)
        for t, v in zip(weeks, wave(60), strict=True)
    ]
    result = forecast(tmp_path, "Store,Dept,Date,Weekly_Sales\n" + "\n".join(rows) + "\n", horizon=4)
    assert result.variables == ("1/1", "1/2", "2/1", "2/2")
    assert said(result, "columns 'Store' and 'Dept' name 4 series")


def test_row_numbers_and_the_calendar_are_no_series(tmp_path):
    frame = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=200), "y": wave(200)})
    frame["id"], frame["weekday"] = np.arange(1, 201), frame["date"].dt.day_of_week + 1
    frame["month"], frame["week_sales"] = frame["date"].dt.month, wave(200, 1)
    path = tmp_path / "table.csv"
    frame.to_csv(path)
    result = forecast_table(path, 7, **QUICK)
    assert result.variables == ("y", "week_sales")
    assert said(result, "numbers the rows: Unnamed: 0, id")
    assert said(result, "repeat the calendar: weekday, month")
    assert forecast_table(path, 7, targets=("y", "id"), **QUICK).variables == ("y", "id")
    assert forecast_table(frame[["date", "id"]], 7, **QUICK).variables == ("id",)  # there is nothing else


def test_a_logger_s_clock_that_wavers_keeps_its_step(tmp_path):
    rng = np.random.default_rng(0)
    times = pd.date_range("2024-01-01 00:02", periods=600, freq="5min") + pd.to_timedelta(
        rng.uniform(-9, 9, 600), unit="s"
    )
    result = forecast(tmp_path, csv(times, wave(600)), horizon=12)
    assert str(result.prepared.step) == "5 minutes"
    assert len(result.prepared) == 600
    assert not np.isnan(result.prepared.values).any()
    assert result.time[0] == np.datetime64("2024-01-03T02:02")
    assert said(result, "times waver")


def test_rows_at_irregular_times_are_averaged_over_a_round_step(tmp_path):
    rng = np.random.default_rng(0)
    seconds = np.cumsum(rng.exponential(60, 1500))
    times = pd.Timestamp("2024-01-01") + pd.to_timedelta(seconds, unit="s")
    result = forecast(tmp_path, csv(times, 20 + np.sin(seconds / 3000)), horizon=12)
    assert str(result.prepared.step) == "2 minutes"
    assert np.isnan(result.prepared.values).mean() < 0.15
    assert said(result, "averaged over steps of 2 minutes")


def test_three_rows_a_second_in_milliseconds_miss_none(tmp_path):
    times = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.round(np.arange(4000) / 3 * 1000), unit="ms")
    result = forecast(tmp_path, csv(times, wave(4000)), horizon=12, methods=("naive",))
    assert len(result.prepared) == 4000
    assert not np.isnan(result.prepared.values).any()


@pytest.mark.parametrize(
    ("times", "following"),
    [
        (pd.date_range("2018-01-31", periods=68, freq="BME"), "2023-09-30"),
        (pd.DatetimeIndex([t + pd.offsets.BusinessDay(0) for t in pd.date_range("2018-01-01", periods=68, freq="MS") + pd.Timedelta(days=14)]), "2023-09-15"),
        (pd.Timestamp("2019-01-27") + pd.to_timedelta(np.cumsum([0] + [28, 28, 35] * 15), unit="D"), "2022-11-23"),
    ],
)  # fmt: skip
def test_months_whose_day_moves_are_months(tmp_path, times, following):
    result = forecast(tmp_path, csv(times, wave(len(times))), horizon=2)
    assert str(result.prepared.step) == "1 month"
    assert len(result.prepared) == len(times)
    assert str(result.time[0])[:10] == following


def test_rows_prepared_for_the_forecast_are_no_time_that_has_passed(tmp_path):
    frame = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=214), "y": wave(214), "price": wave(214, 1)})
    frame.loc[200:, ["y", "price"]] = np.nan
    result = forecast_table(frame, 14, **QUICK)
    assert result.time[0] == frame["date"][200]
    assert said(result, "14 rows without any value at the end left out")
    frame.loc[200:206, "price"] = 10.0
    assert said(forecast_table(frame, 14, **QUICK), "price go on for 7 steps where the others end, too few")


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
