"""Complex exponential smoothing: a level and what is known of its change, as one complex number that is smoothed at a complex rate.

A trend is no part of the model; it comes of the rate, may bend, and is relative to the level: doubling a series doubles its forecast, raising it
by a constant changes it. So it works on values as measured, also where the other methods see logarithms or roots. A season is added that moves at a
rate of its own. Rates are found on a grid that is refined, for all series at once: the recursion runs over rows, not series.

Source: Svetunkov, Kourentzes and Ord (2022), "Complex exponential smoothing", its form without a season, and Svetunkov and Kourentzes (2015),
"Complex exponential smoothing for time series forecasting", that with a "partial" season; start values by casting back.

Shapes: T rows, V series, O origins, H steps ahead, M steps a cycle, G rates that are tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.forecasting.filters import begun
from unipercept.forecasting.powers import powered, unpowered
from unipercept.forecasting.season import MIN_CYCLES, Season

Array = NDArray[np.floating[Any]]

MAX_PERIOD = 24  # of a season that moves; a longer one is taken off and stays as it is
BOUNDS = ((0.01, 1.8), (0.01, 1.9), (0.005, 0.9))  # of the real and the imaginary part of the rate, as in statsforecast, and of the season's
CENTRE, REACH = (1.0, 1.0, 0.3), (0.8, 0.3, 0.29)  # of the first grid
GRID = (7, 25, 5)  # rates a side: errors change fast with the imaginary part
REFINED = 3  # how often the grid is drawn closer around the best
DRAWN = 3.0  # times as close
MAX_ROWS, MAX_CYCLES = 120, 12  # before an origin that are smoothed, the larger; rates near 1 forget what lies further back
FIRST_ROWS = 10  # whose mean begins the level, before casting back
INFORMED = 1 / 1.1  # the change's start relative to it
FITTED = 4  # two rates and two start values
LEAST = 0.25  # of the smallest value seen: a forecast that goes back to logarithms or roots is no smaller
LARGEST = 1e12  # at which a rate has run away
AT_ONCE = 400_000  # rates that are tried at a time


@dataclass(frozen=True, eq=False)
class Rates:
    """Real and imaginary part of the level's rate, GxV or V each, and the season's (0: it stays as it is)."""

    real: Array
    imaginary: Array
    season: Array


@dataclass(eq=False)
class State:
    """Level and change, GxV or V each, and the season by phase, M x GxV or MxV; the season is changed in place."""

    level: Array
    change: Array
    season: Array

    def step(self, value: Array | None, phase: int, rates: Rates) -> Array:
        """Take in a value and return its error; None: the forecast itself comes true, and is returned. Bounded, since rates that run away are tried, too."""
        a, b, season = rates.real, rates.imaginary, self.season[phase]
        expected = self.level + season
        if value is None:
            self.level, self.change = self.level - (1 - b) * self.change, self.level + (1 - a) * self.change
            return np.asarray(expected)
        error = (value - expected).clip(-LARGEST, LARGEST)
        level = self.level - (1 - b) * self.change + (a - b) * error
        self.change = (self.level + (1 - a) * self.change + (a + b) * error).clip(-LARGEST, LARGEST)
        self.level = level.clip(-LARGEST, LARGEST)
        self.season[phase] = season + rates.season * error
        return np.asarray(error)

    def copy(self) -> State:
        return State(self.level, self.change, self.season.copy())


class Ces:
    """One complex rate a series, with the least squared one-step errors, and a season."""

    name = "CES"
    gives_quantiles = False
    fits_closely = False

    def __init__(
        self, period: int, zero: Array | float = 0.0, unit: Array | float = 1.0, power: Array | float = 1.0
    ) -> None:
        """Of all series of the table, V each: `values` are (measured to the power) / unit + zero."""
        self.period = period
        self._scaling = tuple(np.atleast_1d(np.asarray(part, np.float64)) for part in (zero, unit, power))
        self.series: NDArray[np.int64] | None = None  # those of the table that it is given, where they are not all
        self._season = Season.of(np.zeros((1, 1)), 1)  # that stays
        self._cycle, self._usual = 1, np.zeros((1, 1))  # of the season that moves, and where it starts, MxV
        self._typical, self._least = np.ones(1), np.zeros(1)  # V, the size of a measured value, and the smallest forecast
        self._rates = Rates(np.zeros(0), np.zeros(0), np.zeros(0))
        self._deviation = np.zeros(0)  # of the one-step errors

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        """The season and the rates of each series."""
        moves = 1 < self.period <= MAX_PERIOD and len(values) >= MIN_CYCLES * self.period
        self._cycle = self.period if moves else 1
        self._season = Season.of(values, 1 if moves else self.period)
        whole = self._measured(values)
        self._typical = np.maximum(np.abs(whole).mean(axis=0), np.finfo(float).tiny)
        self._least = np.where(self._of(2) == 1, -np.inf, LEAST * whole.min(axis=0) / self._typical)
        first = max(0, len(whole) - self._rows())
        z = whole[first - first % self._cycle :] / self._typical
        self._usual = Season.of(z, self._cycle, tested=False).profile
        width = max(1, AT_ONCE // int(np.prod(GRID)))
        parts = [
            _fitted(z[:, v : v + width], self._usual[:, v : v + width]) for v in range(0, z.shape[1], width)
        ]
        rates, losses = np.concatenate([p[0] for p in parts], axis=1), np.concatenate([p[1] for p in parts])
        self._rates = Rates(*rates)
        self._deviation = np.sqrt(losses / max(1, len(z) - FITTED))
        self._slope = self._slope_at(z[-self._cycle :].mean(axis=0))

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        start = max(0, min(origins) - self._rows())
        start -= start % self._cycle
        z = self._measured(values)[start : max(origins)] / self._typical
        state = _cast_back(z[: min(origins) - start], self._usual, self._rates)
        found = {}
        for row in range(len(z) + 1):
            if start + row in origins:
                ahead = state.copy()
                found[start + row] = np.stack(
                    [ahead.step(None, (row + h) % self._cycle, self._rates) for h in range(horizon)]
                )
            if row < len(z):
                state.step(z[row], row % self._cycle, self._rates)
        points = self._scaled(np.stack([found[origin] for origin in origins]))
        rows = np.asarray(origins)[:, None] + np.arange(horizon)
        return np.asarray(points + self._season.at(rows))

    def deviation(self, horizon: int) -> Array:
        """HxV of the errors that the models themselves expect."""
        a, b, gamma = self._rates.real, self._rates.imaginary, self._rates.season
        state = State(a - b, a + b, np.zeros((1, len(a))))
        power = np.ones_like(a)
        found = np.empty((horizon, len(a)))
        for h in range(horizon):
            found[h] = self._deviation * self._slope * np.sqrt(power)
            seasonal = gamma * ((h + 1) % self._cycle == 0)
            power = power + np.square(state.step(None, 0, self._rates) + seasonal)
        return found

    def _rows(self) -> int:
        return max(MAX_ROWS, MAX_CYCLES * self._cycle)

    def _of(self, number: int) -> Array:
        """Zero, unit or power of the series that it is given."""
        whole = self._scaling[number]
        return whole if self.series is None or len(whole) == 1 else whole[self.series]

    def _measured(self, values: Array) -> Array:
        """TxV without gaps, in measured units where there is a power, else in units of `unit`."""
        zero, unit, power = (self._of(number) for number in range(3))
        level = begun(self._season.without(values)) - zero
        return np.where(power == 1, level, unpowered(level * unit, power))

    def _scaled(self, levels: Array) -> Array:
        """O x H x V of typical measured values, in the units of `values`."""
        zero, unit, power = (self._of(number) for number in range(3))
        levels = np.maximum(levels, self._least) * self._typical
        return np.where(power == 1, levels, powered(levels, power) / unit) + zero

    def _slope_at(self, level: Array) -> Array:
        """V: how much values change with typical measured values."""
        unit, power = self._of(1), self._of(2)
        level = np.maximum(level, self._least) * self._typical
        with np.errstate(all="ignore"):
            return np.asarray(self._typical * np.where(power == 1, 1.0, level ** (power - 1) / unit / np.where(power > 0, 1 / power, 1.0)))


def _fitted(z: Array, usual: Array) -> tuple[Array, Array]:
    """3xV rates and V squared errors."""
    moves = len(usual) > 1
    sides = (np.linspace(-1, 1, count) for count in (GRID if moves else GRID[:2]))
    grid = np.stack(np.meshgrid(*sides, indexing="ij")).reshape(2 + moves, -1)
    grid = np.concatenate([grid, np.zeros((3 - len(grid), grid.shape[1]))])  # 3xG
    centre = np.repeat(np.array(CENTRE)[:, None], z.shape[1], axis=1)
    reach, best = np.array(REACH), np.full(z.shape[1], np.inf)
    columns = np.arange(z.shape[1])
    for _ in range(REFINED + 1):
        tried = centre[:, None] + (reach[:, None] * grid)[:, :, None]  # 3xGxV
        tried = np.stack([part.clip(*bounds) for part, bounds in zip(tried, BOUNDS, strict=True)])
        tried[2] *= moves
        loss = _loss(z, usual, Rates(*tried))
        winner = loss.argmin(axis=0)
        better = loss[winner, columns] < best
        best = np.where(better, loss[winner, columns], best)
        centre = np.where(better, tried[:, winner, columns], centre)
        reach = reach / DRAWN
    return centre, best


def _loss(z: Array, usual: Array, rates: Rates) -> Array:
    """GxV squared one-step errors."""
    state, total = _cast_back(z, usual, rates), np.zeros(rates.real.shape)
    for number, row in enumerate(z):
        total += np.square(state.step(row, number % len(usual), rates))
    return np.where(np.isfinite(total) & (total < LARGEST), total, LARGEST)


def _cast_back(z: Array, usual: Array, rates: Rates) -> State:
    """Start values: those at which a pass over the reversed rows arrives that began where a first pass ended, and that with the usual season."""
    period = len(usual)
    level = np.broadcast_to(z[: max(FIRST_ROWS, period)].mean(axis=0), rates.real.shape)
    season = np.repeat(usual[:, None], len(rates.real), axis=1) if rates.real.ndim > 1 else usual.copy()
    state = State(level, level * INFORMED, season)
    numbers = range(len(z))
    for number in (*numbers, *reversed(numbers)):
        state.step(z[number], number % period, rates)
    return state
