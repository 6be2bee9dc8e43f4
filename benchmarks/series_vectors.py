"""What frozen vectors say of real series: which quantity a window is of, by linear probe.

    python benchmarks/series_vectors.py --data DATA [--models universal unireplknet_a]

Eighteen quantities: six of ERA5 near Berlin (hourly, 2017), the seven of ETTh1 and ETTh2 (hourly), exchange rates
(daily) and four of US stations (daily). Windows of 256 steps. Splits by time: the first 60 % of each record trains, the
next 20 % validates, the last 20 % tests, no window reaches across; the 137 stations are divided instead (60, 20, 20 %),
since three years hold no three parts of 256 days with all seasons. Level and unit are gone (each window has mean 0 and
variance 1), so the shape must tell. Windows of a part overlap (by 5/6), which makes them dependent: intervals are those
of independent ones and too narrow.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from unipercept.datasets.base import LabelledSet, SetCard
from unipercept.datasets.real_series import SHARES, hourly_records, station_records
from unipercept.model_cards import model_card
from unipercept.models import load_model
from unipercept.perception.probe import compare_parts

WINDOW, STRIDE = 256, 43  # steps
PER_CLASS = {"train": 120, "validation": 40, "test": 60}  # windows of a quantity, drawn where there are more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=["universal", "unireplknet_a"])
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    parts = real_series(arguments.data)
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}; "
        + ", ".join(f"{len(part)} {name}" for name, part in parts.items())
        + f" windows of {len(parts['train'].card.class_names)} quantities\n"
    )
    print("| vectors | numbers | neighbours % | linear probe % | 95 % interval |\n| --- | ---: | ---: | ---: | --- |")
    told: set[str] = set()
    for model in arguments.models:
        for name, found in compare_parts(series_model(model), parts, "timeseries", device=arguments.device).items():
            if name in told:  # the baselines once
                continue
            told.add(name)
            low, high = (100 * found[f"probe_95_{end}"] for end in ("low", "high"))
            row = f"{found['dim']} | {100 * found['neighbours']:.2f} | {100 * found['probe']:.2f} | {low:.1f} to {high:.1f}"
            print(f"| {name} | {row} |", flush=True)


def series_model(name: str) -> str:
    """The model behind a name that encodes series."""
    from unipercept.model_cards import model_for

    found = model_for(name, "timeseries")
    load_model(found, in_channels=1)
    return model_card(found).name


def real_series(data: Path) -> dict[str, LabelledSet]:
    """Train, validation and test windows of all quantities; read from the published files."""
    records = _by_time(data) | _by_station(data)
    names = tuple(records)
    card = SetCard("real_series", "timeseries", "see the module's text", "various", False, names, tuple(SHARES), "", "")
    parts = {}
    for number, part in enumerate(SHARES):
        rng = np.random.default_rng(number)
        windows: list[NDArray[np.float64]] = []
        targets: list[int] = []
        for target, name in enumerate(names):
            found = records[name][part]
            chosen = np.sort(rng.permutation(len(found))[: PER_CLASS[part]])
            windows += [found[i] for i in chosen]
            targets += [target] * len(chosen)
        ids = tuple(f"{part} {i}" for i in range(len(windows)))
        parts[part] = LabelledSet(
            card,
            part,
            np.array(targets),
            ids,
            lambda i, windows=windows: windows[i][:, None],  # type: ignore[misc]
        )
    return parts


def _by_time(data: Path) -> dict[str, dict[str, list[NDArray[np.float64]]]]:
    import pandas as pd

    records = hourly_records(data)
    rates = pd.read_csv(data / "exchange_rate" / "exchange_rate.txt.gz", header=None).to_numpy(float)
    records["exchange rate"] = list(rates.T)
    return {
        name: {part: [w for x in series for w in _windows(x, *share)] for part, share in SHARES.items()}
        for name, series in records.items()
    }


def _by_station(data: Path) -> dict[str, dict[str, list[NDArray[np.float64]]]]:
    return {
        name: {part: [w for x in series for w in _windows(x, 0.0, 1.0)] for part, series in parts.items()}
        for name, parts in station_records(data).items()
    }


def _windows(series: NDArray[np.floating], first: float, last: float) -> list[NDArray[np.float64]]:
    """Windows of a share of a record, of which at most a tenth is missing and that are not constant."""
    start, stop = int(first * len(series)), int(last * len(series))
    found = [np.asarray(series[i : i + WINDOW], np.float64) for i in range(start, stop - WINDOW + 1, STRIDE)]
    return [w for w in found if np.isfinite(w).mean() >= 0.9 and np.nanstd(w) > 0]


if __name__ == "__main__":
    main()
