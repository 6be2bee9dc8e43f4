"""Which implementation of an operation runs, and why: one rule, one environment variable, one error."""

import importlib.util
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from unipercept.errors import InputError

ENVIRONMENT_VARIABLE = "UNIPERCEPT_KERNELS"
# Why a fused operation does not run where `is_watched`.
WATCHED = "a gradient, a tracer or a mode of torch's needs to see each operation"
_PLAIN = (Tensor, torch.nn.Parameter)
_watchers: list[deque[tuple[str, str]]] = []
_is_plain: ContextVar[bool] = ContextVar("_is_plain", default=False)


def choose(
    operation: str,
    implementations: tuple[str, ...],
    x: Tensor,
    asked: str | None,
    why_not: Callable[[str], str | None],
) -> str:
    """The name of the implementation to run on `x`, which is noted.

    In this order: the argument, the environment variable, the fast implementation for the device if it supports the
    input, the reference. An implementation requested by name is never replaced by another.

    Args:
        operation: its name.
        implementations: "reference" and others.
        x: decides the device.
        asked: the argument; None or "" for no preference.
        why_not: why an implementation cannot take these inputs on this machine, None where it can.

    Raises:
        InputError: what was asked for does not exist for this operation, or cannot take these inputs.
    """
    name = "reference" if _asks_for_plain() else _named(implementations, asked or asked_for(), why_not)
    if name != "reference" and is_forward_mode():
        if name is not None:
            raise InputError(f"the {name!r} kernels were asked for, but have no forward-mode gradients")
        name = "reference"
    if name is None:
        fast = "gpu" if x.is_cuda else "cpu"
        name = fast if fast in implementations and why_not(fast) is None else "reference"
    note(operation, name)
    return name


def _named(implementations: tuple[str, ...], asked: str | None, why_not: Callable[[str], str | None]) -> str | None:
    """The implementation asked for, which can run; None where none was."""
    if asked is None:
        return None
    if asked not in implementations:
        raise InputError(
            f"kernel implementation must be one of {', '.join(implementations)} here; got {asked!r} "
            f"(from the argument or {ENVIRONMENT_VARIABLE})"
        )
    reason = why_not(asked)
    if reason is not None:
        raise InputError(
            f"the {asked!r} kernels were asked for (by the argument or {ENVIRONMENT_VARIABLE}), but {reason}"
        )
    return asked


def choose_fused(
    operation: str,
    implementations: tuple[str, ...],
    x: Tensor,
    asked: str | None,
    why_not: Callable[[str], str | None],
) -> str:
    """The implementation that runs several operations as one, which is then noted; "reference" to
    run them one after the other.

    Each of these makes a choice of its own, so that what the environment names holds for them, and for
    the whole only if it can run.

    Args:
        operation: its name.
        implementations: "reference" and the fused ones.
        x: decides the device.
        asked: the argument; None for no preference.
        why_not: why a fused implementation cannot take these inputs, or why something needs to see each
            operation; None where it can.

    Raises:
        InputError: the argument names no implementation of this operation, or one that cannot take these inputs.
    """
    if asked is not None and asked not in implementations:
        raise InputError(f"{operation} has the implementations {', '.join(implementations)}; got {asked!r}")
    name = asked or ("gpu" if x.is_cuda else "cpu")
    if name == "reference" or name not in implementations or (not asked and asked_for() not in (None, name)):
        return "reference"
    reason = "a compiler needs to see each operation" if torch.compiler.is_compiling() else why_not(name)
    if reason is None:
        note(operation, name)
        return name
    if asked:
        raise InputError(f"the {asked!r} implementation of {operation} was asked for, but {reason}")
    return "reference"


def asked_for() -> str | None:
    """The implementation that the environment names."""
    return os.environ.get(ENVIRONMENT_VARIABLE) or None


def is_forced(asked: str | None) -> bool:
    """Whether the argument or the environment names an implementation, so that speed is no longer a reason."""
    return bool(asked or asked_for())


def why_no_triton(x: Tensor, types: tuple[torch.dtype, ...]) -> str | None:
    """None where a Triton kernel for `types` can run on `x`: on a GPU, or where Triton's interpreter is switched on."""
    if x.dtype not in types:
        return f"they need {', '.join(str(t).removeprefix('torch.') for t in types)}, got {x.dtype}"
    if not _has_triton():
        if x.is_cuda:
            say_once("feed-forward and norms run on plain PyTorch, slower: triton is not installed")
        return "triton is not installed"
    if x.is_cuda and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(x.device)
        return (
            None if capability >= (8, 0) else f"they need compute capability 8.0, got {capability[0]}.{capability[1]}"
        )
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"they need an NVIDIA GPU, got a tensor on {x.device}"


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def say_once(message: str) -> None:
    """Warn of a fast path that this machine lacks, once in a process."""
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def call(operator: Callable[..., Any], plain: Callable[..., Any], *arguments: Any) -> Any:
    """`plain(*arguments)` where nobody needs to see an operator, which would cost 50 us more;
    else `operator(*arguments)`.

    Gradients in reverse, compilers, tracers, and modes and transformations of torch's need the operator.
    """
    is_plain = _asks_for_plain() or is_forward_mode() or not is_watched(*arguments)
    return plain(*arguments) if is_plain else operator(*arguments)


def _asks_for_plain() -> bool:
    return not torch.compiler.is_compiling() and _is_plain.get()  # a compiler cannot read a context variable


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The type that autocast gives to operands such as `x`; None where it is off, and for float64, which it leaves."""
    kind = x.device.type
    if kind == "meta" or x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):  # of meta torch knows none
        return None
    return torch.get_autocast_dtype(kind)


def is_forward_mode() -> bool:
    """Whether forward-mode gradients may be taken. Operators of torch.library would drop them
    without a word; plain PyTorch has them.
    """
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def check_no_tangent(operation: str, x: Tensor) -> None:
    """Refuse forward-mode gradients, for operations that always run as operators of torch.library.

    Raises:
        InputError: `x` carries one.
    """
    if is_forward_mode() and forward_ad.unpack_dual(x).tangent is not None:  # type: ignore[no-untyped-call]
        raise InputError(f"{operation} has no forward-mode gradients; take them in reverse mode")


@contextmanager
def plain_reference() -> Iterator[None]:
    """Inference forms run on their references alone, whatever was asked for, as plain PyTorch
    that autograd passes by itself.

    For a single small gradient: the first one through an operator makes torch load its compiler, which takes seconds.
    Of the calling thread alone; not to be traced or compiled.
    """
    token = _is_plain.set(True)
    try:
        yield
    finally:
        _is_plain.reset(token)


def is_watched(*arguments: Any) -> bool:
    """Whether a gradient, a compiler, a tracer, or a mode or transformation of torch's may
    depend on what is done with these.
    """
    if (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or is_forward_mode()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return True
    has_gradients = torch.is_grad_enabled()
    for argument in arguments:
        if isinstance(argument, Tensor) and (
            (has_gradients and argument.requires_grad) or type(argument) not in _PLAIN
        ):
            return True
    return False


def note(operation: str, implementation: str) -> None:
    """Record for `watch` that `implementation` of `operation` has run."""
    for watcher in _watchers:
        watcher.append((operation, implementation))


@contextmanager
def watch() -> Iterator[deque[tuple[str, str]]]:
    """The (operation, implementation) pairs that run inside the block: tests assert that a fast path was taken."""
    seen: deque[tuple[str, str]] = deque(maxlen=100_000)
    _watchers.append(seen)
    try:
        yield seen
    finally:
        _watchers.remove(seen)
