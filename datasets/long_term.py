"""The other sets of the long-term forecasting benchmark: Weather, Exchange, ILI, Electricity, Traffic and Solar.

| set | file | rows x variables | step | origin |
| --- | --- | --- | --- | --- |
| weather_jena | weather.csv | 52,696 x 21 | 10 min | Max Planck Institute for Biogeochemistry, Jena, 2020 |
| exchange_rate | exchange_rate.csv or .txt | 7,588 x 8 | 1 day | Lai et al. (2018), LSTNet |
| ili | national_illness.csv | 966 x 7 | 1 week | US Centers for Disease Control and Prevention, 2002 to 2021 |
| electricity | electricity.csv or .txt | 26,304 x 321 | 1 h | UCI; cut as by Lai et al. (2018), Wu et al. (2021) |
| traffic | traffic.csv or .txt | 17,544 x 862 | 1 h | California Department of Transportation, PeMS, 2015 and 2016 |
| solar | solar_AL.txt or solar.csv | 52,560 x 137 | 10 min | National Renewable Energy Laboratory, Alabama, 2006 |

No licence is stated for any of these files. Expected in the folder: a .csv with a column `date`, or the original .txt
without header; each may be compressed (.gz, .xz). Split by rows, as published: the first 70 % train, the last 20 %
test; windows of validation and test reach back into the rows before for their past. Scaling: mean and standard
deviation of the training rows. Every window is kept, the last ones too.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unipercept.datasets.windows import WindowSet, scaled_windows
from unipercept.errors import InputError, one_line

COMPRESSIONS = ("", ".gz", ".xz")
SHAPES = {
    "weather": (52696, 21),
    "exchange_rate": (7588, 8),
    "national_illness": (966, 7),
    "electricity": (26304, 321),
    "traffic": (17544, 862),
    "solar": (52560, 137),
}
OTHER_NAMES = {"solar": ("solar_AL",)}  # of the same table


def weather_jena(folder: str | Path, split: str = "train", *, lookback: int = 96, horizon: int = 96) -> WindowSet:
    """Windows of Weather; see the module's text."""
    return _windows("weather", Path(folder), split, lookback, horizon)


def exchange_rate(folder: str | Path, split: str = "train", *, lookback: int = 96, horizon: int = 96) -> WindowSet:
    """Windows of Exchange; see the module's text."""
    return _windows("exchange_rate", Path(folder), split, lookback, horizon)


def ili(folder: str | Path, split: str = "train", *, lookback: int = 36, horizon: int = 24) -> WindowSet:
    """Windows of ILI, weekly shares of patients with influenza-like illness; horizons are 24, 36, 48 and 60."""
    return _windows("national_illness", Path(folder), split, lookback, horizon)


def electricity(folder: str | Path, split: str = "train", *, lookback: int = 96, horizon: int = 96) -> WindowSet:
    """Windows of Electricity (ECL); see the module's text."""
    return _windows("electricity", Path(folder), split, lookback, horizon)


def traffic(folder: str | Path, split: str = "train", *, lookback: int = 96, horizon: int = 96) -> WindowSet:
    """Windows of Traffic; see the module's text."""
    return _windows("traffic", Path(folder), split, lookback, horizon)


def solar(folder: str | Path, split: str = "train", *, lookback: int = 96, horizon: int = 96) -> WindowSet:
    """Windows of Solar; see the module's text."""
    return _windows("solar", Path(folder), split, lookback, horizon)


def splits_of(n_rows: int) -> dict[str, tuple[int, int]]:
    """First and last row (exclusive) of each split; the published code rounds training and test down."""
    n_train, n_test = int(n_rows * 0.7), int(n_rows * 0.2)
    return {"train": (0, n_train), "val": (n_train, n_rows - n_test), "test": (n_rows - n_test, n_rows)}


def _windows(name: str, folder: Path, split: str, lookback: int, horizon: int) -> WindowSet:
    stems = (name, *OTHER_NAMES.get(name, ()))
    names = [f"{s}{suffix}{compression}" for s in stems for suffix in (".csv", ".txt") for compression in COMPRESSIONS]
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
