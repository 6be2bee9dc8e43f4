"""Calibration of intervals on validation: factors on the distances of the quantiles from the median.

Source: split conformal prediction, Romano et al. (2019), with the ratio of residual and predicted distance as the
score, so that a level's factor is the quantile of those ratios.

Shapes: N windows, T steps, V variables, Q quantile levels, G groups of steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUPS = 8  # of steps, each with factors of its own
FEWEST = 6  # independent windows at which factors count by half
LEAST, MOST = 0.3, 5.0  # bounds of a factor


class Calibrator:
    """Collects ratios window by window; gives GxQ factors."""

    def __init__(self, levels: tuple[float, ...], horizon: int, *, per_group: int = 40_000, seed: int = 0) -> None:
        self.levels, self.median = levels, levels.index(0.5)
        self.groups = step_groups(horizon)
        self.per_group = per_group
        self._ratios: list[Tensor] = []
        self._random = torch.Generator().manual_seed(seed)

    def add(self, quantiles: Tensor, target: Tensor, observed: Tensor | None = None) -> None:
        """NxTxVxQ and NxTxV, and where the target was observed; other cells do not count."""
        ratios = distance_ratios(quantiles, target, self.median)
        if observed is not None:
            ratios = ratios.masked_fill(~observed.unsqueeze(-1), torch.nan)
        self._ratios.append(ratios.transpose(0, 1).flatten(1, 2).float().cpu())  # TxNVxQ

    def factors(self, independent: float) -> Tensor:
        """GxQ factors on the distances from the median, from a random share of the cells where there are many; 1
        where nothing was seen.

        Args:
            independent: windows of the validation that do not overlap; few pull the factors towards 1.
        """
        n_groups = int(self.groups.max()) + 1
        found = torch.ones(n_groups, len(self.levels))
        if not self._ratios:
            return found
        everything = torch.cat(self._ratios, 1)
        weight = independent / (independent + FEWEST)
        for group in range(n_groups):
            cells = everything[self.groups == group].flatten(0, 1)
            cells = cells[~cells.isnan().any(1)]
            if len(cells) > self.per_group:
                cells = cells[torch.randperm(len(cells), generator=self._random)[: self.per_group]]
            if len(cells) == 0:
                continue
            for i, level in enumerate(self.levels):
                if i != self.median:
                    outer = level if level > 0.5 else 1 - level
                    factor = float(torch.quantile(cells[:, i], min(1.0, outer * (1 + 1 / len(cells)))))
                    found[group, i] = min(MOST, max(LEAST, weight * factor + 1 - weight))
        return found


def calibrated(quantiles: Tensor, factors: Tensor, median: int) -> Tensor:
    """NxTxVxQ with the distances from the median times factors GxQ; still ascending."""
    groups = step_groups(quantiles.shape[1], len(factors)).to(quantiles.device)
    return stretched(quantiles, factors.to(quantiles)[groups][:, None], median)


def stretched(quantiles: Tensor, factors: Tensor, median: int) -> Tensor:
    """NxTxVxQ with the distances from the median times factors of that shape or one that
    broadcasts to it; still ascending.
    """
    middle = quantiles[..., median : median + 1]
    found = middle + (quantiles - middle) * factors
    above = found[..., median:].cummax(-1).values
    below = found[..., : median + 1].flip(-1).cummin(-1).values.flip(-1)
    return torch.cat([below[..., :-1], above], -1)


def step_groups(horizon: int, groups: int | None = None) -> Tensor:
    """The group of each step: equal stretches."""
    groups = groups or min(GROUPS, horizon)
    return torch.arange(horizon) * groups // horizon


def distance_ratios(quantiles: Tensor, target: Tensor, median: int) -> Tensor:
    """Residual from the median over the predicted distance, positive on the level's side."""
    middle = quantiles[..., median : median + 1]
    distance = quantiles - middle
    safe = torch.where(distance.abs() < 1e-12, torch.ones_like(distance), distance)
    return (target.unsqueeze(-1) - middle) / safe
