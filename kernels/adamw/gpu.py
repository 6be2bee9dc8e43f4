"""The launches of AdamW on NVIDIA GPUs: as many tensors in one as a kernel's arguments hold."""

import ctypes
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from unipercept.kernels import cuda

PACKAGE = "unipercept.kernels.adamw"
FILES = ("cuda/adamw.cu",)
MOST = 640  # tensors of a launch: 40 bytes each of the 32 KB of arguments that a kernel may have from CUDA 12.1 on
CHUNK, THREADS = 4096, 256
PLAIN = (Tensor, torch.nn.Parameter)
LARGEST = 1 << 30  # elements of a tensor, counted in 32 bits
DEFINES: dict[str, int | str] = {"MOST": MOST, "CHUNK": CHUNK, "THREADS": THREADS, "u64": "unsigned long long"}


class Tensors(ctypes.Structure):
    """As cuda/adamw.cu has it."""

    _fields_ = (
        *((name, ctypes.c_void_p * MOST) for name in ("weight", "gradient", "mean", "square")),
        *((name, ctypes.c_int * MOST) for name in ("size", "end")),
    )


def why_not(taken: Sequence[tuple[Tensor, ...]]) -> str | None:
    """None where the kernel can update these: weight, gradient, and both moments of each."""
    device = taken[0][0].device
    if device.type != "cuda" or torch.version.hip is not None:
        return f"they need an NVIDIA GPU, got a tensor on {device}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "they need compute capability 8.0"
    for tensors in taken:
        strides = _strides(tensors[0])
        for t in tensors:
            if type(t) not in PLAIN or t.dtype != torch.float32 or t.device != device or t.numel() > LARGEST:
                return f"they take plain float32 tensors on one device, got {type(t).__name__} {t.dtype} on {t.device}"
            if _strides(t) != strides or not _is_dense(t):
                return "they take dense tensors, and gradients laid out as the weights are"
    if tuple(map(int, cuda.nvrtc_version().split("."))) < (12, 1):
        return "they need NVRTC 12.1"
    return None


def _strides(t: Tensor) -> list[int]:
    """The strides that matter: a dimension of one element may have any."""
    return [stride for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1]


def _is_dense(t: Tensor) -> bool:
    return t.is_contiguous() or (t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last))


def adamw_gpu(
    taken: Sequence[tuple[Tensor, ...]],
    count: Tensor,
    rate: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> None:
    """Updates weights and both moments by the gradients; `count` is the number of this step, from 1."""
    device = count.device
    with torch.cuda.device(device):
        kernel = cuda.kernel(PACKAGE, FILES, "adamw", DEFINES, 0, device)
        for first in range(0, len(taken), MOST):
            group = taken[first : first + MOST]
            tensors = tensors_of(group)
            blocks = tensors.end[len(group) - 1]
            if not blocks:  # tensors without elements
                continue
            kernel(
                blocks,
                THREADS,
                tensors,
                count,
                ctypes.c_int(len(group)),
                *numbers(rate, betas, eps, decay),
            )


def tensors_of(group: Sequence[tuple[Tensor, ...]]) -> Tensors:
    """Addresses and sizes; the blocks that each tensor takes, added up."""
    pointers = ((ctypes.c_void_p * MOST)(*(t.data_ptr() for t in column)) for column in zip(*group, strict=True))
    sizes = [tensors[0].numel() for tensors in group]
    ends = itertools.accumulate(math.ceil(size / CHUNK) for size in sizes)
    return Tensors(*pointers, (ctypes.c_int * MOST)(*sizes), (ctypes.c_int * MOST)(*ends))


def numbers(rate: float, betas: tuple[float, float], eps: float, decay: float) -> list[ctypes.c_float]:
    """The kernel's, after the count of tensors."""
    b1, b2 = betas
    return [ctypes.c_float(n) for n in (rate, 1 - rate * decay, 1 - b1, 1 - b2, b2, math.log(b1), math.log(b2), eps)]
