"""AMX's matrix registers in NumPy, so that kernels written for them run on processors without."""

import ctypes
from collections.abc import Callable
from threading import get_ident

import numpy as np
from numpy.typing import NDArray

SHAPE_BYTES = bytes([1, *[0] * 15, *[64, 0] * 8, *[0] * 16, *[16] * 8, *[0] * 8])
_registers: dict[
    int, NDArray[np.uint8]
] = {}  # of each thread: eight of 16 rows of 64 bytes; to Python OpenMP's are new each time


def shape(address: int) -> None:
    assert ctypes.string_at(address, 64) == SHAPE_BYTES
    _registers[get_ident()] = np.zeros((8, 16, 64), np.uint8)


def release() -> None:
    del _registers[get_ident()]


def clear(register: int) -> None:
    _registers[get_ident()][register] = 0


def load(register: int, address: int, stride: int) -> None:
    _registers[get_ident()][register] = _lines(address, stride)


def store(register: int, address: int, stride: int) -> None:
    _lines(address, stride)[:] = _registers[get_ident()][register]


def _lines(address: int, stride: int) -> NDArray[np.uint8]:
    memory = (ctypes.c_uint8 * (15 * stride + 64)).from_address(address)
    return np.ndarray((16, 64), np.uint8, memory, strides=(stride, 1))


def multiply(sums: int, a: int, b: int) -> None:
    """Products of pairs of bfloat16, added up in float32; what is too small for a normal number counts as zero."""
    total = _registers[get_ident()][sums].view(np.float32)
    products = _numbers(a)[:, :, None] * _numbers(b)[None]  # row, pair, column, half
    total += products.sum(axis=1, dtype=np.float32).sum(axis=-1)


def _numbers(register: int) -> NDArray[np.float32]:
    """16 x 16 pairs."""
    bits = _registers[get_ident()][register].view(np.uint16).astype(np.uint32) << 16
    found = bits.view(np.float32).reshape(16, 16, 2)
    return np.where(np.abs(found) < np.finfo(np.float32).tiny, np.float32(0), found)


BYTE, ADDRESS, LONG = ctypes.c_uint8, ctypes.c_void_p, ctypes.c_int64
INSTRUCTIONS = {
    "ldtilecfg": ctypes.CFUNCTYPE(None, ADDRESS)(shape),
    "tilerelease": ctypes.CFUNCTYPE(None)(release),
    "tilezero": ctypes.CFUNCTYPE(None, BYTE)(clear),
    "tileloadd64": ctypes.CFUNCTYPE(None, BYTE, ADDRESS, LONG)(load),
    "tilestored64": ctypes.CFUNCTYPE(None, BYTE, ADDRESS, LONG)(store),
    "tdpbf16ps": ctypes.CFUNCTYPE(None, BYTE, BYTE, BYTE)(multiply),
}


def emulated(address_of: Callable[[str, str], int]) -> Callable[[str, str], int]:
    """`llvm._address`, with calls of these functions in place of the instructions."""
    import llvmlite.binding as llvm

    for name, function in INSTRUCTIONS.items():
        llvm.add_symbol(f"emulated_{name}", ctypes.cast(function, ctypes.c_void_p).value)

    def address(name: str, text: str) -> int:
        for instruction in INSTRUCTIONS:
            text = text.replace(f"@llvm.x86.{instruction}", f"@emulated_{instruction}")
        return address_of(name, text.replace(" immarg", ""))

    return address
