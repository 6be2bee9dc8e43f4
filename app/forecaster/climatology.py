"""Climatology as WeatherBench 2 defines it: mean over years for each hour and day of the year, smoothed over 61 days.

Dimensions of a climatology: (hour, dayofyear, [level], latitude, longitude), dayofyear 1 … 366.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unipercept.app.forecaster.fields import open_fields, select_channel, variables_with
from unipercept.app.forecaster.score_formulas import Array
from unipercept.errors import InputError
from unipercept.pipelines.weather import open_dataset

if TYPE_CHECKING:
    import xarray

DAYS = 366
WINDOW_DAYS = 61  # a triangle: 0 at both ends, 1 in the middle
BLOCK_BYTES = 256 << 20  # of fields that are read at once
SUM_BYTES = 2 << 30  # of the sums over years in double precision, as far as those of one level take less


def build_climatology(dataset: xarray.Dataset, channels: Sequence[str] | None = None) -> xarray.Dataset:
    """Climatology of fields from `open_fields` over all their times, some levels of a variable at a time.

    A common year's day 365 counts as its day 366 too. Days without data get the smoothed mean of the window around
    them. Cells that are missing at all times, such as the sea surface temperature over land, stay so.

    Args:
        channels: which; None for all. Of their variables it holds all levels.

    Raises:
        InputError: a channel is not there; no data, or so few that a day of the year has none within 30 days; cells
            that are missing at some times.
    """
    import xarray as xr

    dataset = dataset if channels is None else variables_with(dataset, channels)
    if not dataset.sizes.get("time", 0):
        raise InputError("a climatology needs fields over a year or more; these have no times")
    times = dataset["time"].values.astype("datetime64[ns]")
    hours = np.unique(_hours(times))
    data = {}
    for name, array in dataset.data_vars.items():
        if "time" not in array.dims:  # the surface's own geopotential, a land-sea mask
            continue
        dims = tuple(d for d in array.dims if d != "time")
        data[name] = (("hour", "dayofyear", *dims), _of_variable(array.transpose("time", *dims), times), array.attrs)
    coordinates: dict[Any, Any] = {d: dataset[d] for d in dataset.dims if d != "time"}
    span = f"{np.datetime_as_string(times[0], 'D')} to {np.datetime_as_string(times[-1], 'D')}"
    made = xr.Dataset(data, {**coordinates, "hour": hours, "dayofyear": np.arange(1, DAYS + 1)})
    return made.assign_attrs(period=span, window_days=WINDOW_DAYS)


def smooth_days(means: Array, counts: Array) -> Array:
    """Means of 366 days along the first axis, and how many values each has, to smoothed means; round the year's end.

    Raises:
        InputError: a day has no value within the window.
    """
    known = counts > 0
    half = WINDOW_DAYS // 2
    total, weight = np.zeros_like(means), np.zeros(DAYS)
    filled = means if known.all() else np.where(_days_first(known, means), means, 0)
    for offset in range(-half, half + 1):
        share = 1 - abs(offset) / half
        total += share * np.roll(filled, offset, axis=0)
        weight += share * np.roll(known, offset)
    if not (weight > 0).all():
        raise InputError(
            f"a climatology needs a whole year: day {int(np.argmin(weight)) + 1} has no data within {half} days"
        )
    return np.asarray(total / _days_first(weight, means))


def _days_first(values: Array, like: Array) -> Array:
    """A value for each day, shaped to go with fields of each day."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


