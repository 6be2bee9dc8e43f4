"""The backbone's block on the small maps of a series: its large depthwise kernel as one matrix a channel.

A map of 14 x 6 cells is smaller than a 13 x 13 kernel, so the convolution is a product with a matrix of 84 x 84 in
each channel: fewer multiplications than taps, and batched matrix products run at full speed on CPUs and GPUs
alike, forward and backward.

Shapes: S series, C channels, R rows, W columns, K kernel size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unipercept.blocks import BATCH_NORM_EPS, BRANCHES, Block, channels_last
from unipercept.errors import InputError
from unipercept.kernels import depthwise_conv2d, feed_forward, feed_forward_train

LARGEST_MATRIX = 640  # cells; above, the convolution is cheaper


class MapConv(nn.Module):
    """A KxK depthwise kernel and its dilated small ones, summed before they are applied; zero padding.

    The branches have no norm of their own, so that one product serves all of them in training
    too; one norm follows the sum.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        if kernel_size not in BRANCHES and kernel_size not in (3, 5):
            raise InputError(f"kernel size must be 3 or one of {', '.join(map(str, BRANCHES))}; got {kernel_size}")
        self.kernel_size = kernel_size
        self.weight = nn.Parameter(torch.randn(channels, kernel_size, kernel_size) / kernel_size)
        sizes = [size for size, _ in BRANCHES.get(kernel_size, ())]
        self.branches = nn.ParameterList(nn.Parameter(torch.randn(channels, k, k) / (2 * k)) for k in sizes)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """SxCxRxW to the same, times C `scale`."""
        rows, columns = x.shape[2:]
        weight = self.merged()
        weight = (weight if scale is None else weight * scale[:, None, None]).to(x.dtype)
        if rows * columns > LARGEST_MATRIX:
            return depthwise_conv2d(x.contiguous(), weight[:, None])
        y = torch.bmm(x.flatten(2).transpose(0, 1), toeplitz(weight, rows, columns))
        return torch.unflatten(y.transpose(0, 1), 2, (rows, columns))

    def merged(self) -> Tensor:
        """CxKxK: the large kernel with the dilated ones in their places."""
        weight: Tensor = self.weight
        for (size, dilation), branch in zip(BRANCHES.get(self.kernel_size, ()), self.branches, strict=True):
            spread = weight.new_zeros(weight.shape[0], *[dilation * (size - 1) + 1] * 2)
            spread[:, ::dilation, ::dilation] = branch
            margin = (self.kernel_size - spread.shape[-1]) // 2
            weight = weight + nn.functional.pad(spread, (margin,) * 4)
        return weight


def toeplitz(weight: Tensor, rows: int, columns: int) -> Tensor:
    """CxKxK kernels to the CxRWxRW matrices that take a flat map (first index) to the convolved one, zero padding."""
    reach = weight.shape[-1] // 2
    high, wide = rows - 1 - reach, columns - 1 - reach  # negative: taps that no cell can reach are cut off
    offsets = nn.functional.pad(weight, (wide, wide, high, high))  # Cx(2R-1)x(2W-1): by distance of input from output
    shifted = offsets.unfold(1, rows, 1).unfold(2, columns, 1)  # output (counted backwards), then input
    return shifted.flip(1, 2).flatten(3).flatten(1, 2).transpose(1, 2)


class SeriesBlock(Block):
    """The backbone's block: its convolution replaced by `MapConv`, everything else as it is.

    Norms that keep their statistics are folded into the weights before them, in training too: a pass over the map less
    for each, and on a GPU a slow one backward.
    """

    def __init__(self, channels: int, kernel_size: int, drop_path_rate: float, layer_scale: float | None) -> None:
        super().__init__(channels, 0, drop_path_rate, layer_scale)
        self.dwconv = MapConv(channels, kernel_size)
        self.norm = nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        first, last = self.norm, self.pwconv2[2]
        assert isinstance(first, nn.BatchNorm2d)
        assert isinstance(last, nn.BatchNorm2d)
        if first.training or last.training or self.calls_layers():
            return super().forward(x)
        scale, shift = _affine(first)
        y = channels_last(self.dwconv(x, scale) + shift[:, None, None].to(x.dtype))
        scale, shift = _affine(last)
        if self.gamma is not None:
            scale, shift = scale * self.gamma, shift * self.gamma
        down_w, down_b, up_w, up_b, w1, b1, gamma, beta, w2, _ = self._pointwise_weights()
        w2 = w2 * scale[:, None]
        if torch.is_grad_enabled():
            y = feed_forward_train(y, down_w, down_b, up_w, up_b, w1, b1, gamma, beta, w2, shift)
            added: Tensor = self.drop_path(y.permute(0, 3, 1, 2))
            return x + added
        shift = shift + w2 @ beta.flatten()
        y = feed_forward(y, channels_last(x), down_w, down_b, up_w, up_b, w1, b1, gamma, w2, shift)
        return y.permute(0, 3, 1, 2)


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a norm that keeps its statistics multiplies each channel by, and adds to it."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale: Tensor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale
