"""Puts rows at arbitrary times on a regular grid: sorted, averaged where a time repeats, empty where one is missing.

Shapes: L rows, V variables.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError, counted
from unipercept.pipelines.series_clock import DAY, SECOND, Step, clock_changes, find_step

ROUND_STEPS = tuple(
    unit * count
    for unit, counts in (
        (SECOND // 1000, (1, 2, 5, 10, 20, 25, 40, 50, 100, 200, 250, 500)),
        (SECOND, (1, 2, 5, 10, 15, 20, 30)),
        (60 * SECOND, (1, 2, 5, 10, 15, 20, 30)),
        (3600 * SECOND, (1, 2, 3, 4, 6, 8, 12)),
        (DAY, (1, 7)),
    )
    for count in counts
)

LOCAL_DAYS = "days begin at a local midnight that moves with daylight saving; they are taken as even"
MAX_MISSING_SHARE = 0.5  # more missing steps than this: the table is no series at the step that was found
MAX_COLLISIONS = 0.05  # of the rows may share a step with another
MANY_REPEATED = 0.2  # of the rows: hardly slips
MIN_TELLING = 10  # rows with a value, to tell the step without the empty ones
MAX_OFF = 0.1  # of the rows off the grid may stay so when the empty ones have gone
EVEN_SHARE = 0.5  # of the gaps are exactly the step of a table whose times need no mending
NEAR = 0.03  # of a round step, within which it is what the clock was set to
# A clock that misses steps has few kinds of gaps: the five commonest hold half of all gaps.
MOST_GAPS, GAPS_SHARE = 5, 0.5
FILLED = 0.85  # of the steps that irregular rows are averaged over hold one
MIN_TAIL = 50  # rows at a step of their own at the end of a table of mixed steps, which are worth more than a refusal


def on_even_grid(
    stamps: NDArray[Any], values: NDArray[np.float64], source: str, notes: list[str]
) -> tuple[NDArray[Any], Step, NDArray[np.float64]]:
    known = ~np.isnat(stamps)
    if not known.all():
        notes.append(
            f"{counted(int((~known).sum()), 'row without a readable time was', 'rows without a readable time were')} left out"
        )
        stamps, values = stamps[known], values[known]
    if (np.diff(stamps) < np.timedelta64(0, "ns")).any():
        order = np.argsort(stamps, kind="stable")
        stamps, values = stamps[order], values[order]
        notes.append("rows were not in order of time; they were sorted")
    stamps, values, repeated = _average_repeated(stamps, values, notes)
    if len(stamps) < 2:
        raise InputError(f"{source} has {len(stamps)} distinct time; a series needs at least 2")
    stamps = _local_days(stamps, notes)
    stamps, values = _on_round_steps(stamps, values, notes)
    stamps, values, step = _without_empty_rows(stamps, values, notes)
    if step.kind == "weeks":  # recognised only where none is missing
        return stamps, step, values
    slots = step.slots(stamps)
    filled = len(np.unique(slots))
    if filled < (1 - MAX_MISSING_SHARE) * (int(slots[-1]) + 1) or filled < (1 - MAX_COLLISIONS) * len(slots):
        stamps, values, step = _regular_tail(stamps, values, step, source, notes)
        slots = step.slots(stamps)
    return _regrid(stamps, values, step, slots, repeated, notes)


def _on_round_steps(
    stamps: NDArray[Any], values: NDArray[np.float64], notes: list[str]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Rows whose times waver about a round step (a logger's every five minutes, give or take some seconds) moved onto
    it, and rows at irregular times averaged over the least round step that most of them fill.
    """
    gaps = np.diff(stamps).astype(np.int64)
    usual = int(np.median(gaps))
    if len(gaps) < MIN_TELLING or usual >= 7 * DAY:
        return stamps, values
    span = int((stamps[-1] - stamps[0]).astype(np.int64))
    if (np.abs(gaps - usual) <= NEAR * usual).all() and abs(span - usual * len(gaps)) > usual / 2:
        return _rounded(stamps, span / len(gaps), notes), values
    if (gaps == usual).mean() >= EVEN_SHARE:
        return stamps, values
    if find_step(stamps).kind != "even":
        return stamps, values
    near = min(ROUND_STEPS, key=lambda step: abs(step - usual))
    if abs(near - usual) <= NEAR * near:
        return _wavering(stamps, values, near, notes)
    kinds = np.unique(np.rint(gaps / (0.02 * usual)), return_counts=True)[1]
    if np.sort(kinds)[-MOST_GAPS:].sum() >= GAPS_SHARE * len(gaps):
        return stamps, values
    for step in (step for step in ROUND_STEPS if step > usual):
        slots = stamps.astype(np.int64) // step
        if len(np.unique(slots)) >= FILLED * (int(slots[-1] - slots[0]) + 1):
            notes.append(f"rows are at irregular times; they are averaged over steps of {Step('even', step)}")
            return _averaged((slots * step).astype("datetime64[ns]"), values)
    return stamps, values


