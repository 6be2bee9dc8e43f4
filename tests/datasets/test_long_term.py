"""The long-term forecasting protocol: published splits and scaling, no window dropped, published rows reproduced."""

import numpy as np
import pandas as pd
import pytest

from unipercept.datasets import dataset
from unipercept.datasets.long_term import SHAPES
from unipercept.errors import InputError

# Set, horizon: mean squared and absolute error of "repeat last value" on the test split. ETT and Weather as published
# with PatchTST and LTSF-Linear. For Exchange the published 0.081 / 0.196 and 0.167 / 0.289.
PUBLISHED = {
    ("etth1", 96): (1.295, 0.713), ("etth1", 192): (1.325, 0.733),
    ("etth2", 96): (0.432, 0.422), ("etth2", 192): (0.534, 0.473),
    ("weather_jena", 96): (0.259, 0.254),
    ("exchange_rate", 96): (0.081, 0.196), ("exchange_rate", 192): (0.167, 0.289),
}  # fmt: skip
FOLDERS = {"etth1": "ett", "etth2": "ett", "weather_jena": "weather_jena", "exchange_rate": "exchange_rate"}


def errors_of_repeating(windows):
    """Over all windows, steps and variables."""
    squared = absolute = count = 0.0
    for sample in windows:
        difference = (sample.target - sample.input[-1]).astype(np.float64)
        squared += (difference**2).sum()
        absolute += np.abs(difference).sum()
        count += difference.size
    return squared / count, absolute / count


@pytest.mark.parametrize(("name", "horizon"), PUBLISHED)
def test_repeating_the_last_value_gives_the_published_row(shared_data, name, horizon):
    folder = shared_data / FOLDERS[name]
    if not folder.is_dir():
        pytest.skip(f"no {FOLDERS[name]} in {shared_data}")
    found = errors_of_repeating(dataset(name, folder, "test", horizon=horizon))
    np.testing.assert_allclose(found, PUBLISHED[name, horizon], atol=0.0011)  # one unit of their last digit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("long_term")
    values = np.random.default_rng(0).normal(size=SHAPES["exchange_rate"])
    values[:, 0] = np.arange(len(values))
    pd.DataFrame(values).to_csv(path / "exchange_rate.txt.gz", header=False, index=False)
    return path


@pytest.mark.parametrize("horizon", [96, 720])
def test_every_window_of_the_published_split_is_there(folder, horizon):
    counts = [len(dataset("exchange_rate", folder, split, horizon=horizon)) for split in ("train", "val", "test")]
    assert counts == [5311 - 96 - horizon + 1, 760 - horizon + 1, 1517 - horizon + 1]


def test_the_test_split_ends_with_the_last_row_and_training_rows_are_standard(folder):
    windows = dataset("exchange_rate", folder, "test", horizon=24)
    train = windows.values[:5311].astype(np.float64)
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(windows[len(windows) - 1].target, windows.values[-24:])
    np.testing.assert_array_equal(windows[0].target, windows.values[7588 - 1517 :][:24])


def test_a_table_with_names_and_dates_reads_the_same(folder, tmp_path):
    table = pd.read_csv(folder / "exchange_rate.txt.gz", header=None)
    table.insert(0, "date", pd.date_range("1990-01-01", periods=len(table)))
    table.to_csv(tmp_path / "exchange_rate.csv", index=False)
    again, first = (dataset("exchange_rate", place, "val").values for place in (tmp_path, folder))
    np.testing.assert_array_equal(again, first)


def test_what_is_absent_cut_or_no_table_is_said_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"must hold weather\.csv"):
        dataset("weather_jena", tmp_path)
    (tmp_path / "weather.csv").write_bytes(b"date,T (\xb0C)\n2020-01-01,3\n")
    with pytest.raises(InputError, match="52696 rows of 21 variables, got 1 of 1"):
        dataset("weather_jena", tmp_path)
    (tmp_path / "exchange_rate.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match="cannot read"):
        dataset("exchange_rate", tmp_path)


# Name, file, columns of the small table that stands in for the published one, whose shape the test lowers.
OTHERS = {"ili": "national_illness", "electricity": "electricity", "traffic": "traffic", "solar": "solar"}
OTHERS_AND_WEATHER = {**OTHERS, "weather_jena": "weather"}


@pytest.mark.parametrize("name", OTHERS_AND_WEATHER)
def test_every_other_set_is_split_scaled_and_counted_alike(name, tmp_path, monkeypatch):
    stem = OTHERS_AND_WEATHER[name]
    monkeypatch.setitem(SHAPES, stem, (500, 3))
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(500, 3)) * 5 + 2)
    if name == "weather_jena":  # as it circulates: dates, and a header that is no UTF-8
        table.insert(0, "date", pd.date_range("2020-01-01 00:10", periods=500, freq="10min"))
        table.columns = ["date", "p (mbar)", "T (\xb0C)", "CO2 (ppm)"]
        table.to_csv(tmp_path / "weather.csv", index=False, encoding="latin-1")
    else:
        suffix = "_AL.txt.gz" if name == "solar" else ".txt.gz"
        table.to_csv(tmp_path / f"{stem}{suffix}", header=False, index=False)
    windows = {split: dataset(name, tmp_path, split, lookback=48, horizon=24) for split in ("train", "val", "test")}
    assert [len(part) for part in windows.values()] == [350 - 48 - 24 + 1, 50 - 24 + 1, 100 - 24 + 1]
    np.testing.assert_allclose(windows["train"].values[:350].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_array_equal(windows["test"][len(windows["test"]) - 1].target, windows["test"].values[-24:])


def test_a_variable_that_never_changes_in_training_is_not_blown_up(tmp_path, monkeypatch):
    monkeypatch.setitem(SHAPES, "traffic", (500, 2))
    values = np.random.default_rng(0).normal(size=(500, 2))
    values[:, 1] = np.where(np.arange(500) < 400, 0.1, 0.3)
    pd.DataFrame(values).to_csv(tmp_path / "traffic.txt", header=False, index=False)
    scaled = dataset("traffic", tmp_path, lookback=48, horizon=24).values[:, 1]
    np.testing.assert_allclose(scaled, np.where(np.arange(500) < 400, 0.0, 0.2), atol=1e-6)


def test_published_shapes_of_the_other_sets():
    assert {name: SHAPES[stem] for name, stem in OTHERS.items()} == {
        "ili": (966, 7), "electricity": (26304, 321), "traffic": (17544, 862), "solar": (52560, 137)
    }  # fmt: skip


def test_stations_are_three_files_apart_in_degrees(tmp_path):
    rng = np.random.default_rng(0)
    for split, rows in (("train", 300), ("val", 100), ("test", 120)):
        np.save(tmp_path / f"temp_global_hourly_{split}.npy", rng.integers(-300, 300, size=(rows, 5, 1)))
    windows = dataset("stations_temperature", tmp_path, "test")
    assert len(windows) == 120 - 48 - 24 + 1
    raw = np.load(tmp_path / "temp_global_hourly_test.npy")[:, :, 0].astype(np.float32) / 10
    np.testing.assert_array_equal(windows[0].input, raw[:48])
    np.testing.assert_array_equal(windows[len(windows) - 1].target, raw[-24:])
    with pytest.raises(InputError, match="wind_global_hourly_train"):
        dataset("stations_wind", tmp_path)
    np.save(tmp_path / "wind_global_hourly_train.npy", np.zeros((50, 5)))
    with pytest.raises(InputError, match="rows x stations x 1"):
        dataset("stations_wind", tmp_path)
