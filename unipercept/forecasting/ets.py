"""Exponential smoothing (ETS with additive parts) as a filter.

The errors of such a model are one linear filter of the series, and initial states enter them linearly: given
the smoothing rates, the states are least squares. A fit takes hundredths of a second, where a state
recursion in Python takes seconds.

Source: Hyndman et al. (2008), "Forecasting with exponential smoothing", chapter 11 for its reduced form.

Shapes: T rows, V series, O origins, H steps ahead, M steps a cycle.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.signal import lfilter

from unipercept.forecasting.filters import begun, continued, expected_deviation, known_stretch, spread_until
from unipercept.forecasting.season import MIN_CYCLES, Season

Array = NDArray[np.floating[Any]]

MAX_ROWS, MAX_CYCLES = 600, 12  # that rates are estimated on: the larger
MAX_PERIOD = 200  # of a season that moves
MIN_ROWS = 8
FIRST_ROWS = 60  # that tell the states at a row in the middle of a series
IMPOSSIBLE = 1e3  # loss of rates that explode

Base = Literal["level", "damped"]
# No straight trend: where AICc took it, its errors were 4 % (geometric mean) above those of these two
# (benchmarks/results/forecast_default.md).
BASES: tuple[Base, ...] = ("level", "damped")


@dataclass(frozen=True)
class Form:
    """What a series is made of."""

    base: Base
    season: bool
    period: int

    def bounds(self) -> list[tuple[float, float]]:
        """Of each rate."""
        found = {
            "level": [(0.01, 0.99)],
            "damped": [(0.01, 0.99), (0.01, 0.99), (0.8, 0.995)],
        }[self.base]
        return found + [(0.001, 0.9)] * self.season

    def starts(self) -> list[list[float]]:
        """Where searches begin, the best of them only."""
        found = {
            "level": [[a] for a in (0.05, 0.2, 0.5, 0.9)],
            "damped": [[a, b, 0.95] for a in (0.1, 0.4, 0.8) for b in (0.05, 0.3)],
        }[self.base]
        return [[*start, gamma] for start in found for gamma in (0.05, 0.3)] if self.season else found

    def n_states(self) -> int:
        """Initial states, the season's among them."""
        return (1 if self.base == "level" else 2) + (self.period - 1 if self.season else 0)


@dataclass(frozen=True, eq=False)
class Fitted:
    """Rates and initial states of one series."""

    form: Form
    rates: Array
    states: Array
    from_first: bool  # whether the states are those before the first row of the series
    aicc: float
    deviation: float = np.nan  # of the one-step errors; unknown where the rates are other series'


class Ets:
    """Level or damped trend, with or without a season that moves, by AICc; where time runs out, the other series take
    the commonest form's median rates.
    """

    name = "ETS"
    gives_quantiles = False
    fits_closely = False

    def __init__(self, period: int) -> None:
        self.period = max(1, period)
        self.models: list[Fitted | None] = []
        self.n_estimated = 0
        self._season = Season.of(np.zeros((1, 1)), 1)

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        """Season from all rows, rates from the latest."""
        deadline = time.monotonic() + seconds
        count = values.shape[1]
        self._season = Season.of(values, self.period)
        is_seasonal = np.abs(self._season.profile).max(axis=0) > 0
        plain = self._season.without(values)
        rows = self._rows()
        found: dict[int, Fitted] = {}
        for v in spread_until(deadline, count):
            whole = known_stretch(plain[:, v])
            z = whole[-rows:]
            if len(z) < MIN_ROWS or np.ptp(z) == 0:
                continue
            seasons = (
                (False, True)
                if is_seasonal[v] and self.period <= MAX_PERIOD and len(z) >= MIN_CYCLES * self.period
                else (False,)
            )
            forms = [Form(base, season, self.period) for base in BASES for season in seasons]
            fits = [one for one in (_fitted(z, form, len(whole) <= rows) for form in forms) if one is not None]
            if fits:
                found[v] = min(fits, key=lambda one: one.aicc)
        usual = _usual(list(found.values()))
        self.models = [found.get(v, usual) for v in range(count)]
        self.n_estimated = len(found)

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        start = max(0, min(origins) - self._rows())
        start -= start % max(1, self.period)
        filled = begun(self._season.without(values)[start:])
        ends = np.asarray(origins) - start
        found = np.empty((len(origins), horizon, values.shape[1]))
        for v, model in enumerate(self.models):
            found[:, :, v] = (
                filled[ends - 1, v][:, None]
                if model is None
                else _forecast(filled[:, v], model, ends, horizon, start == 0)
            )
        rows = np.asarray(origins)[:, None] + np.arange(horizon)
        return np.asarray(found + self._season.at(rows))

    def deviation(self, horizon: int) -> Array:
        """HxV of the errors that the models themselves expect, NaN where unknown."""
        found = np.full((horizon, len(self.models)), np.nan)
        for v, model in enumerate(self.models):
            if model is not None:
                found[:, v] = expected_deviation(model.deviation, *_polynomials(model.rates, model.form), horizon)
        return found

    def _rows(self) -> int:
        return max(MAX_ROWS, MAX_CYCLES * self.period) if self.period <= MAX_PERIOD else MAX_ROWS


