"""The pretrained network: it forecasts short series of any cycle without a fit, by weighing and correcting plain forecasts.

    history ─fold by the cycle─▶ S x C x R x P map ─large-kernel blocks─▶ what is seen of each phase, and of all ─▶ per phase and cycle ahead:
    weights of plain forecasts (smoothed levels, with and without season), how far slopes go on, a correction, and quantiles around it

A mixture of plain forecasts is where training starts, so little of what is known of forecasting must be learned. Errors are counted in the
change over a cycle, the unit of MASE.

Shapes: S series, L past steps, P steps a cycle, R cycles seen, C channels, H steps ahead, K plain forecasts, Q quantile levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unipercept.errors import InputError
from unipercept.forecasting.blocks import SeriesBlock
from unipercept.forecasting.settings import QUANTILES

MEMORIES = (0.0, 0.5, 0.8, 0.95)  # of a smoothed level, from one step to the next
LATELY = 0.6  # by which a cycle counts less than the one after it
SLOPES = 2  # of the whole history, and of its latest steps
SHORTEST_CYCLE = 4  # steps; shorter ones are taken several times
LEAST_UNIT = 0.02  # of the history's deviation: a season that repeats exactly has no unit of its own
STEM_CHANNELS = 12


@dataclass(frozen=True)
class PretrainedConfig:
    """Sizes.

    Args:
        cycles: R, seen at most.
        later_cycles: forecast in one pass.
    """

    cycles: int = 24
    later_cycles: int = 8
    dim: int = 64
    blocks: int = 3
    kernel_size: int = 13
    width: int = 192  # of the hidden layer of the head
    quantiles: tuple[float, ...] = QUANTILES


class PretrainedNetwork(nn.Module):
    """Histories of one cycle length to quantiles of what follows; no weight depends on the cycle or on the series."""

    def __init__(self, config: PretrainedConfig = PretrainedConfig()) -> None:
        super().__init__()
        self.config = config
        self.median = config.quantiles.index(0.5)
        levels, later = len(config.quantiles), config.later_cycles
        self.n_plain = 3 * len(MEMORIES)
        self.stem = nn.Linear(STEM_CHANNELS, config.dim)
        self.blocks = nn.Sequential(
            *(SeriesBlock(config.dim, config.kernel_size, 0.0, 0.1) for _ in range(config.blocks))
        )
        self.phase = nn.Linear(config.dim * config.cycles, config.width)
        self.whole = nn.Linear(config.dim * 2, config.width)
        self.out = nn.Linear(config.width, later * (self.n_plain + SLOPES + 1 + levels))
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            self.out.bias.copy_(_first_bias(self.n_plain, config.quantiles).repeat(later))
        self.away: Tensor
        self.register_buffer("away", _sums_away_from(self.median, levels), persistent=False)

    def steps_seen(self, period: int) -> int:
        """L at most."""
        return self.config.cycles * folded_period(period)

    def forward(self, x: Tensor, period: int, seen: Tensor | None = None) -> Tensor:
        """SxHxQ, ascending along Q, of SxL finite histories (L at least 2), H = `later_cycles` times the cycle as folded.

        Args:
            period: steps a cycle.
            seen: SxL bool, False where the last value was repeated for want of one.
        """
        period = folded_period(period)
        length = x.shape[1]
        if not 2 <= length <= self.config.cycles * period:
            raise InputError(f"the network sees 2 to {self.config.cycles * period} steps, got {length}")
        facts = _Facts.of(x, period)
        horizon = self.config.later_cycles * period
        plain, slopes = facts.plain(horizon), facts.slopes(horizon)
        y = self.blocks(self.stem(facts.channels(seen, self.config.cycles)).permute(0, 3, 1, 2))
        missing = self.config.cycles - y.shape[2]
        columns = F.pad(y, (0, 0, missing, 0)).permute(0, 3, 2, 1).flatten(2)  # SxPx(R C)
        whole = torch.cat([y.mean((2, 3)), y[:, :, -1, -1]], 1)
        found = self.out(F.gelu(self.phase(columns) + self.whole(whole)[:, None]))
        found = torch.unflatten(found, 2, (self.config.later_cycles, -1)).transpose(1, 2).flatten(1, 2).float()
        gates, along = found[..., : self.n_plain], found[..., self.n_plain : self.n_plain + SLOPES]
        correction, spread = found[..., self.n_plain + SLOPES], found[..., self.n_plain + SLOPES + 1 :]
        middle = (gates.softmax(2) * plain).sum(2) + (along * slopes).sum(2) + facts.unit * correction
        gaps = F.softplus(spread) @ self.away
        result: Tensor = middle[..., None] + facts.unit[..., None] * gaps
        return result


def folded_period(period: int) -> int:
    """The cycle as it is folded: short ones several times, so that a row of the map is a few steps at least."""
    return period if period >= SHORTEST_CYCLE else period * -(-SHORTEST_CYCLE // period)


@dataclass(frozen=True)
class _Facts:
    """What plain methods see in SxL histories.

    Args:
        unit: Sx1, mean change over a cycle (over a step in histories of less than a cycle and a half).
        folded, there: SxRxP and 1xRxP, the history in rows of a cycle, and where it is not padding.
        seasons: two of SxP, by phase of the fold: of all cycles, of the latest.
    """

    x: Tensor
    unit: Tensor
    period: int
    folded: Tensor
    there: Tensor
    seasons: tuple[Tensor, Tensor]

    @staticmethod
    def of(x: Tensor, period: int) -> _Facts:
        length = x.shape[1]
        lag = period if length >= period + max(2, period // 2) else 1
        unit = (x[:, lag:] - x[:, :-lag]).abs().mean(1, keepdim=True)
        deviation = x.std(1, keepdim=True)
        unit = torch.maximum(unit, LEAST_UNIT * deviation).clamp(min=1e-6)
        pad = -length % period
        folded = torch.unflatten(F.pad(x, (pad, 0)), 1, (-1, period))
        there = torch.unflatten(F.pad(torch.ones_like(x[:1]), (pad, 0)), 1, (-1, period))
        return _Facts(x, unit, period, folded, there, _seasons(folded, length))

    def plain(self, horizon: int) -> Tensor:
        """SxHxK."""
        found = []
        phase = torch.arange(horizon, device=self.x.device) % self.period
        for season in (None, *self.seasons):
            rest = self.x if season is None else self.x - self._of_history(season)
            ahead = 0.0 if season is None else season[:, phase]
            for memory in MEMORIES:
                level = _smoothed(rest, memory)
                found.append(level + ahead if season is not None else level.expand(-1, horizon))
        return torch.stack(found, 2)

    def slopes(self, horizon: int) -> Tensor:
        """SxHx2: how far the slope of the whole history, and that of the latest cycles, would lead."""
        rest = self.x - self._of_history(self.seasons[0])
        ahead = torch.arange(1, horizon + 1, device=self.x.device, dtype=self.x.dtype)
        recent = rest[:, -max(4, min(2 * self.period, 12)) :]
        return torch.stack([_slope(part) * ahead for part in (rest, recent)], 2)

    def channels(self, seen: Tensor | None, most_rows: int) -> Tensor:
        """SxRxPxC, what the map shows of each cell."""
        rows, period = self.folded.shape[1:]
        unit, last = self.unit[..., None], self.x[:, -1:, None]
        deviation = self.x.std(1, keepdim=True).clamp(min=1e-6)
        before = F.pad(self.folded, (0, 0, 1, 0))[:, :-1]
        had = F.pad(self.there, (0, 0, 1, 0))[:, :-1] * self.there
        step = F.pad(self.x[:, 1:] - self.x[:, :-1], (1, 0))
        step = torch.unflatten(F.pad(step, (-self.x.shape[1] % period, 0)), 1, (-1, period))
        season = self.seasons[0][:, None].expand_as(self.folded)
        shown = self.there if seen is None else torch.unflatten(
            F.pad(seen.to(self.x.dtype), (-self.x.shape[1] % period, 0)), 1, (-1, period)
        )  # fmt: skip
        age = torch.arange(1 - rows, 1, device=self.x.device, dtype=self.x.dtype)[:, None] / most_rows
        phase = torch.arange(period, device=self.x.device, dtype=self.x.dtype) / period
        like = torch.ones_like(self.folded)
        parts = [
            torch.asinh((self.folded - last) / unit) * self.there,
            torch.asinh((self.folded - before) / unit) * had,
            torch.asinh(step / unit),
            torch.asinh((self.folded - season - last) / unit) * self.there,
            (self.folded - self.x.mean(1, keepdim=True)[..., None]) / deviation[..., None] * self.there,
            torch.asinh(season / unit),
            shown * like, age * like, phase * like, math.log(period) / 4 * like,
            (deviation / self.unit).log()[..., None] * like,
            (step.abs().mean((1, 2))[:, None, None] / unit).clamp(1e-3).log() * like,
        ]  # fmt: skip
        return torch.stack(parts, 3)

    def _of_history(self, season: Tensor) -> Tensor:
        """SxL of a season by phase."""
        length = self.x.shape[1]
        return season.repeat(1, self.folded.shape[1])[:, -length:]


def _seasons(folded: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """SxP twice, each of mean 0: what a phase lies above its cycle, on average and lately. A slope within the cycle is taken off first."""
    rows, period = folded.shape[1:]
    whole = folded[:, rows - length // period :]  # cycles that are complete
    count = whole.shape[1]
    if not count:
        return torch.zeros_like(folded[:, 0]), torch.zeros_like(folded[:, 0])
    means = whole.mean(2, keepdim=True)
    drift = (means[:, -1:] - means[:, :1]) / (count - 1) if count > 1 else torch.zeros_like(means)
    within = (torch.arange(period, device=folded.device, dtype=folded.dtype) - (period - 1) / 2) / period
    above = whole - means - drift * within
    fading = LATELY ** torch.arange(count - 1, -1, -1, device=folded.device, dtype=folded.dtype)[:, None]
    return above.mean(1), (above * fading).sum(1) / fading.sum()


def _smoothed(x: Tensor, memory: float) -> Tensor:
    """Sx1: the level at the end, old steps fading; the weights of what lies before the history are shared out."""
    weight = memory ** torch.arange(x.shape[1] - 1, -1, -1, device=x.device, dtype=x.dtype)
    if memory == 0:
        return x[:, -1:]
    return (x * weight).sum(1, keepdim=True) / weight.sum()


def _slope(x: Tensor) -> Tensor:
    """Sx1, by least squares, a step."""
    t = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
    t = t - t.mean()
    return (x * t).sum(1, keepdim=True) / t.square().sum().clamp(min=1e-6)


def _first_bias(n_plain: int, quantiles: tuple[float, ...]) -> Tensor:
    """Plain forecasts alike, no slope, no correction, quantiles of a normal of a unit."""
    levels = torch.tensor(quantiles, dtype=torch.float64)
    gaps = torch.log(torch.expm1(torch.special.ndtri(levels).diff())).float()
    median = quantiles.index(0.5)
    return torch.cat([torch.zeros(n_plain + SLOPES + 1), gaps[:median], torch.zeros(1), gaps[median:]])


def _sums_away_from(median: int, levels: int) -> Tensor:
    """QxQ: which gaps add up to a level's distance from the median, with their sign."""
    gap, level = torch.arange(levels)[:, None], torch.arange(levels)
    return ((gap > median) & (gap <= level)).float() - ((gap < median) & (gap >= level)).float()
