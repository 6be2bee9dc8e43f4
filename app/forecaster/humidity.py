"""Relative to specific humidity and back, as the IFS defines them: Tetens' saturation over water,
over ice, and mixed between.

Scores of WeatherBench 2 take specific humidity; PuYun and FuXi forecast relative humidity. ERA5's own
relative humidity is this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from unipercept.errors import InputError

if TYPE_CHECKING:
    import xarray

# Source: IFS documentation CY47R3, part IV, chapter 12: equations 12.13 to 12.16 (saturation) and R_dry / R_vap.
RATIO = 287.0597 / 461.5250
FREEZING_K, ALL_ICE_K = 273.16, 250.16
SATURATION_PA = 611.21
OVER_WATER, OVER_ICE = (17.502, 32.19), (22.587, -0.7)
PASCAL = 100.0  # a hPa


def saturation_pressure(temperature: Any) -> Any:
    """Saturation vapour pressure in Pa at a temperature in K: over water above 273.16 K, over ice below 250.16 K,
    mixed by the square in between.
    """
    share = ((temperature - ALL_ICE_K) / (FREEZING_K - ALL_ICE_K)).clip(0, 1) ** 2
    water, ice = (
        SATURATION_PA * np.exp(a * (temperature - FREEZING_K) / (temperature - b)) for a, b in (OVER_WATER, OVER_ICE)
    )
    return share * water + (1 - share) * ice


def relative_humidity(specific: Any, temperature: Any, level_hpa: Any) -> Any:
    """Relative humidity in percent, from specific humidity in kg/kg, K and hPa. It may exceed 100."""
    vapour = level_hpa * PASCAL * specific / (RATIO + (1 - RATIO) * specific)
    return 100 * vapour / saturation_pressure(temperature)


def specific_humidity(relative: Any, temperature: Any, level_hpa: Any) -> Any:
    """Specific humidity in kg/kg, the inverse of `relative_humidity`."""
    vapour = relative / 100 * saturation_pressure(temperature)
    return RATIO * vapour / (level_hpa * PASCAL - (1 - RATIO) * vapour)


def with_humidity(dataset: xarray.Dataset, name: str) -> xarray.Dataset:
    """A dataset of `open_fields` with `name` ("q" or "r") for its humidity, lazily; as it is
    where that is there already.

    Raises:
        InputError: another name, or no humidity and temperature on levels to make it of.
    """
    if name not in ("q", "r"):
        raise InputError(f'humidity must be "q" or "r", got {name!r}')
    other = "r" if name == "q" else "q"
    if name in dataset:
        return dataset.drop_vars(other, errors="ignore")
    if not all(n in dataset and "level" in dataset[n].dims for n in (other, "t")):
        raise InputError(f"{name} needs {other} and t on levels to be made of")
    convert, unit = (specific_humidity, "kg kg-1") if name == "q" else (relative_humidity, "%")
    made = convert(dataset[other], dataset["t"], dataset["level"]).transpose(*dataset[other].dims)
    note = f"{name} made of {other} by the IFS's mixed-phase saturation"
    notes = "; ".join(filter(None, (dataset.attrs.get("conversions", ""), note)))
    return dataset.drop_vars(other).assign({name: made.assign_attrs(units=unit)}).assign_attrs(conversions=notes)
