"""The cycle of a table of series: candidates from its calendar and spectrum, compared by how
alike values one cycle apart are.

Shapes: T rows, V series.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from unipercept.forecasting.repairs import forward_filled
from unipercept.forecasting.scores import mean_of_known
from unipercept.pipelines.folding import dominant_period
from unipercept.pipelines.series_clock import DAY, SECOND, Step

CALENDAR_DOUBT = 0.8  # another cycle is taken when values that far apart are so much more alike than the calendar's
MANY_PHASES = (
    200  # a calendar cycle of more steps must be seen three times rather than twice: two say little of each phase
)
YEAR = 365.25 * 86_400  # s


def calendar_periods(step: Step) -> tuple[int, ...]:
    """Cycles that a calendar gives a step, in steps, shortest first."""
    if step.kind == "count":
        return ()
    if step.kind == "working day":
        return (5, 261)
    if step.kind == "weeks":
        return (len(step.weeks),)
    if step.kind != "even":
        return (12 // step.size,) if 12 % step.size == 0 and step.size < 12 else ()
    cycles = (60 * SECOND, 3600 * SECOND, DAY, 7 * DAY)
    found = [cycle // step.size for cycle in cycles if cycle % step.size == 0 and cycle > step.size]
    if step.size >= DAY:
        found.append(round(365.25 * DAY / step.size))
    return tuple(p for p in found if p >= 2)


def unseen_cycle(step: Step, rows: int) -> int | None:
    """The calendar's main cycle (a day, of days a week, else a year) where so few rows do not show it often enough to
    tell whether it is there; else None.
    """
    if step.kind == "even" and step.size < DAY:
        cycle = DAY // step.size if DAY % step.size == 0 else None
    else:
        cycle = min(calendar_periods(step), default=None)
    return None if cycle is None or _is_seen(cycle, _head_rows(rows)) else cycle


def all_periods(step: Step, periods: tuple[int, ...]) -> tuple[float, ...]:
    """The cycles that the calendar gives, the year in its true length, and those that were found; shortest first."""
    year = YEAR / step.seconds
    exact = [] if step.kind == "count" else [float(p) for p in calendar_periods(step) if p < 0.9 * year]
    if step.kind != "count" and year >= 2:
        exact.append(year)
    found = [float(p) for p in periods if p > 1 and not any(abs(p - e) <= 0.1 * e for e in exact)]
    return tuple(sorted((*exact, *found)))


def find_periods(
    values: NDArray[np.float64], step: Step, wanted: int | None, notices: list[str]
) -> tuple[int, tuple[int, ...]]:
    """The cycle after which the first 80 % of the series are most like themselves, and the others that were near."""
    head = _detrended(values[: _head_rows(len(values))][-20_000:, :: max(1, values.shape[1] // 64)])
    if wanted is not None:
        notices.append(f"the cycle is {wanted} steps, as asked")
        return wanted, (wanted,)
    if not head.size:
        return 1, (1,)
    candidates = [p for p in calendar_periods(step) if _is_seen(p, len(head))]
    free = dominant_period(
        torch.from_numpy(forward_filled(head, start="mean").T.copy()), max_period=max(2, len(head) // 4)
    )
    usual = candidates[:]
    # The spectrum resolves long cycles only to the next whole frequency.
    near = range(max(2, round(0.9 * free)), round(1.1 * free) + 1)
    if free > 1 and near.stop < len(head) and len(near) < 200:
        free = min(near, key=lambda p: _lag_error(head, p))
    if free > 1 and 3 * free <= len(head) and not any(abs(free - p) <= 0.1 * p for p in candidates):
        candidates.append(free)
    if not candidates:
        return 1, (1,)
    likeness = {p: _lag_error(head, p) for p in candidates}
    # A cycle must do better than lags that miss it by a third: a random walk is always most like itself at short lags.
    real = [
        p
        for p in candidates
        if likeness[p]
        < 0.9 * min(_lag_error(head, max(1, round(p * f))) for f in (0.67, 1.33) if round(p * f) < len(head))
    ]
    if not real:
        notices.append(
            "no cycle was found" + (f"; seasonal naive takes the calendar's {usual[0]} steps" if usual else "")
        )
        return (usual[0], (usual[0],)) if usual else (1, (1,))
    best = min(real, key=lambda p: likeness[p])
    shortest = min(p for p in real if likeness[p] <= 1.05 * likeness[best])
    if usual and shortest not in usual:  # what the calendar says is seldom wrong, what a spectrum says often
        calendar = min(usual, key=lambda p: (p not in real, likeness[p]))
        if likeness[shortest] > CALENDAR_DOUBT * likeness[calendar]:
            shortest = calendar
    others = tuple(p for p in real if p != shortest)
    notices.append(f"cycle: {shortest} steps" + (f" (also {', '.join(map(str, others))})" if others else ""))
    return shortest, (shortest, *others)


def _head_rows(rows: int) -> int:
    return max(4, int(0.8 * rows))


def _is_seen(cycle: int, rows: int) -> bool:
    return (2 if cycle <= MANY_PHASES else 3) * cycle <= rows


def _detrended(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns without their straight lines, in units of their deviation; those that never change are left out."""
    steps = np.linspace(-1, 1, len(values))[:, None]
    known = np.isfinite(values)
    count = known.sum(axis=0).clip(min=1)
    x = np.where(known, steps, 0)
    x = np.where(known, steps - x.sum(axis=0) / count, 0)
    largest = np.nanmax(np.where(known, np.abs(values), 0), axis=0)
    y = np.where(known, values, 0) / np.where(largest > 0, largest, 1)
    y = np.where(known, y - y.sum(axis=0) / count, 0)
    slope = (x * y).sum(axis=0) / np.square(x).sum(axis=0).clip(min=1e-12)
    rest = y - slope * x
    deviation = np.sqrt(np.square(rest).sum(axis=0) / count)
    alive = deviation > 1e-9
    return np.asarray(np.where(known, rest, np.nan)[:, alive] / deviation[alive])


def _lag_error(values: NDArray[np.float64], lag: int) -> float:
    """Mean distance of values a lag apart, each series in units of its own spread."""
    distance = np.abs(values[lag:] - values[:-lag])
    with np.errstate(all="ignore"):
        spread = np.nanstd(values, axis=0)
        each = mean_of_known(distance, 0) / np.where(spread > 0, spread, np.nan)
    finite = each[np.isfinite(each)]
    return float(finite.mean()) if len(finite) else np.inf
