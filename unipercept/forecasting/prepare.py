"""A table made ready to forecast: what a careful analyst does before the first model, each step said in a sentence.

Shapes: T rows, V series.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unipercept.errors import InputError
from unipercept.forecasting.powers import choose_powers, powered, unpowered
from unipercept.pipelines.folding import dominant_period
from unipercept.pipelines.series_clock import DAY, SECOND, Step
from unipercept.pipelines.series_table import SeriesGrid, grid_of, read_grid
from unipercept.pipelines.table_file import shortened

MAX_ROWS = 200_000  # of history; a model of the near future learns nothing from what lies further back
MAX_CELLS = 20_000_000  # rows times series
SENTINELS = (
    -9999.0,
    -999.0,
    -99.0,
    -9999.9,
    -999.9,
    -99.9,
    -99999.0,
    -8888.0,
    -7777.0,
    9999.0,
    99999.0,
    999.0,
    999999.0,
    1e20,
)
SENTINEL_DISTANCE = 3.0  # a code lies this many of the other values' 1 % to 99 % ranges outside them
SPIKE_RANGES = 15.0  # interquartile ranges beyond the block before: no weather, load or price does that by itself
MAX_SPIKE_SHARE = 0.01  # with more of them the series is heavy-tailed, and nothing is changed
MIN_KNOWN = 3  # values of a series
CALENDAR_DOUBT = (
    0.8  # another cycle is taken when values a cycle apart are so much more alike than those of the calendar's cycle
)
YEAR = 365.25 * 86_400  # s


@dataclass(frozen=True, eq=False)
class Prepared:
    """Series ready to forecast.

    Args:
        values: TxV float64, NaN where missing, spikes limited, each series about 0 and of deviation 1. What methods learn from and see.
        truth: TxV, the same with its spikes. What forecasts are scored against.
        offset, unit, power: V each; `restored` goes back to what was measured.
        floor: V, 0 for series that were never negative, else minus infinity: no forecast lies below.
        period: steps of the cycle that seasonal methods use; 1 where nothing repeats.
        periods: that and the other cycles worth a try.
        constant: V bool, series that never change.
        notices: a sentence each.
        left_out: series that are not forecast.
        first_row: rows of the table that lie before the first one here.
        known: (T + the horizon or more) x columns x V (or 1, where all series share them), what is known in advance, without gaps.
        known_names: the names of those columns.
    """

    values: NDArray[np.float64]
    truth: NDArray[np.float64]
    offset: NDArray[np.float64]
    unit: NDArray[np.float64]
    power: NDArray[np.float64]
    floor: NDArray[np.float64]
    time: NDArray[Any]
    step: Step
    variables: tuple[str, ...]
    period: int
    periods: tuple[int, ...]
    constant: NDArray[np.bool_]
    source: str
    layout: str
    notices: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    first_row: int = 0
    known: NDArray[np.float64] | None = None
    known_names: tuple[str, ...] = ()

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
        offset, unit, power, floor = (
            part[columns][further] for part in (self.offset, self.unit, self.power, self.floor)
        )
        return np.maximum(unpowered(scaled * unit + offset, power), floor)

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
    period: int | None = None,
    max_rows: int = MAX_ROWS,
) -> Prepared:
    """Read a table (a file, a DataFrame or Series, an xarray object, a NumPy array) and make it ready.

    Raises:
        InputError: it holds no series; one line says why.
    """
    if horizon < 1:
        raise InputError(f"the horizon must be at least 1 step, got {horizon}")
    if period is not None and period < 1:
        raise InputError(f"a period is at least 1 step, got {period}")
    wanted = tuple(dict.fromkeys(str(name) for name in targets))
    told = tuple(dict.fromkeys(str(name) for name in known))
    both = next((name for name in told if name in wanted), None)
    if both is not None:
        raise InputError(f"column {both!r} cannot be forecast and be known in advance")
    options: dict[str, Any] = {"time": time, "targets": wanted, "series": series, "known": told}
    if isinstance(source, SeriesGrid):
        grid = source
    elif isinstance(source, str | Path):
        grid = read_grid(source, **options)
    else:
        grid = grid_of(source, source=type(source).__name__, **options)
    return prepare_grid(grid, horizon=horizon, period=period, max_rows=max_rows)


def prepare_grid(grid: SeriesGrid, *, horizon: int, period: int | None = None, max_rows: int = MAX_ROWS) -> Prepared:
    """The same for a table that has been read."""
    notices = list(grid.notes)
    grid, known, known_names = split_known(grid, horizon, notices)
    first = max(0, len(grid) - max_rows, len(grid) - max(2000, MAX_CELLS // grid.values.shape[1]))
    if first:
        notices.append(
            f"of {len(grid):,} rows the last {len(grid) - first:,} are used; those before are too far back to matter"
        )
    values = np.array(grid.values[first:])
    _drop_sentinels(values, grid.variables, notices)
    values, names, left_out = _living(values, grid.variables, horizon, notices)
    missing = int((np.isnan(values) & np.logical_or.accumulate(np.isfinite(values), axis=0)).sum())
    if missing:
        notices.append(f"{missing:,} values are missing; nothing is filled in that a forecast could not have known")
    measured = values
    values = _limit_spikes(values, names, grid.time[first:], notices)
    constant = np.nanmin(values, axis=0) == np.nanmax(values, axis=0)
    chosen, periods = _periods(values[:, ~constant], grid.step, period, notices)
    head = max(MIN_KNOWN, int(0.8 * len(values)))
    power = np.where(np.nanmin(measured, axis=0) > 0, choose_powers(values, chosen), 1.0)
    if (power < 1).any():
        notices.append(
            f"swings grow with the level and are evened out by logarithms or roots: {shortened([n for n, p in zip(names, power, strict=True) if p < 1])}"
        )
    transformed = powered(values, power)
    offset, unit = _centre_and_unit(transformed[:head], transformed)
    floor = np.where(np.nanmin(measured, axis=0) >= 0, 0.0, -np.inf)
    return Prepared(
        (transformed - offset) / unit,
        (powered(measured, power) - offset) / unit,
        offset,
        unit,
        power,
        floor,
        grid.time[first:],
        grid.step,
        names,
        chosen,
        periods,
        constant,
        grid.source,
        grid.layout,
        tuple(notices),
        left_out,
        first,
        None
        if known is None
        else known[first:, :, [grid.variables.index(n) for n in names] if known.shape[2] > 1 else slice(None)],
        known_names,
    )


def _centre_and_unit(
    head: NDArray[np.float64], whole: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """V means and deviations of the first rows: numbers of any size (a level of 1e9, units of 1e-12) keep their digits."""
    largest = np.nanmax(np.abs(whole), axis=0)
    largest = np.where(largest > 0, largest, 1.0)
    small = np.where(np.isfinite(head).any(axis=0), head, whole[-len(head) :]) / largest
    with np.errstate(all="ignore"):
        mean = np.nan_to_num(np.nanmean(np.where(np.isfinite(small).any(axis=0), small, 0.0), axis=0))
        deviation = np.nanstd(np.where(np.isfinite(small).any(axis=0), small, 0.0), axis=0)
    everything = np.nanmax(whole / largest, axis=0) - np.nanmin(whole / largest, axis=0)
    deviation = np.where(deviation > 1e-9, deviation, np.where(everything > 0, everything, 1.0))
    return mean * largest, deviation * largest


def split_known(
    grid: SeriesGrid, horizon: int, notices: list[str]
) -> tuple[SeriesGrid, NDArray[np.float64] | None, tuple[str, ...]]:
    """The targets up to their last row, and the columns known in advance: those named, or those that alone go on for the horizon.

    Raises:
        InputError: a column named as known does not reach as far as the horizon.
    """
    known = np.isfinite(grid.values)
    ends = np.where(
        known.any(axis=0), len(grid) - known[::-1].argmax(axis=0), 0
    )  # the row after each column's last value
    is_known = np.isin(grid.variables, grid.known)
    if not grid.known:
        longer = ends == len(grid)
        rest = ends[~longer]
        if (
            not longer.any()
            or not len(rest)
            or np.ptp(rest)
            or len(grid) - rest[0] < horizon
            or rest[0] < len(grid) // 2
        ):
            return grid, None, ()
        is_known = longer
    if is_known.all():
        raise InputError("every column is known in advance; name with targets what is to be forecast")
    end = int(ends[~is_known].max())
    short = [
        (str(name), int(reach) - end)
        for name, reach in zip(np.array(grid.variables)[is_known], ends[is_known], strict=True)
        if reach < end + horizon
    ]
    if short:
        raise InputError(
            f"column {short[0][0]!r} is known for {max(0, short[0][1])} steps beyond the last value to forecast from; a horizon of {horizon} needs as many"
        )
    filled = forward_filled(grid.values[: end + horizon, is_known])
    starts = np.isfinite(filled).argmax(axis=0)
    filled = np.where(np.isfinite(filled), filled, filled[starts, np.arange(filled.shape[1])])
    names = [name for name, own in zip(grid.variables, is_known, strict=True) if own]
    targets = tuple(name for name, own in zip(grid.variables, is_known, strict=True) if not own)
    if grid.owner:
        columns = tuple(dict.fromkeys(name.removeprefix(grid.owner[name] + "/") for name in names))
        place = {name: i for i, name in enumerate(names)}
        told = np.zeros((len(filled), len(columns), len(targets)))
        for v, target in enumerate(targets):
            for f, column in enumerate(columns):
                mine = place.get(f"{grid.owner[target]}/{column}")
                if mine is not None:
                    told[:, f, v] = filled[:, mine]
        if len({grid.owner[target] for target in targets}) == len(targets):
            targets = tuple(grid.owner[target] for target in targets)
    else:
        columns, told = tuple(names), filled[:, :, None]
    how = "" if grid.known else ", since they go on where the others end (name them with --known, or cut them off)"
    notices.append(f"known in advance: {shortened(list(columns))}{how}")
    cut = replace(grid, values=grid.values[:end, ~is_known], time=grid.time[:end], variables=targets)
    return cut, told, columns


def _drop_sentinels(values: NDArray[np.float64], names: tuple[str, ...], notices: list[str]) -> None:
    """Codes for "missing" such as -9999, where they lie far outside what else the column holds; in place."""
    found: dict[float, list[str]] = {}
    total = 0
    for column, name in zip(values.T, names, strict=True):
        low, high = np.nanmin(column), np.nanmax(column)
        for code in SENTINELS:
            if code not in (low, high):  # a code is an extreme
                continue
            hit = column == code
            rest = column[~hit & np.isfinite(column)]
            if len(rest) < MIN_KNOWN:
                continue
            bottom, top = np.quantile(rest, (0.01, 0.99))
            if (bottom - code if code < bottom else code - top) > SENTINEL_DISTANCE * max(top - bottom, 1e-12):
                column[hit] = np.nan
                total += int(hit.sum())
                found.setdefault(code, []).append(name)
    for code, where in found.items():
        notices.append(f"{code:g} is taken as a code for missing ({shortened(where)})")


def _living(
    values: NDArray[np.float64], names: tuple[str, ...], horizon: int, notices: list[str]
) -> tuple[NDArray[np.float64], tuple[str, ...], tuple[str, ...]]:
    """Series that go on until the end, or nearly; those that ended long before are left out."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    silent = np.where(known.any(axis=0), known[::-1].argmax(axis=0), len(values))  # rows since the last value
    ended = silent > max(horizon, len(values) // 10)
    few = ~ended & (count < MIN_KNOWN)
    keep = ~ended & ~few
    if ended.any():
        who = shortened([n for n, e in zip(names, ended, strict=True) if e])
        notices.append(f"{int(ended.sum())} series ended before the table did and are not forecast: {who}")
    if few.any():
        notices.append(
            f"{int(few.sum())} series with fewer than {MIN_KNOWN} values are not forecast: {shortened([n for n, f in zip(names, few, strict=True) if f])}"
        )
    late = keep & (silent > 0)
    if late.any():
        notices.append(
            f"{int(late.sum())} series end up to {int(silent[late].max())} steps before the table; their forecasts bridge that: "
            f"{shortened([n for n, x in zip(names, late, strict=True) if x])}"
        )
    if not keep.any():
        raise InputError(
            f"no series has {MIN_KNOWN} values or more that reach the end of the table; there is nothing to forecast from"
        )
    starts = known.argmax(axis=0)[keep]
    if starts.max() - starts.min() > 0.05 * len(values):
        notices.append(
            f"the series are of unequal length: from {int((len(values) - starts).min()):,} to {int((len(values) - starts).max()):,} steps"
        )
    left = tuple(n for n, k in zip(names, keep, strict=True) if not k)
    return values[:, keep], tuple(n for n, k in zip(names, keep, strict=True) if k), left


def _limit_spikes(
    values: NDArray[np.float64], names: tuple[str, ...], time: NDArray[Any], notices: list[str]
) -> NDArray[np.float64]:
    """Values limited to SPIKE_RANGES interquartile ranges around the median of the block before: the past alone decides.

    A changed level is let through one block later.
    """
    length = len(values)
    block = int(np.clip(length // 10, 24, 500))
    limited = values.copy()
    for start in range(block, length, block):
        before = values[max(0, start - 4 * block) : start]
        with np.errstate(all="ignore"):
            low, middle, high = _quartiles(before)
        reach = SPIKE_RANGES * (high - low)
        usable = np.isfinite(reach) & (reach > 0)
        part = limited[start : start + block, usable]
        np.clip(part, (middle - reach)[usable], (middle + reach)[usable], out=part)
        limited[start : start + block, usable] = part
    changed = (limited != values) & np.isfinite(values)
    heavy = changed.mean(axis=0) > MAX_SPIKE_SHARE
    limited[:, heavy] = values[:, heavy]
    changed[:, heavy] = False
    if changed.any():
        size = np.where(changed, np.abs(values - limited), 0) / np.nanstd(limited, axis=0).clip(min=1e-30)
        row, column = np.unravel_index(int(size.argmax()), size.shape)
        at = str(time[row]).replace("T", " ").split(".")[0]
        notices.append(
            f"{int(changed.sum())} spikes (largest: {names[int(column)]} = {values[row, column]:.6g} at {at}) are limited in what methods "
            "learn from; scores count them as they are"
        )
    return limited


def _quartiles(block: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Lower quartile, median and upper quartile of each column, by sorting (NaN last): nanquantile is fifty times as slow."""
    ordered = np.sort(block, axis=0)
    count = np.isfinite(ordered).sum(axis=0)
    columns = np.arange(block.shape[1])

    def at(share: float) -> NDArray[Any]:
        picked = ordered[np.clip((share * (count - 1)).astype(np.int64), 0, len(ordered) - 1), columns]
        return np.where(count >= 8, picked, np.nan)

    return at(0.25), at(0.5), at(0.75)


def calendar_periods(step: Step) -> tuple[int, ...]:
    """Cycles that a calendar gives a step, in steps, shortest first."""
    if step.kind == "count":
        return ()
    if step.kind == "working day":
        return (5, 261)
    if step.kind != "even":
        return (12 // step.size,) if 12 % step.size == 0 and step.size < 12 else ()
    cycles = (60 * SECOND, 3600 * SECOND, DAY, 7 * DAY)
    found = [cycle // step.size for cycle in cycles if cycle % step.size == 0 and cycle > step.size]
    if step.size >= DAY:
        found.append(round(365.25 * DAY / step.size))
    return tuple(p for p in found if p >= 2)


def all_periods(prepared: Prepared) -> tuple[float, ...]:
    """The cycles that the calendar gives, the year in its true length, and those that were found; shortest first."""
    year = YEAR / prepared.step.seconds
    exact = (
        [] if prepared.step.kind == "count" else [float(p) for p in calendar_periods(prepared.step) if p < 0.9 * year]
    )
    if prepared.step.kind != "count" and year >= 2:
        exact.append(year)
    found = [float(p) for p in prepared.periods if p > 1 and not any(abs(p - e) <= 0.1 * e for e in exact)]
    return tuple(sorted((*exact, *found)))


def _periods(
    values: NDArray[np.float64], step: Step, wanted: int | None, notices: list[str]
) -> tuple[int, tuple[int, ...]]:
    """The cycle after which the first 80 % of the series are most like themselves, and the others that were near."""
    head = _detrended(values[: max(4, int(0.8 * len(values)))][-20_000:, :: max(1, values.shape[1] // 64)])
    if wanted is not None:
        notices.append(f"the cycle is {wanted} steps, as asked")
        return wanted, (wanted,)
    if not head.size:
        return 1, (1,)
    candidates = [p for p in calendar_periods(step) if 3 * p <= len(head)]
    free = dominant_period(torch.from_numpy(_bridged(head).T.copy()), max_period=max(2, len(head) // 4))
    usual = candidates[:]
    near = range(
        max(2, round(0.9 * free)), round(1.1 * free) + 1
    )  # the spectrum knows long cycles to the next whole frequency only
    free = (
        min(near, key=lambda p: _lag_error(head, p)) if free > 1 and near.stop < len(head) and len(near) < 200 else free
    )
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
        each = np.nanmean(np.where(np.isfinite(distance), distance, np.nan), axis=0) / np.where(
            spread > 0, spread, np.nan
        )
    finite = each[np.isfinite(each)]
    return float(finite.mean()) if len(finite) else np.inf


def _bridged(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaps closed by the last value before (the mean before the first), for spectra."""
    return forward_filled(values, start="mean")


def forward_filled(values: NDArray[Any], start: str = "nan") -> NDArray[np.float64]:
    """Each gap closed by the last value before it; before the first value NaN, or the column's mean with start="mean"."""
    rows = np.where(np.isfinite(values), np.arange(len(values))[:, None], -1)
    last = np.maximum.accumulate(rows, axis=0)
    filled = np.take_along_axis(values, last.clip(min=0), axis=0)
    with np.errstate(all="ignore"):
        first = np.nanmean(np.where(np.isfinite(values), values, np.nan), axis=0) if start == "mean" else np.nan
    return np.where(
        last >= 0, filled, np.broadcast_to(np.nan_to_num(first) if start == "mean" else first, filled.shape)
    )
