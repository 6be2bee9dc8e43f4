"""Climatology as WeatherBench 2 defines it: mean over years for each hour and day of the year, smoothed over 61 days.

Dimensions of a climatology: (hour, dayofyear, [level], latitude, longitude), dayofyear 1 … 366.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unipercept.app.forecaster.fields import open_fields, select_channel
from unipercept.app.forecaster.score_formulas import Array
from unipercept.errors import InputError
from unipercept.pipelines.weather import open_dataset

if TYPE_CHECKING:
    import xarray

DAYS = 366
WINDOW_DAYS = 61  # a triangle: 0 at both ends, 1 in the middle
BLOCK_BYTES = 256 << 20


def build_climatology(dataset: xarray.Dataset) -> xarray.Dataset:
    """Climatology of fields from `open_fields` over all their times, a variable at a time.

    Days without data, such as day 366 of common years, get the smoothed mean of the window around them.

    Raises:
        InputError: no data, or so few that a day of the year has none within 30 days.
    """
    import xarray as xr

    if not dataset.sizes.get("time", 0):
        raise InputError("a climatology needs fields over a year or more; these have no times")
    times = dataset["time"].values.astype("datetime64[ns]")
    day = (times.astype("datetime64[D]") - times.astype("datetime64[Y]")).astype(int)
    hour = ((times - times.astype("datetime64[D]")) / np.timedelta64(1, "h")).round().astype(int)
    hours = np.unique(hour)
    data = {}
    for name, array in dataset.data_vars.items():
        dims = tuple(d for d in array.dims if d != "time")
        flat = array.transpose("time", *dims)
        data[name] = (("hour", "dayofyear", *dims), _daily_means(flat, hour, day, hours), array.attrs)
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
    if not known[-1] and known[-2]:  # day 366 of data without a leap year
        means, known = means.copy(), known.copy()
        means[-1], known[-1] = means[-2], True
    half = WINDOW_DAYS // 2
    total, weight = np.zeros_like(means), np.zeros(DAYS)
    filled = np.where(known.reshape(-1, *[1] * (means.ndim - 1)), means, 0)
    for offset in range(-half, half + 1):
        share = 1 - abs(offset) / half
        total += share * np.roll(filled, offset, axis=0)
        weight += share * np.roll(known, offset)
    if not (weight > 0).all():
        raise InputError(
            f"a climatology needs a whole year: day {int(np.argmin(weight)) + 1} has no data within {half} days"
        )
    return np.asarray(total / weight.reshape(-1, *[1] * (means.ndim - 1)))


class Climatology:
    """Climatological states by valid time.

    Args:
        dataset: from `build_climatology`, or a climatology of WeatherBench 2.

    Raises:
        InputError: `hour` or `dayofyear` is missing.
    """

    def __init__(self, dataset: xarray.Dataset) -> None:
        if not {"hour", "dayofyear"} <= set(dataset.dims):
            raise InputError(
                f"a climatology has dimensions hour and dayofyear, got {', '.join(map(str, dataset.dims))}"
            )
        self.dataset = dataset
        self._hours = dataset["hour"].values.astype(int)

    def at(self, time: Any, channels: tuple[str, ...]) -> Array:
        """VxHxW of the day of the year and hour of `time`.

        Raises:
            InputError: the climatology lacks that hour.
        """
        moment = np.datetime64(time, "ns")
        day = int((moment.astype("datetime64[D]") - moment.astype("datetime64[Y]")).astype(int))
        hour = round((moment - moment.astype("datetime64[D]")) / np.timedelta64(1, "h"))
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


def _daily_means(array: xarray.DataArray, hour: Array, day: Array, hours: Array) -> Array:
    """(hour, 366, ...) float32, read in blocks of time."""
    shape = array.shape[1:]
    sums, counts = np.zeros((len(hours), DAYS, *shape)), np.zeros((len(hours), DAYS), int)
    n_block = max(1, BLOCK_BYTES // (8 * int(np.prod(shape))))
    slot = np.searchsorted(hours, hour)
    for start in range(0, len(day), n_block):
        part = slice(start, start + n_block)
        block = array.isel(time=part).values.astype(np.float64)
        if not np.isfinite(block).all():
            raise InputError(f"{array.name} has missing cells; a climatology needs them filled")
        for place, field in zip(
            zip(slot[part], day[part], strict=True), block, strict=True
        ):  # add.at goes cell by cell
            sums[place] += field
            counts[place] += 1
    means = sums / np.maximum(counts, 1).reshape(*counts.shape, *[1] * len(shape))
    return np.stack([smooth_days(m, c) for m, c in zip(means, counts, strict=True)]).astype(np.float32)
