"""Units of weather fields: their spellings, and the factor and offset to ours (SI; relative humidity in %)."""

from __future__ import annotations

import re

GRAVITY = 9.80665  # m s-2, standard; geopotential = gravity * geopotential height

SAME = (1.0, 0.0)
# Factor and offset for every spelling that files use, once `plain_unit` has levelled it.
_METRES_PER_SECOND = {
    **dict.fromkeys(("m s-1", "m/s", "ms-1"), SAME),
    **dict.fromkeys(("knots", "knot", "kt", "kts"), (1852 / 3600, 0.0)),
    **dict.fromkeys(("km/h", "km h-1"), (1 / 3.6, 0.0)),
}
_KELVIN = {
    **dict.fromkeys(("k", "kelvin", "degk", "deg k", "degrees k", "degree kelvin", "degrees kelvin", "kelvins"), SAME),
    **dict.fromkeys(
        (
            "degc",
            "c",
            "celsius",
            "°c",
            "deg c",
            "degreec",
            "degreesc",
            "degree c",
            "degrees c",
            "degree celsius",
            "degrees celsius",
        ),
        (1.0, 273.15),
    ),
    **dict.fromkeys(("degf", "f", "fahrenheit", "°f", "deg f", "degrees fahrenheit"), (5 / 9, 273.15 - 32 * 5 / 9)),
}
PASCAL = {
    **dict.fromkeys(("pa", "pascal", "pascals"), SAME),
    **dict.fromkeys(("hpa", "mbar", "mb", "millibar", "millibars", "hectopascal", "hectopascals"), (100.0, 0.0)),
    "kpa": (1000.0, 0.0),
}
_GEOPOTENTIAL = dict.fromkeys(("m2 s-2", "m2s-2", "m2/s2", "j kg-1", "j/kg"), SAME)
HEIGHT = {
    **dict.fromkeys(("gpm", "m", "geopotential m"), (GRAVITY, 0.0)),
    **dict.fromkeys(("gpdam", "dam"), (10 * GRAVITY, 0.0)),
}
_DEPTH = {
    **dict.fromkeys(("m", "m of water equivalent"), SAME),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "kg m-2", "kg/m2"), (1e-3, 0.0)),  # of water
}
# Short name of a variable to its unit, and the spellings of units that it may come in.
UNITS: dict[str, tuple[str, dict[str, tuple[float, float]]]] = {
    "z": ("m2 s-2", _GEOPOTENTIAL | HEIGHT),
    "t": ("K", _KELVIN),
    "t2m": ("K", _KELVIN),
    **dict.fromkeys(("u", "v", "u10", "v10", "u100m", "v100m"), ("m s-1", _METRES_PER_SECOND)),
    "r": ("%", {"%": SAME, "percent": SAME, "1": (100.0, 0.0), "fraction": (100.0, 0.0)}),
    "q": (
        "kg kg-1",
        {**dict.fromkeys(("kg kg-1", "kg/kg", "g/g", "1"), SAME), **dict.fromkeys(("g kg-1", "g/kg"), (1e-3, 0.0))},
    ),
    "msl": ("Pa", PASCAL),
    "sp": ("Pa", PASCAL),
    "tp": ("m", _DEPTH),
}


SPELLINGS = (
    ("**", ""), ("^", ""), ("_", " "), ("{", ""), ("}", ""), ("−", "-"), ("⁻", "-"), ("¹", "1"), ("²", "2"), ("³", "3"),
    ("+", ""), ("·", " "), ("℃", "°c"), ("º", "°"), ("metre", "meter"), ("celcius", "celsius"),
)  # fmt: skip
WORDS = ((r"\b(?:sec|seconds?)(?=[\d-]|\b)", "s"), (r"\bmeters?(?=[\d-]|\b)", "m"), (r"\bgrams?\b", "g"))


def plain_unit(unit: str) -> str:
    """A unit without what spellings differ in: powers as m2 or s-1, the signs for minus and degree, and whole words."""
    spelled = unit.lower()
    for other, ours in SPELLINGS:
        spelled = spelled.replace(other, ours)
    for pattern, ours in WORDS:
        spelled = re.sub(pattern, ours, spelled)
    return " ".join(re.sub(r"(?<=[a-z\d])\.(?=[a-z])", " ", spelled).split())  # m2.s-2
