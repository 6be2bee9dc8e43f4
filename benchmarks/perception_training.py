"""Whether training to perceive waits for the GPU or for something else: time of a step, and
how much of it the GPU is busy.

    python benchmarks/perception_training.py [--steps 60] [--kinds image audio] [--decode-only | --branches]

The network is UniRepLKNet-A, recordings are random numbers of the shape that decoded ones have: they lie on the device,
as in a run, and are varied there. `unipercept train` is `fit` with a recipe's own settings, `unipercept universal` the
joint training's step of one task. Busy: the union of all kernels' and copies'
times in the profiler's trace, of as many steps, over their time by the clock in a run without the profiler. Below:
pictures and sounds decoded a second, by one thread, by threads alone, and as a run does it: where there are processors
enough, in processes, whose start is included. `--branches` compares the joint training's step on pictures without and
with dilated branches instead, in turn, three times.
"""

from __future__ import annotations

import argparse
import time
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import torch
from gpu_timing import hardware
from torch.profiler import ProfilerActivity, profile

from unipercept.datasets.folders import class_folders
from unipercept.decoders import Decoders
from unipercept.errors import UniperceptError, one_line
from unipercept.perception import packs as packs_module
from unipercept.perception.joint_step import JointStep
from unipercept.perception.networks import build_network, layer_groups
from unipercept.perception.packs import Packs, decode
from unipercept.perception.run import default_recipe
from unipercept.perception.settings import MapSettings
from unipercept.perception.task import Task
from unipercept.perception.universal import Draws, UniversalConfig
from unipercept.perception.universal_data import TASKS, TaskSpec
from unipercept.perception.universal_network import SharedNetwork
from unipercept.train import Progress, fit, seed_everything

Run = Callable[[int, Callable[[], object]], float]

WARM_UP = 10  # steps, the last of which a GPU that runs ahead is waited for
RECORDINGS, CLASSES = 4_096, 10
KINDS = {
    "image": MapSettings("image", size=112),
    "audio": MapSettings("audio", size=64, length=96, sample_rate=8_000),
    "video": MapSettings("video", folding="stack"),
    "pointcloud": MapSettings("pointcloud"),
    "timeseries": MapSettings("timeseries"),
}


