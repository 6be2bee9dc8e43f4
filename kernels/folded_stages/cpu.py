"""The fast CPU path: the kernels of all stages from one plan, those of a stage in one go.

Shapes: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unipercept.kernels.conv_norm2d.cpu import conv_norm_call
from unipercept.kernels.conv_norm2d.cpu_planes import takes as takes_planes
from unipercept.kernels.folded_blocks.cpu import blocks_step, copied_weights, does_not_fit, runs_by_image
from unipercept.kernels.folded_stages import ConvNormWeights, Stage, tensors
from unipercept.kernels.llvm import takes_images
from unipercept.kernels.llvm import why_not as why_no_llvm
from unipercept.kernels.plans import Key, Plan, Step, key_of, known_plan, new_plan
from unipercept.kernels.workspace import workspace_map


def why_not(x: Tensor, stages: Sequence[Stage]) -> str | None:
    """None where this path can take the map and the weights."""
    if x.ndim != 4 or not x.numel():
        return f"the map must be BxCxHxW and not empty, got {tuple(x.shape)}"
    if not x.is_cpu or x.dtype is not torch.float32:
        return f"it needs float32 on the CPU, got {x.dtype} on {x.device}"
    reason = why_no_llvm()
    if reason is not None or torch.is_autocast_enabled("cpu"):
        return reason or "autocast is on"
    if _known(x, stages) is not None:
        return None
    channels = x.shape[1]
    for stage in stages:
        if not stage.downsample or not stage.blocks:
            return "each stage must have a downsampling convolution and a block"
        for conv in stage.downsample:
            reason = reason or _conv_does_not_fit(conv, channels)
            channels = len(conv.w)
        reason = reason or next(filter(None, (does_not_fit(block, channels) for block in stage.blocks)), None)
    return reason


def _conv_does_not_fit(conv: ConvNormWeights, channels: int) -> str | None:
    wide = len(conv.w)
    for name, shape, weight in zip(conv._fields, ((wide, channels, 3, 3), *((wide,),) * 3), conv[:4], strict=False):
        if weight is not None and not (
            weight.shape == shape and weight.dtype is torch.float32 and weight.is_cpu and weight.is_contiguous()
        ):
            return (
                f"{name} must be contiguous float32 of {shape} on the CPU, got {tuple(weight.shape)} in {weight.dtype}"
            )
    return None


def folded_stages_cpu(x: Tensor, stages: Sequence[Stage]) -> list[Tensor]:
    """BxCxHxW to the map after each stage, channels-last."""
    x = x if takes_planes(x) else x.contiguous(memory_format=torch.channels_last)
    threads, maps, size = torch.get_num_threads(), [], tuple(x.shape[2:])
    for stage in stages:
        size = _downsampled(size, len(stage.downsample))
        maps.append(x.new_empty(len(x), *size, len(stage.downsample[-1].w)))
    plan = _known(x, stages) or _plan(x, stages, maps, threads)
    plan.run((x, *maps), threads, len(x))
    return [cells.permute(0, 3, 1, 2) for cells in maps]


def _downsampled(size: tuple[int, ...], times: int) -> tuple[int, ...]:
    return tuple(-(-n // 2**times) for n in size)


def _plan(x: Tensor, stages: Sequence[Stage], maps: Sequence[Tensor], threads: int) -> Plan:
    steps: list[Step] = []
    rooms: list[Tensor] = []
    source = x
    for stage, output in zip(stages, maps, strict=True):
        is_by_image = takes_images(len(x), threads)
        is_own = is_by_image and runs_by_image(output, stage.blocks, threads)  # a place for each thread is enough
        mine: list[Step] = []
        for i, conv in enumerate(stage.downsample):
            shape = (threads if is_own else len(x), *_downsampled(tuple(source.shape[2:]), 1), len(conv.w))
            cells = workspace_map(f"downsampled_{i}", shape)
            call, room = conv_norm_call(source, *conv, cells, threads, is_by_image, (is_own and i > 0, is_own))
            mine.append(Step([call], is_by_image))
            rooms, source = [*rooms, cells, room], cells.permute(0, 3, 1, 2)
        step, used = blocks_step(source.permute(0, 2, 3, 1), output, stage.blocks, threads, is_own=is_own)
        for more in _joined([*mine, step]):
            if steps and not steps[-1].is_by_image and not more.is_by_image:
                steps[-1].calls.extend(more.calls)
            else:
                steps.append(more)
        rooms, source = [*rooms, *used], output.permute(0, 3, 1, 2)
    weights = tensors(stages)
    copied = [conv.w for stage in stages for conv in stage.downsample]
    copied += [weight for stage in stages for weight in copied_weights(stage.blocks)]
    return new_plan(_key(x, stages, weights), steps, (x, *maps), weights, copied, rooms)


def _joined(steps: Sequence[Step]) -> list[Step]:
    """Those of one stage, neighbours of one kind in one go.

    Two stages whose images threads take alone must not be: they would meet in workspaces that
    each stage divides its own way.
    """
    joined: list[Step] = []
    for step in steps:
        if joined and joined[-1].is_by_image == step.is_by_image:
            joined[-1].calls.extend(step.calls)
        else:
            joined.append(Step(list(step.calls), step.is_by_image))
    return joined


def _known(x: Tensor, stages: Sequence[Stage]) -> Plan | None:
    weights = tensors(stages)
    return known_plan(_key(x, stages, weights), weights)


def _key(x: Tensor, stages: Sequence[Stage], weights: Sequence[Tensor | None]) -> Key:
    """With what is no tensor but goes into the kernels: the norms' eps, and whether a GELU follows."""
    return (*key_of(x, weights), *(conv[4:] for stage in stages for conv in stage.downsample))
