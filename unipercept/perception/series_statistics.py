"""Statistics of a series: the baseline without a network that embeddings of series are compared with.

They follow tsfeatures (Hyndman et al., 2015) and catch22 (Lubba et al., 2019), and are independent of level, unit and
length.

Shapes: L steps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LAGS = (1, 2, 3, 5, 8, 13)
N_PARTS = 10  # of the series, for what changes along it
N_STATISTICS = 32


def series_statistics(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """32 statistics of L finite values; zeros for a constant series.

    In order: skewness, kurtosis, largest value, share of the most frequent value; autocorrelations of the series and of
    its steps, six lags each, and the lag of the first zero; variance explained by a straight line and by a parabola;
    over ten parts, the deviation of their means, the largest change between neighbouring means, and the smallest
    deviation over the largest; of the spectrum, entropy, centre, shares of the strongest and the second line, and the
    period over the length; rates of mean crossings and of turning points; skewness of the steps; and how much better a
    parabola than a straight line predicts a value from the one before.

    Source: Hyndman et al. (2015), Large-scale unusual time series detection; Lubba et al. (2019), catch22.
    """
    x = np.asarray(values, np.float64)
    deviation = x.std()
    if len(x) < N_PARTS or not deviation > 1e-9 * max(1e-30, np.abs(x).max()):
        return np.zeros(N_STATISTICS)
    x = (x - x.mean()) / deviation
    steps = np.diff(x)
    time = np.linspace(-1, 1, len(x))
    correlations = [_correlation(x, lag) for lag in LAGS]
    step_correlations = [_correlation(steps - steps.mean(), lag) for lag in LAGS]
    _, counts = np.unique(x.round(6), return_counts=True)
    parts = np.array_split(x, N_PARTS)
    means, deviations = np.array([p.mean() for p in parts]), np.array([p.std() for p in parts])
    line, parabola = (1 - np.square(x - np.polynomial.Polynomial.fit(time, x, d)(time)).mean() for d in (1, 2))
    found = [
        *((x**3).mean(), np.log1p((x**4).mean()), np.log(np.abs(x).max()), counts.max() / len(x)),
        *(*correlations, *step_correlations, _first_zero(x) / len(x)),
        *(line, parabola),
        *(means.std(), deviations.std(), np.abs(np.diff(means)).max(), deviations.min() / deviations.max()),
        *_spectrum(x - np.polynomial.Polynomial.fit(time, x, 1)(time)),
        np.mean(x[1:] * x[:-1] < 0),
        np.mean(steps[1:] * steps[:-1] < 0),
        np.cbrt((steps**3).mean() / max(1e-12, steps.std() ** 3)),
        _dependence(x),
    ]
    return np.asarray(found, np.float64)


def _correlation(x: NDArray[np.float64], lag: int) -> float:
    power = float(x @ x)
    return float(x[lag:] @ x[:-lag]) / power if power > 0 and lag < len(x) else 0.0


def _first_zero(x: NDArray[np.float64]) -> int:
    """The lag at which the autocorrelation first falls below zero, computed by a zero-padded FFT."""
    power = np.abs(np.fft.rfft(x, 2 * len(x))) ** 2
    below = np.flatnonzero(np.fft.irfft(power)[: len(x)] < 0)
    return int(below[0]) if len(below) else len(x)


def _spectrum(x: NDArray[np.float64]) -> list[float]:
    """Entropy and centre in [0, 1], shares of the two strongest lines (neighbours of the first
    left out), period over length.
    """
    power = np.abs(np.fft.rfft(x * np.hanning(len(x)))[1:]) ** 2
    total = power.sum()
    if total <= 0:
        return [0.0] * 5
    share = power / total
    entropy = -float((share * np.log(share + 1e-12)).sum()) / np.log(len(share))
    first = int(share.argmax())
    rest = share.copy()
    rest[max(0, first - 2) : first + 3] = 0
    centre = float((share * np.arange(len(share))).sum()) / len(share)
    near = float(share[max(0, first - 2) : first + 3].sum())
    return [entropy, centre, near, float(rest.max()), 1 / (first + 1)]


def _dependence(x: NDArray[np.float64]) -> float:
    """Variance that a parabola of the previous value explains beyond a straight line; high for 1-D chaos."""
    before, after = x[:-1], x[1:]
    fits = [np.square(after - np.polynomial.Polynomial.fit(before, after, degree)(before)).mean() for degree in (1, 2)]
    return float(fits[0] - fits[1])
