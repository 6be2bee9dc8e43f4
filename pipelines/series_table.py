"""Tables of series on a regular time grid: the time column is detected, every repair is reported
in a sentence, gaps stay gaps.

`read_grid` and `grid_of` keep missing values as NaN, for forecasting, which must not look ahead;
`SeriesGrid.filled` closes the gaps for maps.

Shapes: L steps, V variables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unipercept.errors import InputError, counted, one_line
from unipercept.pipelines.base import as_array
from unipercept.pipelines.series_clock import Step
from unipercept.pipelines.series_columns import (
    MAX_COLUMNS,
    drop_sentinels,
    filled_down,
    find_series,
    numeric,
    pivoted,
    without_row_numbers,
)
from unipercept.pipelines.series_even import LOCAL_DAYS, on_even_grid
from unipercept.pipelines.series_numbers import recognise_numbers
from unipercept.pipelines.series_static import Attribute, split_static
from unipercept.pipelines.series_time_column import find_time
from unipercept.pipelines.series_times import says_time
from unipercept.pipelines.table_file import listed, read_frame
from unipercept.pipelines.table_head import upright

if TYPE_CHECKING:
    import pandas


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
    notes: tuple[str, ...] = ()
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
        known: the variables that were asked for as known in advance, not to be forecast; of long
            format one a series and column.
        owner: of long format with several columns, variable to the series that it is of.
        static: of long format, each series' static attributes.
        static_names: their names, in that order.
        in_utc: whether times are in UTC; else they are on the clock of the table.
    """

    values: NDArray[np.float64]
    time: NDArray[Any]
    step: Step
    variables: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()
    layout: Literal["wide", "long"] = "wide"
    known: tuple[str, ...] = ()
    owner: Mapping[str, str] = field(default_factory=dict)
    static: Mapping[str, tuple[Attribute, ...]] = field(default_factory=dict)
    static_names: tuple[str, ...] = ()
    in_utc: bool = False

    def __len__(self) -> int:
        return len(self.values)

    def after(self, count: int) -> NDArray[Any]:
        """The `count` times that follow."""
        return self.step.times(self.time[-1], count, 1)

    def filled(self) -> Series:
        """Gaps closed by interpolation (which looks ahead) and marked, as float32."""
        with np.errstate(over="ignore"):
            values = self.values.astype(np.float32)
        notes = list(self.notes)
        if beyond := int((np.isinf(values) & np.isfinite(self.values)).sum()):
            notes.append(f"{counted(beyond, 'value', 'values')} beyond 3.4e38 counted as missing")
        values[~np.isfinite(values)] = np.nan
        observed = np.isfinite(values)
        _fill(values, observed, notes)
        return Series(values, observed, self.time, self.step.seconds, self.variables, self.source, tuple(notes))


def read_series(path: str | Path) -> Series:
    """Read a CSV (also compressed by gzip, xz or bzip2), a Parquet or a Feather file, gaps filled.

    Raises:
        InputError: it cannot be read, or holds no series; one line says why.
    """
    return read_grid(path).filled()


def read_grid(
    path: str | Path,
    *,
    time: str | None = None,
    targets: tuple[str, ...] = (),
    series: str | None = None,
    known: tuple[str, ...] = (),
    static: tuple[str, ...] = (),
) -> SeriesGrid:
    """Read a table file as `grid_of` does."""
    frame, notes = read_frame(path)
    return _grid(_flat(frame), str(path), notes, time, targets, series, known, static)


