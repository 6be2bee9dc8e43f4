"""ETTh1 and ETTh2: hourly readings of two electricity transformers, July 2016 to June 2018.

Source: github.com/zhouhaoyi/ETDataset; Zhou et al. (2021), Informer. Licence: CC BY-ND 4.0. Expected: ETTh1.csv or
ETTh2.csv in the folder, `date` and seven columns (HUFL HULL MUFL MULL LUFL LULL OT), 17,420 rows. Split by rows, as
published: 12, 4 and 4 months of 30 days; windows of validation and test reach back into the rows before for their past.
Scaling: mean and standard deviation of the training rows. Every window is kept, the last ones too.

Shapes: L past steps, T future steps, V = 7 variables.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unipercept.datasets.base import Sample
from unipercept.errors import InputError, one_line

MONTH = 30 * 24  # rows
SPLITS = {"train": (0, 12 * MONTH), "val": (12 * MONTH, 16 * MONTH), "test": (16 * MONTH, 20 * MONTH)}
N_ROWS = 17420


class WindowSet:
    """All windows of L past and T future steps, one row apart, whose future lies inside the split."""

    def __init__(self, values: NDArray[np.float32], first: int, last: int, lookback: int, horizon: int) -> None:
        if lookback < 1 or horizon < 1 or last - first < horizon or (first == 0 and last < lookback + horizon):
            raise InputError(
                f"windows of {lookback} past and {horizon} future steps do not fit the split's {last - first} rows"
            )
        self.values, self.lookback, self.horizon = values, lookback, horizon
        self._first_future = max(first, lookback)
        self._count = last - horizon - self._first_future + 1

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        """Input LxV and target TxV, scaled, float32."""
        if not 0 <= index < self._count:
            raise IndexError(index)
        now = self._first_future + index
        past, future = self.values[now - self.lookback : now], self.values[now : now + self.horizon]
        return Sample(past, future, f"row {now}")


def etth1(folder: str | Path, split: str = "train", *, lookback: int = 96, horizon: int = 96) -> WindowSet:
    """Windows of ETTh1; see the module's text."""
    return _windows(Path(folder) / "ETTh1.csv", split, lookback, horizon)


def etth2(folder: str | Path, split: str = "train", *, lookback: int = 96, horizon: int = 96) -> WindowSet:
    """Windows of ETTh2; see the module's text."""
    return _windows(Path(folder) / "ETTh2.csv", split, lookback, horizon)


def _windows(path: Path, split: str, lookback: int, horizon: int) -> WindowSet:
    import pandas as pd

    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    try:
        table = pd.read_csv(path, index_col="date")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {one_line(error)}; download it from the ETDataset repository") from error
    if table.shape != (N_ROWS, 7):
        raise InputError(f"{path} must hold {N_ROWS} rows of 7 variables, got {table.shape[0]} of {table.shape[1]}")
    values = table.to_numpy(np.float64)
    train = values[slice(*SPLITS["train"])]
    scaled = ((values - train.mean(axis=0)) / train.std(axis=0)).astype(np.float32)
    return WindowSet(scaled, *SPLITS[split], lookback, horizon)
