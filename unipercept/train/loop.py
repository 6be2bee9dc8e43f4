"""`fit`: steps over epochs, with validation, records, checkpoints and exact resume around them."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from unipercept.atomic import atomic_path
from unipercept.embedding import EmbeddingMap
from unipercept.errors import InputError
from unipercept.train.batches import BatchPlan, Collate, load
from unipercept.train.checkpoint import BEST, LAST, load_checkpoint, save_checkpoint
from unipercept.train.config import DATA_ORDER_FIELDS, TrainConfig
from unipercept.train.distributed import joined_processes
from unipercept.train.history import History, Progress, Record
from unipercept.train.interruption import Interruption, deferred_signals
from unipercept.train.optimization import copy_state, prepare_groups
from unipercept.train.randomness import preserved_randomness, random_state, seed_everything, set_random_state
from unipercept.train.sharding import sharded, shared_groups, whole
from unipercept.train.updates import Loss, MakeOptimizer, Updates, adamw, autocast, scalars

Metrics = Callable[[nn.Module, Any], Mapping[str, Tensor | float]]


class Embeds(Protocol):
    """The part of a pipeline that training uses."""

    def embed(self, raw: Any) -> EmbeddingMap:
        """One raw input as a map."""


class Samples(Protocol):
    """Training data: any sized sequence."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class FitResult:
    """The result of a run. The model itself holds the weights of the last step and is in evaluation mode."""

    steps: int  # updates done, over all runs that were resumed
    history: list[Record]
    best: float | None  # the best value of `monitor`, None without validation
    ema_state: dict[str, Tensor] | None  # averaged weights, for `model.load_state_dict`
    run_dir: Path | None

    def series(self, name: str, split: str = "train") -> tuple[list[int], list[float]]:
        """Steps and values of one measure, e.g. to plot: `series("loss", "validation")`."""
        rows = [record for record in self.history if record.name == name and record.split == split]
        return [record.step for record in rows], [record.value for record in rows]


