"""Parsing numbers as tables write them: thousands separators, decimal commas, units, and
the many words for "missing".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
    """Text as float64 where at least half of what is not empty is numbers; else the text as it was."""
    import pandas as pd

    if record.is_text:
        return column
    text = column.astype("string").str.strip()
    if not text.str.isascii().fillna(True).all():
        text = text.map(ascii_digits, na_action="ignore").astype("string")
    record.has_decimal_commas |= bool(text.str.fullmatch(r"\D{0,4}\d{1,3}(?:\.\d{3})+,\d+\D{0,4}").any())
    numbers = pd.to_numeric(text, errors="coerce")
    grouped = text.str.fullmatch(GROUPED).fillna(False) if record.has_decimal_commas else None
    if grouped is not None and grouped.any() and grouped[text.str.contains(".", regex=False).fillna(False)].mean() > 0.99:
        numbers = numbers.mask(grouped)
    lower = text.str.lower()
    bad = numbers.isna() & ~lower.isin(MISSING_WORDS) & text.notna()
    rewritten = 0
    if bad.any() and not lacks_year(text):  # 5 May is no number with a unit
        mended = _rewritten(text[bad], record, beside=bool(numbers.notna().any()))
        rewritten = int(mended.notna().sum())
        numbers = numbers.astype("Float64")
        numbers[bad] = mended
        bad &= numbers.isna()
    n_real = int((text.notna() & ~lower.isin(MISSING_WORDS)).sum())
    if n_real and (n_real - int(bad.sum())) < MIN_NUMBERS * n_real:
        record.is_text = record.n_cells == 0  # settled by the first chunk that holds anything
        if record.is_text:
            return column
    record.n_cells += n_real
    record.n_rewritten += rewritten
    if bad.any() and not record.n_bad:
        place = int(bad.to_numpy(bool).argmax())
        record.example, record.example_row = one_line(text.iloc[place], 30), first_row + place + 1
    record.n_bad += int(bad.sum())
    return numbers.astype("float64")


GROUPED = r"[-+]?[1-9]\d{0,2}(?:\.\d{3})+"  # thousands between points
MAX_UNITS = 3  # of a column; what has more of them is no number with a unit
_SCALES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "m": 1e6, "B": 1e9, "b": 1e9, "bn": 1e9}
_SIDES = {"CR": 1.0, "DR": -1.0, "Cr": 1.0, "Dr": -1.0}  # of an account
_CURRENCY = r"(?:[A-Za-z]{0,3}[$€£¥₹₩₽₺₫฿₴₪]|[A-Z]{3}(?=[-+\d])|Rs\.?|kr\.?)"
_UNIT = r"(?:%|[a-zA-Z°µ€$£¥₹₩₽円元][\w°/%²³]{0,6})"


def _rewritten(text: pandas.Series[Any], record: TextColumn, beside: bool = False) -> pandas.Series[Any]:
    """'1 234,5', '1,234.5', '12,34,567', '12.5 kWh', '7 %' and '(5)' as numbers; missing where none is meant.

    Args:
        record: is told of the units.
        beside: the column holds plain numbers too, so that '1.2K' and '3M' among them mean thousands and
            millions rather than a unit.
    """
    import pandas as pd

    bare = text.str.replace(r"[\s\u00a0\u202f'’]", "", regex=True)
    bare = bare.str.replace(r"(?<=\d)(?:\*+|†|‡|\([a-zA-Z]{1,2}\)|\[\w{1,2}\])$", "", regex=True)  # footnotes
    bare = bare.str.replace(rf"^({_CURRENCY}?)[\u2212\u2013\ufe63\uff0d]", r"-\1", regex=True)  # of typesetters
    # Negative numbers as accountants, (5), and SAP, 5-, write them.
    bare = bare.str.replace(r"^\((.*)\)$|^(\d.*)-$", r"-\1\2", regex=True)
    currency = bare.str.extract(rf"^[-+]?({_CURRENCY})")[0]
    bare = bare.str.replace(rf"^([-+]?){_CURRENCY}", r"\1", regex=True)
    unit = bare.str.extract(rf"(?<=\d)({_UNIT})$")[0].fillna("")
    bare = bare.str.replace(rf"(?<=\d){_UNIT}$", "", regex=True)
    if unit.nunique() > MAX_UNITS + 1:  # 01JAN2024, 2024M01: dates or codes
        bare = bare.where(unit == "")
    comma = bare.str.fullmatch(r"[-+]?(\d{1,3}(\.\d{3})+|\d*),\d+")
    points = bare.str.fullmatch(GROUPED) & record.has_decimal_commas
    thousands = bare.str.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?|[-+]?\d{1,2}(,\d{2})+,\d{3}(\.\d+)?")
    # '1,234' may be either; with a comma alone the thousands sign is the rarer error only where
    # every cell has three digits.
    with_comma = bare.str.contains(",", regex=False).fillna(False)
    are_thousands = not record.has_decimal_commas and with_comma.any() and thousands[with_comma].mean() > 0.99
    as_comma = points | (comma & ~thousands if are_thousands else comma)
    english = bare.where(
        as_comma.fillna(False), bare.str.replace(",", "", regex=False).where(thousands.fillna(False), bare)
    )
    german = english.str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
    numbers = pd.to_numeric(german.where(as_comma.fillna(False), english), errors="coerce").astype("Float64")
    kinds = set(unit[numbers.notna()]) | ({""} if beside else set())
    for factors in (_SCALES, _SIDES):
        if len(kinds) > 1 and kinds <= factors.keys() | {""}:
            return numbers * unit.map(factors).fillna(1.0).astype("Float64")
    record.units |= (kinds | set(currency[numbers.notna()].dropna())) - {""}
    if {"%", ""} <= kinds:
        record.units.add("plain numbers")
    return numbers
