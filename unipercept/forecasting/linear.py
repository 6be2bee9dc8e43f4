"""A ridge regression from the last steps straight to every step of the horizon, one for all series.

Each window is taken relative to its last value and in units of its own spread, so that levels and sizes are shared.

Shapes: T rows, V series, N windows, L steps of a window, H steps ahead, O origins.

Source: Zeng et al. (2023), "Are transformers effective for time series forecasting?" (NLinear), solved in closed form.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError, counted
from unipercept.forecasting.season import Season, bridged

Array = NDArray[np.floating[Any]]

MAX_LOOKBACK = 512
MAX_WINDOWS = 30_000
MIN_WINDOWS = 24
MIN_KNOWN = 0.7  # of a target's steps
# In a column's own deviation: a window that moves less is not blown up further (a currency that was pegged).
QUIET = 0.05
PENALTIES = tuple(10.0**k for k in range(-4, 5))  # times the mean diagonal of the Gram matrix


class Linear:
    """Direct ridge regression over all series together."""

    name = "linear"
    gives_quantiles = False
    fits_closely = True

    def __init__(self, period: int, seed: int = 0) -> None:
        self.period, self.seed = period, seed
        self.lookback = 0
        self.weights: Array = np.zeros((0, 0))
        self.penalty = np.nan
        self._of_gaps = Season.of(np.zeros((1, 1)), 1)  # by which they are closed

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        """Windows of all series; the penalty that did best on the last fifth of the rows, then all rows."""
        self.lookback = choose_lookback(len(values), horizon, self.period)
        self._of_gaps = Season.of(values, self.period)
        filled = self._filled(values)
        past, future = self._windows(values, filled, horizon, 0, len(values))
        if len(past) < MIN_WINDOWS:
            raise InputError(f"{counted(len(past), 'window is', 'windows are')} too few for a regression")
        split = int(0.8 * len(values))
        if split > self.lookback + horizon + 8 and len(values) - split >= 8:
            train = self._windows(values, filled, horizon, 0, split)
            check = self._windows(values, filled, horizon, max(0, split - self.lookback), len(values))
            if len(train[0]) >= MIN_WINDOWS and len(check[0]):
                errors = [float(np.mean((check[0] @ w - check[1]) ** 2)) for w in _ridge(*train, PENALTIES)]
                self.penalty = PENALTIES[int(np.argmin(errors))]
        if not np.isfinite(self.penalty):
            self.penalty = 1.0
        self.weights = _ridge(past, future, (self.penalty,))[0]

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        filled = self._filled(values)
        forecast = np.empty((len(origins), horizon, values.shape[1]))
        for i, origin in enumerate(origins):
            forecast[i] = self._from(filled[max(0, origin - self.lookback) : origin], horizon, _quiet(values[:origin]))
        return forecast

    def _filled(self, values: Array) -> Array:
        """Gaps closed by the season about the last value; before the first one NaN."""
        if np.isfinite(values).all():
            return values
        return np.where(np.logical_or.accumulate(np.isfinite(values), axis=0), self._of_gaps.begun(values), np.nan)

    def _from(self, context: Array, horizon: int, floor: Array) -> Array:
        """HxV; a horizon beyond the fitted one goes on from the forecast."""
        pieces: list[Array] = []
        steps = 0
        while steps < horizon:
            window = context[-self.lookback :]
            first = window[np.isfinite(window).argmax(axis=0), np.arange(window.shape[1])]
            window = np.where(np.isfinite(window), window, first)
            if len(window) < self.lookback:
                window = np.concatenate([np.repeat(first[None], self.lookback - len(window), axis=0), window])
            last, spread = window[-1], np.maximum(_spread(window), floor)
            piece = last + spread * (self.weights.T @ ((window - last) / spread))
            pieces.append(piece)
            steps += len(piece)
            context = np.concatenate([window, piece])
        return np.concatenate(pieces)[:horizon]

    def _windows(self, values: Array, filled: Array, horizon: int, start: int, stop: int) -> tuple[Array, Array]:
        """NxL past and NxH future, scaled, of windows inside [start, stop) whose future is
        known; thinned to MAX_WINDOWS.
        """
        size = self.lookback + horizon
        places = np.arange(start, stop - size + 1)
        if not len(places):
            return np.empty((0, self.lookback)), np.empty((0, horizon))
        rng = np.random.default_rng(self.seed)
        count = len(places) * values.shape[1]
        picked = np.arange(count) if count <= MAX_WINDOWS else np.sort(rng.choice(count, MAX_WINDOWS, replace=False))
        rows, columns = places[picked // values.shape[1]], picked % values.shape[1]
        past = np.lib.stride_tricks.sliding_window_view(filled, self.lookback, axis=0)[rows, columns]
        future = np.lib.stride_tricks.sliding_window_view(bridged(values, self.period), horizon, axis=0)[
            rows + self.lookback, columns
        ]
        known = np.concatenate([np.zeros((1, values.shape[1])), np.isfinite(values).cumsum(axis=0)])
        share = (known[rows + size, columns] - known[rows + self.lookback, columns]) / horizon
        keep = np.isfinite(past).all(axis=1) & np.isfinite(future).all(axis=1) & (share >= MIN_KNOWN)
        keep &= np.ptp(past, axis=1) > 0
        if not keep.all():  # a copy of a hundred megabytes
            past, future, columns = past[keep], future[keep], columns[keep]
        last, spread = past[:, -1:].copy(), np.maximum(_spread(past.T), _quiet(values[:stop])[columns])[:, None]
        for part in (past, future):
            part -= last
            part /= spread
        return past, future


def choose_lookback(rows: int, horizon: int, period: int) -> int:
    """Steps of a window: long with long histories, at least a cycle and a half where that
    leaves windows to learn from.
    """
    longest = min(MAX_LOOKBACK, max(2, (rows - horizon) // 4))
    wanted = max(4 * period, 2 * horizon, 24)
    return max(2, min(longest if rows > 3000 else min(wanted, longest), rows - horizon - 1))


def _spread(window: Array) -> Array:
    """Standard deviation of each column, never 0."""
    spread = window.std(axis=0)
    return np.asarray(np.where(spread > 1e-12 * np.abs(window).max(axis=0).clip(min=1e-300), spread, 1.0))


def _quiet(values: Array) -> Array:
    """V: the least spread that a window is measured in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(QUIET * np.nan_to_num(np.nanstd(values[-20_000:], axis=0)))


def _ridge(past: Array, future: Array, penalties: Sequence[float]) -> list[Array]:
    """LxH weights for each penalty, from one decomposition of the Gram matrix."""
    gram = past.T @ past
    values, vectors = np.linalg.eigh(gram)
    projected = vectors.T @ (past.T @ future)
    unit = float(np.trace(gram)) / len(gram)
    return [vectors @ (projected / (values.clip(min=0) + penalty * unit)[:, None]) for penalty in penalties]
