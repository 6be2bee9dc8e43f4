"""Parsing numbers as tables write them: thousands separators, decimal commas, units, and
the many words for "missing".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import counted, one_line
from unipercept.pipelines.series_times import ascii_digits, lacks_year

if TYPE_CHECKING:
    import pandas

MISSING_WORDS = frozenset((
    "", "-", "--", "---", "?", ".", "na", "n/a", "nan", "null", "none", "nil", "missing", "#n/a", "#value!",
    "#ref!", "n.a.", "k.a.", "keine", "fehlt", "inf", "-inf", "#div/0!", "#name?", "#num!", "#null!", "#nv", "#wert!",
    "#bezug!", "#zahl!", "n.d.", "nd", "s/d", "..", "...", "…", ":",
))  # fmt: skip
MAX_NOTED = 4  # columns of which each gets its own sentence
MIN_NUMBERS = 0.5  # of the cells that are not empty; with fewer the column is text


@dataclass
class TextColumn:
    """Statistics of parsing a column's text as numbers, over all its chunks."""

    name: str
    n_cells: int = 0
    n_rewritten: int = 0  # thousands, decimal commas, units, brackets for minus
    n_bad: int = 0
    example: str = ""
    example_row: int = 0
    is_text: bool = False
    has_decimal_commas: bool = False  # so that 1.234 is 1234
    units: set[str] = field(default_factory=set)

    def notes(self) -> list[str]:
        if self.is_text:
            return []
        said = []
        if self.n_rewritten:
            said.append(
                f"{self.name}: {counted(self.n_rewritten, 'cell', 'cells')} with thousands signs, decimal commas or units read as numbers"
            )
        if len(self.units) > 1:
            said.append(f"{self.name}: cells in {' and '.join(sorted(self.units))} are read without converting these")
        if self.n_bad:
            said.append(
                f"{self.name}: {self.n_bad} cell{'s' * (self.n_bad != 1)} of text among the numbers "
                f"(first {self.example!r} in row {self.example_row}) count{'s' * (self.n_bad == 1)} as missing"
            )
        return said


def notes_of(columns: Sequence[TextColumn]) -> list[str]:
    """Notes on each column, or one for all if many columns share it."""
    rewritten = [column for column in columns if column.n_rewritten and not column.is_text]
    bad = [column for column in columns if column.n_bad and not column.is_text]
    if max(len(rewritten), len(bad)) <= MAX_NOTED:
        return [note for column in columns for note in column.notes()]
    said = []
    if rewritten:
        total = sum(column.n_rewritten for column in rewritten)
        said.append(
            f"{len(rewritten)} columns: {total} cells with thousands signs, decimal commas or units read as numbers"
        )
    if bad:
        total, first = sum(column.n_bad for column in bad), bad[0]
        said.append(
            f"{len(bad)} columns: {total} cells of text among the numbers "
            f"(first {first.example!r} in row {first.example_row} of {first.name!r}) count as missing"
        )
    return said


def read_text_column(column: pandas.Series[Any], record: TextColumn, first_row: int = 0) -> pandas.Series[Any]:
    """Text as float64 where at least half of what is not empty is numbers; else the text as it was.

    Each different cell is read once, by itself: whole-column operations on text cost milliseconds each, and a table
    may have thousands of short columns.
    """
    import pandas as pd

    if record.is_text:
        return column
    codes, different = pd.factorize(column)
    cells = [ascii_digits(str(cell).strip()) for cell in different]
    count = np.bincount(codes[codes >= 0], minlength=len(cells))
    missing = np.array([cell.lower() in MISSING_WORDS for cell in cells], bool)
    record.has_decimal_commas |= any(map(_BOTH_SIGNS.fullmatch, cells))
    in_groups = record.has_decimal_commas and all(_GROUPED.fullmatch(c) for c in cells if _DOTTED.fullmatch(c))
    numbers = np.array([np.nan if in_groups and _GROUPED.fullmatch(c) else _plain(c) for c in cells], np.float64)
    bad = np.isnan(numbers) & ~missing
    is_rewritten = np.zeros(len(cells), bool)
    if bad.any() and not lacks_year([cell for cell, is_bad in zip(cells, bad, strict=True) if is_bad]):
        beside = not np.isnan(numbers).all()
        numbers[bad] = _rewritten([c for c, is_bad in zip(cells, bad, strict=True) if is_bad], record, beside)
        is_rewritten = bad & ~np.isnan(numbers)
        bad &= ~is_rewritten
    n_real, n_bad = int(count[~missing].sum()), int(count[bad].sum())
    if n_real and n_real - n_bad < MIN_NUMBERS * n_real:
        record.is_text = record.n_cells == 0  # settled by the first chunk that holds anything
        if record.is_text:
            return column
    record.n_cells += n_real
    record.n_rewritten += int(count[is_rewritten].sum())
    if n_bad and not record.n_bad:
        place = int(np.append(bad, False)[codes].argmax())
        record.example, record.example_row = one_line(cells[codes[place]], 30), first_row + place + 1
    record.n_bad += n_bad
    return pd.Series(np.append(numbers, np.nan)[codes], index=column.index, name=column.name)


