"""Files as data frames: CSV of any dialect read chunk by chunk, Excel, Parquet, Feather.

Text is freed as soon as it is parsed.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import lzma
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unipercept.errors import InputError, MissingDependencyError, counted, one_line
from unipercept.pipelines.cells import TextColumn, notes_of, read_text_column
from unipercept.pipelines.files import check_file, open_error
from unipercept.pipelines.legacy_text import legacy_encoding
from unipercept.pipelines.series_times import TimeReading, recognise_times
from unipercept.pipelines.table_head import (
    MAX_HEADER_LINES,
    ROWS_BELOW,
    is_header_of_times,
    joined_names,
    n_header_lines,
)
from unipercept.pipelines.workbook import is_workbook, sheet_as_csv, unzipped

if TYPE_CHECKING:
    import pandas

EXPECTED = "a table (CSV, xlsx, Parquet, Feather)"
CHUNK_ROWS = 500_000  # of a CSV, in memory as text at a time
SNIFFED_BYTES = 1 << 16
SNIFFED_ROWS = 1000
MAX_LINES_OF_ROW = 20  # further ones than the first
MAX_PREAMBLE = 50  # lines
DELIMITERS = ";\t,|"


@dataclass(frozen=True)
class Dialect:
    """How a text file writes a table."""

    compression: str | None
    encoding: str
    delimiter: str  # " " for any run of blanks
    decimal: str
    skipped: int  # lines before the table
    has_header: bool
    names: tuple[str, ...] = ()  # of a header of several lines
    n_header: int = 1  # these lines
    ends_empty: bool = False  # each row, but not the header, ends with a delimiter
    codes: tuple[str | int, ...] = ()  # columns of digits that begin with zeros: names rather than numbers


def read_frame(path: str | Path) -> tuple[pandas.DataFrame, list[str]]:
    """A table file as a frame (numbers float64 or integer, times datetime64, the rest text) and what was noticed.

    Raises:
        InputError: it cannot be read; one line says why.
    """
    path = check_file(path)
    notes: list[str] = []
    try:
        return _read(path, notes), notes
    except (InputError, MissingDependencyError, MemoryError):
        raise
    except Exception as error:  # pandas, pyarrow and openpyxl raise many kinds for a damaged table
        if ragged := re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error)):
            expected, line, came = ragged.groups()
            raise InputError(
                f"{path}: line {line} has {came} cells where the table has {expected}; put cells that hold the delimiter between quotes, "
                "or delete the line"
            ) from error
        raise open_error(path, EXPECTED, error) from error


def _read(path: Path, notes: list[str]) -> pandas.DataFrame:
    import pandas as pd

    with path.open("rb") as file:
        head = file.read(8)
        if head[:4] == b"PAR1":
            file.seek(0)
            return pd.read_parquet(file)  # not by its name, which pyarrow takes in UTF-8 alone
    if head[:6] == b"ARROW1" or head[:4] == b"FEA1":
        return pd.read_feather(path)
    if head[:4] == b"\xff\xff\xff\xff":
        import pyarrow

        with path.open("rb") as file:  # Arrow's stream, as the library of Hugging Face keeps its data sets
            return pyarrow.ipc.open_stream(file).read_all().to_pandas()
    if head[:4] == b"\xd0\xcf\x11\xe0":
        raise InputError(f"{path} is an old Excel workbook; save it as .xlsx or CSV and give that")
    if head[:4] == b"PK\x03\x04":
        with sheet_as_csv(path, notes) if is_workbook(path) else unzipped(path, notes) as written:
            try:
                return _read_csv(written, notes)
            except InputError as error:
                raise InputError(str(error).replace(str(written), str(path))) from error
    return _read_csv(path, notes)


def _read_csv(path: Path, notes: list[str]) -> pandas.DataFrame:
    import pandas as pd

    dialect = sniff(path)
    if dialect.encoding not in ("utf-8-sig", "cp1252"):
        notes.append(f"text in {dialect.encoding.upper()}")
    if dialect.decimal == ",":
        notes.append(f"decimal commas, columns between {_sign_name(dialect.delimiter)}")
    if dialect.skipped:
        notes.append(f"{counted(dialect.skipped, 'line', 'lines')} before the table passed over")
    chunks = pd.read_csv(
        path,
        sep=dialect.delimiter if dialect.delimiter != " " else r"\s+",
        decimal=dialect.decimal,
        compression=dialect.compression,
        encoding=dialect.encoding,
        encoding_errors="replace",
        **_header_options(dialect),
        chunksize=CHUNK_ROWS,
        on_bad_lines="error",
        low_memory=False,  # one type a column: a stray word must not leave a mixture behind
        dtype=dict.fromkeys(dialect.codes, "str"),
        skipinitialspace=True,
    )
    with warnings.catch_warnings():  # of the empty last cell that index_col=False drops
        warnings.simplefilter("ignore", pd.errors.ParserWarning)
        frame = _joined(chunks, dialect, notes)
    if dialect.names:
        notes.append(f"a header of {dialect.n_header} lines, joined: {listed(list(dialect.names), 3)}")
    if not dialect.has_header:
        frame.columns = [f"column_{i}" for i in range(frame.shape[1])]
    frame.columns = _on_one_line(list(frame.columns))
    unnamed = [name for name in frame.columns if str(name).startswith("Unnamed:") and frame[name].isna().all()]
    return frame.drop(columns=unnamed)  # of a delimiter at the end of each line


def _on_one_line(names: list[Any]) -> list[Any]:
    """Column names without line ends and blanks around them, unless two would become the same."""
    folded = [
        (name.strip() if name.isprintable() else " ".join(name.split())) if isinstance(name, str) else name
        for name in names
    ]
    return folded if len(set(folded)) == len(set(names)) else names


def _header_options(dialect: Dialect) -> dict[str, Any]:
    if dialect.names:
        names = list(dialect.names)
        return {"header": None, "names": names, "index_col": False, "skiprows": dialect.skipped + dialect.n_header}
    # pandas takes one cell more than the header has for a name of the row, as R writes it in front.
    index = {"index_col": False} if dialect.ends_empty else {}
    return {"header": 0 if dialect.has_header else None, "skiprows": dialect.skipped, **index}


def _joined(chunks: Iterator[pandas.DataFrame], dialect: Dialect, notes: list[str]) -> pandas.DataFrame:
    """The chunks as one frame. Text columns that are times or numbers are turned into them chunk by chunk."""
    import pandas as pd
    from pandas.api.types import is_bool_dtype, is_numeric_dtype, union_categoricals

    columns: dict[Any, list[Any]] = {}
    times: dict[Any, TimeReading | None] = {}
    numbers: dict[Any, TextColumn] = {}
    row = 0
    for chunk in chunks:
        if isinstance(chunk.index, pd.MultiIndex) or not is_numeric_dtype(chunk.index):
            chunk = chunk.reset_index()  # names or times of the rows, above which the header has no name
        for name in chunk.columns:
            column = chunk[name]
            if name not in times:
                is_text = not is_numeric_dtype(column) and not is_bool_dtype(column)
                # Day and month may still be open after one chunk: then the text is kept for later.
                times[name] = recognise_times(column) if is_text else None
            reading = times[name]
            if reading is not None and not reading.is_open:
                column = reading.parse(column)
            elif reading is None and not is_numeric_dtype(column):
                numbers.setdefault(name, TextColumn(str(name), has_decimal_commas=dialect.decimal == ","))
                if name not in dialect.codes:
                    column = read_text_column(column, numbers[name], row)
                if not is_numeric_dtype(column):
                    column = column.astype("category")
            columns.setdefault(name, []).append(column)
        row += len(chunk)
    whole: dict[Any, Any] = {}
    for name in list(columns):  # one by one, so that at most one column is there twice
        parts = columns.pop(name)
        kinds = {str(part.dtype) for part in parts}
        if len(parts) > 1 and all(kind == "category" for kind in kinds):
            whole[name] = pd.Series(union_categoricals(parts))
        else:
            whole[name] = parts[0] if len(parts) == 1 else pd.concat(_one_kind(parts), ignore_index=True)
    notes.extend(
        f"column {str(name)!r} holds times{found.said}"
        for name, found in times.items()
        if found is not None and found.said
    )
    notes.extend(notes_of(list(numbers.values())))
    return pd.DataFrame(whole)


def _one_kind(parts: list[Any]) -> list[Any]:
    from pandas.api.types import is_numeric_dtype

    if all(is_numeric_dtype(part) for part in parts) or len({str(part.dtype) for part in parts}) == 1:
        return parts
    return [part.astype("string") for part in parts]


def sniff(path: Path) -> Dialect:
    """Compression, encoding, delimiter, decimal sign, lines before the table and header, from the first 64 kB."""
    compression = _compression(path)
    openers: dict[str | None, Any] = {None: open, "gzip": gzip.open, "xz": lzma.open, "bz2": bz2.open}
    with openers[compression](path, "rb") as file:
        raw: bytes = file.read(SNIFFED_BYTES)
    encoding, text = _decoded(raw)
    if re.match(r'\s*(\{\s*"|\[\s*[\[{])', text):
        raise InputError(f"{path} is JSON; write the table as CSV, for example by pandas.read_json(...).to_csv(...)")
    if _PAGE.match(text):  # also what many a site exports as .xls
        raise InputError(
            f"{path} is HTML or XML; open it in a spreadsheet program, save it as .xlsx or CSV and give that"
        )
    lines = text.splitlines()
    if len(raw) == SNIFFED_BYTES and len(lines) > 1:
        lines.pop()  # cut in the middle
    lines = _with_whole_cells(lines)
    if "\0" in text:
        raise InputError(f"{path} is not text; expected {EXPECTED}")
    lines = lines[:SNIFFED_ROWS]
    told = re.fullmatch(r"(?i)sep=(.)", lines[0].strip()) if lines else None  # for Excel
    hashes = next((i for i, line in enumerate(lines) if i >= bool(told) and not line.lstrip().startswith("#")), 0)
    delimiter = told[1] if told else _delimiter(lines[hashes:])
    skipped = hashes + _preamble(lines[hashes:], delimiter)
    numbered = [(number, cells) for number, line in enumerate(lines[skipped:]) if (cells := _cells(line, delimiter))]
    rows = [cells for _, cells in numbered]
    if not rows:
        raise InputError(f"{path} holds no table; expected {EXPECTED}")
    decimal = "," if delimiter != "," and has_decimal_commas(rows[1:200], delimiter) else "."
    has_header = _has_header(rows, decimal)
    count = _n_header(rows, decimal) if has_header else 1
    names = tuple(joined_names([_wide(row, len(rows[count])) for row in rows[:count]])) if count > 1 else ()
    width = len(rows[0]) if count == 1 else len(names)
    below = [_wide(row, width) for row in rows[count if has_header else 0 :]]
    labels: Sequence[str | int] = names or (rows[0] if has_header else range(width))
    columns = zip(*below, strict=True) if below else ()
    codes = tuple(label for label, cells in zip(labels, columns, strict=False) if _are_codes(cells))
    if count == 1:
        ends_empty = has_header and len(rows) > 1 and all(row[len(rows[0]) :] == [""] for row in rows[1:])
        return Dialect(
            compression, encoding, delimiter, decimal, skipped, has_header, ends_empty=ends_empty, codes=codes
        )
    n_header = numbered[count - 1][0] + 1
    return Dialect(compression, encoding, delimiter, decimal, skipped, has_header, names, n_header, codes=codes)


def _are_codes(cells: Sequence[str]) -> bool:
    filled = [cell for cell in cells if cell]
    return all(cell.isdecimal() for cell in filled) and any(len(cell) > 1 and cell[0] == "0" for cell in filled)


def _compression(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(6)
    for magic, name in ((b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\0", "xz"), (b"BZh", "bz2")):
        if head.startswith(magic):
            return name
    return None


def _decoded(raw: bytes) -> tuple[str, str]:
    """Encoding and text. UTF-16 without its mark shows in the zero bytes between Latin letters."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16", raw[: len(raw) & ~1].decode("utf-16", "replace")
    head = np.frombuffer(raw[: len(raw) & ~1][:4096], np.uint8)
    if len(head) >= 4:
        even, odd = (head[0::2] == 0).mean(), (head[1::2] == 0).mean()
        if max(even, odd) > 0.7 and min(even, odd) < 0.1:
            encoding = "utf-16-le" if odd > even else "utf-16-be"
            return encoding, raw[: len(raw) & ~1].decode(encoding, "replace")
    try:
        return "utf-8-sig", raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start >= len(raw) - 4:  # a character cut off by the end
            return "utf-8-sig", raw[: error.start].decode("utf-8-sig")
        encoding = legacy_encoding(raw)
    return encoding, raw.decode(encoding, "replace")


