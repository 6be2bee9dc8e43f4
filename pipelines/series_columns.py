"""Assigns roles to the columns of a table: times, names of series, values.

Recognises text and dates; turns long format into wide.

Shapes: L rows, V variables.
"""

from __future__ import annotations

import re
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError, one_line
from unipercept.pipelines.cells import TextColumn, notes_of, read_text_column
from unipercept.pipelines.series_times import (
    FIRST_YEAR,
    LAST_YEAR,
    TimeReading,
    in_range,
    is_date_name,
    is_time,
    iso_weeks,
    lacks_year,
    month_numbers,
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
    "group", "key", "shop", "branch", "dept", "department", "product", "category", "region", "country", "city",
    "location", "site", "plant", "machine", "device", "asset", "customer", "warehouse", "turbine",
)  # fmt: skip
# Columns that together say when a row was measured, by the names they go by.
PART_WORDS = {
    "year": ("year", "yr", "yyyy", "jahr", "annee", "année", "anno", "año", "iso_year", "isoyear"),
    "quarter": ("quarter", "qtr", "quartal", "trimestre"),
    "month": ("month", "mon", "month_name", "monat", "mois", "mes", "mese"),
    "week": ("week", "wk", "week_number", "weeknumber", "week_no", "weeknum", "week_of_year", "weekofyear", "iso_week",
             "isoweek", "calendar_week", "kw", "woche", "semaine"),
    "day": ("day", "day_of_month", "dom", "tag", "jour"),
    "hour": ("hour", "hr", "stunde"),
    "minute": ("minute",),
    "second": ("second",),
}  # fmt: skip
PERIOD_WORDS = r"(?i)hour|hr|^he$|stunde|heure|hora|uur|period|interval|slot|time"  # columns that count a day's parts
PERIODS_OF_DAY = (24, 48, 96, 144, 288, 1440)
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


def find_time(
    table: pandas.DataFrame, source: str, notes: list[str], wanted: str | None
) -> tuple[NDArray[Any] | None, pandas.DataFrame, bool]:
    """L times (NaT where unreadable), or None; the table without their column; whether the times are in UTC."""
    import pandas as pd

    if wanted is None and isinstance(table.index, pd.PeriodIndex):
        table = table.set_axis(table.index.to_timestamp())
    if wanted is None and isinstance(table.index, pd.DatetimeIndex):
        return _naive(pd.Series(table.index), source, notes), table.reset_index(drop=True), table.index.tz is not None
    by_name = {str(name): name for name in table.columns}
    # Text that reads as times is surer than numbers that might be; among equals a telling name comes first.
    candidates = [by_name[wanted]] if wanted is not None else sorted(table.columns, key=lambda n: not says_time(n))
    found = _text_times(table, candidates, source)
    if found is None and wanted is None and (joined := _from_parts(table, notes)) is not None:
        return *joined, False
    found = found or _number_times(table, candidates, wanted)
    if found is None:
        if wanted is not None:
            raise InputError(
                f"{source}: column {wanted!r} does not read as times (its first cell: {_first_cell(table[by_name[wanted]])!r})"
            )
        return None, _without_unread_times(table.reset_index(drop=True), source, notes), False
    name, reading = found
    notes.append(f"time from column {str(name)!r}{reading.said if reading else ''}")
    times = table[name] if reading is None else reading.parse(table[name])
    rest = table.drop(columns=[name]).reset_index(drop=True)
    is_utc = getattr(times.dt, "tz", None) is not None or (reading is not None and reading.kind == "epoch")
    return *_with_clock_column(_naive(times, source, notes), rest, notes), is_utc


