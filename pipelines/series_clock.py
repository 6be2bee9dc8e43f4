"""Parsing times as tables write them, and finding their regular step.

A column is recognised once (`recognise_times`) and can then be read chunk by chunk. Everything becomes datetime64[ns]:
UTC where the file gives a zone, the clock of the file where it gives none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError

if TYPE_CHECKING:
    import pandas

MOST_CHANGES = 60  # clock changes in spring of a table
TIME_WORDS = frozenset((
    "time", "timestamp", "date", "datetime", "ts", "ds", "epoch", "unixtime", "unix_time", "when", "day",
    "month", "year", "period", "week", "quarter", "date_time", "time_utc", "utc", "valid_time", "local_time",
    "datum", "zeit", "zeitpunkt", "zeitstempel", "tag", "monat", "jahr", "fecha", "hora", "data", "heure",
    "jour",
))  # fmt: skip
# What pandas reads, and the first letters of a month's name by which others are told from it: Mai,
# mars, août, Dezember, enero.
_MONTHS = (
    ("Jan", r"jan|ene|gen"), ("Feb", r"feb|fév|fev"), ("Mar", r"mar|mär|maa|mrz"), ("Apr", r"apr|avr|abr"),
    ("May", r"may|mai|mei|mag"), ("Jun", r"jun|juin|giu"), ("Jul", r"jul|juil|lug"), ("Aug", r"aug|aoû|aou|ago"),
    ("Sep", r"sep|set"), ("Oct", r"oct|okt|out|ott"), ("Nov", r"nov"), ("Dec", r"dec|déc|dez|dic"),
)  # fmt: skip
_MONTH_WORD = r"(?:" + "|".join(stems for _, stems in _MONTHS) + r")[^\W\d_]*\.?"
_MONTH_AND_YEAR = rf"(?i:({_MONTH_WORD})[-/ ']{{1,2}}(\d{{2}}|\d{{4}}))"  # Jan-13, janv. 2013
_YEAR_AND_WEEK = r"(\d{4})[-_/ ]?(?:[Ww]|KW|kw|[Ww]eek)?[-_ ]?(\d{1,2})"
MIN_READ = 0.9  # share of cells that must read as times
MIN_COUNTED = 12  # dates as digits in a column whose name does not say so
SECONDS_1980, SECONDS_2100 = 315_532_800, 4_102_444_800
EXCEL_1970, EXCEL_2100 = 25_569, 73_051  # days since 1899-12-30, which is what Excel and its kin count
MOVED_DAYS = 5  # that a weekend with holidays moves a day of the month by
SECOND, DAY = 1_000_000_000, 86_400_000_000_000  # nanoseconds


@dataclass(frozen=True)
class TimeReading:
    """The format of the times in one column."""

    kind: Literal[
        "text",
        "words",
        "month",
        "week",
        "day-first",
        "month-first",
        "open",
        "quarter",
        "epoch",
        "excel",
        "compact",
        "year",
    ]
    unit: str = ""  # of "epoch" (s, ms, us, ns); the format of "compact"
    has_zone: bool = False

    @property
    def is_open(self) -> bool:
        """Day-first and month-first both fit all that has been seen."""
        return self.kind == "open"

    @property
    def said(self) -> str:
        """For a notice; empty for plain ISO text."""
        return {
            "text": "",
            "words": "",
            "open": "",
            "month": ", as months",
            "week": ", as ISO weeks",
            "year": "",
            "quarter": ", as quarters",
            "day-first": ", day first",
            "month-first": ", month first",
            "epoch": f", as {self.unit} since 1970 (UTC)",
            "excel": ", as Excel's serial days",
            "compact": ", as digits YYYYMMDD…",
        }[self.kind]

    def parse(self, column: pandas.Series[Any]) -> pandas.Series[Any]:
        """Cells as datetime64[ns] (with zone UTC where `has_zone`), NaT where a cell cannot be read."""
        import pandas as pd

        utc = self.has_zone
        if self.kind == "epoch":
            return pd.Series(pd.to_datetime(pd.to_numeric(column, errors="coerce"), unit=self.unit, errors="coerce"))
        if self.kind == "excel":
            seconds = (pd.to_numeric(column, errors="coerce").astype("float64") - EXCEL_1970) * 86_400
            # A day of binary fractions is off by some microseconds; Excel itself shows milliseconds at the best.
            return pd.Series(pd.to_datetime((seconds * 10).round() / 10, unit="s", errors="coerce"))
        if self.kind in ("compact", "year"):
            digits = pd.to_numeric(column, errors="coerce").astype("Int64").astype("string")
            return pd.Series(pd.to_datetime(digits, format=self.unit, errors="coerce"))
        text = column.astype("string").str.strip()
        if self.kind == "quarter":
            year, quarter = text.str.extract(r"(\d{4})")[0], text.str.extract(r"[Qq]([1-4])")[0]
            month = (quarter.astype("Int64") * 3 - 2).astype("string")
            return pd.Series(pd.to_datetime(year + "-" + month + "-01", errors="coerce"))
        if self.kind == "week":
            parts = text.str.replace(r"\.0$", "", regex=True).str.extract(rf"^{_YEAR_AND_WEEK}$")
            return pd.Series(pd.to_datetime(parts[0] + "-" + parts[1] + "-1", format="%G-%V-%u", errors="coerce"))
        if self.kind == "month":
            parts = text.str.extract(rf"^{_MONTH_AND_YEAR}$")
            months, year = _english(parts[0]), parts[1]
            form = "%b %Y" if (year.str.len() == 4).any() else "%b %y"
            return pd.Series(pd.to_datetime(months + " " + year, format=form, errors="coerce"))
        if self.kind == "words":
            return pd.Series(pd.to_datetime(_english(text), errors="coerce", utc=utc, format="mixed", dayfirst=True))
        if self.kind == "text":
            parsed = pd.to_datetime(text, errors="coerce", utc=utc, format="ISO8601")
            if parsed.notna().mean() < MIN_READ:
                parsed = pd.to_datetime(text, errors="coerce", utc=utc, format="mixed")
            return pd.Series(parsed)
        return pd.Series(
            pd.to_datetime(text, dayfirst=self.kind == "day-first", errors="coerce", utc=utc, format="mixed")
        )


def recognise_times(column: pandas.Series[Any]) -> TimeReading | None:
    """The format of times in a column of text, if nearly all of it parses.

    Day first or month first is decided from the whole column, and stays open if both fit.
    """
    import pandas as pd

    text = column.astype("string").str.strip()
    known = text.dropna()
    sample = known.iloc[:: max(1, len(known) // 200)]
    if sample.empty:
        return None
    if sample.str.fullmatch(r"\d{4}[-_ ]?[Qq][1-4]|[Qq][1-4][-_/ ]?\d{4}").mean() > MIN_READ:
        return TimeReading("quarter")
    if sample.str.fullmatch(r"\d{4}[-_/ ]?(?:[Ww]|KW|kw|[Ww]eek)[-_ ]?\d{1,2}").mean() > MIN_READ:
        return TimeReading("week")
    if known.str.fullmatch(r"\d{4}[-_/ ]\d{1,2}").mean() > MIN_READ and _are_weeks(known.str[5:]):
        return TimeReading("week")
    if sample.str.fullmatch(_MONTH_AND_YEAR).mean() > MIN_READ:
        found = TimeReading("month")  # which pandas would read as days of this year, where the year has two digits
        return found if found.parse(sample).notna().mean() >= MIN_READ else None
    if sample.str.fullmatch(rf"(?i)\d{{1,2}}\.?[- ](?:de )?{_MONTH_WORD}[- ](?:de )?\d{{4}}.*").mean() > MIN_READ:
        found = TimeReading("words", has_zone=_with_zone(sample))
        return found if found.parse(sample).notna().mean() >= MIN_READ else None
    # A year or three numbers: a time of day alone would be read as one of today.
    looks = sample.str.contains(r"\d{4}[-/.:T ]\d|\d[-/. ]\d{4}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2}").mean() >= MIN_READ
    words = (
        sample.str.contains(
            r"(?i)\d{1,2}[- ](?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)|(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*[- ]\d"
        ).mean()
        >= MIN_READ
    )
    if not (looks or words) or pd.to_numeric(sample, errors="coerce").notna().all():
        return None
    has_zone = _with_zone(sample)
    parts = known.str.extract(r"^(\d{1,2})([/.-])(\d{1,2})[/.-]\d{2,4}")
    if parts[0].notna().mean() > MIN_READ:
        first, second = parts[0].astype("Float64").max(), parts[2].astype("Float64").max()
        if first > 12 and second > 12:
            return None
        dotted = (parts[1] == ".").mean() > MIN_READ  # 31.12.2024: nobody writes dots month first
        if first > 12 or (dotted and second <= 12):
            return TimeReading("day-first", has_zone=has_zone)
        if second > 12:
            return TimeReading("month-first", has_zone=has_zone)
        return TimeReading("open", has_zone=has_zone)
    reading = TimeReading("text", has_zone=has_zone)
    return reading if reading.parse(sample).notna().mean() >= MIN_READ else None


def _with_zone(sample: pandas.Series[Any]) -> bool:
    return bool(sample.str.contains(r"(?:[ T]\d{2}:?\d{2}.*(?:[+-]\d{2}:?\d{2}|Z|UTC|GMT))$").mean() > 0.5)


def month_numbers(text: pandas.Series[Any]) -> pandas.Series[Any]:
    """1 to 12 for names of months in the languages known; missing for anything else."""
    order = {name.lower(): number for number, (name, _) in enumerate(_MONTHS, 1)}
    return _english(text.astype("string").str.strip()).str.lower().map(order).astype("Float64")


def _english(text: pandas.Series[Any]) -> pandas.Series[Any]:
    """Months in the names that pandas knows, and no "de" between them and the year."""
    for name, stems in _MONTHS:
        text = text.str.replace(rf"(?i)(?<![^\W\d_])(?:{stems})[^\W\d_]*\.?", name, regex=True)
    return text.str.replace(r"(?i)\bde\b", " ", regex=True).str.replace(r"(?<=\d)\.(?=\s)", "", regex=True)


def settled_by_steps(column: pandas.Series[Any], reading: TimeReading) -> TimeReading | None:
    """Which of day first and month first makes even steps of dates that could be either,
    where only one of them does.
    """
    even = []
    for kind in ("day-first", "month-first"):
        settled = TimeReading(kind, has_zone=reading.has_zone)
        times = np.unique(settled.parse(column).dropna().to_numpy("datetime64[ns]")).astype(np.int64)
        gaps = np.diff(times)
        share = len(gaps) * float(np.median(gaps)) / float(times[-1] - times[0]) if len(gaps) else 0.0
        even.append((share, settled))
    (worse, _), (better, settled) = sorted(even, key=lambda found: found[0])
    return settled if better >= 0.9 and worse < 0.5 else None


def recognise_numbers(column: pandas.Series[Any], *, is_named: bool) -> TimeReading | None:
    """The format of times in a column of numbers: since 1970, Excel's days, digits of a date, or years.

    Args:
        is_named: its name says that it holds times; without, only a rising count of seconds or their
            parts since 1970 is believed.
    """
    import pandas as pd

    numbers = pd.to_numeric(column, errors="coerce").astype("float64").dropna()
    if len(numbers) < 2 or not np.isfinite(numbers).all():
        return None
    low, high = float(numbers.min()), float(numbers.max())
    whole = bool((numbers == np.floor(numbers)).all())
    rising = bool((np.diff(numbers.to_numpy()) >= 0).all())
    if not is_named and whole and rising and len(numbers) >= MIN_COUNTED:
        for form, lowest, highest in (("%Y%m%d", 19000101, 21001231), ("%Y%m", 190001, 210012)):
            # A count of anything else would soon come to a thirteenth month or a 32nd day.
            if low >= lowest and high <= highest and _counts(numbers, form):
                return TimeReading("compact", form)
    if is_named and whole:
        if low >= 19000101 and high <= 21001231 and _reads(numbers, "%Y%m%d"):
            return TimeReading("compact", "%Y%m%d")
        if low >= 190001 and high <= 210012 and _reads(numbers, "%Y%m"):
            return TimeReading("compact", "%Y%m")
        if low >= 190001 and high <= 210053 and rising and _are_weeks(numbers % 100):
            return TimeReading("week")
        if low >= 1900010100 and high <= 2100123123 and rising and _reads(numbers, "%Y%m%d%H") and high % 100 < 24:
            return TimeReading("compact", "%Y%m%d%H")
        if low >= 1500 and high <= 2200 and rising and high > low:
            return TimeReading("year", "%Y")
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)):
        if (
            low / factor > SECONDS_1980
            and high / factor < SECONDS_2100
            and (is_named or (whole and rising and high > low))
        ):
            return TimeReading("epoch", unit)
    if is_named and low >= EXCEL_1970 and high <= EXCEL_2100:
        return TimeReading("excel")
    return None


def _are_weeks(numbers: pandas.Series[Any]) -> bool:
    """Whether numbers after a year count its weeks: beyond twelve, and none above 53."""
    import pandas as pd

    counted = pd.to_numeric(numbers, errors="coerce")
    return bool(counted.max() > 12 and counted.between(1, 53).mean() >= MIN_READ)


def _counts(numbers: pandas.Series[Any], form: str) -> bool:
    """Whether all are dates, a step apart that is nearly the same."""
    times = TimeReading("compact", form).parse(numbers)
    if times.isna().any():
        return False
    gaps = np.diff(times.to_numpy("datetime64[D]").astype(np.int64))
    return bool(gaps.min() > 0 and gaps.max() <= 4 * gaps.min())


def _reads(numbers: pandas.Series[Any], form: str) -> bool:
    return bool(
        TimeReading("compact", form).parse(numbers.iloc[:: max(1, len(numbers) // 200)]).notna().mean() >= MIN_READ
    )


def says_time(name: object) -> bool:
    """Whether a column's name says that it holds times."""
    word = re.sub(r"[^a-zäöü_]", "", str(name).strip().lower().replace(" ", "_"))
    return (
        word in TIME_WORDS
        or word.endswith(("_date", "_time", "_datetime", "_timestamp"))
        or word.startswith(("date_", "timestamp_"))
    )