_PAGE = re.compile(
    r"(?i)\s*<(?:!|\?xml|(?:html|head|body|meta|table|div|style|workbook)\b)"
)  # brokers write <DATE>,<TIME>
_QUOTED_CELL = re.compile(r"""(^|[;,\t|])\s*"(?:[^"]|"")*"(?=\s*(?:[;,\t|]|$))""")
_OPEN_CELL = re.compile(r"""(?:^|[;,\t|])\s*"(?:[^"]|"")*$""")


def _with_whole_cells(lines: list[str]) -> list[str]:
    """Lines, where one that ends inside a quoted cell goes on with the next: spreadsheets
    break the lines of a header so.
    """
    whole: list[str] = []
    rest = iter(range(len(lines)))
    for start in rest:
        for end in range(start + 1, min(start + 1 + MAX_LINES_OF_ROW, len(lines)) + 1):
            joined = " ".join(lines[start:end])
            if not _OPEN_CELL.search(_QUOTED_CELL.sub(r"\1", joined)):
                break
        else:  # a stray quotation mark
            joined, end = lines[start], start + 1
        whole.append(joined)
        for _ in range(end - start - 1):
            next(rest)
    return whole


def _cells(line: str, delimiter: str) -> list[str]:
    if not line.strip():
        return []
    if delimiter == " ":
        return line.split()
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))]


