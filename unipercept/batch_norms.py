"""Batch norms that operations compute: their parameters, their running statistics, and the sum of several.

Shapes: B batch, C channels, H rows, W columns.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from unipercept.kernels import batch_norm_sum
from unipercept.kernels.batch_norm_sum import update_running_statistics


def summed_norms(
    xs: Sequence[Tensor],
    norms: Sequence[nn.BatchNorm2d],
    *,
    residual: Tensor | None = None,
    layer_scale: Tensor | None = None,
    sample_scale: Tensor | None = None,
) -> Tensor:
    """residual + sample_scale * layer_scale * (sum of each map's batch norm), in one operation where the
    norms take batch statistics.

    Args:
        xs, norms: as many maps BxCxHxW as norms, whose running statistics are updated as they would do it themselves.
        residual: BxCxHxW, or None.
        layer_scale: C, or None.
        sample_scale: B, or None.
    """
    if take_batch_statistics(norms):
        total, means, variances = batch_norm_sum(
            xs, *stacked_parameters(norms), residual=residual, scale=sample_scale, gain=layer_scale, eps=norms[0].eps
        )
        update_statistics(norms, means, variances, xs[0].numel() // xs[0].shape[1])
        return total
    y: Tensor = norms[0](xs[0])
    for x, norm in zip(xs[1:], norms[1:], strict=True):
        y = y + norm(x)
    if layer_scale is not None:
        y = y * layer_scale.view(1, -1, 1, 1)
    if sample_scale is not None:
        y = y * sample_scale.view(-1, 1, 1, 1)
    return y if residual is None else residual + y


def take_batch_statistics(norms: Sequence[nn.BatchNorm2d]) -> bool:
    """Whether all norms do, in the same way, so that one operation can."""
    like = norms[0]
    return all(
        type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.momentum is not None
        and norm.track_running_stats
        and (norm.momentum, norm.eps) == (like.momentum, like.eps)
        for norm in norms
    )


def stacked_parameters(norms: Sequence[nn.BatchNorm2d]) -> tuple[Tensor, Tensor]:
    """`wide_parameters` of N norms, each NxC."""
    weights, biases = zip(*map(wide_parameters, norms), strict=True)
    if len(norms) == 1:
        return weights[0][None], biases[0][None]
    return torch.stack(weights), torch.stack(biases)


def wide_parameters(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias, C each, in float32 at least, as the operations take them: a model may be in 16 bits."""
    wide = torch.promote_types(norm.weight.dtype, torch.float32)
    return norm.weight.to(wide), norm.bias.to(wide)


@torch.no_grad()
def update_statistics(norms: Sequence[nn.BatchNorm2d], means: Tensor, variances: Tensor, n_values: int) -> None:
    """Move the running statistics of N norms, in place, towards NxC means and variances of `n_values` values each."""
    momentum = norms[0].momentum
    assert momentum is not None
    running = [
        [cast(Tensor, getattr(n, name)) for n in norms]
        for name in ("running_mean", "running_var", "num_batches_tracked")
    ]
    update_running_statistics(*running, means, variances, momentum, n_values)
