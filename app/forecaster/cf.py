"""What the CF conventions call the fields and axes that we write."""

from __future__ import annotations

CONVENTIONS = "CF-1.11"

# Short name to long name and CF standard name. Source: ERA5, WeatherBench 2, CF conventions.
LONG_NAMES = {
    "z": ("geopotential", "geopotential"),
    "t": ("temperature", "air_temperature"),
    "u": ("u_component_of_wind", "eastward_wind"),
    "v": ("v_component_of_wind", "northward_wind"),
    "r": ("relative_humidity", "relative_humidity"),
    "q": ("specific_humidity", "specific_humidity"),
    "w": ("vertical_velocity", "lagrangian_tendency_of_air_pressure"),
    "t2m": ("2m_temperature", "air_temperature"),
    "u10": ("10m_u_component_of_wind", "eastward_wind"),
    "v10": ("10m_v_component_of_wind", "northward_wind"),
    "u100m": ("100m_u_component_of_wind", "eastward_wind"),
    "v100m": ("100m_v_component_of_wind", "northward_wind"),
    "msl": ("mean_sea_level_pressure", "air_pressure_at_mean_sea_level"),
    "sp": ("surface_pressure", "surface_air_pressure"),
    "tp": ("total_precipitation", "lwe_thickness_of_precipitation_amount"),
}

AXES = {
    "time": {"standard_name": "time", "axis": "T"},
    "level": {"units": "hPa", "standard_name": "air_pressure", "positive": "down", "axis": "Z"},
    "latitude": {"units": "degrees_north", "standard_name": "latitude", "axis": "Y"},
    "longitude": {"units": "degrees_east", "standard_name": "longitude", "axis": "X"},
}


def field_attributes(short: str, unit: str, name: str) -> dict[str, str]:
    """Attributes of a field by its short name and the name of its variable."""
    standard = {"standard_name": LONG_NAMES[short][1]} if short in LONG_NAMES else {}
    if standard.get("standard_name") == "air_temperature":
        standard["units_metadata"] = "temperature: on_scale"  # no difference of two: section 3.1.2
    return {"units": unit, **standard, "long_name": name.replace("_", " ")}
