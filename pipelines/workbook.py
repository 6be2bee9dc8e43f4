"""Excel workbooks (.xlsx) and zip archives as a file for the one reader of tables, which understands titles above a
sheet, text in it, times, gaps.
"""

from __future__ import annotations

import csv
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from unipercept.errors import InputError, import_optional, one_line
from unipercept.pipelines.detect import is_content

MAX_BYTES = 2 << 30  # unpacked: some ten million cells
MAX_TEXT_BYTES = 256 << 20  # of that, the strings, which are held in memory
STRINGS = "xl/sharedStrings.xml"
MIN_ROWS = 2  # with something in them: what a sheet needs to be taken for the table


def is_workbook(path: Path) -> bool:
    """Whether a zip archive is an .xlsx file.

    Raises:
        InputError: it is a spreadsheet of another kind.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if "content.xml" in names and "mimetype" in names:
        raise InputError(f"{path} is an OpenDocument spreadsheet; save it as .xlsx or CSV and give that")
    if "xl/workbook.bin" in names:
        raise InputError(f"{path} is a binary Excel workbook; save it as .xlsx or CSV and give that")
    return "[Content_Types].xml" in names


@contextmanager
def unzipped(path: Path, notes: list[str]) -> Iterator[Path]:
    """The one file of a zip archive, as a file that is gone afterwards.

    Raises:
        InputError: it holds several files, none, one with a password, or one that is too large.
    """
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory(prefix="unipercept-") as folder:
        files = [item for item in archive.infolist() if is_content(item.filename)]
        if len(files) != 1:
            names = ", ".join(one_line(item.filename, 40) for item in files[:5])
            raise InputError(f"{path} holds {len(files)} files ({names}); unpack it and give one of them")
        item = files[0]
        if item.file_size > MAX_BYTES or item.flag_bits & 1:
            why = "has a password" if item.flag_bits & 1 else f"unpacks to {item.file_size >> 20:,} MiB"
            raise InputError(f"{path} {why}; unpack it and give the file")
        written = Path(folder) / "table"
        with archive.open(item) as packed, written.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
        notes.append(f"from {one_line(item.filename, 60)} of the archive")
        yield written


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
