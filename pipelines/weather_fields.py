"""The channels of ERA5-like fields: sets of them, their names and units.

Their order: variable by variable with pressure ascending, then the surface. What is converted is said in a sentence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unipercept.errors import InputError
from unipercept.pipelines.weather_grid import LEAD_NAMES, MEMBER_NAMES, pressure_axes
from unipercept.pipelines.weather_units import HEIGHT, SAME, UNITS, plain_unit

if TYPE_CHECKING:
    import xarray

LEVELS_13 = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)  # hPa


@dataclass(frozen=True)
class ChannelSet:
    """Which channels, in which order: upper-air variables with their levels in hPa, then surface variables."""

    upper: tuple[tuple[str, tuple[int, ...]], ...]
    surface: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Channel names such as z500 and t2m, in order."""
        return (*(f"{name}{level}" for name, levels in self.upper for level in levels), *self.surface)


PUYUN69 = ChannelSet(tuple((name, LEVELS_13) for name in ("z", "t", "u", "v", "r")), ("t2m", "u10", "v10", "msl"))
WB69 = ChannelSet(tuple((name, LEVELS_13) for name in ("z", "t", "u", "v", "q")), ("t2m", "u10", "v10", "msl"))
CHANNEL_SETS = {"puyun69": PUYUN69, "wb69": WB69}
UPPER_AIR = ("z", "t", "u", "v", "r", "q", "w")
ORDER = ("z", "t", "u", "v", "r", "q", "w", "t2m", "u10", "v10", "u100m", "v100m", "msl", "sp", "tp")

# Short name to the names that files use for it, in lower case.
ALIASES: dict[str, tuple[str, ...]] = {
    "z": ("z", "geopotential", "gh", "geopotential_height", "hgt", "zg"),
    "t": ("t", "temperature", "air_temperature", "ta", "air"),
    "u": ("u", "u_component_of_wind", "eastward_wind", "ua", "uwnd"),
    "v": ("v", "v_component_of_wind", "northward_wind", "va", "vwnd"),
    "r": ("r", "relative_humidity", "rh", "hur", "rhum"),
    "q": ("q", "specific_humidity", "hus", "shum"),
    "w": ("w", "vertical_velocity", "omega", "wap"),
    "t2m": ("t2m", "2t", "2m_temperature", "tas"),
    "u10": ("u10", "10u", "u10m", "10m_u_component_of_wind", "uas"),
    "v10": ("v10", "10v", "v10m", "10m_v_component_of_wind", "vas"),
    # What CDS calls u100 is 100 m above the ground; our u100 is at 100 hPa.
    "u100m": ("u100m", "u100", "100u", "100m_u_component_of_wind"),
    "v100m": ("v100m", "v100", "100v", "100m_v_component_of_wind"),
    "msl": ("msl", "mean_sea_level_pressure", "air_pressure_at_mean_sea_level", "psl", "slp", "prmsl"),
    "sp": ("sp", "surface_pressure", "ps"),
    "tp": ("tp", "total_precipitation"),
}
SHORT_NAMES = {alias: short for short, aliases in ALIASES.items() for alias in aliases}
FLAT_SHORT = re.compile(r"([ztuvrqw])(\d{2,4})")
HEIGHT_NAMES = frozenset({"gh", "geopotential_height", "hgt", "zg", "h"})
ON_LEVELS = {"h": "z", "qv": "q"}  # of MERRA-2; at the surface h may be the height of waves
VERTICAL = re.compile(r"hybrid|sigma|eta|depth|height|level|layer|isobaric|isentropic|potentialvorticity|bottom_top")
KNOWN_AXES = frozenset({"time", "level", "latitude", "longitude", *LEAD_NAMES, *MEMBER_NAMES})


@dataclass(frozen=True)
class Channel:
    """The source of one channel: a variable, its level if any, and the conversion of its values to `unit`."""

    name: str
    variable: str
    level: float | None
    unit: str
    factor: float = 1.0
    offset: float = 0.0


