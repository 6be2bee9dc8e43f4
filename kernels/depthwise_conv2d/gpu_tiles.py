"""What a thread block of a depthwise convolution takes at a time: tiles, and the shared memory that they
need. gpu_rules.py chooses them.

Shapes: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unipercept.kernels import cuda
from unipercept.kernels.depthwise_conv2d.padding import Padding
from unipercept.kernels.measured import Measured

PADDING_MODES: dict[Padding, tuple[int, int]] = {  # of rows and of columns, as cuda/planes.cuh numbers them
    "zero": (0, 0), "circular": (1, 1), "cylinder": (0, 1), "sphere": (2, 1), "sphere_poles": (3, 1),
}  # fmt: skip
WALK_WIDTH = 128
ROWS_STAGE = 3  # rows that cuda/rows.cu waits for at once
# Images that cuda/images.cu and cuda/depth.cu multiply at once; in strands.cu and depth.cu
# also strands: parts of images.
IMAGES = 8
SMALL_CHANNELS = 16  # of a block in cuda/small_maps.cu and small_maps_gradient.cu
STRAND_CHANNELS = 16  # of a unit of work in cuda/strands.cu: a sector of memory
STRAND_PLACES = 3  # of each warp in cuda/strands_first.cu
PLANES_APART = 64  # elements between planes of cuda/image_planes.cuh, in all
STEP = 16  # rows that cuda/walk.cu computes at a time
STRIP_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 36, 40, 45, 48, 56)
"""Output rows of a strip. A fixed set, so that new map sizes meet kernels that are already compiled."""


class NoTileError(cuda.KernelError):
    """The kernel's window is larger than the shared memory of a multiprocessor."""


