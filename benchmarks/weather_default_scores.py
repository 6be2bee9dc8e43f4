"""Scores of the default cascade on members that did not train it, on the device that trained, in minutes.

    python benchmarks/weather_default_scores.py runs/default                  validation members: what settings are chosen by
    python benchmarks/weather_default_scores.py runs/default --test           test members: the published table
    python benchmarks/weather_default_scores.py runs/default --ensemble 20    spread over skill for several perturbations

Beside Short and the cascade stand persistence, the climatology of the training members (61-day triangle) and linear regression
(weather_linear.py). All figures are area-weighted root mean squares in units of each channel's standard deviation.

Shapes: N initial times, V channels, H rows, W columns, M members.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from weather_default import N_TEST, N_VALIDATION, generated
from weather_linear import LinearForecaster

from unipercept.app.forecaster.cascade import Cascade, State
from unipercept.app.forecaster.cascade_file import load_cascade
from unipercept.app.forecaster.clock import day_fraction
from unipercept.app.forecaster.ensemble import member_generator, red_noise
from unipercept.app.forecaster.frames import Frames
from unipercept.app.forecaster.windows import StateTable
from unipercept.pipelines.weather_fields import area_weights

STEPS, WINDOW_DAYS = 40, 30
SHOWN_STEPS = (1, 2, *range(4, STEPS + 1, 4))
ENSEMBLE_STEPS = (1, *range(4, 41, 4))


class Sums:
    """Sums of squares by name, step and channel."""

    def __init__(self, table: StateTable) -> None:
        self.table = table
        rows = torch.as_tensor(area_weights(np.asarray(table.frames.grid.latitude)), dtype=torch.float32)
        self.rows = rows.to(table.device)[:, None]
        self.sums: dict[str, dict[int, NDArray[np.float64]]] = {}

    def add(self, name: str, step: int, difference: Tensor) -> None:
        """Of NxVxHxW differences, or N x M such."""
        squares = (difference.square() * self.rows).mean(dim=(-2, -1))
        value = squares.flatten(0, -2).double().sum(0).cpu().numpy()
        steps = self.sums.setdefault(name, {})
        steps[step] = steps.get(step, 0.0) + value

    def roots(self, name: str, count: int) -> NDArray[np.float64]:
        """Steps x V."""
        return np.sqrt(np.stack([self.sums[name][step] for step in sorted(self.sums[name])]) / count)


class Data:
    """The members' states on the device, and which of them are for what."""

    def __init__(self, arguments: argparse.Namespace, cascade: Cascade, device: str) -> None:
        members = generated(
            arguments.data or arguments.run / "data", arguments.first_member, arguments.members, arguments.days, 1
        )
        self.table = StateTable(Frames(members), cascade.model(0), device)
        self.n_member = len(self.table.frames) // arguments.members
        self.n_train = self.n_member * (arguments.members - N_VALIDATION - N_TEST)
        first, count = (self.n_train, N_VALIDATION)
        if arguments.test:
            first, count = self.n_train + N_VALIDATION * self.n_member, N_TEST
        starts = range(1, self.n_member - STEPS, arguments.every)
        self.numbers = np.array([first + member * self.n_member + i for member in range(count) for i in starts])

    def states(self, numbers: NDArray[np.int64]) -> Tensor:
        """NxVxHxW, normalised."""
        return self.table.states[torch.from_numpy(numbers).to(self.table.device)]

    def runs(
        self, cascade: Cascade, numbers: NDArray[np.int64], change: Tensor | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """(step, NxVxHxW) of forecasts from these states; with `change` (MxVxHxW) M members of each, NxMxVxHxW."""
        table = self.table
        frames, times = (
            torch.stack([self.states(numbers - 1), self.states(numbers)], dim=1),
            table.frames.times[numbers],
        )
        if change is not None:
            frames = (frames[:, None] + change[None, :, None]).flatten(0, 1)
            times = np.repeat(times, len(change))
        for state in cascade.run(State(frames * table.std + table.mean, times), STEPS):
            found = (state.latest - table.mean) / table.std
            yield state.step, found if change is None else found.unflatten(0, (len(numbers), len(change)))

    def climatology(self) -> Tensor:
        """4x366xVxHxW means of hour and day over the training members, smoothed."""
        slot = torch.from_numpy(_slots(self.table.frames.times[: self.n_train])).to(self.table.device)
        sums = torch.zeros(4 * 366, *self.table.states.shape[1:], device=self.table.device)
        counts = torch.zeros(4 * 366, device=self.table.device)
        for first in range(0, self.n_train, 2000):
            part = slice(first, min(first + 2000, self.n_train))
            sums.index_add_(0, slot[part], self.table.states[part])
        counts.index_add_(0, slot, torch.ones_like(slot, dtype=torch.float32))
        sums, counts = sums.unflatten(0, (4, 366)), counts.view(4, 366)
        total, weight = torch.zeros_like(sums), torch.zeros_like(counts)
        for offset in range(-WINDOW_DAYS, WINDOW_DAYS + 1):
            share = 1 - abs(offset) / WINDOW_DAYS
            total += share * sums.roll(offset, 1)
            weight += share * counts.roll(offset, 1)
        return (total / weight[..., None, None, None]).flatten(0, 1)


def deterministic(data: Data, cascades: dict[str, Cascade], components: int) -> None:
    table, climate = data.table, data.climatology()
    segments = [*range(data.n_member, data.n_train + 1, data.n_member)]
    linear = LinearForecaster(
        table.states[: data.n_train], table.season[: data.n_train], segments, components, list(SHOWN_STEPS)
    )
    print(f"{components} components hold {linear.kept:.2%} of the variance; penalties {linear.penalties}")
    errors, activity = Sums(table), Sums(table)
    for first in range(0, len(data.numbers), 128):
        part = data.numbers[first : first + 128]
        before, now = data.states(part - 1), data.states(part)
        season = table.season[torch.from_numpy(part).to(table.device)]
        for name, cascade in cascades.items():
            for step, found in data.runs(cascade, part):
                if step in SHOWN_STEPS:
                    known = climate[torch.from_numpy(_slots(table.frames.times[part + step])).to(table.device)]
                    errors.add(name, step, found - data.states(part + step))
                    activity.add(name, step, found - known)
        for step in SHOWN_STEPS:
            truth = data.states(part + step)
            known = climate[torch.from_numpy(_slots(table.frames.times[part + step])).to(table.device)]
            errors.add("linear regression", step, linear(before, now, season, step) - truth)
            errors.add("persistence", step, now - truth)
            errors.add("climatology", step, known - truth)
            activity.add("truth", step, truth - known)
    count, channels = len(data.numbers), table.frames.channels
    print("hours " + " ".join(f"{6 * step}" for step in SHOWN_STEPS))
    for what, sums in (("rmse", errors), ("activity", activity)):
        for name in sums.sums:
            roots = sums.roots(name, count)
            print(f"{what} {name}: all " + " ".join(f"{v:.4f}" for v in np.sqrt((roots**2).mean(1))))
            for k, channel in enumerate(channels):
                print(f"{what} {name}: {channel} " + " ".join(f"{v:.4f}" for v in roots[:, k]))
    _verdict(errors, count, channels)


def _verdict(errors: Sums, count: int, channels: tuple[str, ...]) -> None:
    """For each rival, the channels and hours at which the cascade is not better."""
    ours = errors.roots("cascade", count)
    for rival in errors.sums:
        if rival != "cascade":
            lost = np.argwhere(errors.roots(rival, count) <= ours)
            named = [f"{channels[k]}@{6 * SHOWN_STEPS[i]}" for i, k in lost]
            print(f"verdict cascade against {rival}: not better at {len(named)} of {ours.size}: {' '.join(named)}")


def ensembles(data: Data, cascades: dict[str, Cascade], arguments: argparse.Namespace) -> None:
    table = data.table
    for length in arguments.lengths:
        noise = torch.stack([red_noise(len(table.frames.channels), table.frames.grid, member_generator(0, m), length)
                             for m in range(arguments.ensemble)]).to(table.device)  # fmt: skip
        noise[0] = 0  # member 0 is the analysis itself
        for amplitude in arguments.amplitudes:
            for name, cascade in cascades.items():
                spread, skill = Sums(table), Sums(table)
                for first in range(0, len(data.numbers), 16):
                    part = data.numbers[first : first + 16]
                    for step, found in data.runs(cascade, part, amplitude * noise):
                        if step in ENSEMBLE_STEPS:
                            spread.add("x", step, found.std(dim=1))
                            skill.add("x", step, found.mean(dim=1) - data.states(part + step))
                over, under = spread.roots("x", len(data.numbers)), skill.roots("x", len(data.numbers))
                ratio = over / under
                total = np.sqrt((over**2).mean(1) / (under**2).mean(1))
                print(
                    f"spread/skill {name} {length:g} km amplitude {amplitude:g}: all "
                    + " ".join(f"{v:.2f}" for v in total)
                )
                for k in [list(table.frames.channels).index(c) for c in ("z500", "t850", "v500", "r500", "t2m", "msl")]:
                    print(f"    {table.frames.channels[k]:<5} " + " ".join(f"{v:.2f}" for v in ratio[:, k]), flush=True)


def _slots(times: NDArray[np.datetime64]) -> NDArray[np.int64]:
    """Which of 4 x 366 hours and days each time is."""
    day = (times.astype("datetime64[D]") - times.astype("datetime64[Y]")).astype(np.int64)
    return np.asarray((day_fraction(times) * 4).round().astype(np.int64) * 366 + day)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--members", type=int, default=34)
    parser.add_argument("--days", type=int, default=180)
    parser.add_argument("--first-member", type=int, default=0)
    parser.add_argument("--also", type=Path, help="another run, scored beside this one")
    parser.add_argument("--test", action="store_true", help="the test members instead of those that validate")
    parser.add_argument("--every", type=int, default=4, help="states between two initial times")
    parser.add_argument("--components", type=int, default=1200, help="of the linear regression")
    parser.add_argument("--ensemble", type=int, default=0, help="members")
    parser.add_argument("--amplitudes", type=float, nargs="+", default=[0.03, 0.06, 0.12])
    parser.add_argument("--lengths", type=float, nargs="+", default=[1000.0])
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cascades = {
        "cascade": load_cascade(arguments.run, device),
        "short": load_cascade(arguments.run / "short.safetensors", device),
    }
    data = Data(arguments, cascades["short"], device)
    if arguments.also is not None:
        cascades["other cascade"] = load_cascade(arguments.also, device)
        cascades["other short"] = load_cascade(arguments.also / "short.safetensors", device)
    print(f"{len(data.numbers)} initial times of the {'test' if arguments.test else 'validation'} members")
    if arguments.ensemble:
        ensembles(data, cascades, arguments)
    else:
        deterministic(data, cascades, arguments.components)


if __name__ == "__main__":
    main()
