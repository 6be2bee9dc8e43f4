"""A second CUDA stream for work whose result is needed only later (products run beside memory-bound
passes), and CUDA graphs of either.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor


@contextmanager
def beside(x: Tensor) -> Iterator[None]:
    """Kernels launched inside the block, on the device of `x`, run beside those launched after it, until `join`.

    It sees all that was launched before. Keep what it reads until then: memory that is given
    back could be handed out anew.
    """
    if not x.is_cuda:
        yield
        return
    current = torch.cuda.current_stream(x.device)
    stream = _second_stream(x.device, current.cuda_stream)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield


def join(x: Tensor) -> None:
    """Make kernels launched from here on, on the device of `x`, wait for those that ran beside."""
    if x.is_cuda:
        current = torch.cuda.current_stream(x.device)
        current.wait_stream(_second_stream(x.device, current.cuda_stream))


@contextmanager
def capture(graph: torch.cuda.CUDAGraph, **options: Any) -> Iterator[None]:
    """`torch.cuda.graph(graph, **options)` without garbage collection: a graph that is freed meanwhile
    would invalidate the capture.
    """
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, **options):
            yield
    finally:
        if was_enabled:
            gc.enable()


@cache
def _second_stream(device: torch.device, first: int) -> torch.cuda.Stream:
    """That of a stream, given by its handle.

    Memory that was taken in it and is given back goes to what next runs in it, which waits for its
    first stream alone.
    """
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