def grid_of(
    table: Any,
    *,
    source: str = "DataFrame",
    time: str | None = None,
    targets: tuple[str, ...] = (),
    series: str | None = None,
    known: tuple[str, ...] = (),
    static: tuple[str, ...] = (),
) -> SeriesGrid:
    """Put a table of pandas, polars or Arrow, an xarray object or a NumPy array (LxV) on an even time grid.

    The time is the index, or a level of it, where that is one, else the first column that reads as
    times; else rows are numbered. Text and empty columns are left out, repeated times averaged, rows
    sorted, missing steps and values left as NaN. Where a column, or another level of the index, names
    the series that a row belongs to (long format), each becomes a variable. All of it is said in `notes`.

    Args:
        time: the column of times, where it should not be searched for.
        targets: the columns wanted; empty for all that hold numbers.
        series: the column that names the series of long format.
        known: columns that are known in advance.
        static: columns of long format that hold one value for each series; those that do so, where none is named.

    Raises:
        InputError: fewer than two rows, no numbers, times that are ambiguous or mostly missing.
    """
    notes: list[str] = []
    return _grid(_frame_of(table, notes), source, notes, time, targets, series, known, static)


def _frame_of(table: Any, notes: list[str]) -> pandas.DataFrame:
    import pandas as pd

    if isinstance(table, pd.DataFrame):
        return _flat(table)
    if isinstance(table, pd.Series):
        return _flat(table.to_frame("value" if table.name is None else table.name))
    if isinstance(table, Tensor):
        table = as_array(table)
    if isinstance(table, np.ndarray):
        if table.dtype.names:
            return _flat(pd.DataFrame(table))
        if table.ndim not in (1, 2) or table.dtype.kind not in "fiu":
            raise InputError(
                f"expected an array of real numbers, steps x variables, got {table.dtype} of shape {table.shape}"
            )
        columns = table[:, None] if table.ndim == 1 else table
        names = ["value"] if columns.shape[1] == 1 else [f"column_{i}" for i in range(columns.shape[1])]
        return pd.DataFrame(columns, columns=names)
    if hasattr(table, "dims") and hasattr(table, "coords"):
        return _flat(_frame_of_xarray(table, notes))
    if hasattr(table, "to_pandas"):  # polars, Arrow
        try:
            return _frame_of(table.to_pandas(), notes)
        except (TypeError, ValueError, NotImplementedError) as error:  # a type of column that Arrow lacks
            raise InputError(
                f"the {type(table).__name__} does not convert to pandas: {one_line(error, 200)}; "
                "leave that column out or give it another type"
            ) from error
    raise InputError(
        "expected a path, a pandas, polars or Arrow table, a Series, an xarray object, a NumPy array or a tensor, "
        f"got {type(table).__module__.partition('.')[0]}.{type(table).__name__}"
    )


def _flat(table: pandas.DataFrame) -> pandas.DataFrame:
    """Columns of one name each; and as columns the labels of rows that are no times of pandas: dates
    as objects or text, a number that says it is a year, or several levels, of which one may hold
    times and the others name the series.
    """
    import pandas as pd

    if mixed := [name for name, dtype in table.dtypes.items() if dtype.kind == "c"]:
        raise InputError(f"column {mixed[0]!r} holds complex numbers; give their size, or their two parts")

    names: list[Any] = list(table.columns)
    if isinstance(table.columns, pd.MultiIndex):
        names = ["/".join(str(part) for part in name if str(part)) for name in names]
    labels: dict[str, Any] = {}
    if isinstance(table.index, pd.MultiIndex):
        levels = [table.index.get_level_values(i) for i in range(table.index.nlevels)]
        is_time = [isinstance(level, pd.DatetimeIndex | pd.PeriodIndex) for level in levels]
        others = [level for level, is_it in zip(levels, is_time, strict=True) if not is_it]
        labels = {_title(level, "time"): level for level, is_it in zip(levels, is_time, strict=True) if is_it}
        if others:
            texts = [level.astype(str) for level in others]
            labels["/".join(_title(level, "series") for level in others)] = [
                "/".join(row) for row in zip(*texts, strict=True)
            ]
    elif not _counts_or_times(table.index):
        is_number = pd.api.types.is_numeric_dtype(table.index)
        labels = {_title(table.index, "index"): table.index if is_number else table.index.astype(str)}
    if labels:
        names = [*labels, *names]
        table = pd.concat([pd.DataFrame(labels), table.reset_index(drop=True)], axis=1)
    told = _told_apart(names)
    return table if told == list(table.columns) else table.set_axis(told, axis=1)


