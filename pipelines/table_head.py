"""Headers of more than one line, and tables that have their times across the header rather than down a column."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import counted
from unipercept.pipelines.cells import MISSING_WORDS
from unipercept.pipelines.series_times import is_time, month_numbers, recognise_times

if TYPE_CHECKING:
    import pandas

MAX_HEADER_LINES = 4
ROWS_BELOW = 20  # looked at to tell a line of units from a row of the table
MIN_TIMES = 3  # columns, and
MIN_TIMES_SHARE = 0.5  # of all columns, whose names are times
MIN_YEARS = 5
YEARS = (1500, 2200)
YEAR_WORDS = ("year", "yr", "jahr", "annee", "année", "anno", "año")


def n_header_lines(rows: list[list[str]], is_value: NDArray[np.bool_]) -> int:
    """How many of the first rows are header: the first, and those after it that hold words where
    numbers or times stand below.

    Args:
        rows: cells of the first lines, the header first.
        is_value: rows x columns, which cells read as numbers or times.
    """
    first = next((i for i in range(1, min(MAX_HEADER_LINES, len(rows) - 1) + 1) if is_value[i].any()), 1)
    if first == 1:
        return 1
    below = is_value[first : first + ROWS_BELOW].mean(axis=0) > 0.5
    for row in rows[1:first]:
        words = [column for column, cell in enumerate(row) if cell]
        # A word above no numbers is a name where the first line has none, else a cell of the table.
        if not words or any(
            row[column].lower() in MISSING_WORDS or not (below[column] or rows[0][column] == "") for column in words
        ):
            return 1
    return first


def joined_names(rows: list[list[str]]) -> list[str]:
    """One name a column out of several header lines; a cell above others that are empty stands over
    these too, as merged cells do.
    """
    levels: list[list[str]] = []
    for row in rows:
        level, last = list[str](), ""
        for cell, lower in zip(row, rows[-1], strict=True):
            last = cell or (last if lower and row is not rows[-1] else "")
            level.append(last)
        levels.append(level)
    names = []
    for parts in zip(*levels, strict=True):
        kept = [part for part, before in zip(parts, ("", *parts), strict=False) if part and part != before]
        names.append(" ".join(kept))
    return [name if names.index(name) == i else f"{name}.{i}" for i, name in enumerate(names)]


def times_of(names: list[Any]) -> NDArray[Any] | None:
    """A table's column names as times, NaT for those that are names; None if they are names altogether."""
    import pandas as pd

    # A point between month and year would make a number of both.
    text = pd.Series([re.sub(r"^(\d{1,2})\.(?=\d{4}$)", r"\1-", str(name).strip()) for name in names], dtype="string")
    is_date = np.array([is_time(name) for name in text], bool)
    is_year = text.str.fullmatch(r"[12]\d{3}").to_numpy(bool)
    stamps = np.full(len(text), "NaT", "datetime64[ns]")
    if is_date.sum() >= MIN_TIMES:
        reading = recognise_times(text[is_date])
        if reading is None or reading.is_open or reading.has_zone:
            return None
        stamps[is_date] = reading.parse(text[is_date]).to_numpy("datetime64[ns]")
    elif is_year.sum() >= MIN_YEARS:
        years = text[is_year].astype(int).to_numpy()
        if not all(YEARS[0] <= year <= YEARS[1] for year in years) or len(set(np.diff(years))) != 1:
            return None
        stamps[is_year] = years.astype("U4").astype("datetime64[Y]").astype("datetime64[ns]")
    known = stamps[~np.isnat(stamps)]
    rises = {bool(b > a) for a, b in pairwise(known)}
    is_ordered = len(rises) == 1 and len(np.unique(known)) == len(known)
    return stamps if len(known) >= max(MIN_TIMES, MIN_TIMES_SHARE * len(text)) and is_ordered else None


def upright(table: pandas.DataFrame, notes: list[str]) -> pandas.DataFrame:
    """A table with its times down the rows: one that has them across its header is turned, a series a
    row; any other is as it was.
    """
    import pandas as pd

    if (down := _months_down(table, notes)) is not None or (down := _hours_down(table, notes)) is not None:
        return down
    stamps = times_of(list(table.columns))
    if stamps is None or isinstance(table.index, pd.DatetimeIndex) or not len(table):
        return table
    is_time = ~np.isnat(stamps)
    names, said = _row_names(table.loc[:, ~is_time])
    values = table.loc[:, is_time]
    if not all(pd.api.types.is_numeric_dtype(kind) for kind in values.dtypes):
        values = values.apply(pd.to_numeric, errors="coerce")
    turned = values.T.set_axis(pd.DatetimeIndex(stamps[is_time]), axis=0).set_axis(names, axis=1)
    notes.append(
        f"times stand across the header: turned, {counted(len(names), 'row is a series', 'rows are a series each')}{said}"
    )
    return turned


