"""Linear models of one series as a pair of polynomials in the lag: ar(B) y = ma(B) e, both starting with 1.

Shapes: T rows, O origins, H steps ahead.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from unipercept.forecasting.repairs import forward_filled

Array = NDArray[np.floating[Any]]


def begun(values: Array) -> Array:
    """TxV, gaps closed by the value before, the beginning by the first value: nothing looks
    ahead of a series that has begun.
    """
    filled = forward_filled(values)
    first = filled[np.isfinite(filled).argmax(axis=0), np.arange(filled.shape[1])]
    return np.where(np.isfinite(filled), filled, np.nan_to_num(first))


def known_stretch(column: Array) -> Array:
    """From the first value to the last, gaps closed by lines: for parameters, which are learned from
    rows that all lie in the past.
    """
    known = np.flatnonzero(np.isfinite(column))
    if not len(known):
        return np.zeros(0)
    return np.interp(np.arange(known[0], known[-1] + 1), known, column[known])


def continued(
    values: Array,
    errors: Array,
    ar: Array,
    ma: Array,
    ends: NDArray[np.int64],
    horizon: int,
    level: float = 0.0,
    before: float = 0.0,
) -> Array:
    """OxH: what follows values[:end] for every end, where all later errors are 0.

    Args:
        level: added at each step, ar(1) times the mean.
        before: the values before the first.
    """
    past, shocks = len(ar) - 1, len(ma) - 1
    padded = np.concatenate([np.full(past, before), values])
    noise = np.concatenate([np.zeros(shocks), errors])
    window = np.zeros((len(ends), past + horizon))
    recent = np.zeros((len(ends), shocks + horizon))
    for i, end in enumerate(ends):
        window[i, :past] = padded[end : end + past]
        recent[i, :shocks] = noise[end : end + shocks]
    back, ahead = -ar[:0:-1], ma[:0:-1]
    for h in range(horizon):
        window[:, past + h] = level + window[:, h : past + h] @ back + recent[:, h : shocks + h] @ ahead
    return window[:, past:]


def expected_deviation(deviation: float, ar: Array, ma: Array, horizon: int) -> Array:
    """H: of the forecasts' errors, where the one-step errors have this deviation and the model is true."""
    impulse = np.zeros(horizon)
    impulse[0] = 1.0
    return np.asarray(deviation * np.sqrt(np.square(lfilter(ma, ar, impulse)).cumsum()))


def spread_order(count: int) -> list[int]:
    """0 to count - 1 in an order of which any first part is spread evenly: for whoever may run out of time."""
    return [int(i) for i in np.argsort((np.arange(count) * 0.618034) % 1)]


def spread_until(deadline: float, count: int) -> Iterator[int]:
    """As many of 0 to count - 1 as `time.monotonic()` allows, at least one, spread evenly."""
    for position, number in enumerate(spread_order(count)):
        if position and time.monotonic() > deadline:
            return
        yield number
