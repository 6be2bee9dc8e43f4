"""Series without a class: real ones are seldom one of the sixteen kinds of `processes`, but several at once.

A blend adds a few components (noise of any colour and tail, cycles of hours, days and years with shapes of their own,
trends, regimes, jumps) and distorts the sum as instruments do: cut at zero, gated, rounded, held, smoothed. Nothing is
labelled; a network learns from a blend what can be measured of it (unipercept/perception/series_traits.py).

Source: generated here. Licence: Apache-2.0, as the code. Shapes: L steps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Steps = NDArray[np.float64]

# Steps a cycle: quarters, months, weeks, hours, half hours and ten minutes a day, weeks of a year,
# hours of a week, days of a year.
CYCLES = (4, 5, 7, 12, 24, 30, 48, 52, 96, 144, 168, 288, 365)


def blend(length: int, rng: np.random.Generator) -> Steps:
    """L finite values that are not constant, in units of about their deviation."""
    made = np.zeros(length)
    for part in rng.choice(np.array(PARTS, dtype=object), int(rng.integers(1, 4))):
        made = made + _scale(rng) * standard(part(length, rng))
    made = made + rng.choice([0.02, 0.1, 0.3]) * standard(coloured_noise(length, rng))
    for squeeze in rng.choice(np.array(SQUEEZES, dtype=object), int(rng.integers(0, 3)), replace=False):
        squeezed = squeeze(standard(made), rng)
        if np.isfinite(squeezed).all() and np.ptp(squeezed) > 1e-6:
            made = squeezed
    return standard(made)


def standard(values: Steps) -> Steps:
    """Mean 0 and deviation 1; zeros where nothing changes."""
    deviation = values.std()
    return np.asarray((values - values.mean()) / deviation if deviation > 1e-12 else np.zeros(len(values)))


def coloured_noise(length: int, rng: np.random.Generator) -> Steps:
    """Noise whose power falls as frequency to the power 0 to 2.5, below a corner evenly;
    Gaussian or with heavy tails.
    """
    n = 2 * length
    frequency = np.maximum(np.fft.rfftfreq(n), np.exp(rng.uniform(np.log(1 / n), np.log(0.2))))
    tails = rng.choice([3.0, 5.0, np.inf])
    steps = rng.normal(size=n) if np.isinf(tails) else rng.standard_t(tails, n)
    return np.fft.irfft(np.fft.rfft(steps) * frequency ** -rng.uniform(0, 1.25), n)[:length]


def cycle(length: int, rng: np.random.Generator) -> Steps:
    """A cycle with a shape of its own that repeats exactly, or with a swing that wanders."""
    period = float(rng.choice(CYCLES)) if rng.uniform() < 0.7 else float(np.exp(rng.uniform(np.log(4), np.log(400))))
    period = min(period, 2.0 * length)
    phase = np.arange(length) / period + rng.uniform()
    shape = rng.integers(4)
    if shape == 0:  # harmonics
        made = sum(rng.normal() / k**1.5 * np.sin(2 * np.pi * (k * phase + rng.uniform())) for k in range(1, 5))
    elif shape == 1:  # day and night: part of the sine above a level
        made = np.maximum(np.sin(2 * np.pi * phase) - rng.uniform(-0.9, 0.6), 0)
    elif shape == 2:  # pulses: working hours, a weekend
        made = ((phase % 1) < rng.uniform(0.1, 0.6)).astype(float)
    else:  # a profile of a few levels, as hours or weekdays have
        levels = rng.normal(size=max(2, min(24, int(period))))
        made = levels[((phase % 1) * len(levels)).astype(int)]
    swing = 1 + rng.choice([0.0, 0.3, 1.0]) * standard(coloured_noise(length, rng))
    return np.asarray(made * swing)


def slow(length: int, rng: np.random.Generator) -> Steps:
    """A trend, a part of a year's cycle, or a random walk with drift."""
    t = np.linspace(-1, 1, length)
    kind = rng.integers(3)
    if kind == 0:
        return np.asarray(np.polynomial.Polynomial(rng.normal(size=4))(t))
    if kind == 1:
        return np.asarray(np.sin(np.pi * (rng.uniform(0.2, 2) * t + rng.uniform(0, 2))))
    return np.asarray(np.cumsum(rng.normal(rng.normal() * 0.1, 1, length)))


