"""Tables of series on an even time grid: the time column found, every repair said in a sentence, gaps left as gaps.

`read_grid` and `grid_of` keep what is missing as NaN, for whoever must not look ahead; `SeriesGrid.filled` closes the gaps for maps.

Shapes: L steps, V variables.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError, one_line
from unipercept.pipelines.cells import TextColumn, read_text_column
from unipercept.pipelines.series_clock import (
    DAY,
    Step,
    TimeReading,
    clock_changes,
    find_step,
    recognise_numbers,
    recognise_times,
    says_time,
)
from unipercept.pipelines.table_file import read_frame, shortened

if TYPE_CHECKING:
    import pandas

MAX_MISSING_SHARE = 0.5  # more missing steps than this: the table is no series at the step that was found
MAX_COLUMNS = 10_000
MAX_CELLS = 400_000_000  # 3.2 GB of float64
MAX_COLLISIONS = 0.05  # of the rows may share a step with another
MIN_TAIL = 50  # rows at a step of their own at the end of a table of mixed steps, which are worth more than a refusal


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


@dataclass(frozen=True, eq=False)
class SeriesGrid:
    """A table of series as it was measured, on an even grid.

    Args:
        values: LxV float64, NaN where nothing was measured.
        time: L times, datetime64[ns] or row numbers (int64).
        step: the distance between them.
        layout: "long" where a column of the table named the series.
    """

    values: NDArray[np.float64]
    time: NDArray[Any]
    step: Step
    variables: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()
    layout: Literal["wide", "long"] = "wide"

    def __len__(self) -> int:
        return len(self.values)

    @property
    def has_dates(self) -> bool:
        """Whether the steps are times rather than row numbers."""
        return np.issubdtype(self.time.dtype, np.datetime64)

    def after(self, count: int) -> NDArray[Any]:
        """The `count` times that follow."""
        return self.step.times(self.time[-1], count, 1)

    def filled(self) -> Series:
        """Gaps closed by interpolation (which looks ahead) and marked, as float32."""
        values = self.values.astype(np.float32)
        values[~np.isfinite(values)] = np.nan
        observed = np.isfinite(values)
        notes = list(self.notes)
        _fill(values, observed, notes)
        return Series(values, observed, self.time, self.step.seconds, self.variables, self.source, tuple(notes))


def read_series(path: str | Path) -> Series:
    """Read a CSV (also compressed by gzip, xz or bzip2), a Parquet or a Feather file, gaps filled.

    Raises:
        InputError: it cannot be read, or holds no series; one line says why.
    """
    return read_grid(path).filled()


def series_from_frame(frame: Any, source: str = "DataFrame") -> Series:
    """Put a table (see `grid_of`) on an even time grid, gaps filled."""
    return grid_of(frame, source=source).filled()


def read_grid(
    path: str | Path, *, time: str | None = None, targets: tuple[str, ...] = (), series: str | None = None
) -> SeriesGrid:
    """Read a table file as `grid_of` does."""
    frame, notes = read_frame(path)
    return _grid(frame, str(path), notes, time, targets, series)


def grid_of(
    table: Any,
    *,
    source: str = "DataFrame",
    time: str | None = None,
    targets: tuple[str, ...] = (),
    series: str | None = None,
) -> SeriesGrid:
    """Put a pandas DataFrame or Series, an xarray object or a NumPy array (LxV) on an even time grid.

    The time is the index where that is one, else the first column that reads as times; else rows are numbered. Text
    and empty columns are left out, repeated times averaged, rows sorted, missing steps and values left as NaN. Where a column names
    the series that a row belongs to (long format), each becomes a variable. All of it is said in `notes`.

    Args:
        time: the column of times, where it should not be searched for.
        targets: the columns wanted; empty for all that hold numbers.
        series: the column that names the series of long format.

    Raises:
        InputError: fewer than two rows, no numbers, times that are ambiguous or mostly missing.
    """
    return _grid(_frame_of(table), source, [], time, targets, series)


def _frame_of(table: Any) -> pandas.DataFrame:
    import pandas as pd

    if isinstance(table, pd.DataFrame):
        return table
    if isinstance(table, pd.Series):
        return table.to_frame("value" if table.name is None else table.name)
    if isinstance(table, np.ndarray):
        if table.ndim not in (1, 2) or not np.issubdtype(table.dtype, np.number):
            raise InputError(
                f"expected an array of numbers, steps x variables, got {table.dtype} of shape {table.shape}"
            )
        columns = table[:, None] if table.ndim == 1 else table
        names = ["value"] if columns.shape[1] == 1 else [f"column_{i}" for i in range(columns.shape[1])]
        return pd.DataFrame(columns, columns=names)
    if hasattr(table, "dims") and hasattr(table, "coords"):
        return _frame_of_xarray(table)
    raise InputError(
        f"expected a path, a DataFrame, a pandas Series, an xarray object or a NumPy array, got {type(table).__name__}"
    )


def _frame_of_xarray(table: Any) -> pandas.DataFrame:
    """Time stays the rows; every other dimension becomes columns."""
    import pandas as pd

    arrays = {"": table} if hasattr(table, "values") and not hasattr(table, "data_vars") else dict(table.data_vars)
    columns: dict[str, Any] = {}
    index: Any = None
    for name, array in arrays.items():
        rows = next(
            (d for d in array.dims if np.issubdtype(array[d].dtype, np.datetime64)),
            array.dims[0] if array.dims else None,
        )
        if rows is None or not np.issubdtype(array.dtype, np.number):
            continue
        index = array[rows].to_index() if index is None else index
        flat = array.transpose(rows, ...)
        label = str(name or array.name or "value")
        values = np.asarray(flat.values, np.float64).reshape(flat.shape[0], -1)
        if flat.ndim == 1:
            columns[label] = values[:, 0]
            continue
        others = pd.MultiIndex.from_product([flat[d].values for d in flat.dims[1:]])
        for i, place in enumerate(others):
            columns["/".join(([label] if name or array.name else []) + [str(part) for part in place])] = values[:, i]
    if index is None:
        raise InputError("the xarray object holds no numbers along a dimension")
    return pd.DataFrame(columns, index=index)


def _grid(
    table: pandas.DataFrame,
    source: str,
    notes: list[str],
    time: str | None,
    targets: tuple[str, ...],
    series: str | None,
) -> SeriesGrid:
    if len(table) < 2:
        raise InputError(f"{source} has {len(table)} row{'s' * (len(table) != 1)} of data; a series needs at least 2")
    if table.shape[1] > MAX_COLUMNS:
        raise InputError(f"{source} has {table.shape[1]} columns; at most {MAX_COLUMNS} are read")
    for wanted in (*((time,) if time else ()), *((series,) if series else ()), *targets):
        if wanted not in [str(name) for name in table.columns]:
            raise InputError(
                f"{source} has no column {wanted!r}; there are {shortened([str(c) for c in table.columns], 12)}"
            )
    stamps, table = _find_time(table, source, notes, time)
    names, table = _find_series(stamps, table, series, notes)
    numbers, values = _numeric(table, source, notes, targets)
    layout: Literal["wide", "long"] = "wide"
    if names is not None:
        layout = "long"
        numbers, stamps, values = _pivoted(names, numbers, stamps, values, source, notes)
    if stamps is None:
        grid: NDArray[Any] = np.arange(len(values))
        step = Step("count")
        notes.append("no time column was found; steps are numbered")
    else:
        grid, step, values = _on_even_grid(stamps, values, source, notes)
    infinite = int(np.isinf(values).sum())
    if infinite:
        values[np.isinf(values)] = np.nan
        notes.append(f"{infinite} infinite values count as missing")
    _tell_constant(numbers, values, notes)
    return SeriesGrid(values, grid, step, tuple(numbers), source, tuple(notes), layout)


def _tell_constant(names: list[str], values: NDArray[np.float64], notes: list[str]) -> None:
    known = np.isfinite(values)
    low, high = np.where(known, values, np.inf).min(axis=0), np.where(known, values, -np.inf).max(axis=0)
    constant = [name for name, a, b in zip(names, low, high, strict=True) if a == b]
    if constant:
        notes.append(f"constant: {shortened(constant)}")


def _find_time(
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
    reading = recognise_times(column, may_be_open=True)
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


def _find_series(
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
    return word in (
        "id",
        "unique_id",
        "item",
        "item_id",
        "series",
        "series_id",
        "store",
        "sku",
        "station",
        "sensor",
        "meter",
        "group",
        "key",
    ) or word.endswith("_id")


def _taken(table: pandas.DataFrame, name: Any, notes: list[str]) -> tuple[Any, pandas.DataFrame]:
    column = table[name]
    notes.append(f"long format: column {str(name)!r} names {column.nunique()} series")
    return column, table.drop(columns=[name])


def _numeric(
    table: pandas.DataFrame, source: str, notes: list[str], targets: tuple[str, ...]
) -> tuple[list[str], NDArray[np.float64]]:
    """Names and LxV float64 of the columns that hold numbers."""
    import pandas as pd

    wanted = [i for i, name in enumerate(table.columns) if not targets or str(name) in targets]
    kept: list[tuple[str, Any]] = []
    text, empty = [], []
    for position in wanted:
        name, column = str(table.columns[position]), table.iloc[:, position]
        if not pd.api.types.is_numeric_dtype(column):
            record = TextColumn(name)
            column = read_text_column(column, record) if not pd.api.types.is_datetime64_any_dtype(column) else column
            notes.extend(record.notes())
        if not pd.api.types.is_numeric_dtype(column):
            text.append(name)
        elif not column.notna().any():
            empty.append(name)
        else:
            kept.append((name if name not in [k for k, _ in kept[:200]] else f"{name}_{position}", column))
    if not kept:
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


def _pivoted(
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


def _on_even_grid(
    stamps: NDArray[Any], values: NDArray[np.float64], source: str, notes: list[str]
) -> tuple[NDArray[Any], Step, NDArray[np.float64]]:
    known = ~np.isnat(stamps)
    if not known.all():
        notes.append(f"{int((~known).sum())} rows without a readable time were left out")
        stamps, values = stamps[known], values[known]
    if (np.diff(stamps) < np.timedelta64(0)).any():
        order = np.argsort(stamps, kind="stable")
        stamps, values = stamps[order], values[order]
        notes.append("rows were not in order of time; they were sorted")
    stamps, values, repeated = _average_repeated(stamps, values, notes)
    if len(stamps) < 2:
        raise InputError(f"{source} has {len(stamps)} distinct time; a series needs at least 2")
    stamps = _local_days(stamps, notes)
    step = find_step(stamps)
    slots = step.slots(stamps)
    filled = len(np.unique(slots))
    if filled < (1 - MAX_MISSING_SHARE) * (int(slots[-1]) + 1) or filled < (1 - MAX_COLLISIONS) * len(slots):
        stamps, values, step = _regular_tail(stamps, values, step, source, notes)
        slots = step.slots(stamps)
    return _regrid(stamps, values, step, slots, repeated, notes)


def _average_repeated(
    stamps: NDArray[Any], values: NDArray[np.float64], notes: list[str]
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[Any]]:
    """Sorted rows with each time once; and the times that were there more than once."""
    first = np.concatenate([[True], np.diff(stamps) > np.timedelta64(0)])
    repeated = np.unique(stamps[~first])
    if first.all():
        return stamps, values, repeated
    starts = np.flatnonzero(first)
    known = np.isfinite(values)
    total = np.add.reduceat(np.where(known, values, 0), starts, axis=0)
    count = np.add.reduceat(known.astype(np.int64), starts, axis=0)
    rows = int((~first).sum())
    notes.append(f"{rows} rows repeat a time; they were averaged")
    with np.errstate(invalid="ignore"):
        return stamps[first], total / np.where(count, count, np.nan), repeated


def _local_days(stamps: NDArray[Any], notes: list[str]) -> NDArray[Any]:
    """Days that begin at a local midnight and therefore jump by an hour in UTC, as plain days."""
    gaps = np.unique(np.diff(stamps).astype(np.int64))
    hour = DAY // 24
    if (
        len(gaps) < 2
        or not np.isin(np.abs(gaps % DAY - DAY // 2), (DAY // 2, DAY // 2 - hour)).all()
        or gaps[0] < 23 * hour
    ):
        return stamps
    clock = np.unique((stamps - stamps.astype("datetime64[D]")).astype(np.int64))
    if len(clock) != 2 or (clock[1] - clock[0]) not in (hour, 23 * hour):
        return stamps
    winter_first = clock[0] if clock[1] - clock[0] == hour else clock[1]
    notes.append("days begin at a local midnight that moves with daylight saving; they are taken as even")
    days = (stamps - np.timedelta64(int(winter_first), "ns")).astype("datetime64[D]")
    ahead = winter_first >= DAY // 2  # east of Greenwich the local day begins on the evening before
    return np.asarray((days + int(ahead)).astype("datetime64[ns]"))


def _regular_tail(
    stamps: NDArray[Any], values: NDArray[np.float64], step: Step, source: str, notes: list[str]
) -> tuple[NDArray[Any], NDArray[np.float64], Step]:
    """The rows after the last change of step, where the table mixes steps and its end is even."""
    gaps = np.diff(stamps).astype(np.int64)
    usual = int(np.median(gaps[-MIN_TAIL:]))
    off = np.flatnonzero(np.abs(gaps - usual) > 0.5 * usual)
    runs = (
        np.convolve(np.abs(gaps - usual) > 0.5 * usual, np.ones(10), "valid") >= 6
    )  # most of ten gaps are of another step
    start = int(np.flatnonzero(runs)[-1]) + 10 if runs.any() else (int(off[-1]) + 1 if len(off) else 0)
    if len(stamps) - start >= MIN_TAIL and start > 0:
        tail = find_step(stamps[start:])
        slots = tail.slots(stamps[start:])
        if len(np.unique(slots)) >= (1 - MAX_MISSING_SHARE) * (int(slots[-1]) + 1):
            notes.append(
                f"the step changes: before {_minute(stamps[start])} rows are not {tail} apart; only the {len(stamps) - start} rows "
                f"from then on are used, {start} earlier ones are not"
            )
            return stamps[start:], values[start:], tail
    slots = step.slots(stamps)
    length = int(slots[-1]) + 1
    missing = length - len(np.unique(slots))
    if missing <= MAX_MISSING_SHARE * length:
        return stamps, values, step
    raise InputError(
        f"{source} is too irregular: at its median step of {step.seconds:g} s, {missing} of {length} steps are missing; "
        "average it to a coarser step first"
    )


def _regrid(
    stamps: NDArray[Any],
    values: NDArray[np.float64],
    step: Step,
    slots: NDArray[np.int64],
    repeated: NDArray[Any],
    notes: list[str],
) -> tuple[NDArray[Any], Step, NDArray[np.float64]]:
    """Rows moved to the nearest step of an even grid; steps without a row are missing."""
    length = int(slots[-1]) + 1
    times = step.times(stamps[0], length)
    there = np.zeros(length, bool)
    there[slots] = True
    missing = times[~there]
    if len(missing) == 0 and len(stamps) == length and (times == stamps).all():
        _tell_clock_change(repeated, missing, notes)
        return times, step, values
    moved = int((stamps != times[slots]).sum())
    if moved:
        notes.append(f"{moved} rows lay off the grid of {step} and were moved to its nearest step")
    if len(missing):
        notes.append(f"{len(missing)} steps were missing")
    _tell_clock_change(repeated, missing, notes)
    even = np.full((length, values.shape[1]), np.nan)
    even[slots[::-1]] = values[::-1]  # of several rows in one step the first stays
    return times, step, even


def _tell_clock_change(repeated: NDArray[Any], missing: NDArray[Any], notes: list[str]) -> None:
    if clock_changes(repeated, missing):
        notes.append(
            "daylight saving: the hour that is there twice and the one that is not lie at clock changes, so the times are local; "
            "the repeated hour is averaged, the missing one left empty"
        )


def _minute(time: Any) -> str:
    return str(np.datetime64(time, "m")).replace("T", " ")


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
