"""Measuring which tiles of the 16-bit kernels are best for given maps on this GPU.

Never done unasked: benchmarks/depthwise_conv2d.py --tune does. The tiles of float32 come
from an estimate, gpu_rules.py.

Shapes: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from unipercept.kernels import cuda
from unipercept.kernels.depthwise_conv2d import gpu, gpu_plans
from unipercept.kernels.depthwise_conv2d.gpu_tiles import (
    IMAGES,
    MEASURED,
    STRIP_ROWS,
    AnyTile,
    Limits,
    Narrow,
    Octets,
    Patches,
    Problem,
    Rows,
    Tile,
    depth_shared_bytes,
    forward_shared_bytes,
    images_shared_bytes,
    name_of,
    octets_shared_bytes,
    rows_shared_bytes,
    small_gradient_shared_bytes,
    small_shared_bytes,
    strands_shared_bytes,
    walk_shared_bytes,
    weight_gradient_shared_bytes,
)
from unipercept.kernels.measured import Report, device_name, search
from unipercept.kernels.streams import capture, capture_stream

# The axes along which tiles of a kernel differ, and the values that are tried.
NARROW = {
    "quads": (2, 4, 5, 8, 10, 16, 20, 40), "pairs": (1, 2, 4, 7, 14, 28), "strip_rows": (4, 7, 14, 28),
    "min_blocks": (1, 2, 3, 4),
}  # fmt: skip
ROWS = {
    "columns": (2, 4), "groups": (2, 4, 5, 7, 10, 14, 28), "strip_rows": (7, 14, 28), "depth": (2, 3, 4),
    "min_blocks": (1, 2, 3),
}  # fmt: skip
OCTETS = {
    "octets": (2, 4, 8, 10), "strip_rows": (4, 7, 8, 14), "columns": (1, 2, 4, 7), "slots": (1, 2, 4),
    "stages": (1, 2, 3, 4), "warps": (4, 8, 10, 16, 20), "min_blocks": (1, 2, 3),
}  # fmt: skip
CLUSTERS = {
    "octets": (2, 4, 8), "slots": (1, 2, 4), "stages": (1, 2, 3, 4), "warps": (8, 12, 16, 24),
    "ranks": (2, 3, 4, 5, 6, 8),
}  # fmt: skip
PATCHES = {
    "pairs": (8, 16, 20, 32, 40), "slots": (2, 3, 4, 6, 8, 16), "rows": (2, 4, 7), "columns": (4, 7),
    "min_blocks": (1, 2, 3, 4),
}  # fmt: skip
# The same of the kernels whose values depend on the operation.
AXES = ("strip_rows", "strips", "channels", "warps", "min_blocks", "row_tiles", "unroll", "kernel_rows", "prefetch")
WALK_AXES = ("min_blocks", "unroll")
IMAGES_AXES = ("warps", "min_blocks", "prefetch")
OneTile = TypeVar("OneTile", bound=AnyTile)
SpecialTile = Narrow | Rows | Octets | Patches  # of the kernels for certain maps
THREADS = 8
REPEATS = 7
CACHE_BYTES, MOST_COPIES = 2e8, 16  # of maps that a measurement goes through: several times an L2 cache


def tune(x: Tensor, kernel: tuple[int, int], dilation: int = 1, report: Report | None = None) -> Path:
    """Find the best tiles, forwards and of the weight gradient, for inputs like `x`, BxCxHxW, and
    write them to the cache folder.

    Goes along one axis of the tile after the other, from the tile in use; most of the time is compiling. `report` is
    told of each improvement: problem, tile and milliseconds.
    """
    batch, channels = x.shape[:2]
    xs = [x.clone() for _ in range(max(1, min(MOST_COPIES, math.ceil(CACHE_BYTES / (x.numel() * x.element_size())))))]
    weight = torch.randn(channels, 1, *kernel, device=x.device, dtype=x.dtype) / kernel[0]
    problem, limits = gpu.problem_of(x, kernel, dilation, "zero"), gpu.limits_of(x.device.index)
    runs: dict[str, Callable[[Tensor, Any], object]] = {
        "forward": lambda x, tile: gpu.forward_gpu(x, weight, None, dilation, "zero", None, flip=False, tile=tile),
        "weight gradient": lambda x, tile: gpu.weight_gradient_gpu(x, x, *kernel, dilation, "zero", tile),
    }
    best = {}
    for operation, run in runs.items():
        start = gpu.tile_in_use(operation, problem, batch, channels, x.device.index)
        name = name_of(operation, problem, channels)
        with torch.cuda.device(x.device):
            best[name], _ = search(
                name,
                start,
                axes_of(start),
                partial(neighbours, operation, problem, batch, channels, limits),
                partial(_compile, operation, problem, batch, channels, x.device),
                partial(_milliseconds, run, xs),
                report,
            )
    path = MEASURED.remember(device_name(x.device), best)
    gpu.forget_launches()
    return path


def axes_of(tile: AnyTile) -> tuple[str, ...]:
    """Along which tiles of its kernel differ."""
    if isinstance(tile, Tile):
        return WALK_AXES if tile.walk else IMAGES_AXES if tile.images else AXES
    return tuple(_values_of(tile))


def neighbours(
    operation: str, problem: Problem, batch: int, channels: int, limits: Limits, tile: AnyTile, axis: str
) -> list[AnyTile]:
    """Tiles that differ from `tile` along one axis and can run, or be hoped to."""
    if isinstance(tile, Tile):
        forward = operation == "forward"
        tiles = _along_images(forward, tile, axis) if tile.images else _along(forward, problem, tile, axis)
        return [t for t in tiles if _may_run(forward, problem, batch, limits, t)]
    found = _varied(tile, axis, _values_of(tile)[axis])
    return [t for t in map(_even, found) if _fits(problem, channels, limits, t)]


def _varied(tile: OneTile, axis: str, values: Sequence[Any]) -> list[OneTile]:
    return [replace(tile, **{axis: value}) for value in values]


def _values_of(tile: SpecialTile) -> dict[str, tuple[int, ...]]:
    if isinstance(tile, Narrow):
        return NARROW
    if isinstance(tile, Rows):
        return ROWS
    if isinstance(tile, Patches):
        return PATCHES
    return CLUSTERS if tile.ranks else OCTETS


def _even(tile: SpecialTile) -> SpecialTile:
    """With as many warps for each octet of channels."""
    if isinstance(tile, Octets) and not tile.ranks:
        return replace(tile, warps=tile.warps // tile.octets * tile.octets)
    return tile


def _fits(problem: Problem, channels: int, limits: Limits, tile: SpecialTile) -> bool:
    if isinstance(tile, Narrow):
        return 4 * tile.quads <= channels and 32 <= tile.threads <= 512
    if isinstance(tile, Rows):
        shared = tile.min_blocks * (rows_shared_bytes(tile, channels) + 1024)
        return 96 <= tile.threads(channels) <= 640 // tile.min_blocks and shared <= limits.shared_bytes_total
    if isinstance(tile, Patches):
        return 2 * tile.pairs <= channels and 64 <= tile.threads <= 256 and tile.min_blocks * tile.threads <= 640
    if 8 * tile.octets > channels:
        return False
    if tile.ranks:
        return tile.warps % tile.octets == 0 and octets_shared_bytes(problem, tile) <= limits.shared_bytes
    shared = tile.min_blocks * (octets_shared_bytes(problem, tile) + 1024)
    return 4 <= tile.warps <= 20 // tile.min_blocks and shared <= limits.shared_bytes_total


def _along_images(forward: bool, tile: Tile, axis: str) -> list[Tile]:
    """Of the kernels whose warps take whole images."""
    values: dict[str, tuple[int, ...]] = {
        "warps": (4, 8, 12, 16) if forward and not tile.bulk else (),
        "min_blocks": (1, 2, 3, 4),
        "prefetch": (1, 2, 3, 4) if tile.bulk and not forward else (),
    }
    return _varied(tile, axis, values[axis])


def _along(forward: bool, problem: Problem, tile: Tile, axis: str) -> list[Tile]:
    if axis == "kernel_rows":
        rows = problem.kernel[0]
        ways = [] if forward else [(rows, 1), (-(-rows // 2), 2), (-(-rows // 4), 4)]
        return [
            replace(tile, kernel_rows=each, kernel_split=split, warps=tile.channels * split) for each, split in ways
        ]
    if axis == "channels":
        return [replace(tile, channels=n, warps=tile.warps if forward else n * tile.kernel_split) for n in (8, 16)]
    values: dict[str, Sequence[int]] = {
        "strip_rows": [rows for rows in STRIP_ROWS if rows >= 4 and rows < 2 * problem.height],
        "strips": (1, 2, 4, 8, 16),
        "warps": (4, 8, 16) if forward else (),
        "min_blocks": (1, 2, 3, 4),
        "row_tiles": (1, 2, 4) if forward else (),
        "unroll": (1, 2, 3, 7) if forward else (),
        "prefetch": (1, 2, 4, 8),
    }
    return _varied(tile, axis, values[axis])


def _may_run(forward: bool, problem: Problem, batch: int, limits: Limits, tile: Tile) -> bool:
    strands = tile.images and forward and tile.blocks > 1
    bytes_of = forward_shared_bytes if forward else weight_gradient_shared_bytes
    if tile.walk:
        bytes_of = walk_shared_bytes
    elif tile.bulk:
        bytes_of = small_shared_bytes if forward else small_gradient_shared_bytes
    elif tile.images:
        bytes_of = strands_shared_bytes if strands else images_shared_bytes if forward else depth_shared_bytes
    # Teams share a block that is alone on its multiprocessor, and their warps have pairs of strands.
    teams = strands and problem.channels_last_in
    if teams and IMAGES % (2 * tile.warps):
        return False
    blocks = 1 if teams else tile.min_blocks
    shared = bytes_of(problem, tile)
    registers = 65536 // (32 * tile.warps * tile.min_blocks)
    strips = tile.strips == 1 or (tile.strip_rows >= problem.height and tile.strips <= batch)
    fits = shared <= min(limits.shared_bytes, limits.shared_bytes_total // blocks - 1024)
    return strips and fits and registers >= (96 if strands else 64) and tile.warps <= 32


def _compile(
    operation: str, problem: Problem, batch: int, channels: int, device: torch.device, tiles: Sequence[AnyTile]
) -> None:
    """Into the cache on disk, side by side."""
    architecture = cuda.architecture_of(device)

    def attempt(tile: AnyTile) -> None:
        plan = gpu_plans.plan_of(operation)(problem, batch, channels, tile, gpu.limits_of(device.index))
        with suppress(cuda.KernelError):  # what fails here fails again, and is dealt with, when it is measured
            cuda.compiled(gpu.PACKAGE, plan.files, plan.defines, architecture)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(attempt, tiles))


def _milliseconds(run: Callable[[Tensor, Any], object], xs: Sequence[Tensor], tile: AnyTile) -> float:
    """The median of a call, launched from a graph that goes through more maps than a cache holds: launches of two small
    kernels would hide them. Infinite for a tile that cannot be compiled or asks for more than the GPU has.
    """
    try:
        run(xs[0], tile)
    except cuda.KernelError:
        return float("inf")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with capture(graph, capture_stream(xs[0].device)):
        for x in xs:
            run(x, tile)
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return float(sorted(times)[REPEATS // 2] / len(xs))
