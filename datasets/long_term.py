"""Two more sets of the long-term forecasting benchmark: Weather (Jena, 2020) and Exchange.

Weather: 21 readings each 10 minutes, 52,696 rows. Origin: Max Planck Institute for Biogeochemistry, Jena; licence not stated.
Exchange: daily rates of eight currencies, 1990 to 2016, 7,588 rows. Source: Lai et al. (2018), LSTNet; licence not stated.

Expected in the folder: weather.csv with a column `date`; exchange_rate.csv likewise, or the original exchange_rate.txt without
header; each may be compressed (.gz, .xz). Split by rows, as published: the first 70 % train, the last 20 % test; windows of
validation and test reach back into the rows before for their past. Scaling: mean and standard deviation of the
training rows. Every window is kept, the last ones too.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unipercept.datasets.windows import WindowSet, scaled_windows
from unipercept.errors import InputError, one_line

COMPRESSIONS = ("", ".gz", ".xz")
SHAPES = {"weather": (52696, 21), "exchange_rate": (7588, 8)}


def weather_jena(folder: str | Path, split: str = "train", *, lookback: int = 96, horizon: int = 96) -> WindowSet:
    """Windows of Weather; see the module's text."""
    return _windows("weather", Path(folder), split, lookback, horizon)


def exchange_rate(folder: str | Path, split: str = "train", *, lookback: int = 96, horizon: int = 96) -> WindowSet:
    """Windows of Exchange; see the module's text."""
    return _windows("exchange_rate", Path(folder), split, lookback, horizon)


def splits_of(n_rows: int) -> dict[str, tuple[int, int]]:
    """First and last row (exclusive) of each split; the published code rounds training and test down."""
    n_train, n_test = int(n_rows * 0.7), int(n_rows * 0.2)
    return {"train": (0, n_train), "val": (n_train, n_rows - n_test), "test": (n_rows - n_test, n_rows)}


def _windows(name: str, folder: Path, split: str, lookback: int, horizon: int) -> WindowSet:
    names = [f"{name}{suffix}{compression}" for suffix in (".csv", ".txt") for compression in COMPRESSIONS]
    path = next((folder / n for n in names if (folder / n).is_file()), None)
    if path is None:
        raise InputError(
            f"{folder} must hold {names[0]} (or .txt; .gz and .xz are read too); download it from its source"
        )
    values = _table(path)
    if values.shape != SHAPES[name]:
        rows, variables = SHAPES[name]
        raise InputError(
            f"{path} must hold {rows} rows of {variables} variables, got {len(values)} of {values.shape[1]}"
        )
    return scaled_windows(values, splits_of(len(values)), split, lookback, horizon)


def _table(path: Path) -> NDArray[np.float64]:
    """Rows x V. Every circulating copy of Weather has three bytes in its header that are no UTF-8."""
    import pandas as pd

    try:
        if ".txt" in path.suffixes:
            table = pd.read_csv(path, header=None)
        else:
            table = pd.read_csv(path, index_col="date", encoding_errors="replace")
        values: NDArray[np.float64] = table.to_numpy(np.float64)
        return values
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot read {path}: {one_line(error)}; download it again from its source") from error
