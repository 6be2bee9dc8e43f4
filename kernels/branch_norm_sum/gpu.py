"""Branches with batch norms on NVIDIA GPUs: the launches.

Forwards, one pass over the map takes the statistics of all branches, whose outputs stay inside the kernel; then the
branches are one convolution. Backwards, the weight gradient of that convolution and what the first pass left make
all gradients of the parameters, and one more pass computes the outputs again and makes the gradient of the map.
Where gpu_cells.py has better ways to the statistics and to that last gradient, those are taken. The kernels are
CUDA C++, beside those of the depthwise convolution: cuda/branches.cu, cuda/branch_norms.cu.
docs/kernels/training_step.md says why this is exact.

Shapes: B batch, C channels, H rows, W columns, T branches.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unipercept.kernels import cuda
from unipercept.kernels.branch_norm_sum.gpu_branches import (
    CHANNELS,
    MOST_BRANCHES,
    MOST_KERNEL_ROWS,
    MOST_ROWS,
    MOST_SHARED_BYTES,
    SHARE,
    Branches,
    floats,
    listed,
    six_of,
    sizes,
    types_of,
)
from unipercept.kernels.branch_norm_sum.gpu_cells import digested, multiplied, takes_matrices, takes_products
from unipercept.kernels.depthwise_conv2d import gpu as convolution
from unipercept.kernels.depthwise_conv2d.gpu_tiles import Limits

TYPES = (torch.bfloat16, torch.float16)
MOST_COLUMNS = 32
NORM_THREADS = 192
FILES = ("cuda/prelude.cuh", "cuda/planes.cuh", "cuda/fragments.cuh", "cuda/branches.cu")
NORM_FILES = ("cuda/prelude.cuh", "cuda/branch_norms.cu")


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

    A compiler takes the answer as it is, so the batch has no part in it, which may be a symbol then. It stands here
    because the decorator loads the compiler, SymPy and Triton, seconds that nobody without a GPU shall wait.
    """
    return why_not_shape(shape, dtype, channels_last, kernels, dilations) is None and why_not_device(index) is None


def defines(branches: Branches, operation: str) -> dict[str, int | str]:
    """Arguments of cuda/branches.cu."""
    window, roles = branches.kernels[0], branches.roles
    return {
        operation: 1, **types_of(branches), "ELEMENT_BYTES": 2, "KH": window, "KW": window, "DIL": 1, "IN_CL": 1, "OUT_CL": 1,
        "VEC": 1, "CB": CHANNELS, "S": branches.images, "TH": branches.rows, "NT": branches.blocks, "SIDE": 0,
        "WARPS": CHANNELS, "MIN_BLOCKS": SHARE, "UNROLL": 1, "MAX_PREFETCH": 4, "ROLES": len(roles) - 1,
        "ROLE_STARTS": listed(roles),
    }  # fmt: skip


def norm_defines(branches: Branches, operation: str) -> dict[str, int | str]:
    """Arguments of cuda/branch_norms.cu."""
    return {operation: 1, **types_of(branches), "THREADS": NORM_THREADS}


def norm_shared_bytes(branches: Branches) -> int:
    """As cuda/branch_norms.cu lays it out, for the kernel that needs most."""
    return 4 * max(branches.taps[0] + NORM_THREADS // 32 + 3 * len(branches.kernels), 8 * NORM_THREADS)


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
        launches, six = _launches(branches, index), six_of(weights)
        sums, moments = _statistics(x, branches, six, launches)
        kept = floats(x, channels, branches.sums)
        means, variances = (floats(x, count, channels) for _ in range(2))
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
    if takes_products(branches, batch, channels, limits):
        return digested(x, branches, six)
    parts = splits_of(branches, batch, channels, limits)
    sums, moments = floats(x, parts, channels, branches.sums), floats(x, parts, count, 2, channels)
    launches.statistics(
        parts * (channels // CHANNELS), 32 * CHANNELS, x, *six, sums, moments, *sizes(x), ctypes.c_int(parts)
    )
    return sums, moments


def branch_norm_sum_backward_gpu(
    grad: Tensor, x: Tensor, weights: Sequence[Tensor], scales: Tensor, means: Tensor, variances: Tensor, kept: Tensor,
    dilations: Sequence[int], eps: float,
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:  # fmt: skip
    """Gradients of the map; of the weights; of the norms' weights and biases, TxC."""
    x, grad = convolution.laid_out(x), convolution.laid_out(grad.contiguous(memory_format=torch.channels_last))
    branches = _branches(x, weights, dilations)
    channels, index, window = x.shape[1], x.device.index, branches.kernels[0]
    with torch.cuda.device(x.device):
        launches, limits = _launches(branches, index), convolution.limits_of(index)
        window_gradient = convolution.weight_gradient_parts(x, grad, window, window, 1, "zero")
        pushed = floats(x, SHARE * limits.multiprocessors, channels)
        launches.column_sums(
            len(pushed), NORM_THREADS, grad, pushed, ctypes.c_longlong(x.numel() // channels), ctypes.c_int(channels)
        )
        along, own, constant, grad_scales = (torch.empty_like(means) for _ in range(4))
        grad_shift, grad_weights, six = (
            torch.empty_like(means),
            [torch.empty_like(w) for w in weights],
            six_of(weights),
        )
        numbers = ctypes.c_float(x.numel() / channels), ctypes.c_float(eps)
        launches.settle(
            channels, NORM_THREADS, window_gradient, pushed, *six, scales, kept, means, variances, along, own, constant,
            grad_scales, grad_shift, *six_of(grad_weights),
            *map(ctypes.c_int, (channels, len(window_gradient), len(pushed), branches.sums)), *numbers,
        )  # fmt: skip
        grad_x = _map_gradient(x, grad, branches, six, along, own, constant)
    return grad_x, grad_weights, grad_scales, grad_shift


def _map_gradient(
    x: Tensor, grad: Tensor, branches: Branches, six: list[Any], along: Tensor, own: Tensor, constant: Tensor
) -> Tensor:
    """From what `settle` leaves of each branch and channel."""
    batch, channels, index = *x.shape[:2], x.device.index
    if takes_matrices(branches, batch, channels):
        return multiplied(x, grad, branches, six, along, own, constant)
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    parts = splits_of(branches, batch, channels, convolution.limits_of(index))
    _launches(branches, index).input_gradient(
        parts * (channels // CHANNELS), 32 * CHANNELS, x, grad, *six, along, own, constant, grad_x, *sizes(x),
        ctypes.c_int(parts),
    )  # fmt: skip
    return grad_x


def _branches(x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int]) -> Branches:
    kernels = tuple(w.shape[-1] for w in weights)
    return Branches(x.dtype, weights[0].dtype, x.shape[2], x.shape[3], kernels, tuple(dilations))
