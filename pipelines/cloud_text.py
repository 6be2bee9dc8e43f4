"""Point clouds and meshes in text that open3d reads wrongly or not at all: OBJ, OFF, ASCII PLY, and points
between commas or below a header.

open3d 0.20 drops every face of an OBJ file that is no triangle (most exports have quads), and refuses OFF files whose
counts stand in the header's own line, as those of ModelNet40 do.

Shapes: N points, M triangles.
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError, one_line
from unipercept.pipelines.text_formats import is_number

MAX_HEADER_LINES = 20
Mesh = tuple[NDArray[np.float64], NDArray[np.int64]]  # Nx3 vertices, Mx3 numbers of vertices


def read_obj(path: Path) -> Mesh:
    """The vertices and faces of an OBJ file; a face of more than three corners becomes a fan of triangles.

    Raises:
        InputError: a line that cannot be understood, or a face with a vertex that is not there.
    """
    vertices, triangles = array("d"), array("q")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            words = line.split()
            try:
                if words[:1] == [b"v"]:
                    x, y, z = words[1:4]
                    vertices.extend((float(x), float(y), float(z)))
                elif words[:1] == [b"f"]:
                    count = len(vertices) // 3
                    corners = [int(word.split(b"/")[0]) for word in words[1:]]  # a corner is vertex/texture/normal
                    triangles.extend(_fan([corner - 1 if corner > 0 else count + corner for corner in corners]))
            except ValueError as error:
                raise _not_understood(path, number, line) from error
    return _checked(path, _rows_of_three(vertices), triangles)


def read_off(path: Path) -> Mesh:
    """The vertices and faces of an OFF file (also COFF, NOFF …); faces of more than three corners as in `read_obj`.

    Raises:
        InputError: it ends early, a line cannot be understood, or a face has a vertex that is not there.
    """
    vertices, triangles = array("d"), array("q")
    with path.open("rb") as file:
        rows = _off_rows(file)
        try:
            n_vertices, n_faces = (int(word) for word in next(rows)[:2])
            for _ in range(n_vertices):
                x, y, z = next(rows)[:3]
                vertices.extend((float(x), float(y), float(z)))
            for _ in range(n_faces):
                words = next(rows)
                triangles.extend(_fan([int(word) for word in words[1 : 1 + int(words[0])]]))
        except StopIteration:
            raise InputError(f"{path} was cut short: it ends before the last of its vertices or faces") from None
        except ValueError as error:
            raise InputError(f"{path} is a damaged off file: {one_line(error)}") from error
    return _checked(path, _rows_of_three(vertices), triangles)


@dataclass(frozen=True)
class TextLayout:
    """How a text file lists points.

    Args:
        delimiter: a comma or a semicolon; "" for blanks.
        n_header: lines before the first point.
        columns: where x, y and z stand, by the header where one says it.
        n_rows: how many points there are; None for all rows.
        decimal: the decimal sign; a comma is known between semicolons alone.
    """

    delimiter: str = ""
    n_header: int = 0
    columns: tuple[int, ...] = (0, 1, 2)
    n_rows: int | None = None
    decimal: str = "."

    @property
    def is_plain(self) -> bool:
        """x, y and z come first, between blanks, without a header: what open3d reads, and faster."""
        return self == TextLayout()


def text_layout(head: bytes) -> TextLayout | None:
    """The layout of a list of points by its first bytes: header lines ("//X Y Z R G B", a count, comments), then rows
    of at least three numbers; None where the first `MAX_HEADER_LINES` hold no such row.
    """
    columns = TextLayout.columns
    for number, line in enumerate(head.decode("latin-1").splitlines()[:MAX_HEADER_LINES]):
        delimiter = next((mark for mark in ";," if mark in line), "")
        words = [word.strip().strip('"').lower() for word in line.strip().lstrip("#/ ").split(delimiter or None)]
        decimal = "," if delimiter == ";" and "," in line and "." not in line else "."
        numbers = [word.replace(decimal, ".") for word in words]
        if not line.lstrip().startswith(("#", "/")) and sum(map(is_number, numbers)) >= 3:
            return TextLayout(delimiter, number, columns, decimal=decimal)
        if {"x", "y", "z"} <= set(words):
            columns = tuple(words.index(name) for name in "xyz")
    return None


@dataclass(frozen=True)
class TextPly:
    """Where the vertices and faces of an ASCII PLY file stand.

    Args:
        vertices: their layout.
        n_faces: how many faces there are.
        first_face: the line of the first of them, from 0.
        n_before: numbers in the row of a face before its list of corners.
    """

    vertices: TextLayout
    n_faces: int = 0
    first_face: int = 0
    n_before: int = 0


def text_ply(head: bytes) -> TextPly | None:
    """Where an ASCII PLY file has its vertices and faces, by its header; None for another file, and where
    the vertices do not come first.

    open3d leaves what comes after a number that it cannot read (an "inf" will do) as memory that was never filled, and
    ends a point where it meets z, whatever comes after.

    Raises:
        ValueError: a count that is no number.
    """
    header, mark, _ = head.partition(b"end_header")
    lines = [line.split() for line in header.decode("latin-1").splitlines()]
    elements = [line for line in lines if line[:1] == ["element"]]
    if not mark or ["format", "ascii", "1.0"] not in lines or not elements or elements[0][1] != "vertex":
        return None
    starts = [lines.index(element) for element in elements]
    properties = [
        [line for line in lines[start:stop] if line[:1] == ["property"]]
        for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True)
    ]
    names = [line[-1] for line in properties[0]]
    if not {"x", "y", "z"} <= set(names):
        return None
    body = header.count(b"\n") + 1
    vertices = TextLayout("", body, tuple(names.index(name) for name in "xyz"), int(elements[0][2]))
    for number, (_, name, count, *_) in enumerate(elements):
        if name == "face" and int(count):
            is_list = [line[1] == "list" for line in properties[number]]
            first = body + sum(int(element[2]) for element in elements[:number])
            return TextPly(vertices, int(count), first, is_list.index(True)) if any(is_list) else None
    return TextPly(vertices)


def read_text_ply(path: Path, ply: TextPly) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Nx3 vertices of an ASCII PLY file, which may be infinite or NaN, and Mx3 numbers of vertices.

    Raises:
        InputError: a row cannot be understood, or a face has a vertex that is not there.
    """
    vertices = read_text_points(path, ply.vertices) if ply.vertices.n_rows else np.empty((0, 3))
    if len(vertices) < (ply.vertices.n_rows or 0):
        raise InputError(f"{path} declares {ply.vertices.n_rows} points and holds {len(vertices)}; fetch it again")
    triangles = array("q")
    with path.open("rb") as file:
        for number, line in enumerate(islice(file, ply.first_face, ply.first_face + ply.n_faces), ply.first_face + 1):
            try:
                count, *corners = line.split()[ply.n_before :]
                triangles.extend(_fan([int(corners[i]) for i in range(int(count))]))
            except (ValueError, IndexError) as error:
                raise _not_understood(path, number, line) from error
    return _checked(path, vertices, triangles)


