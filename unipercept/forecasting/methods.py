"""The methods that a back-test compares, by the names that `--methods` takes, and the network among them.

Shapes: T rows, V series, N contexts, L rows of a context, O origins, H steps ahead, Q quantile levels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError, MissingDependencyError, import_optional
from unipercept.forecasting.arima import Arima
from unipercept.forecasting.baselines import Drift, LastPeriod, Method, Naive, SeasonalDrift, SeasonalNaive
from unipercept.forecasting.cycles import Cycles
from unipercept.forecasting.ets import Ets
from unipercept.forecasting.known import Known
from unipercept.forecasting.learner import NetworkForecaster
from unipercept.forecasting.linear import Linear
from unipercept.forecasting.prepare import Prepared, all_periods, calendar_periods
from unipercept.forecasting.settings import ForecastConfig
from unipercept.forecasting.smoothing import ExponentialSmoothing
from unipercept.forecasting.theta import Theta
from unipercept.forecasting.usual import UsualValues

Array = NDArray[np.floating[Any]]

NAMES = ("naive", "seasonal", "drift", "smoothing", "ets", "theta", "arima", "cycles", "usual", "linear", "network")
WITH_KNOWN = (Ets, Arima, Cycles, Linear)  # methods that also forecast what columns known in advance leave
LONG_CYCLE = 12  # a single cycle up to this length is served by the methods for one cycle
CONTEXTS_AT_ONCE = 4096  # windows of one series that the network sees together


class Network:
    """The large-kernel network, fitted to all series together; its quantiles are its own."""

    name = "network"
    gives_quantiles = True
    fits_closely = False

    def __init__(self, period: int, device: str, seed: int, start: str | None = None) -> None:
        self.period, self.device, self.seed, self.start = period, device, seed, start
        self.forecaster: NetworkForecaster | None = None
        self.on_progress: Callable[[Any], object] | None = None

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        """Train for at most so many seconds; validation is the last fifth of the rows."""
        self.forecaster = NetworkForecaster(ForecastConfig(horizon=horizon)).fit(
            values,
            horizon,
            period=self.period,
            device=self.device,
            seconds=seconds,
            start=self.start,
            seed=self.seed,
            on_progress=self.on_progress,
        )

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        assert self.forecaster is not None
        lookback = self.forecaster.lookback
        padded = np.concatenate([np.full((lookback, values.shape[1]), np.nan), values])
        at_once = max(1, CONTEXTS_AT_ONCE // values.shape[1])
        parts = []
        for first in range(0, len(origins), at_once):
            contexts = np.stack([padded[origin : origin + lookback] for origin in origins[first : first + at_once]])
            parts.append(self.forecaster.predict(contexts, horizon))
        return np.concatenate(parts)


def make_methods(
    prepared: Prepared, wanted: Sequence[str] = (), *, device: str = "auto", seed: int = 0
) -> tuple[list[Method], list[str]]:
    """The methods named (all, where none is), ready to fit; and a sentence on each that this machine cannot offer.

    Raises:
        InputError: an unknown name.
        MissingDependencyError: a method asked for by name needs a library that is not there.
    """
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        raise InputError(f"unknown method {unknown[0]!r}; there are {', '.join(NAMES)}")
    chosen = [name for name in NAMES if not wanted or name in wanted]
    period, notices = prepared.period, []
    methods: list[Method] = []
    for name in chosen:
        if name == "naive":
            methods.append(Naive())
        elif name == "seasonal":
            if period > 1 or chosen == ["seasonal"]:
                methods.append(SeasonalNaive(period))
            if period > 1:
                methods.append(SeasonalDrift(period))
                methods += [SeasonalNaive(p, f"seasonal naive, {p} steps") for p in prepared.periods[1:3]]
            if not calendar_periods(prepared.step):
                methods.append(LastPeriod())
        elif name == "drift":
            methods.append(Drift())
        elif name == "smoothing":
            try:
                import_optional("statsmodels", extra="forecast")
            except MissingDependencyError as error:
                if wanted:
                    raise
                notices.append(f"exponential smoothing is left out: {error}")
                continue
            methods.append(ExponentialSmoothing(period))
        elif name == "ets":
            methods.append(Ets(period))
        elif name == "theta":
            methods.append(Theta(period))
        elif name == "arima":
            methods.append(Arima(min((p for p in prepared.periods if p > 1), default=1)))
        elif name == "cycles":
            cycles = all_periods(prepared)
            if len(cycles) > 1 or max(cycles, default=0) > LONG_CYCLE:
                methods += [Cycles(cycles, Linear(period, seed)), Cycles(cycles, Arima(1))]
        elif name == "usual":
            methods.append(UsualValues(period))
        elif name == "linear":
            methods.append(Linear(period, seed))
        elif name == "network":
            methods.append(Network(period, device, seed))
    if prepared.known is not None:
        methods += [Known(prepared.known, period, copy.copy(m)) for m in methods if isinstance(m, WITH_KNOWN)]
    return methods, notices
