"""Exponential smoothing of values as measured, in all its forms: errors and seasons that add or multiply, with no, a damped or a straight trend.

A form is fitted by Levenberg and Marquardt's steps on its rates and initial states together. The derivatives are differences, and the passes that they
take run side by side, for all forms and several series: the recursion is over rows alone. The likelihood of errors that multiply is that of
additive ones in units of the geometric mean of what was expected, so that all forms are least squares.

Source: Hyndman et al. (2008), "Forecasting with exponential smoothing", tables 2.2 and 2.3; the forms that AutoETS tries (Hyndman and Khandakar 2008).

Shapes: T rows, V series, O origins, H steps ahead, M steps a cycle, N fits (a form of a series each), P parameters, G passes side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

MAX_PERIOD = 24  # of a season whose initial states are all fitted
MAX_ROWS, MAX_CYCLES = 300, 25  # that are learned from, the larger
MIN_ROWS = 8
MIN_CYCLES = 2.5
ALPHA, BETA, PHI = (1e-3, 0.999), (1e-3, 0.999), (0.8, 0.98)  # beta in units of alpha
GAMMA = (1e-4, 0.999)  # in units of 1 - alpha
STEP = 1e-4  # of a difference, in units of a free parameter
ROUNDS = 14
DAMPING = np.array([0.1, 1.0, 10.0, 100.0])  # tried side by side, times what did best before
SETTLED = 1e-6  # of the sum of squares, gained in a round
RUNAWAY = 1e6  # typical values
FIRST_TREND = 10  # rows whose line begins level and slope
SERIES_AT_ONCE = 16

Season = Literal["none", "additive", "multiplicative"]
Trend = Literal["none", "damped", "straight"]


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
        for season in ("none", "additive", "multiplicative") if seasonal else ("none",):
            if season == "multiplicative" and not multiplicative:
                continue
            found += [Form(multiplicative, trend, season) for trend in ("none", "damped", "straight")]
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
    """TxG of what was expected of each row, and the states before the rows of `keep`; a missing value changes nothing.

    Args:
        values: TxG, NaN where missing; row 0 has phase 0.
    """
    live = np.isfinite(values)
    whole = live.all()
    values = np.where(live, values, 0.0)
    expected = np.empty((len(values), rates.alpha.shape[0]))
    wanted, kept = set(keep), {}
    level, slope, seasons = state.level, state.slope, state.season
    period = len(seasons)
    for t, row in enumerate(values):
        if t in wanted:
            kept[t] = State(level, slope, seasons.copy())
        base = level + rates.phi * slope
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
        slope = rates.phi * slope + rates.beta * (level - base)
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


def _within(free: Array, bounds: tuple[float, float]) -> Array:
    return bounds[0] + (bounds[1] - bounds[0]) / (1 + np.exp(-free))


def _free(value: float, bounds: tuple[float, float]) -> float:
    share = (value - bounds[0]) / (bounds[1] - bounds[0])
    return float(np.log(share / (1 - share)))


class Fits:
    """N fits with the same kind of season, side by side: free parameters NxP in the order alpha, beta, gamma, phi, level, slope, season."""

    def __init__(self, values: Array, forms: Sequence[Form], columns: NDArray[np.int64], period: int) -> None:
        """TxV values in units of their typical size, and the form and series of each fit."""
        self.season: Season = forms[0].season
        self.values, self.columns, self.forms = values, columns, tuple(forms)
        self.period = period if self.season != "none" else 1
        self.multiplicative = np.array([form.multiplicative for form in forms])
        self.trend = np.array([form.trend != "none" for form in forms])
        self.damped = np.array([form.trend == "damped" for form in forms])
        seasonal = self.season != "none"
        used = [
            np.ones(len(forms), bool),
            self.trend,
            np.full(len(forms), seasonal),
            self.damped,
            np.ones(len(forms), bool),
            self.trend,
        ]
        used += [np.full(len(forms), seasonal)] * self.period
        self.used = np.stack(used, axis=1)
        self.parameters = self._starts()
        self.loss = np.full(len(forms), np.inf)

    def unpacked(self, parameters: Array) -> tuple[State, Rates]:
        """Of GxP parameters, of which G is N or a multiple."""
        times = len(parameters) // len(self.forms)
        trend, damped = np.tile(self.trend, times), np.tile(self.damped, times)
        alpha = _within(parameters[:, 0], ALPHA)
        beta = np.where(trend, _within(parameters[:, 1], BETA), 0.0)
        gamma = _within(parameters[:, 2], GAMMA) * (1 - alpha) if self.season != "none" else np.zeros_like(alpha)
        phi = np.where(damped, _within(parameters[:, 3], PHI), np.where(trend, 1.0, 0.0))
        season = parameters[:, 6:].T.copy()
        if self.season == "additive":
            season -= season.mean(axis=0)
        elif self.season == "multiplicative":
            season /= season.mean(axis=0)
        else:
            season[:] = 0
        return State(parameters[:, 4], np.where(trend, parameters[:, 5], 0.0), season), Rates(alpha, beta, gamma, phi)

    def residuals(self, parameters: Array) -> Array:
        """TxG; of errors that multiply, relative ones in units of the geometric mean of what was expected. 0 where a value is missing."""
        times = len(parameters) // len(self.forms)
        observed = self.values[:, np.tile(self.columns, times)]
        with np.errstate(all="ignore"):
            expected, _ = smooth(observed, *self.unpacked(parameters), self.season)
            known = np.isfinite(observed)
            error = np.where(known, observed - expected, 0.0)
            relative = np.tile(self.multiplicative, times)
            if relative.any():
                some = expected[:, relative]
                size = np.where(known[:, relative], np.log(np.where(some > 0, some, np.nan)), 0.0)
                mean = np.exp(size.sum(axis=0) / known[:, relative].sum(axis=0))
                error[:, relative] = error[:, relative] / some * mean
        bad = ~np.isfinite(error).all(axis=0) | (np.abs(expected) > RUNAWAY).any(axis=0)
        error[:, bad] = RUNAWAY
        return error

    def fit(self) -> None:
        """The least squares."""
        count, size = self.parameters.shape
        damping = np.full(count, 0.01)
        for _ in range(ROUNDS):
            moved = np.concatenate([self.parameters, *(self.parameters + STEP * np.eye(size)[p] for p in range(size))])
            found = self.residuals(moved).reshape(len(self.values), size + 1, count)
            now = found[:, 0]
            self.loss = np.square(now).sum(axis=0)
            slopes = ((found[:, 1:] - now[:, None]) / STEP).transpose(2, 0, 1) * self.used[:, None]  # NxTxP
            slopes[~np.isfinite(slopes).all(axis=(1, 2))] = 0
            gram = slopes.transpose(0, 2, 1) @ slopes
            pull = np.einsum("ntp,tn->np", slopes, now)
            diagonal = np.maximum(np.einsum("npp->np", gram), 1e-8 * np.einsum("npp->n", gram)[:, None] + 1e-12)
            tried = damping * DAMPING[:, None]  # 4xN
            system = gram[None] + tried[..., None, None] * (diagonal[:, :, None] * np.eye(size))
            step = np.linalg.solve(system, -np.broadcast_to(pull, (len(DAMPING), *pull.shape))[..., None])[..., 0]
            step[..., :4] = step[..., :4].clip(-2, 2)
            proposed = self.parameters + step
            proposed[..., :4] = proposed[..., :4].clip(-7, 7)
            losses = np.square(self.residuals(proposed.reshape(-1, size))).sum(axis=0).reshape(len(DAMPING), count)
            best = losses.argmin(axis=0)
            each = np.arange(count)
            lowest = losses[best, each]
            better = lowest < self.loss
            self.parameters = np.where(better[:, None], proposed[best, each], self.parameters)
            damping = np.where(better, np.maximum(damping * DAMPING[best] * 0.5, 1e-7), damping * 100)
            gained = np.where(better, self.loss - lowest, 0.0) / np.maximum(self.loss, 1e-300)
            self.loss = np.minimum(self.loss, lowest)
            if (gained < SETTLED).all():
                break

    def aicc(self) -> Array:
        """N; infinite where rows are too few for the form, or nothing was found."""
        n = np.isfinite(self.values).sum(axis=0)[self.columns]
        k = np.array([form.n_parameters(self.period) for form in self.forms])
        free = n - k - 1
        with np.errstate(all="ignore"):
            found = n * np.log(self.loss / n + 1e-12) + 2 * k + 2 * k * (k + 1) / np.maximum(free, 1)
        return np.where((free > 1) & (self.loss < RUNAWAY), found, np.inf)

    def deviation(self) -> Array:
        """N, of one-step errors: relative ones where errors multiply."""
        n = np.isfinite(self.values).sum(axis=0)[self.columns]
        k = np.array([form.n_parameters(self.period) for form in self.forms])
        found = np.sqrt(self.loss / np.maximum(n - k + 1, 1))
        expected, _ = smooth(self.values[:, self.columns], *self.unpacked(self.parameters), self.season)
        with np.errstate(all="ignore"):
            mean = np.exp(np.log(np.abs(expected)).mean(axis=0))
        return np.where(self.multiplicative, found / mean, found)

    def _starts(self) -> Array:
        """The best of some rates, from a season and a line by rule of thumb."""
        season = _first_season(self.values, self.period, self.season)  # MxV
        rows = np.arange(len(self.values))
        plain = (
            self.values / season[rows % self.period]
            if self.season == "multiplicative"
            else self.values - season[rows % self.period]
        )
        level, slope = _first_line(plain[: max(FIRST_TREND, min(2 * self.period, 24))])
        count = len(self.forms)
        base = np.zeros((count, 6 + self.period))
        mean = _mean(plain[: max(FIRST_TREND, self.period)])
        base[:, 4] = np.where(self.trend, level[self.columns], mean[self.columns])
        base[:, 5] = slope[self.columns]
        base[:, 6:] = season[:, self.columns].T
        flat = base.copy()
        flat[:, 4], flat[:, 5] = mean[self.columns], 0.0
        tried = []
        for alpha in (0.05, 0.2, 0.5, 0.85):
            for begin, beta, gamma in ((base, 0.02, 0.02), (base, 0.2, 0.2), (flat, 0.1, 0.1)):
                one = begin.copy()
                one[:, 0], one[:, 1] = _free(alpha, ALPHA), _free(beta, BETA)
                one[:, 2], one[:, 3] = _free(gamma, GAMMA), _free(0.95, PHI)
                tried.append(one)
        losses = np.square(self.residuals(np.concatenate(tried))).sum(axis=0).reshape(len(tried), count)
        return np.stack(tried)[losses.argmin(axis=0), np.arange(count)]


def _mean(values: Array) -> Array:
    known = np.isfinite(values)
    return np.asarray(np.where(known, values, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1))


def _first_line(values: Array) -> tuple[Array, Array]:
    """Level before the first row and slope, V each, of the line through rows."""
    known = np.isfinite(values)
    steps = np.arange(1.0, len(values) + 1)[:, None] * known
    count = np.maximum(known.sum(axis=0), 1)
    middle, mean = steps.sum(axis=0) / count, _mean(values)
    away = (np.arange(1.0, len(values) + 1)[:, None] - middle) * known
    slope = (away * np.where(known, values - mean, 0)).sum(axis=0) / np.maximum(np.square(away).sum(axis=0), 1e-12)
    return mean - slope * middle, slope


def _first_season(values: Array, period: int, season: Season) -> Array:
    """MxV of the first cycles: what a centred mean over a cycle leaves."""
    neutral = float(season == "multiplicative")
    if season == "none":
        return np.zeros((1, values.shape[1]))
    found = np.empty((period, values.shape[1]))
    some = values[: max(4 * period, 4)]
    weight = np.ones(period + 1 - period % 2)
    weight[[0, -1]] *= 1.0 if period % 2 else 0.5
    weight /= weight.sum()
    half = len(weight) // 2
    for v in range(values.shape[1]):
        column = some[:, v]
        known = np.flatnonzero(np.isfinite(column))
        filled = np.interp(np.arange(len(column)), known, column[known])
        middle = np.full(len(column), np.nan)
        middle[half : len(column) - half] = np.convolve(filled, weight, mode="valid")
        with np.errstate(all="ignore"):
            rest = column / middle if season == "multiplicative" else column - middle
        padded = np.concatenate([rest, np.full(-len(rest) % period, np.nan)]).reshape(-1, period)
        count = np.isfinite(padded).sum(axis=0)
        mean = np.where(np.isfinite(padded), padded, 0).sum(axis=0) / np.maximum(count, 1)
        found[:, v] = np.where((count > 0) & np.isfinite(mean), mean, neutral)
    if season == "multiplicative":
        found = found.clip(min=0.05)
        return found / found.mean(axis=0)
    return found - found.mean(axis=0)


@dataclass(frozen=True, eq=False)
class Fitted:
    """One form of one series, in units of its typical size."""

    form: Form
    parameters: Array  # P
    aicc: float
    deviation: float
    season: Season


def fitted_forms(values: Array, period: int) -> list[list[Fitted]]:
    """Of each series of TxV values in units of their typical size, all forms that could be fitted."""
    found: list[list[Fitted]] = [[] for _ in range(values.shape[1])]
    with np.errstate(all="ignore"):
        positive = np.nanmin(values, axis=0) > 0
    seasonal = 1 < period <= MAX_PERIOD and len(values) >= MIN_CYCLES * period
    for season in ("none", "additive", "multiplicative"):
        pairs = [
            (v, form)
            for v in range(values.shape[1])
            for form in forms_of(bool(positive[v]), seasonal)
            if form.season == season
        ]
        if not pairs:
            continue
        fits = Fits(values, [form for _, form in pairs], np.array([v for v, _ in pairs]), period)
        fits.fit()
        for (v, form), parameters, aicc, deviation in zip(
            pairs, fits.parameters, fits.aicc(), fits.deviation(), strict=True
        ):
            if np.isfinite(aicc) and np.isfinite(deviation):
                found[v].append(Fitted(form, parameters, float(aicc), float(deviation), fits.season))
    return found


def forecast(values: Array, model: Fitted, period: int, origins: Sequence[int], horizon: int) -> Array:
    """OxH of what follows values[:origin], T values of one series."""
    fits = Fits.__new__(Fits)
    fits.season, fits.period, fits.forms = model.season, period if model.season != "none" else 1, (model.form,)
    fits.trend, fits.damped = np.array([model.form.trend != "none"]), np.array([model.form.trend == "damped"])
    state, rates = fits.unpacked(model.parameters[None])
    with np.errstate(all="ignore"):
        _, kept = smooth(values[:, None], state, rates, model.season, origins)
        return np.stack([ahead(kept[o], rates.phi, model.season, o, horizon)[:, 0] for o in origins])


def expected_deviation(values: Array, model: Fitted, period: int, horizon: int) -> Array:
    """H: of the errors that the model expects after the T values, to first order."""
    fits = Fits.__new__(Fits)
    fits.season, fits.period, fits.forms = model.season, period if model.season != "none" else 1, (model.form,)
    fits.trend, fits.damped = np.array([model.form.trend != "none"]), np.array([model.form.trend == "damped"])
    state, rates = fits.unpacked(model.parameters[None])
    with np.errstate(all="ignore"):
        _, kept = smooth(values[:, None], state, rates, model.season, [len(values)])
        end = kept[len(values)]
        usual = float(model.season == "multiplicative")
        season = np.full((fits.period, 1), usual)  # widths are of no phase
        flat = ahead(State(end.level, end.slope, season), rates.phi, model.season, 0, horizon)[:, 0]
        size = np.abs(flat) if model.form.multiplicative else np.ones(horizon)
        size = model.deviation * size
        # A shock at step j moves what follows by what a shock at the first step moves, so many steps on; in units of the shock.
        tiny = 1e-4 * max(abs(float(end.level[0])), 1e-3)
        start = State(end.level, end.slope, season.copy())
        first = flat[0] + tiny
        _, after = smooth(np.array([[first]]), start, rates, model.season, [1])
        moved = ahead(after[1], rates.phi, model.season, 1, horizon - 1)[:, 0] if horizon > 1 else np.zeros(0)
        response = np.concatenate([[1.0], (moved - flat[1:]) / tiny])
    power = np.array([sum((size[j] * response[h - j]) ** 2 for j in range(h + 1)) for h in range(horizon)])
    return np.sqrt(power)
