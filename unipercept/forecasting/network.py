"""The forecasting network: a window of a series as a map of cycles and phases, large-kernel blocks, and two heads.

    window ─instance norm, known effects off─▶ linear path ─────────────────────────────────────────┐
                     └─fold by the period─▶ S x C x R x W map ─blocks─▶ head, the same for all phases ▶ + ─▶ norm undone

Shapes: B windows, V variables, S = B V series, L past steps (lookback), T future steps (horizon), N features known in
advance, A static attributes, Q quantile levels; P steps a cycle (period), D steps a cell (patch), R cycles seen, W =
P/D cells a cycle, C channels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unipercept.blocks import FFN_RATIO
from unipercept.errors import InputError
from unipercept.forecasting.blocks import SeriesBlock
from unipercept.forecasting.settings import ForecastConfig


class SeriesForecast(NamedTuple):
    """What the network says about the next T steps."""

    point: Tensor  # BxTxV, the mean
    quantiles: Tensor | None  # BxTxVxQ, ascending along Q; None where they were not asked for
    deviation: Tensor | None = None  # Bx1xV of the window


class SeriesForecaster(nn.Module):
    """Windows of a table to the mean and quantiles of the next T steps.

    Every variable goes through the same weights by itself (channel independence). What tells variables apart,
    where the network is fitted to a table, is small: an embedding, a weight for each known feature, and a
    pull towards the long-run mean.

    `widest` is how many values a series takes where it takes most: in a block's hidden layer, or as quantiles.

    Args:
        config: sizes.
        n_variables: variables that have something of their own; 0 for weights that serve any series.
        n_features: N, features known in advance.
        n_static: A, static attributes of each series: they scale and shift what the blocks read, and
            change the features' effects.
    """

    def __init__(self, config: ForecastConfig, n_variables: int = 0, n_features: int = 0, n_static: int = 0) -> None:
        super().__init__()
        self.config, self.n_variables, self.n_features, self.n_static = config, n_variables, n_features, n_static
        self.lookback, self.horizon = config.lookback, config.horizon
        self.period, self.patch = config.cell_sizes()
        rows, later = config.rows(), config.later_rows()
        own = max(1, n_variables)
        levels = len(config.quantiles)
        self.dense = nn.Linear(config.lookback, config.horizon, bias=False) if config.linear == "dense" else None
        if self.dense is not None:
            with torch.no_grad():
                self.dense.weight.copy_(cycle_mean_weight(config.lookback, config.horizon, self.period))
        self.effect = nn.Parameter(torch.zeros(own, n_features)) if n_features else None
        self.effect_of = nn.Parameter(torch.zeros(n_static, n_features)) if n_static and n_features else None
        self.attribute = nn.Linear(n_static, 2 * config.dim, bias=False) if n_static else None
        if self.attribute is not None:
            nn.init.zeros_(self.attribute.weight)
        self.pull = nn.Parameter(torch.zeros(own, config.horizon)) if config.pull else None
        self.n_known = n_features if config.map_features else 0
        self.stem = nn.Linear(STEM_CHANNELS * self.patch + self.n_known, config.dim)
        self.identity = nn.Embedding(n_variables, config.dim) if n_variables and config.identity else None
        if self.identity is not None:
            nn.init.zeros_(self.identity.weight)
        rates = torch.linspace(0, config.drop_path, config.blocks).tolist() if config.blocks else []
        self.blocks = nn.Sequential(
            *(SeriesBlock(config.dim, config.kernel_size, rate, config.layer_scale) for rate in rates)
        )
        self.mix = nn.Parameter(torch.zeros(n_variables, n_variables)) if config.mixing and n_variables else None
        self.dropout = nn.Dropout(config.dropout)
        cells = rows * (config.cell_sizes()[0] // self.patch)
        self.widest = max(FFN_RATIO * config.dim * cells, later * self.period * levels)
        if config.head == "flatten":
            self.head = nn.Linear(config.dim * cells, config.horizon)
        else:
            self.head = nn.Linear(config.dim * rows, later * self.patch)
        nn.init.zeros_(self.head.weight)  # the blocks add to the linear path; at first they add nothing
        nn.init.zeros_(self.head.bias)
        self.spread = nn.Linear(config.dim * rows, later * self.patch * levels)
        nn.init.zeros_(self.spread.weight)
        self.median = config.quantiles.index(0.5)
        self.away: Tensor
        self.register_buffer("away", sums_away_from(self.median, levels), persistent=False)
        with torch.no_grad():
            self.spread.bias.copy_(_normal_gaps(config.quantiles).repeat(later * self.patch))

    def forward(
        self,
        x: Tensor,
        observed: Tensor | None = None,
        features: Tensor | None = None,
        identity: Tensor | None = None,
        static: Tensor | None = None,
        *,
        with_quantiles: bool = True,
    ) -> SeriesForecast:
        """Forecast each window.

        Args:
            x: BxLxV, L at most `self.lookback`; missing values may hold anything finite.
            observed: BxLxV bool, False where missing; None where nothing is.
            features: Bx(L+T)xN known in advance; with fewer than T future steps, that many are forecast.
            identity: BxV, which of the `n_variables` each is; None for 0, 1, 2 ….
            static: BxVxA attributes of each series.

        Returns:
            T is `self.horizon`, or fewer with fewer features.
        """
        batch, lookback, variables = x.shape
        horizon = self.horizon
        if features is not None:
            horizon = min(horizon, features.shape[1] - lookback)  # no further than the features are known
        if lookback > self.lookback:
            raise InputError(f"the network sees {self.lookback} steps, got {lookback}; give it the last ones")
        if identity is None:
            identity = torch.arange(variables, device=x.device).expand(batch, variables)
        own = identity.reshape(-1)
        if self.attribute is not None and static is None:
            raise InputError(f"the network was built for {self.n_static} static attributes of each series, got none")
        attributes = None if static is None or self.attribute is None else static.reshape(-1, self.n_static)
        series = x.transpose(1, 2).reshape(-1, lookback)
        there = None if observed is None else observed.transpose(1, 2).reshape(-1, lookback).to(x.dtype)
        z, mean, std = self._normalized(series, there)
        later = None
        if self.effect is not None:
            if features is None:
                raise InputError(f"the network was built for {self.n_features} features known in advance, got none")
            known = features.repeat_interleave(variables, 0) if variables > 1 else features
            weight = self._own(self.effect, own).expand(len(series), -1)
            if self.effect_of is not None and attributes is not None:
                weight = weight + attributes @ self.effect_of
            effect = torch.einsum("stn,sn->st", known, weight)
            z, later = z - effect[:, :lookback], effect[:, lookback:]
            z = z if there is None else z * there
        if lookback < self.lookback and self.dense is not None:
            there = torch.ones_like(z) if there is None else there
            z, there = (F.pad(part, (self.lookback - lookback, 0)) for part in (z, there))
        past_features = known[:, :lookback] if self.n_known else None
        if past_features is not None and lookback < self.lookback and self.dense is not None:
            past_features = F.pad(past_features, (0, 0, self.lookback - lookback, 0))
        point, columns = self._core(z, there, past_features, own, batch, horizon, attributes)
        if later is not None:
            point = point + later
        if self.pull is not None:
            mean = mean * (1 + self._own(self.pull, own)[:, :horizon])
        quantiles = None
        if with_quantiles:
            centre = point if self.config.joint else point.detach()
            spread = self._ascending(self._unfolded(self.spread(columns), horizon))
            quantiles = (centre.unsqueeze(-1) + spread) * std.unsqueeze(-1) + mean.unsqueeze(-1)
            quantiles = quantiles.reshape(batch, variables, horizon, -1).transpose(1, 2)
        point = (point * std + mean).reshape(batch, variables, horizon).transpose(1, 2)
        return SeriesForecast(point, quantiles, std.reshape(batch, 1, variables))

    def _normalized(self, series: Tensor, there: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """SxL of mean 0 and deviation about 1, and Sx1 mean and deviation.

        Source: Kim et al. (2022), RevIN; with gaps.
        """
        floor = self.config.quiet**2
        if there is None:
            mean = series.mean(1, keepdim=True)
            std = (series.var(1, keepdim=True, correction=0) + floor).sqrt()
            return (series - mean) / std, mean, std
        count = there.sum(1, keepdim=True).clamp(min=1)
        mean = (series * there).sum(1, keepdim=True) / count
        centred = (series - mean) * there
        std = (centred.square().sum(1, keepdim=True) / count + floor).sqrt()
        return centred / std, mean, std

    def _core(
        self,
        z: Tensor,
        there: Tensor | None,
        known: Tensor | None,
        own: Tensor,
        batch: int,
        horizon: int,
        attributes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """SxL normalised to SxT, and what is seen of each phase, SxWx(R C)."""
        period = self.period
        folded, seen = _folded(z, period), _folded(torch.ones_like(z) if there is None else there, period)
        missing = self.config.rows() - folded.shape[1]  # cycles before the history began: no cells, zero for the heads
        point = z.new_zeros(len(z), horizon) if self.dense is None else self.dense(z)[:, :horizon]
        cells = torch.unflatten(_with_coordinates(folded, seen, self.config.rows()), -1, (-1, self.patch))
        inputs = cells.permute(0, 2, 3, 1, 4).flatten(3)
        if known is not None:  # SxLxN, of each cell's first step
            front = F.pad(known, (0, 0, -known.shape[1] % period, 0))[:, :: self.patch]
            inputs = torch.cat([inputs, torch.unflatten(front, 1, (-1, period // self.patch))], -1)
        y = self.stem(inputs).permute(0, 3, 1, 2)
        if self.attribute is not None and attributes is not None:
            scale, shift = self.attribute(attributes)[..., None, None].chunk(2, 1)
            y = y * (1 + scale) + shift
        if self.identity is not None:
            y = y + self._own(self.identity.weight, own)[:, :, None, None]
        if self.mix is not None:
            grouped = torch.unflatten(y, 0, (batch, -1))
            y = y + torch.einsum("vw,bwcrx->bvcrx", self.mix, grouped).flatten(0, 1)
        y = F.pad(self.dropout(self.blocks(y)), (0, 0, missing, 0))
        columns = y.permute(0, 3, 2, 1).flatten(2)  # SxWx(R C): what is seen of each phase
        if self.config.head == "flatten":
            point = point + self.head(columns.flatten(1))[:, :horizon]
        else:
            point = point + self._unfolded(self.head(columns), horizon)[..., 0]
        return point, columns

    def _own(self, table: Tensor, own: Tensor) -> Tensor:
        """Each series' row of a table of the variables.

        A product: the gradient of a look-up is a slow sort on a GPU.
        """
        if len(table) == 1:
            return table
        chosen = own[:, None] == torch.arange(len(table), device=own.device)
        return chosen.to(table.dtype) @ table

    def _unfolded(self, cells: Tensor, horizon: int) -> Tensor:
        """SxWx(R' D n), future cycles of each phase, to SxTxn in the order of time."""
        later, patch = self.config.later_rows(), self.patch
        return torch.unflatten(cells, 2, (later, patch, -1)).transpose(1, 2).flatten(1, 3)[:, :horizon]

    def _ascending(self, raw: Tensor) -> Tensor:
        """SxTxQ of anything to ascending: the median is free, each step away from it is a
        softplus, so levels cannot cross.
        """
        gaps = F.softplus(raw)
        middle = raw[..., self.median : self.median + 1]
        return middle + gaps @ self.away.to(raw.dtype)


STEM_CHANNELS = 5  # value, whether it was seen, age in cycles, phase, length of the cycle


def cycle_mean_weight(lookback: int, horizon: int, period: int) -> Tensor:
    """TxL weights that forecast the mean of the past steps of the same phase."""
    past = torch.arange(-lookback, 0)
    same = ((torch.arange(horizon)[:, None] - past) % period == 0).float()
    return same / same.sum(1, keepdim=True).clamp(min=1)


def sums_away_from(median: int, levels: int) -> Tensor:
    """QxQ: which steps add up to a level's distance from the median, with their sign; the median itself is at none."""
    step, level = torch.arange(levels)[:, None], torch.arange(levels)
    above = (step > median) & (step <= level)
    below = (step < median) & (step >= level)
    return above.float() - below.float()


def _folded(z: Tensor, period: int) -> Tensor:
    """SxL to SxRxP, the last step in the last cell; zeros before the first."""
    return torch.unflatten(F.pad(z, (-z.shape[1] % period, 0)), 1, (-1, period))


def _with_coordinates(folded: Tensor, seen: Tensor, most_rows: int) -> Tensor:
    """SxRxP twice to Sx5xRxP: where a cell lies, since a convolution does not know."""
    rows, period = folded.shape[1:]
    age = torch.arange(1 - rows, 1, device=folded.device, dtype=folded.dtype)[:, None].expand(rows, period) / most_rows
    phase = (torch.arange(period, device=folded.device, dtype=folded.dtype) / period)[None].expand(rows, period)
    length = torch.full_like(phase, math.log(period) / 4)
    return torch.stack([folded, seen, *(part.expand_as(folded) for part in (age, phase, length))], 1)


def _normal_gaps(quantiles: tuple[float, ...]) -> Tensor:
    """What `_ascending` turns into the quantiles of a normal of 0.7 deviations: a rough start."""
    levels = torch.tensor(quantiles, dtype=torch.float64)
    gaps = torch.log(torch.expm1((0.7 * torch.special.ndtri(levels)).diff()))
    median = quantiles.index(0.5)
    return torch.cat([gaps[:median], torch.zeros(1), gaps[median:]]).float()
