"""The pretrained start: one network for any period and length, trained on generated processes.

    python -m unipercept.forecasting.pretraining -o forecaster_pretrained.safetensors --seconds 420 --device cuda

A batch has one period and one length of history, drawn anew each step, from one cycle to all that the map holds. Nothing recorded is used.

Shapes: S series, L past steps, T future steps, Q quantile levels.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unipercept import __version__
from unipercept.forecasting.calibration import Calibrator
from unipercept.forecasting.generated import PERIODS, generate
from unipercept.forecasting.learner import FORMAT, NetworkForecaster
from unipercept.forecasting.losses import pinball
from unipercept.forecasting.network import SeriesForecaster
from unipercept.forecasting.settings import ForecastConfig
from unipercept.models import resolve_device

# One network for any period: nothing in it depends on the period, and nothing belongs to a variable.
PRETRAINED_CONFIG = ForecastConfig(
    cycles=24, later_cycles=8, patch=1, linear="phase", head="phase", pull=False, identity=False, quantile_weight=1.0, evenness=0.0, least_squares=False, quiet=1e-3,
    dim=48, blocks=3, kernel_size=13, dropout=0.0, drop_path=0.0, loss="huber", learning_rate=2e-3, weight_decay=1e-2, average=0.999,
)  # fmt: skip
LONGEST_SCALE = (
    0.05  # a history with less deviation, in those of the whole series, is not blown up further for the loss
)


@dataclass(frozen=True)
class PretrainingPlan:
    """How long and how much at once."""

    seconds: float = 420.0
    steps: int | None = None  # planned; None: as many as the seconds hold, measured on the first 50
    cells: int = 100_000  # of a batch's maps together
    seed: int = 0
    last_batches: int = 80  # for the norms' statistics and the intervals' factors


def pretrain(
    config: ForecastConfig = PRETRAINED_CONFIG,
    plan: PretrainingPlan = PretrainingPlan(),
    *,
    device: str = "auto",
    tell: Callable[[str], object] = lambda line: None,
    keep: Path | None = None,
) -> NetworkForecaster:
    """A forecaster of the averaged weights; every so often what there is goes to `keep`."""
    where = resolve_device(device)
    torch.manual_seed(plan.seed)
    network = SeriesForecaster(config).to(where)
    averaged = copy.deepcopy(network).eval()
    pairs = list(zip(averaged.parameters(), network.parameters(), strict=True))
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=config.learning_rate, betas=(0.9, 0.98),
    )  # fmt: skip
    generator = torch.Generator(device=where).manual_seed(plan.seed)
    began, step, total = time.monotonic(), 0, torch.zeros((), device=where)
    while True:
        spent = time.monotonic() - began
        share = step / plan.steps if plan.steps else spent / plan.seconds
        if share >= 1:
            break
        warm = min(1.0, (step + 1) / 200)
        rate = config.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        network.train()
        past, future = _batch(network, plan.cells, generator)
        loss = _loss(network, past, future, config)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        kept = min(config.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, parameter in pairs:
                mean.lerp_(parameter.detach(), 1 - kept)
        total = total.lerp(loss.detach(), 0.02 if step > 50 else 1 / step)
        if step % 200 == 0:
            tell(
                f"step {step}: loss {float(total):.4f}, {step / (time.monotonic() - began):.1f} steps/s, {spent:.0f} s"
            )
        if keep is not None and step % 2000 == 0:
            _finished(averaged, config, plan, step, spent, float(total), generator).save(keep)
    return _finished(averaged, config, plan, step, time.monotonic() - began, float(total), generator)


def _batch(network: SeriesForecaster, cells: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Histories SxL and futures SxT of one period, scaled by what is known of the history."""
    device = generator.device
    pick = int(torch.randint(len(PERIODS), (1,), generator=generator, device=device))
    network.period = PERIODS[pick]
    config = network.config
    share = float(torch.rand(1, generator=generator, device=device))
    cycles = (
        config.rows() if share > 0.6 else 1 + share / 0.6 * (config.rows() - 1)
    )  # long histories are as common as all others
    length = max(4, int(cycles * network.period))
    count = max(8, min(4096, cells // length))
    series = generate(count, length + network.horizon, network.period, generator)
    past, future = series[:, :length], series[:, length:]
    mean, std = past.mean(1, keepdim=True), past.std(1, keepdim=True).clamp(min=LONGEST_SCALE)
    return (past - mean) / std, ((future - mean) / std).clamp(-15, 15)


def _loss(network: SeriesForecaster, past: Tensor, future: Tensor, config: ForecastConfig) -> Tensor:
    """Huber's on the mean and the quantile loss; near steps count more, since most users ask for few."""
    found = network(past.unsqueeze(-1))
    levels = torch.tensor(config.quantiles, device=past.device)
    cycle = torch.arange(future.shape[1], device=past.device) / network.period
    weight = 1 / (1 + cycle)
    weight = weight / weight.mean()
    mean = 2 * torch.nn.functional.huber_loss(found.point[..., 0], future, reduction="none")
    spread = pinball(found.quantiles[..., 0, :], future, levels).mean(-1)
    loss: Tensor = (weight * (mean + spread)).mean()
    return loss


@torch.no_grad()
def _finished(
    averaged: SeriesForecaster,
    config: ForecastConfig,
    plan: PretrainingPlan,
    step: int,
    seconds: float,
    loss: float,
    generator: torch.Generator,
) -> NetworkForecaster:
    """Norm statistics of the averaged weights, factors of the intervals, and the card."""
    network = copy.deepcopy(averaged)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    network.train()
    for _ in range(plan.last_batches):
        network(_batch(network, plan.cells // 4, generator)[0].unsqueeze(-1))
    network.eval()
    for norm in norms:
        norm.momentum = 0.1
    later = config.later_rows()
    calibrator = Calibrator(config.quantiles, later)  # a step in the middle of each cycle ahead stands for its group
    for _ in range(plan.last_batches):
        past, future = _batch(network, plan.cells // 4, generator)
        steps = torch.arange(later, device=past.device) * network.period + network.period // 2
        quantiles = network(past.unsqueeze(-1)).quantiles
        assert quantiles is not None
        calibrator.add(quantiles[:, steps], future[:, steps].unsqueeze(-1))
    card: dict[str, Any] = {
        "format": FORMAT,
        "unipercept": __version__,
        "config": asdict(config),
        "plan": asdict(plan),
        "n_variables": 0,
        "n_features": 0,
        "period": 24,
        "horizon": 96,
        "trained_on": "generated processes (unipercept.forecasting.generated); nothing recorded",
        "data_licence": "Apache-2.0: generated by this project",
        "steps": step,
        "seconds": round(seconds, 1),
        "training_loss": round(loss, 4),
        "device": torch.cuda.get_device_name() if generator.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "seed": plan.seed,
    }
    return NetworkForecaster.of(network.cpu().eval(), calibrator.factors(1e6), card)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=420.0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--cells", type=int, default=PretrainingPlan.cells)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = True
    plan = PretrainingPlan(arguments.seconds, arguments.steps, arguments.cells, arguments.seed)
    tell = lambda line: sys.stderr.write(line + "\n")  # noqa: E731
    found = pretrain(plan=plan, device=arguments.device, tell=tell, keep=arguments.output)
    found.save(arguments.output)


if __name__ == "__main__":
    main()
