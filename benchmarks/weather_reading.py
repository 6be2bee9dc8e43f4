"""What reading ERA5 costs a training that streams it: 69 channels at 1.5 degrees, from Zarr stores cut and packed
differently.

    python benchmarks/weather_reading.py

Windows of three states are read at random. States are noise over smooth waves, so they compress about as fields of ERA5
do: by a fifth. Processor time is given, which other programs on the machine do not lengthen.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr

from unipercept.app.forecaster.cf import LONG_NAMES
from unipercept.app.forecaster.frames import Frames
from unipercept.pipelines.weather_fields import LEVELS_13
from unipercept.pipelines.weather_units import UNITS

ROWS, COLUMNS, WINDOW = 121, 240, 3
MIDDLE = {"z": 5e4, "t": 250.0, "t2m": 280.0, "msl": 1e5, "q": 5e-3}


def states(n_times: int) -> xr.Dataset:
    """The channels of wb69 in ERA5's names and units."""
    random, longitude = np.random.default_rng(0), np.arange(COLUMNS) * 1.5
    dims = ("time", "level", "latitude", "longitude")
    data = {}
    for short in ("z", "t", "u", "v", "q", "t2m", "u10", "v10", "msl"):
        kept = dims if len(short) == 1 else ("time", *dims[2:])
        shape = (n_times, *((len(LEVELS_13),) if len(short) == 1 else ()), ROWS, COLUMNS)
        middle = MIDDLE.get(short, 5.0)
        wave = np.cos(np.deg2rad(3 * longitude)) + 0.3 * random.standard_normal(shape, np.float32)
        data[LONG_NAMES[short][0]] = (kept, (middle * (1 + 0.02 * wave)).astype("f4"), {"units": UNITS[short][0]})
    times = np.datetime64("2000-01-01", "ns") + np.arange(n_times) * np.timedelta64(6, "h")
    grid = {"latitude": np.linspace(90, -90, ROWS), "longitude": longitude}
    return xr.Dataset(data, {"time": times, "level": list(LEVELS_13), **grid})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=40)
    parser.add_argument("--windows", type=int, default=10)
    arguments = parser.parse_args()
    fields = states(arguments.times)
    layouts = {
        "one time a chunk, uncompressed": (1, {"compressors": None}),
        "one time a chunk, compressed": (1, {}),
        "all times in a chunk, compressed": (arguments.times, {}),
    }
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (n_times, packing)) in enumerate(layouts.items()):
            path = Path(folder) / f"{number}.zarr"
            cut = {v: {"chunks": (n_times, *a.shape[1:]), **packing} for v, a in fields.data_vars.items()}
            fields.to_zarr(path, encoding=cut, consolidated=False)
            frames, random = Frames(path), np.random.default_rng(0)
            starts = random.integers(0, arguments.times - WINDOW, arguments.windows)
            frames.read([0])  # opens the store
            began = time.process_time()
            for start in starts:
                frames.read(range(start, start + WINDOW))
            each = 1e3 * (time.process_time() - began) / (WINDOW * len(starts))
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / arguments.times
            print(f"{name}: {each:.0f} ms of processor a state ({size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
