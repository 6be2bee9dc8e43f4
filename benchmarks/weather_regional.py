"""A regional network on real reanalysis against ridge regression: RMSE a lead, channel by channel, for several seeds.

    python benchmarks/weather_regional.py FILE --train 2000:2007 --validation 2008 --test 2009 -o runs/regional

Settings are chosen on the validation year; the test year is read only with --score test. RMSE is over all cells and
days, weighted by cos(latitude), of forecasts from every day whose target lies in the scored period.

Shapes: B days, V channels, H rows, W columns.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from unipercept.app.forecaster.cascade import Cascade, lagged
from unipercept.app.forecaster.cascade_file import load_cascade
from unipercept.app.forecaster.forecast import initial_state
from unipercept.app.forecaster.frames import Frames
from unipercept.app.forecaster.recipe import Recipe, train_cascade
from unipercept.app.forecaster.rollout_loss import LossSettings
from unipercept.app.forecaster.schedules import RolloutSchedule
from unipercept.app.forecaster.training import Phase

LEADS = (1, 2, 3, 5)


def recipe(arguments: argparse.Namespace) -> Recipe:
    """A cascade: one model for the first day, another for the days after it, trained on the first one's forecasts; the
    weights that validate best of each.
    """
    common = {
        "batch_size": 32, "weight_decay": arguments.weight_decay, "ema_decay": 0.995, "keep": "best",
        "loss": LossSettings(), "validate_every": 100, "clip": 1.0,
    }  # fmt: skip
    first = Phase("one-step", arguments.updates, arguments.learning_rate, warmup=50, **common)
    rollout = RolloutSchedule(mode="list", lengths=(3,), stop=3)
    second = Phase(
        "hand-over", max(arguments.updates // 3, 2), arguments.learning_rate / 4, rollout, hand_over=1, **common
    )
    network = {
        "width": arguments.width, "groups": (arguments.depth,), "kernel_size": arguments.kernel_size, "dilation": 2,
        "ratio": 2, "drop_path_rate": arguments.drop_path,
    }  # fmt: skip
    return Recipe("tiny", (first,), (second,), hand_over=1, network=tuple(network.items()))


def scores(cascade: Cascade, frames: Frames, span: slice) -> dict[int, np.ndarray]:
    """Lead in steps to RMSE of each channel."""
    model = cascade.model(0)
    weights = torch.cos(torch.deg2rad(torch.tensor(frames.grid.latitude)))[:, None]
    weights = weights / weights.mean()
    first = max(span.start - max(LEADS), model.frames - 1)
    states = [initial_state(model, frames, frames.times[n]) for n in range(first, span.stop - 1)]
    sums = {lead: [torch.zeros(len(model.channels), dtype=torch.float64), 0] for lead in LEADS}
    truth = torch.from_numpy(frames.read(range(len(frames))))
    for start in range(0, len(states), 64):
        part = states[start : start + 64]
        for state in cascade.run(lagged(part), max(LEADS)):
            if state.step not in sums:
                continue
            targets = np.arange(first + start, first + start + len(part)) + state.step
            scored = (targets >= span.start) & (targets < span.stop)
            error = (state.latest[scored] - truth[targets[scored]]).double().square() * weights
            sums[state.step][0] += error.mean(dim=(-2, -1)).sum(dim=0)
            sums[state.step][1] += int(scored.sum())
    return {lead: (total / count).sqrt().numpy() for lead, (total, count) in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--train", default="2000:2007")
    parser.add_argument("--validation", default="2008")
    parser.add_argument("--test", default="2009")
    parser.add_argument("--score", choices=["validation", "test"], default="validation")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--kernel-size", type=int, default=9)
    parser.add_argument("--drop-path", type=float, default=0.1)
    arguments = parser.parse_args()
    frames = Frames(arguments.file)
    train, validation, test = (
        frames.between(*(p.split(":") * 2)[:2]) for p in (arguments.train, arguments.validation, arguments.test)
    )
    span = validation if arguments.score == "validation" else test
    print(
        f"{arguments.file.name}, {arguments.score} {vars(arguments)[arguments.score]}: RMSE of {', '.join(frames.channels)}"
    )
    found = []
    for seed in range(arguments.seeds):
        started, folder = time.monotonic(), arguments.output / f"seed-{seed}"
        if not (folder / "cascade.json").exists():
            train_cascade(frames, folder, recipe(arguments), train=train, validation=validation, seed=seed, resume=True)
        found.append(scores(load_cascade(folder), frames, span))
        row = "   ".join(f"{lead} d " + " / ".join(f"{x:.4g}" for x in found[-1][lead]) for lead in LEADS)
        print(f"seed {seed}: {row}   ({time.monotonic() - started:.0f} s)", flush=True)
    for lead in LEADS:
        each = np.array([row[lead] for row in found])
        print(f"{lead} d: " + " / ".join(f"{m:.4g} ± {s:.2g}" for m, s in zip(each.mean(0), each.std(0), strict=True)))


if __name__ == "__main__":
    main()
