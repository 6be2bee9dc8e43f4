"""Settings of a forecaster: one architecture for every series, sizes and training recipe in one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from unipercept.errors import InputError

# 80 % and 95 % intervals, and the nine deciles of the weighted quantile loss.
QUANTILES = (0.025, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.975)


@dataclass(frozen=True)
class ForecastConfig:
    """Sizes and recipe of a `SeriesForecaster`.

    Args:
        lookback: L, past steps that it sees; shorter histories are padded and masked.
        horizon: T, future steps in one pass; longer horizons go on from the forecast.
        quantiles: levels, ascending, with 0.5 among them.
        period: steps a cycle, for the folding; None: 24.
        patch: D, steps of a cycle in a cell of the map; a cycle that it does not divide is
            folded at the nearest multiple.
        dim: C, channels of the map.
        blocks: large-kernel blocks.
        kernel_size: of the blocks, cells of the map.
        linear: the path beside the blocks: "dense" from every step to every step, or "none".
        head: "phase" forecasts each phase from the cycles' cells of that phase, with shared
            weights; "flatten" from all cells.
        least_squares: start the dense path at ridge regression of the training windows.
        clock: in the benchmark, give the time of day as features known in advance.
        map_features: show the blocks what is known in advance of each cell, beside its linear effect.
        pull: learn how far each step returns to the long-run mean.
        identity: give each variable an embedding.
        mixing: let variables see each other.
        quiet: a window whose deviation is below this (in deviations of the training rows) is not blown up further.
        quantile_weight: of the quantiles' loss beside the mean's; 0 trains them afterwards, the rest held fixed.
        evenness: windows count by their deviation to the power of -2 times this.
        dropout, drop_path, layer_scale: of the blocks and heads.
    """

    lookback: int = 336
    horizon: int = 96
    quantiles: tuple[float, ...] = QUANTILES
    period: int | None = None
    patch: int = 4
    dim: int = 32
    blocks: int = 2
    kernel_size: int = 13
    linear: Literal["dense", "none"] = "dense"
    head: Literal["phase", "flatten"] = "phase"
    least_squares: bool = True
    clock: bool = True
    map_features: bool = False
    pull: bool = False
    identity: bool = True
    mixing: bool = False
    quiet: float = 0.1
    dropout: float = 0.2
    drop_path: float = 0.1
    layer_scale: float | None = 0.1
    joint: bool = True
    # recipe
    epochs: int = 20
    batch_size: int = 512  # series
    series_an_epoch: int = 60_000
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    average: float = 0.99  # of the weights, a step
    patience: int = 5
    loss: Literal["mse", "huber", "mae", "mixed"] = "mse"
    frequency_weight: float = 0.0
    quantile_weight: float = 0.0
    evenness: float = 0.5

    def __post_init__(self) -> None:
        if self.lookback < 1 or self.horizon < 1:
            raise InputError(f"lookback and horizon must be at least 1, got {self.lookback} and {self.horizon}")
        if 0.5 not in self.quantiles or list(self.quantiles) != sorted(set(self.quantiles)):
            raise InputError(f"quantile levels must ascend and hold 0.5, got {self.quantiles}")

    def cell_sizes(self) -> tuple[int, int]:
        """Period P and patch D with D dividing P."""
        period = max(1, self.period or 24)
        patch = min(self.patch, period)
        return max(1, round(period / patch)) * patch, patch

    def rows(self) -> int:
        """R, cycles that the map holds."""
        return -(-self.lookback // self.cell_sizes()[0])

    def later_rows(self) -> int:
        """R', cycles that are forecast."""
        return -(-self.horizon // self.cell_sizes()[0])

    def changed(self, **settings: Any) -> ForecastConfig:
        """A copy with some settings changed."""
        return replace(self, **settings)
