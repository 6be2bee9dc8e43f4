"""The feed-forward's first product on Hopper, CUDA C++ in cuda/expand.cu: where it can run, and its launch.

Shapes: M rows of all maps, K channels, N hidden channels.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from unipercept.kernels import cuda

PACKAGE = "unipercept.kernels.feed_forward"
FILES = ("../depthwise_conv2d/cuda/prelude.cuh", "cuda/warpgroup.cuh", "cuda/gelu.cuh", "cuda/expand.cu")
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
ROWS, COLUMNS = 192, 80  # of a tile, and of the weights' rows that stream past at a time
FASTER_AT = frozenset({80, 160, 320})  # channels; on an H200
FEWEST_TILES = 100  # below, smaller tiles keep more multiprocessors busy
TOGETHER = 1
SHARED_BYTES = 227 * 1024  # that a block may have on Hopper


@dataclass(frozen=True)
class Plan:
    """Of a launch."""

    defines: dict[str, int | str]
    threads: int
    shared_bytes: int


def plan_of(dtype: torch.dtype, k: int, n: int) -> Plan:
    """For K channels to N."""
    deep = math.ceil(k / 64)
    shared = deep * ROWS * 128 + 2 * deep * COLUMNS * 128 + 4 * (ROWS // 16 + 1) * COLUMNS
    defines: dict[str, int | str] = {
        "T": TYPES[dtype], "CHANNELS": k, "HIDDEN": n, "ROWS": ROWS, "COLS": COLUMNS, "TOGETHER": TOGETHER,
        "SHARED_BYTES": shared,
    }  # fmt: skip
    return Plan(defines, 2 * ROWS, shared)


def takes(y: Tensor, n: int) -> bool:
    """Whether the kernel can run on BxHxWxK, and has work for enough multiprocessors: on Hopper, with widths that fill its tiles."""
    if not y.is_cuda or torch.cuda.get_device_capability(y.device)[0] != 9 or y.dtype not in TYPES:
        return False
    k, size = y.shape[3], y.shape[1] * y.shape[2]
    fits = k in FASTER_AT and n % (2 * COLUMNS) == 0 and plan_of(y.dtype, k, n).shared_bytes <= SHARED_BYTES
    touches_two = size >= ROWS - 1  # images, at most
    return fits and touches_two and y.shape[0] * size >= FEWEST_TILES * ROWS and cuda.why_no_compiler() is None


def expand_gpu(y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, hidden: Tensor, partial: Tensor) -> None:
    """hidden, BxHxWxN, and partial, tiles x 2 x N, from BxHxWxK: see `expand_kernel` in gpu_kernels.py for what these are."""
    cells, size = y.numel() // y.shape[3], y.shape[1] * y.shape[2]
    kernel, threads = _kernel(y.dtype, y.shape[3], hidden.shape[3], y.device.index)
    kernel(
        math.ceil(cells / ROWS),
        threads,
        y,
        gate,
        weight,
        bias,
        hidden,
        partial,
        ctypes.c_int(size),
        ctypes.c_int(cells),
    )


@lru_cache
def _kernel(dtype: torch.dtype, k: int, n: int, index: int) -> tuple[cuda.Kernel, int]:
    plan = plan_of(dtype, k, n)
    device = torch.device("cuda", index)
    return cuda.kernel(PACKAGE, FILES, "expand", plan.defines, plan.shared_bytes, device), plan.threads
