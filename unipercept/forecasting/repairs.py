"""Repairs of a table of series before anything is fitted to it: series that ended, spikes.

Shapes: T rows, V series.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError
from unipercept.pipelines.table_file import listed

SPIKE_RANGES = 15.0  # interquartile ranges beyond the block before: no weather, load or price does that by itself
MAX_SPIKE_SHARE = 0.01  # with more of them the series is heavy-tailed, and nothing is changed
LONE_RANGES = 2.0  # ranges of all other values beyond them: in so few rows that one is more than MAX_SPIKE_SHARE
MIN_KNOWN = 3  # values of a series


def living(
    values: NDArray[np.float64], names: tuple[str, ...], horizon: int, source: str, notices: list[str]
) -> tuple[NDArray[np.float64], tuple[str, ...], tuple[str, ...]]:
    """Series that go on until the end, or nearly; those that ended long before are left out."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    silent = np.where(known.any(axis=0), known[::-1].argmax(axis=0), len(values))  # rows since the last value
    ended = silent > max(horizon, len(values) // 10)
    few = ~ended & (count < MIN_KNOWN)
    keep = ~ended & ~few
    if ended.any():
        who = listed([n for n, e in zip(names, ended, strict=True) if e])
        notices.append(f"{int(ended.sum())} series ended before the table did and are not forecast: {who}")
    if few.any():
        notices.append(
            f"{int(few.sum())} series with fewer than {MIN_KNOWN} values are not forecast: {listed([n for n, f in zip(names, few, strict=True) if f])}"
        )
    late = keep & (silent > 0)
    if late.any():
        notices.append(
            f"{int(late.sum())} series end up to {int(silent[late].max())} steps before the table; their forecasts bridge that: "
            f"{listed([n for n, x in zip(names, late, strict=True) if x])}"
        )
    if not keep.any():
        raise InputError(
            f"no series of {source} has {MIN_KNOWN} values or more that reach the end of the table; there is nothing to forecast from"
        )
    starts = known.argmax(axis=0)[keep]
    if starts.max() - starts.min() > 0.05 * len(values):
        notices.append(
            f"the series are of unequal length: from {int((len(values) - starts).min()):,} to {int((len(values) - starts).max()):,} steps"
        )
    left = tuple(n for n, k in zip(names, keep, strict=True) if not k)
    return values[:, keep], tuple(n for n, k in zip(names, keep, strict=True) if k), left


def limit_spikes(
    values: NDArray[np.float64], names: tuple[str, ...], time: NDArray[Any], notices: list[str]
) -> NDArray[np.float64]:
    """Values limited to SPIKE_RANGES interquartile ranges around the median of the block
    before: the past alone decides.

    A changed level is let through one block later. With less than 1 / MAX_SPIKE_SHARE rows a single value that lies
    LONE_RANGES ranges of all others beyond them is limited to these, unless it is the last, which may be a new level.
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
    if length < 1 / MAX_SPIKE_SHARE:
        limited = _without_lone(values)
        changed = (limited != values) & np.isfinite(values)
    if changed.any():
        size = np.where(changed, np.abs(values - limited), 0) / np.nanstd(limited, axis=0).clip(min=1e-30)
        row, column = np.unravel_index(int(size.argmax()), size.shape)
        at = str(time[row]).replace("T", " ").split(".")[0]
        notices.append(
            f"{int(changed.sum())} spikes (largest: {names[int(column)]} = {values[row, column]:.6g} at {at}) are limited for "
            "fitting; scores use them as measured"
        )
    return limited


def _without_lone(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A value far beyond all others of its column limited to the next one."""
    ordered = np.sort(values, axis=0)
    last = np.isfinite(values).sum(axis=0) - 1
    columns = np.arange(values.shape[1])
    lowest, second, below, highest = ordered[0], ordered[1], ordered[last - 1, columns], ordered[last, columns]
    lower, _, upper = _quartiles(values)
    with np.errstate(invalid="ignore"):
        varies = upper > lower
        high = varies & (highest - below > LONE_RANGES * (below - lowest))
        low = varies & (second - lowest > LONE_RANGES * (highest - second))
    limited = np.clip(values, np.where(low, second, -np.inf), np.where(high, below, np.inf))
    limited[-1] = values[-1]
    return np.asarray(limited)


def _quartiles(block: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Lower quartile, median and upper quartile of each column, by sorting (NaN last):
    nanquantile is fifty times as slow.
    """
    ordered = np.sort(block, axis=0)
    count = np.isfinite(ordered).sum(axis=0)
    columns = np.arange(block.shape[1])

    def at(share: float) -> NDArray[Any]:
        picked = ordered[np.clip((share * (count - 1)).astype(np.int64), 0, len(ordered) - 1), columns]
        return np.where(count >= 8, picked, np.nan)

    return at(0.25), at(0.5), at(0.75)


def forward_filled(values: NDArray[Any], start: str = "nan") -> NDArray[np.float64]:
    """Each gap closed by the last value before it; before the first value NaN, or the
    column's mean with start="mean".
    """
    rows = np.where(np.isfinite(values), np.arange(len(values))[:, None], -1)
    last = np.maximum.accumulate(rows, axis=0)
    filled = np.take_along_axis(values, last.clip(min=0), axis=0)
    known = np.isfinite(values)
    mean = np.where(known, values, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.where(last >= 0, filled, np.broadcast_to(mean if start == "mean" else np.nan, filled.shape))
