"""Branches with batch norms on NVIDIA GPUs, by way of products of cells: statistics and the map's
gradient, where they are worth it.

Statistics come from products of a map's cells, summed over the images: cuda/gram.cu beside the depthwise convolution's
kernels, cuda/shifted.cu, cuda/digest.cu. The gradient of a small map is the product of two matrices of its cells with
the map and with the output's gradient: cuda/matrices.cu. docs/kernels/training_step.md says why both are exact.

Shapes: B batch, C channels, H rows, W columns, T branches, P parts of sums.
"""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from unipercept.kernels import cuda
from unipercept.kernels.branch_norm_sum.gpu_branches import Branches, floats, listed, sizes, types_of
from unipercept.kernels.depthwise_conv2d import gpu as convolution
from unipercept.kernels.depthwise_conv2d.gpu_plans import TYPES
from unipercept.kernels.depthwise_conv2d.gpu_tiles import Limits, pitch

PACKAGE = "unipercept.kernels.branch_norm_sum"
PRODUCTS_FILES = ("cuda/prelude.cuh", "cuda/planes.cuh", "cuda/fragments.cuh", "cuda/gram.cu")
MATRICES_FILES = ("../depthwise_conv2d/cuda/prelude.cuh", "cuda/transpose.cuh", "cuda/terms.cuh", "cuda/matrices.cu")
DIGEST_FILES = ("../depthwise_conv2d/cuda/prelude.cuh", "cuda/terms.cuh", "cuda/digest.cuh", "cuda/digest.cu")
WIDE_DIGEST_FILES = (*DIGEST_FILES[:3], "cuda/digest_wide.cu")
SHIFTED_FILES = ("../depthwise_conv2d/cuda/prelude.cuh", "cuda/shifted.cu")
MOST_PRODUCTS_SIDE = 16  # of maps whose products are all kept
LEAST_PRODUCTS_BATCH, LEAST_WINDOW = 32, 3  # that are worth it
PRODUCTS_CHANNELS = 16  # of a block of `gram`, a warp a channel
PRODUCTS_IMAGES = 16  # at a time
PRODUCTS_SHARE = 1  # blocks of `gram` that share a multiprocessor
SHIFTED_CHANNELS, SHIFTED_IMAGES = 8, 8  # of a block of `shifted`, two warps a channel; at a time
SHIFTED_SHARES = 3  # blocks that share the distances of rows
DIGEST_SPLITS = 2  # blocks that share a term of a channel in cuda/digest_wide.cu
SUM_THREADS = 128  # of `sum_images`
MAKE_THREADS = 256  # of `make_matrices`
MATRICES_CHANNELS, MATRICES_IMAGES = 16, 8  # of a block that multiplies with them, a warp a channel
MATRICES_AHEAD = 4  # pieces of a matrix on their way


def is_small(branches: Branches) -> bool:
    """Whether all products of a map's cells are kept."""
    return max(branches.height, branches.width) <= MOST_PRODUCTS_SIDE


def takes_products(branches: Branches, batch: int, channels: int, limits: Limits) -> bool:
    """Whether statistics come from products of the map's cells: where enough images share what they cost."""
    if batch < LEAST_PRODUCTS_BATCH or channels % PRODUCTS_CHANNELS or branches.kernels[0] < LEAST_WINDOW:
        return False
    wide = branches.blocks == 4 and branches.height >= branches.kernels[0]
    return is_small(branches) or (wide and shifted_bytes(branches) <= limits.shared_bytes)


