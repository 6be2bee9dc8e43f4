"""Complex exponential smoothing: the level, and an estimate of its change, as one complex
number smoothed at a complex rate.

A trend is no part of the model; it comes of the rate, may bend, and is relative to the level: doubling a series doubles
its forecast, raising it by a constant changes it. So it works on values as measured, also where the other methods see
logarithms or roots. A season is added that moves at a rate of its own. Rates are found on a grid that is refined, for
all series at once: the recursion runs over rows, not series.

Source: Svetunkov, Kourentzes and Ord (2022), "Complex exponential smoothing", its form without a season, and
Svetunkov and Kourentzes (2015), "Complex exponential smoothing for time series forecasting", that with a "partial"
season; start values by casting back.

Shapes: T rows, V series, O origins, H steps ahead, M steps a cycle, G rates that are tried.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.forecasting.filters import spread_order
from unipercept.forecasting.measured import Scaling
from unipercept.forecasting.season import MIN_CYCLES, Season

Array = NDArray[np.floating[Any]]

MAX_PERIOD = 24  # of a season that moves; a longer one is taken off and stays as it is
# Of the real and the imaginary part of the rate, as in statsforecast, and of the season's.
BOUNDS = ((0.01, 1.8), (0.01, 1.9), (0.005, 0.9))
CENTRE, REACH = (1.0, 1.0, 0.3), (0.8, 0.3, 0.29)  # of the first grid
GRID = (7, 25, 5)  # rates a side: errors change fast with the imaginary part
REFINED = 3  # how often the grid is drawn closer around the best
DRAWN = 3.0  # times as close
MAX_ROWS, MAX_CYCLES = 120, 12  # that are smoothed before an origin, the larger; rates near 1 forget what lies before
FIRST_ROWS = 10  # whose mean begins the level, before casting back
INFORMED = 1 / 1.1  # the change's start relative to it
FITTED = 4  # two rates and two start values
LARGEST = 1e12  # at which a rate has run away
AT_ONCE = 100_000  # rates that are tried at a time
WINDOWS_AT_ONCE = 4_000_000  # rows of all windows that are forecast from at a time


@dataclass(frozen=True, eq=False)
class Rates:
    """Real and imaginary part of the level's rate, and the season's (0: it stays as it is); GxV or 1xV each."""

    real: Array
    imaginary: Array
    season: Array


@dataclass(eq=False)
class State:
    """Level and change, GxV or OxV each, and the season by phase, M x GxV or M x OxV;
    the season is changed in place.
    """

    level: Array
    change: Array
    season: Array

    def step(self, value: Array, phase: int, rates: Rates, live: Array | float = 1.0) -> Array:
        """Take in a value where `live` is 1, and return its error; bounded, since rates
        that run away are tried, too.
        """
        a, b = rates.real, rates.imaginary
        error = (live * (value - self.level - self.season[phase])).clip(-LARGEST, LARGEST)
        level = self.level + (a - b) * error - live * (1 - b) * self.change
        change = self.change + (a + b) * error + live * (self.level - a * self.change)
        self.level, self.change = level.clip(-LARGEST, LARGEST), change.clip(-LARGEST, LARGEST)
        self.season[phase] += rates.season * error
        return np.asarray(error)

    def ahead(self, phase: int, rates: Rates) -> Array:
        """The forecast, which then comes true."""
        found = self.level + self.season[phase]
        self.level, self.change = (
            self.level - (1 - rates.imaginary) * self.change,
            self.level + (1 - rates.real) * self.change,
        )
        return np.asarray(found)


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
        self._table_scaling = Scaling.of(zero, unit, power)
        self.series: NDArray[np.int64] | None = None  # those of the table that it is given, where they are not all
        self._season = Season.of(np.zeros((1, 1)), 1)  # that stays
        self._of_gaps = self._season  # by which gaps are closed where the season moves
        self._cycle = 1  # of the season that moves
        self._usual: Array = np.zeros((1, 1))  # MxV, where it starts
        # V each: the size of a measured value, and in it the smallest forecast, the level of the last cycle, the
        # deviation of the one-step errors.
        self._typical: Array = np.ones(1)
        self._least: Array = np.zeros(1)
        self._latest: Array = np.zeros(1)
        self._deviation: Array = np.zeros(0)
        self._rates = Rates(*np.zeros((3, 1, 0)))

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        """The season and the rates of each series; where time runs out, the others take the median rates."""
        deadline = time.monotonic() + seconds
        moves = 1 < self.period <= MAX_PERIOD and len(values) >= MIN_CYCLES * self.period
        self._cycle = self.period if moves else 1
        self._season = Season.of(values, 1 if moves else self.period)
        self._of_gaps = Season.of(values, self._cycle)
        whole = self._measured(values)
        self._typical = np.maximum(np.abs(whole).mean(axis=0), np.finfo(float).tiny)
        self._least = self._scaling.least(whole) / self._typical
        first = max(0, len(whole) - self._rows())
        z = whole[first - first % self._cycle :] / self._typical
        self._usual = Season.of(z, self._cycle, tested=False).profile
        order = np.array(spread_order(z.shape[1]))
        width = max(1, AT_ONCE // int(np.prod(GRID)))
        rates, losses = np.full((3, len(order)), np.nan), np.full(len(order), np.nan)
        for number in range(0, len(order), width):
            if number and time.monotonic() > deadline:
                break
            some = order[number : number + width]
            rates[:, some], losses[some] = _fitted(z[:, some], self._usual[:, some])
        rest = np.isnan(losses)
        if rest.any():
            rates[:, rest] = np.median(rates[:, ~rest], axis=1, keepdims=True)
            losses[rest] = _loss(z[:, rest], self._usual[:, rest], Rates(*rates[:, None, rest]))[0]
        self._rates = Rates(*rates[:, None])
        self._deviation = np.sqrt(losses / max(1, len(z) - FITTED))
        self._latest = z[-self._cycle :].mean(axis=0)

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        z = self._measured(values) / self._typical
        rows = min(self._rows(), max(origins))
        at_once = max(1, WINDOWS_AT_ONCE // (rows * z.shape[1]))
        parts = [
            self._ahead(z, np.asarray(origins[first : first + at_once]), rows, horizon)
            for first in range(0, len(origins), at_once)
        ]
        phases = np.asarray(origins)[:, None] + np.arange(horizon)
        return np.asarray(self._scaled(np.concatenate(parts)) + self._season.at(phases))

    def _ahead(self, z: Array, ends: NDArray[np.int64], rows: int, horizon: int) -> Array:
        """OxHxV, each from the rows before its origin alone; where there are fewer than `rows`, the first
        ones of a window do nothing.
        """
        window = np.zeros((rows, len(ends), z.shape[1]))
        seen = np.minimum(ends, rows)
        usual = np.empty((self._cycle, len(ends), z.shape[1]))
        for i, end in enumerate(ends):
            window[rows - seen[i] :, i] = z[end - seen[i] : end]
            usual[:, i] = np.roll(self._usual, (rows - end) % self._cycle, axis=0)
        live = (np.arange(rows)[:, None] >= rows - seen)[:, :, None] * 1.0
        state = _cast_back(window, usual, self._rates, live)
        for row in range(rows):
            state.step(window[row], row % self._cycle, self._rates, live[row])
        return np.stack([state.ahead((rows + h) % self._cycle, self._rates) for h in range(horizon)], axis=1)

    def deviation(self, horizon: int) -> Array:
        """HxV of the errors that the models themselves expect."""
        a, b, gamma = self._rates.real, self._rates.imaginary, self._rates.season
        state = State(a - b, a + b, np.zeros((1, *a.shape)))
        power = np.ones_like(a)
        found = np.empty((horizon, a.shape[1]))
        for h in range(horizon):
            found[h] = self._upwards(self._deviation * np.sqrt(power)[0])
            power = power + np.square(state.ahead(0, self._rates) + gamma * ((h + 1) % self._cycle == 0))
        return found

    def _rows(self) -> int:
        return max(MAX_ROWS, MAX_CYCLES * self._cycle)

    @property
    def _scaling(self) -> Scaling:
        """Of the series that it is given."""
        return self._table_scaling.of_series(self.series)

    def _measured(self, values: Array) -> Array:
        """TxV without gaps, in measured units where there is a power, else in units of `unit`."""
        return self._scaling.measured(self._of_gaps.begun(self._season.without(values)))

    def _scaled(self, levels: Array) -> Array:
        """... x V of typical measured values, in the units of `values`."""
        return self._scaling.scaled(np.maximum(levels, self._least) * self._typical)

    def _upwards(self, distance: Array) -> Array:
        """V: how far values move where typical measured ones rise so far from their latest level.

        (Downwards, logarithms have no end.)
        """
        return np.asarray(self._scaled(self._latest + distance) - self._scaled(self._latest))


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
    state, total = _cast_back(z[:, None], usual[:, None], rates), np.zeros(rates.real.shape)
    for number, row in enumerate(z):
        total += np.square(state.step(row, number % len(usual), rates))
    return np.where(np.isfinite(total) & (total < LARGEST), total, LARGEST)


def _cast_back(z: Array, usual: Array, rates: Rates, live: Array | None = None) -> State:
    """Start values: those at which a pass over the reversed rows arrives that began where a first pass ended,
    and that with the usual season.

    Args:
        z: T x 1xV, or T x OxV with `live`, which is 1 on rows that count.
        usual: M x 1xV or M x OxV.
    """
    period, numbers = len(usual), range(len(z))
    some = max(FIRST_ROWS, period)
    if live is None:
        live, level = np.ones((len(z), 1, 1)), z[:some].mean(axis=0)
    else:
        first = live * (live.cumsum(axis=0) <= some)
        level = (z * first).sum(axis=0) / first.sum(axis=0)
    level = np.broadcast_to(level, np.broadcast_shapes(level.shape, rates.real.shape))
    state = State(level, level * INFORMED, np.array(np.broadcast_to(usual, (period, *level.shape))))
    for number in (*numbers, *reversed(numbers)):
        state.step(z[number], number % period, rates, live[number])
    return state
