"""What a block of threads of a depthwise convolution takes at a time: tiles, and the rules that choose them.

Shapes: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from unipercept.kernels import cuda
from unipercept.kernels.depthwise_conv2d.padding import Padding
from unipercept.kernels.measured import Measured

PADDING_MODES: dict[Padding, tuple[int, int]] = {  # of rows and of columns, as cuda/planes.cuh numbers them
    "zero": (0, 0), "circular": (1, 1), "cylinder": (0, 1), "sphere": (2, 1), "sphere_poles": (3, 1),
}  # fmt: skip
SUMS_OF_A_LANE = 96  # float32: sums of taps in registers, beside a row's window and two rows of the gradient
SUMS_OF_A_WARP = 42  # pieces of Toeplitz sums, two registers each, that leave room for the fragments in 128 registers
NARROW_THREADS = 288
ROWS_THREADS = 448  # of the blocks that share a multiprocessor
MANY_CELLS = 14_000_000  # 56 MB with the result, in 16 bits: more than the L2 cache holds
WALK_WIDTH = 128
ROWS_STAGE = 3  # rows that cuda/rows.cu waits for at once
IMAGES = 8  # that cuda/images.cu and cuda/depth.cu multiply at once
PLANES_APART = 64  # elements between planes of cuda/image_planes.cuh, in all
STEP = 16  # rows that cuda/walk.cu computes at a time
STRIP_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 36, 40, 45, 48, 56)
"""Output rows of a strip. A fixed set, so that new map sizes meet kernels that are already compiled."""


class NoTileError(cuda.KernelError):
    """The kernel's window is larger than the shared memory of a multiprocessor."""


@dataclass(frozen=True)
class Tile:
    """What a block of threads takes at a time; see cuda/planes.cuh."""

    channels: int  # CB
    strips: int  # S
    strip_rows: int  # TH
    blocks: int  # NT: output columns / 8
    side: int  # SIDE: halo blocks at each side; 0 where the tile is a whole zero-padded row
    warps: int
    min_blocks: int = 1  # blocks that are to share a multiprocessor: bounds the registers
    row_tiles: int = 1  # MT: forward, 16 rows each, computed at once; in cuda/direct.cu rows of a lane, either way
    unroll: int = 1  # forward: pairs of kernel rows in one turn of the loop
    kernel_rows: int = 0  # KC: weight gradient, kernel rows of one warp
    kernel_split: int = 1  # KSPLIT: weight gradient, warps that share a channel
    prefetch: int = 4  # MAX_PREFETCH: copies of 32 bytes that a thread may have under way
    walk: bool = False  # forward: cuda/walk.cu, where warps lie side by side in one channel and walk down the map
    images: bool = (
        False  # small maps: images are columns of the products (cuda/images.cu) or their depth (cuda/depth.cu)
    )


@dataclass(frozen=True)
class Narrow:
    """What a block takes in cuda/narrow.cu: quads of channels times pairs of columns, a thread each, and rows."""

    quads: int
    pairs: int
    strip_rows: int
    min_blocks: int = 2

    @property
    def threads(self) -> int:
        return math.ceil(self.quads * self.pairs / 32) * 32


