"""Anomalies: values far outside the interval that was forecast for them from the rows before.

Shapes: T rows, V series, H steps of a block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.devices import on_cpu
from unipercept.errors import InputError
from unipercept.forecasting.baselines import Naive, SeasonalNaive
from unipercept.forecasting.linear import Linear
from unipercept.forecasting.prepare import prepare
from unipercept.forecasting.residuals import ErrorQuantiles, Liveliness, recent_window
from unipercept.forecasting.settings import QUANTILES
from unipercept.results import Anomalies

Array = NDArray[np.floating[Any]]

MAX_BLOCK = 24  # steps that are forecast together
MAX_CELLS = 6_000_000  # rows x series that are looked at
MIN_ROWS = 12  # of shorter ones one to three errors are the whole interval: 19 of 20 noise series of 4 to 8 rows had an odd value
THRESHOLD = 2.0  # times as far from the forecast as the end of its 95 % interval
MIN_REACH = 1e-2  # of the deviation of the series: a forecast without any error would make everything odd
ROUNDING = 1e-6  # of the deviation: values of this distance are the same
LOW, HIGH, MIDDLE = (QUANTILES.index(q) for q in (0.1, 0.9, 0.5))
# Of a normal distribution: the tails themselves are what is looked for, so they must not set the interval.
FROM_80_TO_95 = 1.96 / 1.2816


@on_cpu
def find_anomalies(source: Any, *, threshold: float = THRESHOLD, **options: Any) -> Anomalies:
    """Values of a table that lie far from their forecast, the farthest first.

    Each block of a cycle (24 steps at most) is forecast from the rows before it. A value counts when it lies
    `threshold` times as far from the forecast as the end of the 95 % interval; it is then replaced by the forecast, so
    that it does not spoil the next ones. Neighbours of one series within a block are one anomaly, reported at its worst
    step. Methods are fitted to the whole table: this finds anomalies in retrospect and is no early warning.

    Args:
        source: as for `forecast_table`.
        options: `targets`, `time`, `series`, `period`, as there.

    Raises:
        InputError: the table cannot be used.
    """
    if threshold <= 0:
        raise InputError(f"the threshold must be above 0, got {threshold}")
    prepared = prepare(source, levelled=False, **options)  # a jump is an anomaly
    first = max(0, len(prepared) - MAX_CELLS // len(prepared.variables))
    values, truth = prepared.values[first:], prepared.truth[first:]
    block = int(min(MAX_BLOCK, max(1, prepared.period if prepared.period > 1 else 4), max(1, len(values) // 8)))
    start = min(
        len(values) - 1,
        max(2 * prepared.period if 3 * prepared.period < len(values) else prepared.period, 8, len(values) // 20),
    )
    method = _method(values, prepared.period, block)
    # A regression that sees only half of its window is of little use.
    start = max(start, min(getattr(method, "lookback", 0), len(values) // 4))
    least = np.maximum(MIN_REACH, _resolution(truth) / threshold)
    *_, cleaned = _expected(method, values, truth, prepared.period, block, start, threshold, least)
    # Once more from what is left when the odd values are out: they had widened the intervals and bent the regression.
    method = _method(cleaned, prepared.period, block)
    expected, low, high, _ = _expected(method, cleaned, truth, prepared.period, block, start, threshold, least)
    with np.errstate(all="ignore"):
        distance = truth - expected
        reach = np.where(distance >= 0, high - expected, expected - low)
        size = np.abs(distance) / np.maximum(reach, least)
    notices = list(prepared.notices)
    if len(values) < MIN_ROWS:
        size[:], start = 0, len(values)
        notices.append(f"{len(values)} rows are too few to say what stands out; it takes {MIN_ROWS}")
    size[:, prepared.constant] = 0
    size[~np.isfinite(size)] = 0
    rows, columns = _worst_of_runs(size, threshold, block)
    order = np.argsort(-size[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    restored = [prepared.restored(part)[rows, columns] for part in (truth, expected, low, high)]
    return Anomalies(
        time=prepared.time[first:][rows],
        variable=tuple(prepared.variables[c] for c in columns),
        value=restored[0],
        expected=restored[1],
        low=restored[2],
        high=restored[3],
        size=size[rows, columns],
        source=prepared.source,
        model=f"{method.name} forecast",
        series_time=prepared.time[first:],
        series=prepared.restored(truth),
        variables=prepared.variables,
        metadata={
            "threshold": threshold,
            "block": block,
            "rows": len(truth),
            "first_row_scored": start,
            "step": str(prepared.step),
            "notices": notices,
            **({"time_zone": "UTC"} if prepared.in_utc else {}),
        },
    )


def _method(values: Array, period: int, block: int) -> Any:
    method = Linear(period)
    try:
        method.fit(values, block, 30.0)
    except InputError:
        return SeasonalNaive(period) if 1 < period < len(values) // 2 else Naive()
    return method


def _expected(
    method: Any, values: Array, truth: Array, period: int, block: int, start: int, threshold: float, least: Array
) -> tuple[Array, Array, Array, Array]:
    """TxV medians and ends of 95 % intervals, NaN before the first block; and the values with odd ones replaced."""
    origins = list(range(start, len(values), block))
    lively = Liveliness.of(values, max(1, period), recent_window(period, block))
    scale = lively.at(values, origins, block)
    padded = np.concatenate([values, np.full((block, values.shape[1]), np.nan)])
    rows = np.asarray(origins)[:, None] + np.arange(block)
    points = method.predict(values, origins, block)
    spread = ErrorQuantiles(padded[rows] - points, scale)
    shape = (len(origins) * block, truth.shape[1])
    expected, low, high = (np.full((start + shape[0], shape[1]), np.nan) for _ in range(3))
    cleaned = values.copy()
    for i, origin in enumerate(origins):  # one by one: what does not fit must not be what the next block starts from
        quantiles = spread.around(method.predict(cleaned[:origin], [origin], block), scale[i : i + 1])[0]
        part = slice(origin, origin + block)
        middle = quantiles[..., MIDDLE]
        expected[part] = middle
        low[part], high[part] = (middle + FROM_80_TO_95 * (quantiles[..., end] - middle) for end in (LOW, HIGH))
        seen = cleaned[part]
        middle = middle[: len(seen)]
        reach = np.where(
            seen >= middle, high[origin : origin + len(seen)] - middle, middle - low[origin : origin + len(seen)]
        )
        odd = np.abs(seen - middle) > threshold * np.maximum(reach, least)
        odd &= odd.mean(axis=0) < 0.5  # a block that is odd throughout is a new level, which the next one starts from
        seen[odd] = middle[odd]
    n = len(values)
    return expected[:n], low[:n], high[:n], cleaned


def _resolution(truth: Array) -> NDArray[np.float64]:
    """V; the least difference between two values, if rows usually change by as much: an error up to it is none that
    the series could show. 0 for a series that mostly stands still, where a single change is what stands out.
    """
    found = np.zeros(truth.shape[1])
    for number, series in enumerate(truth.T):
        known = series[np.isfinite(series)]
        gaps = np.diff(np.unique(known))
        gaps = gaps[gaps > ROUNDING]
        if len(gaps):
            found[number] = min(gaps.min(), np.median(np.abs(np.diff(known)))) + ROUNDING
    return found


def _worst_of_runs(size: Array, threshold: float, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The worst row of each run of odd values of a series; runs less than a block apart are one."""
    rows, columns = np.nonzero(threshold < size.T)[::-1]
    if not len(rows):
        return rows, columns
    fresh = np.concatenate([[True], (np.diff(columns) != 0) | (np.diff(rows) >= block)])
    run = np.cumsum(fresh) - 1
    order = np.lexsort((-size[rows, columns], run))
    firsts = order[np.concatenate([[True], np.diff(run[order]) != 0])]
    return rows[firsts], columns[firsts]
