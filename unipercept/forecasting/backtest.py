"""Back-test: every method forecasts from the same rolling origins, and none sees later rows.

The history has three parts: rows that methods learn from, then origins whose errors give points their
quantiles, then origins that are scored. A method is fitted once, on the rows before the scored part; at each
origin it sees the rows up to that origin.

Shapes: T rows, V series, O origins, H steps ahead, Q quantile levels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError, UniperceptError, one_line
from unipercept.forecasting.baselines import Method, Modelled
from unipercept.forecasting.prepare import Prepared
from unipercept.forecasting.repairs import MIN_KNOWN
from unipercept.forecasting.residuals import ErrorQuantiles, Liveliness, recent_window
from unipercept.forecasting.scores import Score, score, seasonal_scale
from unipercept.forecasting.settings import QUANTILES

Array = NDArray[np.floating[Any]]
Tell = Callable[[str, float], object]

MIN_ROWS = 8  # of history, for a back-test at all
SCORED_SHARE = 0.2  # of the history
MAX_ORIGINS = 48
MAX_BYTES = 600_000_000  # of all methods' quantiles, in float32
MIN_ORIGINS = 4
LAST_SHARE = 0.85  # of what is left that a method may take to learn; it must forecast, too


@dataclass(frozen=True)
class Plan:
    """Where the history is cut.

    Args:
        fit_end: rows that methods learn from.
        learn_end: rows that regressions learn from, so that their errors at the earlier origins are those of new rows.
        earlier: origins whose errors become quantiles.
        scored: origins that are scored; all at or after fit_end.
        horizon: steps ahead in the test; less than asked for where the history is short.
    """

    fit_end: int
    learn_end: int
    earlier: tuple[int, ...]
    scored: tuple[int, ...]
    horizon: int


@dataclass(frozen=True, eq=False)
class Tested:
    """One method's forecasts at the scored origins.

    Args:
        quantiles: O x H x V x Q float32.
        errors: at the earlier and the scored origins, for methods that give points; else None.
        seconds: fitting and forecasting.
    """

    method: Method
    quantiles: NDArray[np.float32]
    errors: Array | None
    score: Score
    seconds: float


@dataclass(frozen=True, eq=False)
class Backtest:
    """The forecasts of all methods from the same origins."""

    plan: Plan
    tested: tuple[Tested, ...]
    truth: Array  # OxHxV, NaN for series that had not begun
    seen: Array  # OxHxV, the truth with its spikes limited, by which methods are weighed and intervals calibrated
    columns: NDArray[np.int64]  # the series tested: all, or a sample of a very wide table
    scale: Array  # of the tested series: the unit of MASE
    measured_scale: Array  # the same as measured
    prepared: Prepared
    earlier_liveliness: Array  # OxHxV
    scored_liveliness: Array
    failed: tuple[str, ...]  # methods that could not be used, with the reason

    def measured(self, scaled: Array) -> Array:
        """O x H x V (x Q) as measured."""
        return self.prepared.restored(scaled, self.columns, axis=2)

    def score(self, quantiles: Array) -> Score:
        """Of O x H x V x Q quantiles, as measured."""
        return score(self.measured(quantiles), self.measured(self.truth), self.measured_scale)

    def named(self, name: str) -> Tested | None:
        """The method of that name."""
        return next((one for one in self.tested if one.method.name == name), None)


def plan_origins(n_rows: int, horizon: int, n_series: int, n_methods: int, period: int = 1) -> Plan | None:
    """Origins for a history; None where it is too short for any test.

    The scored part is the last fifth, or at least two horizons where there are as many.
    """
    tested = min(horizon, max(1, n_rows // 4))
    if n_rows < MIN_ROWS:
        return None
    region = max(int(SCORED_SHARE * n_rows), tested + min(tested, 24))
    region = min(region, n_rows // 2, 60 * tested + 500)
    fit_end = n_rows - region
    each = 4 * len(QUANTILES) * tested * n_series * n_methods
    most = int(np.clip(MAX_BYTES / each, MIN_ORIGINS, MAX_ORIGINS))
    scored = spread_rows(fit_end, n_rows - tested, most, period)
    start = max(fit_end - max(int(0.15 * n_rows), 2 * tested), fit_end // 2)
    earlier = spread_rows(start, fit_end - tested, most, period)
    if len(earlier) < 3:  # a short history: whatever lies before, as far back as there is something to see
        earlier = spread_rows(max(2, min(fit_end // 3, fit_end - tested)), max(2, fit_end - tested), most, period)
    learn_end = start if start >= n_rows // 2 else fit_end
    return Plan(fit_end, learn_end, earlier, scored, tested)


def spread_rows(first: int, last: int, most: int, period: int = 1) -> tuple[int, ...]:
    """At most so many whole numbers from first to last, evenly, the last among them.

    Their distance shares no factor with the period: every third day at noon would say nothing of the other hours. It is
    rather larger for that than smaller, since fewer origins over the whole stretch say more than many over its end.
    """
    if last <= first:
        return (last,)
    stride = max(1, -(-(last - first) // max(1, most - 1)))
    while stride > 1 and math.gcd(stride, period) > 1:
        stride += 1
    return tuple(last - stride * k for k in range(min(most, (last - first) // stride + 1)))[::-1]


def backtest(
    prepared: Prepared,
    methods: Sequence[Method],
    horizon: int,
    *,
    seconds: float,
    shares: dict[str, float] | None = None,
    tell: Tell = lambda line, share: None,
) -> Backtest | None:
    """Fit each method on the rows before the scored part, and score all at the same origins.

    Args:
        seconds: for all methods together.
        shares: of the time, by a method's name; the rest is shared evenly.

    Returns:
        None where the history is too short.
    """
    values, truth_rows = prepared.values, prepared.truth
    columns = _tested_columns(prepared, horizon, len(methods))
    plan = plan_origins(len(values), horizon, len(columns), len(methods), prepared.period)
    if plan is None:
        return None
    values, truth_rows = values[:, columns], truth_rows[:, columns]
    ends = np.asarray(plan.scored)[:, None] + np.arange(plan.horizon)
    begun = have_begun(values, plan.scored)
    truth, seen = (np.where(begun, rows[ends], np.nan) for rows in (truth_rows, values))
    scale = seasonal_scale(truth_rows[: plan.fit_end], prepared.period)
    measured_rows = prepared.restored(truth_rows[: plan.fit_end], columns)
    window = recent_window(prepared.period, plan.horizon)
    lively = Liveliness.of(values[: plan.fit_end], prepared.period, window)
    early, late = (lively.at(values, origins, plan.horizon) for origins in (plan.earlier, plan.scored))
    found = Backtest(
        plan, (), truth, seen, columns, scale, seasonal_scale(measured_rows, prepared.period), prepared, early, late, ()
    )
    if len(columns) < prepared.values.shape[1]:
        for method in methods:
            serve(method, columns)
    given = shares or {}
    rest = max(1, sum(m.name not in given for m in methods))
    tested, failed, start = [], [], time.monotonic()
    for number, method in enumerate(methods):
        tell(method.name, number / len(methods))
        began = time.monotonic()
        left = LAST_SHARE * (seconds - (time.monotonic() - start))  # a busy machine may have made those before slow
        budget = max(1.0, min(left, seconds * given.get(method.name, max(0.0, 1 - sum(given.values())) / rest)))
        try:
            quantiles, errors = _test(method, values, plan, early, late, budget)
        except UniperceptError as error:
            failed.append(f"{method.name}: {one_line(error)}")
            continue
        tested.append(Tested(method, quantiles, errors, found.score(quantiles), time.monotonic() - began))
    return replace(found, tested=tuple(tested), failed=tuple(failed))


def _test(
    method: Method, values: Array, plan: Plan, early: Array, late: Array, seconds: float
) -> tuple[NDArray[np.float32], Array | None]:
    learned = plan.learn_end if method.fits_closely and not method.gives_quantiles else plan.fit_end
    method.fit(values[:learned], plan.horizon, seconds)
    if method.gives_quantiles:
        found = method.predict(values, plan.scored, plan.horizon)
        return check(np.where(have_begun(values, plan.scored)[..., None], found, 0.0), method), None
    origins = (*plan.earlier, *plan.scored)
    begun = have_begun(values, origins)
    points = np.where(begun, method.predict(values, origins, plan.horizon), 0.0)
    rows = np.asarray(origins)[:, None] + np.arange(plan.horizon)
    errors = np.where(begun, values[rows] - points, np.nan)
    n = len(plan.earlier)
    spread = ErrorQuantiles(errors[:n], early, spanned_windows(plan.earlier, plan.horizon))
    return check(spread.around(points[n:], late, model_deviation(method, plan.horizon)), method), errors


def have_begun(values: Array, origins: Sequence[int]) -> NDArray[np.bool_]:
    """O x 1 x V: series of which enough is known before an origin to forecast them; the others are not judged there."""
    known = np.isfinite(values).cumsum(axis=0)
    return np.asarray(known[np.asarray(origins) - 1] >= MIN_KNOWN)[:, None]


def spanned_windows(origins: Sequence[int], horizon: int) -> float:
    """Windows of the horizon, one after the other, from the first origin to the end of the last one's."""
    return (max(origins) - min(origins)) / horizon + 1


