"""Which columns of a table are known in advance, and their values up to the horizon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError, counted
from unipercept.forecasting.repairs import forward_filled
from unipercept.pipelines.series_table import SeriesGrid
from unipercept.pipelines.table_file import listed

VARIOUS = 0.3  # of a column's values are different ones


def split_known(
    grid: SeriesGrid, horizon: int, notices: list[str]
) -> tuple[SeriesGrid, NDArray[np.float64] | None, tuple[str, ...]]:
    """The targets up to their last row, and the columns known in advance: those named, or those that
    alone go on for the horizon.

    Raises:
        InputError: a column named as known does not reach as far as the horizon.
    """
    grid = _without_empty_end(grid, notices)
    known = np.isfinite(grid.values)
    ends = np.where(known.any(axis=0), len(grid) - known[::-1].argmax(axis=0), 0)  # the row after the last value
    is_known = np.isin(grid.variables, grid.known)
    if not grid.known:
        is_known = ends == len(grid)
        if not _go_on_alone(grid, is_known, ends, horizon):
            _tell_short(grid, ends, horizon, notices)
            return grid, None, ()
    if is_known.all():
        raise InputError("every column is known in advance; name with targets what is to be forecast")
    end = int(ends[~is_known].max())
    short = [
        (str(name), int(reach) - end)
        for name, reach in zip(np.array(grid.variables)[is_known], ends[is_known], strict=True)
        if reach < end + horizon
    ]
    if short:
        raise InputError(
            f"column {short[0][0]!r} is known for {max(0, short[0][1])} steps beyond the last value to forecast from; a horizon of {horizon} needs as many"
        )
    filled = forward_filled(grid.values[: end + horizon, is_known])
    starts = np.isfinite(filled).argmax(axis=0)
    filled = np.where(np.isfinite(filled), filled, filled[starts, np.arange(filled.shape[1])])
    names = [name for name, own in zip(grid.variables, is_known, strict=True) if own]
    targets = tuple(name for name, own in zip(grid.variables, is_known, strict=True) if not own)
    if grid.owner:
        columns, told = _of_each_series(grid.owner, names, targets, filled)
        if len({grid.owner[target] for target in targets}) == len(targets):
            targets = tuple(grid.owner[target] for target in targets)
    else:
        columns, told = tuple(names), filled[:, :, None]
    how = "" if grid.known else ", since they go on where the others end (name them with --known, or cut them off)"
    notices.append(f"known in advance: {listed(list(columns))}{how}")
    cut = replace(grid, values=grid.values[:end, ~is_known], time=grid.time[:end], variables=targets)
    return cut, told, columns


def _go_on_alone(grid: SeriesGrid, longer: NDArray[np.bool_], ends: NDArray[np.int64], horizon: int) -> bool:
    """Whether some variables alone go on for the horizon beyond all others, which end together, and are no series that
    have merely outlived these.
    """
    rest = ends[~longer]
    return bool(
        longer.any()
        and len(rest)
        and not np.ptp(rest)
        and len(grid) - rest[0] >= horizon
        and rest[0] >= len(grid) // 2
        and _are_columns(grid, longer)
        and not _have_outlived(grid.values[:, longer], len(grid) - int(rest[0]), horizon)
    )


def _of_each_series(
    owner: Mapping[str, str], names: Sequence[str], targets: Sequence[str], filled: NDArray[np.float64]
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Long format, where each series has known columns of its own: the columns, and rows x columns x targets."""
    columns = tuple(dict.fromkeys(name.removeprefix(owner[name] + "/") for name in names))
    place = {name: i for i, name in enumerate(names)}
    told = np.zeros((len(filled), len(columns), len(targets)))
    for v, target in enumerate(targets):
        for f, column in enumerate(columns):
            mine = place.get(f"{owner[target]}/{column}")
            if mine is not None:
                told[:, f, v] = filled[:, mine]
    return columns, told


def _without_empty_end(grid: SeriesGrid, notices: list[str]) -> SeriesGrid:
    """The table up to the last row that holds anything: rows prepared for the forecast are no time that has passed."""
    filled = np.flatnonzero(np.isfinite(grid.values).any(axis=1))
    end = int(filled[-1]) + 1 if len(filled) else len(grid)
    if end == len(grid):
        return grid
    notices.append(f"{counted(len(grid) - end, 'row', 'rows')} without any value at the end left out")
    return replace(grid, values=grid.values[:end], time=grid.time[:end])


def _are_columns(grid: SeriesGrid, longer: NDArray[np.bool_]) -> bool:
    """Whether the variables that go on longer are columns of the table; in long format a series that goes on where
    another has ended is none, unless it is one column of every series that does so.
    """
    if grid.layout == "wide":
        return True
    columns = [name.removeprefix(f"{grid.owner[name]}/") if grid.owner else "" for name in grid.variables]
    told = {column for column, is_longer in zip(columns, longer, strict=True) if is_longer}
    return not told & {column for column, is_longer in zip(columns, longer, strict=True) if not is_longer}


def _have_outlived(longer: NDArray[np.float64], steps: int, horizon: int) -> bool:
    """Whether columns go on for so long beyond the horizon, with values so various, that the others are rather series
    that have ended (a shop that closed) than what is to be forecast from these (prices, holidays).
    """
    if steps <= max(2 * horizon, len(longer) // 10):
        return False
    return all(len(np.unique(c[np.isfinite(c)])) > VARIOUS * np.isfinite(c).sum() for c in longer.T)


def _tell_short(grid: SeriesGrid, ends: NDArray[np.int64], horizon: int, notices: list[str]) -> None:
    """A few columns that alone go on, but not far enough to count as known in advance."""
    longer = ends == len(grid)
    rest = ends[~longer]
    if grid.layout == "long" or not longer.any() or not len(rest) or np.ptp(rest):
        return
    steps = len(grid) - int(rest[0])
    if 2 <= steps < horizon:
        who = listed([name for name, is_longer in zip(grid.variables, longer, strict=True) if is_longer])
        notices.append(
            f"{who} go on for {steps} steps where the others end, too few for the horizon of {horizon} to count as known in advance"
        )
