"""Training of the pretrained network: on generated processes, each batch with one cycle and one length of
history, drawn anew each step.

    python -m unipercept.forecasting.pretraining -o forecaster_pretrained.safetensors --device cuda --seconds 500

The rate stays high for the first part of the training and then falls to 0. How many updates that is, is settled when
the rate begins to fall: from `--steps`, or from the time that `--seconds` leaves. The card tells, so `--steps` repeats
a training that was given a time. Everything random depends on the seed and on the number of the update alone, so a
training that was stopped goes on from its state file as if it had not been, and one that was finished can be made
longer: run the command again.

Shapes: S series, L past steps, H future steps, Q quantile levels.
"""

from __future__ import annotations

import argparse
import copy
import gc
import hashlib
import json
import math
import platform
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unipercept import __version__
from unipercept.atomic import atomic_path, check_folder_of
from unipercept.devices import resolve_device
from unipercept.errors import InputError, WeightsError
from unipercept.forecasting import generated
from unipercept.forecasting.forecaster_file import read_forecaster
from unipercept.forecasting.generated import PERIODS, generate
from unipercept.forecasting.losses import pinball
from unipercept.forecasting.pretrained import FEW_CYCLES, save_pretrained
from unipercept.forecasting.pretrained_network import PretrainedConfig, PretrainedNetwork, folded_period
from unipercept.train.ahead import GradientGraphs

STATE_FORMAT = "unipercept.pretraining/1"
SHORTEST = 8  # steps of a history
MOST_LOSS = 20.0  # units, beyond which an error counts by its root: a walk that runs away must not drown the others
LEAST_CYCLES = 3  # of history in a generated set: short histories then hold whole processes too
FADING = 1.5  # power by which later cycles count less
POOLS = 10  # sets of generated series that batches are drawn from
USES = 60  # batches after which the oldest set is replaced: generating takes longer than an update
WARM_UP = 300  # updates until the rate is at its height
STATE_EVERY, HELD_OUT_EVERY, TOLD_EVERY = 2000, 5000, 500  # updates
PACES = 3  # that were measured last, of which the best is believed
VALIDATION_SEED = 1_000_000
VALIDATION_BATCHES, VALIDATION_CELLS = 60, 200_000


@dataclass(frozen=True)
class PretrainingPlan:
    """How long and how much at once."""

    steps: int | None = None  # updates in all; None: as many as the seconds hold
    seconds: float = 500.0
    falling: float = 0.35  # share of the updates in which the rate falls
    cells: int = 250_000  # steps of a batch's histories and half of its futures; 2,048 series at most
    pool_cells: int = 8_000_000  # steps of a generated set
    rate: float = 2e-3
    weight_decay: float = 1e-2
    average: float = 0.998  # of the weights, an update, while the rate falls
    seed: int = 0
    frozen: int = 1000  # updates after which norms keep the statistics that forecasts are made with
    statistics_batches: int = 100  # that these are the mean of
    coarse: bool = True  # blocks in bfloat16 on a GPU


@dataclass(frozen=True)
class Pretraining:
    """What came of it: the averaged weights, the updates made, the seconds they took, and
    the loss on held-out processes.
    """

    network: PretrainedNetwork
    steps: int
    seconds: float
    loss: float


def pretrain(
    config: PretrainedConfig = PretrainedConfig(),
    plan: PretrainingPlan = PretrainingPlan(),
    *,
    device: str = "auto",
    state: Path | None = None,
    tell: Callable[[str], object] = lambda line: None,
) -> Pretraining:
    """Train from the start, or from where the state file is.

    Args:
        state: read if it is there, and written every `STATE_EVERY` updates until the rate falls. Later states would
            hold nothing that a few minutes do not bring back.

    Raises:
        InputError: the state is of other sizes or another plan, or lies beyond where the rate of so many updates falls.
    """
    run = _Run(config, plan, resolve_device(device), tell)
    if state is not None and state.is_file():
        run.load(state)
    while not run.falls():
        run.update(plan.rate)
        if state is not None and run.step % STATE_EVERY == 0:
            run.save(state)
    if state is not None:
        run.save(state)
    return run.fall()


