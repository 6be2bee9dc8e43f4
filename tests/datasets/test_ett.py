"""ETT as published: split by rows, scaled by the training rows, no window dropped."""

import numpy as np
import pandas as pd
import pytest

from unipercept.datasets import dataset
from unipercept.datasets.ett import MONTH, N_ROWS
from unipercept.errors import InputError

COLUMNS = ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table of the published shape whose first column counts the rows."""
    path = tmp_path_factory.mktemp("ett")
    values = np.random.default_rng(0).normal(size=(N_ROWS, 7)) * 5 + 3
    values[:, 0] = np.arange(N_ROWS)
    table = pd.DataFrame(values, columns=COLUMNS)
    table.insert(0, "date", pd.date_range("2016-07-01", periods=N_ROWS, freq="h"))
    for name in ("ETTh1.csv", "ETTh2.csv"):
        table.to_csv(path / name, index=False)
    return path


@pytest.mark.parametrize("name", ["etth1", "etth2"])
@pytest.mark.parametrize("horizon", [96, 192, 336, 720])
def test_window_counts_are_those_of_the_published_split(folder, name, horizon):
    counts = [len(dataset(name, folder, split, lookback=96, horizon=horizon)) for split in ("train", "val", "test")]
    assert counts == [8640 - 96 - horizon + 1, 2880 - horizon + 1, 2880 - horizon + 1]


@pytest.mark.parametrize("name", ["ettm1", "ettm2"])
def test_quarters_of_an_hour_have_four_times_the_rows_of_each_split(name, tmp_path):
    values = np.random.default_rng(0).normal(size=(4 * N_ROWS, 7)).round(3)
    table = pd.DataFrame(values, columns=COLUMNS)
    table.insert(0, "date", pd.RangeIndex(4 * N_ROWS))
    table.to_csv(tmp_path / f"ETTm{name[-1]}.csv", index=False)
    counts = [len(dataset(name, tmp_path, split, horizon=192)) for split in ("train", "val", "test")]
    assert counts == [34560 - 96 - 192 + 1, 11520 - 192 + 1, 11520 - 192 + 1]


def test_the_training_rows_have_mean_zero_and_deviation_one(folder):
    values = dataset("etth1", folder).values[: 12 * MONTH]
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(values.std(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("split", "first", "last"), [("train", 96, 8640), ("val", 8640, 11520), ("test", 11520, 14400)]
)
def test_first_and_last_future_rows_are_the_ends_of_the_split(folder, split, first, last):
    windows = dataset("etth1", folder, split, lookback=96, horizon=24)
    mean, deviation = (8640 - 1) / 2, np.arange(8640).std()

    def rows(values):
        return np.rint(values[:, 0].astype(np.float64) * deviation + mean).astype(int)

    np.testing.assert_array_equal(rows(windows[0].input), np.arange(first - 96, first))
    assert rows(windows[0].target)[0] == first
    assert rows(windows[len(windows) - 1].target)[-1] == last - 1


def test_a_window_has_float32_past_and_future_and_a_name(folder):
    sample = dataset("etth2", folder, "test", lookback=48, horizon=24)[5]
    assert sample.input.shape == (48, 7)
    assert sample.target.shape == (24, 7)
    assert sample.input.dtype == sample.target.dtype == np.float32
    assert sample.id == "row 11525"


def test_an_index_outside_ends_iteration(folder):
    windows = dataset("etth1", folder, "val", horizon=2880)
    assert len(list(windows)) == 1
    with pytest.raises(IndexError):
        windows[-1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("etth9", {}, "etth1"),
        ("etth1", {"split": "dev"}, "train, val, test"),
        ("etth1", {"lookback": 0}, "do not fit"),
        ("etth1", {"split": "val", "horizon": 2881}, "do not fit"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(folder, name, options, message):
    with pytest.raises(InputError, match=message) as caught:
        dataset(name, folder, **options)
    assert "\n" not in str(caught.value)


def test_an_absent_or_cut_file_is_said_in_one_line(tmp_path):
    with pytest.raises(InputError, match="ETDataset"):
        dataset("etth1", tmp_path)
    (tmp_path / "ETTh1.csv").write_text("date," + ",".join(COLUMNS) + "\n2016-07-01," + ",".join("1234567") + "\n")
    with pytest.raises(InputError, match="17420 rows of 7"):
        dataset("etth1", tmp_path)


def test_the_real_file_where_there_is_one(shared_data):
    found = next(iter(shared_data.rglob("ETTh1.csv")), None)
    if found is None:
        pytest.skip(f"no ETTh1.csv below {shared_data}")
    assert len(dataset("etth1", found.parent, "test", horizon=96)) == 2785
