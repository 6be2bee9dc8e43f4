"""Members of an ensemble: how their initial states and their steps differ, seeded and recorded.

Shapes: B members, T input times, V channels, H rows, W columns.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unipercept.app.forecaster.cascade import Cascade, State
from unipercept.app.forecaster.frames import Frames, Grid
from unipercept.app.forecaster.model import ForecastModel
from unipercept.app.forecaster.windows import window_starts
from unipercept.blocks import DropPath
from unipercept.errors import InputError
from unipercept.pipelines.weather_grid import area_weights

EARTH_RADIUS_KM = 6371.0
N_WAVES = 256  # cosines that make up a random field: its values are normal to 1 / sqrt(256)
TENDENCY = "tendency"
PERTURBATIONS = ("none", "gaussian", "red", "bred", TENDENCY)
ROWS_AT_ONCE = 64  # of a random field: bounds the memory of its cosines on a large grid


def check_perturbation(kind: str, members: int, amplitude: float) -> None:
    """Check the settings of a perturbation before anything is computed or written.

    Raises:
        InputError: an unknown kind, no member, or an amplitude below 0.
    """
    if kind not in PERTURBATIONS:
        raise InputError(f"perturbation must be one of {', '.join(PERTURBATIONS)}; got {kind!r}")
    if members < 1 or not amplitude >= 0:
        raise InputError(
            f"an ensemble needs at least one member and an amplitude of 0 or more, got {members} and {amplitude:g}"
        )


def member_generator(seed: int, member: int) -> torch.Generator:
    """The source of randomness of one member: it depends on nothing but these two numbers."""
    return torch.Generator().manual_seed(
        int(np.random.SeedSequence([seed, member]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    )


def gaussian_noise(channels: int, grid: Grid, generator: torch.Generator) -> Tensor:
    """VxHxW independent standard normal numbers."""
    return torch.randn(channels, *grid.shape, generator=generator)


def red_noise(channels: int, grid: Grid, generator: torch.Generator, length_km: float = 1000.0) -> Tensor:
    """VxHxW smooth random fields of unit variance whose correlation falls as exp(-(chord /
    length)^2 / 2), poles included.

    A sum of cosines of random plane waves through the sphere, so there is no seam and no pole.

    Source: Rahimi and Recht (2007), random Fourier features, on the unit vectors of the cells.
    """
    points = _unit_vectors(grid)
    waves = torch.randn(channels, 3, N_WAVES, generator=generator) * (EARTH_RADIUS_KM / length_km)
    phases = torch.rand(channels, 1, 1, N_WAVES, generator=generator) * 2 * math.pi
    fields = [
        (torch.cos(points @ w + p) * math.sqrt(2 / N_WAVES)).sum(dim=-1) for w, p in zip(waves, phases, strict=True)
    ]
    return torch.stack(fields)


def _unit_vectors(grid: Grid) -> Tensor:
    """HxWx3, of the cells."""
    latitude, longitude = (torch.deg2rad(torch.tensor(a, dtype=torch.float64)) for a in (grid.latitude, grid.longitude))
    phi, lam = torch.meshgrid(latitude, longitude, indexing="ij")
    return torch.stack([phi.cos() * lam.cos(), phi.cos() * lam.sin(), phi.sin()], dim=-1).float()


@dataclass(frozen=True)
class TendencyNoise:
    """A hook that perturbs the tendencies of members: the change of each channel in a step is multiplied by
    1 + amplitude r.

    r is a smooth random field on the sphere, the same for all channels, which nearly preserves balances between them.
    It is standard normal; its correlation falls as exp(-(chord / length)^2 / 2) in space and exp(-t /
    correlation_hours) in time. It depends only on seed, member, initial time and step, so a resumed forecast continues
    with the same fields. Member 0 is not perturbed.

    Args:
        members: how many consecutive states belong to each initial time.
        grid, step_hours: of the model.
        amplitudes: V values; no change is turned round or more than doubled, however large r.

    Source: Buizza, Miller and Palmer (1999), Palmer et al. (2009): stochastically perturbed tendencies.
    """

    members: int
    grid: Grid
    step_hours: float
    amplitudes: tuple[float, ...]
    length_km: float = 1000.0
    correlation_hours: float = 24.0
    seed: int = 0

    def __call__(self, state: State) -> State:
        """The state with its last step changed; it holds two frames or more."""
        change = state.frames[:, -1] - state.frames[:, -2]
        amplitudes = torch.tensor(self.amplitudes, device=change.device)[:, None, None]
        latest = state.latest + change * (amplitudes * self.fields(state)[:, None]).clamp(-1, 1).to(change)
        return replace(state, frames=torch.cat([state.frames[:, :-1], latest[:, None]], dim=1))

    def fields(self, state: State) -> Tensor:
        """r, BxHxW, on the device of the states."""
        began = state.times - state.step * np.timedelta64(round(self.step_hours * 3600), "s")
        hours = (began.astype("datetime64[s]").astype(np.int64) // 3600).tolist()
        weights = np.stack([self._weights(i % self.members, hour, state.step) for i, hour in enumerate(hours)])
        # The waves are the same for all: what differs is how much of each cosine and sine a field has.
        waves = torch.randn(3, N_WAVES, generator=torch.Generator().manual_seed(0)) * (EARTH_RADIUS_KM / self.length_km)
        device, found = state.frames.device, []
        amounts, waves = torch.from_numpy(weights).float().to(device), waves.to(device)
        for rows in torch.split(_unit_vectors(self.grid).to(device), ROWS_AT_ONCE):
            phase = rows @ waves
            found.append(
                amounts[:, :N_WAVES] @ phase.cos().flatten(0, 1).T + amounts[:, N_WAVES:] @ phase.sin().flatten(0, 1).T
            )
        return torch.cat(found, dim=1).reshape(-1, *self.grid.shape) / math.sqrt(N_WAVES)

    def _weights(self, member: int, hour: int, step: int) -> NDArray[np.float64]:
        """2 N_WAVES standard normal numbers that follow an autoregressive process from step 1 on."""
        if member == 0:
            return np.zeros(2 * N_WAVES)
        draws = np.random.default_rng([self.seed, member, hour % 2**32]).standard_normal((step, 2 * N_WAVES))
        kept = math.exp(-self.step_hours / self.correlation_hours)
        shares = kept ** np.arange(step - 1, -1, -1.0)
        shares[1:] *= math.sqrt(1 - kept**2)
        return np.asarray(shares @ draws)


def perturbed_members(
    state: State,
    members: int,
    std: Tensor,
    grid: Grid,
    *,
    kind: str = "red",
    amplitude: float = 0.05,
    seed: int = 0,
    length_km: float = 1000.0,
    cascade: Cascade | None = None,
    breeding_cycles: int = 4,
) -> State:
    """One analysis as `members` states; member 0 is the analysis itself.

    All input times of a member get the same change, so that its first tendency stays.

    Args:
        state: of one initial time (B = 1).
        std: standard deviation of each channel, V values in physical units: `amplitude` is a share of it.
        kind: "none", "gaussian" (white), "red" (smooth on the sphere), "bred" (red, then grown by the model itself), or
            "tendency": all alike, it is their steps that `TendencyNoise` changes.
        seed: of the noise; each member draws its own.
        length_km: correlation length of "red" noise.
        cascade, breeding_cycles: the model for "bred", and how often it grows and rescales the noise.

    Raises:
        InputError: another kind, or a state of several times.
    """
    check_perturbation(kind, members, amplitude)
    if state.frames.shape[0] != 1:
        raise InputError(f"an ensemble starts from one initial time, got {state.frames.shape[0]}")
    if kind in ("none", TENDENCY):
        frames, times = state.frames.repeat(members, 1, 1, 1, 1), np.repeat(state.times, members)
        return State(frames, times, state.step)
    n_channels, scale = state.frames.shape[2], amplitude * std.detach().cpu().float().view(-1, 1, 1)
    changes = [torch.zeros(n_channels, *grid.shape)]
    for member in range(1, members):
        generator = member_generator(seed, member)
        noise = (
            gaussian_noise(n_channels, grid, generator)
            if kind == "gaussian"
            else red_noise(n_channels, grid, generator, length_km)
        )
        changes.append(noise * scale)
    change = torch.stack(changes).to(state.frames)
    if kind == "bred":
        if cascade is None:
            raise InputError("bred perturbations need the cascade that breeds them")
        change = _bred(cascade, state, change, breeding_cycles)
    return State(state.frames + change[:, None], np.repeat(state.times, members), state.step)


def _bred(cascade: Cascade, state: State, change: Tensor, cycles: int) -> Tensor:
    """Breeding: let the model grow each perturbation for a step, rescale it to its initial size, and repeat.

    Source: Toth and Kalnay (1993).
    """
    sizes = change.square().mean(dim=(-2, -1), keepdim=True).sqrt()
    centre = replace(state, step=0)
    for _ in range(cycles):
        together = State(centre.frames + change[:, None], np.repeat(state.times, len(change)), 0)
        difference = cascade.step(together).latest - cascade.step(centre).latest
        norms = difference.square().mean(dim=(-2, -1), keepdim=True).sqrt()
        change = torch.where(norms > 0, difference * (sizes / norms.clamp(min=1e-30)), torch.zeros_like(difference))
    return change


def with_stochastic_depth(model: nn.Module, rate: float | None = None) -> nn.Module:
    """Enable stochastic depth in forecasts, in place: each member drops blocks of its own at each step.

    Args:
        rate: of all blocks; None keeps those of training.
    """
    for module in model.modules():
        if isinstance(module, DropPath):
            module.train()
            module.rate = module.rate if rate is None else rate
    return model


@torch.inference_mode()
def one_step_shares(
    model: ForecastModel, frames: Frames, span: slice, *, n_states: int = 64, device: str | torch.device = "cpu"
) -> dict[str, float]:
    """Error of a one-step forecast relative to the change that it forecasts, for each channel: root mean squares over
    area and over states spread evenly over `span`. As amplitudes of `TendencyNoise` they make members differ after a
    step by as much as the model errs.

    Raises:
        InputError: no states in a row in the span.
    """
    every, rows = frames.states_a_step(model.step_hours), torch.as_tensor(area_weights(np.asarray(model.grid.latitude)))
    starts = window_starts(frames, model, span, model.frames + 1, 1)
    starts = starts[np.unique(np.linspace(0, len(starts) - 1, n_states).round().astype(int))]
    model, missed, moved = copy.deepcopy(model).to(device).eval(), 0.0, 0.0
    for start in starts:
        *before, truth = torch.from_numpy(frames.read([start + every * k for k in range(model.frames + 1)])).to(device)
        found = model(torch.stack(before)[None], frames.times[[start + every * (model.frames - 1)]])[0]
        squares = ((found - truth).double().square(), (found - before[-1]).double().square())
        missed, moved = (
            total + (square * rows.to(square)[:, None]).mean(dim=(-2, -1)).cpu()
            for total, square in zip((missed, moved), squares, strict=True)
        )
    shares = (torch.as_tensor(missed) / moved).sqrt().nan_to_num(0.0)
    return dict(zip(model.channels, shares.tolist(), strict=True))
