"""Which column of a table holds its times, or which columns do together.

Shapes: L rows.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError, one_line
from unipercept.pipelines.series_numbers import recognise_numbers
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
    recognise_times,
    says_time,
    settled_by_steps,
)

if TYPE_CHECKING:
    import pandas

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
# Names of columns that may hold 93000 for half past nine: no more words, since a response time is a measurement.
CLOCK_WORDS = (
    r"(?i)^(?=.*\w)\W*(?:(?:local|utc|gmt|start|trade|bar)?[ _]?time(?:[ _]?of[ _]?day)?|clock|(?:uhr)?zeit|heure|hora|hour|hr)?"
    r"\W*(?:utc|gmt|local|lst|hhmm(?:ss)?)?\W*$"
)
PERIODS_OF_DAY = (24, 48, 96, 144, 288, 1440)


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
        if re.search(CLOCK_WORDS, str(name)) and (clock := _clock_of_digits(text)) is not None:
            notes.append(f"time of day from column {str(name)!r}, as hours, minutes and seconds without signs between")
            return stamps + clock, table.drop(columns=[name])
        if re.search(PERIOD_WORDS, str(name)) and (period := _periods_of_day(stamps, text)) is not None:
            first, length, clock = period
            start = f", {first} begins at 00:00" if first else ""
            notes.append(f"time of day from column {str(name)!r}, which counts steps of {length} minutes{start}")
            return stamps + clock, table.drop(columns=[name])
    return stamps, table


def _clock_of_digits(text: pandas.Series[Any]) -> NDArray[Any] | None:
    """Times of day written HHMMSS or HHMM, perhaps without the zeros in front; None where some are none."""
    import pandas as pd

    digits = text.str.extract(r"^(\d{1,6})(?:\.0+)?$")[0]
    length = digits.str.len().max()
    if digits.isna().any() or digits.nunique() < 2 or length < 3:
        return None
    padded = digits.str.zfill(6 if length > 4 else 4).str.ljust(6, "0")
    parts = [padded.str[i : i + 2].astype(int) for i in (0, 2, 4)]
    seconds = parts[0] * 3600 + parts[1] * 60 + parts[2]
    if (parts[1] > 59).any() or (parts[2] > 59).any() or (seconds > 24 * 3600).any():
        return None
    return np.asarray(pd.to_timedelta(seconds, unit="s").to_numpy("timedelta64[ns]"))


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
