"""The line from the past to the future in closed form: ridge regression around the mean cycle.

Shapes: L past steps, T future steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unipercept.forecasting.network import SeriesForecaster
from unipercept.forecasting.windows import Windows

LEAST_SQUARES_SERIES = 150_000  # windows that the normal equations sum over, at most


class Ridge(NamedTuple):
    """What is chosen of a line in closed form."""

    evenness: float  # windows count by their deviation to the power of -2 times this
    penalty: float  # in mean squares of the inputs


RIDGES = tuple(Ridge(e, p) for e in (0.0, 0.5, 1.0) for p in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0))


@torch.no_grad()
def normal_equations(
    windows: Windows, most: int | None = None, *, evenness: float = 0.0, quiet: float = 0.1, batch_size: int = 4096
) -> tuple[Tensor, Tensor]:
    """LxL and LxT sums over windows, each with its mean taken off: of past times past, and
    of past times future, float64.

    Windows count by their deviation (`quiet` at least) to the power of -2 `evenness`; those with gaps are left out.
    """
    device, size = windows.values.device, windows.lookback
    left = torch.zeros(size, size, dtype=torch.float64, device=device)
    right = torch.zeros(size, windows.horizon, dtype=torch.float64, device=device)
    for numbers in torch.split(windows.sample(most), batch_size):
        batch = windows.batch(numbers)
        past = batch.values[:, : batch.lookback]
        mean = past.mean(1, keepdim=True)
        scale = (past.var(1, keepdim=True, correction=0) + quiet**2).sqrt() ** evenness
        x, y = (((part - mean) / scale).transpose(1, 2).flatten(0, 1) for part in (past, batch.target))
        if batch.observed is not None:
            whole = batch.observed.all(1).flatten()
            x, y = x[whole], y[whole]
        x, y = x.double(), y.double()
        left += x.T @ x
        right += x.T @ y
    return left, right


@torch.no_grad()
def start_linear_path(
    network: SeriesForecaster,
    training: Windows,
    validation: Windows,
    cap: int | None = None,
    among: Sequence[Ridge] = RIDGES,
) -> Ridge | None:
    """Set the dense path to ridge regression around the mean cycle; what validates best is chosen and returned.

    Weights have no bias, so that a forecast follows its window's level and sign. None where there is no
    such path or too few windows.
    """
    if network.dense is None:
        return None
    start, device = network.dense.weight.T.double(), training.values.device
    eye = torch.eye(training.lookback, dtype=torch.float64, device=device)
    best, chosen, weight = math.inf, None, None
    left, right = torch.empty(0), torch.empty(0)
    for i, ridge in enumerate(among):
        if i == 0 or ridge.evenness != among[i - 1].evenness:
            left, right = normal_equations(
                training, LEAST_SQUARES_SERIES, evenness=ridge.evenness, quiet=network.config.quiet
            )
        power = left.diagonal().mean()
        if not power > 0:
            return None
        found = (start + torch.linalg.solve(left + ridge.penalty * power * eye, right - left @ start)).float()
        error = _line_error(found, validation, cap or 4000)
        if error < best:
            best, chosen, weight = error, ridge, found
    if weight is None:
        return None
    network.dense.weight.copy_(weight.T)
    return chosen


def _line_error(weight: Tensor, windows: Windows, most: int) -> float:
    """Sum of squares of a line LxT on about `most` windows."""
    error = 0.0
    for numbers in torch.split(windows.sample(most), 2048):
        batch = windows.batch(numbers)
        past = batch.values[:, : batch.lookback]
        mean = past.mean(1, keepdim=True)
        missed = ((past - mean).transpose(1, 2) @ weight).transpose(1, 2) + mean - batch.target
        if batch.observed is not None:
            missed = missed * batch.observed.all(1, keepdim=True)
        error += float(missed.double().square().sum())
    return error
