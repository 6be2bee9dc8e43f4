"""Joint training of one set of weights for pictures, sounds, clips, clouds and series: a shared backbone, one stem per
modality, norms and a head per task.

A step takes one batch of each task (of small sets only every few steps), adds up their gradients and updates the
weights once. Batch norms share their weights but keep statistics for each task (`own_statistics`), since a log-mel and
a rendering have little in common; the effect can be measured by switching it off. With one task the same code trains a
specialist, so that the cost or gain of sharing can be measured. universal_data.py defines the tasks,
universal_network.py the network, universal_file.py the file.

Shapes: B maps, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unipercept import shared_weights, weights
from unipercept.atomic import atomic_path
from unipercept.devices import resolve_device
from unipercept.errors import InputError
from unipercept.familiarity import Familiarity
from unipercept.perception.joint_step import JointStep
from unipercept.perception.measure_familiarity import familiarity_of, looked_at
from unipercept.perception.networks import scale_head
from unipercept.perception.packs import Packs, joined
from unipercept.perception.scores import Scores, best_temperature, pooled
from unipercept.perception.settings import Recipe
from unipercept.perception.task import Task, logits_of, recomputing_statistics
from unipercept.perception.universal_data import RENEWED, TASKS, Fresh, TaskSpec, fresh_of, prepare, varied
from unipercept.perception.universal_file import card_text, save_universal
from unipercept.perception.universal_network import SharedNetwork
from unipercept.shared_weights import FORMAT, set_familiarity, task_network
from unipercept.train import load_checkpoint, seed_everything
from unipercept.train.checkpoint import LAST, save_checkpoint
from unipercept.train.interruption import Interruption, deferred_signals
from unipercept.train.optimization import settings_kept
from unipercept.train.randomness import random_state, set_random_state
from unipercept.versions import versions

SETTLING_BATCHES = 40  # of each task, from which the statistics of the averaged weights are taken
JUDGED_AT_ONCE = 256  # items
MIRRORED = Recipe(flip=1.0)  # of a second vote
SAVED_EVERY = 30.0  # seconds
RENEWED_EVERY = 32  # steps: each clip is seen some eight times in batches of 128


@dataclass(frozen=True)
class UniversalConfig:
    """How the shared network trains.

    Args:
        max_seconds: of training: where `steps` would take longer, the schedule is shortened to end by then.
        has_branches: train large kernels beside their dilated branches, at half the speed.
        own_statistics: batch norms keep statistics for each task.
        kept: share of the weights that the training began with in those that it ends with: what few steps saw is
            forgotten less. Source: Wortsman et al. (2022), Robust fine-tuning of zero-shot models.
    """

    architecture: str = "unireplknet_a"
    steps: int = 6_000
    max_seconds: float | None = None
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    drop_path: float = 0.1
    has_branches: bool = False
    own_statistics: bool = True
    kept: float = 0.0
    seed: int = 0


def train_universal(
    data: str | Path,
    pictures: str | Path,
    output: str | Path,
    *,
    config: UniversalConfig = UniversalConfig(),
    only: Sequence[str] = (),
    device: str = "auto",
    with_test: bool = False,
    all_train: bool = False,
    resume: bool = False,
    start: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    map_overrides: Mapping[str, Any] | None = None,
    tell: Callable[[str], object] = lambda line: None,
    tasks: Sequence[TaskSpec] = TASKS,
) -> dict[str, Any]:
    """Train on all tasks together (or on those in `only`: a specialist), evaluate each, write weights, card and scores.

    Args:
        data: folder that holds the sets' folders.
        pictures: folder of pictures and videos for camera_motion.
        output: folder to make: universal.safetensors, universal.json and universal.md.
        with_test: also evaluate the test splits; once, when tuning on validation is done.
        all_train: also train on the validation recordings: for a final training with settings already
            chosen. The result is not calibrated and has no out-of-distribution statistics, since no
            recordings are left to measure them on.
        resume: continue a stopped training in `output`; on a CPU the result has the same bits as an uninterrupted one.
        start: a universal file whose weights are where the training begins; tasks that it does not know
            keep their own stem and head.
        overrides, map_overrides: change single settings of the recipes and maps of all chosen
            tasks: how recordings are varied.
        tell: called with a line on the progress, and on each score.

    Raises:
        InputError: an unknown task or setting; `output` holds a stopped training that `resume` does not ask for, or one
            with other settings; a missing set; `kept` without `start`.
        WeightsError: `start` is no universal file, or one of another architecture.
    """
    chosen = [task for task in tasks if not only or task.name in only]
    if not chosen or len(chosen) < len(set(only)):
        raise InputError(f"tasks are {', '.join(task.name for task in tasks)}; got {', '.join(only)}")
    if config.kept and start is None:
        raise InputError(
            f"keeping {config.kept:g} of the first weights needs some that were trained: give a universal file (--start)"
        )
    chosen = [varied(task, overrides or {}, map_overrides or {}) for task in chosen]
    output, where = Path(output), resolve_device(device)
    output.mkdir(parents=True, exist_ok=True)
    if (output / LAST).is_file() and not resume:
        raise InputError(
            f"{output} holds a training that was stopped; add --resume to go on with it, or name another folder"
        )
    fresh = fresh_of(chosen, Path(pictures), config.seed, where)
    packs, classes, licences = prepare(chosen, Path(data), Path(pictures), output, fresh, tell)
    parts = ("validation", "test") if with_test else ("validation",)
    return train_on_packs(
        chosen,
        packs,
        classes,
        licences,
        output,
        config,
        where,
        parts=parts,
        all_train=all_train,
        start=start,
        fresh=fresh,
        tell=tell,
    )


def train_on_packs(
    tasks: Sequence[TaskSpec],
    packs: Mapping[str, Mapping[str, Packs]],
    classes: Mapping[str, Sequence[str]],
    licences: Mapping[str, str],
    output: Path,
    config: UniversalConfig,
    device: torch.device,
    *,
    parts: Sequence[str] = ("validation",),
    all_train: bool = False,
    start: str | Path | None = None,
    fresh: Mapping[str, Fresh] | None = None,
    tell: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """`train_universal` of what is decoded already.

    Args:
        fresh: for some tasks, the source of new training items, which replace the oldest ones.
    """
    seed_everything(config.seed)
    if all_train:
        packs = {name: {**found, "train": joined(found["train"], found["validation"])} for name, found in packs.items()}
        parts = tuple(part for part in parts if part != "validation")
    told = {name: found["train"].traits.shape[1] for name, found in packs.items() if found["train"].traits is not None}
    shared = SharedNetwork(tasks, {task.name: len(classes[task.name]) for task in tasks}, config, device, told)
    before = _begin_with(shared, start, tell) if start else None
    last = output / LAST
    with deferred_signals() as interruption:
        steps, seconds = _train(shared, tasks, packs, config, device, fresh or {}, last, interruption, tell)
    temperatures = {
        task.name: 1.0 if all_train else _calibrate(shared, task, packs[task.name]["validation"], device)
        for task in tasks
    }
    scores = {task.name: _scores_of(shared, task, packs[task.name], parts, device) for task in tasks}
    facts = {
        "format": FORMAT,
        "config": asdict(config),
        "steps": steps,
        "all_train": all_train,
        "before": before,
        "tasks": {
            t.name: {
                "maps": asdict(t.maps),
                "recipe": asdict(t.recipe),
                "batch_size": t.batch_size,
                "every": t.every,
                "labels": list(classes[t.name]),
                "licence": licences[t.name],
                "temperature": temperatures[t.name],
            }
            for t in tasks
        },
        "scores": scores,
        "training_seconds": seconds,
        "versions": versions(),
    }
    path = output / "universal.safetensors"
    save_universal(shared, facts, path)
    if not all_train:  # recordings that trained lie closer than any new one will
        set_familiarity(path, _familiar(tasks, packs, path, device))
    size = path.stat().st_size
    last.unlink(missing_ok=True)
    with atomic_path(output / "universal.json") as temporary:
        temporary.write_text(json.dumps({**facts, "bytes": size}, indent=1) + "\n", encoding="utf-8")
    with atomic_path(output / "universal.md") as temporary:
        temporary.write_text(card_text(facts, size), encoding="utf-8")
    for name, found in scores.items():
        tell(f"{name}: " + ", ".join(f"{part} {100 * score['accuracy']:.2f} %" for part, score in found.items()))
    tell(f"{size:,} bytes, {steps} steps, {steps / max(seconds, 1e-9):.1f} steps/s")
    return facts


def _begin_with(shared: SharedNetwork, start: str | Path, tell: Callable[[str], object]) -> dict[str, Any]:
    """Put a file's weights into the networks of the tasks that it knows; how those were trained."""
    facts = shared_weights.read_facts(start)
    for name in shared.networks:
        if name in facts["tasks"]:
            weights.load_state(shared.of(name), shared_weights.task_state(start, name), str(start))
            # A calibrated head is sure of itself: against smoothed labels its loss would outweigh all other tasks'.
            scale_head(shared.of(name), 1 / facts["tasks"][name].get("temperature", 1.0))
        else:
            tell(f"{name}: not in {start}; its stem and head begin at random")
    return {key: facts.get(key) for key in ("config", "steps", "training_seconds", "before")}


