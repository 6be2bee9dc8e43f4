"""The reference in plain PyTorch.

Shapes: B batch, C channels, H rows, W columns, KH and KW kernel rows and columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from unipercept.kernels.depthwise_conv2d.padding import Padding, fold_poles, pad


def depthwise_conv2d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, padding: Padding
) -> Tensor:
    """BxCxHxW, Cx1xKHxKW and C to BxCxHxW; the padding keeps the size."""
    rows, columns = reach(weight, dilation)
    if padding != "zero":
        x, rows, columns = pad(x, rows, columns, padding), 0, 0
    return F.conv2d(x, weight, bias, padding=(rows, columns), dilation=dilation, groups=weight.shape[0])


def input_gradient_reference(grad: Tensor, weight: Tensor, dilation: int, padding: Padding) -> Tensor:
    """Gradient of the output, BxCxHxW, to that of the input."""
    flipped = weight.flip(-2, -1)
    if padding in ("zero", "circular", "cylinder"):
        return depthwise_conv2d_reference(grad, flipped, None, dilation, padding)
    rows = reach(weight, dilation)[0]
    spread = depthwise_conv2d_reference(F.pad(grad, (0, 0, rows, rows)), flipped, None, dilation, "cylinder")
    return fold_poles(spread, rows, padding)


def weight_gradient_reference(
    x: Tensor, grad: Tensor, rows: int, columns: int, dilation: int, padding: Padding
) -> Tensor:
    """Input and gradient of the output, both BxCxHxW, to the gradient Cx1xKHxKW of the weight."""
    channels, reaches = x.shape[1], (dilation * (rows // 2), dilation * (columns // 2))
    if padding != "zero":
        x, reaches = pad(x, *reaches, padding), (0, 0)
    gradient: Tensor = torch.ops.aten.convolution_backward(
        grad, x, x.new_empty(channels, 1, rows, columns), None, [1, 1], list(reaches), [dilation] * 2, False, [0, 0],
        channels, [False, True, False],
    )[1]  # fmt: skip
    return gradient


def reach(weight: Tensor, dilation: int) -> tuple[int, int]:
    """Rows and columns that the kernel sees beyond its own cell."""
    return dilation * (weight.shape[-2] // 2), dilation * (weight.shape[-1] // 2)
