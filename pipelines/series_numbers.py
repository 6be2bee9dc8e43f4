"""Columns of numbers that are times: counts since 1970, days as Excel counts them, digits of a date, years."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from unipercept.pipelines.series_times import (
    DIGIT_LENGTHS,
    EXCEL_1970,
    EXCEL_2100,
    MIN_READ,
    TimeReading,
    are_weeks,
    of_digits,
)

if TYPE_CHECKING:
    import pandas

MIN_COUNTED = 12  # dates as digits in a column whose name does not say so
SECONDS_1980, SECONDS_2100 = 315_532_800, 4_102_444_800
# Dates as bare digits that begin with the year.
_DIGITS = ("%Y%m%d", "%Y%m", "%Y%m%d%H", "%Y%m%d%H%M", "%Y%m%d%H%M%S")


class _Numbers(NamedTuple):
    """A column of at least two finite numbers."""

    values: pandas.Series[Any]
    low: float
    high: float
    are_whole: bool
    are_rising: bool


def recognise_numbers(column: pandas.Series[Any], *, is_named: bool) -> TimeReading | None:
    """The format of times in a column of numbers: since 1970, Excel's days, digits of a date, or years.

    Args:
        is_named: its name says that it holds times; without, only a rising count of seconds or their
            parts since 1970 is believed, and dates by their digits that are evenly spaced.
    """
    import pandas as pd

    values = pd.to_numeric(column, errors="coerce").astype("float64").dropna()
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    numbers = _Numbers(
        values,
        float(values.min()),
        float(values.max()),
        bool((values == np.floor(values)).all()),
        bool((np.diff(values.to_numpy()) >= 0).all()),
    )
    digits = _named_digits if is_named else _counted_digits
    return (
        (digits(numbers) if numbers.are_whole else _month_and_year(numbers, is_named))
        or _since_1970(numbers, is_named)
        or (_excel_days(numbers) if is_named else None)
    )


def _counted_digits(numbers: _Numbers) -> TimeReading | None:
    """20240131 or 202401: a count of anything else would soon come to a thirteenth month or a 32nd day."""
    if not numbers.are_rising or len(numbers.values) < MIN_COUNTED:
        return None
    for form in ("%Y%m%d", "%Y%m"):
        if _has_years(numbers.low, numbers.high, form) and _counts(numbers.values, form):
            return TimeReading("compact", unit=form)
    return None


def _named_digits(numbers: _Numbers) -> TimeReading | None:
    values, low, high, are_rising = numbers.values, numbers.low, numbers.high, numbers.are_rising
    for form in _DIGITS:
        if _has_years(low, high, form) and _reads(values, form):
            return TimeReading("compact", unit=form)
    if low >= 190001 and high <= 210053 and are_rising and are_weeks(values % 100):
        return TimeReading("week", r"(?P<year>\d{4})(?P<part>\d{2})(?:\.0)?")
    if low >= 1500 and high <= 2200 and are_rising and high > low:
        return TimeReading("compact", unit="%Y")
    forms = [form for form in ("%d%m%Y", "%m%d%Y", "%y%m%d") if _reads(values, form)]
    if len(forms) == 1 and high >= 10 ** (DIGIT_LENGTHS[forms[0]] - 1):
        return TimeReading("compact", unit=forms[0])
    return None


def _month_and_year(numbers: _Numbers, is_named: bool) -> TimeReading | None:
    """3.2024 is March 2024 to those who write dates with points."""
    if not (numbers.low >= 1 and numbers.high < 13):
        return None
    years = (numbers.values % 1 * 10_000).round(3)
    are_years = bool(years.between(1900, 2100).all() and (years == years.round()).all())
    if are_years and (is_named or _counts(numbers.values, "%m.%Y")):
        return TimeReading("compact", unit="%m.%Y")
    return None


def _since_1970(numbers: _Numbers, is_named: bool) -> TimeReading | None:
    if not is_named and not (numbers.are_whole and numbers.are_rising and numbers.high > numbers.low):
        return None
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)):
        if numbers.low / factor > SECONDS_1980 and numbers.high / factor < SECONDS_2100:
            return TimeReading("epoch", unit=unit)
    return None


def _excel_days(numbers: _Numbers) -> TimeReading | None:
    values = numbers.values
    in_order = (
        numbers.are_rising
        or bool((np.diff(values.to_numpy()) <= 0).all())
        or values.nunique() <= 0.5 * len(values)  # many series, one below the other
    )
    is_in_range = numbers.low >= EXCEL_1970 and numbers.high <= EXCEL_2100
    return TimeReading("excel") if is_in_range and in_order else None


def _has_years(low: float, high: float, form: str) -> bool:
    """Whether all numbers of these digits begin with a year from 1900 to 2100."""
    scale = 10.0 ** (DIGIT_LENGTHS[form] - 4)
    return 1900 * scale <= low and high < 2101 * scale


def _counts(numbers: pandas.Series[Any], form: str) -> bool:
    """Whether all are dates, a step apart that is nearly the same."""
    times = of_digits(numbers, form)
    if times.isna().any():
        return False
    gaps = np.diff(times.to_numpy("datetime64[D]").astype(np.int64))
    return bool(gaps.min() > 0 and gaps.max() <= 4 * gaps.min())


def _reads(numbers: pandas.Series[Any], form: str) -> bool:
    return bool(of_digits(numbers.iloc[:: max(1, len(numbers) // 200)], form).notna().mean() >= MIN_READ)