@dataclass(frozen=True)
class Tile:
    """What a thread block takes at a time; see cuda/planes.cuh."""

    channels: int  # CB
    strips: int  # S
    strip_rows: int  # TH
    blocks: int  # NT: output columns / 8
    side: int  # SIDE: halo blocks at each side; 0 where the tile is a whole zero-padded row
    warps: int
    min_blocks: int = 1  # blocks that are to share a multiprocessor: bounds the registers; in cuda/strands.cu teams
    row_tiles: int = 1  # MT: forward, 16 rows each, computed at once; in cuda/direct.cu rows of a lane, either way
    unroll: int = 1  # forward: pairs of kernel rows in one turn of the loop
    kernel_rows: int = 0  # KC: weight gradient, kernel rows of one warp
    kernel_split: int = 1  # KSPLIT: weight gradient, warps that share a channel
    prefetch: int = 4  # MAX_PREFETCH: copies of 32 bytes that a thread may have in flight; or stages of the copy engine
    walk: bool = False  # forward: cuda/walk.cu, where warps lie side by side in one channel and walk down the map
    images: bool = False  # columns of the products (images.cu, small_maps.cu, strands.cuh) or their depth
    bulk: bool = False  # by the copy engine: small_maps.cu, small_maps_gradient.cu; else images.cu, depth.cu


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
    """What a block takes in cuda/octets.cu: octets of channels of strips of the map, one place after the other; in
    cuda/octets_clusters.cu, if `ranks`.
    """

    octets: int  # G
    strip_rows: int  # TH
    columns: int  # NO: octets of them
    slots: int  # strips in a place
    stages: int  # places; in clusters, of each of the warps that share an octet's images
    warps: int
    min_blocks: int = 1
    ranks: int = 0  # blocks of a cluster that share all images of their octets, and add up their sums


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
        """Whether cuda/narrow.cu or cuda/rows.cu and, for the weight gradient,
        cuda/patches.cu or cuda/octets.cu take it.
        """
        return (
            self.kernel == (3, 3) and self.dilation == 1 and self.padding == "zero" and self.element_bytes == 2
            and self.channels_last_in and self.channels_last_out
        )  # fmt: skip

    @property
    def wide(self) -> bool:
        """Whether cuda/walk.cu is faster, where it fits: contiguous maps of 16-bit types, too
        wide for whole rows in a tile.
        """
        layout = not self.channels_last_in and not self.channels_last_out
        return layout and self.element_bytes == 2 and self.width >= WALK_WIDTH and self.height >= 32

    @property
    def small(self) -> bool:
        """Whether cuda/images.cu is faster, given enough images: channels-last maps of one block of columns."""
        return self._of_images and max(self.height, self.width) <= 8

    @property
    def small_either(self) -> bool:
        """Whether, on Hopper and later, cuda/small_maps.cu and small_maps_gradient.cu are faster, given enough images:
        maps of one block of columns, of either layout.
        """
        return self._plain and self.channels_last_in == self.channels_last_out and max(self.height, self.width) <= 8

    @property
    def stranded(self) -> bool:
        """Whether, on Hopper and later, cuda/strands.cu or, for contiguous maps, cuda/strands_first.cu is faster: maps
        whose rows are strands of one length, with outputs that are in a warp's registers. Kernels of other sizes were
        not measured, or are not faster.
        """
        words = self.channels_last_in or (self.width % 2 == 0 and self.height * self.width % 4 == 0)
        sizes = 8 < self.width <= 56 and words
        layouts = self.channels_last_in == self.channels_last_out
        least, most = (9 if self.width > 32 else 7, 17) if self.channels_last_in else (5, 31)
        return self._plain and sizes and layouts and all(least <= k <= most for k in self.kernel) and self.parts > 0

    @property
    def parts(self) -> int:
        """Of an image, each a strand of cuda/strands.cuh, so that few pairs of rows and blocks of columns are a warp's,
        and the copy engine can bring contiguous maps as they lie; 0 where there is no such number.
        """
        cells = self.height * self.width

        def suits(parts: int, most: int, lies: bool) -> bool:
            sums = math.ceil(self.height / parts / 2) * math.ceil(self.width / 8)
            in_place = cells % 8 == 0 and cells // parts % 16 == 8  # strands are an odd multiple of four banks apart
            return self.height % parts == 0 and sums <= most and (in_place or not lies)

        wishes = ((16, False), (28, False)) if self.channels_last_in else ((28, True), (16, False), (28, False))
        found = (parts for most, lies in wishes for parts in (1, 2, 4, 8) if suits(parts, most, lies))
        return next(found, 0)

    @property
    def deep(self) -> bool:
        """Whether cuda/depth.cu is faster for the weight gradient, given enough images: channels-last maps of
        one, two or four blocks of columns, with kernels whose sums are in a warp's registers. Kernels of
        fewer rows were not measured.
        """
        short, long = sorted((self.height, self.width))
        sizes = short >= 7 and (long <= 16 or (short > 24 and long <= 32 and self.kernel[1] <= 17))
        return self._of_images and 9 <= self.kernel[0] <= 13 and sizes

    @property
    def _of_images(self) -> bool:
        return self._plain and self.channels_last_in and self.channels_last_out

    @property
    def _plain(self) -> bool:
        return self.dilation == 1 and self.padding == "zero" and self.element_bytes == 2

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
    bulk_copies: bool = False  # Hopper and later


def name_of(operation: str, problem: Problem, channels: int) -> str:
    """Of a pass ("forward", which the input gradient shares, or "weight gradient"), for the file of measured tiles."""
    layouts = "-".join("last" if last else "first" for last in (problem.channels_last_in, problem.channels_last_out))
    rows, columns = problem.kernel
    dtype = str(problem.dtype).removeprefix("torch.")
    return f"{operation} {dtype} {layouts} {channels}x{problem.height}x{problem.width} kernel {rows}x{columns} dilation {problem.dilation} {problem.padding}"


def measured_tile(operation: str, problem: Problem, batch: int, channels: int, device_name: str) -> AnyTile | None:
    """What gpu_tuning.py found on this kind of GPU; None where nothing was, or where it
    takes more images than there are.
    """
    tile = MEASURED.find(name_of(operation, problem, channels), device_name)
    return None if isinstance(tile, Tile) and tile.strips > batch else tile


def same_kernel(one: AnyTile, other: AnyTile) -> bool:
    """Whether both are tiles of one kernel."""
    if isinstance(one, Tile) and isinstance(other, Tile):
        return (one.walk, one.images, one.bulk) == (other.walk, other.images, other.bulk)
    if isinstance(one, Octets) and isinstance(other, Octets):
        return (one.ranks > 0) == (other.ranks > 0)
    return type(one) is type(other)


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


