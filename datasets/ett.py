"""ETTh1, ETTh2, ETTm1 and ETTm2: readings of two electricity transformers each hour or quarter of an
hour, July 2016 to June 2018.

Source: github.com/zhouhaoyi/ETDataset; Zhou et al. (2021), Informer. Licence: CC BY-ND 4.0. Expected: ETTh1.csv
(ETTh2.csv, ETTm1.csv, ETTm2.csv) in the folder, `date` and seven columns (HUFL HULL MUFL MULL LUFL LULL OT), 17,420
rows, or 69,680 of quarters. Split by rows, as published: 12, 4 and 4 months of 30 days; windows of validation and test
reach back into the rows before for their past.
Scaling: mean and standard deviation of the training rows. Every window is kept, the last ones too.

Shapes: L past steps, T future steps, V = 7 variables.
"""

from pathlib import Path

import numpy as np

from unipercept.datasets.windows import WindowSet, scaled_windows
from unipercept.errors import InputError, one_line

MONTH = 30 * 24  # rows of the hourly sets
SPLITS = {"train": (0, 12 * MONTH), "val": (12 * MONTH, 16 * MONTH), "test": (16 * MONTH, 20 * MONTH)}
N_ROWS = 17420
QUARTERS = 4  # rows an hour of ETTm1 and ETTm2


def etth1(folder: str | Path, split: str = "train", *, lookback: int = 96, horizon: int = 96) -> WindowSet:
    """Windows of ETTh1; see the module's text."""
    return _windows(Path(folder) / "ETTh1.csv", split, lookback, horizon)


def etth2(folder: str | Path, split: str = "train", *, lookback: int = 96, horizon: int = 96) -> WindowSet:
    """Windows of ETTh2; see the module's text."""
    return _windows(Path(folder) / "ETTh2.csv", split, lookback, horizon)


def ettm1(folder: str | Path, split: str = "train", *, lookback: int = 96, horizon: int = 96) -> WindowSet:
    """Windows of ETTm1; see the module's text."""
    return _windows(Path(folder) / "ETTm1.csv", split, lookback, horizon, QUARTERS)


def ettm2(folder: str | Path, split: str = "train", *, lookback: int = 96, horizon: int = 96) -> WindowSet:
    """Windows of ETTm2; see the module's text."""
    return _windows(Path(folder) / "ETTm2.csv", split, lookback, horizon, QUARTERS)


def _windows(path: Path, split: str, lookback: int, horizon: int, rows_an_hour: int = 1) -> WindowSet:
    import pandas as pd

    try:
        table = pd.read_csv(path, index_col="date")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {one_line(error)}; download it from the ETDataset repository") from error
    n_rows = N_ROWS * rows_an_hour
    if table.shape != (n_rows, 7):
        raise InputError(f"{path} must hold {n_rows} rows of 7 variables, got {table.shape[0]} of {table.shape[1]}")
    splits = {name: (first * rows_an_hour, last * rows_an_hour) for name, (first, last) in SPLITS.items()}
    return scaled_windows(table.to_numpy(np.float64), splits, split, lookback, horizon)
