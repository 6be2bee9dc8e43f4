"""A series that jumps to a new level, and what looks alike."""

import numpy as np
import pandas as pd
import pytest

from unipercept.forecasting.anomalies import find_anomalies
from unipercept.forecasting.forecast import forecast_table
from unipercept.forecasting.levels import Jump, find_jump, to_last_level
from unipercept.forecasting.prepare import prepare

ROWS, ROW = 200, 170


def week(seed=0, rows=ROWS):
    rng = np.random.default_rng(seed)
    return 100 + 10 * np.sin(2 * np.pi * np.arange(rows) / 7) + rng.normal(size=rows) * 4


def jumped(size, seed=0):
    return week(seed) + np.where(np.arange(ROWS) >= ROW, size, 0.0)


def table(values):
    return pd.DataFrame({"date": pd.date_range("2024-01-01", periods=len(values)), "y": values})


@pytest.mark.parametrize("size", [40.0, -40.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_jump_is_found_where_it_is(size, seed):
    found = find_jump(jumped(size, seed), 7)
    assert found is not None
    assert found.row == ROW
    assert found.size == pytest.approx(size, abs=8)
    holed = jumped(size, seed)
    holed[[0, 1, 60, 100, 180]] = np.nan
    assert find_jump(holed, 7).row == ROW
    # A gap where the rows that are looked at begin.
    long = np.concatenate([week(seed, 7 * 150), holed])
    long[-1010:-980] = np.nan
    assert find_jump(long, 7).row == len(long) - ROWS + ROW


def test_what_is_no_new_level():
    rng = np.random.default_rng(0)
    t = np.arange(ROWS)
    outage, peak = week(), week()
    outage[170:182] -= 60
    peak[150:175] += np.linspace(0, 90, 25)
    repeated = week() + 40 * (t // 50 % 2)
    for name, values in {
        "none": week(),
        "came back": outage,
        "end of a peak": peak,
        "did so before": repeated,
        "growth": week() + t,
        "growth that ends": 100 * np.exp(0.05 * np.minimum(t, 192)) * (1 + 0.02 * rng.normal(size=ROWS)),
        "turn": week() + np.where(t > 170, 3.0 * (t - 170), 0),
        "only zeros and a few": np.where(rng.random(ROWS) < 0.1, 5.0, 0.0),
        "too new": np.where(t >= 197, 60, 0) + week(),
        "constant": np.ones(ROWS),
        "missing": np.full(ROWS, np.nan),
        "few rows": jumped(40)[-35:],
    }.items():
        assert find_jump(values, 7) is None, name
    walks = [find_jump(np.random.default_rng(s).normal(size=ROWS).cumsum(), 1) for s in range(40)]
    assert sum(walk is not None for walk in walks) <= 1


def test_rows_before_it_are_moved_and_stay_above_zero():
    values = np.stack([jumped(40), jumped(-80), week(), jumped(40)], axis=1)
    moved, jumps = to_last_level(values, 7, np.array([True, True, True, False]))
    assert {v: jump.row for v, jump in jumps.items()} == {0: ROW, 1: ROW}
    assert np.allclose(moved[:ROW, 0] - values[:ROW, 0], jumps[0].size)
    assert (moved[:, 1] > 0).all()
    assert np.median(moved[:ROW, 1]) == pytest.approx(np.median(values[ROW:, 1]), rel=0.2)
    assert (moved[ROW:] == values[ROW:]).all()
    assert (moved[:, 2:] == values[:, 2:]).all()
    assert isinstance(jumps[0], Jump)


def test_a_forecast_after_a_jump_keeps_to_the_new_level():
    values = week(0, ROWS + 14)
    values[ROW:] += 80
    frame = table(values[:ROWS])
    result = forecast_table(frame, 14, methods=("seasonal", "theta", "linear"), seconds=10)
    assert any(line.startswith("moved to a new level, and stayed there: y by 8") for line in result.notices)
    assert any("2024-06-19;" in line for line in result.notices)
    assert np.abs(result.values[:, 0] - values[ROWS:]).mean() < 6
    assert np.mean(result.quantile(0.9) - result.quantile(0.1)) < 25  # 70 and more with the jump in the back-test
    assert (result.history[:, 0] == values[ROWS - len(result.history) : ROWS]).all()  # shown as measured
    assert all(np.isfinite(part.truth).all() for part in result.tested)
    for part in result.tested:
        rows = frame.set_index("date").loc[part.time, "y"]
        assert np.allclose(part.truth[:, 0], rows)


def test_columns_known_in_advance_and_counts_keep_their_levels():
    frame = table(jumped(80))
    frame["flag"] = (np.arange(ROWS) >= ROW).astype(float)
    later = pd.DataFrame({"date": pd.date_range(frame["date"].iloc[-1], periods=15)[1:], "flag": 1.0})
    assert prepare(pd.concat([frame, later]), horizon=14, known=("flag",)).level_rows.tolist() == [0]
    assert prepare(table(np.where(np.arange(ROWS) >= ROW, 9, np.arange(ROWS) % 2)), horizon=14).level_rows.tolist() == [
        0
    ]
    assert prepare(frame[["date", "y"]], horizon=14).level_rows.tolist() == [ROW]


def test_a_jump_is_still_an_anomaly():
    odd = find_anomalies(table(jumped(80)))
    assert any(abs(pd.DatetimeIndex(odd.time) - pd.Timestamp("2024-06-19")) <= pd.Timedelta(days=7))
    assert (odd.series[:, 0] == jumped(80)).all()
