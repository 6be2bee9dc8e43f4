"""Forecasts without a network, for all series and many origins at once.

Each sees the rows before an origin and no other.

Shapes: T rows, V series, O origins, H steps ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from unipercept.forecasting.repairs import forward_filled

Array = NDArray[np.floating[Any]]


class Method(Protocol):
    """A way to forecast."""

    name: str
    gives_quantiles: bool  # False: points, whose quantiles come from their errors at earlier origins
    fits_closely: bool  # True: so many coefficients that errors in the rows learned from say nothing of later ones

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        """Learn from TxV rows (NaN where missing), within some seconds."""

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        """O x H x V points, or O x H x V x Q quantiles; that of origin o sees values[:o] alone."""


@runtime_checkable
class Modelled(Protocol):
    """A method that is a model of the series' errors, too."""

    def deviation(self, horizon: int) -> Array:
        """HxV of the forecast errors that the fitted model expects, NaN where unknown."""


class Naive:
    """The last value again."""

    name = "naive"
    gives_quantiles = False
    fits_closely = False

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        """Nothing to learn."""

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        filled = forward_filled(values)
        return np.repeat(filled[np.asarray(origins) - 1][:, None], horizon, axis=1)


class SeasonalNaive:
    """The last cycle again; where a phase is missing, the one of the cycle before."""

    gives_quantiles = False
    fits_closely = False

    def __init__(self, period: int, name: str = "seasonal naive") -> None:
        self.period, self.name = period, name

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        """Nothing to learn."""

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        period = self.period
        padding = -len(values) % period
        phases = np.concatenate([np.full((padding, values.shape[1]), np.nan), values]).reshape(
            -1, period, values.shape[1]
        )
        known = forward_filled(phases.reshape(len(phases), -1)).reshape(-1, values.shape[1])[padding:]
        rows = np.asarray(origins)[:, None] - period + np.arange(horizon) % period
        forecast = np.where((rows >= 0)[..., None], known[rows.clip(min=0)], np.nan)
        fallback = forward_filled(values)[np.asarray(origins) - 1][:, None]
        return np.where(np.isfinite(forecast), forecast, fallback)


class Drift:
    """The straight line from the first value to the last, continued."""

    name = "drift"
    gives_quantiles = False
    fits_closely = False

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        """Nothing to learn."""

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        known = np.isfinite(values)
        first = known.argmax(axis=0)
        rows = np.maximum.accumulate(np.where(known, np.arange(len(values))[:, None], -1), axis=0)
        last = rows[np.asarray(origins) - 1]  # OxV
        columns = np.arange(values.shape[1])
        begin, end = values[first, columns], values[last.clip(min=0), columns]
        slope = (end - begin) / np.maximum(last - first, 1)
        late = np.asarray(origins)[:, None] - 1 - last  # steps since the last value
        steps = np.arange(1, horizon + 1)[None, :, None] + late[:, None]
        forecast = end[:, None] + slope[:, None] * steps
        return np.where((last >= 0)[:, None], forecast, np.nan)


class SeasonalDrift:
    """The last cycle again, raised by the mean change from cycle to cycle over the last few."""

    name = "seasonal naive with drift"
    gives_quantiles = False
    fits_closely = False

    def __init__(self, period: int, cycles: int = 3) -> None:
        self.period, self.cycles = period, cycles
        self._naive = SeasonalNaive(period)

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        """Nothing to learn."""

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        period = self.period
        change = values[period:] - values[:-period] if len(values) > period else np.zeros((0, values.shape[1]))
        known = np.isfinite(change)
        zeros = np.zeros((min(period, len(values)) + 1, values.shape[1]))
        total = np.concatenate([zeros, np.where(known, change, 0).cumsum(axis=0)])  # row r: of values[:r]
        count = np.concatenate([zeros, known.cumsum(axis=0)])
        ends = np.asarray(origins)
        starts = (ends - self.cycles * period).clip(min=0)
        rise = (total[ends] - total[starts]) / np.maximum(count[ends] - count[starts], 1)
        ahead = np.arange(horizon) // period + 1
        return np.asarray(self._naive.predict(values, origins, horizon) + rise[:, None] * ahead[None, :, None])


class LastPeriod:
    """The last cycle again, with its length detected anew before each origin: for series without a calendar, such as a
    voice, an engine or a heart.

    The length is the lag at which the last `window` values are most like themselves; where none is like
    enough, the last value is repeated.
    """

    name = "last period"
    gives_quantiles = False
    fits_closely = False

    def __init__(self, window: int = 256, least: float = 0.3) -> None:
        self.window, self.least = window, least  # least: autocorrelation that counts as a cycle

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        """Nothing to learn."""

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        filled = forward_filled(values)
        return np.stack([self._from(filled[max(0, origin - self.window) : origin], horizon) for origin in origins])

    def _from(self, past: Array, horizon: int) -> Array:
        begun = np.isfinite(past)
        count = begun.sum(axis=0)
        mean = np.where(begun, past, 0).sum(axis=0) / np.where(count > 0, count, np.nan)
        past = np.where(begun, past, mean)  # of the window alone: the column's mean would know what comes later
        centred = past - past.mean(axis=0)
        size = len(past)
        spectrum = np.fft.rfft(centred, 2 * size, axis=0)
        products = np.fft.irfft(np.abs(spectrum) ** 2, axis=0)[: size // 2 + 1]
        likeness = products / (size - np.arange(len(products)))[:, None] / np.maximum(products[:1] / size, 1e-30)
        forecast = np.repeat(past[-1:], horizon, axis=0)
        if len(likeness) < 5:
            return forecast
        for v in range(past.shape[1]):
            # Lags on the flank of lag 0 are like it without any cycle: the search starts
            # where likeness has first fallen.
            fallen = np.flatnonzero(likeness[:, v] < 0)
            if not len(fallen) or fallen[0] >= len(likeness) - 1:
                continue
            lag = int(fallen[0] + likeness[fallen[0] :, v].argmax())
            if lag >= 2 and likeness[lag, v] >= self.least:
                forecast[:, v] = past[size - lag + np.arange(horizon) % lag, v]
        return np.asarray(forecast)
