"""Memory that the CPU kernels need for a moment, kept between calls: fresh pages cost more than the work done in them."""

import threading

import torch
from torch import Tensor

MAX_KEPT_FLOATS = 1024 * 1024  # for each thread that calls and each use; what is larger is freed after the call

_mine = threading.local()


def workspace(use: str, *shape: int) -> Tensor:
    """An uninitialised float32 tensor, valid until this thread asks again for the same `use`."""
    size = 1
    for length in shape:
        size *= length
    if size > MAX_KEPT_FLOATS:
        return torch.empty(shape)
    kept: Tensor | None = getattr(_mine, use, None)
    if kept is None or kept.numel() < size:
        with torch.inference_mode(False):
            kept = torch.empty(size)
        setattr(_mine, use, kept)
    return kept[:size].view(shape)
