"""Scores of a forecaster over all windows of a split.

Shapes: S series of a batch, T future steps, V variables, Q quantile levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unipercept.forecasting.losses import pinball
from unipercept.forecasting.network import SeriesForecast, SeriesForecaster
from unipercept.forecasting.windows import Batch, Windows


@dataclass(frozen=True)
class Scores:
    """Over all windows, steps and variables, on the scale of the values."""

    mse: float
    mae: float
    wql: float  # twice the pinball loss, mean over the nine deciles, over the mean size of the target
    coverage_80: float
    coverage_95: float
    n: int

    @property
    def selection(self) -> float:
        """What early stopping looks at."""
        return self.mse


@torch.no_grad()
def evaluate(
    network: SeriesForecaster,
    windows: Windows,
    *,
    cap: int | None = None,
    with_quantiles: bool = True,
    steps: Tensor | None = None,
) -> Scores:
    """Scores of a network; see `score`."""
    network.eval()
    forecast = lambda batch: batch.forecast(network, with_quantiles=with_quantiles)  # noqa: E731
    return score(forecast, windows, network.config.quantiles, cap=cap, steps=steps)


@torch.no_grad()
def score(
    forecast: Callable[[Batch], SeriesForecast],
    windows: Windows,
    quantiles: tuple[float, ...],
    *,
    batch_size: int | None = None,
    cap: int | None = None,
    steps: Tensor | None = None,
) -> Scores:
    """Scores of anything that forecasts a batch of windows.

    Args:
        cap: about how many windows, spread over them; None for all.
        steps: T of mean 1, by which steps count; None for all alike.
    """
    device = windows.values.device
    levels = torch.tensor(quantiles, device=device)
    budget = (4_000_000 if device.type == "cpu" else 32_000_000) // (windows.n_variables if windows.together else 1)
    batch_size = batch_size or max(1, budget // (windows.horizon * len(levels)))
    inner = [i for i, q in enumerate(quantiles) if 0.05 < q < 0.95]
    edges = [min(range(len(quantiles)), key=lambda i: abs(quantiles[i] - x)) for x in (0.1, 0.9, 0.025, 0.975)]
    sums = torch.zeros(6, dtype=torch.float64, device=device)
    total = 0
    for numbers in torch.split(windows.sample(cap), batch_size):
        batch = windows.batch(numbers)
        found, target, seen = forecast(batch), batch.target, batch.target_observed
        error = found.point - target
        parts = [error.square(), error.abs(), target.abs()]
        if found.quantiles is not None:
            low80, high80, low95, high95 = (found.quantiles[..., i] for i in edges)
            parts += [
                pinball(found.quantiles[..., inner], target, levels[inner]).mean(-1),
                ((low80 <= target) & (target <= high80)).float(),
                ((low95 <= target) & (target <= high95)).float(),
            ]
        if seen is not None:
            parts = [part * seen for part in parts]
        if steps is not None:
            parts = [part * steps[:, None] for part in parts]
        sums[: len(parts)] += torch.stack([part.sum(dtype=torch.float64) for part in parts])
        total += int(seen.sum()) if seen is not None else target.numel()
    mse, mae, size, loss, c80, c95 = (sums / max(1, total)).tolist()
    return Scores(mse, mae, loss / max(size, 1e-12), c80, c95, total)
