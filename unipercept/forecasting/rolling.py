"""Online intervals: values observed by the time of a forecast widen or narrow its intervals.

Forecasts are made row after row. At each, those of earlier rows whose future lies in the past by then can be judged,
and the factor of a level moves by how much more or less often than promised the truth lay beyond the intervals that
were given then. Nothing later than the forecast's origin is used.

Long leads come true late. What short ones say of how lively the present is reaches them by one factor more, common to
all variables and leads: the share that lay within all intervals as they stood, the latest first.

Source: Gibbs and Candès (2021), adaptive conformal inference; here on the logarithm of the factor, in units of its own
slope for normal errors. What is learned comes as late as the forecast's lead, and a step that is large beside that
delay swings: the longer the lead, the smaller the step.

Shapes: K updates, V variables, G groups of steps, Q quantile levels, P pairs of levels, S windows, T steps.
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

RATE = 0.005  # of an update, at most: with four a cycle, what is fifty cycles old counts by 1/e
MOST_GAIN = 0.5  # rate times delay in updates; from pi / 2 on the factor swings without end
LEAST_SLOPE = 0.1  # near the median a ratio says little: smaller steps
CELLS = 6  # steps of a group that are looked at
HALF_LIFE = 2.0  # horizons, after which what came true counts half for the common factor
BINS, FURTHEST = 600, 1e3  # of the logarithm of a reach, from 1 / FURTHEST on
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
    common = _Common(levels, steps, every, stream.horizon)
    rates = (MOST_GAIN / known_after).clamp(max=rate)[:, None] / slope  # GxQ
    groups, factors = torch.arange(len(start)), torch.empty(len(origins), *log_factors.shape)
    shared = torch.ones(len(origins), 1, 1, len(levels))
    for k in range(len(origins)):
        judged = k - known_after
        seen, given = (part[judged.clamp(min=0), :, groups].transpose(0, 1) for part in (ratios, factors))
        beyond = (seen > given[:, :, None]).float().mean(2)  # VxGxQ, of a few steps
        log_factors += torch.where((judged >= 0)[:, None], rates * (beyond - tail), 0.0)
        log_factors.clamp_(math.log(LEAST), math.log(MOST))
        log_factors[..., median] = 0.0
        factors[k] = log_factors.exp()
        shared[k] = common.after(k, ratios, factors)
    return Rolling(origins.to(device), (factors * shared).to(device), median)


class _Common:
    """The factor of all variables and leads, from a histogram of how far the truth reached, in units of
    the intervals as they stood.
    """

    def __init__(self, levels: tuple[float, ...], steps: Tensor, every: int, horizon: int) -> None:
        self.pairs = [(i, len(levels) - 1 - i) for i in range(levels.index(0.5))]
        self.inside = torch.tensor([levels[high] - levels[low] for low, high in self.pairs])
        self.delay = (steps.flatten() // every) + 1  # updates until a cell has come true
        self.group = torch.arange(len(steps)).repeat_interleave(steps.shape[1])
        self.cell = torch.arange(steps.shape[1]).repeat(len(steps))
        self.fading = 0.5 ** (every / (HALF_LIFE * horizon))  # an update
        self.weight = self.fading ** self.delay.float()
        self.counts = torch.zeros(len(self.pairs), BINS)
        self.factors = torch.ones(len(levels))

    def after(self, k: int, ratios: Tensor, factors: Tensor) -> Tensor:
        """Q, with what has come true by update k."""
        self.counts *= self.fading
        done = self.delay <= k
        if not done.any():
            return self.factors
        update, group, cell = k - self.delay[done], self.group[done], self.cell[done]
        reach = ratios[update, :, group, cell] / factors[update, :, group]  # NxVxQ
        weight = self.weight[done][:, None].expand(reach.shape[:2]).flatten()
        for p, (low, high) in enumerate(self.pairs):
            found = torch.maximum(reach[..., low], reach[..., high]).clamp(1 / FURTHEST, FURTHEST).log()
            place = (found / (2 * math.log(FURTHEST)) + 0.5) * (BINS - 1)
            self.counts[p] += torch.bincount(place.round().long().flatten(), weight, BINS)
        share = self.counts.cumsum(1) / self.counts.sum(1, keepdim=True)
        middle = torch.searchsorted(share, self.inside[:, None]).squeeze(1).clamp(max=BINS - 1)
        needed = ((middle / (BINS - 1) - 0.5) * 2 * math.log(FURTHEST)).exp().clamp(LEAST, MOST)
        for (low, high), factor in zip(self.pairs, needed, strict=True):
            self.factors[[low, high]] = factor
        return self.factors


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
    """Q: how often the truth may lie beyond, and by how much that falls with the logarithm of
    the factor, were errors normal.
    """
    level = torch.tensor(levels, dtype=torch.float64)
    away = torch.special.ndtri(level).abs()
    slope = away * torch.exp(-0.5 * away.square()) / math.sqrt(2 * math.pi)
    return torch.minimum(level, 1 - level).float(), slope.clamp(min=LEAST_SLOPE).float()
