"""The network that comes trained: what it makes of any series, its weights' file, and how it is trained."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch

from unipercept.errors import InputError, WeightsError
from unipercept.forecasting import pretraining
from unipercept.forecasting.generated import (
    HABITS,
    PERIODS,
    Draw,
    _arima,
    _composed,
    _growth,
    _innovations,
    _kernels,
    generate,
)
from unipercept.forecasting.methods import make_methods
from unipercept.forecasting.prepare import prepare
from unipercept.forecasting.pretrained import Pretrained, load_pretrained, save_pretrained, short_cycle
from unipercept.forecasting.pretrained_network import (
    DIRECTIONS,
    LINE_MEMORIES,
    N_FACTS,
    PretrainedConfig,
    PretrainedNetwork,
    _Facts,
    folded_period,
)
from unipercept.forecasting.pretraining import PretrainingPlan, Source, lengths, main, pretrain
from unipercept.forecasting.scores import MEDIAN

SMALL = PretrainedConfig(cycles=4, later_cycles=2, dim=8, blocks=1, kernel_size=5, width=16)


def waves(rows: int, period: int, n: int = 1, noise: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(0)
    cycle = np.sin(2 * np.pi * np.arange(rows) / period)[:, None] * np.arange(1, n + 1)
    return cycle + noise * rng.normal(size=(rows, n))


@pytest.mark.parametrize("period", [1, 7, 24])
@pytest.mark.parametrize("rows", [8, 60])
def test_it_forecasts_any_series_and_its_quantiles_ascend(period, rows):
    method = Pretrained(period, "cpu")
    values = 1e5 + 10 * waves(rows, 12, 2)
    method.fit(values, 30, 1.0)
    found = method.predict(values, [rows - 1, rows], 30)
    assert found.shape == (2, 30, 2, 11)
    assert np.isfinite(found).all()
    assert (np.diff(found, axis=-1) >= 0).all()
    assert abs(found[..., MEDIAN].mean() - 1e5) < 100


def test_it_knows_a_cycle_when_it_sees_one():
    values = waves(84, 12)
    found = Pretrained(12, "cpu").predict(values, [60], 24)[0, ..., MEDIAN]
    assert np.abs(found - values[60:]).mean() < 0.3 * np.abs(values[60:]).mean()


def test_forecasts_follow_the_units_of_the_series():
    values = waves(60, 7, 2)
    method = Pretrained(7, "cpu")
    plain, moved = (method.predict(part, [60], 14) for part in (values, 1000 + 50 * values))
    np.testing.assert_allclose(moved, 1000 + 50 * plain, rtol=1e-4)


def test_nothing_after_an_origin_is_seen():
    values = waves(60, 7, 2)
    changed = np.array(values)
    changed[40:] += 100
    method = Pretrained(7, "cpu")
    np.testing.assert_array_equal(method.predict(values, [40], 7), method.predict(changed, [40], 7))


def test_before_the_first_row_nothing_is_known():
    assert (Pretrained(7, "cpu").predict(waves(30, 7) + 5, [0], 7) == 0).all()


@pytest.mark.parametrize("period", [0, -3, 2.5, 169])
def test_a_cycle_that_the_weights_do_not_know_is_refused(period):
    with pytest.raises(InputError, match=f"period must be 1 to 168 whole steps, got {period}"):
        Pretrained(period, "cpu")


def test_gaps_and_late_starts_are_bridged():
    values = waves(80, 7, 2)
    values[:50, 1], values[60:63, 0] = np.nan, np.nan
    method = Pretrained(7, "cpu")
    found = method.predict(values, [20, 80], 7)
    assert np.isfinite(found).all()
    alone = method.predict(values[50:, 1:], [30], 7)
    np.testing.assert_allclose(found[1:, :, 1:], alone, rtol=1e-4, atol=1e-5)


def test_what_takes_too_long_on_a_cpu_is_left_out():
    with pytest.raises(InputError, match="5000 series of 300 rows would take too long"):
        Pretrained(24, "cpu").fit(np.zeros((300, 5000)), 24, 1.0)
    with pytest.raises(InputError, match="5 rows are too few"):
        Pretrained(24, "cpu").fit(np.zeros((5, 1)), 24, 1.0)


def test_a_cycle_too_long_for_the_weights_gives_way_to_a_shorter_one():
    assert short_cycle(12) == 12
    assert short_cycle(168, (168, 24)) == 168
    assert short_cycle(365) == 1
    assert short_cycle(1, (1,), unseen=12) == 12
    assert short_cycle(5, (5,), unseen=365) == 5


@pytest.mark.parametrize(
    ("rows", "wanted", "offered"),
    [
        (200, (), {"pretrained"}),
        (201, (), {"pretrained", "network"}),
        (500, (), {"pretrained", "network"}),
        (501, (), {"network"}),
        (600, ("naive", "pretrained"), {"pretrained"}),
    ],
)
def test_it_is_tried_on_short_series_or_where_it_is_asked_for(rows, wanted, offered):
    methods, _ = make_methods(prepare(waves(rows, 12)), wanted, device="cpu")
    assert {method.name for method in methods} & {"pretrained", "network"} == offered


@pytest.mark.parametrize(
    ("frequency", "rows", "cycle"), [("MS", 29, 12), ("QS", 9, 4), ("D", 17, 7), ("h", 59, 24), ("10min", 100, 144)]
)
def test_too_few_rows_to_show_a_cycle_are_told_of_the_calendars(frequency, rows, cycle):
    dates = pd.date_range("2024-01-01", periods=rows, freq=frequency)
    table = pd.DataFrame({"date": dates, "value": np.random.default_rng(0).normal(size=rows).cumsum()})
    methods, notices = make_methods(prepare(table), ("pretrained",), device="cpu")
    assert methods[0].period == cycle
    assert f"too few rows to show the calendar's cycle of {cycle} steps; the pretrained network assumes it" in notices
    asked, _ = make_methods(prepare(table, period=3), ("pretrained",), device="cpu")
    assert asked[0].period == 3


def test_series_of_a_batch_do_not_see_each_other():
    network = load_pretrained(None, "cpu")[0]
    x = torch.from_numpy(waves(48, 12).T).float()
    with torch.no_grad():
        alone, beside = network(x, 12), network(torch.cat([x, x.flip(1)]), 12)[:1]
    torch.testing.assert_close(alone, beside, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory", range(len(LINE_MEMORIES)))
def test_on_a_straight_line_every_line_goes_on(memory):
    steps = torch.arange(40.0)
    facts = _Facts.of((3 + 0.5 * steps)[None], 4, 1)
    torch.testing.assert_close(facts.lines[0][0, memory], 3 + 0.5 * steps)
    torch.testing.assert_close(facts.lines[1][0, memory, 2:], torch.full((38,), 0.5), rtol=1e-4, atol=1e-4)
    ahead = facts.plain(8)[0, :, -len(LINE_MEMORIES) + memory] + facts.directions(8)[0, :, memory]
    torch.testing.assert_close(ahead, 3 + 0.5 * torch.arange(40.0, 48.0), rtol=1e-4, atol=1e-3)


def test_lines_are_those_of_weighted_least_squares():
    x = torch.randn(2, 15, generator=torch.Generator().manual_seed(0))
    level, slope = _Facts.of(x, 4, 1).lines
    at, steps = 11, np.arange(12)
    for number, memory in enumerate(LINE_MEMORIES):
        weight = memory ** (at - steps) / 1.0
        for series in range(2):
            expected = np.polyfit(steps - at, x[series, :12].numpy(), 1, w=np.sqrt(weight))
            found = [float(slope[series, number, at]), float(level[series, number, at])]
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_season_that_grows_is_seen_to_grow():
    steps = torch.arange(60)
    steady = torch.sin(2 * torch.pi * steps / 12)
    facts = _Facts.of(torch.stack([steady, steady * (1 + steps / 60), steady * (2 - steps / 60)]), 12, 12)
    assert facts.grown[0].abs() < 1e-5
    assert facts.growing[0].abs() < 1e-5
    assert facts.grown[1] > 0.1 > -0.1 > facts.grown[2]
    assert facts.growing[1] > 0.1 > -0.1 > facts.growing[2]


@pytest.mark.parametrize(("period", "rows"), [(1, 2), (1, 9), (4, 2), (12, 13), (12, 20), (24, 300)])
def test_what_is_told_of_a_history_is_finite_however_short(period, rows):
    facts = _Facts.of(torch.randn(3, rows, generator=torch.Generator().manual_seed(0)), folded_period(period), period)
    told, ahead = facts.summary(24), facts.directions(30)
    assert told.shape == (3, N_FACTS)
    assert ahead.shape == (3, 30, DIRECTIONS)
    assert told.isfinite().all()
    assert ahead.isfinite().all()


def test_without_a_cycle_there_is_no_season():
    facts = _Facts.of(torch.randn(2, 30, generator=torch.Generator().manual_seed(0)), 4, 1)
    assert all((season == 0).all() for season in facts.seasons)


def test_weights_are_written_and_read(tmp_path):
    torch.manual_seed(0)
    network = PretrainedNetwork(SMALL).eval()
    save_pretrained(network, {"seed": 3}, tmp_path / "w.safetensors")
    again, card = load_pretrained(tmp_path / "w.safetensors")
    assert again.config == SMALL
    assert card["seed"] == 3
    x = torch.from_numpy(waves(20, 5).T).float()
    with torch.no_grad():
        torch.testing.assert_close(again(x, 5), network(x, 5), rtol=0.02, atol=0.02)  # half precision


def test_other_files_are_refused_in_one_line(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="cannot read"):
        load_pretrained(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="does not exist"):
        load_pretrained(tmp_path / "y.safetensors")
    save_pretrained(PretrainedNetwork(SMALL), {"config": {**asdict(SMALL), "wings": 2}}, tmp_path / "z.safetensors")
    with pytest.raises(WeightsError, match=r"written by another version of unipercept.*wings"):
        load_pretrained(tmp_path / "z.safetensors")


def test_the_packages_weights_are_small_and_say_what_made_them():
    network, card = load_pretrained()
    assert sum(p.numel() for p in network.parameters()) * 2 < 2_000_000
    assert "nothing recorded" in card["trained_on"]
    assert {"seed", "steps", "torch", "device", "data_licence"} <= set(card)


@pytest.mark.parametrize("period", sorted({PERIODS[0], PERIODS[-1], 24}))
def test_generated_series_are_finite_scaled_and_the_same_for_a_seed(period):
    first, second = (generate(32, 300, period, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.isfinite().all()
    assert first.std(1).median() > 0.3


@pytest.mark.parametrize("family", [_composed, _innovations, _arima, _growth, _kernels])
@pytest.mark.parametrize("period", [1, 2, 12, 168])
def test_every_family_gives_series_of_unit_deviation(family, period):
    series = family(Draw(64, 336, torch.Generator().manual_seed(0), HABITS[1]), period)
    assert series.shape == (64, 336)
    assert series.isfinite().all()
    torch.testing.assert_close(series.std(1).median(), torch.tensor(1.0), rtol=1e-3, atol=0)


PLAN = PretrainingPlan(steps=8, cells=500, pool_cells=3000, frozen=3, statistics_batches=2)


@pytest.fixture
def quick(monkeypatch):
    for name, value in {
        "POOLS": 2,
        "USES": 3,
        "VALIDATION_BATCHES": 2,
        "VALIDATION_CELLS": 2000,
        "STATE_EVERY": 2,
    }.items():
        monkeypatch.setattr(pretraining, name, value)


def assert_same(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.usefixtures("quick")
def test_a_pretraining_is_repeated_by_its_seed_and_steps():
    first, second = (pretrain(SMALL, PLAN, device="cpu") for _ in range(2))
    assert first.steps == 8
    assert_same(first.network, second.network)
    other = pretrain(SMALL, replace(PLAN, seed=1), device="cpu")
    assert not torch.equal(first.network.out.weight, other.network.out.weight)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("shorter", "stopped"), [(3, 2), (6, 4)])  # before the norms are frozen, and after
def test_a_pretraining_goes_on_from_its_state_as_if_it_had_not_been_stopped(tmp_path, shorter, stopped):
    state, lines = tmp_path / "w.state", []
    pretrain(SMALL, replace(PLAN, steps=shorter), device="cpu", state=state)
    again = pretrain(SMALL, PLAN, device="cpu", state=state, tell=lines.append)
    assert f"update {stopped}: goes on" in lines[0]
    assert_same(again.network, pretrain(SMALL, PLAN, device="cpu").network)


@pytest.mark.usefixtures("quick")
def test_a_state_of_another_training_is_refused_in_one_line(tmp_path):
    state = tmp_path / "w.state"
    pretrain(SMALL, PLAN, device="cpu", state=state)
    with pytest.raises(InputError, match="other plan"):
        pretrain(SMALL, replace(PLAN, seed=1), device="cpu", state=state)
    with pytest.raises(InputError, match="other config"):
        pretrain(replace(SMALL, blocks=2), PLAN, device="cpu", state=state)
    with pytest.raises(InputError, match="the state is at update 5, and the rate was to reach 0 at 4"):
        pretrain(SMALL, replace(PLAN, steps=4), device="cpu", state=state)


def test_a_training_that_is_given_seconds_says_how_many_updates_repeat_it(quick):
    timed = pretrain(SMALL, replace(PLAN, steps=None, seconds=2.0), device="cpu")
    assert timed.steps > 0
    assert_same(timed.network, pretrain(SMALL, replace(PLAN, steps=timed.steps), device="cpu").network)


def test_a_batch_depends_on_its_number_alone():
    first, second = (Source(SMALL, PLAN, torch.device("cpu")) for _ in range(2))
    for number in (0, 50, 3):
        first.batch(number)
    for one, other in zip(first.batch(90), second.batch(90), strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("period", sorted(set(PERIODS)))
def test_histories_are_of_lengths_that_forecasts_are_made_from(period):
    found = lengths(period, 24)
    folded = folded_period(period)
    assert found[0] == 8
    assert found[-1] == 24 * folded
    assert all(n <= 4 * folded or n % folded == 0 for n in found)
    assert len(found) >= 6


@pytest.mark.usefixtures("quick")
def test_the_command_writes_weights_whose_card_repeats_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretraining, "PretrainingPlan", lambda: PLAN)
    monkeypatch.setattr(pretraining, "PretrainedConfig", lambda: SMALL)
    output = tmp_path / "w.safetensors"
    monkeypatch.setattr(
        "sys.argv", ["pretraining", "-o", str(output), "--steps", "3", "--cells", "500", "--device", "cpu"]
    )
    main()
    network, card = load_pretrained(output)
    assert card["steps"] == card["plan"]["steps"] == 3
    assert card["processes"] == pretraining.processes_digest()
    assert json.loads(capsys.readouterr().out)["torch"] == torch.__version__
    again = pretrain(network.config, replace(PLAN, steps=3), device="cpu").network
    assert torch.equal(network.out.bias, again.out.bias.half().float())  # the file is in half precision


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "nowhere/w.safetensors"], "the folder nowhere does not exist"),
        (["-o", "w.safetensors", "--state", "nowhere/w.state"], "the folder nowhere does not exist"),
        (["-o", "w.safetensors", "--device", "tpu7"], "device must be"),
    ],
)
def test_what_could_not_be_written_at_the_end_is_refused_at_the_start(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretraining, "pretrain", lambda *_, **__: pytest.fail("the training began"))
    monkeypatch.setattr("sys.argv", ["pretraining", *options])
    with pytest.raises(SystemExit) as status:
        main()
    assert status.value.code == 2
    assert message in capsys.readouterr().err
