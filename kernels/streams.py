"""A second CUDA stream for work whose result is needed only later (products run beside memory-bound
passes), and CUDA graphs of either.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
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
    stream = _second_stream(x.device)
    stream.wait_stream(torch.cuda.current_stream(x.device))
    with torch.cuda.stream(stream):
        yield


def join(x: Tensor) -> None:
    """Make kernels launched from here on, on the device of `x`, wait for those that ran beside."""
    if x.is_cuda:
        torch.cuda.current_stream(x.device).wait_stream(_second_stream(x.device))


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


@lru_cache
def _second_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
