"""What weather can be: codes for missing cells that no attribute of the file names, and fields whose unit cannot be
right.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Lowest and highest value of a short name in its canonical unit: wide, so that nothing on earth lies outside.
LIMITS = {
    "t": (100.0, 400.0),
    "t2m": (150.0, 400.0),
    **dict.fromkeys(("u", "v", "u10", "v10", "u100m", "v100m"), (-300.0, 300.0)),
    "r": (-50.0, 300.0),
    "q": (-0.01, 0.2),
    "w": (-300.0, 300.0),
    "msl": (8e4, 1.15e5),
    "sp": (2e4, 1.15e5),
    "tp": (-0.01, 20.0),
    "z": (-9e3, 2e6),
}
HUGE = 1e15  # fill values of NetCDF (9.97e36), of GRIB, CMIP (1e20) and Ferret (-1e34) lie beyond
# What programs write for a missing cell. 0 counts only where 0 cannot be, as in kelvins.
CODES = np.array(
    [
        *(0, -99, -999, -9999, -99999, -999999, -99.9, -999.9, -9999.9, -999.25, -7777, -8888),
        *(999, 9999, 99999, 999999, 32767, -32767, -32768),
    ],
    np.float32,
)
ON_LEVEL = re.compile(r"([ztuvrqw])(\d+(?:\.\d+)?)")
SCALE_HEIGHT = 7.4e3 * 9.80665  # of pressure, as geopotential in m2 s-2
SEA_LEVEL_HPA = 1013.25
Limits = tuple[float, float]


def limits_of(channel: str) -> Limits:
    """What the values of a channel such as t2m or z500 lie between, in its canonical unit; any number for others."""
    if channel in LIMITS:
        return LIMITS[channel]
    match = ON_LEVEL.fullmatch(channel)
    if match is None:
        return -HUGE, HUGE
    short, level = match[1], float(match[2])
    if short != "z" or not level:
        return LIMITS[short]
    expected = -SCALE_HEIGHT * float(np.log(level / SEA_LEVEL_HPA))
    allowed = 1e4 + 0.2 * abs(expected)
    return expected - allowed, expected + allowed


def without_codes(values: NDArray[Any], limits: Limits) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Fields with their codes for missing, such as -9999, as NaN; and the codes, none for most fields.

    A code lies outside the limits while most other cells lie within. Where little is known of a variable, it lies
    farther from the others than they lie apart.

    Args:
        limits: in the unit of the values.
    """
    ends, known = (values.min(initial=np.inf), values.max(initial=-np.inf)), None
    if not np.isfinite(ends).all():
        known = np.isfinite(values)
        if not known.any():
            return values, ()
        ends = values.min(where=known, initial=np.inf), values.max(where=known, initial=-np.inf)
    is_limited = limits[1] < HUGE
    if (
        limits[0] <= ends[0]
        and ends[1] <= limits[1]
        and (is_limited or not np.isin(np.asarray(ends, np.float32), CODES).any())
    ):
        return values, ()
    known = np.isfinite(values) if known is None else known
    coded = known & (abs(values) >= HUGE)
    listed = known & np.isin(values.astype(np.float32), CODES) & ~coded
    others = values[known & ~coded & ~listed]
    if is_limited:
        outside = (values < limits[0]) | (values > limits[1])
        n_wrong = int(((others < limits[0]) | (others > limits[1])).sum())
        if 2 * n_wrong <= len(others):  # otherwise it is the unit that is wrong
            coded |= listed & outside & ((values != 0) | bool(len(others)))
    elif len(others):
        low, high = np.quantile(others, (0.01, 0.99))
        coded |= listed & (values != 0) & ((values < 2 * low - high) | (values > 2 * high - low))
    codes = tuple(np.unique(values[coded]).tolist())
    return (np.where(coded, np.nan, values), codes) if codes else (values, ())


def doubt(channel: str, unit: str, values: NDArray[Any]) -> str | None:
    """A sentence where most cells of a field, in its canonical unit, lie outside what weather can be."""
    low, high = limits_of(channel)
    known = values[np.isfinite(values)]
    if 2 * int(((known < low) | (known > high)).sum()) <= len(known):
        return None
    return f"{channel} is {float(np.median(known)):.5g} {unit} for the most part, which no weather is; check its unit"
