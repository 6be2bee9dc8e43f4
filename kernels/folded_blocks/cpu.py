"""The fast CPU path: all blocks of a run in one go, each as its two kernels, without anything of torch's in between.

On small maps Python's overhead per kernel takes as long as the kernel.

Shapes: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unipercept.kernels.depthwise_conv2d.cpu import convolution_call
from unipercept.kernels.depthwise_conv2d.cpu import why_not as why_no_convolution
from unipercept.kernels.feed_forward.cpu import feed_forward_call, takes_whole_images
from unipercept.kernels.feed_forward.reference import Weights
from unipercept.kernels.llvm import Call
from unipercept.kernels.plans import Step, key_of, known_plan, new_plan
from unipercept.kernels.workspace import workspace_map

if TYPE_CHECKING:
    from unipercept.kernels.folded_blocks import BlockWeights


def why_not(x: Tensor, blocks: Sequence[BlockWeights]) -> str | None:
    """None where this path can take the map and the weights."""
    if x.ndim != 4:
        return f"the map must be BxCxHxW, got {tuple(x.shape)}"
    reason = why_no_convolution(x, 1, 1, "zero", "forward")
    if reason is not None or torch.is_autocast_enabled("cpu"):
        return reason or "autocast is on"
    if known_plan(key_of(x, _tensors(blocks)), _tensors(blocks)) is not None:
        return None
    return next(filter(None, (does_not_fit(block, x.shape[1]) for block in blocks)), None)


def does_not_fit(block: BlockWeights, channels: int) -> str | None:
    """Why a block of so many channels cannot run; None where it can."""
    shape, squeezed, hidden = block.conv_w.shape, block.down_b.numel(), block.b1.numel()
    if len(shape) != 4 or shape[2] % 2 == 0 or shape[3] % 2 == 0 or max(shape[2:]) > 51:
        return f"kernels must be Cx1xKxK with odd K up to 51, got {tuple(shape)}"
    counts = (
        channels * shape[2] * shape[3], channels, squeezed * channels, squeezed, channels * squeezed, channels,
        hidden * channels, hidden, hidden, channels * hidden, channels,
    )  # fmt: skip
    for name, count, weight in zip(block._fields, counts, block, strict=True):
        if weight is not None and not (
            weight.numel() == count and weight.dtype is torch.float32 and weight.is_cpu and weight.is_contiguous()
        ):
            return f"{name} must be contiguous float32 of {count} values on the CPU, got {tuple(weight.shape)} in {weight.dtype}"
    return None


def folded_blocks_cpu(x: Tensor, blocks: Sequence[BlockWeights]) -> Tensor:
    """BxCxHxW to BxCxHxW, channels-last."""
    cells, threads = x.permute(0, 2, 3, 1).contiguous(), torch.get_num_threads()
    output, weights = torch.empty_like(cells), _tensors(blocks)
    key = key_of(x, weights)
    plan = known_plan(key, weights)
    if plan is None:
        step, rooms = blocks_step(cells, output, blocks, threads)
        plan = new_plan(key, [step], (cells, output), weights, copied_weights(blocks), rooms)
    plan.run((cells, output), threads, len(x))
    return output.permute(0, 3, 1, 2)


def blocks_step(
    cells: Tensor, output: Tensor, blocks: Sequence[BlockWeights], threads: int, *, is_own: bool = False
) -> tuple[Step, list[Tensor]]:
    """The kernels of all blocks, from BxHxWxC to the same, and the workspaces that they use.

    `is_own`: whether the input has a place for each thread, as what lies between has where threads take whole
    images: it stays in the cache.
    """
    is_by_image = runs_by_image(output, blocks, threads)
    convolved, spare = (
        workspace_map(use, (threads if is_by_image else len(output), *output.shape[1:]))
        for use in ("convolved", "spare")
    )
    targets = [output, spare] if len(blocks) % 2 else [spare, output]  # in turn, so that the last is the output
    source, source_is_own = cells, is_own
    calls: list[Call] = []
    for i, block in enumerate(blocks):
        weights, target = Weights(*block[2:9], None, *block[9:]), targets[i % 2]
        target_is_own = is_by_image and target is spare
        convolution, sums = convolution_call(
            source, block.conv_w, block.conv_b, 1, convolved, threads, is_by_image, (source_is_own, is_by_image)
        )
        own = (is_by_image, source_is_own, target_is_own)
        calls += [convolution, feed_forward_call(convolved, source, sums, weights, target, threads, is_by_image, own)]
        source, source_is_own = target, target_is_own
    return Step(calls, is_by_image), [convolved, spare]


def runs_by_image(cells: Tensor, blocks: Sequence[BlockWeights], threads: int) -> bool:
    """Whether each thread takes images, BxHxWxC, alone through all blocks."""
    return takes_whole_images(cells, max(len(block.b1) for block in blocks), threads)


def copied_weights(blocks: Sequence[BlockWeights]) -> list[Tensor]:
    """Those that kernels have in another layout."""
    return [w for block in blocks for w in (block.conv_w, block.w1, block.w2)]


def _tensors(blocks: Sequence[BlockWeights]) -> list[Tensor | None]:
    return [weight for block in blocks for weight in block]
