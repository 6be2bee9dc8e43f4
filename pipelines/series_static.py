"""Static attributes of the series of long format: columns that hold one value for each series (a region, a size).

Shapes: L rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError, one_line
from unipercept.pipelines.table_file import listed

if TYPE_CHECKING:
    import pandas

Attribute = str | float | None  # None where a series has none


def split_static(
    series: Any,
    table: pandas.DataFrame,
    wanted: tuple[str, ...],
    other: tuple[str, ...],
    source: str,
    notes: list[str],
) -> tuple[dict[str, tuple[Attribute, ...]], tuple[str, ...], pandas.DataFrame]:
    """Each series' attributes, their names, and the table without their columns.

    Args:
        series: L names, or None where the table is not in long format.
        wanted: the columns that are attributes; empty for all that vary between series and never within one.
        other: columns that are something else.

    Raises:
        InputError: a column wanted is not constant within each series, or there are no series to have attributes.
    """
    import pandas as pd

    if series is None:
        if wanted:
            raise InputError(
                f"static column {wanted[0]!r} needs long format: name the column that tells the series of each row (--by)"
            )
        return {}, (), table
    codes, labels = pd.factorize(series, sort=True)
    by_name = {str(name): name for name in table.columns}
    if wanted:
        found = {name: _of_series(table[by_name[name]], codes, len(labels)) for name in wanted}
        for name, first in found.items():
            _refuse_changes(table[by_name[name]], codes, labels, first, name, source)
    else:
        found = _found(table, codes, len(labels), other)
        if found:
            notes.append(
                f"static attributes of the series: {listed(list(found))} (--target forecasts a column instead)"
            )
    values = {name: _cells(table[by_name[name]], first) for name, first in found.items()}
    attributes = {str(label): tuple(column[place] for column in values.values()) for place, label in enumerate(labels)}
    return attributes if found else {}, tuple(found), table.drop(columns=[by_name[name] for name in found])


def _found(
    table: pandas.DataFrame, codes: NDArray[np.int64], n_series: int, other: tuple[str, ...]
) -> dict[str, NDArray[np.int64]]:
    """Columns that vary between series, never within one, and are not unique to each series; at least one
    numeric column is left to forecast.
    """
    import pandas as pd

    if n_series < 2 or len(table) < 4 * n_series:
        return {}
    found = {}
    for name in table.columns:
        column = table[name]
        if str(name) in other or pd.api.types.is_datetime64_any_dtype(column):
            continue
        first = _of_series(column, codes, n_series)
        values = column.iloc[first[first >= 0]]
        is_name = values.nunique() == n_series and not pd.api.types.is_numeric_dtype(column)
        if is_name or values.nunique() < 2 or _changes(column, codes, first) is not None:
            continue
        found[str(name)] = first
    left = [c for c in table.columns if str(c) not in found and pd.api.types.is_numeric_dtype(table[c])]
    if not left:
        found = {n: f for n, f in found.items() if not pd.api.types.is_numeric_dtype(table[n])}
    return found


def _of_series(column: pandas.Series[Any], codes: NDArray[np.int64], n_series: int) -> NDArray[np.int64]:
    """Row of each series' first value; -1 where it has none."""
    first = np.full(n_series, -1, np.int64)
    rows = np.flatnonzero(column.notna().to_numpy() & (codes >= 0))[::-1]
    first[codes[rows]] = rows  # the last to be written is the first of the table
    return first


def _changes(column: pandas.Series[Any], codes: NDArray[np.int64], first: NDArray[np.int64]) -> int | None:
    """The first row whose value is not that of its series."""
    import pandas as pd

    values = pd.factorize(column)[0]
    known = (values >= 0) & (codes >= 0)
    wrong = known & (values != values[first[codes.clip(min=0)]])
    return int(wrong.argmax()) if wrong.any() else None


def _refuse_changes(
    column: pandas.Series[Any],
    codes: NDArray[np.int64],
    labels: Any,
    first: NDArray[np.int64],
    name: str,
    source: str,
) -> None:
    row = _changes(column, codes, first)
    if row is not None:
        one, two = column.iloc[int(first[codes[row]])], column.iloc[row]
        raise InputError(
            f"{source}: column {name!r} is no static attribute: series {one_line(labels[codes[row]], 40)!r} has "
            f"{one_line(one, 40)} and {one_line(two, 40)}"
        )
    if (first < 0).all():
        raise InputError(f"{source}: static column {name!r} is empty")


def _cells(column: pandas.Series[Any], first: NDArray[np.int64]) -> list[Attribute]:
    """Each series' value: a number where the column holds numbers, else text."""
    import pandas as pd

    is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    convert: Any = float if is_number else lambda cell: str(cell).strip()
    return [None if row < 0 else convert(column.iloc[int(row)]) for row in first]
