"""Assigns roles to the columns of a table beside its times: names of series, values.

Recognises numbers in text; turns long format into wide.

Shapes: L rows, V variables.
"""

from __future__ import annotations

import re
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError
from unipercept.pipelines.cells import TextColumn, notes_of, read_text_column
from unipercept.pipelines.series_time_column import PART_WORDS
from unipercept.pipelines.table_file import listed

if TYPE_CHECKING:
    import pandas

SERIES_WORDS = (
    "id", "unique_id", "item", "item_id", "series", "series_id", "store", "sku", "station", "sensor", "meter",
    "group", "key", "shop", "branch", "dept", "department", "product", "category", "region", "country", "city",
    "location", "site", "plant", "machine", "device", "asset", "customer", "warehouse", "turbine",
)  # fmt: skip
ROW_NUMBER_WORDS = ("", "index", "id", "row", "rownames", "row_number", "row_id", "no", "no.", "nr", "#")
MIN_REPEATED = 0.02  # of the rows: with fewer a time that is there twice is no sign of several series
MIN_EVEN = 0.7  # of a series' gaps are alike
MAX_KEYS = 6  # columns that are tried in pairs and threes as the name of a series
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
        return _taken(table, [by_name[wanted]], notes)
    known = ~np.isnat(stamps)
    times = stamps[known]
    repeated = len(times) - len(np.unique(times))
    codes = {name: pd.factorize(table[name])[0][known] for name in table.columns if _may_name_series(table[name], name)}
    if repeated >= 0.33 * len(times):
        tried = [*combinations(codes, 1), *combinations([*codes][:MAX_KEYS], 2), *combinations([*codes][:MAX_KEYS], 3)]
        for names in tried:
            pairs = pd.DataFrame({"t": times, **{f"s{i}": codes[name] for i, name in enumerate(names)}})
            if pairs.duplicated().mean() < 0.05:
                return _taken(table, list(names), notes)
        for name in table.columns:  # numbers that no word calls a name: only where each goes on by itself
            if not pd.api.types.is_integer_dtype(table[name]) or not 2 <= table[name].nunique() <= len(table) / 4:
                continue
            code = pd.factorize(table[name])[0][known]
            if not pd.DataFrame({"t": times, "s": code}).duplicated().any() and _are_even(times, code):
                return _taken(table, [name], notes)
        return None, table
    # Series of very unequal length, or one after the other, hardly share times: each must be even by itself.
    for name, code in codes.items():
        left = int(pd.DataFrame({"t": times, "s": code}).duplicated().sum())
        is_told = repeated >= MIN_REPEATED * len(times) and left <= 0.1 * repeated
        if (is_told or (_says_series(name) and _follow_each_other(times, code))) and _are_even(times, code):
            return _taken(table, [name], notes)
    return None, table


def _may_name_series(column: pandas.Series[Any], name: object) -> bool:
    import pandas as pd

    is_text = not pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_datetime64_any_dtype(column)
    is_code = pd.api.types.is_integer_dtype(column) and _says_series(name)
    return (is_text or is_code) and 2 <= column.nunique() <= MAX_COLUMNS


def _says_series(name: object) -> bool:
    word = str(name).strip()
    return word.lower() in SERIES_WORDS or re.search(r"(?i)_id$|(?<=[a-z])(?-i:I[dD])$", word) is not None


def _follow_each_other(times: NDArray[Any], codes: NDArray[np.int64]) -> bool:
    """Whether in order of time each name has its rows in one stretch: what is on and off comes again."""
    changes = np.count_nonzero(np.diff(codes[np.argsort(times, kind="stable")]))
    return bool(changes == len(np.unique(codes)) - 1)


def _are_even(times: NDArray[Any], codes: NDArray[np.int64]) -> bool:
    """Whether nearly all rows belong to series that go on in steps alike: shops do, kinds of weather do not."""
    order = np.lexsort((times, codes))
    gaps, same = np.diff(times[order]).astype(np.int64), np.diff(codes[order]) == 0
    even = 0
    starts = np.flatnonzero(np.concatenate([[True], ~same, [True]]))
    for first, last in pairwise(starts):
        own = gaps[first : last - 1]
        if len(own) >= 3 and (np.abs(own - np.median(own)) <= 0.12 * np.median(own)).mean() >= MIN_EVEN:
            even += int(last - first)
    return even >= 0.9 * len(times)


