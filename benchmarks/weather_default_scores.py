"""Quick scores of the default cascade on its validation members, on the device that trained: what settings are chosen by.

    python benchmarks/weather_default_scores.py runs/default                    Short, cascade, persistence, climatology
    python benchmarks/weather_default_scores.py runs/default --ensemble 20      spread over skill for several perturbations

The published scores are those of `unipercept weather evaluate` on a test run that nothing was chosen by.

Shapes: N initial times, V channels, H rows, W columns, M members.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from weather_default import N_VALIDATION, generated

from unipercept.app.forecaster.cascade import Cascade, State
from unipercept.app.forecaster.cascade_file import load_cascade
from unipercept.app.forecaster.clock import day_fraction
from unipercept.app.forecaster.ensemble import member_generator, red_noise
from unipercept.app.forecaster.frames import Frames
from unipercept.app.forecaster.windows import StateTable
from unipercept.pipelines.weather_fields import area_weights

DAYS, STEPS_A_DAY, WINDOW_DAYS = 10, 4, 30
SHOWN = ("z500", "t850", "v500", "r500", "t2m", "msl")


class Scores:
    """Mean squares by day and channel, area weighted."""

    def __init__(self, table: StateTable, rows: Tensor) -> None:
        self.table, self.rows = table, rows
        self.sums: dict[str, Tensor] = {}

    def add(self, name: str, day: int, difference: Tensor) -> None:
        """Of NxVxHxW normalised differences."""
        value = (difference.square() * self.rows).mean(dim=(-2, -1)).sum(0).double().cpu()
        table = self.sums.setdefault(name, torch.zeros(DAYS, len(value), dtype=torch.float64))
        table[day - 1] += value

    def print(self, count: int, names: list[str], what: str) -> None:
        """Roots, in units of each channel's standard deviation."""
        channels = list(self.table.frames.channels)
        for channel in SHOWN:
            k = channels.index(channel)
            for name in names:
                values = (self.sums[name][:, k] / count).sqrt()
                print(f"{channel:<5} {what} {name:<22}" + "".join(f"{v:8.4f}" for v in values))


def climatology(table: StateTable, n_train: int) -> Tensor:
    """4x366xVxHxW means of hour and day, smoothed over 61 days; normalised."""
    times = table.frames.times[:n_train]
    day = (times.astype("datetime64[D]") - times.astype("datetime64[Y]")).astype(int)
    slot = torch.from_numpy((day_fraction(times) * 4).round().astype(int) * 366 + day).to(table.device)
    sums = torch.zeros(4 * 366, *table.states.shape[1:], device=table.device)
    counts = torch.zeros(4 * 366, device=table.device)
    for start in range(0, n_train, 2000):
        sums.index_add_(0, slot[start : start + 2000], table.states[start : min(start + 2000, n_train)])
    counts.index_add_(0, slot, torch.ones(n_train, device=table.device))
    sums, counts = sums.view(4, 366, *sums.shape[1:]), counts.view(4, 366)
    total, weight = torch.zeros_like(sums), torch.zeros_like(counts)
    for offset in range(-WINDOW_DAYS, WINDOW_DAYS + 1):
        share = 1 - abs(offset) / WINDOW_DAYS
        total += share * sums.roll(offset, 1)
        weight += share * counts.roll(offset, 1)
    return total / weight[..., None, None, None]


def climate_at(climate: Tensor, times: np.ndarray) -> Tensor:
    day = (times.astype("datetime64[D]") - times.astype("datetime64[Y]")).astype(int)
    return climate[(day_fraction(times) * 4).round().astype(int), day]


def runs(
    cascade: Cascade, table: StateTable, numbers: np.ndarray, change: Tensor | None = None
) -> Iterator[tuple[int, Tensor]]:
    """(day, normalised states) of forecasts from the states of these numbers; with `change` (MxVxHxW) M members of each, NxMxVxHxW."""
    at = torch.from_numpy(numbers).to(table.device)
    frames = torch.stack([table.states[at - 1], table.states[at]], dim=1)
    times = table.frames.times[numbers]
    if change is not None:
        frames = (frames[:, None] + change[None, :, None]).flatten(0, 1)
        times = np.repeat(times, len(change))
    for state in cascade.run(State(frames * table.std + table.mean, times), DAYS * STEPS_A_DAY):
        if state.step % STEPS_A_DAY == 0:
            found = (state.latest - table.mean) / table.std
            yield (
                state.step // STEPS_A_DAY,
                found if change is None else found.unflatten(0, (len(numbers), len(change))),
            )


