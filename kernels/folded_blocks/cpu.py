"""The fast CPU path: all blocks of a run in one go, each as its two kernels, without anything of torch's in between.

On small maps what Python does around a kernel takes as long as the kernel.

Shapes: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from unipercept.kernels.depthwise_conv2d.cpu import convolution_call
from unipercept.kernels.depthwise_conv2d.cpu import why_not as why_no_convolution
from unipercept.kernels.feed_forward.cpu import feed_forward_call, takes_whole_images
from unipercept.kernels.feed_forward.reference import Weights
from unipercept.kernels.llvm import Call, Program
from unipercept.kernels.packed import Unchanged
from unipercept.kernels.workspace import is_kept, workspace

if TYPE_CHECKING:
    from unipercept.kernels.folded_blocks import BlockWeights

MAX_PLANS = 64  # of a thread: four for each model and size of map
_mine = threading.local()


def why_not(x: Tensor, blocks: Sequence[BlockWeights]) -> str | None:
    """None where this path can take the map and the weights."""
    if x.ndim != 4:
        return f"the map must be BxCxHxW, got {tuple(x.shape)}"
    reason = why_no_convolution(x, 1, 1, "zero", "forward")
    if reason is not None or torch.is_autocast_enabled("cpu"):
        return reason or "autocast is on"
    if _known_plan(x, blocks) is not None:
        return None
    return next(filter(None, (_does_not_fit(block, x.shape[1]) for block in blocks)), None)


def _does_not_fit(block: BlockWeights, channels: int) -> str | None:
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
    output = torch.empty_like(cells)
    plan = _known_plan(x, blocks) or _plan(cells, output, blocks, threads)
    plan.program.run((cells, output), threads, len(x), is_by_image=plan.is_by_image)
    return output.permute(0, 3, 1, 2)


def _plan(cells: Tensor, output: Tensor, blocks: Sequence[BlockWeights], threads: int) -> _Plan:
    """The kernels of all blocks. Kept for this thread where its memory is, too."""
    rooms = [workspace(use, cells.numel()) for use in ("convolved", "spare")]
    convolved, spare = (room[: cells.numel()].view(cells.shape) for room in rooms)
    targets = [output, spare] if len(blocks) % 2 else [spare, output]  # in turn, so that the last is the output
    source, is_by_image = cells, takes_whole_images(cells, max(len(block.b1) for block in blocks), threads)
    calls: list[Call] = []
    for i, block in enumerate(blocks):
        convolution, sums = convolution_call(source, block.conv_w, block.conv_b, 1, convolved, threads, is_by_image)
        weights, target = Weights(*block[2:9], None, *block[9:]), targets[i % 2]
        calls += [convolution, feed_forward_call(convolved, source, sums, weights, target, threads, is_by_image)]
        source = target
    given = {id(t) for t in (*_tensors(blocks), cells, output)}
    others = [a for call in calls for a in call.arguments if isinstance(a, Tensor) and id(a) not in given]
    copied = [w for block in blocks for w in (block.conv_w, block.w1, block.w2)]
    plans, key = _plans(), _key(cells.permute(0, 3, 1, 2), blocks)
    is_worth_it = all(map(is_kept, rooms)) and not any(w.is_inference() for w in copied)
    unchanged = Unchanged(_tensors(blocks), copied, lambda _: plans.pop(key, None)) if is_worth_it else None
    plan = _Plan(Program(calls, (cells, output)), is_by_image, unchanged, others)
    if is_worth_it:
        plans[key] = plan
        if len(plans) > MAX_PLANS:
            plans.pop(next(iter(plans)))
    return plan


class _Plan(NamedTuple):
    """What a call can take over from an earlier one: on small maps, making it anew takes Python as long as the kernels take."""

    program: Program
    is_by_image: bool
    weights: Unchanged | None  # None for a single call
    others: list[Tensor]  # beside them, what the program has the addresses of


def _known_plan(x: Tensor, blocks: Sequence[BlockWeights]) -> _Plan | None:
    """That of an earlier call with such a map and these weights."""
    plan = _plans().get(_key(x, blocks))
    return plan if plan is not None and plan.weights is not None and plan.weights.holds(_tensors(blocks)) else None


def _key(x: Tensor, blocks: Sequence[BlockWeights]) -> tuple[object, ...]:
    return (id(blocks[0].conv_w), len(blocks), x.shape, torch.get_num_threads())


def _tensors(blocks: Sequence[BlockWeights]) -> list[Tensor | None]:
    return [weight for block in blocks for weight in block]


def _plans() -> dict[tuple[object, ...], _Plan]:
    """Of this thread: its plans use its workspaces."""
    found: dict[tuple[object, ...], _Plan] | None = getattr(_mine, "plans", None)
    if found is None:
        found = _mine.plans = {}
    return found
