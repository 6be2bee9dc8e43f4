"""A run of blocks as one cooperative launch on an NVIDIA GPU of compute capability 8.0 and
higher: the plan and the launch.

The kernel is CUDA C++ in cuda/blocks.cu, which says how it works. Each of its phases is one round of units, a unit for
each multiprocessor; what does not fit into one round is left to launches of single layers.

Shapes: B batch, C channels, H rows, W columns, N hidden channels, R squeezed channels.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unipercept.kernels import cuda
from unipercept.kernels.depthwise_conv2d.gpu import limits_of, why_not_device
from unipercept.kernels.depthwise_conv2d.gpu_tiles import Limits
from unipercept.kernels.folded_blocks import gpu_clusters
from unipercept.kernels.folded_blocks.arrivals import arrivals
from unipercept.kernels.folded_blocks.run import TYPES, NoPlanError, Run, aligned, depth_shares, large_blocks, odd, up16

if TYPE_CHECKING:
    from unipercept.kernels.folded_blocks import BlockWeights

PACKAGE = "unipercept.kernels.folded_blocks"
FILES = ("../depthwise_conv2d/cuda/prelude.cuh", "../feed_forward/cuda/gelu.cuh", "cuda/parts.cuh", "cuda/blocks.cu")
THREADS = 256
WIDEST = 80  # columns of a tile of a product
DEEPEST = 640  # elements of a tile's depth
GATE_BYTES = 64 * 1024  # of squeeze-excite's second layer: more are not kept in shared memory, but shared among all
MAX_BLOCKS = 40  # whose pointers fit into a kernel's parameters
ALIGNMENT = 16  # of every tensor, for vector loads


@dataclass(frozen=True)
class Plan:
    """How the phases are cut; the names are those of blocks.cu."""

    strip: int
    tile: int
    gate: bool
    rows1: int
    cols1: int
    rows2: int
    cols2: int
    splits: int
    shared_bytes: int = 0

    @property
    def phases(self) -> int:
        """Of a block."""
        return 4 if self.gate else 3


def plan_of(run: Run, limits: Limits) -> Plan:
    """How the phases are cut into units, one for each multiprocessor.

    Raises:
        NoPlanError: sizes that the kernel does not take, or too much work for one round.
    """
    c, n, r = run.channels, run.hidden, run.squeezed
    if c % 16 or n % 16 or r % 4 or not 4 <= r <= THREADS or c > 8 * limits.multiprocessors:
        raise NoPlanError(f"widths of {c}, {n} and {r} channels are not for it")
    if len(set(run.kernels)) > 2 or any(k % 2 == 0 or k > 31 for k in run.kernels) or len(run.kernels) > MAX_BLOCKS:
        raise NoPlanError(f"it takes up to {MAX_BLOCKS} blocks of two odd kernel sizes up to 31")
    strip = _strip(run, limits.multiprocessors)
    rows1, cols1, _ = _tile(run, n, c, (1,), limits.multiprocessors)
    rows2, cols2, splits = _tile(run, c, n, (1, 2, 4, 8), limits.multiprocessors)
    plan = Plan(strip, 8 if run.width <= 8 else 16, 2 * c * r > GATE_BYTES, rows1, cols1, rows2, cols2, splits)
    needed = shared_bytes(run, plan)
    if needed > limits.shared_bytes:
        raise NoPlanError(f"it needs {needed} bytes of shared memory")
    return Plan(**(plan.__dict__ | {"shared_bytes": needed}))


def _strip(run: Run, multiprocessors: int) -> int:
    """As few rows as leave each multiprocessor one strip of eight channels."""
    groups = run.channels // 8 * run.batch
    if groups > multiprocessors:
        raise NoPlanError("there are too many channels and images")
    return math.ceil(run.height / (multiprocessors // groups))


def _tile(run: Run, columns: int, depth: int, splits: tuple[int, ...], multiprocessors: int) -> tuple[int, int, int]:
    """Rows, columns and parts of the depth of a product's tiles: those that leave least
    to be done after the barrier.
    """
    found = []
    for split in splits:
        part = depth // split
        if depth % (16 * split) or part > DEEPEST:
            continue
        for width in range(8, min(columns, WIDEST) + 1, 8):
            tiles = multiprocessors // (columns // width * split * run.batch)  # of rows that a map may have
            if columns % width or tiles == 0:
                continue
            rows = min(run.cells, max(16, math.ceil(run.cells / tiles)))
            # Bytes that come after the barrier, some of the weights, which came before, and the products as bytes.
            cost = 2 * rows * part + 0.8 * width * part + up16(rows) * width * part / 40 + 6000 * (split - 1)
            found.append((cost, rows, width, split))
    if not found:
        raise NoPlanError("the products are too large for one round of tiles")
    return min(found)[1:]


def shared_bytes(run: Run, plan: Plan) -> int:
    """Shared memory of a thread block, as blocks.cu lays it out."""
    c, r, depth2 = run.channels, run.squeezed, run.hidden // plan.splits
    kernels = min(run.kernels), max(run.kernels)
    large = kernels[1]
    weights = (
        aligned(16 * large * large) + aligned(16 * r) + aligned(2 * plan.cols1 * (c + 8))
        + (0 if plan.gate else aligned(2 * c * (up16(r) + 8))) + aligned(2 * plan.cols2 * (depth2 + 8))
        + 128 + sum(aligned(2 * count) for count in (r, c, plan.cols1, depth2, plan.cols2))
    )  # fmt: skip
    small = aligned(4 * (max(c, depth2) + 64 + 4 * THREADS))
    lines = plan.strip * math.ceil(run.width / plan.tile)
    padded = math.ceil(run.width / plan.tile) * plan.tile

    def mix(k: int) -> int:
        plane = odd((plan.strip + k - 1) * (math.ceil((padded + k - 1) / 4) * 4))
        taps = odd(k * math.ceil(k / 4) * 4)
        return 4 * (8 * plane + 8 * taps + min(k, max(1, THREADS // 8 // lines)) * lines * (8 * plan.tile + 8))

    def product(rows: int, columns: int, depth: int) -> int:
        high = up16(rows)
        return aligned(2 * high * (depth + 8)) + 4 * depth_shares(high, columns, depth, THREADS) * high * (columns + 4)

    residuals = aligned(2 * up16(plan.rows2) * plan.cols2)
    first, second = product(plan.rows1, plan.cols1, c), product(plan.rows2, plan.cols2, depth2) + residuals
    return weights + small + max(*map(mix, kernels), first, 32 * THREADS, second)


def defines_of(run: Run, plan: Plan) -> dict[str, int | str]:
    """The kernel's constants."""
    return {
        "T": TYPES[run.dtype], "MAPS": run.batch, "HEIGHT": run.height, "WIDTH": run.width, "CHANNELS": run.channels,
        "HIDDEN": run.hidden, "SQUEEZED": run.squeezed, "BLOCKS": len(run.kernels), "SMALL": min(run.kernels),
        "LARGE": max(run.kernels), "STRIP": plan.strip, "TILE": plan.tile, "GATE": int(plan.gate), "ROWS1": plan.rows1,
        "COLS1": plan.cols1, "ROWS2": plan.rows2, "COLS2": plan.cols2, "SPLITS": plan.splits, "THREADS": THREADS,
        "SHARED_BYTES": plan.shared_bytes,
    }  # fmt: skip


