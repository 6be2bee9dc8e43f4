"""A new level: a series that jumps late in its history, as never before, and stays there.

Methods would take such a jump for growth or noise, and a back-test whose windows hold it cannot tell them apart. So
the rows before it are moved to the new level.

Shapes: T rows, V series.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unipercept.forecasting.repairs import forward_filled

Array = NDArray[np.float64]

MIN_ROWS, MAX_ROWS = 40, 1000  # that are looked at
AROUND = 7  # rows on either side of a jump whose medians are compared
LEAST_AFTER = 5  # rows at the new level
LATE_SHARE = 0.4  # of the rows in which a jump matters; what lies further back, methods have forgotten
AS_NEVER = 1.5  # a jump is so many times the largest change of medians elsewhere …
SUDDEN = 1.2  # … and its one step so many times the largest step elsewhere, and half of the jump


@dataclass(frozen=True)
class Jump:
    """From row `row` on a series is higher by `size` (lower, if negative)."""

    row: int
    size: float


def find_jump(values: Array, period: int) -> Jump | None:
    """The jump of one series of T rows, NaN where missing; None where there is none beyond doubt.

    A rise of positive values must stand out of their logarithms, too: growth makes ever larger steps.
    """
    jump = _stands_out(values, period, AS_NEVER, SUDDEN)
    if jump is not None and jump.size > 0 and np.nanmin(values) > 0:
        return jump if _stands_out(np.log(values), period, 1.0, 1.0) is not None else None
    return jump


def _stands_out(values: Array, period: int, as_never: float, sudden: float) -> Jump | None:
    known = np.flatnonzero(np.isfinite(values))
    first = max(len(values) - MAX_ROWS, int(known[0]) if len(known) else 0)
    if len(known) < MIN_ROWS or len(values) - first < MIN_ROWS:
        return None
    level = _without_season(forward_filled(values[:, None])[first:, 0], period)
    rows = len(level)
    # The medians of the rows from each one on and of those before it; the last rows have fewer after them.
    medians = _moving_median(level[::-1], AROUND)[::-1]
    change = medians[AROUND:] - medians[: rows - AROUND]  # at row AROUND + i
    change = change - np.median(change)
    at = np.arange(AROUND, rows)
    whole = at <= rows - LEAST_AFTER  # with enough rows after it
    late = whole & (at >= rows - max(LATE_SHARE * rows, 3 * LEAST_AFTER))
    if not late.any():
        return None
    near = int(at[np.argmax(np.where(late, np.abs(change), -1))])
    sign = np.sign(change[near - AROUND])
    step = sign * (np.diff(level, prepend=level[0]) - np.median(np.diff(level)))
    row = near - 3 + int(np.argmax(step[near - 3 : near + 4]))
    size = float(change[row - AROUND]) if row >= AROUND else 0.0
    elsewhere = whole & (np.abs(at - row) >= AROUND)
    if rows - row < LEAST_AFTER or elsewhere.sum() < AROUND:
        return None
    other_steps = np.abs(np.delete(step, np.arange(row - 1, min(row + 2, rows))))
    # Neither the end of a short peak nor the beginning of one: the level lasted before, and lasts up to the end.
    lasted = np.median(level[row:]) - np.median(level[max(0, row - max(2 * (rows - row), 3 * AROUND)) : row])
    lasts = np.median(level[-AROUND:]) - medians[row - AROUND]
    if (
        sign * size <= as_never * np.abs(change[elsewhere]).max()
        or step[row] < max(sudden * other_steps.max(), sign * size / 2)
        or min(sign * lasted, sign * lasts) < sign * size / 2
    ):
        return None
    return Jump(first + row, size)


def to_last_level(values: Array, period: int, usable: NDArray[np.bool_]) -> tuple[Array, dict[int, Jump]]:
    """TxV with the rows before a jump moved to the level after it, and the jump of each such series.

    Values that were never negative are multiplied where adding would make them so.

    Args:
        usable: V, series that are looked at.
    """
    moved, jumps = values, dict[int, Jump]()
    for v in np.flatnonzero(usable):
        jump = find_jump(values[:, v], period)
        if jump is None:
            continue
        before, after = values[: jump.row, v], values[jump.row :, v]
        lifted = before + jump.size
        lowest = np.nanmin(values[:, v])
        if lowest >= 0 and np.nanmin(lifted) <= 0:
            usual = float(np.nanmedian(before[-2 * len(after) :]))
            if not usual > 0 or not np.nanmedian(after) > 0:
                continue
            lifted = before * (np.nanmedian(after) / usual)
        if moved is values:
            moved = values.copy()
        moved[: jump.row, v] = lifted
        jumps[int(v)] = jump
    return moved, jumps


def _without_season(values: Array, period: int) -> Array:
    """Less the median of each phase about the median of a cycle, which no single jump moves."""
    if period < 2 or len(values) < 3 * period:
        return values
    about = values - _moving_median(values, 2 * (period // 2) + 1, centred=True)
    cycles = -(-len(values) // period)
    phases = np.full(cycles * period, np.nan)
    phases[: len(values)] = about
    ordered = np.sort(phases.reshape(cycles, period), axis=0)  # NaN comes last
    known = np.where(np.arange(period) < len(values) - (cycles - 1) * period, cycles, cycles - 1)
    low, high = np.take_along_axis(ordered, np.stack([(known - 1) // 2, known // 2]), axis=0)
    season = (low + high) / 2
    return np.asarray(values - (season - season.mean())[np.arange(len(values)) % period])


def _moving_median(values: Array, rows: int, *, centred: bool = False) -> Array:
    """Of the last `rows` rows up to each one, or of those around it; of fewer at the ends."""
    import pandas as pd

    found = pd.Series(values).rolling(rows, center=centred, min_periods=1).median()
    return np.asarray(found, np.float64)
