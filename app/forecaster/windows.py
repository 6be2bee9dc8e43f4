"""Training samples: windows of consecutive states, normalised, with the forcing of each step.

Shapes: T input times, N steps, V channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from unipercept.app.forecaster.cascade import Cascade, State
from unipercept.app.forecaster.clock import seasonal, solar_fields
from unipercept.app.forecaster.frames import Frames
from unipercept.app.forecaster.model import ForecastModel
from unipercept.app.forecaster.rollout_loss import Window
from unipercept.errors import InputError

MAX_CACHE_BYTES = 8 << 30  # a period that fits is kept in memory, normalised


class Windows(Dataset[Window]):
    """Every window of T + N states without a gap in `span` of a source.

    Args:
        frames: the source, read with the model's channels.
        model: gives normalisation, step and forcing.
        n_steps: N.
        span: numbers of the states to use; targets never leave it.
        stride: between the starts of two windows, in states of the source.
        cache: whether to hold the span in memory; None decides by its size.

    Raises:
        InputError: no window fits, or the source is on another grid.
    """

    def __init__(
        self,
        frames: Frames,
        model: ForecastModel,
        n_steps: int,
        span: slice = slice(None),
        *,
        stride: int = 1,
        cache: bool | None = None,
    ) -> None:
        if not frames.grid.matches(model.grid):
            raise InputError(
                f"{frames.source} is not on the model's grid of {model.grid.shape[0]}x{model.grid.shape[1]}"
            )
        self.frames, self.n_steps, self.n_frames = frames, n_steps, model.frames
        self._config = model.network.config
        self._mean, self._std = (b.detach().cpu().float().clone() for b in (model.mean, model.std))
        self._forcing = ForcingTable(model)
        numbers = np.arange(*span.indices(len(frames)))
        self._every = frames.states_a_step(model.step_hours)
        self.starts = _starts(frames.times[numbers], numbers, self._every, model.step_hours, self.length, stride)
        if len(self.starts) == 0:
            raise InputError(
                f"{frames.source} has no {self.length} states in a row, {model.step_hours:g} h apart, in the chosen period"
            )
        n_bytes = 4 * len(numbers) * len(model.channels) * model.grid.shape[0] * model.grid.shape[1]
        self._first = int(numbers[0])
        self._cached = self._load(numbers) if (n_bytes <= MAX_CACHE_BYTES if cache is None else cache) else None

    @property
    def length(self) -> int:
        """T + N."""
        return self.n_frames + self.n_steps

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Window:
        return Window(self.states(index, 0, self.length), *self.forcing(index, 0, self.n_steps))

    def states(self, index: int, first: int, stop: int) -> Tensor:
        """The states at places `first` to `stop` of a window, normalised."""
        numbers = self.starts[index] + self._every * np.arange(first, stop)
        if self._cached is not None:
            return self._cached[torch.from_numpy(numbers - self._first)]
        return self._normalised(numbers)

    def forcing(self, index: int, first: int, stop: int) -> tuple[Tensor, Tensor]:
        """Season and solar fields of a window's steps `first` to `stop`."""
        numbers = self.starts[index] + self._every * np.arange(self.n_frames - 1 + first, self.n_frames - 1 + stop)
        return self._forcing(self.frames.times[numbers])

    def _load(self, numbers: NDArray[np.int64]) -> Tensor:
        block = max(1, (128 << 20) // (4 * len(self._mean) * self.frames.grid.shape[0] * self.frames.grid.shape[1]))
        return torch.cat([self._normalised(numbers[i : i + block]) for i in range(0, len(numbers), block)])

    def _normalised(self, numbers: NDArray[np.int64]) -> Tensor:
        return (torch.from_numpy(self.frames.read(numbers.tolist())) - self._mean) / self._std


class HandOverWindows(Dataset[Window]):
    """Windows whose input states are an earlier stage's own forecasts: what the next stage sees when it takes over.

    Each window starts `lead` steps after an analysis: its inputs are the cascade's states at steps lead - T + 1 ... lead, its
    targets the analyses after that. All hand-over states are computed when this is made, and kept, normalised by `model`.
    With `first_lead` this is a replay buffer: each window's lead is drawn from there to `lead`, so that one step of training
    sees states of any age (FengWu, Aurora); make it anew when the model has moved on.

    Args:
        frames, model, n_steps, span, stride: as for `Windows`.
        cascade: the stages before, e.g. Short alone.
        lead: the hand-over, in steps (20: 5 days of 6 hours).
        first_lead: where the leads that are drawn begin; None for `lead` alone.
        seed: of the leads.
        batch_size: of the rollouts that make the states.
        on_progress: called with how many are made, of how many.

    Raises:
        InputError: no window fits.
    """

    def __init__(
        self,
        frames: Frames,
        model: ForecastModel,
        cascade: Cascade,
        lead: int,
        n_steps: int,
        span: slice = slice(None),
        *,
        stride: int = 1,
        first_lead: int | None = None,
        seed: int = 0,
        batch_size: int = 128,
        device: str | torch.device = "cpu",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if not 1 <= (lead if first_lead is None else first_lead) <= lead:
            raise InputError(f"leads of a hand-over must be at least 1 and in order, got {first_lead} to {lead}")
        self.n_frames, self.n_steps, self.lead = model.frames, n_steps, lead
        self._windows = Windows(frames, model, lead + n_steps, span, stride=stride)
        low = lead if first_lead is None else first_lead
        self.leads = np.random.default_rng(seed).integers(low, lead + 1, len(self._windows))
        self.inputs = torch.cat(list(self._roll(cascade, model, batch_size, device, on_progress)))

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> Window:
        first, stop = int(self.leads[index]), int(self.leads[index]) + self.n_steps
        targets = self._windows.states(index, self.n_frames + first, self.n_frames + stop)
        return Window(torch.cat([self.inputs[index], targets]), *self._windows.forcing(index, first, stop))

    def _roll(
        self,
        cascade: Cascade,
        model: ForecastModel,
        batch_size: int,
        device: str | torch.device,
        on_progress: Callable[[int, int], None] | None,
    ) -> list[Tensor]:
        """The normalised hand-over states of every window, in batches of BxTxVxHxW."""
        found, count = [], len(self._windows)
        mean, std = self._windows._mean, self._windows._std
        for start in range(0, count, batch_size):
            part = [self._windows.states(i, 0, self.n_frames) for i in range(start, min(start + batch_size, count))]
            numbers = self._windows.starts[start : start + batch_size] + self._windows._every * (self.n_frames - 1)
            frames = (torch.stack(part) * std + mean).to(device)
            leads, handed = self.leads[start : start + batch_size], torch.empty_like(frames, device="cpu")
            for state in cascade.run(State(frames, self._windows.frames.times[numbers]), int(leads.max())):
                ready = torch.from_numpy(leads == state.step)
                handed[ready] = state.frames.cpu()[ready]
            found.append((handed - mean) / std)
            if on_progress is not None:
                on_progress(min(start + batch_size, count), count)
        return found


class ForcingTable:
    """Season and solar fields of times, as the network of a model takes them; on the CPU."""

    def __init__(self, model: ForecastModel) -> None:
        self._seasonal = model.network.config.time != "none"
        self._solar, self._grid = model.network.config.solar, model.grid

    def __call__(self, times: NDArray[np.datetime64]) -> tuple[Tensor, Tensor]:
        """N times to Nx4 and NxFxHxW; Nx0 for what the network does not take."""
        nothing = torch.zeros(len(times), 0)
        season = seasonal(times) if self._seasonal else nothing
        return season, solar_fields(times, self._grid.latitude, self._grid.longitude) if self._solar else nothing


def _starts(
    times: NDArray[np.datetime64], numbers: NDArray[np.int64], every: int, step_hours: float, length: int, stride: int
) -> NDArray[np.int64]:
    """Numbers of the states at which a window begins: `length` states, `every` of the source's apart, without a gap."""
    span = every * (length - 1)
    whole = np.timedelta64(round(step_hours * 3600), "s") * (length - 1)
    first = np.arange(0, max(len(times) - span, 0), stride)
    return np.asarray(numbers[first[times[first + span] - times[first] == whole]])
