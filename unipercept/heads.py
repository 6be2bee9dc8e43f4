"""Features to predictions: class logits, and forecasts of a series with the normalisation around them.

Shapes: B samples, D features, K classes, V variables, L past steps (lookback), T future steps (horizon).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from unipercept.errors import InputError

INITIAL_STD = 0.02  # of the weights, normal cut at two deviations: the backbone's own initialisation
NORM_EPS = 1e-6  # of the layer norm, as in the backbone


class ClassificationHead(nn.Module):
    """Pooled features to class logits: layer norm, dropout, linear.

    Args:
        in_features: D, e.g. `model.num_features`.
        num_classes: K.
        dropout: share of the features that is dropped in training.
        norm: False where the features come normalised, as those of `forward_head(features, pre_logits=True)`.
        init_scale: factor on the initial weights; 0.001 is usual when fine-tuning, so that the logits start near zero.
    """

    def __init__(
        self, in_features: int, num_classes: int, *, dropout: float = 0.0, norm: bool = True, init_scale: float = 1.0
    ) -> None:
        super().__init__()
        _check_sizes(in_features=in_features, num_classes=num_classes)
        self.norm = nn.LayerNorm(in_features, eps=NORM_EPS) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.linear = _linear(in_features, num_classes, init_scale)

    def forward(self, features: Tensor) -> Tensor:
        """BxD, or BxDxHxW that is averaged over H and W first, to BxK.

        Raises:
            InputError: another number of dimensions or features.
        """
        pooled = features.mean(dim=(2, 3)) if features.ndim == 4 else features
        if pooled.ndim != 2 or pooled.shape[1] != self.linear.in_features:
            raise InputError(
                f"the head needs BxD or BxDxHxW features with D = {self.linear.in_features}, got {tuple(features.shape)}"
            )
        logits: Tensor = self.linear(self.dropout(self.norm(pooled)))
        return logits


class ForecastHead(nn.Module):
    """Features of a window to its next T steps: flatten, dropout, linear.

    Every future step sees every position of the feature map, so neither a decoder nor a loop over steps is needed.
    One window is one variable (channel independence): fold the variables into the batch before, and out of it after.

    Args:
        in_features: features of one window, all positions together: C*H*W of its map.
        horizon: T.
        dropout: share of the features that is dropped in training.

    Source: the flatten head of Nie et al. (2023), PatchTST, section 3.1.
    """

    def __init__(self, in_features: int, horizon: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        _check_sizes(in_features=in_features, horizon=horizon)
        self.dropout = nn.Dropout(dropout)
        self.linear = _linear(in_features, horizon)

    def forward(self, features: Tensor) -> Tensor:
        """BxCxHxW (or Bx...) to BxT.

        Raises:
            InputError: another number of features in a window.
        """
        flat = features.flatten(1)
        if flat.shape[1] != self.linear.in_features:
            raise InputError(
                f"the head needs {self.linear.in_features} features in a window, got {flat.shape[1]} from {tuple(features.shape)}"
            )
        forecast: Tensor = self.linear(self.dropout(flat))
        return forecast


class WindowStatistics(NamedTuple):
    """Mean and deviation removed from each window, in the units of the series."""

    mean: Tensor  # Bx1xV
    std: Tensor  # Bx1xV, positive


class ReversibleInstanceNorm(nn.Module):
    """Remove each window's own mean and deviation before a network, and restore them in its forecast.

    A level that drifts between training and use then does not matter. Statistics are those of the input
    window, never of the future.

    Args:
        n_variables: V; with `affine`, each gets a learned scale and shift. 1 serves any V with one shared pair.
        affine: learn the scale and shift.
        eps: added to the variance, in squared units of the series, so that a constant window stays finite.

    Source: Kim et al. (2022), RevIN, equations 1-3.
    """

    def __init__(self, n_variables: int = 1, *, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        _check_sizes(n_variables=n_variables)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(n_variables), requires_grad=affine)
        self.bias = nn.Parameter(torch.zeros(n_variables), requires_grad=affine)

    def normalize(self, series: Tensor) -> tuple[Tensor, WindowStatistics]:
        """BxLxV to BxLxV of mean 0 and deviation 1 (before scale and shift), and what was taken off.

        Raises:
            InputError: not BxLxV.
        """
        if series.ndim != 3 or series.shape[1] == 0:
            raise InputError(f"a batch of windows must be BxLxV with L > 0, got {tuple(series.shape)}")
        mean = series.mean(dim=1, keepdim=True).detach()
        std = (series.var(dim=1, keepdim=True, correction=0) + self.eps).sqrt().detach()
        return (series - mean) / std * self.weight + self.bias, WindowStatistics(mean, std)

    def denormalize(self, series: Tensor, statistics: WindowStatistics) -> Tensor:
        """BxTxV of normalised values back to the units of the window that `statistics`
        came from; inverts `normalize`.
        """
        # RevIN's own guard: a scale that training drove to zero is not divided by.
        return (series - self.bias) / (self.weight + self.eps**2) * statistics.std + statistics.mean


def _linear(in_features: int, out_features: int, scale: float = 1.0) -> nn.Linear:
    linear = nn.Linear(in_features, out_features)
    nn.init.trunc_normal_(linear.weight, std=INITIAL_STD, a=-2 * INITIAL_STD, b=2 * INITIAL_STD)
    nn.init.zeros_(linear.bias)
    with torch.no_grad():
        linear.weight.mul_(scale)
    return linear


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name} must be at least 1, got {size}")