def fit(
    model: nn.Module,
    pipeline: Embeds | None,
    dataset: Samples,
    *,
    loss: Loss,
    config: TrainConfig | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    collate: Collate | None = None,
    validation: Samples | None = None,
    metrics: Metrics | None = None,
    groups: Iterable[Mapping[str, Any]] | None = None,
    make_optimizer: MakeOptimizer = adamw,
    before_step: Callable[[int], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> FitResult:
    """Train `model` on `dataset`, in this process or in all that `torchrun` started.

    A run that is stopped at any moment and resumed ends with the same bits as one that was not. Processes, accumulated
    parts and loaders change a step only by rounding, as long as the model has no statistics over a batch (batch norm
    sees its own part; convert it to SyncBatchNorm beforehand where that matters).

    Args:
        model: moved to the device of the run; the caller seeds (`seed_everything`) before building it.
        pipeline: makes the maps: a sample with `.input` and `.target` then reaches the loss as (EmbeddingMap, targets).
            None: samples are collated as they are.
        dataset: samples by index. Random augmentation in it is seeded for each epoch and sample.
        loss: (model, batch) to the mean loss over the batch, or that and a dict of further means to record.
        run_dir: where config.json, metrics.csv, last.pt and best.pt go; None writes nothing.
        resume: go on from last.pt of `run_dir`, if it is there. Without, a folder that holds a run is refused.
        collate: list of samples to batch; None: as said under `pipeline`.
        validation: samples for the loss and `metrics` in evaluation mode, with averaged weights if there are some.
        metrics: (model, batch) to means over the batch by name; they are averaged over all samples.
        groups: parameter groups, e.g. with `lr_scale` for layer decay; None: decay for all but 1-D tensors and biases.
        make_optimizer: (groups, config) to an optimiser; the learning rate of each step is written into its groups.
        before_step: called with the number of updates done before each, e.g. to lengthen a rollout inside the loss.
        on_progress: called after each step, in the first process.

    Raises:
        DivergedError: loss or gradients are not finite; one line with step, learning rate and last good checkpoint.
        InputError: settings, data or run folder that do not fit together.
        KeyboardInterrupt: Ctrl-C, after the step in progress and a checkpoint.
    """
    config = config or TrainConfig()
    if collate is None:
        collate = default_collate if pipeline is None else PipelineCollate(pipeline)
    with joined_processes(config.device) as processes, deferred_signals() as interruption, _determinism(config):
        prepared = prepare_groups(model, groups, config)
        trained = model
        if config.shard and processes.count > 1:
            trained = sharded(model, processes)
            prepared = shared_groups(prepared, model, trained)
        else:
            model.to(processes.device)
        seed_everything(config.seed + processes.rank)
        updates = Updates(trained, loss, prepared, config, processes, make_optimizer)
        run = _Run(updates, dataset, validation, collate, metrics, None if run_dir is None else Path(run_dir), resume)
        try:
            run.train(before_step, on_progress, interruption)
        finally:
            run.history.close()
            model.eval()
        if trained is not model:
            copy_state(whole(trained.state_dict()), model.state_dict())
        ema = None if updates.ema is None else whole(updates.ema.average)
        return FitResult(updates.step, run.history.records, run.best, ema, run.folder)


class PipelineCollate:
    """Samples with `.input` and `.target` to one EmbeddingMap and stacked targets."""

    def __init__(self, pipeline: Embeds) -> None:
        self.pipeline = pipeline

    def __call__(self, samples: list[Any]) -> tuple[EmbeddingMap, Any]:
        maps = EmbeddingMap.concat([self.pipeline.embed(sample.input) for sample in samples])
        return maps, default_collate([sample.target for sample in samples])


class _Run:
    """A run's place in its data, its records and its folder."""

    def __init__(
        self,
        updates: Updates,
        dataset: Samples,
        validation: Samples | None,
        collate: Collate,
        metrics: Metrics | None,
        folder: Path | None,
        resume: bool,
    ) -> None:
        self.updates, self.config, self.processes = updates, updates.config, updates.processes
        self.dataset, self.validation, self.collate, self.metrics, self.folder = (
            dataset,
            validation,
            collate,
            metrics,
            folder,
        )
        self.plan = BatchPlan(len(dataset), self.config, self.processes)
        self.total_steps = self.config.steps or self.config.epochs * self.plan.steps_per_epoch
        self.best: float | None = None
        self.validated: dict[str, float] = {}
        self.saved_step: int | None = None
        if folder is not None:
            self._open_folder(folder, resume)
        writes = self.processes.is_first
        self.history = History(
            folder if writes else None, keep_steps=updates.step, tensorboard=self.config.tensorboard and writes
        )

    def _open_folder(self, folder: Path, resume: bool) -> None:
        exists = (folder / LAST).exists()
        self.processes.wait()  # all have looked before the first one writes
        if exists and not resume:
            raise InputError(
                f"{folder} holds a run already; pass resume=True to go on with it, or choose another folder"
            )
        if exists:
            self._restore(load_checkpoint(folder / LAST))
        if self.processes.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(folder / "config.json") as temporary:
                temporary.write_text(self.config.to_json(), encoding="utf-8")

    def train(
        self,
        before_step: Callable[[int], None] | None,
        on_progress: Callable[[Progress], None] | None,
        interruption: Interruption,
    ) -> None:
        """Steps until there are `total_steps` of them."""
        self.updates.model.train()
        started, first_step = time.monotonic(), self.updates.step
        for epoch in self._epochs_with_steps_left(before_step):
            last_good = "none" if self.saved_step is None else f"{self.folder}/{LAST} of step {self.saved_step}"
            values, stops = self.updates.apply(
                self.total_steps, wants_stop=interruption.received is not None, last_good=last_good,
                look=self._is_looked_at(self.updates.step + 1),
            )  # fmt: skip
            step = self.updates.step
            if self._is_logged(step):
                self.history.add(step, epoch, "train", values)
            if self.validation is not None and self._is_due(self.config.validate_every):
                self._validate(epoch, self.validation)
            if stops or self._is_due(self.config.checkpoint_every):
                self._save_last()
            if on_progress is not None and self.processes.is_first:
                on_progress(self._progress(values, epoch, first_step, time.monotonic() - started))
            if stops:
                interruption.leave()
        if interruption.received is not None:  # during the last step: all is saved, and the signal still counts
            interruption.leave()

    def _epochs_with_steps_left(self, before_step: Callable[[int], None] | None) -> Iterator[int]:
        """The epoch of each step that is left, once the gradients of that step are accumulated."""
        while self.updates.step < self.total_steps:
            epoch, first_batch = divmod(self.updates.step, self.plan.steps_per_epoch)
            parts = self.plan.parts(epoch, first_batch)
            is_first_part = True
            for part, batch in load(
                self.dataset, parts, self.collate, self.config, epoch=epoch, device=self.processes.device
            ):
                if is_first_part and before_step is not None:
                    before_step(self.updates.step)
                self.updates.accumulate(part, batch)
                is_first_part = part.is_last
                if part.is_last:
                    yield epoch
                if self.updates.step == self.total_steps:
                    return

    def _is_due(self, every: int | None, step: int | None = None) -> bool:
        step = self.updates.step if step is None else step
        return step == self.total_steps or step % (every or self.plan.steps_per_epoch) == 0

    def _is_logged(self, step: int) -> bool:
        return step % self.config.log_every == 0 or step == self.total_steps

    def _is_looked_at(self, step: int) -> bool:
        """Whether this step's numbers are needed on the host: to log them, or to know that the weights are finite."""
        config = self.config
        return self._is_logged(step) or any(
            self._is_due(n, step) for n in (config.validate_every, config.checkpoint_every)
        )

    def _validate(self, epoch: int, samples: Samples) -> None:
        ema: AbstractContextManager[None] = nullcontext() if self.updates.ema is None else self.updates.ema.applied()
        with ema, preserved_randomness():
            self.updates.model.eval()
            self.validated = self._means(samples)
            self.updates.model.train()
            self.history.add(self.updates.step, epoch, "validation", self.validated)
            if self.config.monitor not in self.validated:
                raise InputError(
                    f"monitor must be one of the validation metrics {', '.join(sorted(self.validated))}; got {self.config.monitor!r}"
                )
            value = self.validated[self.config.monitor]
            sign = 1 if self.config.monitor_mode == "max" else -1
            # The later of equals has trained longer: of few recordings many epochs name the same share
            # right. NaN is never the best.
            if value == value and (self.best is None or sign * value >= sign * self.best):
                self.best = value
                if self.folder is not None:
                    content = {
                        "model": whole(self.updates.model.state_dict()),
                        "step": self.updates.step,
                        "metrics": self.validated,
                    }
                    if self.processes.is_first:
                        save_checkpoint(content, self.folder / BEST)

    @torch.no_grad()
    def _means(self, samples: Samples) -> dict[str, float]:
        """Means of loss and metrics over all samples, each counted once over all processes."""
        plan, device = BatchPlan(len(samples), self.config, self.processes), self.processes.device
        sums: dict[str, float] = {}
        for part, batch in load(samples, plan.validation_parts(), self.collate, self.config, epoch=0, device=device):
            values = dict(self.updates.evaluated(batch))
            if self.metrics is not None:
                with autocast(device.type, self.config.precision):
                    values |= scalars(self.metrics(self.updates.model, batch))
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + (float(value) * part.weight if part.weight else 0.0)
        names = sorted(sums)
        totals = self.processes.sum([sums[name] for name in names])
        return {name: total / plan.n_samples for name, total in zip(names, totals, strict=True)}

    def _progress(self, values: Mapping[str, float], epoch: int, first_step: int, seconds: float) -> Progress:
        step, per_epoch = self.updates.step, self.plan.steps_per_epoch
        done = _samples_until(step, per_epoch, self.plan) - _samples_until(first_step, per_epoch, self.plan)
        seconds = max(seconds, 1e-9)
        return Progress(
            step=step,
            total_steps=self.total_steps,
            epoch=epoch,
            loss=values["loss"],
            learning_rate=values["learning_rate"],
            samples_per_second=done / seconds,
            eta_seconds=(self.total_steps - step) * seconds / max(step - first_step, 1),
            validation=self.validated,
        )

    def _save_last(self) -> None:
        if self.folder is None:
            return
        randomness = self.processes.gather(random_state())
        self.saved_step = self.updates.step
        content = {**self.updates.state(), "random": randomness, "best": self.best, "data": self._data_order()}
        if self.processes.is_first:
            save_checkpoint(content, self.folder / LAST)

    def _restore(self, content: Mapping[str, Any]) -> None:
        ours = self._data_order()
        for name, was in content["data"].items():
            if ours[name] != was:
                raise InputError(
                    f"the run was started with {name} = {was}, got {ours[name]}; keep it when resuming, or choose another folder"
                )
        self.updates.load(content)
        self.best, self.saved_step = content["best"], self.updates.step
        if self.processes.rank < len(content["random"]):  # a further process than the run had keeps its own seed
            set_random_state(content["random"][self.processes.rank])

    def _data_order(self) -> dict[str, Any]:
        return {"n_samples": len(self.dataset), **{name: getattr(self.config, name) for name in DATA_ORDER_FIELDS}}


def _samples_until(step: int, steps_per_epoch: int, plan: BatchPlan) -> int:
    epochs, batches = divmod(step, steps_per_epoch)
    return epochs * plan.n_samples + min(batches * plan.config.batch_size, plan.n_samples)


@contextmanager
def _determinism(config: TrainConfig) -> Iterator[None]:
    """Deterministic algorithms of PyTorch for the duration of the run."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or config.deterministic)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
