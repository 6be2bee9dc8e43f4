"""Series in training and perceiving: packs are the pipeline's maps; a head adds a word on each column;
statistics find what they are for.
"""

import numpy as np
import torch
import torch.nn.functional as F

from unipercept.datasets import labelled_set
from unipercept.datasets.processes import SHORTEST
from unipercept.model_cards import FEWEST_STEPS
from unipercept.models import load_model
from unipercept.perception import probe
from unipercept.perception.augment import turn_series
from unipercept.perception.packs import MapMaker, decode, make_pipeline
from unipercept.perception.series_statistics import N_STATISTICS, series_statistics
from unipercept.perception.series_traits import LAGS, LARGEST, N_TRAITS, series_traits
from unipercept.perception.settings import MapSettings
from unipercept.pipelines.timeseries import TimeSeriesConfig, TimeSeriesPipeline
from unipercept.results import Anomalies, ModelOutput

MAPS = MapSettings("timeseries", size=32)


def test_packs_are_the_maps_that_a_file_gives():
    samples = labelled_set("processes", "", "validation", per_class=1)
    packs = decode(samples, MAPS)
    assert packs.values.dtype == torch.float16
    assert len(packs) == len(packs.values) == 16
    maps, share = MapMaker(MAPS)(packs.values, packs.lengths)
    pipe = make_pipeline(MAPS)
    for i in (0, 5, 11):
        emap = pipe.embed(pipe.read(samples.read(i)))
        assert torch.allclose(maps[i], emap.tensor[0], atol=2e-3, rtol=1e-3)
        assert torch.allclose(share[i], emap.real_share()[0])


def test_a_series_that_is_turned_runs_backwards():
    maps = torch.arange(16.0).reshape(1, 1, 4, 4).repeat(50, 1, 1, 1)
    assert torch.equal(turn_series(maps, 1.0).flatten(1), maps.flatten(1).flip(1))
    assert torch.equal(turn_series(maps, 0.0), maps)
    assert 5 < int((turn_series(maps, 0.5)[:, 0, 0, 0] == 15).sum()) < 45


class Speaker:
    """A head that calls rising rows one thing and the rest another, and finds the second out of distribution."""

    name, labels = "speaker", ("rising", "else")

    def predict(self, emap):
        rises = emap.tensor[:, 0, -1].mean(dim=1) > emap.tensor[:, 0, 0].mean(dim=1) + 2
        said = torch.stack([rises, ~rises], dim=1).float()
        return ModelOutput(said, said * 9.0, said)

    def remarks(self, vector, texture, emap):
        assert torch.equal(F.normalize(texture, dim=0), vector)
        return {"ood_score": 0.5} if vector[0] > 0.5 else {"ood_score": 2.0, "notice": "unlike all; it knows two kinds"}


def test_beside_what_stands_out_a_head_names_each_column_of_the_latest_window():
    steps = np.arange(700.0)
    rng = np.random.default_rng(0)
    table = np.stack([np.maximum(steps, 500), rng.normal(size=700), *rng.normal(size=(8, 700))], axis=1)

    def find_anomalies(source):
        empty = np.zeros(0)
        names = tuple(map(str, range(10)))
        return Anomalies(
            empty, (), empty, empty, empty, empty, empty, "t.csv", "a forecast", steps, table, names, metadata={"a": 1}
        )

    found = TimeSeriesPipeline(
        TimeSeriesConfig(size=32, window=200, max_variables=4), model=Speaker(), find_anomalies=find_anomalies
    )(table)
    kinds = found.metadata["kinds"]
    assert [one["kind"] for one in kinds] == ["rising"] + ["else"] * 9
    assert [one["n_steps"] for one in kinds] == [200] * 10
    assert found.metadata["a"] == 1
    lines = found.to_text().splitlines()
    assert lines[1] == "  of what kind (speaker, last 200 steps):"
    assert lines[2].split() == ["column_0", "rising", "(100%)"]
    assert lines[3].endswith("else (100%); unlike all")
    assert lines[-1] == "    … 2 more with --json"


def test_statistics_ignore_level_and_unit_and_know_chaos_from_noise():
    samples = labelled_set("processes", "", "validation", per_class=2)
    for i in range(0, 32, 2):
        x = samples.read(i)[:, 0]
        x = x[np.isfinite(x)]
        one, other = series_statistics(x), series_statistics(5 - 1e3 * (5 - x))
        assert one.shape == (N_STATISTICS,)
        assert np.allclose(one, other, atol=1e-4), samples.ids[i]
    logistic = [0.3]
    for _ in range(500):
        logistic.append(3.9 * logistic[-1] * (1 - logistic[-1]))
    noise = np.random.default_rng(0).uniform(size=501)
    assert series_statistics(np.array(logistic))[-1] > 0.5 > abs(series_statistics(noise)[-1])
    assert not series_statistics(np.full(100, 3.0)).any()


def test_the_baseline_is_taken_of_the_series_that_were_decoded():
    part = labelled_set("processes", "", "test", per_class=1).subset([8, 2])
    found = probe.statistics_of(part, decode(part, MAPS))
    values = make_pipeline(MAPS).read(part.read(1)).values[:, 0]
    assert np.allclose(found[1], series_statistics(values), atol=1e-5)


def test_traits_ignore_level_unit_and_gaps_and_say_where_there_is_nothing_to_measure():
    rng = np.random.default_rng(0)
    x = np.sin(2 * np.pi * np.arange(480) / 24) + 0.1 * rng.normal(size=480)
    one, other = series_traits(x), series_traits(1e4 * x - 7e5)
    assert one.shape == (N_TRAITS,)
    assert np.abs(one).max() <= LARGEST
    assert np.allclose(one, other, atol=1e-3)
    lags = one[N_STATISTICS:][: len(LAGS)]
    assert lags[LAGS.index(24)] > 0.9 > -0.9 > lags[LAGS.index(12)]
    with_gaps = x.copy()
    with_gaps[rng.choice(480, 10, replace=False)] = np.nan
    assert np.allclose(series_traits(with_gaps), one, atol=0.3)
    assert np.isnan(series_traits(x[:60])[N_STATISTICS:][: len(LAGS)]).sum() == sum(3 * lag > 60 for lag in LAGS)
    assert np.isnan(series_traits(np.full(100, 3.0))).all()


def test_a_series_shorter_than_all_that_the_head_was_trained_on_has_a_notice():
    pipe = TimeSeriesPipeline(TimeSeriesConfig(size=32), model=load_model("universal.processes", in_channels=1))
    assert FEWEST_STEPS == {"processes": SHORTEST}
    rows = np.sin(np.arange(60.0))[:, None]
    (short,), (long,) = pipe.kinds(rows[:59]), pipe.kinds(rows)
    assert short["notice"] == "of 59 steps, while all that the head of processes was trained on had 60 or more"
    assert "steps" not in long.get("notice", "")