def deterministic(
    table: StateTable, rows: Tensor, numbers: np.ndarray, n_train: int, cascades: dict[str, Cascade]
) -> None:
    scores, climate = Scores(table, rows), climatology(table, n_train)
    activity = Scores(table, rows)
    for first in range(0, len(numbers), 128):
        part = numbers[first : first + 128]
        for name, cascade in cascades.items():
            for day, states in runs(cascade, table, part):
                valid = part + day * STEPS_A_DAY
                truth = table.states[torch.from_numpy(valid).to(table.device)]
                known = climate_at(climate, table.frames.times[valid])
                scores.add(name, day, states - truth)
                activity.add(name, day, states - known)
                if name == "cascade":
                    scores.add("persistence", day, table.states[torch.from_numpy(part).to(table.device)] - truth)
                    scores.add("climatology", day, known - truth)
                    activity.add("truth", day, truth - known)
    scores.print(len(numbers), [*cascades, "persistence", "climatology"], "rmse")
    activity.print(len(numbers), [*cascades, "truth"], "activity")


def ensembles(
    table: StateTable, rows: Tensor, numbers: np.ndarray, cascades: dict[str, Cascade], arguments: argparse.Namespace
) -> None:
    for length in arguments.lengths:
        noise = torch.stack([red_noise(table.states.shape[1], table.frames.grid, member_generator(0, m), length)
                             for m in range(arguments.ensemble)]).to(table.device)  # fmt: skip
        noise[0] = 0
        for amplitude in arguments.amplitudes:
            for name, cascade in cascades.items():
                spread, skill = Scores(table, rows), Scores(table, rows)
                for first in range(0, len(numbers), 16):
                    part = numbers[first : first + 16]
                    for day, states in runs(cascade, table, part, amplitude * noise):
                        truth = table.states[torch.from_numpy(part + day * STEPS_A_DAY).to(table.device)]
                        spread.add("x", day, states.std(dim=1))
                        skill.add("x", day, states.mean(dim=1) - truth)
                ratio = (spread.sums["x"] / skill.sums["x"]).sqrt()
                chosen = ratio[:, [list(table.frames.channels).index(c) for c in SHOWN]]
                print(f"{name:<8} length {length:g} km amplitude {amplitude:<6g} all "
                      + "".join(f"{v:6.2f}" for v in (spread.sums['x'].mean(1) / skill.sums['x'].mean(1)).sqrt())
                      + "  low " + "".join(f"{v:6.2f}" for v in chosen.amin(1)) + "  high " + "".join(f"{v:6.2f}" for v in chosen.amax(1)),
                      flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--members", type=int, default=30)
    parser.add_argument("--days", type=int, default=220)
    parser.add_argument("--every", type=int, default=6, help="states between two initial times")
    parser.add_argument("--ensemble", type=int, default=0)
    parser.add_argument("--amplitudes", type=float, nargs="+", default=[0.02, 0.05, 0.1])
    parser.add_argument("--lengths", type=float, nargs="+", default=[1000.0])
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cascades = {
        "cascade": load_cascade(arguments.run, device),
        "short": load_cascade(arguments.run / "short.safetensors", device),
    }
    frames = Frames(generated(arguments.data or arguments.run / "data", arguments.members, arguments.days, 1))
    model = cascades["short"].model(0)
    table = StateTable(frames, model, device)
    rows = torch.as_tensor(area_weights(np.asarray(frames.grid.latitude)), dtype=torch.float32, device=device)[:, None]
    n_member = len(frames) // arguments.members
    n_train = n_member * (arguments.members - N_VALIDATION)
    starts = [n_train + k * n_member + i for k in range(N_VALIDATION)
              for i in range(1, n_member - DAYS * STEPS_A_DAY, arguments.every)]  # fmt: skip
    numbers = np.array(starts)
    print(
        f"{len(numbers)} initial times of the validation members; columns: days 1 to {DAYS}; units: standard deviations"
    )
    if arguments.ensemble:
        ensembles(table, rows, numbers, cascades, arguments)
    else:
        deterministic(table, rows, numbers, n_train, cascades)


if __name__ == "__main__":
    main()