def _delimiter(lines: list[str]) -> str:
    """The sign that cuts nearly every line into the same number of cells, at least two; a comma where none does.

    A semicolon or a tab comes before a comma, which may be a decimal sign.
    """
    lines = [line for line in lines if line.strip()][:100]
    best, best_cells = ",", 1
    for sign in (*DELIMITERS, " "):
        try:
            counts = Counter(len(_cells(line, sign)) for line in lines)
        except csv.Error:
            continue
        if not counts:
            continue
        cells, times = counts.most_common(1)[0]
        if cells > best_cells and times >= 0.8 * len(lines) and (sign != " " or best_cells == 1):
            best, best_cells = sign, cells
            if sign in ";\t":
                break
    return best


def _preamble(lines: list[str], delimiter: str) -> int:
    """Lines before the table: those with fewer cells than the rows have, as export programs write them."""
    counts = [len(_cells(line, delimiter)) for line in lines]
    usual = Counter(count for count in counts if count).most_common(1)
    if not usual or usual[0][0] < 2:
        return 0
    cells = usual[0][0]
    first = counts.index(cells)
    if usual[0][1] < 0.8 * len(counts[first:]):
        return 0
    rows = [_cells(line, delimiter) for line in lines[: first + MAX_PREAMBLE + 1]]
    filled = [sum(map(bool, row)) for row in rows]
    is_named = all(_kind(cell, ".") == "text" for cell in rows[first])
    if first > 0 and not is_named and abs(counts[first - 1] - cells) == 1 and all(rows[first - 1]):
        first -= 1  # a header may lack the delimiter that ends each row
    elif first > 0 and filled[first - 1] > 1 and not rows[first - 1][0]:
        first -= 1  # or, in its first line, the empty cells at the end
    if first > MAX_PREAMBLE or (max(filled[:first], default=0) >= cells and not is_named):
        return 0
    while cells > 2 and first + 1 < len(rows) and filled[first] <= 1 and any(rows[first][:1]):
        first += 1  # a title that a spreadsheet pads with empty cells
    return first + sum(1 for _ in takewhile(lambda row: not row, rows[first:]))