def regimes(length: int, rng: np.random.Generator) -> Steps:
    """Levels that last, and another noise in each."""
    count = int(rng.integers(2, 9))
    spell = np.searchsorted(np.sort(rng.uniform(0, length, count - 1)), np.arange(length))
    levels, noise = rng.normal(size=count) * rng.choice([0.0, 1.0, 3.0]), np.exp(rng.normal(size=count))
    return np.asarray(levels[spell] + noise[spell] * coloured_noise(length, rng))


def jumps(length: int, rng: np.random.Generator) -> Steps:
    """Rare shocks of heavy-tailed size that die away at once or slowly."""
    drawn, rate = rng.uniform(size=length), np.exp(rng.uniform(np.log(2 / length), np.log(0.2)))
    shocks = (drawn < rate) * rng.standard_t(2, length)
    if rng.uniform() < 0.5:
        shocks = np.abs(shocks)
    lasting = np.exp(-np.arange(length) / np.exp(rng.uniform(np.log(0.2), np.log(length / 8))))
    return np.asarray(np.convolve(shocks, lasting)[:length] + 1e-3 * rng.normal(size=length))


def volatility(length: int, rng: np.random.Generator) -> Steps:
    """Returns of a market: the deviation wanders; or the price that they add up to."""
    returns = np.exp(rng.uniform(0.2, 1) * standard(coloured_noise(length, rng))) * rng.normal(size=length)
    return np.asarray(np.cumsum(returns)) if rng.uniform() < 0.5 else returns


PARTS: tuple[Callable[[int, np.random.Generator], Steps], ...] = (
    *(coloured_noise, coloured_noise, cycle, cycle, cycle),
    *(slow, regimes, jumps, volatility),
)


def _scale(rng: np.random.Generator) -> float:
    return float(np.exp(rng.normal() * 0.7))


def _cut(x: Steps, rng: np.random.Generator) -> Steps:
    """Rain, radiation: nothing below a level."""
    return np.maximum(x - rng.uniform(-1, 1.2), 0)


def _grown(x: Steps, rng: np.random.Generator) -> Steps:
    """Concentrations, sales: proportional steps."""
    return np.exp(rng.uniform(0.3, 1.2) * np.clip(x, -4, 4))


def _saturated(x: Steps, rng: np.random.Generator) -> Steps:
    """Humidity, cloud cover: between two ends."""
    return np.tanh(rng.uniform(0.5, 3) * (x - rng.normal() * 0.5))


def _rounded(x: Steps, rng: np.random.Generator) -> Steps:
    step = rng.uniform(0.05, 1)
    return np.asarray(np.round(x / step) * step)


def _smoothed(x: Steps, rng: np.random.Generator) -> Steps:
    width = int(rng.integers(2, max(3, len(x) // 12)))
    padded = np.concatenate([np.full(width // 2, x[0]), x, np.full(width - 1 - width // 2, x[-1])])
    return np.asarray(np.convolve(padded, np.ones(width) / width, "valid"))


def _held(x: Steps, rng: np.random.Generator) -> Steps:
    """Read now and then, kept until the next reading."""
    read = rng.uniform(size=len(x)) < rng.uniform(0.1, 0.8)
    read[0] = True
    return x[np.maximum.accumulate(np.where(read, np.arange(len(x)), 0))]


def _gated(x: Steps, rng: np.random.Generator) -> Steps:
    """Switched on and off by spells."""
    gate = standard(coloured_noise(len(x), rng)) > rng.uniform(-1, 1)
    return np.asarray((x - x.min()) * gate)


def _folded(x: Steps, rng: np.random.Generator) -> Steps:
    """Wind speed, power: a size without a sign."""
    return np.asarray(np.abs(x - rng.normal() * 0.5) ** rng.choice([0.5, 1.0, 2.0]))


def _reversed(x: Steps, rng: np.random.Generator) -> Steps:
    return x[::-1].copy() if rng.uniform() < 0.5 else -x


SQUEEZES: tuple[Callable[[Steps, np.random.Generator], Steps], ...] = (
    *(_cut, _grown, _saturated, _rounded, _smoothed),
    *(_held, _gated, _folded, _reversed),
)