_PLAIN = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?inf")
_DOTTED = re.compile(r"[-+]?\d+(?:\.\d+)+")
_GROUPED = re.compile(r"[-+]?[1-9]\d{0,2}(?:\.\d{3})+")  # thousands between points
_BOTH_SIGNS = re.compile(r"\D{0,4}\d{1,3}(?:\.\d{3})+,\d+\D{0,4}")
_COMMA = re.compile(r"(?:\d{1,3}(?:\.\d{3})+|\d*),\d+")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?")
MAX_UNITS = 3  # of a column; what has more of them is no number with a unit: 01JAN2024, 2024M01
_SCALES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "m": 1e6, "B": 1e9, "b": 1e9, "bn": 1e9}
_SIDES = {"": 1.0, "CR": 1.0, "DR": -1.0, "Cr": 1.0, "Dr": -1.0}  # of an account
_MINUS = "\\-\u2212\u2013"  # typesetters' too
# Accountants write negative numbers as (5), SAP as 5-.
_CELL = re.compile(
    rf"(?P<open>\()?(?P<sign>[+{_MINUS}]?)(?P<currency>[A-Za-z]{{0,3}}[$€£¥₹₩₽₺₫฿₴₪]|[A-Z]{{3}}|Rs\.?|kr\.?)?(?P<inner>[+{_MINUS}]?)"
    r"(?P<number>[.,]?\d[\d.,]*?)(?P<power>[eE][-+]?\d{1,3})?(?P<after>-)?(?P<unit>%|[a-zA-Z°µ€$£¥₹₩₽円元][\w°/%²³]{0,6})?"
    r"(?:\*+|†|‡|\([a-zA-Z]{1,2}\)|\[\w{1,2}\])?(?P<close>\))?"
)


def _plain(cell: str) -> float:
    return float(cell) if _PLAIN.fullmatch(cell) else np.nan


def _rewritten(cells: Sequence[str], record: TextColumn, beside: bool) -> NDArray[np.float64]:
    """'1 234,5', '1,234.5', '12,34,567', '12.5 kWh', '7 %' and '(5)' as numbers; NaN where none is meant.

    Args:
        record: is told of the units.
        beside: the column holds plain numbers too, so that '1.2K' and '3M' among them mean thousands and
            millions rather than a unit.
    """
    found = [_CELL.fullmatch(re.sub(r"[\s\u00a0\u202f'’]", "", cell)) for cell in cells]
    found = [one if one and bool(one["open"]) == bool(one["close"]) else None for one in found]
    if len({one["unit"] for one in found if one} - {None}) > MAX_UNITS:
        found = [one if one and not one["unit"] else None for one in found]
    # '1,234' may be either; with a comma alone the thousands sign is the rarer error only where
    # every cell has three digits.
    commas = [one["number"] for one in found if one and "," in one["number"]]
    are_thousands = not record.has_decimal_commas and all(map(_THOUSANDS.fullmatch, commas))
    numbers = np.array([_value(one, are_thousands, record.has_decimal_commas) if one else np.nan for one in found])
    read = [one for one, number in zip(found, numbers, strict=True) if one and not np.isnan(number)]
    kinds = {one["unit"] or "" for one in read} | ({""} if beside else set())
    for factors in (_SCALES, _SIDES):
        if len(kinds) > 1 and kinds <= factors.keys():
            return np.asarray(numbers * [factors.get(one["unit"] or "", 1.0) if one else 1.0 for one in found])
    record.units |= kinds - {""} | {one["currency"] for one in read if one["currency"]}
    if {"%", ""} <= kinds:
        record.units.add("plain numbers")
    return numbers


def _value(found: re.Match[str], are_thousands: bool, has_decimal_commas: bool) -> float:
    text = found["number"]
    if (_COMMA.fullmatch(text) and (found["power"] or not are_thousands)) or (
        has_decimal_commas and _GROUPED.fullmatch(text)
    ):
        text = text.replace(".", "").replace(",", ".")
    elif _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    minus = [found["sign"], found["inner"]].count("") < 2 and (found["sign"] or found["inner"]) != "+"
    sign = -1.0 if minus or found["after"] or found["open"] else 1.0
    return sign * _plain(text + (found["power"] or ""))