def _fitted(z: Array, form: Form, from_first: bool = False) -> Fitted | None:
    """Rates with the least squared errors, z being about its season; None where there are too few rows."""
    k = len(form.bounds()) + form.n_states() + 1
    if len(z) < k + 3:
        return None
    power = float(np.square(z - z.mean()).sum())

    def loss(rates: Array) -> float:
        ar, ma = _polynomials(rates, form)
        errors, _, _ = _errors(z, rates, form, ar, ma)
        found = float(np.log(errors @ errors / power + 1e-12))
        return found if np.isfinite(found) else IMPOSSIBLE

    best = min(form.starts(), key=lambda start: loss(np.asarray(start)))
    with np.errstate(all="ignore"):
        rates = minimize(
            loss,
            np.asarray(best),
            method="L-BFGS-B",
            bounds=form.bounds(),
            options={"maxiter": 25, "maxfun": 60 * len(best)},
        ).x
    lowest = loss(rates)
    if lowest >= IMPOSSIBLE:
        return None
    n = len(z)
    aicc = n * lowest + 2 * k + 2 * k * (k + 1) / max(1, n - k - 1)
    errors, states, _ = _errors(z, rates, form, *_polynomials(rates, form))
    deviation = np.sqrt(errors @ errors / (n - k + 1))
    return Fitted(form, rates, states, from_first, float(aicc), float(deviation))


def _errors(z: Array, rates: Array, form: Form, ar: Array, ma: Array) -> tuple[Array, Array, Array]:
    """Errors, initial states by least squares, and what the states alone would have given."""
    paths = _paths(rates, form, len(z))
    filtered = lfilter(ar, ma, np.concatenate([z[:, None], paths], axis=1), axis=0)
    with np.errstate(all="ignore"):
        if not np.isfinite(filtered).all():
            return np.full(len(z), np.inf), np.zeros(paths.shape[1]), np.zeros(len(z))
        gram = filtered[:, 1:].T @ filtered[:, 1:]
        states = np.linalg.solve(gram + 1e-9 * np.trace(gram) * np.eye(len(gram)), filtered[:, 1:].T @ filtered[:, 0])
    return filtered[:, 0] - filtered[:, 1:] @ states, states, paths @ states


def _paths(rates: Array, form: Form, rows: int) -> Array:
    """Rows x states: what each initial state alone would give."""
    steps = np.arange(1, rows + 1)
    if form.base == "level":
        return np.ones((rows, 1))
    return np.stack([np.ones(rows), np.cumsum(rates[2] ** steps)], axis=1)


def _base(rates: Array, form: Form) -> tuple[Array, Array]:
    """Polynomials without the season."""
    if form.base == "level":
        return np.array([1.0, -1.0]), np.array([1.0, rates[0] - 1])
    alpha, beta = rates[0], rates[0] * rates[1]
    phi = rates[2]
    ar = np.array([1.0, -1 - phi, phi])
    return ar, (1 - alpha) * ar + np.array([alpha, phi * (beta - alpha), 0.0])


def _polynomials(rates: Array, form: Form) -> tuple[Array, Array]:
    ar, ma = _base(rates, form)
    if not form.season:
        return ar, ma
    gamma, m = rates[-1] * (1 - rates[0]), form.period
    cycle = np.zeros(m + 1)
    cycle[0], cycle[m] = 1.0, -1.0
    shifted = np.concatenate([np.zeros(m), gamma * ar])
    whole = np.convolve(ma, cycle)
    whole[: len(shifted)] += shifted
    return np.convolve(ar, cycle), whole


def _forecast(z: Array, model: Fitted, ends: NDArray[np.int64], horizon: int, from_first: bool) -> Array:
    ar, ma = _polynomials(model.rates, model.form)
    states = model.states
    if not (from_first and model.from_first):
        _, states, _ = _errors(z[: min(FIRST_ROWS, *ends)], model.rates, model.form, ar, ma)
    path = _paths(model.rates, model.form, len(z) + horizon) @ states
    rest = z - path[: len(z)]
    errors = lfilter(ar, ma, rest)
    rows = ends[:, None] + np.arange(horizon)
    return np.asarray(continued(rest, errors, ar, ma, ends, horizon) + path[rows])


def _usual(found: list[Fitted]) -> Fitted | None:
    """Median rates of the commonest form."""
    if not found:
        return None
    forms = [one.form for one in found]
    usual = max(dict.fromkeys(forms), key=forms.count)
    same = [one for one in found if one.form == usual]
    return Fitted(usual, np.median([one.rates for one in same], axis=0), np.zeros(0), False, 0.0)
