"""Tables of series: read, the time column found, put on an even grid, and every repair said in a sentence.

Shapes: L steps, V variables.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError, one_line
from unipercept.pipelines.base import check_file, open_error

if TYPE_CHECKING:
    import pandas

MAX_MISSING_SHARE = 0.5  # more missing steps than this: the table is no series at the step that was found
SNIFFED_ROWS = 1000
CHUNK_ROWS = 500_000  # of a CSV, in memory as text at a time
EXPECTED = "a table (CSV, Parquet, Feather)"
MAX_COLUMNS = 10_000
EPOCH_NAMES = frozenset({"time", "timestamp", "date", "datetime", "ts", "epoch", "unixtime", "unix_time"})


@dataclass(frozen=True, eq=False)
class Series:
    """Variables on an even time grid.

    Args:
        values: LxV float32, finite; gaps are filled.
        observed: LxV bool, False where a value was filled in.
        time: L times, datetime64[ns] or step numbers (int64).
        step: seconds between steps, or 1 where there is no time column.
        variables: V names.
        source: the file, or "DataFrame".
        notes: what was found and repaired, a sentence each.
        first_step: number of the first row in the whole series, where this is a piece of one.
    """

    values: NDArray[np.float32]
    observed: NDArray[np.bool_]
    time: NDArray[Any]
    step: float
    variables: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = field(default=())
    first_step: int = 0

    def __len__(self) -> int:
        return len(self.values)


def read_series(path: str | Path) -> Series:
    """Read a CSV (also compressed by gzip, xz or bzip2), a Parquet or a Feather file.

    Raises:
        InputError: it cannot be read, or holds no series; one line says why.
    """
    path = check_file(path)
    try:
        frame = _read_frame(path)
    except InputError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # pandas and pyarrow raise many kinds for a damaged table
        raise open_error(path, EXPECTED, error) from error
    return series_from_frame(frame, source=str(path))


def series_from_frame(frame: pandas.DataFrame | pandas.Series[Any], source: str = "DataFrame") -> Series:
    """Put a table on an even time grid.

    The time is the index where that is one, else the first column that reads as times; else steps are numbered. Text
    and empty columns are left out, repeated times averaged, rows sorted, missing steps and values filled by linear
    interpolation (marked in `observed`); each is said in `notes`.

    Raises:
        InputError: fewer than two rows, no numbers, times that are ambiguous or mostly missing.
    """
    import pandas as pd

    notes: list[str] = []
    table = frame.to_frame() if isinstance(frame, pd.Series) else frame
    if len(table) < 2:
        raise InputError(f"{source} has {len(table)} row{'s' * (len(table) != 1)} of data; a series needs at least 2")
    if table.shape[1] > MAX_COLUMNS:
        raise InputError(f"{source} has {table.shape[1]} columns; at most {MAX_COLUMNS} are read")
    time, table = _find_time(table, source, notes)
    numbers = _numeric(table, source, notes)
    if time is None:
        grid: NDArray[Any] = np.arange(len(numbers))
        step, values = 1.0, numbers.to_numpy(np.float32, na_value=np.nan, copy=True)
        notes.append("no time column was found; steps are numbered")
    else:
        grid, step, values = _on_even_grid(time, numbers, source, notes)
    values[~np.isfinite(values)] = np.nan
    observed = np.isfinite(values)
    _fill(values, observed, notes)
    constant = [
        str(name) for name, column in zip(numbers.columns, values.T, strict=True) if column.min() == column.max()
    ]
    if constant:
        notes.append(f"constant: {_listed(constant)}")
    return Series(values, observed, grid, step, tuple(str(name) for name in numbers.columns), source, tuple(notes))


def _read_frame(path: Path) -> pandas.DataFrame:
    import pandas as pd

    with path.open("rb") as file:
        head = file.read(8)
    if head[:4] == b"PAR1":
        return pd.read_parquet(path)
    if head[:6] == b"ARROW1" or head[:4] == b"FEA1":
        return pd.read_feather(path)
    return _read_csv(path)


def _read_csv(path: Path) -> pandas.DataFrame:
    import pandas as pd

    compression = _compression(path)
    encoding, sample = _sample(path, compression)
    if "\0" in sample:
        raise InputError(f"{path} is not text; expected {EXPECTED}")
    n_comments = len(sample.splitlines()) - len(_without_comments(sample).splitlines())
    sample = _without_comments(sample)
    delimiter = _delimiter(sample)
    decimal = "," if delimiter in ";\t" and _comma_decimals(sample, delimiter) else "."
    has_header = _has_header(sample, delimiter, decimal)
    chunks = pd.read_csv(
        path,
        sep=delimiter if delimiter != " " else r"\s+",
        decimal=decimal,
        compression=compression,
        encoding=encoding,
        encoding_errors="replace",
        header=0 if has_header else None,
        skiprows=n_comments,
        chunksize=CHUNK_ROWS,
        on_bad_lines="error",
    )
    parts = [_compact(chunk) for chunk in chunks]
    frame = parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)
    if not has_header:
        frame.columns = [f"column_{i}" for i in range(frame.shape[1])]
    return frame


def _compact(chunk: pandas.DataFrame) -> pandas.DataFrame:
    """Numbers as float32, but not whole numbers, which may be times: text of a chunk is let go chunk by chunk."""
    floats = chunk.select_dtypes("float64").columns
    return chunk.astype(dict.fromkeys(floats, "float32"))


def _compression(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(6)
    for magic, name in ((b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\0", "xz"), (b"BZh", "bz2")):
        if head.startswith(magic):
            return name
    return None


def _sample(path: Path, compression: str | None) -> tuple[str, str]:
    """Encoding and the first rows as text."""
    openers: dict[str | None, Any] = {None: open, "gzip": gzip.open, "xz": lzma.open, "bz2": bz2.open}
    with openers[compression](path, "rb") as file:
        raw: bytes = file.read(1 << 16)
    lines = raw.splitlines()[:SNIFFED_ROWS]
    if len(raw) == 1 << 16 and len(lines) > 1:
        lines = lines[:-1]  # cut in the middle
    raw = b"\n".join(lines)
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16", raw.decode("utf-16", "replace")
    try:
        return "utf-8-sig", raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "latin-1", raw.decode("latin-1")


def _without_comments(sample: str) -> str:
    """The sample without the lines before the table that start with a hash."""
    lines = sample.splitlines()
    first = next((i for i, line in enumerate(lines) if not line.lstrip().startswith("#")), 0)
    return "\n".join(lines[first:])


def _delimiter(sample: str) -> str:
    """The sign that cuts every line into the same number of parts, at least two; a comma where none does."""
    lines = [line for line in sample.splitlines() if line.strip()][:50]
    best, parts = ",", 1
    for sign in (";", "\t", ",", "|", " "):
        counts = {len(line.split() if sign == " " else line.split(sign)) for line in lines}
        if len(counts) == 1 and (count := counts.pop()) > parts:
            best, parts = sign, count
            if sign in ";\t":
                break
    return best


def _comma_decimals(sample: str, delimiter: str) -> bool:
    cells = [cell.strip() for line in sample.splitlines()[1:50] for cell in line.split(delimiter)]
    return any(_is_number(cell.replace(",", ".")) and not _is_number(cell) for cell in cells)


def _has_header(sample: str, delimiter: str, decimal: str) -> bool:
    first = next(iter(sample.splitlines()), "")
    cells = first.split() if delimiter == " " else first.split(delimiter)
    return not any(_is_number(cell.strip().strip('"').replace(decimal, ".")) for cell in cells)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _find_time(
    table: pandas.DataFrame, source: str, notes: list[str]
) -> tuple[pandas.Series[Any] | None, pandas.DataFrame]:
    import pandas as pd

    if isinstance(table.index, pd.DatetimeIndex):
        return _naive(table.index.to_series(index=range(len(table))), notes), table.reset_index(drop=True)
    for name in table.columns:
        column = table[name]
        if pd.api.types.is_datetime64_any_dtype(column):
            notes.append(f"time from column {str(name)!r}")
            return _naive(column, notes), table.drop(columns=[name])
        if not pd.api.types.is_numeric_dtype(column) and (parsed := _parse_times(column, source)) is not None:
            notes.append(f"time from column {str(name)!r}")
            return _naive(parsed, notes), table.drop(columns=[name])
    for name in table.columns:
        parsed = _epoch(table[name]) if str(name).lower() in EPOCH_NAMES else None
        if parsed is not None:
            notes.append(f"time from column {str(name)!r}, as seconds or their parts since 1970")
            return parsed, table.drop(columns=[name])
    return None, table.reset_index(drop=True)


def _parse_times(column: pandas.Series[Any], source: str) -> pandas.Series[Any] | None:
    """Text as times, if nearly all of it is; day-first or month-first is settled over the whole column."""
    import pandas as pd

    text = column.astype("string")
    sample = text.dropna().iloc[:200]
    if (
        sample.empty
        or sample.str.contains(r"\d[-/.:]\d").mean() < 0.9
        or pd.to_numeric(sample, errors="coerce").notna().all()
    ):
        return None
    parts = text.str.extract(r"^\s*(\d{1,2})[/.-](\d{1,2})[/.-]\d{2,4}")
    if parts[0].notna().mean() > 0.9:
        first, second = parts[0].astype("Float64").max(), parts[1].astype("Float64").max()
        if first > 12 and second > 12:
            return None
        if first <= 12 and second <= 12:
            raise InputError(
                f"{source}: the dates of column {str(column.name)!r} read as day first and as month first alike "
                f"({text.dropna().iloc[0]!r}); write them as YYYY-MM-DD"
            )
        parsed = pd.to_datetime(text, dayfirst=bool(first > 12), errors="coerce", utc=True, format="mixed")
    else:
        parsed = pd.to_datetime(sample, errors="coerce", utc=True, format="mixed")
        if parsed.notna().mean() < 0.9:
            return None
        parsed = pd.to_datetime(text, errors="coerce", utc=True, format="ISO8601")
        if parsed.notna().mean() < 0.9:
            parsed = pd.to_datetime(text, errors="coerce", utc=True, format="mixed")
    return parsed if parsed.notna().mean() >= 0.9 else None


def _naive(time: pandas.Series[Any], notes: list[str]) -> pandas.Series[Any]:
    """Times in UTC without a zone: a clock change would otherwise make hours that are missing or there twice."""
    import pandas as pd

    if getattr(time.dt, "tz", None) is not None:
        if str(time.dt.tz) != "UTC":
            notes.append(f"times were in {time.dt.tz}; they are kept in UTC")
        time = time.dt.tz_convert("UTC").dt.tz_localize(None)
    return pd.Series(time.to_numpy("datetime64[ns]"))


def _epoch(column: pandas.Series[Any]) -> pandas.Series[Any] | None:
    """Whole or broken numbers as times since 1970, if they lie between 1980 and 2100 in s, ms, us or ns."""
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(column):
        return None
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)):
        seconds = column.astype("float64") / factor
        if seconds.min() > 315_532_800 and seconds.max() < 4_102_444_800:
            return pd.Series(pd.to_datetime(column, unit=unit).to_numpy("datetime64[ns]"))
    return None


def _numeric(table: pandas.DataFrame, source: str, notes: list[str]) -> pandas.DataFrame:
    import pandas as pd

    kept, left_out = {}, []
    for position, name in enumerate(table.columns):
        column = table.iloc[:, position]
        if pd.api.types.is_bool_dtype(column):
            column = column.astype("float32")
        if not pd.api.types.is_numeric_dtype(column):
            column = pd.to_numeric(column.astype("string"), errors="coerce")
        if column.notna().mean() < MAX_MISSING_SHARE:
            left_out.append(str(name))
        else:
            kept[str(name) if str(name) not in kept else f"{name}_{position}"] = column
    if not kept:
        raise InputError(f"{source} has no column of numbers (columns: {_listed([str(c) for c in table.columns])})")
    if left_out:
        notes.append(f"left out, as text or mostly empty: {_listed(left_out)}")
    return pd.DataFrame(kept).reset_index(drop=True)


def _on_even_grid(
    time: pandas.Series[Any], numbers: pandas.DataFrame, source: str, notes: list[str]
) -> tuple[NDArray[Any], float, NDArray[np.float32]]:
    known = time.notna().to_numpy()
    if not known.all():
        notes.append(f"{int((~known).sum())} rows without a readable time were left out")
    stamps = time.to_numpy("datetime64[ns]")[known].astype(np.int64)
    values = numbers.to_numpy(np.float32, na_value=np.nan)[known]
    if (np.diff(stamps) < 0).any():
        order = np.argsort(stamps, kind="stable")
        stamps, values = stamps[order], values[order]
        notes.append("rows were not in order of time; they were sorted")
    stamps, values = _average_repeated(stamps, values, notes)
    if len(stamps) < 2:
        raise InputError(f"{source} has {len(stamps)} distinct time; a series needs at least 2")
    gaps = np.diff(stamps)
    step = int(np.median(gaps))
    if (gaps == step).all():
        return stamps.view("datetime64[ns]"), step / 1e9, values
    if _is_calendar(gaps):
        notes.append("steps are months, quarters or years of uneven length; they are taken as even")
        return stamps.view("datetime64[ns]"), step / 1e9, values
    return _regrid(stamps, values, step, source, notes)


def _average_repeated(
    stamps: NDArray[np.int64], values: NDArray[np.float32], notes: list[str]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    first = np.concatenate([[True], np.diff(stamps) > 0])
    if first.all():
        return stamps, values
    notes.append(f"{int((~first).sum())} rows repeat a time; they were averaged")
    starts = np.flatnonzero(first)
    known = np.isfinite(values)
    total = np.add.reduceat(np.where(known, values, 0), starts, axis=0)
    count = np.add.reduceat(known.astype(np.int64), starts, axis=0)
    with np.errstate(invalid="ignore"):
        return stamps[first], (total / np.where(count, count, np.nan)).astype(np.float32)


def _is_calendar(gaps: NDArray[np.int64]) -> bool:
    days = gaps / 86_400e9
    spans = ((28, 31), (90, 92), (365, 366))
    return any((days >= low).all() and (days <= high).all() for low, high in spans)


def _regrid(
    stamps: NDArray[np.int64], values: NDArray[np.float32], step: int, source: str, notes: list[str]
) -> tuple[NDArray[Any], float, NDArray[np.float32]]:
    """Rows moved to the nearest step of an even grid; steps without a row are missing."""
    slots = np.rint((stamps - stamps[0]) / step).astype(np.int64)
    length = int(slots[-1]) + 1
    missing = length - len(np.unique(slots))
    if missing > MAX_MISSING_SHARE * length:
        raise InputError(
            f"{source} is too irregular: at its median step of {step / 1e9:g} s, {missing} of {length} steps are missing; "
            "average it to a coarser step first"
        )
    moved = int((stamps != stamps[0] + slots * step).sum())
    if moved:
        notes.append(f"{moved} rows lay off the grid of {step / 1e9:g} s and were moved to its nearest step")
    if missing:
        notes.append(f"{missing} steps were missing")
    even = np.full((length, values.shape[1]), np.nan, np.float32)
    even[slots[::-1]] = values[::-1]  # of several rows in one step the first stays
    return (stamps[0] + np.arange(length) * step).view("datetime64[ns]"), step / 1e9, even


def _fill(values: NDArray[np.float32], observed: NDArray[np.bool_], notes: list[str]) -> None:
    """Linear between observed values, the nearest one beyond the ends; in place."""
    steps = np.arange(len(values))
    n_filled = int((~observed).sum())
    if not n_filled:
        return
    for column, known in zip(values.T, observed.T, strict=True):
        if known.any():
            column[~known] = np.interp(steps[~known], steps[known], column[known])
        else:
            column[:] = 0
    notes.append(f"{n_filled} missing values were filled by interpolation and are masked")


def _listed(names: list[str], limit: int = 5) -> str:
    shown = ", ".join(one_line(name, 40) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