def has_decimal_commas(rows: list[list[str]], delimiter: str) -> bool:
    """Whether the numbers of a file have decimal commas rather than points. Where a sign stands before three digits
    throughout, it separates thousands if the column has smaller numbers without it; else the file's dates decide.
    """
    columns = list(zip(*[_wide(row, max(map(len, rows), default=0)) for row in rows], strict=True))
    commas, points = (Counter(_role(column, sign) for column in columns) for sign in ",.")
    for role, other in (("decimal", False), ("thousands", True)):
        if commas[role] != points[role]:
            return (commas[role] > points[role]) ^ other
    has_dotted_dates = any(re.match(r"\d{1,2}\.\d{1,2}\.\d{2}", cell) for row in rows[:1] for cell in row)
    if commas["unclear"]:
        return delimiter == ";" or has_dotted_dates
    return bool(points["unclear"]) and delimiter == ";" and has_dotted_dates


def _role(cells: Sequence[str], sign: str) -> str:
    """What a sign does in the numbers of a column: "decimal", "thousands", "unclear" or nothing."""
    s, other = re.escape(sign), re.escape("." if sign == "," else ",")
    number = re.compile(r"[^\d.,]{0,4}([\d.,' \u00a0\u202f]+)([eE][-+]?\d+)?[^\d.,]{0,8}")
    found = [one for cell in cells if (one := number.fullmatch(cell))]
    numbers = [one[1] for one in found]
    if any(one[2] and sign in one[1] for one in found):
        return "decimal"
    if len(numbers) < 0.5 * sum(map(bool, cells)):
        return ""
    grouped = sum(bool(re.fullmatch(rf"[1-9]\d{{0,2}}(?:{s}\d{{3}})+", number)) for number in numbers)
    if sum(bool(re.fullmatch(rf"[\d' \u00a0\u202f]*(?:{other}\d{{3}})*{s}\d+", n)) for n in numbers) > grouped:
        return "decimal"
    if not grouped:
        return ""
    is_plain = any(re.fullmatch(r"\d{1,3}", number) for number in numbers)
    return "thousands" if is_plain or any(number.count(sign) > 1 for number in numbers) else "unclear"


