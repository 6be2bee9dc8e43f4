"""Weights in the layout of a kernel, made once and kept as long as the weights live and stay what they were."""

import ctypes
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

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
    """`pack(weight)` of a contiguous float32 weight; from an earlier call where it has not changed since: the same tensor,
    storage, version and sampled values."""
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