def octets_strip(problem: Problem, tile: Octets) -> tuple[int, int]:
    """Rows and columns of the input that cuda/octets.cu copies for a strip: those around it, unless it is a whole map,
    and up to a multiple of eight cells.
    """
    spare = 8 * tile.columns > problem.width  # a column of zeros at the gradient's right
    whole = spare and tile.strip_rows >= problem.height
    return tile.strip_rows + (0 if whole else 2), 8 * tile.columns + (0 if spare else 8)


def octets_shared_bytes(problem: Problem, tile: Octets) -> int:
    """As cuda/octets.cu lays it out: places, barriers; or the sums at the end.

    As cuda/octets_clusters.cu does: places, sums, the other ranks' sums, barriers.
    """
    rows, columns = octets_strip(problem, tile)
    behind = 0 if columns > 8 * tile.columns else 8
    cells = tile.slots * (rows * columns + tile.strip_rows * 8 * tile.columns) + behind
    if tile.ranks:
        places = tile.warps // tile.octets * tile.stages
        return places * (16 * tile.octets * cells + 8) + 288 * (tile.warps + (tile.ranks - 1) * tile.octets) + 8
    return max(tile.stages * (16 * tile.octets * cells + 8), 288 * tile.warps)


def images_shared_bytes(problem: Problem, tile: Tile) -> int:
    """As cuda/images.cu lays it out: planes, taps."""
    planes = tile.channels * 8 * problem.height * IMAGES + PLANES_APART
    return (planes + tile.channels * math.prod(problem.kernel)) * problem.element_bytes


def small_shared_bytes(problem: Problem, tile: Tile) -> int:
    """As cuda/small_maps.cu lays it out: stage, planes, taps, barrier."""
    elements = _small_stage(problem, tile) + tile.channels * (_small_plane(problem) + math.prod(problem.kernel))
    return elements * problem.element_bytes + 8


def small_gradient_shared_bytes(problem: Problem, tile: Tile) -> int:
    """As cuda/small_maps_gradient.cu lays it out: stages of the input and of the gradient, or the sums
    at the end; planes; barriers.
    """
    stages = tile.prefetch * 2 * _small_stage(problem, tile) * problem.element_bytes
    sums = tile.channels * 2 * 9 * 4 * (8 + 2 * (problem.kernel[1] // 2))
    return max(stages, sums) + 2 * tile.channels * _small_plane(problem) * problem.element_bytes + 8 * tile.prefetch


def _small_stage(problem: Problem, tile: Tile) -> int:
    """Elements, as the copy engine leaves them: rows of eight cells of all channels, or the
    channels' maps of an image and a gap.
    """
    if problem.channels_last_in:
        return tile.strips * problem.height * 8 * tile.channels
    return tile.strips * (tile.channels * problem.height * problem.width + 8)


def _small_plane(problem: Problem) -> int:
    """Elements of a channel, eight columns of eight images to a row, in fours of rows, and a gap."""
    return math.ceil(problem.height / 4) * 4 * 8 * IMAGES + 8


def strands_shared_bytes(problem: Problem, tile: Tile) -> int:
    """As cuda/strands.cu lays it out: places of planes, taps and barriers; or as cuda/strands_first.cu: places of a
    plane and its taps, barriers. Zeros.
    """
    words = problem.height * strands_pitch(problem) // 2 * tile.strips // IMAGES  # of a strand
    plane, taps = 4 * IMAGES * (words + (12 - words % 8) % 8), math.prod(problem.kernel)
    if problem.channels_last_in:
        place = math.ceil(tile.channels * (plane + 16) / 256) * 256
        return math.ceil(tile.min_blocks * (place + 2 * tile.channels * taps + 8) / 16) * 16 + 128
    return tile.warps * STRAND_PLACES * (plane + math.ceil(4 * ((taps + 2) // 2) / 16) * 16 + 8) + 128


def strands_pitch(problem: Problem) -> int:
    """Columns from row to row of a plane: whole blocks where planes are not as they lie in memory."""
    return math.ceil(problem.width / 8) * 8 if problem.channels_last_in else problem.width


def depth_shared_bytes(problem: Problem, tile: Tile) -> int:
    """As cuda/depth.cu lays it out: planes of the input and of the gradient, what waits for them; sums where a
    plane was, or after everything.
    """
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
