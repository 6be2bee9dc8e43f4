"""Calibrated intervals: levels are moved away from the median until enough of the observed values lie
within, recent ones counting more.

What is judged is how far the truth lay from the median in units of the interval's own half-width, at earlier origins. A
forecast counts by half when it is `HALF_LIFE` horizons older than another, and its steps one by one as they come true,
so that the same rule serves the end of a history and every later row of it.

Source: Romano et al. (2019), conformalized quantile regression, with the interval's own width as the unit; Barber et
al. (2023), conformal prediction beyond exchangeability, for weights that fall with age.

Shapes: O origins, H steps ahead, V series, Q quantile levels, P pairs of levels as far from
the median, N judged values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.forecasting.scores import MEDIAN
from unipercept.forecasting.settings import QUANTILES

Array = NDArray[np.floating[Any]]

PAIRS = tuple((i, len(QUANTILES) - 1 - i) for i in range(MEDIAN))  # the widest first
HALF_LIFE = 4.0  # horizons
# Of the many errors in a window of the horizon so many count as independent, and more where there are more windows than
# WINDOWS_ALIKE. A share of n such errors lies within the quantile of a new one's that is larger by a factor 1 + 1/n.
ERRORS_A_WINDOW, WINDOWS_ALIKE = 4, 1.5
DOUBT = 6.0  # windows at which a factor is believed by half; with a third of them by a tenth, with three times as many by nine
# Of the widest pair's width, over the windows: what is added for errors of a kind that so few windows do not show.
UNSEEN = 0.3
# What few rows do not tell of level and trend grows with every step: 16 rows widen the sixth's interval by a third.
TREND_DOUBT, TREND_POWER = 62.0, 2.5  # times the step over this power of the rows
LEAST, MOST = 0.25, 4.0  # bounds of a factor
FEWEST = 20  # values, to judge by
MOST_CELLS = 40_000  # kept of a test: a random share where there are more


@dataclass(frozen=True, eq=False)
class Judged:
    """What came true of some forecasts.

    Args:
        reach: NxP distances from the median, over the pair's half-width on that side.
        origin: N rows at which each was forecast.
        known: N rows from which on it is known.
        first: the earliest origin.
        horizon: H.
    """

    reach: NDArray[np.float32]
    origin: NDArray[np.int64]
    known: NDArray[np.int64]
    first: int
    horizon: int

    @classmethod
    def of(cls, quantiles: Array, truth: Array, origins: Sequence[int] | NDArray[np.int64]) -> Judged:
        """Judge O x H x V x Q by OxHxV, NaN where missing."""
        rows, horizon = np.asarray(origins, np.int64), truth.shape[1]
        cells = np.flatnonzero(np.isfinite(truth))
        if len(cells) > MOST_CELLS:
            cells = np.sort(np.random.default_rng(0).choice(cells, MOST_CELLS, replace=False))
        o, h, v = np.unravel_index(cells, truth.shape)
        levels = quantiles[o, h, v].astype(np.float64)
        middle, distance = levels[:, MEDIAN], truth[o, h, v] - levels[:, MEDIAN]
        reach = np.empty((len(cells), len(PAIRS)), np.float32)
        for number, (low, high) in enumerate(PAIRS):
            width = np.where(distance < 0, middle - levels[:, low], levels[:, high] - middle)
            reach[:, number] = np.minimum(np.abs(distance) / np.maximum(width, 1e-30), 1e30)
        return cls(reach, rows[o], rows[o] + h + 1, int(rows.min()) if len(rows) else 0, horizon)

    def moved(self, rows: int) -> Judged:
        """The same in a table in which every row stands so many rows later."""
        return Judged(self.reach, self.origin + rows, self.known + rows, self.first + rows, self.horizon)

    def joined(self, later: Judged) -> Judged:
        """With the judged forecasts of later origins."""
        return Judged(
            np.concatenate([self.reach, later.reach]),
            np.concatenate([self.origin, later.origin]),
            np.concatenate([self.known, later.known]),
            self.first,
            self.horizon,
        )

    def factors(self, now: int | None = None) -> NDArray[np.float64]:
        """Q factors on the distances from the median, 1 at the median, by what is known at row `now`;
        None for all that is judged.

        With few windows factors stay near 1, and the 95 % interval reaches for what has not been
        seen yet.
        """
        found = np.ones(len(QUANTILES))
        seen = np.ones(len(self.known), bool) if now is None else self.known <= now
        if not seen.any():
            return found
        reach, origin = self.reach[seen], self.origin[seen]
        last = int(origin.max()) if now is None else now
        weight = 0.5 ** (np.abs(last - origin) / (HALF_LIFE * self.horizon))
        windows = (int(origin.max()) - int(origin.min())) / self.horizon + 1
        fresh = min(windows, HALF_LIFE / np.log(2) * (1 - 0.5 ** (windows / HALF_LIFE)))  # windows that still count
        independent = ERRORS_A_WINDOW * max(1.0, fresh) * max(1.0, fresh / WINDOWS_ALIKE)
        share = 1 / (1 + (DOUBT / windows) ** 2) if seen.sum() >= FEWEST else 0.0
        for number, (low, high) in enumerate(PAIRS):
            level = min(1.0, (QUANTILES[high] - QUANTILES[low]) * (1 + share / independent))
            needed = np.clip(weighted_quantile(reach[:, number], weight, level), LEAST, MOST)
            found[[low, high]] = needed**share * (1 + UNSEEN / windows * (number == 0))
        return found


def few_rows(rows: int | NDArray[np.int64], horizon: int) -> NDArray[np.float64]:
    """... x H factors on all distances from the median, for what so many rows of history do not tell; no step is
    doubted more than the one as far ahead as the history is long.
    """
    known = np.asarray(rows, np.float64)[..., None]
    return np.asarray(1 + TREND_DOUBT * np.minimum(np.arange(1, horizon + 1), known) / known**TREND_POWER)


def weighted_quantile(values: Array, weights: Array, level: float) -> float:
    """The least of the values below or at which so much of the weight lies."""
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order[min(len(order) - 1, int(np.searchsorted(total, level * total[-1])))]])


def widened(quantiles: Array, factors: Array) -> Array:
    """... x Q levels moved away from the median by their factors; ascending."""
    middle = quantiles[..., MEDIAN : MEDIAN + 1]
    return np.sort(middle + (quantiles - middle) * factors, axis=-1).astype(quantiles.dtype)