@dataclass(frozen=True)
class Rows:
    """What a block takes in cuda/rows.cu: groups of columns, all channels; and how far ahead the copy engine is."""

    columns: int  # CW: of a thread, beside four channels
    groups: int  # of so many columns
    strip_rows: int  # TH: of which sums are taken, and in which a block's share is counted
    depth: int = 3  # stages of the ring
    min_blocks: int = 2

    def threads(self, channels: int) -> int:
        return math.ceil(channels // 4 * self.groups / 32) * 32


@dataclass(frozen=True)
class Octets:
    """What a block takes in cuda/octets.cu: octets of channels of strips of the map, one place after the other."""

    octets: int  # G
    strip_rows: int  # TH
    columns: int  # NO: octets of them
    slots: int  # strips in a place
    stages: int  # places
    warps: int
    min_blocks: int = 1


@dataclass(frozen=True)
class Patches:
    """What a block takes in cuda/patches.cu: pairs of channels times patches of the map, a thread each."""

    pairs: int
    slots: int
    rows: int = 7  # of a patch
    columns: int = 7
    min_blocks: int = 3

    @property
    def threads(self) -> int:
        return math.ceil(self.pairs * self.slots / 32) * 32


AnyTile = Tile | Narrow | Rows | Patches | Octets


@dataclass(frozen=True)
class Problem:
    """All that decides which kernel runs, except the batch."""

    dtype: torch.dtype
    height: int
    width: int
    kernel: tuple[int, int]
    dilation: int
    padding: Padding
    channels_last_in: bool
    channels_last_out: bool
    vector: int  # elements in one copy of a contiguous map

    @property
    def element_bytes(self) -> int:
        return self.dtype.itemsize

    @property
    def narrow(self) -> bool:
        """Whether cuda/narrow.cu and, for the gradient of the weight, cuda/patches.cu take it."""
        return (
            self.kernel == (3, 3) and self.dilation == 1 and self.padding == "zero" and self.element_bytes == 2
            and self.channels_last_in and self.channels_last_out
        )  # fmt: skip

    @property
    def wide(self) -> bool:
        """Whether cuda/walk.cu does it better, where it fits: contiguous maps of 16-bit types, too wide for whole rows in a tile."""
        layout = not self.channels_last_in and not self.channels_last_out
        return layout and self.element_bytes == 2 and self.width >= WALK_WIDTH and self.height >= 32

    @property
    def small(self) -> bool:
        """Whether cuda/images.cu does it better, where there are images to fill it: channels-last maps of one block of columns."""
        return self._of_images and max(self.height, self.width) <= 8

    @property
    def deep(self) -> bool:
        """Whether cuda/depth.cu does the gradient of the weight better, where there are images to fill it: channels-last maps of one, two or four
        blocks of columns, with kernels whose sums stand in a warp's registers. Kernels of fewer rows were not measured."""
        short, long = sorted((self.height, self.width))
        sizes = short >= 7 and (long <= 16 or (short > 24 and long <= 32 and self.kernel[1] <= 17))
        return self._of_images and 9 <= self.kernel[0] <= 13 and sizes

    @property
    def _of_images(self) -> bool:
        plain = self.dilation == 1 and self.padding == "zero" and self.element_bytes == 2
        return plain and self.channels_last_in and self.channels_last_out

    @property
    def direct(self) -> bool:
        """Whether cuda/direct.cu takes it."""
        return self.element_bytes == 4

    @property
    def halo_blocks(self) -> int:
        return math.ceil(self.kernel[1] // 2 * self.dilation / 8)


@dataclass(frozen=True)
class Limits:
    """Of a multiprocessor, from the device."""

    multiprocessors: int
    shared_bytes: int  # that a block may ask for
    shared_bytes_total: int
    bulk_copies: bool = False  # from Hopper on


def name_of(operation: str, problem: Problem, channels: int) -> str:
    """Of a pass ("forward", which the gradient of the input shares, or "weight gradient"), for the file of measured tiles."""
    layouts = "-".join("last" if last else "first" for last in (problem.channels_last_in, problem.channels_last_out))
    rows, columns = problem.kernel
    dtype = str(problem.dtype).removeprefix("torch.")
    return f"{operation} {dtype} {layouts} {channels}x{problem.height}x{problem.width} kernel {rows}x{columns} dilation {problem.dilation} {problem.padding}"


def measured_tile(operation: str, problem: Problem, batch: int, channels: int, device_name: str) -> AnyTile | None:
    """What gpu_tuning.py found on this kind of GPU; None where nothing was, or where it takes more images than there are."""
    tile = MEASURED.find(name_of(operation, problem, channels), device_name)
    return None if isinstance(tile, Tile) and tile.strips > batch else tile


def same_kernel(one: AnyTile, other: AnyTile) -> bool:
    """Whether both are tiles of one kernel."""
    if isinstance(one, Tile) and isinstance(other, Tile):
        return (one.walk, one.images) == (other.walk, other.images)
    return type(one) is type(other)


def forward_tile(problem: Problem, batch: int, channels: int, limits: Limits) -> Tile | Narrow | Rows:
    """The tile that suits, by rules found by measuring on an H200."""
    if problem.narrow:
        many = batch * channels * problem.height * problem.width >= MANY_CELLS and problem.height >= ROWS_STAGE
        rows = _rule_rows(problem, channels, limits) if many and limits.bulk_copies else None
        return rows or _rule_narrow(problem, channels)
    if problem.direct:
        return _rule_direct(problem, batch, limits)
    if problem.small and batch >= IMAGES:
        return _rule_images(problem)
    if problem.wide:
        tile = _rule_walk(problem, limits)
        if tile is not None:
            return tile
    return _rule_forward(problem, batch, limits)


def weight_gradient_tile(problem: Problem, batch: int, channels: int, limits: Limits) -> Tile | Patches | Octets:
    """As `forward_tile`, for the gradient of the weight."""
    if problem.narrow:
        octets = _rule_octets(problem, channels, limits) if limits.bulk_copies else None
        return octets or _rule_patches(channels)
    if problem.direct:
        return _rule_direct_weight_gradient(problem, batch, limits)
    if problem.deep and batch >= IMAGES:
        tile = _rule_depth(problem)
        if depth_shared_bytes(problem, tile) <= limits.shared_bytes:
            return tile
    return _rule_weight_gradient(problem, batch, limits)


def _rule_narrow(problem: Problem, channels: int) -> Narrow:
    """At most 14 pairs of columns, and as many quads of channels as fill a block, or some fewer that leave none idle. Measured on an H200."""
    quads, pairs = channels // 4, math.ceil(problem.width / 2)
    pairs = math.ceil(pairs / math.ceil(pairs / 14))
    least = next(n for n in range(1, quads + 1) if math.ceil(quads / n) * pairs <= NARROW_THREADS)
    groups = next((n for n in range(least, 2 * least) if quads % n == 0), least)
    rows = 7 if problem.height <= 7 else 14
    return Narrow(math.ceil(quads / groups), pairs, rows, min_blocks=1 if problem.height <= 14 else 2)


def _rule_rows(problem: Problem, channels: int, limits: Limits) -> Rows | None:
    """As many threads at work on a multiprocessor as have the registers that they need, best in two blocks; None where channels are too many. Measured on an H200."""
    found = []
    for pieces in range(1, math.ceil(problem.width / 4) + 1):
        for share in (2, 3, 1):
            tile = Rows(4, math.ceil(problem.width / (4 * pieces)), min(14, problem.height), min_blocks=share)
            shared = share * (rows_shared_bytes(tile, channels) + 1024)
            if share * tile.threads(channels) <= ROWS_THREADS and shared <= limits.shared_bytes_total:
                found.append((share / pieces, share == 2, tile))
    return max(found, key=lambda entry: entry[:2])[2] if found else None


def _rule_octets(problem: Problem, channels: int, limits: Limits) -> Octets | None:
    """Strips of a whole row's width up to 56 columns; None where octets of channels do not come in equal groups. Measured on an H200."""
    octets = next((n for n in (8, 4, 10) if channels % (8 * n) == 0), None)
    if octets is None:
        return None
    across = math.ceil(problem.width / 8)
    columns = math.ceil(across / math.ceil(across / (7 if octets == 4 else 4)))
    most = 7 if columns <= 2 else 14 if octets == 4 else 8
    rows = math.ceil(problem.height / math.ceil(problem.height / most))
    slots = 2 if columns == 1 or (columns == 2 and octets == 4) else 1
    tile = Octets(octets, rows, columns, slots, 2, {4: max(8, 4 * math.ceil(columns / 2)), 8: 8, 10: 10}[octets])
    # The blocks of the next launch, which come before this one has ended, are not to find a place: they are in its way.
    while octets_shared_bytes(tile) <= limits.shared_bytes_total // 2 - 1024 and tile.stages < 6:
        tile = replace(tile, stages=tile.stages + 1)
    return tile


def _rule_patches(channels: int) -> Patches:
    """All channels side by side where they are few, else 64 bytes of a cell, in some 128 threads. Measured on an H200."""
    pairs = channels // 2 if channels <= 80 else 16
    return Patches(pairs, 128 // pairs)


def _rule_images(problem: Problem) -> Tile:
    """Sixteen channels, a sector of memory, of eight images."""
    return Tile(16, IMAGES, problem.height, 1, 0, 8, min_blocks=3, images=True)


def _rule_depth(problem: Problem) -> Tile:
    """A warp for each of sixteen channels, and eight images, or one in eight parts where a row is more than one block of columns."""
    blocks = math.ceil(problem.width / 8)
    return Tile(16, IMAGES if blocks == 1 else 1, problem.height, blocks, 0, 16, images=True)


def _rule_walk(problem: Problem, limits: Limits) -> Tile | None:
    """Warps over the whole width with few idle columns, in three blocks or fewer that share a multiprocessor; None where a ring does not fit."""
    whole = math.ceil(problem.width / 8)
    blocks = min(range(5, 10), key=lambda n: (math.ceil(whole / n) * n, -n))
    warps = math.ceil(whole / blocks)
    for share in (3, 2, 1):
        tile = Tile(1, 1, STEP, blocks, problem.halo_blocks, warps, min_blocks=share, walk=True)
        registers = 6 * blocks + 4 * problem.halo_blocks + 32  # sums, one row's fragments and taps
        fits = walk_shared_bytes(problem, tile) <= min(limits.shared_bytes, limits.shared_bytes_total // share - 1024)
        if fits and 32 * warps * share * registers <= 65536 and warps <= 32:
            return tile
    return None


def _rule_forward(problem: Problem, batch: int, limits: Limits) -> Tile:
    """Two blocks that share a multiprocessor, sixteen channels each where maps are small; else what fits."""
    columns, side = _columns(problem)
    narrow = min(columns, 4)
    wishes = [(8, 2, columns), (16, 1, columns), (8, 1, columns), (8, 1, narrow)]
    if (problem.channels_last_in or columns <= 4) and side <= 1:
        wishes.insert(0, (16, 2, columns))  # sixteen channels are a whole sector of channels-last memory
    if not problem.channels_last_in and not problem.channels_last_out:  # vectors of channels-last memory hold eight
        wishes += [(4, 1, narrow), (2, 1, narrow)]
    for channels, share, blocks in wishes:
        tile = Tile(
            channels, 1, 1, blocks, side, 16 if columns > 4 and channels == 16 else min(channels, 8),
            min_blocks=share, row_tiles=1 if columns > (4 if channels == 16 else 7) else 2, prefetch=2,
        )  # fmt: skip
        fitted = _fit(problem, tile, batch, 32, limits.shared_bytes_total // share - 1024, forward_shared_bytes)
        if fitted is not None and (
            fitted.strip_rows >= min(problem.height, 36 if side > 1 else 28) or (share == 1 and channels <= 8)
        ):
            return fitted
    raise NoTileError(f"no tile fits {problem} into {limits.shared_bytes} bytes of shared memory")


def _rule_weight_gradient(problem: Problem, batch: int, limits: Limits) -> Tile:
    """One warp holds the sums of all kernel rows where they fit into its registers."""
    columns, side = _columns(problem)
    rows = problem.kernel[0]
    per_warp = min(rows, SUMS_OF_A_WARP // (2 * problem.halo_blocks + 1) // 2 * 2)
    split = 1 if per_warp == rows else 2
    for share in (2, 1):
        tile = Tile(
            8, 1, 1, columns, side, 8 * split, min_blocks=1 if split == 2 else share, kernel_rows=per_warp, kernel_split=split,
            prefetch=2,
        )  # fmt: skip
        fitted = _fit(problem, tile, batch, 32, limits.shared_bytes_total // share - 1024, weight_gradient_shared_bytes)
        if fitted is not None and (fitted.strip_rows >= min(problem.height, 28) or share == 1):
            return fitted
    raise NoTileError(f"no tile fits {problem} into {limits.shared_bytes} bytes of shared memory")


def _rule_direct(problem: Problem, batch: int, limits: Limits) -> Tile:
    """A warp a channel; rows of a lane share what is loaded of an input row, as many as registers hold."""
    most = 4 if problem.kernel[1] <= 17 else 2 if problem.kernel[1] <= 31 else 1
    tiles = [Tile(channels, 1, 1, 1, problem.halo_blocks, channels) for channels in _direct_channels(problem)]
    return _cheapest(problem, tiles, batch, most, limits, direct_shared_bytes)


def _rule_direct_weight_gradient(problem: Problem, batch: int, limits: Limits) -> Tile:
    """The sums of some kernel rows in the registers of a lane; further rows are further warps', then further blocks'."""
    rows, columns = problem.kernel
    few = [n for n in range(1, rows + 1) if n == 1 or n * columns <= SUMS_OF_A_LANE]
    per_lane = min(few, key=lambda n: math.ceil(rows / n) * n * (1 + 0.3 / n))
    tiles = []
    for channels in _direct_channels(problem):
        split = min(math.ceil(rows / per_lane), max(1, 8 // channels))
        tiles.append(
            Tile(channels, 1, 1, 1, problem.halo_blocks, channels * split, kernel_rows=per_lane, kernel_split=split)
        )
    return _cheapest(problem, tiles, batch, 2 if columns <= 31 else 1, limits, direct_weight_gradient_shared_bytes)


def _direct_channels(problem: Problem) -> tuple[int, ...]:
    """Of a block: vectors of channels-last memory hold four."""
    return (8, 4) if problem.channels_last_in or problem.channels_last_out else (8, 4, 2, 1)


def _cheapest(
    problem: Problem,
    tiles: list[Tile],
    batch: int,
    most_rows: int,
    limits: Limits,
    shared_bytes: Callable[[Problem, Tile], int],
) -> Tile:
    """The best of `tiles` with any width, rows a lane and blocks on a multiprocessor, by `_direct_cost`."""
    found: list[tuple[float, Tile]] = []
    for tile in tiles:
        for share in (3, 2, 1):
            if share * tile.warps > (12 if tile.kernel_rows else 16):
                continue  # sums want more registers than so many warps leave
            budget = limits.shared_bytes_total // share - 1024
            for blocks in range(1, min(9, math.ceil(problem.width / 8)) + 1):
                for rows in (n for n in (4, 2, 1) if n <= most_rows):
                    wish = replace(tile, blocks=blocks, row_tiles=rows, min_blocks=share, prefetch=2)
                    fitted = _fit(problem, wish, batch, rows * (32 // blocks), budget, shared_bytes)
                    if fitted is not None:
                        found.append((_direct_cost(problem, fitted), fitted))
    if not found:
        raise NoTileError(f"no tile fits {problem} into {limits.shared_bytes} bytes of shared memory")
    return min(found, key=lambda pair: pair[0])[1]


def _direct_cost(problem: Problem, tile: Tile) -> float:
    """Time of an output cell, relative to that of its products alone: idle lanes, loads of input rows, and loads of the tile."""
    kernel_rows = tile.kernel_rows * tile.kernel_split or problem.kernel[0]
    at_a_time = 32 // tile.blocks
    groups = tile.strips * math.ceil(tile.strip_rows / (tile.row_tiles * problem.dilation)) * problem.dilation
    lanes = math.ceil(groups / at_a_time) * 32 * 8 * tile.row_tiles
    rows = tile.strips * min(tile.strip_rows, problem.height)
    columns = problem.width / math.ceil(problem.width / (8 * tile.blocks))
    waiting = max(1.0, 12 / (tile.min_blocks * tile.warps)) ** 0.5  # few warps do not hide what they wait for
    products = lanes / (rows * columns) * (1 + 0.3 / tile.row_tiles) * waiting
    loaded_rows = tile.strips * (tile.strip_rows + (kernel_rows - 1) * problem.dilation)
    loaded = loaded_rows * 8 * (tile.blocks + 2 * tile.side) / (rows * columns)
    return float(products + 32 / (kernel_rows * problem.kernel[1]) * loaded)


def direct_shared_bytes(problem: Problem, tile: Tile) -> int:
    """As cuda/direct.cu lays it out: planes, taps."""
    rows = tile.strips * (tile.strip_rows + (problem.kernel[0] - 1) * problem.dilation) + _slack(problem, tile)
    taps = problem.kernel[0] * math.ceil(problem.kernel[1] / 4) * 4
    return 4 * tile.channels * (rows * _direct_pitch(tile.blocks + 2 * tile.side) + taps)


def direct_weight_gradient_shared_bytes(problem: Problem, tile: Tile) -> int:
    """As cuda/direct.cu lays it out: planes of the input and of the gradient."""
    reach = (tile.kernel_rows * tile.kernel_split - 1) * problem.dilation
    rows = tile.strips * (tile.strip_rows + reach) + _slack(problem, tile)
    gradients = tile.strips * tile.strip_rows * _direct_pitch(tile.blocks)
    return 4 * tile.channels * (rows * _direct_pitch(tile.blocks + 2 * tile.side) + gradients)


def _slack(problem: Problem, tile: Tile) -> int:
    """Rows that the lanes of the last rows of a strip see too much of."""
    step = tile.row_tiles * problem.dilation
    return math.ceil(tile.strip_rows / step) * step - tile.strip_rows


def _direct_pitch(blocks: int) -> int:
    return 8 * blocks + 4


def _columns(problem: Problem) -> tuple[int, int]:
    """Blocks of eight output columns in a tile and halo blocks at its sides: whole rows where they are short."""
    whole = math.ceil(problem.width / 8)
    zero = PADDING_MODES[problem.padding][1] == 0
    if zero and whole <= 7:
        return whole, 0
    best = min(range(4, 10), key=lambda n: (math.ceil(whole / n) * n, -n))
    return min(best, max(whole, 1)), problem.halo_blocks


def _fit(
    problem: Problem, tile: Tile, batch: int, lines: int, budget: int, shared_bytes: Callable[[Problem, Tile], int]
) -> Tile | None:
    """The tile with as many rows as `budget` bytes hold and the map has, then strips up to `lines` rows in all."""
    fitted = None
    for strips in range(1, problem.height + 1):
        wanted = math.ceil(problem.height / strips)
        rows = next((r for r in STRIP_ROWS if r >= wanted), 0)
        if rows and shared_bytes(problem, replace(tile, strip_rows=rows)) <= budget:
            fitted = replace(tile, strip_rows=rows)
            break
    while fitted is not None and 2 * fitted.strips * fitted.strip_rows <= lines and 2 * fitted.strips <= batch:
        double = replace(fitted, strips=2 * fitted.strips)
        if fitted.strip_rows < problem.height or shared_bytes(problem, double) > budget:
            break
        fitted = double
    return fitted


def forward_shared_bytes(problem: Problem, tile: Tile) -> int:
    """As cuda/toeplitz.cu lays it out: planes, padded taps."""
    taps = tile.channels * problem.kernel[0] * 2 * padded_taps(problem.halo_blocks)
    planes = tile.channels * _plane_rows(problem, tile, problem.kernel[0]) * pitch(tile.blocks + 2 * tile.side)
    return (planes + taps) * problem.element_bytes


def walk_shared_bytes(problem: Problem, tile: Tile) -> int:
    """As cuda/walk.cu lays it out: ring, padded taps, sums."""
    ring = 2 * tile.strip_rows + (problem.kernel[0] - 1) * problem.dilation
    taps = problem.kernel[0] * 2 * padded_taps(problem.halo_blocks)
    return (ring * pitch(tile.warps * tile.blocks + 2 * tile.side) + taps) * problem.element_bytes + 4 * tile.warps


def rows_shared_bytes(tile: Rows, channels: int) -> int:
    """As cuda/rows.cu lays it out: ring, sums, barriers."""
    row = 2 * channels * (tile.columns * tile.groups + 2)
    return tile.depth * (ROWS_STAGE * row + 8) + 4 * channels * tile.groups


def octets_shared_bytes(tile: Octets) -> int:
    """As cuda/octets.cu lays it out: places, barriers; or the sums at the end."""
    columns = 8 * tile.columns
    cells = math.ceil((tile.strip_rows + 2) * (columns + 2) / 8) * 8 + tile.strip_rows * columns
    return max(tile.stages * (16 * tile.octets * tile.slots * cells + 8), 288 * tile.warps)


def images_shared_bytes(problem: Problem, tile: Tile) -> int:
    """As cuda/images.cu lays it out: planes, taps."""
    planes = tile.channels * 8 * problem.height * IMAGES + PLANES_APART
    return (planes + tile.channels * math.prod(problem.kernel)) * problem.element_bytes


def depth_shared_bytes(problem: Problem, tile: Tile) -> int:
    """As cuda/depth.cu lays it out: planes of the input and of the gradient, what waits for them; sums where a plane was, or behind all."""
    parts = IMAGES // tile.strips
    rows = math.ceil(problem.height / parts)
    around = 0 if parts == 1 else math.ceil(problem.kernel[0] // 2 / rows) * (tile.strips + 1)
    plane = rows * tile.blocks * 8 * (IMAGES + around) * problem.element_bytes
    waiting = math.ceil(rows * 4 * tile.blocks / tile.warps) * 2 * 32 * tile.warps * 8
    far = 8 * min(problem.halo_blocks, tile.blocks - 1)
    scratch = 2 * 9 * 4 * (2 * far + 8 + 2 * max(0, problem.kernel[1] // 2 - far))
    whole = 2 * (tile.channels * plane + PLANES_APART * problem.element_bytes + waiting)
    return whole + (0 if scratch <= plane else tile.warps * scratch)


def weight_gradient_shared_bytes(problem: Problem, tile: Tile) -> int:
    """As cuda/toeplitz.cu lays it out: planes of the input and of the gradient; or the sums at the end."""
    planes = _plane_rows(problem, tile, tile.kernel_rows * tile.kernel_split) * pitch(tile.blocks + 2 * tile.side)
    gradients = math.ceil(tile.strips * tile.strip_rows / 16) * 16 * pitch(tile.blocks)
    far = problem.halo_blocks if tile.side else min(problem.halo_blocks, tile.blocks - 1)
    scratch = tile.warps * 8 * (2 * far + 1) * 9 * 4
    return max(tile.channels * (planes + gradients) * problem.element_bytes, scratch)


def is_whole(problem: Problem, tile: Tile) -> bool:
    """Whether strips are whole zero-padded maps, all of whose outputs (or kernel rows) a warp holds at once."""
    at_once = 16 * tile.row_tiles >= tile.strips * tile.strip_rows
    if tile.kernel_rows:
        at_once = tile.kernel_rows * tile.kernel_split >= problem.kernel[0]
    return tile.strip_rows == problem.height and PADDING_MODES[problem.padding][0] == 0 and at_once


def _plane_rows(problem: Problem, tile: Tile, kernel_rows: int) -> int:
    if is_whole(problem, tile):
        reach = problem.kernel[0] // 2 * problem.dilation
        return reach + tile.strips * (tile.strip_rows + reach)
    return tile.strips * (tile.strip_rows + (kernel_rows - 1) * problem.dilation)


def pitch(blocks: int) -> int:
    """Elements from row to row of a plane: an odd count of 16 bytes."""
    return 8 * (blocks | 1)


def padded_taps(halo_blocks: int) -> int:
    """Of a kernel row as the Toeplitz kernels keep it."""
    return 16 * halo_blocks + 16


def _read_tile(fields: Mapping[str, Any]) -> AnyTile:
    kinds: dict[str, Callable[..., AnyTile]] = {"quads": Narrow, "groups": Rows, "octets": Octets, "pairs": Patches}
    return next((kind for own, kind in kinds.items() if own in fields), Tile)(**fields)


MEASURED = Measured("depthwise_conv2d", Path(__file__).parent, _read_tile)
