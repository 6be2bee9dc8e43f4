"""ETTh1 and ETTh2: hourly readings of two electricity transformers, July 2016 to June 2018.

Source: github.com/zhouhaoyi/ETDataset; Zhou et al. (2021), Informer. Licence: CC BY-ND 4.0. Expected: ETTh1.csv or
ETTh2.csv in the folder, `date` and seven columns (HUFL HULL MUFL MULL LUFL LULL OT), 17,420 rows. Split by rows, as
published: 12, 4 and 4 months of 30 days; windows of validation and test reach back into the rows before for their past.
Scaling: mean and standard deviation of the training rows. Every window is kept, the last ones too.

Shapes: L past steps, T future steps, V = 7 variables.
"""

from pathlib import Path

import numpy as np

from unipercept.datasets.windows import WindowSet, scaled_windows
from unipercept.errors import InputError, one_line

MONTH = 30 * 24  # rows
SPLITS = {"train": (0, 12 * MONTH), "val": (12 * MONTH, 16 * MONTH), "test": (16 * MONTH, 20 * MONTH)}
N_ROWS = 17420


def etth1(folder: str | Path, split: str = "train", *, lookback: int = 96, horizon: int = 96) -> WindowSet:
    """Windows of ETTh1; see the module's text."""
    return _windows(Path(folder) / "ETTh1.csv", split, lookback, horizon)


def etth2(folder: str | Path, split: str = "train", *, lookback: int = 96, horizon: int = 96) -> WindowSet:
    """Windows of ETTh2; see the module's text."""
    return _windows(Path(folder) / "ETTh2.csv", split, lookback, horizon)


def _windows(path: Path, split: str, lookback: int, horizon: int) -> WindowSet:
    import pandas as pd

    try:
        table = pd.read_csv(path, index_col="date")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {one_line(error)}; download it from the ETDataset repository") from error
    if table.shape != (N_ROWS, 7):
        raise InputError(f"{path} must hold {N_ROWS} rows of 7 variables, got {table.shape[0]} of {table.shape[1]}")
    return scaled_windows(table.to_numpy(np.float64), SPLITS, split, lookback, horizon)
