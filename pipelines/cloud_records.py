"""Points that lie as records of one length in a file, binary PLY and PCD: read in chunks, so that ten
million points cost their 120 MB.

open3d holds what it reads in double precision, colours and normals too: 2.0 GB for 20 million points with colours.

Shapes: N points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError

HEADER_BYTES = 1 << 16
CHUNK_POINTS = 1 << 20
ORIGIN_POINTS = 1 << 16
FAR_FROM_ZERO = 8  # extents of the cloud: beyond it float32 rounds by more than a millionth of the extent
PLY_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "int64": "i8", "uint64": "u8",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
PCD_TYPES = {
    (kind, str(size)): f"{kind.lower()}{size}" for kind in "IUF" for size in (1, 2, 4, 8) if kind != "F" or size > 2
}


@dataclass(frozen=True)
class Records:
    """The layout of the points in a file: `count` records from byte `start` on, with fields x, y and z among others."""

    kind: np.dtype[Any]
    start: int
    count: int


def find_records(path: Path, suffix: str) -> Records | None:
    """The records of a binary ply without faces or of an uncompressed binary pcd; None for any other file.

    Raises:
        InputError: a pcd header that makes no sense, of which other readers would make points all the same.
    """
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    if suffix == ".ply":
        return _of_ply(head)
    return _of_pcd(path, head) if suffix == ".pcd" else None


def read_records(path: Path, records: Records, facts: dict[str, Any]) -> NDArray[np.float32]:
    """Nx3 points; fewer than declared where the file ends early."""

    def chunks() -> Iterator[NDArray[np.float64]]:
        with path.open("rb") as file:
            file.seek(records.start)
            for first in range(0, records.count, CHUNK_POINTS):
                rows = np.fromfile(file, records.kind, min(CHUNK_POINTS, records.count - first))
                yield np.stack([rows[name].astype(np.float64) for name in "xyz"], axis=1)

    return gathered(chunks(), records.count, facts)


def gathered(chunks: Iterable[NDArray[np.float64]], count: int, facts: dict[str, Any]) -> NDArray[np.float32]:
    """At most `count` points, in chunks of Nx3, as one float32 array.

    Far from zero (map coordinates in metres) single precision holds centimetres at best, so an origin is taken off
    first and kept among the facts.
    """
    points, kept = np.empty((count, 3), np.float32), 0
    origin: NDArray[np.float64] | None = None
    for places in chunks:
        origin = origin_of(places) if origin is None else origin
        with np.errstate(over="ignore"):  # what overflows is infinite, and dropped and counted as such
            points[kept : kept + len(places)] = places if origin is None else places - origin
        kept += len(places)
    if origin is not None and origin.any():
        facts["origin"] = origin.tolist()
    return points[:kept]


def origin_of(points: NDArray[Any]) -> NDArray[np.float64] | None:
    """A round place amid the first finite points where they lie far from zero, measured by their extent; zero where
    they do not; None where no point is finite.
    """
    for start in range(0, len(points), ORIGIN_POINTS):
        part = points[start : start + ORIGIN_POINTS]
        finite = part[np.isfinite(part).all(axis=1)]
        if len(finite):
            with np.errstate(over="ignore"):
                middle: NDArray[np.float64] = finite.mean(axis=0, dtype=np.float64)
                extent = float(np.abs(finite - middle).max())
            if np.abs(middle).max() <= FAR_FROM_ZERO * extent:
                return np.zeros(3)
            return np.round(middle, math.ceil(-math.log10(extent)) if 0 < extent < 1 else 0)
    return None


def _of_ply(head: bytes) -> Records | None:
    text, mark, rest = head.partition(b"end_header")
    order, element, fields, count = "", "", list[tuple[str, str, int]](), 0
    for words in (line.split() for line in text.decode("latin-1").splitlines()):
        if words[:1] == ["format"]:
            order = {"binary_little_endian": "<", "binary_big_endian": ">"}.get(words[1], "")
        elif words[:1] == ["element"]:
            if not element and words[1] != "vertex":
                return None  # something of unknown length may lie before the points
            if element and words[2] != "0":
                return None  # faces
            element, count = (words[1], int(words[2])) if not element else (words[1], count)
        elif words[:1] == ["property"] and element == "vertex":
            if words[1] not in PLY_TYPES:
                return None
            fields.append((words[-1], PLY_TYPES[words[1]], 1))
    return _records(order, fields, len(text) + len(mark) + rest.index(b"\n") + 1, count) if order and mark else None


def _of_pcd(path: Path, head: bytes) -> Records | None:
    text, mark, _ = head.partition(b"\nDATA binary\n")
    if not mark:
        return None
    entries = {words[0]: words[1:] for line in text.decode("latin-1").splitlines() if (words := line.split())}
    try:
        names = entries["FIELDS"]
        kinds = [PCD_TYPES[pair] for pair in zip(entries["TYPE"], entries["SIZE"], strict=True)]
        times = [int(number) for number in entries.get("COUNT", ["1"] * len(names))]
        fields = list(zip(names, kinds, times, strict=True))
        numbers = entries["POINTS"][:1] if "POINTS" in entries else entries["WIDTH"][:1] + entries["HEIGHT"][:1]
        count = math.prod(int(number) for number in numbers)
        if min(times) < 0:
            raise ValueError("a negative COUNT")
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} has a damaged pcd header; make or fetch the file again") from error
    return _records("<", fields, len(text) + len(mark), count)


def _records(order: str, fields: list[tuple[str, str, int]], start: int, count: int) -> Records | None:
    """Fields in order: name, type, and how many numbers each has."""
    places: dict[str, tuple[str, int]] = {}
    size = 0
    for name, kind, many in fields:
        if name in ("x", "y", "z"):
            places[name] = order + kind, size
        size += int(kind[1:]) * many
    if set(places) != {"x", "y", "z"} or not count:
        return None
    formats, offsets = zip(*places.values(), strict=True)
    record = np.dtype({"names": [*places], "formats": [*formats], "offsets": [*offsets], "itemsize": size})
    return Records(record, start, count)
