"""A run of blocks as one cooperative launch on an NVIDIA GPU of compute capability 8.0 and up: the plan and the launch.

The kernel is CUDA C++ in cuda/blocks.cu, which says how it works. It is for a batch so small that launches, not work, take the time.

Shapes: B batch, C channels, H rows, W columns, N hidden channels, R squeezed channels.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from unipercept.kernels import cuda

PACKAGE = "unipercept.kernels.folded_blocks"
FILES = ("../depthwise_conv2d/cuda/prelude.cuh", "cuda/blocks.cu")
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
THREADS = 256
WIDEST = 80  # columns of a tile of a product
MAX_BLOCKS = 40  # whose pointers fit into a kernel's parameters


@dataclass(frozen=True)
class Run:
    """All that decides the kernel: the map, the widths, and the kernel size of each block."""

    dtype: torch.dtype
    batch: int
    channels: int
    height: int
    width: int
    hidden: int
    squeezed: int
    kernels: tuple[int, ...]

    @property
    def cells(self) -> int:
        """Of one map."""
        return self.height * self.width


@dataclass(frozen=True)
class Plan:
    """Of a launch: the kernel's constants, and what it needs."""

    defines: dict[str, int | str]
    shared_bytes: int
    units: int  # of the strips of the convolution, each of which leaves squeezed values
    tiles: int  # rows of squares a map
    splits: int
    phases: int


class NoPlanError(ValueError):
    """This run of blocks does not fit the GPU."""


def plan_of(run: Run, multiprocessors: int, shared_limit: int) -> Plan:
    """How the phases are cut into units, one for each multiprocessor.

    Raises:
        NoPlanError: sizes that the kernel does not take, or too much work for one round.
    """
    c, n, r = run.channels, run.hidden, run.squeezed
    if c % 16 or r % 4 or n % 16 or len(set(run.kernels)) > 2 or len(run.kernels) > MAX_BLOCKS:
        raise NoPlanError("these widths or kernel sizes are not for it")
    strip = _strip(run, multiprocessors)
    units = c // 8 * math.ceil(run.height / strip) * run.batch
    rows1, cols1, _ = _tile(run, n, c, (1,), multiprocessors)
    rows2, cols2, splits = _tile(run, c, n, (1, 2, 4, 8), multiprocessors)
    small, large = min(run.kernels), max(run.kernels)
    defines: dict[str, int | str] = {
        "T": TYPES[run.dtype], "MAPS": run.batch, "HEIGHT": run.height, "WIDTH": run.width, "CHANNELS": c, "HIDDEN": n,
        "SQUEEZED": r,
        "BLOCKS": len(run.kernels), "SMALL": small, "LARGE": large, "STRIP": strip, "TILE": _columns_of_a_thread(run.width),
        "GATE": int(c * r * 2 > 64 * 1024), "ROWS1": rows1, "COLS1": cols1, "ROWS2": rows2, "COLS2": cols2,
        "SPLITS": splits, "THREADS": THREADS, "SHARED_BYTES": shared_limit,
    }  # fmt: skip
    return Plan(
        defines, shared_limit, units, math.ceil(run.cells / rows1) * run.batch, splits, 4 if defines["GATE"] else 3
    )


def _columns_of_a_thread(width: int) -> int:
    return 8 if width <= 8 else 16


def _strip(run: Run, multiprocessors: int) -> int:
    """As few rows as leave each multiprocessor one strip of eight channels."""
    groups = run.channels // 8 * run.batch
    if groups > multiprocessors:
        raise NoPlanError("there are more channels than multiprocessors for them")
    return math.ceil(run.height / (multiprocessors // groups))


def _tile(
    run: Run, columns: int, depth: int, splits: tuple[int, ...], multiprocessors: int
) -> tuple[int, int, int]:
    """Rows, columns and parts of the depth of a product's tiles: those that keep what is fetched behind the barrier small."""
    best = None
    for split in splits:
        if depth % (16 * split) or depth // split > 640:
            continue
        for width in range(8, min(columns, WIDEST) + 1, 8):
            if columns % width:
                continue
            maps = multiprocessors // (columns // width * split * run.batch)  # tiles of rows that a map may have
            if maps == 0:
                continue
            rows = max(math.ceil(run.cells / maps), min(16, run.cells))
            high = math.ceil(rows / 16) * 16
            part = depth // split
            # Bytes behind the barrier, weights in front of it, and the products, all in bytes' worth of time.
            cost = 2 * rows * part + 0.4 * 2 * width * part + high * width * part / 40 + 6000 * (split - 1)
            if high * (part + 8) * 2 > 110_000:
                continue
            if best is None or cost < best[0]:
                best = cost, rows, width, split
    if best is None:
        raise NoPlanError("the products are too large for one round of tiles")
    return best[1:]


def folded_blocks_gpu(x: Tensor, kernels: Sequence[int], weights: Sequence[Tensor | None]) -> Tensor:
    """BxCxHxW channels-last through the blocks, whose weights come as eleven each."""
    batch, c, height, width = x.shape
    n, r = weights[6].shape[0], weights[2].shape[0]  # type: ignore[union-attr]
    run = Run(x.dtype, batch, c, height, width, n, r, tuple(kernels))
    with torch.cuda.device(x.device):
        launch = _launch(run, x.device.index)
        plan, cells = launch.plan, batch * run.cells
        floats = x.new_empty(
            plan.units * r + batch * c + plan.tiles * n + plan.splits * cells * c, dtype=torch.float32
        )
        squeezed, gates, squares, parts = floats.split(
            [plan.units * r, batch * c, plan.tiles * n, plan.splits * cells * c]
        )
        maps = x.new_empty(cells * (2 * c + n))
        carried, mixed, hidden = maps.split([cells * c, cells * c, cells * n])
        output = torch.empty_like(x)
        arrived = torch.zeros(1, dtype=torch.int32, device=x.device)
        chain = (ctypes.c_void_p * len(weights))(*(None if w is None else w.data_ptr() for w in weights))
        launch.kernel(
            launch.blocks, THREADS, x, chain, launch.large, carried, mixed, squeezed, gates, hidden, squares, parts,
            output, arrived, ctypes.c_int(0), ctypes.c_int(plan.phases * len(kernels) + 1), cooperative=True,
        )  # fmt: skip
    return output


@dataclass(frozen=True)
class Launch:
    """A compiled kernel and its plan, made once for a run."""

    kernel: cuda.Kernel
    plan: Plan
    blocks: int
    large: ctypes.c_ulonglong  # a bit for each block that has the larger kernel


@lru_cache(maxsize=256)
def _launch(run: Run, index: int) -> Launch:
    properties = torch.cuda.get_device_properties(index)
    shared = int(getattr(properties, "shared_memory_per_block_optin", 99 * 1024))
    plan = plan_of(run, properties.multi_processor_count, shared)
    kernel = cuda.kernel(PACKAGE, FILES, "run_blocks", plan.defines, plan.shared_bytes, torch.device("cuda", index))
    return Launch(kernel, plan, properties.multi_processor_count, ctypes.c_ulonglong(large_blocks(run.kernels)))


def large_blocks(kernels: Sequence[int]) -> int:
    """Bit i: block i has the larger kernel."""
    return sum(1 << i for i, k in enumerate(kernels) if k == max(kernels))
