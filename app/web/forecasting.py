"""A table, a horizon, and what comes next: the Series tab's work, on `unipercept.forecasting`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unipercept.app.web.jobs import Job
from unipercept.errors import InputError

if TYPE_CHECKING:
    from unipercept.forecasting.forecast import ForecastResult

MAX_PASTED = 2_000_000  # characters
MAX_HORIZON = 2_000
SHOWN_ORIGINS = 40  # from which the past is forecast again to find what was odd
OUTER = (0.025, 0.975)


@dataclass(frozen=True)
class Anomaly:
    """A value outside the 95 % interval of the forecast made before it."""

    variable: str
    time: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Foreseen:
    """A forecast and what of the past it would not have expected."""

    result: ForecastResult
    anomalies: tuple[Anomaly, ...]
    n_checked: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: what the API gives."""
        return {
            **self.result.to_dict(),
            "source": Path(self.result.source).name,
            "anomalies": [vars(one) for one in self.anomalies],
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
    path = job.folder / "pasted.csv"
    path.write_text(pasted, encoding="utf-8")
    return path


def columns_of(path: Path, job: Job) -> list[str]:
    """Names of the columns that can be forecast."""
    job.tell(0.2, "reading the table")
    from unipercept.api import pipeline

    names: Sequence[str] = pipeline("timeseries").read(path).variables
    return [str(name) for name in names[:200]]


def foresee(path: Path, targets: Sequence[str], horizon: int, seconds: float, job: Job) -> Foreseen:
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
    found, checked = anomalies(result, horizon)
    return Foreseen(result, found, checked)


def anomalies(result: ForecastResult, horizon: int) -> tuple[tuple[Anomaly, ...], int]:
    """Values of the shown past outside the 95 % interval forecast from the step before their stretch, the oddest first."""
    prepared, mixture = result.prepared, result.mixture
    if prepared is None or mixture is None or result.choice is None:
        return (), 0
    stretch = min(horizon, max(1, len(prepared) // 8))
    first = max(2 * prepared.period, len(prepared) // 4, len(prepared) - SHOWN_ORIGINS * stretch)
    origins = list(range(first, len(prepared) - stretch + 1, stretch))
    if not origins:
        return (), 0
    levels = list(result.quantiles)
    quantiles = mixture.quantiles(prepared.values, origins, stretch)
    low, high = (quantiles[..., levels.index(level)] for level in OUTER)
    rows = np.asarray(origins)[:, None] + np.arange(stretch)
    truth = prepared.truth[rows]
    width = np.maximum(high - low, 1e-12)
    excess = np.maximum(low - truth, truth - high) / width
    places = np.argwhere(np.nan_to_num(excess, nan=-1.0) > 0)
    order = np.argsort([-excess[tuple(place)] for place in places], kind="stable")
    found = []
    for place in places[order]:
        o, h, v = (int(n) for n in place)
        when = str(prepared.time[rows[o, h]])
        found.append(
            Anomaly(result.variables[v], when, float(truth[o, h, v]), float(low[o, h, v]), float(high[o, h, v]))
        )
    return tuple(found), int(np.isfinite(truth).sum())
