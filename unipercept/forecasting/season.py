"""An additive season that is removed before a method without one, and restored in its forecast.

Shapes: T rows, V series, M steps a cycle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.forecasting.filters import begun
from unipercept.forecasting.repairs import forward_filled

Array = NDArray[np.floating[Any]]

MIN_CYCLES = 2.5
MAX_CYCLES = 12  # the latest ones are averaged
NOISE = 1.645  # deviations that an autocorrelation must stand out: 90 %, the test of the theta method


@dataclass(frozen=True, eq=False)
class Season:
    """The usual distance of each phase from the level, MxV; 0 for a series without a season.

    Phases are row numbers modulo M.
    """

    profile: Array

    @classmethod
    def of(cls, values: Array, period: int, *, tested: bool = True) -> Season:
        """Classical decomposition of TxV rows: what a centred mean over a cycle leaves, averaged by phase.

        Args:
            tested: 0 for a series whose changes do not say that there is a season.
        """
        length, width = values.shape
        if period < 2 or length < MIN_CYCLES * period:
            return cls(np.zeros((1, width)))
        filled: Array = forward_filled(values, start="mean")
        profile = _profile(values, filled, period)
        if not np.isfinite(values).all():  # flat stretches are no season: once more, with its first guess in the gaps
            filled = bridged_by(values, cls(profile))
            profile = _profile(values, filled, period)
        return cls(profile * _is_seasonal(filled, period) if tested else profile)

    def at(self, rows: NDArray[np.int64]) -> Array:
        """The season at rows of any shape, V as a further axis."""
        return np.asarray(self.profile[rows % len(self.profile)])

    def without(self, values: Array) -> Array:
        """TxV without the season."""
        return np.asarray(values - self.at(np.arange(len(values))))

    def begun(self, values: Array, first: int = 0) -> Array:
        """TxV, of which row 0 is row `first`: gaps closed by the season about the last value, the beginning by that
        about the first. Nothing looks ahead of a series that has begun.
        """
        usual = self.at(np.arange(first, first + len(values)))
        return np.asarray(begun(values - usual) + usual)


def bridged(values: Array, period: int) -> Array:
    """TxV with gaps closed by the season about straight lines: for parameters, which are learned from
    rows that all lie in the past.
    """
    return values if np.isfinite(values).all() else bridged_by(values, Season.of(values, period))


def bridged_by(values: Array, season: Season) -> Array:
    """TxV with gaps closed by this season about straight lines."""
    rows = np.arange(len(values))
    filled = season.without(values)
    for column in filled.T:
        known = np.isfinite(column)
        if not known.all():
            column[:] = np.interp(rows, rows[known], column[known]) if known.any() else 0.0
    return filled + season.at(rows)


def _profile(values: Array, filled: Array, period: int) -> Array:
    """MxV, the mean distance of each phase's values from a centred mean of rows without gaps."""
    length, width = values.shape
    rest = values - centred_mean(filled, period)
    first = max(0, length - MAX_CYCLES * period)
    first -= first % period
    rest = rest[first:]
    padding = -len(rest) % period
    cycles = np.concatenate([rest, np.full((padding, width), np.nan)]).reshape(-1, period, width)
    known = np.isfinite(cycles)
    profile = np.where(known, cycles, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.asarray(profile - profile.mean(axis=0))


def seasonal_strength(y: Array, period: int) -> float:
    """1 less the share of what is left without season in the variance about the trend (Wang et al. 2006)."""
    column = y[:, None]
    about = column - centred_mean(column, period)
    known = np.isfinite(about[:, 0])
    phase = np.arange(len(y))[known] % period
    values = about[known, 0]
    means = np.bincount(phase, values, period) / np.maximum(np.bincount(phase, minlength=period), 1)
    count = np.bincount(phase, minlength=period)
    rest = values - means[phase]
    free = max(1, len(values) - np.count_nonzero(count))
    return float(1 - (rest @ rest / free) / max(float(values.var()), 1e-30))


def centred_mean(values: Array, period: int) -> Array:
    """Mean over a cycle around each row (half weights at both ends where the cycle is even); NaN near the ends."""
    total = np.concatenate([np.zeros((1, values.shape[1])), values.cumsum(axis=0)])
    half = period // 2
    found = np.full(values.shape, np.nan)
    inner = total[period:] - total[:-period]  # sums of `period` rows, by their first row
    if period % 2:
        found[half : len(values) - half] = inner / period
    else:
        found[half : len(values) - half] = (inner[:-1] + inner[1:]) / (2 * period)
    return found


def _is_seasonal(values: Array, period: int) -> NDArray[np.bool_]:
    """Whether the autocorrelation of the differences at the cycle stands out of its
    noise (Bartlett's formula, 90 %).
    """
    change = np.diff(values, axis=0)
    change = change - change.mean(axis=0)
    power = np.square(change).sum(axis=0)

    def at(lag: int) -> Array:
        return np.asarray((change[lag:] * change[:-lag]).sum(axis=0) / np.where(power > 0, power, 1))

    before = sum((at(lag) ** 2 for lag in range(1, min(period, 60))), np.zeros(values.shape[1]))
    limit = NOISE * np.sqrt((1 + 2 * before) / len(values))
    return np.asarray(at(period) > limit)
