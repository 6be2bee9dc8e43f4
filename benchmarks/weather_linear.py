"""Linear regression as a forecaster: from the two states that the network sees to the state at each lead, ridge on principal components.

    python benchmarks/weather_linear.py climate.zarr test.zarr -o linear.zarr --from 2090-01 --to 2090-12-20 --every 72

Predictors are the leading components of the normalised states at t - 6 h and t, season and hour (sines and cosines) and a constant;
predicted are the components at t + lead, by a regression of its own for each lead. What the components leave out is carried on,
damped by a factor fitted for each lead and channel. The penalty of each lead is the one of eight that
does best on the last tenth of the training period. The store is scored by `unipercept weather evaluate` like any other forecast.

Shapes: N states, D cells of all channels, K components, P predictors.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unipercept.app.forecaster.cli_network import _initial_times
from unipercept.app.forecaster.clock import seasonal
from unipercept.app.forecaster.frames import Frames
from unipercept.app.forecaster.writer import ForecastWriter

LEADS_HOURS = (6, 12, 24, 48, 72, 96, 120, 144, 168, 192, 216, 240)
PENALTIES = tuple(10.0**k for k in range(-5, 3))  # shares of the predictors' mean square
HELD_OUT = 0.1


class LinearForecaster:
    """Ridge regression for each lead, fitted on the states of a source.

    Args:
        frames: the training period, 6-hourly without gaps.
        n_components: K.
        leads: in states of the source.
    """

    def __init__(self, frames: Frames, n_components: int, leads: list[int]) -> None:
        statistics = frames.statistics(slice(None), frames.step_hours())
        self.mean, self.std = (torch.tensor(v)[:, None, None].float() for v in (statistics.mean, statistics.std))
        states = self._normalised(frames, range(len(frames)))
        self.centre = states.mean(dim=0)
        states -= self.centre
        some = states[:: max(len(states) // 3000, 1)]
        # Components of fewer states than cells come from the small matrix of their products.
        values, vectors = torch.linalg.eigh(some @ some.T)
        values, vectors = values.flip(0)[:n_components], vectors.flip(1)[:, :n_components]
        self.basis = (some.T @ vectors) / values.clamp(min=1e-6).sqrt()  # DxK
        self.kept = float(values.sum() / some.square().sum())
        components = states @ self.basis
        states -= components @ self.basis.T
        self.damping = {lead: self._damping(states, lead, len(frames.channels)) for lead in leads}
        del states
        x = self._predictors(components[:-1], components[1:], frames.times[1:])
        self.coefficients, self.penalties = {}, {}
        for lead in leads:
            y = components[1 + lead :]
            self.coefficients[lead], self.penalties[lead] = ridge(x[: len(y)].double(), y.double())

    def __call__(self, frames: Frames, number: int, lead: int) -> Tensor:
        """VxHxW: the state `lead` states after number `number` of a source."""
        states = self._normalised(frames, [number - 1, number]) - self.centre
        before, now = states @ self.basis
        rest = (states[1] - now @ self.basis.T).reshape(-1, *frames.grid.shape) * self.damping[lead][:, None, None]
        x = self._predictors(before[None], now[None], frames.times[number : number + 1])
        field = (x.double() @ self.coefficients[lead]).float() @ self.basis.T + self.centre
        return (field.reshape(-1, *frames.grid.shape) + rest) * self.std + self.mean

    @staticmethod
    def _damping(rest: Tensor, lead: int, n_channels: int) -> Tensor:
        """V factors: least squares of the rest `lead` states later on the rest now, on every fifth state."""
        now, later = (part[::5].unflatten(1, (n_channels, -1)) for part in (rest[:-lead], rest[lead:]))
        return (now * later).sum(dim=(0, 2)) / now.square().sum(dim=(0, 2))

    def _normalised(self, frames: Frames, numbers: range | list[int]) -> Tensor:
        """NxD."""
        blocks = [numbers[i : i + 200] for i in range(0, len(numbers), 200)]
        return torch.cat([((torch.from_numpy(frames.read(b)) - self.mean) / self.std).flatten(1) for b in blocks])

    @staticmethod
    def _predictors(before: Tensor, now: Tensor, times: NDArray[np.datetime64]) -> Tensor:
        return torch.cat([before, now, seasonal(times), torch.ones(len(now), 1)], dim=1)


def ridge(x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """Coefficients PxK of the penalty that does best on the last tenth, refitted on all; and that penalty."""
    n_train = round(len(x) * (1 - HELD_OUT))
    gram, cross = x[:n_train].T @ x[:n_train], x[:n_train].T @ y[:n_train]
    scale, eye = gram.diagonal().mean(), torch.eye(len(gram), dtype=gram.dtype)
    errors = []
    for penalty in PENALTIES:
        found = torch.linalg.solve(gram + penalty * scale * eye, cross)
        errors.append(float((x[n_train:] @ found - y[n_train:]).square().mean()))
    best = PENALTIES[int(np.argmin(errors))]
    gram, cross = x.T @ x, x.T @ y
    return torch.linalg.solve(gram + best * gram.diagonal().mean() * eye, cross), best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--from", dest="first")
    parser.add_argument("--to", dest="last")
    parser.add_argument("--every", type=float, default=72.0)
    parser.add_argument("--components", type=int, default=800)
    arguments = parser.parse_args()
    frames, test = Frames(arguments.train), Frames(arguments.test)
    leads = [round(hours / frames.step_hours()) for hours in LEADS_HOURS]
    model = LinearForecaster(frames, arguments.components, leads)
    print(
        f"{arguments.components} components hold {model.kept:.1%} of the variance; penalties {model.penalties}",
        flush=True,
    )
    times = _initial_times(test, None, arguments.first, arguments.last, arguments.every)
    times = [time for time in times if test.at(time) > 0]
    writer = ForecastWriter(
        arguments.output, channels=frames.channels, units=frames.units, grid=frames.grid, times=times, leads_hours=LEADS_HOURS,
        attributes={"model": f"ridge regression on {arguments.components} principal components"},
    )  # fmt: skip
    for i, time in enumerate(times):
        for k, lead in enumerate(leads):
            writer.put(i, k, model(test, test.at(time), lead)[None])
    writer.close()
    print(arguments.output)


if __name__ == "__main__":
    main()
