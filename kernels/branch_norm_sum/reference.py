"""The reference in plain PyTorch, forward and backward.

Shapes: B batch, C channels, H rows, W columns, T branches.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from unipercept.kernels.batch_norm_sum.reference import batch_norm_sum_backward_reference, batch_norm_sum_reference
from unipercept.kernels.depthwise_conv2d.reference import (
    depthwise_conv2d_reference,
    input_gradient_reference,
    weight_gradient_reference,
)


def branch_norm_sum_reference(
    x: Tensor, weights: Sequence[Tensor], scales: Tensor, shifts: Tensor, dilations: Sequence[int], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum BxCxHxW; means and variances, TxC."""
    return batch_norm_sum_reference(_outputs(x, weights, dilations), scales, shifts, None, None, None, eps)


def branch_norm_sum_backward_reference(
    grad: Tensor, x: Tensor, weights: Sequence[Tensor], scales: Tensor, means: Tensor, variances: Tensor,
    dilations: Sequence[int], eps: float,
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:  # fmt: skip
    """Gradients of the map; of the weights; of the norms' weights and biases, TxC."""
    of_outputs, grad_scales, grad_shift, _ = batch_norm_sum_backward_reference(
        grad, _outputs(x, weights, dilations), scales, torch.zeros_like(scales), means, variances, None, None, eps
    )
    grad_x, grad_weights = torch.zeros_like(x), []
    for of_output, weight, dilation in zip(of_outputs, weights, dilations, strict=True):
        grad_x += input_gradient_reference(of_output, weight.to(x.dtype), dilation, "zero")
        rows, columns = weight.shape[-2:]
        grad_weights.append(weight_gradient_reference(x, of_output, rows, columns, dilation, "zero").to(weight.dtype))
    return grad_x, grad_weights, grad_scales, grad_shift.repeat(len(weights), 1)


def _outputs(x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int]) -> list[Tensor]:
    return [
        depthwise_conv2d_reference(x, weight.to(x.dtype), None, dilation, "zero")
        for weight, dilation in zip(weights, dilations, strict=True)
    ]
