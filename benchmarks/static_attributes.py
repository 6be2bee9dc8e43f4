"""What static attributes are worth to `unipercept forecast`: made-up sets in which they decide, and the same with
attributes that say nothing.

    python benchmarks/static_attributes.py [--seeds 3] [--seconds 20] [--methods network]

`promotions`: 40 stores of 120 days, a promotion on every 20th day of the past and on 40 % of the 14 days to come; it
lifts sales by 6, 2, 0 or -4 units, by the kind of store. A store alone has seen six. `shocks`: 60 monthly series of 60
values, whose shocks fade within two months or stay for years, by kind. "noise" deals the attributes out anew, so that
they belong to no series. Errors are mean absolute ones of the steps that followed, in units of the noise.
"""

from __future__ import annotations

import argparse
import os
import platform
import time

import numpy as np
import pandas as pd
import torch

from unipercept.forecasting.forecast import forecast_table

LIFTS = {"kiosk": 6.0, "mall": 0.0, "outlet": -4.0, "street": 2.0}


def promotions(seed: int, n: int = 40, rows: int = 120, horizon: int = 14) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table, with promotions of the days to come, and its end as it came true."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(list(LIFTS), size=n)
    parts = []
    for i, kind in enumerate(kinds):
        promotion = (rng.random(rows + horizon) < np.where(np.arange(rows + horizon) < rows, 0.05, 0.4)).astype(float)
        season = 3 * np.sin(2 * np.pi * (np.arange(rows + horizon) + rng.integers(7)) / 7)
        units = 20 + season + LIFTS[kind] * promotion + rng.normal(size=rows + horizon)
        days = pd.date_range("2024-01-01", periods=rows + horizon)
        parts.append(pd.DataFrame({"date": days, "series": f"S{i:02d}", "value": units, "promotion": promotion, "kind": kind}))  # fmt: skip
    whole = pd.concat(parts, ignore_index=True)
    later = whole.date >= whole.date.unique()[rows]
    return whole.assign(value=whole.value.where(~later)), whole[later]


def shocks(seed: int, n: int = 60, rows: int = 60, horizon: int = 12) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table, and what followed."""
    rng = np.random.default_rng(seed)
    parts = []
    for i, stays in enumerate(rng.random(n) < 0.5):
        values, memory = np.zeros(rows + horizon + 100), 0.97 if stays else 0.3
        for t in range(1, len(values)):
            values[t] = memory * values[t - 1] + rng.normal()
        months = pd.date_range("2019-01-01", periods=rows + horizon, freq="MS")
        parts.append(pd.DataFrame({"date": months, "series": f"S{i:02d}", "value": values[100:], "kind": "stays" if stays else "fades"}))  # fmt: skip
    whole = pd.concat(parts, ignore_index=True)
    later = whole.date >= whole.date.unique()[rows]
    return whole[~later].reset_index(drop=True), whole[later]


def with_noise(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Attributes dealt out anew."""
    kinds = table.groupby("series").kind.first()
    dealt = dict(zip(kinds.index, np.random.default_rng(seed).permutation(kinds), strict=True))
    return table.assign(kind=table.series.map(dealt))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--methods", default="network", help="of the command; commas between, empty for all")
    parser.add_argument("--sets", default="promotions,shocks")
    arguments = parser.parse_args()
    methods = tuple(name for name in arguments.methods.split(",") if name)
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} cores, one thread; torch {torch.__version__}, Python {platform.python_version()}\n")
    print(
        "| set | seed | attributes | MASE of the back-test | error of what followed | s |\n| --- | ---: | --- | ---: | ---: | ---: |"
    )
    for name in arguments.sets.split(","):
        for seed in range(arguments.seeds):
            table, later = {"promotions": promotions, "shocks": shocks}[name](seed)
            truth = later.pivot(index="date", columns="series", values="value")
            for mode, shown in (
                ("none", table.drop(columns="kind")),
                ("true", table),
                ("noise", with_noise(table, seed)),
            ):
                began = time.perf_counter()
                found = forecast_table(
                    shown, len(truth), methods=methods, seconds=arguments.seconds, device="cpu", seed=seed
                )
                error = np.abs(found.values - truth[list(found.variables)].to_numpy()).mean()
                assert found.choice is not None
                print(
                    f"| {name} | {seed} | {mode} | {found.choice.score.mase:.3f} | {error:.3f} | {time.perf_counter() - began:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
