"""GELU and GRN backwards in one kernel, on GPUs of compute capability 9.0 and up: the launch of cuda/grn_backward.cu.

A cluster of blocks takes an image and keeps its hidden values in registers, so that they are read once, where the passes of
gpu_backward.py read them twice.

Shapes: B batch, H rows, W columns, N hidden channels.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from unipercept.kernels import cuda
from unipercept.kernels.depthwise_conv2d import gpu as convolution

CLUSTER = 16  # blocks, that share an image
MOST_ITEMS = 8  # rows of a thread, eight columns each of two tensors: 64 registers
THREADS = (256, 512)
FILES = ("cuda/prelude.cuh", "cuda/grn_backward.cu")
TYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Shape:
    """What is compiled for."""

    dtype: torch.dtype
    columns: int  # of a block
    threads: int
    items: int
    cluster: int = CLUSTER

    @property
    def down(self) -> int:
        """Threads that share eight columns."""
        return self.threads // (self.columns // 8)

    @property
    def shared_bytes(self) -> int:
        """As cuda/grn_backward.cu lays it out."""
        return 4 * ((self.down + 2) * self.columns + 4)

    def defines(self) -> dict[str, int | str]:
        """What cuda/grn_backward.cu is told."""
        return {
            "T": convolution.TYPES[self.dtype], "COLS": self.columns, "CLUSTER": self.cluster, "THREADS": self.threads,
            "ITEMS": self.items, "MIN_BLOCKS": 512 // self.threads,
        }  # fmt: skip


def shape_of(dtype: torch.dtype, size: int, n: int, cluster: int = CLUSTER) -> Shape | None:
    """For maps of `size` cells and N channels; None where registers do not hold them."""
    if dtype not in TYPES or n % (8 * cluster) or n // cluster > THREADS[0]:
        return None
    columns = n // cluster
    for threads in THREADS:
        items = math.ceil(size / (threads // (columns // 8)))
        if items <= MOST_ITEMS:
            return Shape(dtype, columns, threads, items, cluster)
    return None


def fits(hidden: Tensor) -> Shape | None:
    """How BxHxWxN `hidden` is taken here; None where it cannot be."""
    if not hidden.is_cuda or torch.cuda.get_device_capability(hidden.device) < (9, 0):
        return None
    if cuda.why_no_compiler() is not None:
        return None
    return shape_of(hidden.dtype, hidden.shape[1] * hidden.shape[2], hidden.shape[3])


@lru_cache(maxsize=256)
def _kernel(shape: Shape, index: int) -> cuda.Kernel:
    device = torch.device("cuda", index)
    return cuda.kernel(
        convolution.PACKAGE, FILES, "grn_backward", shape.defines(), shape.shared_bytes, device, shape.cluster
    )


def grn_backward(
    hidden: Tensor,
    grad: Tensor,
    factor: Tensor,
    beta: Tensor | None,
    norm: Tensor,
    gamma: Tensor,
    eps: float,
    shape: Shape,
) -> tuple[Tensor, Tensor, Tensor]:
    """BxHxWxN hidden tensor before its GELU, and gradient of GRN's output, which becomes that of `hidden`.

    Returns:
        GRN's output, BxHxWxN; the gradients of gamma and of the first layer's bias, of each image, BxN float32.
    """
    batch, rows, columns, n = hidden.shape
    grown, of_gamma, of_bias = torch.empty_like(hidden), torch.empty_like(norm), torch.empty_like(norm)
    with torch.cuda.device(hidden.device):
        _kernel(shape, hidden.device.index)(
            batch * shape.cluster, shape.threads, hidden, grad, factor, beta, norm, gamma, grown, of_gamma, of_bias,
            ctypes.c_int(rows * columns), ctypes.c_int(n), ctypes.c_float(eps),
        )  # fmt: skip
    return grown, of_gamma, of_bias
