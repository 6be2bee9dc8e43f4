"""The reference in plain PyTorch, forward and backward.

Shapes: B batch, C channels, H rows, W columns, T terms.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def batch_norm_sum_reference(
    xs: Sequence[Tensor],
    weights: Tensor,
    biases: Tensor,
    residual: Tensor | None,
    scale: Tensor | None,
    gain: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum BxCxHxW; means and variances of the terms, TxC."""
    wide = torch.float64 if xs[0].dtype == torch.float64 else torch.float32
    weights, biases = weights.to(wide), biases.to(wide)
    parts = [
        torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        for x, weight, bias in zip(xs, weights.unbind(), biases.unbind(), strict=True)
    ]
    output = parts[0][0]
    for part in parts[1:]:
        output = output + part[0]
    if gain is not None:
        output = output * gain[:, None, None].to(output.dtype)
    if scale is not None:
        output = output * scale[:, None, None, None].to(output.dtype)
    if residual is not None:
        output = residual + output
    means = torch.stack([part[1] for part in parts])
    return output, means, torch.stack([part[2] for part in parts]).pow(-2) - eps


def batch_norm_sum_backward_reference(
    grad: Tensor,
    xs: Sequence[Tensor],
    weights: Tensor,
    biases: Tensor,
    means: Tensor,
    variances: Tensor,
    scale: Tensor | None,
    gain: Tensor | None,
    eps: float,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Gradients of the terms; of the weights, TxC, of each bias, C, and of the gain, C, empty without one."""
    if scale is not None:
        grad = grad * scale[:, None, None, None].to(grad.dtype)
    rates, weights, biases = (variances + eps).rsqrt(), weights.to(variances.dtype), biases.to(variances.dtype)
    strengths = weights if gain is None else weights * gain.to(weights.dtype)
    found = [
        torch.ops.aten.native_batch_norm_backward(
            grad.to(x.dtype), x, weight, None, None, mean, rate, True, eps, [True, True, True]
        )
        for x, weight, mean, rate in zip(xs, strengths.unbind(), means.unbind(), rates.unbind(), strict=True)
    ]
    of_weights, of_bias = torch.stack([f[1] for f in found]), found[0][2]  # of the norms' own results times the gain
    if gain is None:
        return [f[0] for f in found], of_weights, of_bias, means.new_empty(0)
    of_gain = (weights * of_weights).sum(dim=0) + biases.sum(dim=0) * of_bias
    return [f[0] for f in found], of_weights * gain, of_bias * gain, of_gain
