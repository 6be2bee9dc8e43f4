"""The long-term benchmark: every window is scored, published rows come out, test rows teach nothing."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from unipercept.cli import main
from unipercept.datasets.long_term import SHAPES
from unipercept.errors import InputError
from unipercept.forecasting.benchmark import SETS, BenchmarkSet, last_batch, open_task, without
from unipercept.forecasting.benchmark_baselines import BASELINES, evaluate_series, run_baseline
from unipercept.forecasting.benchmark_network import run_network
from unipercept.forecasting.calibration import FEWEST, Calibrator, calibrated
from unipercept.forecasting.least_squares import normal_equations
from unipercept.forecasting.losses import window_weights
from unipercept.forecasting.network import SeriesForecast, SeriesForecaster
from unipercept.forecasting.settings import QUANTILES, ForecastConfig
from unipercept.forecasting.training import training_steps
from unipercept.forecasting.window_scores import score

# Of "repeat last value": README of the data, from the papers of LTSF-Linear and PatchTST.
REPEAT = {("etth1", 96): (1.295, 0.713), ("etth2", 192): (0.534, 0.473), ("exchange_rate", 96): (0.081, 0.196)}
# RLinear at look-back 96, trained by gradient descent there and solved here: a few units of the third decimal apart.
LINEAR = {("etth1", 96): (0.386, 0.395), ("etth2", 96): (0.288, 0.338), ("etth2", 192): (0.374, 0.390)}
FOLDERS = {"etth1": "ett", "etth2": "ett", "exchange_rate": "exchange_rate"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """ILI's published shape: small enough to train on."""
    path, rng = tmp_path_factory.mktemp("ili"), np.random.default_rng(0)
    rows, variables = SHAPES["national_illness"]
    t = np.arange(rows)[:, None]
    values = np.sin(2 * np.pi * t / 52 + np.arange(variables)) + 0.2 * rng.normal(size=(rows, variables))
    table = pd.DataFrame(values, columns=[f"v{i}" for i in range(variables)])
    table.insert(0, "date", pd.date_range("2002-01-01", periods=rows, freq="W"))
    table.to_csv(path / "national_illness.csv", index=False)
    return path


@pytest.mark.parametrize(("name", "horizon"), REPEAT)
def test_repeating_the_last_value_gives_the_published_row(shared_data, name, horizon):
    path = shared_data / FOLDERS[name]
    if not path.is_dir():
        pytest.skip(f"no {FOLDERS[name]} in {shared_data}")
    found = evaluate_series("repeat", name, path, horizons=(horizon,), device="cpu")[0].test
    np.testing.assert_allclose((found.mse, found.mae), REPEAT[name, horizon], atol=0.0011)


@pytest.mark.parametrize(("name", "horizon"), LINEAR)
def test_least_squares_come_within_four_thousandths_of_the_published_linear_model(shared_data, name, horizon):
    path = shared_data / FOLDERS[name]
    if not path.is_dir():
        pytest.skip(f"no {FOLDERS[name]} in {shared_data}")
    found = evaluate_series("linear", name, path, horizons=(horizon,), device="cpu")[0].test
    np.testing.assert_allclose((found.mse, found.mae), LINEAR[name, horizon], atol=0.004)


def test_no_window_is_dropped_whatever_the_batch(folder):
    task = open_task("ili", folder, 36, 24, device="cpu")
    counts = {split: len(windows) for split, windows in task.splits.items()}
    assert counts == {"train": 7 * (676 - 36 - 24 + 1), "val": 7 * (97 - 24 + 1), "test": 7 * (193 - 24 + 1)}
    assert run_baseline(task, "repeat", judge_test=True).test.n == counts["test"] * 24


def test_the_last_test_window_ends_with_the_last_row(folder):
    task = open_task("ili", folder, 36, 24, device="cpu")
    windows = task.splits["test"]
    batch = windows.batch(torch.tensor([len(windows) - 1]))
    assert torch.equal(batch.target[0, :, 0], windows.values[-24:])  # the last variable's last steps


