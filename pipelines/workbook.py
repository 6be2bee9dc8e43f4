"""Excel workbooks (.xlsx) as CSV, so that a sheet is understood by the one reader of tables: titles above
it, text in it, times, gaps.
"""

from __future__ import annotations

import csv
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from unipercept.errors import InputError, import_optional

MAX_BYTES = 2 << 30  # unpacked: some ten million cells
MAX_TEXT_BYTES = 256 << 20  # of that, the strings, which are held in memory
STRINGS = "xl/sharedStrings.xml"
MIN_ROWS = 2  # with something in them: what a sheet needs to be taken for the table


@contextmanager
def sheet_as_csv(path: Path, notes: list[str]) -> Iterator[Path]:
    """The first visible sheet that holds a table, as a CSV file that is gone afterwards. Rows are streamed.

    Raises:
        InputError: no sheet holds a table, or it is too large.
        MissingDependencyError: openpyxl is absent.
    """
    openpyxl = import_optional("openpyxl", extra="excel")
    with zipfile.ZipFile(path) as archive:
        sizes = {item.filename: item.file_size for item in archive.infolist()}
    if sum(sizes.values()) > MAX_BYTES or sizes.get(STRINGS, 0) > MAX_TEXT_BYTES:
        raise InputError(
            f"{path} unpacks to {sum(sizes.values()) >> 20:,} MiB, more than is read; save the sheet as CSV"
        )
    with path.open("rb") as stream, tempfile.TemporaryDirectory(prefix="unipercept-") as folder:
        # data_only: of a formula the value that it had when the file was saved
        book = openpyxl.load_workbook(stream, read_only=True, data_only=True)
        names = [sheet.title for sheet in book.worksheets if sheet.sheet_state == "visible"]
        candidates: list[
            tuple[str, Path]
        ] = []  # without numbers: a page to read before the data; or a table whose numbers are text
        for i, name in enumerate(names):
            written = Path(folder) / f"sheet-{i}.csv"
            rows, rows_of_numbers = _write(book[name], written)
            if rows_of_numbers >= MIN_ROWS:
                candidates = [(name, written)]
                break
            if rows >= MIN_ROWS:
                candidates.append((name, written))
        if candidates:
            name, written = candidates[0]
            if len(names) > 1:
                notes.append(f"sheet {name!r} of {len(names)}; save another one as CSV to use it")
            yield written
            return
    raise InputError(f"{path} has no sheet with a table of {MIN_ROWS} rows or more")


def _write(sheet: Any, path: Path) -> tuple[int, int]:
    """The rows that hold something; their number, and that of those that hold a number."""
    sheet.reset_dimensions()  # some programs state too few rows and columns
    count = with_numbers = width = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for row in sheet.iter_rows(values_only=True):
            cells = [_text(value) for value in row]
            while cells and not cells[-1]:
                cells.pop()
            if cells:
                width = max(width, len(cells))  # below a header, a row whose last cells are empty still has them
                writer.writerow(cells + [""] * (width - len(cells)))
                count += 1
                with_numbers += any(isinstance(v, int | float) and not isinstance(v, bool) for v in row)
    return count, with_numbers


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime | date | time):
        return value.isoformat(" ") if isinstance(value, datetime) else value.isoformat()
    return str(value)
