"""Training of the pretrained network: on generated processes, each batch with one cycle and one length of history, drawn anew each step.

    python -m unipercept.forecasting.pretraining -o forecaster_pretrained.safetensors --seconds 420 --device cuda

Shapes: S series, L past steps, H future steps, Q quantile levels.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from unipercept import __version__
from unipercept.devices import resolve_device
from unipercept.forecasting.generated import PERIODS, generate
from unipercept.forecasting.losses import pinball
from unipercept.forecasting.pretrained import load_pretrained, save_pretrained
from unipercept.forecasting.pretrained_network import PretrainedConfig, PretrainedNetwork, folded_period

SHORTEST = 8  # steps of a history
MOST_LOSS = 20.0  # units, beyond which an error counts by its root: a walk that runs away must not drown the others
POOLS = 10  # batches of generated series that are kept
USES = 40  # updates from each: generating takes longer than an update


@dataclass(frozen=True)
class PretrainingPlan:
    """How long and how much at once."""

    seconds: float = 420.0
    steps: int | None = None  # planned; None: as many as the seconds hold
    cells: int = 250_000  # of a batch's maps together
    pool_cells: int = 8_000_000
    rate: float = 2e-3
    weight_decay: float = 1e-2
    average: float = 0.998  # of the weights, a step
    seed: int = 0
    last_batches: int = 60  # for the norms' statistics


def pretrain(
    config: PretrainedConfig = PretrainedConfig(),
    plan: PretrainingPlan = PretrainingPlan(),
    *,
    device: str = "auto",
    start: PretrainedNetwork | None = None,
    tell: Callable[[str], object] = lambda line: None,
    keep: Callable[[PretrainedNetwork, int], object] = lambda network, step: None,
) -> tuple[PretrainedNetwork, int]:
    """The averaged weights, and the updates made; every so often what there is goes to `keep`.

    Args:
        start: weights to go on from, of `config`.
    """
    where = resolve_device(device)
    torch.manual_seed(plan.seed)
    network = PretrainedNetwork(config) if start is None else copy.deepcopy(start)
    network = network.to(where)
    averaged = copy.deepcopy(network).eval()
    weights: list[Tensor] = list(network.parameters())
    means: list[Tensor] = list(averaged.parameters())
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in weights if p.ndim > 1], "weight_decay": plan.weight_decay},
         {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0}],
        lr=plan.rate, betas=(0.9, 0.98), fused=where.type == "cuda",
    )  # fmt: skip
    source = Source(config, plan, where)
    levels = torch.tensor(config.quantiles, device=where)
    began, step, total = time.monotonic(), 0, torch.zeros((), device=where)
    while True:
        spent = time.monotonic() - began
        share = step / plan.steps if plan.steps else spent / plan.seconds
        if share >= 1:
            break
        past, future, period = source.batch()
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * min(1.0, (step + 1) / 300) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
        network.train()
        loss = loss_of(network(past, period), past, future, period, levels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
        kept = min(plan.average, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(means, [p.detach() for p in weights], 1 - kept)
        total = total.lerp(loss.detach(), 0.01 if step > 100 else 1 / step)
        if step in (10, 50, 100, 200) or step % 500 == 0:
            tell(f"step {step}: loss {float(total):.4f}, {spent:.0f} s")
        if step % 2000 == 0:
            keep(finished(averaged, source), step)
    return finished(averaged, source), step


class Source:
    """Batches of one cycle and one length of history, cut at random from a few generated sets that are replaced in turn."""

    def __init__(self, config: PretrainedConfig, plan: PretrainingPlan, device: torch.device) -> None:
        self.config, self.plan = config, plan
        self.generator = torch.Generator(device=device).manual_seed(plan.seed)
        self.chance = random.Random(plan.seed)  # of what has a size: no waiting for the device
        self.pools: list[tuple[Tensor, int]] = []
        self.given = 0

    def batch(self) -> tuple[Tensor, Tensor, int]:
        """Histories SxL, futures SxH, both scaled by the history, and the cycle."""
        if len(self.pools) < POOLS or self.given % USES == 0:
            self.pools = [*self.pools[-POOLS + 1 :], self._pool()]
        self.given += 1
        series, period = self.chance.choice(self.pools)
        folded = folded_period(period)
        horizon, longest = self.config.later_cycles * folded, self.config.cycles * folded
        length = round(SHORTEST * (longest / SHORTEST) ** self.chance.random())  # short ones are as common as long
        count = min(len(series), max(16, min(2048, self.plan.cells // (length + horizon // 2))))
        first = self.chance.randrange(len(series) - count + 1)
        start = self.chance.randrange(series.shape[1] - length - horizon + 1)
        part = series[first : first + count, start : start + length + horizon]
        past, future = part[:, :length], part[:, length:]
        mean, deviation = past.mean(1, keepdim=True), past.std(1, keepdim=True).clamp(min=1e-3)
        return (past - mean) / deviation, (future - mean) / deviation, period

    def _pool(self) -> tuple[Tensor, int]:
        period = self.chance.choice(PERIODS)
        length = (self.config.cycles + self.config.later_cycles) * folded_period(period)
        series = generate(max(16, self.plan.pool_cells // length), length, period, self.generator)
        order = torch.randperm(len(series), generator=self.generator, device=series.device)
        return series[order], period


def loss_of(found: Tensor, past: Tensor, future: Tensor, period: int, levels: Tensor) -> Tensor:
    """The quantile loss in units of the mean change over a cycle; near steps count more, since most users ask for few."""
    folded = folded_period(period)
    lag = period if past.shape[1] >= 2 * period else 1
    unit = (past[:, lag:] - past[:, :-lag]).abs().mean(1, keepdim=True)
    unit = torch.maximum(unit, 0.1 * past.std(1, keepdim=True)).clamp(min=0.01)
    error = pinball(found / unit[..., None], future / unit, levels).mean(2)
    error = torch.where(error > MOST_LOSS, 2 * (MOST_LOSS * error.clamp(min=MOST_LOSS)).sqrt() - MOST_LOSS, error)
    weight = 1 / (1 + torch.arange(future.shape[1], device=future.device) / folded)
    loss: Tensor = (error * (weight / weight.mean())).mean()
    return loss


@torch.no_grad()
def finished(averaged: PretrainedNetwork, source: Source) -> PretrainedNetwork:
    """The averaged weights with norm statistics of their own."""
    network = copy.deepcopy(averaged)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    network.train()
    for _ in range(source.plan.last_batches):
        past, _, period = source.batch()
        network(past, period)
    network.eval()
    for norm in norms:
        norm.momentum = 0.1
    return network.cpu()


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=420.0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--cells", type=int, default=PretrainingPlan.cells)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=PretrainingPlan.rate)
    parser.add_argument("--start", type=Path, help="weights to go on from")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = True
    plan = PretrainingPlan(
        arguments.seconds, arguments.steps, arguments.cells, rate=arguments.rate, seed=arguments.seed
    )
    start, before = (None, {}) if arguments.start is None else load_pretrained(arguments.start)

    def tell(line: str) -> None:
        sys.stderr.write(line + "\n")

    def keep(network: PretrainedNetwork, step: int) -> None:
        name = str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "CPU"
        card = {
            "unipercept": __version__,
            "plan": asdict(plan),
            "trained_on": "generated processes (unipercept.forecasting.generated); nothing recorded",
            "data_licence": "Apache-2.0: generated by this project",
            "steps": step + before.get("steps", 0),
            "device": name,
            "torch": torch.__version__,
            "seed": plan.seed,
        }
        save_pretrained(network, card, arguments.output)

    network, step = pretrain(plan=plan, device=arguments.device, start=start, tell=tell, keep=keep)
    tell(f"{step} updates")
    keep(network, step)


if __name__ == "__main__":
    main()
