"""Depthwise convolution on NVIDIA GPUs of compute capability 8.0 and up: which kernel, which tile, and the launch.

The kernels are CUDA C++ in cuda/: Toeplitz products on tensor cores for 16-bit types, plain fused multiply-adds for float32.
docs/kernels.md says how they work and what they were measured at.

Shapes: B batch, C channels, H rows, W columns, KH and KW kernel rows and columns.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unipercept.kernels import cuda
from unipercept.kernels.depthwise_conv2d.gpu_rules import forward_tile, weight_gradient_tile
from unipercept.kernels.depthwise_conv2d.gpu_tiles import (
    IMAGES,
    PADDING_MODES,
    STRAND_CHANNELS,
    AnyTile,
    Limits,
    Narrow,
    NoTileError,
    Octets,
    Patches,
    Problem,
    Rows,
    Tile,
    depth_shared_bytes,
    direct_shared_bytes,
    direct_weight_gradient_shared_bytes,
    forward_shared_bytes,
    images_shared_bytes,
    is_whole,
    measured_tile,
    octets_shared_bytes,
    octets_strip,
    rows_shared_bytes,
    same_kernel,
    strands_shared_bytes,
    walk_shared_bytes,
    weight_gradient_shared_bytes,
)
from unipercept.kernels.depthwise_conv2d.padding import Padding, fold_poles
from unipercept.kernels.measured import device_name

PACKAGE = "unipercept.kernels.depthwise_conv2d"
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
MAX_KERNEL = 51
DIRECT_BLOCKS = 8  # float32, weight gradient: for each multiprocessor; short sums are also more exact
SUM_THREADS, FEW_WEIGHTS = 256, 10_000  # of cuda/reduce.cu: of a block; fewer are shared by more warps
WALK_FILES = ("cuda/prelude.cuh", "cuda/planes.cuh", "cuda/fragments.cuh", "cuda/walk.cu")
IMAGES_FILES = ("cuda/prelude.cuh", "cuda/image_planes.cuh", "cuda/images.cu")
STRANDS_FILES = ("cuda/prelude.cuh", "cuda/bulk.cuh", "cuda/strands.cuh", "cuda/strands.cu")
STRANDS_FIRST_FILES = ("cuda/prelude.cuh", "cuda/bulk.cuh", "cuda/strands.cuh", "cuda/strands_first.cu")
DEPTH_FILES = ("cuda/prelude.cuh", "cuda/image_planes.cuh", "cuda/depth.cu")
NARROW_FILES = ("cuda/prelude.cuh", "cuda/four_channels.cuh", "cuda/narrow.cu")
ROWS_FILES = ("cuda/prelude.cuh", "cuda/bulk.cuh", "cuda/four_channels.cuh", "cuda/rows.cu")
OCTETS_FILES = ("cuda/prelude.cuh", "cuda/bulk.cuh", "cuda/octets.cu")
PATCHES_FILES = ("cuda/prelude.cuh", "cuda/patches.cu")
OVERLAPPING_FILES = (
    IMAGES_FILES,
    STRANDS_FILES,
    STRANDS_FIRST_FILES,
    DEPTH_FILES,
    NARROW_FILES,
    ROWS_FILES,
    OCTETS_FILES,
    PATCHES_FILES,
)  # blocks of the others would be in each other's way


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


def slower_than_torch(x: Tensor, rows: int, columns: int, dilation: int, operation: str) -> bool:
    """Where PyTorch does better, so that it is chosen unless somebody asks otherwise: small kernels on small maps or in float32.

    See benchmarks/results/depthwise_conv2d.md and depthwise_conv2d_float32.md.
    """
    if x.dtype == torch.float32:
        if _is_channels_last(x):
            return max(rows, columns) <= 5
        return x.shape[-1] <= (16 if max(rows, columns) <= 3 else 8 if operation == "forward" else 0)
    if max(rows, columns) > 3 or dilation > 1:  # cuDNN takes seven times as long for a dilated 3x3 at 7x7
        return False
    return not _is_channels_last(x) and operation != "weight gradient" and x.shape[-1] <= 8


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
    """None where the GPU of that index can run the kernels, and they can be compiled; else the reason in a few words."""
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
    """Gradient of the output, BxCxHxW, to that of the input: the same kernel with its taps turned round."""
    if padding in ("sphere", "sphere_poles"):
        rows = dilation * (weight.shape[-2] // 2)
        spread = forward_gpu(F.pad(grad, (0, 0, rows, rows)), weight, None, dilation, "cylinder", None, flip=True)[0]
        return fold_poles(spread, rows, padding)
    return forward_gpu(grad, weight, None, dilation, padding, None, flip=True)[0]


def weight_gradient_gpu(
    x: Tensor, grad: Tensor, rows: int, columns: int, dilation: int, padding: Padding, tile: AnyTile | None = None
) -> Tensor:
    """Input and gradient of the output, both BxCxHxW, to the gradient Cx1xKHxKW of the weight. Deterministic."""
    partial = weight_gradient_parts(x, grad, rows, columns, dilation, padding, tile)
    if len(partial) == 1:
        return partial[0].to(x.dtype)
    output = x.new_empty(partial.shape[1:])
    with torch.cuda.device(x.device):
        count, parts = output.numel(), len(partial)
        share, together = _sum_plan(count, parts)
        reduce = _reduce_kernel(x.dtype, share, together, x.device.index)
        blocks = math.ceil(count * share / SUM_THREADS)
        reduce(blocks, SUM_THREADS, partial, output, ctypes.c_longlong(count), ctypes.c_int(parts))
    return output


def _sum_plan(count: int, parts: int) -> tuple[int, int]:
    """Warps that add up the same weights, as few weights would be few warps, and parts that each of them asks for at once."""
    share = 8 if count < FEW_WEIGHTS else min(8, 2 ** math.ceil(math.log2(max(1, parts / 8))))
    return share, min(16, 2 ** math.ceil(math.log2(max(1, parts / share))))


def weight_gradient_parts(
    x: Tensor, grad: Tensor, rows: int, columns: int, dilation: int, padding: Padding, tile: AnyTile | None = None
) -> Tensor:
    """As `weight_gradient_gpu`, in float32 and in parts that add up to it: PxCx1xKHxKW."""
    x = laid_out(x)
    channels_last = _is_channels_last(x)
    grad = _aligned(grad.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format))
    batch, channels = x.shape[:2]
    problem = problem_of(x, (rows, columns), dilation, padding, channels_last)
    with torch.cuda.device(x.device):
        launch = _weight_gradient_launch(problem, batch, channels, x.device.index, tile)
        plan = launch.plan
        partial = x.new_empty(plan.parts, channels, 1, rows, columns, dtype=torch.float32)
        inputs = _boxes(x, grad, plan.defines) if plan.files == OCTETS_FILES else (x, grad)
        launch.kernel(plan.blocks, plan.threads, *inputs, partial, *launch.numbers)
    return partial


def _boxes(x: Tensor, grad: Tensor, defines: Mapping[str, int | str]) -> tuple[cuda.TensorMap, cuda.TensorMap]:
    """What cuda/octets.cu copies of each: a strip, of the input with the cells around it."""
    octets, rows, columns, across, whole = (int(defines[name]) for name in ("G", "TH", "NO", "PX", "WHOLE"))
    images = int(defines["SLOTS"]) if whole else 1
    return (
        cuda.tensor_map(x, 8 * octets, rows if whole else rows + 2, across, images),
        cuda.tensor_map(grad, 8 * octets, rows, 8 * columns, images),
    )


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
    """The convolution, with its taps turned round if `flip`, and if `pool` the sums BxC over its map."""
    x, weight = laid_out(x), _aligned(weight.contiguous())
    bias = None if bias is None else _aligned(bias.contiguous())
    if channels_last is None:
        channels_last = _is_channels_last(x)
    batch, channels = x.shape[:2]
    output = torch.empty_like(x, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    problem = problem_of(x, (weight.shape[-2], weight.shape[-1]), dilation, padding, channels_last)
    with torch.cuda.device(x.device):
        launch = _forward_launch(problem, batch, channels, x.device.index, tile)
        sums = x.new_empty(launch.plan.parts, batch, channels, dtype=torch.float32) if pool else None
        tensors: tuple[Tensor | cuda.TensorMap | None, ...] = (x, weight, bias, output)
        if launch.plan.files == STRANDS_FILES:
            images = IMAGES // int(launch.plan.defines["GROUPS"])
            boxes = [cuda.tensor_map(t, STRAND_CHANNELS, problem.height, problem.width, images) for t in (x, output)]
            tensors = (boxes[0], weight, bias, boxes[1], output)
        arguments = (*tensors, sums, *launch.numbers[:4], ctypes.c_int(int(flip)), *launch.numbers[4:])
        launch.kernel(launch.plan.blocks, launch.plan.threads, *arguments)
    if sums is not None:
        sums = sums[0] if len(sums) == 1 else sums.sum(dim=0)
    return output, sums


@dataclass(frozen=True)
class Plan:
    """Everything about a launch beside its tensors."""

    files: tuple[str, ...]
    defines: dict[str, int | str]
    shared_bytes: int
    blocks: int
    threads: int
    parts: int  # partial sums that the kernel leaves
    numbers: tuple[int, ...]


def forward_plan(problem: Problem, batch: int, channels: int, tile: AnyTile, limits: Limits) -> Plan:
    """The launch of `forward`; `flip` goes in after the fourth number."""
    sizes = (batch, channels, problem.height, problem.width)
    if isinstance(tile, Narrow):
        parts = math.ceil(problem.height / tile.strip_rows) * math.ceil(problem.width / (2 * tile.pairs))
        return Plan(
            NARROW_FILES, _narrow_defines(problem, tile), 16 * tile.threads,
            math.ceil(channels / (4 * tile.quads)) * parts * batch, tile.threads, parts, (*sizes, tile.quads, tile.pairs),
        )  # fmt: skip
    if isinstance(tile, Rows):
        pieces = math.ceil(problem.width / (tile.columns * tile.groups))
        strips = math.ceil(problem.height / tile.strip_rows)
        splits = max(1, min(batch * strips, tile.min_blocks * limits.multiprocessors // pieces))
        return Plan(
            ROWS_FILES, _rows_defines(problem, tile, channels), rows_shared_bytes(tile, channels), pieces * splits,
            tile.threads(channels), strips * pieces, (*sizes, tile.groups, splits),
        )  # fmt: skip
    assert isinstance(tile, Tile)
    per_image = math.ceil(problem.height / tile.strip_rows)
    if tile.walk:
        segments = _segments(problem, tile, batch * channels, limits)
        return Plan(
            WALK_FILES, _defines(problem, tile, "FORWARD"), walk_shared_bytes(problem, tile), batch * channels * segments,
            32 * tile.warps, segments, (*sizes, segments),
        )  # fmt: skip
    if tile.images and tile.blocks == 1:
        return Plan(
            IMAGES_FILES, _images_defines(problem, tile, images_shared_bytes), images_shared_bytes(problem, tile),
            math.ceil(channels / tile.channels) * math.ceil(batch / tile.strips), 32 * tile.warps, 1, sizes,
        )  # fmt: skip
    if tile.images:
        units, last = math.ceil(channels / tile.channels) * math.ceil(batch / tile.strips), problem.channels_last_in
        return Plan(
            STRANDS_FILES if last else STRANDS_FIRST_FILES, _strands_defines(problem, tile), strands_shared_bytes(problem, tile),
            min(limits.multiprocessors, 2 * units) if last else min(tile.min_blocks * limits.multiprocessors, math.ceil(units / tile.warps)),
            32 * tile.warps * (tile.min_blocks if last else 1), 1, sizes,
        )  # fmt: skip
    shared_bytes = direct_shared_bytes if problem.direct else forward_shared_bytes
    groups, tiles = math.ceil(channels / tile.channels), math.ceil(problem.width / (8 * tile.blocks))
    jobs = tiles * math.ceil(batch * per_image / tile.strips)
    splits = max(1, min(jobs, tile.min_blocks * limits.multiprocessors // groups))
    return Plan(
        _files(problem), _defines(problem, tile, "FORWARD"), shared_bytes(problem, tile), groups * splits,
        32 * tile.warps, per_image * tiles, (*sizes, splits),
    )  # fmt: skip


def _segments(problem: Problem, tile: Tile, planes: int, limits: Limits) -> int:
    """Parts of a plane's rows for cuda/walk.cu: rounds of blocks times the rows that each reads."""
    places, step = tile.min_blocks * limits.multiprocessors, tile.strip_rows

    def cost(parts: int) -> int:
        rows = math.ceil(problem.height / parts / step) * step
        return math.ceil(parts * planes / places) * (rows + (problem.kernel[0] - 1) * problem.dilation + step)

    return min(range(1, math.ceil(problem.height / step) + 1), key=cost)


