"""Exponential smoothing: parameters estimated by statsmodels, then run over all series and origins at once.

Shapes: T rows, V series, O origins, H steps ahead, M steps a cycle.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import import_optional
from unipercept.forecasting.filters import spread_until
from unipercept.forecasting.season import Season

Array = NDArray[np.floating[Any]]

MAX_PERIOD = 400  # a longer cycle has more seasonal states than its data can settle
MAX_FITTED_ROWS = 720
MIN_CYCLES = 3  # for a seasonal form
FORMS = ((False, False), (True, False), (False, True), (True, True))  # (damped trend, additive season)


@dataclass(frozen=True)
class Parameters:
    """Of one series: additive errors, trend and season (Hyndman et al. 2008, the class-1 models)."""

    alpha: float
    beta: float
    gamma: float
    phi: float
    trend: bool
    season: bool


class ExponentialSmoothing:
    """Damped additive trend and additive season, each kept where the corrected Akaike criterion wants it."""

    name = "exponential smoothing"
    gives_quantiles = False
    fits_closely = False

    def __init__(self, period: int) -> None:
        self.period = period if 2 <= period <= MAX_PERIOD else 1
        self.parameters: list[Parameters] = []
        self.n_estimated = 0  # the other series take the median of these

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        """Estimate as many series as the time allows, spread over the table; the rest take the medians."""
        import_optional("statsmodels", extra="forecast")
        deadline = time.monotonic() + seconds
        rows = max(min(MAX_FITTED_ROWS, len(values)), min(len(values), (MIN_CYCLES + 1) * self.period))
        count = values.shape[1]
        again = len(self.parameters) == count  # a second fit keeps the first one's forms
        known_forms = {v: (p.trend, p.season) for v, p in enumerate(self.parameters)} if again else {}
        found: dict[int, Parameters] = {}
        for v in spread_until(deadline, count):
            forms = [known_forms[v]] if v in known_forms else list(FORMS)
            fitted = _estimate(values[-rows:, v], self.period, forms)
            if fitted is not None:
                found[v] = fitted
        usual = _median(list(found.values()))
        self.parameters = [found.get(v, usual) for v in range(count)]
        self.n_estimated = len(found)

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        return run(values, self.parameters, self.period, origins, horizon)


def run(values: Array, parameters: Sequence[Parameters], period: int, origins: Sequence[int], horizon: int) -> Array:
    """O x H x V: the smoothing equations over all rows, and the forecast from the state before each origin."""
    alpha, beta, gamma, phi = (np.array([getattr(p, k) for p in parameters]) for k in ("alpha", "beta", "gamma", "phi"))
    trend, season = (np.array([getattr(p, k) for p in parameters]) for k in ("trend", "season"))
    gamma, beta = gamma * season, beta * trend
    start = max(0, min(origins) - max(2000, 20 * period))  # what lies before has been forgotten
    used = values[start:]
    level, seasons = _initial(used, period)
    seasons = seasons * season
    slope = np.zeros_like(level)
    wanted = {origin - start: i for i, origin in enumerate(origins)}
    forecast = np.empty((len(origins), horizon, values.shape[1]))
    damping = np.cumsum(phi[None] ** np.arange(1, horizon + 1)[:, None], axis=0)  # HxV
    for t in range(max(wanted) + 1):
        if t in wanted:
            phases = (t + np.arange(horizon)) % period
            forecast[wanted[t]] = level + damping * slope + seasons[phases]
        if t == len(used):
            break
        expected = level + phi * slope
        error = used[t] - expected - seasons[t % period]
        error = np.where(np.isfinite(error), error, 0.0)
        level = expected + alpha * error
        slope = phi * slope + alpha * beta * error
        seasons[t % period] += gamma * error
    return forecast


def _initial(values: Array, period: int) -> tuple[Array, Array]:
    """Level V and seasons MxV from the first cycles of each series (two for the season)."""
    width = values.shape[1]
    known = np.isfinite(values)
    first = known.argmax(axis=0)
    level, seasons = np.zeros(width), np.zeros((period, width))
    for start in np.unique(first):
        columns = np.flatnonzero(first == start)
        head = values[start : start + max(2 * period, 4), columns]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            level[columns] = np.nan_to_num(np.nanmean(head, axis=0))
            if period > 1:
                if len(head) >= 2 * period:  # a trend must not pass for a season: hardly anything corrects that later
                    rise = np.nan_to_num(np.nanmean(head[period:], axis=0) - np.nanmean(head[:period], axis=0)) / period
                    head = head - rise * (np.arange(len(head)) - (len(head) - 1) / 2)[:, None]
                for phase in range(period):
                    rows = np.arange(len(head))[(start + np.arange(len(head))) % period == phase]
                    if len(rows):
                        seasons[phase, columns] = np.nan_to_num(np.nanmean(head[rows], axis=0) - level[columns])
    return level, seasons


def _estimate(column: Array, period: int, forms: list[tuple[bool, bool]]) -> Parameters | None:
    """The best form by AICc; None for a series too short or one that never changes."""
    from statsmodels.tsa.holtwinters import ExponentialSmoothing as Fitted

    known = np.isfinite(column)
    if known.sum() < 8:
        return None
    begun = column[int(known.argmax()) :, None]
    series = Season.of(begun, period).begun(begun)[:, 0]
    if np.ptp(series) == 0:
        return None
    scale = float(np.std(series))
    best, lowest = None, np.inf
    for trend, season in forms:
        if season and (period < 2 or len(series) < MIN_CYCLES * period):
            season = False
            if (trend, False) in forms:
                continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fit = Fitted(
                    (series - series.mean()) / scale,
                    trend="add" if trend else None,
                    damped_trend=trend,
                    seasonal="add" if season else None,
                    seasonal_periods=period if season else None,
                    initialization_method="heuristic" if len(series) >= 10 else "estimated",
                ).fit()
        except (ValueError, np.linalg.LinAlgError, FloatingPointError):
            continue
        if np.isfinite(fit.aicc) and fit.aicc < lowest:
            lowest, got = fit.aicc, fit.params
            best = Parameters(
                alpha=_unit(got["smoothing_level"]),
                beta=_unit(got["smoothing_trend"]) if trend else 0.0,
                gamma=_unit(got["smoothing_seasonal"]) if season else 0.0,
                phi=_unit(got["damping_trend"]) if trend else 0.0,
                trend=trend,
                season=season,
            )
    return best


def _unit(value: float) -> float:
    return float(np.clip(np.nan_to_num(value, nan=0.1), 0.0, 1.0))


def _median(found: list[Parameters]) -> Parameters:
    """Medians over the series of the commonest form."""
    if not found:
        return Parameters(0.3, 0.0, 0.0, 0.0, False, False)
    forms = [(p.trend, p.season) for p in found]
    form = max(set(forms), key=forms.count)
    same = [p for p in found if (p.trend, p.season) == form]
    middle = {k: float(np.median([getattr(p, k) for p in same])) for k in ("alpha", "beta", "gamma", "phi")}
    return Parameters(**middle, trend=form[0], season=form[1])
