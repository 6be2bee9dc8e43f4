"""Several cycles at once (a day and a week, a week and a year) by waves, and another method for the remainder.

Source: dynamic harmonic regression (Young et al. 1999; Hyndman and Athanasopoulos 2021, chapter 12).

Shapes: T rows, V series, O origins, H steps ahead, W waves.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.forecasting.baselines import Method
from unipercept.forecasting.filters import begun
from unipercept.forecasting.periods import MANY_PHASES

Array = NDArray[np.floating[Any]]

MAX_ROWS = 20_000
WAVES = 40  # of a cycle at most; of one that was seen FEW_CYCLES times or less, FEW_WAVES for each time, or in all where it has MANY_PHASES
FEW_CYCLES, FEW_WAVES = 4, 2
LEAST_CYCLES = 1.5
HALF_LIFE = 12  # cycles of the longest well-known length after which a row counts half
GAP_PASSES = 5  # after which a gap holds what the waves say
PENALTY = 0.5  # rows' worth of a wave of the first order; grows with the square of its order within the cycle


class Cycles:
    """Waves by weighted ridge regression, late rows counting more; then the other method on the rest."""

    gives_quantiles = False
    fits_closely = True

    def __init__(self, periods: Sequence[float], rest: Method) -> None:
        self.periods, self.rest = tuple(periods), rest
        self.name = f"cycles + {rest.name}"
        self._frequencies: Array = np.zeros(0)
        self._coefficients: Array = np.zeros((0, 0))

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        """Waves from the latest rows, and the other method from what they leave of them."""
        first = max(0, len(values) - MAX_ROWS)
        self._frequencies, orders = _waves(self.periods, len(values) - first)
        rows = np.arange(first, len(values))
        filled = begun(values[first:])
        age = (len(values) - 1 - rows) / self._half_life(len(rows))
        weight = np.sqrt(0.5**age)[:, None]
        steps = ((rows - rows.mean()) / max(1, len(rows)))[:, None]
        design = np.concatenate([self._design(rows), np.ones((len(rows), 1)), steps], axis=1)
        penalty = np.concatenate([PENALTY * np.tile(orders, 2) ** 2, [0.0, 0.0]])
        weighted = design * weight
        gram = weighted.T @ weighted + np.diag(penalty + 1e-9 * len(rows))
        missing = ~np.isfinite(values[first:])
        whole = np.linalg.solve(gram, weighted.T @ (filled * weight))
        for _ in range(
            GAP_PASSES if missing.any() else 0
        ):  # what the waves say of a gap takes its place: least squares of what is known
            filled = np.where(missing, design @ whole, filled)
            whole = np.linalg.solve(gram, weighted.T @ (filled * weight))
        self._coefficients = whole[: 2 * len(self._frequencies)]
        self.rest = copy.copy(self.rest)
        self.rest.fit(values[first:] - self._at(rows), horizon, seconds)

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        first = max(0, min(origins) - MAX_ROWS)  # what the other method sees at most
        recent = values[first:] - self._at(np.arange(first, len(values)))
        left = self.rest.predict(recent, [origin - first for origin in origins], horizon)
        rows = np.asarray(origins)[:, None] + np.arange(horizon)
        return np.asarray(left + self._at(rows.reshape(-1)).reshape(*rows.shape, -1))

    def _half_life(self, rows: int) -> float:
        known = [period for period in self.periods if rows >= FEW_CYCLES * period]
        return HALF_LIFE * max(known) if known else np.inf

    def _design(self, rows: NDArray[np.int64]) -> Array:
        angle = 2 * np.pi * rows[:, None] * self._frequencies
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    def _at(self, rows: NDArray[np.int64]) -> Array:
        return self._design(rows) @ self._coefficients


def _waves(periods: Sequence[float], rows: int) -> tuple[Array, Array]:
    """Frequencies a row, each once, and their orders within the cycle that they came from."""
    found: dict[float, int] = {}
    for period in sorted(periods):
        if rows < LEAST_CYCLES * period:
            continue
        few = FEW_WAVES if period > MANY_PHASES else int(FEW_WAVES * rows / period)
        most = min(WAVES if rows > FEW_CYCLES * period else few, int(period // 2), rows // 6)
        for order in range(1, most + 1):
            found.setdefault(round(order / period, 9), order)
    return np.array(list(found)), np.array(list(found.values()), np.float64)
