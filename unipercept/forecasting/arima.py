"""Seasonal ARIMA, orders chosen step by step by AICc, coefficients by the conditional sum of squares.

Source: Hyndman and Khandakar (2008), "Automatic time series forecasting": tests of differences, search of orders. Each
residual pass is one linear filter, so that a series of a few hundred rows takes tenths of a second.

Shapes: T rows, V series, O origins, H steps ahead, M steps a cycle.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import leastsq
from scipy.signal import lfilter

from unipercept.forecasting.filters import continued, expected_deviation, known_stretch, spread_until
from unipercept.forecasting.season import Season, seasonal_strength

Array = NDArray[np.floating[Any]]

MAX_ROWS = 500  # that coefficients are estimated on, and MAX_CYCLES if that is more
MAX_CYCLES = 12
MAX_PERIOD = 200  # longer cycles have no seasonal terms
MIN_ROWS = 10
MOST_ORDER = 3
STRONG_SEASON = 0.64  # seasonal strength that wants a seasonal difference (Hyndman and Athanasopoulos 2021)
KPSS_LIMIT = 0.463  # 5 %
MOST_MODELS = 24
LARGEST = 1e30  # residual, of coefficients that explode


@dataclass(frozen=True)
class Orders:
    """(p, d, q)(P, D, Q) at a cycle, with or without a constant."""

    p: int
    d: int
    q: int
    seasonal_p: int
    seasonal_d: int
    seasonal_q: int
    constant: bool
    period: int

    @property
    def parameters(self) -> int:
        """Coefficients to estimate."""
        return self.p + self.q + self.seasonal_p + self.seasonal_q

    def lost(self) -> int:
        """First rows without a residual."""
        return self.d + self.seasonal_d * self.period

    def allowed(self) -> bool:
        """Within the bounds of the search."""
        return (
            max(self.p, self.q) <= MOST_ORDER
            and max(self.seasonal_p, self.seasonal_q) <= 1
            and min(self.p, self.q, self.seasonal_p, self.seasonal_q) >= 0
        )

    def changed(self, **parts: int) -> Orders:
        """With some orders moved by so much."""
        return Orders(**{**self.__dict__, **{name: getattr(self, name) + step for name, step in parts.items()}})


@dataclass(frozen=True, eq=False)
class Fitted:
    """Polynomials in the lag: `ar` of the differenced series less its mean, `ma` of the
    residuals; both start with 1.
    """

    orders: Orders
    coefficients: Array
    mean: float
    aicc: float
    deviation: float = np.nan  # of the one-step errors; unknown where the coefficients are other series'

    def polynomials(self) -> tuple[Array, Array]:
        return _polynomials(self.coefficients, self.orders)


class Arima:
    """One model per series; if time runs out, the remaining series take the most common orders
    and their median coefficients.
    """

    name = "ARIMA"
    gives_quantiles = False
    fits_closely = False

    def __init__(self, period: int) -> None:
        self.period = period if 2 <= period <= MAX_PERIOD else 1
        self.models: list[Fitted] = []
        self.n_estimated = 0
        self._of_gaps = Season.of(np.zeros((1, 1)), 1)  # by which they are closed

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        """Orders and coefficients of each series."""
        deadline = time.monotonic() + seconds
        count = values.shape[1]
        rows = max(MAX_ROWS, MAX_CYCLES * self.period)
        self._of_gaps = Season.of(values, self.period)
        found: dict[int, Fitted] = {}
        for v in spread_until(deadline, count):
            fitted = _estimate(self._learned(values, v)[-rows:], self.period)
            if fitted is not None:
                found[v] = fitted
        usual = _median(list(found.values()))
        self.models = [found.get(v, usual) for v in range(count)]
        self.n_estimated = len(found)

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        start = max(0, min(origins) - max(MAX_ROWS, MAX_CYCLES * self.period))
        filled = self._of_gaps.begun(values[start:], start)
        ends = np.asarray(origins) - start
        found = np.empty((len(origins), horizon, values.shape[1]))
        for v, model in enumerate(self.models):
            found[:, :, v] = _continued(filled[:, v], model, ends, horizon)
        return found

    def _learned(self, values: Array, v: int) -> Array:
        """From the first value of a series to the last, gaps closed by the season about lines."""
        rows = np.flatnonzero(np.isfinite(values[:, v]))
        if not len(rows):
            return np.zeros(0)
        usual = self._of_gaps.profile[:, v]
        usual = usual[np.arange(rows[0], rows[-1] + 1) % len(usual)]
        return np.asarray(known_stretch(values[rows[0] : rows[-1] + 1, v] - usual) + usual)

    def deviation(self, horizon: int) -> Array:
        """HxV of the errors that the models themselves expect, NaN where unknown."""
        found = [
            expected_deviation(model.deviation, _undifferenced(model), model.polynomials()[1], horizon)
            for model in self.models
        ]
        return np.stack(found, axis=1)


def _estimate(y: Array, period: int) -> Fitted | None:
    """The best model by AICc; None for a series too short or one that never changes."""
    return min(_searched(y, period), key=lambda one: one.aicc, default=None)


def _searched(y: Array, period: int) -> list[Fitted]:
    """All models that the search for the best one saw."""
    if len(y) < MIN_ROWS or np.ptp(y) == 0:
        return []
    m = period if len(y) >= 3 * period else 1
    seasonal_d = int(m > 1 and seasonal_strength(y, m) > STRONG_SEASON)
    w = y[m:] - y[:-m] if seasonal_d else y
    d = 0
    while d + seasonal_d < 2 and _wanders(w):
        w, d = np.diff(w), d + 1
    constant = d + seasonal_d < 2
    s = int(m > 1)
    queue = [
        Orders(p, d, q, s * sp, seasonal_d, s * sq, constant, m)
        for p, q, sp, sq in ((2, 2, 1, 1), (0, 0, 0, 0), (1, 0, 1, 0), (0, 1, 0, 1))
    ]
    if constant:
        queue.append(Orders(0, d, 0, 0, seasonal_d, 0, False, m))
    seen: dict[Orders, Fitted] = {}
    best: Fitted | None = None
    while queue and len(seen) < MOST_MODELS:
        improved = False
        for candidate in queue:
            if candidate in seen or not candidate.allowed() or len(seen) >= MOST_MODELS:
                continue
            fitted = _fitted(y, candidate)
            if fitted is None:
                continue
            seen[candidate] = fitted
            if best is None or fitted.aicc < best.aicc:
                best, improved = fitted, True
        if not improved or best is None:
            break
        o = best.orders
        queue = [o.changed(p=i, q=j) for i, j in ((-1, 0), (1, 0), (0, -1), (0, 1), (1, 1), (-1, -1))]
        if s:
            queue += [
                o.changed(seasonal_p=i, seasonal_q=j) for i, j in ((-1, 0), (1, 0), (0, -1), (0, 1), (1, 1), (-1, -1))
            ]
        if d + seasonal_d < 2:
            queue.append(Orders(**{**o.__dict__, "constant": not o.constant}))
    return list(seen.values())


def _fitted(y: Array, orders: Orders) -> Fitted | None:
    """Least conditional squares; None where the rows are too few or nothing stable is found."""
    w = _differenced(y, orders)
    skip = orders.p + orders.seasonal_p * orders.period
    n = len(w) - skip
    k = orders.parameters + int(orders.constant) + 1
    if n < max(k + 2, 6):
        return None
    mean = float(w.mean()) if orders.constant else 0.0
    centred = w - mean
    power = float(centred @ centred)
    if power <= 1e-14 * max(1.0, float(y @ y)):
        return None

    def residuals(free: Array) -> Array:
        ar, ma = _polynomials(_bounded(free, orders), orders)
        rest = lfilter(ar, ma, centred)[skip:]
        if rest @ rest < LARGEST:  # the usual case, and then none of them is large
            return np.asarray(rest)
        return np.asarray(np.nan_to_num(rest, nan=LARGEST).clip(-LARGEST, LARGEST))

    free = np.zeros(orders.parameters)
    if (
        orders.parameters
    ):  # Levenberg and Marquardt's steps: a third of the passes of a search that knows the sum of squares alone
        free = leastsq(
            residuals,
            np.full(orders.parameters, 0.1),
            maxfev=12 * (orders.parameters + 1),
            ftol=1e-5,
            xtol=1e-4,
            epsfcn=1e-10,
            factor=0.3,
            diag=np.ones(orders.parameters),
            full_output=True,  # without a warning where the passes end first
        )[0]
    rest = residuals(free)
    variance = float(rest @ rest) / n + 1e-12 * power / n
    # As if all models had lost the same rows: their likelihoods are of n rows each, scaled to those of the shortest.
    aicc = len(w) * np.log(variance) + 2 * k + 2 * k * (k + 1) / max(1, len(w) - k - 1)
    if not np.isfinite(aicc):
        return None
    deviation = np.sqrt(variance * n / (n - k + 1))
    return Fitted(orders, _bounded(free, orders), mean, float(aicc), float(deviation))


def _differenced(y: Array, orders: Orders) -> Array:
    w = y
    if orders.seasonal_d:
        w = w[orders.period :] - w[: -orders.period]
    return np.diff(w, n=orders.d)


def _bounded(free: Array, orders: Orders) -> Array:
    """Free numbers as coefficients of stationary and invertible polynomials, by partial
    autocorrelations (Monahan 1984).
    """
    found = np.tanh(free) * 0.995
    for part in _by_polynomial(found, orders):
        for i, value in enumerate(part.tolist()):
            part[:i] -= value * part[:i][::-1]
    return found


def _by_polynomial(coefficients: Array, orders: Orders) -> tuple[Array, Array, Array, Array]:
    """Views: autoregressive, moving average, and the seasonal two."""
    a = orders.p
    b = a + orders.q
    c = b + orders.seasonal_p
    return coefficients[:a], coefficients[a:b], coefficients[b:c], coefficients[c:]


def _polynomials(coefficients: Array, orders: Orders) -> tuple[Array, Array]:
    ar, ma, seasonal_ar, seasonal_ma = _by_polynomial(coefficients, orders)
    return _multiplied(-ar, -seasonal_ar, orders.period), _multiplied(-ma, -seasonal_ma, orders.period)


def _multiplied(plain: Array, seasonal: Array, period: int) -> Array:
    polynomial = _spaced(plain, 1)
    return np.convolve(polynomial, _spaced(seasonal, period)) if len(seasonal) else polynomial


def _spaced(coefficients: Array, period: int) -> Array:
    polynomial = np.zeros(1 + period * len(coefficients))
    polynomial[0] = 1.0
    polynomial[period::period] = coefficients
    return polynomial


def _continued(y: Array, model: Fitted, ends: NDArray[np.int64], horizon: int) -> Array:
    """OxH after y[:end] for every end."""
    orders = model.orders
    ar, ma = model.polynomials()
    level = model.mean * ar.sum()
    lost = orders.lost()
    residuals = np.zeros(len(y))
    if len(y) > lost:
        residuals[lost:] = lfilter(ar, ma, _differenced(y, orders) - model.mean)
    return continued(y, residuals, _undifferenced(model), ma, ends, horizon, level, before=float(y[0]))


def _undifferenced(model: Fitted) -> Array:
    """The polynomial of the series itself, its differences within."""
    whole = model.polynomials()[0]
    if model.orders.seasonal_d:
        whole = np.convolve(whole, _spaced(np.array([-1.0]), model.orders.period))
    for _ in range(model.orders.d):
        whole = np.convolve(whole, [1.0, -1.0])
    return whole


def _wanders(w: Array) -> bool:
    """Whether the KPSS test rejects that the series keeps its level (Kwiatkowski et al. 1992)."""
    n = len(w)
    centred = w - w.mean()
    power = float(centred @ centred) / n
    if n < 8 or power <= 1e-14 * max(1.0, float(w @ w) / n):
        return False
    lags = int(3 * np.sqrt(n) / 13)
    spread = power + 2 * sum((1 - k / (lags + 1)) * float(centred[k:] @ centred[:-k]) / n for k in range(1, lags + 1))
    return float(np.square(centred.cumsum()).sum()) / (n * n * max(spread, 1e-30)) > KPSS_LIMIT


def _median(found: list[Fitted]) -> Fitted:
    """Median coefficients of the commonest orders; a random walk where nothing was found."""
    if not found:
        return Fitted(Orders(0, 1, 0, 0, 0, 0, False, 1), np.zeros(0), 0.0, 0.0)
    orders = [one.orders for one in found]
    usual = max(dict.fromkeys(orders), key=orders.count)
    same = [one for one in found if one.orders == usual]
    return Fitted(
        usual, np.median([one.coefficients for one in same], axis=0), float(np.median([one.mean for one in same])), 0.0
    )
