"""Series of sixteen kinds: each signal meets the criterion that its label stands for; splits share no length."""

import numpy as np
import pytest

from unipercept.datasets import labelled_set, processes
from unipercept.datasets.blends import CYCLES, blend
from unipercept.datasets.everyday import LEAST_CYCLES, everyday
from unipercept.datasets.everyday import SIGNALS as EVERYDAY
from unipercept.datasets.processes import (
    CLASSES,
    LONGEST,
    SHORTEST,
    SIGNALS,
    deviations,
    durations,
    measured,
    series_length,
    wave,
)
from unipercept.errors import InputError
from unipercept.pipelines.timeseries import TimeSeriesPipeline

LENGTHS = (60, 200, 1500)


def signals(name, n=12):
    """Signals of a kind in sigmas, of short, middle and long series."""
    return [SIGNALS[name](length, np.random.default_rng(i)) for length in LENGTHS for i in range(n)]


class Quiet:
    """A generator of random numbers whose noise is nought, so that the signal alone is left."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def __getattr__(self, name):
        return getattr(self.rng, name)

    def normal(self, size=None):
        return np.zeros(size) if size is not None else 0.0


def noiseless(name, n=12):
    return [SIGNALS[name](length, Quiet(i)) for length in LENGTHS for i in range(n)]


def line(x):
    """The best straight line."""
    time = np.linspace(-1, 1, len(x))
    return np.polynomial.Polynomial.fit(time, x, 1)(time)


def test_series_repeat_are_of_their_kind_and_no_length_serves_two_splits():
    first, again = (labelled_set("processes", "", "test", per_class=2) for _ in range(2))
    assert len(first) == 2 * len(CLASSES)
    assert all(np.array_equal(first[i].input, again[i].input, equal_nan=True) for i in range(len(first)))
    assert first.card.class_names[first[5].target] == "mean reverting"
    lengths = {
        split: {series_length(split, np.random.default_rng(i)) for i in range(2000)}
        for split in ("train", "validation", "test")
    }
    assert not lengths["test"] & (lengths["train"] | lengths["validation"])
    assert min(map(min, lengths.values())) >= 60
    assert max(map(max, lengths.values())) <= 4096
    with pytest.raises(InputError, match="at least 1"):
        labelled_set("processes", "", "test", per_class=0)


@pytest.mark.parametrize("length", [60, 61, 83, 4096])
def test_every_length_makes_every_kind(length):
    for name in CLASSES:
        made = SIGNALS[name](length, np.random.default_rng(length))
        assert made.shape == (length,), name
        assert np.isfinite(made).all(), name


def test_measuring_keeps_the_kind():
    pipe = TimeSeriesPipeline()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        signal = processes.trend(300, rng)
        values = measured(signal, rng)
        there = np.isfinite(values)
        assert there.mean() >= 0.95
        assert there[0]
        assert there[-1]
        assert np.corrcoef(values[there], signal[there])[0, 1] > 0.95
        assert len(pipe.read(values[:, None])) == 300
    counts = measured(processes.intermittent(300, np.random.default_rng(0)), np.random.default_rng(0))
    assert np.nanmean(counts == 0) >= 0.6


def test_trends_shifts_and_growth_have_the_stated_heights():
    for x in noiseless("trend"):
        assert 5 <= abs(x[-1] - x[0]) <= 40
        assert np.allclose(x, line(x))
    for x in noiseless("trend break"):
        assert 3 - 1e-6 <= np.abs(x - line(x)).max() <= 12 + 1e-6
        bends = np.flatnonzero(np.abs(np.diff(x, 2)) > 1e-6 * np.abs(np.diff(x)).max())
        assert len(bends) <= 2
        assert 0.2 < bends.mean() / len(x) < 0.8
    for x in noiseless("level shift"):
        jumps = np.flatnonzero(np.diff(x))
        assert len(jumps) == 1
        assert 4 <= abs(np.diff(x)[jumps[0]]) <= 12
        assert 1 / 7 <= jumps[0] / len(x) <= 6 / 7
    for x in noiseless("saturation"):
        rise = abs(x[-1] - x[0])
        share = (np.abs(x - x[0]) > 0.1 * rise) & (np.abs(x - x[0]) < 0.9 * rise)
        assert 7 < rise <= 40
        assert 0.1 < share.mean() < 0.48
        assert np.abs(np.diff(x))[[0, -1]].max() < 0.2 * np.abs(np.diff(x)).max()


def test_steps_depend_on_those_before_as_stated():
    def correlation(x):
        return np.corrcoef(x[1:], x[:-1])[0, 1]

    long = {name: [SIGNALS[name](3000, np.random.default_rng(i)) for i in range(12)] for name in CLASSES[:3]}
    assert max(abs(correlation(x)) for x in long["white noise"]) < 0.08
    assert all(0.45 < correlation(x) < 0.97 for x in long["mean reverting"])
    assert all(abs(correlation(np.diff(x))) < 0.12 for x in long["random walk"])
    short = [SIGNALS["mean reverting"](60, np.random.default_rng(i)) for i in range(50)]
    assert np.mean([correlation(x) for x in short]) < 0.75  # its memory is short beside even the shortest series


def test_cycles_are_as_strong_as_long_and_as_many_as_stated():
    for x in noiseless("seasonal"):
        assert 1.2 - 1e-9 <= x.std() <= 6 + 1e-9
        power = np.abs(np.fft.rfft(x - x.mean())) ** 2
        assert power.argmax() >= 4 - 1
    assert abs(wave(1000, 25.0, np.random.default_rng(0)).std() - 1) < 1e-12
    for seed in range(20):
        lasting = durations(1000, 6, np.random.default_rng(seed), least=8, ratio=1.7)
        assert abs(lasting.sum() - 1000) < 1e-9
        assert lasting.max() / lasting.min() >= 1.7
        assert len(lasting) >= 6
    for x in noiseless("growing season"):
        ends = [np.ptp(part) for part in np.array_split(x, 6)]
        assert max(ends[0], ends[-1]) / min(ends[0], ends[-1]) > 1.8


def test_two_seasons_are_both_there():
    for seed in range(10):
        x = SIGNALS["two seasons"](1200, Quiet(seed))
        power = np.abs(np.fft.rfft(x)) ** 2
        first = int(power[1:].argmax()) + 1
        near = np.abs(np.arange(len(power)) / first - 1) < 0.3
        second = int(np.where(near, 0, power)[1:].argmax()) + 1
        ratio = max(first, second) / min(first, second)
        assert 3.9 < ratio < 14
        assert power[second] > 0.08 * power[first]


def test_counts_excursions_and_spells_are_as_stated():
    for x in signals("intermittent"):
        assert 0.6 <= (x == 0).mean() <= 0.97
        assert np.array_equal(x, x.round())
    for x in noiseless("spikes"):
        out = np.abs(x) > 0
        assert 2 <= out.sum() <= max(6, 0.05 * len(x))
        assert np.abs(x).max() >= 8
    for length in LENGTHS:
        for seed in range(20):
            found = deviations(length, np.random.default_rng(seed))
            values, counts = np.unique(found, return_counts=True)
            assert len(values) == 2
            assert 4 <= values[1] / values[0] <= 8
            assert counts.min() >= 0.1 * length


def test_chaos_is_told_by_what_came_before():
    for make in (processes._logistic, processes._henon):
        x = make(400, np.random.default_rng(1))
        before = np.stack([x[1:-1] ** 2, x[1:-1], x[:-2], np.ones(398)], axis=1)
        residual = np.linalg.lstsq(before, x[2:], rcond=None)[1]
        assert float(residual[0]) < 1e-12
    flow = processes._lorenz(2000, np.random.default_rng(0))
    assert 15 < np.abs(flow).max() < 22  # the attractor's extent
    assert (flow > 5).any()
    assert (flow < -5).any()


def test_blends_are_finite_and_of_all_sorts_and_the_same_for_the_same_seed():
    made = [blend(300, np.random.default_rng(i)) for i in range(60)]
    assert all(np.isfinite(x).all() and x.std() == pytest.approx(1) for x in made)
    assert np.array_equal(made[7], blend(300, np.random.default_rng(7)))
    smooth = [np.corrcoef(x[1:], x[:-1])[0, 1] for x in made]
    assert min(smooth) < 0.3
    assert max(smooth) > 0.95
    assert max(np.abs(x).max() for x in made) > 6 > 2 > min(np.abs(x).max() for x in made)


def test_everyday_series_are_of_kinds_and_lengths_that_processes_has():
    for split in ("train", "validation", "test"):
        samples, again = everyday(split, 5), everyday(split, 5)
        assert {CLASSES[target] for target in samples.targets} == set(EVERYDAY)
        for position in range(len(samples)):
            values = samples.read(position)
            assert np.array_equal(values, again.read(position), equal_nan=True)
            assert SHORTEST <= len(values) <= LONGEST
            assert np.nanstd(values) > 0
            assert np.isnan(values).mean() <= 0.05


@pytest.mark.parametrize("length", [60, 400, 4096])
def test_an_everyday_cycle_repeats_after_a_calendars_period(length):
    for seed in range(20):
        values = EVERYDAY["seasonal"](length, np.random.default_rng(seed))
        periods = [period for period in CYCLES if LEAST_CYCLES * period <= length]
        assert any(np.allclose(values[period:], values[:-period], atol=1e-9) for period in periods)
