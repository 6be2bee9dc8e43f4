"""`unipercept forecast` on a table of many columns: seconds by stage to the Parquet file and to the
report, memory of host and GPU.

    python benchmarks/forecast_wide.py [--columns 2000] [--rows 10000] [--horizon 48]

The table is generated: hourly series with a daily and a weekly cycle of sizes of their own and errors that are
correlated from hour to hour.
"""

import argparse
import os
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch

from unipercept.forecasting.command import summary, write_outputs
from unipercept.forecasting.forecast import forecast_table

AUTOCORRELATION = 0.8  # of the errors, from one hour to the next


def write_table(path: Path, rows: int, columns: int, seed: int = 0) -> None:
    """A CSV of hourly series with their times."""
    generator = np.random.default_rng(seed)
    hours = np.arange(rows)[:, None]
    level, daily, weekly, error = (
        generator.uniform(low, high, columns) for low, high in ((50, 200), (3, 20), (2, 15), (0.5, 3.0))
    )
    phases = generator.uniform(0, 2 * np.pi, (2, columns))
    values = level + daily * np.sin(2 * np.pi * hours / 24 + phases[0])
    values += weekly * np.sin(2 * np.pi * hours / 168 + phases[1])
    noise = error * generator.standard_normal((rows, columns))
    for row in range(1, rows):
        noise[row] += AUTOCORRELATION * noise[row - 1]
    values = np.round(values + noise, 3)
    times = np.datetime_as_string(np.datetime64("2024-01-01T00") + hours[:, 0], unit="s")
    table = {"time": pa.array(times.tolist()), **{f"s{i}": pa.array(values[:, i]) for i in range(columns)}}
    pa.csv.write_csv(pa.table(table), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, default=2_000)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--horizon", type=int, default=48)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "wide.csv"
        write_table(path, arguments.rows, arguments.columns)
        on_gpu = torch.cuda.is_available() and arguments.device != "cpu"
        print(
            f"{arguments.columns} columns of {arguments.rows} rows, {path.stat().st_size / 1e6:.0f} MB; "
            f"{torch.cuda.get_device_name() if on_gpu else 'no GPU'}, {len(os.sched_getaffinity(0))} processors",
            flush=True,
        )
        began = time.perf_counter()

        def tell(line: str, share: float) -> None:
            print(f"{time.perf_counter() - began:7.1f} s  {line}", flush=True)

        result = forecast_table(path, arguments.horizon, device=arguments.device, tell=tell)
        write_outputs(result, path.with_suffix(".parquet"), None, None)
        tell("Parquet file", 1.0)
        written = write_outputs(result, None, None, path.with_suffix(".html"))
        tell("report", 1.0)
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(
            f"host {used.ru_maxrss / 1e6:.1f} GB, {used.ru_utime + used.ru_stime:.0f} s of processors"
            + (f", GPU {torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if on_gpu else "")
        )
        print(summary(result, written))


if __name__ == "__main__":
    main()
