"""The recursion of exponential smoothing in all its forms: errors and seasons that add or multiply, with no,
a damped or a straight trend.

Source: Hyndman et al. (2008), "Forecasting with exponential smoothing", tables 2.2 and 2.3; the forms that AutoETS
tries (Hyndman and Khandakar 2008).

Shapes: T rows, H steps ahead, M steps a cycle, G passes side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

Season = Literal["none", "additive", "multiplicative"]
Trend = Literal["none", "damped", "straight"]
SEASONS: tuple[Season, ...] = ("none", "additive", "multiplicative")
TRENDS: tuple[Trend, ...] = ("none", "damped", "straight")


@dataclass(frozen=True)
class Form:
    """What a series is made of."""

    multiplicative: bool  # errors
    trend: Trend
    season: Season

    def n_parameters(self, period: int) -> int:
        """Rates, initial states and the deviation of the errors."""
        trend = {"none": 0, "straight": 2, "damped": 3}[self.trend]
        return 3 + trend + (period if self.season != "none" else 0)


def forms_of(positive: bool, seasonal: bool) -> list[Form]:
    """Those that AutoETS tries."""
    found = []
    for multiplicative in (False, True) if positive else (False,):
        for season in SEASONS if seasonal else SEASONS[:1]:
            if multiplicative or season != "multiplicative":
                found += [Form(multiplicative, trend, season) for trend in TRENDS]
    return found


@dataclass(eq=False)
class State:
    """Level and slope G each, and the season by phase, MxG, changed in place."""

    level: Array
    slope: Array
    season: Array


@dataclass(frozen=True, eq=False)
class Rates:
    """G each."""

    alpha: Array
    beta: Array  # of the slope, in units of alpha
    gamma: Array
    phi: Array


def smooth(
    values: Array, state: State, rates: Rates, season: Season, keep: Sequence[int] = ()
) -> tuple[Array, dict[int, State]]:
    """TxG of what was expected of each row, and the states before the rows of `keep`; what is missing corrects nothing,
    and before the first value nothing moves.

    Args:
        values: TxG, NaN where missing; row 0 has phase 0.
    """
    live = np.isfinite(values)
    whole = bool(live.all())
    has_begun = np.logical_or.accumulate(live)
    values = np.where(live, values, 0.0)
    expected = np.empty((len(values), rates.alpha.shape[0]))
    wanted, kept = set(keep), {}
    level, slope, seasons = state.level, state.slope, state.season
    period = len(seasons)
    for t, row in enumerate(values):
        if t in wanted:
            kept[t] = State(level, slope, seasons.copy())
        moved = rates.phi * slope if whole else rates.phi * slope * has_begun[t]
        base = level + moved
        if season == "multiplicative":
            usual = seasons[t % period]
            expected[t] = base * usual
        elif season == "additive":
            expected[t] = base + seasons[t % period]
        else:
            expected[t] = base
        error = row - expected[t]
        if not whole:
            error = error * live[t]
        if season == "multiplicative":
            level = base + rates.alpha * error / usual
            seasons[t % period] = usual + rates.gamma * error / base
        else:
            level = base + rates.alpha * error
            if season == "additive":
                seasons[t % period] += rates.gamma * error
        later = rates.phi * slope + rates.beta * (level - base)
        slope = later if whole else np.where(has_begun[t], later, slope)
    if len(values) in wanted:
        kept[len(values)] = State(level, slope, seasons.copy())
    return expected, kept


def ahead(state: State, phi: Array, season: Season, phase: int, horizon: int) -> Array:
    """HxG that follows a state."""
    steps = np.cumsum(phi[None] ** np.arange(1, horizon + 1)[:, None], axis=0)
    found = state.level + steps * state.slope
    phases = (phase + np.arange(horizon)) % len(state.season)
    if season == "multiplicative":
        return np.asarray(found * state.season[phases])
    return np.asarray(found + state.season[phases]) if season == "additive" else found
