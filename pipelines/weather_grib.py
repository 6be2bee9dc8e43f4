"""GRIB files: the messages that share a grid as one dataset, each variable under a name of its own.

Nothing is written beside the file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unipercept.errors import InputError, import_optional
from unipercept.pipelines.files import open_error

if TYPE_CHECKING:
    import xarray

ON_PRESSURES = "isobaricInhPa"
INVARIANTS = ("z", "orog", "lsm", "slt", "cl", "cvl", "cvh", "tvl", "tvh", "sdor", "sdfor", "anor", "isor")
KEPT = ("time", "step", "valid_time")  # of the coordinates of one value


def open_grib(path: Path, expected: str) -> xarray.Dataset:
    """All messages that share a grid, merged.

    Args:
        expected: what the caller can read, for the error.

    Raises:
        InputError: it holds no message, or is damaged.
        MissingDependencyError: cfgrib is not installed.
    """
    import xarray as xr

    parts = _parts(path, expected)
    if not parts:
        raise InputError(f"{path} holds no GRIB message that can be read; it may have been cut short")
    kept: tuple[str, ...] = KEPT[:2]
    if _analyses_beside_forecasts(parts):
        parts, kept = _parts(path, expected, time_dims=("valid_time",)), KEPT[2:]
    elif not _one_lead(parts):
        kept = KEPT[:1]  # analyses beside forecasts have no lead in common
    named = [_of_part(part, kept) for part in _named_apart([_on_leads(part, parts) for part in parts])]
    merged: xarray.Dataset = xr.merge(named, compat="override", join="outer")
    return merged


def _parts(path: Path, expected: str, **settings: Any) -> list[xarray.Dataset]:
    """A dataset for each kind of level and of time, as cfgrib reads them."""
    os.environ.setdefault("ECCODES_LOG_STREAM", "null")
    cfgrib = import_optional("cfgrib", extra="weather")
    import logging

    logging.getLogger("cfgrib").setLevel(logging.CRITICAL)  # a file cut short is reported by us, in one line
    try:
        parts = cfgrib.open_datasets(str(path), backend_kwargs={"indexpath": "", "errors": "raise", **settings})
    except Exception as error:
        raise open_error(path, expected, error) from error
    return [part for part in parts if part.data_vars]


def _one_lead(parts: list[xarray.Dataset]) -> bool:
    return len({float(part["step"]) if part.get("step", np.zeros(1)).ndim == 0 else None for part in parts}) == 1


def _analyses_beside_forecasts(parts: list[xarray.Dataset]) -> bool:
    """Whether some variables are analyses and others forecasts from several initial times, as precipitation is in ERA5.

    What such a file has in common is the time that its fields are valid at, if each has one field a time.
    """
    if not all({"time", "step", "valid_time"} <= set(part.coords) for part in parts):
        return False
    steps = [np.atleast_1d(part["step"].values) > np.timedelta64(0, "ns") for part in parts]
    valid = [np.atleast_1d(part["valid_time"].values).ravel() for part in parts]
    return (
        all(later.all() or not later.any() for later in steps)
        and len({bool(later.all()) for later in steps}) == 2
        and len(np.unique(np.concatenate([np.atleast_1d(part["time"].values) for part in parts]))) > 1
        and all(len(np.unique(times)) == len(times) for times in valid)
    )


def _on_leads(part: xarray.Dataset, parts: list[xarray.Dataset]) -> xarray.Dataset:
    """A part of one time or lead beside others of several: as one of a dimension, so that it does not count for all;
    but for what never changes, which is often given once.
    """
    if all(name in INVARIANTS and _kind(field)[0] != ON_PRESSURES for name, field in part.data_vars.items()):
        return part
    for name in KEPT:
        if name in part.coords and not part.coords[name].ndim and any(name in other.dims for other in parts):
            part = part.expand_dims(name)
    return part


def _named_apart(parts: list[xarray.Dataset]) -> list[xarray.Dataset]:
    """Parts without a name in common: where a variable lies on several kinds of levels, as the temperature of GFS does,
    that on pressures keeps the name, and others say where they lie: t_surface, t_heightAboveGround80.
    """
    found: list[xarray.Dataset] = []
    taken: set[str] = set()
    for part in sorted(parts, key=_precedence):
        fields: dict[str, xarray.DataArray] = {}
        for name, field in part.data_vars.items():
            for short, of_level in _levels_apart(str(name), field) if str(name) in taken else [(str(name), field)]:
                kind = str(field.attrs.get("GRIB_stepType", "other"))
                fields[short if short not in taken else f"{short}_{kind}"] = of_level
        taken |= set(fields)
        found.append(part.drop_vars(list(part.data_vars)).assign(fields))
    return found


def _precedence(part: xarray.Dataset) -> tuple[bool, bool]:
    """Variables on pressures come first, and what holds at a time before what holds over a while."""
    fields = list(part.data_vars.values())
    on_pressures = any(_kind(field)[0] == ON_PRESSURES for field in fields)
    return not on_pressures, not any(field.attrs.get("GRIB_stepType") == "instant" for field in fields)


def _levels_apart(name: str, field: xarray.DataArray) -> list[tuple[str, xarray.DataArray]]:
    """A variable level by level, named after the kind of level and its value."""
    kind, level = _kind(field)
    if level is None:
        return [(f"{name}_{kind}", field)]
    if level.ndim:
        fields = [(float(value), field.isel({kind: i}, drop=True)) for i, value in enumerate(level.values)]
    else:
        fields = [(float(level), field)]
    return [(f"{name}_{kind}{value:g}" if value else f"{name}_{kind}", of_level) for value, of_level in fields]


def _kind(field: xarray.DataArray) -> tuple[str, xarray.DataArray | None]:
    kind = str(field.attrs.get("GRIB_typeOfLevel", "unknown"))
    return kind, field.coords.get(kind)


def _of_part(part: xarray.Dataset, kept: tuple[str, ...]) -> xarray.Dataset:
    """Messages of one kind of level, with the coordinates of one value that are kept; a single pressure goes into the
    names (z500), as other parts may lie on others.
    """
    level = part.coords.get(ON_PRESSURES)
    names = {} if level is None or level.ndim else {n: f"{n}{float(level):g}" for n in part.data_vars}
    return part.rename(names).drop_vars([n for n in part.coords if n not in part.dims and n not in kept])
