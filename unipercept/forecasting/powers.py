"""Logarithms and roots that stabilise the variance of a series, and their inverse. Quantiles are preserved.

Shapes: T rows, V series.

Source: Box and Cox (1964); the likelihood is that of changes around those of their phase.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

POWERS = (1.0, 0.5, 0.0)
MIN_ROWS = 20
MARGIN = 6.0  # log likelihood that a power must gain on leaving a series as it is
MAX_ROWS = 5000  # that are looked at
LARGEST = 700.0  # of an exponent


def powered(values: NDArray[Any], power: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows x V to the power (0: the logarithm); values that have none are missing."""
    if (power == 1).all():
        return np.asarray(values, np.float64)
    with np.errstate(all="ignore"):
        found = np.where(power == 0, np.log(values), np.where(power == 0.5, np.sqrt(values), values))
    return np.where(np.isfinite(found), found, np.nan)


def unpowered(values: NDArray[Any], power: NDArray[np.float64]) -> NDArray[np.float64]:
    """The way back, V as the last axis of `power` or broadcastable."""
    if (power == 1).all():
        return np.asarray(values, np.float64)
    return np.where(
        power == 0, np.exp(np.minimum(values, LARGEST)), np.where(power == 0.5, np.square(values.clip(min=0)), values)
    )


def choose_powers(values: NDArray[np.float64], period: int) -> NDArray[np.float64]:
    """V: 1 unless a root or the logarithm makes the changes from step to step clearly likelier; only for series that
    stay above 0 and have a cycle.

    Without a cycle all that grows with the level is the trend, and a trend that is continued in logarithms runs away:
    on yearly series errors grew by a third.
    """
    if period == 1:
        return np.ones(values.shape[1])
    part = values[-MAX_ROWS:]
    cycle = period if len(part) >= 3 * period else 1
    chosen = np.ones(values.shape[1])
    with np.errstate(all="ignore"):
        usable = (np.nanmin(values, axis=0) > 0) & (np.isfinite(part).sum(axis=0) >= MIN_ROWS)
    for v in np.flatnonzero(usable):
        y = part[:, v] / np.exp(np.nanmean(np.log(part[:, v])))
        gains = [_log_likelihood(y, power, cycle) - MARGIN * (power < 1) for power in POWERS]
        chosen[v] = POWERS[int(np.argmax(gains))]
    return chosen


def _log_likelihood(y: NDArray[np.float64], power: float, period: int) -> float:
    """Of Laplace's (so that no spike decides) changes of y to the power around the mean change of their phase, as a
    density of y: a cycle that keeps its size is likeliest.
    """
    z = y if power == 1 else np.log(y) if power == 0 else 2 * np.sqrt(y)
    change = np.diff(z)
    known = np.isfinite(change)
    phase, change = (np.arange(len(change)) % period)[known], change[known]
    usual = np.bincount(phase, change, period) / np.maximum(np.bincount(phase, minlength=period), 1)
    rest = change - usual[phase]
    return float(-len(rest) * np.log(np.abs(rest).mean() + 1e-30) + (power - 1) * np.log(y[1:][known]).sum())
