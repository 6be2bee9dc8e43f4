"""The regular step of times: even, months, working days."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError

MOST_CHANGES = 60  # clock changes in spring of a table
MIN_COUNTED = 12  # rows that show a calendar which moves the day of the month
MOVED_DAYS = 5  # that a weekend with holidays moves a day of the month by
SECOND, DAY = 1_000_000_000, 86_400_000_000_000  # nanoseconds


@dataclass(frozen=True)
class Step:
    """The even distance between rows: nanoseconds, whole months, working days, months of whole weeks; or a count."""

    kind: Literal["even", "month", "month-end", "working day", "weeks", "count"]
    size: int = 1  # nanoseconds of "even", months of the month kinds
    day: int = 1  # of the month, for "month"
    roll: Literal["", "backward", "forward"] = ""  # to which working day a weekend moves the day of the month
    weeks: tuple[int, ...] = ()  # 4 or 5 each, of the last year, for "weeks"

    @property
    def seconds(self) -> float:
        """Mean length of a step; 1 for a count."""
        return {
            "even": self.size / SECOND,
            "month": self.size * 365.25 / 12 * 86_400,
            "month-end": self.size * 365.25 / 12 * 86_400,
            "working day": 365.25 / 260.9 * 86_400,
            "weeks": 365.25 / max(1, len(self.weeks)) * 86_400,
            "count": 1.0,
        }[self.kind]

    def __str__(self) -> str:
        if self.kind == "count":
            return "1 row"
        if self.kind == "working day":
            return "1 working day"
        if self.kind == "weeks":
            return "4 or 5 weeks"
        if self.kind in ("month", "month-end"):
            size, unit = (self.size // 12, "year") if self.size % 12 == 0 else (self.size, "month")
            return f"{size} {unit}{'s' * (size != 1)}"
        for length, unit in (
            (7 * DAY, "week"),
            (DAY, "day"),
            (3600 * SECOND, "hour"),
            (60 * SECOND, "minute"),
            (SECOND, "second"),
        ):
            if self.size % length == 0 and self.size:
                size = self.size // length
                return f"{size} {unit}{'s' * (size != 1)}"
        return f"{self.size / SECOND:g} seconds"

    def times(self, first: Any, count: int, start: int = 0) -> NDArray[Any]:
        """`count` times, the first of them `start` steps after `first`."""
        slots = np.arange(start, start + count)
        if self.kind == "count":
            return int(first) + slots
        origin = np.datetime64(first, "ns")
        if self.kind == "even":
            return np.asarray(origin + slots * np.timedelta64(self.size, "ns"))
        if self.kind == "working day":
            date = origin.astype("datetime64[D]")
            return np.asarray(np.busday_offset(date, slots, roll="forward").astype("datetime64[ns]") + (origin - date))
        if self.kind == "weeks":
            year = np.cumsum((0, *self.weeks))
            turns, rest = np.divmod(slots, len(self.weeks))
            return np.asarray(origin + (turns * year[-1] + year[rest]) * np.timedelta64(7, "D"))
        months = origin.astype("datetime64[M]") + slots * np.timedelta64(self.size, "M")
        clock = origin - origin.astype("datetime64[D]")
        ends = (months + np.timedelta64(1, "M")).astype("datetime64[D]") - np.timedelta64(1, "D")
        days = ends
        if self.kind == "month":
            days = np.minimum(months.astype("datetime64[D]") + np.timedelta64(self.day - 1, "D"), ends)
        if self.roll:
            days = np.busday_offset(days, 0, roll=self.roll)
        return np.asarray(days.astype("datetime64[ns]") + clock)

    def slots(self, times: NDArray[Any]) -> NDArray[np.int64]:
        """The number of the step that each time lies in or nearest to, counted from the first."""
        if self.kind == "even":
            return np.asarray(np.rint((times - times[0]).astype(np.int64) / self.size), np.int64)
        if self.kind == "working day":
            days = times.astype("datetime64[D]")
            return np.asarray(np.busday_count(days[0], days), np.int64)
        if self.kind == "weeks":
            return np.asarray(np.rint((times - times[0]).astype(np.int64) / SECOND / self.seconds), np.int64)
        months = times.astype("datetime64[M]").astype(np.int64)
        return np.asarray(np.rint((months - months[0]) / self.size), np.int64)


def find_step(times: NDArray[Any]) -> Step:
    """The step of sorted, distinct datetime64[ns] times, at least two: months, working days, or the median gap.

    Raises:
        InputError: all times are equal.
    """
    gaps = np.diff(times).astype(np.int64)
    step = int(np.median(gaps))
    if step <= 0:
        raise InputError("times must differ")
    days = gaps / DAY
    if len(times) >= MIN_COUNTED and np.isin(gaps, (28 * DAY, 35 * DAY)).all() and len(np.unique(gaps)) == 2:
        of_year = 12 if (days == 35).mean() > 0.2 else 13  # quarters of 4, 4 and 5 weeks, or 13 periods
        return Step("weeks", weeks=tuple((gaps[-of_year:] // (7 * DAY)).tolist()))
    months = round(step / DAY / 30.4375)
    if months >= 1 and abs(step / DAY - months * 30.4375) <= 2.6 and (np.abs(days - np.rint(days)) < 1e-9).all():
        found = _months(times, months)
        if found is not None:
            return found
    if step == DAY and len(times) >= 10 and (gaps > DAY).any():
        weekdays = (times.astype("datetime64[D]").astype(np.int64) + 3) % 7  # 0 is Monday
        if (weekdays < 5).all():
            return Step("working day")
    return Step("even", step)


def _months(times: NDArray[Any], months: int) -> Step | None:
    """A step of whole months, if the times lie on one day of the month (or its last); of many, one in fifty may
    not: today's price at the end.
    """
    dates = times.astype("datetime64[D]")
    day = (dates - dates.astype("datetime64[M]").astype("datetime64[D]")).astype(np.int64) + 1
    is_end = (dates + 1).astype("datetime64[M]") > dates.astype("datetime64[M]")
    number = dates.astype("datetime64[M]").astype(np.int64)
    strays = len(times) // 50
    new = np.concatenate([[True], np.diff(number) > 0])
    if ((number - number[0]) % months > 0).sum() > strays or (~new).sum() > strays:
        return None
    if (~is_end).sum() <= strays:
        return Step("month-end", months)
    usual = int(day.max()) if not strays else int(np.bincount(day).argmax())
    if (~((day == usual) | is_end)).sum() <= strays:
        return Step("month", months, usual)
    return _moved_months(times, day, months)


def _moved_months(times: NDArray[Any], day: NDArray[np.int64], months: int) -> Step | None:
    """The same where each month has one row that weekends move: the last working day, the 15th or the one after it."""
    gaps = np.diff(times).astype(np.int64) // DAY
    number = times.astype("datetime64[M]").astype(np.int64)
    if len(times) < MIN_COUNTED or len(np.unique(gaps)) == 1 or len(np.unique(number)) < len(number):
        return None
    ends = (times.astype("datetime64[M]") + 1).astype("datetime64[D]").astype(np.int64)
    dates = times.astype("datetime64[D]")
    found = None
    if (ends - dates.astype(np.int64) <= MOVED_DAYS).all():
        found = Step("month-end", months)
    elif np.ptp(day) < MOVED_DAYS or (gaps % 7 == 0).all():
        found = Step("month", months, int(day.min() if np.ptp(day) < MOVED_DAYS else np.median(day)))
    if found is None or not np.is_busday(dates).all():
        return found
    for roll in ("backward", "forward"):
        rolled = replace(found, roll=roll)
        if (
            rolled.times(times[0], int(number[-1] - number[0]) // months + 1)[(number - number[0]) // months] == times
        ).mean() >= 0.9:
            return rolled
    return found


def clock_changes(repeated: NDArray[Any], missing: NDArray[Any]) -> bool:
    """Whether repeated and missing hours are those of daylight saving time: at night, on
    Sundays of spring and autumn.
    """

    def at_night(times: NDArray[Any], months: tuple[int, ...]) -> NDArray[np.bool_]:
        days = times.astype("datetime64[D]")
        sunday = (days.astype(np.int64) + 3) % 7 == 6
        hour = (times - days).astype("timedelta64[h]").astype(np.int64)
        month = times.astype("datetime64[M]").astype(np.int64) % 12 + 1
        return np.asarray(sunday & (hour <= 3) & np.isin(month, months))

    spring, spring_autumn = (3, 4), (3, 4, 9, 10, 11)
    if not len(repeated):  # a table that ends before autumn, or that has one of the two hours
        is_midnight = missing == missing.astype("datetime64[D]")  # a day that is missing, not an hour
        return bool(0 < len(missing) <= MOST_CHANGES and not is_midnight.any() and at_night(missing, spring).all())
    return bool(
        at_night(repeated, spring_autumn).all() and (not len(missing) or at_night(missing, spring_autumn).any())
    )
