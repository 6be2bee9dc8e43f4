"""Lines and networks in one forecast: a weighted mean, its weights from validation, for
each stretch of steps by itself.

Shapes: S windows of a batch, T steps, V variables, M members, N stretches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import nnls
from torch import Tensor

from unipercept.forecasting.lines import Line
from unipercept.forecasting.network import SeriesForecast, SeriesForecaster
from unipercept.forecasting.windows import Batch, Windows

ALIKE = 1e-12  # the least pull, for members that are alike
PULLS = (0.0, 0.03, 0.1, 0.3, 1.0, 10.0)  # to equal weights, in the members' mean square error
MOST_WINDOWS = 1500  # of validation, spread over it
BATCH = 4_000_000  # steps of all windows at a time


@dataclass(frozen=True)
class Blend:
    """What is forecast: members' points by their weights, and the networks' mean spread around it."""

    networks: tuple[SeriesForecaster, ...]
    lines: tuple[tuple[Line, ...], ...]  # as many in each stretch
    stretches: tuple[range, ...]
    weights: Tensor  # NxM, of the lines, then of the networks' mean

    def __call__(self, batch: Batch) -> SeriesForecast:
        """Point and quantiles of the batch's steps."""
        found = [batch.forecast(network) for network in self.networks]
        point = self._point(batch, torch.stack([one.point for one in found]).mean(0))
        away = torch.stack([one.quantiles - one.point.unsqueeze(-1) for one in found if one.quantiles is not None])
        return SeriesForecast(point, point.unsqueeze(-1) + away.mean(0), found[0].deviation)

    def _point(self, batch: Batch, networks: Tensor) -> Tensor:
        parts = []
        for i, stretch in enumerate(self._stretches_of(batch)):
            members = self._members(batch, networks, i, stretch)
            parts.append(torch.einsum("m,mstv->stv", self.weights[i], members))
        return torch.cat(parts, 1)

    def _members(self, batch: Batch, networks: Tensor, i: int, stretch: range) -> Tensor:
        """MxSxTxV of a stretch."""
        lines = [line(batch)[:, : len(stretch)] for line in self.lines[i]]
        return torch.stack([*lines, networks[:, stretch.start : stretch.stop]])

    def _stretches_of(self, batch: Batch) -> list[range]:
        horizon = batch.target.shape[1]
        return [range(s.start, min(s.stop, horizon)) for s in self.stretches if s.start < horizon]


@torch.no_grad()
def blend(
    networks: Sequence[SeriesForecaster], lines: Sequence[Sequence[Line]], validation: Sequence[Windows]
) -> Blend:
    """Weigh the members by their errors on validation; how far weights are pulled to equal
    ones, by those of its other half.

    Args:
        lines: of each stretch, as many.
        validation: of each stretch the windows with its last step as horizon.
    """
    ends = [windows.horizon for windows in validation]
    stretches = tuple(range(first, last) for first, last in zip([0, *ends], ends, strict=False))
    equal = torch.full((len(ends), len(lines[0]) + 1), 1.0 / (len(lines[0]) + 1), device=validation[0].values.device)
    found = Blend(tuple(networks), tuple(tuple(of_stretch) for of_stretch in lines), stretches, equal)
    for network in networks:
        network.eval()
    halves = [
        _products(found, i, stretch, windows)
        for i, (stretch, windows) in enumerate(zip(stretches, validation, strict=True))
    ]
    pull = min(PULLS, key=lambda candidate: sum(_error_across(products, candidate) for products in halves))
    weights = [best_weights(products.mean(0), pull) for products in halves]
    return Blend(found.networks, found.lines, stretches, torch.stack(weights).to(equal))


def _error_across(halves: Tensor, pull: float) -> float:
    """Of the weights that one half of validation gives on the other."""
    errors = []
    for mine, other in ((0, 1), (1, 0)):
        weight = best_weights(halves[mine], pull)
        errors.append(float(weight @ halves[other] @ weight))
    return sum(errors)


def _products(members: Blend, i: int, stretch: range, windows: Windows) -> Tensor:
    """2xMxM: mean products of the members' errors in the earlier and the later half of the windows."""
    device = windows.values.device
    per_window = 1 if windows.together else windows.n_variables
    chosen = torch.arange(0, len(windows.starts), max(1, len(windows.starts) // MOST_WINDOWS), device=device)
    size = windows.horizon * (windows.n_variables if windows.together else 1)
    found = []
    for half in chosen.chunk(2):
        numbers = (half[:, None] * per_window + torch.arange(per_window, device=device)).flatten()
        total, count = torch.zeros((), dtype=torch.float64), 0
        for part in torch.split(numbers, max(1, BATCH // size)):
            batch = windows.batch(part)
            points = [batch.forecast(network, with_quantiles=False).point for network in members.networks]
            error = members._members(batch, torch.stack(points).mean(0), i, stretch)
            error = (error - batch.target[:, stretch.start : stretch.stop]).transpose(0, 1).flatten(2).double()
            # a product a window: a single one, that long, would keep one multiprocessor busy and leave the others idle
            total, count = total + (error @ error.mT).sum(0).cpu(), count + error.shape[0] * error.shape[2]
        found.append(total / count)
    return torch.stack(found)


def best_weights(products: Tensor, pull: float = 0.0) -> Tensor:
    """M weights of 0 or more with sum 1 whose mean has the least square, pulled to equal ones.

    But for their sum, they are the x of 0 or more with the least x P x / 2 - sum(x), since a larger sum is a matter of
    scale alone; and that is least squares with P = L L'.
    """
    eye = torch.eye(len(products), dtype=products.dtype)
    lower = torch.linalg.cholesky(products + (pull + ALIKE) * products.diagonal().mean() * eye)
    target = torch.linalg.solve_triangular(lower, eye.sum(1, keepdim=True), upper=False).squeeze(1)
    found, _ = nnls(lower.T.numpy(), target.numpy(), maxiter=1000)
    return torch.from_numpy(found / found.sum())
