"""Windows over a split's rows: which there are, and which sizes are refused."""

import numpy as np
import pytest

from unipercept.datasets.windows import WindowSet
from unipercept.errors import InputError

VALUES = np.arange(20, dtype=np.float32)[:, None]


@pytest.mark.parametrize(
    ("first", "last", "lookback", "horizon", "futures"),
    [
        (0, 5, 3, 2, [3]),  # just one fits
        (0, 7, 3, 2, [3, 4, 5]),
        (10, 14, 3, 2, [10, 11, 12]),  # the past may lie before the split
        (10, 12, 1, 2, [10]),
        (2, 10, 4, 2, [4, 5, 6, 7, 8]),  # and begins with the table
    ],
)
def test_windows_are_one_row_apart_and_their_futures_inside_the_split(first, last, lookback, horizon, futures):
    windows = WindowSet(VALUES, first, last, lookback, horizon)
    samples = [windows[i] for i in range(len(windows))]
    assert [int(sample.target[0, 0]) for sample in samples] == futures
    for sample, now in zip(samples, futures, strict=True):
        np.testing.assert_array_equal(sample.input[:, 0], np.arange(now - lookback, now))
        np.testing.assert_array_equal(sample.target[:, 0], np.arange(now, now + horizon))
    with pytest.raises(IndexError):
        windows[len(windows)]


@pytest.mark.parametrize(
    ("first", "last", "lookback", "horizon"),
    [(0, 4, 3, 2), (10, 11, 3, 2), (5, 10, 12, 2), (0, 9, 0, 2), (0, 9, 3, 0)],
)
def test_sizes_that_leave_no_window_are_refused(first, last, lookback, horizon):
    with pytest.raises(InputError, match="do not fit the split"):
        WindowSet(VALUES, first, last, lookback, horizon)
