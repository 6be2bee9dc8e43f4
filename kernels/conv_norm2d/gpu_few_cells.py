"""Convolution of stride 2 and layer norm where cells are few, in thread-block clusters, compute capability 9.0 and
higher: the plan and the launch.

The kernel is CUDA C++ in cuda/few_cells.cu, which says how it works.

Shapes: B batch, C channels, H rows, W columns of the input, D channels of the result.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from unipercept.kernels import cuda
from unipercept.kernels.depthwise_conv2d.gpu import limits_of, why_not_device

PACKAGE = "unipercept.kernels.conv_norm2d"
FILES = (
    "../depthwise_conv2d/cuda/prelude.cuh", "../depthwise_conv2d/cuda/bulk.cuh", "../folded_blocks/cuda/cluster.cuh",
    "cuda/few_cells.cu",
)  # fmt: skip
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
THREADS = 256
WIDEST = 96  # channels of the result that a thread block owns: its warps hold 16 cells of them in registers
REGISTERS = 28  # vectors of 16 bytes that a thread asks for at once
ALIGNMENT = 16  # of every tensor, for vector loads


@dataclass(frozen=True)
class Size:
    """All that decides the kernel."""

    dtype: torch.dtype
    batch: int
    channels: int
    height: int
    width: int
    results: int

    @property
    def cells(self) -> int:
        """Cells of the result, over all images."""
        return self.batch * math.ceil(self.height / 2) * math.ceil(self.width / 2)


@dataclass(frozen=True)
class Plan:
    """How the result is cut; the names are those of few_cells.cu."""

    ranks: int
    tiles: int
    threads: int = THREADS

    def blocks(self, size: Size) -> int:
        """Of threads."""
        return math.ceil(size.cells / (16 * self.tiles)) * self.ranks

    def own(self, size: Size) -> int:
        """Channels of a rank."""
        return size.results // self.ranks

    def ahead(self, size: Size) -> int:
        """Steps that are requested at once."""
        shares = self.threads // 32 // self.tiles
        steps = math.ceil(math.ceil(9 * size.channels / 32) / shares)
        most = max(1, REGISTERS * THREADS // self.threads // (self.own(size) // 8 + 2))
        return math.ceil(steps / math.ceil(steps / most))

    def shared_bytes(self, size: Size) -> int:
        """Shared memory of a thread block, as few_cells.cu lays it out."""
        own, high = self.own(size), 16 * self.tiles
        pitch = own if own % 16 else own + 8
        return 4 * (self.threads // 32 // self.tiles) * high * pitch + 8 * self.ranks * high + 6 * own


def plans(size: Size, multiprocessors: int) -> Iterator[Plan]:
    """Those that run at once."""
    for ranks in (1, 2, 4, 8, 16):
        for tiles in (1, 2, 4):
            plan = Plan(ranks, tiles)
            fits = size.results % (8 * ranks) == 0 and plan.own(size) <= WIDEST
            if fits and plan.blocks(size) <= multiprocessors - (16 if ranks > 1 else 0):
                yield plan


def plan_of(size: Size, multiprocessors: int) -> Plan | None:
    """The one whose blocks fetch least; None where there is too much to do for one round of them."""
    if size.channels % 8 or size.results % 8:
        return None
    return min(plans(size, multiprocessors), key=lambda p: 24 * p.tiles + p.own(size), default=None)


def defines_of(size: Size, plan: Plan) -> dict[str, int | str]:
    """The kernel's constants."""
    return {
        "T": TYPES[size.dtype], "MAPS": size.batch, "HEIGHT": size.height, "WIDTH": size.width, "CHANNELS": size.channels,
        "RESULTS": size.results, "RANKS": plan.ranks, "TILES": plan.tiles, "AHEAD": plan.ahead(size),
        "THREADS": plan.threads, "SHARED_BYTES": plan.shared_bytes(size),
    }  # fmt: skip


def why_not(x: Tensor, w: Tensor, others: tuple[Tensor | None, ...]) -> str | None:
    """None where this kernel takes them, else the reason in a few words."""
    if x.dtype not in TYPES or any(t is not None and t.dtype != x.dtype for t in others):
        return f"it takes bfloat16 and float16, map and weights alike, got {x.dtype}"
    if any(t is not None and (t.data_ptr() % ALIGNMENT or not t.is_contiguous()) for t in others):
        return "the norm's weights are not contiguous"
    if x.data_ptr() % ALIGNMENT or w.data_ptr() % ALIGNMENT:
        return "the map or the kernel does not begin at a multiple of 16 bytes"
    reason = why_not_device(x.device.index)
    if reason is None and launch_of(size_of(x, w), x.device.index) is None:
        reason = "cells are many, channels are not multiples of eight, or the GPU has no clusters"
    return reason


def size_of(x: Tensor, w: Tensor) -> Size:
    """Everything that determines the kernel."""
    batch, channels, height, width = x.shape
    return Size(x.dtype, batch, channels, height, width, w.shape[0])


@lru_cache(maxsize=1024)
def launch_of(size: Size, index: int) -> tuple[cuda.Kernel, Plan] | None:
    """The kernel on that GPU and its plan; None where it does not fit."""
    if torch.cuda.get_device_capability(index) < (9, 0):
        return None
    plan = plan_of(size, limits_of(index).multiprocessors)
    if plan is None:
        return None
    name, device = "conv_norm_few_cells", torch.device("cuda", index)
    defines, shared = defines_of(size, plan), plan.shared_bytes(size)
    with torch.cuda.device(device):  # `why_not` asks before the launch makes it current
        kernel = cuda.kernel(PACKAGE, FILES, name, defines, shared, device, overlapping=True)
        if plan.ranks > 1 and kernel.clusters_at_once(plan.ranks, plan.threads) < plan.blocks(size) // plan.ranks:
            return None
    return kernel, plan


def conv_norm2d_few_cells(
    x: Tensor, w: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, eps: float, has_gelu: bool = False
) -> Tensor:
    """Channels-last BxCxHxW to BxDxH'xW', H' and W' half as many, rounded up; a GELU is for others."""
    assert not has_gelu
    batch, _, height, width = x.shape
    size = size_of(x, w)
    w = w.contiguous(memory_format=torch.channels_last)
    with torch.cuda.device(x.device):
        launch = launch_of(size, x.device.index)
        assert launch is not None
        kernel, plan = launch
        shape = batch, w.shape[0], (height + 1) // 2, (width + 1) // 2
        output = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        kernel(
            plan.blocks(size), plan.threads, x, w, shift, weight, bias, output, ctypes.c_float(eps), cluster=plan.ranks
        )
    return output
