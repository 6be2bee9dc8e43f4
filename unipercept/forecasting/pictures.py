"""Pictures of a back-test: errors by step, whether quantiles hold, errors of each series.

Shapes: O origins, H steps ahead, V series, Q quantile levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from unipercept.forecasting.backtest import Backtest
from unipercept.forecasting.choose import Choice
from unipercept.forecasting.scores import MEDIAN
from unipercept.forecasting.settings import QUANTILES
from unipercept.results import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", GREY, "#000000")  # Okabe and Ito, after blue and orange


def draw_errors_by_step(found: Backtest, choice: Choice) -> Figure:
    """Mean absolute error of every method at each step ahead, in units of each series' seasonal naive error."""
    figure, axes = _axes(7.2, 3.0)
    steps = np.arange(1, found.plan.horizon + 1)
    unit = np.where(np.isfinite(found.scale), found.scale, np.nan)

    def curve(median: Any) -> Any:
        with np.errstate(all="ignore"):
            return np.nanmean(np.abs(found.truth - median) / unit, axis=(0, 2))

    ordered = sorted(found.tested, key=lambda one: one.score.sql)
    for colour, one in zip([ORANGE, *OTHERS], ordered, strict=False):
        axes.plot(steps, curve(one.quantiles[..., MEDIAN]), color=colour, linewidth=1, label=one.method.name)
    axes.plot(steps, curve(choice.judged[..., MEDIAN]), color=BLUE, linewidth=2, label="chosen")
    axes.set(xlabel="steps ahead", ylabel="mean absolute error, scaled", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8, ncols=2)
    return figure


def draw_reliability(found: Backtest, choice: Choice) -> Figure:
    """How often the truth lay below each quantile, and how often inside the intervals at each step ahead."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    known = np.isfinite(found.truth)
    below = [float((found.truth < choice.judged[..., q])[known].mean()) for q in range(len(QUANTILES))]
    left.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    left.plot(QUANTILES, below, color=BLUE, marker="o", markersize=4, linewidth=1.2)
    left.set(xlabel="quantile", ylabel="share of truth below it", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    steps = np.arange(1, found.plan.horizon + 1)
    for low, high, colour in ((0.025, 0.975, BLUE), (0.1, 0.9, ORANGE)):
        inside = (found.truth >= choice.judged[..., QUANTILES.index(low)]) & (
            found.truth <= choice.judged[..., QUANTILES.index(high)]
        )
        share = np.where(known, inside, 0).sum(axis=(0, 2)) / np.maximum(known.sum(axis=(0, 2)), 1)
        right.plot(steps, 100 * share, color=colour, linewidth=1.2, label=f"{100 * (high - low):.0f} % interval")
        right.axhline(100 * (high - low), color=colour, linewidth=0.8, linestyle=":")
    right.set(xlabel="steps ahead", ylabel="truth inside, %", ylim=(0, 102))
    right.legend(frameon=False, fontsize=8, loc="lower right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