def _rounded(stamps: NDArray[Any], step: float, notes: list[str]) -> NDArray[Any]:
    """Times of a step that the clock writes in too few digits (three a second in milliseconds), as even ones."""
    size = round(step)
    notes.append(f"times are written in steps of {size / SECOND:g} seconds on average; they are taken as even")
    return np.asarray(stamps[0] + np.arange(len(stamps)) * np.timedelta64(size, "ns"))


def _wavering(
    stamps: NDArray[Any], values: NDArray[np.float64], step: int, notes: list[str]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Rows on the nearest multiple of a step, or on those a fixed time after them."""
    count = stamps.astype(np.int64)
    angles = 2 * np.pi * (count % step) / step
    phase = float(np.arctan2(np.sin(angles).mean(), np.cos(angles).mean())) / (2 * np.pi) * step
    offset = round(phase / (step / 60)) * (step // 60) if abs(phase) > 0.1 * step else 0
    even = (np.rint((count - offset) / step).astype(np.int64) * step + offset).astype("datetime64[ns]")
    off = float(np.quantile(np.abs((stamps - even).astype(np.int64)), 0.95)) / SECOND
    notes.append(f"times waver by some {off:.2g} s about steps of {Step('even', step)}; they are taken as even")
    return _averaged(even, values)


def _averaged(stamps: NDArray[Any], values: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Sorted rows with each time once, the mean of those that share it."""
    starts = np.flatnonzero(np.concatenate([[True], np.diff(stamps) > np.timedelta64(0, "ns")]))
    known = np.isfinite(values)
    total = np.add.reduceat(np.where(known, values, 0), starts, axis=0)
    count = np.add.reduceat(known.astype(np.int64), starts, axis=0)
    with np.errstate(invalid="ignore"):
        return stamps[starts], total / np.where(count, count, np.nan)


def _without_empty_rows(
    stamps: NDArray[Any], values: NDArray[np.float64], notes: list[str]
) -> tuple[NDArray[Any], NDArray[np.float64], Step]:
    """The rows that determine the step, and the step: rows without any value (a dividend's day among monthly prices)
    are dropped if the others are more regular without them.
    """
    step = find_step(stamps)
    says = np.isfinite(values).any(axis=1)
    if says.all() or says.sum() < MIN_TELLING or not (off := _off_grid(stamps, step)):
        return stamps, values, step
    without = find_step(stamps[says])
    if _off_grid(stamps[says], without) > MAX_OFF * off:
        return stamps, values, step
    notes.append(f"{counted(int((~says).sum()), 'row without any value was', 'rows without any value were')} left out")
    return stamps[says], values[says], without


def _off_grid(stamps: NDArray[Any], step: Step) -> int:
    """How many rows do not lie on the grid of a step that begins with the first."""
    slots = step.slots(stamps)
    return int((stamps != step.times(stamps[0], int(slots[-1]) + 1)[slots]).sum())


def _average_repeated(
    stamps: NDArray[Any], values: NDArray[np.float64], notes: list[str]
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[Any]]:
    """Sorted rows with each time once; and the times that were there more than once."""
    first = np.concatenate([[True], np.diff(stamps) > np.timedelta64(0, "ns")])
    repeated = np.unique(stamps[~first])
    if first.all():
        return stamps, values, repeated
    rows = int((~first).sum())
    hint = (
        " (if they are of several series, --by names the column that tells them apart; what is to be added up must be added before)"
        if rows >= MANY_REPEATED * len(stamps)
        else ""
    )
    notes.append(f"{counted(rows, 'row repeats a time; it was', 'rows repeat a time; they were')} averaged{hint}")
    return *_averaged(stamps, values), repeated


def _local_days(stamps: NDArray[Any], notes: list[str]) -> NDArray[Any]:
    """Days that begin at a local midnight and therefore jump by an hour in UTC, as plain days."""
    gaps = np.unique(np.diff(stamps).astype(np.int64))
    hour = DAY // 24
    if (
        len(gaps) < 2
        or not np.isin(np.abs(gaps % DAY - DAY // 2), (DAY // 2, DAY // 2 - hour)).all()
        or gaps[0] < 23 * hour
    ):
        return stamps
    clock = np.unique((stamps - stamps.astype("datetime64[D]")).astype(np.int64))
    if len(clock) != 2 or (clock[1] - clock[0]) not in (hour, 23 * hour):
        return stamps
    winter_first = clock[0] if clock[1] - clock[0] == hour else clock[1]
    notes.append(LOCAL_DAYS)
    days = (stamps - np.timedelta64(int(winter_first), "ns")).astype("datetime64[D]")
    ahead = winter_first >= DAY // 2  # east of Greenwich the local day begins on the evening before
    return np.asarray((days + int(ahead)).astype("datetime64[ns]"))


def _regular_tail(
    stamps: NDArray[Any], values: NDArray[np.float64], step: Step, source: str, notes: list[str]
) -> tuple[NDArray[Any], NDArray[np.float64], Step]:
    """The rows after the last change of step, if the table mixes steps and its end is regular."""
    gaps = np.diff(stamps).astype(np.int64)
    usual = int(np.median(gaps[-MIN_TAIL:]))
    is_off = np.abs(gaps - usual) > 0.5 * usual
    off = np.flatnonzero(is_off)
    runs = np.convolve(is_off, np.ones(10), "valid") >= 6  # most of ten gaps are of another step
    start = int(np.flatnonzero(runs)[-1]) + 10 if runs.any() else (int(off[-1]) + 1 if len(off) else 0)
    if len(stamps) - start >= MIN_TAIL and start > 0:
        tail = find_step(stamps[start:])
        slots = tail.slots(stamps[start:])
        if len(np.unique(slots)) >= (1 - MAX_MISSING_SHARE) * (int(slots[-1]) + 1):
            notes.append(
                f"the step changes: before {_minute(stamps[start])} rows are not {tail} apart; only the {len(stamps) - start} rows "
                f"from then on are used, {start} earlier ones are not"
            )
            return stamps[start:], values[start:], tail
    slots = step.slots(stamps)
    length = int(slots[-1]) + 1
    missing = length - len(np.unique(slots))
    if missing <= MAX_MISSING_SHARE * length:
        return stamps, values, step
    apart = int(gaps.argmax()) + 1  # rows before the longest gap
    if gaps.max() > 0.9 * gaps.sum() and (few := min(apart, len(stamps) - apart)) <= max(1, len(stamps) // 100):
        raise InputError(
            f"{source}: {counted(few, 'time lies', 'times lie')} far from all others ({stamps[0 if apart == few else -1]!s:.10}); "
            "correct that, or leave it out"
        )
    raise InputError(
        f"{source} is too irregular: at its median step of {step.seconds:g} s, {missing} of {length} steps are missing; "
        "average it to a coarser step first"
    )


def _regrid(
    stamps: NDArray[Any],
    values: NDArray[np.float64],
    step: Step,
    slots: NDArray[np.int64],
    repeated: NDArray[Any],
    notes: list[str],
) -> tuple[NDArray[Any], Step, NDArray[np.float64]]:
    """Rows moved to the nearest step of an even grid; steps without a row are missing."""
    length = int(slots[-1]) + 1
    times = step.times(stamps[0], length)
    there = np.zeros(length, bool)
    there[slots] = True
    missing = times[~there]
    if len(missing) == 0 and len(stamps) == length and (times == stamps).all():
        _tell_clock_change(repeated, missing, notes)
        return times, step, values
    moved = int((stamps != times[slots]).sum())
    if moved:
        notes.append(f"{counted(moved, 'row', 'rows')} off the grid of {step} moved to its nearest step")
    if len(missing):
        notes.append(f"{counted(len(missing), 'step was', 'steps were')} missing")
    _tell_clock_change(repeated, missing, notes)
    even = np.full((length, values.shape[1]), np.nan)
    even[slots[::-1]] = values[::-1]  # of several rows in one step the first stays
    return times, step, even


def _tell_clock_change(repeated: NDArray[Any], missing: NDArray[Any], notes: list[str]) -> None:
    if not clock_changes(repeated, missing):
        return
    if len(repeated):
        notes.append(
            "daylight saving: the hour that is there twice and the one that is not lie at clock changes, so the times are local; "
            "the repeated hour is averaged, the missing one left empty"
        )
    else:
        notes.append(
            "daylight saving: the hour that is not there lies at a clock change, so the times are local; it is left empty"
        )


def _minute(time: Any) -> str:
    return str(np.datetime64(time, "m")).replace("T", " ")
