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
    given = _for_weight_gradient(x, dilation)
    output = F.conv2d(given, weight, bias, padding=(rows, columns), dilation=dilation, groups=weight.shape[0])
    return output if given is x else output.contiguous(memory_format=torch.channels_last)


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
    x = _for_weight_gradient(x, dilation)
    gradient: Tensor = torch.ops.aten.convolution_backward(
        grad, x, x.new_empty(channels, 1, rows, columns), None, [1, 1], list(reaches), [dilation] * 2, False, [0, 0],
        channels, [False, True, False],
    )[1]  # fmt: skip
    return gradient


def reach(weight: Tensor, dilation: int) -> tuple[int, int]:
    """Rows and columns that the kernel sees beyond its own cell."""
    return dilation * (weight.shape[-2] // 2), dilation * (weight.shape[-1] // 2)


def _for_weight_gradient(x: Tensor, dilation: int) -> Tensor:
    """In planes where torch's weight gradient reads memory that nothing wrote: of a dilated depthwise convolution over
    channels-last maps in bfloat16, on processors with AVX512-BF16 (torch 2.13, oneDNN, an AMD EPYC; errors of 1e30).
    """
    if dilation > 1 and x.dtype == torch.bfloat16 and x.device.type == "cpu":
        return x.contiguous()
    return x
