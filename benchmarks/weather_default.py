"""Train the cascade that is shipped: generated weather, the tiny network, two stages. One command, no network.

    python benchmarks/weather_default.py -o runs/default     a quarter of an hour on one H200 with 32 cores
    python benchmarks/weather_default.py -o runs/default --one-step 200 --rollout 20 --members 8 --days 30   a try

Members are independent runs of the three-level quasi-geostrophic model, each in years of its own and starting 37 days
later in the year than the one before, so that together they cover all seasons. The last two validate. No state of the
years from 2080 on is used here: those are for users' own tests and climatologies.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from unipercept.app.forecaster.frames import Frames
from unipercept.app.forecaster.generate import GenerateConfig, member_dataset
from unipercept.app.forecaster.model import ForecastModel
from unipercept.app.forecaster.recipe import Recipe, train_cascade
from unipercept.app.forecaster.rollout_loss import LossSettings
from unipercept.app.forecaster.schedules import RolloutSchedule
from unipercept.app.forecaster.training import Phase
from unipercept.train import Progress

FIRST_YEAR, YEARS, DAYS_LATER = 2000, 2, 37
SPIN_UP_DAYS = 75
HAND_OVER = 20  # steps: five days
N_TRAIN, N_VALIDATION = 28, 2
REPORT_SECONDS = 10.0


def member_config(number: int, days: int) -> GenerateConfig:
    """The run of a member: its seed is its number."""
    start = np.datetime64(f"{FIRST_YEAR + YEARS * number}-01-02") + np.timedelta64(number * DAYS_LATER % 365, "D")
    return GenerateConfig(days=days, start=str(start), seed=number, spin_up_days=SPIN_UP_DAYS)


def save_member(folder: Path, number: int, days: int) -> None:
    """Generate a member and keep each variable as a .npy file, which need no library and are read back as they lie."""
    if (folder / "time.npy").exists():
        return
    dataset = member_dataset(member_config(number, days))
    folder.mkdir(parents=True, exist_ok=True)
    for name, variable in dataset.data_vars.items():
        np.save(folder / f"{name}.npy", variable.values)
    np.save(folder / "time.npy", dataset["time"].values)  # last: it says that the rest is there


def generated(folder: Path, first: int, members: int, days: int, workers: int) -> xr.Dataset:
    """All members one after the other, in memory; those that are on disk already are kept."""
    numbers = range(first, first + members)
    paths = [folder / f"member-{i:03d}" for i in numbers]
    with ProcessPoolExecutor(min(workers, members), mp_context=get_context("spawn")) as pool:
        list(pool.map(save_member, paths, numbers, [days] * members))
    like = member_dataset(GenerateConfig(days=1, spin_up_days=0))
    with ThreadPoolExecutor(8) as threads:
        arrays = threads.map(
            lambda name: np.concatenate([np.load(p / f"{name}.npy", mmap_mode="r") for p in paths]), like
        )
        data = {name: (like[name].dims, array, like[name].attrs) for name, array in zip(like, arrays, strict=True)}
    coordinates = {name: like[name] for name in ("level", "latitude", "longitude")}
    return xr.Dataset(
        data, {"time": np.concatenate([np.load(p / "time.npy") for p in paths]), **coordinates}, like.attrs
    )


def recipe(arguments: argparse.Namespace) -> Recipe:
    """Short: one step, then rollouts of up to 6.

    Medium: from Short's forecasts of five days on, rollouts of up to 8; then states of any lead from 5 to 8 days of
    the cascade as it has become.
    """
    common = {"batch_size": arguments.batch_size, "precision": arguments.precision, "weight_decay": 0.01}
    rate = arguments.learning_rate

    def phase(name: str, updates: int, share: float, longest: int, **settings: Any) -> Phase:
        grows = RolloutSchedule(2, longest, max(updates // (longest - 1), 1))
        return Phase(name, updates, rate * share, grows, warmup=updates // 20, **common, **settings)

    first = Phase("one-step", arguments.one_step, rate, warmup=min(500, arguments.one_step // 10),
                  loss=LossSettings(channels="change"), **common)  # fmt: skip
    short = (first, phase("rollout", arguments.rollout, 0.2, 6))
    medium = [
        phase("hand-over", arguments.hand_over, 0.25, 8, hand_over=HAND_OVER, stride=2),
        phase("replay", arguments.replay, 0.125, 8, replay=(HAND_OVER, 2 * HAND_OVER - 8), stride=2),
    ]
    chosen = tuple(phase for phase in medium if phase.updates > 1)
    return Recipe(
        "tiny", short, chosen, HAND_OVER, (("solar", True), ("drop_path_rate", 0.0), ("width", arguments.width))
    )


class Report:
    """A line every ten seconds."""

    def __init__(self) -> None:
        self.last = 0.0

    def __call__(self, name: str, progress: Progress) -> None:
        if time.monotonic() - self.last > REPORT_SECONDS or progress.step == progress.total_steps:
            self.last = time.monotonic()
            validated = {k: round(v, 5) for k, v in progress.validation.items() if k.startswith("mse")}
            print(
                f"{name:<10} {progress.step:>6}/{progress.total_steps} loss {progress.loss:.4g} "
                f"{progress.samples_per_second:.0f} windows/s, {progress.eta_seconds:.0f} s left {validated}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="where the members lie or go; OUTPUT/data unless given")
    parser.add_argument("--members", type=int, default=N_TRAIN + N_VALIDATION)
    parser.add_argument("--days", type=int, default=180)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2)
    parser.add_argument(
        "--one-step", type=int, default=16000, help="updates of each phase; 0 leaves one of Medium's out"
    )
    parser.add_argument("--rollout", type=int, default=2400)
    parser.add_argument("--hand-over", type=int, default=1000)
    parser.add_argument("--replay", type=int, default=500)
    parser.add_argument("--start-from", type=Path, help="a Short to go on with instead of a fresh one")
    parser.add_argument("--medium-from", type=Path, help="a Medium to go on with instead of Short's weights")
    parser.add_argument("--first-member", type=int, default=0, help="seed of the first member")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--precision", default="bf16", choices=["float32", "bf16"])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only-data", action="store_true", help="generate the members and stop")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    started = time.monotonic()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the generating processes
    dataset = generated(
        arguments.data or arguments.output / "data",
        arguments.first_member,
        arguments.members,
        arguments.days,
        arguments.workers,
    )
    print(f"{arguments.members} members of {arguments.days} days: {time.monotonic() - started:.0f} s", flush=True)
    if arguments.only_data:
        return
    n_member = len(dataset["time"]) // arguments.members
    frames, n_train = Frames(dataset), n_member * (arguments.members - N_VALIDATION)
    card = {
        "data": "generated: three-level quasi-geostrophic model of this project", "licence": "Apache-2.0",
        "command": "python " + " ".join(sys.argv),
        "test": "a run of its own, see benchmarks/results/weather_default.md",
    }  # fmt: skip
    path = train_cascade(
        frames, arguments.output, recipe(arguments), train=slice(0, n_train), validation=slice(n_train, len(frames)),
        seed=arguments.seed, compile_network=arguments.compile, resume=arguments.resume, card=card, on_progress=Report(),
        start_from=None if arguments.start_from is None else ForecastModel.load(arguments.start_from),
        medium_from=None if arguments.medium_from is None else ForecastModel.load(arguments.medium_from),
    )  # fmt: skip
    print(
        f"{path}: {time.monotonic() - started:.0f} s in all; benchmarks/results/weather_default.md says how it is tested"
    )


if __name__ == "__main__":
    main()
