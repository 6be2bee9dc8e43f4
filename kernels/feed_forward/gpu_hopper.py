"""The feed-forward's two products on Hopper, CUDA C++ in cuda/expand.cu and cuda/contract.cu: where they
can run, and their launches.

Shapes: M rows of all maps, C channels, N hidden channels.
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
BEFORE = ("../depthwise_conv2d/cuda/prelude.cuh", "cuda/warpgroup.cuh")
EXPAND = (*BEFORE, "cuda/gelu.cuh", "cuda/expand.cu")
CONTRACT = (*BEFORE, "cuda/contract.cu")
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
ROWS, COLUMNS = 192, 80  # of a tile of the first product, and of the weights' rows that stream past at a time
FASTER_AT = frozenset({80, 160, 320})  # channels, the first product; on an H200
FEWEST_TILES = 100  # below, smaller tiles keep more multiprocessors busy
SHARED_BYTES = 227 * 1024  # that a block may have on Hopper
DEPTH = 64  # of a step of the second product
FEWEST_CONTRACT_TILES = 32  # the second product; measured down to there
MOST_SPAN = 8  # images that one of its tiles may touch


@dataclass(frozen=True)
class Plan:
    """Of a launch."""

    defines: dict[str, int | str]
    threads: int
    shared_bytes: int


@dataclass(frozen=True)
class ContractTile:
    """The tile of a thread block of the second product."""

    rows: int  # 64 a warpgroup
    columns: int
    stages: int  # steps of its depth that are in shared memory at once


CONTRACT_TILES = {  # by channels, where they are faster than what else there is on an H200
    160: ContractTile(192, 160, 4),
    320: ContractTile(192, 160, 4),
    640: ContractTile(192, 160, 4),
}


def expand_plan(dtype: torch.dtype, k: int, n: int) -> Plan:
    """For the first product, K channels to N."""
    deep = math.ceil(k / 64)
    shared = deep * ROWS * 128 + 2 * deep * COLUMNS * 128 + 4 * (ROWS // 16 + 1) * COLUMNS
    defines: dict[str, int | str] = {
        "T": TYPES[dtype], "CHANNELS": k, "HIDDEN": n, "ROWS": ROWS, "COLS": COLUMNS, "TOGETHER": 1,
        "SHARED_BYTES": shared,
    }  # fmt: skip
    return Plan(defines, 2 * ROWS, shared)


def contract_plan(dtype: torch.dtype, n: int, channels: int, size: int, tile: ContractTile) -> Plan:
    """For the second product, N hidden channels to C, of maps of `size` cells."""
    span = (tile.rows + size - 2) // size + 1
    shared = tile.stages * (tile.rows + tile.columns + span) * DEPTH * dtype.itemsize
    defines: dict[str, int | str] = {
        "T": TYPES[dtype], "HIDDEN": n, "CHANNELS": channels, "ROWS": tile.rows, "COLS": tile.columns,
        "STAGES": tile.stages, "SPAN": span, "SHARED_BYTES": shared,
    }  # fmt: skip
    return Plan(defines, 2 * tile.rows, shared)


def _on_hopper(x: Tensor) -> bool:
    return x.is_cuda and x.dtype in TYPES and torch.cuda.get_device_capability(x.device)[0] == 9


def takes_expand(y: Tensor, n: int) -> bool:
    """Whether the first kernel can run on BxHxWxC, and has work for enough multiprocessors: on Hopper,
    with widths that fill its tiles.
    """
    if not _on_hopper(y):
        return False
    k, size = y.shape[3], y.shape[1] * y.shape[2]
    fits = k in FASTER_AT and n % (2 * COLUMNS) == 0 and expand_plan(y.dtype, k, n).shared_bytes <= SHARED_BYTES
    touches_two = size >= ROWS - 1  # images, at most
    return fits and touches_two and y.shape[0] * size >= FEWEST_TILES * ROWS and cuda.why_no_compiler() is None


def takes_contract(hidden: Tensor, residual: Tensor, channels: int) -> bool:
    """The same of the second kernel on BxHxWxN."""
    if residual.dtype != hidden.dtype or not _on_hopper(hidden) or channels not in CONTRACT_TILES:
        return False
    tile, n, size = CONTRACT_TILES[channels], hidden.shape[3], hidden.shape[1] * hidden.shape[2]
    if n != 4 * channels or (tile.rows - 2) // size + 2 > MOST_SPAN:
        return False
    tiles = hidden.shape[0] * size // tile.rows * (channels // tile.columns)
    return tiles >= FEWEST_CONTRACT_TILES and cuda.why_no_compiler() is None


def expand_gpu(y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, hidden: Tensor, partial: Tensor) -> None:
    """hidden, BxHxWxN, and partial, tiles x 2 x N, from BxHxWxC: see `expand_kernel` in
    gpu_kernels.py for what these are.
    """
    cells, size = y.numel() // y.shape[3], y.shape[1] * y.shape[2]
    plan = expand_plan(y.dtype, y.shape[3], hidden.shape[3])
    kernel = cuda.kernel(PACKAGE, EXPAND, "expand", plan.defines, plan.shared_bytes, y.device)
    kernel(
        math.ceil(cells / ROWS),
        plan.threads,
        y,
        gate,
        weight,
        bias,
        hidden,
        partial,
        ctypes.c_int(size),
        ctypes.c_int(cells),
    )


def contract_gpu(
    hidden: Tensor,
    factor: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    tile: ContractTile | None = None,
) -> Tensor:
    """residual + bias + (hidden * factor) weight^T, BxHxWxC, from BxHxWxN and BxN."""
    channels, n, size = weight.shape[0], hidden.shape[3], hidden.shape[1] * hidden.shape[2]
    tile = CONTRACT_TILES[channels] if tile is None else tile
    kernel, threads, most = _contract_kernel(hidden.dtype, n, channels, size, tile, hidden.device.index)
    output = torch.empty_like(residual)
    cells = hidden.shape[0] * size
    blocks = min(most, math.ceil(cells / tile.rows) * (channels // tile.columns))
    kernel(blocks, threads, hidden, factor, weight, bias, residual, output, ctypes.c_int(size), ctypes.c_int(cells))
    return output


@lru_cache
def _contract_kernel(
    dtype: torch.dtype, n: int, channels: int, size: int, tile: ContractTile, index: int
) -> tuple[cuda.Kernel, int, int]:
    """The kernel, its threads, and how many of its blocks the GPU holds at once."""
    plan, device = contract_plan(dtype, n, channels, size, tile), torch.device("cuda", index)
    kernel = cuda.kernel(PACKAGE, CONTRACT, "contract", plan.defines, plan.shared_bytes, device)
    return kernel, plan.threads, torch.cuda.get_device_properties(device).multi_processor_count
