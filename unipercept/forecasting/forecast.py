"""From a table to a calibrated forecast: prepare, back-test, choose, calibrate, forecast.

Shapes: T rows, V series, O origins, H steps ahead, Q quantile levels.
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from unipercept.devices import on_cpu
from unipercept.errors import InputError
from unipercept.forecasting.backtest import Backtest, backtest
from unipercept.forecasting.choose import Choice, choose
from unipercept.forecasting.intervals import few_rows, widened
from unipercept.forecasting.methods import Network, make_methods
from unipercept.forecasting.mixture import Mixture, final_mixture, untested
from unipercept.forecasting.prepare import Prepared, prepare, whole_steps
from unipercept.forecasting.scores import MEDIAN
from unipercept.forecasting.settings import QUANTILES
from unipercept.results import Forecast

Tell = Callable[[str, float], object]

DEFAULT_SECONDS = 120.0
SHARES = {
    "network": 0.45,
    "exponential smoothing": 0.07,
    "ETS": 0.1,
    "ARIMA": 0.14,
    "cycles + ARIMA": 0.08,
}  # of the time of the back-test
BACKTEST_SHARE = 0.85  # of the time that is left after reading; the rest is for learning anew
HISTORY_HORIZONS = 4  # shown before the forecast, and at least four cycles
SHOWN_TESTS = 2
MANY_SERIES = 20  # written a row a series and step


@dataclass(frozen=True, eq=False)
class ForecastResult(Forecast):
    """A forecast with the work behind it.

    Args:
        prepared: the series as they were read and made ready.
        backtest: what every method did at the same earlier origins; None where the history is too short.
        choice: what was picked and how well it did.
        mixture: the fitted methods, which can forecast from other origins.
        notices: what was found, repaired and decided, a sentence each.
    """

    prepared: Prepared | None = None
    backtest: Backtest | None = None
    choice: Choice | None = None
    mixture: Mixture | None = None
    notices: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_text(self) -> str:
        lines = [super().to_text(), *(f"  note: {line}" for line in self.notices)]
        if self.choice is not None and self.backtest is not None:
            lines += ["", *scoreboard(self.backtest, self.choice)]
        return "\n".join(lines)

    def report(self, path: str | Path) -> Path:
        """Write one HTML page that stands alone: what was found, what was chosen and why, pictures, coverage."""
        from unipercept.forecasting.report import write_report

        return write_report(self, Path(path))


@on_cpu
def forecast_table(
    source: Any,
    horizon: int,
    *,
    targets: Sequence[str] = (),
    time: str | None = None,
    series: str | None = None,
    known: Sequence[str] = (),
    static: Sequence[str] = (),
    period: int | None = None,
    methods: Sequence[str] = (),
    seconds: float = DEFAULT_SECONDS,
    device: str = "auto",
    seed: int = 0,
    tell: Tell = lambda line, share: None,
) -> ForecastResult:
    """Forecast every series of a table (or those named), with intervals that back-testing calibrated.

    Args:
        source: a CSV, Parquet or Feather file; a DataFrame or Series; an xarray object; a
            NumPy array, steps x variables.
        horizon: H, steps ahead.
        targets: columns to forecast; all that hold numbers, where none is named.
        time, series: the columns of times, and of the names of series (long format); found where not given.
        known: columns known in advance, in rows that reach as far as the horizon; columns that alone reach
            so far, where none is named.
        static: columns of long format that hold one value for each series, which the network sees; those
            that do so, where none is named.
        period: steps a cycle; found where not given.
        methods: of `methods.NAMES`; all where none is named.
        seconds: about how long it may take.
        tell: called with a line and the share done.

    Raises:
        InputError: the table or an argument cannot be used; one line says why.
    """
    began = clock.monotonic()
    horizon = whole_steps(horizon, "horizon")
    if not isinstance(seconds, Real) or not seconds > 0:
        raise InputError(f"seconds must be a number above 0, got {seconds!r}")
    tell("read", 0.0)
    prepared = prepare(
        source, horizon=horizon, targets=targets, time=time, series=series, known=known, static=static, period=period
    )
    notices = list(prepared.notices)
    made, unavailable = make_methods(prepared, methods, device=device, seed=seed)
    notices += unavailable
    if not made:
        raise InputError("no method is left to forecast with")
    budget = max(2.0, seconds - (clock.monotonic() - began))
    found = None
    if not prepared.constant.all():
        for method in made:
            if isinstance(method, Network):
                method.on_progress = lambda progress: tell(
                    f"network, pass {progress.epoch} of at most {progress.epochs}", 0.3
                )
        found = backtest(
            prepared,
            made,
            horizon,
            seconds=BACKTEST_SHARE * budget,
            shares={k: v for k, v in SHARES.items() if any(m.name == k for m in made)},
            tell=lambda line, share: tell(f"back-test: {line}", 0.05 + 0.8 * share),
        )
    if found is None or not found.tested:
        mixture, choice = untested(prepared), None
        notices.append(_why_untested(prepared, found))
    else:
        tell("choose", 0.86)
        choice = choose(found)
        tell("learn from the whole history", 0.88)
        mixture = final_mixture(prepared, found, choice, seconds=max(1.0, seconds - (clock.monotonic() - began)) * 0.6)
        notices += [f"not used: {line}" for line in found.failed]
        notices += _choice_notices(prepared, found, choice, horizon)
    tell("forecast", 0.95)
    quantiles = prepared.forecast(mixture.quantiles(prepared.values, [len(prepared)], horizon)[0], prepared.truth)
    result = _result(
        prepared, found if choice else None, choice, mixture, quantiles, notices, horizon, clock.monotonic() - began
    )
    tell("done", 1.0)
    return result


def _why_untested(prepared: Prepared, found: Backtest | None) -> str:
    if prepared.constant.all():
        return "no series ever changes; each is continued as it is"
    if found is not None:
        return f"no method could be used ({'; '.join(found.failed)}); the last value is repeated"
    return (
        f"{len(prepared)} rows are too few for a back-test: the last value is repeated, with intervals that grow with the square root of "
        "the step; treat it as a guess"
    )


def _choice_notices(prepared: Prepared, found: Backtest, choice: Choice, horizon: int) -> list[str]:
    notices = []
    if found.plan.horizon < horizon:
        notices.append(
            f"the horizon of {horizon} steps is long for {len(prepared)} rows of history: the back-test covers {found.plan.horizon} steps, and "
            "later intervals grow with the square root of the step"
        )
    if len(found.columns) < int((~prepared.constant).sum()):
        notices.append(f"back-tested on an even sample of {len(found.columns)} of {prepared.values.shape[1]} series")
    smoothing = next((one.method for one in found.tested if one.method.name == "exponential smoothing"), None)
    estimated = getattr(smoothing, "n_estimated", len(found.columns))
    if not estimated:
        notices.append(
            f"{found.plan.fit_end} rows are too few to estimate the rates of exponential smoothing; it uses typical ones"
        )
    elif estimated < len(found.columns):
        notices.append(
            f"exponential smoothing estimated its rates on {estimated} of {len(found.columns)} series (long enough, and within the time "
            "limit); the others use their medians"
        )
    seasonal = found.named("seasonal naive") or found.named("naive")
    if seasonal is not None and choice.name == seasonal.method.name:
        notices.append(f"no method was better than {seasonal.method.name} in the back-test, so it makes the forecast")
    elif seasonal is not None and choice.raw.sql > seasonal.score.sql:
        notices.append(
            f"in the back-test {seasonal.method.name} was better than the chosen mixture ({seasonal.score.sql:.3f} against {choice.raw.sql:.3f}); with so "
            "few windows that may be chance, and mixtures are seldom worse on new data"
        )
    return notices


def _result(
    prepared: Prepared,
    found: Backtest | None,
    choice: Choice | None,
    mixture: Mixture,
    quantiles: Any,
    notices: list[str],
    horizon: int,
    seconds: float,
) -> ForecastResult:
    shown = int(min(len(prepared), max(HISTORY_HORIZONS * horizon, 4 * prepared.period, 60)))
    metadata: dict[str, Any] = {
        "step": str(prepared.step),
        "period": prepared.period,
        "rows": len(prepared),
        "layout": "long" if prepared.layout == "long" or len(prepared.variables) > MANY_SERIES else "wide",
        "notices": notices,
        **({"time_zone": "UTC"} if prepared.in_utc else {}),
        "seconds": round(seconds, 1),
    }
    if found is not None and choice is not None:
        metadata["chosen"] = choice.shares
        metadata["backtest"] = {
            "origins": len(found.plan.scored),
            "horizon": found.plan.horizon,
            "methods": {one.method.name: one.score.to_dict() for one in found.tested},
            "choice": choice.score.to_dict(),
        }
    return ForecastResult(
        time=prepared.after(horizon),
        values=quantiles[..., MEDIAN],
        variables=prepared.variables,
        source=prepared.source,
        model=choice.name if choice is not None else "naive",
        history_time=prepared.time[-shown:],
        history=prepared.measured[-shown:],
        quantiles={level: quantiles[..., i] for i, level in enumerate(QUANTILES)},
        tested=tuple(_tests(prepared, found, choice, shown)) if found is not None and choice is not None else (),
        metadata=metadata,
        prepared=prepared,
        backtest=found,
        choice=choice,
        mixture=mixture,
        notices=tuple(notices),
        seconds=seconds,
    )


def _tests(prepared: Prepared, found: Backtest, choice: Choice, shown: int) -> list[Forecast]:
    """The chosen mixture's forecasts from a few earlier origins that do not overlap and lie in the history shown."""
    picked: list[int] = []
    for i in reversed(range(len(found.plan.scored))):
        origin = found.plan.scored[i]
        if origin >= max(len(prepared) - shown, int(prepared.level_rows.max(initial=0))) and (
            not picked or found.plan.scored[picked[-1]] - origin >= found.plan.horizon
        ):
            picked.append(i)
        if len(picked) == SHOWN_TESTS:
            break
    tests = []
    for i in reversed(picked):
        mixed = choice.mixed([one.quantiles[i][None] for one in found.tested])[0]
        whole = np.full((found.plan.horizon, len(prepared.variables), len(QUANTILES)), np.nan)
        growth = few_rows(len(prepared), found.plan.horizon)[:, None, None]
        whole[:, found.columns] = widened(np.asarray(mixed, np.float64), choice.widening * growth)
        whole = prepared.restored(whole)
        origin = found.plan.scored[i]
        tests.append(
            Forecast(
                time=prepared.time[origin : origin + found.plan.horizon],
                values=whole[..., MEDIAN],
                variables=prepared.variables,
                source=prepared.source,
                model=choice.name,
                quantiles={level: whole[..., q] for q, level in enumerate(QUANTILES)},
                truth=prepared.restored(prepared.truth[origin : origin + found.plan.horizon]),
            )
        )
    return tests


def scoreboard(found: Backtest, choice: Choice) -> list[str]:
    """The back-test as lines of a terminal, best first."""
    rows = [(one.method.name, one.score) for one in found.tested]
    rows.sort(key=lambda row: row[1].sql)
    width = max(len(name) for name, _ in [*rows, ("chosen", choice.score)])
    lines = [
        f"  back-test: {len(found.plan.scored)} origins, {found.plan.horizon} steps ahead, {len(found.columns)} series",
        f"  {'method':<{width}}    MASE     SQL     wQL   in 80 %   in 95 %",
    ]
    for name, s in [("chosen", choice.score), *rows]:
        inside = [f"{100 * s.coverage[level]:7.1f} %" for level in (0.8, 0.95)]
        lines.append(f"  {name:<{width}} {s.mase:7.3f} {s.sql:7.3f} {s.wql:7.4f} {' '.join(inside)}")
    lines.append(f"  chosen: {choice.told_shares()}; its row is scored on origins that neither chose nor calibrated it")
    return lines
