"""Losses of forecasters.

Shapes: S series of a batch, T future steps, V variables, Q quantile levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unipercept.forecasting.network import SeriesForecast
from unipercept.forecasting.settings import ForecastConfig
from unipercept.forecasting.windows import Batch


def pinball(quantiles: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    """Mean over everything of the quantile loss, twice the pinball loss: equals the absolute error at the median."""
    error = target.unsqueeze(-1) - quantiles
    return 2 * torch.maximum(levels * error, (levels - 1) * error)


def loss_of(
    found: SeriesForecast, batch: Batch, config: ForecastConfig, levels: Tensor, steps: Tensor | None = None
) -> Tensor:
    """The training loss: the error of the mean, of its spectrum, and of the quantiles if there are any.

    A window counts by its deviation to the power of -2 `evenness`: squares of the loudest
    windows would drown the others.

    Args:
        steps: T of mean 1, by which steps count; None for all alike.
    """
    target, seen = batch.target, batch.target_observed
    error = found.point - target
    if config.loss == "mse":
        each = error.square()
    elif config.loss == "huber":
        each = 2 * torch.nn.functional.huber_loss(found.point, target, reduction="none")
    elif config.loss == "mae":
        each = error.abs()
    else:
        each = 0.5 * error.square() + 0.5 * error.abs()
    weight = window_weights(found.deviation, config.evenness)
    if steps is not None:
        weight = weight * steps[:, None]
    each = each * weight
    if seen is not None:
        share = seen.to(error.dtype).mean().clamp(min=1e-6)
        each, error = each * seen / share, error * seen
    loss = each.mean()
    if found.quantiles is not None:
        spread = pinball(found.quantiles, target, levels).mean(-1) * weight.sqrt()
        loss = loss + (config.quantile_weight or 1.0) * (spread if seen is None else spread * seen / share).mean()
    if config.frequency_weight:
        spectrum = torch.fft.rfft(error * weight.sqrt(), dim=1, norm="ortho")
        loss = loss + config.frequency_weight * spectrum.abs().mean()
    return loss


def window_weights(deviation: Tensor | None, evenness: float) -> Tensor:
    """Sx1xV of mean 1: deviations to the power of -2 evenness; 0 counts squares as they
    are, 1 in units of the window.
    """
    if deviation is None or evenness == 0:
        return torch.ones((), device=None if deviation is None else deviation.device)
    weight = deviation.detach() ** (-2 * evenness)
    return weight / weight.mean()


def step_weights(horizons: tuple[int, ...], horizon: int, device: torch.device) -> Tensor:
    """T of mean 1: the weight of each step in the mean over horizons of the mean over their steps."""
    step = torch.arange(horizon, device=device)
    weight = torch.stack([(step < h).float() / min(h, horizon) for h in horizons]).mean(0)
    return weight * horizon