def weight_gradient_plan(problem: Problem, batch: int, channels: int, tile: AnyTile, limits: Limits) -> Plan:
    """The launch of `weight_gradient`."""
    sizes = (batch, channels, problem.height, problem.width)
    if isinstance(tile, Octets):
        groups = math.ceil(channels / (8 * tile.octets))
        strips = math.ceil(problem.height / tile.strip_rows) * math.ceil(problem.width / (8 * tile.columns))
        splits = _splits(math.ceil(batch * strips / tile.slots), tile.min_blocks * limits.multiprocessors // groups)
        return Plan(
            OCTETS_FILES, _octets_defines(problem, tile), octets_shared_bytes(problem, tile), groups * splits, 32 * tile.warps, splits,
            (*sizes, splits),
        )  # fmt: skip
    if isinstance(tile, Patches):
        groups = math.ceil(channels / (2 * tile.pairs))
        patches = math.ceil(problem.height / tile.rows) * math.ceil(problem.width / tile.columns)
        jobs = math.ceil(batch * patches / tile.slots)
        splits = _splits(jobs, tile.min_blocks * limits.multiprocessors // groups)
        return Plan(
            PATCHES_FILES, _patches_defines(problem, tile, channels), 72 * tile.pairs * tile.slots, groups * splits,
            tile.threads, splits, (*sizes, splits, tile.pairs, tile.slots),
        )  # fmt: skip
    assert isinstance(tile, Tile)
    if tile.images:
        groups, jobs = math.ceil(channels / tile.channels), math.ceil(batch / tile.strips)
        splits = _splits(jobs, tile.min_blocks * limits.multiprocessors // groups)
        return Plan(
            DEPTH_FILES, _images_defines(problem, tile, depth_shared_bytes), depth_shared_bytes(problem, tile), groups * splits,
            32 * tile.warps, splits, (*sizes, splits),
        )  # fmt: skip
    per_image = math.ceil(problem.height / tile.strip_rows)
    shared_bytes = direct_weight_gradient_shared_bytes if problem.direct else weight_gradient_shared_bytes
    chunks = math.ceil(problem.kernel[0] / (tile.kernel_rows * tile.kernel_split))
    groups = math.ceil(channels / tile.channels)
    jobs = math.ceil(batch * per_image / tile.strips) * math.ceil(problem.width / (8 * tile.blocks))
    wanted = DIRECT_BLOCKS if problem.direct else tile.min_blocks
    splits = max(1, min(jobs, wanted * limits.multiprocessors // (groups * chunks)))
    return Plan(
        _files(problem), _defines(problem, tile, "WEIGHT_GRADIENT"), shared_bytes(problem, tile),
        groups * chunks * splits, 32 * tile.warps, splits, (*sizes, splits),
    )  # fmt: skip


def _splits(jobs: int, places: int) -> int:
    """The fewest blocks that end their shares of `jobs` in as few turns as that many places allow."""
    turns = math.ceil(jobs / max(1, places))
    return math.ceil(jobs / turns)


def plan_of(operation: str) -> Callable[[Problem, int, int, AnyTile, Limits], Plan]:
    """What plans a "forward" (or gradient of the input) or a "weight gradient"."""
    return forward_plan if operation == "forward" else weight_gradient_plan


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
    """`x` dense in one of the two layouts, at an address that 16-byte loads can take. A channels-last one needs C % 8 == 0."""
    if not (x.is_contiguous() or (_is_channels_last(x) and x.shape[1] % 8 == 0)):
        x = x.contiguous()
    return _aligned(x)


def _aligned(x: Tensor) -> Tensor:
    """`x`, or where a view begins at an address that vectors cannot be read from, a copy."""
    return x if x.data_ptr() % 16 == 0 else x.clone()


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


def _files(problem: Problem) -> tuple[str, ...]:
    own = ("cuda/direct.cu",) if problem.direct else ("cuda/fragments.cuh", "cuda/toeplitz.cu")
    return "cuda/prelude.cuh", "cuda/planes.cuh", *own


def _defines(problem: Problem, tile: Tile, operation: str) -> dict[str, int | str]:
    rows_mode, columns_mode = PADDING_MODES[problem.padding]
    return {
        operation: 1, "T": TYPES[problem.dtype], "ELEMENT_BYTES": problem.element_bytes,
        "KH": problem.kernel[0], "KW": problem.kernel[1], "DIL": problem.dilation,
        "PAD_ROWS_MODE": rows_mode, "PAD_COLS_MODE": columns_mode,
        "IN_CL": int(problem.channels_last_in), "OUT_CL": int(problem.channels_last_out), "VEC": problem.vector,
        "CB": tile.channels, "S": tile.strips, "TH": tile.strip_rows, "NT": tile.blocks, "SIDE": tile.side,
        "WARPS": tile.warps, "MIN_BLOCKS": tile.min_blocks, "MT": tile.row_tiles, "UNROLL": tile.unroll,
        "KC": tile.kernel_rows, "KSPLIT": tile.kernel_split, "MAX_PREFETCH": tile.prefetch,
        "WHOLE": int(is_whole(problem, tile)),
    }  # fmt: skip


def _images_defines(problem: Problem, tile: Tile, shared_bytes: Callable[[Problem, Tile], int]) -> dict[str, int | str]:
    return {
        "T": TYPES[problem.dtype], "KH": problem.kernel[0], "KW": problem.kernel[1], "TH": problem.height, "TW": problem.width,
        "GROUPS": IMAGES // tile.strips, "AHEAD": int(shared_bytes is depth_shared_bytes), "WARPS": tile.warps,
        "MIN_BLOCKS": tile.min_blocks, "SHARED_BYTES": shared_bytes(problem, tile),
    }  # fmt: skip


def _strands_defines(problem: Problem, tile: Tile) -> dict[str, int | str]:
    return {
        "T": TYPES[problem.dtype], "KH": problem.kernel[0], "KW": problem.kernel[1], "TH": problem.height, "TW": problem.width,
        "GROUPS": IMAGES // tile.strips, "WARPS": tile.warps, "TEAMS" if problem.channels_last_in else "MIN_BLOCKS": tile.min_blocks,
        "SHARED_BYTES": strands_shared_bytes(problem, tile),
    }  # fmt: skip


def _narrow_defines(problem: Problem, tile: Narrow) -> dict[str, int | str]:
    return {
        "T": TYPES[problem.dtype], "TH": tile.strip_rows, "MAX_THREADS": tile.threads, "MIN_BLOCKS": tile.min_blocks,
    }  # fmt: skip


def _rows_defines(problem: Problem, tile: Rows, channels: int) -> dict[str, int | str]:
    return {
        "T": TYPES[problem.dtype], "CW": tile.columns, "TH": tile.strip_rows, "DEPTH": tile.depth,
        "MAX_THREADS": tile.threads(channels), "MIN_BLOCKS": tile.min_blocks,
    }  # fmt: skip


def _octets_defines(problem: Problem, tile: Octets) -> dict[str, int | str]:
    rows, columns = octets_strip(problem, tile)
    return {
        "T": TYPES[problem.dtype], "G": tile.octets, "SLOTS": tile.slots, "TH": tile.strip_rows, "NO": tile.columns, "PX": columns,
        "WHOLE": int(rows == tile.strip_rows), "STAGES": tile.stages, "WARPS": tile.warps, "MIN_BLOCKS": tile.min_blocks,
    }  # fmt: skip


def _patches_defines(problem: Problem, tile: Patches, channels: int) -> dict[str, int | str]:
    return {
        "T": TYPES[problem.dtype], "CHANNELS": channels, "PH": tile.rows, "PW": tile.columns,
        "WHOLE": int((tile.rows, tile.columns) == (problem.height, problem.width)),
        "MAX_THREADS": tile.threads, "MIN_BLOCKS": tile.min_blocks,
    }  # fmt: skip
