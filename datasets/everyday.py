"""Series as most tables have them: the kinds of `processes` with little or no noise, and calendar cycles.

`processes` are noisy, and their periods are arbitrary. A clean daily wave is seasonal too, and the head classifies it
correctly, but nothing so regular is among its training recordings. So its out-of-distribution statistics are fitted on
these series too (unipercept/perception/measure_familiarity.py); nothing trains on them. Kinds that the head does not
classify correctly without noise are left out: it takes a line with a bend for a random walk half the time, and a wave
on a trend for a growing season. Those may well be flagged as out of distribution.

Source: generated here. Licence: Apache-2.0, as the code. Shapes: L steps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from unipercept.datasets.base import LabelledSet
from unipercept.datasets.blends import CYCLES, standard
from unipercept.datasets.processes import CARD, CLASSES, measured, series_length, wave

Steps = NDArray[np.float64]

SEED = 1  # of the numbers that are drawn: others than those of `processes`
LEAST_CYCLES = 4  # of a period, as in `processes`
CLEANEST, NOISIEST = 1e-3, 0.3  # deviation of the noise in those of the signal; a quarter of the series has none
SHARE_WITHOUT_NOISE = 0.25


def everyday(split: str, per_class: int) -> LabelledSet:
    """Series of `SIGNALS`' kinds, Lx1 float64 with NaN where a value is missing; classes and lengths are
    those of a split of `processes`.

    Raises:
        InputError: no such split.
    """
    CARD.check_split(split)
    kinds = tuple(SIGNALS)
    targets = np.repeat([CLASSES.index(kind) for kind in kinds], per_class)
    ids = tuple(f"everyday {CLASSES[target]} {split} {i % per_class}" for i, target in enumerate(targets))
    part = CARD.splits.index(split)

    def read(position: int) -> Steps:
        rng = np.random.default_rng([SEED, part, position])
        length = series_length(split, rng)
        signal = standard(SIGNALS[CLASSES[targets[position]]](length, rng))
        noise = np.exp(rng.uniform(np.log(CLEANEST), np.log(NOISIEST))) * (rng.uniform() > SHARE_WITHOUT_NOISE)
        # In units of a deviation of the noise that `measured` expects, or thereabouts: its trend
        # and its rounding stay slight.
        return measured(3 * (signal + noise * rng.normal(size=length)), rng)[:, None]

    return LabelledSet(CARD, split, targets.astype(np.int64), ids, read)


def cycle_length(length: int, rng: np.random.Generator, cycles: int = LEAST_CYCLES) -> int:
    """A calendar period of which the series holds at least `cycles`."""
    return int(rng.choice([period for period in CYCLES if cycles * period <= length]))


def seasonal(length: int, rng: np.random.Generator) -> Steps:
    """One cycle: a sine, with harmonics, half of a sine (sunshine), pulses (working hours), or a profile of levels."""
    period = cycle_length(length, rng)
    phase = np.arange(length) / period + rng.uniform()
    shape = rng.integers(5)
    if shape == 0:
        return np.asarray(np.sin(2 * np.pi * phase))
    if shape == 1:
        return wave(length, period, rng)
    if shape == 2:
        return np.asarray(np.maximum(np.sin(2 * np.pi * phase) - rng.uniform(-0.9, 0.6), 0))
    if shape == 3:
        return ((phase % 1) < rng.uniform(max(0.1, 1 / period), 0.6)).astype(float)
    levels = rng.normal(size=min(24, period))
    return np.asarray(levels[((phase % 1) * len(levels)).astype(int)])


def two_seasons(length: int, rng: np.random.Generator) -> Steps:
    """A day and its week, or the like: periods at least 4.5 times as long as one another, where there is room."""
    short = int(rng.choice([period for period in CYCLES if 18 * period <= max(length, 72)]))
    longer = [period for period in CYCLES if period >= 4.5 * short and 3 * period <= length]
    long = float(rng.choice(longer)) if longer else 4.5 * short
    first, second = wave(length, short, rng), wave(length, long, rng, n_harmonics=1)
    balance = 1.6 ** rng.uniform(-0.5, 0.5)
    return np.asarray(balance * first + second)


def growing_season(length: int, rng: np.random.Generator) -> Steps:
    """A cycle in proportion to a level that grows, or shrinks."""
    growth = np.geomspace(1, rng.uniform(3, 8), length)
    made = growth * (rng.uniform(1.5, 4) + wave(length, cycle_length(length, rng), rng))
    return made if rng.uniform() < 0.7 else made[::-1].copy()


def trend(length: int, rng: np.random.Generator) -> Steps:
    """A straight line."""
    return np.asarray(rng.choice([-1.0, 1.0]) * np.linspace(0, 1, length))


def level_shift(length: int, rng: np.random.Generator) -> Steps:
    """One step of the level."""
    return np.asarray(rng.choice([-1.0, 1.0]) * (np.arange(length) >= int(rng.uniform(0.15, 0.85) * length)))


def saturation(length: int, rng: np.random.Generator) -> Steps:
    """A logistic rise or fall."""
    slope = 2 * np.log(9) / rng.uniform(0.15, 0.45)
    curve = 1 / (1 + np.exp(-slope * (np.linspace(0, 1, length) - rng.uniform(0.35, 0.65))))
    return np.asarray(rng.choice([-1.0, 1.0]) * curve)


SIGNALS: dict[str, Callable[[int, np.random.Generator], Steps]] = {
    "seasonal": seasonal,
    "two seasons": two_seasons,
    "growing season": growing_season,
    "trend": trend,
    "level shift": level_shift,
    "saturation": saturation,
}
