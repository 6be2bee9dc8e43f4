"""The verb, the page, the estimator and what does not fit: a table in, files out."""

import json
import re
import shlex
from dataclasses import replace
from functools import partial
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import unipercept
from unipercept import cli
from unipercept.errors import InputError
from unipercept.forecasting import anomalies
from unipercept.forecasting.anomalies import _worst_of_runs, find_anomalies
from unipercept.forecasting.estimator import TableForecaster
from unipercept.forecasting.forecast import forecast_table
from unipercept.forecasting.settings import ForecastConfig
from unipercept.results import Anomalies, Forecast, plain_times

LENGTH = 480
QUICK = {"methods": ("seasonal", "linear"), "seconds": 60}


def table(length=LENGTH, seed=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    daily = np.sin(np.arange(length) * 2 * np.pi / 24)
    noise = rng.normal(size=(length, 2))
    return pd.DataFrame(
        {
            "date": pd.date_range("2024-01-01", periods=length, freq="h"),
            "load": 50 + 10 * daily + noise[:, 0],
            "heat": -daily + 0.1 * noise[:, 1],
        }
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("series") / "load.csv"
    table().to_csv(file, index=False)
    return file


@pytest.fixture(scope="module")
def result(path):
    return forecast_table(path, 24, **QUICK)


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(a) for a in arguments])
    return stopped.value.code


def test_the_verb_writes_table_picture_and_page(path, tmp_path, capsys):
    outputs = {name: tmp_path / name for name in ("f.csv", "f.png", "f.html")}
    code = run(
        "forecast",
        path,
        "-H",
        24,
        "--methods",
        "seasonal,linear",
        "-o",
        outputs["f.csv"],
        "--plot",
        outputs["f.png"],
        "--report",
        outputs["f.html"],
    )
    said = capsys.readouterr()
    assert code == 0
    assert "back-test:" in said.out
    assert "wrote" in said.out
    written = pd.read_csv(outputs["f.csv"], parse_dates=["time"])
    assert list(written["time"]) == list(pd.date_range("2024-01-21", periods=24, freq="h"))
    assert (written["load_q0.1"] <= written["load"]).all()
    assert (written["load"] <= written["load_q0.9"]).all()
    assert outputs["f.png"].stat().st_size > 10_000
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(outputs)


