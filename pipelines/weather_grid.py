"""The grid of ERA5-like fields: names, order and units of its axes, so that every convention becomes one layout.

Canonical: latitude from north to south, longitude from 0 up to 360, level in hPa ascending, time as common dates. What
is converted is said in a sentence.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from unipercept.errors import InputError
from unipercept.pipelines.weather_units import PASCAL, plain_unit

if TYPE_CHECKING:
    import xarray

HIGHEST_PRESSURE_HPA = 1100.0  # of a level; 1084 hPa is the highest that was ever measured at sea level
MODEL_LEVELS = re.compile(r"model.level|hybrid|sigma|depth|height")
EVEN_TOLERANCE = 0.03  # of the mean spacing: Gaussian latitudes of 32 rows and more pass
POLE_TOLERANCE_DEGREES = 1e-3
POLAR_GAP = (
    0.85  # of a row's spacing from the outermost row to a pole: 0.77 on Gaussian grids, 1 where a row is cut off
)
SEAM_TOLERANCE = 1e-5  # of a field's largest value: the column at 360 degrees may be the rounded one of 0

DIMENSIONS = {
    "latitude": ("latitude", "lat", "nav_lat", "y_lat"),
    "longitude": ("longitude", "lon", "long", "nav_lon"),
    "level": ("level", "pressure_level", "isobaricInhPa", "plev", "lev", "isobaric", "pressure"),
    "time": ("time", "valid_time"),
}
LEAD = "prediction_timedelta"
LEAD_NAMES = (LEAD, "lead_time", "step", "forecast_period")
MEMBER_NAMES = ("number", "realization", "member", "ensemble")
INITIAL_NAMES = ("time", "init_time", "forecast_reference_time")
LEAD_UNITS = {
    "second": 1,
    "s": 1,
    "minute": 60,
    "min": 60,
    "hour": 3600,
    "hr": 3600,
    "h": 3600,
    "day": 86400,
    "d": 86400,
}
# What the CF conventions call the same in a coordinate's attributes, for files with names of their own.
STANDARD_NAMES = {"latitude": "latitude", "longitude": "longitude", "level": "air_pressure", "time": "time"}
DEGREES = {"latitude": re.compile(r"degrees?_?n(orth)?"), "longitude": re.compile(r"degrees?_?e(ast)?")}
DROPPED = ("number", "expver", "surface", "step", "heightAboveGround", "realization", "depthBelowLandLayer", "meanSea")


def canonical_grid(dataset: xarray.Dataset, source: str, notes: list[str]) -> xarray.Dataset:
    """Rename, sort and check the coordinates; lazily, no field is read.

    Raises:
        InputError: there is no latitude-longitude grid, or an axis is uneven, repeated or goes round twice.
    """
    dataset = _with_dates(_renamed(_at_valid_times(dataset, notes)), notes)
    dataset = _combined_expver(dataset, notes)
    dataset = dataset.drop_vars([name for name in DROPPED if name in dataset.coords and dataset.coords[name].ndim == 0])
    for axis in ("latitude", "longitude"):
        if axis in dataset.coords and str(dataset[axis].attrs.get("standard_name", "")).startswith("grid_"):
            raise InputError(f"{source} lies on a grid with a rotated pole; bring it to a regular one first")
        if axis not in dataset.dims or axis not in dataset.coords or dataset.sizes[axis] < 2:
            kind = "one latitude and longitude a cell (curvilinear)" if _is_curvilinear(dataset) else f"no {axis} grid"
            raise InputError(
                f"{source} has {kind} (dimensions {_sizes(dataset)}); expected fields over latitude and longitude: "
                "bring them to a regular grid first (cdo remapbil, xesmf), and a single station's values to a table"
            )
        if str(dataset[axis].attrs.get("units", "")).lower().startswith("rad"):
            raise InputError(f"{source} gives its {axis} in radians; expected degrees: convert them")
        if not np.isfinite(dataset[axis].values.astype(np.float64)).all():
            raise InputError(f"{source} has missing {axis} values; expected each once, in order")
    dataset = _ordered_longitude(_without_seam(dataset, source, notes), notes)
    if float(dataset.latitude[0]) < float(dataset.latitude[-1]):
        dataset = dataset.isel(latitude=slice(None, None, -1))
        notes.append("latitude ran from south to north; turned round")
    _check_even(dataset.latitude.values, "latitude", source)
    _check_even(dataset.longitude.values, "longitude", source)
    if float(abs(dataset.latitude).max()) > 90 + POLE_TOLERANCE_DEGREES:
        raise InputError(f"{source} has latitudes beyond the poles ({float(abs(dataset.latitude).max()):g} degrees)")
    if "level" in dataset.dims:
        _check_levels(dataset.level, source)
    if "level" in dataset.coords:
        dataset = _level_in_hpa(dataset, source, notes)
    return dataset


def grid_facts(latitude: Any, longitude: Any) -> dict[str, bool]:
    """Whether a grid goes round the earth, and whether it has rows at the poles."""
    step = float(np.mean(np.diff(longitude)))
    return {
        "wraps": bool(abs(len(longitude) * step - 360) < 0.5 * abs(step)),
        "has_poles": bool(np.max(np.abs(latitude)) > 90 - POLE_TOLERANCE_DEGREES),
    }


def area_weights(latitude: Any) -> Any:
    """Area of each row's cells, H float64 with mean 1, rows in any order.

    Between neighbouring mid-latitudes. The outermost cells end at the pole where no row is missing before it, elsewhere
    half a row further.

    Source: WeatherBench 2 for a global grid, where both definitions agree.
    """
    latitude = np.asarray(latitude, np.float64)
    order = np.argsort(latitude)
    phi = np.deg2rad(latitude[order])
    between = (phi[1:] + phi[:-1]) / 2
    south, north = reaches_poles(latitude)
    first = -np.pi / 2 if south else phi[0] - (between[0] - phi[0])
    last = np.pi / 2 if north else phi[-1] + (phi[-1] - between[-1])
    edges = np.clip(np.concatenate([[first], between, [last]]), -np.pi / 2, np.pi / 2)
    weights = np.empty_like(phi)
    weights[order] = np.diff(np.sin(edges))
    return weights / weights.mean()


def reaches_poles(latitude: Any) -> tuple[bool, bool]:
    """Whether the rows go on to the south and to the north pole, with or without a row on it; rows in any order."""
    rows = np.sort(np.asarray(latitude, np.float64))
    return bool(rows[0] + 90 < POLAR_GAP * (rows[1] - rows[0])), bool(90 - rows[-1] < POLAR_GAP * (rows[-1] - rows[-2]))


def _renamed(dataset: xarray.Dataset) -> xarray.Dataset:
    dims, coords = ({str(name).lower(): name for name in names} for names in (dataset.dims, dataset.coords))
    renames, hidden = {}, []
    for canonical, names in DIMENSIONS.items():
        lower = [name.lower() for name in names]
        found = next((dims[name] for name in lower if name in dims), None) or _by_attributes(dataset, canonical)
        if found is None and canonical == "level":
            found = next(iter(pressure_axes(dataset)), None) if len(pressure_axes(dataset)) == 1 else None
        found = found or next((coords[name] for name in lower if name in coords), None)
        if found is not None and found != canonical:
            renames[found] = canonical
            if canonical in dataset.coords:  # the run's time beside valid_time, or latitudes of every cell beside lat
                hidden.append(canonical)
    renames = {found: canonical for found, canonical in renames.items() if canonical not in dataset.data_vars}
    return dataset.drop_vars(hidden).rename(renames)


def _is_curvilinear(dataset: xarray.Dataset) -> bool:
    return any(
        str(name).lower() in DIMENSIONS["latitude"] and coordinate.ndim == 2
        for name, coordinate in dataset.variables.items()
    )


def _by_attributes(dataset: xarray.Dataset, canonical: str) -> Any:
    """The one dimension that its attributes (CF conventions), or times as its values, say
    to be this; None without one.
    """

    def is_it(axis: xarray.DataArray) -> bool:
        if str(axis.attrs.get("standard_name", "")).lower() == STANDARD_NAMES[canonical]:
            return True
        units = str(axis.attrs.get("units", "")).lower()
        if canonical in DEGREES:
            return DEGREES[canonical].fullmatch(units) is not None
        return canonical == "time" and axis.dtype.kind == "M"

    found = [name for name in dataset.dims if name in dataset.coords and is_it(dataset.coords[name])]
    return found[0] if len(found) == 1 else None


def pressure_axes(dataset: xarray.Dataset | xarray.DataArray) -> list[str]:
    """Dimensions whose coordinate is in a unit of pressure."""
    axes = {str(name): dataset.coords[name] for name in dataset.dims if name in dataset.coords}
    return [name for name, axis in axes.items() if plain_unit(str(axis.attrs.get("units", ""))) in PASCAL]


def lead_spans(lead: xarray.DataArray) -> Any:
    """Leads as time spans, whether stored so or as numbers with a unit; None where the unit is not known."""
    if lead.dtype.kind == "m":
        return lead.values.astype("timedelta64[ns]")
    seconds = LEAD_UNITS.get(str(lead.attrs.get("units", "")).lower().removesuffix("s"))
    if seconds is None or lead.dtype.kind not in "iuf":
        return None
    return np.round(lead.values.astype(np.float64) * seconds).astype("timedelta64[s]").astype("timedelta64[ns]")


def first_lead(dataset: xarray.Dataset, notes: list[str]) -> xarray.Dataset:
    """Of forecasts over leads the first lead, as a coordinate of one value; other fields as they are."""
    name = next((n for n in LEAD_NAMES if n in dataset.dims), None)
    if name is None:
        return dataset
    if dataset.sizes[name] > 1:
        notes.append(f"of the {dataset.sizes[name]} along {name} the first is taken")
    is_shared = all(name in field.dims for field in dataset.data_vars.values() if field.ndim > 1)
    return dataset.isel({name: 0}, drop=not is_shared)  # analyses beside forecasts keep their times


def _at_valid_times(dataset: xarray.Dataset, notes: list[str]) -> xarray.Dataset:
    """Forecasts at one lead: their times are those that they are valid at, not those at which the runs began."""
    runs = next((n for n in INITIAL_NAMES if n in dataset.coords), None)
    # By the CF conventions, `time` beside a forecast period is the valid time.
    names = LEAD_NAMES if runs != "time" else LEAD_NAMES[:-1]
    name = next((n for n in names if n in dataset.coords and dataset.coords[n].ndim == 0), None)
    if runs is None or name is None or "valid_time" in dataset.dims or dataset.coords[runs].dtype.kind != "M":
        return dataset
    span = lead_spans(dataset.coords[name])
    if span is None or not span > np.timedelta64(0, "ns"):
        return dataset
    notes.append(f"these are forecasts of {span / np.timedelta64(1, 'h'):g} h; their times are the valid ones")
    return dataset.drop_vars(name).assign_coords({runs: dataset.coords[runs] + span})


def _combined_expver(dataset: xarray.Dataset, notes: list[str]) -> xarray.Dataset:
    """ERA5 and its preliminary part (ERA5T) side by side: the first where it is known, else the second."""
    if "expver" not in dataset.dims:
        return dataset
    if dataset.sizes["expver"] > 1:
        notes.append("expver: ERA5 where it is known, else ERA5T")
        if "expver" in dataset.coords:  # 1 and 5, or 0001 and 0005, in any order
            dataset = dataset.isel(expver=np.argsort(dataset["expver"].values, kind="stable"))
        dataset = dataset.chunk({"time": 1} if "time" in dataset.dims else {})  # else all would be read here
    combined = dataset.isel(expver=0, drop=True)
    for i in range(1, dataset.sizes["expver"]):
        combined = combined.combine_first(dataset.isel(expver=i, drop=True))
    return combined


def _with_dates(dataset: xarray.Dataset, notes: list[str]) -> xarray.Dataset:
    """Times of a calendar without leap days, say, as the common dates of the same name. A
    calendar with dates that do not exist, such as a 30th of February, is left as it is.
    """
    import xarray as xr

    index = dataset.indexes.get("time")
    if not isinstance(index, xr.CFTimeIndex):
        return dataset
    try:
        dates = index.to_datetimeindex(unsafe=True, time_unit="ns")
    except ValueError:
        return dataset
    notes.append(f"times were in the {index.calendar} calendar; the common dates of the same name are taken")
    return dataset.assign_coords(time=("time", dates, dataset["time"].attrs))


def _without_seam(dataset: xarray.Dataset, source: str, notes: list[str]) -> xarray.Dataset:
    """Without the last meridian where it is the first one again: 0 and 360, or -180 and 180 degrees."""
    longitude = dataset.longitude.values.astype(np.float64)
    west, east = int(longitude.argmin()), int(longitude.argmax())
    span = longitude[east] - longitude[west]
    if span < 360 - POLE_TOLERANCE_DEGREES:
        return dataset
    both = f"({longitude[west]:g} and {longitude[east]:g} degrees)"
    if span > 360 + POLE_TOLERANCE_DEGREES:
        raise InputError(f"{source} goes round the earth more than once {both}; cut its longitudes to 360 degrees")
    # Of the times the first, middle and last: a column of all of them would mean to read the whole file.
    n_times = dataset.sizes.get("time", 1)
    some = dataset.isel(time=sorted({0, n_times // 2, n_times - 1})) if "time" in dataset.dims and n_times else dataset
    for name, field in some.data_vars.items():
        if "longitude" in field.dims and field.dtype.kind in "fiu" and not _is_same(field, west, east):
            raise InputError(
                f"{source} holds the same meridian twice {both}, with other values of {name}; drop one column"
            )
    notes.append(f"the same meridian came twice {both}; the second is left out")
    return dataset.isel(longitude=np.delete(np.arange(len(longitude)), east))


def _is_same(field: xarray.DataArray, west: int, east: int) -> bool:
    """Whether two columns of a field are equal but for rounding, with the same gaps."""
    a, b = (field.isel(longitude=column).values.astype(np.float64) for column in (west, east))
    largest = np.max(np.abs(a), initial=0.0, where=np.isfinite(a))
    return bool(np.allclose(a, b, rtol=0, atol=SEAM_TOLERANCE * largest, equal_nan=True))


def _ordered_longitude(dataset: xarray.Dataset, notes: list[str]) -> xarray.Dataset:
    longitude = dataset.longitude.values.astype(np.float64)
    steps = np.diff(longitude)
    is_ascending = longitude.min() >= 0 and longitude.max() < 360 - POLE_TOLERANCE_DEGREES and (steps > 0).all()
    if is_ascending and steps.max() <= 3 * np.median(steps):
        return dataset
    moved = np.mod(longitude, 360.0)
    moved[moved > 360 - POLE_TOLERANCE_DEGREES] = 0.0  # Greenwich, a rounding error to the west: -1e-12 degrees
    order = np.argsort(moved, kind="stable")
    gaps = np.diff(moved[order])
    if gaps.max() > 3 * np.median(gaps):  # a region across Greenwich stays in one piece
        start = int(gaps.argmax()) + 1
        order = np.concatenate([order[start:], order[:start]])
        moved = np.where(moved >= moved[order[0]], moved, moved + 360.0)
        notes.append("the region lies across 0 degrees east; its longitudes run on beyond 360")
    elif (np.diff(order) < 0).any():
        notes.append("longitudes were brought to 0 to 360, ascending")
    return dataset.assign_coords(longitude=("longitude", moved)).isel(longitude=order)


def _check_even(values: Any, name: str, source: str) -> None:
    steps = np.diff(np.asarray(values, np.float64))
    mean = steps.mean()
    if (steps == 0).any() or (np.sign(steps) != np.sign(mean)).any():
        raise InputError(f"{source} repeats or mixes up its {name} values; expected each once, in order")
    # The rows next to the poles of a Gaussian grid are a little further apart than the rest.
    inner = steps[1:-1] if name == "latitude" and len(steps) > 4 else steps
    if (abs(inner - np.median(steps)) > EVEN_TOLERANCE * abs(mean)).any():
        raise InputError(
            f"{source} has uneven {name} steps ({abs(steps).min():g} to {abs(steps).max():g} degrees); regrid it first"
        )


def _check_levels(level: xarray.DataArray, source: str) -> None:
    values = level.values
    is_good = (
        level.coords
        and values.dtype.kind in "fiu"
        and np.isfinite(values).all()
        and len(np.unique(values)) == len(values)
    )
    if not is_good:
        came = ", ".join(map(str, values[:5])) if level.coords else "levels without values"
        raise InputError(f"{source} has no usable levels: expected pressures in hPa, each once, got {came}")


def _level_in_hpa(dataset: xarray.Dataset, source: str, notes: list[str]) -> xarray.Dataset:
    level = dataset.coords["level"]
    given = str(level.attrs.get("units", ""))
    unit = plain_unit(given)
    called = f"{level.attrs.get('standard_name', '')} {level.attrs.get('long_name', '')}".lower()
    # MERRA-2 has 1, 2, 3, 4 and 5 hPa; no set of pressures goes on like that.
    is_counted = (
        level.ndim and level.size > (5 if unit else 3) and (np.diff(np.sort(level.values.astype(float))) == 1).all()
    )
    if "level" in dataset.dims and ((not unit and MODEL_LEVELS.search(called)) or is_counted):
        said = " ".join(called.split()) or f"numbered {level.values.min():g} to {level.values.max():g}"
        raise InputError(f"{source} is on model levels ({said}); interpolate to pressures first")
    if not unit:
        unit = "pa" if level.dtype.kind in "fiu" and float(level.max()) > 2000 else "hpa"
    if unit not in PASCAL and "level" in dataset.dims:
        raise InputError(
            f"{source} has levels in {given!r}; expected pressures in hPa or Pa: interpolate to them first"
        )
    if unit not in PASCAL:  # the height of a surface field
        return dataset.drop_vars("level")
    factor = PASCAL[unit][0] / 100
    if factor != 1:
        dataset = dataset.assign_coords(level=level * factor)
        notes.append(f"levels were in {given or 'Pa'}; converted to hPa")
    if "level" not in dataset.dims:
        return dataset
    pressures = dataset["level"].values
    if not ((pressures > 0) & (pressures <= HIGHEST_PRESSURE_HPA)).all():
        came = ", ".join(f"{value:g}" for value in np.atleast_1d(level.values)[:5])
        raise InputError(
            f"{source} has levels that are no pressures in {given or 'hPa'}: {came}; correct the unit of the level axis"
        )
    return dataset.sortby("level")


def _sizes(dataset: xarray.Dataset) -> str:
    return ", ".join(f"{name} {size}" for name, size in dataset.sizes.items()) or "none"
