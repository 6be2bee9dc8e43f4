"""Training samples: windows of consecutive states, normalised, with the forcing of each step.

`Windows` and `HandOverWindows` read a source sample by sample, whatever its size. A source that fits onto the device
that trains is read once into a `StateTable`, and `TableWindows` takes whole batches there.

Shapes: T input times, N steps, V channels, H rows, W columns.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from unipercept.app.forecaster.cascade import Cascade, State
from unipercept.app.forecaster.clock import seasonal, solar_angles, solar_fields, spread_sun, sun_grid
from unipercept.app.forecaster.frames import Frames
from unipercept.app.forecaster.model import ForecastModel
from unipercept.app.forecaster.rollout_loss import Window
from unipercept.errors import InputError
from unipercept.train.distributed import Processes

MAX_CACHE_BYTES = 8 << 30  # a period that fits is kept in memory, normalised
FEW_TIMES = 4  # that a chunk of a store may hold, of which a sample needs three or more
ROLLED_BYTES = 1 << 30  # of states that are forecast together


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
        self._mean, self._std = (b.detach().cpu().float().clone() for b in (model.mean, model.std))
        self._forcing = ForcingTable(model)
        numbers = np.arange(*span.indices(len(frames)))
        self._every = frames.states_a_step(model.step_hours)
        self.starts = window_starts(frames, model, span, self.length, stride)
        n_bytes = 4 * len(numbers) * len(model.channels) * model.grid.shape[0] * model.grid.shape[1]
        self._first = int(numbers[0])
        self._cached = self._load(numbers) if (n_bytes <= MAX_CACHE_BYTES if cache is None else cache) else None

    @property
    def length(self) -> int:
        """T + N."""
        return self.n_frames + self.n_steps

    @property
    def in_memory(self) -> bool:
        """Whether a sample costs no reading."""
        return self._cached is not None

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
        return torch.from_numpy(self.frames.read(numbers.tolist())).sub_(self._mean).div_(self._std)


class HandOverWindows(Dataset[Window]):
    """Windows whose input states are an earlier stage's own forecasts: what the next stage sees when it takes over.

    Each window starts `lead` steps after an analysis: its inputs are the cascade's states at steps lead - T + 1 ...
    lead, its targets the analyses after that. All hand-over states are computed when this is made, normalised by
    `model`, and kept in memory or in a file; the processes of a machine share the work and the file. With `first_lead`
    this is a replay buffer: each window's lead is drawn from there to `lead`, so that one step of training sees states
    of any age (FengWu, Aurora); make it anew when the model has moved on.

    Args:
        frames, model, n_steps, span, stride: as for `Windows`.
        cascade: the stages before, e.g. Short alone.
        lead: the hand-over, in steps (20: 5 days of 6 hours).
        first_lead: where the leads that are drawn begin; None for `lead` alone.
        seed: of the leads.
        batch_size: largest of the rollouts that make the states.
        file: where the states go; it vanishes when no process uses it any more. None keeps them in memory.
        processes: that make their windows together; several need a file.
        on_progress: called with how many are made, of how many, in the first process.

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
        file: Path | None = None,
        processes: Processes | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if not 1 <= (lead if first_lead is None else first_lead) <= lead:
            raise InputError(f"leads of a hand-over must be at least 1 and in order, got {first_lead} to {lead}")
        self.n_frames, self.n_steps = model.frames, n_steps
        self._windows = Windows(frames, model, lead + n_steps, span, stride=stride)
        low = lead if first_lead is None else first_lead
        self.leads = np.random.default_rng(seed).integers(low, lead + 1, len(self._windows))
        shape = (len(self._windows), self.n_frames, len(model.channels), *model.grid.shape)
        processes = processes or Processes(0, 1, torch.device(device))
        self.inputs = torch.empty(shape) if file is None else _shared_file(file, shape, processes)
        batch_size = min(batch_size, max(1, ROLLED_BYTES // self.inputs[0].nbytes))
        self._roll(cascade, processes, batch_size, device, on_progress)
        processes.wait()  # all is in the file before anybody reads it

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> Window:
        first, stop = int(self.leads[index]), int(self.leads[index]) + self.n_steps
        targets = self._windows.states(index, self.n_frames + first, self.n_frames + stop)
        return Window(torch.cat([self.inputs[index], targets]), *self._windows.forcing(index, first, stop))

    @property
    def in_memory(self) -> bool:
        """Whether a sample costs no reading."""
        return self._windows.in_memory

    def _roll(
        self,
        cascade: Cascade,
        processes: Processes,
        batch_size: int,
        device: str | torch.device,
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        """Fill in the normalised hand-over states of this process's share of the windows."""
        mean, std, count = self._windows._mean, self._windows._std, len(self._windows)
        rank, n_ranks = _on_this_machine(processes)
        batches = range(rank * batch_size, count, n_ranks * batch_size)
        for number, start in enumerate(batches, 1):
            part = [self._windows.states(i, 0, self.n_frames) for i in range(start, min(start + batch_size, count))]
            numbers = self._windows.starts[start : start + batch_size] + self._windows._every * (self.n_frames - 1)
            frames = (torch.stack(part) * std + mean).to(device)
            leads, handed = self.leads[start : start + batch_size], torch.empty_like(frames, device="cpu")
            for state in cascade.run(State(frames, self._windows.frames.times[numbers]), int(leads.max())):
                ready = torch.from_numpy(leads == state.step)
                handed[ready] = state.frames.cpu()[ready]
            self.inputs[start : start + len(part)] = (handed - mean) / std
            if on_progress is not None and processes.is_first:
                on_progress(min(number * n_ranks * batch_size, count), count)


def _shared_file(path: Path, shape: tuple[int, ...], processes: Processes) -> Tensor:
    """A float32 tensor in a file that all processes of a machine map: it has no name any more, and goes with the last.

    Raises:
        InputError: the disk has no room for it.
    """
    n_bytes = 4 * math.prod(shape)
    path = path.with_name(f"{path.name}-{os.environ.get('GROUP_RANK', '0')}")  # machines may share the folder
    makes_it = _on_this_machine(processes)[0] == 0
    if makes_it:
        _allocate(path, n_bytes)
    processes.wait()
    if not path.exists():
        raise InputError(f"{path.parent} has no room for {n_bytes / 1e9:.1f} GB of forecasts to start from; make some")
    states = torch.from_numpy(np.memmap(path, np.float32, "r+", shape=shape))
    processes.wait()
    if makes_it:
        path.unlink()
    return states


def _allocate(path: Path, n_bytes: int) -> None:
    """A file of so many bytes, all of them on the disk: one with holes would end the process by SIGBUS where the disk
    fills up later. There is none where the disk has no room.
    """
    try:
        with path.open("wb") as file:
            if n_bytes > shutil.disk_usage(path.parent).free:
                raise OSError(errno.ENOSPC, "no room")
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            else:
                file.truncate(n_bytes)
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno != errno.ENOSPC:
            raise


def _on_this_machine(processes: Processes) -> tuple[int, int]:
    """Number of this process among those of its machine, as torchrun says, and how many they are."""
    if processes.count == 1:
        return 0, 1
    known = (os.environ.get("LOCAL_RANK", processes.rank), os.environ.get("LOCAL_WORLD_SIZE", processes.count))
    return int(known[0]), int(known[1])


class StateTable:
    """All states of a source, normalised, and the sun and season of each, on one device.

    Args:
        frames: the source, read with the model's channels.
        model: gives normalisation and forcing.
        device: where the states shall lie.

    Raises:
        InputError: the source is on another grid, or has a missing cell.
    """

    def __init__(self, frames: Frames, model: ForecastModel, device: str | torch.device = "cpu") -> None:
        if not frames.grid.matches(model.grid):
            raise InputError(
                f"{frames.source} is not on the model's grid of {model.grid.shape[0]}x{model.grid.shape[1]}"
            )
        config = model.network.config
        self.frames, self.device = frames, torch.device(device)
        self.mean, self.std = (b.detach().float().to(self.device, copy=True) for b in (model.mean, model.std))
        self.states = torch.empty(len(frames), len(model.channels), *model.grid.shape, device=self.device)
        block = max(1, (256 << 20) // self.states[0].nbytes)
        for start in range(0, len(frames), block):
            part = torch.from_numpy(frames.read(range(start, min(start + block, len(frames))))).to(self.device)
            self.states[start : start + block] = (part - self.mean) / self.std
        nothing = torch.zeros(len(frames), 0)
        self.season = (nothing if config.time == "none" else seasonal(frames.times)).to(self.device)
        self._angles = (solar_angles(frames.times) if config.solar else nothing).to(self.device)
        self._grid = tuple(a.to(self.device) for a in sun_grid(model.grid.latitude, model.grid.longitude))

    @staticmethod
    def n_bytes(frames: Frames) -> int:
        """Bytes that the table of a source takes."""
        return 4 * len(frames) * len(frames.channels) * frames.grid.shape[0] * frames.grid.shape[1]

    def forcing(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Season and solar fields of the states of these numbers (any shape)."""
        angles = self._angles[numbers]
        return self.season[numbers], angles if angles.shape[-1] == 0 else spread_sun(angles, self._grid)  # type: ignore[arg-type]


class TableWindows:
    """The same windows as `Windows`, or with `handed` as `HandOverWindows`, a batch at a time from a table's device.

    Args:
        table: of the source.
        model: gives frames and step.
        n_steps: N.
        starts: numbers of the states at which a window begins.
        leads: steps from the analysis at which each window begins; None for 0.
        handed: the normalised states at those leads, BxTxVxHxW on the table's device; None for the analyses.
    """

    def __init__(
        self,
        table: StateTable,
        model: ForecastModel,
        n_steps: int,
        starts: NDArray[np.int64],
        leads: NDArray[np.int64] | None = None,
        handed: Tensor | None = None,
    ) -> None:
        self.table, self.n_frames, self.n_steps, self.handed = table, model.frames, n_steps, handed
        self._every = table.frames.states_a_step(model.step_hours)
        self._first = np.asarray(starts if leads is None else starts + self._every * leads)

    def __len__(self) -> int:
        return len(self._first)

    def __getitem__(self, index: int) -> Window:
        return Window(*(part[0] for part in self.batch([index])))

    def batch(self, indices: Sequence[int]) -> Window:
        """The batch that collating these samples would give, on the table's device."""
        chosen = np.asarray(indices)
        places = self._every * np.arange(self.n_frames + self.n_steps)
        numbers = _sent(self._first[chosen][:, None] + places, self.table.device)
        if self.handed is None:
            states = self.table.states[numbers]
        else:
            handed = self.handed[_sent(chosen, self.table.device)]
            states = torch.cat([handed, self.table.states[numbers[:, self.n_frames :]]], dim=1)
        return Window(states, *self.table.forcing(numbers[:, self.n_frames - 1 : -1]))


def handed_over(
    table: StateTable,
    model: ForecastModel,
    cascade: Cascade,
    starts: NDArray[np.int64],
    leads: NDArray[np.int64],
    *,
    batch_size: int = 1024,
    half: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The cascade's own states `leads` steps after the analyses of windows that begin at `starts`: BxTxVxHxW,
    normalised by `model`'s statistics, on the table's device.

    Args:
        half: whether the network computes in bfloat16.
    """
    every = table.frames.states_a_step(model.step_hours)
    places = torch.arange(model.frames, device=table.device) * every
    found = table.states.new_empty(len(starts), model.frames, *table.states.shape[1:])
    context = torch.autocast(table.device.type, torch.bfloat16) if half else nullcontext()
    order = np.argsort(leads, kind="stable")  # forecasts of one length run together
    for first in range(0, len(starts), batch_size):
        chosen = order[first : first + batch_size]
        numbers = starts[chosen] + every * (model.frames - 1)
        analyses = table.states[_sent(starts[chosen], table.device)[:, None] + places]
        with context:
            for state in cascade.run(
                State(analyses * table.std + table.mean, table.frames.times[numbers]), int(leads[chosen].max())
            ):
                ready = np.flatnonzero(leads[chosen] == state.step)
                if len(ready):
                    frames = state.frames[_sent(ready, table.device)]
                    found[_sent(chosen[ready], table.device)] = (frames - table.mean) / table.std
        if on_progress is not None:
            on_progress(min(first + batch_size, len(starts)), len(starts))
    return found


def _sent(numbers: NDArray[np.int64], device: torch.device) -> Tensor:
    """To the device, without waiting for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(numbers))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


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


def slow_reading(frames: Frames) -> str | None:
    """A sentence where samples will be read from a store whose chunks hold many times; None where they will not."""
    fields = (frames.fields.dataset[channel.variable] for channel in frames.fields.channels)
    n_times = max(int((field.encoding.get("preferred_chunks") or {}).get("time", 1)) for field in fields)
    if n_times <= FEW_TIMES or StateTable.n_bytes(frames) <= MAX_CACHE_BYTES:
        return None
    return (
        f"the chunks of {frames.source} hold {n_times} times, all of which are read for each sample; "
        "rechunk it to one time a chunk"
    )


def window_starts(frames: Frames, model: ForecastModel, span: slice, length: int, stride: int) -> NDArray[np.int64]:
    """Numbers of the states at which a window begins: `length` states, a step of the model
    apart, without a gap, in `span`.

    Raises:
        InputError: there is none.
    """
    numbers = np.arange(*span.indices(len(frames)))
    times, every = frames.times[numbers], frames.states_a_step(model.step_hours)
    step = np.timedelta64(round(model.step_hours * 3600), "s")
    first = np.arange(0, max(len(times) - every * (length - 1), 0), stride)
    # Each step by itself: a state that is missing and one too many would even out over the whole window.
    follows = times[every:] - times[:-every] == step
    is_whole = np.stack([follows[first + every * k] for k in range(length - 1)]).all(axis=0) if length > 1 else True
    starts = np.asarray(numbers[first[is_whole]])
    if len(starts) == 0:
        raise InputError(
            f"{frames.source} has no {length} states in a row, {model.step_hours:g} h apart, in the chosen period"
        )
    return starts
