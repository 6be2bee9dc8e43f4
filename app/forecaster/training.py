"""Training a cascade, phase by phase: one step, growing rollouts, replayed states, then the
next stage on its hand-overs.

A phase is one `unipercept.train.fit` in a folder of its own, so it resumes exactly, runs data parallel under torchrun,
and leaves its metrics, checkpoints and model there.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unipercept.app.forecaster.cascade import Cascade, Stage
from unipercept.app.forecaster.frames import Frames
from unipercept.app.forecaster.model import ForecastModel
from unipercept.app.forecaster.rollout_loss import LossSettings, RolloutLoss, Window
from unipercept.app.forecaster.schedules import RolloutSchedule
from unipercept.app.forecaster.windows import (
    HandOverWindows,
    StateTable,
    TableWindows,
    Windows,
    handed_over,
    window_starts,
)
from unipercept.atomic import atomic_path
from unipercept.blocks import DropPath
from unipercept.processors import n_processors
from unipercept.train import FitResult, Progress, TrainConfig, fit, load_checkpoint
from unipercept.train.distributed import Processes, joined_processes

MODEL_FILE = "model.safetensors"
MAX_HANDED_BYTES = 64 << 30  # of forecast states that a phase starts from, on disk
ACTIVATION_SHARE = 0.4  # of a device's memory that activations may take before blocks are computed again
MOST_WORKERS = 8  # that read data, for each process that trains
STALLED = 0.01  # share by which validation must improve for a rollout of the same length to go on


@dataclass(frozen=True)
class Phase:
    """One part of the training.

    Args:
        name: of its folder.
        updates: of the weights; with a schedule of mode "loss", in each part.
        learning_rate: at the top, after `warmup` updates; it falls as a cosine to `final_learning_rate`.
        schedule: rollout lengths.
        batch_size: windows an update, over all processes.
        hand_over: input states are the earlier stages' own forecasts of this many steps; 0 for analyses.
        replay: first and last lead, from the analysis, of states that the model itself forecast when the phase began,
            after the earlier stages where there are some; None for none.
        loss: see there.
        ema_decay: of the averaged weights, which are what the phase leaves; None for the last weights.
        drop_path_rate: of the last block; None leaves the network's own.
        keep: "last" weights, or those "best" in validation.

    Defaults are FuXi's optimiser settings (AdamW, betas 0.9 and 0.95, weight decay 0.1) and a gradient clipped to 1.
    """

    name: str
    updates: int
    learning_rate: float = 2.5e-4
    schedule: RolloutSchedule = field(default_factory=RolloutSchedule)
    batch_size: int = 16
    warmup: int = 0
    final_learning_rate: float = 0.0
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    hand_over: int = 0
    replay: tuple[int, int] | None = None
    loss: LossSettings = field(default_factory=LossSettings)
    ema_decay: float | None = 0.999
    drop_path_rate: float | None = None
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    stride: int = 1
    accumulation_steps: int = 1
    validate_every: int | None = None
    keep: Literal["last", "best"] = "last"


@dataclass(frozen=True)
class TrainingData:
    """The source of windows, and which of its states are for training and validation."""

    frames: Frames
    train: slice
    validation: slice | None = None
    validation_stride: int = 4


def train_phases(
    model: ForecastModel,
    data: TrainingData,
    phases: Sequence[Phase],
    folder: str | Path,
    *,
    earlier: Sequence[Stage] = (),
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    compile_network: bool = False,
    shard: bool = False,
    table: StateTable | None = None,
    workers: int | None = None,
    on_progress: Callable[[str, Progress], None] | None = None,
    on_preparation: Callable[[str, int, int], None] | None = None,
) -> ForecastModel:
    """Run the phases in turn on `model`, in place; each starts from what the one before left.

    A phase that has left its model is not run again when resuming. The result is the same as
    that of an uninterrupted run.

    Args:
        folder: gets a folder for each phase.
        earlier: the stages before this model's, for phases with a hand-over.
        seed: of batches and rollouts.
        compile_network: run the network by torch.compile.
        shard: spread weights and optimiser over the processes (FSDP).
        table: the source on the device of the run: batches are taken there, steps are CUDA graphs, and the host does
            not wait for them. For one process.
        workers: processes that read data beside each that trains; None for as many as there are cores, up to 8, or
            none where the states are in memory.
        on_progress: called with the phase's name after each update, in the first process.
        on_preparation: called, in the first process, with what is made before a phase, how much of it, of how much.

    Raises:
        InputError: data that hold no window, or a folder that holds a run already.
        DivergedError: loss or gradients are not finite.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with joined_processes(device) as processes:  # once for all phases: every fit then finds the group that is there
        for number, phase in enumerate(phases):
            place = folder / f"{number:02d}-{phase.name}"
            is_done = resume and (place / MODEL_FILE).exists()
            processes.wait()  # all have looked before the first one writes
            if is_done:
                model.network.load_state_dict(ForecastModel.load(place / MODEL_FILE).network.state_dict())
                continue
            place.mkdir(exist_ok=True)
            if processes.is_first:
                with atomic_path(place / "phase.json") as temporary:
                    temporary.write_text(json.dumps(dataclasses.asdict(phase), indent=2) + "\n", encoding="utf-8")
            what = f"{phase.name}: forecasts to start from"
            told = None if on_preparation is None else partial(on_preparation, what)
            make = partial(_windows, model, data.frames, phase, earlier, seed, processes, table, place, told)
            settings = {
                "workers": workers,
                "run_ahead": table is not None, "shard": shard, "seed": seed, "device": device, "compile": compile_network,
                "on_progress": None if on_progress is None else _named(on_progress, phase.name), "resume": resume,
            }  # fmt: skip
            memory = device_bytes(processes.device)
            per_process = -(-phase.batch_size // (processes.count * phase.accumulation_steps))
            model.network.set_grad_checkpointing(
                activation_bytes(model, phase, per_process, 1) > ACTIVATION_SHARE * memory
            )
            run = _until_stalled if phase.schedule.mode == "loss" else _run
            run(model, data, phase, place, make, settings)
            if processes.is_first:
                model.save(place / MODEL_FILE)
            processes.wait()
    model.eval()
    return model


def activation_bytes(model: ForecastModel, phase: Phase, batch_size: int, n_steps: int) -> int:
    """What the backward pass of a phase needs of so many samples and steps, where nothing is computed again."""
    return batch_size * n_steps * model.network.config.activation_bytes(half=phase.precision != "float32")


def device_bytes(device: torch.device) -> float:
    """The whole memory of a GPU: what is free just now differs when a run is resumed. No limit for the CPU."""
    return float(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else float("inf")


Make = Callable[[int, slice, int], Dataset[Window] | TableWindows]


def _run(
    model: ForecastModel, data: TrainingData, phase: Phase, folder: Path, make: Make, settings: Mapping[str, Any]
) -> FitResult:
    """One fit of a phase; the model is left with the weights that the phase keeps."""
    n_steps, stride = phase.schedule.longest, phase.stride
    windows = make(n_steps, data.train, stride)
    validation = None if data.validation is None else make(n_steps, data.validation, data.validation_stride)
    # Where the states fit onto the device, so do a rollout's activations; a graph cannot
    # recompute random blocks besides.
    loss = RolloutLoss(model, replace(phase.loss, checkpoint=False) if settings["run_ahead"] else phase.loss)
    _set_drop_path(model, phase.drop_path_rate)
    model.train()

    def lengthen(update: int) -> None:
        loss.length = phase.schedule.length(update)

    config = TrainConfig(
        steps=phase.updates, batch_size=phase.batch_size, accumulation_steps=phase.accumulation_steps,
        learning_rate=phase.learning_rate, betas=phase.betas, weight_decay=phase.weight_decay,
        warmup_steps=min(phase.warmup, phase.updates - 1), final_learning_rate=phase.final_learning_rate,
        schedule="constant" if phase.schedule.mode == "loss" else "cosine",
        clip_gradient_norm=phase.clip, ema_decay=phase.ema_decay, precision=phase.precision, seed=settings["seed"],
        num_workers=_n_workers(windows) if settings["workers"] is None else settings["workers"],
        device=settings["device"], compile=settings["compile"], run_ahead=settings["run_ahead"], shard=settings["shard"],
        validate_every=phase.validate_every or phase.updates, checkpoint_every=min(500, phase.updates),
        log_every=max(phase.updates // 500, 1), monitor="mse_mean" if validation is not None else "loss",
    )  # fmt: skip

    def summarised(network: torch.nn.Module, batch: Window) -> dict[str, Tensor]:
        each = loss.step_errors(network, batch)
        return {**each, "mse_mean": torch.stack(list(each.values())).mean()}

    result = fit(
        model.network, None, windows, loss=loss, config=config, run_dir=folder, resume=settings["resume"],  # type: ignore[arg-type]
        collate=collate, validation=validation, metrics=summarised, before_step=lengthen,  # type: ignore[arg-type]
        on_progress=settings["on_progress"],
    )  # fmt: skip
    if phase.keep == "best" and validation is not None:
        model.network.load_state_dict(load_checkpoint(folder / "best.pt")["model"])
    elif result.ema_state is not None:
        model.network.load_state_dict(result.ema_state)
    model.to("cpu").eval()
    return result


def _until_stalled(
    model: ForecastModel, data: TrainingData, phase: Phase, folder: Path, make: Make, settings: Mapping[str, Any]
) -> None:
    """Rollouts of one length as long as validation at the longest improves by a hundredth, then of the next length.

    Each part starts from the weights that the part before kept, so what comes next depends on files alone.
    """
    schedule = phase.schedule
    for length in range(schedule.start, schedule.stop + 1):
        best = float("inf")
        for part in range(1000):
            fixed = replace(schedule, mode="list", lengths=(length,))
            place = folder / f"steps-{length:02d}-part-{part}"
            result = _run(model, data, replace(phase, schedule=fixed), place, make, settings)
            found = result.series("mse_mean", "validation")[1] or result.series("loss")[1]
            if found[-1] > best * (1 - STALLED):
                break
            best = found[-1]


def _windows(
    model: ForecastModel,
    frames: Frames,
    phase: Phase,
    earlier: Sequence[Stage],
    seed: int,
    processes: Processes,
    table: StateTable | None,
    folder: Path,
    on_progress: Callable[[int, int], None] | None,
    n_steps: int,
    span: slice,
    stride: int,
) -> Dataset[Window] | TableWindows:
    where = str(processes.device)
    if phase.hand_over or phase.replay is not None:  # forecasts are dear: no more of them than the phase can look at
        most = min(phase.updates * phase.batch_size, MAX_HANDED_BYTES // _state_bytes(model))
        stride = max(stride, -(-len(range(*span.indices(len(frames)))) // max(most, 1)))
    if table is not None:
        return _table_windows(model, table, phase, earlier, seed, on_progress, n_steps, span, stride)
    settings: dict[str, Any] = {
        "stride": stride, "device": where, "on_progress": on_progress, "seed": seed, "processes": processes,
        "file": folder / "handed_over.tmp",
    }  # fmt: skip
    if phase.hand_over:
        _to(earlier, where)
        return HandOverWindows(frames, model, Cascade(earlier), phase.hand_over, n_steps, span, **settings)
    if phase.replay is not None:
        _to(earlier, where)
        stages = [*earlier, Stage.of(model.to(where).eval(), 1, "itself")]
        first, last = phase.replay
        found = HandOverWindows(frames, model, Cascade(stages), last, n_steps, span, first_lead=first, **settings)
        model.to("cpu")
        return found
    return Windows(frames, model, n_steps, span, stride=stride)


def _state_bytes(model: ForecastModel) -> int:
    """Bytes of what a forecast starts from."""
    return 4 * model.frames * len(model.channels) * model.grid.shape[0] * model.grid.shape[1]


def _n_workers(windows: Dataset[Window] | TableWindows) -> int:
    """How many processes read data beside this one: each core's, shared with the other processes of this machine."""
    if isinstance(windows, TableWindows) or getattr(windows, "in_memory", False):
        return 0
    return max(0, min(MOST_WORKERS, n_processors() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


def _table_windows(
    model: ForecastModel,
    table: StateTable,
    phase: Phase,
    earlier: Sequence[Stage],
    seed: int,
    on_progress: Callable[[int, int], None] | None,
    n_steps: int,
    span: slice,
    stride: int,
) -> TableWindows:
    """As `_windows`, from a table."""
    low, last = (phase.hand_over,) * 2 if phase.hand_over else phase.replay or (0, 0)
    starts = window_starts(table.frames, model, span, model.frames + last + n_steps, stride)
    if len(starts) > phase.batch_size:  # whole batches: another size is another graph, and another compilation
        starts = starts[: len(starts) // phase.batch_size * phase.batch_size]
    if not last:
        return TableWindows(table, model, n_steps, starts)
    leads = np.random.default_rng(seed).integers(low, last + 1, len(starts))
    _to(earlier, str(table.device))
    stages = list(earlier)
    if not phase.hand_over:
        stages.append(Stage.of(model.to(table.device).eval(), 1, "itself"))
    half = phase.precision == "bf16"
    handed = handed_over(table, model, Cascade(stages), starts, leads, half=half, on_progress=on_progress)
    model.to("cpu")
    return TableWindows(table, model, n_steps, starts, leads, handed)


def collate(samples: Sequence[Window]) -> Window:
    """Samples to a batch."""
    return Window(*(torch.stack(parts) for parts in zip(*samples, strict=True)))


def _named(call: Callable[[str, Progress], None], name: str) -> Callable[[Progress], None]:
    return lambda progress: call(name, progress)


def _to(stages: Sequence[Stage], device: str) -> None:
    for stage in stages:
        model = stage.load()
        if isinstance(model, ForecastModel):
            model.to(device).eval()


def _set_drop_path(model: ForecastModel, rate: float | None) -> None:
    if rate is None:
        return
    layers = [module for module in model.modules() if isinstance(module, DropPath)]
    for i, layer in enumerate(layers):
        layer.rate = rate * i / max(len(layers) - 1, 1)
