"""Axes are written in units that people use."""

import numpy as np
import pandas as pd
import pytest
import torch

from unipercept.axis_words import ReadableAxis, frequency_ticks, readable
from unipercept.embedding import Axis, EmbeddingMap
from unipercept.pipelines.timeseries import TimeSeriesPipeline


def folded(start: str, freq: str, count: int, period: int):
    from unipercept.pipelines.timeseries import TimeSeriesConfig

    frame = pd.DataFrame(
        {"date": pd.date_range(start, periods=count, freq=freq), "x": np.sin(np.arange(count) * 2 * np.pi / period)}
    )
    pipeline = TimeSeriesPipeline(TimeSeriesConfig(period=period))
    return pipeline.embed(pipeline.read(frame.set_index("date")))


def test_rows_of_monthly_series_are_years_and_columns_days():
    emap = folded("1990-01-01", "MS", 390, 12)
    cycle, phase = readable(emap, "cycle"), readable(emap, "phase")
    assert (cycle.text(0), cycle.text(-1), cycle.label, cycle.unit) == ("1990", "2022", "cycle", "")
    assert (phase.unit, phase.text(0)) == ("days", "0")
    assert 300 < phase.values[-1] < 340


def test_rows_of_hourly_series_are_days_and_columns_hours():
    emap = folded("2024-01-01", "h", 240, 24)
    cycle, phase = readable(emap, "cycle"), readable(emap, "phase")
    assert (cycle.text(0), cycle.text(-1)) == ("2024-01-01", "2024-01-10")
    assert (phase.label, phase.text(-1)) == ("phase in h", "23")


def test_rows_of_a_later_window_keep_their_dates():
    frame = pd.DataFrame(
        {"x": np.sin(np.arange(9000) * 2 * np.pi / 24)}, index=pd.date_range("2020-01-01", periods=9000, freq="h")
    )
    pipeline = TimeSeriesPipeline()
    windows = [pipeline.embed(piece) for piece in pipeline.split(pipeline.read(frame))]
    assert len(windows) > 1
    last = windows[-1]
    assert readable(last, "cycle").text(0) == str(np.datetime64(last.metadata["start_time"], "M"))


@pytest.mark.parametrize(
    ("start", "freq", "first"), [("1700-01-01", "YS", "1700"), ("2024-01-01T06:00", "min", "2024-01-01 06:00")]
)
def test_dates_are_as_short_as_their_span_allows(start, freq, first):
    frame = pd.DataFrame({"x": np.arange(60.0)}, index=pd.date_range(start, periods=60, freq=freq, unit="s"))
    pipeline = TimeSeriesPipeline()
    assert readable(pipeline.embed(pipeline.read(frame)), "cycle").text(0) == first


def test_numbers_keep_three_digits_of_the_farthest():
    axes = {"frequency": ("H", [48.14, 682.3, 7673.2], "Hz"), "time": ("W", [0.0, 1.28, 5.122], "s")}
    emap = EmbeddingMap(
        torch.zeros(1, 1, 3, 3),
        "audio",
        {n: Axis(d, torch.tensor(v, dtype=torch.float64), u) for n, (d, v, u) in axes.items()},
    )
    frequency, time = readable(emap, "frequency"), readable(emap, "time")
    assert [frequency.text(i) for i in range(3)] == ["48", "682", "7,673"]
    assert [time.text(i) for i in range(3)] == ["0", "1.28", "5.12"]
    assert (frequency.label, time.label) == ("frequency in Hz", "time in s")


@pytest.mark.parametrize(
    ("span", "unit"), [(59, "s"), (299, "s"), (300, "min"), (2 * 3600, "min"), (3 * 3600, "h"), (3 * 86_400, "days")]
)
def test_a_unit_of_time_is_used_from_a_few_of_it_on(span, unit):
    axis = Axis("W", torch.tensor([0.0, span], dtype=torch.float64), "s")
    assert readable(EmbeddingMap(torch.zeros(1, 1, 1, 2), "audio", {"time": axis}), "time").unit == unit


@pytest.mark.parametrize(
    ("values", "places", "texts"),
    [
        (np.arange(512) * 0.01 + 0.0125, [98.75, 198.75, 298.75, 398.75, 498.75], ["1", "2", "3", "4", "5"]),
        (np.linspace(90, -90, 37), [28, 18, 8], ["-50", "0", "50"]),  # from north to south
        (np.tile(np.arange(3.0), 2), [0, 1, 2], ["0", "1", "2"]),  # uneven: a cycle shown twice, said once
        (np.array([7.0]), [0], ["7"]),
    ],
)
def test_ticks_are_round_numbers_where_the_axis_is_even(values, places, texts):
    found, words = ReadableAxis(values, "s", "time in s").ticks()
    assert words == texts
    assert found == pytest.approx(places)


def test_round_frequencies_are_marked_and_the_ends_where_none_lies_between():
    places, words = frequency_ticks(np.array([50.0, 150.0, 250.0, 350.0, 450.0, 550.0]))
    assert words == ["100", "200", "500"]
    assert places == pytest.approx([0.5, 1.5, 4.5])
    assert frequency_ticks(np.array([510.0, 700.0, 990.0]))[1] == ["510", "990"]
    assert frequency_ticks(np.linspace(50, 8000, 64))[1] == ["100", "1,000", "2,000", "5,000"]  # 200 Hz is one bin away


@pytest.mark.parametrize(("freq", "first"), [("D", "2024-01-01"), ("4D", "2024-01"), ("30D", "2024")])
def test_dates_of_longer_spans_are_shorter(freq, first):
    frame = pd.DataFrame({"x": np.arange(60.0)}, index=pd.date_range("2024-01-01", periods=60, freq=freq, unit="s"))
    pipeline = TimeSeriesPipeline()
    assert readable(pipeline.embed(pipeline.read(frame)), "cycle").text(0) == first
