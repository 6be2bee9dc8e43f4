"""Linear regression as a forecaster: what the network has to beat.

From the two states that the network sees to the state at each lead, by ridge regression on principal components. Predictors are the
leading components of the normalised states at t - 6 h and t, season and hour (sines and cosines) and a constant; predicted are the
components at t + lead, by a regression of its own for each lead. What the components leave out is carried on, damped by a factor
fitted for each lead and channel. The penalty of each lead is the one of eight that does best on the last tenth of the training states.

Used by weather_default_scores.py. Shapes: N states, V channels, H rows, W columns, K components, P predictors.
"""

import numpy as np
import torch
from torch import Tensor

PENALTIES = tuple(10.0**k for k in range(-6, 2))  # shares of the predictors' mean square
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
            self.coefficients[lead], self.penalties[lead] = ridge(x, y)
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


def ridge(x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """Coefficients PxK of the penalty that does best on the last tenth, refitted on all; and that penalty."""
    n_train = round(len(x) * (1 - HELD_OUT))
    gram, cross = x[:n_train].T @ x[:n_train], x[:n_train].T @ y[:n_train]
    scale, eye = gram.diagonal().mean(), torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    errors = []
    for penalty in PENALTIES:
        found = torch.linalg.solve(gram + penalty * scale * eye, cross)
        errors.append(float((x[n_train:] @ found - y[n_train:]).square().mean()))
    best = PENALTIES[int(np.argmin(errors))]
    gram, cross = x.T @ x, x.T @ y
    return torch.linalg.solve(gram + best * gram.diagonal().mean() * eye, cross), best