def filled_down(table: pandas.DataFrame, notes: list[str]) -> pandas.DataFrame:
    """The table with its first columns filled downwards, where they hold a name or a time only in the first row that it
    is for, as merged cells do and the outlines of pivot tables.
    """
    import pandas as pd

    filled: dict[str, Any] = {}
    for name in table.columns[:-1]:
        column, known = table[name], table[name].notna().to_numpy()
        if not known[:1].all() or not 2 <= known.sum() <= 0.5 * len(table):
            break
        if pd.api.types.is_float_dtype(column) and (column[known] % 1 == 0).all() and column.abs().max() < 2**53:
            column = column.astype("Int64")  # numbers of shops, made decimal by the empty cells
        if not _may_name_series(column, name) and not pd.api.types.is_datetime64_any_dtype(column):
            break
        lengths = np.diff(np.flatnonzero(np.append(known, True)))
        if pd.api.types.is_datetime64_any_dtype(column) and (lengths == np.median(lengths)).mean() < 0.8:
            break  # times that are missing here and there
        filled[name] = column.ffill()
    if not filled:
        return table
    key = table.columns[len(filled)]  # tells the rows of a block apart
    if pd.DataFrame({**filled, key: table[key]}).duplicated().mean() > 0.01:
        return table
    notes.append(f"empty cells hold the value above them: {listed([str(name) for name in filled])}")
    table = table.copy(deep=False)
    for name, column in filled.items():
        table[name] = column
    return table


def _taken(table: pandas.DataFrame, names: list[Any], notes: list[str]) -> tuple[Any, pandas.DataFrame]:
    column = table[names[0]]
    if len(names) > 1:
        parts = [table[name].astype("string").str.strip() for name in names]
        column = parts[0].str.cat(parts[1:], sep="/")
    who = " and ".join(repr(str(name)) for name in names)
    notes.append(
        f"long format: column{'s' * (len(names) > 1)} {who} name{'s' * (len(names) == 1)} {column.nunique()} series"
    )
    return column, table.drop(columns=names)


def without_row_numbers(
    stamps: NDArray[Any] | None, table: pandas.DataFrame, wanted: tuple[str, ...], notes: list[str]
) -> pandas.DataFrame:
    """The table without columns that only count its rows or repeat the calendar of its times, if others hold numbers.

    Args:
        wanted: columns that stay, since they were asked for.
    """
    import pandas as pd

    numbers = [name for name in table.columns if pd.api.types.is_numeric_dtype(table[name])]
    told = [name for name in numbers if str(name) not in wanted]
    counts = [name for name in told if _counts_rows(table[name], name)]
    calendar = [] if stamps is None else [n for n in told if n not in counts and _repeats_calendar(table[n], n, stamps)]
    if not (counts or calendar):
        return table
    if len(counts) + len(calendar) == len(numbers) and not _holds_numbers_as_text(table):
        return table
    if counts:
        notes.append(
            f"left out, since it numbers the rows: {listed([str(name) or 'the first column' for name in counts])}"
        )
    if calendar:
        notes.append(f"left out, since they repeat the calendar: {listed([str(name) for name in calendar])}")
    return table.drop(columns=[*counts, *calendar])


def _holds_numbers_as_text(table: pandas.DataFrame) -> bool:
    import pandas as pd

    texts = [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]
    return any(pd.api.types.is_numeric_dtype(read_text_column(table[n], TextColumn(str(n)))) for n in texts)


def _counts_rows(column: pandas.Series[Any], name: object) -> bool:
    word = re.sub(r"^unnamed: ?\d+$", "", str(name).strip().lower())
    if word not in ROW_NUMBER_WORDS or len(column) < 3:
        return False
    steps = np.diff(column.to_numpy(np.float64, na_value=np.nan))
    return bool((steps == steps[0]).all()) and abs(steps[0]) == 1


def _repeats_calendar(column: pandas.Series[Any], name: object, stamps: NDArray[Any]) -> bool:
    """Whether a column called by a part of the calendar holds that part of the row's time (of days of the week in any
    count).
    """
    import pandas as pd

    word = str(name).strip().lower().replace(" ", "_").replace("-", "_")
    days = ("weekday", "dayofweek", "day_of_week", "dow", "week_day")
    parts: dict[str, Any] = {part: words for part, words in PART_WORDS.items() if part not in ("minute", "second")}
    parts |= {"day_of_year": ("dayofyear", "day_of_year", "doy", "yday"), "day_of_week": days}
    part = next((part for part, words in parts.items() if word in words), None)
    if part is None:
        return False
    times = pd.DatetimeIndex(stamps)
    own = times.isocalendar().week if part == "week" else getattr(times, part)
    values, own = column.to_numpy(np.float64, na_value=np.nan), np.asarray(own, np.float64)
    shift = (values - own)[np.isfinite(values) & np.isfinite(own)]
    if part == "day_of_week":
        shift = (shift - shift[:1]) % 7
    return len(shift) >= 3 and bool((shift == 0).mean() >= 0.99)


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
            raise InputError(f"{source} has no value at all in {listed(empty)}, and no other column of numbers")
        columns = listed([str(c) for c in table.columns])
        raise InputError(f"{source} has no column of numbers (columns: {columns})")
    if targets and (text or empty):
        raise InputError(f"{source}: column {(text + empty)[0]!r} holds no numbers")
    if text:
        notes.append(f"left out, as text: {listed(text)}")
    if empty:
        notes.append(f"left out, as empty: {listed(empty)}")
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
        notes.append(f"{code:g} is taken as a code for missing ({listed(where)})")


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
        notes.append(f"left out, as empty: {listed([t for t, f in zip(titles, filled, strict=True) if not f])}")
    return [t for t, f in zip(titles, filled, strict=True) if f], times, wide[:, filled]
