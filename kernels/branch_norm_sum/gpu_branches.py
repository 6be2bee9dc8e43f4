"""Branches with batch norms on NVIDIA GPUs: what there is to do, for gpu.py and gpu_cells.py."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from unipercept.kernels.depthwise_conv2d.gpu_plans import TYPES
from unipercept.kernels.depthwise_conv2d.gpu_tiles import STRIP_ROWS, padded_taps, pitch

MOST_BRANCHES = 6
MOST_KERNEL_ROWS = 13  # whose sums a warp holds in registers
MOST_ROWS = 32  # of a block: two fragments
CHANNELS, SHARE = 8, 2  # of a block, a warp each; and blocks that share a multiprocessor
MOST_SHARED_BYTES = 113 * 1024  # of a block for the largest map


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
        """Blocks of eight columns."""
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
    def taps(self) -> tuple[int, ...]:
        return tuple(k * k for k in self.kernels)

    @property
    def sums(self) -> int:
        """Sums of a channel: one for each tap, and those of the window."""
        return sum(self.taps) + self.taps[0]


def types_of(branches: Branches) -> dict[str, int | str]:
    """Arguments that all kernels of the branches share."""
    return {
        "T": TYPES[branches.dtype], "W": TYPES[branches.weight_dtype],
        "TERMS": len(branches.kernels), "KERNELS": listed(branches.kernels), "DILATIONS": listed(branches.dilations),
    }  # fmt: skip


def listed(numbers: Sequence[int]) -> str:
    """As C++ writes it."""
    return "{" + ",".join(map(str, numbers)) + "}"


def floats(x: Tensor, *shape: int) -> Tensor:
    """Room for so many, beside `x`."""
    return x.new_empty(shape, dtype=torch.float32)


def six_of(tensors: Sequence[Tensor]) -> list[Any]:
    """The kernels take six pointers; those beyond the count are never followed."""
    return [*tensors, *[None] * (MOST_BRANCHES - len(tensors))]


def sizes(x: Tensor) -> list[ctypes.c_int]:
    """BxCxHxW for a launch."""
    return [ctypes.c_int(size) for size in x.shape]
