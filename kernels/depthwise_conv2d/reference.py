"""Plain PyTorch that says what is right.

Shapes: B batch, C channels, H rows, W columns, KH and KW kernel rows and columns.
"""

import torch.nn.functional as F
from torch import Tensor


def depthwise_conv2d_reference(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """BxCxHxW, Cx1xKHxKW and C to BxCxHxW; zero padding keeps the size."""
    rows, columns = weight.shape[-2:]
    padding = (dilation * (rows // 2), dilation * (columns // 2))
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=weight.shape[0])
