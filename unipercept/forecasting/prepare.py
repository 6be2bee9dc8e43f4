"""A table made ready to forecast: the checks and repairs of a careful analyst, each reported in a sentence.

Shapes: T rows, V series.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError, one_line
from unipercept.forecasting.attributes import Attributes
from unipercept.forecasting.levels import Jump, to_last_level
from unipercept.forecasting.periods import find_periods, unseen_cycle
from unipercept.forecasting.powers import choose_powers, powered, unpowered
from unipercept.forecasting.repairs import MIN_KNOWN, forward_filled, limit_spikes, living
from unipercept.forecasting.split_known import split_known
from unipercept.pipelines.series_clock import Step
from unipercept.pipelines.series_table import SeriesGrid, grid_of, read_grid
from unipercept.pipelines.table_file import listed

MAX_ROWS = 200_000  # of history; a model of the near future learns nothing from what lies further back
MAX_STEPS = 100_000  # steps; more would take minutes and gigabytes to say nothing
MAX_CELLS = 20_000_000  # rows times series
COMMON_SHARE = 0.3  # of one whole number among a series' values, from which on it counts rather than measures
COUNTED_ROWS = 2000  # that are looked at for this
CEILING_SHARE = 0.01  # of a share's values that lie on its end
# Changes, all of one sign, that make a series a running total. Of 26 real series with so many none turned within the
# horizon, of 51 with 11 to 18 eight did.
ONE_WAY_CHANGES = 30
STUCK_ROWS, STUCK_TIMES = 20, 3  # rows without a change at the end, and times the longest before, that are worth a word
ABSENT_SHARE = 0.2  # of the steps of a series of whole numbers that are missing where it may have been 0


@dataclass(frozen=True, eq=False)
class Prepared:
    """Series ready to forecast.

    Args:
        values: TxV float64, NaN where missing, spikes limited, each series about 0 and of deviation 1.
            What methods learn from and see.
        truth: TxV, the same with its spikes. What forecasts are scored against.
        measured: TxV as it was read; `values` and `truth` differ from it where rows were moved to a new level.
        level_rows: V, the row up to which a series was moved to a new level; 0 where it was not.
        offset, unit, power: V each; `restored` goes back to what was measured.
        floor: V, 0 for series that were never negative, else minus infinity: no forecast lies below.
        ceiling: V, 1 or 100 for shares that reach it, else infinity: no forecast lies above.
        direction: V, 1 for running totals, which only rise, -1 for series that only fall, else 0.
        period: steps of the cycle that seasonal methods use; 1 where nothing repeats.
        periods: that and the other cycles worth a try.
        constant: V bool, series that never change.
        counts: V bool, series of whole numbers, few of which are common; their forecasts are whole numbers, too.
        notices: a sentence each.
        left_out: series that are not forecast.
        first_row: rows of the table that lie before the first one here.
        known: (T + the horizon or more) x columns x V (or 1, where all series share them), what is
            known in advance, without gaps.
        known_names: the names of those columns.
        attributes: the static attributes of the series; None where they have none.
        unseen_cycle: steps of the calendar's cycle that the rows are too few to show; None
            where they are enough, or where a cycle was asked for.
        in_utc: whether times are in UTC; else they are on the clock of the table.
    """

    values: NDArray[np.float64]
    truth: NDArray[np.float64]
    measured: NDArray[np.float64]
    level_rows: NDArray[np.int64]
    offset: NDArray[np.float64]
    unit: NDArray[np.float64]
    power: NDArray[np.float64]
    floor: NDArray[np.float64]
    ceiling: NDArray[np.float64]
    direction: NDArray[np.int64]
    time: NDArray[Any]
    step: Step
    variables: tuple[str, ...]
    period: int
    periods: tuple[int, ...]
    constant: NDArray[np.bool_]
    counts: NDArray[np.bool_]
    source: str
    layout: str
    notices: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    first_row: int = 0
    known: NDArray[np.float64] | None = None
    known_names: tuple[str, ...] = ()
    attributes: Attributes | None = None
    unseen_cycle: int | None = None
    in_utc: bool = False

    def __len__(self) -> int:
        return len(self.values)

    @property
    def has_dates(self) -> bool:
        """Whether the steps are times rather than row numbers."""
        return np.issubdtype(self.time.dtype, np.datetime64)

    def scaled(self, measured: NDArray[Any]) -> NDArray[np.float64]:
        """Rows x V as measured, in the units of `values`."""
        return np.asarray((powered(measured, self.power) - self.offset) / self.unit)

    def restored(
        self, scaled: NDArray[Any], columns: NDArray[np.int64] | slice = slice(None), axis: int = 1
    ) -> NDArray[np.float64]:
        """Values in the units of `values` as measured; V (or these columns of it) is the given axis."""
        further = (slice(None),) + (None,) * (scaled.ndim - 1 - axis)
        offset, unit, power, floor, ceiling = (
            part[columns][further] for part in (self.offset, self.unit, self.power, self.floor, self.ceiling)
        )
        measured = np.clip(unpowered(scaled * unit + offset, power), floor, ceiling)
        return np.where(self.counts[columns][further], np.round(measured), measured) if self.counts.any() else measured

    def forecast(self, scaled: NDArray[Any], values: NDArray[np.float64]) -> NDArray[np.float64]:
        """H x V x Q as measured, of what follows these rows in the units of `values`.

        A series that only rises (or only falls) goes on so from its last value, at each level.
        """
        found = self.restored(scaled)
        if not self.direction.any():
            return found
        last = self.restored(forward_filled(values)[-1:])[0, :, None]
        rising = np.maximum.accumulate(np.maximum(found, last), axis=0)
        falling = np.minimum.accumulate(np.minimum(found, last), axis=0)
        way = self.direction[:, None]
        return np.where(way > 0, rising, np.where(way < 0, falling, found))

    def after(self, count: int) -> NDArray[Any]:
        """The `count` times that follow."""
        return self.step.times(self.time[-1], count, 1)


def prepare(
    source: Any,
    *,
    horizon: int = 1,
    targets: Sequence[str] = (),
    time: str | None = None,
    series: str | None = None,
    known: Sequence[str] = (),
    static: Sequence[str] = (),
    period: int | None = None,
    max_rows: int = MAX_ROWS,
    levelled: bool = True,
) -> Prepared:
    """Read a table (a file, a DataFrame or Series, an xarray object, a NumPy array) and make it ready.

    Args:
        levelled: whether rows before a jump to a new level are moved there.

    Raises:
        InputError: it holds no series; one line says why.
    """
    horizon = whole_steps(horizon, "horizon")
    period = None if period is None else whole_steps(period, "period")
    wanted, told, fixed = (
        tuple(dict.fromkeys(map(str, [names] if isinstance(names, str) else names)))
        for names in (targets, known, static)
    )
    for some, others, what in (
        (told, wanted, "be forecast and be known in advance"),
        (fixed, wanted, "be forecast and be static"),
        (fixed, told, "be known in advance and be static"),
    ):
        both = next((name for name in some if name in others), None)
        if both is not None:
            raise InputError(f"column {both!r} cannot {what}")
    options: dict[str, Any] = {"time": time, "targets": wanted, "series": series, "known": told, "static": fixed}
    if isinstance(source, SeriesGrid):
        grid = source
    elif isinstance(source, str | Path):
        grid = read_grid(source, **options)
    else:
        grid = grid_of(source, source=type(source).__name__, **options)
    return prepare_grid(grid, horizon=horizon, period=period, max_rows=max_rows, levelled=levelled)


def whole_steps(steps: Any, name: str) -> int:
    """A number of steps, of any integer type.

    Raises:
        InputError: it is none, less than 1 or more than MAX_STEPS.
    """
    if not isinstance(steps, Integral):
        raise InputError(f"the {name} must be a whole number of steps, got {one_line(repr(steps), 60)}")
    count = int(steps)
    if count < 1:
        raise InputError(f"the {name} must be at least 1 step, got {count}")
    if count > MAX_STEPS:
        raise InputError(f"the {name} may be at most {MAX_STEPS:,} steps, got {count:,}")
    return count


def prepare_grid(
    grid: SeriesGrid, *, horizon: int, period: int | None = None, max_rows: int = MAX_ROWS, levelled: bool = True
) -> Prepared:
    """The same for a table that has been read."""
    notices = list(grid.notes)
    owner = grid.owner
    grid, known, known_names = split_known(grid, horizon, notices)
    first = max(0, len(grid) - max_rows, len(grid) - max(2000, MAX_CELLS // grid.values.shape[1]))
    if first:
        notices.append(
            f"the last {len(grid) - first:,} of {len(grid):,} rows are used; earlier ones are too old to matter"
        )
    values = np.array(grid.values[first:])
    values, names, left_out = living(values, grid.variables, horizon, grid.source, notices)
    missing = int((np.isnan(values) & np.logical_or.accumulate(np.isfinite(values), axis=0)).sum())
    if missing:
        notices.append(
            f"{missing:,} {'value is' if missing == 1 else 'values are'} missing; nothing is filled in that a forecast could not have known"
        )
    measured = values
    values = limited = limit_spikes(values, names, grid.time[first:], notices)
    constant = np.nanmin(values, axis=0) == np.nanmax(values, axis=0)
    counts, direction, ceiling = _are_counts(measured), _directions(measured), _ceilings(measured, names)
    told = list[str]()
    chosen, periods = find_periods(values[:, ~constant], grid.step, period, told)
    truth, jumps = measured, dict[int, Jump]()
    if levelled and known is None:  # a column known in advance may explain a level
        usable = ~constant & ~counts & (direction == 0) & ~np.isfinite(ceiling)
        values, jumps = to_last_level(values, chosen, usable)
    if jumps:
        told.clear()
        chosen, periods = find_periods(values[:, ~constant], grid.step, period, told)
        truth = measured.copy()
        for v, jump in jumps.items():
            spikes = measured[: jump.row, v] - limited[: jump.row, v]
            truth[: jump.row, v] = values[: jump.row, v] + spikes
        notices.append(_told_jumps(jumps, names, grid.time[first:]))
    notices += told
    head = max(MIN_KNOWN, int(0.8 * len(values)))
    # The last value alone must not decide: one that is far off makes the logarithm of all likelier.
    power = np.where((np.nanmin(truth, axis=0) > 0) & ~counts, choose_powers(values[:-1], chosen), 1.0)
    if (power < 1).any():
        notices.append(
            f"the size of swings grows with the level; forecast in logarithms or roots: {listed([n for n, p in zip(names, power, strict=True) if p < 1])}"
        )
    transformed = powered(values, power)
    offset, unit = _centre_and_unit(transformed[:head], transformed)
    floor = np.where(np.nanmin(measured, axis=0) >= 0, 0.0, -np.inf)
    if shares := [
        f"{n} ({top:g})" for n, top, c in zip(names, ceiling, counts, strict=True) if np.isfinite(top) and not c
    ]:
        notices.append(f"shares of a whole, which no forecast exceeds: {listed(shares)}")
    if totals := [name for name, way in zip(names, direction, strict=True) if way]:
        notices.append(f"only rises or only falls, and so does its forecast: {listed(totals)}")
    _tell_oddities(measured, names, notices)
    return Prepared(
        (transformed - offset) / unit,
        (powered(truth, power) - offset) / unit,
        measured,
        np.array([jumps[v].row if v in jumps else 0 for v in range(len(names))], np.int64),
        offset,
        unit,
        power,
        floor,
        ceiling,
        direction,
        grid.time[first:],
        grid.step,
        names,
        chosen,
        periods,
        constant,
        counts,
        grid.source,
        grid.layout,
        tuple(notices),
        left_out,
        first,
        None
        if known is None
        else known[first:, :, [grid.variables.index(n) for n in names] if known.shape[2] > 1 else slice(None)],
        known_names,
        Attributes.of(grid.static_names, grid.static, [owner.get(name, name) for name in names])
        if grid.static_names
        else None,
        None if period is not None else unseen_cycle(grid.step, len(values)),
        grid.in_utc,
    )


def _are_counts(measured: NDArray[np.float64]) -> NDArray[np.bool_]:
    """V: whole numbers throughout, one of which makes up COMMON_SHARE: demand with zeros, few events a step."""
    whole = np.asarray(((measured == np.round(measured)) | np.isnan(measured)).all(axis=0))
    for v in np.flatnonzero(whole):
        _, count = np.unique(measured[-COUNTED_ROWS:, v][np.isfinite(measured[-COUNTED_ROWS:, v])], return_counts=True)
        whole[v] = len(count) > 0 and count.max() >= COMMON_SHARE * count.sum()
    return whole


def _ceilings(measured: NDArray[np.float64], names: Sequence[str]) -> NDArray[np.float64]:
    """V: 1 or 100 for a series from 0 to there that comes to lie on it again and again, or is called percent and comes
    near; else infinity.
    """
    found = np.full(measured.shape[1], np.inf)
    for v, name in enumerate(names):
        values = measured[np.isfinite(measured[:, v]), v]
        top = 1.0 if values.max() <= 1 else 100.0
        if values.min() < 0 or values.max() > top:
            continue
        at_top = values == top
        visits = np.count_nonzero(np.diff(at_top, prepend=False) & at_top)  # a rise that has just come to 100 is one
        reached = visits >= 2 and at_top.mean() >= CEILING_SHARE
        if reached or (re.search(r"(?i)%|percent|pct|prozent", name) and values.max() >= 0.99 * top):
            found[v] = top
    return found


def _told_jumps(jumps: dict[int, Jump], names: Sequence[str], time: NDArray[Any]) -> str:
    told = []
    for v, jump in jumps.items():
        at = str(time[jump.row]).replace("T", " ").split(".")[0].removesuffix(" 00:00:00")
        told.append(f"{names[v]} by {jump.size:.4g} at {at}")
    return f"moved to a new level, and stayed there: {listed(told)}; methods see the rows before at the new level"


def _directions(measured: NDArray[np.float64]) -> NDArray[np.int64]:
    """V: 1 for series that have risen ONE_WAY_CHANGES times and never fallen, -1 for the opposite, else 0."""
    found = np.zeros(measured.shape[1], np.int64)
    for v, column in enumerate(measured.T):
        change = np.diff(column[np.isfinite(column)])
        up, down = np.count_nonzero(change > 0), np.count_nonzero(change < 0)
        if min(up, down) == 0 and max(up, down) >= ONE_WAY_CHANGES:
            found[v] = np.sign(up - down)
    return found


def _tell_oddities(measured: NDArray[np.float64], names: Sequence[str], notices: list[str]) -> None:
    """What only its owner can judge: values that stand still at the end, rows that are missing rather than zero, and
    values at longer steps than the table's.
    """
    stuck, absent, coarse = list[str](), list[str](), list[str]()
    is_fine = np.isfinite(measured).mean(axis=0).max() > 0.5
    for name, column in zip(names, measured.T, strict=True):
        rows = np.flatnonzero(np.isfinite(column))
        values, own = column[rows], np.diff(rows)
        changes = np.flatnonzero(np.diff(values))
        if len(changes):
            runs = np.diff(changes, prepend=-1)
            tail = len(values) - 1 - int(changes[-1])
            if tail >= max(STUCK_ROWS, STUCK_TIMES * int(runs.max())):
                stuck.append(f"{name} ({tail} rows)")
        usual = int(np.median(own)) if len(own) else 1
        if is_fine and usual > 1 and (own == usual).mean() > 0.8:
            coarse.append(f"{name} ({usual} steps)")
        elif (
            len(own) and own.mean() > 1 / (1 - ABSENT_SHARE) and values.min() > 0 and (values == np.round(values)).all()
        ):
            absent.append(name)
    if stuck:
        notices.append(
            f"has not changed up to the end, for longer than ever before: {listed(stuck)}; if that is a fault, cut these rows off"
        )
    if absent:
        notices.append(
            f"whole numbers that are often missing and never 0: {listed(absent)}; if a missing row means 0, add rows with 0, "
            "since they are forecast as if it were unknown"
        )
    if coarse:
        notices.append(
            f"has values at longer steps than the table: {listed(coarse)}; in a table of its own it would be forecast at these"
        )


def _centre_and_unit(
    head: NDArray[np.float64], whole: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """V means and deviations of the first rows: numbers of any size (a level of 1e9, units
    of 1e-12) keep their digits.
    """
    largest = np.nanmax(np.abs(whole), axis=0)
    largest = np.where(largest > 0, largest, 1.0)
    small = np.where(np.isfinite(head).any(axis=0), head, whole[-len(head) :]) / largest
    with np.errstate(all="ignore"):
        mean = np.nan_to_num(np.nanmean(np.where(np.isfinite(small).any(axis=0), small, 0.0), axis=0))
        deviation = np.nanstd(np.where(np.isfinite(small).any(axis=0), small, 0.0), axis=0)
    everything = np.nanmax(whole / largest, axis=0) - np.nanmin(whole / largest, axis=0)
    deviation = np.where(deviation > 1e-9, deviation, np.where(everything > 0, everything, 1.0))
    return mean * largest, deviation * largest
