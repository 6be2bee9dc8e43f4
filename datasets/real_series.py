"""Windows of real series for training: measured quantities, of sets whose licence lets weights be given away.

ERA5 near Berlin and ETTh1/ETTh2 (hourly), US stations (daily), daily fields of ERA-Interim and of NCEP over western
Europe and the North Atlantic (each grid point a series). Taken are the first 60 % of each record, of the stations 60 %
of the stations (all days): the rest is for benchmarks/series_vectors.py, which asks of which quantity an unseen window
is. Nothing else is known of a window but its quantity and where it comes from.

Source and licences: feedinlib's ERA5 example (MIT; contains modified Copernicus Climate Change Service information),
ETDataset (CC BY-ND 4.0), STRbook's NOAA_df_1990 (GPL; NOAA), synoptReg (GPL; ERA-Interim, ECMWF), climate4R.datasets
(LGPL-3; NCEP/NCAR Reanalysis 1). Expected: their folders below the data folder. Shapes: L steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.datasets.blends import coloured_noise, standard
from unipercept.errors import InputError, one_line

Steps = NDArray[np.float64]
Records = Mapping[str, Sequence[Steps]]

ERA5 = ("sp", "fdir", "ssrd", "t2m", "u10", "v10")
ERA5_BESIDE = ("u100", "v100")  # not asked for by the benchmark
STATIONS = ("Tmax", "Tmin", "TDP", "Precip")
SHARES = {"train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}
FIELDS = (
    ("weather_eraint_weurope/eraint_weurope_2000-2009.nc", ("z500", "t850", "msl")),
    ("weather_ncep_slp_natl/ncep_slp_2001-2009.nc", ("slp",)),
)
SHORTEST, LONGEST, USUAL = 64, 1_024, 256  # steps of a window
LEAST_SEEN = 0.9  # share of a window's steps that were observed
LICENCE = (
    "ETT CC BY-ND 4.0; ERA5 (MIT copy, modified Copernicus information); NOAA stations (GPL copy); ERA-Interim (GPL copy); "
    "NCEP/NCAR (LGPL copy)"
)


def hourly_records(data: Path) -> dict[str, list[Steps]]:
    """ERA5 (the two corners that lie farthest apart) and ETT, whole."""
    import pandas as pd

    found: dict[str, list[Steps]] = {}
    with _opened(data / "era5_point_berlin2017" / "ERA5_example_data.nc") as file:
        for name in ERA5:
            grid = file[name].values.reshape(file[name].shape[0], -1).astype(float)
            found[f"ERA5 {name}"] = [grid[:, 0], grid[:, -1]]
    tables = [pd.read_csv(data / "ett" / f"{name}.csv") for name in ("ETTh1", "ETTh2")]
    for name in tables[0].columns[1:]:
        found[f"ETT {name}"] = [table[name].to_numpy(float) for table in tables]
    return found


def station_records(data: Path) -> dict[str, dict[str, list[Steps]]]:
    """Quantity to part to its stations' series, whole: stations, not days, are divided."""
    with _opened(data / "noaa_stations" / "noaa_us_daily_1990-1992.nc") as file:
        count = file.sizes["station"]
        order = np.random.default_rng(0).permutation(count)
        found = {}
        for name in STATIONS:
            readings = file[name].transpose("time", "station").values.astype(float)
            found[f"station {name}"] = {
                part: [readings[:, station] for station in order[int(first * count) : int(last * count)]]
                for part, (first, last) in SHARES.items()
            }
    return found


def training_records(data: str | Path) -> dict[str, list[Steps]]:
    """Quantity to its series, of each no more than what may train.

    Raises:
        InputError: a set is not where it should be.
    """
    data = Path(data)
    found = {name: [_first(x) for x in series] for name, series in hourly_records(data).items()}
    with _opened(data / "era5_point_berlin2017" / "ERA5_example_data.nc") as file:
        for name in ERA5 + ERA5_BESIDE:  # the other points lie between the corners
            grid = file[name].values.reshape(file[name].shape[0], -1).astype(float)
            found[f"ERA5 {name}"] = [_first(x) for x in grid.T]
    found |= {name: parts["train"] for name, parts in station_records(data).items()}
    for where, names in FIELDS:
        with _opened(data / where) as file:
            for name in names:
                grid = file[name].values
                found[f"field {name}"] = [_first(x) for x in grid.reshape(len(grid), -1).astype(float).T[::4]]
    return found


def draw_window(series: Steps, rng: np.random.Generator) -> Steps | None:
    """A stretch of a series as another logger might have written it: L values, some missing; None
    where too little was observed.

    It starts anywhere, is 64 to 1,024 steps long (256 in half of the cases), now and then faster or slower by up to a
    fifth, noisier, rounded, on a slow drift.
    """
    length = USUAL if rng.uniform() < 0.5 else int(np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST))))
    rate = float(np.exp(rng.uniform(-0.2, 0.2))) if rng.uniform() < 0.4 else 1.0
    reach = int(np.ceil(length * rate)) + 1
    if reach > len(series):
        length, rate, reach = min(length, len(series)), 1.0, min(length, len(series))
    start = int(rng.integers(len(series) - reach + 1))
    found = series[start : start + reach]
    seen = np.isfinite(found)
    if seen.mean() < LEAST_SEEN or not np.nanstd(found) > 0:
        return None
    if rate != 1:
        filled = np.interp(np.arange(reach), np.flatnonzero(seen), found[seen])
        at = np.arange(length) * rate
        values, missing = np.interp(at, np.arange(reach), filled), ~seen[np.round(at).astype(int)]
    else:
        values, missing = np.where(seen, found, 0.0)[:length], ~seen[:length]
    known = values[~missing]
    if not known.std() > 0:
        return None
    values = (values - known.mean()) / known.std()
    if rng.uniform() < 0.3:
        values = values + rng.uniform(0, 0.1) * rng.normal(size=length)
    if rng.uniform() < 0.3:
        values = values + rng.uniform(0, 0.3) * standard(coloured_noise(length, rng))
    if rng.uniform() < 0.2:
        step = rng.uniform(0, 0.1)
        values = np.round(values / step) * step if step > 1e-3 else values
    values[missing] = np.nan
    return np.asarray(values)


def draw_real(records: Records, rng: np.random.Generator) -> tuple[Steps, int]:
    """A window and the position of its quantity in `records`; all quantities alike."""
    names = list(records)
    while True:
        quantity = int(rng.integers(len(names)))
        series = records[names[quantity]]
        window = draw_window(series[int(rng.integers(len(series)))], rng)
        if window is not None:
            return window, quantity


def _first(series: Steps) -> Steps:
    return series[: int(SHARES["train"][1] * len(series))]


def _opened(path: Path) -> Any:
    import xarray as xr

    try:
        return xr.open_dataset(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {path}: {one_line(error)}; it is one of the real series that train beside the generated ones"
        ) from error
