"""Cast several tensors in one launch: a network has hundreds of them, and autocast casts each one separately."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unipercept.kernels.dispatch import why_no_triton

STEP = 2048  # elements; each tensor begins at a multiple in the memory that all share


def cast_together(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """The tensors, contiguous and in `dtype`; None stays. For the insides of operators: no gradient flows."""
    return unpacked(pack(tensors, dtype), tensors, dtype)


def packed_size(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> int:
    """Elements of what `pack` returns."""
    return sum(-(-t.numel() // STEP) * STEP for t in tensors if t is not None and t.dtype != dtype)


def pack(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> Tensor:
    """The tensors of another type, cast to `dtype` and concatenated, for `unpacked`; empty if there are none."""
    given = [t.contiguous() for t in tensors if t is not None and t.dtype != dtype]
    like = next(t for t in tensors if t is not None)
    flat = like.new_empty(packed_size(tensors, dtype), dtype=dtype)
    if given and given[0].is_cuda and why_no_triton(given[0], (torch.float32,)) is None:
        from unipercept.kernels.gpu_cast import cast_gpu  # on first use: a CPU needs no Triton

        cast_gpu(given, flat)
    else:
        for place, t in zip(_places(flat, given), given, strict=True):
            place.copy_(t)
    return flat


def unpacked(flat: Tensor, tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """`tensors`, contiguous and in `dtype`: views of what `pack` made of them where it did."""
    places = _places(flat, [t for t in tensors if t is not None and t.dtype != dtype])
    each = iter(places)
    return [t if t is None else dense(t) if t.dtype == dtype else next(each) for t in tensors]


def dense(t: Tensor) -> Tensor:
    """`t` contiguous, and on a GPU from a multiple of 16 bytes on.

    For other addresses Triton compiles another kernel, and that of `image_conv2d`'s weight gradient computed the last 8
    of 40 channels wrongly, or ended with an illegal memory access (Triton 3.6, H200).
    """
    t = t.contiguous()
    return t.clone() if t.is_cuda and t.data_ptr() % 16 else t


def _places(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    begin, found = 0, []
    for t in tensors:
        found.append(flat[begin : begin + t.numel()].view(t.shape))
        begin += -(-t.numel() // STEP) * STEP
    return found
