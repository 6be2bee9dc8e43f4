"""The methods that a back-test compares, by the names that `--methods` takes, and the network among them.

Shapes: T rows, V series, N contexts, L rows of a context, O origins, H steps ahead, Q quantile levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError, MissingDependencyError, counted, import_optional
from unipercept.forecasting import ces
from unipercept.forecasting.arima import Arima
from unipercept.forecasting.baselines import Drift, LastPeriod, Method, Naive, SeasonalDrift, SeasonalNaive
from unipercept.forecasting.ces import Ces
from unipercept.forecasting.cycles import Cycles
from unipercept.forecasting.ets import Ets
from unipercept.forecasting.ets_forms import EtsForms
from unipercept.forecasting.known import Known, are_too_few, check_reach, known_features
from unipercept.forecasting.learner import NetworkForecaster
from unipercept.forecasting.linear import Linear
from unipercept.forecasting.periods import all_periods, calendar_periods
from unipercept.forecasting.prepare import Prepared
from unipercept.forecasting.pretrained import Pretrained, short_cycle
from unipercept.forecasting.settings import ForecastConfig
from unipercept.forecasting.smoothing import ExponentialSmoothing
from unipercept.forecasting.theta import Theta
from unipercept.forecasting.usual import UsualValues
from unipercept.forecasting.week import DAYS, MIN_WEEKS, Week, steps_a_day

Array = NDArray[np.floating[Any]]

NAMES = (
    "naive",
    "seasonal",
    "drift",
    "smoothing",
    "ets",
    "ces",
    "theta",
    "arima",
    "cycles",
    "week",
    "usual",
    "linear",
    "pretrained",
    "network",
)
# Methods that forecast what the effects of columns known in advance leave, where there are such columns.
WITH_KNOWN = (ExponentialSmoothing, Ets, Theta, Arima, Cycles, Week, Linear, Pretrained)
LONG_CYCLE = 12  # a single cycle up to this length is served by the methods for one cycle
SHORT_HISTORY = 200  # rows; with more, a network that is fitted to them is tried
# Rows up to which exponential smoothing has all its forms: the slope of the last of many rows
# (hours, minutes) does not last.
FORMS_ROWS = 1000
PRETRAINED_ROWS = 500  # up to which the pretrained network is tried; with more it gains little and takes long
MANY_SERIES = 20  # a network that is fitted to so many learns enough of short ones, too
CONTEXTS_AT_ONCE = 4096  # windows of one series that the network sees together


class Network:
    """The large-kernel network, fitted to all series together; its quantiles are its own.

    It sees the columns known in advance.
    """

    name = "network"
    gives_quantiles = True
    fits_closely = False
    series: NDArray[np.int64] | None = None  # those of the table that it is given, where they are not all

    def __init__(
        self, period: int, device: str, seed: int, known: Array | None = None, static: Array | None = None
    ) -> None:
        """Columns known in advance: (T + H) x F x V, or x 1 where all series share them; static attributes VxA."""
        self.period, self.device, self.seed, self.known, self.static = period, device, seed, known, static
        self.forecaster: NetworkForecaster | None = None
        self.on_progress: Callable[[Any], object] | None = None
        self._told: Array | None = None

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        """Train for at most so many seconds; validation is the last fifth of the rows."""
        tables: Array | list[Array] = values
        calendar: Array | list[Array] | None = None
        static: Array | list[Array] | None = self._attributes()
        if self.known is not None:
            self._told = known_features(self.known, len(values), self.series)
            calendar = self._told[: len(values), :, 0]
        if (
            self._told is not None and self._told.shape[2] > 1
        ):  # what is known differs: each series is a table of its own
            tables = [column[:, None] for column in values.T]
            calendar = [self._told[: len(values), :, v] for v in range(values.shape[1])]
            static = None if static is None else [row[None] for row in static]
        self.forecaster = NetworkForecaster(ForecastConfig(horizon=horizon)).fit(
            tables,
            horizon,
            period=self.period,
            calendar=calendar,
            static=static,
            device=self.device,
            seconds=seconds,
            seed=self.seed,
            on_progress=self.on_progress,
        )

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        assert self.forecaster is not None
        if self._told is not None:
            check_reach(len(self._told), origins, horizon)
        lookback = self.forecaster.lookback
        padded = np.concatenate([np.full((lookback, values.shape[1]), np.nan), values])
        at_once = max(1, CONTEXTS_AT_ONCE // values.shape[1])
        parts = []
        for first in range(0, len(origins), at_once):
            some = origins[first : first + at_once]
            contexts = np.stack([padded[origin : origin + lookback] for origin in some])
            parts.append(self._of_contexts(contexts, some, horizon))
        return np.concatenate(parts)

    def _of_contexts(self, contexts: Array, origins: Sequence[int], horizon: int) -> Array:
        """N x H x V x Q of NxLxV."""
        assert self.forecaster is not None
        static = self._attributes()
        if self._told is None:
            return self.forecaster.predict(contexts, horizon, static=static)
        rows = np.asarray(origins)[:, None] + np.arange(-contexts.shape[1], horizon)
        told = self._told[rows.clip(min=0)]  # NxLxFxV; rows before the first are masked
        if told.shape[3] == 1:
            return self.forecaster.predict(contexts, horizon, calendar=told[..., 0], static=static)
        count, lookback, variables = contexts.shape
        alone = contexts.transpose(0, 2, 1).reshape(count * variables, lookback, 1)
        calendar = told.transpose(0, 3, 1, 2).reshape(count * variables, *told.shape[1:3])
        each = None if static is None else np.tile(static, (count, 1))[:, None]
        found = self.forecaster.predict(alone, horizon, calendar=calendar, static=each)
        return found.reshape(count, variables, horizon, -1).transpose(0, 2, 1, 3)

    def _attributes(self) -> Array | None:
        """VxA of the series that it is given."""
        return self.static if self.static is None or self.series is None else self.static[self.series]


def make_methods(
    prepared: Prepared, wanted: Sequence[str] = (), *, device: str = "auto", seed: int = 0
) -> tuple[list[Method], list[str]]:
    """The methods named (all, where none is), ready to fit; and a sentence on each that this machine cannot offer.

    Raises:
        InputError: an unknown name.
        MissingDependencyError: a method asked for by name needs a library that is not there.
    """
    wanted = (wanted,) if isinstance(wanted, str) else wanted
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        raise InputError(f"unknown method {unknown[0]!r}; there are {', '.join(NAMES)}")
    maker = _Maker(prepared, wanted, device, seed, notices=[])
    methods = [method for name in NAMES if not wanted or name in wanted for method in maker.make(name)]
    if prepared.known is not None:
        methods = [Known(prepared.known, prepared.period, m) if isinstance(m, WITH_KNOWN) else m for m in methods]
        if are_too_few(len(prepared), prepared.period, prepared.known):
            maker.notices.append(
                f"{len(prepared)} rows are too few to tell effects of {counted(prepared.known.shape[1], 'known column', 'known columns')}; "
                "only a network may see any"
            )
    return methods, maker.notices


@dataclass(frozen=True)
class _Maker:
    """Makes the methods of a name for one table. What does not suit the table is made only where it is asked for."""

    prepared: Prepared
    wanted: Sequence[str]
    device: str
    seed: int
    notices: list[str]  # filled by `make`

    def make(self, name: str) -> list[Method]:
        prepared, period, seed = self.prepared, self.prepared.period, self.seed
        scaling = -prepared.offset / prepared.unit, prepared.unit, prepared.power
        match name:
            case "naive":
                return [Naive()]
            case "seasonal":
                return self._seasonal()
            case "drift":
                return [Drift()]
            case "smoothing":
                return self._smoothing()
            case "ets":
                # What known columns leave has no zero of its own, which errors and seasons that multiply need.
                has_all_forms = period <= LONG_CYCLE and len(prepared) <= FORMS_ROWS and prepared.known is None
                return [EtsForms(period, *scaling) if has_all_forms else Ets(period)]
            case "ces":
                suits = period <= ces.MAX_PERIOD and prepared.known is None  # it sees no known columns
                return [Ces(period, *scaling)] if suits or self.wanted else []
            case "theta":
                return [Theta(period)]
            case "arima":
                return [Arima(min((p for p in prepared.periods if p > 1), default=1))]
            case "cycles":
                cycles = all_periods(prepared.step, prepared.periods)
                has_many = len(cycles) > 1 or max(cycles, default=0) > LONG_CYCLE
                return [Cycles(cycles, Linear(period, seed)), Cycles(cycles, Arima(1))] if has_many else []
            case "week":
                day = steps_a_day(prepared.step)
                if not day or len(prepared) < MIN_WEEKS * DAYS * day:
                    return []
                return [Week(day, Theta(1)), Week(day, Arima(1)), Week(day, Linear(day, seed))]
            case "usual":
                return [UsualValues(period)]
            case "linear":
                return [Linear(period, seed)]
            case "pretrained":
                return self._pretrained() if self.wanted or len(prepared) <= PRETRAINED_ROWS else []
            case "network":
                return self._network() if self.wanted or _has_much_to_learn(prepared) else []
        raise AssertionError(name)

    def _seasonal(self) -> list[Method]:
        period, methods = self.prepared.period, list[Method]()
        if period > 1 or set(self.wanted) == {"seasonal"}:
            methods.append(SeasonalNaive(period))
        if period > 1:
            methods.append(SeasonalDrift(period))
            methods += [SeasonalNaive(p, f"seasonal naive, {p} steps") for p in self.prepared.periods[1:3]]
        if not calendar_periods(self.prepared.step):
            methods.append(LastPeriod())
        return methods

    def _smoothing(self) -> list[Method]:
        try:
            import_optional("statsmodels", extra="forecast")
        except MissingDependencyError as error:
            if self.wanted:
                raise
            self.notices.append(f"exponential smoothing is left out: {error}")
            return []
        return [ExponentialSmoothing(self.prepared.period)]

    def _pretrained(self) -> list[Method]:
        period, periods = self.prepared.period, self.prepared.periods
        cycle = short_cycle(period, periods, self.prepared.unseen_cycle)
        if cycle not in (period, *periods, 1):
            self.notices.append(
                f"too few rows to show the calendar's cycle of {cycle} steps; the pretrained network assumes it"
            )
        return [Pretrained(cycle, self.device)]

    def _network(self) -> list[Method]:
        attributes = self.prepared.attributes
        static = None if attributes is None else attributes.encoded()
        if static is not None and not static.shape[1]:
            static = None
        return [Network(self.prepared.period, self.device, self.seed, self.prepared.known, static)]


def _has_much_to_learn(prepared: Prepared) -> bool:
    """Whether a network fitted to the table may do better than the pretrained one."""
    return (
        len(prepared) > SHORT_HISTORY
        or len(prepared.variables) >= MANY_SERIES
        or prepared.known is not None
        or prepared.attributes is not None
    )
