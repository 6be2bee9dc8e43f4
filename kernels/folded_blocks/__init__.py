"""A run of UniRepLKNet blocks in inference form: depthwise convolution, squeeze-excite,
feed-forward with GRN, residual.

Each block is `depthwise_conv2d_with_sums` and then `feed_forward`, and for most batches on a GPU it runs that way. For
a batch of one image, all blocks of a stage are one launch there, because a layer takes less time than its launch. On a
CPU they run together for any batch, because Python's overhead between two kernels takes as long as a small kernel.

Shapes: B batch, C channels, H rows, W columns, K kernel rows and columns, R squeezed channels, N hidden channels.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from unipercept.errors import InputError
from unipercept.kernels.depthwise_conv2d import depthwise_conv2d_with_sums
from unipercept.kernels.dispatch import WATCHED, choose_fused, is_watched
from unipercept.kernels.feed_forward import feed_forward


class BlockWeights(NamedTuple):
    """The parameters of one block."""

    conv_w: Tensor  # Cx1xKxK
    conv_b: Tensor | None  # C
    down_w: Tensor  # RxC (or RxCx1x1)
    down_b: Tensor  # R
    up_w: Tensor  # CxR (or CxRx1x1)
    up_b: Tensor  # C
    w1: Tensor  # NxC
    b1: Tensor  # N
    gamma: Tensor  # N values in any shape
    w2: Tensor  # CxN
    b2: Tensor | None  # C


def folded_blocks(x: Tensor, blocks: Sequence[BlockWeights], *, implementation: str | None = None) -> Tensor:
    """BxCxHxW through the blocks, one after the other.

    Args:
        x: the first block's input and residual.
        blocks: at least one.
        implementation: "gpu" or "cpu" for one launch, which runs or raises; "reference" for one operation after
            the other, each by the path that its own dispatcher picks. Without it, one launch where that is
            faster: small batches on a GPU and float32 on a CPU, where no gradient, compiler or mode of torch's
            needs to see the operations.

    Returns:
        BxCxHxW, channels-last.

    Raises:
        InputError: no blocks, an unknown implementation, shapes, types or devices that do not fit, or one launch
            asked for where it cannot be.
    """
    if not blocks:
        raise InputError("folded_blocks needs at least one block")
    known = ("reference", "cpu", "gpu")
    chosen = choose_fused("folded_blocks", known, x, implementation, lambda name: _why_not(x, blocks, name))
    if chosen != "reference":
        return _one_launch(x, blocks, chosen)
    for block in blocks:
        x = _one_by_one(x, block)
    return x


def _why_not(x: Tensor, blocks: Sequence[BlockWeights], implementation: str) -> str | None:
    if implementation == "gpu" and not x.is_cuda:
        return f"that needs an NVIDIA GPU, got a tensor on {x.device}"
    if implementation == "gpu":
        from unipercept.kernels.folded_blocks.gpu import why_not
    else:
        from unipercept.kernels.folded_blocks.cpu import why_not
    reason = why_not(x, blocks)
    if reason is None and is_watched(x, *(w for block in blocks for w in block)):
        return WATCHED
    return reason


def _one_launch(x: Tensor, blocks: Sequence[BlockWeights], implementation: str) -> Tensor:
    if implementation == "gpu":
        from unipercept.kernels.folded_blocks.gpu import folded_blocks_gpu

        return folded_blocks_gpu(x, blocks)
    from unipercept.kernels.folded_blocks.cpu import folded_blocks_cpu

    return folded_blocks_cpu(x, blocks)


def _one_by_one(x: Tensor, block: BlockWeights) -> Tensor:
    y, sums = depthwise_conv2d_with_sums(x, block.conv_w, block.conv_b)
    y, residual = (map_.permute(0, 2, 3, 1).contiguous() for map_ in (y, x))
    output = feed_forward(
        y, residual, block.down_w, block.down_b, block.up_w, block.up_b, block.w1, block.b1, block.gamma, block.w2,
        block.b2, sums=sums,
    )  # fmt: skip
    return output.permute(0, 3, 1, 2)