def _train(
    shared: SharedNetwork,
    tasks: Sequence[TaskSpec],
    packs: Mapping[str, Mapping[str, Packs]],
    config: UniversalConfig,
    device: torch.device,
    fresh: Mapping[str, Fresh],
    last: Path,
    interruption: Interruption,
    tell: Callable[[str], object],
) -> tuple[int, float]:
    """AdamW; at the end the weights are their moving average and the statistics are those weights'.

    The number of steps, and the seconds.

    Where it stands is kept in `last`, from which it goes on if that is there; items made anew
    meanwhile (`fresh`) are not kept.
    """
    shortest = min(task.every for task in tasks)  # a task alone trains in every step
    jobs = {
        t.name: Task(
            packs[t.name]["train"], packs[t.name]["validation"], t.maps, t.recipe, shared.of(t.name).num_classes, device
        )
        for t in tasks
    }
    for name, job in jobs.items():
        if job.traits is not None:  # where they vary is to be learnt, not where they lie
            shared.reset_trait_head(name, job.traits.nanmean(dim=0))
    draws = {t.name: Draws(jobs[t.name].n_train, min(t.batch_size, jobs[t.name].n_train), device) for t in tasks}
    first = [parameter.detach().clone() for parameter in shared.parameters()] if config.kept else []
    shared.train()
    updated = JointStep(shared, tasks, jobs, config.weight_decay, device)
    stand = _Stand(shared, updated, list(draws.values()), _settings(shared, tasks, jobs, config))
    step, spent = stand.restore(last) if last.is_file() else (0, 0.0)
    started = saved = time.monotonic()
    progress, told = _progress(step, spent, config), -1.0
    while progress < 1:
        for task in tasks:
            if task.name in fresh and step % RENEWED_EVERY == RENEWED_EVERY - 1:
                jobs[task.name].renew(*fresh[task.name](RENEWED))
            if step % (task.every // shortest) == 0:
                updated.accumulate(task.name, draws[task.name].next())
        updated.apply(config.learning_rate * _rate(progress, config.warmup), step)
        step += 1
        stops = interruption.received is not None
        is_saved = stops or time.monotonic() > saved + SAVED_EVERY
        is_told = progress >= told + 0.02
        if is_told or is_saved:
            shown = updated.shown(step)
        if is_told:
            told = progress
            tell(f"{100 * progress:.0f} %, step {step}, {spent + time.monotonic() - started:.0f} s: {shown}")
        now = time.monotonic()
        progress = _progress(step, spent + now - started, config)
        if is_saved:
            stand.save(last, step, spent + now - started)
            saved = now
        if stops:
            interruption.leave()
    updated.shown(step)
    seconds = spent + time.monotonic() - started
    _take_average(shared, updated, first, config.kept)
    _recompute_statistics(shared, tasks, jobs, draws, device)
    return step, seconds


@torch.no_grad()
def _take_average(shared: SharedNetwork, updated: JointStep, first: list[Tensor], kept: float) -> None:
    """The weights become their moving average, drawn by `kept` to the `first` ones, where there are such."""
    average = list(updated.average.average.values())
    if first:
        torch._foreach_lerp_(average, first, kept)
    for parameter, mean in zip(shared.parameters(), average, strict=True):
        parameter.copy_(mean)
        parameter.grad = None


def _progress(step: int, seconds: float, config: UniversalConfig) -> float:
    """The completed share of the schedule."""
    return max(step / config.steps, seconds / config.max_seconds if config.max_seconds else 0.0)


def _settings(
    shared: SharedNetwork, tasks: Sequence[TaskSpec], jobs: Mapping[str, Task], config: UniversalConfig
) -> dict[str, str]:
    """The settings that a resumed training must share with the stopped one."""
    found = {name: str(value) for name, value in asdict(config).items()}
    for task in tasks:
        job = jobs[task.name]
        found[task.name] = (
            f"{task}, {job.n_train} items, {shared.of(task.name).num_classes} classes, {job.n_traits} traits"
        )
    return found


@dataclass
class _Stand:
    """The complete state of a training; on a CPU it continues bit for bit."""

    shared: SharedNetwork
    updated: JointStep
    draws: Sequence[Draws]
    settings: dict[str, str]

    def save(self, path: Path, step: int, seconds: float) -> None:
        """Write it; a crash leaves the file that was there."""
        content = {
            "step": step,
            "seconds": seconds,
            "settings": self.settings,
            "model": self.shared.state_dict(),
            "optimizer": self.updated.optimizer.state_dict(),
            "average": list(self.updated.average.average.values()),
            "draws": [(draw.order, draw.at) for draw in self.draws],
            "random": random_state(),
        }
        save_checkpoint(content, path)

    def restore(self, path: Path) -> tuple[int, float]:
        """Go on from a file: its step and seconds.

        Raises:
            InputError: it cannot be read, or was written with other settings.
        """
        content = load_checkpoint(path)
        before = content["settings"]
        different = sorted(key for key in before | self.settings if before.get(key) != self.settings.get(key))
        if different:
            raise InputError(
                f"{path.parent} was started with other settings or sets ({', '.join(different)}); repeat those to resume"
            )
        self.shared.load_state_dict(content["model"])
        with settings_kept(self.updated.optimizer):
            self.updated.optimizer.load_state_dict(content["optimizer"])
        for mine, found in zip(self.updated.average.average.values(), content["average"], strict=True):
            mine.copy_(found)
        for draw, (order, at) in zip(self.draws, content["draws"], strict=True):
            draw.order, draw.at = order.to(draw.device), at
        set_random_state(content["random"])
        return int(content["step"]), float(content["seconds"])


class Draws:
    """Positions of batches on the device: every item once, in a fresh order, before any comes again."""

    def __init__(self, count: int, batch_size: int, device: torch.device) -> None:
        self.count, self.batch_size, self.device = count, batch_size, device
        self.order, self.at = torch.randperm(count, device=device), 0

    def next(self) -> Tensor:
        if self.at + self.batch_size > self.count:
            self.order, self.at = torch.randperm(self.count, device=self.device), 0
        self.at += self.batch_size
        return self.order[self.at - self.batch_size : self.at]


def _recompute_statistics(
    shared: SharedNetwork,
    tasks: Sequence[TaskSpec],
    jobs: Mapping[str, Task],
    draws: Mapping[str, Draws],
    device: torch.device,
) -> None:
    """Recompute the batch norm statistics of all tasks, on batches augmented as in training but not mixed."""
    with recomputing_statistics(shared):
        for _ in range(SETTLING_BATCHES):
            for task in tasks:
                maps = jobs[task.name].unmixed_maps(draws[task.name].next())
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    shared.of(task.name)(maps)


def _rate(progress: float, warmup: float) -> float:
    """Share of the learning rate: linear up, then half a cosine down."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return float(0.5 * (1 + np.cos(np.pi * (progress - warmup) / max(1e-9, 1 - warmup))))


def _familiar(
    tasks: Sequence[TaskSpec], packs: Mapping[str, Mapping[str, Packs]], path: Path, device: torch.device
) -> dict[str, Familiarity]:
    """The out-of-distribution statistics of each head, with the weights as they are written."""
    found = {}
    for task in tasks:
        train, validation = (
            looked_at(task.name, part, packs[task.name][part].with_class(), task.maps)
            for part in ("train", "validation")
        )
        found[task.name] = familiarity_of(
            task_network(path, task.name).to(device), train, validation, task.maps, device
        )
    return found


def _calibrate(shared: SharedNetwork, task: TaskSpec, validation: Packs, device: torch.device) -> float:
    """Fold the temperature with the best validation likelihood into the task's head, and return it."""
    logits, share, owners = _logits(shared, task, validation, device)
    temperature = best_temperature(logits, share, owners, validation.targets)
    scale_head(shared.of(task.name), temperature)
    return temperature


def _scores_of(
    shared: SharedNetwork, task: TaskSpec, packs: Mapping[str, Packs], parts: Sequence[str], device: torch.device
) -> dict[str, Any]:
    """Scores of the parts; of pictures that trained mirrored also of each picture and its mirror image together."""
    found = {}
    for part in (part for part in parts if part in packs):
        votes = {part: 1}
        if task.maps.modality == "image" and task.recipe.flip:
            votes[f"{part}, mirrored too"] = 2
        for name, count in votes.items():
            probabilities = pooled(*_logits(shared, task, packs[part], device, count), len(packs[part]))
            found[name] = Scores(probabilities, packs[part].targets).to_dict()
    return found


def _logits(
    shared: SharedNetwork, task: TaskSpec, packs: Packs, device: torch.device, votes: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    half = device.type == "cuda"
    return logits_of(
        shared.of(task.name),
        packs,
        task.maps,
        device,
        votes=votes,
        recipe=MIRRORED,
        batch_size=JUDGED_AT_ONCE,
        half=half,
    )
