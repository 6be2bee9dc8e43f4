"""Weights in the layout of a kernel, made once and kept as long as the weights live and stay what they were."""

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

SAMPLES = 32  # values that are compared, because changes through `.data` leave no trace in the version

Packed = TypeVar("Packed")


class _Kept(NamedTuple):
    version: int
    address: int
    view: Any  # of the memory at that address, as integers: NaN equals itself
    samples: list[int]
    packed: object


_kept: dict[Callable[[Tensor], object], WeakIdKeyDictionary] = {}


def packed(weight: Tensor, pack: Callable[[Tensor], Packed]) -> Packed:
    """`pack(weight)` of a contiguous float32 weight; from an earlier call where it has not changed since: same storage,
    version and sampled values."""
    if weight.is_inference():  # has no version: nothing would tell of a change
        return pack(weight)
    kept = _kept.setdefault(pack, WeakIdKeyDictionary())
    found: _Kept | None = kept.get(weight)  # type: ignore[no-untyped-call]
    if found is None or found.version != weight._version or found.address != weight.data_ptr():
        view = (ctypes.c_int32 * weight.numel()).from_address(weight.data_ptr())
        found = _Kept(weight._version, weight.data_ptr(), view, [], pack(weight.detach()))
    samples = found.view[:: max(1, weight.numel() // SAMPLES)]
    if samples != found.samples:
        found = found._replace(samples=samples, packed=pack(weight.detach()) if found.samples else found.packed)
        kept[weight] = found
    return found.packed  # type: ignore[return-value]
