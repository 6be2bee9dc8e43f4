"""Readable positions along a map's axis: degrees, hours or years instead of many seconds,
dates if the table has them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.embedding import EmbeddingMap

UNITS = {"degrees_north": "°N", "degrees_east": "°E", "1": ""}
# Seconds in a unit of time, and from how many of them on it is used; a year is the Gregorian mean.
TIME_UNITS = ((31_556_952.0, "years", 2), (86_400.0, "days", 3), (3_600.0, "h", 3), (60.0, "min", 5), (1.0, "s", 0))
# (days, characters): dates that span more than so many days are cut to so many characters of 2024-01-31 06:00.
DATE_LENGTHS = ((4 * 366, 4), (120, 7), (4, 10), (0, 16))

TICK_SHARE = 0.06  # of an axis of frequencies, that the words of one tick take


@dataclass(frozen=True)
class ReadableAxis:
    """Positions and their unit.

    Args:
        values: numbers in `unit`, or dates as text.
        unit: "" for dates and counts.
        label: for the axis of a chart, e.g. "frequency in Hz".
    """

    values: NDArray[Any]
    unit: str
    label: str

    def ticks(self, count: int = 5) -> tuple[NDArray[np.float64], list[str]]:
        """Positions (in cells) and labels of about `count` ticks: round numbers if the values rise or fall evenly."""
        steps = np.diff(self.values) if self.values.dtype.kind == "f" else np.zeros(0)
        if len(steps) and abs(steps[0]) > 0 and np.allclose(steps, steps[0], rtol=1e-3):
            rising = self.values if steps[0] > 0 else self.values[::-1]
            shown = _round_numbers(float(rising[0]), float(rising[-1]), count)
            places = (shown - self.values[0]) / ((self.values[-1] - self.values[0]) / len(steps))
            return places, [f"{value:,.6g}" for value in shown]
        places = np.linspace(0, len(self.values) - 1, min(count, len(self.values))).round()
        texts = [self.text(int(i)) for i in places]
        new = [k for k, text in enumerate(texts) if text not in texts[:k]]  # of a cycle shown several times, one
        return places[new], [texts[k] for k in new]

    def text(self, position: int) -> str:
        """One position without its unit, to three digits of the farthest one."""
        if self.values.dtype.kind != "f":
            return str(self.values[position])
        farthest = float(np.abs(self.values).max())
        decimals = max(0, 2 - math.floor(math.log10(farthest))) if farthest else 0
        text = f"{self.values[position]:,.{decimals}f}"
        return text.rstrip("0").rstrip(".") if decimals else text


def readable(emap: EmbeddingMap, name: str) -> ReadableAxis:
    """The axis `name` of a map."""
    axis = emap.coords[name]
    values = axis.values.double().numpy()
    if axis.unit == "s":
        dates = _dates(emap, values) if name == "cycle" else None
        if dates is not None:
            return ReadableAxis(dates, "", name)
        span = float(np.ptp(values))
        seconds, unit = next((s, unit) for s, unit, least in TIME_UNITS if span >= least * s)
        return ReadableAxis(values / seconds, unit, f"{name} in {unit}")
    unit = UNITS.get(axis.unit, axis.unit)
    plain = "radii" if emap.modality == "pointcloud" else "steps"  # a cloud is scaled into the unit ball
    return ReadableAxis(values, unit, f"{name} in {unit or plain}")


def frequency_ticks(hertz: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[str]]:
    """Round frequencies within ascending ones, such as the centres of mel bins: where they lie,
    counted in bins, and their words. Of those that would overlap the lowest is named.
    """
    low, high = float(hertz[0]), float(hertz[-1])
    powers = range(math.floor(math.log10(max(low, 1))), math.ceil(math.log10(max(high, 1))) + 1)
    round_ones = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    shown = [value for value in round_ones if max(low, 100) <= value <= high] or [low, high]
    places = np.interp(shown, hertz, np.arange(len(hertz)))
    apart = [0]
    for number in range(1, len(places)):
        if places[number] - places[apart[-1]] >= TICK_SHARE * len(hertz):
            apart.append(number)
    return places[apart], [f"{shown[number]:,.0f}" for number in apart]


def _round_numbers(low: float, high: float, count: int) -> NDArray[np.float64]:
    """About `count` multiples of 1, 2, 2.5, 5 or 10 times a power of ten within [low, high]."""
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    step = min((factor * power for factor in (1, 2, 2.5, 5, 10)), key=lambda step: abs((high - low) / step - count))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return np.arange(first, last + 1, dtype=np.float64) * step


def _dates(emap: EmbeddingMap, seconds: NDArray[np.float64]) -> NDArray[np.str_] | None:
    """When the rows of a folded table begin, as short as their span allows; None where it has no dates."""
    start, step = emap.metadata.get("start_time"), emap.metadata.get("step_seconds")
    if start is None or step is None:
        return None
    since = seconds - emap.metadata.get("first_step", 0) * step  # the window's own start is what start_time says
    moments = np.datetime64(start, "s") + since.round().astype("timedelta64[s]")
    days = np.ptp(seconds) / 86_400
    length = next(length for least, length in DATE_LENGTHS if days >= least)
    return np.char.replace(moments.astype(str), "T", " ").astype(f"<U{length}")
