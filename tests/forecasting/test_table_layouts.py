"""Times and series as tables hold them: clocks, calendars, and rows of several series."""

import numpy as np
import pandas as pd
import pytest

from tests.forecasting.tables import PLAIN, QUICK, csv, forecast, hours, said, wave
from unipercept.errors import InputError
from unipercept.forecasting.command import check_outputs
from unipercept.forecasting.estimator import TableForecaster
from unipercept.forecasting.forecast import forecast_table


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
        (pd.date_range("2018-01-31", periods=68, freq="BME"), "2023-09-29"),
        (pd.DatetimeIndex([t + pd.offsets.BusinessDay(0) for t in pd.date_range("2018-01-01", periods=68, freq="MS") + pd.Timedelta(days=14)]), "2023-09-15"),
        (pd.Timestamp("2019-01-27") + pd.to_timedelta(np.cumsum([0] + [28, 28, 35] * 15), unit="D"), "2022-11-20"),
    ],
)  # fmt: skip
def test_months_whose_day_moves_are_months(tmp_path, times, following):
    result = forecast(tmp_path, csv(times, wave(len(times))), horizon=2)
    assert str(result.prepared.step) in ("1 month", "4 or 5 weeks")
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


def test_times_in_utc_say_so_in_every_written_form(tmp_path):
    frame = pd.DataFrame({"y": wave()}, index=hours().tz_localize("Europe/Berlin"))
    result = forecast_table(frame, 3, **QUICK)
    first = frame.index[-1] + pd.Timedelta(hours=1)
    written = pd.read_csv(result.save(tmp_path / "next.csv"), parse_dates=["time"])
    assert written["time"][0] == first
    assert "UTC" in result.to_text().splitlines()[0]
    model = TableForecaster(3, **QUICK).fit(frame)
    assert model.predict().index[0] == first
    assert forecast(tmp_path, PLAIN).to_dataframe()["time"].dt.tz is None


def test_a_score_pairs_columns_by_name():
    frame = pd.DataFrame({"load": wave(), "heat": 5 * wave(seed=1)}, index=hours())
    model = TableForecaster(24, **QUICK).fit(frame[:-24])
    assert model.score(frame[["heat", "load"]][-24:]) == model.score(frame[-24:])
    assert model.score(frame[["load"]][-24:]) > model.score(frame[-24:])
    with pytest.raises(InputError, match="steps x 2"):
        model.score(frame["load"][-24:])


def test_series_whose_names_collide_with_quantiles_are_written_a_row_each():
    frame = pd.DataFrame({"y": wave(), "y_q0.1": wave(seed=1)}, index=hours())
    assert list(forecast_table(frame, 3, **QUICK).to_dataframe().columns[:3]) == ["time", "series", "forecast"]


def test_outputs_that_would_destroy_something_are_refused_before_the_work(tmp_path):
    table, folder = tmp_path / "table.csv", tmp_path / "next.csv"
    table.write_text(PLAIN, encoding="utf-8")
    folder.mkdir()
    with pytest.raises(InputError, match="is the table itself"):
        check_outputs(table, tmp_path / "." / "table.csv", None, None)
    with pytest.raises(InputError, match="a folder has this name"):
        check_outputs(table, folder, None, None)


def test_names_of_columns_may_be_one_string():
    frame = pd.DataFrame({"load": wave(), "heat": wave(seed=1)}, index=hours())
    assert forecast_table(frame, 3, targets="load", **QUICK).variables == ("load",)
