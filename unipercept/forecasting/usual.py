"""Quantiles of the latest values of a series, of all phases or of the same phase: for counts with zeros, and for noise.

Shapes: T rows, V series, O origins, H steps ahead, M steps a cycle, Q quantile levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError
from unipercept.forecasting.scores import mean_pinball
from unipercept.forecasting.settings import QUANTILES

Array = NDArray[np.floating[Any]]

WINDOWS = (8, 20, 50, 120)  # values that a quantile is taken from
MIN_VALUES = 8
TRIALS = 60  # origins within the rows learned from, by which window and phase are chosen for each series


class UsualValues:
    """The window, and whether phases differ, with the least quantile loss within the rows learned from."""

    name = "usual values"
    gives_quantiles = True
    fits_closely = False

    def __init__(self, period: int) -> None:
        self.period = period
        self._forms: list[tuple[int, int]] = []  # cycle (1: all phases alike) and values of a window
        self._chosen: NDArray[np.int64] = np.zeros(0, np.int64)

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        """Choose among windows that leave origins to judge them by."""
        length = len(values)
        cycles = {1, self.period}
        self._forms = [
            (m, n) for m in sorted(cycles) for n in WINDOWS if m * n <= length // 2 or (m, n) == (1, MIN_VALUES)
        ]
        if length < 2 * MIN_VALUES:
            raise InputError(f"{length} rows are too few for quantiles of the usual values")
        span = min(horizon, max(1, length // 8))
        origins = np.unique(np.linspace(length // 2, length - span, TRIALS).astype(int))
        truth = values[origins[:, None] + np.arange(span)]
        losses = [
            mean_pinball(self._quantiles(values, origins, span, form), truth).mean(axis=(0, 1)) for form in self._forms
        ]
        self._chosen = np.argmin(losses, axis=0)

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        found = np.empty((len(origins), horizon, values.shape[1], len(QUANTILES)), np.float32)
        for number, form in enumerate(self._forms):
            columns = np.flatnonzero(self._chosen == number)
            if len(columns):
                found[:, :, columns] = self._quantiles(values[:, columns], origins, horizon, form)
        return found

    def _quantiles(
        self, values: Array, origins: Sequence[int] | NDArray[np.int64], horizon: int, form: tuple[int, int]
    ) -> Array:
        period, count = form
        reach = period * count
        padded = np.concatenate([np.full((reach, values.shape[1]), np.nan), values])
        ahead = np.arange(horizon) % period
        found = np.empty((len(origins), horizon, values.shape[1], len(QUANTILES)), np.float32)
        for i, origin in enumerate(origins):
            # The first phase is that of the first step ahead.
            window = padded[origin : origin + reach].reshape(count, period, -1)
            found[i] = _of_sorted(np.sort(window, axis=0))[ahead]
        return found


def _of_sorted(window: Array) -> Array:
    """M x V x Q quantiles of N x M x V values sorted along N, missing ones last, with the (n + 1) rule; 0, the
    mean, where nothing is known.
    """
    known = np.isfinite(window).sum(axis=0)
    place = np.clip(np.asarray(QUANTILES) * (known[..., None] + 1) - 1, 0, np.maximum(known[..., None] - 1, 0))
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(known[..., None] - 1, 0))
    ordered = np.moveaxis(window, 0, -1)
    below, above = np.take_along_axis(ordered, low, -1), np.take_along_axis(ordered, high, -1)
    return np.asarray(np.nan_to_num(below + (place - low) * (above - below)))
