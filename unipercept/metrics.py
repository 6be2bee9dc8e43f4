"""Scores of predictions against the truth. Each is a mean over samples, so batch means can be averaged by size.

Shapes: B samples, K classes; other shapes are free.
"""

import torch
from torch import Tensor

from unipercept.errors import InputError


def accuracy(logits: Tensor, target: Tensor, *, top: int = 1) -> Tensor:
    """Share of samples whose class is among the `top` highest logits: mean_b [target_b in top-k(logits_b)].

    Args:
        logits: BxK; a tie is decided as `torch.topk` decides it, a NaN row counts as wrong.
        target: B class indices, integer, within [0, K).
        top: how many of the highest logits count, within [1, K].

    Returns:
        A scalar in [0, 1], float64.

    Raises:
        InputError: shapes that do not fit, a target or `top` out of range, or no samples.

    Source: top-k accuracy as reported for ImageNet, Russakovsky et al. (2015), section 4.1 (1 - top-k error).
    """
    if logits.ndim != 2 or target.shape != logits.shape[:1] or target.is_floating_point():
        raise InputError(
            f"accuracy needs BxK logits and B integer targets, got {tuple(logits.shape)} and {tuple(target.shape)} {target.dtype}"
        )
    _refuse_empty(logits)
    n_classes = logits.shape[1]
    if not 1 <= top <= n_classes:
        raise InputError(f"top must lie within 1 and the {n_classes} classes, got {top}")
    if target.min() < 0 or target.max() >= n_classes:
        raise InputError(f"targets must lie within [0, {n_classes}), got [{int(target.min())}, {int(target.max())}]")
    best = logits.topk(top, dim=1).indices
    hit = (best == target[:, None]).any(dim=1) & ~logits.isnan().any(dim=1)
    return hit.double().mean()


def mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """mean((prediction - target)²) over all elements, float64; squared units of the input.

    Raises:
        InputError: shapes that differ (nothing is broadcast), or nothing to average.

    Source: the MSE of the long-term forecasting tables, Zhou et al. (2021), Informer, section 4.
    """
    return _difference(prediction, target).square().mean()


def mean_absolute_error(prediction: Tensor, target: Tensor) -> Tensor:
    """mean(|prediction - target|) over all elements, float64; units of the input.

    Raises:
        InputError: shapes that differ (nothing is broadcast), or nothing to average.

    Source: the MAE of the long-term forecasting tables, Zhou et al. (2021), Informer, section 4.
    """
    return _difference(prediction, target).abs().mean()


def _difference(prediction: Tensor, target: Tensor) -> Tensor:
    if prediction.shape != target.shape:
        raise InputError(
            f"prediction and target must have one shape, got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    _refuse_empty(prediction)
    return prediction.to(torch.float64) - target.to(torch.float64)


def _refuse_empty(values: Tensor) -> None:
    if values.numel() == 0:
        raise InputError(f"a score needs at least one sample, got shape {tuple(values.shape)}")
