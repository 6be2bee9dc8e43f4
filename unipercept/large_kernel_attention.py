"""Large-kernel attention: a map gates itself by what a large, decomposed depthwise kernel sees around each cell.

Module and parameter names are those of the official VAN checkpoints. Source: Guo et al. (2022), arXiv 2202.09741.

Shapes: B batch, C channels, H rows, W columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unipercept.blocks import DepthwiseConv2d
from unipercept.errors import InputError
from unipercept.kernels.depthwise_conv2d.padding import Padding

KERNEL_SIZE, DILATION = 21, 3  # published: 5x5, then 7x7 of dilation 3, instead of 21x21


class LargeKernelAttention(nn.Module):
    """x * pointwise(dilated(local(x))), all with bias.

    A KxK kernel is decomposed into one of 2d - 1 and one of ceil(K / d) with dilation d (equation 1 of the source); the
    second is rounded up to an odd size.

    Args:
        channels: C.
        kernel_size: K.
        dilation: d.
        padding: what the convolutions see beyond the edge; "sphere" and "sphere_poles" for global grids.

    Raises:
        InputError: sizes below 1, or a dilation larger than the kernel.
    """

    def __init__(
        self, channels: int, kernel_size: int = KERNEL_SIZE, dilation: int = DILATION, padding: Padding = "zero"
    ) -> None:
        super().__init__()
        local, distant = decomposed(kernel_size, dilation)
        self.conv0 = DepthwiseConv2d(channels, local, bias=True, padding=padding)
        self.conv_spatial = DepthwiseConv2d(channels, distant, dilation, bias=True, padding=padding)
        self.conv1 = Pointwise(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.conv1(self.conv_spatial(self.conv0(x)))
        return x * gate


class SpatialAttention(nn.Module):
    """1x1, GELU, large-kernel attention, 1x1.

    The published block adds its input here; `shortcut=False` leaves that out.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = KERNEL_SIZE,
        dilation: int = DILATION,
        padding: Padding = "zero",
        shortcut: bool = True,
    ) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.proj_1 = Pointwise(channels, channels)
        self.spatial_gating_unit = LargeKernelAttention(channels, kernel_size, dilation, padding)
        self.proj_2 = Pointwise(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.proj_2(self.spatial_gating_unit(F.gelu(self.proj_1(x))))
        return x + y if self.shortcut else y


class Pointwise(nn.Conv2d):
    """A 1x1 convolution as one matrix product over the cells, which is what libraries do best on channels-last maps."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return y.permute(0, 3, 1, 2)


def decomposed(kernel_size: int, dilation: int) -> tuple[int, int]:
    """Sizes of the local and of the dilated kernel that replace one of `kernel_size`: (21, 3) gives (5, 7)."""
    if not 1 <= dilation <= kernel_size:
        raise InputError(f"large-kernel attention needs 1 <= dilation <= kernel_size, got {dilation} and {kernel_size}")
    distant = -(-kernel_size // dilation)
    return 2 * dilation - 1, distant + 1 - distant % 2


def reach(kernel_size: int, dilation: int) -> int:
    """Cells that the pair sees to each side: 2 + 9 for the published sizes."""
    local, distant = decomposed(kernel_size, dilation)
    return local // 2 + dilation * (distant // 2)


def initialise(module: nn.Module) -> None:
    """As published: linear layers ~ N(0, 0.02), convolutions He-normal by their fan out, biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
    elif isinstance(module, DepthwiseConv2d):
        nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
    if isinstance(module, nn.Linear | nn.Conv2d | DepthwiseConv2d) and module.bias is not None:
        with torch.no_grad():
            module.bias.zero_()
