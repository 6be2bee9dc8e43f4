"""Temperature and wind at 3,850 stations of the world, hourly, 2019 to 2021: the sets of Corrformer.

Source: Wu et al. (2023), Interpretable weather forecasting for worldwide stations with a unified deep model,
Code Ocean capsule; readings of the US National Centers for Environmental Information. Licence not stated.
Expected: temp_global_hourly_train.npy, _val and _test (wind_global_hourly_* likewise) in the folder, each rows x
stations x 1, tenths of the unit.

As published: 48 past and 24 future hours, each split by itself (no window reaches into another file), no scaling,
errors in the units of the readings. Every window is kept.
"""

from pathlib import Path

import numpy as np

from unipercept.datasets.windows import WindowSet
from unipercept.errors import InputError, one_line

SPLITS = ("train", "val", "test")
PER_UNIT = np.float32(10)  # of the files' numbers


def stations_temperature(
    folder: str | Path, split: str = "train", *, lookback: int = 48, horizon: int = 24
) -> WindowSet:
    """Windows of temperature in degrees Celsius; see the module's text."""
    return _windows("temp", Path(folder), split, lookback, horizon)


def stations_wind(folder: str | Path, split: str = "train", *, lookback: int = 48, horizon: int = 24) -> WindowSet:
    """Windows of wind speed in metres a second; see the module's text."""
    return _windows("wind", Path(folder), split, lookback, horizon)


def _windows(quantity: str, folder: Path, split: str, lookback: int, horizon: int) -> WindowSet:
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    path = folder / f"{quantity}_global_hourly_{split}.npy"
    try:
        readings = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot read {path}: {one_line(error)}; it is part of Corrformer's capsule") from error
    if readings.ndim != 3 or readings.shape[2] != 1 or not np.issubdtype(readings.dtype, np.number):
        raise InputError(
            f"{path} must hold rows x stations x 1 numbers, got {' x '.join(map(str, readings.shape))} of {readings.dtype}"
        )
    values = np.ascontiguousarray(readings[:, :, 0], np.float32) / PER_UNIT
    return WindowSet(values, 0, len(values), lookback, horizon)
