"""The network that comes trained, and how: on generated processes, a batch of one cycle and one length of history, drawn anew each step.

    python -m unipercept.forecasting.pretraining -o forecaster_pretrained.safetensors --seconds 420 --device cuda

Shapes: S series, L past steps, H future steps, Q quantile levels.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from unipercept.forecasting.generated import PERIODS, generate
from unipercept.forecasting.losses import pinball
from unipercept.forecasting.ready import ReadyConfig, ReadyForecaster, folded_period
from unipercept.models import resolve_device

SHORTEST = 8  # steps of a history
MOST_LOSS = 20.0  # units, beyond which an error counts by its root: a walk that runs away must not drown the others
CROPS = 2  # updates from one batch of generated series, with histories of different lengths


@dataclass(frozen=True)
class PretrainingPlan:
    """How long and how much at once."""

    seconds: float = 420.0
    steps: int | None = None  # planned; None: as many as the seconds hold
    cells: int = 200_000  # of a batch's maps together
    rate: float = 2e-3
    weight_decay: float = 1e-2
    average: float = 0.998  # of the weights, a step
    seed: int = 0
    last_batches: int = 100  # for the norms' statistics


def pretrain(
    config: ReadyConfig = ReadyConfig(),
    plan: PretrainingPlan = PretrainingPlan(),
    *,
    device: str = "auto",
    half: bool = False,
    tell: Callable[[str], object] = lambda line: None,
    keep: Callable[[ReadyForecaster, int], object] = lambda network, step: None,
) -> tuple[ReadyForecaster, int]:
    """The averaged weights, and the updates made; every so often what there is goes to `keep`."""
    where = resolve_device(device)
    torch.manual_seed(plan.seed)
    network = ReadyForecaster(config).to(where)
    averaged = copy.deepcopy(network).eval()
    pairs = list(zip(averaged.parameters(), network.parameters(), strict=True))
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": plan.weight_decay},
         {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0}],
        lr=plan.rate, betas=(0.9, 0.98),
    )  # fmt: skip
    generator = torch.Generator(device=where).manual_seed(plan.seed)
    levels = torch.tensor(config.quantiles, device=where)
    began, step, total = time.monotonic(), 0, torch.zeros((), device=where)
    waiting: list[tuple[Tensor, Tensor, int]] = []
    while True:
        spent = time.monotonic() - began
        share = step / plan.steps if plan.steps else spent / plan.seconds
        if share >= 1:
            break
        if not waiting:
            waiting = batches(config, plan.cells, generator)
        past, future, period = waiting.pop()
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * min(1.0, (step + 1) / 300) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
        network.train()
        with torch.autocast(where.type, torch.bfloat16, enabled=half):
            found = network(past, period)
        loss = loss_of(found, past, future, period, levels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        kept = min(plan.average, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_([mean for mean, _ in pairs], [p.detach() for _, p in pairs], 1 - kept)
        total = total.lerp(loss.detach(), 0.01 if step > 100 else 1 / step)
        if step % 500 == 0:
            tell(
                f"step {step}: loss {float(total):.4f}, {step / (time.monotonic() - began):.1f} steps/s, {spent:.0f} s"
            )
        if step % 3000 == 0:
            keep(finished(averaged, config, plan, generator), step)
    return finished(averaged, config, plan, generator), step


def batches(config: ReadyConfig, cells: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor, int]]:
    """A few of histories SxL, futures SxH and the cycle, crops of one generated batch."""
    device = generator.device
    period = PERIODS[int(torch.randint(len(PERIODS), (1,), generator=generator, device=device))]
    folded = folded_period(period)
    horizon = config.later_cycles * folded
    shares = torch.rand(CROPS, generator=generator, device=device).sort().values.tolist()
    longest = config.cycles * folded
    lengths = [round(SHORTEST * (longest / SHORTEST) ** share) for share in shares]  # short ones are as common as long
    count = max(16, min(2048, cells // (lengths[-1] + horizon // 2)))
    series = generate(count, lengths[-1] + horizon, period, generator)
    found = []
    for length in lengths:
        part = series[:, -length - horizon :]
        past, future = part[:, :length], part[:, length:]
        mean, deviation = past.mean(1, keepdim=True), past.std(1, keepdim=True)
        alive = deviation[:, 0] > 1e-3
        scaled = [(rows - mean)[alive] / deviation[alive] for rows in (past, future)]
        found.append((scaled[0], scaled[1], period))
    return found


def loss_of(found: Tensor, past: Tensor, future: Tensor, period: int, levels: Tensor) -> Tensor:
    """The quantile loss in units of the mean change over a cycle; near steps count more, since most users ask for few."""
    folded = folded_period(period)
    lag = period if past.shape[1] >= 2 * period else 1
    unit = (past[:, lag:] - past[:, :-lag]).abs().mean(1, keepdim=True)
    unit = torch.maximum(unit, 0.1 * past.std(1, keepdim=True))
    error = pinball(found / unit[..., None], future / unit, levels).mean(2)
    error = torch.where(error > MOST_LOSS, 2 * (MOST_LOSS * error.clamp(min=MOST_LOSS)).sqrt() - MOST_LOSS, error)
    weight = 1 / (1 + torch.arange(future.shape[1], device=future.device) / folded)
    loss: Tensor = (error * (weight / weight.mean())).mean()
    return loss


@torch.no_grad()
def finished(
    averaged: ReadyForecaster, config: ReadyConfig, plan: PretrainingPlan, generator: torch.Generator
) -> ReadyForecaster:
    """The averaged weights with norm statistics of their own."""
    network = copy.deepcopy(averaged)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    network.train()
    for _ in range(plan.last_batches):
        for past, _, period in batches(config, plan.cells // 2, generator):
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
    parser.add_argument("--device", default="auto")
    parser.add_argument("--half", action="store_true", help="bfloat16 where it is safe")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = True
    plan = PretrainingPlan(arguments.seconds, arguments.steps, arguments.cells, seed=arguments.seed)
    tell = lambda line: sys.stderr.write(line + "\n")  # noqa: E731

    def keep(network: ReadyForecaster, step: int) -> None:
        torch.save({"state": network.half().state_dict(), "step": step}, arguments.output)

    network, step = pretrain(plan=plan, device=arguments.device, half=arguments.half, tell=tell, keep=keep)
    tell(f"{step} steps")
    keep(network, step)


if __name__ == "__main__":
    main()
