"""The loss of a rollout: forecast from a window's first states, each step compared with the analysis that it forecasts.

Shapes: B batch, T input times, N steps, V channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unipercept.app.forecaster.cf import LONG_NAMES
from unipercept.app.forecaster.model import ForecastModel
from unipercept.app.forecaster.writer import UPPER
from unipercept.errors import InputError
from unipercept.pipelines.weather_grid import area_weights

CHARBONNIER = 1e-3  # normalised units below which the loss is a parabola
SURFACE_WEIGHTS = {"t2m": 1.0}  # other surface channels 0.1; source: GraphCast, table of loss weights


class Window(NamedTuple):
    """A sample, or a batch of them: normalised states, their forcing, and the steps since the analysis.

    states: (B x) T + N x V x H x W. season: (B x) N x 4. solar: (B x) N x F x H x W. Both are those of each step's last
    input state; what the network does not take is empty (N x 0).
    """

    states: Tensor
    season: Tensor
    solar: Tensor


@dataclass(frozen=True)
class LossSettings:
    """L = mean over batch, steps, channels and area of w_c rho(forecast - analysis), on normalised values.

    Args:
        rho: "mse" (GraphCast), "l1" (FuXi) or "charbonnier" (sqrt(x^2 + eps^2) - eps).
        channels: "uniform"; "pressure" (upper air by its pressure, surface as GraphCast); "change" (divided by the
            variance, or for l1 the standard deviation, of a step's change, so that slow channels count as much).
        steps: "uniform", or "increasing" (proportional to the step's number).
        detach_every: truncate back-propagation after this many steps; None for never.
        checkpoint: recompute each step's activations in the backward pass.
    """

    rho: Literal["mse", "l1", "charbonnier"] = "mse"
    channels: Literal["uniform", "pressure", "change"] = "uniform"
    steps: Literal["uniform", "increasing"] = "uniform"
    detach_every: int | None = None
    checkpoint: bool = True

    def __post_init__(self) -> None:
        known = {
            "rho": ("mse", "l1", "charbonnier"),
            "channels": ("uniform", "pressure", "change"),
            "steps": ("uniform", "increasing"),
        }
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        if self.detach_every is not None and self.detach_every < 1:
            raise InputError(f"detach_every must be None or at least 1, got {self.detach_every}")


class RolloutLoss:
    """`loss(network, batch)` for `unipercept.train.fit`.

    `length` is how many of the window's steps are rolled out; the training loop sets it before each update.

    Args:
        model: whose network is trained; gives grid and channels.
        settings: see there.
    """

    def __init__(self, model: ForecastModel, settings: LossSettings = LossSettings()) -> None:
        self.settings, self.frames, self.length = settings, model.frames, 1
        area = torch.as_tensor(area_weights(np.asarray(model.grid.latitude)), dtype=torch.float32)
        weights = channel_weights(model.channels, settings, model.network.change.detach().cpu())
        self.weights = weights[:, None, None] * area[:, None]
        self.area = area[:, None]

    def variant(self) -> int:
        """What, besides the batch's shape, a step depends on: see `unipercept.train.ahead`."""
        return self.length

    def _sent(self, like: Tensor) -> None:
        """Weights to where the states are, once."""
        if self.weights.device != like.device:
            self.weights, self.area = self.weights.to(like.device), self.area.to(like.device)

    def __call__(self, network: nn.Module, batch: Window) -> tuple[Tensor, dict[str, Tensor]]:
        states, length = batch.states, min(self.length, batch.states.shape[1] - self.frames)
        shares = [float(k + 1) if self.settings.steps == "increasing" else 1.0 for k in range(length)]
        losses = []
        for k, state in enumerate(self.rollout(network, batch, length)):
            losses.append(self.error(state, states[:, self.frames + k]))
        weighted = torch.stack([share * each for share, each in zip(shares, losses, strict=True)]).sum() / sum(shares)
        return weighted, {"first_step": losses[0], "last_step": losses[-1], "rollout": torch.tensor(float(length))}

    def rollout(self, network: nn.Module, batch: Window, length: int) -> list[Tensor]:
        """The normalised forecasts of the steps 1 to `length`, BxVxHxW each."""
        frames, found = batch.states[:, : self.frames], []
        for k in range(length):
            if self.settings.detach_every and k and k % self.settings.detach_every == 0:
                frames = frames.detach()
            arguments = (frames, *forcing_of(batch, k))
            recompute = self.settings.checkpoint and length > 1 and torch.is_grad_enabled()
            state: Any = checkpoint(network, *arguments, use_reentrant=False) if recompute else network(*arguments)
            found.append(state)
            frames = torch.cat([frames[:, 1:], state[:, None]], dim=1)
        return found

    def error(self, forecast: Tensor, analysis: Tensor) -> Tensor:
        """The loss of one step, one number, in float32 at least."""
        self._sent(analysis)
        difference = forecast.to(analysis.dtype) - analysis
        if self.settings.rho == "mse":
            value = difference.square()
        elif self.settings.rho == "l1":
            value = difference.abs()
        else:
            value = (difference.square() + CHARBONNIER**2).sqrt() - CHARBONNIER
        return (value * self.weights.to(value)).mean()

    def step_errors(self, network: nn.Module, batch: Window) -> dict[str, Tensor]:
        """Area-weighted mean squared error of each step, over normalised channels: validation's table."""
        length = batch.states.shape[1] - self.frames
        forecasts = self.rollout(network, batch, length)
        self._sent(batch.states)
        return {
            f"mse_step_{k + 1}": ((f - batch.states[:, self.frames + k]).square() * self.area.to(f)).mean()
            for k, f in enumerate(forecasts)
        }


def forcing_of(batch: Window, step: int) -> tuple[Tensor | None, Tensor | None]:
    """Season and solar fields of one step, None where there are none."""
    season = batch.season[:, step] if batch.season.shape[-1] else None
    return season, batch.solar[:, step] if batch.solar.ndim == 5 else None


def channel_weights(channels: Sequence[str], settings: LossSettings, change: Tensor) -> Tensor:
    """w_c, V values with mean 1."""
    if settings.channels == "uniform":
        return torch.ones(len(channels))
    if settings.channels == "change":
        weights = 1 / (change.square() if settings.rho == "mse" else change)
        return weights / weights.mean()
    found = []
    for name in channels:
        match = UPPER.fullmatch(name)
        upper = match is not None and name not in LONG_NAMES
        found.append(float(match[2]) / 1000 if upper and match else SURFACE_WEIGHTS.get(name, 0.1))
    weights = torch.tensor(found)
    return weights / weights.mean()