def _text_times(table: pandas.DataFrame, candidates: list[Any], source: str) -> tuple[Any, TimeReading | None] | None:
    """The first column of datetimes, or of text that reads as times.

    Raises:
        InputError: the only such columns may be day first or month first.
    """
    import pandas as pd

    unclear = None
    for name in candidates:
        column = table[name]
        if pd.api.types.is_datetime64_any_dtype(column):
            if column.nunique() > 1 or len(candidates) == 1:
                return name, None
        elif not pd.api.types.is_numeric_dtype(column):
            cells = column.drop_duplicates()  # in the order of the file
            reading = recognise_times(cells) if cells.count() > 1 or len(candidates) == 1 else None
            if reading is not None and reading.is_open:
                settled = settled_by_steps(cells, reading)
                unclear, reading = (unclear if settled else unclear or name), settled
            if reading is not None:
                return name, reading
    if unclear is not None:
        raise InputError(
            f"{source}: the dates of column {str(unclear)!r} read as day first and as month first alike "
            f"({_first_cell(table[unclear])!r}); write them as YYYY-MM-DD"
        )
    return None


def _number_times(table: pandas.DataFrame, candidates: list[Any], wanted: str | None) -> tuple[Any, TimeReading] | None:
    """A column of numbers that read as times: one whose name says so, or the first."""
    import pandas as pd

    for name in candidates:
        column, named = table[name], says_time(name) or wanted is not None
        if pd.api.types.is_bool_dtype(column) or not (named or name == table.columns[0]):
            continue
        reading = (
            recognise_numbers(column, is_named=named)
            if pd.to_numeric(column, errors="coerce").notna().mean() > 0.5
            else None
        )
        if reading is not None:
            return name, reading
    return None


