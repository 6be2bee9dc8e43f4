"""NLinear trained as its authors do, so that the protocol can be compared with a trained result of the literature.

Source: Zeng et al. (2023), "Are transformers effective for time series forecasting?"; scripts and
`exp_main.py` of cure-lab/LTSF-Linear.

Shapes: S windows, L past steps, T future steps, V variables.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from unipercept.forecasting.windows import Batch, Windows

RATES = {"etth1": 0.005, "etth2": 0.05}  # their scripts; other sets: the smaller one
BATCH, EPOCHS, PATIENCE, SEED = 32, 10, 3, 2021


class NLinear(nn.Module):
    """One layer from past to future, the last value taken off and put back, the same for all variables."""

    def __init__(self, lookback: int, horizon: int) -> None:
        super().__init__()
        self.linear = nn.Linear(lookback, horizon)

    def forward(self, batch: Batch) -> Tensor:
        past = batch.values[:, : batch.lookback]
        last = past[:, -1:]
        found: Tensor = self.linear((past - last).transpose(1, 2)).transpose(1, 2) + last
        return found


def train_nlinear(training: Windows, validation: Windows, rate: float) -> NLinear:
    """Adam on squares, batches of 32 windows of all variables, the rate halved each epoch, stopped by validation."""
    device = training.values.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = NLinear(training.lookback, training.horizon).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(SEED)
    best, best_state, since = math.inf, copy.deepcopy(model.state_dict()), 0
    for epoch in range(EPOCHS):
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5**epoch
        order = torch.randperm(len(training.starts), generator=generator)
        for windows in torch.split(order[: len(order) // BATCH * BATCH], BATCH):
            batch = _whole(training, windows.to(device))
            optimizer.zero_grad()
            (model(batch) - batch.target).square().mean().backward()
            optimizer.step()
        judged = _error(model, validation)
        if judged < best:
            best, best_state, since = judged, copy.deepcopy(model.state_dict()), 0
        else:
            since += 1
        if since == PATIENCE:
            break
    model.load_state_dict(best_state)
    return model.requires_grad_(False)


def _whole(windows: Windows, numbers: Tensor) -> Batch:
    """Windows with all their variables, each a window of its own."""
    variables = torch.arange(windows.n_variables, device=numbers.device)
    return windows.batch((numbers[:, None] * windows.n_variables + variables).flatten())


@torch.no_grad()
def _error(model: NLinear, windows: Windows) -> float:
    total, count = 0.0, 0
    for numbers in torch.split(torch.arange(len(windows), device=windows.values.device), 2048):
        batch = windows.batch(numbers)
        error = (model(batch) - batch.target).square()
        total, count = total + float(error.sum(dtype=torch.float64)), count + error.numel()
    return total / count
