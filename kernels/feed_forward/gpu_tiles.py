"""Which tile each kernel of the feed-forward takes: a rule by shape, and what gpu_tuning.py
measured on this kind of GPU.

Shapes: N output channels of a product, K its depth, size the cells of a map.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from unipercept.kernels.measured import Measured, device_name

MANY_PROGRAMS = 128  # about the multiprocessors of a large GPU


@dataclass(frozen=True)
class Tile:
    """The tile of one program of a matrix product."""

    rows: int  # BLOCK_M
    columns: int  # BLOCK_N
    tail: int  # columns beyond BLOCK_N
    depth: int  # BLOCK_K
    warps: int
    stages: int
    group: int = 1  # row tiles whose column tiles come together
    flat: bool = True  # tiles run across images
    scale_weights: bool = False  # one set of weights an image, scaled beforehand, instead of scaled rows; never flat
    # `expand`: cuBLAS multiplies, and passes of their own scale and activate, `rows` at a time; never flat
    library: bool = False


@dataclass(frozen=True)
class Product:
    """All that decides which tile is best, except the batch."""

    kernel: str
    n: int
    k: int
    size: int
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.kernel} {str(self.dtype).removeprefix('torch.')} n{self.n} k{self.k} size{self.size}"


def tile_for(product: Product, device: torch.device) -> Tile:
    """The measured tile where there is one, else the rule's."""
    name, shared = _device(device)
    return MEASURED.find(str(product), name) or default_tile(product, shared)


def shrunk(tile: Tile, product: Product, batch: int) -> Tile:
    """A small tile where the usual one would leave most multiprocessors without work: batches of one and small maps."""
    width = 128 if tile.library else tile.columns + tile.tail
    programs = tiles_of(replace(tile, rows=128) if tile.library else tile, batch, product.size) * math.ceil(
        product.n / width
    )
    if programs >= MANY_PROGRAMS or product.dtype == torch.float32:
        return tile
    columns = next((c for c in (64, 32, 16) if product.n % c == 0), 16)
    depth = next((d for d in (64, 32, 16) if product.k % d == 0), 32)
    return Tile(32, columns, 0, depth, 4, 4, flat=False)


def default_tile(product: Product, shared_bytes: int) -> Tile:
    """The rule: as wide as the accumulators allow without waste, as deep as shared memory does."""
    if product.dtype == torch.float32:
        columns, tail = split_columns(product.n, 80)
        return _fit_rows(Tile(64, columns, tail, 32, 4, 2), product.size)
    columns, tail = split_columns(product.n, 256 if shared_bytes >= 160 * 1024 else 160)
    depth = next((d for d in (64, 32, 16) if product.k % d == 0), 32)
    stages = max(2, min(4, math.ceil(product.k / depth), (shared_bytes - 8192) // ((128 + columns + tail) * depth * 2)))
    tile = _fit_rows(Tile(128, columns, tail, depth, 8, stages), product.size)
    return replace(tile, warps=4) if tile.rows * (columns + tail) < 128 * 128 else tile


def split_columns(n: int, widest: int) -> tuple[int, int]:
    """The widest tile that divides n and is a power of two, alone or with a smaller one; the
    larger and the smaller part.
    """
    for count in range(math.ceil(n / widest), n // 16 + 1):
        if n % count == 0:
            width = n // count
            columns = 1 << width.bit_length() - 1
            tail = width - columns
            if columns >= 16 and (tail == 0 or (tail >= 8 and tail & (tail - 1) == 0)):
                return columns, tail
    return min(128, max(16, 1 << (n - 1).bit_length())), 0


def _fit_rows(tile: Tile, size: int) -> Tile:
    """Tiles that end with their image where that wastes little, else flat ones; never one that touches many images."""
    rows = min(tile.rows, max(16, 1 << (size - 1).bit_length()))
    waste = math.ceil(size / rows) * rows / size
    return replace(tile, rows=rows, flat=size >= 32 and waste > 1.1)


def images_touched(tile: Tile, size: int) -> int:
    """The most images that a tile can have rows of."""
    return (tile.rows + size - 2) // size + 1 if tile.flat else 1


def tiles_of(tile: Tile, batch: int, size: int) -> int:
    """How many row tiles cover the batch."""
    return math.ceil(batch * size / tile.rows) if tile.flat else batch * math.ceil(size / tile.rows)


def grid(tile: Tile, tiles_m: int, n: int) -> tuple[int]:
    """Programs that cover all row and column tiles."""
    return (tiles_m * math.ceil(n / (tile.columns + tile.tail)),)


def neighbours(tile: Tile, product: Product, axis: str, shared_bytes: int) -> list[Tile]:
    """Tiles that differ from `tile` along one axis and can run, or be hoped to."""
    if axis == "columns":
        widths = {split_columns(product.n, widest) for widest in (32, 64, 80, 128, 160, 256, 320)}
        found = [replace(tile, columns=columns, tail=tail) for columns, tail in sorted(widths)]
    elif axis == "way":
        ways = [(True, False), (False, False), (False, True)]
        found = [replace(tile, flat=flat, scale_weights=scaled) for flat, scaled in ways]
        if product.kernel == "expand":
            found.append(replace(tile, rows=64, flat=False, scale_weights=False, library=True))
    else:
        values: dict[str, tuple[int, ...]] = {"rows": (32, 64, 128, 256), "depth": (16, 32, 64, 128), "warps": (4, 8), "stages": (2, 3, 4, 5), "group": (1, 4)}  # fmt: skip
        found = [replace(tile, **{axis: value}) for value in values[axis]]  # type: ignore[arg-type]
    return [t for t in found if _may_run(t, product, shared_bytes)]


def _may_run(tile: Tile, product: Product, shared_bytes: int) -> bool:
    width = tile.columns + tile.tail
    staged = (tile.rows + width) * tile.depth * tile.stages * product.dtype.itemsize
    accumulators, touched = tile.rows * width // (32 * tile.warps), images_touched(tile, product.size)
    return staged <= shared_bytes and accumulators <= 200 and touched <= 8 and tile.depth < 2 * max(product.k, 16)


def shared_bytes_of(device: torch.device) -> int:
    """Shared memory that a program may have."""
    return _device(device)[1]


@lru_cache
def _device(device: torch.device) -> tuple[str, int]:
    """Its name, and the shared memory that a program may have."""
    if device.type != "cuda":
        return device_name(device), 227 * 1024
    properties = torch.cuda.get_device_properties(device)
    return device_name(device), int(getattr(properties, "shared_memory_per_block_optin", 99 * 1024))


MEASURED = Measured("feed_forward", Path(__file__).parent, lambda fields: Tile(**fields))
