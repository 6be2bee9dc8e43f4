"""What is launched for a depthwise convolution on a GPU: the CUDA C++ files, their constants, blocks, threads
and shared memory for a tile.

Nothing here touches a GPU: plans are the same on every machine.

Shapes: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from unipercept.kernels.depthwise_conv2d.gpu_tiles import (
    IMAGES,
    PADDING_MODES,
    AnyTile,
    Limits,
    Narrow,
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
    octets_shared_bytes,
    octets_strip,
    rows_shared_bytes,
    small_gradient_shared_bytes,
    small_shared_bytes,
    strands_pitch,
    strands_shared_bytes,
    walk_shared_bytes,
    weight_gradient_shared_bytes,
)

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
DIRECT_BLOCKS = 8  # float32, weight gradient: for each multiprocessor; short sums are also more exact
SUM_THREADS, FEW_WEIGHTS = 256, 10_000  # of cuda/reduce.cu: of a block; fewer are shared by more warps
WALK_FILES = ("cuda/prelude.cuh", "cuda/planes.cuh", "cuda/fragments.cuh", "cuda/walk.cu")
IMAGES_FILES = ("cuda/prelude.cuh", "cuda/image_planes.cuh", "cuda/images.cu")
SMALL_FILES = ("cuda/prelude.cuh", "cuda/bulk.cuh", "cuda/small_maps.cuh", "cuda/small_maps.cu")
SMALL_GRADIENT_FILES = (*SMALL_FILES[:3], "cuda/small_maps_gradient.cu")
STRANDS_FILES = ("cuda/prelude.cuh", "cuda/bulk.cuh", "cuda/strands.cuh", "cuda/strands.cu")
STRANDS_FIRST_FILES = ("cuda/prelude.cuh", "cuda/bulk.cuh", "cuda/strands.cuh", "cuda/strands_first.cu")
DEPTH_FILES = ("cuda/prelude.cuh", "cuda/image_planes.cuh", "cuda/depth.cu")
NARROW_FILES = ("cuda/prelude.cuh", "cuda/four_channels.cuh", "cuda/narrow.cu")
ROWS_FILES = ("cuda/prelude.cuh", "cuda/bulk.cuh", "cuda/four_channels.cuh", "cuda/rows.cu")
OCTETS_FILES = ("cuda/prelude.cuh", "cuda/bulk.cuh", "cuda/octets.cuh", "cuda/octets.cu")
OCTETS_CLUSTERS_FILES = (*OCTETS_FILES[:3], "../folded_blocks/cuda/cluster.cuh", "cuda/octets_clusters.cu")
PATCHES_FILES = ("cuda/prelude.cuh", "cuda/patches.cu")
# Launched while the kernel before still runs its last blocks. Blocks of the others would be in each other's way.
OVERLAPPING_FILES = (
    IMAGES_FILES,
    SMALL_FILES,
    SMALL_GRADIENT_FILES,
    STRANDS_FILES,
    STRANDS_FIRST_FILES,
    DEPTH_FILES,
    NARROW_FILES,
    ROWS_FILES,
    OCTETS_FILES,
    OCTETS_CLUSTERS_FILES,
    PATCHES_FILES,
)


def sum_plan(count: int, parts: int) -> tuple[int, int]:
    """Warps that add up the same weights, as few weights would be few warps, and parts that
    each of them asks for at once.
    """
    share = 1 if parts == 1 else 8 if count < FEW_WEIGHTS else min(8, 2 ** math.ceil(math.log2(max(1, parts / 8))))
    return share, min(16, 2 ** math.ceil(math.log2(max(1, parts / share))))


@dataclass(frozen=True)
class Plan:
    """Everything about a launch beside its tensors."""

    files: tuple[str, ...]
    defines: dict[str, int | str]
    shared_bytes: int
    blocks: int
    threads: int
    parts: int  # partial sums that the kernel leaves; 0: it adds them up itself
    numbers: tuple[int, ...]
    ranks: int = 1  # blocks of a cluster


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
    if tile.bulk:
        return Plan(
            SMALL_FILES, _small_defines(problem, tile) | {"MIN_BLOCKS": tile.min_blocks, "SHARED_BYTES": small_shared_bytes(problem, tile)},
            small_shared_bytes(problem, tile), math.ceil(channels / tile.channels) * math.ceil(batch / tile.strips), 32 * tile.warps, 1, sizes,
        )  # fmt: skip
    if tile.images and tile.blocks == 1:
        return Plan(
            IMAGES_FILES, _images_defines(problem, tile, images_shared_bytes), images_shared_bytes(problem, tile),
            math.ceil(channels / tile.channels) * math.ceil(batch / tile.strips), 32 * tile.warps, 1, sizes,
        )  # fmt: skip
    if tile.images:
        units = math.ceil(channels / tile.channels) * math.ceil(batch / tile.strips)
        if not problem.channels_last_in:
            blocks = min(tile.min_blocks * limits.multiprocessors, math.ceil(units / tile.warps))
            defines = _strands_defines(problem, tile) | {"MIN_BLOCKS": tile.min_blocks}
            return Plan(
                STRANDS_FIRST_FILES, defines, strands_shared_bytes(problem, tile), blocks, 32 * tile.warps, 1, sizes
            )
        blocks, teams = min(limits.multiprocessors, 2 * units), tile.min_blocks
        in_order = teams > 2 and units > teams * blocks  # measured on an H200, where some teams have a second unit
        defines = _strands_defines(problem, tile) | {"TEAMS": teams, "IN_ORDER": int(in_order)}
        return Plan(
            STRANDS_FILES, defines, strands_shared_bytes(problem, tile), blocks, 32 * tile.warps * teams, 1, sizes
        )
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
        if tile.ranks:
            return Plan(
                OCTETS_CLUSTERS_FILES, _octets_defines(problem, tile) | {"RANKS": tile.ranks}, octets_shared_bytes(problem, tile),
                groups * tile.ranks, 32 * tile.warps, 0, sizes, tile.ranks,
            )  # fmt: skip
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
        if tile.bulk:
            return Plan(
                SMALL_GRADIENT_FILES,
                _small_defines(problem, tile) | {"STAGES": tile.prefetch, "SHARED_BYTES": small_gradient_shared_bytes(problem, tile)},
                small_gradient_shared_bytes(problem, tile), groups * splits, 32 * tile.warps, splits, (*sizes, splits),
            )  # fmt: skip
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
    """What plans a "forward" (or input gradient) or a "weight gradient"."""
    return forward_plan if operation == "forward" else weight_gradient_plan


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


def _small_defines(problem: Problem, tile: Tile) -> dict[str, int | str]:
    return {
        "T": TYPES[problem.dtype], "KH": problem.kernel[0], "KW": problem.kernel[1], "TH": problem.height, "TW": problem.width,
        "LAST": int(problem.channels_last_in),
    }  # fmt: skip


def _strands_defines(problem: Problem, tile: Tile) -> dict[str, int | str]:
    return {
        "T": TYPES[problem.dtype], "KH": problem.kernel[0], "KW": problem.kernel[1], "TH": problem.height, "TW": problem.width,
        "PW": strands_pitch(problem), "GROUPS": IMAGES // tile.strips, "WARPS": tile.warps,
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
