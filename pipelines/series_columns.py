"""Assigns roles to the columns of a table: times, names of series, values.

Recognises text and dates; turns long format into wide.

Shapes: L rows, V variables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError, one_line
from unipercept.pipelines.cells import TextColumn, notes_of, read_text_column
from unipercept.pipelines.series_clock import (
    TimeReading,
    recognise_numbers,
    recognise_times,
    says_time,
    settled_by_steps,
)
from unipercept.pipelines.table_file import shortened

if TYPE_CHECKING:
    import pandas

SERIES_WORDS = (
    "id", "unique_id", "item", "item_id", "series", "series_id", "store", "sku", "station", "sensor", "meter",
    "group", "key",
)  # fmt: skip
MAX_COLUMNS = 10_000
MAX_CELLS = 400_000_000  # 3.2 GB of float64
SENTINELS = (
    -9999.0,
    -999.0,
    -99.0,
    -9999.9,
    -999.9,
    -99.9,
    -99999.0,
    -8888.0,
    -7777.0,
    9999.0,
    99999.0,
    999.0,
    999999.0,
    1e20,
)
SENTINEL_DISTANCE = 3.0  # a code lies this many of the other values' 1 % to 99 % ranges outside them
SENTINEL_MIN_OTHERS = 3  # values of the column that are none


def find_time(
    table: pandas.DataFrame, source: str, notes: list[str], wanted: str | None
) -> tuple[NDArray[Any] | None, pandas.DataFrame]:
    """L times (NaT where unreadable), or None; and the table without their column."""
    import pandas as pd

    if wanted is None and isinstance(table.index, pd.PeriodIndex):
        table = table.set_axis(table.index.to_timestamp())
    if wanted is None and isinstance(table.index, pd.DatetimeIndex):
        return _naive(pd.Series(table.index), notes), table.reset_index(drop=True)
    by_name = {str(name): name for name in table.columns}
    candidates = [by_name[wanted]] if wanted is not None else list(table.columns)
    # Text that reads as times is surer than numbers that might be; among equals a telling name comes first.
    readings: list[tuple[Any, TimeReading | None]] = []
    for name in sorted(candidates, key=lambda name: not says_time(name)):
        column = table[name]
        if pd.api.types.is_datetime64_any_dtype(column):
            readings.append((name, None))
            break
        if not pd.api.types.is_numeric_dtype(column) and (found := _text_reading(column, source)) is not None:
            readings.append((name, found))
            break
    if not readings:
        joined = _from_parts(table, notes) if wanted is None else None
        if joined is not None:
            return joined
        for position, name in enumerate(table.columns):
            if (
                name not in candidates
                or not pd.api.types.is_numeric_dtype(table[name])
                or pd.api.types.is_bool_dtype(table[name])
            ):
                continue
            named = says_time(name) or wanted is not None
            if (named or position == 0) and (found := recognise_numbers(table[name], is_named=named)) is not None:
                readings.append((name, found))
                break
    if not readings:
        if wanted is not None:
            raise InputError(
                f"{source}: column {wanted!r} does not read as times (its first cell: {one_line(table[by_name[wanted]].iloc[0], 40)!r})"
            )
        return None, table.reset_index(drop=True)
    name, reading = readings[0]
    notes.append(f"time from column {str(name)!r}{reading.said if reading else ''}")
    times = table[name] if reading is None else reading.parse(table[name])
    rest = table.drop(columns=[name]).reset_index(drop=True)
    stamps, rest = _with_clock_column(_naive(times, notes), rest, notes)
    return stamps, rest


def _text_reading(column: pandas.Series[Any], source: str) -> TimeReading | None:
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        column = pd.Series(column.cat.categories)
    reading = recognise_times(column)
    if reading is not None and reading.is_open and (settled := settled_by_steps(column, reading)) is not None:
        return settled
    if reading is not None and reading.is_open:
        raise InputError(
            f"{source}: the dates of column {str(column.name)!r} read as day first and as month first alike "
            f"({one_line(column.dropna().iloc[0], 40)!r}); write them as YYYY-MM-DD"
        )
    return reading


def _from_parts(table: pandas.DataFrame, notes: list[str]) -> tuple[NDArray[Any], pandas.DataFrame] | None:
    """Times out of columns year, month, day, hour, minute."""
    import pandas as pd

    names = {str(name).strip().lower(): name for name in table.columns}
    if not {"year", "month"} <= names.keys():
        return None
    used = [part for part in ("year", "month", "day", "hour", "minute", "second") if part in names]
    parts = {part: pd.to_numeric(table[names[part]], errors="coerce") for part in used}
    stamps = pd.to_datetime({"day": 1, **parts}, errors="coerce")
    if stamps.notna().mean() < 0.9:
        return None
    notes.append(f"time from columns {', '.join(used)}")
    return stamps.to_numpy("datetime64[ns]"), table.drop(columns=[names[part] for part in used]).reset_index(drop=True)


def _with_clock_column(
    stamps: NDArray[Any], table: pandas.DataFrame, notes: list[str]
) -> tuple[NDArray[Any], pandas.DataFrame]:
    """Dates with the time of day of another column added, where the dates repeat and one reads as HH:MM."""
    import pandas as pd

    known = stamps[~np.isnat(stamps)]
    if not len(known) or (known != known.astype("datetime64[D]")).any() or len(np.unique(known)) > 0.6 * len(known):
        return stamps, table
    for name in table.columns:
        if pd.api.types.is_numeric_dtype(table[name]):
            continue
        text = table[name].astype("string").str.strip()
        if text.str.fullmatch(r"\d{1,2}[:.]\d{2}([:.]\d{2}(\.\d+)?)?").mean() > 0.9:
            full = text.str.replace(".", ":", regex=False).where(
                text.str.count(r"[:.]") == 2, text.str.replace(".", ":", regex=False) + ":00"
            )
            clock = pd.to_timedelta(full, errors="coerce").to_numpy("timedelta64[ns]")
            notes.append(f"time of day from column {str(name)!r}")
            return stamps + clock, table.drop(columns=[name])
    return stamps, table


def _naive(times: Any, notes: list[str]) -> NDArray[Any]:
    """Times in UTC without a zone: a clock change would otherwise make hours that are missing or there twice."""
    import pandas as pd

    times = pd.Series(times)
    if getattr(times.dt, "tz", None) is not None:
        zone = str(times.dt.tz)
        notes.append(
            "times carry a zone; they are kept in UTC"
            if zone == "UTC"
            else f"times were in {zone}; they are kept in UTC"
        )
        times = times.dt.tz_convert("UTC").dt.tz_localize(None)
    return np.array(times.to_numpy("datetime64[ns]"))


def find_series(
    stamps: NDArray[Any] | None, table: pandas.DataFrame, wanted: str | None, notes: list[str]
) -> tuple[Any, pandas.DataFrame]:
    """The column that names the series of each row (long format), or None: times repeat, and with it they do not."""
    import pandas as pd

    if stamps is None:
        if wanted is not None:
            raise InputError("a table with a column of series names needs a column of times")
        return None, table
    by_name = {str(name): name for name in table.columns}
    if wanted is not None:
        return _taken(table, by_name[wanted], notes)
    known = ~np.isnat(stamps)
    distinct = len(np.unique(stamps[known]))
    if distinct > 0.67 * known.sum():
        return None, table
    for name in table.columns:
        column = table[name]
        is_text = not pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_datetime64_any_dtype(column)
        is_code = pd.api.types.is_integer_dtype(column) and _says_series(name)
        if not (is_text or is_code) or not 2 <= column.nunique() <= MAX_COLUMNS:
            continue
        codes = pd.factorize(column)[0]
        pairs = pd.DataFrame({"t": stamps[known], "s": codes[known]})
        if pairs.duplicated().mean() < 0.05:
            return _taken(table, name, notes)
    return None, table


def _says_series(name: object) -> bool:
    word = str(name).strip().lower()
    return word in SERIES_WORDS or word.endswith("_id")


def _taken(table: pandas.DataFrame, name: Any, notes: list[str]) -> tuple[Any, pandas.DataFrame]:
    column = table[name]
    notes.append(f"long format: column {str(name)!r} names {column.nunique()} series")
    return column, table.drop(columns=[name])


def numeric(
    table: pandas.DataFrame, source: str, notes: list[str], targets: tuple[str, ...]
) -> tuple[list[str], NDArray[np.float64]]:
    """Names and LxV float64 of the columns that hold numbers."""
    import pandas as pd

    wanted = [i for i, name in enumerate(table.columns) if not targets or str(name) in targets]
    kept: list[tuple[str, Any]] = []
    text, empty, records = [], [], list[TextColumn]()
    for position in wanted:
        name, column = str(table.columns[position]), table.iloc[:, position]
        if not pd.api.types.is_numeric_dtype(column):
            records.append(record := TextColumn(name))
            column = read_text_column(column, record) if not pd.api.types.is_datetime64_any_dtype(column) else column
        if not pd.api.types.is_numeric_dtype(column):
            text.append(name)
        elif not column.notna().any():
            empty.append(name)
        else:
            kept.append((name if name not in [k for k, _ in kept[:200]] else f"{name}_{position}", column))
    notes.extend(notes_of(records))
    if not kept:
        if empty:
            raise InputError(f"{source} has no value at all in {shortened(empty)}, and no other column of numbers")
        columns = shortened([str(c) for c in table.columns])
        raise InputError(f"{source} has no column of numbers (columns: {columns})")
    if targets and (text or empty):
        raise InputError(f"{source}: column {(text + empty)[0]!r} holds no numbers")
    if text:
        notes.append(f"left out, as text: {shortened(text)}")
    if empty:
        notes.append(f"left out, as empty: {shortened(empty)}")
    values = np.empty((len(table), len(kept)), np.float64)
    for i, (_, column) in enumerate(kept):
        values[:, i] = column.to_numpy(np.float64, na_value=np.nan)
    return [name for name, _ in kept], values


def drop_sentinels(values: NDArray[np.float64], names: list[str], notes: list[str]) -> None:
    """Codes for "missing" such as -9999, where they lie far outside what else the column holds; in place."""
    found: dict[float, list[str]] = {}
    for column, name in zip(values.T, names, strict=True):
        if not np.isfinite(column).any():
            continue
        low, high = np.nanmin(column), np.nanmax(column)
        for code in SENTINELS:
            if code not in (low, high):  # a code is an extreme
                continue
            hit = column == code
            rest = column[~hit & np.isfinite(column)]
            if len(rest) < SENTINEL_MIN_OTHERS:
                continue
            bottom, top = np.quantile(rest, (0.01, 0.99))
            if (bottom - code if code < bottom else code - top) > SENTINEL_DISTANCE * max(top - bottom, 1e-12):
                column[hit] = np.nan
                found.setdefault(code, []).append(name)
    for code, where in found.items():
        notes.append(f"{code:g} is taken as a code for missing ({shortened(where)})")


def pivoted(
    series: Any, names: list[str], stamps: Any, values: NDArray[np.float64], source: str, notes: list[str]
) -> tuple[list[str], NDArray[Any], NDArray[np.float64]]:
    """Long format as one column a series and target, over all the times that any of them has."""
    import pandas as pd

    codes, labels = pd.factorize(series, sort=True)
    known = ~np.isnat(stamps) & (codes >= 0)
    if not known.all():
        notes.append(f"{int((~known).sum())} rows without a readable time or series were left out")
    times, rows = np.unique(stamps[known], return_inverse=True)
    n_series, n_targets = len(labels), len(names)
    if len(times) * n_series * n_targets > MAX_CELLS:
        raise InputError(
            f"{source}: {n_series} series over {len(times)} times are too many for one table; split the file, or name fewer with --target"
        )
    total = np.zeros((len(times), n_series * n_targets))
    count = np.zeros(total.shape, np.int32)
    repeats = 0
    for target in range(n_targets):
        cells = values[known, target]
        real = np.isfinite(cells)
        place = (rows[real], codes[known][real] * n_targets + target)
        np.add.at(total, place, cells[real])
        np.add.at(count, place, 1)
    repeats = int((count > 1).sum())
    if repeats:
        notes.append(f"{repeats} times are there more than once within a series; they were averaged")
    with np.errstate(invalid="ignore"):
        wide = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    titles = [str(label) if n_targets == 1 else f"{label}/{name}" for label in labels for name in names]
    filled: NDArray[np.bool_] = np.asarray(np.isfinite(wide).any(axis=0))
    if not filled.all():
        notes.append(f"left out, as empty: {shortened([t for t, f in zip(titles, filled, strict=True) if not f])}")
    return [t for t, f in zip(titles, filled, strict=True) if f], times, wide[:, filled]
