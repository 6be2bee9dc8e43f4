"""The choice after the back-test: one method or a weighted mean of several, with calibrated intervals.

Shapes: O origins, H steps ahead, V series, Q quantile levels, M methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.forecasting.backtest import Backtest
from unipercept.forecasting.intervals import Judged, few_rows, widened
from unipercept.forecasting.scores import MEDIAN, Score, mean_of_known, mean_pinball

Array = NDArray[np.floating[Any]]

# A method's weight falls with its loss to a power: to the first where windows are few, to
# the second where they are many.
POWERS = (3.0, 6.0)
LEAST_SHARE = 0.2  # of the best method's weight; with less a method is left out
FEW_WINDOWS = 4.0  # so many windows of the horizon, one after the other, are believed by half, two by a fifth; the rest is the table's and what is usual
USUAL_GAP = 0.3  # logarithm of what the plainest methods usually lose beyond the others
PLAIN = ("naive", "drift", "seasonal naive", "usual values", "last period")
# Logarithm of what these usually lose less: two windows hardly tell between them and leave all others out
# (benchmarks/results/forecast_default.md).
USUAL_LEAD = 0.35
LEADING = ("ETS", "CES", "theta", "ARIMA", "week")
LEADING_ON_FEW_ROWS = "pretrained"  # of history, by more: alone it comes within a percent of the mixture
FEW_ROWS = 200
FEW_ROWS_LEAD = 0.65
UNSEEN_CYCLE_LEAD = 0.8  # where it alone is told of the calendar's cycle
LEADING_ON_MANY_ROWS = ("cycles", "linear")  # regressions, once they learn from MANY_ROWS
MANY_ROWS = 100
LEADING_ON_COUNTS = "usual values"  # its quantiles are values that occur, the others' lie between them
SPREAD = "pretrained"  # saw more errors than few windows show: its distances take part, whatever its weight
SPREAD_WINDOWS = 2.0  # at which they take half
TINY = 1e-12
FAR = 2.0  # logarithm of a loss over the best beyond which it does not matter to the table how much larger it is


@dataclass(frozen=True, eq=False)
class Choice:
    """What is used for the forecast.

    Args:
        names: M methods.
        weights: MxV, of each tested series, summing to 1.
        widening: Q factors on the distance of each level from the median (1 at the median), besides `few_rows`.
        record: what came true at the scored origins, by which later rows judge on.
        score: at the scored origins, each half judged by what the other half chose and calibrated:
            not flattered by the choice.
        raw: the same without calibration.
        loss: method to its mean pinball loss, in units of each series' scale.
        judged: O x H x V x Q, the forecasts that `score` judged.
        spread_share: what the distances of the method `SPREAD` from its median take of the mixture's.
    """

    names: tuple[str, ...]
    weights: Array
    widening: NDArray[np.float64]
    record: Judged
    score: Score
    raw: Score
    loss: dict[str, float]
    judged: NDArray[np.float32]
    spread_share: float = 0.0

    @property
    def shares(self) -> dict[str, float]:
        """Method to its mean weight, the largest first; those that count nowhere are left out."""
        mean = dict(zip(self.names, self.weights.mean(axis=1).tolist(), strict=True))
        return {name: share for name, share in sorted(mean.items(), key=lambda pair: -pair[1]) if share > 0}

    @property
    def name(self) -> str:
        """For a title."""
        shares = self.shares
        first, share = next(iter(shares.items()))
        return first if len(shares) == 1 else f"mix of {len(shares)} methods, {100 * share:.0f} % of it {first}"

    def mixed(self, quantiles: Sequence[Array]) -> Array:
        """O x H x V x Q of the methods' quantiles, before calibration."""
        return mixed_quantiles(self.names, quantiles, self.weights, self.spread_share)

    def told_shares(self) -> str:
        """Every method with its share; those under half a percent together."""
        told = [f"{100 * share:.0f} % {name}" for name, share in self.shares.items() if share >= 0.005]
        rest = [name for name, share in self.shares.items() if share < 0.005]
        return ", ".join(told + [f"under 0.5 %: {', '.join(rest)}"] * bool(rest))


def choose(found: Backtest) -> Choice:
    """Weigh by the scored origins, each series by its own losses and those of its table; none does clearly
    worse there than seasonal naive.
    """
    names = tuple(one.method.name for one in found.tested)
    quantiles = [one.quantiles for one in found.tested]
    losses = _losses(quantiles, found)
    everything = np.arange(len(found.plan.scored))
    halves = _halves(len(everything))
    weights = _weights(losses, found, names, quantiles, everything)
    share = SPREAD_WINDOWS / (SPREAD_WINDOWS + count_windows(found, everything)) if SPREAD in names else 0.0
    mixed = mixed_quantiles(names, quantiles, weights, share)
    record = _judged(mixed, found, everything)
    growth = few_rows(found.plan.scored[-1] + found.plan.horizon, found.plan.horizon)[:, None, None]
    crossed, raw = np.empty_like(mixed), np.empty_like(mixed)
    for chosen_on, judged in ((halves[0], halves[1]), (halves[1], halves[0])):
        half_weights = _weights(losses, found, names, quantiles, chosen_on)
        part, seen = (
            mixed_quantiles(names, [q[part] for q in quantiles], half_weights, share) for part in (judged, chosen_on)
        )
        raw[judged] = part
        crossed[judged] = widened(part, _judged(seen, found, chosen_on).factors() * growth)
    return Choice(
        names,
        weights,
        record.factors(),
        record,
        found.score(crossed),
        found.score(raw),
        {name: float(mean_of_known(losses[m], (0, 1))) for m, name in enumerate(names)},
        crossed,
        share,
    )