def why_not(x: Tensor, blocks: Sequence[BlockWeights]) -> str | None:
    """None where one launch takes all blocks, else the reason in a few words."""
    if x.dtype not in TYPES or x.ndim != 4 or x.numel() == 0:
        return f"it takes maps in bfloat16 and float16, got {x.dtype} {tuple(x.shape)}"
    if torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") != x.dtype:
        return "autocast is on, with another type"
    return (
        why_not_device(x.device.index) or _why_not_run(run_of(x, blocks), x.device.index) or _why_not_weights(x, blocks)
    )


def run_of(x: Tensor, blocks: Sequence[BlockWeights]) -> Run:
    """Everything that determines the kernel."""
    batch, channels, height, width = x.shape
    first = blocks[0]
    kernels = tuple(block.conv_w.shape[-1] for block in blocks)
    return Run(x.dtype, batch, channels, height, width, first.b1.shape[0], first.down_b.shape[0], kernels)


def _why_not_weights(x: Tensor, blocks: Sequence[BlockWeights]) -> str | None:
    c, n, r = x.shape[1], blocks[0].b1.shape[0], blocks[0].down_b.shape[0]
    for block in blocks:
        k = block.conv_w.shape[-1]
        sizes = (c * k * k, c, r * c, r, c * r, c, n * c, n, n, c * n, c)
        for weight, size in zip(block, sizes, strict=True):
            if weight is not None and (
                weight.numel() != size or weight.dtype != x.dtype or weight.device != x.device
                or not weight.is_contiguous() or weight.data_ptr() % ALIGNMENT
            ):  # fmt: skip
                return "the weights differ from block to block, or are not contiguous in the map's type and place"
    return None