class Climatology:
    """Climatological states by valid time.

    Args:
        dataset: from `build_climatology`, or a climatology of WeatherBench 2.

    Raises:
        InputError: `hour` or `dayofyear` is missing, or a day of the year.
    """

    def __init__(self, dataset: xarray.Dataset) -> None:
        if not {"hour", "dayofyear"} <= set(dataset.dims):
            raise InputError(
                f"a climatology has dimensions hour and dayofyear, got {', '.join(map(str, dataset.dims))}"
            )
        days = dataset["dayofyear"].values.tolist() if "dayofyear" in dataset.coords else []
        if sorted(days) != list(range(1, DAYS + 1)):
            raise InputError(f"a climatology has the days of the year 1 to {DAYS}, each once; this one has {len(days)}")
        self.dataset = dataset.sortby("dayofyear")
        self._hours = dataset["hour"].values.astype(int)

    def at(self, time: Any, channels: tuple[str, ...]) -> Array:
        """VxHxW of the day of the year and hour of `time`.

        Raises:
            InputError: the climatology lacks that hour.
        """
        moment = np.datetime64(time, "ns")
        day = int(_days(moment))
        hour = int(_hours(moment))
        if hour not in self._hours:
            raise InputError(f"the climatology has no hour {hour}; it has {', '.join(map(str, self._hours))}")
        chosen = self.dataset.isel(hour=int(np.flatnonzero(self._hours == hour)[0]), dayofyear=day)
        return np.stack([select_channel(chosen, name).values.astype(np.float64) for name in channels])


def open_climatology(path: str | Path) -> Climatology:
    """Read a climatology file or store; names such as geopotential_mean are understood."""
    import xarray as xr

    opened = open_dataset(path)
    opened = opened.rename({n: str(n).removesuffix("_mean") for n in opened.data_vars if str(n).endswith("_mean")})
    if not {"hour", "dayofyear"} <= set(opened.dims):
        raise InputError(f"{path} is no climatology: it has no dimensions hour and dayofyear")
    parts = [open_fields(opened.isel(hour=i, drop=True).rename(dayofyear="time")) for i in range(opened.sizes["hour"])]
    joined: xarray.Dataset = xr.concat(parts, "hour").rename(time="dayofyear")
    return Climatology(joined.assign_coords(hour=opened["hour"].values))


def _days(times: Any) -> Array:
    """Days since the first of January."""
    return np.asarray((times.astype("datetime64[D]") - times.astype("datetime64[Y]")).astype(int))


def _hours(times: Any) -> Array:
    return np.asarray(((times - times.astype("datetime64[D]")) / np.timedelta64(1, "h")).round().astype(int))


def _of_variable(array: xarray.DataArray, times: Array) -> Array:
    """(hour, 366, …) float32 of an array over (time, …), as many levels at once as their sums have room for."""
    shape, n_hours = array.shape[1:], len(np.unique(_hours(times)))
    found = np.empty((n_hours, DAYS, *shape), np.float32)
    if "level" not in array.dims:
        _smooth_into(found, array, times)
        return found
    axis, n_levels = array.dims.index("level"), array.sizes["level"]
    at_once = max(1, SUM_BYTES * n_levels // (8 * n_hours * DAYS * int(np.prod(shape))))
    for first in range(0, n_levels, at_once):
        levels = slice(first, first + at_once)
        _smooth_into(found[(slice(None),) * (axis + 1) + (levels,)], array.isel(level=levels), times)
    return found


def _smooth_into(found: Array, array: xarray.DataArray, times: Array) -> None:
    """Means over years, smoothed; read in blocks of time."""
    day, slot = _days(times), np.searchsorted(np.unique(_hours(times)), _hours(times))
    is_common_end = (day == DAYS - 2) & (_days(times + np.timedelta64(1, "D")) == 0)
    sums, counts = np.zeros(found.shape), np.zeros(found.shape[:2], int)
    n_block = max(1, BLOCK_BYTES // (8 * int(np.prod(array.shape[1:]))))
    gaps = None
    for start in range(0, len(times), n_block):
        block = array.isel(time=slice(start, start + n_block)).values.astype(np.float64)
        gaps = ~np.isfinite(block[0]) if gaps is None else gaps
        if (np.isfinite(block) == gaps).any():
            raise InputError(f"{array.name} has cells that are missing at some times; a climatology needs them filled")
        for number, field in enumerate(block, start):  # add.at goes cell by cell
            for place in (day[number], DAYS - 1) if is_common_end[number] else (day[number],):
                sums[slot[number], place] += field
                counts[slot[number], place] += 1
    for hour, (total, count) in enumerate(zip(sums, counts, strict=True)):
        total /= _days_first(np.maximum(count, 1), total)
        found[hour] = smooth_days(total, count)