def _with_comma(number: str) -> float:
    return float(number.replace(",", "."))


def read_text_points(path: Path, layout: TextLayout) -> NDArray[np.float64]:
    """Nx3 points of a list of them.

    Raises:
        InputError: a row has another number of columns, or something else than numbers.
    """
    try:
        return np.loadtxt(
            path, delimiter=layout.delimiter or None, skiprows=layout.n_header, usecols=layout.columns, ndmin=2,
            max_rows=layout.n_rows, converters=None if layout.decimal == "." else _with_comma,
        )  # fmt: skip
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no list of points: {one_line(error)}") from error


def off_counts(head: bytes) -> tuple[int, int]:
    """How many vertices and faces the head of an OFF file declares.

    Raises:
        ValueError: they are no numbers, or not there.
    """
    vertices, faces = next(_off_rows(head.splitlines()), [])[:2]
    return int(vertices), int(faces)


def _off_rows(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The words of each line, without the keyword, comments and empty lines; the counts
    may stand behind the keyword.
    """
    rows = (words for line in lines if (words := line.split(b"#")[0].split()))
    first = next(rows, [])
    counts = [word for word in (first[0].rpartition(b"OFF")[2], *first[1:]) if word] if first else []
    yield from chain([counts] if counts else [], rows)


def _fan(corners: list[int]) -> Iterator[int]:
    for second, third in pairwise(corners[1:]):
        yield from (corners[0], second, third)


def _rows_of_three(numbers: "array[float]") -> NDArray[np.float64]:
    return np.array(numbers, np.float64).reshape(-1, 3)


def _checked(path: Path, vertices: NDArray[np.float64], triangles: "array[int]") -> Mesh:
    faces = np.array(triangles, np.int64).reshape(-1, 3)
    if len(faces) and not 0 <= faces.min() <= faces.max() < len(vertices):
        raise InputError(f"{path} has faces with vertices that are not there; it holds {len(vertices)}")
    return vertices, faces


def _not_understood(path: Path, number: int, line: bytes) -> InputError:
    return InputError(f"{path}, line {number}: {one_line(line.decode('latin-1'), 60)!r} cannot be understood")
