"""UniRepLKNet's stages in inference form: downsampling convolutions, each with its norm, then a
run of blocks, four times over.

Each stage is `conv_norm2d` once or twice and then `folded_blocks`, and on a GPU it runs that way. On a CPU all stages
run together: Python's overhead per call takes as long as a small kernel, and a thread that takes a whole image through
all layers finds most intermediate results in its own cache.

Shapes: B batch, C channels, H rows, W columns, D channels after a convolution.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from unipercept.errors import InputError
from unipercept.kernels.conv_norm2d import conv_norm2d
from unipercept.kernels.dispatch import WATCHED, choose_fused, is_watched
from unipercept.kernels.folded_blocks import BlockWeights, folded_blocks


class ConvNormWeights(NamedTuple):
    """A downsampling convolution and its norm; see `conv_norm2d`."""

    w: Tensor  # DxCx3x3
    shift: Tensor | None  # D
    weight: Tensor  # D
    bias: Tensor  # D
    eps: float
    gelu: bool


class Stage(NamedTuple):
    """Downsampling convolutions, then blocks."""

    downsample: Sequence[ConvNormWeights]
    blocks: Sequence[BlockWeights]


def folded_stages(x: Tensor, stages: Sequence[Stage], *, implementation: str | None = None) -> list[Tensor]:
    """The map after each stage.

    Args:
        x: BxCxHxW.
        stages: at least one.
        implementation: "cpu" for all in one go, which runs or raises; "reference" for one operation after the other,
            each by the path that its own dispatcher picks. Without it, in one go in float32 on a CPU, where no
            gradient, compiler or mode of torch's needs to see the operations.

    Returns:
        BxDxH'xW' each, channels-last.

    Raises:
        InputError: no stages, an unknown implementation, or one go asked for where it cannot be.
    """
    if not stages:
        raise InputError("folded_stages needs at least one stage")
    known = ("reference", "cpu")
    if choose_fused("folded_stages", known, x, implementation, lambda name: _why_not(x, stages)) == "cpu":
        from unipercept.kernels.folded_stages.cpu import folded_stages_cpu

        return folded_stages_cpu(x, stages)
    maps = []
    for stage in stages:
        for w, shift, weight, bias, eps, gelu in stage.downsample:
            x = conv_norm2d(x, w, shift, weight, bias, eps=eps, gelu=gelu)
        x = folded_blocks(x, stage.blocks)
        maps.append(x)
    return maps


def _why_not(x: Tensor, stages: Sequence[Stage]) -> str | None:
    from unipercept.kernels.folded_stages.cpu import why_not  # on first use: what it needs may not be installed

    reason = why_not(x, stages)
    if reason is None and is_watched(x, *tensors(stages)):
        return WATCHED
    return reason


def tensors(stages: Sequence[Stage]) -> list[Tensor | None]:
    """All weights."""
    return [
        weight
        for stage in stages
        for part in (*(conv[:4] for conv in stage.downsample), *stage.blocks)
        for weight in part
    ]
