"""What a forecaster is made of and how it is trained: one architecture for every series, sizes in one frozen dataclass."""

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
        period: steps a cycle, for the folding; None finds it in the training rows.
        folding: "period" (H is the cycle, W the phase) or "patch" (H is 1, W the patch).
        dim: C, channels of the map.
        blocks: large-kernel blocks.
        kernel_size: of the blocks, cells of the map.
        mixing: let variables see each other.
    """

    lookback: int = 336
    horizon: int = 96
    quantiles: tuple[float, ...] = QUANTILES
    period: int | None = None
    folding: Literal["period", "patch"] = "period"
    dim: int = 32
    blocks: int = 2
    kernel_size: int = 13
    mixing: bool = False
    dropout: float = 0.2
    drop_path: float = 0.1
    epochs: int = 20
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    patience: int = 4

    def __post_init__(self) -> None:
        if self.lookback < 1 or self.horizon < 1:
            raise InputError(f"lookback and horizon must be at least 1, got {self.lookback} and {self.horizon}")
        if 0.5 not in self.quantiles or list(self.quantiles) != sorted(set(self.quantiles)):
            raise InputError(f"quantile levels must ascend and hold 0.5, got {self.quantiles}")

    def changed(self, **settings: Any) -> ForecastConfig:
        """A copy with some settings changed."""
        return replace(self, **settings)
