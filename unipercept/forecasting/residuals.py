"""Quantiles for methods that give points: from their errors at earlier origins, larger where the series was livelier,
and from what the method's own model expects where these are few.

Shapes: O origins, H steps ahead, V series, Q quantile levels, B bands of steps.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from unipercept.forecasting.repairs import forward_filled
from unipercept.forecasting.settings import QUANTILES

Array = NDArray[np.floating[Any]]

MIN_ERRORS = 60  # of one series in one band; with fewer all series share the shape of theirs, each in its own size
SIZE_DOUBT = 20.0  # errors that must be seen before a series' own size is half believed
LOCAL_FLOOR, LOCAL_CEILING = 0.3, 3.0  # how far recent liveliness may move the usual one
LOCAL_WEIGHT = 0.75
PROFILE_FLOOR = 0.05  # of the usual movement: night hours of a solar plant
PROFILE_DOUBT = 5.0  # cycles that must be seen before a phase is half believed
WINDOW_DOUBT = 12.0  # windows of the horizon that must be seen before errors are half believed, beside the model's own; a third of them by a tenth


@dataclass(frozen=True)
class Liveliness:
    """How far a series usually moves in a cycle: by what lies before an origin, and by the phase that is forecast.

    Args:
        lag: steps of the cycle.
        window: rows that count as recent.
        profile: lag x V, the usual movement at each phase (row number modulo lag), 1 on average.
    """

    lag: int
    window: int
    profile: Array

    @classmethod
    def of(cls, values: Array, lag: int, window: int) -> Liveliness:
        """Learn the profile from TxV rows."""
        lag = min(lag, max(1, len(values) // 2))
        distance = np.abs(values[lag:] - values[:-lag])
        profile = np.ones((lag, values.shape[1]))
        if lag > 1:
            padding = -len(distance) % lag
            cycles = np.concatenate([distance, np.full((padding, values.shape[1]), np.nan)]).reshape(
                -1, lag, values.shape[1]
            )
            known = np.isfinite(cycles)
            count = known.sum(axis=0)
            usual = np.where(known, cycles, 0).sum(axis=(0, 1)) / np.maximum(known.sum(axis=(0, 1)), 1)
            with np.errstate(all="ignore"):
                ratio = np.where(known, cycles, 0).sum(axis=0) / count / usual
            share = count / (count + PROFILE_DOUBT)
            # Row 0 of the distances is row `lag`: phase 0.
            profile = np.where(np.isfinite(ratio), ratio.clip(min=PROFILE_FLOOR) ** share, 1.0)
        return cls(lag, window, profile)

    def at(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        """O x H x V: half judged by the last `window` rows before the origin, half by all before it."""
        lag = self.lag
        total, count = _summed_distances(values, lag)
        ends = np.asarray(origins)
        starts = (ends - self.window).clip(min=0)
        with np.errstate(all="ignore"):
            whole = total[ends] / count[ends]
            if lag > 1 and not count[ends].all():  # a series that began less than a cycle ago
                steps, pairs = _summed_distances(forward_filled(values), 1)
                whole = np.where(count[ends] > 0, whole, steps[ends] / pairs[ends])
            recent = (total[ends] - total[starts]) / (count[ends] - count[starts])
            ratio = np.clip(np.where(np.isfinite(recent), recent, whole) / whole, LOCAL_FLOOR, LOCAL_CEILING)
        whole = np.where(np.isfinite(whole) & (whole > 0), whole, 0.0)
        level = whole * np.nan_to_num(ratio, nan=1.0) ** LOCAL_WEIGHT
        phases = (ends[:, None] + np.arange(horizon)) % lag
        return np.asarray(level[:, None] * self.profile[phases])


def _summed_distances(values: Array, lag: int) -> tuple[Array, Array]:
    """(T + 1) x V sums of the distances of values a lag apart, and their numbers; row r is of values[:r]."""
    distance = np.abs(values[lag:] - values[:-lag])
    known = np.isfinite(distance)
    zeros = np.zeros((min(lag, len(values)) + 1, values.shape[1]))
    total = np.concatenate([zeros, np.cumsum(np.where(known, distance, 0), axis=0)])
    return total, np.concatenate([zeros, np.cumsum(known, axis=0)])


def recent_window(period: int, horizon: int) -> int:
    """Rows before an origin that count as recent: some cycles and some horizons, so that one
    wild day does not decide alone.
    """
    return max(6 * period, 6 * horizon, 72)


def step_bands(horizon: int) -> list[tuple[int, int]]:
    """Steps in bands that double: 1, 2, 3-4, 5-8, …; the first is [0, 1)."""
    edges = [0]
    while edges[-1] < horizon:
        edges.append(min(horizon, max(1, 2 * edges[-1])))
    return list(itertools.pairwise(edges))


class ErrorQuantiles:
    """Learned from OxHxV errors, in units of the OxHxV liveliness there.

    Args:
        windows: of the horizon that the origins span.
    """

    def __init__(self, errors: Array, scale: Array, windows: float = np.inf) -> None:
        self.model_share = 1 / (1 + (windows / WINDOW_DOUBT) ** 2)
        horizon, width = errors.shape[1:]
        largest = np.where(np.isfinite(errors), np.abs(errors), -np.inf).max(axis=(0, 1))
        self.largest = np.where(np.isfinite(largest), largest, np.inf)
        self.bands = step_bands(horizon)
        self.horizon = horizon
        with np.errstate(all="ignore"):
            relative = errors / np.where(scale > 0, scale, np.nan)
        # A method that suits one series and not another has errors of other sizes there, whatever its liveliness.
        known = np.isfinite(relative)
        count = known.sum(axis=(0, 1))
        total = np.where(known, np.abs(relative), 0).sum(axis=(0, 1))
        usual = total.sum() / max(1, count.sum())
        size = (total + SIZE_DOUBT * usual) / (count + SIZE_DOUBT)
        size = np.where(size > 0, size, 1.0)
        self.table = np.zeros((len(self.bands), width, len(QUANTILES)))  # a row a series
        self.shared = np.zeros((len(self.bands), len(QUANTILES)))
        for b, (start, stop) in enumerate(self.bands):
            cells = relative[:, start:stop].reshape(-1, width)
            alike = cells / size
            alike = np.sort(alike[np.isfinite(alike)])
            if not len(alike):
                continue
            shape = centred(outward(alike))
            self.table[b] = shape * size[:, None]
            self.shared[b] = shape * usual
            enough = np.isfinite(cells).sum(axis=0) >= MIN_ERRORS
            for v in np.flatnonzero(enough) if width <= 500 else ():
                self.table[b, v] = centred(outward(np.sort(cells[np.isfinite(cells[:, v]), v])))

    def spread_to(self, columns: NDArray[np.int64], width: int) -> ErrorQuantiles:
        """For a table of `width` series of which these columns were learned from; the others get what all share."""
        wide = copy.copy(self)
        wide.table = np.repeat(self.shared[:, None], width, axis=1)
        wide.table[:, columns] = self.table
        wide.largest = np.full(width, np.inf)
        wide.largest[columns] = self.largest
        return wide

    def around(self, points: Array, scale: Array, deviation: Array | None = None) -> Array:
        """O x H x V x Q quantiles around OxHxV points, `scale` being as large.

        Beyond the steps learned, errors grow with the root of the step.

        Args:
            deviation: HxV of the errors that the method's own model expects, NaN where unknown; None: it has none.
        """
        horizon = points.shape[1]
        centres = np.array([np.sqrt((start + 1) * stop) for start, stop in self.bands])
        steps = np.arange(1, horizon + 1)
        place = np.interp(np.log(np.minimum(steps, self.horizon)), np.log(centres), np.arange(len(centres)))
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, len(centres) - 1)
        share = (place - low)[:, None, None]
        offsets = (1 - share) * self.table[low] + share * self.table[high]  # HxVxQ
        farther = np.sqrt(np.maximum(steps / self.horizon, 1.0))[:, None, None]
        # A jump that was an error of calm rows makes the rows after it livelier: it must not count as their product.
        reach = LOCAL_CEILING * self.largest[:, None] * farther
        distance = np.clip(offsets * farther * scale[..., None], -reach, reach)
        if deviation is not None and self.model_share:
            expected = deviation[..., None] * ndtri(QUANTILES)
            believed = np.where(np.isfinite(expected), self.model_share, 0.0)
            distance = (1 - believed) * distance + believed * np.nan_to_num(expected)
        return np.sort(points[..., None] + distance, axis=-1)


def centred(quantiles: Array) -> Array:
    """Without the median: a method stays what its name says, and past bias (a trend, a season of another year) seldom
    lasts: taking it off lost on every set tried (benchmarks/forecast_coverage.py).
    """
    return np.asarray(quantiles - quantiles[..., len(QUANTILES) // 2])


def outward(ordered: Array, levels: Sequence[float] = QUANTILES) -> Array:
    """Quantiles of sorted errors with the (n + 1) rule, which a new error keeps to on average."""
    n = len(ordered)
    place = np.clip(np.asarray(levels) * (n + 1) - 1, 0, n - 1)
    low = np.floor(place).astype(int)
    return np.asarray(ordered[low] + (place - low) * (ordered[np.minimum(low + 1, n - 1)] - ordered[low]))