def _without_unread_times(table: pandas.DataFrame, source: str, notes: list[str]) -> pandas.DataFrame:
    """The table without a column that counts up, is called a date and does not read as one.

    Raises:
        InputError: the dates have no year.
    """
    import pandas as pd

    for name in table.columns:
        column, is_number = table[name], pd.api.types.is_numeric_dtype(table[name])
        if not is_number and (says_time(name) or name == table.columns[0]):
            if lacks_year(column.dropna()):
                raise InputError(
                    f"{source}: the dates of column {str(name)!r} have no year ({_first_cell(column)!r}); write them as YYYY-MM-DD"
                )
            known = column.dropna().astype("string")
            odd = [cell for cell in known.iloc[:: max(1, len(known) // 50)] if is_time(cell.strip())]
            if len(odd) > 10:
                raise InputError(
                    f"{source}: column {str(name)!r} holds dates ({one_line(odd[0], 40)!r}) that do not read all alike between the years "
                    f"{FIRST_YEAR} and {LAST_YEAR}; write them as YYYY-MM-DD"
                )
        if not says_time(name) or (is_number and not (is_date_name(name) and column.is_monotonic_increasing)):
            continue
        notes.append(f"column {str(name)!r} does not read as times (its first cell: {_first_cell(column)!r})")
        if is_number and table.shape[1] > 1:
            return table.drop(columns=[name])
    return table


def _first_cell(column: pandas.Series[Any]) -> str:
    known = column.dropna()
    return one_line(known.iloc[0], 40) if len(known) else ""


def _from_parts(table: pandas.DataFrame, notes: list[str]) -> tuple[NDArray[Any], pandas.DataFrame] | None:
    """Times out of columns: a year with a month (a number or a name), a week or a quarter, and finer parts."""
    import pandas as pd

    names = {str(name).strip().lower().replace(" ", "_"): name for name in table.columns}
    found = {part: next((names[word] for word in words if word in names), None) for part, words in PART_WORDS.items()}
    has = {part for part, name in found.items() if name is not None}
    if "year" not in has or not has & {"month", "week", "quarter"}:
        return None
    is_weekly = "week" in has and not {"month", "day"} <= has
    used = ["year", "week"] if is_weekly else ["year", "month"] if "month" in has else ["year", "quarter"]
    used += [part for part in ("day", "hour", "minute", "second") if part in has and used[1] == "month"]
    cells = {part: pd.to_numeric(table[found[part]], errors="coerce") for part in used}
    cells["year"] = cells["year"].ffill()  # a cell merged over those of its year holds it in the first
    for part, letters in (("quarter", "Qq"), ("week", "Ww")):
        if part in used and cells[part].isna().all():
            digits = table[found[part]].astype("string").str.extract(rf"^\s*[{letters}]?\D*(\d{{1,2}})\s*$")[0]
            cells[part] = pd.to_numeric(digits, errors="coerce")
    if "month" in used and cells["month"].isna().all():
        cells["month"] = month_numbers(table[found["month"]])
    if is_weekly:
        stamps = iso_weeks(cells["year"], cells["week"])
    else:
        if used[1] == "quarter":
            cells["month"] = cells.pop("quarter") * 3 - 2
        stamps = pd.to_datetime({"day": 1, **cells}, errors="coerce")
    if stamps.notna().mean() < 0.9:
        return None
    notes.append(f"time from columns {', '.join(str(found[part]) for part in used)}" + ", as ISO weeks" * is_weekly)
    rest = table.drop(columns=[found[part] for part in used])
    return stamps.to_numpy("datetime64[ns]"), rest.reset_index(drop=True)


def _with_clock_column(
    stamps: NDArray[Any], table: pandas.DataFrame, notes: list[str]
) -> tuple[NDArray[Any], pandas.DataFrame]:
    """Dates with the time of day of another column added, where the dates repeat and one reads as HH:MM or counts the
    hours or other even periods of the day.
    """
    import pandas as pd

    known = stamps[~np.isnat(stamps)]
    if not len(known) or (known != known.astype("datetime64[D]")).any() or len(np.unique(known)) > 0.6 * len(known):
        return stamps, table
    for name in table.columns:
        text = table[name].astype("string").str.strip()
        if text.str.fullmatch(
            r"\d{1,2}[:.h]\d{2}([:.]\d{2}(\.\d+)?)?"
        ).mean() > 0.9 and not pd.api.types.is_numeric_dtype(table[name]):
            full = text.str.replace(r"[.h]", ":", regex=True).where(
                text.str.count(r"[:.h]") == 2, text.str.replace(r"[.h]", ":", regex=True) + ":00"
            )
            clock = pd.to_timedelta(full, errors="coerce").to_numpy("timedelta64[ns]")
            notes.append(f"time of day from column {str(name)!r}")
            return stamps + clock, table.drop(columns=[name])
        if re.search(PERIOD_WORDS, str(name)) and (period := _periods_of_day(stamps, text)) is not None:
            first, length, clock = period
            start = f", {first} begins at 00:00" if first else ""
            notes.append(f"time of day from column {str(name)!r}, which counts steps of {length} minutes{start}")
            return stamps + clock, table.drop(columns=[name])
    return stamps, table


def _periods_of_day(stamps: NDArray[Any], text: pandas.Series[Any]) -> tuple[int, int, NDArray[Any]] | None:
    """The first number, minutes and starts of the periods of the day that a column counts, each once a day; the day on
    which clocks go back has more of them.
    """
    import pandas as pd

    numbers = pd.to_numeric(text.str.extract(r"^\D{0,4}(\d{1,4})(?:\.0+)?$")[0], errors="coerce").astype("float64")
    if numbers.isna().mean() > 0.1 or pd.DataFrame({"d": stamps, "n": numbers}).duplicated().mean() > 0.01:
        return None
    first = int(numbers.min())
    last = float(numbers.quantile(0.99))
    count = next((n for n in PERIODS_OF_DAY if n - 1 <= last - first + 1 <= n), None)
    if first not in (0, 1) or count is None:
        return None
    minutes = 1440 // count
    return first, minutes, pd.to_timedelta((numbers - first) * minutes, unit="min").to_numpy("timedelta64[ns]")


def _naive(times: Any, source: str, notes: list[str]) -> NDArray[Any]:
    """Times in UTC without a zone: a clock change would otherwise make hours that are missing or there twice.

    Raises:
        InputError: none lies in the years that can be forecast.
    """
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
    within = in_range(times)
    if within.isna().all() and times.notna().any():
        raise InputError(
            f"{source}: no time lies between the years {FIRST_YEAR} and {LAST_YEAR} (the first: {times.dropna().iloc[0]})"
        )
    return np.array(within.to_numpy("datetime64[ns]"))


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
            f"left out, since it numbers the rows: {shortened([str(name) or 'the first column' for name in counts])}"
        )
    if calendar:
        notes.append(f"left out, since they repeat the calendar: {shortened([str(name) for name in calendar])}")
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
