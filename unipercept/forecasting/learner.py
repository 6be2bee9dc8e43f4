"""A forecaster with fit and predict over NumPy arrays: windows of the training rows, early stopping, quantiles, files.

Shapes: T rows, V variables, N contexts, L rows of a context, F calendar features, Q quantile levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.forecasting.settings import ForecastConfig

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class FitProgress:
    """Handed to `on_progress` after each epoch."""

    epoch: int
    epochs: int  # at most; early stopping and the time budget may end before
    train_loss: float
    validation_loss: float
    seconds: float  # since the start


class NetworkForecaster:
    """Fit on a table (or several of unequal length), forecast from any context of its variables."""

    def __init__(self, config: ForecastConfig = ForecastConfig()) -> None:
        self.config = config

    def fit(
        self,
        values: Array | Sequence[Array],
        horizon: int,
        *,
        period: int | None = None,
        calendar: Array | Sequence[Array] | None = None,
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
            validation_fraction: the last part of the training rows, which chooses when to stop and calibrates intervals.
            device: "auto", "cpu", "cuda", ...
            seconds: budget; training stops after it with the best weights so far.
            start: weights to start from: a file of `save`, or "pretrained" for those that come with the package.

        Raises:
            InputError: too few rows for one window, infinite values, or shapes that do not fit.
        """
        raise NotImplementedError

    def predict(self, context: Array, horizon: int | None = None, *, calendar: Array | None = None) -> Array:
        """Quantiles N x horizon x V x Q of what follows NxLxV contexts (NaN where missing; any L, the last rows count).

        Args:
            horizon: None for that of `fit`; a longer one goes on from the median forecast.
            calendar: N x (L + horizon) x F, rows of the context and of the future, if `fit` had a calendar.

        Returns:
            Ascending along the last axis; levels are `self.quantiles`.
        """
        raise NotImplementedError

    def predict_point(self, context: Array, horizon: int | None = None, *, calendar: Array | None = None) -> Array:
        """The mean forecast, N x horizon x V."""
        raise NotImplementedError

    @property
    def quantiles(self) -> tuple[float, ...]:
        """Levels of the last axis of `predict`."""
        return self.config.quantiles

    @property
    def card(self) -> dict[str, Any]:
        """What is known of the weights: settings, seed, rows, validation losses, calibration, start, seconds."""
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        """Write weights and card (in the header) as safetensors."""
        raise NotImplementedError

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> NetworkForecaster:
        """Read what `save` wrote; `load("pretrained")` gives the weights that come with the package, without a fit.

        Raises:
            InputError: no such file, or not one of ours.
        """
        raise NotImplementedError