def _title(index: Any, otherwise: str) -> str:
    return otherwise if index.name is None else str(index.name)


def _counts_or_times(index: Any) -> bool:
    """Whether the labels of rows are used as they are: times of pandas, or numbers that are no years or dates."""
    import pandas as pd

    if isinstance(index, pd.DatetimeIndex | pd.PeriodIndex | pd.TimedeltaIndex):
        return True
    if isinstance(index, pd.RangeIndex):
        return True
    is_number = pd.api.types.is_numeric_dtype(index)
    return is_number and recognise_numbers(index.to_series(), is_named=says_time(index.name)) is None


def _told_apart(names: list[Any]) -> list[Any]:
    """Names of which the second of a kind gets .1, as pandas does with those of a file."""
    seen: Counter[Any] = Counter()
    told = []
    for name in names:
        told.append(f"{name}.{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return told


def _frame_of_xarray(table: Any, notes: list[str]) -> pandas.DataFrame:
    """Time stays the rows; every other dimension becomes columns. Arrays without that dimension are left out."""
    import pandas as pd

    arrays = {"": table} if hasattr(table, "values") and not hasattr(table, "data_vars") else dict(table.data_vars)
    arrays = {name: array for name, array in arrays.items() if array.dims and array.dtype.kind in "biufm"}
    clocks = [clock for array in arrays.values() if (clock := _clock_of(array)) is not None]
    if not arrays:
        raise InputError("the xarray object holds no numbers along a dimension")
    first = next(iter(arrays.values()))
    rows, index = clocks[0] if clocks else (first.dims[0], first[first.dims[0]].to_index())
    columns: dict[str, Any] = {}
    left = []
    for name, array in arrays.items():
        if rows not in array.dims:
            left.append(str(name))
            continue
        flat = array.transpose(rows, ...)
        label = str(name or array.name or "value")
        values = np.asarray(flat.values if array.dtype.kind == "m" else flat.values.astype(np.float64))
        values = values.reshape(flat.shape[0], -1)
        if flat.ndim == 1:
            columns[label] = values[:, 0]
            continue
        others = pd.MultiIndex.from_product([flat[d].values for d in flat.dims[1:]])
        for i, place in enumerate(others):
            columns["/".join(([label] if name or array.name else []) + [str(part) for part in place])] = values[:, i]
    if left:
        notes.append(f"left out, as without dimension {str(rows)!r}: {listed(left)}")
    return pd.DataFrame(columns, index=index)


def _clock_of(array: Any) -> tuple[Any, Any] | None:
    """The dimension of an xarray array that times lie along, and these times, of pandas or of another calendar."""
    for d in array.dims:
        if hasattr(array.indexes.get(d), "year"):
            return d, array.indexes[d]
    for coordinate in array.coords.values():  # times beside a numbered dimension
        if coordinate.dims in [(d,) for d in array.dims] and coordinate.dtype.kind == "M":
            return coordinate.dims[0], coordinate.to_index()
    return None


def _grid(
    table: pandas.DataFrame,
    source: str,
    notes: list[str],
    time: str | None,
    targets: tuple[str, ...],
    series: str | None,
    known: tuple[str, ...],
    static: tuple[str, ...],
) -> SeriesGrid:
    table = upright(filled_down(_of_cells(table, source, notes), notes), notes)
    if len(table) < 2:
        raise InputError(f"{source} has {len(table)} row{'s' * (len(table) != 1)} of data; a series needs at least 2")
    if table.shape[1] > MAX_COLUMNS:
        raise InputError(f"{source} has {table.shape[1]} columns; at most {MAX_COLUMNS} are read")
    for wanted in (*((time,) if time else ()), *((series,) if series else ()), *targets, *known, *static):
        if wanted not in [str(name) for name in table.columns]:
            raise InputError(
                f"{source} has no column {wanted!r}; there are {listed([str(c) for c in table.columns], 12)}"
            )
    stamps, table, is_utc = find_time(table, source, notes, time)
    names, table = find_series(stamps, table, series, notes)
    table = without_row_numbers(stamps, table, (*targets, *known, *static), notes)
    attributes, static_names, table = split_static(names, table, static, (*targets, *known), source, notes)
    numbers, values = numeric(table, source, notes, (*targets, *known) if targets else ())
    layout: Literal["wide", "long"] = "wide"
    told, owner = tuple(name for name in numbers if name in known), {}
    if names is not None:
        layout = "long"
        columns = numbers
        numbers, stamps, values = pivoted(names, numbers, stamps, values, source, notes)
        if len(columns) > 1:
            owner = {title: title.rsplit("/", 1)[0] for title in numbers}
            told = tuple(title for title in numbers if title.rsplit("/", 1)[1] in known)
    drop_sentinels(values, numbers, notes)
    if stamps is None:
        grid: NDArray[Any] = np.arange(len(values))
        step = Step("count")
        notes.append("no time column was found; steps are numbered")
        if {"x", "y", "z"} <= {name.lower() for name in numbers}:
            notes.append("x, y and z are read as series; if they are points in space, choose the modality pointcloud")
    else:
        grid, step, values = on_even_grid(stamps, values, source, notes)
    infinite = int(np.isinf(values).sum())
    if infinite:
        values[np.isinf(values)] = np.nan
        notes.append(f"{infinite} infinite values count as missing")
    _tell_constant(numbers, values, notes)
    in_utc = is_utc and LOCAL_DAYS not in notes
    return SeriesGrid(
        values, grid, step, tuple(numbers), source, tuple(notes), layout, told, owner, attributes, static_names, in_utc
    )


def _of_cells(table: pandas.DataFrame, source: str, notes: list[str]) -> pandas.DataFrame:
    """The table without columns of lists and records, durations in seconds.

    Raises:
        InputError: it has no other columns.
    """
    nested = [i for i in range(table.shape[1]) if _is_nested(table.iloc[:, i])]
    if nested:
        names = listed([str(table.columns[i]) for i in nested])
        if len(nested) == table.shape[1]:
            raise InputError(f"{source} has lists or records in all columns ({names}); give each number a column")
        notes.append(f"left out, as lists or records: {names}")
        table = table.iloc[:, [i for i in range(table.shape[1]) if i not in nested]]
    durations = [name for name, kind in table.dtypes.items() if kind.kind == "m"]
    if durations:
        notes.append(f"durations are in seconds: {listed([str(name) for name in durations])}")
        table = table.copy(deep=False)
        for name in durations:
            table[name] = table[name].dt.total_seconds()
    return table


def _is_nested(column: pandas.Series[Any]) -> bool:
    import pandas as pd
    import pyarrow

    if isinstance(column.dtype, pd.ArrowDtype):
        return bool(pyarrow.types.is_nested(column.dtype.pyarrow_dtype))
    return column.dtype == object and any(isinstance(cell, list | tuple | dict | set | np.ndarray) for cell in column)


def _tell_constant(names: list[str], values: NDArray[np.float64], notes: list[str]) -> None:
    known = np.isfinite(values)
    low, high = np.where(known, values, np.inf).min(axis=0), np.where(known, values, -np.inf).max(axis=0)
    constant = [name for name, a, b in zip(names, low, high, strict=True) if a == b]
    if constant:
        notes.append(f"constant: {listed(constant)}")


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
    notes.append(f"{counted(n_filled, 'missing value was', 'missing values were')} filled by interpolation and masked")
