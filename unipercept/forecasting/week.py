"""The season of a day and a week together, and another method for the remainder: for steps shorter than a day.

A phase of the week is seen once a week, so its own mean is noise where few weeks were seen. The season is therefore the sum of three means, each drawn
towards zero by how little it stands out of its changes from week to week: of the time of day, of the day of the week, and of both together.

Source: James and Stein (1961), "Estimation with quadratic loss", with the variances of a random-effects analysis of variance.

Shapes: T rows, V series, M steps a day, W weeks, O origins, H steps ahead.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.forecasting.baselines import Method, Modelled
from unipercept.forecasting.season import Season, _bridged, _centred_mean
from unipercept.forecasting.repairs import forward_filled

Array = NDArray[np.floating[Any]]

DAYS = 7
MIN_WEEKS = 1.5
MAX_WEEKS = 12  # the latest ones are averaged


class WeekSeason:
    """Season of the week taken off, the other method on the rest."""

    gives_quantiles = False

    def __init__(self, day: int, rest: Method) -> None:
        self.day, self.rest = day, rest
        self.name = f"week + {rest.name}"
        self.fits_closely = rest.fits_closely
        self._season = Season(np.zeros((1, 1)))

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        self._season = week_season(values, self.day)
        self.rest = copy.copy(self.rest)
        self.rest.fit(self._season.without(values), horizon, seconds)

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        rest = self.rest.predict(self._season.without(values), origins, horizon)
        return np.asarray(rest + self._season.at(np.asarray(origins)[:, None] + np.arange(horizon)))

    def deviation(self, horizon: int) -> Array:
        return self.rest.deviation(horizon) if isinstance(self.rest, Modelled) else None


def week_season(values: Array, day: int) -> Season:
    """(7 M) x V; that of the day alone where fewer than two weeks were seen."""
    if len(values) < MIN_WEEKS * DAYS * day:
        return Season.of(values, day)
    filled: Array = forward_filled(values, start="mean")
    season = _week_season(values, filled, day)
    if not np.isfinite(values).all():
        season = _week_season(values, _bridged(values, season), day)
    return season


def _week_season(values: Array, filled: Array, day: int) -> Season:
    week, (length, width) = DAYS * day, values.shape
    level = _centred_mean(filled, week)
    inner = np.flatnonzero(np.isfinite(level[:, 0]))
    level[: inner[0]], level[inner[-1] + 1 :] = level[inner[0]], level[inner[-1]]
    first = max(0, length - MAX_WEEKS * week)
    first -= first % week
    rest = (values - level)[first:]
    rest = np.concatenate([rest, np.full((-len(rest) % week, width), np.nan)]).reshape(-1, DAYS, day, width)
    with np.errstate(all="ignore"):
        time_of_day = np.nanmean(rest, axis=(0, 1))
        rest = rest - time_of_day
        known = np.isfinite(rest).mean(axis=2, keepdims=True) > 0.5
        day_means = np.where(known, np.nanmean(rest, axis=2, keepdims=True), np.nan)
        day_of_week = shrunk_means(day_means)
        both = shrunk_means(rest - day_means)
    found = time_of_day + day_of_week + both
    return Season(found.reshape(week, width) - found.mean(axis=(0, 1)))


def shrunk_means(cells: Array) -> Array:
    """Means over weeks of W x ... x V cells, drawn to zero by how little they stand out of their changes from week to week."""
    count = np.isfinite(cells).sum(axis=0)
    means = np.where(count > 0, np.nan_to_num(np.nanmean(cells, axis=0)), 0.0)
    axes = tuple(range(means.ndim - 1))
    within = np.where(np.isfinite(cells), np.square(cells - means), 0).sum(axis=(0, *(a + 1 for a in axes)))
    within = within / np.maximum((count - 1).clip(min=0).sum(axis=axes), 1)
    between = (count * means**2).sum(axis=axes) / max(1, int(np.prod(means.shape[:-1])) - 1)
    share = np.where(between > 0, 1 - within / np.where(between > 0, between, 1), 0.0).clip(min=0)
    return np.asarray(share * means)
