"""Times as tables write them: dates in figures and in words, parts of a year, counts since an epoch.

A column is recognised once (`recognise_times`; numbers by `series_numbers`) and can then be read chunk by chunk.
Everything becomes datetime64[ns]: UTC where the file gives a zone, the clock of the file where it gives none. A cell
counts as a time only where a whole date stands in it; nothing is guessed from today's.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import pandas

TIME_WORDS = frozenset((
    "time", "timestamp", "date", "datetime", "ts", "ds", "epoch", "unixtime", "unix_time", "when", "day",
    "month", "year", "period", "week", "quarter", "date_time", "time_utc", "utc", "valid_time", "local_time",
    "datum", "zeit", "zeitpunkt", "zeitstempel", "tag", "monat", "jahr", "fecha", "hora", "data", "heure",
    "jour",
))  # fmt: skip
# The first letters by which names of months are told apart: Mai, mars, août, Dezember, enero, październik, июнь.
_MONTHS = (
    r"jan|ene|gen|sty|янв", r"feb|fév|fev|lut|фев", r"mar|mär|maa|mrz|mrt|мар", r"apr|avr|abr|kwi|апр",
    r"may|mai|mei|mag|maj|ма[йя]", r"jun|juin|giu|cze|июн", r"jul|juil|lug|lip|июл", r"aug|aoû|aou|ago|sie|авг",
    r"sep|set|wrz|сен", r"oct|okt|out|ott|paź|paz|окт", r"nov|lis|ноя", r"dec|déc|dez|dic|gru|дек",
)  # fmt: skip
_MONTH_WORD = r"(?:" + "|".join(_MONTHS) + r")[^\W\d_]*"
_MONTH = rf"(?P<word>{_MONTH_WORD})\.?"
# Hours that the abbreviations of zones are ahead of UTC.
_ZONES = {
    "Z": 0, "UTC": 0, "GMT": 0, "WET": 0, "WEST": 1, "BST": 1, "CET": 1, "CEST": 2, "MEZ": 1, "MESZ": 2, "EET": 2,
    "EEST": 3, "MSK": 3, "JST": 9, "KST": 9, "AEST": 10, "AEDT": 11, "EST": -5, "EDT": -4, "CST": -6, "CDT": -5,
    "MST": -7, "MDT": -6, "PST": -8, "PDT": -7,
}  # fmt: skip
_CLOCK = (
    r"(?:[T ,]+(?P<hour>\d{1,2})(?:[:.h](?P<minute>\d{2}))?(?:[:.](?P<second>\d{2}(?:[.,]\d+)?))?"
    r" *(?P<half>[AaPp]\.? ?[Mm]\.?)? *(?P<zone>[+-]\d{2}(?::?\d{2})?|" + "|".join(_ZONES) + ")?)?"
)
_YEAR = r"'?(?P<year>\d{4}|\d{2})"
_LONG_YEAR = r"(?P<year>\d{4})"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th|er|\.|º|ª)?"
_OF = r"(?:[-/., ]*(?:of|de|del) |[-/., ]*)"
_FISCAL = r"(?:FY ?)?"
Kind = Literal["date", "day-first", "month-first", "open", "month", "quarter", "week", "half", "year",
               "epoch", "excel", "compact"]  # fmt: skip
_PARTS: dict[Kind, str] = {"quarter": r"q|qtr|quarter|quartal|trim|trimestre|kv|t", "week": r"w|wk|week|kw|woche|semaine|vecka",
          "month": r"m|p|per|period|periode", "half": r"h|half|hy|semester|s"}  # fmt: skip
_MOST: dict[Kind, int] = {"quarter": 4, "week": 53, "month": 12, "half": 2}  # that a part of a year counts to
_LETTERS = r"(?P<letters>" + "|".join(_PARTS.values()) + r")"
# What a whole cell may look like, the surest first.
_SHAPES: tuple[tuple[Kind, str], ...] = (
    ("date", rf"{_LONG_YEAR}[-/.](?P<month>\d{{1,2}})[-/.](?P<day>\d{{1,2}}){_CLOCK}"),
    ("date", rf"{_LONG_YEAR}-(?P<ordinal>\d{{3}}){_CLOCK}"),
    ("open", rf"(?P<first>\d{{1,2}})(?P<sign>[-/.])(?P<second_part>\d{{1,2}})(?P=sign){_YEAR}{_CLOCK}"),
    ("date", rf"(?i:{_DAY}{_OF}{_MONTH}{_OF}{_YEAR}){_CLOCK}"),
    ("date", rf"(?i:{_MONTH} ?{_DAY},? {_LONG_YEAR}){_CLOCK}"),
    ("date", rf"(?i:{_LONG_YEAR}[-/., ]*{_MONTH}[-/., ]+{_DAY}){_CLOCK}"),
    ("date", rf"(?i:{_MONTH} +{_DAY}){_CLOCK} +{_LONG_YEAR}"),
    ("month", rf"(?i:{_MONTH}{_OF}{_YEAR})"),
    ("month", rf"(?i:{_LONG_YEAR}[-/., ]*{_MONTH})"),
    ("month", rf"(?i:(?P<year>\d{{2}})[- ]{_MONTH})"),
    ("month", rf"{_LONG_YEAR}[-/._ ](?P<month>\d{{1,2}})"),
    ("month", rf"0?(?P<month>\d{{1,2}})[-/.]{_LONG_YEAR}"),
    ("week", rf"{_LONG_YEAR}-?W(?P<part>\d{{2}})-?(?P<weekday>[1-7])"),
    ("year", rf"(?i:FY ?{_YEAR})"),
    ("year", rf"{_LONG_YEAR}[-/–](?P<next>\d{{4}}|\d{{2}})"),
    ("quarter", rf"(?i:{_FISCAL}{_YEAR}[-_/ ]*{_LETTERS}[-_. ]*(?P<part>\d{{1,3}}))"),
    ("quarter", rf"(?i:{_LETTERS}[-_. ]*(?P<part>\d{{1,3}})[-_/., ]*(?:of )?{_FISCAL}{_YEAR})"),
    ("quarter", rf"(?i:(?P<part>\d{{1,2}})\.? ?{_LETTERS}[-_/. ]*{_FISCAL}{_YEAR})"),
)
_DATE_AHEAD = (
    rf"(?=\d{{1,4}}[-/.]\d{{1,2}}[-/.]\d|\d{{1,2}}[^\W\d_]{{0,2}}[-/., ]*{_MONTH_WORD}|{_MONTH_WORD}[-., ]*\d{{1,2}}\b)"
)
# What may stand about a date without being of it, in the order of repair.
_REPAIRS: tuple[tuple[str, str], ...] = (
    (r"(?<=\d)\s*[年년]\s*", "-"),
    (r"(?<=\d)\s*[月월]\s*", "-"),
    (r"(?<=\d)\s*[日일]\s*", " "),
    (r"(?<=\d)\s*[時时시点]\s*", ":"),
    (r"(?<=\d)\s*[分분]\s*|(?<=\d)\s*[秒초]", ""),
    (r"^[\[\"']|\s*[(\[][^()\[\]]*[)\]]$|[\]\"']$|[-:., ]+$", ""),
    (r"^(\d{4})\. (\d{1,2})\. (\d{1,2})", r"\1-\2-\3"),
    (r"^(\d{4})(\d{2})(\d{2})[T ](\d{2})(\d{2})(?=\d{2}|\b)", r"\1-\2-\3 \4:\5:"),
    (r"(?<=\d):$", ""),
    (r"^(\d{1,2}/[^\W\d_]{3,}/\d{4}):", r"\1 "),
    (r"(?:GMT|UTC)(?=[+-]\d)", ""),
    (rf"(?i)^(.*\d{{2}}.*\S)\s+(?:-|–|—|to|bis|au)\s+(?:\S*\d[-/.:]\d|.*{_MONTH_WORD}).*$", r"\1"),  # from, to
    (r"^(\d{4}-\d\d-\d\d)/\d{4}-\d\d-\d\d$", r"\1"),
    (rf"(?i)^(?:[^\W\d_]+\.?,?\s+){{1,3}}{_DATE_AHEAD}", ""),  # Monday, week ending
)
_NO_YEAR = rf"(?i:\d{{1,2}}\.?[-/ ]{_MONTH_WORD}\.?|{_MONTH_WORD}\.?[-/ ]\d{{1,2}}|\d{{1,2}}[./-]\d{{1,2}}\.?)"
FEW_CELLS = 12  # that are looked at first
MIN_READ = 0.9  # share of cells that must read as times
MOST_STRAYS = 0.02  # of the dates may have day and month the other way round than all others
EXCEL_1970, EXCEL_2100 = 25_569, 73_051  # days since 1899-12-30, which is what Excel and its kin count
FIRST_YEAR, LAST_YEAR = 1678, 2261  # that nanoseconds of 64 bits reach
DIGIT_LENGTHS = {"%Y%m%d": 8, "%Y%m": 6, "%Y%m%d%H": 10, "%Y%m%d%H%M": 12, "%Y%m%d%H%M%S": 14, "%Y": 4,
            "%d%m%Y": 8, "%m%d%Y": 8, "%y%m%d": 6}  # fmt: skip
_FORMS_SAID = {"%Y": "", "%d%m%Y": ", as digits DDMMYYYY", "%m%d%Y": ", as digits MMDDYYYY",
               "%y%m%d": ", as digits YYMMDD", "%m.%Y": ", as months"}  # fmt: skip


@dataclass(frozen=True)
class TimeReading:
    """The format of the times in one column."""

    kind: Kind
    pattern: str = ""  # of a whole cell, of text
    repairs: tuple[int, ...] = ()  # of _REPAIRS, that come before
    unit: str = ""  # of "epoch" (s, ms, us, ns); the format of "compact"
    has_zone: bool = False
    is_plain: bool = False  # ISO 8601 as pandas reads it
    is_fiscal: bool = False

    @property
    def is_open(self) -> bool:
        """Day-first and month-first both fit all that has been seen."""
        return self.kind == "open"

    @property
    def said(self) -> str:
        """For a notice; empty for plain dates."""
        return {
            "date": "",
            "open": "",
            "year": "",
            "month": ", as months",
            "week": ", as ISO weeks",
            "quarter": ", as quarters",
            "half": ", as half years",
            "day-first": ", day first",
            "month-first": ", month first",
            "epoch": f", as {self.unit} since 1970 (UTC)",
            "excel": ", as Excel's serial days",
            "compact": _FORMS_SAID.get(self.unit, ", as digits YYYYMMDD…"),
        }[self.kind] + (" of a fiscal year, dated as if it were the calendar's" if self.is_fiscal else "")

    def parse(self, column: pandas.Series[Any]) -> pandas.Series[Any]:
        """Cells as datetime64[ns] (with zone UTC where `has_zone`), NaT where a cell cannot be read."""
        import pandas as pd

        if self.kind == "epoch":
            return pd.Series(pd.to_datetime(pd.to_numeric(column, errors="coerce"), unit=self.unit, errors="coerce"))
        if self.kind == "excel":
            seconds = (pd.to_numeric(column, errors="coerce").astype("float64") - EXCEL_1970) * 86_400
            # A day of binary fractions is off by some microseconds; Excel itself shows milliseconds at the best.
            return pd.Series(pd.to_datetime((seconds * 10).round() / 10, unit="s", errors="coerce"))
        if self.kind == "compact":
            return of_digits(column, self.unit)
        text = _digits_in_ascii(column.astype("string").str.strip())
        if self.is_plain:
            parsed = pd.to_datetime(text, errors="coerce", utc=self.has_zone, format="ISO8601")
            if parsed.notna().sum() >= MIN_READ * text.notna().sum():
                return in_range(pd.Series(parsed))
        for number in self.repairs:
            text = text.str.replace(*_REPAIRS[number], regex=True)
        return self._built(text.str.strip().str.extract(rf"^(?:{self.pattern})$"))

    def _built(self, parts: pandas.DataFrame) -> pandas.Series[Any]:
        """Times from the groups of the pattern."""
        import pandas as pd

        def number(name: str) -> pandas.Series[Any]:
            return pd.to_numeric(parts[name].str.replace(",", "."), errors="coerce").astype("float64")

        year = number("year")
        short = parts["year"].str.len() == 2
        year = year + short.fillna(False) * np.where(year < 69, 2000.0, 1900.0)  # as POSIX completes them
        if self.kind in ("quarter", "week", "half") or "part" in parts:
            part = number("part")
            if self.kind == "week":
                monday = iso_weeks(year, part)
                return monday + pd.to_timedelta(number("weekday") - 1, unit="D") if "weekday" in parts else monday
            month, day = (part - 1) * {"quarter": 3, "half": 6, "month": 1}[self.kind] + 1, 1.0
            month = month.where(part.between(1, _MOST[self.kind]))
        elif self.kind in ("day-first", "month-first", "open"):
            order = ("first", "second_part") if self.kind != "month-first" else ("second_part", "first")
            day, month = (number(name) for name in order)
        else:
            month = _month_of(parts["word"]) if "word" in parts else number("month") if "month" in parts else 1.0
            day = number("day") if "day" in parts else 1.0
        table = pd.DataFrame({"year": year.where(year.between(FIRST_YEAR, LAST_YEAR)), "month": month, "day": day})
        times = pd.to_datetime(table, errors="coerce").astype("datetime64[ns]")
        if "ordinal" in parts:
            times = times + pd.to_timedelta(number("ordinal") - 1, unit="D")
        if "hour" in parts:
            times = times + _clock(parts, number)
        return pd.Series(times.dt.tz_localize("UTC") if self.has_zone else times)


def _clock(parts: pandas.DataFrame, number: Any) -> pandas.Series[Any]:
    """The time of day less the distance from UTC; 24:00 is the end of the day."""
    import pandas as pd

    hour = number("hour")
    half = parts["half"].str[0].str.lower()
    if half.notna().any():
        hour = hour.where(half.isna(), hour % 12 + np.where(half.fillna("") == "p", 12, 0))
    seconds = hour.fillna(0) * 3600 + number("minute").fillna(0) * 60
    fraction = (number("second").fillna(0) * 1e9).round().astype("int64")  # whole nanoseconds
    zones = {zone: _ahead(zone) for zone in parts["zone"].dropna().unique()}
    seconds -= parts["zone"].map(zones).astype("float64").fillna(0) if zones else 0
    valid = hour.between(0, 24) | hour.isna()
    return pd.to_timedelta(seconds.where(valid), unit="s") + pd.to_timedelta(fraction, unit="ns")


def _ahead(zone: str) -> float:
    """Seconds that a zone is ahead of UTC."""
    if zone in _ZONES:
        return 3600.0 * _ZONES[zone]
    sign = -1 if zone[0] == "-" else 1
    return sign * (3600.0 * int(zone[1:3]) + 60.0 * int(zone[3:].lstrip(":") or 0))


def of_digits(column: pandas.Series[Any], form: str) -> pandas.Series[Any]:
    import pandas as pd

    if form == "%m.%Y":
        numbers = pd.to_numeric(column, errors="coerce").astype("float64")
        month = np.floor(numbers)
        return pd.Series(
            pd.to_datetime({"year": ((numbers - month) * 10_000).round(), "month": month, "day": 1}, errors="coerce")
        ).astype("datetime64[ns]")
    digits = pd.to_numeric(column, errors="coerce").astype("Int64").astype("string").str.zfill(DIGIT_LENGTHS[form])
    return in_range(pd.Series(pd.to_datetime(digits, format=form, errors="coerce")))


def in_range(times: pandas.Series[Any]) -> pandas.Series[Any]:
    """As nanoseconds, NaT beyond what these reach: pandas itself goes round to another century."""
    years = times.dt.year
    zone = getattr(times.dt, "tz", None)
    kept = times.where(years.between(FIRST_YEAR, LAST_YEAR))
    return kept.astype("datetime64[ns]" if zone is None else "datetime64[ns, UTC]")


def iso_weeks(year: pandas.Series[Any], week: pandas.Series[Any]) -> pandas.Series[Any]:
    """The Monday of each week; the first of a year is the one that holds January 4."""
    import pandas as pd

    valid = year.between(1900, 2100) & week.between(1, 53)
    fourth = pd.to_datetime(year.where(valid).astype("Int64").astype("string") + "-01-04", errors="coerce")
    monday = fourth - pd.to_timedelta(fourth.dt.day_of_week, unit="D")
    return (monday + pd.to_timedelta((week.where(valid) - 1) * 7, unit="D")).astype("datetime64[ns]")


def _digits_in_ascii(text: pandas.Series[Any]) -> pandas.Series[Any]:
    """Digits and signs of full width, and those of other scripts, as ASCII."""
    if text.str.isascii().fillna(True).all():
        return text
    return text.map(ascii_digits, na_action="ignore").astype("string")


def ascii_digits(cell: str) -> str:
    """A cell with its digits and signs of full width, and the digits of other scripts, as ASCII."""
    if cell.isascii():
        return cell
    folded = unicodedata.normalize("NFKC", cell)
    return "".join(str(unicodedata.digit(sign)) if sign.isdecimal() else sign for sign in folded)


def recognise_times(column: pandas.Series[Any]) -> TimeReading | None:
    """The format of times in a column of text, if nearly all of it parses.

    Day first or month first is decided from the whole column, and stays open if both fit.
    """
    import pandas as pd

    known = column.dropna()
    sample = known.iloc[:: max(1, len(known) // 200)].astype("string").str.strip()
    if sample.empty or pd.to_numeric(sample, errors="coerce").notna().all():
        return None
    sample = _digits_in_ascii(sample)
    repairs = _needed_repairs(sample.iloc[:: max(1, len(sample) // FEW_CELLS)].to_list())
    if repairs is None:
        return None
    for number in repairs:
        sample = sample.str.replace(*_REPAIRS[number], regex=True)
    sample = sample.str.strip()
    for kind, pattern in _SHAPES:
        if (sample.str.fullmatch(pattern)).mean() < MIN_READ:
            continue
        shaped = TimeReading(kind, pattern, repairs)
        reading: TimeReading | None = shaped
        parts = sample.str.extract(rf"^(?:{pattern})$")
        if "letters" in parts:
            reading = _part_of_year(shaped, parts)
        elif kind == "open":
            reading = _order(shaped, known)
        elif kind == "month":
            reading = _months(shaped, parts, known)
        elif "next" in parts:
            after = pd.to_numeric(parts["next"]) % 100 == (pd.to_numeric(parts["year"]) + 1) % 100
            reading = shaped if after.mean() >= MIN_READ else None
        if reading is None:
            continue
        has_zone = "zone" in parts and bool(parts["zone"].notna().mean() > 0.5)
        reading = replace(
            reading,
            has_zone=has_zone,
            is_plain=pattern == _SHAPES[0][1] and not repairs,
            is_fiscal=bool(sample.str.contains(r"(?i)^FY|FY ?\d+$").mean() > 0.5),
        )
        if reading.parse(known.iloc[:: max(1, len(known) // 200)]).notna().mean() >= MIN_READ:
            return reading
    return None


def is_time(cell: str) -> bool:
    """Whether a single cell has the shape of a time."""
    return _needed_repairs([cell]) is not None


def _needed_repairs(cells: list[str]) -> tuple[int, ...] | None:
    """Which repairs change most of some cells; None where these are no times."""
    needed = []
    for number, (wrong, right) in enumerate(_REPAIRS):
        repaired = [re.sub(wrong, right, cell).strip() for cell in cells]
        if sum(a != b for a, b in zip(cells, repaired, strict=True)) > 0.5 * len(cells):
            needed.append(number)
            cells = repaired
    reads = sum(any(re.fullmatch(pattern, cell) for _, pattern in _SHAPES) for cell in cells)
    return tuple(needed) if reads >= 0.5 * len(cells) else None


def _part_of_year(reading: TimeReading, parts: pandas.DataFrame) -> TimeReading | None:
    """Which part of the year a letter and a number say: Q1, W07, P12, H2."""
    letters, part = parts["letters"].str.lower(), parts["part"].astype("float64")
    for kind, words in _PARTS.items():
        if letters.str.fullmatch(words).mean() >= MIN_READ and part.between(1, _MOST[kind]).mean() >= MIN_READ:
            return replace(reading, kind=kind)
    return None


def _order(reading: TimeReading, known: pandas.Series[Any]) -> TimeReading | None:
    """Which comes first, day or month, by the numbers beyond 12. Some strays are slips; with more, neither is right."""
    numbers = known.astype("string").str.extract(r"(\d{1,2})([-/.])(\d{1,2})[-/.]\d{2}")
    first, second = (numbers[i].astype("float64") > 12 for i in (0, 2))
    few = MOST_STRAYS * len(known)
    if first.sum() > few < second.sum():
        return None
    dotted = (numbers[1] == ".").mean() > MIN_READ  # 31.12.2024: nobody writes dots month first
    if first.sum() > second.sum() or (dotted and not second.any()):
        return replace(reading, kind="day-first")
    return replace(reading, kind="month-first") if second.any() else reading


def _months(reading: TimeReading, parts: pandas.DataFrame, known: pandas.Series[Any]) -> TimeReading | None:
    """Months rather than weeks of a year (2024-07), days without a year (Jan-07) or years that begin in one
    and end in the next (2006/07).
    """
    if "word" not in parts:
        numbers = known.astype("string").str.extract(r"(\d+)\D+(\d+)").astype("float64")
        year, month = (numbers[0], numbers[1]) if numbers[0].max() > 99 else (numbers[1], numbers[0])
        if ((year + 1) % 100 == month % 100).all() and len(known) > 2:
            return None
        if are_weeks(month) and numbers[0].max() > 99:
            return TimeReading("week", reading.pattern.replace("<month>", "<part>"), reading.repairs)
        return reading
    if (parts["year"].str.len() == 4).any():
        return reading
    # Jan-01, Jan-02, … are days if rows go on by a number while the month stays, through more than one month.
    whole = reading.parse(known.iloc[:400]).dt
    count = whole.year * 12 + whole.month
    gaps = np.abs(np.diff(count.dropna()))
    if not len(gaps):
        return reading
    return None if np.median(gaps) == 12 and whole.month.nunique() > 1 else reading


def lacks_year(cells: Iterable[Any]) -> bool:
    """Whether the first cells are a day and a month each, without a year."""
    known = [str(cell).strip() for cell in islice(cells, 200)]
    return bool(known) and sum(bool(re.fullmatch(_NO_YEAR, cell)) for cell in known) >= MIN_READ * len(known)


def month_numbers(text: pandas.Series[Any]) -> pandas.Series[Any]:
    """1 to 12 for names of months in the languages known; missing for anything else."""
    words = text.astype("string").str.strip().str.extract(rf"(?i)^{_MONTH}$")["word"]
    return _month_of(words).astype("Float64")


def _month_of(words: pandas.Series[Any]) -> pandas.Series[Any]:
    """1 to 12, float64, of names that begin as those of months do."""
    numbers = {
        word: next((i for i, stems in enumerate(_MONTHS, 1) if re.match(rf"(?i)(?:{stems})", word)), np.nan)
        for word in words.dropna().unique()
    }
    return words.map(numbers).astype("float64")


def settled_by_steps(column: pandas.Series[Any], reading: TimeReading) -> TimeReading | None:
    """Which of day first and month first makes even steps of dates that could be either,
    where only one of them does.
    """
    even = []
    for kind in ("day-first", "month-first"):
        settled = replace(reading, kind=kind)
        times = np.unique(settled.parse(column).dropna().to_numpy("datetime64[ns]")).astype(np.int64)
        gaps = np.diff(times)
        share = len(gaps) * float(np.median(gaps)) / float(times[-1] - times[0]) if len(gaps) else 0.0
        even.append((share, settled))
    (worse, _), (better, settled) = sorted(even, key=lambda found: found[0])
    return settled if better >= 0.9 and worse < 0.5 else None


def are_weeks(numbers: pandas.Series[Any]) -> bool:
    """Whether numbers after a year count its weeks: beyond twelve, and none above 53."""
    import pandas as pd

    counted = pd.to_numeric(numbers, errors="coerce")
    return bool(counted.max() > 12 and counted.between(1, 53).mean() >= MIN_READ)


def is_date_name(name: object) -> bool:
    """Whether a column's name says that it holds dates, and nothing else that one might measure."""
    return re.fullmatch(r"(?i).*(date|timestamp|datum|fecha|datetime)", str(name).strip()) is not None


def says_time(name: object) -> bool:
    """Whether a column's name says that it holds times."""
    word = re.sub(r"[^a-zäöü_]", "", str(name).strip().lower().replace(" ", "_"))
    return (
        word in TIME_WORDS
        or word.endswith(("_date", "_time", "_datetime", "_timestamp"))
        or word.startswith(("date_", "timestamp_"))
    )
