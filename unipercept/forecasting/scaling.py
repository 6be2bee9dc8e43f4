"""Mean and deviation of tables with gaps: removed before a forecaster is trained, restored in its forecasts.

Shapes: S series of the fit, N contexts, L rows of a context, T rows, V variables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Scale:
    """Mean and deviation of the training rows: of each variable of one table, or none where
    many series share the weights.
    """

    mean: NDArray[np.float64]  # SxV, S series of the fit
    std: NDArray[np.float64]
    feature_mean: NDArray[np.float64]
    feature_std: NDArray[np.float64]

    @staticmethod
    def unit(n_features: int) -> Scale:
        return Scale(np.zeros((0, 0)), np.ones((0, 0)), np.zeros(n_features), np.ones(n_features))

    @staticmethod
    def of(tables: list[Array], features: list[Array] | None) -> Scale:
        mean, std = (np.array(rows) for rows in zip(*map(mean_and_deviation, tables), strict=True))
        told = np.zeros((1, 0)) if features is None else np.concatenate(features)
        feature_std = told.std(axis=0)
        return Scale(mean, std, told.mean(axis=0), np.where(feature_std > 1e-12, feature_std, 1.0))

    @property
    def is_shared(self) -> bool:
        """Whether the scale of a context must come from the context."""
        return len(self.mean) != 1

    def scaled(self, table: Array, number: int) -> NDArray[np.float32]:
        scaled: NDArray[np.float32] = ((table - self.mean[number]) / self.std[number]).astype(np.float32)
        return scaled

    def scaled_features(self, features: Array) -> NDArray[np.float32]:
        scaled: NDArray[np.float32] = ((features - self.feature_mean) / self.feature_std).astype(np.float32)
        return scaled

    def scaled_context(self, context: Array, column: int) -> tuple[Array, Array, Array]:
        """Contexts NxLxV scaled, and what was taken off, broadcastable to NxTxV."""
        if self.is_shared:
            mean, std = mean_and_deviation(context, axis=1)
            mean, std = mean[:, None], std[:, None]
        else:
            columns = slice(column, column + context.shape[2])
            mean, std = (np.broadcast_to(part[0, columns], (1, 1, context.shape[2])) for part in (self.mean, self.std))
        return (context - mean) / std, mean, std


def mean_and_deviation(table: Array, axis: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Over what is not missing; 0 and 1 where nothing is there, 1 for a constant."""
    seen = ~np.isnan(table)
    count = np.maximum(seen.sum(axis=axis), 1)
    mean = np.where(seen, table, 0).sum(axis=axis) / count
    variance = (np.where(seen, table - np.expand_dims(mean, axis), 0) ** 2).sum(axis=axis) / count
    std = np.sqrt(variance)
    return mean, np.where(std > 1e-9 * np.maximum(1e-30, np.abs(mean)), std, 1.0)