def _months_down(table: pandas.DataFrame, notes: list[str]) -> pandas.DataFrame | None:
    """A table with a row a year and its months or quarters across, as statistics offices write it, with a row each;
    None for any other. Columns of sums over the year are left out.
    """
    import pandas as pd

    names = pd.Series([str(name).strip() for name in table.columns], dtype="string")
    months = month_numbers(names)
    quarters = names.str.extract(r"^(?i:q|qtr\.?|quarter) ?([1-4])$|^([1-4])\.? ?(?i:q|quarter)$").bfill(axis=1)[0]
    year = next((name for name in table.columns if str(name).strip().lower() in YEAR_WORDS), None)
    for number, count, unit in ((months, 12, 1), (pd.to_numeric(quarters).astype("Float64"), 4, 3)):
        if year is None or sorted(number.dropna()) != list(range(1, count + 1)):
            continue
        years = pd.to_numeric(table[year], errors="coerce")
        if not years.between(*YEARS).mean() > 0.9:
            return None
        across = [name for name, there in zip(table.columns, number.notna(), strict=True) if there]
        rest = [name for name in table.columns if name not in across and name != year]
        texts = [name for name in rest if not pd.api.types.is_numeric_dtype(table[name])]
        kept = table[years.between(*YEARS)].melt([year, *texts], across, "_part", "value")
        place = dict(zip(across, ((number.dropna() - 1) * unit + 1).astype(int), strict=True))
        dates = pd.to_datetime(
            {"year": kept[year].astype(int), "month": kept["_part"].map(place).astype(int), "day": 1}
        )
        left = [str(name) for name in rest if name not in texts]
        said = f"; left out: {', '.join(left)}" if left else ""
        notes.append(f"{'months' if count == 12 else 'quarters'} stand across the header: a row each now{said}")
        kept = kept.drop(columns=[year, "_part"])
        kept.insert(0, "date", dates)
        order = kept.sort_values("date", kind="stable")
        last = order["value"].last_valid_index()  # months that are still to come
        return order.loc[order["date"] <= order.at[last, "date"]].reset_index(drop=True) if last is not None else None
    return None


def _hours_down(table: pandas.DataFrame, notes: list[str]) -> pandas.DataFrame | None:
    """A table with a row a day and its hours (or halves, or quarters of them) across, as power exchanges and meters
    write it, with a row each; None for any other.
    """
    clock = r"(?i)(?:h|he|hr|hour|hora|heure|stunde)?[ _.]?(\d{1,2})(?:[:h](\d\d))?(?: ?[-–] ?\d{1,2}(?:[:h]\d\d)?)?"
    found = {name: re.fullmatch(clock, str(name).strip()) for name in table.columns}
    minutes = {name: 60 * int(one[1]) + int(one[2] or 0) for name, one in found.items() if one}
    if len(minutes) not in (24, 48, 96) or len(minutes) == table.shape[1]:
        return None
    step, first = 1440 // len(minutes), min(minutes.values())
    if first not in (0, step) or sorted(minutes.values()) != list(range(first, first + 1440, step)):
        return None
    rest = [name for name in table.columns if name not in minutes]
    down = table.reset_index(drop=True).melt(rest, list(minutes), "time of day", "value", ignore_index=False)
    start = down["time of day"].map(minutes).astype(int) - first  # the first column begins the day
    down["time of day"] = (start // 60).map("{:02d}:".format) + (start % 60).map("{:02d}".format)
    notes.append(f"hours of the day stand across the header: a row each now, {next(iter(minutes))!r} at 00:00")
    return down.sort_index(kind="stable").reset_index(drop=True)


def _row_names(table: pandas.DataFrame) -> tuple[list[str], str]:
    """A name for each row from as few of the columns as make them differ; numbered where none does."""
    used: list[str] = []
    names = [""] * len(table)
    for name in table.columns:
        cells = table[name].astype("string").fillna("").str.strip().tolist()
        if len(set(cells)) < 2 and len(table) > 1:
            continue
        names = [f"{a} {b}".strip() for a, b in zip(names, cells, strict=True)]
        used.append(str(name))
        if len(set(names)) == len(names) and all(names):
            return names, f", named by {' and '.join(repr(one) for one in used)}"
    seen: dict[str, int] = {}
    numbered = []
    for number, name in enumerate(names, 1):
        seen[name] = seen.get(name, 0) + 1
        numbered.append(name if name and seen[name] == 1 else f"{name or 'row'} {number}")
    return numbered, ""


def is_header_of_times(first: list[str], second: list[str]) -> bool:
    """Whether a first row whose cells read as values is a header all the same: times, above numbers that are none."""
    return times_of(list(first)) is not None and times_of(list(second)) is None