class _Run:
    """Weights, optimizer and source of a training under way."""

    def __init__(
        self, config: PretrainedConfig, plan: PretrainingPlan, device: torch.device, tell: Callable[[str], object]
    ) -> None:
        self.config, self.plan, self.device, self.tell = config, plan, device, tell
        torch.manual_seed(plan.seed)
        self.network = PretrainedNetwork(config).to(device)
        self.network.coarse = plan.coarse and device.type == "cuda"
        self.weights = list(self.network.parameters())
        self.optimizer = torch.optim.AdamW(
            [{"params": [p for p in self.weights if p.ndim > 1], "weight_decay": plan.weight_decay},
             {"params": [p for p in self.weights if p.ndim <= 1], "weight_decay": 0.0}],
            lr=plan.rate, betas=(0.9, 0.98), fused=device.type == "cuda",
        )  # fmt: skip
        self.period = 1  # of the batch at hand
        self.gradients = GradientGraphs(
            self._loss,
            self.weights,
            device,
            list(self.network.buffers()),
            lambda: (self.period, self.is_frozen),
            warm_up_runs=1,
        )
        self.source = Source(config, plan, device)
        self.levels = torch.tensor(config.quantiles, device=device)
        self.held_out = [
            Source(config, replace(plan, seed=VALIDATION_SEED + i, pool_cells=VALIDATION_CELLS), device).batch(0)
            for i in range(VALIDATION_BATCHES)
        ]
        self.step, self.began = 0, time.monotonic()
        self.paces: deque[float] = deque([0.0], PACES)  # seconds an update, lately
        self.paced = 0, 0.0  # update and seconds when the last was taken
        self.total = torch.zeros((), device=device)

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def falls(self) -> bool:
        """Whether it is time for the rate to fall: at the latest pace the rest would take the seconds that are left.

        Captures slow the first updates, and a process that is stopped for a while is slow only then: hence the
        best pace of late.
        """
        if self.plan.steps is not None:
            return self.step >= round((1 - self.plan.falling) * self.plan.steps)
        rest = self.step * self.plan.falling / (1 - self.plan.falling)
        return self.seconds() + rest * min(self.paces) >= self.plan.seconds

    @property
    def is_frozen(self) -> bool:
        """Whether norms keep their statistics."""
        return self.step >= self.plan.frozen

    def update(self, rate: float) -> None:
        if self.step == self.plan.frozen:
            batches = (self.source.batch(self.step + i) for i in range(self.plan.statistics_batches))
            _take_statistics(self.network, batches)
        self.network.train()
        if self.is_frozen:
            for norm in _norms(self.network):
                norm.eval()
        past, future, self.period = self.source.batch(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * min(1.0, (self.step + 1) / WARM_UP)
        self.gradients.clear()
        self.gradients.accumulate((past, future), 1.0)
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.step += 1
        loss = self.gradients.sums["loss"].float()
        self.total = self.total.lerp(loss, 0.01 if self.step > 100 else 1 / self.step)
        if self.step in (10, 100) or self.step % TOLD_EVERY == 0:
            self.total.item()  # waits for the device
            self.paces.append((self.seconds() - self.paced[1]) / (self.step - self.paced[0]))
            self.paced = self.step, self.seconds()
            held_out = f", held out {self.loss(self.network):.4f}" if self.step % HELD_OUT_EVERY == 0 else ""
            self.tell(f"{self.seconds():.0f} s, update {self.step}: loss {float(self.total):.4f}{held_out}")

    def _loss(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        past, future = batch
        return {"loss": loss_of(self.network(past, self.period), past, future, self.period, self.levels)}

    def fall(self) -> Pretraining:
        """The rest: the rate goes to 0 (fast at first: Hägele et al., 2024) and the weights are averaged."""
        start = self.step
        steps = self.plan.steps or round(start / (1 - self.plan.falling))
        if start >= steps:
            raise InputError(
                f"the state is at update {start}, and the rate was to reach 0 at {steps}; train for longer"
            )
        self.tell(f"{self.seconds():.0f} s, update {start}: the rate falls until update {steps}")
        averaged = copy.deepcopy(self.network)
        means: list[Tensor] = list(averaged.parameters())
        while self.step < steps:
            self.update(self.plan.rate * (1 - math.sqrt((self.step - start) / (steps - start))))
            kept = min(self.plan.average, 1 - 1 / (2 + self.step - start))
            with torch.no_grad():
                torch._foreach_lerp_(means, [p.detach() for p in self.weights], 1 - kept)
        if steps > self.plan.frozen:
            for norm, own in zip(_norms(averaged), _norms(self.network), strict=True):
                norm.load_state_dict({**norm.state_dict(), **dict(own.named_buffers())})
        else:
            batches = (self.source.batch(steps + i) for i in range(self.plan.statistics_batches))
            _take_statistics(averaged, batches)
        loss = self.loss(averaged)
        self.tell(f"{self.seconds():.0f} s, update {steps}: averaged weights, held out {loss:.4f}")
        averaged.coarse = False
        return Pretraining(averaged.cpu().eval(), steps, self.seconds(), loss)

    def loss(self, network: PretrainedNetwork) -> float:
        """On held-out processes; with gradients, since kernels without would have to be compiled for each shape."""
        network.eval()
        losses = [
            loss_of(network(past, period), past, future, period, self.levels).detach()
            for past, future, period in self.held_out
        ]
        return float(torch.stack(losses).mean())

    def save(self, path: Path) -> None:
        """Everything that an update depends on, as safetensors."""
        from safetensors.torch import save_file

        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
        tensors["total"] = self.total
        card = {"format": STATE_FORMAT, **self._kind(), "step": self.step, "seconds": self.seconds()}
        with atomic_path(path) as temporary:
            save_file(
                {name: value.cpu().contiguous() for name, value in tensors.items()},
                temporary,
                metadata={"unipercept": json.dumps(card)},
            )

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote.

        Raises:
            InputError: it was another training.
            WeightsError: no such file.
        """
        card, tensors = read_forecaster(path, STATE_FORMAT)
        for name, value in self._kind().items():
            if card.get(name) != value:
                raise InputError(f"{path} is of a training with other {name}; name another output or remove it")
        self.network.load_state_dict(_below(tensors, "network."))
        packed = self.optimizer.state_dict()
        packed["state"] = {number: _below(tensors, f"optimizer.{number}.") for number in range(len(self.weights))}
        self.optimizer.load_state_dict(packed)
        self.total = tensors["total"].to(self.device)
        self.step, self.began = int(card["step"]), time.monotonic() - float(card["seconds"])
        self.paced = self.step, self.seconds()
        self.tell(f"{self.seconds():.0f} s, update {self.step}: goes on from {path}")

    def _kind(self) -> dict[str, Any]:
        """What two states of one training share."""
        plan = asdict(replace(self.plan, steps=None, seconds=0.0))
        kind: dict[str, Any] = json.loads(
            json.dumps({"config": asdict(self.config), "plan": plan, "processes": processes_digest()})
        )
        return kind


class Source:
    """Batches of one cycle and one length of history, cut at random from a few generated sets of which the
    oldest is replaced now and then.

    A batch depends on the seed and on its number alone.
    """

    def __init__(self, config: PretrainedConfig, plan: PretrainingPlan, device: torch.device) -> None:
        self.config, self.plan, self.device = config, plan, device
        self.pools: dict[int, tuple[Tensor, int]] = {}

    def batch(self, number: int) -> tuple[Tensor, Tensor, int]:
        """Histories SxL, futures SxH, both scaled by the history, and the cycle."""
        chance = random.Random(f"batch {self.plan.seed} {number}")
        oldest = number // USES
        self.pools = {pool: series for pool, series in self.pools.items() if pool >= oldest}
        pool = oldest + chance.randrange(POOLS)
        if pool not in self.pools:
            self.pools[pool] = self._pool(pool)
        series, period = self.pools[pool]
        folded = folded_period(period)
        horizon = self.config.later_cycles * folded
        length = chance.choice([n for n in lengths(period, self.config.cycles) if n <= series.shape[1] - horizon])
        count = min(len(series), max(16, min(2048, self.plan.cells // (length + horizon // 2))))
        first = chance.randrange(len(series) - count + 1)
        start = chance.randrange(series.shape[1] - length - horizon + 1)
        part = series[first : first + count, start : start + length + horizon]
        past, future = part[:, :length], part[:, length:]
        mean, deviation = past.mean(1, keepdim=True), past.std(1, keepdim=True).clamp(min=1e-3)
        return (past - mean) / deviation, (future - mean) / deviation, period

    def _pool(self, number: int) -> tuple[Tensor, int]:
        chance = random.Random(f"pool {self.plan.seed} {number}")
        generator = torch.Generator(device=self.device).manual_seed(chance.getrandbits(62))
        period = chance.choice(PERIODS)
        cycles = round(LEAST_CYCLES * (self.config.cycles / LEAST_CYCLES) ** chance.random() ** 0.5)
        length = (cycles + self.config.later_cycles) * folded_period(period)
        series = generate(max(16, self.plan.pool_cells // length), length, period, generator)
        order = torch.randperm(len(series), generator=generator, device=series.device)
        return series[order], period


@lru_cache
def lengths(period: int, cycles: int) -> list[int]:
    """Of histories of up to so many cycles, ascending, in equal ratios: short ones are as common as long.

    Not all, since each is a CUDA graph of its own; more of common cycles. Long ones are of whole
    cycles, as when forecasts are made.
    """
    folded = folded_period(period)
    count = 2 + 4 * PERIODS.count(period)
    found = [round(SHORTEST * (cycles * folded / SHORTEST) ** (i / (count - 1))) for i in range(count)]
    return sorted({n if n <= FEW_CYCLES * folded else n // folded * folded for n in found})


def loss_of(found: Tensor, past: Tensor, future: Tensor, period: int, levels: Tensor) -> Tensor:
    """The quantile loss in units of the mean change over a cycle; near steps count more,
    since most users ask for few.
    """
    folded = folded_period(period)
    lag = period if past.shape[1] >= 2 * period else 1
    unit = (past[:, lag:] - past[:, :-lag]).abs().mean(1, keepdim=True)
    unit = torch.maximum(unit, 0.1 * past.std(1, keepdim=True)).clamp(min=0.01)
    error = pinball(found / unit[..., None], future / unit, levels).mean(2)
    error = torch.where(error > MOST_LOSS, 2 * (MOST_LOSS * error.clamp(min=MOST_LOSS)).sqrt() - MOST_LOSS, error)
    weight = (1 + torch.arange(future.shape[1], device=future.device) / folded) ** -FADING
    loss: Tensor = (error * (weight / weight.mean())).mean()
    return loss


@torch.no_grad()
def _take_statistics(network: PretrainedNetwork, batches: Iterable[tuple[Tensor, Tensor, int]]) -> None:
    """Running statistics: a plain mean over many batches, in place of that of the batch at hand.

    A batch is of one cycle and length, whose statistics differ from the mean by which forecasts are made; weights that
    have been trained with that mean do better.
    """
    norms = _norms(network)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    for past, _, period in batches:
        network(past, period)
    for norm in norms:
        norm.momentum = 0.1


def _norms(network: PretrainedNetwork) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@lru_cache(maxsize=1)
def processes_digest() -> str:
    """SHA-256 of the text that generates the processes: weights of the same plan differ where this does."""
    return hashlib.sha256(Path(generated.__file__).read_bytes()).hexdigest()


def main() -> None:
    """See the module's text."""
    plan = PretrainingPlan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=plan.seconds, help="with those before a training was stopped")
    parser.add_argument("--steps", type=int, help="updates in all, in place of seconds")
    parser.add_argument("--cells", type=int, default=plan.cells)
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--rate", type=float, default=plan.rate)
    parser.add_argument("--state", type=Path, help="file to go on from; default: the output's name with .state")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    plan = replace(
        plan, steps=arguments.steps, seconds=arguments.seconds, cells=arguments.cells, seed=arguments.seed, rate=arguments.rate
    )  # fmt: skip
    state = arguments.state or arguments.output.with_suffix(".state")
    gc.freeze()  # garbage is collected before each capture of a graph: not among what stays
    try:
        device = resolve_device(arguments.device)
        for path in (arguments.output, state):
            check_folder_of(path)
        found = pretrain(
            PretrainedConfig(),
            plan,
            device=str(device),
            state=state,
            tell=lambda line: sys.stderr.write(line + "\n") and sys.stderr.flush(),
        )
    except (InputError, WeightsError) as error:
        parser.exit(2, f"{error}\n")
    card = {
        "unipercept": __version__,
        "plan": asdict(replace(plan, steps=found.steps)),
        "processes": processes_digest(),
        "trained_on": "generated processes (unipercept.forecasting.generated); nothing recorded",
        "data_licence": "Apache-2.0: generated by this project",
        "steps": found.steps,
        "seconds": round(found.seconds),
        "held_out": round(found.loss, 4),
        "seed": plan.seed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    save_pretrained(found.network, card, arguments.output)
    sys.stdout.write(json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    main()
