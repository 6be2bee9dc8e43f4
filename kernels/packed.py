"""Weights in a kernel's layout, packed once and kept as long as the weights live unchanged."""

import ctypes
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from unipercept.kernels.llvm import compiled, vector_width
from unipercept.kernels.llvm_writer import Writer

SAMPLES = 32  # values that are compared, because changes through `.data` leave no trace in the version

Packed = TypeVar("Packed")


class _Kept(NamedTuple):
    weight: Callable[[], Tensor | None]
    version: int
    address: int
    view: Any  # of the memory at that address, as integers: NaN equals itself; a copy where there is no version
    samples: list[int]
    packed: object


_kept: dict[tuple[int, Callable[[Tensor], object]], _Kept] = {}


def packed(weight: Tensor, pack: Callable[[Tensor], Packed]) -> Packed:
    """`pack(weight)` of a contiguous float32 weight; from an earlier call where it has not changed since: the same
    tensor, storage, version and sampled values.
    """
    key = (id(weight), pack)
    if weight.is_inference():
        return _packed_by_value(key, weight, pack)
    found = _kept.get(key)
    if (
        found is None
        or found.weight() is not weight
        or found.version != weight._version
        or found.address != weight.data_ptr()
        or found.samples != found.view[:: len(found.view) // SAMPLES or 1]
    ):
        view = (ctypes.c_int32 * weight.numel()).from_address(weight.data_ptr())
        samples = view[:: len(view) // SAMPLES or 1]
        reference = weakref.ref(weight, lambda _: _kept.pop(key, None))
        found = _Kept(reference, weight._version, weight.data_ptr(), view, samples, pack(weight.detach()))
        _kept[key] = found
    return found.packed  # type: ignore[return-value]


def _packed_by_value(
    key: tuple[int, Callable[[Tensor], Packed]], weight: Tensor, pack: Callable[[Tensor], Packed]
) -> Packed:
    """The same for tensors made in inference mode, which have no version: all values are compared."""
    found = _kept.get(key)
    if found is None or found.weight() is not weight or not torch.equal(found.view, weight):
        reference = weakref.ref(weight, lambda _: _kept.pop(key, None))
        found = _Kept(reference, -1, 0, weight.clone(), [], pack(weight))
        _kept[key] = found
    return found.packed  # type: ignore[return-value]


class Unchanged:
    """Whether many weights are what they were, as `packed` would find it one by one: a few
    microseconds instead of as many each.

    Args:
        weights: all, of which any may be None.
        copied: those whose values went into something else: their versions and sampled values count too.
        gone: called when one of `copied` is freed.
    """

    def __init__(
        self, weights: Sequence[Tensor | None], copied: Sequence[Tensor], gone: Callable[[object], object]
    ) -> None:
        self._references = [_nothing if w is None else weakref.ref(w) for w in weights]
        self._addresses = [0 if w is None else w.data_ptr() for w in weights]
        self._copied = [weakref.ref(w, gone) for w in copied]
        self._versions = [w._version for w in copied]
        table: list[int] = []
        for w in copied:
            table += [w.data_ptr(), w.numel() // SAMPLES or 1, min(w.numel(), SAMPLES)]
        self._table = (ctypes.c_int64 * len(table))(*table)
        self._found = (ctypes.c_int32 * (len(copied) * SAMPLES))()
        self._arguments = (ctypes.c_int64 * 3)(
            ctypes.addressof(self._table), len(copied), ctypes.addressof(self._found)
        )
        self._samples = self._sampled()

    def holds(self, weights: Sequence[Tensor | None]) -> bool:
        """Whether these are the same tensors at the same addresses, and nothing has changed those that were copied."""
        for reference, address, weight in zip(self._references, self._addresses, weights, strict=True):
            if reference() is not weight or (weight is not None and weight.data_ptr() != address):
                return False
        for other, version in zip(self._copied, self._versions, strict=True):
            weight = other()
            if weight is None or weight._version != version:
                return False
        return self._sampled() == self._samples

    def _sampled(self) -> bytes:
        _sampler()(ctypes.addressof(self._arguments))
        return bytes(self._found)


def _nothing() -> None:
    return None


@cache
def _sampler() -> Callable[[int], None]:
    """Machine code that copies the values at evenly spaced places of many arrays."""
    w = Writer(vector_width())
    table, count, found = w.argument(0, "ptr"), w.argument(1), w.argument(2, "ptr")
    with w.loop(0, count) as i:
        line = w.value(f"getelementptr [3 x i64], ptr {table}, i64 {i.index}")
        source = w.value(f"load ptr, ptr {line}")
        step, n = (w.value(f"load i64, ptr {w.value(f'getelementptr i64, ptr {line}, i64 {j}')}") for j in (1, 2))
        target = w.at(found, w.multiply(i.index, SAMPLES))
        with w.loop(0, n) as j:
            value = w.value(f"load i32, ptr {w.at(source, w.multiply(j.index, step))}")
            w.do(f"store i32 {value}, ptr {w.at(target, j.index)}")
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled("sample", w.module("sample", ["ptr %args"])).address)
