"""Depthwise convolution on NVIDIA GPUs of compute capability 8.0 and higher: which kernel, which tile, and the launch.

The kernels are CUDA C++ in cuda/: Toeplitz products on tensor cores for 16-bit types, plain fused multiply-adds for
float32. docs/kernels/depthwise_conv2d.md says how they work and what they were measured at.

Shapes: B batch, C channels, H rows, W columns, KH and KW kernel rows and columns.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unipercept.kernels import cuda
from unipercept.kernels.depthwise_conv2d.gpu_plans import (
    OCTETS_CLUSTERS_FILES,
    OCTETS_FILES,
    OVERLAPPING_FILES,
    SMALL_FILES,
    SMALL_GRADIENT_FILES,
    STRANDS_FILES,
    SUM_THREADS,
    TYPES,
    Plan,
    forward_plan,
    sum_plan,
    weight_gradient_plan,
)
from unipercept.kernels.depthwise_conv2d.gpu_rules import forward_tile, weight_gradient_tile
from unipercept.kernels.depthwise_conv2d.gpu_tiles import (
    IMAGES,
    SMALL_CHANNELS,
    STRAND_CHANNELS,
    AnyTile,
    Limits,
    NoTileError,
    Problem,
    measured_tile,
    same_kernel,
)
from unipercept.kernels.depthwise_conv2d.padding import Padding, fold_poles
from unipercept.kernels.measured import device_name

PACKAGE = "unipercept.kernels.depthwise_conv2d"
MAX_KERNEL = 51


def why_not(x: Tensor, rows: int, columns: int, dilation: int, padding: Padding) -> str | None:
    """None where the GPU kernels can run on `x` with a kernel of that size, else the reason in a few words."""
    if not x.is_cuda or torch.version.hip is not None:
        return f"they need an NVIDIA GPU, got a tensor on {x.device}"
    if x.dtype not in TYPES:
        return f"they need {', '.join(str(t).removeprefix('torch.') for t in TYPES)}, got {x.dtype}"
    if not x.numel():
        return "the tensor is empty"
    return why_not_device(x.device.index) or _why_not_size(
        problem_of(x, (rows, columns), dilation, padding, _is_channels_last(x)), x.device.index
    )


def slower_than_torch(
    x: Tensor, rows: int, columns: int, dilation: int, operation: str, bulk_copies: bool | None = None
) -> bool:
    """Whether PyTorch is faster, and runs unless a kernel is requested by name: small kernels
    on small maps or in float32.

    See benchmarks/results/depthwise_conv2d.md and depthwise_conv2d_float32.md.
    """
    if x.dtype == torch.float32:
        if _is_channels_last(x):
            return max(rows, columns) <= 5
        return x.shape[-1] <= (16 if max(rows, columns) <= 3 else 8 if operation == "forward" else 0)
    if max(rows, columns) > 3 or dilation > 1:  # cuDNN takes seven times as long for a dilated 3x3 at 7x7
        return False
    if operation == "weight gradient" or x.shape[-1] > 8:
        return False
    if _is_channels_last(x):
        return operation == "input gradient" and len(x) <= 2 and x.shape[-2] <= 8  # 2.2 us for 2.6
    if bulk_copies is None:
        bulk_copies = limits_of(x.device.index).bulk_copies
    return not bulk_copies or x.shape[-2] > 8 or x.shape[1] % 8 != 0  # else cuda/small_maps.cu


@lru_cache(maxsize=4096)
def _why_not_size(problem: Problem, index: int) -> str | None:
    if max(problem.kernel) > MAX_KERNEL:
        return f"they take kernels up to {MAX_KERNEL}, got {problem.kernel}"
    try:
        forward_tile(problem, 1, 8, limits_of(index))
        weight_gradient_tile(problem, 1, 8, limits_of(index))
    except NoTileError as error:
        return str(error)
    return None


@lru_cache
def why_not_device(index: int) -> str | None:
    """None where the GPU of that index can run the kernels, and they can be compiled;
    else the reason in a few words.
    """
    if torch.version.hip is not None:
        return "they need an NVIDIA GPU"
    capability = torch.cuda.get_device_capability(index)
    if capability < (8, 0):
        return f"they need compute capability 8.0, got {capability[0]}.{capability[1]}"
    return cuda.why_no_compiler()


def depthwise_conv2d_gpu(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, padding: Padding, channels_last: bool | None = None
) -> Tensor:
    """BxCxHxW, Cx1xKHxKW and C to BxCxHxW, in the memory format of `x` unless `channels_last` says otherwise."""
    return forward_gpu(x, weight, bias, dilation, padding, channels_last, flip=False)[0]


def with_sums_gpu(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, padding: Padding
) -> tuple[Tensor, Tensor]:
    """The convolution and, from the same pass, the sums BxC over its map, float32."""
    output, sums = forward_gpu(x, weight, bias, dilation, padding, None, flip=False, pool=True)
    assert sums is not None
    return output, sums


def input_gradient_gpu(grad: Tensor, weight: Tensor, dilation: int, padding: Padding) -> Tensor:
    """Gradient of the output, BxCxHxW, to that of the input: the same kernel with flipped taps."""
    if padding in ("sphere", "sphere_poles"):
        rows = dilation * (weight.shape[-2] // 2)
        spread = forward_gpu(F.pad(grad, (0, 0, rows, rows)), weight, None, dilation, "cylinder", None, flip=True)[0]
        return fold_poles(spread, rows, padding)
    return forward_gpu(grad, weight, None, dilation, padding, None, flip=True)[0]


def weight_gradient_gpu(
    x: Tensor, grad: Tensor, rows: int, columns: int, dilation: int, padding: Padding, tile: AnyTile | None = None
) -> Tensor:
    """Input and gradient of the output, both BxCxHxW, to the gradient Cx1xKHxKW of the weight. Deterministic."""
    partial, plan = _weight_gradient_parts(x, grad, rows, columns, dilation, padding, tile, x.dtype)
    if not plan.parts:
        return partial[0]
    if len(partial) == 1 and plan.files not in OVERLAPPING_FILES:  # else the launch below overlaps that one
        return partial[0].to(x.dtype)
    output = x.new_empty(partial.shape[1:])
    with torch.cuda.device(x.device):
        count, parts = output.numel(), len(partial)
        share, together = sum_plan(count, parts)
        reduce = _reduce_kernel(x.dtype, share, together, x.device.index)
        blocks = math.ceil(count * share / SUM_THREADS)
        reduce(blocks, SUM_THREADS, partial, output, ctypes.c_longlong(count), ctypes.c_int(parts))
    return output


def weight_gradient_parts(
    x: Tensor, grad: Tensor, rows: int, columns: int, dilation: int, padding: Padding, tile: AnyTile | None = None
) -> Tensor:
    """As `weight_gradient_gpu`, in float32 and in parts that add up to it: PxCx1xKHxKW."""
    return _weight_gradient_parts(x, grad, rows, columns, dilation, padding, tile, torch.float32)[0]


def _weight_gradient_parts(
    x: Tensor, grad: Tensor, rows: int, columns: int, dilation: int, padding: Padding, tile: AnyTile | None, dtype: torch.dtype,
) -> tuple[Tensor, Plan]:  # fmt: skip
    """Parts in float32; the whole, from a kernel that leaves no parts, in `dtype`."""
    x = laid_out(x)
    channels_last = _is_channels_last(x)
    grad = _aligned(grad.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format))
    batch, channels = x.shape[:2]
    problem = problem_of(x, (rows, columns), dilation, padding, channels_last)
    with torch.cuda.device(x.device):
        launch = _weight_gradient_launch(problem, batch, channels, x.device.index, tile)
        plan = launch.plan
        kind = torch.float32 if plan.parts else dtype
        partial = x.new_empty(max(1, plan.parts), channels, 1, rows, columns, dtype=kind)
        numbers = launch.numbers if plan.parts else (*launch.numbers, ctypes.c_int(kind == torch.float32))
        inputs: tuple[Tensor | cuda.TensorMap, ...] = (x, grad)
        if plan.files in (OCTETS_FILES, OCTETS_CLUSTERS_FILES):
            inputs = _boxes(x, grad, plan.defines)
        elif plan.files == SMALL_GRADIENT_FILES and channels_last:
            inputs = _small_boxes(x, grad)
        launch.kernel(plan.blocks, plan.threads, *inputs, partial, *numbers, cluster=plan.ranks)
    return partial, plan


def _boxes(x: Tensor, grad: Tensor, defines: Mapping[str, int | str]) -> tuple[cuda.TensorMap, cuda.TensorMap]:
    """What cuda/octets.cu and cuda/octets_clusters.cu copy of each: a strip, of the input with the cells around it."""
    octets, rows, columns, across, whole = (int(defines[name]) for name in ("G", "TH", "NO", "PX", "WHOLE"))
    images = int(defines["SLOTS"]) if whole else 1
    return (
        cuda.tensor_map(x, 8 * octets, rows if whole else rows + 2, across, images),
        cuda.tensor_map(grad, 8 * octets, rows, 8 * columns, images),
    )


def _small_boxes(*tensors: Tensor) -> tuple[cuda.TensorMap, ...]:
    """What cuda/small_maps.cuh copies of channels-last tensors: rows of eight cells."""
    return tuple(cuda.tensor_map(t, SMALL_CHANNELS, t.shape[2], 8, IMAGES) for t in tensors)


def forward_gpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    padding: Padding,
    channels_last: bool | None,
    flip: bool,
    pool: bool = False,
    tile: AnyTile | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The convolution, with flipped taps if `flip`, and if `pool` the sums BxC over its map."""
    if channels_last is None:
        channels_last = _is_channels_last(x)
    x, weight = laid_out(x), _aligned(weight.contiguous())
    bias = None if bias is None else _aligned(bias.contiguous())
    batch, channels = x.shape[:2]
    problem = problem_of(x, (weight.shape[-2], weight.shape[-1]), dilation, padding, channels_last)
    output = torch.empty_like(x, memory_format=_format(problem.channels_last_out))
    with torch.cuda.device(x.device):
        launch = _forward_launch(problem, batch, channels, x.device.index, tile)
        sums = x.new_empty(launch.plan.parts, batch, channels, dtype=torch.float32) if pool else None
        tensors: tuple[Tensor | cuda.TensorMap | None, ...] = (x, weight, bias, output)
        if launch.plan.files == STRANDS_FILES:
            images, columns = IMAGES // int(launch.plan.defines["GROUPS"]), int(launch.plan.defines["PW"])
            units, halves = (
                [cuda.tensor_map(t, count, problem.height, columns, images) for t in (x, output)]
                for count in (STRAND_CHANNELS, STRAND_CHANNELS // 2)
            )
            tensors = (units[0], weight, bias, units[1], *halves)
        elif launch.plan.files == SMALL_FILES and problem.channels_last_in:
            boxes = list(_small_boxes(x, output))
            tensors = (boxes[0], weight, bias, boxes[1])
        arguments = (*tensors, sums, *launch.numbers[:4], ctypes.c_int(int(flip)), *launch.numbers[4:])
        launch.kernel(launch.plan.blocks, launch.plan.threads, *arguments)
    if sums is not None:
        sums = sums[0] if len(sums) == 1 else sums.sum(dim=0)
    # Copied where the kernels do not write the layout that was asked for: channels-last takes groups of eight channels.
    return output.contiguous(memory_format=_format(channels_last)), sums


def tile_in_use(operation: str, problem: Problem, batch: int, channels: int, index: int) -> AnyTile:
    """The measured tile where there is one, else the rule's."""
    found = measured_tile(operation, problem, batch, channels, device_name(torch.device("cuda", index)))
    rule = rule_of(operation)(problem, batch, channels, limits_of(index))
    # What another version measured may be of another kernel.
    return found if found is not None and same_kernel(found, rule) else rule


def rule_of(operation: str) -> Callable[[Problem, int, int, Limits], AnyTile]:
    """What chooses a tile where none was measured."""
    return forward_tile if operation == "forward" else weight_gradient_tile


def forget_launches() -> None:
    """Choose tiles anew: others may have been measured."""
    _forward_launch.cache_clear()
    _weight_gradient_launch.cache_clear()


class Launch(NamedTuple):
    """A compiled kernel and its plan. Made once for a problem and batch, so that a call costs little."""

    kernel: cuda.Kernel
    plan: Plan
    numbers: tuple[ctypes.c_int, ...]


@lru_cache(maxsize=4096)
def _forward_launch(problem: Problem, batch: int, channels: int, index: int, tile: AnyTile | None) -> Launch:
    limits = limits_of(index)
    tile = tile or tile_in_use("forward", problem, batch, channels, index)
    return _launch("forward", forward_plan(problem, batch, channels, tile, limits), index)


@lru_cache(maxsize=4096)
def _weight_gradient_launch(problem: Problem, batch: int, channels: int, index: int, tile: AnyTile | None) -> Launch:
    limits = limits_of(index)
    tile = tile or tile_in_use("weight gradient", problem, batch, channels, index)
    return _launch("weight_gradient", weight_gradient_plan(problem, batch, channels, tile, limits), index)


def _launch(name: str, plan: Plan, index: int) -> Launch:
    device = torch.device("cuda", index)
    kernel = cuda.kernel(
        PACKAGE,
        plan.files,
        name,
        plan.defines,
        plan.shared_bytes,
        device,
        overlapping=plan.files in OVERLAPPING_FILES,
    )
    return Launch(kernel, plan, tuple(ctypes.c_int(value) for value in plan.numbers))


@lru_cache
def _reduce_kernel(dtype: torch.dtype, share: int, together: int, index: int) -> cuda.Kernel:
    files = ("cuda/prelude.cuh", "cuda/reduce.cu")
    given: dict[str, int | str] = {"T": TYPES[dtype], "SHARE": share, "TOGETHER": together}
    shared, device = 4 * SUM_THREADS, torch.device("cuda", index)
    return cuda.kernel(PACKAGE, files, "reduce", given, shared, device, overlapping=True)


def laid_out(x: Tensor) -> Tensor:
    """`x` dense in one of the two layouts, at an address that 16-byte loads can take.

    A channels-last one needs C % 8 == 0.
    """
    if not (x.is_contiguous() or (_is_channels_last(x) and x.shape[1] % 8 == 0)):
        x = x.contiguous()
    return _aligned(x)


def _aligned(x: Tensor) -> Tensor:
    """`x`, or where a view begins at an address that vectors cannot be read from, a copy."""
    return x if x.data_ptr() % 16 == 0 else x.clone()


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def problem_of(
    x: Tensor, kernel: tuple[int, int], dilation: int = 1, padding: Padding = "zero",
    channels_last_out: bool | None = None,
) -> Problem:  # fmt: skip
    """What decides which kernel runs; the result has the layout of `x` unless said."""
    height, width = x.shape[-2:]
    if channels_last_out is None:
        channels_last_out = _is_channels_last(x)
    shifts = width // 2 if padding.startswith("sphere") else width  # rows are turned by half a turn there
    vector = math.gcd(math.gcd(width, shifts), 16 // x.dtype.itemsize)
    return Problem(
        x.dtype, height, width, kernel, dilation, padding, _is_channels_last(x),
        channels_last_out and x.shape[1] % 8 == 0, vector,
    )  # fmt: skip


@lru_cache
def limits_of(index: int) -> Limits:
    properties = torch.cuda.get_device_properties(index)
    shared = int(getattr(properties, "shared_memory_per_block_optin", 99 * 1024))
    return Limits(properties.multi_processor_count, shared, shared + 1024, properties.major >= 9)
