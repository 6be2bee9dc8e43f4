"""From a weather source to a trained cascade in one folder: the phases of each stage, and the models they leave.

Layout of the folder: statistics.json, short/ and medium/ with a folder for each phase, short.safetensors,
medium.safetensors, cascade.json.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from unipercept.app.forecaster.cascade import Stage, StepModel
from unipercept.app.forecaster.cascade_file import FILE_NAME, save_cascade
from unipercept.app.forecaster.ensemble import TENDENCY, one_step_shares
from unipercept.app.forecaster.frames import Frames, Statistics
from unipercept.app.forecaster.model import ForecastModel, new_model
from unipercept.app.forecaster.rollout_loss import LossSettings
from unipercept.app.forecaster.schedules import RolloutSchedule
from unipercept.app.forecaster.training import Phase, TrainingData, activation_bytes, device_bytes, train_phases
from unipercept.app.forecaster.windows import StateTable
from unipercept.atomic import atomic_path
from unipercept.errors import InputError
from unipercept.train import Progress, seed_everything
from unipercept.train.distributed import Processes, joined_processes
from unipercept.versions import versions

STATISTICS = "statistics.json"
RESIDENT_SHARE = 0.2  # of the device's memory that a source may take to be held there
ROLLOUT_SHARE = 0.4  # and that a rollout's activations may take


@dataclass(frozen=True)
class Recipe:
    """How a cascade is trained.

    Args:
        preset: of the network.
        short: phases of the first stage.
        medium: phases of the second; none for a single model.
        hand_over: steps of the first stage.
        network: settings of `NetworkConfig` instead of the preset's.
    """

    preset: str
    short: tuple[Phase, ...]
    medium: tuple[Phase, ...] = ()
    hand_over: int = 20
    network: tuple[tuple[str, Any], ...] = ()


def standard_recipe(
    preset: str = "tiny",
    *,
    updates: int = 8000,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    rollout: int = 4,
    hand_over: int = 20,
    medium: bool = True,
    precision: str = "float32",
    **network: Any,
) -> Recipe:
    """One step, rollouts that grow to `rollout`, and Medium on Short's hand-overs and on its own replayed states.

    `updates` are those of the one-step phase; the others are shares of it. Short sees sharp states and
    squared errors of the first day; Medium's errors are those of days 5 to 10, so it learns what can still be
    known there, and is smoother.
    """
    if updates < 10 or rollout < 1 or hand_over < 2:
        raise InputError(
            f"a recipe needs at least 10 updates, rollouts of 1 and a hand-over after 2 steps; got {updates}, {rollout}, {hand_over}"
        )
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "precision": precision,
        "loss": LossSettings(channels="uniform"),
    }
    short = [Phase("one-step", updates, learning_rate, warmup=min(200, updates // 10), **common)]
    if rollout > 1:
        part = max(updates // 8, 2)
        grow = RolloutSchedule(2, rollout, max(part // (rollout - 1), 1))
        short.append(Phase("rollout", part, learning_rate / 10, grow, warmup=part // 20, **common))
    last = 2 * hand_over - 1 - rollout
    longer = RolloutSchedule(2, max(rollout, 2), max(updates // 12 // max(rollout - 1, 1), 1))
    later = [
        Phase("hand-over", max(updates // 8, 2), learning_rate / 4, longer, hand_over=hand_over, stride=3, **common),
        Phase("replay", max(updates // 8, 2), learning_rate / 8, longer, replay=(hand_over, max(last, hand_over)), stride=3, **common),
    ]  # fmt: skip
    return Recipe(preset, tuple(short), tuple(later) if medium else (), hand_over, tuple(network.items()))


def train_cascade(
    frames: Frames,
    output: str | Path,
    recipe: Recipe,
    *,
    train: slice,
    validation: slice | None = None,
    step_hours: float | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    compile_network: bool = False,
    shard: bool = False,
    start_from: ForecastModel | None = None,
    medium_from: ForecastModel | None = None,
    static: torch.Tensor | None = None,
    card: dict[str, Any] | None = None,
    workers: int | None = None,
    on_progress: Callable[[str, Progress], None] | None = None,
    on_preparation: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Train every stage of `recipe`; gives the path of cascade.json.

    Statistics are those of the training period. Where there is a validation period, the cascade also says how its
    ensembles are to be made: members of Short differ after a step by as much as Short erred there. A run that is
    stopped continues with `resume` and ends with the same bits.

    Args:
        frames: the data of both periods.
        output: folder to make.
        train, validation: rows of `frames`.
        step_hours: lead of one step; None for the distance of the data's times.
        seed: of weights, batches and rollouts.
        compile_network: run the network by torch.compile.
        shard: spread weights and optimiser over the processes of `torchrun` (FSDP) instead of holding them in each.
        start_from: a model to fine-tune instead of a fresh one; its channels, grid and statistics are kept.
        medium_from: the same for the second stage, which starts from the first one's weights otherwise.
        static: SxHxW standardised fields that never change.
        card: further facts for the models' cards.
        workers, on_progress, on_preparation: as of `train_phases`.

    Raises:
        InputError: data that do not fit, or a folder that holds a run already.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    if (output / FILE_NAME).exists():
        raise InputError(f"{output} holds a trained cascade already; choose another folder")
    period = _period(frames, train)
    facts = {"data": Path(frames.source).name, "training_period": period, "seed": seed, **versions(), **(card or {})}
    seed_everything(seed)
    hours = step_hours or frames.step_hours()
    data = TrainingData(frames, train, validation)
    with joined_processes(device) as processes:
        model = start_from
        if model is None:
            told = None if on_preparation is None else partial(on_preparation, "statistics")
            statistics = _statistics(frames, train, hours, output / STATISTICS, resume, processes, told)
            model = new_model(
                recipe.preset, frames.channels, frames.grid, statistics, step_hours=hours, units=frames.units,
                static=static, **dict(recipe.network),
            )  # fmt: skip
        settings: dict[str, Any] = {
            "seed": seed, "device": device, "resume": resume, "compile_network": compile_network, "workers": workers,
            "shard": shard, "on_progress": on_progress, "on_preparation": on_preparation,
            "table": StateTable(frames, model, processes.device) if _fits(frames, processes, model, recipe) else None,
        }  # fmt: skip
        stages = _train_stages(model, data, recipe, output, facts, medium_from, processes.is_first, settings)
        if processes.is_first:
            if validation is not None and model.frames > 1:
                facts["ensemble"] = _ensemble(stages[0].load(), frames, validation, processes.device)
            entries = [
                {"name": stage.name, "model": _file_of(stage.name), "steps": recipe.hand_over} for stage in stages
            ]
            save_cascade(output / FILE_NAME, entries, **facts)
        processes.wait()
    return output / FILE_NAME


def _statistics(
    frames: Frames,
    span: slice,
    step_hours: float,
    path: Path,
    resume: bool,
    processes: Processes,
    on_block: Callable[[int, int], None] | None,
) -> Statistics:
    """Statistics of the training period, which take a pass over all its states: once for a run, however often it is
    resumed.
    """
    described = {
        "source": frames.source, "channels": list(frames.channels), "period": _period(frames, span),
        "states": len(range(*span.indices(len(frames)))), "step_hours": step_hours,
    }  # fmt: skip
    kept = json.loads(path.read_text(encoding="utf-8")) if resume and path.exists() else {}
    processes.wait()  # all have looked before the first one writes
    if kept.pop("of", None) == described:
        return Statistics(**{name: tuple(values) for name, values in kept.items()})
    statistics = frames.statistics(span, step_hours, processes, on_block)
    if processes.is_first:
        with atomic_path(path) as temporary:
            temporary.write_text(
                json.dumps({"of": described, **dataclasses.asdict(statistics)}) + "\n", encoding="utf-8"
            )
    return statistics


def _train_stages(
    model: ForecastModel,
    data: TrainingData,
    recipe: Recipe,
    output: Path,
    facts: Mapping[str, Any],
    medium_from: ForecastModel | None,
    saves: bool,
    settings: Mapping[str, Any],
) -> list[Stage]:
    """Short, then Medium on what Short forecasts: `model` is trained in place, and what it was
    after each stage is a stage.
    """
    stages: list[Stage] = []
    for name, phases in (("short", recipe.short), ("medium", recipe.medium)):
        if not phases:
            continue
        if name == "medium" and medium_from is not None:
            model.network.load_state_dict(medium_from.network.state_dict())
        model.card.update({**facts, "stage": name, "phases": [phase.name for phase in phases]})
        train_phases(model, data, phases, output / name, earlier=tuple(stages), **settings)
        if saves:
            model.save(output / _file_of(name))
        stages.append(Stage.of(copy.deepcopy(model).eval(), recipe.hand_over, name))
    return stages


def _file_of(stage: str) -> str:
    return f"{stage}.safetensors"


def _ensemble(short: StepModel, frames: Frames, validation: slice, device: torch.device) -> dict[str, Any]:
    """Short alone: a second stage that forecasts what can still be known pulls members together."""
    assert isinstance(short, ForecastModel)
    shares = one_step_shares(short, frames, validation, device=device)
    relative = {name: round(share, 4) for name, share in shares.items()}
    return {"perturbation": TENDENCY, "amplitude": 1.0, "relative": relative, "n_stages": 1}


def _fits(frames: Frames, processes: Processes, model: ForecastModel, recipe: Recipe) -> bool:
    """Whether the source may lie on the device, beside two sets of forecast states and what training needs: there,
    whole rollouts are CUDA graphs, of which nothing is computed again.
    """
    if processes.count > 1 or processes.device.type != "cuda":
        return False
    memory = device_bytes(processes.device)
    rollouts = (
        activation_bytes(model, phase, phase.batch_size, phase.schedule.longest)
        for phase in (*recipe.short, *recipe.medium)
    )
    return StateTable.n_bytes(frames) < RESIDENT_SHARE * memory and max(rollouts) < ROLLOUT_SHARE * memory


def _period(frames: Frames, span: slice) -> str:
    numbers: Sequence[int] = range(*span.indices(len(frames)))
    return " to ".join(str(frames.times[n].astype("datetime64[h]")) for n in (numbers[0], numbers[-1]))
