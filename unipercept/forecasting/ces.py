"""Complex exponential smoothing: a level and what is known of its change, as one complex number that is smoothed at a complex rate.

A trend is no part of the model; it comes of the rate, may bend, and is relative to the level: doubling a series doubles its forecast, raising it
by a constant changes it. The rate is found on a grid that is refined three times, for all series at once: the recursion runs over rows, not series.

Source: Svetunkov, Kourentzes and Ord (2022), "Complex exponential smoothing", its form without a season; start values by casting back.

Shapes: T rows, V series, O origins, H steps ahead, M steps a cycle, G rates that are tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.forecasting.filters import begun
from unipercept.forecasting.season import Season

Array = NDArray[np.floating[Any]]
State = tuple[Array, Array]

BOUNDS = ((0.01, 1.8), (0.01, 1.9))  # of the real and the imaginary part of the rate, as in statsforecast
CENTRE, REACH = (1.0, 1.0), (0.8, 0.3)  # of the first grid
GRID = (7, 25)  # rates a side: errors change fast with the imaginary part
REFINED = 3  # how often the grid is drawn closer around the best
DRAWN = 3.0  # times as close
MAX_ROWS = 120  # before an origin that are smoothed; rates near 1 forget what lies further back
FIRST_ROWS = 10  # whose mean begins the level, before casting back
INFORMED = 1 / 1.1  # the change's start relative to it
FITTED = 4  # two rates and two start values
LARGEST = 1e12  # at which a rate has run away
AT_ONCE = 400_000  # rates that are tried at a time


class Ces:
    """One complex rate a series, with the least squared one-step errors, about a season that stays."""

    name = "CES"
    gives_quantiles = False
    fits_closely = False

    def __init__(self, period: int, zero: Array | float = 0.0) -> None:
        """`zero`: V, what 0 as measured is in the units of the values, of all series of the table."""
        self.period, self.zero = period, np.atleast_1d(np.asarray(zero, np.float64))
        self.series: NDArray[np.int64] | None = None  # those of the table that it is given, where they are not all
        self._season = Season.of(np.zeros((1, 1)), 1)
        self._rate: State = np.zeros(0), np.zeros(0)
        self._deviation = np.zeros(0)  # of the one-step errors

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        """The season and the rate of each series."""
        self._season = Season.of(values, self.period)
        z = self._levels(values)[-MAX_ROWS:]
        width = max(1, AT_ONCE // (GRID[0] * GRID[1]))
        parts = [_fitted(z[:, first : first + width]) for first in range(0, z.shape[1], width)]
        rates, losses = np.concatenate([p[0] for p in parts], axis=1), np.concatenate([p[1] for p in parts])
        self._rate = rates[0], rates[1]
        self._deviation = np.sqrt(losses / max(1, len(z) - FITTED))

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        z = self._levels(values)
        found = np.empty((len(origins), horizon, z.shape[1]))
        for i, origin in enumerate(origins):
            seen = z[max(0, origin - MAX_ROWS) : origin]
            state = _cast_back(seen, *self._rate)
            for row in seen:
                state, _ = _step(state, row, *self._rate)
            for h in range(horizon):
                found[i, h] = state[0]
                state, _ = _step(state, state[0], *self._rate)
        rows = np.asarray(origins)[:, None] + np.arange(horizon)
        return np.asarray(found + self._zero() + self._season.at(rows))

    def deviation(self, horizon: int) -> Array:
        """HxV of the errors that the models themselves expect."""
        a, b = self._rate
        state: State = (a - b, a + b)
        power = np.ones_like(a)
        found = np.empty((horizon, len(a)))
        for h in range(horizon):
            found[h] = self._deviation * np.sqrt(power)
            power = power + state[0] ** 2
            state = _step(state, state[0], a, b)[0]
        return found

    def _levels(self, values: Array) -> Array:
        return begun(self._season.without(values)) - self._zero()

    def _zero(self) -> Array:
        return self.zero if self.series is None or len(self.zero) == 1 else self.zero[self.series]


def _fitted(z: Array) -> tuple[Array, Array]:
    """2xV rates and V squared errors."""
    centre, reach = np.repeat(np.array(CENTRE)[:, None], z.shape[1], axis=1), np.array(REACH)
    best = np.full(z.shape[1], np.inf)
    sides = (np.linspace(-1, 1, count) for count in GRID)
    grid = np.stack(np.meshgrid(*sides, indexing="ij")).reshape(2, -1)  # 2xG
    columns = np.arange(z.shape[1])
    for _ in range(REFINED + 1):
        tried = centre[:, None] + (reach[:, None] * grid)[:, :, None]  # 2xGxV
        a, b = (part.clip(*bounds) for part, bounds in zip(tried, BOUNDS, strict=True))
        loss = _loss(z, a, b)
        winner = loss.argmin(axis=0)
        better = loss[winner, columns] < best
        best = np.where(better, loss[winner, columns], best)
        centre = np.where(better, np.stack([a[winner, columns], b[winner, columns]]), centre)
        reach = reach / DRAWN
    return centre, best


def _loss(z: Array, a: Array, b: Array) -> Array:
    """GxV squared one-step errors."""
    state, total = _cast_back(z, a, b), np.zeros(np.shape(a))
    for row in z:
        state, error = _step(state, row, a, b)
        total += np.square(error)
    return np.where(np.isfinite(total) & (total < LARGEST), total, LARGEST)


def _cast_back(z: Array, a: Array, b: Array) -> State:
    """Start values: those at which a pass over the reversed rows arrives that began where a first pass ended."""
    level = np.broadcast_to(z[:FIRST_ROWS].mean(axis=0), np.shape(a))
    state: State = (level, level * INFORMED)
    for row in (*z, *z[::-1]):
        state, _ = _step(state, row, a, b)
    return state


def _step(state: State, value: Array, a: Array, b: Array) -> tuple[State, Array]:
    """The state after a value, and the value's error; bounded, since rates that run away are tried, too."""
    level, change = state
    error = (value - level).clip(-LARGEST, LARGEST)
    return (
        (level - (1 - b) * change + (a - b) * error).clip(-LARGEST, LARGEST),
        (level + (1 - a) * change + (a + b) * error).clip(-LARGEST, LARGEST),
    ), error
