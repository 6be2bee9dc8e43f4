"""The long-term forecasting protocol: published splits and scaling, no window dropped, published rows reproduced."""

import numpy as np
import pandas as pd
import pytest

from unipercept.datasets import dataset
from unipercept.datasets.long_term import SHAPES
from unipercept.errors import InputError

# Set, horizon: mean squared and absolute error of "repeat last value" on the test split. ETT and Weather as published with
# PatchTST and LTSF-Linear. For Exchange the published 0.081 / 0.196 and 0.167 / 0.289.
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
