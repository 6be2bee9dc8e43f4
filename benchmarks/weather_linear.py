"""Linear regression as a forecaster: what the network has to beat. Its forecasts are a store beside the network's own.

    python benchmarks/weather_linear.py forecast.zarr --analyses test.zarr --data runs/default/data -o linear.zarr
    unipercept weather evaluate forecast.zarr linear.zarr --truth test.zarr --climate-of climate.zarr

From the two states that the network sees to the state at each lead, by ridge regression on principal components.
Predictors are the leading components of the normalised states at t - 6 h and t, season and hour (sines and cosines) and
a constant; predicted are the components at t + lead, by a regression of its own for each lead. What the components
leave out is carried on, damped by a factor fitted for each lead and channel. Season, hour and constant go without
penalty, so that where nothing can be known the forecast is a climatology; the penalty of each lead is the one of ten
that does best on the last tenth of the training states. It learns from the members that trained the network
(weather_default.py), and forecasts from the initial times of forecast.zarr.

Shapes: N states, V channels, H rows, W columns, K components, P predictors.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from weather_default import N_TRAIN, generated

from unipercept.app.forecaster.clock import seasonal
from unipercept.app.forecaster.fields import open_fields
from unipercept.app.forecaster.frames import Frames
from unipercept.app.forecaster.writer import ForecastWriter

LEADS_HOURS = (6, 12, *range(24, 241, 24))
STATE_HOURS = 6
PENALTIES = tuple(10.0**k for k in range(-6, 4))  # shares of the predictors' mean square
HELD_OUT = 0.1
FOR_COMPONENTS = 4000  # states that the components are taken from


class LinearForecaster:
    """Ridge regression for each lead.

    Args:
        states: NxVxHxW normalised, of the training period, evenly spaced but for gaps.
        season: Nx4, see `clock.seasonal`.
        segments: numbers of the first state after each gap, and N: no pair crosses one.
        n_components: K.
        leads: in states.
    """

    def __init__(
        self, states: Tensor, season: Tensor, segments: list[int], n_components: int, leads: list[int]
    ) -> None:
        self.shape = states.shape[1:]
        self.centre = states.mean(dim=0)
        some = (states[:: max(len(states) // FOR_COMPONENTS, 1)] - self.centre).flatten(1)
        # Components of fewer states than cells come from the small matrix of their products.
        values, vectors = torch.linalg.eigh((some @ some.T).double())
        values, vectors = values.flip(0)[:n_components], vectors.flip(1)[:, :n_components]
        self.basis = (some.T @ vectors.float()) / values.clamp(min=1e-6).sqrt().float()  # VHW x K
        self.kept = float(values.sum() / some.double().square().sum())
        del some
        components = torch.cat([self._components(part) for part in states.split(2000)])
        predictors = self._predictors(components[:-1], components[1:], season[1:])
        number = torch.arange(1, len(states))
        segment = torch.bucketize(torch.arange(len(states)), torch.tensor(segments), right=True)
        self.coefficients: dict[int, Tensor] = {}
        self.penalties: dict[int, float] = {}
        self.damping: dict[int, Tensor] = {}
        for lead in leads:
            at = number[: len(number) - lead]
            at = at[segment[at - 1] == segment[at + lead]].to(states.device)
            x, y = predictors[at - 1].double(), components[at + lead].double()
            self.coefficients[lead], self.penalties[lead] = ridge(x, y, 2 * n_components)
            self.damping[lead] = self._damping(states, at[::10], lead)

    def __call__(self, before: Tensor, now: Tensor, season: Tensor, lead: int) -> Tensor:
        """BxVxHxW states at t - 6 h and t, and Bx4 of t, to BxVxHxW `lead` states later."""
        earlier, latest = self._components(before), self._components(now)
        x = self._predictors(earlier, latest, season).double()
        found = ((x @ self.coefficients[lead]).float() @ self.basis.T).unflatten(1, self.shape)
        return found + self.centre + self._rest(now, latest) * self.damping[lead][:, None, None]

    def _components(self, states: Tensor) -> Tensor:
        return (states - self.centre).flatten(1) @ self.basis

    def _rest(self, states: Tensor, components: Tensor) -> Tensor:
        return states - self.centre - (components @ self.basis.T).unflatten(1, self.shape)

    @staticmethod
    def _predictors(before: Tensor, now: Tensor, season: Tensor) -> Tensor:
        return torch.cat([before, now, season, torch.ones_like(season[:, :1])], dim=1)

    def _damping(self, states: Tensor, at: Tensor, lead: int) -> Tensor:
        """V factors: least squares of the rest `lead` states later on the rest now."""
        top, below = torch.zeros(2, self.shape[0], device=states.device)
        for part in at.split(500):
            now, later = (self._rest(s, self._components(s)) for s in (states[part], states[part + lead]))
            top, below = top + (now * later).sum(dim=(0, 2, 3)), below + now.square().sum(dim=(0, 2, 3))
        return top / below


def ridge(x: Tensor, y: Tensor, penalised: int) -> tuple[Tensor, float]:
    """Coefficients PxK of the penalty that does best on the last tenth, refitted on all; and that penalty.

    Args:
        penalised: how many predictors, from the first, the penalty is on.
    """
    is_penalised = (torch.arange(x.shape[1], device=x.device) < penalised).to(x.dtype)

    def solved(gram: Tensor, cross: Tensor, penalty: float) -> Tensor:
        scale = gram.diagonal()[:penalised].mean()
        return torch.linalg.solve(gram + torch.diag(penalty * scale * is_penalised), cross)

    n_train = round(len(x) * (1 - HELD_OUT))
    gram, cross = x[:n_train].T @ x[:n_train], x[:n_train].T @ y[:n_train]
    errors = [float((x[n_train:] @ solved(gram, cross, p) - y[n_train:]).square().mean()) for p in PENALTIES]
    best = PENALTIES[int(np.argmin(errors))]
    return solved(x.T @ x, x.T @ y, best), best


def fitted(
    frames: Frames, members: int, components: int, device: torch.device
) -> tuple[LinearForecaster, Tensor, Tensor]:
    """The regression, and mean and standard deviation of the channels (Vx1x1)."""
    statistics = frames.statistics(slice(None), STATE_HOURS)
    mean, std = (torch.tensor(a, dtype=torch.float32)[:, None, None] for a in (statistics.mean, statistics.std))
    states = torch.empty(len(frames), *mean.shape[:1], *frames.grid.shape, device=device)
    for first in range(0, len(frames), 500):
        numbers = range(first, min(first + 500, len(frames)))
        states[first : first + 500] = ((torch.from_numpy(frames.read(numbers)) - mean) / std).to(device)
    n_member = len(frames) // members
    segments = [*range(n_member, len(frames) + 1, n_member)]
    leads = [hours // STATE_HOURS for hours in LEADS_HOURS]
    return LinearForecaster(states, seasonal(frames.times).to(device), segments, components, leads), mean, std


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("like", type=Path, help="a forecast store: its initial times are forecast")
    parser.add_argument("--analyses", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="where the training members lie or go")
    parser.add_argument("--members", type=int, default=N_TRAIN)
    parser.add_argument("--days", type=int, default=220, help="of each member")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--components", type=int, default=1200)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train = Frames(generated(arguments.data, 0, arguments.members, arguments.days, arguments.workers))
    analyses = Frames(arguments.analyses, train.channels)
    times = open_fields(arguments.like)["time"].values
    linear, mean, std = fitted(train, arguments.members, arguments.components, device)
    print(
        f"{len(train)} states of {arguments.members} members; {arguments.components} components hold {linear.kept:.2%} of the variance"
    )
    print("penalties " + ", ".join(f"{lead * STATE_HOURS} h: {p:g}" for lead, p in linear.penalties.items()))
    facts = {"model": "linear regression", "members": arguments.members, "components": arguments.components}
    writer = ForecastWriter(arguments.output, channels=train.channels, units=train.units, grid=train.grid, times=times,
                            leads_hours=LEADS_HOURS, attributes=facts)  # fmt: skip
    for number, time in enumerate(times):
        now = analyses.at(time)
        before, latest = (((torch.from_numpy(analyses.read([n])) - mean) / std).to(device) for n in (now - 1, now))
        season = seasonal(analyses.times[[now]]).to(device)
        for i, hours in enumerate(LEADS_HOURS):
            found = linear(before, latest, season, hours // STATE_HOURS).cpu()
            writer.put(number, i, found * std + mean)
    writer.close()
    print(writer.path)


if __name__ == "__main__":
    main()
