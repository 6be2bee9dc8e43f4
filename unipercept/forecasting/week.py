"""The season of a day and a week together, for steps shorter than a day, and another method for the remainder.

A phase of the week comes once a week, so that its own mean is noise where few weeks were seen. The season is therefore
a sum of three means: of the time of day, of the day of the week, and of both together. The last two are drawn to zero
by how little they stand out of what changes from week to week.

Source: the shrinkage of James and Stein (1961), "Estimation with quadratic loss", by the mean
squares of an analysis of variance.

Shapes: T rows, V series, M steps a day, W weeks, O origins, H steps ahead.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.forecasting.baselines import Method, Modelled
from unipercept.forecasting.repairs import forward_filled
from unipercept.forecasting.season import Season, bridged_by, centred_mean
from unipercept.pipelines.series_clock import DAY, Step

Array = NDArray[np.floating[Any]]

DAYS = 7
MIN_WEEKS = 1.5  # with fewer the season is that of the day
MAX_WEEKS = 12  # the latest ones are averaged


class Week:
    """The season of day and week is taken off before the other method and put back into its forecast."""

    gives_quantiles = False

    def __init__(self, day: int, rest: Method) -> None:
        """M steps a day; a method that forecasts points."""
        self.day, self.rest = day, rest
        self.name = f"week + {rest.name}"
        self.fits_closely = rest.fits_closely
        self._season = Season(np.zeros((1, 1)))

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        """The season from the latest weeks, then the other method from what is left."""
        self._season = week_season(values, self.day)
        self.rest = copy.copy(self.rest)
        self.rest.fit(self._season.without(values), horizon, seconds)

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        rest = self.rest.predict(self._season.without(values), origins, horizon)
        return np.asarray(rest + self._season.at(np.asarray(origins)[:, None] + np.arange(horizon)))

    def deviation(self, horizon: int) -> Array:
        """HxV of the errors that the other method expects, NaN where it is no model."""
        if isinstance(self.rest, Modelled):
            return self.rest.deviation(horizon)
        return np.full((horizon, self._season.profile.shape[1]), np.nan)


def steps_a_day(step: Step) -> int | None:
    """M, for a step that a day holds a whole number of times, at least two; else None."""
    if step.kind != "even" or DAY % step.size or step.size >= DAY:
        return None
    return DAY // step.size


def week_season(values: Array, day: int) -> Season:
    """(7 M) x V of TxV rows; MxV, that of the day alone, where too few weeks were seen."""
    if len(values) < MIN_WEEKS * DAYS * day:
        return Season.of(values, day)
    season = _season_about_level(values, forward_filled(values, start="mean"), day)
    if not np.isfinite(values).all():  # flat stretches are no season: once more, with its first guess in the gaps
        season = _season_about_level(values, bridged_by(values, season), day)
    return season


def _season_about_level(values: Array, filled: Array, day: int) -> Season:
    """Of the distances from a centred mean over a week of rows without gaps, the first and last
    of which reach on to the ends.
    """
    week, (length, width) = DAYS * day, values.shape
    level = centred_mean(filled, week)
    inner = np.flatnonzero(np.isfinite(level).all(axis=1))
    level[: inner[0]], level[inner[-1] + 1 :] = level[inner[0]], level[inner[-1]]
    first = max(0, length - MAX_WEEKS * week)
    first -= first % week
    about = (values - level)[first:]
    about = np.concatenate([about, np.full((-len(about) % week, width), np.nan)]).reshape(-1, DAYS, day, width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a phase that was never seen has no mean
        time_of_day = np.nan_to_num(np.nanmean(about, axis=(0, 1)))
        about = about - time_of_day
        seen = np.isfinite(about).mean(axis=2, keepdims=True) > 0.5
        day_means = np.where(seen, np.nanmean(about, axis=2, keepdims=True), np.nan)
    found = time_of_day + shrunk_means(day_means) + shrunk_means(about - day_means)
    return Season(found.reshape(week, width) - found.mean(axis=(0, 1)))


def shrunk_means(cells: Array) -> Array:
    """Means over W of W x ... x V cells (NaN where missing), drawn to zero by one factor for each series.

    The factor is 1 - F⁻¹, F being the mean square of the means over that of the distances from
    them: 0 for means that are noise.
    """
    known = np.isfinite(cells)
    count = known.sum(axis=0)
    means = np.where(known, cells, 0).sum(axis=0) / np.maximum(count, 1)
    inner = tuple(range(means.ndim - 1))
    squares = np.square(np.where(known, cells - means, 0)).sum(axis=0).sum(axis=inner)
    again = (count - 1).clip(min=0).sum(axis=inner)  # what was seen once tells nothing of changes
    within = np.where(again > 0, squares / np.maximum(again, 1), np.inf)
    between = (count * means**2).sum(axis=inner) / max(1, means[..., 0].size - 1)
    factor = np.where(between > 0, 1 - within / np.where(between > 0, between, 1), 0.0)
    return np.asarray(factor.clip(min=0) * means)