def test_only_what_holds_several_years_tells_what_is_slower_than_a_year():
    rows = {"etth1": 8640, "weather_jena": 36887, "exchange_rate": 5311, "ili": 676, "electricity": 18412}
    assert {name for name, count in rows.items() if SETS[name].holds_years(count)} == {"exchange_rate", "ili"}


def test_a_loader_that_drops_its_last_batch_leaves_out_the_latest_windows(folder):
    windows = open_task("ili", folder, 36, 24, device="cpu").splits["test"]
    assert len(windows.starts) == 170
    assert torch.equal(last_batch(windows, 64).starts, windows.starts[128:])
    assert last_batch(windows, 85) is None
    assert last_batch(windows) is None  # fewer than a batch: nothing would be left
    kept = replace(windows, starts=windows.starts[:128], rows=windows.rows[:128], stride=windows.stride[:128])
    zero = lambda batch: SeriesForecast(torch.zeros_like(batch.target), None)  # noqa: E731
    whole, part, rest = (score(zero, some, QUANTILES) for some in (windows, last_batch(windows, 64), kept))
    assert without(whole, part) == pytest.approx(rest.mse)


def test_baselines_are_what_they_say(folder):
    task = open_task("ili", folder, 104, 24, device="cpu")
    found = {method: run_baseline(task, method).validation for method in BASELINES}
    assert found["seasonal"].mse < found["repeat"].mse  # the set is a cycle
    assert found["smoothing"].mse < found["seasonal"].mse
    assert all(0.75 < scores.coverage_80 < 0.85 for scores in found.values())
    with pytest.raises(InputError, match="baselines are"):
        run_baseline(task, "prophecy")


SMALL = ForecastConfig(
    lookback=104, dim=8, blocks=1, kernel_size=5, patch=4, epochs=2, batch_size=64, series_an_epoch=384
)


@pytest.mark.parametrize("mixing", [False, True])
def test_one_forecast_is_judged_at_every_horizon_on_every_window(folder, mixing):
    results, found = run_network(
        "ili", folder, SMALL.changed(mixing=mixing), horizons=(24, 36), members=2, judge_test=True, device="cpu"
    )
    assert [result.horizon for result in results] == [24, 36]
    assert [result.test.n for result in results] == [7 * (193 - h + 1) * h for h in (24, 36)]
    assert all(0.6 < result.test.coverage_80 < 0.95 for result in results)
    repeat = run_baseline(open_task("ili", folder, 104, 24, device="cpu"), "repeat", judge_test=True)
    assert results[0].test.mse < repeat.test.mse
    assert len(found.networks) == 2


