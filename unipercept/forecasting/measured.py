"""The way from values as methods see them to values as measured, for methods that are not
indifferent to where zero lies.

Shapes: V series.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.forecasting.powers import powered, unpowered

Array = NDArray[np.floating[Any]]

LEAST = 0.25  # of the smallest value seen: a forecast that goes back to logarithms or roots is no smaller


@dataclass(frozen=True, eq=False)
class Scaling:
    """Values are (measured to the power) / unit + zero; V each, or 1 for all series."""

    zero: NDArray[np.float64]
    unit: NDArray[np.float64]
    power: NDArray[np.float64]

    @classmethod
    def of(cls, zero: Array | float = 0.0, unit: Array | float = 1.0, power: Array | float = 1.0) -> Scaling:
        return cls(*(np.atleast_1d(np.asarray(part, np.float64)) for part in (zero, unit, power)))

    def of_series(self, series: NDArray[np.int64] | None) -> Scaling:
        """That of some series of the table; None for all."""
        if series is None:
            return self
        return Scaling(*(part if len(part) == 1 else part[series] for part in (self.zero, self.unit, self.power)))

    def measured(self, values: Array) -> Array:
        """... x V in measured units where there is a power, else in units of `unit`."""
        level = values - self.zero
        return np.where(self.power == 1, level, unpowered(level * self.unit, self.power))

    def scaled(self, levels: Array) -> Array:
        """... x V the way back."""
        return np.where(self.power == 1, levels, powered(levels, self.power) / self.unit) + self.zero

    def least(self, measured: Array) -> Array:
        """V: the smallest forecast that has a logarithm or root like those of TxV rows; minus
        infinity where none is needed.
        """
        smallest = np.nanmin(np.where(np.isfinite(measured), measured, np.inf), axis=0)
        return np.where(self.power == 1, -np.inf, LEAST * smallest)
