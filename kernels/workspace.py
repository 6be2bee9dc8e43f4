"""Temporary memory of the CPU kernels, kept between calls: fresh pages cost more than the work done in them."""

import math
import threading

import torch
from torch import Tensor

# Times torch's threads, for each thread that calls and each use; what is larger is freed after the call.
MAX_KEPT_FLOATS = 1024 * 1024

_mine = threading.local()


def workspace(use: str, size: int) -> Tensor:
    """At least `size` uninitialised float32 values, valid until this thread asks again for the same `use`.

    Kernels that threads may be in at one time, each with an image of its own, need uses of their own wherever
    they divide them differently.
    """
    kept: Tensor | None = getattr(_mine, use, None)
    if kept is not None and kept.numel() >= size:
        return kept
    fresh = torch.empty(size, dtype=torch.float32, device="cpu")  # whatever defaults the caller has set
    if is_kept(fresh):
        setattr(_mine, use, fresh)
    return fresh


def workspace_map(use: str, shape: tuple[int, ...]) -> Tensor:
    """The same in a shape."""
    count = math.prod(shape)
    return workspace(use, count)[:count].view(shape)


def is_kept(room: Tensor) -> bool:
    """Whether a workspace outlives the call."""
    return room.numel() <= MAX_KEPT_FLOATS * torch.get_num_threads()
