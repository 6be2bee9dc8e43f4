"""The `puyun` preset on a GPU: 40 steps of 721x1440 with 69 channels, network alone and with the Zarr store on disk.

    python benchmarks/weather_puyun.py --output /scratch/puyun.zarr             a 10-day forecast
    python benchmarks/weather_puyun.py --train --rollout 4                      a training step of 4 steps, checkpointed

Weights are random: figures are of speed and memory. The arithmetic floor counts two
operations for every weight and token.
"""

import argparse
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import torch

from unipercept.app.forecaster.cascade import Cascade, Stage, State
from unipercept.app.forecaster.frames import Statistics
from unipercept.app.forecaster.model import ForecastModel, new_model
from unipercept.app.forecaster.onnx_stage import global_grid
from unipercept.app.forecaster.rollout_loss import LossSettings, RolloutLoss, Window
from unipercept.app.forecaster.writer import ForecastWriter
from unipercept.pipelines.weather_fields import PUYUN69

PEAK_FLOPS = 989e12  # bf16 without sparsity, NVIDIA H200 SXM data sheet
START = np.array(["2018-01-01"], "datetime64[ns]")


def build(arguments: argparse.Namespace, device: str) -> ForecastModel:
    torch.manual_seed(0)
    names, count = PUYUN69.names, len(PUYUN69.names)
    statistics = Statistics((0.0,) * count, (1.0,) * count, (0.1,) * count)
    model = new_model("puyun", names, global_grid(arguments.rows, arguments.columns), statistics, width=arguments.width)
    return model.to(device)


def floor_flops(model: ForecastModel) -> float:
    """Of a step: every matrix weight once a token, forwards."""
    config = model.network.config
    tokens = (config.rows + sum(config.halo)) // config.patch * config.columns // config.patch
    return 2.0 * tokens * sum(p.numel() for n, p in model.network.named_parameters() if p.ndim == 4)


def forecast(arguments: argparse.Namespace, device: str) -> None:
    model = build(arguments, device).eval()
    cascade = Cascade([Stage.of(model, 20, "short"), Stage.of(model, 20, "medium")])
    state = State(torch.randn(1, 2, len(model.channels), *model.grid.shape, device=device), START)
    with torch.autocast(device, torch.bfloat16):
        for _ in cascade.run(state, 2):  # kernels are compiled and tuned
            pass
        synchronize(device)
        started = time.perf_counter()
        for _ in cascade.run(state, arguments.steps):
            pass
        synchronize(device)
        network_seconds = time.perf_counter() - started
        print(f"network alone: {network_seconds:.2f} s for {arguments.steps} steps", flush=True)
        if arguments.output is not None:
            whole_seconds = written(cascade, state, model, arguments)
            n_bytes = 4 * arguments.steps * state.latest.numel()
            print(
                f"with the store ({n_bytes / 1e9:.2f} GB): {whole_seconds:.2f} s, disk alone {disk_seconds(arguments.output, n_bytes):.2f} s"
            )
    flops = floor_flops(model) * arguments.steps
    print(f"arithmetic floor: {flops / 1e15:.3f} PFLOP, {flops / PEAK_FLOPS:.2f} s at {PEAK_FLOPS / 1e12:.0f} TFLOP/s: "
          f"{flops / PEAK_FLOPS / network_seconds:.0%} of it reached")  # fmt: skip
    memory(device)


def written(cascade: Cascade, state: State, model: ForecastModel, arguments: argparse.Namespace) -> float:
    shutil.rmtree(arguments.output, ignore_errors=True)
    started = time.perf_counter()
    leads = [6.0 * (k + 1) for k in range(arguments.steps)]
    writer = ForecastWriter(
        arguments.output, channels=model.channels, units=model.units, grid=model.grid, times=START, leads_hours=leads
    )
    for following in cascade.run(state, arguments.steps):
        writer.put(0, following.step - 1, following.latest)
    writer.close()
    return time.perf_counter() - started


def disk_seconds(beside: Path, n_bytes: int) -> float:
    """A plain file of the same size, written and flushed."""
    path, block = beside.with_suffix(".plain"), bytes(64 << 20)
    started = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(n_bytes // len(block)):
            file.write(block)
    seconds = time.perf_counter() - started
    path.unlink()
    return seconds


def train(arguments: argparse.Namespace, device: str) -> None:
    model = build(arguments, device).train()
    model.network.set_grad_checkpointing()
    loss = RolloutLoss(model, LossSettings(checkpoint=True))
    loss.length = arguments.rollout
    optimizer = torch.optim.AdamW(model.network.parameters(), lr=1e-6)
    shape = (1, 2 + arguments.rollout, len(model.channels), *model.grid.shape)
    batch = Window(
        torch.randn(shape, device=device),
        torch.zeros(1, arguments.rollout, 4, device=device),
        torch.zeros(1, arguments.rollout, 0),
    )
    for _ in range(3):
        started = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            value, _ = loss(model.network, batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(device)
        print(f"training step of rollout {arguments.rollout}: {time.perf_counter() - started:.2f} s", flush=True)
    memory(device)


def memory(device: str) -> None:
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    gpu = f"{torch.cuda.max_memory_reserved() / 2**30:.1f} GiB on the GPU, " if device == "cuda" else ""
    print(f"peak memory: {gpu}{host:.1f} GiB on the host")


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="Zarr folder to write; it is replaced")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--rollout", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rows", type=int, default=721)
    parser.add_argument("--columns", type=int, default=1440)
    parser.add_argument("--width", type=int, default=1024)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(
        f"puyun preset, width {arguments.width}, {arguments.rows}x{arguments.columns}, torch {torch.__version__}, {name}"
    )
    (train if arguments.train else forecast)(arguments, device)


if __name__ == "__main__":
    main()
