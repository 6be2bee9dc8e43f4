"""Branches with batch norms on NVIDIA GPUs: the launches.

Forwards, one pass over the map takes the statistics of all branches, whose outputs stay inside the kernel; then the branches are one
convolution. Backwards, the weight's gradient of that convolution and what the first pass left make all gradients of the parameters,
and one more pass computes the outputs again and makes the gradient of the map. The kernels are CUDA C++, beside those of the
depthwise convolution: cuda/branches.cu, cuda/branch_norms.cu. docs/kernels.md says why this is exact.

Shapes: B batch, C channels, H rows, W columns, T branches.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unipercept.kernels import cuda
from unipercept.kernels.depthwise_conv2d import gpu as convolution
from unipercept.kernels.depthwise_conv2d.gpu_tiles import STRIP_ROWS, Limits, padded_taps, pitch

TYPES = (torch.bfloat16, torch.float16)
MOST_BRANCHES = 6
MOST_KERNEL_ROWS = 13  # whose sums a warp holds in registers
MOST_ROWS = 32  # of a block: two fragments
MOST_COLUMNS = 32
CHANNELS, SHARE = 8, 2  # of a block, a warp each; and blocks that share a multiprocessor
NORM_THREADS = 192
MOST_SHARED_BYTES = 113 * 1024  # of a block for the largest map
MOST_PRODUCTS_SIDE, LEAST_PRODUCTS_BATCH = 16, 32  # of maps whose statistics are taken from products of their cells
PRODUCTS_CHANNELS, PRODUCTS_IMAGES, PRODUCTS_SHARE = (
    16,
    16,
    1,
)  # of a block, a warp a channel; at a time; and blocks that share a multiprocessor
FILES = ("cuda/prelude.cuh", "cuda/planes.cuh", "cuda/fragments.cuh", "cuda/branches.cu")
PRODUCTS_FILES = ("cuda/prelude.cuh", "cuda/planes.cuh", "cuda/fragments.cuh", "cuda/gram.cu")
NORM_FILES = ("cuda/prelude.cuh", "cuda/branch_norms.cu")
PACKAGE = "unipercept.kernels.branch_norm_sum"
MATRICES_FILES = ("../depthwise_conv2d/cuda/prelude.cuh", "cuda/transpose.cuh", "cuda/terms.cuh", "cuda/matrices.cu")
DIGEST_FILES = ("../depthwise_conv2d/cuda/prelude.cuh", "cuda/terms.cuh", "cuda/digest.cuh", "cuda/digest.cu")
WIDE_DIGEST_FILES = (*DIGEST_FILES[:3], "cuda/digest_wide.cu")
SHIFTED_FILES = ("../depthwise_conv2d/cuda/prelude.cuh", "cuda/shifted.cu")
DIGEST_SPLITS = 2  # blocks that share a term of a channel in cuda/digest_wide.cu
SUM_THREADS = 128  # of `sum_images`
SHIFTED_CHANNELS, SHIFTED_IMAGES, SHIFTED_SHARES = 8, 8, 3  # of a block, at a time; and blocks that share the distances of rows
MATRICES_THREADS, MATRICES_CHANNELS, MATRICES_IMAGES = 256, 8, 8  # of a block
MATRICES_SHARE, MATRICES_AHEAD = 2, 4  # blocks that share a multiprocessor; pieces of a matrix on their way


@dataclass(frozen=True)
class Branches:
    """All that decides which kernels run, except the batch."""

    dtype: torch.dtype
    weight_dtype: torch.dtype
    height: int
    width: int
    kernels: tuple[int, ...]
    dilations: tuple[int, ...]

    @property
    def rows(self) -> int:
        """That a map may have, in a few steps: new sizes meet kernels that are already compiled."""
        return next(rows for rows in STRIP_ROWS if rows >= self.height)

    @cached_property
    def images(self) -> int:
        """Maps that a block takes at a time."""
        most = range(MOST_ROWS // self.rows, 1, -1)
        return next((n for n in most if self.shared_bytes("INPUT_GRADIENT", n) <= MOST_SHARED_BYTES), 1)

    @property
    def blocks(self) -> int:
        """Of eight columns."""
        return math.ceil(self.width / 8)

    def shared_bytes(self, operation: str, images: int | None = None) -> int:
        """As cuda/branches.cu lays it out, for so many maps at a time."""
        images = images or self.images
        reach, halo = self.kernels[0] // 2, math.ceil(self.kernels[0] // 2 / 8)
        columns, lines = pitch(self.blocks), math.ceil(images * self.rows / 16) * 16
        plane = (reach + images * (self.rows + reach)) * columns
        taps = sum(self.kernels) * 2 * padded_taps(halo)
        if operation == "INPUT_GRADIENT":
            return 2 * CHANNELS * (2 * plane + lines * columns + taps)
        scratch = 8 * (2 * min(halo, self.blocks - 1) + 1) * 9 * 4
        return CHANNELS * (2 * (plane + lines * columns + taps) + scratch)

    @cached_property
    def roles(self) -> tuple[int, ...]:
        """Where the groups of branches begin whose sums a warp holds at once; the last group is the window alone."""
        starts, rows = [0], 0
        for term, kernel in enumerate(self.kernels):
            if term > starts[-1] and rows + kernel > MOST_KERNEL_ROWS:
                starts.append(term)
                rows = 0
            rows += kernel
        return (*starts, len(self.kernels), len(self.kernels) + 1)

    @property
    def is_small(self) -> bool:
        """Whether all products of a map's cells are kept."""
        return max(self.height, self.width) <= MOST_PRODUCTS_SIDE

    def takes_products(self, batch: int, channels: int, limits: Limits) -> bool:
        """Whether statistics come from products of the map's cells: where enough images share what they cost."""
        wide = self.blocks == 4 and self.height > self.kernels[0] // 2 and self.shifted_bytes <= limits.shared_bytes
        return (self.is_small or wide) and batch >= LEAST_PRODUCTS_BATCH and channels % PRODUCTS_CHANNELS == 0

    def products_roles(self, rows: int) -> int:
        """Blocks for a group of channels: each pair of row sets among so many rows, as cuda/gram.cu takes them."""
        u, v = 4 // self.blocks, 8 // self.blocks
        return sum(math.ceil(rows / v) - first // v for first in range(0, rows, u))

    @property
    def border_rows(self) -> int:
        """Of a map that is not small: those whose products cuda/gram.cu leaves, above and below."""
        return self.kernels[0] // 2

    @property
    def apart(self) -> int:
        """Distances of rows that meet."""
        return min(self.kernels[0], self.height)

    @property
    def shifted_starts(self) -> tuple[int, ...]:
        """Where each block's share of the distances begins in cuda/shifted.cu; short distances have more rows."""
        rows = [sum(self.height - a for a in range(n)) for n in range(self.apart + 1)]
        inner = (
            next(n for n, before in enumerate(rows) if before * SHIFTED_SHARES >= rows[-1] * share)
            for share in range(1, SHIFTED_SHARES)
        )
        return (0, *inner, self.apart)

    @property
    def shifted_bytes(self) -> int:
        """Shared memory of cuda/shifted.cu."""
        planes, cells = 8 * self.blocks * (self.height + 1) + 8, self.height * self.width
        return 2 * SHIFTED_CHANNELS * SHIFTED_IMAGES * (planes + cells)

    @property
    def products_bytes(self) -> int:
        """Shared memory of cuda/gram.cu."""
        lines = (4 // self.blocks | 1) + (8 // self.blocks | 1)
        return 2 * PRODUCTS_CHANNELS * PRODUCTS_IMAGES * lines * pitch(self.blocks)

    def takes_matrices(self, batch: int) -> bool:
        """Whether the map's gradient is products with matrices of its cells: as for the statistics; a small gradient's would leave float16's range."""
        return self.is_small and batch >= LEAST_PRODUCTS_BATCH and self.dtype == torch.bfloat16

    @property
    def line_rows(self) -> int:
        """Rows of the map in sixteen rows of a matrix, as cuda/matrices.cu takes them."""
        return 1 if self.width > 8 else 2

    @property
    def lines(self) -> int:
        return math.ceil(self.height / self.line_rows)

    @property
    def pieces(self) -> int:
        """Of the two matrices, as cuda/matrices.cu counts them."""
        reach, lines = self.kernels[0] // 2, self.lines
        far = math.ceil(reach / self.line_rows)
        repeats = [
            self.line_rows == 1 and line > reach - apart and 0 < line <= lines - 1 - reach
            for apart in range(min(2 * far, lines - 1) + 1)
            for line in range(lines - apart)
        ]
        return 2 * min(far, lines - 1) + 1 + repeats.count(False)

    def matrices_bytes(self, operation: str) -> int:
        """Shared memory of cuda/matrices.cu."""
        if operation == "INPUT_GRADIENT":
            return 2 * 2 * MATRICES_CHANNELS * MATRICES_IMAGES * 8 * (2 * self.lines | 1)
        reaches = (math.ceil(k // 2 * d / self.line_rows) for k, d in zip(self.kernels, self.dilations, strict=True))
        return 512 * sum(2 * far + 1 for far in reaches) + 4 * (sum(self.taps) + self.taps[0])

    @property
    def taps(self) -> tuple[int, ...]:
        return tuple(k * k for k in self.kernels)

    @property
    def sums(self) -> int:
        """Of a channel: one for each tap, and those of the window."""
        return sum(self.taps) + self.taps[0]


def why_not(x: Tensor, kernels: Sequence[int], dilations: Sequence[int]) -> str | None:
    """None where these kernels can run on `x`, else the reason in a few words."""
    if not x.is_cuda:
        return f"they need an NVIDIA GPU, got a tensor on {x.device}"
    last = x.is_contiguous(memory_format=torch.channels_last)
    return why_not_shape(x.shape[1:], x.dtype, last, kernels, dilations) or why_not_device(x.device.index)


def why_not_shape(
    shape: Sequence[int], dtype: torch.dtype, channels_last: bool, kernels: Sequence[int], dilations: Sequence[int]
) -> str | None:
    """None where these kernels take maps CxHxW of that type and layout."""
    channels, height, width = shape
    if dtype not in TYPES:
        return f"they need bfloat16 or float16, got {dtype}"
    if channels % CHANNELS or not channels_last:
        return f"they need channels-last maps with a multiple of {CHANNELS} channels, got {tuple(shape)}"
    if height > MOST_ROWS or width > MOST_COLUMNS or 0 in shape:
        return f"they take maps up to {MOST_ROWS}x{MOST_COLUMNS}, got {height}x{width}"
    window = kernels[0]
    if len(kernels) > MOST_BRANCHES or window > MOST_KERNEL_ROWS or dilations[0] != 1:
        return (
            f"they take up to {MOST_BRANCHES} kernels, the first of up to {MOST_KERNEL_ROWS} rows, got {tuple(kernels)}"
        )
    if any(k // 2 * d > window // 2 for k, d in zip(kernels, dilations, strict=True)):
        return "the first kernel must cover the others"
    return None


@lru_cache
def why_not_device(index: int) -> str | None:
    """None where the GPU of that index can run these kernels, the convolution's among them."""
    if convolution.limits_of(index).shared_bytes < MOST_SHARED_BYTES:
        return f"they need {MOST_SHARED_BYTES} bytes of shared memory a block"
    return convolution.why_not_device(index)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def merges(
    index: int, dtype: torch.dtype, shape: tuple[int, ...], channels_last: bool, kernels: tuple[int, ...],
    dilations: tuple[int, ...],
) -> bool:  # fmt: skip
    """Whether these kernels run on maps CxHxW of that type and layout on the GPU of that index.

    A compiler takes the answer as it is, so the batch has no part in it, which may be a symbol then. It stands here because the
    decorator loads the compiler, SymPy and Triton, seconds that nobody without a GPU shall wait.
    """
    return why_not_shape(shape, dtype, channels_last, kernels, dilations) is None and why_not_device(index) is None


def defines(branches: Branches, operation: str) -> dict[str, int | str]:
    """What cuda/branches.cu is told."""
    window, roles = branches.kernels[0], branches.roles
    return {
        operation: 1, **_types(branches), "ELEMENT_BYTES": 2, "KH": window, "KW": window, "DIL": 1, "IN_CL": 1, "OUT_CL": 1,
        "VEC": 1, "CB": CHANNELS, "S": branches.images, "TH": branches.rows, "NT": branches.blocks, "SIDE": 0,
        "WARPS": CHANNELS, "MIN_BLOCKS": SHARE, "UNROLL": 1, "MAX_PREFETCH": 4, "ROLES": len(roles) - 1,
        "ROLE_STARTS": _listed(roles),
    }  # fmt: skip


def products_defines(branches: Branches) -> dict[str, int | str]:
    """What cuda/gram.cu is told."""
    given = defines(branches, "GRAM")
    own = {"CB": PRODUCTS_CHANNELS, "WARPS": PRODUCTS_CHANNELS, "S": PRODUCTS_IMAGES, "MIN_BLOCKS": PRODUCTS_SHARE}
    return {name: value for name, value in given.items() if name not in _OF_TERMS} | own


def norm_defines(branches: Branches, operation: str) -> dict[str, int | str]:
    """What cuda/branch_norms.cu is told."""
    return {operation: 1, **_types(branches), "THREADS": NORM_THREADS}


def digest_defines(branches: Branches) -> dict[str, int | str]:
    """What cuda/digest.cu is told."""
    parts = 1 if branches.dtype == torch.bfloat16 else 2
    return {
        **_types(branches), "HEIGHT": branches.height, "WIDTH": branches.width, "TAP_PARTS": parts, "SPLITS": DIGEST_SPLITS
    }  # fmt: skip


def shifted_defines(branches: Branches) -> dict[str, int | str]:
    """What cuda/shifted.cu is told."""
    return {
        "T": convolution.TYPES[branches.dtype], "HEIGHT": branches.height, "WIDTH": branches.width, "APART": branches.apart,
        "SHARES": SHIFTED_SHARES, "STARTS": _listed(branches.shifted_starts),
    }  # fmt: skip


def matrices_defines(branches: Branches, operation: str) -> dict[str, int | str]:
    """What cuda/matrices.cu is told."""
    return {
        operation: 1, **_types(branches), "HEIGHT": branches.height, "WIDTH": branches.width, "THREADS": MATRICES_THREADS,
        "CB": MATRICES_CHANNELS, "MIN_BLOCKS": MATRICES_SHARE, "AHEAD": MATRICES_AHEAD,
    }  # fmt: skip


_OF_TERMS = ("W", "TERMS", "KERNELS", "DILATIONS", "ROLES", "ROLE_STARTS")


def _types(branches: Branches) -> dict[str, int | str]:
    return {
        "T": convolution.TYPES[branches.dtype], "W": convolution.TYPES[branches.weight_dtype],
        "TERMS": len(branches.kernels), "KERNELS": _listed(branches.kernels), "DILATIONS": _listed(branches.dilations),
    }  # fmt: skip


def _listed(numbers: Sequence[int]) -> str:
    return "{" + ",".join(map(str, numbers)) + "}"


def norm_shared_bytes(branches: Branches) -> int:
    """As cuda/branch_norms.cu lays it out, for the kernel that wants most."""
    return 4 * max(branches.taps[0] + NORM_THREADS // 32 + 3 * len(branches.kernels), 8 * NORM_THREADS)


def digest_bytes(branches: Branches) -> int:
    """As cuda/digest.cu or cuda/digest_wide.cu lays it out."""
    window, height, width, apart = branches.kernels[0], branches.height, branches.width, branches.apart
    taps, cells = sum(branches.taps), (height + 1) * (width + 1)
    fragment = 512 if branches.dtype == torch.bfloat16 else 1024
    if not branches.is_small:
        return fragment * 3 * window + 4 * (window * max(width**2, 16 * 33) + 2 * window**2 + cells)
    reach = window // 2
    matrices = apart * (2 * reach + 2 - apart) if apart <= reach else reach * (reach + 1) + apart
    floats = max(matrices * width**2, window * 16 * 17) + 2 * taps + window**2 + cells
    return fragment * sum(branches.kernels) + 4 * floats


def splits_of(branches: Branches, batch: int, channels: int, limits: Limits) -> int:
    """Blocks that share a group of channels."""
    return max(1, min(math.ceil(batch / branches.images), SHARE * limits.multiprocessors // (channels // CHANNELS)))


class Launches(NamedTuple):
    """The compiled kernels of a problem."""

    statistics: cuda.Kernel
    merge: cuda.Kernel
    column_sums: cuda.Kernel
    settle: cuda.Kernel
    input_gradient: cuda.Kernel


@lru_cache(maxsize=1024)
def _launches(branches: Branches, index: int) -> Launches:
    return Launches(
        _large(branches, "statistics", index), _small(branches, "merge", index), _small(branches, "column_sums", index),
        _small(branches, "settle", index), _large(branches, "input_gradient", index),
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _products_launches(branches: Branches, index: int) -> tuple[cuda.Kernel, ...]:
    """`gram`, `digest` and, for maps that are not small, `shifted` and `sum_images`."""
    device = torch.device("cuda", index)
    gram = cuda.kernel(
        convolution.PACKAGE, PRODUCTS_FILES, "gram", products_defines(branches), branches.products_bytes, device
    )
    files = DIGEST_FILES if branches.is_small else WIDE_DIGEST_FILES
    digest = cuda.kernel(PACKAGE, files, "digest", digest_defines(branches), digest_bytes(branches), device)
    if branches.is_small:
        return gram, digest
    others = (
        cuda.kernel(PACKAGE, SHIFTED_FILES, name, shifted_defines(branches), shared, device)
        for name, shared in (("shifted", branches.shifted_bytes), ("sum_images", 0))
    )
    return gram, digest, *others


@lru_cache(maxsize=1024)
def _matrices_launches(branches: Branches, index: int) -> tuple[cuda.Kernel, cuda.Kernel]:
    make, multiply = (
        cuda.kernel(
            PACKAGE, MATRICES_FILES, name, matrices_defines(branches, name.upper()), branches.matrices_bytes(name.upper()),
            torch.device("cuda", index),
        )
        for name in ("make_matrices", "input_gradient")
    )  # fmt: skip
    return make, multiply


def _large(branches: Branches, name: str, index: int) -> cuda.Kernel:
    given, shared = defines(branches, name.upper()), branches.shared_bytes(name.upper())
    return cuda.kernel(convolution.PACKAGE, FILES, name, given, shared, torch.device("cuda", index))


def _small(branches: Branches, name: str, index: int) -> cuda.Kernel:
    given, shared = norm_defines(branches, name.upper()), norm_shared_bytes(branches)
    return cuda.kernel(convolution.PACKAGE, NORM_FILES, name, given, shared, torch.device("cuda", index))


def branch_norm_sum_gpu(
    x: Tensor, weights: Sequence[Tensor], scales: Tensor, shifts: Tensor, dilations: Sequence[int], eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum BxCxHxW; means and variances, TxC; and the sums that the backward pass needs."""
    x, branches = convolution.laid_out(x), _branches(x, weights, dilations)
    channels = x.shape[1]
    count, index = len(weights), x.device.index
    with torch.cuda.device(x.device):
        launches, six = _launches(branches, index), _six(weights)
        sums, moments = _statistics(x, branches, six, launches)
        kept = _floats(x, channels, branches.sums)
        means, variances = (_floats(x, count, channels) for _ in range(2))
        merged = x.new_empty(channels, 1, branches.kernels[0], branches.kernels[0])
        bias = x.new_empty(channels)
        launches.merge(
            channels, NORM_THREADS, sums, moments, *six, scales, shifts, kept, means, variances, merged, bias,
            *map(ctypes.c_int, (channels, len(sums), branches.sums)), ctypes.c_float(x.numel() / channels), ctypes.c_float(eps),
        )  # fmt: skip
        output = convolution.depthwise_conv2d_gpu(x, merged, bias, 1, "zero")
    return output, means, variances, kept


def _statistics(x: Tensor, branches: Branches, six: list[Any], launches: Launches) -> tuple[Tensor, Tensor]:
    """Sums, PxCxS, and moments, PxTx2xC, in parts."""
    batch, channels, count, index = *x.shape[:2], len(branches.kernels), x.device.index
    limits = convolution.limits_of(index)
    if branches.takes_products(batch, channels, limits):
        return _digested(x, branches, six)
    parts = splits_of(branches, batch, channels, limits)
    sums, moments = _floats(x, parts, channels, branches.sums), _floats(x, parts, count, 2, channels)
    launches.statistics(
        parts * (channels // CHANNELS), 32 * CHANNELS, x, *six, sums, moments, *_sizes(x), ctypes.c_int(parts)
    )
    return sums, moments


def _digested(x: Tensor, branches: Branches, six: list[Any]) -> tuple[Tensor, Tensor]:
    """The same by way of products of the map's cells."""
    (batch, channels, height, width), count = x.shape, len(branches.kernels)
    gram, digest, *others = _products_launches(branches, x.device.index)
    splits = 1 if branches.is_small else DIGEST_SPLITS
    sums, moments = _floats(x, splits, channels, branches.sums), _floats(x, splits, count, 2, channels)
    numbers = [ctypes.c_int(channels), ctypes.c_int(branches.sums)]

    def products_of(top: int, rows: int, total: Tensor | None) -> Tensor:
        products = _floats(x, channels, rows * (rows + 1) // 2, width, width)
        blocks = channels // PRODUCTS_CHANNELS * branches.products_roles(rows)
        gram(
            blocks, 32 * PRODUCTS_CHANNELS, x, products, total, *_sizes(x), ctypes.c_int(top), ctypes.c_int(rows)
        )
        return products

    total = _floats(x, channels, height, width)
    if not others:
        products = products_of(0, height, total)
        digest(channels, 32 * branches.kernels[0], products, total, *six, sums, moments, *numbers)
        return sums, moments
    shifted, sum_images = others
    border = branches.border_rows
    top, bottom = (products_of(first, border, None) for first in (0, height - border))
    vectors = height * width * channels // 8
    sum_images(math.ceil(vectors / SUM_THREADS), SUM_THREADS, x, total, ctypes.c_int(batch), ctypes.c_int(channels))
    groups = channels // SHIFTED_CHANNELS * SHIFTED_SHARES
    parts = max(1, convolution.limits_of(x.device.index).multiprocessors // groups)
    shifts = _floats(x, parts, channels, branches.apart, width, width)
    shifted(groups * parts, 64 * SHIFTED_CHANNELS, x, shifts, *(ctypes.c_int(n) for n in (batch, channels, parts)))
    digest(
        channels * count * splits, 32 * branches.kernels[0], shifts, top, bottom, total, *six, sums, moments, *numbers,
        ctypes.c_int(parts),
    )  # fmt: skip
    return sums, moments


def branch_norm_sum_backward_gpu(
    grad: Tensor, x: Tensor, weights: Sequence[Tensor], scales: Tensor, means: Tensor, variances: Tensor, kept: Tensor,
    dilations: Sequence[int], eps: float,
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:  # fmt: skip
    """Gradients of the map; of the weights; of the norms' weights and biases, TxC."""
    x, grad = convolution.laid_out(x), convolution.laid_out(grad.contiguous(memory_format=torch.channels_last))
    branches = _branches(x, weights, dilations)
    batch, channels = x.shape[:2]
    index, window = x.device.index, branches.kernels[0]
    with torch.cuda.device(x.device):
        launches, limits = _launches(branches, index), convolution.limits_of(index)
        window_gradient = convolution.weight_gradient_parts(x, grad, window, window, 1, "zero")
        pushed = _floats(x, SHARE * limits.multiprocessors, channels)
        launches.column_sums(
            len(pushed), NORM_THREADS, grad, pushed, ctypes.c_longlong(x.numel() // channels), ctypes.c_int(channels)
        )
        along, own, constant, grad_scales = (torch.empty_like(means) for _ in range(4))
        grad_shift, grad_weights, six = (
            torch.empty_like(means),
            [torch.empty_like(w) for w in weights],
            _six(weights),
        )
        floats = ctypes.c_float(x.numel() / channels), ctypes.c_float(eps)
        launches.settle(
            channels, NORM_THREADS, window_gradient, pushed, *six, scales, kept, means, variances, along, own, constant,
            grad_scales, grad_shift, *_six(grad_weights),
            *map(ctypes.c_int, (channels, len(window_gradient), len(pushed), branches.sums)), *floats,
        )  # fmt: skip
        grad_x = _map_gradient(x, grad, branches, six, along, own, constant)
    return grad_x, grad_weights, grad_scales, grad_shift


def _map_gradient(
    x: Tensor, grad: Tensor, branches: Branches, six: list[Any], along: Tensor, own: Tensor, constant: Tensor
) -> Tensor:
    """From what `settle` leaves of each branch and channel."""
    batch, channels, index = *x.shape[:2], x.device.index
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    if branches.takes_matrices(batch):
        make, multiply = _matrices_launches(branches, index)
        pieces = torch.empty(channels, branches.pieces, 32, 4, dtype=torch.int32, device=x.device)
        rest = _floats(x, channels, branches.lines, 16)
        make(channels, MATRICES_THREADS, *six, along, own, constant, pieces, rest, ctypes.c_int(channels))
        groups, sizes = channels // MATRICES_CHANNELS, map(ctypes.c_int, (batch, channels))
        multiply(
            groups * math.ceil(batch / MATRICES_IMAGES), MATRICES_THREADS, x, grad, pieces, rest, grad_x, *sizes
        )
        return grad_x
    parts = splits_of(branches, batch, channels, convolution.limits_of(index))
    _launches(branches, index).input_gradient(
        parts * (channels // CHANNELS), 32 * CHANNELS, x, grad, *six, along, own, constant, grad_x, *_sizes(x),
        ctypes.c_int(parts),
    )  # fmt: skip
    return grad_x


def _branches(x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int]) -> Branches:
    kernels = tuple(w.shape[-1] for w in weights)
    return Branches(x.dtype, weights[0].dtype, x.shape[2], x.shape[3], kernels, tuple(dilations))


def _floats(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=torch.float32)


def _six(tensors: Sequence[Tensor]) -> list[Any]:
    """The kernels take six pointers; those beyond the count are never followed."""
    return [*tensors, *[None] * (MOST_BRANCHES - len(tensors))]


def _sizes(x: Tensor) -> list[ctypes.c_int]:
    return [ctypes.c_int(size) for size in x.shape]
