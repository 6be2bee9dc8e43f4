"""What the back-test supports: one method or a weighted mean of several, and intervals that cover what they say.

Shapes: O origins, H steps ahead, V series, Q quantile levels, M methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.forecasting.backtest import Backtest
from unipercept.forecasting.scores import MEDIAN, Score, mean_pinball, score
from unipercept.forecasting.settings import QUANTILES

Array = NDArray[np.floating[Any]]

ROUNDS = 10  # of the greedy search: weights are tenths
MIN_GAIN = 0.003  # a further method must lower the loss by this share
MAX_CELLS = 3_000_000  # of the arrays that the search looks at; more are thinned
OWN_METHOD_GAIN = 0.05  # a series leaves the common choice where a method of its own does so much better in both halves of the origins
PAIRS = tuple((i, len(QUANTILES) - 1 - i) for i in range(MEDIAN))  # of levels that lie as far from the median


@dataclass(frozen=True, eq=False)
class Choice:
    """What is used for the forecast.

    Args:
        weights: method to weight, summing to 1; for most series.
        own: tested series (by its place among them) to the method that it gets instead.
        widening: Q factors on the distance of each level from the median (1 at the median).
        score: at the scored origins, each half judged by what the other half chose and calibrated: not flattered by the choice.
        raw: the same without calibration.
        loss: method to its mean pinball loss, in units of each series' scale.
        judged: O x H x V x Q, the forecasts that `score` judged.
    """

    weights: dict[str, float]
    own: dict[int, str]
    widening: NDArray[np.float64]
    score: Score
    raw: Score
    loss: dict[str, float]
    judged: NDArray[np.float32]

    @property
    def name(self) -> str:
        """For a title: the methods with their shares."""
        if len(self.weights) == 1:
            return next(iter(self.weights))
        ordered = sorted(self.weights.items(), key=lambda pair: -pair[1])
        return " + ".join(f"{100 * weight:.0f} % {name}" for name, weight in ordered)


def choose(found: Backtest) -> Choice:
    """Pick by the scored origins; never a mixture that does worse there than the best single method, seasonal naive among them."""
    names = [one.method.name for one in found.tested]
    quantiles = [one.quantiles for one in found.tested]
    halves = _halves(len(found.plan.scored), found.plan)
    everything = np.arange(len(found.plan.scored))
    weights = _weights(quantiles, found, everything)
    loss = _losses(quantiles, found)
    own = _own(loss, weights, quantiles, found, halves)
    mixed = _mixed(quantiles, weights, own)
    widening = _widening(mixed, found.truth, everything)
    crossed, raw = np.empty_like(mixed), np.empty_like(mixed)
    for chosen_on, judged in ((halves[0], halves[1]), (halves[1], halves[0])):
        half_weights = _weights(quantiles, found, chosen_on)
        part = _mixed([q[judged] for q in quantiles], half_weights, own)
        seen = _mixed([q[chosen_on] for q in quantiles], half_weights, own)
        raw[judged] = part
        crossed[judged] = widened(part, _widening(seen, found.truth[chosen_on], np.arange(len(chosen_on))))
    return Choice(
        {name: float(weight) for name, weight in zip(names, weights, strict=True) if weight > 0},
        {v: names[m] for v, m in own.items()},
        widening,
        score(crossed, found.truth, found.scale, found.offset, found.unit),
        score(raw, found.truth, found.scale, found.offset, found.unit),
        {name: float(np.nanmean(loss[m])) for m, name in enumerate(names)},
        crossed,
    )


def choose_named(found: Backtest, name: str) -> Choice:
    """One method by name, calibrated as a choice is: what the choice is compared with on later data."""
    one = found.named(name)
    assert one is not None
    everything = np.arange(len(found.plan.scored))
    widening = _widening(one.quantiles, found.truth, everything)
    return Choice({name: 1.0}, {}, widening, one.score, one.score, {}, one.quantiles)


def widened(quantiles: Array, factors: Array) -> Array:
    """Levels moved away from the median by their factors; ascending."""
    middle = quantiles[..., MEDIAN : MEDIAN + 1]
    return np.sort(middle + (quantiles - middle) * factors, axis=-1).astype(quantiles.dtype)


def _halves(n: int, plan: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The earlier and the later origins: neighbours overlap, so that every other one would be no test."""
    return np.arange((n + 1) // 2), np.arange((n + 1) // 2 if n > 1 else 0, n)


def _losses(quantiles: Sequence[Array], found: Backtest) -> Array:
    """M x O x V mean pinball losses in units of each series."""
    unit = np.where(np.isfinite(found.scale), found.scale, 1.0)
    known = np.isfinite(found.truth).sum(axis=1)
    with np.errstate(all="ignore"):
        return np.stack([mean_pinball(q, found.truth).sum(axis=1) / known / unit for q in quantiles])


def _weights(quantiles: Sequence[Array], found: Backtest, origins: NDArray[np.int64]) -> Array:
    """M weights in tenths by greedy selection with replacement (Caruana et al. 2004), starting from the best single method."""
    steps = max(1, found.truth[origins].size * len(QUANTILES) // MAX_CELLS)
    unit = np.where(np.isfinite(found.scale), found.scale, 1.0)[::steps]
    truth = found.truth[origins][:, :, ::steps]
    parts = [q[origins][:, :, ::steps].astype(np.float64) for q in quantiles]

    def loss(mixture: Array) -> float:
        return float((mean_pinball(mixture, truth) / unit).mean())

    single = [loss(part) for part in parts]
    best = int(np.argmin(single))
    counts = np.zeros(len(parts))
    counts[best] = 1
    total, lowest = parts[best].copy(), single[best]
    kept, kept_loss = counts.copy(), lowest
    for size in range(2, ROUNDS + 1):
        losses = [loss((total + part) / size) for part in parts]
        pick = int(np.argmin(losses))
        counts[pick] += 1
        total += parts[pick]
        if losses[pick] < kept_loss * (1 - MIN_GAIN):
            kept, kept_loss = counts.copy(), losses[pick]
    return np.asarray(kept / kept.sum())


def _own(
    loss: Array,
    weights: Array,
    quantiles: Sequence[Array],
    found: Backtest,
    halves: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> dict[int, int]:
    """Series for which a single method beats the common choice clearly, in the earlier and in the later origins alike."""
    if len(halves[1]) < 2 or found.truth.shape[2] < 2:
        return {}
    mixed = _losses([_mixed(quantiles, weights, {})], found)[0]
    with np.errstate(all="ignore"):
        gains = np.stack(
            [1 - np.nanmean(loss[:, half], axis=1) / np.nanmean(mixed[half], axis=0) for half in halves]
        )  # 2xMxV
    worst = np.nan_to_num(gains, nan=-1.0).min(axis=0)
    best = worst.argmax(axis=0)
    return {int(v): int(best[v]) for v in np.flatnonzero(worst.max(axis=0) > OWN_METHOD_GAIN)}


def _mixed(quantiles: Sequence[Array], weights: Array, own: dict[int, int]) -> Array:
    """Quantiles averaged level by level, series with a method of their own aside."""
    total = np.zeros(quantiles[0].shape, np.float32)
    for part, weight in zip(quantiles, weights, strict=True):
        if weight:
            total += np.float32(weight) * part
    for v, m in own.items():
        total[:, :, v] = quantiles[m][:, :, v]
    return total


def _widening(quantiles: Array, truth: Array, origins: NDArray[np.int64]) -> NDArray[np.float64]:
    """Q factors with which each pair of levels covers what it says at these origins (split conformal, in units of the interval).

    Source: Romano et al. (2019), conformalized quantile regression, with the interval's own width as the unit.
    """
    factors = np.ones(len(QUANTILES))
    known = np.isfinite(truth[origins])
    middle = quantiles[origins][..., MEDIAN]
    for low, high in PAIRS:
        below, above = middle - quantiles[origins][..., low], quantiles[origins][..., high] - middle
        distance = truth[origins] - middle
        reach = np.where(distance < 0, -distance / np.maximum(below, 1e-30), distance / np.maximum(above, 1e-30))[known]
        if len(reach) < 20:
            continue
        level = QUANTILES[high] - QUANTILES[low]
        needed = float(np.quantile(reach, min(1.0, level * (1 + 1 / len(reach)))))
        factors[[low, high]] = np.clip(needed, 0.25, 4.0)
    return factors
