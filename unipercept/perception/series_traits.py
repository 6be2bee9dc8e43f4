"""Measurable traits of any series, with a class or without one: embeddings of series are trained to predict them.

A classifier whose loss has converged keeps little of a series but its class; traits describe the rest.

Shapes: L steps, T traits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unipercept.perception.series_statistics import N_STATISTICS, series_statistics

LAGS = (1, 2, 3, 4, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64)
STEP_LAGS = (1, 2, 3, 7, 12, 24)
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
BANDS = np.geomspace(1 / 512, 0.5, 17)  # cycles a step
N_PARTS = 8
LARGEST = 5.0
N_TRAITS = N_STATISTICS + len(LAGS) + 2 * len(STEP_LAGS) + 2 * len(QUANTILES) + len(BANDS) - 1 + 2 * N_PARTS


def series_traits(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """T numbers within [-5, 5] of L values, missing ones NaN; independent of level and unit.

    The 32 of `series_statistics`; autocorrelations of the series, of its steps and of the steps' sizes; quantiles of
    the values and of the steps, in deviations; the roots of the spectrum's shares in sixteen bands of frequency; mean
    and deviation of eight parts. A lag beyond a third of the series is not measured: NaN.
    """
    x = np.asarray(values, np.float64)
    seen = np.isfinite(x)
    x = np.interp(np.arange(len(x)), np.flatnonzero(seen), x[seen]) if seen.any() else np.zeros(len(x))
    deviation = x.std()
    if not deviation > 1e-9 * max(1e-30, float(np.abs(x).max())):
        return np.full(N_TRAITS, np.nan, np.float32)
    x = (x - x.mean()) / deviation
    steps = np.diff(x)
    sizes = np.abs(steps)
    power = np.abs(np.fft.rfft(x * np.hanning(len(x)))) ** 2
    band = np.digitize(np.fft.rfftfreq(len(x)), BANDS[1:-1])
    share = np.bincount(band[1:], power[1:], len(BANDS) - 1) / max(1e-12, power[1:].sum())
    parts = np.array_split(x, N_PARTS)
    found = [
        *series_statistics(x),
        *_correlations(x, LAGS),
        *_correlations(steps, STEP_LAGS),
        *_correlations(sizes, STEP_LAGS),
        *np.quantile(x, QUANTILES),
        *np.arcsinh(3 * np.quantile(steps, QUANTILES)),
        *np.sqrt(share),
        *(part.mean() for part in parts),
        *(part.std() for part in parts),
    ]
    made: NDArray[np.float32] = np.clip(np.asarray(found), -LARGEST, LARGEST).astype(np.float32)
    return made


def _correlations(x: NDArray[np.float64], lags: tuple[int, ...]) -> list[float]:
    x = x - x.mean()
    power = max(1e-12, float(x @ x))
    return [float(x[lag:] @ x[:-lag]) / power if 3 * lag <= len(x) else np.nan for lag in lags]
