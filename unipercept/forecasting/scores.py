"""Scores of quantile forecasts. Cells whose truth is missing count nowhere.

Shapes: O origins, H steps ahead, V series, Q quantile levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.forecasting.settings import QUANTILES

Array = NDArray[np.floating[Any]]

DECILES = tuple(q for q in QUANTILES if 0.1 <= q <= 0.9)
INTERVALS = {0.8: (0.1, 0.9), 0.95: (0.025, 0.975)}
MEDIAN = QUANTILES.index(0.5)
ROUNDING = 1e-5  # of a series' scale: float32 quantiles of a series that repeats exactly must still hold it


@dataclass(frozen=True)
class Score:
    """Of one method over some origins and series.

    Args:
        mase: mean absolute error of the median, in units of the error of seasonal naive within the rows learned
            from (Hyndman and Koehler 2006).
        sql: scaled quantile loss, the mean pinball loss of all levels, twice, in the unit of MASE; by this methods are
            chosen, since the series of a table need not share a unit.
        wql: weighted quantile loss, 2 x sum of the pinball losses over the sum of |truth|, mean of the nine deciles.
        coverage: interval to the share of the truth inside it.
        mse, mae: of the median, in the series' own units.
    """

    mase: float
    sql: float
    wql: float
    coverage: dict[float, float]
    mse: float
    mae: float

    def to_dict(self) -> dict[str, float]:
        return {
            "MASE": self.mase,
            "SQL": self.sql,
            "wQL": self.wql,
            **{f"coverage {100 * level:g} %": share for level, share in self.coverage.items()},
            "MSE": self.mse,
            "MAE": self.mae,
        }


def score(quantiles: Array, truth: Array, scale: Array) -> Score:
    """Scores of OxHxVxQ quantiles against OxHxV.

    Args:
        scale: V, the unit of MASE (NaN for series that never change).
    """
    known = np.isfinite(truth)
    middle = quantiles[..., MEDIAN]
    error = np.where(known, np.abs(truth - middle), 0.0)
    count = known.sum(axis=(0, 1))
    usable = (count > 0) & np.isfinite(scale) & (scale > 0)
    per_series = error.sum(axis=(0, 1))[usable] / count[usable] / scale[usable]
    scaled = 2 * mean_pinball(quantiles, truth).sum(axis=(0, 1))[usable] / count[usable] / scale[usable]
    weight = np.abs(np.where(known, truth, 0.0)).sum()
    loss = sum(pinball(quantiles[..., QUANTILES.index(q)], truth, q).sum() for q in DECILES)
    coverage = {}
    slack = ROUNDING * np.nan_to_num(scale)
    for level, (low, high) in INTERVALS.items():
        low_end, high_end = quantiles[..., QUANTILES.index(low)], quantiles[..., QUANTILES.index(high)]
        inside = (truth >= low_end - slack) & (truth <= high_end + slack)
        coverage[level] = float(inside[known].mean()) if known.any() else float("nan")
    n = max(1, int(known.sum()))
    with np.errstate(over="ignore"):  # values of 1e300 have no square
        mse = float((error**2).sum() / n)
    return Score(
        float(per_series.mean()) if len(per_series) else float("nan"),
        float(scaled.mean()) if len(scaled) else float("nan"),
        float(2 * loss / len(DECILES) / weight) if weight > 0 else float("nan"),
        coverage,
        mse,
        float(error.sum() / n),
    )


def pinball(quantile: Array, truth: Array, level: float) -> Array:
    """Pinball loss of each cell; 0 where the truth is missing."""
    below = np.nan_to_num(truth - quantile)
    return np.maximum(level * below, (level - 1) * below)


def mean_pinball(quantiles: Array, truth: Array, levels: Sequence[float] = QUANTILES) -> Array:
    """The mean over all levels, of each cell."""
    total = np.zeros(truth.shape)
    for i, level in enumerate(levels):
        total += pinball(quantiles[..., i], truth, level)
    return total / len(levels)


def mean_of_known(values: Array, axis: int | tuple[int, ...], keepdims: bool = False) -> Array:
    """The mean of what is finite, NaN where nothing is."""
    known = np.isfinite(values)
    count = known.sum(axis=axis, keepdims=keepdims)
    total = np.where(known, values, 0).sum(axis=axis, keepdims=keepdims)
    return np.asarray(np.where(count, total / np.maximum(count, 1), np.nan))


def seasonal_scale(values: Array, period: int) -> Array:
    """The unit of MASE: V mean distances of values a cycle apart (a step, where there is no cycle or it repeats
    exactly); NaN where that is 0.
    """
    step = _mean_distance(values, 1)
    scale = _mean_distance(values, period) if len(values) > period else step
    scale = np.where(scale > 0, scale, step)
    return np.where(scale > 0, scale, np.nan)


def _mean_distance(values: Array, lag: int) -> Array:
    distance = np.abs(values[lag:] - values[:-lag])
    known = np.isfinite(distance)
    return np.asarray(np.where(known, distance, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1))