def model_deviation(method: Method, horizon: int) -> Array | None:
    """HxV of the errors that the method's own model expects; None where it is no such model."""
    return method.deviation(horizon) if isinstance(method, Modelled) else None


def serve(method: Method, series: NDArray[np.int64] | None) -> None:
    """Tell a method with state per series which series of the table its inputs hold; None for all."""
    if hasattr(method, "series"):
        method.series = series


def check(quantiles: Array, method: Method) -> NDArray[np.float32]:
    """The quantiles as float32; a method whose forecast is not finite cannot be used."""
    if not np.isfinite(quantiles).all():
        raise InputError(f"{method.name} gave forecasts that are not finite")
    return np.asarray(quantiles, np.float32)


def _tested_columns(prepared: Prepared, horizon: int, n_methods: int) -> NDArray[np.int64]:
    """Series that change; of a table so wide that few origins would fit into memory, an even sample."""
    alive = np.flatnonzero(~prepared.constant)
    if not len(alive):
        return np.arange(0)
    each = 4 * len(QUANTILES) * min(horizon, max(1, len(prepared) // 4)) * n_methods * 2 * MIN_ORIGINS
    most = max(64, int(MAX_BYTES / each))
    return alive if len(alive) <= most else alive[np.unique(np.linspace(0, len(alive) - 1, most).astype(int))]
