"""Whether a NetCDF file of the classic formats is whole.

The C library reads zeros where such a file has been cut short, and an empty file where not even its header is there.

Source: "The NetCDF Classic Format Specification",
docs.unidata.ucar.edu/netcdf-c/current/file_format_specifications.html.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO

from unipercept.errors import InputError

TYPE_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 4,
    6: 8,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 8,
}  # byte, char, short, int, float, double, …
OPEN_ENDED = (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)  # a number of records that a program has not written yet


def check_is_whole(path: Path) -> None:
    """Refuse a classic file that is shorter than its header says.

    Raises:
        InputError: it has been cut short.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            expected = _Header(file, size).n_bytes()
        except (EOFError, KeyError, IndexError):
            raise InputError(
                f"{path} was cut short or damaged: its NetCDF header does not end; copy it again"
            ) from None
    if size < expected:
        raise InputError(f"{path} was cut short: it has {size:,} of {expected:,} bytes; copy it again")


class _Header:
    """Reads the fields of a header one after another."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        version = self._bytes(4)[3]
        self._word, self._place = (8 if version == 5 else 4), (4 if version == 1 else 8)

    def n_bytes(self) -> int:
        """Bytes from the start of the file to the last value of a variable."""
        records = self._number()
        lengths = [self._dimension() for _ in range(self._count())]  # 0: the dimension of records
        self._attributes()
        fixed, recorded = [0], list[tuple[int, int, int]]()  # ends; starts, bytes, padded bytes of one record
        for _ in range(self._count()):
            dimensions, n_bytes, start = self._variable()
            shape = [lengths[dimension] for dimension in dimensions]
            is_recorded = bool(shape) and shape[0] == 0
            values = math.prod(shape[1:] if is_recorded else shape) * n_bytes
            if is_recorded:
                recorded.append((start, values, -(-values // 4) * 4))
            else:
                fixed.append(start + values)
        if not recorded or records in (0, *OPEN_ENDED):
            return max(fixed)
        each = recorded[0][1] if len(recorded) == 1 else sum(padded for _, _, padded in recorded)
        return max(*fixed, *(start + (records - 1) * each + values for start, values, _ in recorded))

    def _dimension(self) -> int:
        self._name()
        return self._number()

    def _attributes(self) -> None:
        for _ in range(self._count()):
            self._name()
            n_bytes = TYPE_BYTES[self._integer(4)]
            self._skip(self._number() * n_bytes)

    def _variable(self) -> tuple[list[int], int, int]:
        """Its dimensions, the bytes of a value, and where it starts."""
        self._name()
        dimensions = [self._number() for _ in range(self._number())]
        self._attributes()
        n_bytes = TYPE_BYTES[self._integer(4)]
        self._number()  # its size, which four bytes may not hold
        return dimensions, n_bytes, self._integer(self._place)

    def _count(self) -> int:
        """Entries of the list that starts here."""
        self._integer(4)  # what it lists
        return self._number()

    def _name(self) -> None:
        self._skip(self._number())

    def _number(self) -> int:
        return self._integer(self._word)

    def _integer(self, n_bytes: int) -> int:
        value: int = struct.unpack(">I" if n_bytes == 4 else ">Q", self._bytes(n_bytes))[0]
        return value

    def _skip(self, n_bytes: int) -> None:
        self._bytes(-(-n_bytes // 4) * 4)

    def _bytes(self, n_bytes: int) -> bytes:
        if n_bytes > self._size:
            raise EOFError
        found = self._file.read(n_bytes)
        if len(found) < n_bytes:
            raise EOFError
        return found
