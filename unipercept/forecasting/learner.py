"""A forecaster with fit and predict over NumPy arrays: windows of the training rows, early stopping, quantiles, files.

Shapes: T rows, V variables, N contexts, L rows of a context, F calendar features, A static
attributes, Q quantile levels.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unipercept import __version__
from unipercept.atomic import atomic_path
from unipercept.devices import resolve_device
from unipercept.errors import InputError
from unipercept.forecasting.calibration import Calibrator, calibrated
from unipercept.forecasting.fit_tables import LEAST_CONTEXT, LONGEST_PERIOD, FitTables
from unipercept.forecasting.forecaster_file import config_of, load_weights, read_forecaster
from unipercept.forecasting.known import new_in_rows, ridge_effects
from unipercept.forecasting.network import SeriesForecast, SeriesForecaster
from unipercept.forecasting.scaling import Scale
from unipercept.forecasting.settings import ForecastConfig
from unipercept.forecasting.training import FitProgress, train
from unipercept.forecasting.windows import Windows
from unipercept.train.randomness import preserved_randomness

Array = NDArray[np.floating[Any]]

FORMAT = "unipercept.forecaster/1"
MOST_OWN = 512  # variables with weights of their own
CPU_SERIES_AN_EPOCH, CPU_VALIDATION = 12_000, 2_000  # what an epoch looks at where there is no accelerator
MOST_STARTING = 500  # windows whose deviation tells the unit of effects
VALIDATION = 40_000  # windows that stopping and calibration look at, spread over all
CELLS_AT_ONCE = 4_000_000  # steps times quantiles of a pass


class NetworkForecaster:
    """Fit on a table (or several of unequal length), forecast from any context of its variables."""

    def __init__(self, config: ForecastConfig = ForecastConfig()) -> None:
        self.config = config
        self._network: SeriesForecaster | None = None
        self._scale = Scale.unit(0)
        self._factors: Tensor | None = None
        self._card: dict[str, Any] = {}
        self._device = torch.device("cpu")

    def fit(
        self,
        values: Array | Sequence[Array],
        horizon: int,
        *,
        period: int | None = None,
        calendar: Array | Sequence[Array] | None = None,
        static: Array | Sequence[Array] | None = None,
        validation_fraction: float = 0.2,
        device: str = "auto",
        seconds: float | None = None,
        start: str | Path | None = None,
        seed: int = 0,
        on_progress: Callable[[FitProgress], object] | None = None,
    ) -> NetworkForecaster:
        """Train on TxV values, NaN where missing; `self`.

        Args:
            values: TxV, or a list of such tables with the same V (each a series of its own; windows never cross).
            horizon: steps to forecast in one pass.
            period: steps a cycle; None finds the strongest.
            calendar: TxF features known in advance (also covariates), or a list of such; `predict` then needs them too.
            static: VxA attributes of each variable, as numbers (see `Attributes.encoded`), or a list of such, one a
                table; `predict` then needs those of its contexts' variables.
            validation_fraction: the last part of the training rows, which chooses when to
                stop and calibrates intervals.
            device: "auto", "cpu", "cuda", ...
            seconds: budget; training stops after it with the best weights so far.
            start: weights to start from: a file of `save`.

        Raises:
            InputError: too few rows for one window, infinite values, or shapes that do not fit.
        """
        began = time.monotonic()
        if horizon < 1 or not 0 < validation_fraction < 1:
            raise InputError(
                f"horizon must be at least 1 and validation_fraction within (0, 1), got {horizon} and {validation_fraction}"
            )
        self._device = resolve_device(device)
        data = FitTables.of(values, calendar, static, horizon, validation_fraction)
        self._scale = Scale.of(data.heads(), data.features)
        period = period or data.strongest_period()
        with preserved_randomness(seed):
            torch.manual_seed(seed)
            network = self._built(data, horizon, period, start).to(self._device)
            training, validation = data.windows(network, self._scale, horizon, self._device)
            if data.features is not None and start is None:
                self._start_effects(network, data, training, period)
            history = train(
                network,
                training,
                validation,
                seed=seed,
                seconds=seconds,
                validation_cap=CPU_VALIDATION if self._device.type == "cpu" else VALIDATION,
                on_progress=on_progress,
            )
        self._network = network.eval()
        self.config = network.config
        self._factors = self._calibrate(validation, data.validation_rows / horizon)
        self._card = {
            "format": FORMAT,
            "unipercept": __version__,
            "config": asdict(network.config),
            "n_variables": network.n_variables,
            "n_features": network.n_features,
            "n_static": network.n_static,
            "period": network.period,
            "horizon": horizon,
            "rows": [len(table) for table in data.tables[:50]],
            "n_series": len(data),
            "table_variables": data.n_variables,
            "training_windows": len(training),
            "seed": seed,
            "start": None if start is None else str(start),
            "validation_mse": min(p.validation_loss for p in history),
            "epochs": len(history),
            "seconds": round(time.monotonic() - began, 2),
            "device": str(self._device),
        }
        return self

    def predict(
        self, context: Array, horizon: int | None = None, *, calendar: Array | None = None, static: Array | None = None
    ) -> Array:
        """Quantiles N x horizon x V x Q of what follows NxLxV contexts (NaN where missing; any L, the last rows count).

        Args:
            horizon: None for that of `fit`; a longer one goes on from the median forecast.
            calendar: N x (L + horizon) x F, rows of the context and of the future, if `fit` had a calendar.
            static: VxA, or NxVxA where contexts are of different series, if `fit` had static attributes.

        Returns:
            Ascending along the last axis; levels are `self.quantiles`.
        """
        return self._predicted(context, horizon, calendar, static)[1]

    def predict_point(
        self, context: Array, horizon: int | None = None, *, calendar: Array | None = None, static: Array | None = None
    ) -> Array:
        """The mean forecast, N x horizon x V."""
        return self._predicted(context, horizon, calendar, static)[0]

    @property
    def quantiles(self) -> tuple[float, ...]:
        """Levels of the last axis of `predict`."""
        return self.config.quantiles

    @property
    def lookback(self) -> int:
        """Rows of a context that are used at most."""
        return self._ready().lookback

    @property
    def card(self) -> dict[str, Any]:
        """What is known of the weights: settings, seed, rows, validation error, start, seconds."""
        return dict(self._card)

    def save(self, path: str | Path) -> None:
        """Write weights and card (in the header) as safetensors."""
        from safetensors.torch import save_file

        network = self._ready()
        tensors = {f"network.{key}": value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
        tensors |= {f"scale.{key}": torch.from_numpy(value).contiguous() for key, value in asdict(self._scale).items()}
        if self._factors is not None:
            tensors["factors"] = self._factors.contiguous()
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"unipercept": json.dumps(self._card)})

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> NetworkForecaster:
        """Read what `save` wrote.

        Raises:
            InputError: no such file.
            WeightsError: not one of ours.
        """
        place = Path(path)
        card, tensors = read_forecaster(place, FORMAT)
        found = cls(config_of(card, ForecastConfig, place))
        network = SeriesForecaster(found.config, card["n_variables"], card["n_features"], card.get("n_static", 0))
        own = {name: tensor for name, tensor in tensors.items() if name.startswith("network.")}
        load_weights(network, {name.removeprefix("network."): tensor for name, tensor in own.items()}, place)
        found._device = resolve_device(device)
        found._network = network.to(found._device).eval()
        found._scale = Scale(
            **{k.removeprefix("scale."): v.numpy() for k, v in tensors.items() if k.startswith("scale.")}
        )
        found._factors = tensors.get("factors")
        found._card = card
        return found

    def _ready(self) -> SeriesForecaster:
        if self._network is None:
            raise InputError("this forecaster has not been fitted; call fit, or load weights")
        return self._network

    def _built(
        self,
        data: FitTables,
        horizon: int,
        period: int,
        start: str | Path | None,
    ) -> SeriesForecaster:
        variables = data.n_variables
        if start is not None:
            return self._started(start, variables, data.n_features)
        longest = max(data.cuts)
        config = self.config.changed(horizon=horizon, period=min(period if period > 1 else 8, LONGEST_PERIOD))
        # two cycles at least, though the first rows are then padding; never a cycle of another length
        cycles = min(2 * (config.period or 8), longest)
        lookback = max(LEAST_CONTEXT, min(config.lookback, max(cycles, longest - 2 * horizon)))
        config = config.changed(lookback=max(lookback, min(config.period or 8, longest)))
        alone = len(data) == 1 and variables <= MOST_OWN
        if not alone:
            config = config.changed(pull=False, identity=False, mixing=False, quiet=1e-3)
        if self._device.type == "cpu":
            config = config.changed(
                series_an_epoch=min(config.series_an_epoch, CPU_SERIES_AN_EPOCH), batch_size=min(config.batch_size, 128)
            )
        return SeriesForecaster(config, variables if alone else 0, data.n_features, data.n_static)

    def _started(self, start: str | Path, variables: int, n_features: int) -> SeriesForecaster:
        """A network with the weights of another, and known features' effects from zero where the other had none."""
        other = NetworkForecaster.load(start, "cpu")
        network = other._ready()
        if network.n_variables not in (0, variables):
            raise InputError(
                f"{start} was fitted to {network.n_variables} variables and cannot start a fit of {variables}"
            )
        fresh = SeriesForecaster(
            network.config.changed(learning_rate=FINE_TUNING_RATE, epochs=self.config.epochs, patience=self.config.patience,
                                   batch_size=min(self.config.batch_size, 128) if self._device.type == "cpu" else self.config.batch_size,
                                   series_an_epoch=CPU_SERIES_AN_EPOCH if self._device.type == "cpu" else self.config.series_an_epoch),
            network.n_variables, n_features,
        )  # fmt: skip
        state = network.state_dict()
        if n_features != network.n_features:
            state.pop("effect", None)
        fresh.load_state_dict(state, strict=False)
        return fresh

    @torch.no_grad()
    def _start_effects(self, network: SeriesForecaster, data: FitTables, training: Windows, period: int) -> None:
        """Start the effects of what is known in advance at ridge regression of the training rows: by gradient
        alone they are learned slowly.
        """
        assert network.effect is not None
        assert data.features is not None
        usual = training.batch(training.sample(MOST_STARTING)).forecast(network, with_quantiles=False).deviation
        assert usual is not None
        told, values = [], []
        for number, (table, cut) in enumerate(zip(data.tables, data.cuts, strict=True)):
            told.append(new_in_rows(self._scale.scaled_features(data.features[number])[:cut], period))
            values.append(new_in_rows(self._scale.scaled(table, number)[:cut], period))
        if len(network.effect) > 1:  # each variable has its own, of one table
            effects = np.stack([ridge_effects(told[0], column) for column in values[0].T])
        elif network.effect_of is None or data.static is None:
            x = np.concatenate([part for part, rows in zip(told, values, strict=True) for _ in rows.T])
            effects = ridge_effects(x, np.concatenate([rows.T.reshape(-1) for rows in values]))[None]
        else:  # by attributes, too
            x = np.concatenate(
                [
                    np.einsum("tf,a->tfa", part, np.r_[1.0, own]).reshape(len(part), -1)
                    for part, attributes in zip(told, data.static, strict=True)
                    for own in attributes
                ]
            )
            found = ridge_effects(x, np.concatenate([rows.T.reshape(-1) for rows in values]))
            effects, by_attribute = np.split(found.reshape(data.n_features, -1).T, [1])
            network.effect_of.copy_(torch.from_numpy(by_attribute).to(network.effect) / usual.mean())
        network.effect.copy_(torch.from_numpy(effects).to(network.effect) / usual.mean())

    @torch.no_grad()
    def _calibrate(self, validation: Windows, independent: float) -> Tensor:
        network = self._ready()
        calibrator = Calibrator(self.quantiles, validation.horizon)
        cap = CPU_VALIDATION if self._device.type == "cpu" else VALIDATION
        size = max(
            1,
            CELLS_AT_ONCE
            // (validation.horizon * len(self.quantiles) * (validation.n_variables if validation.together else 1)),
        )
        for part in torch.split(validation.sample(cap), size):
            batch = validation.batch(part)
            quantiles = batch.forecast(network).quantiles
            assert quantiles is not None
            calibrator.add(quantiles, batch.target, batch.target_observed)
        return calibrator.factors(independent)

    @torch.inference_mode()
    def _predicted(
        self, context: Array, horizon: int | None, calendar: Array | None, static: Array | None
    ) -> tuple[Array, Array]:
        network = self._ready()
        context = np.asarray(context, np.float64)
        if context.ndim != 3 or context.shape[1] < 1 or context.shape[2] < 1:
            raise InputError(f"contexts must be NxLxV, got {context.shape}")
        if np.isinf(context).any():
            raise InputError("contexts hold infinite values; mark missing ones with NaN")
        count, rows, variables = context.shape
        if network.n_variables not in (0, variables):
            raise InputError(f"the forecaster was fitted to {network.n_variables} variables, got {variables}")
        horizon = horizon or self._card["horizon"]
        if (calendar is not None) != bool(network.n_features) or (
            calendar is not None and calendar.shape != (count, rows + horizon, network.n_features)
        ):
            expected = f"({count}, {rows + horizon}, {network.n_features})" if network.n_features else "none"
            raise InputError(f"calendar must be {expected}, got {None if calendar is None else calendar.shape}")
        attributes = self._checked_static(static, count, variables)
        point = np.empty((count, horizon, variables))
        quantiles = np.empty((count, horizon, variables, len(self.quantiles)))
        per_window = max(network.horizon, horizon) * len(self.quantiles)
        wide = variables if network.mix is not None else min(variables, max(1, CELLS_AT_ONCE // per_window))
        deep = max(1, CELLS_AT_ONCE // (per_window * wide))
        for first in range(0, count, deep):
            for column in range(0, variables, wide):
                part = np.s_[first : first + deep, :, column : column + wide]
                told = None if calendar is None else calendar[first : first + deep]
                fixed = None if attributes is None else attributes[part[0], part[2]]
                point[part], quantiles[part] = self._of_part(context[part], horizon, told, fixed, column)
        return point, quantiles

    def _checked_static(self, static: Array | None, count: int, variables: int) -> Tensor | None:
        """NxVxA on the device."""
        wanted = self._ready().n_static
        shapes = ((variables, wanted), (count, variables, wanted))
        if (static is not None) != bool(wanted) or (static is not None and np.shape(static) not in shapes):
            raise InputError(
                f"static must be {shapes[0] if wanted else 'none'}, got {None if static is None else np.shape(static)}"
            )
        if static is None:
            return None
        return torch.from_numpy(np.asarray(static, np.float32)).to(self._device).expand(count, -1, -1)

    def _of_part(
        self, context: Array, horizon: int, calendar: Array | None, static: Tensor | None, column: int
    ) -> tuple[Array, Array]:
        """Contexts NxLxV, of the variables from `column` on, in the units of the caller."""
        network = self._ready()
        scaled, mean, std = self._scale.scaled_context(context, column)
        x = torch.from_numpy(scaled.astype(np.float32)).to(self._device)
        seen = ~x.isnan()
        x = x.nan_to_num()
        told = None
        if calendar is not None:
            told = torch.from_numpy(self._scale.scaled_features(np.asarray(calendar, np.float64))).to(self._device)
        identity = torch.arange(column, column + x.shape[2], device=self._device).expand(x.shape[0], -1)
        points: list[Tensor] = []
        levels: list[Tensor] = []
        before, done = None, 0  # distances at the last step so far
        while done < horizon:
            steps = network.lookback
            lookback = min(steps, x.shape[1])
            known = None if told is None else _future_rows(told, x.shape[1] - lookback, lookback + network.horizon)
            shown = seen[:, -lookback:]
            found: SeriesForecast = network(
                x[:, -lookback:], None if bool(shown.all()) else shown, known, identity, static
            )
            spread = found.quantiles
            assert spread is not None
            if self._factors is not None:
                spread = calibrated(spread, self._factors.to(self._device), network.median)
            if before is not None:  # what was uncertain at the end of the pass before stays so
                middle = spread[..., network.median : network.median + 1]
                distance = spread - middle
                spread = middle + distance.sign() * (distance.square() + before.square()).sqrt()
            before = spread[:, -1:] - spread[:, -1:, :, network.median : network.median + 1]
            points.append(found.point)
            levels.append(spread)
            done += found.point.shape[1]
            x = torch.cat([x, spread[..., network.median]], 1)
            seen = torch.cat([seen, torch.ones_like(found.point, dtype=torch.bool)], 1)
        point = torch.cat(points, 1)[:, :horizon].double().cpu().numpy() * std + mean
        quantiles = torch.cat(levels, 1)[:, :horizon].double().cpu().numpy() * std[..., None] + mean[..., None]
        return point, quantiles


FINE_TUNING_RATE = 3e-4


def _future_rows(told: Tensor, first: int, rows: int) -> Tensor:
    """Rows of the features from `first` on; the last is repeated where a pass looks further than the caller asked."""
    part = told[:, first : first + rows]
    missing = rows - part.shape[1]
    return part if missing == 0 else torch.cat([part, part[:, -1:].expand(-1, missing, -1)], 1)
