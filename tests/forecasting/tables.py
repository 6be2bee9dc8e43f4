"""Tables for tests, and what their forecasts are asked."""

import numpy as np
import pandas as pd

from unipercept.forecasting.forecast import forecast_table

LENGTH = 300


def wave(length: int = LENGTH, seed: int = 0) -> np.ndarray:
    """A daily wave with a little noise."""
    rng = np.random.default_rng(seed)
    return (10 + 3 * np.sin(np.arange(length) * 2 * np.pi / 24) + 0.3 * rng.normal(size=length)).round(3)


def hours(length: int = LENGTH, start: str = "2024-01-01") -> pd.DatetimeIndex:
    return pd.date_range(start, periods=length, freq="h")


def csv(times, values, header: str = "date,y", separator: str = ",") -> str:
    return header + "\n" + "".join(f"{t}{separator}{v}\n" for t, v in zip(times, values, strict=True))


QUICK = {"methods": ("naive", "seasonal"), "seconds": 5}
PLAIN = csv(hours(), wave())


def forecast(tmp_path, text, horizon=24, encoding="utf-8", **options):
    path = tmp_path / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return forecast_table(path, horizon, **(QUICK | options))


def said(result, words):
    return any(words in line for line in result.notices)


def months(values) -> pd.DataFrame:
    return pd.DataFrame({"date": pd.date_range("2015-01-01", periods=len(values), freq="MS"), "y": values})


def yearly_wave(length: int) -> np.ndarray:
    return 100 + 20 * np.sin(np.arange(length) * np.pi / 6) + np.random.default_rng(0).normal(size=length)
