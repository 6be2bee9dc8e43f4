"""The dynamic optimised theta method: exponential smoothing of the level plus part of the straight
line through all that was seen.

Source: Fiorucci et al. (2016), "Models for optimising the theta method and their relationship to state space models".

Shapes: T rows, V series, O origins, H steps ahead, M steps a cycle, A and G rates and thetas of the search.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from unipercept.forecasting.filters import begun
from unipercept.forecasting.season import Season

Array = NDArray[np.floating[Any]]

RATES = np.concatenate([np.linspace(0.02, 0.3, 8), np.linspace(0.4, 1.0, 7)])
THETAS = np.array([1.0, 1.2, 1.5, 2.0, 3.0, 5.0])
SKIPPED = 3  # first one-step errors, of lines through hardly any points
FITTED = 2  # rate and theta
MAX_ROWS = 5000  # that are smoothed; a line through more says nothing of the near future


class Theta:
    """Level and line after the season has been taken off; the rate of the level and theta have the
    least squared one-step errors.
    """

    name = "theta"
    gives_quantiles = False
    fits_closely = False

    def __init__(self, period: int) -> None:
        self.period = period
        self._season: Season | None = None
        self._rate: Array = np.zeros(0)
        self._theta: Array = np.zeros(0)
        self._deviation: Array = np.zeros(0)  # of the one-step errors

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        """Season, rate and theta of each series."""
        self._season = Season.of(values, self.period)
        z = begun(self._season.without(values))[-MAX_ROWS:]
        intercept, slope = _lines(z)
        count = np.arange(1, len(z))[:, None]  # values seen before each error
        best = np.full(z.shape[1], np.inf)
        self._rate, self._theta = np.full(z.shape[1], 0.5), np.full(z.shape[1], 2.0)
        for rate in RATES:
            level = _smoothed(z, rate)[:-1]
            fade = (1 - rate) ** count
            line = intercept[:-1] * fade + slope[:-1] * (1 - fade * (1 - rate)) / rate
            for theta in THETAS:
                error = (z[1:] - level - (1 - 1 / theta) * line)[SKIPPED:]
                loss = np.square(error).sum(axis=0)
                better = loss < best
                best[better], self._rate[better], self._theta[better] = loss[better], rate, theta
        self._deviation = np.sqrt(best / max(1, len(z) - 1 - SKIPPED - FITTED))

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        assert self._season is not None
        start = max(0, min(origins) - MAX_ROWS)
        z = begun(self._season.without(values)[start:])
        ends = np.asarray(origins) - start - 1
        intercept, slope = (part[ends][:, None] for part in _lines(z))  # Ox1xV
        level = np.stack([_smoothed(z[:, v], rate) for v, rate in enumerate(self._rate)], axis=1)[ends][:, None]
        fade = (1 - self._rate) ** (ends[:, None, None] + 1)
        steps = np.arange(horizon)[:, None]
        line = intercept * fade + slope * (steps + (1 - fade * (1 - self._rate)) / self._rate)
        rows = np.asarray(origins)[:, None] + np.arange(horizon)
        return np.asarray(level + (1 - 1 / self._theta) * line + self._season.at(rows))

    def deviation(self, horizon: int) -> Array:
        """HxV of the errors that the models themselves expect."""
        return np.asarray(self._deviation * np.sqrt(1 + np.arange(horizon)[:, None] * self._rate**2))


def _smoothed(z: Array, rate: float) -> Array:
    """Level after each row; it starts at the first value."""
    return np.asarray(lfilter([rate], [1, rate - 1], z, axis=0, zi=(1 - rate) * z[:1])[0])


def _lines(z: Array) -> tuple[Array, Array]:
    """Intercept (at step 0, before the first) and slope of the straight line through z[:t+1], for every t."""
    t = np.arange(1, len(z) + 1, dtype=np.float64)[:, None]
    total, moment = z.cumsum(axis=0), (t * z).cumsum(axis=0)
    slope = np.where(t > 1, (moment - (t + 1) / 2 * total) / np.maximum(t * (t * t - 1) / 12, 1e-12), 0.0)
    return total / t - slope * (t + 1) / 2, slope
