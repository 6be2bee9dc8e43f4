"""A second CUDA stream for work whose result is needed only later (products run beside memory-bound
passes), and CUDA graphs of either.
"""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from unipercept.kernels import cuda

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: it does not wait for the default stream


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
def capture(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, **options: Any) -> Iterator[None]:
    """`torch.cuda.graph(graph, stream=stream, **options)` without garbage collection: a graph that is freed
    meanwhile would invalidate the capture.
    """
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, stream=stream, **options):
            yield
    finally:
        if was_enabled:
            gc.enable()


def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream in which all captures on a device are made that need none of their own. The one that torch would
    take is of the device that was current at its first capture.
    """
    return _capture_stream(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _capture_stream(index: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(index)  # type: ignore[no-untyped-call]


@cache
def _second_stream(device: torch.device, first: int) -> torch.cuda.Stream:
    """That of a stream, given by its handle.

    Memory that was taken in it and is given back goes to what next runs in it, which waits for its
    first stream alone. So nobody else may run anything in it: torch's own streams are 32 a device, handed out in turn.
    """
    handle = ctypes.c_void_p()
    with torch.cuda.device(device):
        cuda.driver_call("cuStreamCreate", ctypes.byref(handle), _NON_BLOCKING)
    return torch.cuda.ExternalStream(handle.value, device)  # type: ignore[no-untyped-call]