def products_roles(branches: Branches, rows: int) -> int:
    """Blocks for a group of channels: each pair of row sets among so many rows, as cuda/gram.cu takes them."""
    u, v = 4 // branches.blocks, 8 // branches.blocks
    return sum(math.ceil(rows / v) - first // v for first in range(0, rows, u))


def border_rows(branches: Branches) -> int:
    """Of a map that is not small: those whose products cuda/gram.cu leaves, above and below."""
    return branches.kernels[0] // 2


def distances(branches: Branches) -> int:
    """Distances of rows that meet."""
    return min(branches.kernels[0], branches.height)


def shifted_starts(branches: Branches) -> tuple[int, ...]:
    """Where each block's share of the distances begins in cuda/shifted.cu; short distances have more rows."""
    rows = [sum(branches.height - a for a in range(n)) for n in range(distances(branches) + 1)]
    inner = (
        next(n for n, before in enumerate(rows) if before * SHIFTED_SHARES >= rows[-1] * share)
        for share in range(1, SHIFTED_SHARES)
    )
    return (0, *inner, distances(branches))


def shifted_bytes(branches: Branches) -> int:
    """Shared memory of cuda/shifted.cu."""
    planes, cells = 8 * branches.blocks * (branches.height + 1) + 8, branches.height * branches.width
    return 2 * SHIFTED_CHANNELS * SHIFTED_IMAGES * (planes + cells)


def products_bytes(branches: Branches) -> int:
    """Shared memory of cuda/gram.cu."""
    lines = (4 // branches.blocks | 1) + (8 // branches.blocks | 1)
    return 2 * PRODUCTS_CHANNELS * PRODUCTS_IMAGES * lines * pitch(branches.blocks)


def takes_matrices(branches: Branches, batch: int, channels: int) -> bool:
    """Whether the map's gradient is products with matrices of its cells: as for the statistics; a small gradient's
    would leave float16's range.
    """
    if batch < LEAST_PRODUCTS_BATCH or channels % MATRICES_CHANNELS or branches.kernels[0] < LEAST_WINDOW:
        return False
    return is_small(branches) and branches.dtype == torch.bfloat16


def line_rows(branches: Branches) -> int:
    """Rows of the map in sixteen rows of a matrix, as cuda/matrices.cu takes them."""
    return 1 if branches.width > 8 else 2


def lines_of(branches: Branches) -> int:
    """Of a map, of so many rows each."""
    return math.ceil(branches.height / line_rows(branches))


def pieces_of(branches: Branches) -> int:
    """Of the two matrices, as cuda/matrices.cu counts them."""
    reach, count = branches.kernels[0] // 2, lines_of(branches)
    far = math.ceil(reach / line_rows(branches))
    repeats = [
        line_rows(branches) == 1 and line > reach - apart and 0 < line <= count - 1 - reach
        for apart in range(min(2 * far, count - 1) + 1)
        for line in range(count - apart)
    ]
    return 2 * min(far, count - 1) + 1 + repeats.count(False)


def matrices_bytes(branches: Branches, operation: str) -> int:
    """Shared memory of cuda/matrices.cu."""
    if operation == "INPUT_GRADIENT":
        return 2 * 2 * MATRICES_CHANNELS * MATRICES_IMAGES * 8 * (2 * lines_of(branches) | 1)
    reaches = (
        math.ceil(k // 2 * d / line_rows(branches)) for k, d in zip(branches.kernels, branches.dilations, strict=True)
    )
    return 512 * sum(2 * far + 1 for far in reaches) + 4 * (
        (len(branches.taps) + 1) * branches.taps[0] + (branches.kernels[0] + 1) ** 2
    )


def products_defines(branches: Branches) -> dict[str, int | str]:
    """Constants of cuda/gram.cu."""
    window = branches.kernels[0]
    return {
        "T": TYPES[branches.dtype], "ELEMENT_BYTES": 2, "KH": window, "KW": window, "DIL": 1, "IN_CL": 1, "OUT_CL": 1,
        "VEC": 1, "CB": PRODUCTS_CHANNELS, "S": PRODUCTS_IMAGES, "TH": branches.rows, "NT": branches.blocks, "SIDE": 0,
        "WARPS": PRODUCTS_CHANNELS, "MIN_BLOCKS": PRODUCTS_SHARE, "UNROLL": 1, "MAX_PREFETCH": 4,
    }  # fmt: skip


def digest_defines(branches: Branches) -> dict[str, int | str]:
    """Constants of cuda/digest.cu."""
    parts = 1 if branches.dtype == torch.bfloat16 else 2
    return {
        **types_of(branches), "HEIGHT": branches.height, "WIDTH": branches.width, "TAP_PARTS": parts, "SPLITS": DIGEST_SPLITS
    }  # fmt: skip


def shifted_defines(branches: Branches) -> dict[str, int | str]:
    """Constants of cuda/shifted.cu."""
    return {
        "T": TYPES[branches.dtype], "HEIGHT": branches.height, "WIDTH": branches.width, "APART": distances(branches),
        "SHARES": SHIFTED_SHARES, "STARTS": listed(shifted_starts(branches)),
    }  # fmt: skip


def matrices_threads(operation: str) -> int:
    """Of a block of cuda/matrices.cu."""
    return 32 * MATRICES_CHANNELS if operation == "INPUT_GRADIENT" else MAKE_THREADS


def matrices_defines(branches: Branches, operation: str) -> dict[str, int | str]:
    """Constants of cuda/matrices.cu."""
    return {
        operation: 1, **types_of(branches), "HEIGHT": branches.height, "WIDTH": branches.width, "THREADS": matrices_threads(operation),
        "CB": MATRICES_CHANNELS, "MIN_BLOCKS": line_rows(branches), "AHEAD": MATRICES_AHEAD,
    }  # fmt: skip


def digest_bytes(branches: Branches) -> int:
    """As cuda/digest.cu or cuda/digest_wide.cu lays it out."""
    window, height, width, apart = branches.kernels[0], branches.height, branches.width, distances(branches)
    taps, cells = sum(branches.taps), (height + 1) * (width + 1)
    fragment = 512 if branches.dtype == torch.bfloat16 else 1024
    if not is_small(branches):
        return fragment * 3 * window + 4 * (window * max(width**2, 16 * 33) + 2 * window**2)
    reach = window // 2
    matrices = apart * (2 * reach + 2 - apart) if apart <= reach else reach * (reach + 1) + apart
    floats = max(matrices * width**2, window * 16 * 17) + 2 * taps + window**2 + cells
    return fragment * sum(branches.kernels) + 4 * floats


@lru_cache(maxsize=1024)
def products_launches(branches: Branches, index: int) -> tuple[cuda.Kernel, ...]:
    """`gram`, `digest` and, for maps that are not small, `shifted` and `sum_images`."""
    device = torch.device("cuda", index)
    gram = cuda.kernel(
        convolution.PACKAGE, PRODUCTS_FILES, "gram", products_defines(branches), products_bytes(branches), device
    )
    files = DIGEST_FILES if is_small(branches) else WIDE_DIGEST_FILES
    digest = cuda.kernel(PACKAGE, files, "digest", digest_defines(branches), digest_bytes(branches), device)
    if is_small(branches):
        return gram, digest
    others = (
        cuda.kernel(PACKAGE, SHIFTED_FILES, name, shifted_defines(branches), shared, device)
        for name, shared in (("shifted", shifted_bytes(branches)), ("sum_images", 0))
    )
    return gram, digest, *others


@lru_cache(maxsize=1024)
def matrices_launches(branches: Branches, index: int) -> tuple[cuda.Kernel, cuda.Kernel]:
    make, multiply = (
        cuda.kernel(
            PACKAGE, MATRICES_FILES, name, matrices_defines(branches, name.upper()), matrices_bytes(branches, name.upper()),
            torch.device("cuda", index),
        )
        for name in ("make_matrices", "input_gradient")
    )  # fmt: skip
    return make, multiply


def digested(x: Tensor, branches: Branches, six: list[Any]) -> tuple[Tensor, Tensor]:
    """The same by way of products of the map's cells."""
    (batch, channels, height, width), count = x.shape, len(branches.kernels)
    gram, digest, *others = products_launches(branches, x.device.index)
    splits = 1 if is_small(branches) else DIGEST_SPLITS
    sums, moments = floats(x, splits, channels, branches.sums), floats(x, splits, count, 2, channels)
    numbers = [ctypes.c_int(channels), ctypes.c_int(branches.sums)]

    def products_of(top: int, rows: int, total: Tensor | None) -> Tensor:
        products = floats(x, channels, rows * (rows + 1) // 2, width, width)
        blocks = channels // PRODUCTS_CHANNELS * products_roles(branches, rows)
        gram(blocks, 32 * PRODUCTS_CHANNELS, x, products, total, *sizes(x), ctypes.c_int(top), ctypes.c_int(rows))
        return products

    total = floats(x, channels, height, width)
    if not others:
        products = products_of(0, height, total)
        digest(channels, 32 * branches.kernels[0], products, total, *six, sums, moments, *numbers)
        return sums, moments
    shifted, sum_images = others
    border = border_rows(branches)
    top, bottom = (products_of(first, border, None) for first in (0, height - border))
    vectors = height * width * channels // 8
    sum_images(math.ceil(vectors / SUM_THREADS), SUM_THREADS, x, total, ctypes.c_int(batch), ctypes.c_int(channels))
    groups = channels // SHIFTED_CHANNELS * SHIFTED_SHARES
    parts = max(1, convolution.limits_of(x.device.index).multiprocessors // groups)
    shifts = floats(x, parts, channels, distances(branches), width, width)
    shifted(groups * parts, 64 * SHIFTED_CHANNELS, x, shifts, *map(ctypes.c_int, (batch, channels, parts)))
    digest(
        channels * count * splits, 32 * branches.kernels[0], shifts, top, bottom, total, *six, sums, moments, *numbers,
        ctypes.c_int(parts),
    )  # fmt: skip
    return sums, moments


def multiplied(
    x: Tensor, grad: Tensor, branches: Branches, six: list[Any], along: Tensor, own: Tensor, constant: Tensor
) -> Tensor:
    """The gradient of the map, from that of the sum and what `settle` leaves of each branch and channel, TxC each."""
    batch, channels = x.shape[:2]
    make, multiply = matrices_launches(branches, x.device.index)
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    matrices = torch.empty(channels, pieces_of(branches), 32, 4, dtype=torch.int32, device=x.device)
    rest = floats(x, channels, lines_of(branches), 16)
    make(channels, MAKE_THREADS, *six, along, own, constant, matrices, rest, ctypes.c_int(channels))
    blocks = channels // MATRICES_CHANNELS * math.ceil(batch / MATRICES_IMAGES)
    numbers = ctypes.c_int(batch), ctypes.c_int(channels)
    multiply(blocks, 32 * MATRICES_CHANNELS, x, grad, matrices, rest, grad_x, *numbers)
    return grad_x