def recordings(maps: MapSettings, count: int = RECORDINGS) -> Packs:
    """As decoded ones would be."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.ones(count, dtype=torch.long)
    if maps.modality == "audio":
        length = maps.pipeline_config().window_length
        values, lengths = 0.1 * torch.randn(count, length, generator=generator), lengths * length
    elif maps.modality == "pointcloud":
        values = torch.randn(count, maps.n_points, 3, generator=generator)
    elif maps.modality == "timeseries":
        values, lengths = (
            torch.randn(count, 1, maps.size, maps.size, generator=generator).half(),
            lengths * maps.size**2,
        )
    else:
        frames = 1 if maps.modality == "image" else maps.n_frames
        shape = count, 3 * frames, maps.size, maps.size
        values = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    targets = torch.arange(count) % CLASSES
    return Packs(values, lengths, torch.arange(count), targets, tuple(str(i) for i in range(count)))


def busy_ms(run: Run, steps: int) -> float:
    """Union of the times in which something ran on the GPU, once `run` is warm."""
    trace = profile(activities=[ProfilerActivity.CUDA])
    run(steps, trace.start)
    trace.stop()
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in trace.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    total = end = 0.0
    for begin, stop in spans:
        total += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return total / 1e3


def row(name: str, modality: str, batch: int, steps: int, run: Run) -> str:
    """`run` does some steps to get warm, calls the function that it is given, does so many
    more and returns their seconds.
    """
    step = 1e3 * run(steps, torch.cuda.synchronize) / steps
    busy = busy_ms(run, steps) / steps
    return f"| {name} | {modality} | {batch} | {step:.2f} | {busy:.2f} | {100 * busy / step:.0f} | {batch / step * 1e3:,.0f} |"


def train_row(modality: str, steps: int, ahead: bool) -> str:
    """`unipercept train`, as it runs on a GPU (ahead) and as it would without CUDA graphs."""
    maps, device = KINDS[modality], torch.device("cuda")
    recipe = default_recipe(modality, device).changed(min_steps=1)
    made = recordings(maps)
    network = build_network(recipe, maps, CLASSES).to(device)
    task = Task(made, made.subset(np.arange(CLASSES)), maps, recipe, CLASSES, device)
    samples = task.training_positions()

    def run(count: int, warm: Callable[[], object]) -> float:
        times: list[float] = []

        def done(progress: Progress) -> None:
            if progress.step == WARM_UP:
                warm()
            if progress.step in (WARM_UP, WARM_UP + count):
                times.append(time.perf_counter())

        settings = task.config("cuda", run_ahead=ahead)
        settings = replace(settings, steps=WARM_UP + count, validate_every=10**6, checkpoint_every=10**6)
        groups = layer_groups(network, recipe)
        fit(network, None, samples, loss=task.loss, config=settings, groups=groups, on_progress=done)
        return times[1] - times[0]

    return row("train" if ahead else "train, step by step", modality, recipe.batch_size, steps, run)


def universal_row(spec: TaskSpec, steps: int, has_branches: bool = False) -> str:
    """A step of the joint training with one task, as universal.py does it, or with dilated branches."""
    device, config = torch.device("cuda"), UniversalConfig(has_branches=has_branches)
    made = recordings(spec.maps)
    shared = SharedNetwork([spec], {spec.name: CLASSES}, config, device, {})
    job = Task(made, made.subset(np.arange(CLASSES)), spec.maps, spec.recipe, CLASSES, device)
    draw = Draws(job.n_train, spec.batch_size, device)
    shared.train()
    updated = JointStep(shared, [spec], {spec.name: job}, config.weight_decay, device)

    def step() -> None:
        updated.accumulate(spec.name, draw.next())
        updated.apply(1e-4, 0)

    def run(count: int, warm: Callable[[], object]) -> float:
        for _ in range(WARM_UP):
            step()
        torch.cuda.synchronize()
        warm()
        started = time.perf_counter()
        for _ in range(count):
            step()
        torch.cuda.synchronize()
        return time.perf_counter() - started

    name = "universal, with dilated branches" if has_branches else "universal"
    return row(name, f"{spec.maps.modality} ({spec.name})", spec.batch_size, steps, run)


def decoding(count: int = 1_200) -> list[str]:
    """Rows: files of a folder, decoded by one thread, by threads alone, and by default."""
    from PIL import Image

    rows, generator = [], np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        for kind in ("image", "audio"):
            for i in range(count):
                place = Path(folder) / kind / str(i % CLASSES)
                place.mkdir(parents=True, exist_ok=True)
                if kind == "image":
                    small = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
                    Image.fromarray(small).resize((256, 256)).save(place / f"{i}.png")
                    continue
                with wave.open(str(place / f"{i}.wav"), "wb") as file:
                    file.setparams((1, 2, 44_100, 0, "NONE", ""))
                    file.writeframes(generator.integers(-9_000, 9_000, 2 * 44_100, dtype=np.int16).tobytes())
            samples, speeds = class_folders(Path(folder) / kind), []
            for make in (lambda n: Decoders(n, 1), lambda n: Decoders(n, processes=False), Decoders):
                with patch.object(packs_module, "Decoders", make):
                    started = time.perf_counter()
                    try:
                        decode(samples, KINDS[kind])
                        speeds.append(f"{count / (time.perf_counter() - started):,.0f}")
                    except UniperceptError as error:  # an extra is not installed
                        speeds.append(one_line(error))
            what = "256x256 PNG" if kind == "image" else "2 s WAV at 44.1 kHz"
            rows.append(f"| {what} | {' | '.join(speeds)} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--decode-only", action="store_true")
    parser.add_argument("--branches", action="store_true")
    arguments = parser.parse_args()
    header = "| command | modality | batch | ms a step | GPU busy ms | % | recordings/s |\n"
    header += "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    if arguments.branches:
        seed_everything(0)
        print(hardware() + "\n\n" + header)
        spec = next(task for task in TASKS if task.name == "fashion_mnist")
        for has_branches in (False, True) * 3:
            print(universal_row(spec, arguments.steps, has_branches), flush=True)
        return
    if not arguments.decode_only:
        seed_everything(0)
        print(hardware() + "\n\n" + header, flush=True)
        for modality in arguments.kinds:
            for ahead in (True, False):
                print(train_row(modality, arguments.steps, ahead), flush=True)
        for spec in TASKS:
            if spec.maps.modality in arguments.kinds and spec.name not in ("esc10", "things3d"):
                print(universal_row(spec, arguments.steps), flush=True)
        print()
    print("| decoded a second | one thread | threads | default |\n| --- | ---: | ---: | ---: |")
    print("\n".join(decoding()), flush=True)


if __name__ == "__main__":
    main()
