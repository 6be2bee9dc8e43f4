"""Intervals that follow the stream of forecasts: what has come true by the time of a forecast widens or narrows its intervals.

Forecasts are made row after row. At each, those of earlier rows whose future lies in the past by then can be judged, and the factor of a
level moves by how much more or less often than promised the truth lay beyond the intervals that were given then. Nothing later than the
forecast's origin is used.

Source: Gibbs and Candès (2021), adaptive conformal inference; here on the logarithm of the factor, in units of its own slope for normal errors. What
is learned comes as late as the forecast's lead, and a step that is large beside that delay swings: the longer the lead, the smaller the step.

Shapes: K updates, V variables, G groups of steps, Q quantile levels, S windows, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unipercept.forecasting.calibration import LEAST, MOST, distance_ratios, step_groups, stretched
from unipercept.forecasting.network import SeriesForecast
from unipercept.forecasting.windows import Batch, Windows

RATE = 0.02  # of an update, at most: with four a cycle, what is twelve cycles old counts by 1/e
MOST_GAIN = 0.5  # rate times delay in updates; from pi / 2 on the factor swings without end
LEAST_SLOPE = 0.1  # near the median a ratio says little: smaller steps
CELLS = 6  # steps of a group that are looked at
BATCH = 20_000_000  # quantiles at a time

Forecast = Callable[[Batch], SeriesForecast]


@dataclass(frozen=True)
class Rolling:
    """Factors on the distances from the median, by row."""

    rows: Tensor  # K, ascending: the first origin that each holds for
    factors: Tensor  # KxVxGxQ
    median: int

    def around(self, forecast: Forecast) -> Forecast:
        """The forecast with its intervals stretched."""
        return lambda batch: self._stretched(forecast(batch), batch)

    def _stretched(self, found: SeriesForecast, batch: Batch) -> SeriesForecast:
        assert found.quantiles is not None
        update = torch.searchsorted(self.rows, batch.origin, right=True).clamp(min=1) - 1
        by_group = self.factors[update[:, None], batch.identity]  # SxVxGxQ
        groups = step_groups(found.quantiles.shape[1], by_group.shape[2]).to(by_group.device)
        return found._replace(quantiles=stretched(found.quantiles, by_group[:, :, groups].transpose(1, 2), self.median))


@torch.no_grad()
def follow(
    forecast: Forecast, stream: Windows, start: Tensor, levels: tuple[float, ...], every: int, rate: float = RATE
) -> Rolling:
    """Factors along `stream`, all windows of consecutive rows; an update each `every` rows.

    Args:
        start: GxQ, those of the first rows.
    """
    median, device = levels.index(0.5), stream.values.device
    ratios, steps = _ratios(forecast, stream, len(start), median, every)  # KxVxGxcellsxQ
    origins = stream.rows[::every].cpu() + stream.lookback
    known_after = -(-(steps.max(1).values + 1) // every)  # G, updates until the last step of a group has come true
    tail, slope = _tails(levels)
    log_factors = start.log().expand(stream.n_variables, -1, -1).clone()
    rates = (MOST_GAIN / known_after).clamp(max=rate)[:, None] / slope  # GxQ
    groups, factors = torch.arange(len(start)), torch.empty(len(origins), *log_factors.shape)
    for k in range(len(origins)):
        judged = k - known_after
        seen, given = (part[judged.clamp(min=0), :, groups].transpose(0, 1) for part in (ratios, factors))
        beyond = (seen > given[:, :, None]).float().mean(2)  # VxGxQ, of a few steps
        log_factors += torch.where((judged >= 0)[:, None], rates * (beyond - tail), 0.0)
        log_factors.clamp_(math.log(LEAST), math.log(MOST))
        log_factors[..., median] = 0.0
        factors[k] = log_factors.exp()
    return Rolling(origins.to(device), factors.to(device), median)


def _ratios(forecast: Forecast, stream: Windows, n_groups: int, median: int, every: int) -> tuple[Tensor, Tensor]:
    """Residual over predicted distance at a few steps of each group, KxVxGxcellsxQ, and those steps, Gxcells."""
    groups, variables = step_groups(stream.horizon, n_groups), stream.n_variables
    steps = torch.stack([_spread_over(torch.nonzero(groups == g).flatten()) for g in range(n_groups)])
    device = stream.values.device
    windows = torch.arange(0, len(stream.starts), every, device=device)
    found = []
    for part in torch.split(windows, max(1, BATCH // (stream.horizon * variables * 11))):
        numbers = (
            part if stream.together else (part[:, None] * variables + torch.arange(variables, device=device)).flatten()
        )
        batch = stream.batch(numbers)
        quantiles = forecast(batch).quantiles
        assert quantiles is not None
        chosen = steps.flatten().to(device)
        ratio = distance_ratios(quantiles[:, chosen], batch.target[:, chosen], median)  # Sx(G cells)xVxQ
        ratio = ratio.transpose(1, 2).reshape(len(part), variables, *steps.shape, -1)
        found.append(ratio.float().cpu())
    return torch.cat(found), steps


def _spread_over(steps: Tensor) -> Tensor:
    """`CELLS` of the steps, the last among them."""
    return steps[torch.linspace(0, len(steps) - 1, CELLS).round().long()]


def _tails(levels: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Q: how often the truth may lie beyond, and by how much that falls with the logarithm of the factor, were errors normal."""
    level = torch.tensor(levels, dtype=torch.float64)
    away = torch.special.ndtri(level).abs()
    slope = away * torch.exp(-0.5 * away.square()) / math.sqrt(2 * math.pi)
    return torch.minimum(level, 1 - level).float(), slope.clamp(min=LEAST_SLOPE).float()