def choose_named(found: Backtest, name: str) -> Choice:
    """One method by name, calibrated as a choice is: what the choice is compared with on later data."""
    one = found.named(name)
    assert one is not None
    record = _judged(one.quantiles, found, np.arange(len(found.plan.scored)))
    names = tuple(other.method.name for other in found.tested)
    weights = np.repeat(np.array([[float(other == name)] for other in names]), len(found.columns), axis=1)
    return Choice(names, weights, record.factors(), record, one.score, one.score, {}, one.quantiles)


def _halves(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The earlier and the later origins: neighbours overlap, so that every other one would be no test."""
    return np.arange((n + 1) // 2), np.arange((n + 1) // 2 if n > 1 else 0, n)


def _judged(quantiles: Array, found: Backtest, origins: NDArray[np.int64]) -> Judged:
    """Forecasts made at these of the scored origins."""
    return Judged.of(quantiles, found.seen[origins], np.asarray(found.plan.scored)[origins])


def _losses(quantiles: Sequence[Array], found: Backtest) -> Array:
    """M x O x V mean pinball losses in units of each series."""
    unit = np.where(np.isfinite(found.scale), found.scale, 1.0)
    known = np.isfinite(found.seen).sum(axis=1)
    with np.errstate(all="ignore"):
        return np.stack([mean_pinball(q, found.seen).sum(axis=1) / known / unit for q in quantiles])


def _weights(
    losses: Array, found: Backtest, names: Sequence[str], quantiles: Sequence[Array], origins: NDArray[np.int64]
) -> Array:
    """MxV weights by the losses at some origins.

    Weights that follow losses smoothly do better on later data than the mixture with the least loss: with few windows,
    which method won is mostly chance.
    """
    with np.errstate(all="ignore"):
        own = np.log(mean_of_known(losses[:, origins], 1) + TINY)
        own = np.where(np.isfinite(own), own, np.inf)  # of a series that was not judged
        relative = own - own.min(axis=0)
        table = mean_of_known(np.minimum(relative, FAR), 1, keepdims=True)
    windows = count_windows(found, origins)
    share = 1 / (1 + (FEW_WINDOWS / windows) ** 2)
    relative = np.where(np.isfinite(relative), np.minimum(relative, FAR), table)
    if relative.shape[1] > 1:
        relative = share * relative + (1 - share) * table
    rows = found.plan.scored[-1] + found.plan.horizon
    leading = LEADING + LEADING_ON_MANY_ROWS * (found.plan.fit_end >= MANY_ROWS)
    usual = np.array([[USUAL_GAP * name.startswith(PLAIN) - USUAL_LEAD * name.startswith(leading)] for name in names])
    if LEADING_ON_FEW_ROWS in names and rows <= FEW_ROWS:
        lead = FEW_ROWS_LEAD if found.prepared.unseen_cycle is None else UNSEEN_CYCLE_LEAD
        usual[names.index(LEADING_ON_FEW_ROWS)] = -lead
    if LEADING_ON_COUNTS in names:
        counts = found.prepared.counts[found.columns]
        usual = np.repeat(usual, len(counts), axis=1)
        usual[names.index(LEADING_ON_COUNTS), counts] = -USUAL_LEAD
    relative = share * relative + (1 - share) * usual
    power = (1 - share) * POWERS[0] + share * POWERS[1]
    weights = np.exp(-power * (relative - relative.min(axis=0)))
    weights[weights < LEAST_SHARE] = 0
    weights /= weights.sum(axis=0)
    plain = (
        names.index("seasonal naive")
        if "seasonal naive" in names
        else names.index("naive")
        if "naive" in names
        else None
    )
    if plain is not None:
        mixture = _losses([mixed_quantiles(names, quantiles, weights)], found)[0]
        with np.errstate(all="ignore"):
            allowed = np.exp(USUAL_GAP * FEW_WINDOWS / windows)  # few windows may say so by chance
            worse = mean_of_known(mixture[origins], 0) > allowed * mean_of_known(losses[plain][origins], 0)
        weights[:, worse] = 0
        weights[plain, worse] = 1
    return np.asarray(weights)


def mixed_quantiles(
    names: Sequence[str], quantiles: Sequence[Array], weights: Array, spread_share: float = 0.0
) -> Array:
    """Quantiles averaged level by level with weights MxV; of their distances from the median such a share is
    that of the method `SPREAD`.
    """
    total = np.zeros(quantiles[0].shape, np.float32)
    for part, weight in zip(quantiles, weights.astype(np.float32), strict=True):
        if weight.any():
            total += weight[:, None] * part
    return respread(total, quantiles[names.index(SPREAD)], spread_share) if spread_share else total


def respread(mixed: Array, other: Array, share: float) -> Array:
    """... x Q, the distances from the median moved so far towards another forecast's."""
    middle = mixed[..., MEDIAN : MEDIAN + 1]
    distance = (1 - share) * (mixed - middle) + share * (other - other[..., MEDIAN : MEDIAN + 1])
    return np.asarray(middle + distance, mixed.dtype)


def count_windows(found: Backtest, origins: NDArray[np.int64]) -> float:
    """How many windows of the horizon, one after the other, the origins are worth: those
    that overlap say the same again.
    """
    scored = np.asarray(found.plan.scored)[origins]
    return float((scored[-1] - scored[0]) / found.plan.horizon + 1)
