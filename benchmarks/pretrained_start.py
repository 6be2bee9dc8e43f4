"""What the pretrained start is worth on short histories: stretches of real series that no weight was trained on.

    python benchmarks/pretrained_start.py DATA [--weights FILE] [--rows 60 120 240]

Stretches of 60, 120 and 240 rows are drawn from all rows of ETTh1, ETTh2, Weather (each hour) and Exchange; the next 24
are forecast, a variable at a time. Errors are mean absolute ones over the naive one-cycle difference of the history
(MASE), averaged over stretches.
"""

import argparse
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch

from unipercept.datasets import dataset
from unipercept.forecasting.ets import Ets
from unipercept.forecasting.learner import NetworkForecaster
from unipercept.forecasting.pretrained import Pretrained
from unipercept.forecasting.scores import MEDIAN
from unipercept.forecasting.settings import ForecastConfig
from unipercept.forecasting.theta import Theta

# Set: folder, rows a step, period.
SETS = {
    "etth1": ("ett", 1, 24),
    "etth2": ("ett", 1, 24),
    "weather_jena": ("weather_jena", 6, 24),
    "exchange_rate": ("exchange_rate", 1, 7),
}
HORIZON = 24


def stretches(data: Path, rows: int, count: int, seed: int) -> list[tuple[str, int, np.ndarray, np.ndarray]]:
    """Set, period, history and what followed; constant histories are passed over."""
    rng, found = np.random.default_rng(seed), []
    for name, (folder, step, period) in SETS.items():
        values = dataset(name, str(data / folder)).values.astype(np.float64)[::step]
        drawn = 0
        while drawn < count:
            first, variable = int(rng.integers(len(values) - rows - HORIZON)), int(rng.integers(values.shape[1]))
            part = values[first : first + rows + HORIZON, variable]
            if part[:rows].std() > 1e-3 and np.abs(part[period:rows] - part[: rows - period]).mean() > 1e-3:
                found.append((name, period, part[:rows], part[rows:]))
                drawn += 1
    return found


def errors(
    forecast: np.ndarray, levels: np.ndarray | None, truth: np.ndarray, history: np.ndarray, period: int
) -> tuple[float, float]:
    """MASE, and whether the 80 % interval held, as a share."""
    scale = np.abs(history[period:] - history[:-period]).mean()
    held = np.nan if levels is None else float(((levels[:, 1] <= truth) & (truth <= levels[:, -2])).mean())
    return float(np.abs(forecast - truth).mean() / scale), held


def forecast(
    method: str, history: np.ndarray, period: int, seconds: float, weights: Path | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """HORIZON points after the history, and HORIZONxQ quantiles of a method that gives them."""
    if method == "last cycle":
        return history[-period:][np.arange(HORIZON) % period], None
    if method in ("from scratch", "pretrained"):
        if method == "pretrained":
            known = Pretrained(period, "cpu", weights)
            levels = known.predict(history[:, None], [len(history)], HORIZON)[0, :, 0]
        else:
            model = NetworkForecaster(ForecastConfig()).fit(
                history[:, None], HORIZON, period=period, device="cpu", seconds=seconds
            )
            levels = model.predict(history[None, :, None], HORIZON)[0, :, 0]
        return levels[:, MEDIAN], levels
    plain, unit = Ets(period) if method == "ETS" else Theta(period), history.std()
    scaled = ((history - history.mean()) / unit)[:, None]
    plain.fit(scaled, HORIZON, seconds)
    return plain.predict(scaled, [len(history)], HORIZON)[0, :, 0] * unit + history.mean(), None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, help="other weights than those of the package")
    parser.add_argument("--rows", type=int, nargs="+", default=[60, 120, 240])
    parser.add_argument("--count", type=int, default=10, help="stretches a set and length")
    parser.add_argument("--seconds", type=float, default=15, help="of a fit, at most")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"CPU, {os.cpu_count()} cores, one thread; torch {torch.__version__}, Python {platform.python_version()}\n")
    print(
        "| rows | method | "
        + " | ".join(SETS)
        + " | all | 80 % covers | s |\n| ---: | --- | "
        + "---: | " * (len(SETS) + 3),
        flush=True,
    )
    for rows in arguments.rows:
        drawn = stretches(arguments.data, rows, arguments.count, arguments.seed + rows)
        for method in ("last cycle", "theta", "ETS", "from scratch", "pretrained"):
            by_set: dict[str, list[tuple[float, float]]] = {name: [] for name in SETS}
            began = time.perf_counter()
            for name, period, history, truth in drawn:
                point, levels = forecast(method, history, period, arguments.seconds, arguments.weights)
                by_set[name].append(errors(point, levels, truth, history, period))
            seconds = (time.perf_counter() - began) / len(drawn)
            each = [np.mean([e for e, _ in by_set[name]]) for name in SETS]
            kept = [h for part in by_set.values() for _, h in part if np.isfinite(h)]
            held = f"{100 * np.mean(kept):.0f}" if kept else ""
            print(
                f"| {rows} | {method} | "
                + " | ".join(f"{e:.3f}" for e in each)
                + f" | {np.mean(each):.3f} | {held} | {seconds:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
