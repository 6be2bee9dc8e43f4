"""Exponential smoothing of values as measured, in all forms of `ets_recursion`, fitted side by side and averaged.

A form is fitted by Levenberg and Marquardt's steps on its rates and initial states together. The derivatives are
differences, and the passes that they take run side by side, for all forms and several series: the recursion is over
rows alone. The likelihood of errors that multiply is that of additive ones in units of the geometric mean of what was
expected, so that all forms are least squares.

Shapes: T rows, V series, O origins, H steps ahead, M steps a cycle, N fits (a form of a series each), P
parameters, G passes side by side.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from unipercept.forecasting.ets_recursion import SEASONS, Form, Rates, Season, State, ahead, forms_of, smooth
from unipercept.forecasting.filters import spread_order
from unipercept.forecasting.measured import Scaling
from unipercept.forecasting.repairs import forward_filled

Array = NDArray[np.floating[Any]]

MAX_PERIOD = 24  # of a season whose initial states are all fitted
MAX_ROWS, MAX_CYCLES = 300, 25  # that are learned from, the larger
MIN_ROWS = 8
MIN_CYCLES = 2.5
ALPHA, BETA, PHI = (1e-3, 0.999), (1e-3, 0.999), (0.8, 0.98)  # beta in units of alpha
GAMMA = (1e-4, 0.999)  # in units of 1 - alpha
STEP = 1e-4  # of a difference, in units of a free parameter
# Few steps: states stay near those by rule of thumb, which serves as well as the least squares themselves.
ROUNDS = 4
DAMPING = np.array([0.1, 1.0, 10.0, 100.0])  # tried side by side, times what did best before
RUNAWAY = 1e6  # typical values
FIRST_TREND = 10  # rows whose line begins level and slope
FIRST_CYCLES = 4  # whose mean season begins
SMALLEST_SEASON = 0.05
SERIES_AT_ONCE = 16
TEMPERATURE = 4.0  # of Akaike's weights: forms that AICc hardly tells apart share
LEAST_WEIGHT = 0.02  # of the best form's


def _within(free: Array, bounds: tuple[float, float]) -> Array:
    """Rates between the bounds, by the logistic function of free numbers."""
    return bounds[0] + (bounds[1] - bounds[0]) / (1 + np.exp(-free))


def _free(value: float, bounds: tuple[float, float]) -> float:
    """The free number of which `_within` makes `value`."""
    share = (value - bounds[0]) / (bounds[1] - bounds[0])
    return float(np.log(share / (1 - share)))


@dataclass(eq=False)
class Fits:
    """N fits with the same kind of season, side by side.

    Args:
        columns: N, the series of each.
        period: 1 without a season.
        parameters: NxP free numbers: alpha, beta, gamma, phi, level, slope, season.
        loss: N sums of squares.
    """

    season: Season
    period: int
    forms: tuple[Form, ...]
    columns: NDArray[np.int64]
    parameters: Array
    loss: Array

    @classmethod
    def begin(cls, values: Array, forms: Sequence[Form], columns: NDArray[np.int64], period: int) -> Fits:
        """Rates of a few that do best from states by rule of thumb; TxV values in units of their typical size."""
        season = forms[0].season
        fits = cls(season, period if season != "none" else 1, tuple(forms), columns, np.zeros((0, 0)), np.zeros(0))
        steady, moving = fits.first_states(values)
        tried = []
        for alpha in (0.05, 0.2, 0.5, 0.85):
            for states, beta, gamma in ((moving, 0.02, 0.02), (moving, 0.2, 0.2), (steady, 0.1, 0.1)):
                rates = [_free(alpha, ALPHA), _free(beta, BETA), _free(gamma, GAMMA), _free(0.95, PHI)]
                tried.append(np.concatenate([np.broadcast_to(rates, (len(forms), 4)), states], axis=1))
        losses = np.square(fits.residuals(values, np.concatenate(tried))).sum(axis=0).reshape(len(tried), len(forms))
        best, each = losses.argmin(axis=0), np.arange(len(forms))
        fits.parameters, fits.loss = np.stack(tried)[best, each], losses[best, each]
        return fits

    def some(self, which: NDArray[np.int64]) -> Fits:
        """These of the fits."""
        forms = tuple(self.forms[i] for i in which)
        return Fits(self.season, self.period, forms, self.columns[which], self.parameters[which], self.loss[which])

    def joined(self, other: Fits) -> Fits:
        """With others of the same season."""
        columns = np.concatenate([self.columns, other.columns])
        parameters = np.concatenate([self.parameters, other.parameters])
        loss = np.concatenate([self.loss, other.loss])
        return Fits(self.season, self.period, self.forms + other.forms, columns, parameters, loss)

    def first_states(self, values: Array) -> tuple[Array, Array]:
        """N x (P - 4) states before the first row by rule of thumb: without a slope, and with
        that of the first rows' line.
        """
        first = np.isfinite(values).argmax(axis=0)
        season = _first_season(values, self.period, self.season)  # MxV
        count = max(FIRST_TREND, min(2 * self.period, 24))
        rows = first + np.arange(count)[:, None]
        shown = np.take_along_axis(np.concatenate([values, np.full((count, values.shape[1]), np.nan)]), rows, axis=0)
        usual = np.take_along_axis(season, rows % self.period, axis=0)
        plain = shown / usual if self.season == "multiplicative" else shown - usual
        level, slope = _first_line(plain)
        mean = _mean(plain[: max(FIRST_TREND, self.period)])
        trend = np.array([form.trend != "none" for form in self.forms])
        steady = np.stack([mean, np.zeros_like(mean), *season])[:, self.columns]
        moving = np.stack([level, slope, *season])[:, self.columns]
        return steady.T, np.where(trend, moving, steady).T

    def unpacked(self, parameters: Array) -> tuple[State, Rates]:
        """Of GxP parameters, of which G is N or a multiple."""
        times = len(parameters) // len(self.forms)
        trend = np.tile([form.trend != "none" for form in self.forms], times)
        damped = np.tile([form.trend == "damped" for form in self.forms], times)
        alpha = _within(parameters[:, 0], ALPHA)
        beta = np.where(trend, _within(parameters[:, 1], BETA), 0.0)
        gamma = _within(parameters[:, 2], GAMMA) * (1 - alpha)
        phi = np.where(damped, _within(parameters[:, 3], PHI), np.where(trend, 1.0, 0.0))
        season = parameters[:, 6:].T.copy()
        if self.season == "additive":
            season -= season.mean(axis=0)
        elif self.season == "multiplicative":
            season /= season.mean(axis=0)
        else:
            season[:] = 0
        return State(parameters[:, 4], np.where(trend, parameters[:, 5], 0.0), season), Rates(alpha, beta, gamma, phi)

    def residuals(self, values: Array, parameters: Array) -> Array:
        """TxG; of errors that multiply, relative ones in units of the geometric mean of what was
        expected. 0 where a value is missing.
        """
        times = len(parameters) // len(self.forms)
        observed = values[:, np.tile(self.columns, times)]
        known = np.isfinite(observed)
        with np.errstate(all="ignore"):
            expected, _ = smooth(observed, *self.unpacked(parameters), self.season)
            error = np.where(known, observed - expected, 0.0)
            relative = np.tile([form.multiplicative for form in self.forms], times)
            if relative.any():
                some = expected[:, relative]
                size = np.where(known[:, relative], np.log(np.where(some > 0, some, np.nan)), 0.0)
                mean = np.exp(size.sum(axis=0) / known[:, relative].sum(axis=0))
                error[:, relative] = error[:, relative] / some * mean
            bad = ~np.isfinite(error).all(axis=0) | (np.abs(expected) > RUNAWAY).any(axis=0)
        error[:, bad] = RUNAWAY
        return error

    def fit(self, values: Array) -> None:
        """Some steps towards the least squares."""
        count, size = self.parameters.shape
        used = np.array(
            [
                [True, form.trend != "none", self.period > 1, form.trend == "damped", True, form.trend != "none"]
                + [self.period > 1] * self.period
                for form in self.forms
            ]
        )
        damping, each = np.full(count, 0.01), np.arange(count)
        for _ in range(ROUNDS):
            moved = np.concatenate([self.parameters, *(self.parameters + STEP * np.eye(size)[p] for p in range(size))])
            found = self.residuals(values, moved).reshape(len(values), size + 1, count)
            now = found[:, 0]
            slopes = ((found[:, 1:] - now[:, None]) / STEP).transpose(2, 0, 1) * used[:, None]  # NxTxP
            slopes[(np.abs(slopes) > RUNAWAY).any(axis=(1, 2))] = 0
            gram = slopes.transpose(0, 2, 1) @ slopes
            pull = np.einsum("ntp,tn->np", slopes, now)
            diagonal = np.einsum("npp->np", gram)
            diagonal = np.maximum(diagonal, 1e-8 * diagonal.sum(axis=1, keepdims=True) + 1e-12)
            tried = damping * DAMPING[:, None]
            system = gram + tried[..., None, None] * (diagonal[:, :, None] * np.eye(size))
            step = np.linalg.solve(system, -np.broadcast_to(pull, (len(DAMPING), *pull.shape))[..., None])[..., 0]
            step[..., :4] = step[..., :4].clip(-2, 2)
            proposed = self.parameters + step
            proposed[..., :4] = proposed[..., :4].clip(-7, 7)
            losses = np.square(self.residuals(values, proposed.reshape(-1, size))).sum(axis=0)
            losses = losses.reshape(len(DAMPING), count)
            best = losses.argmin(axis=0)
            better = losses[best, each] < self.loss
            self.parameters = np.where(better[:, None], proposed[best, each], self.parameters)
            damping = np.where(better, np.maximum(damping * DAMPING[best] / 2, 1e-7), damping * 100)
            self.loss = np.where(better, losses[best, each], self.loss)

    def criterion(self, values: Array) -> Array:
        """N: AICc; infinite where rows are too few for the form, or nothing was found."""
        n, k = self._counts(values)
        free = n - k - 1
        found = n * np.log(self.loss / np.maximum(n, 1) + 1e-12) + 2 * k + 2 * k * (k + 1) / np.maximum(free, 1)
        return np.where((free > 1) & (self.loss < RUNAWAY), found, np.inf)

    def deviation(self, values: Array) -> Array:
        """N, of one-step errors; relative ones where errors multiply."""
        n, k = self._counts(values)
        found = np.sqrt(self.loss / np.maximum(n - k + 1, 1))
        with np.errstate(all="ignore"):
            expected, _ = smooth(values[:, self.columns], *self.unpacked(self.parameters), self.season)
            mean = np.exp(np.log(np.abs(expected)).mean(axis=0))
        return np.where([form.multiplicative for form in self.forms], found / mean, found)

    def _counts(self, values: Array) -> tuple[Array, Array]:
        n = np.isfinite(values).sum(axis=0)[self.columns]
        return n, np.array([form.n_parameters(self.period) for form in self.forms])

    def ahead(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        """OxHxN of what follows values[:origin]."""
        state, rates = self.unpacked(self.parameters)
        last = max(origins)
        with np.errstate(all="ignore"):
            _, kept = smooth(values[:last, self.columns], state, rates, self.season, origins)
            return np.stack([ahead(kept[o], rates.phi, self.season, o, horizon) for o in origins])

    def expected_deviation(self, values: Array, deviation: Array, horizon: int) -> Array:
        """HxN of the errors that the models expect after the last row, to first order and of no phase;
        `deviation` is that of one step.
        """
        state, rates = self.unpacked(self.parameters)
        with np.errstate(all="ignore"):
            _, kept = smooth(values[:, self.columns], state, rates, self.season, [len(values)])
            end = kept[len(values)]
            neutral = np.full_like(end.season, float(self.season == "multiplicative"))
            flat = ahead(State(end.level, end.slope, neutral), rates.phi, self.season, 0, horizon)
            size = deviation * np.where([form.multiplicative for form in self.forms], np.abs(flat), 1.0)
            # A shock at any step moves what follows as one at the first step does, in units of the shock.
            shock = 1e-4 * np.maximum(np.abs(end.level), 1e-3)
            start = State(end.level, end.slope, neutral.copy())
            _, after = smooth(flat[:1] + shock, start, rates, self.season, [1])
            response = np.ones_like(flat)
            if horizon > 1:
                response[1:] = (ahead(after[1], rates.phi, self.season, 1, horizon - 1) - flat[1:]) / shock
            power = fftconvolve(np.square(size), np.square(response), axes=0)[:horizon]
        return np.asarray(np.sqrt(np.maximum(power, 0)))


def _mean(values: Array) -> Array:
    known = np.isfinite(values)
    return np.asarray(np.where(known, values, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1))


def _first_line(values: Array) -> tuple[Array, Array]:
    """Level before the first row and slope, V each, of the line through rows."""
    known = np.isfinite(values)
    steps = np.arange(1.0, len(values) + 1)[:, None]
    middle, mean = _mean(np.where(known, steps, np.nan)), _mean(values)
    away = (steps - middle) * known
    slope = (away * np.where(known, values - mean, 0)).sum(axis=0) / np.maximum(np.square(away).sum(axis=0), 1e-12)
    return mean - slope * middle, slope


def _first_season(values: Array, period: int, season: Season) -> Array:
    """MxV of the first cycles: what a centred mean over a cycle leaves."""
    neutral = float(season == "multiplicative")
    found = np.full((period, values.shape[1]), neutral)
    if season == "none":
        return found
    weight = np.ones(period + 1 - period % 2)
    if period % 2 == 0:
        weight[[0, -1]] = 0.5
    weight /= weight.sum()
    half = len(weight) // 2
    rows = FIRST_CYCLES * period
    for v, column in enumerate(values.T):
        known = np.flatnonzero(np.isfinite(column))
        first = known[0] if len(known) else 0
        part = column[first : first + rows]
        known = known[known < first + rows] - first
        if len(part) < len(weight) or not len(known):
            continue
        middle = np.full(len(part), np.nan)
        filled = np.interp(np.arange(len(part)), known, part[known])
        middle[half : len(part) - half] = np.convolve(filled, weight, mode="valid")
        with np.errstate(all="ignore"):
            rest = part / middle if season == "multiplicative" else part - middle
        told = np.isfinite(rest)
        phase = (first + np.arange(len(part)))[told] % period
        count = np.bincount(phase, minlength=period)
        mean = np.bincount(phase, rest[told], period) / np.maximum(count, 1)
        found[:, v] = np.where(count > 0, mean, neutral)
    if season == "multiplicative":
        found = found.clip(min=SMALLEST_SEASON)
        return np.asarray(found / found.mean(axis=0))
    return np.asarray(found - found.mean(axis=0))


class EtsForms:
    """The forms' forecasts averaged with Akaike's weights; where time runs out, the other series take the
    commonest form's median rates.
    """

    name = "ETS"
    gives_quantiles = False
    fits_closely = False

    def __init__(
        self, period: int, zero: Array | float = 0.0, unit: Array | float = 1.0, power: Array | float = 1.0
    ) -> None:
        """Of all series of the table, V each: `values` are (measured to the power) / unit + zero."""
        self.period = period if 2 <= period <= MAX_PERIOD else 1
        self._table_scaling = Scaling.of(zero, unit, power)
        self.series: NDArray[np.int64] | None = None  # those of the table that it is given, where they are not all
        self.n_estimated = 0
        self._typical: Array = np.ones(1)  # V, the size of a measured value
        self._least: Array = np.zeros(1)  # V, the smallest forecast
        self._parts: list[tuple[Fits, Array]] = []  # with their weights, which sum to 1 for a series
        self._from_first = False  # whether the states are those before row 0
        self._end: Array = np.zeros((0, 0))  # the rows learned from

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        """Rates and states of all forms, from the latest rows."""
        deadline = time.monotonic() + seconds
        whole = self._scaling.measured(values)
        typical = _mean(np.abs(whole))
        self._typical = np.where(typical > 0, typical, 1.0)  # a series that is yet to begin has none
        self._least = self._scaling.least(whole) / self._typical
        z = whole / self._typical
        first = max(0, len(z) - self._rows())
        first -= first % self.period
        z, self._from_first = z[first:], first == 0
        self._end = z
        count, parts = z.shape[1], []
        order = np.array(spread_order(count))
        done = 0
        while done < count and (not done or time.monotonic() < deadline):
            parts += self._fitted(z, np.sort(order[done : done + SERIES_AT_ONCE]))
            done += SERIES_AT_ONCE
        self.n_estimated = min(done, count)
        if done < count and parts:
            parts.append(self._usual(z, parts, np.sort(order[done:])))
        self._parts = []
        for season in SEASONS:
            same = [(fits, weights) for fits, weights in parts if fits.season == season]
            if same:
                fits = reduce(Fits.joined, (one for one, _ in same))
                self._parts.append((fits, np.concatenate([weights for _, weights in same])))

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        start = max(0, min(origins) - self._rows())
        start -= start % self.period
        z = self._scaling.measured(values[start:]) / self._typical
        total = np.zeros((len(origins), horizon, z.shape[1]))
        weight = np.zeros(z.shape[1])
        for fits, weights in self._parts:
            if start or not self._from_first:
                states = fits.first_states(z)[0]
                # A straight trend may never be corrected: a few rows must not set it.
                states[:, 1] = fits.parameters[:, 5]
                fits = replace(fits, parameters=np.concatenate([fits.parameters[:, :4], states], axis=1))
            found = fits.ahead(z, [origin - start for origin in origins], horizon)
            for number in range(len(weights)):
                total[..., fits.columns[number]] += weights[number] * found[..., number]
            weight += np.bincount(fits.columns, weights, len(weight))
        last = forward_filled(z, start="mean")[np.asarray(origins) - start - 1][:, None]
        return np.asarray(self._scaled(np.where(weight > 0, total, last)))

    def deviation(self, horizon: int) -> Array:
        """HxV of the errors that the models expect, by which they differ among themselves
        included; NaN where unknown.
        """
        z = self._end
        mean, power = np.zeros((horizon, z.shape[1])), np.zeros((horizon, z.shape[1]))
        square = np.zeros_like(mean)
        for fits, weights in self._parts:
            path = fits.ahead(z, [len(z)], horizon)[0]
            width = fits.expected_deviation(z, fits.deviation(z), horizon)
            for number, column in enumerate(fits.columns):
                mean[:, column] += weights[number] * path[:, number]
                square[:, column] += weights[number] * path[:, number] ** 2
                power[:, column] += weights[number] * width[:, number] ** 2
        distance = np.sqrt(power + np.maximum(square - mean**2, 0))
        # Upwards: downwards, logarithms have no end.
        return np.where(distance > 0, self._scaled(mean + distance) - self._scaled(mean), np.nan)

    def _fitted(self, z: Array, columns: NDArray[np.int64]) -> list[tuple[Fits, Array]]:
        """Forms of some series with their weights."""
        some = z[:, columns]
        with np.errstate(all="ignore"):
            positive = ~(np.where(np.isfinite(some), some, np.inf).min(axis=0) <= 0)
        usable = (np.isfinite(some).sum(axis=0) >= MIN_ROWS) & (np.ptp(np.nan_to_num(some), axis=0) > 0)
        seasonal = self.period > 1 and len(z) >= MIN_CYCLES * self.period
        parts, criteria = [], []
        for season in SEASONS:
            pairs = [
                (v, form)
                for v in np.flatnonzero(usable)
                for form in forms_of(bool(positive[v]), seasonal)
                if form.season == season
            ]
            if pairs:
                fits = Fits.begin(some, [form for _, form in pairs], np.array([v for v, _ in pairs]), self.period)
                fits.fit(some)
                parts.append(fits)
                criteria.append(fits.criterion(some))
        lowest = np.full(len(columns), np.inf)
        for fits, found in zip(parts, criteria, strict=True):
            np.minimum.at(lowest, fits.columns, found)
        total = np.zeros(len(columns))
        weighted = []
        for fits, found in zip(parts, criteria, strict=True):
            with np.errstate(invalid="ignore"):
                weights = np.nan_to_num(np.exp(-(found - lowest[fits.columns]) / (2 * TEMPERATURE)))
            weights[weights < LEAST_WEIGHT] = 0
            np.add.at(total, fits.columns, weights)
            weighted.append((fits, weights))
        kept = []
        for fits, weights in weighted:
            which = np.flatnonzero(weights)
            if len(which):
                share = weights[which] / total[fits.columns[which]]
                kept.append((replace(fits.some(which), columns=columns[fits.columns[which]]), share))
        return kept

    def _usual(self, z: Array, parts: list[tuple[Fits, Array]], columns: NDArray[np.int64]) -> tuple[Fits, Array]:
        """The commonest additive form with its median rates, from states by rule of thumb."""
        forms = [form for fits, _ in parts for form in fits.forms if form.season != "multiplicative"]
        form = replace(max(dict.fromkeys(forms), key=forms.count), multiplicative=False)
        alike = [
            fits.parameters[number, :4]
            for fits, _ in parts
            for number, one in enumerate(fits.forms)
            if (one.trend, one.season) == (form.trend, form.season)
        ]
        rates = np.broadcast_to(np.median(alike, axis=0), (len(columns), 4))
        period = self.period if form.season != "none" else 1
        fits = Fits(form.season, period, (form,) * len(columns), columns, np.zeros((0, 0)), np.zeros(0))
        fits.parameters = np.concatenate([rates, fits.first_states(z)[1]], axis=1)
        fits.loss = np.square(fits.residuals(z, fits.parameters)).sum(axis=0)
        return fits, np.ones(len(columns))

    @property
    def _scaling(self) -> Scaling:
        """Of the series that it is given."""
        return self._table_scaling.of_series(self.series)

    def _scaled(self, levels: Array) -> Array:
        return self._scaling.scaled(np.maximum(levels, self._least) * self._typical)

    def _rows(self) -> int:
        return max(MAX_ROWS, MAX_CYCLES * self.period)
