"""The Series tab's work on `unipercept.forecasting`: a forecast of a table, and the anomalies in its past."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unipercept.app.web.job import Job
from unipercept.errors import InputError

if TYPE_CHECKING:
    from unipercept.forecasting.forecast import ForecastResult

MAX_PASTED = 2_000_000  # characters
MAX_HORIZON = 720
MAX_SECONDS = 180.0  # to spend on one forecast


@dataclass(frozen=True)
class Anomaly:
    """A value far outside the 95 % interval of the forecast made before it."""

    variable: str
    time: Any  # as in the series: a NumPy datetime, or a number
    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class SeriesForecast:
    """A forecast and what of the past it would not have expected."""

    result: ForecastResult
    anomalies: tuple[Anomaly, ...]
    n_checked: int

    def anomaly_times(self) -> list[str]:
        """When each anomaly was, as people write it."""
        from unipercept.results.words import plain_times

        return plain_times(np.array([one.time for one in self.anomalies])) if self.anomalies else []

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: what the API gives."""
        return {
            **self.result.to_dict(),
            "anomalies": [
                {**vars(one), "time": time} for one, time in zip(self.anomalies, self.anomaly_times(), strict=True)
            ],
            "values_checked": self.n_checked,
        }


def table_file(file: str | None, pasted: str, job: Job) -> Path:
    """The file of a table: sent, or pasted as text.

    Raises:
        InputError: neither, or too long.
    """
    if file:
        return Path(file)
    if not pasted.strip():
        raise InputError("send a table, or paste one as CSV")
    if len(pasted) > MAX_PASTED:
        raise InputError(f"at most {MAX_PASTED:,} characters are pasted; send a file instead")
    path = job.scratch / "pasted.csv"
    path.write_text(pasted, encoding="utf-8")
    return path


def columns_of(path: Path, job: Job) -> list[str]:
    """Names of the columns that can be forecast."""
    job.tell(0.2, "reading the table")
    from unipercept.api import pipeline

    names: Sequence[str] = pipeline("timeseries").read(path).variables
    return [str(name) for name in names[:200]]


def forecast_series(path: Path, targets: Sequence[str], horizon: int, seconds: float, job: Job) -> SeriesForecast:
    """Forecast, and look back for values that the same methods would not have expected.

    Raises:
        InputError: the table or an argument cannot be used.
    """
    if not 1 <= horizon <= MAX_HORIZON:
        raise InputError(f"the horizon must lie within 1 and {MAX_HORIZON}, got {horizon}")
    job.tell(0.02, "loading the library")
    from unipercept.forecasting.forecast import forecast_table

    result = forecast_table(
        path,
        horizon,
        targets=tuple(targets),
        seconds=seconds,
        tell=lambda line, share: job.tell(0.05 + 0.85 * share, line),
    )
    job.tell(0.92, "looking back for what was odd")
    found, checked = anomalies(path, targets)
    return SeriesForecast(replace(result, source=path.name), found, checked)


def anomalies(path: Path, targets: Sequence[str]) -> tuple[tuple[Anomaly, ...], int]:
    """Values far outside the interval that was forecast for them, the oddest first; and how many were looked at."""
    from unipercept.forecasting.anomalies import find_anomalies

    try:
        found = find_anomalies(path, targets=tuple(targets))
    except InputError:  # a table too short to look back in: the forecast has said so
        return (), 0
    rows = zip(found.variable, found.time, found.value, found.low, found.high, strict=True)
    odd = tuple(Anomaly(name, time, float(value), float(low), float(high)) for name, time, value, low, high in rows)
    scored = int(found.metadata["rows"]) - int(found.metadata["first_row_scored"])
    return odd, max(0, scored) * len(found.variables)
