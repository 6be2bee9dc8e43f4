"""The chosen methods fitted to the whole history: quantiles from any origin, with intervals adapted
to the rows since the history.

Shapes: T rows, V series, O origins, H steps ahead, Q quantile levels.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import UniperceptError
from unipercept.forecasting.backtest import (
    MAX_BYTES,
    MAX_ORIGINS,
    MIN_ORIGINS,
    Backtest,
    model_deviation,
    serve,
    spanned_windows,
    spread_rows,
)
from unipercept.forecasting.baselines import Method, Naive
from unipercept.forecasting.choose import SPREAD, Choice, respread
from unipercept.forecasting.intervals import Judged, few_rows, widened
from unipercept.forecasting.prepare import Prepared
from unipercept.forecasting.repairs import forward_filled
from unipercept.forecasting.residuals import ErrorQuantiles, Liveliness, recent_window
from unipercept.forecasting.scores import MEDIAN
from unipercept.forecasting.settings import QUANTILES

Array = NDArray[np.floating[Any]]

# On the widths of a series that was moved to a new level: its back-test no longer shows that it may jump.
JUMPED = 1.25
MOST_RANGES = 3.0  # of the history, beyond its lowest and highest value
CYCLES_SHOWN = 8  # that a forecast must be able to look back on, to be judged


@dataclass(frozen=True, eq=False)
class Mixture:
    """Weighted methods with their error quantiles; what `forecast` and its scores on later data use.

    Args:
        parts: methods, each with the error quantiles of one that gives points, and the series that it
            was fitted to; None for all.
        weights: parts x V.
        constant: V bool; these are continued as they are.
        jumped: V bool; these were moved to a new level.
        record: what came true in the back-test, in rows of the history; None where nothing was tested.
        end: rows of the history.
        liveliness: by which error quantiles are scaled.
        low, high: V each, bounds of what a method may say to be heard: some ranges of the history beyond it.
        spread_share: what the distances of the part `choose.SPREAD` from its median take of the mixture's.
    """

    parts: tuple[tuple[Method, ErrorQuantiles | None, NDArray[np.int64] | None], ...]
    weights: NDArray[np.float64]
    constant: NDArray[np.bool_]
    jumped: NDArray[np.bool_]
    record: Judged | None
    end: int
    liveliness: Liveliness
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    spread_share: float = 0.0

    def quantiles(self, values: Array, origins: Sequence[int], horizon: int, *, moved: int = 0) -> NDArray[np.float64]:
        """O x H x V x Q of what follows each origin, given values[:origin].

        Intervals up to the end of the history are those that the back-test calibrated. Later ones
        follow what has come true since.

        Args:
            values: rows of the history and later ones, in its units.
            moved: rows by which a row of the history stands later in `values`.
        """
        raw = self._uncalibrated(values, origins, horizon)
        result = widened(
            raw, self._factors(values, raw, origins, moved)[:, None, None] * self._growth(origins, horizon, moved)
        )
        if self.constant.any():
            plain = forward_filled(values)[np.asarray(origins) - 1][:, None, :, None]
            result = np.where(self.constant[None, None, :, None], plain, result)
        return np.asarray(result, np.float64)

    def _uncalibrated(self, values: Array, origins: Sequence[int], horizon: int) -> NDArray[np.float64]:
        scale = self.liveliness.at(values, origins, horizon)
        shape = (len(origins), horizon, values.shape[1], len(QUANTILES))
        total, weights = np.zeros(shape), np.zeros((len(origins), values.shape[1]))
        plain = forward_filled(values)[np.asarray(origins) - 1][:, None, :, None]
        spread = None
        for (method, errors, series), weight in zip(self.parts, self.weights, strict=True):
            points = method.predict(values if series is None else values[:, series], origins, horizon)
            deviation = model_deviation(method, horizon)
            if series is not None:  # it has nothing to say of the others
                partial = points
                points = np.full((*partial.shape[:2], values.shape[1], *partial.shape[3:]), np.nan)
                points[:, :, series] = partial
                if deviation is not None:
                    deviation, partial = np.full((horizon, values.shape[1]), np.nan), deviation
                    deviation[:, series] = partial
            middle = points if errors is not None else points[..., MEDIAN]
            with np.errstate(invalid="ignore"):  # a filter that runs away on new rows must not carry the others with it
                tame = ((middle >= self.low) & (middle <= self.high)).all(axis=1) * weight
            found = points if errors is None else errors.around(points, scale, deviation)
            total += np.where(tame[:, None, :, None] > 0, tame[:, None, :, None] * found, 0.0)
            weights += tame
            if method.name == SPREAD:
                spread = found
        mixed = np.where(weights[:, None, :, None] > 0, total / np.maximum(weights, 1e-12)[:, None, :, None], plain)
        if spread is None:
            return mixed
        return np.where(np.isfinite(spread), respread(mixed, spread, self.spread_share), mixed)

    def _growth(self, origins: Sequence[int], horizon: int, moved: int) -> NDArray[np.float64] | float:
        """OxHxVx1, for the few rows before each origin and for jumps; the guess of an untested history has its own."""
        if self.record is None:
            return 1.0
        rows = np.maximum(np.asarray(origins) - moved, self.end)
        return few_rows(rows, horizon)[..., None, None] * np.where(self.jumped, JUMPED, 1.0)[:, None]

    def _factors(self, values: Array, raw: Array, origins: Sequence[int], moved: int) -> NDArray[np.float64]:
        """OxQ: by what is known at each origin, of the back-test and of forecasts from later rows."""
        if self.record is None:
            return np.ones((len(origins), len(QUANTILES)))
        record, end, last = self.record.moved(moved), self.end + moved, max(origins)
        at_end = self.record.factors()
        if last <= end:
            return np.repeat(at_end[None], len(origins), axis=0)
        horizon, width = self.record.horizon, values.shape[1]
        shown = int(np.isfinite(values).any(axis=1).argmax()) + min(self.end, CYCLES_SHOWN * self.liveliness.lag)
        between = [row for row in self._between(max(end, shown), last, horizon, width) if row not in origins]
        more = self._uncalibrated(values, between, horizon) if between else raw[:0, :horizon]
        rows = np.array([*origins, *between])
        truth = np.full((len(values) + horizon, width), np.nan)
        truth[: len(values)] = np.where(self.constant, np.nan, values)
        since = rows >= end
        forecast = np.concatenate([raw[:, :horizon], more])[since]
        ahead = rows[since][:, None] + np.arange(forecast.shape[1])
        record = record.joined(Judged.of(forecast, truth[ahead], rows[since]))
        return np.stack([record.factors(origin) if origin > end else at_end for origin in origins])

    def _between(self, first: int, last: int, horizon: int, width: int) -> tuple[int, ...]:
        """Origins before the last row to judge forecasts at, as many as a test may have."""
        each = 8 * len(QUANTILES) * horizon * width
        most = int(np.clip(MAX_BYTES / each, MIN_ORIGINS, MAX_ORIGINS))
        return spread_rows(first, last - 1, most, self.liveliness.lag) if last - 1 > first else ()


def final_mixture(prepared: Prepared, found: Backtest, choice: Choice, *, seconds: float) -> Mixture:
    """The chosen methods, learned anew from the whole history where the time allows, with the
    error quantiles of the back-test.

    Args:
        seconds: for all of them; a method that took longer than is left stays as it was tested, unless the test was on
            a sample of the series: then it is learned anew all the same, in the time that it took.
    """
    parts: list[tuple[Method, ErrorQuantiles | None, NDArray[np.int64] | None]] = []
    weights: list[Array] = []
    scale = np.concatenate([found.earlier_liveliness, found.scored_liveliness])
    windows = spanned_windows((*found.plan.earlier, *found.plan.scored), found.plan.horizon)
    width = prepared.values.shape[1]
    deadline = time.monotonic() + seconds
    is_sample = not np.delete(prepared.constant, found.columns).all()
    used = [
        (one, weight)
        for one, weight in zip(found.tested, choice.weights, strict=True)
        if weight.any() or (one.method.name == SPREAD and choice.spread_share)
    ]
    for one, weight in used:
        method, series = one.method, found.columns if len(found.columns) < width else None
        left = deadline - time.monotonic()
        if one.seconds <= left or is_sample:
            anew = copy.copy(method)
            serve(anew, None)
            with suppress(UniperceptError):
                anew.fit(prepared.values, found.plan.horizon, max(left, one.seconds))
                method, series = anew, None
        errors = None
        if one.errors is not None:
            errors = ErrorQuantiles(one.errors, scale, windows).spread_to(found.columns, width)
        whole = np.full(width, weight.mean())  # a series that was not tested gets what the others get
        whole[found.columns] = weight
        parts.append((method, errors, series))
        weights.append(whole)
    window = recent_window(prepared.period, found.plan.horizon)
    liveliness = Liveliness.of(prepared.values, prepared.period, window)
    return Mixture(
        tuple(parts), np.stack(weights), prepared.constant, prepared.level_rows > 0, choice.record, len(prepared),
        liveliness, *_bounds(prepared.values), choice.spread_share,
    )  # fmt: skip


def _bounds(values: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    return low - MOST_RANGES * (high - low), high + MOST_RANGES * (high - low)


def untested(prepared: Prepared) -> Mixture:
    """The last value again, for a history too short to test anything; its errors of one step
    grow with the root of the step.
    """
    values = prepared.values
    origins = list(range(1, len(values)))
    method = Naive()
    points = method.predict(values, origins, 1)
    lively = Liveliness.of(values, 1, 24)
    errors = prepared.truth[1:][:, None] - points
    # The whole history's: before the second or third row hardly anything is known, and a quiet first step would make
    # all later errors large.
    scale = np.repeat(lively.at(values, [len(values)], 1), len(errors), axis=0)
    # Of either sign: one error of three rows would have no spread about its own median.
    spread = ErrorQuantiles(np.concatenate([errors, -errors]), np.concatenate([scale, scale]))
    weights = np.ones((1, values.shape[1]))
    return Mixture(
        ((method, spread, None),), weights, prepared.constant, prepared.level_rows > 0, None, len(values), lively,
        *_bounds(values),
    )  # fmt: skip
