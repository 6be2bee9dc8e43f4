"""A classifier's head for few images in one launch, on an NVIDIA GPU of compute capability 8.0 and higher.

The kernel is CUDA C++ in cuda/logits.cu, which says how it works.

Shapes: B batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from unipercept.kernels import cuda
from unipercept.kernels.depthwise_conv2d.gpu import limits_of, why_not_device

PACKAGE = "unipercept.kernels.pooled_norm"
FILES = "../depthwise_conv2d/cuda/prelude.cuh", "cuda/logits.cu"
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
THREADS = 256
ALIGNMENT = 16  # of map and matrix, for vector loads


def blocks(batch: int, classes: int) -> int:
    """Of threads: a warp a class."""
    return batch * math.ceil(classes / (THREADS // 32))


def shared_bytes(channels: int) -> int:
    """Shared memory of a thread block, as logits.cu lays it out."""
    return 4 * max(1, THREADS // (channels // 8)) * channels + 8 * (THREADS // 32)


def defines_of(dtype: torch.dtype, cells: int, channels: int, classes: int) -> dict[str, int | str]:
    """The kernel's constants."""
    return {
        "T": TYPES[dtype], "CELLS": cells, "CHANNELS": channels, "ROWS": classes, "THREADS": THREADS,
        "SHARED_BYTES": shared_bytes(channels),
    }  # fmt: skip


def why_not(x: Tensor, matrix: Tensor) -> str | None:
    """None where the kernel takes them and they are one round of blocks, else the reason in a few words."""
    if not x.is_cuda:
        return f"that needs an NVIDIA GPU, got a tensor on {x.device}"
    if x.shape[1] % 8 or not matrix.is_contiguous() or x.data_ptr() % ALIGNMENT or matrix.data_ptr() % ALIGNMENT:
        return "channels are not a multiple of eight, or the matrix is not contiguous"
    if blocks(x.shape[0], matrix.shape[0]) > limits_of(x.device.index).multiprocessors:
        return f"{x.shape[0]} images of {matrix.shape[0]} classes are more than one round of blocks"
    return why_not_device(x.device.index)


def pooled_logits_gpu(
    x: Tensor, weight: Tensor, bias: Tensor, matrix: Tensor, offsets: Tensor | None, eps: float
) -> Tensor:
    """Channels-last BxCxHxW to BxK."""
    batch, channels, height, width = x.shape
    classes = matrix.shape[0]
    weight, bias = weight.contiguous(), bias.contiguous()
    offsets = None if offsets is None else offsets.contiguous()
    with torch.cuda.device(x.device):
        output = x.new_empty(batch, classes)
        defines = defines_of(x.dtype, height * width, channels, classes)
        kernel = cuda.kernel(
            PACKAGE, FILES, "pooled_logits", defines, shared_bytes(channels), x.device, overlapping=True
        )
        kernel(blocks(batch, classes), THREADS, x, weight, bias, matrix, offsets, output, ctypes.c_float(eps))
    return output
