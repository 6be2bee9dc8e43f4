"""Checks the size that the header of a point-cloud file declares against the size of the
file, before anything is decoded.

A file that was cut short would otherwise be filled up with zeros by its reader, and a wrong count would make the reader
ask for all the memory there is.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from unipercept.errors import InputError
from unipercept.pipelines.cloud_text import off_counts, text_ply

HEADER_BYTES = 1 << 16
COUNT_CHUNK_BYTES = 1 << 24
MAX_POINTS = 200_000_000
PLY_BYTES = {
    **dict.fromkeys(("char", "uchar", "int8", "uint8"), 1),
    **dict.fromkeys(("short", "ushort", "int16", "uint16"), 2),
    **dict.fromkeys(("int", "uint", "int32", "uint32", "float", "float32"), 4),
    **dict.fromkeys(("double", "float64", "int64", "uint64"), 8),
}
OFF_VERTEX_BYTES, OFF_FACE_BYTES = 6, 8  # "0 0 0\n" and "3 0 1 2\n", the shortest there are


def check_declared_size(path: Path, kind: str) -> None:
    """Check that a ply, pcd or off file is long enough for what its header declares; other kinds pass.

    Raises:
        InputError: it was cut short, declares more than `MAX_POINTS` points, or its header cannot be understood.
    """
    checks = {".ply": _check_ply, ".pcd": _check_pcd, ".off": _check_off}
    if kind not in checks:
        return
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    try:
        checks[kind](path, head)
    except (ValueError, IndexError, KeyError, struct.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} has a damaged {kind.removeprefix('.')} header; make or fetch the file again"
        ) from error


def _check_ply(path: Path, head: bytes) -> None:
    header, mark, _ = head.partition(b"end_header")
    if not mark:
        raise InputError(f"{path} has a ply header without end; it may have been cut short")
    counts: dict[str, int] = {}
    sizes: dict[str, int] = {}
    names: list[str] = []
    ascii_lines, element = False, ""
    for words in (line.split() for line in header.decode("latin-1").splitlines()):
        if words[:1] == ["format"]:
            ascii_lines = words[1] == "ascii"
        elif words[:1] == ["element"]:
            element = words[1]
            counts[element], sizes[element] = int(words[2]), 0
        elif words[:1] == ["property"]:  # of a list, its count alone is certain to be there
            if element == "vertex":
                names.append(words[-1])
            sizes[element] += PLY_BYTES[words[2] if words[1] == "list" else words[1]]
    if (
        ("z" in names and any(name in names[names.index("z") :] for name in ("x", "y")))
        and (ascii_lines or counts.get("face"))
        and text_ply(head) is None
    ):  # open3d would read it wrongly
        raise InputError(f"{path} lists z before x or y, which is not read; write its vertices as x, y, z")
    body = head.index(b"\n", len(header)) + 1
    check_count(path, counts.get("vertex", 0))
    if ascii_lines:
        check_length(path, counts.get("vertex", 0), sum(counts.values()), _count_lines(path, body), "lines")
    else:
        needed = sum(counts[name] * sizes[name] for name in counts)
        check_length(path, counts.get("vertex", 0), needed, os.path.getsize(path) - body, "bytes")


def _check_pcd(path: Path, head: bytes) -> None:
    header, mark, rest = head.partition(b"\nDATA ")
    if not mark:
        raise InputError(f"{path} has a pcd header without DATA; it may have been cut short")
    entries = {words[0]: words[1:] for line in header.decode("latin-1").splitlines() if (words := line.split())}
    kind = rest.split(b"\n")[0].strip()
    sizes = [int(size) for size in entries["SIZE"]]
    repeats = [int(count) for count in entries.get("COUNT", ["1"] * len(sizes))]
    points = int(entries["POINTS"][0]) if "POINTS" in entries else int(entries["WIDTH"][0]) * int(entries["HEIGHT"][0])
    body = head.index(b"\n", len(header) + len(mark)) + 1
    held = os.path.getsize(path) - body
    check_count(path, points)
    if kind == b"ascii":
        check_length(path, points, points, _count_lines(path, body), "lines")
    elif kind == b"binary":
        check_length(path, points, points * sum(s * n for s, n in zip(sizes, repeats, strict=True)), held, "bytes")
    else:
        compressed, _ = struct.unpack_from("<II", head, body)
        check_length(path, points, compressed + 8, held, "bytes")


def _check_off(path: Path, head: bytes) -> None:
    vertices, faces = off_counts(head)
    check_count(path, vertices)
    check_length(path, vertices, vertices * OFF_VERTEX_BYTES + faces * OFF_FACE_BYTES, os.path.getsize(path), "bytes")


def check_count(path: Path, points: int) -> None:
    """Refuse more points than are read.

    Raises:
        InputError: with what to do.
    """
    if not 0 <= points <= MAX_POINTS:
        raise InputError(f"{path} declares {points} points; 0 to {MAX_POINTS} are read: split or thin it out")


def check_length(path: Path, points: int, needed: int, held: int, unit: str) -> None:
    """Refuse a file that holds less than its header declares.

    Raises:
        InputError: with both numbers.
    """
    if needed > held:
        raise InputError(
            f"{path} was cut short: its header declares {points} points, {needed} {unit} at least, and it holds {held}; "
            "make or fetch it again"
        )


def _count_lines(path: Path, start: int) -> int:
    """Lines after byte `start`; the last one counts without its line break too."""
    lines, last = 0, b"\n"
    with path.open("rb") as file:
        file.seek(start)
        while part := file.read(COUNT_CHUNK_BYTES):
            lines += part.count(b"\n")
            last = part[-1:]
    return lines + (last != b"\n")