def _has_header(rows: list[list[str]], decimal: str) -> bool:
    """The first row is a header where one of its cells is text above numbers or times, where none is a number,
    or where times stand across.
    """
    first = [_kind(cell, decimal) for cell in rows[0]]
    if "value" not in first:
        return True
    if len(rows) < 2:
        return False
    if is_header_of_times(rows[0], rows[1]):
        return True
    second = [_kind(cell, decimal) for cell in rows[1]]
    if not rows[0][0] and "value" not in second and len(rows) > 2:
        return True  # years above the months
    return any(a == "text" and b == "value" for a, b in zip(first, second, strict=False))


def _n_header(rows: list[list[str]], decimal: str) -> int:
    head = [_wide(row, len(rows[0])) for row in rows[: MAX_HEADER_LINES + ROWS_BELOW + 1]]
    return n_header_lines(head, np.array([[_kind(cell, decimal) == "value" for cell in row] for row in head]))


def _wide(row: list[str], width: int) -> list[str]:
    return row[:width] + [""] * (width - len(row))


def _kind(cell: str, decimal: str) -> str:
    cell = cell.strip().strip('"')
    if not cell or cell.lower() in ("nan", "na"):
        return "empty"
    if re.match(r"^\d{1,4}[-/.]\d{1,2}([-/.]\d{1,4})?([ T]\d|$)", cell):
        return "value"
    try:
        float(cell.replace(decimal, "."))
    except ValueError:
        return "text"
    return "value"


def _sign_name(sign: str) -> str:
    return {";": "semicolons", "\t": "tabs", ",": "commas", "|": "bars", " ": "blanks"}[sign]


def listed(names: list[str], limit: int = 5) -> str:
    """A few names of a list, for a sentence."""
    shown = ", ".join(one_line(name, 40) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
