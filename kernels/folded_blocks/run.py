"""Shared by the kernels for a run of blocks: the description of a run, and how shared memory is counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Run:
    """All that decides the kernel: the map, the widths, and the kernel size of each block."""

    dtype: torch.dtype
    batch: int
    channels: int
    height: int
    width: int
    hidden: int
    squeezed: int
    kernels: tuple[int, ...]

    @property
    def cells(self) -> int:
        """Of one map."""
        return self.height * self.width


class NoPlanError(ValueError):
    """This run of blocks does not fit one launch."""


def large_blocks(kernels: Sequence[int]) -> int:
    """Bit i: block i has the larger kernel."""
    return sum(1 << i for i, k in enumerate(kernels) if k == max(kernels))


def depth_shares(high: int, columns: int, depth: int, threads: int) -> int:
    """How many warps share the depth of a product of `high` rows, as parts.cuh and its callers decide."""
    shares = min(max(1, threads // 32 // (high // 16)), depth // 16) // (2 if columns // 8 > 6 else 1)
    return min(4, max(1, shares))


def up16(n: int) -> int:
    """The next multiple of 16."""
    return math.ceil(n / 16) * 16


def aligned(n: int) -> int:
    """Bytes, as the kernels place what they keep."""
    return math.ceil(n / 128) * 128


def odd(n: int) -> int:
    """At least n, and 4 modulo 32."""
    return (n + 27) // 32 * 32 + 4