@dataclass(frozen=True)
class Step:
    """The even distance between rows: nanoseconds, whole months, or working days; or a plain count."""

    kind: Literal["even", "month", "month-end", "working day", "count"]
    size: int = 1  # nanoseconds of "even", months of the month kinds
    day: int = 1  # of the month, for "month"

    @property
    def seconds(self) -> float:
        """Mean length of a step; 1 for a count."""
        return {
            "even": self.size / SECOND,
            "month": self.size * 365.25 / 12 * 86_400,
            "month-end": self.size * 365.25 / 12 * 86_400,
            "working day": 365.25 / 260.9 * 86_400,
            "count": 1.0,
        }[self.kind]

    def __str__(self) -> str:
        if self.kind == "count":
            return "1 row"
        if self.kind == "working day":
            return "1 working day"
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
        months = origin.astype("datetime64[M]") + slots * np.timedelta64(self.size, "M")
        clock = origin - origin.astype("datetime64[D]")
        ends = (months + np.timedelta64(1, "M")).astype("datetime64[D]") - np.timedelta64(1, "D")
        if self.kind == "month-end":
            return np.asarray(ends.astype("datetime64[ns]") + clock)
        days = months.astype("datetime64[D]") + np.timedelta64(self.day - 1, "D")
        return np.asarray(np.minimum(days, ends).astype("datetime64[ns]") + clock)

    def slots(self, times: NDArray[Any]) -> NDArray[np.int64]:
        """The number of the step that each time lies in or nearest to, counted from the first."""
        if self.kind == "even":
            return np.asarray(np.rint((times - times[0]).astype(np.int64) / self.size), np.int64)
        if self.kind == "working day":
            days = times.astype("datetime64[D]")
            return np.asarray(np.busday_count(days[0], days), np.int64)
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
    """The same where each month has one row that weekends or a calendar of weeks move: the last working day, the 15th
    or the next working day, periods of 4, 4 and 5 weeks.
    """
    gaps = np.diff(times).astype(np.int64) // DAY
    number = times.astype("datetime64[M]").astype(np.int64)
    if len(times) < MIN_COUNTED or len(np.unique(gaps)) == 1 or len(np.unique(number)) < len(number):
        return None
    ends = (times.astype("datetime64[M]") + 1).astype("datetime64[D]").astype(np.int64)
    if (ends - times.astype("datetime64[D]").astype(np.int64) <= MOVED_DAYS).all():
        return Step("month-end", months)
    if np.ptp(day) < MOVED_DAYS or (gaps % 7 == 0).all():
        return Step("month", months, int(day.min() if np.ptp(day) < MOVED_DAYS else np.median(day)))
    return None


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
