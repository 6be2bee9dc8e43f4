"""Weather fields from disk under short names, in canonical units and order, lazily: what scores and pictures read.

Dimensions: ([number], time, [prediction_timedelta], [level], latitude, longitude).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unipercept.app.forecaster.frames import GRID_TOLERANCE_DEGREES
from unipercept.errors import InputError, import_optional
from unipercept.pipelines.weather import open_dataset, stored_limits
from unipercept.pipelines.weather_fields import ORDER, UPPER_AIR, Channel, find_channels
from unipercept.pipelines.weather_grid import INITIAL_NAMES, LEAD, LEAD_NAMES, MEMBER_NAMES, canonical_grid, lead_spans
from unipercept.pipelines.weather_values import Limits, doubt, without_codes

if TYPE_CHECKING:
    import xarray

CHUNK_BYTES = 4 << 20  # of one variable, where the store is cut finer or not at all: one state costs no more to read


def open_fields(path: str | Path | xarray.Dataset) -> xarray.Dataset:
    """Open a NetCDF or GRIB file, a Zarr folder or a Dataset of any convention; no field is read yet.

    Variables carry short names (z, t, u, v, r, q; t2m, u10, v10, msl, …) and canonical units. Latitude falls, longitude
    rises from 0, level rises in hPa. A forecast's lead is `prediction_timedelta`, an ensemble's member `number`. Codes
    for missing, such as -9999, are NaN.

    Raises:
        InputError: it cannot be read, is still being written, is not on a
            latitude-longitude grid, repeats times or leads, or a unit is unknown.
        MissingDependencyError: the library of its format is not installed.
    """
    import_optional("dask", extra="weather")
    source = str(path) if isinstance(path, str | Path) else "Dataset"
    opened = open_dataset(path) if isinstance(path, str | Path) else path
    notes: list[str] = []
    grid = _chunked(canonical_grid(_named(opened, source), source, notes))  # before any arithmetic, which would read it
    _check_unique(grid, source)
    channels = find_channels(grid, None, source, notes)
    return _canonical(grid, channels, notes)


def land_share(path: str | Path, latitude: Any, longitude: Any) -> NDArray[np.float64]:
    """The land-sea mask of a file (lsm or land_sea_mask), HxW shares of land, on the given grid.

    Raises:
        InputError: there is none, or it is on another grid.
    """
    dataset = canonical_grid(open_dataset(path), str(path), [])
    name = next((n for n in dataset.data_vars if str(n).lower() in ("lsm", "land_sea_mask")), None)
    if name is None:
        raise InputError(f"{path} holds no land-sea mask; expected a variable lsm or land_sea_mask")
    for axis, ours in (("latitude", latitude), ("longitude", longitude)):
        theirs = dataset[axis].values
        if theirs.shape != np.shape(ours) or abs(theirs - ours).max() > GRID_TOLERANCE_DEGREES:
            raise InputError(f"the land-sea mask of {path} is on another grid than the fields")
    mask = dataset[name].transpose(..., "latitude", "longitude")
    while mask.ndim > 2:  # a time, or members, of something that never changes
        mask = mask[0]
    return np.asarray(mask.values, np.float64)


def channel_names(dataset: xarray.Dataset) -> tuple[str, ...]:
    """The channels of a dataset from `open_fields`, such as z500 and t2m."""
    names: list[str] = []
    for name, array in dataset.data_vars.items():
        levels = array["level"].values if "level" in array.dims else None
        names += [str(name)] if levels is None else [f"{name}{level:g}" for level in levels]
    return tuple(names)


def doubtful_units(dataset: xarray.Dataset) -> list[str]:
    """A sentence for each channel of a dataset from `open_fields` whose first field cannot be in its unit."""
    first = dataset.isel({d: 0 for d in ("number", "time", LEAD) if dataset.sizes.get(d, 0)}).load()
    fields = {name: select_channel(first, name) for name in channel_names(first)}
    found = (doubt(name, str(field.attrs.get("units", "")), field.values) for name, field in fields.items())
    return [sentence for sentence in found if sentence is not None]


def sums_since_start(forecast: xarray.Dataset) -> list[str]:
    """A sentence where the precipitation of forecasts from `open_fields` never falls from lead to lead: then it is the
    sum since their start, and not that of a step, as analyses have it.
    """
    if "tp" not in forecast or forecast.sizes.get(LEAD, 0) < 3:
        return []
    first = {d: 0 for d in ("number", "time") if d in forecast["tp"].dims}
    rain = forecast["tp"].isel(first).sortby(LEAD).transpose(LEAD, ...).values
    if not ((np.diff(rain, axis=0) >= 0).all() and (rain[-1] > rain[0]).any()):
        return []
    return ["tp never falls from lead to lead, so it is a sum since the start; score the differences between leads"]


def select_channel(dataset: xarray.Dataset, channel: str) -> xarray.DataArray:
    """One channel of a dataset from `open_fields`, without the level.

    Raises:
        InputError: it is not there.
    """
    name, number = _place(dataset, channel)
    array = dataset[name] if number is None else dataset[name].isel(level=number, drop=True)
    return array.rename(channel)


def check_same_grid(name: str, fields: xarray.Dataset, truth: xarray.Dataset) -> None:
    """Refuse datasets of `open_fields` whose cells do not lie on each other.

    Raises:
        InputError: they do not.
    """
    for axis in ("latitude", "longitude"):
        ours, theirs = fields[axis].values, truth[axis].values
        if ours.shape != theirs.shape or abs(ours - theirs).max() > GRID_TOLERANCE_DEGREES:
            raise InputError(
                f"{name} and the truth lie on different grids ({axis}: {ours.size} and {theirs.size} values)"
            )


def variables_with(dataset: xarray.Dataset, channels: Sequence[str]) -> xarray.Dataset:
    """Only the variables of a dataset from `open_fields` that hold some of the channels.

    Raises:
        InputError: a channel is not there.
    """
    return dataset[sorted({_place(dataset, channel)[0] for channel in channels})]


def _place(dataset: xarray.Dataset, channel: str) -> tuple[str, int | None]:
    """The variable of a channel, and the number of its level where it has some."""
    if channel in dataset and "level" not in dataset[channel].dims:
        return channel, None
    short = channel.rstrip("0123456789.")
    if short in dataset and "level" in dataset[short].dims and len(channel) > len(short):
        near = np.flatnonzero(np.isclose(dataset[short]["level"].values, float(channel[len(short) :])))
        if len(near):
            return short, int(near[0])
    raise InputError(f"no channel {channel}; there are {', '.join(channel_names(dataset)[:24])}")


def _named(dataset: xarray.Dataset, source: str) -> xarray.Dataset:
    """Lead and member under one name each, leads as time spans, and the one initial time of a forecast as a dimension.

    A `step` or `number` of one value is left to the reader, which drops it.
    """
    renames: dict[Any, str] = {}
    for names, target in ((LEAD_NAMES, LEAD), (MEMBER_NAMES, "number")):
        found = next((name for name in names if name in dataset.dims), None)
        if found is not None and found != target:
            renames[found] = target
    initial = [name for name in INITIAL_NAMES if name in dataset.coords]
    if LEAD in {*renames.values(), *dataset.dims} and initial:
        if dataset.coords[initial[0]].ndim == 0:
            dataset = dataset.expand_dims(initial[0])
        if initial[0] != "time" and "time" not in dataset.variables:
            renames[initial[0]] = "time"
    return _with_spans(dataset.rename(renames), source)


def _with_spans(dataset: xarray.Dataset, source: str) -> xarray.Dataset:
    """Leads that are stored as numbers, as WeatherBench 2 stores them, as the time spans that their unit says."""
    if LEAD not in dataset.dims:
        return dataset
    spans = None if LEAD not in dataset.coords else lead_spans(dataset[LEAD])
    if spans is None:
        raise InputError(f"{source} has leads without a unit of time; give them as time spans, or in hours")
    return dataset.assign_coords({LEAD: (LEAD, spans)})


def _check_unique(dataset: xarray.Dataset, source: str) -> None:
    for name, words in (("time", "times"), (LEAD, "leads")):
        if name in dataset.indexes and dataset.indexes[name].hasnans:
            raise InputError(f"{source} has fields without a {words.removesuffix('s')}; drop them")
        if name in dataset.indexes and not dataset.indexes[name].is_unique:
            repeated = dataset.indexes[name][dataset.indexes[name].duplicated()][0]
            raise InputError(f"{source} repeats some of its {words}, such as {repeated}; drop what comes twice")


def _canonical(dataset: xarray.Dataset, channels: list[Channel], notes: list[str]) -> xarray.Dataset:
    import xarray as xr

    arrays: dict[str, xarray.DataArray] = {}
    flat: dict[str, dict[float, xarray.DataArray]] = {}
    of_variable: dict[str, list[Channel]] = {}
    for channel in channels:
        of_variable.setdefault(channel.variable, []).append(channel)
    decoded = {name: _decoded(dataset[name], its) for name, its in of_variable.items()}
    on_levels = {_short_name(channel) for channel in channels if channel.level is not None}
    for channel in channels:
        array = decoded[channel.variable]
        if (channel.factor, channel.offset) != (1.0, 0.0):
            array = array * channel.factor + channel.offset
        array = array.assign_attrs(units=channel.unit)
        short, level = _short_name(channel), _flat_level(channel)
        if channel.level is None and level is None and short in on_levels:
            continue  # z of the surface beside z on levels: one name cannot stand for both
        if level is None:
            arrays.setdefault(short, array)
        else:
            flat.setdefault(level[0], {})[level[1]] = array
    shared = len({tuple(sorted(levels)) for levels in flat.values()}) == 1 and "level" not in dataset.dims
    for short, levels in flat.items():
        if not shared:  # one axis for all would be full of holes
            arrays |= {f"{short}{level:g}": array for level, array in levels.items()}
        else:
            parts = [levels[level].expand_dims(level=[level]) for level in sorted(levels)]
            arrays[short] = xr.concat(parts, "level")
    order = [str(d) for d in ("number", "time", "prediction_timedelta", "level", "latitude", "longitude")]
    cleaned = {
        name: array.drop_vars([c for c in array.coords if c not in array.dims]).transpose(
            *(d for d in order if d in array.dims), ...
        )
        for name, array in arrays.items()
    }
    return xr.Dataset(cleaned, attrs={**dataset.attrs, "conversions": "; ".join(notes)})


def _decoded(array: xarray.DataArray, channels: list[Channel]) -> xarray.DataArray:
    """A variable with codes for missing as NaN; lazily, chunk by chunk."""
    import xarray as xr

    low, high = zip(*map(stored_limits, channels), strict=True)
    limits = min(low), max(high)
    decoded: xarray.DataArray = xr.apply_ufunc(
        _without_codes, array, kwargs={"limits": limits}, dask="parallelized", output_dtypes=[_floating(array.dtype)],
        keep_attrs=True,
    )  # fmt: skip
    return decoded


def _without_codes(values: NDArray[Any], limits: Limits) -> NDArray[Any]:
    return without_codes(values.astype(_floating(values.dtype), copy=False), limits)[0]


def _floating(dtype: Any) -> Any:
    """Single precision where that is what a file holds, else double."""
    return np.dtype(np.float32) if dtype == np.float32 else np.dtype(np.float64)


def _short_name(channel: Channel) -> str:
    return channel.name if channel.level is None else channel.name.removesuffix(f"{channel.level:g}")


def _flat_level(channel: Channel) -> tuple[str, float] | None:
    """The short name and level of a variable that carries its level in its name, or in a scalar coordinate."""
    short = channel.name.rstrip("0123456789.")
    if channel.level is not None or short not in UPPER_AIR or channel.name in (short, *ORDER):
        return None
    return short, float(channel.name[len(short) :])


def _chunked(dataset: xarray.Dataset) -> xarray.Dataset:
    """Cut as the store is cut; a file that is not gets whole fields, as many times as fit 4 MiB."""
    chunks: dict[Any, Any] = {}
    for array in dataset.data_vars.values():
        for dim, size in (array.encoding.get("preferred_chunks") or {}).items():
            chunks[dim] = max(int(size), chunks.get(dim, 1)) if dim in dataset.dims else 1
    chunks = {dim: size for dim, size in chunks.items() if dim in dataset.dims}
    if "time" in dataset.dims:
        per_time = max(
            (array.nbytes // max(dataset.sizes["time"], 1) for array in dataset.data_vars.values()), default=1
        )
        most = max(1, CHUNK_BYTES // max(per_time, 1))
        at_most = min(most, dataset.sizes["time"])
        stored = int(chunks.get("time", 1))
        chunks["time"] = max(stored, at_most // stored * stored)
    return dataset.chunk({**dict.fromkeys(dataset.dims, -1), **chunks})
