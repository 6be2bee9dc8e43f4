"""How fast the tiny weather network trains: updates that wait for the host, and updates of a GPU that
runs ahead, beside the floors.

    python benchmarks/weather_training.py --batch-size 32
    python benchmarks/weather_training.py --rollout 4 --compile --profile

States are random: figures are of speed. The floors are of an update: two operations for each weight and
cell, forwards once and backwards twice; and the maps between two operations, each written and read once
forwards and twice that backwards.
"""

import argparse
import time
from contextlib import nullcontext

import numpy as np
import torch
import xarray as xr

from unipercept.app.forecaster.frames import Frames
from unipercept.app.forecaster.generate import GenerateConfig, member_dataset
from unipercept.app.forecaster.model import ForecastModel, new_model
from unipercept.app.forecaster.rollout_loss import LossSettings, RolloutLoss
from unipercept.app.forecaster.training import collate
from unipercept.app.forecaster.windows import StateTable, TableWindows, Windows
from unipercept.train import Progress, TrainConfig, fit

PEAK_FLOPS, PEAK_BYTES = 989e12, 4.8e12  # bf16 and memory, NVIDIA H200 SXM data sheet


def source(n_states: int) -> Frames:
    """Random numbers with the generated weather's names, grid and units."""
    random, day = np.random.default_rng(0), member_dataset(GenerateConfig(days=1, spin_up_days=0))
    data = {
        name: (v.dims, random.standard_normal((n_states, *v.shape[1:]), np.float32), v.attrs)
        for name, v in day.data_vars.items()
    }
    coordinates = {name: day[name] for name in ("level", "latitude", "longitude")}
    times = np.datetime64("2000-01-01", "ns") + np.arange(n_states) * np.timedelta64(6, "h")
    return Frames(xr.Dataset(data, {"time": times, **coordinates}))


def floors(model: ForecastModel, batch_size: int, rollout: int) -> tuple[float, float]:
    """Operations and bytes of an update."""
    config = model.network.config
    cells = config.rows * config.columns * batch_size * rollout
    flops = 3 * 2.0 * cells * sum(p.numel() for p in model.network.parameters() if p.ndim == 4)
    maps = sum(config.groups) * config.width * (11 + 3 * config.ratio)
    return flops, 6 * 2.0 * maps * cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rollout", type=int, default=1)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--precision", default="bf16", choices=["float32", "bf16"])
    parser.add_argument("--states", type=int, default=800)
    parser.add_argument("--waiting", action="store_true", help="a loader, and a look at the loss of each update")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true", help="the kernels that take longest")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    frames = source(arguments.states)
    model = new_model("tiny", frames.channels, frames.grid, frames.statistics(slice(None), 6), width=arguments.width,
                      solar=True, drop_path_rate=0.0)  # fmt: skip
    loss = RolloutLoss(model, LossSettings(checkpoint=False))
    loss.length = arguments.rollout
    windows = Windows(frames, model, arguments.rollout)
    starts = windows.starts[: len(windows) // arguments.batch_size * arguments.batch_size]  # whole batches
    data = (
        windows
        if arguments.waiting
        else TableWindows(StateTable(frames, model, device), model, arguments.rollout, starts)
    )
    marks: list[tuple[int, float]] = []

    def mark(progress: Progress) -> None:
        if progress.step in (10, arguments.updates):
            if device == "cuda":
                torch.cuda.synchronize()
            marks.append((progress.step, time.perf_counter()))

    config = TrainConfig(
        steps=arguments.updates, batch_size=arguments.batch_size, precision=arguments.precision, log_every=100, clip_gradient_norm=1.0,
        ema_decay=0.999, run_ahead=not arguments.waiting, compile=arguments.compile, device=device, checkpoint_every=10**9,
    )  # fmt: skip
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) if arguments.profile else nullcontext() as profile:
        fit(model.network, None, data, loss=loss, config=config, collate=collate, on_progress=mark)
    (first, begun), (last, ended) = marks
    seconds = (ended - begun) / (last - first)
    flops, n_bytes = floors(model, arguments.batch_size, arguments.rollout)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{vars(arguments)} on {name}, torch {torch.__version__}")
    print(f"{1e3 * seconds:.2f} ms an update, {arguments.batch_size / seconds:.0f} windows/s; floors: {flops / 1e12:.3f} TFLOP "
          f"{1e3 * flops / PEAK_FLOPS:.2f} ms, {n_bytes / 1e9:.2f} GB {1e3 * n_bytes / PEAK_BYTES:.2f} ms: "
          f"{max(flops / PEAK_FLOPS, n_bytes / PEAK_BYTES) / seconds:.0%} reached", flush=True)  # fmt: skip
    if profile is not None:
        print(profile.key_averages().table(sort_by="cuda_time_total", row_limit=25, max_name_column_width=70))


if __name__ == "__main__":
    main()