@lru_cache(maxsize=4096)
def _why_not_run(run: Run, index: int) -> str | None:
    try:
        plan_of(run, limits_of(index))
    except NoPlanError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class Launch:
    """A compiled kernel and its plan, made once for a run."""

    kernel: cuda.Kernel
    plan: Plan
    threads_blocks: int
    large: ctypes.c_ulonglong
    end: ctypes.c_int  # of the phases


@lru_cache(maxsize=256)
def launch_of(run: Run, index: int) -> Launch:
    """The kernel for a run on that GPU."""
    limits = limits_of(index)
    plan = plan_of(run, limits)
    device = torch.device("cuda", index)
    defines = defines_of(run, plan)
    kernel = cuda.kernel(PACKAGE, FILES, "run_blocks", defines, plan.shared_bytes, device, overlapping=True)
    end = plan.phases * len(run.kernels) + 1
    return Launch(
        kernel, plan, limits.multiprocessors, ctypes.c_ulonglong(large_blocks(run.kernels)), ctypes.c_int(end)
    )


def scratch_sizes(run: Run, plan: Plan) -> dict[str, int]:
    """Elements of what phases hand to each other: float32, but for the maps carried, mixed and hidden."""
    cells = run.batch * run.cells
    return {
        "squeezed": run.channels // 8 * math.ceil(run.height / plan.strip) * run.batch * run.squeezed,
        "gates": run.batch * run.channels,
        "squares": run.batch * math.ceil(run.cells / plan.rows1) * run.hidden,
        "parts": plan.splits * cells * run.channels,
        "carried": cells * run.channels, "mixed": cells * run.channels, "hidden": cells * run.hidden,
    }  # fmt: skip


def folded_blocks_gpu(x: Tensor, blocks: Sequence[BlockWeights]) -> Tensor:
    """BxCxHxW through the blocks."""
    x = x.contiguous(memory_format=torch.channels_last)
    if x.data_ptr() % ALIGNMENT:
        x = x.clone(memory_format=torch.channels_last)
    run = run_of(x, blocks)
    pointers = [None if w is None else w.data_ptr() for block in blocks for w in block]
    weights = (ctypes.c_void_p * len(pointers))(*pointers)
    with torch.cuda.device(x.device):
        output = torch.empty_like(x)
        arrived = arrivals(x.device)
        clusters = gpu_clusters.launch_of(run, x.device.index)
        if clusters is not None:
            clusters(x, weights, output, arrived)
            return output
        launch = launch_of(run, x.device.index)
        sizes = scratch_sizes(run, launch.plan)
        floats, maps = list(sizes.values())[:4], list(sizes.values())[4:]
        squeezed, gates, squares, parts = torch.split(x.new_empty(sum(floats), dtype=torch.float32), floats)
        carried, mixed, hidden = torch.split(x.new_empty(sum(maps)), maps)
        launch.kernel(
            launch.threads_blocks, THREADS, x, weights, launch.large, carried, mixed, squeezed, gates, hidden, squares,
            parts, output, arrived, ctypes.c_int(0), launch.end, cooperative=True,
        )  # fmt: skip
    return output