def test_rows_are_handed_over_horizon_by_horizon_and_one_of_them_can_be_judged_alone(folder):
    config, seen, told = SMALL.changed(epochs=1, series_an_epoch=128), [], []
    call = {"horizons": (24, 36), "refit": True, "device": "cpu", "on_rows": lambda rows, _: seen.append(rows)}
    results, _ = run_network("ili", folder, config, **call, tell=told.append)
    assert [[(row.horizon, row.method) for row in rows] for rows in seen] == [
        [(h, "network"), (h, "network refit")] for h in (24, 36)
    ]
    assert told[-2:] == ["judge 24 steps", "judge 36 steps"]
    (alone, _), _ = run_network("ili", folder, config, judged=(36,), **call)
    assert replace(alone, seconds=0.0) == replace(results[1], seconds=0.0)


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("years", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_test_rows_change_nothing_that_is_learned(folder, tmp_path, monkeypatch, refit, years):
    table = pd.read_csv(folder / "national_illness.csv")
    table.iloc[-193:, 1:] += 100.0
    table.to_csv(tmp_path / "national_illness.csv", index=False)
    monkeypatch.setattr(BenchmarkSet, "holds_years", lambda self, rows: years)
    config = SMALL.changed(lookback=36 - years, epochs=1, series_an_epoch=128)  # closed forms are kept by their sizes
    first, second = (
        run_network("ili", place, config, horizons=(24,), judge_test=True, refit=refit, device="cpu")
        for place in (folder, tmp_path)
    )
    assert [result.validation for result in first[0]] == [result.validation for result in second[0]]
    assert torch.equal(first[1].weights, second[1].weights)
    states = [found.networks[0].state_dict() for _, found in (first, second)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(first[1].lines[0], second[1].lines[0], strict=True))


def test_what_is_learned_again_ends_with_validation(folder):
    task = open_task("ili", folder, 36, 24, device="cpu")
    windows = task.before_test()
    assert int(windows.starts[0]) == 0
    assert int(windows.starts[-1]) + 36 + 24 == 676 + 97
    assert len(windows.starts) == 676 + 97 - 36 - 24 + 1
    assert torch.equal(windows.rows, windows.starts)


def test_a_refit_leaves_the_rows_without_it_as_they_are(folder, monkeypatch):
    monkeypatch.setattr(BenchmarkSet, "holds_years", lambda self, rows: False)  # whose lines take longest to choose
    config = SMALL.changed(lookback=34, epochs=1, series_an_epoch=128)
    (plain,), before = run_network("ili", folder, config, horizons=(24,), judge_test=True, device="cpu")
    rows, after = run_network("ili", folder, config, horizons=(24,), judge_test=True, refit=True, device="cpu")
    assert [row.method for row in rows] == ["network", "network refit"]
    assert replace(rows[0], seconds=0.0) == replace(plain, seconds=0.0)
    assert rows[1].validation == plain.validation
    assert rows[1].test != plain.test
    assert torch.equal(before.weights, after.weights)
    assert [line.settings for line in before.lines[0]] == [line.settings for line in after.lines[0]]
    assert not torch.equal(before.lines[0][0].weight, after.lines[0][0].weight)


def test_a_training_that_is_repeated_takes_as_many_updates_and_judges_nothing(folder):
    task = open_task("ili", folder, 36, 24, device="cpu")
    config = SMALL.changed(lookback=36, horizon=24, period=52, least_squares=False)

    def trained(validation, again):
        torch.manual_seed(0)
        network = SeriesForecaster(config, 7, task.n_features)
        steps, count = training_steps(network, task.splits["train"], validation, again=again), 0
        while True:
            try:
                next(steps)
                count += 1
            except StopIteration as stop:
                return network, stop.value, count

    first, training, _ = trained(task.splits["val"], None)
    second, repeated, count = trained(None, training)
    assert training.updates > 0
    assert count == training.updates + training.spread_updates
    assert (repeated.updates, repeated.spread_updates, repeated.history) == (
        training.updates, training.spread_updates, [],
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_stream_of_the_test_split_holds_every_row_from_validation_on(folder):
    task = open_task("ili", folder, 36, 24, device="cpu")
    stream = task.stream("test")
    assert len(stream.starts) == 97 + 193 - 24 + 1
    assert (stream.starts.diff() == 1).all()
    assert torch.equal(stream.starts[-(193 - 24 + 1) :], task.splits["test"].starts)


def test_normal_equations_are_those_of_all_windows(folder):
    windows = open_task("ili", folder, 36, 24, device="cpu").splits["train"]
    left, right = normal_equations(windows)
    batch = windows.batch(torch.arange(len(windows)))
    past = (batch.values[:, :36] - batch.values[:, :36].mean(1, keepdim=True))[..., 0].double()
    future = (batch.target - batch.values[:, :36].mean(1, keepdim=True))[..., 0].double()
    torch.testing.assert_close(left, past.T @ past, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(right, past.T @ future, rtol=1e-5, atol=1e-3)


def test_weights_of_windows_have_mean_one_and_calm_windows_count_more():
    weight = window_weights(torch.tensor([1.0, 2.0, 4.0]).reshape(3, 1, 1), 0.5).flatten()
    torch.testing.assert_close(weight.mean(), torch.tensor(1.0))
    torch.testing.assert_close(weight[0] / weight[2], torch.tensor(4.0))


def test_calibrated_intervals_cover_what_they_say():
    torch.manual_seed(0)
    levels = torch.tensor(QUANTILES)
    narrow = 0.5 * torch.special.ndtri(levels).expand(4000, 16, 1, -1)  # half as wide as it should be
    calibrator, target = Calibrator(QUANTILES, 16), torch.randn(4000, 16, 1)
    calibrator.add(narrow, target)
    found = calibrated(narrow, calibrator.factors(1e9), QUANTILES.index(0.5))
    assert (found.diff(dim=-1) >= 0).all()
    assert abs(((found[..., 1] < target) & (target < found[..., -2])).float().mean() - 0.8) < 0.01


def test_factors_of_few_windows_stay_near_one():
    torch.manual_seed(0)
    calibrator = Calibrator(QUANTILES, 4)
    levels = torch.special.ndtri(torch.tensor(QUANTILES)).expand(1000, 4, 1, -1)
    calibrator.add(levels, 1.5 * torch.randn(1000, 4, 1))
    away = calibrator.factors(1e12) - 1  # what the errors say: half as wide again
    torch.testing.assert_close(calibrator.factors(FEWEST) - 1, away / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(calibrator.factors(0.0), torch.ones(4, len(QUANTILES)))


def test_evaluate_prints_a_line_for_each_horizon(folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "repeat", "ili", "--data", str(folder), "--lookback", "36", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert stopped.value.code == 0
    assert len(lines) == len(SETS["ili"].horizons)
    assert lines[0].startswith("ili test, 36 past and  24 future steps, repeat: MSE ")


def test_a_model_that_is_none_is_refused_in_one_line(folder):
    with pytest.raises(InputError, match="does not exist"):
        evaluate_series("nothing", "ili", folder, lookback=36, device="cpu")


@pytest.fixture(scope="module")
def script():
    """benchmarks/long_term.py."""
    path = Path(__file__).parents[2] / "benchmarks/long_term.py"
    spec = importlib.util.spec_from_file_location("long_term_script", path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_a_run_of_the_table_goes_on_with_the_horizons_that_are_missing(script, folder, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/illness").symlink_to(folder)  # as Time-Series-Library names it
    arguments = "long_term.py DATA -o OUT --sets ili --methods network repeat --seeds 0 1 --lookbacks 104 --refit"
    places = {"DATA": str(tmp_path / "data"), "OUT": str(tmp_path / "out")}
    monkeypatch.setattr("sys.argv", [places.get(word, word) for word in arguments.split()])
    row = {"set": "ili", "lookback": 104, "seed": 0, "method": "network"}
    done = [{**row, "horizon": h, "method": m} for h in (24, 36) for m in ("network", "network refit")]
    jobs = script.jobs_to_do(script.parsed(), [*done, {**row, "horizon": 48}])  # 48 without its refit
    assert [(job["method"], job["seed"], job["judged"]) for job in jobs] == [
        ("network", 0, (48, 60)), ("repeat", 0, (24, 36, 48, 60)), ("network", 1, (24, 36, 48, 60)),
    ]  # fmt: skip
    assert all(job["horizons"] == (24, 36, 48, 60) for job in jobs)
    assert jobs[0]["settings"] == json.loads(script.CHOSEN.read_text())["all"]  # those of the published table


def test_validation_chooses_among_candidates_that_are_done_at_all_horizons(script, tmp_path):
    errors = {0.3: (0.5, 0.7), 0.1: (0.4, 0.6), 0.2: (0.1,)}  # the last one was stopped
    rows = [
        {"set": "ili", "lookback": 36, "horizon": h, "settings": {"dropout": dropout}, "validation_mse": mse}
        for dropout, found in errors.items()
        for h, mse in zip((24, 36), found, strict=False)
    ]
    (tmp_path / "choice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    script.write_choice(tmp_path)
    assert json.loads((tmp_path / "settings.json").read_text())["ili/36"] == {"dropout": 0.1}
