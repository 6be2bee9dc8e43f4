"""The pretrained network: it forecasts short series of any cycle without a fit, by weighing
and correcting plain forecasts.

    history ─fold by the cycle─▶ S x C x R x P map ─large-kernel blocks─▶ what is seen of each phase, and of all
    ─▶ per phase and cycle ahead: weights of plain forecasts (smoothed levels, with and without season), how far slopes
       go on, a correction, and quantiles around it

A mixture of plain forecasts is where training starts, so little of what is known of forecasting must be
learned; how far each of them was off within the history is shown as well. Errors are counted in the change
over a cycle, the unit of MASE.

Shapes: S series, L past steps, P steps a cycle, R cycles seen, C channels, H steps ahead, K plain forecasts, M
memories, Q quantile levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unipercept.errors import InputError
from unipercept.forecasting.blocks import SeriesBlock
from unipercept.forecasting.network import sums_away_from
from unipercept.forecasting.settings import QUANTILES

MEMORIES = (0.0, 0.5, 0.8, 0.95)  # of a smoothed level, from one step to the next
LATELY = 0.6  # by which a cycle counts less than the one after it
LINE_MEMORIES = (0.7, 0.9, 0.97, 1.0)  # of a line through the latest steps
DIRECTIONS = len(LINE_MEMORIES) + 2  # slopes, and a season that has grown and one that goes on growing
N_FACTS = 2 * (len(MEMORIES) + len(LINE_MEMORIES)) + 4 + len(LINE_MEMORIES) + 8  # what `summary` tells
BURN_IN = 3  # steps before a smoothed level is held against what followed
SHORTEST_CYCLE = 4  # steps; shorter ones are taken several times
LEAST_UNIT = 0.02  # of the history's deviation: a season that repeats exactly has no unit of its own
STEM_CHANNELS = 12


@dataclass(frozen=True)
class PretrainedConfig:
    """Sizes.

    Args:
        cycles: R, seen at most, as folded: cycles of less than `SHORTEST_CYCLE` steps are taken several times.
        later_cycles: forecast in one pass.
    """

    cycles: int = 24
    later_cycles: int = 8
    dim: int = 64
    blocks: int = 4
    kernel_size: int = 13
    width: int = 256  # of the hidden layers of the head
    quantiles: tuple[float, ...] = QUANTILES


class PretrainedNetwork(nn.Module):
    """Histories of one cycle length to quantiles of what follows; no weight depends on the cycle or on the series."""

    def __init__(self, config: PretrainedConfig = PretrainedConfig()) -> None:
        super().__init__()
        self.config = config
        self.coarse = False  # blocks in bfloat16, for training
        self.median = config.quantiles.index(0.5)
        levels, later = len(config.quantiles), config.later_cycles
        self.n_plain = 3 * len(MEMORIES) + len(LINE_MEMORIES)
        self.stem = nn.Linear(STEM_CHANNELS, config.dim)
        self.blocks = nn.Sequential(
            *(SeriesBlock(config.dim, config.kernel_size, 0.0, 0.1) for _ in range(config.blocks))
        )
        self.phase = nn.Linear(config.dim * config.cycles, config.width)
        self.whole = nn.Linear(config.dim * 2 + N_FACTS, config.width)
        self.deeper = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, later * (self.n_plain + DIRECTIONS + 1 + levels))
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            self.out.bias.copy_(_first_bias(self.n_plain, config.quantiles).repeat(later))
        self.away: Tensor
        self.register_buffer("away", sums_away_from(self.median, levels), persistent=False)

    def steps_seen(self, period: int) -> int:
        """L at most."""
        return self.config.cycles * folded_period(period)

    def forward(self, x: Tensor, period: int, seen: Tensor | None = None) -> Tensor:
        """SxHxQ, ascending along Q, of SxL finite histories (L at least 2), H =
        `later_cycles` times the cycle as folded.

        Args:
            period: steps a cycle.
            seen: SxL bool, False where the last value was repeated for want of one.
        """
        cycle, period = period, folded_period(period)
        length = x.shape[1]
        if not 2 <= length <= self.config.cycles * period:
            raise InputError(f"the network sees 2 to {self.config.cycles * period} steps, got {length}")
        facts = _Facts.of(x, period, cycle)
        horizon = self.config.later_cycles * period
        plain, directions = facts.plain(horizon), facts.directions(horizon)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.coarse):
            y = self.blocks(self.stem(facts.channels(seen, self.config.cycles)).permute(0, 3, 1, 2))
        y = y.float()
        missing = self.config.cycles - y.shape[2]
        columns = F.pad(y, (0, 0, missing, 0)).permute(0, 3, 2, 1).flatten(2)  # SxPx(R C)
        whole = torch.cat([y.mean((2, 3)), y[:, :, -1, -1], facts.summary(self.config.cycles)], 1)
        found = F.gelu(self.phase(columns) + self.whole(whole)[:, None])
        found = self.out(found + F.gelu(self.deeper(found)))
        found = torch.unflatten(found, 2, (self.config.later_cycles, -1)).transpose(1, 2).flatten(1, 2)
        levels = len(self.config.quantiles)
        gates, along, correction, spread = torch.split(found, [self.n_plain, DIRECTIONS, 1, levels], 2)
        middle = (gates.softmax(2) * plain).sum(2) + (along * directions).sum(2) + facts.unit * correction[..., 0]
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
        period, cycle: P as folded, and as it is.
        folded, there: SxRxP and 1xRxP, the history in rows of a cycle, and where it is not padding.
        seasons: two of SxP, by phase of the fold: of all cycles, of the latest.
        grown, growing: Sx1, how much larger than its mean the season's swing is lately, and by how much
            it grows a cycle, as shares.
        rest: SxL, the history without the mean season.
        lines: level and slope a step, SxMxL each, of a line through `rest` at each step, by `LINE_MEMORIES`.
    """

    x: Tensor
    unit: Tensor
    period: int
    cycle: int
    folded: Tensor
    there: Tensor
    seasons: tuple[Tensor, Tensor]
    grown: Tensor
    growing: Tensor
    rest: Tensor
    lines: tuple[Tensor, Tensor]

    @staticmethod
    def of(x: Tensor, period: int, cycle: int) -> _Facts:
        length = x.shape[1]
        lag = period if length >= period + max(2, period // 2) else 1
        unit = (x[:, lag:] - x[:, :-lag]).abs().mean(1, keepdim=True)
        deviation = x.std(1, keepdim=True)
        unit = torch.maximum(unit, LEAST_UNIT * deviation).clamp(min=1e-6)
        pad = -length % period
        folded = torch.unflatten(F.pad(x, (pad, 0)), 1, (-1, period))
        there = torch.unflatten(F.pad(torch.ones_like(x[:1]), (pad, 0)), 1, (-1, period))
        mean, lately, grown, growing = _seasons(folded, length if cycle > 1 else 0)
        rest = x - _of_history(mean, length)
        lines = _lines(rest, LINE_MEMORIES)
        return _Facts(x, unit, period, cycle, folded, there, (mean, lately), grown, growing, rest, lines)

    def plain(self, horizon: int) -> Tensor:
        """SxHxK."""
        found = []
        phase = torch.arange(horizon, device=self.x.device) % self.period
        for season in (None, *self.seasons):
            rest = self.x if season is None else self.x - _of_history(season, self.x.shape[1])
            ahead = 0.0 if season is None else season[:, phase]
            for memory in MEMORIES:
                level = _smoothed(rest, memory)
                found.append(level + ahead if season is not None else level.expand(-1, horizon))
        ahead = self.seasons[0][:, phase]
        found += [level[:, None] + ahead for level in self.lines[0][..., -1].unbind(1)]
        return torch.stack(found, 2)

    def directions(self, horizon: int) -> Tensor:
        """SxHx`DIRECTIONS`: where each slope would lead, and what the season's growth would add."""
        ahead = torch.arange(1, horizon + 1, device=self.x.device, dtype=self.x.dtype)
        season = self.seasons[0][:, torch.arange(horizon, device=self.x.device) % self.period]
        later = torch.arange(horizon, device=self.x.device) // self.period + 1
        slopes = [slope[:, None] * ahead for slope in self.lines[1][..., -1].unbind(1)]
        return torch.stack([*slopes, self.grown * season, self.growing * later * season], 2)

    def summary(self, most_rows: int) -> Tensor:
        """Sx`N_FACTS`: how far plain forecasts were off, a step and a cycle ahead, slopes, growth, and sizes."""
        length = self.x.shape[1]
        leads = (1, self.period if length >= self.period + max(2, self.period // 2) else 1)
        found = []
        for rest, memories in ((self.rest, MEMORIES), (self.x, (MEMORIES[0], MEMORIES[2]))):
            levels = _levels(rest, memories)
            found += [_missed(rest, levels, lead) for lead in leads]
        level, slope = self.lines
        found += [_missed(self.rest, level + lead * slope, lead) for lead in leads]
        errors = (torch.cat(found, 1) / self.unit + 0.02).log()
        slopes = torch.asinh(slope[..., -1] * self.period / self.unit)
        deviation = self.x.std(1, keepdim=True).clamp(min=1e-6)
        step = (self.x[:, 1:] - self.x[:, :-1]).abs().mean(1, keepdim=True)
        like = torch.ones_like(self.unit)
        sizes = [
            self.grown, self.growing, (deviation / self.unit).log(), (step / self.unit).clamp(1e-3).log(),
            length / (most_rows * self.period) * like, math.log(length) / 4 * like, math.log(self.cycle) / 4 * like,
            float(self.cycle > 1) * like,
        ]  # fmt: skip
        return torch.cat([errors, slopes, *sizes], 1)

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
            shown * like, age * like, phase * like, math.log(self.cycle) / 4 * like,
            (deviation / self.unit).log()[..., None] * like,
            (step.abs().mean((1, 2))[:, None, None] / unit).clamp(1e-3).log() * like,
        ]  # fmt: skip
        return torch.stack(parts, 3)


def _of_history(season: Tensor, length: int) -> Tensor:
    """SxL of a season SxP by phase."""
    return season.repeat(1, -(-length // season.shape[1]))[:, -length:]


def _seasons(folded: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a phase lies above its cycle on average and lately, SxP of mean 0, and Sx1 of how
    its swing has grown and grows.

    A slope within the cycle is taken off first. Of less than a whole cycle all are 0.
    """
    rows, period = folded.shape[1:]
    whole = folded[:, rows - length // period :]  # cycles that are complete
    count = whole.shape[1]
    none = torch.zeros_like(folded[:, 0])
    if not count:
        return none, none, none[:, :1], none[:, :1]
    means = whole.mean(2, keepdim=True)
    drift = (means[:, -1:] - means[:, :1]) / (count - 1) if count > 1 else torch.zeros_like(means)
    within = (torch.arange(period, device=folded.device, dtype=folded.dtype) - (period - 1) / 2) / period
    above = whole - means - drift * within
    fading = LATELY ** torch.arange(count - 1, -1, -1, device=folded.device, dtype=folded.dtype)[:, None]
    mean, lately = above.mean(1), (above * fading).sum(1) / fading.sum()
    swing = (above * mean[:, None]).sum(2) / mean.square().sum(1, keepdim=True).clamp(min=1e-6) - 1  # SxR
    grown = (swing * fading[:, 0]).sum(1, keepdim=True) / fading.sum()
    return mean, lately, grown.clamp(-1, 1), _slope(swing).clamp(-0.3, 0.3)


def _smoothed(x: Tensor, memory: float) -> Tensor:
    """Sx1: the level at the end, old steps fading; the weights of what lies before the history are shared out."""
    weight = memory ** torch.arange(x.shape[1] - 1, -1, -1, device=x.device, dtype=x.dtype)
    if memory == 0:
        return x[:, -1:]
    return (x * weight).sum(1, keepdim=True) / weight.sum()


def _levels(x: Tensor, memories: tuple[float, ...]) -> Tensor:
    """SxMxL: the smoothed level at each step, of what came until then."""
    found = []
    for memory in memories:
        weight = _fading(x, memory)
        found.append((x @ weight) / weight.sum(0))
    return torch.stack(found, 1)


def _lines(x: Tensor, memories: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Level and slope a step, SxMxL each, at each step: a line by least squares through what came
    until then, old steps fading.
    """
    levels, slopes = [], []
    steps = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
    age = (steps - steps[:, None]).clamp(min=0)  # of the row's step at the column's
    for memory in memories:
        weight = _fading(x, memory)
        aged = weight * age
        m0, m1, m2 = weight.sum(0), aged.sum(0), (aged * age).sum(0)
        s0, s1 = x @ weight, x @ aged
        slope = (m1 * s0 - m0 * s1) / (m0 * m2 - m1.square()).clamp(min=0.1)
        levels.append((s0 + m1 * slope) / m0)
        slopes.append(slope)
    return torch.stack(levels, 1), torch.stack(slopes, 1)


def _fading(x: Tensor, memory: float) -> Tensor:
    """LxL: the weight of a step (row) at a later one (column), 0 at an earlier one."""
    steps = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
    return (memory ** (steps - steps[:, None]).clamp(min=0)).triu()


def _missed(x: Tensor, forecasts: Tensor, lead: int) -> Tensor:
    """SxM: the mean absolute error of SxMxL forecasts so many steps ahead; the first few are
    left out where there are others.
    """
    burn_in = min(BURN_IN, x.shape[1] - lead - 1)
    return (x[:, None, lead + burn_in :] - forecasts[..., burn_in:-lead]).abs().mean(2)


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
    return torch.cat([torch.zeros(n_plain + DIRECTIONS + 1), gaps[:median], torch.zeros(1), gaps[median:]])
