"""Columns known in advance (prices, promotions, holidays, a weather forecast): their effects, and
another method for the remainder.

Source: Golub, Heath and Wahba (1979), generalized cross-validation, by which the penalty of the effects is chosen.

Shapes: T rows, V series, F columns (V is 1 where they are the same for all series), O origins, H steps ahead.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError
from unipercept.forecasting.baselines import Method, Modelled

Array = NDArray[np.floating[Any]]

MEMORY = 0.9  # of errors, from one row to the next: effects are estimated on what is new in each row
PENALTIES = tuple(4.0**k for k in range(8))  # rows' worth
MIN_ROWS_EACH = 8  # for each effect
DISTINCT_TO_BEND = 12  # values of a column that may have an effect of its square, too


class Known:
    """Linear and squared effects by ridge regression, each series its own; the other
    method forecasts what they leave, and keeps its name.
    """

    fits_closely = True
    series: NDArray[np.int64] | None = None  # those of the table that it is given, where they are not all

    def __init__(self, columns: Array, period: int, rest: Method) -> None:
        """Columns (T + H) x F x V, rows of the history and of the future, without gaps."""
        self.columns, self.period, self.rest = columns, period, rest
        self.name, self.gives_quantiles = rest.name, rest.gives_quantiles
        self._effects: Array = np.zeros((0, 0))

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        """Effects on the changes over a cycle, then the other method on what they leave."""
        self.rest = copy.copy(self.rest)
        length, width = values.shape
        features = known_features(self.columns, length, self.series)
        x, y = new_in_rows(features[:length], self.period), new_in_rows(values, self.period)
        shown = [x[:, :, min(v, x.shape[2] - 1)] for v in range(width)]
        self._effects = np.stack([ridge_effects(shown[v], y[:, v]) for v in range(width)], axis=1)
        self._features = features
        self.rest.fit(values - self._at(np.arange(length)), horizon, seconds)

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        check_reach(len(self._features), origins, horizon)
        rows = np.asarray(origins)[:, None] + np.arange(horizon)
        left = self.rest.predict(values - self._at(np.arange(len(values))), origins, horizon)
        told = self._at(rows.reshape(-1)).reshape(*rows.shape, -1)
        return np.asarray(left + (told[..., None] if self.gives_quantiles else told))

    def deviation(self, horizon: int) -> Array:
        """HxV of the errors that the other method expects, NaN where it is no model."""
        if isinstance(self.rest, Modelled):
            return self.rest.deviation(horizon)
        return np.full((horizon, self._effects.shape[1]), np.nan)

    def _at(self, rows: NDArray[np.int64]) -> Array:
        """Rows x V, what the columns explain."""
        return np.asarray(
            np.einsum(
                "tfv,fv->tv", np.broadcast_to(self._features[rows], (len(rows), *self._effects.shape)), self._effects
            )
        )


def new_in_rows(rows: Array, period: int) -> Array:
    """What is new in each row: without its like a cycle before and most of its neighbour."""
    has_like = period > 1 and len(rows) > 3 * period
    rows = rows[period:] - rows[:-period] if has_like else rows - np.nanmean(rows, axis=0)
    return rows[1:] - MEMORY * rows[:-1]


def ridge_effects(features: Array, values: Array) -> Array:
    """F effects of rows x F on as many values, NaN where missing; none where there are too few.

    The penalty is the one of `PENALTIES` with the least error by generalized cross-validation, so that columns that
    explain nothing have hardly any effect.
    """
    told = np.isfinite(values)
    rows, count = int(told.sum()), features.shape[1]
    if rows < MIN_ROWS_EACH * count:
        return np.zeros(count)
    size = np.sqrt(np.square(features[told]).mean(axis=0).clip(min=1e-9))
    x, y = features[told] / size, values[told]
    power, vectors = np.linalg.eigh(x.T @ x)
    power, projected = power.clip(min=1e-9), vectors.T @ (x.T @ y)
    kept = [power / (power + penalty) for penalty in PENALTIES]  # of each direction's effect by least squares
    left = [float(y @ y - (projected**2 / power * share * (2 - share)).sum()) for share in kept]
    errors = [rest / (rows - share.sum()) ** 2 for rest, share in zip(left, kept, strict=True)]
    return np.asarray(vectors @ (kept[int(np.argmin(errors))] / power * projected) / size)


def are_too_few(rows: int, period: int, columns: Array) -> bool:
    """Whether so many rows of history tell no effects of columns (T + H) x F x V."""
    features = known_features(columns, rows)
    return bool(len(new_in_rows(features[:rows], period)) < MIN_ROWS_EACH * features.shape[1])


def check_reach(rows: int, origins: Sequence[int], horizon: int) -> None:
    """Refuse a forecast of steps in which nothing is told of the columns known in advance."""
    missing = max(origins) + horizon - rows
    if missing > 0:
        raise InputError(f"the columns known in advance end {missing} steps before the horizon does")


def known_features(columns: Array, learned: int, series: NDArray[np.int64] | None = None) -> Array:
    """(T + H) x F x V: each column in units of its deviation in the rows learned from, and its
    square where it takes many values.

    Args:
        series: those of the table's that are wanted; None for all.
    """
    if series is not None and columns.shape[2] > 1:
        columns = columns[:, :, series]
    head = columns[:learned]
    deviation = head.std(axis=0)
    scaled = (columns - head.mean(axis=0)) / np.where(deviation > 1e-12, deviation, 1.0)
    bent = [f for f in range(columns.shape[1]) if len(np.unique(head[:, f])) >= DISTINCT_TO_BEND]
    return np.concatenate([scaled, np.square(scaled[:, bent]) - 1], axis=1)
