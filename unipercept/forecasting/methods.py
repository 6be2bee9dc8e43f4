"""The methods that a back-test compares, by the names that `--methods` takes, and the network among them.

Shapes: T rows, V series, N contexts, L rows of a context, O origins, H steps ahead, Q quantile levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError, MissingDependencyError, import_optional
from unipercept.forecasting.baselines import Drift, Method, Naive, SeasonalDrift, SeasonalNaive
from unipercept.forecasting.learner import NetworkForecaster
from unipercept.forecasting.linear import Linear
from unipercept.forecasting.prepare import Prepared
from unipercept.forecasting.settings import ForecastConfig
from unipercept.forecasting.smoothing import ExponentialSmoothing

Array = NDArray[np.floating[Any]]

NAMES = ("naive", "seasonal", "drift", "smoothing", "linear", "network")
CONTEXTS_AT_ONCE = 4096  # windows of one series that the network sees together


class Network:
    """The large-kernel network, fitted to all series together; its quantiles are its own."""

    name = "network"
    gives_quantiles = True

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
        elif name == "seasonal" and (period > 1 or "seasonal" in wanted):
            methods.append(SeasonalNaive(period))
            methods.append(SeasonalDrift(period))
            methods += [SeasonalNaive(p, f"seasonal naive, {p} steps") for p in prepared.periods[1:3]]
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
        elif name == "linear":
            methods.append(Linear(period, seed))
        elif name == "network":
            methods.append(Network(period, device, seed))
    return methods, notices
