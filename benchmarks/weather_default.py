"""Train the cascade that is shipped: generated weather, the tiny network, two stages. One command, no network.

    python benchmarks/weather_default.py -o runs/default                  some six minutes on one H200 with 16 cores
    python benchmarks/weather_default.py -o runs/default --updates 200 --members 4 --days 120        a try on a laptop

Members are independent two-year runs of the three-level quasi-geostrophic model, each under its own years, with a gap in
between so that no window crosses from one to the next. The last member is the test: it is generated and left alone.
"""

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import xarray as xr

from unipercept.app.forecaster.frames import Frames
from unipercept.app.forecaster.generate import GenerateConfig, generate
from unipercept.app.forecaster.recipe import standard_recipe, train_cascade
from unipercept.train import Progress

FIRST_YEAR, YEARS = 2000, 2
REPORT_SECONDS = 10.0


def member(path: Path, number: int, days: int) -> Path:
    """Generate one run, from the second of January of its first year."""
    config = GenerateConfig(days=days, start=f"{FIRST_YEAR + YEARS * number}-01-02", seed=number)
    return generate(path, config, resume=True)[0]


def generated(folder: Path, members: int, days: int, workers: int) -> list[Path]:
    """All members, those that are whole already kept."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"member-{i:02d}.zarr" for i in range(members)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(member, paths, range(members), [days] * members))


class Report:
    """A line every ten seconds."""

    def __init__(self) -> None:
        self.last = 0.0

    def __call__(self, name: str, progress: Progress) -> None:
        if time.monotonic() - self.last > REPORT_SECONDS or progress.step == progress.total_steps:
            self.last = time.monotonic()
            print(
                f"{name:<10} {progress.step:>6}/{progress.total_steps} loss {progress.loss:.4g} "
                f"{progress.samples_per_second:.0f} windows/s, {progress.eta_seconds:.0f} s left {dict(list(progress.validation.items())[:3])}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="where the members lie or go; OUTPUT/data unless given")
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--days", type=int, default=726)
    parser.add_argument("--workers", type=int, default=max((os.cpu_count() or 2) - 2, 1))
    parser.add_argument("--updates", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--rollout", type=int, default=4)
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--loaders", type=int, default=0, help="processes that load windows")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    started = time.monotonic()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the generating processes
    paths = generated(arguments.data or arguments.output / "data", arguments.members, arguments.days, arguments.workers)
    print(f"{len(paths)} members of {arguments.days} days: {time.monotonic() - started:.0f} s", flush=True)
    with xr.open_mfdataset(paths[:-1], engine="zarr", combine="nested", concat_dim="time", data_vars="minimal",
                           coords="minimal", compat="override") as dataset:  # fmt: skip
        frames = Frames(dataset.load())  # 3 GB; every phase then reads it from memory
        n_train = sum(
            t.astype("datetime64[Y]").astype(int) + 1970 < FIRST_YEAR + YEARS * (len(paths) - 2) for t in frames.times
        )
        recipe = standard_recipe(
            "tiny", updates=arguments.updates, batch_size=arguments.batch_size, learning_rate=arguments.learning_rate,
            rollout=arguments.rollout, precision=arguments.precision, width=arguments.width,
        )  # fmt: skip
        card = {
            "data": "generated: three-level quasi-geostrophic model of this project", "licence": "Apache-2.0",
            "command": "python benchmarks/weather_default.py", "test": f"member {len(paths) - 1}, not seen in training",
        }  # fmt: skip
        path = train_cascade(
            frames, arguments.output, recipe, train=slice(0, int(n_train)), validation=slice(int(n_train), len(frames)),
            seed=arguments.seed, compile_network=arguments.compile,
            num_workers=arguments.loaders, resume=arguments.resume, card=card,
            on_progress=Report(),
        )  # fmt: skip
    print(f"{path}: {time.monotonic() - started:.0f} s in all; score it with")
    print(f"  unipercept weather forecast {path.parent} {paths[-1]} -o forecast.zarr --from {FIRST_YEAR + YEARS * (len(paths) - 1)}-02 "
          f"--to {FIRST_YEAR + YEARS * (len(paths) - 1)}-12 --every 72 --batch-size 32")  # fmt: skip
    print(f"  unipercept weather evaluate forecast.zarr --truth {paths[-1]} --climate-of {paths[0]}")


if __name__ == "__main__":
    main()
