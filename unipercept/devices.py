"""The one place that decides which device runs a network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch

from unipercept.errors import InputError, one_line

P = ParamSpec("P")
R = TypeVar("R")


def resolve_device(device: str) -> torch.device:
    """The device of a name; "auto" is CUDA if available, then Apple's MPS, else the CPU.

    Raises:
        InputError: torch knows no such device, or this machine has none.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's, by the kind of device that it lacks
        raise InputError(
            f"device must be auto, cpu or an accelerator of this machine; got {device!r}: {one_line(error, 120)}"
        ) from error
    return found


def on_cpu(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose tensors lie on the CPU unless it names a device, whatever default device its caller has set.

    Recordings are read and maps are made there; networks are moved by name.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        _survive_forks()
        if torch.get_default_device().type == "cpu":  # the context takes time in every operation
            return function(*args, **kwargs)
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return run


@cache
def _survive_forks() -> None:
    """Let processes forked from now on compute with one thread, as the workers of torch's loaders do: the threads of
    OpenMP are not there after a fork, and the first operation that waits for them would wait for ever.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


@contextmanager
def float32_networks() -> Iterator[None]:
    """Networks made within are in single precision, as their inputs are, whatever default type the caller has set.

    The default is that of the process: hold a lock, and be short.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
