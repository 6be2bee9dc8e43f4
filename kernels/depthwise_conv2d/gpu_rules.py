"""Which tile a depthwise convolution takes on a GPU: rules found by measuring on an H200, and in float32 an estimate.

Shapes: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from unipercept.kernels.cuda import MAX_PORTABLE_CLUSTER
from unipercept.kernels.depthwise_conv2d.gpu_tiles import (
    IMAGES,
    PADDING_MODES,
    ROWS_STAGE,
    SMALL_CHANNELS,
    STEP,
    STRAND_CHANNELS,
    STRIP_ROWS,
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
    octets_shared_bytes,
    rows_shared_bytes,
    small_gradient_shared_bytes,
    small_shared_bytes,
    strands_shared_bytes,
    walk_shared_bytes,
    weight_gradient_shared_bytes,
)

SUMS_OF_A_LANE = 96  # float32: sums of taps in registers, beside a row's window and two rows of the gradient
SUMS_OF_A_WARP = 42  # pieces of Toeplitz sums, two registers each, that leave room for the fragments in 128 registers
NARROW_THREADS = 288
ROWS_THREADS = 448  # of the blocks that share a multiprocessor
# At 3x3, cuda/small_maps.cu is faster than cuda/narrow.cu from so many units on, and where
# multiprocessors are no fewer.
MANY_UNITS = 1280
MANY_CELLS = 14_000_000  # 56 MB with the result, in 16 bits: more than the L2 cache holds


def forward_tile(problem: Problem, batch: int, channels: int, limits: Limits) -> Tile | Narrow | Rows:
    """The tile that suits, by rules found by measuring on an H200."""
    small = _rule_small(problem, channels, limits)
    if problem.narrow:
        many = batch * channels * problem.height * problem.width >= MANY_CELLS and problem.height >= ROWS_STAGE
        rows = _rule_rows(problem, channels, limits) if many and limits.bulk_copies else None
        units = math.ceil(channels / SMALL_CHANNELS) * math.ceil(batch / IMAGES)
        if rows is None and small is not None and not limits.multiprocessors < units < MANY_UNITS:
            return small
        return rows or _rule_narrow(problem, channels)
    if problem.direct:
        return _rule_direct(problem, batch, limits)
    if small is not None:
        return small
    if problem.small and batch >= IMAGES:
        return _rule_images(problem)
    if problem.stranded and limits.bulk_copies:
        strands = _rule_strands(problem, batch, channels, limits)
        if strands is not None:
            return strands
    if problem.wide:
        tile = _rule_walk(problem, limits)
        if tile is not None:
            return tile
    return _rule_forward(problem, batch, limits)


def weight_gradient_tile(problem: Problem, batch: int, channels: int, limits: Limits) -> Tile | Patches | Octets:
    """As `forward_tile`, for the weight gradient."""
    if problem.narrow:
        octets = None
        if limits.bulk_copies:
            octets = _rule_octets_clusters(problem, batch, channels, limits) or _rule_octets(problem, channels, limits)
        return octets or _rule_patches(channels)
    if problem.direct:
        return _rule_direct_weight_gradient(problem, batch, limits)
    small = _rule_small_gradient(problem, channels, limits)
    if small is not None and (batch >= IMAGES or not problem.channels_last_in):
        return small
    if problem.deep and batch >= IMAGES:
        tile = _rule_depth(problem)
        if depth_shared_bytes(problem, tile) <= limits.shared_bytes:
            return tile
    return _rule_weight_gradient(problem, batch, limits)


def _rule_narrow(problem: Problem, channels: int) -> Narrow:
    """At most 14 pairs of columns, and as many quads of channels as fill a block, or some fewer that leave none idle.

    Measured on an H200.
    """
    quads, pairs = channels // 4, math.ceil(problem.width / 2)
    pairs = math.ceil(pairs / math.ceil(pairs / 14))
    least = next(n for n in range(1, quads + 1) if math.ceil(quads / n) * pairs <= NARROW_THREADS)
    groups = next((n for n in range(least, 2 * least) if quads % n == 0), least)
    rows = 7 if problem.height <= 7 else 14
    return Narrow(math.ceil(quads / groups), pairs, rows, min_blocks=1 if problem.height <= 14 else 2)


def _rule_rows(problem: Problem, channels: int, limits: Limits) -> Rows | None:
    """As many threads at work on a multiprocessor as have the registers that they need, best in two blocks; None where
    channels are too many. Measured on an H200.
    """
    found = []
    for pieces in range(1, math.ceil(problem.width / 4) + 1):
        for share in (2, 3, 1):
            tile = Rows(4, math.ceil(problem.width / (4 * pieces)), min(14, problem.height), min_blocks=share)
            shared = share * (rows_shared_bytes(tile, channels) + 1024)
            if share * tile.threads(channels) <= ROWS_THREADS and shared <= limits.shared_bytes_total:
                found.append((share / pieces, share == 2, tile))
    return max(found, key=lambda entry: entry[:2])[2] if found else None


def _rule_octets(problem: Problem, channels: int, limits: Limits) -> Octets | None:
    """Strips of a whole row's width up to 56 columns; None where octets of channels do not come in equal groups, or two
    strips do not fit into shared memory: GeForce cards have 99 KB of the 227. Measured on an H200.
    """
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
    while octets_shared_bytes(problem, tile) <= limits.shared_bytes_total // 2 - 1024 and tile.stages < 6:
        tile = replace(tile, stages=tile.stages + 1)
    return tile if octets_shared_bytes(problem, tile) <= limits.shared_bytes else None


def _rule_octets_clusters(problem: Problem, batch: int, channels: int, limits: Limits) -> Octets | None:
    """Four octets of channels a cluster, of as many blocks as let all clusters run at once: of 132 multiprocessors,
    they find room on some 100. None where not all images fit into the clusters' shared memory, and where it was not
    measured to be faster, on an H200.
    """
    if (problem.height, problem.width) != (7, 7) or channels % 32 or not 320 <= channels <= 768:
        return None
    ranks = min(MAX_PORTABLE_CLUSTER, (limits.multiprocessors - 32) // (channels // 32))
    tile = Octets(4, problem.height, 1, 2, 2, 16, ranks=ranks)
    places = ranks * tile.warps // tile.octets * tile.stages
    fits = ranks > 1 and octets_shared_bytes(problem, tile) <= limits.shared_bytes
    return tile if fits and 16 <= batch <= places * tile.slots else None


def _rule_patches(channels: int) -> Patches:
    """All channels side by side where they are few, else 64 bytes of a cell, in some 128 threads.

    Measured on an H200.
    """
    pairs = channels // 2 if channels <= 80 else 16
    return Patches(pairs, 128 // pairs)


def _rule_images(problem: Problem) -> Tile:
    """Sixteen channels, a sector of memory, of eight images."""
    return Tile(16, IMAGES, problem.height, 1, 0, 8, min_blocks=3, images=True)


def _rule_strands(problem: Problem, batch: int, channels: int, limits: Limits) -> Tile | None:
    """As many warps as have the registers that they need, in teams of which each finds a unit of work in shared memory.

    None where there is not work for half of the multiprocessors, or where too many strands would
    be empty. Measured on an H200.
    """
    last, blocks = problem.channels_last_in, math.ceil(problem.width / 8)
    sums = math.ceil(problem.height / problem.parts / 2) * blocks
    shares, warps = (STRAND_CHANNELS, 4) if last else (1, 8)  # channels of a unit; warps of a team, or of a block
    tile = Tile(shares, IMAGES // problem.parts, problem.height, blocks, 0, warps, images=True)
    if not last and problem.height * problem.width // problem.parts % 4:
        return None  # lanes copy eight bytes at a time
    units = math.ceil(channels / tile.channels) * math.ceil(batch / tile.strips)
    if last:
        tile = replace(tile, min_blocks=3 if sums <= 16 else 2)
    many = 2 * units >= limits.multiprocessors and batch >= (IMAGES if last else IMAGES // problem.parts / 4)
    return tile if many and strands_shared_bytes(problem, tile) <= limits.shared_bytes else None


def _rule_small(problem: Problem, channels: int, limits: Limits) -> Tile | None:
    """As `_rule_images`, in either layout, in blocks so small that those of the next launch find places beside these,
    and wait there. Measured on an H200; None where the copy engine or its addresses are not there.
    """
    tile = Tile(SMALL_CHANNELS, IMAGES, problem.height, 1, 0, IMAGES, min_blocks=5, images=True, bulk=True)
    runs = problem.small_either and limits.bulk_copies and channels % 8 == 0
    return tile if runs and small_shared_bytes(problem, tile) <= limits.shared_bytes else None


def _rule_small_gradient(problem: Problem, channels: int, limits: Limits) -> Tile | None:
    """As `_rule_depth` and `_rule_small`, up to three times eight images ahead. Measured on an H200."""
    if not (problem.small_either and limits.bulk_copies and channels % 8 == 0):
        return None
    tiles = (
        Tile(SMALL_CHANNELS, IMAGES, problem.height, 1, 0, SMALL_CHANNELS, images=True, prefetch=stages, bulk=True)
        for stages in (3, 2, 1)
    )
    return next((tile for tile in tiles if small_gradient_shared_bytes(problem, tile) <= limits.shared_bytes), None)


def _rule_depth(problem: Problem) -> Tile:
    """A warp for each of sixteen channels, and eight images, or one in eight parts where a row is
    more than one block of columns.
    """
    blocks = math.ceil(problem.width / 8)
    return Tile(16, IMAGES if blocks == 1 else 1, problem.height, blocks, 0, 16, images=True)


def _rule_walk(problem: Problem, limits: Limits) -> Tile | None:
    """Warps over the whole width with few idle columns, in three blocks or fewer that share a multiprocessor;
    None where a ring does not fit.
    """
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
    """The sums of some kernel rows in the registers of a lane; further rows are further
    warps', then further blocks'.
    """
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
                continue  # sums need more registers than so many warps leave
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
    """Time of an output cell, relative to that of its products alone: idle lanes, loads of input
    rows, and loads of the tile.
    """
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
