"""Which text a file is: a mesh, a list of points, or a table. Decided on its first lines.

A list of points has three or more numbers a line between spaces and no header; numbers between commas are a table.
"""

import csv
import re
from itertools import islice

MAX_LINES = 200
DELIMITERS = ",;\t|"
_OBJ_WORDS = frozenset(["v", "vn", "vt", "vp", "f", "l", "p", "o", "g", "s", "mtllib", "usemtl"])
_OBJ_VERTEX = re.compile(r"^v(\s+[-+.\deE]+){3,}", re.MULTILINE)
_OFF_HEADER = re.compile(r"^(ST)?C?N?4?n?OFF(\b|\d)")  # "OFF490 518 0" in ModelNet40: no line break behind the keyword
_PCD_HEADER = re.compile(r"^(#\s*\.PCD|VERSION\s+\.?\d)")
_STL_HEADER = re.compile(r"^solid\b")
_XYZ_HEADER = re.compile(r'\s*"?x"?[\s,;]+"?y"?[\s,;]+"?z"?\b', re.IGNORECASE)
_CONTROL = frozenset(range(32)) - frozenset(b"\t\n\r\f\x1b")


def decode_text(head: bytes) -> str | None:
    """The first bytes of a file as text; None where they are binary."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return head[: len(head) & ~1].decode("utf-16", errors="replace")
    if any(byte in _CONTROL for byte in head):
        return None
    try:
        return head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start >= len(head) - 4:  # a character cut off by the end of the head
            return head[: error.start].decode("utf-8-sig")
        high = sum(byte > 127 for byte in head)
        return head.decode("latin-1") if high < 0.1 * len(head) else None


def text_modality(text: str, named: str | None, *, is_whole: bool) -> str | None:
    """ "pointcloud", "timeseries", "image" or None for text; `named` is what the file's
    name says, which settles ties.
    """
    start = text.lstrip()
    if _OFF_HEADER.match(start) or _PCD_HEADER.match(start):
        return "pointcloud"
    if _STL_HEADER.match(start) and ("facet" in text or "endsolid" in text):
        return "pointcloud"
    if start.startswith("{") and ('"asset"' in text or (named == "pointcloud" and '"' in text)):
        return "pointcloud"
    if re.match(r"P[1-6]\s", start) or "/* XPM */" in start[:40] or re.match(r"#define \w+_width ", start):
        return "image"
    lines = [line.strip("\r") for line in text.split("\n")]
    if not is_whole and len(lines) > 1:
        lines.pop()  # cut off by the end of the head
    lines = list(
        islice((line for line in lines if line.strip() and not line.lstrip().startswith(("#", "//"))), MAX_LINES)
    )
    if not lines:
        return None
    if _is_obj(lines, text):
        return "pointcloud"
    return _numbers_modality(lines, named)


def _is_obj(lines: list[str], text: str) -> bool:
    known = sum(line.split(maxsplit=1)[0] in _OBJ_WORDS for line in lines)
    return known >= 0.9 * len(lines) and _OBJ_VERTEX.search(text) is not None


def _numbers_modality(lines: list[str], named: str | None) -> str | None:
    is_head = re.fullmatch(r"\s*\d+\s*", lines[0]) or (named != "timeseries" and _XYZ_HEADER.match(lines[0]))
    # A .pts file starts with a count, other exports with the names of the columns.
    rows = lines[1:] if is_head and len(lines) > 1 else lines
    if all(_numeric_columns(row.split()) == len(row.split()) >= 3 for row in rows):
        return "timeseries" if named == "timeseries" else "pointcloud"
    delimiter = _delimiter(lines, named)
    if delimiter is not None:
        fields = [row for row in csv.reader(lines, delimiter=delimiter) if row]
        points = fields[1:] if _XYZ_HEADER.match(lines[0]) and len(fields) > 1 else fields
        if delimiter == ";":
            points = [[field.replace(",", ".") for field in row] for row in points]  # decimal commas
        if named == "pointcloud" and all(_numeric_columns(row) >= 3 for row in points):
            return "pointcloud"
        if named == "timeseries" or any(_numeric_columns(row) for row in fields[1:]):
            return "timeseries"
    one_column = len(lines) > 2 and all(_numeric_columns([line]) for line in lines[1:])
    return "timeseries" if one_column or named == "timeseries" else None


def _delimiter(lines: list[str], named: str | None) -> str | None:
    """The delimiter that splits nearly every line into the same number of fields, two or more."""
    if len(lines) < 2 and named != "timeseries":
        return None
    for delimiter in DELIMITERS:
        try:
            counts = [len(row) for row in csv.reader(lines, delimiter=delimiter) if row]
        except csv.Error:
            continue
        if counts and counts[0] > 1 and counts.count(counts[0]) >= 0.9 * len(counts):
            return delimiter
    return None


def _numeric_columns(fields: list[str]) -> int:
    """How many fields are numbers ("nan" counts: a gap in a measurement)."""
    return sum(is_number(field) for field in fields)


def is_number(field: str) -> bool:
    """Whether a word reads as a number; "nan" and "inf" do."""
    try:
        float(field)
    except ValueError:
        return False
    return True