def find_channels(
    dataset: xarray.Dataset, wanted: tuple[str, ...] | None, source: str, notes: list[str]
) -> list[Channel]:
    """The channels of a dataset in canonical order, or those that are wanted in their order.

    Raises:
        InputError: a wanted channel is not there (all that are missing are named), a unit is
            unknown, or nothing is gridded.
    """
    found: dict[str, tuple[str, str, float | None]] = {}  # channel to its variable, short name and level
    off: list[str] = []
    for variable in map(str, dataset.data_vars):
        array = dataset[variable]
        if not {"latitude", "longitude"} <= set(array.dims) or array.dtype.kind not in "fiu":
            continue
        short, levels = _names_of(variable, array)
        if stray := _stray_levels(short, array):
            off.append(f"{variable} is left out: it lies on {', '.join(stray)}, not on the levels in hPa")
            continue
        for name, level in levels:
            found.setdefault(name, (variable, short, level))
    if not found:
        what = "; ".join(off) or f"variables: {', '.join(map(str, dataset.data_vars)) or 'none'}"
        raise InputError(f"{source} has no field over latitude and longitude ({what})")
    missing = [name for name in wanted or () if name not in found]
    if missing:
        raise InputError(
            f"{source} lacks {', '.join(missing[:8])}{' …' if len(missing) > 8 else ''}; it has {', '.join(list(found)[:12])}"
            + "".join(f"; {sentence}" for sentence in off[:2])
        )
    if wanted is None:
        notes += off
    chosen = list(found) if wanted is None else wanted
    units = {
        variable: _unit_of(short, variable.lower(), dataset[variable], source, notes)
        for variable, short in dict.fromkeys(found[name][:2] for name in chosen)
    }
    channels = [Channel(name, found[name][0], found[name][2], *units[found[name][0]]) for name in chosen]
    return sorted(channels, key=_rank) if wanted is None else channels


def _names_of(variable: str, array: xarray.DataArray) -> tuple[str, list[tuple[str, float | None]]]:
    """The short name of a variable, and the names of its channels with their level where it has a level axis."""
    key = variable.lower()
    scalar = array.coords.get("level")
    is_on_level = "level" in array.dims or (scalar is not None and scalar.ndim == 0)
    standard = SHORT_NAMES.get(str(array.attrs.get("standard_name", "")).lower())
    if is_on_level:
        standard = ON_LEVELS.get(key, standard)
    elif standard in UPPER_AIR:
        standard = None  # the surface's own geopotential or a day's highest temperature has the same standard name
    short = SHORT_NAMES.get(key) or standard or variable
    base, digits = _flat_name(key)
    if digits:
        short = SHORT_NAMES[base]
    if "level" in array.dims:
        return short, [(f"{short}{level:g}", float(level)) for level in array["level"].values]
    if digits:
        return short, [(f"{short}{float(digits):g}", None)]
    named = f"{short}{float(scalar):g}" if scalar is not None and is_on_level and short in UPPER_AIR else short
    return short, [(named, None)]


def _stray_levels(short: str, array: xarray.DataArray) -> list[str]:
    """Vertical axes of an upper-air variable, or of pressures, that are not the level axis: model levels, heights above
    ground, a second axis of pressures. The first of their values would pass for the whole.
    """
    others = [d for d in map(str, array.dims) if d not in KNOWN_AXES and array.sizes[d] > 1]
    pressures, is_bare = pressure_axes(array), short in UPPER_AIR and "level" not in array.dims
    return [d for d in others if d in pressures or (is_bare and _is_vertical(array, d))]


def _is_vertical(array: xarray.DataArray, dim: str) -> bool:
    attributes = array.coords[dim].attrs if dim in array.coords else {}
    said = " ".join(str(attributes.get(name, "")) for name in ("standard_name", "long_name"))
    is_marked = "positive" in attributes or str(attributes.get("axis", "")).upper() == "Z"
    return is_marked or VERTICAL.search(f"{dim} {said}".lower()) is not None


def _flat_name(key: str) -> tuple[str, str]:
    """Name and level of WeatherBench's flat form, geopotential_500, and of z500; the level
    is empty where there is none.
    """
    base, _, digits = key.rpartition("_")
    if digits.isdigit() and base in SHORT_NAMES:
        return base, digits
    short = FLAT_SHORT.fullmatch(key)
    return (short[1], short[2]) if short and key not in SHORT_NAMES else (key, "")


def _unit_of(short: str, key: str, array: xarray.DataArray, source: str, notes: list[str]) -> tuple[str, float, float]:
    given = " ".join(str(array.attrs.get("units", "")).split())
    if short not in UNITS:
        return given or "1", 1.0, 0.0
    unit, table = UNITS[short]
    if not given:
        notes.append(f"{key} states no unit; taken as {unit if key not in HEIGHT_NAMES else 'gpm'}")
        factor, offset = HEIGHT["gpm"] if key in HEIGHT_NAMES else SAME
        return unit, factor, offset
    spelled = plain_unit(given)
    if spelled not in table:
        raise InputError(
            f"{source}: {key} is in {given!r}, which is not known for it; expected one of {', '.join(table)}"
        )
    factor, offset = table[spelled]
    if (factor, offset) != SAME:
        notes.append(f"{key} was in {given}; converted to {unit}")
    return unit, factor, offset


def _rank(channel: Channel) -> tuple[int, str, float]:
    short = channel.name.rstrip("0123456789.") if channel.name not in ORDER else channel.name
    position = ORDER.index(short) if short in ORDER else len(ORDER)
    level = channel.level
    if level is None and channel.name != short:
        level = float(channel.name.removeprefix(short) or 0)
    return position, short, level or 0.0
