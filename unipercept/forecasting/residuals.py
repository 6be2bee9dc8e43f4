"""Quantiles for methods that give points: from their errors at earlier origins, larger where the series was livelier.

Shapes: O origins, H steps ahead, V series, Q quantile levels, B bands of steps.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.forecasting.settings import QUANTILES

Array = NDArray[np.floating[Any]]

MIN_ERRORS = 60  # of one series in one band; with fewer all series share theirs
LOCAL_FLOOR, LOCAL_CEILING = 0.4, 2.5  # how far recent liveliness may move the usual one


def liveliness(values: Array, origins: Sequence[int], lag: int, window: int) -> Array:
    """OxV: the usual distance of values `lag` apart before each origin, half of it judged by the last `window` rows."""
    lag = min(lag, max(1, len(values) // 2))
    distance = np.abs(values[lag:] - values[:-lag])
    known = np.isfinite(distance)
    zeros = np.zeros((lag + 1, values.shape[1]))
    total = np.concatenate([zeros, np.cumsum(np.where(known, distance, 0), axis=0)])  # row r: of values[:r]
    count = np.concatenate([zeros, np.cumsum(known, axis=0)])
    ends = np.asarray(origins)
    starts = (ends - window).clip(min=0)
    with np.errstate(all="ignore"):
        whole = total[ends] / count[ends]
        recent = (total[ends] - total[starts]) / (count[ends] - count[starts])
        ratio = np.clip(np.where(np.isfinite(recent), recent, whole) / whole, LOCAL_FLOOR, LOCAL_CEILING)
    whole = np.where(np.isfinite(whole) & (whole > 0), whole, 0.0)
    return np.asarray(whole * np.sqrt(np.nan_to_num(ratio, nan=1.0)))


def step_bands(horizon: int) -> list[tuple[int, int]]:
    """Steps in bands that double: 1, 2, 3-4, 5-8, …; the first is [0, 1)."""
    edges = [0]
    while edges[-1] < horizon:
        edges.append(min(horizon, max(1, 2 * edges[-1])))
    return list(zip(edges[:-1], edges[1:], strict=True))


class ErrorQuantiles:
    """Learned from OxHxV errors at origins whose liveliness was OxV."""

    def __init__(self, errors: Array, scale: Array) -> None:
        horizon, width = errors.shape[1:]
        self.bands = step_bands(horizon)
        self.horizon = horizon
        with np.errstate(all="ignore"):
            relative = errors / np.where(scale > 0, scale, np.nan)[:, None]
        self.table = np.zeros((len(self.bands), width, len(QUANTILES)))  # a row a series
        self.shared = np.zeros((len(self.bands), len(QUANTILES)))
        for b, (start, stop) in enumerate(self.bands):
            cells = relative[:, start:stop].reshape(-1, width)
            count = np.isfinite(cells).sum(axis=0)
            everything = cells[np.isfinite(cells)]
            if not len(everything):
                continue
            self.table[b] = self.shared[b] = outward(np.sort(everything))
            for v in np.flatnonzero(count >= MIN_ERRORS) if width <= 500 else ():
                self.table[b, v] = outward(np.sort(cells[np.isfinite(cells[:, v]), v]))

    def spread_to(self, columns: NDArray[np.int64], width: int) -> ErrorQuantiles:
        """For a table of `width` series of which these columns were learned from; the others get what all share."""
        wide = copy.copy(self)
        wide.table = np.repeat(self.shared[:, None], width, axis=1)
        wide.table[:, columns] = self.table
        return wide

    def around(self, points: Array, scale: Array) -> Array:
        """O x H x V x Q quantiles around OxHxV points. Beyond the steps learned, errors grow with the root of the step."""
        horizon = points.shape[1]
        centres = np.array([np.sqrt((start + 1) * stop) for start, stop in self.bands])
        steps = np.arange(1, horizon + 1)
        place = np.interp(np.log(np.minimum(steps, self.horizon)), np.log(centres), np.arange(len(centres)))
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, len(centres) - 1)
        share = (place - low)[:, None, None]
        offsets = (1 - share) * self.table[low] + share * self.table[high]  # HxVxQ
        offsets = offsets * np.sqrt(np.maximum(steps / self.horizon, 1.0))[:, None, None]
        result = points[..., None] + offsets[None] * scale[:, None, :, None]
        return np.sort(result, axis=-1)


def outward(ordered: Array, levels: Sequence[float] = QUANTILES) -> Array:
    """Quantiles of sorted errors with the (n + 1) rule, which a new error keeps to on average."""
    n = len(ordered)
    place = np.clip(np.asarray(levels) * (n + 1) - 1, 0, n - 1)
    low = np.floor(place).astype(int)
    return np.asarray(ordered[low] + (place - low) * (ordered[np.minimum(low + 1, n - 1)] - ordered[low]))
