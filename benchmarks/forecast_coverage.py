"""Loss and coverage, on the test part of real sets, of what `unipercept forecast` chose and of each method.

    python3 dev.py bench forecast_coverage --data ../shared/data --set etth1 --horizon 96 --seconds 60

The history (training and validation rows) is back-tested and calibrated as `unipercept forecast` does it. Then the
fitted mixture, and every method by itself (calibrated in the same way), forecast from evenly spaced origins of the test
part, which nothing was chosen on.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from unipercept.forecasting.choose import choose_named
from unipercept.forecasting.forecast import ForecastResult, forecast_table
from unipercept.forecasting.mixture import final_mixture
from unipercept.forecasting.scores import Score, score, seasonal_scale


def tables(data: Path, name: str) -> tuple[Any, int, int]:
    """A frame with its times, the first test row and the row after the last."""
    import pandas as pd
    import xarray as xr

    if name in ("etth1", "etth2"):
        frame = pd.read_csv(data / "ett" / f"ETT{name[3:]}.csv", parse_dates=["date"])
        return frame, 11520, 14400
    if name == "exchange":
        frame = pd.read_csv(data / "exchange_rate" / "exchange_rate.txt.gz", header=None).add_prefix("c")
        return frame, int(0.8 * len(frame)), len(frame)
    if name == "weather":
        frame = pd.read_csv(data / "weather_jena" / "weather.csv.xz", encoding_errors="replace", parse_dates=["date"])
        return frame, int(0.8 * len(frame)), len(frame)
    if name.startswith("noaa"):
        stations = xr.open_dataset(data / "noaa_stations" / "noaa_us_daily_1990-1992.nc")["Tmax"]
        frame = stations.transpose("time", ...).to_pandas()
        return frame.loc[:, frame.notna().mean() > 0.98], 912, len(frame)
    if name == "era5":
        point = xr.open_dataset(data / "era5_point_berlin2017" / "ERA5_example_data.nc")
        cell = point.isel(latitude=0, longitude=0)
        frame = cell[[v for v in cell.data_vars if v != "fsr"]].to_dataframe()
        frame = frame[[c for c in frame.columns if c in cell.data_vars]]
        return frame, int(0.8 * len(frame)), len(frame)
    raise SystemExit(f"no set {name!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", default="etth1", choices=["etth1", "etth2", "exchange", "weather", "noaa", "era5"])
    parser.add_argument("--horizon", type=int, default=96)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--origins", type=int, default=100, help="in the test part")
    parser.add_argument("--methods", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    frame, first, last = tables(options.data, options.set)
    began = time.perf_counter()
    result = forecast_table(
        frame.iloc[:first],
        options.horizon,
        seconds=options.seconds,
        seed=options.seed,
        device=options.device,
        methods=tuple(m for m in options.methods.split(",") if m),
    )
    seconds = time.perf_counter() - began
    rows, origins = scores(result, frame, first, last, options.origins)
    choice = result.choice
    assert choice
    print(
        f"{options.set}, horizon {options.horizon}, {origins} test origins, {len(result.variables)} series; "
        f"{seconds:.0f} s; seed {options.seed}; {os.cpu_count()} cores of {cpu_model()}"
    )
    print(
        f"chosen: {choice.name}; in the back-test SQL {choice.score.sql:.3f}, coverage {choice.score.coverage}; "
        f"widening {choice.widening.round(2).tolist()}"
    )
    print(
        f"| {'method':<26} | SQL | wQL | MASE | 80 % | 95 % | MSE |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for name, s in sorted(rows.items(), key=lambda row: row[1].sql):
        covered = f"{100 * s.coverage[0.8]:.1f} | {100 * s.coverage[0.95]:.1f}"
        print(f"| {name:<26} | {s.sql:.3f} | {s.wql:.4f} | {s.mase:.3f} | {covered} | {s.mse:.4g} |")
    print(json.dumps({name: s.to_dict() for name, s in rows.items()}))


def scores(result: ForecastResult, frame: Any, first: int, last: int, n_origins: int) -> tuple[dict[str, Score], int]:
    """Of the chosen mixture and of each method alone, at origins of rows first:last; and how many origins."""
    prepared, found, choice, mixture = result.prepared, result.backtest, result.choice, result.mixture
    assert prepared
    assert found
    assert choice
    assert mixture
    horizon = len(result.time)
    frame = frame.rename(columns=str)
    values = frame[list(prepared.variables)].to_numpy(np.float64)
    values = np.where(np.isin(values, (-9999.0,)), np.nan, values)[prepared.first_row : last]
    start, stop = first - prepared.first_row, last - prepared.first_row - horizon
    stride = max(1, (stop - start) // n_origins)
    while stride > 1 and np.gcd(stride, prepared.period) > 1:
        stride -= 1
    origins = list(range(start, stop + 1, stride))
    truth = values[np.asarray(origins)[:, None] + np.arange(horizon)]
    scale = seasonal_scale(values[:start], prepared.period)
    values = prepared.scaled(values)
    mixtures = {"chosen": mixture}
    for one in found.tested:
        name = one.method.name
        mixtures[name] = final_mixture(prepared, found, choose_named(found, name), seconds=20.0)
    rows = {
        name: score(prepared.restored(each.quantiles(values, origins, horizon), axis=2), truth, scale)
        for name, each in mixtures.items()
    }
    return rows, len(origins)


def cpu_model() -> str:
    """As Linux names it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "CPU")


if __name__ == "__main__":
    main()