def test_json_is_for_other_programs(path, capsys):
    assert run("forecast", path, "--horizon", 6, "--methods", "naive", "--target", "heat", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["variables"] == ["heat"]
    assert len(record["values"]) == 6
    assert record["metadata"]["backtest"]["methods"]["naive"]["MASE"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x.docx"], "--output x.docx: the suffix must be one of"),
        (["--plot", "x.bmp"], "--plot x.bmp: the suffix must be one of .png, .svg, .pdf"),
        (["--report", "nowhere/x.html"], "the folder nowhere does not exist"),
        (["--methods", "magic"], "--methods knows naive, seasonal"),
        (["--target", "cold"], "has no column 'cold'"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(path, capsys, arguments, message):
    assert run("forecast", path, "-H", 6, *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_the_command_of_the_page_can_be_pasted_whatever_the_file_is_called(result, tmp_path):
    odd = replace(result, source="-o $(touch owned).csv")
    text = unescape(odd.report(tmp_path / "page.html").read_text(encoding="utf-8"))
    told = re.search(r"^.*unipercept forecast .*$", text, re.MULTILINE)[0].rpartition("<pre>")[2]
    assert shlex.split(told)[:3] == ["unipercept", "forecast", "./-o $(touch owned).csv"]


def test_the_page_stands_alone_and_says_what_was_done(result, tmp_path):
    text = result.report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|@import|url\(|https?://", text)
    pictures = re.findall(r'<img alt="[^"]+" src="data:image/png;base64,', text)
    assert len(pictures) == 4  # two series, errors by step, coverage
    for words in (
        "The forecast",
        "the back-test",
        "Calibration of the intervals",
        "The file: what was detected",
        "Use it",
    ):
        assert words in text
    for one in result.backtest.tested:
        assert one.method.name in text


def test_names_in_the_page_cannot_become_markup(tmp_path):
    frame = table(120).rename(columns={"load": "<b>load</b>"})
    text = forecast_table(frame, 6, methods=("naive",)).report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<b>load" not in text


def test_a_forecast_shows_and_saves_itself(result, tmp_path):
    assert isinstance(result, Forecast)
    assert len(result.tested) == 2
    assert len(result.plot().axes) == 2
    assert len(result.plot("heat").axes) == 1
    with pytest.raises(InputError, match="'cold' was not forecast"):
        result.plot("cold")
    long = result.to_dataframe("long")
    assert len(long) == 48
    assert long[long["series"] == "heat"]["q0.1"].to_numpy() == pytest.approx(result.quantile(0.1)[:, 1])
    assert json.loads(result.save(tmp_path / "f.json").read_text())["time"][0] == "2024-01-21 00:00"


def test_the_same_seed_gives_the_same_forecast(path, result):
    again = forecast_table(path, 24, **QUICK)
    np.testing.assert_array_equal(again.values, result.values)


def test_the_front_door_takes_what_people_hold():
    xarray = pytest.importorskip("xarray")
    frame = table()
    by_time = frame.set_index("date")
    expected = unipercept.forecast(by_time, 6, **QUICK).values
    held = [frame, by_time.to_xarray(), xarray.DataArray(by_time, dims=("date", "name"))]
    for one in held:
        np.testing.assert_allclose(unipercept.forecast(one, 6, **QUICK).values, expected)
    assert unipercept.forecast(by_time["load"], 6, **QUICK).variables == ("load",)
    assert unipercept.forecast(by_time["load"].to_numpy(), 6, **QUICK).time.tolist() == list(range(LENGTH, LENGTH + 6))
    with pytest.raises(InputError, match="expected a path"):
        unipercept.forecast([1, 2, 3], 6)


def test_times_are_shown_without_idle_digits():
    days = np.arange("2024-01-01", "2024-01-04", dtype="datetime64[D]").astype("datetime64[ns]")
    assert plain_times(days) == ["2024-01-01", "2024-01-02", "2024-01-03"]
    assert plain_times(days + np.timedelta64(90, "m"))[0] == "2024-01-01 01:30"
    assert plain_times(np.arange(2)) == ["0", "1"]


def test_the_estimator_fits_predicts_and_scores():
    frame = table(LENGTH + 24)
    model = TableForecaster(24, **QUICK).fit(frame[:LENGTH])
    predicted = model.predict()
    assert list(predicted.columns) == ["load", "heat"]
    assert predicted.index[0] == pd.Timestamp("2024-01-21")
    interval = model.predict_interval(coverage=0.95)
    assert (interval[("load", "lower")] < predicted["load"]).all()
    assert (interval[("load", "upper")] > predicted["load"]).all()
    assert -2 < model.score(frame[["load", "heat"]][LENGTH:]) < 0
    assert len(model.predict(40)) == 40
    with pytest.raises(InputError, match=r"got 0\.9"):
        model.predict_interval(coverage=0.9)


def test_a_single_method_need_not_stand_in_a_list():
    frame = table(60)
    one, listed = (TableForecaster(2, methods=methods).fit(frame).predict() for methods in ("naive", ["naive"]))
    assert one.equals(listed)


def test_the_estimator_goes_on_from_later_rows_wherever_they_start():
    frame = table(LENGTH + 31)
    model = TableForecaster(12, **QUICK).fit(frame[:LENGTH])
    whole = model.predict_interval(history=frame)
    part = model.predict_interval(history=frame[5:])
    assert whole.index[0] == pd.Timestamp("2024-01-22 07:00")
    np.testing.assert_allclose(part.to_numpy(), whole.to_numpy(), rtol=0.05)
    with pytest.raises(InputError, match="history must hold the series of the fit"):
        model.predict(history=frame[::2])


def test_the_estimator_keeps_the_manners_of_scikit_learn():
    model = TableForecaster(7, period=24)
    assert TableForecaster(**model.get_params()).get_params() == model.get_params()
    assert model.set_params(horizon=9).horizon == 9
    with pytest.raises(InputError, match="no setting 'depth'"):
        model.set_params(depth=3)
    with pytest.raises(InputError, match="not been fitted"):
        model.predict()


def test_scikit_learn_chooses_the_settings_of_the_estimator():
    sklearn = pytest.importorskip("sklearn.model_selection")
    search = sklearn.GridSearchCV(
        TableForecaster(24, methods=("seasonal",)), {"period": [7, 24]}, cv=sklearn.TimeSeriesSplit(2, test_size=24)
    )
    frame = table(200)[["load"]]
    assert search.fit(frame).best_params_ == {"period": 24}


@pytest.mark.parametrize("horizon", [0, -1, 2.5, "7", pd.DataFrame({"a": [1, 2]})])
def test_a_prediction_over_no_number_of_steps_is_one_line(horizon):
    model = TableForecaster(7, **QUICK).fit(table(200)[["load"]])
    with pytest.raises(InputError, match=r"^the horizon must be .*$"):
        model.predict(horizon)


def test_what_does_not_fit_is_found_with_its_size():
    frame = table(960)
    frame.loc[300, "load"] += 25
    frame.loc[700:703, "heat"] -= 4
    found = find_anomalies(frame)
    assert isinstance(found, Anomalies)
    seen = {(str(t)[:13], name) for t, name in zip(found.time, found.variable, strict=True)}
    assert (str(frame["date"][300])[:13].replace(" ", "T"), "load") in seen
    heat = [t for t, name in zip(found.time, found.variable, strict=True) if name == "heat"]
    assert any(frame["date"][700] <= pd.Timestamp(t) <= frame["date"][703] for t in heat)
    assert len(found) <= 4, found.to_text()
    assert (np.diff(found.size) <= 0).all()
    assert ((found.value < found.low) | (found.value > found.high)).all()


def test_neighbours_within_a_block_are_one_anomaly_at_its_worst_row():
    size = np.zeros((20, 2))
    size[[2, 4, 9], 0], size[[4, 8], 1] = [3.0, 5.0, 4.0], [2.0, 9.0]
    rows, columns = _worst_of_runs(size, 1.0, 4)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(4, 0), (9, 0), (4, 1), (8, 1)]
    assert [len(found) for found in _worst_of_runs(size, 9.0, 4)] == [0, 0]


def test_of_a_table_too_large_the_latest_rows_are_looked_at(monkeypatch):
    monkeypatch.setattr(anomalies, "MAX_CELLS", 300)
    values = np.sin(np.arange(400) * 2 * np.pi / 24) + 0.05 * np.random.default_rng(0).normal(size=400)
    values[[50, 350]] += 4
    frame = pd.DataFrame({"load": values}, index=pd.date_range("2024-01-01", periods=400, freq="h"))
    found = find_anomalies(frame)
    assert found.time == frame.index[[350]]
    assert found.value[0] == pytest.approx(values[350])


def test_a_handful_of_rows_has_nothing_odd():
    """One to three errors were the whole interval, and 19 of 20 short series of noise had a value far outside it."""
    rng = np.random.default_rng(0)
    for rows in (3, 5, 8, 11):
        found = find_anomalies(pd.DataFrame({"x": rng.normal(size=rows)}))
        assert len(found.size) == 0
        assert f"{rows} rows are too few to say what stands out" in found.to_text()


def test_a_quiet_series_has_nothing_that_stands_out():
    found = find_anomalies(pd.DataFrame({"x": np.sin(np.arange(500) * 2 * np.pi / 24)}))
    assert len(found) == 0
    assert "nothing stands out" in found.to_text()
    assert found.plot().axes


@pytest.mark.parametrize("values", [np.arange(1, 13), 100 + 2 * np.arange(40), 5 - np.arange(60)])
def test_a_straight_line_of_few_digits_has_nothing_that_stands_out(values):
    """A forecast one unit off was called odd, since it was off by one everywhere and its intervals had no width."""
    found = find_anomalies(pd.DataFrame({"x": values}))
    assert len(found) == 0, found.to_text()


@pytest.mark.parametrize("height", [1, 5])
def test_a_single_change_of_a_series_that_stands_still_stands_out(height):
    values = np.zeros(100)
    values[70] = height
    found = find_anomalies(pd.DataFrame({"x": values}))
    assert found.value.tolist() == [height]


def test_perceiving_a_series_tells_what_stands_out(path, tmp_path, capsys):
    frame = table(960)
    frame.loc[500, "load"] = 0
    file = tmp_path / "odd.csv"
    frame.to_csv(file, index=False)
    found = unipercept.perceive(file)
    assert isinstance(found, Anomalies)
    assert found.variable[0] == "load"
    assert run("perceive", file, "--top", 1, "--plot", tmp_path / "odd.png") == 0
    assert "load" in capsys.readouterr().out
    assert (tmp_path / "odd.png").stat().st_size > 5000
    for suffix in ("csv", "json", "parquet"):
        assert found.save(tmp_path / f"odd.{suffix}").exists()


@pytest.mark.slow
def test_the_network_joins_the_back_test(path, monkeypatch):
    """Two passes and more time than they can take: a busy machine must not train less."""
    monkeypatch.setattr(
        "unipercept.forecasting.methods.ForecastConfig", partial(ForecastConfig, epochs=2, series_an_epoch=2000)
    )
    found = forecast_table(path, 24, methods=("seasonal", "network"), seconds=1e6)
    names = [one.method.name for one in found.backtest.tested]
    assert names[:2] == ["seasonal naive", "seasonal naive with drift"]
    assert names[-1] == "network"
    assert found.backtest.named("network").score.sql < 2 * found.backtest.named("seasonal naive").score.sql


DOCS = Path(__file__).resolve().parents[2] / "docs" / "forecasting.md"


def blocks_of_the_page(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_the_commands_of_the_page_run(path, monkeypatch, capsys):
    """All but the network, which takes the time it is given."""
    monkeypatch.chdir(path.parent)
    days = pd.date_range("2024-01-01", periods=134)
    rng = np.random.default_rng(0)
    sales = pd.concat(
        [
            pd.DataFrame(
                {
                    "date": days,
                    "store": store,
                    "units": rng.poisson(20, 134),
                    "price": rng.uniform(9, 10, 134),
                    "region": region,
                    "size": size,
                }
            )
            for store, region, size in (("a", "north", 120), ("b", "south", 80), ("c", "south", 90))
        ]
    )
    sales.loc[sales["date"] > days[119], "units"] = np.nan
    sales.to_csv("sales.csv", index=False)
    lines = [line.split("  #")[0].strip() for line in blocks_of_the_page("sh")[0].splitlines()]
    assert len(lines) == 7
    for line in lines:
        quick = [] if "--methods" in line or "forecast" not in line else ["--methods", "seasonal,linear"]
        assert run(*shlex.split(line)[1:], *quick) == 0, capsys.readouterr().err


def test_the_python_of_the_page_runs(path, monkeypatch, capsys):
    monkeypatch.chdir(path.parent)
    exec(compile(blocks_of_the_page("python")[0], "docs/forecasting.md", "exec"), {})
    assert Path("load.html").is_file()


def test_a_series_that_repeats_exactly_has_scores():
    wave = np.round(10 + np.sin(np.arange(480) * 2 * np.pi / 24), 4)
    found = forecast_table(wave, 24, methods=("naive", "seasonal"))
    assert found.choice.score.mase == pytest.approx(0, abs=1e-5)
    assert found.choice.score.coverage[0.8] == 1
    np.testing.assert_allclose(found.values[:, 0], wave[:24], atol=1e-5)


def test_counts_are_forecast_in_whole_numbers_and_measurements_are_not():
    rng = np.random.default_rng(0)
    demand, measured = rng.poisson(0.4, 120), rng.normal(20, 5, 120).round()
    frame = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=120), "demand": demand, "measured": measured})
    result = forecast_table(frame, 7, methods=("naive", "seasonal", "usual", "theta"), seconds=10)
    levels = np.stack(list(result.quantiles.values()), axis=-1)
    assert (levels[:, 0] == np.round(levels[:, 0])).all()
    assert (result.values[:, 0] == 0).all()  # the most common value, not the mean
    assert (levels[:, 1] != np.round(levels[:, 1])).any()


def test_a_quiet_first_step_does_not_blow_up_the_intervals_of_few_rows():
    values = 100 + np.array([0.0, 0.01, 12.0, 3.0, 9.0, 2.0, 8.0])
    frame = pd.DataFrame({"date": pd.date_range("2017-01-01", periods=7, freq="YS"), "y": values})
    result = forecast_table(frame, 4)
    assert result.choice is None
    width = result.quantiles[0.975] - result.quantiles[0.025]
    assert 0.5 * np.ptp(values) < width[0, 0] < 4 * np.ptp(values)
