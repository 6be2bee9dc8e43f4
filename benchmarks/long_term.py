"""The long-term forecasting table: sets x look-backs x horizons x seeds, with baselines, intervals and the
published rows to compare with.

    python benchmarks/long_term.py DATA -o runs/long_term --test --refit
        # the table: three seeds, settings as in results/long_term_settings.json; scores the test split, once
    python benchmarks/long_term.py DATA -o runs/long_term --sets ettm1 --choose
        # validation chooses among CANDIDATES: settings.json in the output folder, which a later run takes

DATA holds a folder a set (ett/, weather_jena/, exchange_rate/ ...; the names in Time-Series-Library's data folder are
known, too) or the files themselves. Rows are appended to rows.jsonl a horizon at a time; a run that is stopped, or
whose --seconds are over, goes on with the rows that are missing.
"""

import argparse
import csv
import itertools
import json
import multiprocessing
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from unipercept import __version__
from unipercept.errors import UniperceptError, one_line
from unipercept.forecasting.benchmark import SETS, Result, open_task
from unipercept.forecasting.benchmark_baselines import BASELINES, STATISTICAL, run_baseline
from unipercept.forecasting.benchmark_network import run_network
from unipercept.forecasting.blend import Blend
from unipercept.forecasting.settings import ForecastConfig

# Of a set, beside its own name and DATA itself: the second names are those of Time-Series-Library's data folder.
FOLDERS = {
    **dict.fromkeys(("etth1", "etth2", "ettm1", "ettm2"), ("ett", "ETT-small")),
    "weather_jena": ("weather",),
    "ili": ("illness",),
    "solar": ("Solar",),
    **dict.fromkeys(("stations_temperature", "stations_wind"), ("stations",)),
}
CHOSEN = Path(__file__).parent / "results/long_term_settings.json"
# Mean squared error, average of the four horizons; read in papers, see docs/forecasting_benchmark.md.
BARS = {("etth1", 512): 0.404, ("etth2", 512): 0.322, ("weather_jena", 512): 0.222,
        ("etth1", 96): 0.430, ("etth2", 96): 0.365, ("weather_jena", 96): 0.240}  # fmt: skip


# One architecture; what validation may choose for a set and a look-back, with seed 0.
COMMON = {
    "members": 3,
    "dim": 32,
    "blocks": 2,
    "kernel_size": 13,
    "head": "flatten",
    "patch": 12,
    "dropout": 0.3,
    "map_features": True,
    "evenness": 0.5,
    "learning_rate": 3e-4,
    "weight_decay": 0.05,
    "batch_size": 512,
    "series_an_epoch": 10_000,
    "epochs": 16,
    "patience": 5,
}
WIDE = {"dim": 64, "dropout": 0.2, "learning_rate": 1e-3, "batch_size": 2048, "series_an_epoch": 100_000, "epochs": 10}
CANDIDATES = [
    {},
    {"patch": 4},
    {"head": "phase"},
    {"kernel_size": 3},
    {"blocks": 1},
    {"clock": False},
    {"mixing": True},
    {"loss": "mae"},
    {"evenness": 0.0},
    WIDE,
    {**WIDE, "patch": 6},
    {**WIDE, "patch": 2},
]


def folder_of(data: Path, name: str) -> Path:
    """Where a set lies.

    Raises:
        InputError: nowhere.
    """
    for candidate in (name, *FOLDERS.get(name, ()), ""):
        try:
            open_task(name, data / candidate, 24, SETS[name].horizons[0], device="cpu")
            return data / candidate
        except UniperceptError as error:
            problem = error
    raise problem


def work(jobs: list[dict], output: str, device: str, judge_test: bool, lock: object) -> None:
    """Take jobs one by one until none is left; their rows are appended as they come."""
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = True
    while True:
        with lock:  # type: ignore[attr-defined]
            if not jobs:
                return
            job = jobs.pop(0)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # other processes need what the last job has no use for
            torch.cuda.reset_peak_memory_stats()
        began, name = time.time(), {k: job[k] for k in ("set", "lookback", "method", "seed")}
        path = Path(output) / ("choice.jsonl" if "candidate" in job else "rows.jsonl")
        common = {k: job[k] for k in ("settings", "candidate") if k in job}

        def tell(line: str, began: float = began, title: str = " ".join(map(str, name.values()))) -> None:
            print(f"{time.time() - began:6.0f} s  {title}: {line}", flush=True)

        def write(rows: list[dict], path: Path = path, common: dict = common) -> None:
            memory = {"gpu_gib": torch.cuda.max_memory_reserved() / 2**30}
            with lock, path.open("a") as file:  # type: ignore[attr-defined]
                file.write("".join(json.dumps({**row, **memory, **common}) + "\n" for row in rows))
            for row in rows:
                print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)

        try:
            run(job, device, judge_test, write, tell)
        except (UniperceptError, RuntimeError) as error:
            write([{**name, "error": one_line(error)}])


def run(
    job: dict, device: str, judge_test: bool, write: Callable[[list[dict]], None], tell: Callable[[str], None]
) -> None:
    """The rows of a job, a horizon at a time, and what else is worth keeping: of the network the weights of its
    members.
    """
    if job["method"] in BASELINES:
        for horizon in job["judged"]:
            task = open_task(job["set"], job["folder"], job["lookback"], horizon, device=device)
            write([run_baseline(task, job["method"], judge_test=judge_test).to_dict()])
        return
    settings = dict(job["settings"])
    members = settings.pop("members", 1)
    places = {h: i for i, h in enumerate(sorted(job["horizons"]))}

    def written(results: list[Result], found: Blend) -> None:
        rows = []
        for result in results:
            i = places[result.horizon]
            lines = [f"{line.weight.shape[1]} past steps: {line.settings}" for line in found.lines[i]]
            rows.append({**result.to_dict(), "weights": found.weights[i].tolist(), "lines": lines})
        write(rows)

    run_network(
        job["set"], job["folder"], ForecastConfig(lookback=job["lookback"], **settings),
        horizons=job["horizons"], judged=job["judged"], seed=job["seed"], members=members, device=device,
        judge_test=judge_test and "candidate" not in job, refit=job["refit"], on_rows=written, tell=tell,
    )  # fmt: skip


def settings_of(name: str, lookback: int, chosen: dict) -> dict:
    """Of a set and look-back: those for all, then those for the set, then those for both."""
    return {**chosen.get("all", {}), **chosen.get(name, {}), **chosen.get(f"{name}/{lookback}", {})}


def table(rows: list[dict], command: str, hardware: str) -> str:
    """Markdown: mean of the seeds by set, look-back and horizon, then averages against the bars."""
    lines = [f"# Long-term forecasting\n\n{hardware}\n\n    {command}\n"]
    part = "test" if any("test_mse" in row for row in rows) else "validation"
    lines.append(
        f"{part.capitalize()} split, every window, scaled by the training rows; mean and deviation of the seeds. wQL over the nine deciles.\n\n"
        "| set | look-back | horizon | method | MSE | MAE | wQL | 80 % covers | 95 % covers | seeds |\n| --- | ---: | ---: | --- | --- | --- | ---: | ---: | ---: | ---: |"
    )
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        if f"{part}_mse" in row:
            groups.setdefault((row["set"], row["lookback"], row["horizon"], row["method"]), []).append(row)
    order = {name: i for i, name in enumerate(SETS)}
    keys = sorted(groups, key=lambda k: (order[k[0]], -k[1], k[2], not k[3].startswith("network"), k[3]))
    mean = {
        k: {
            m: float(np.mean([r[f"{part}_{m}"] for r in groups[k]]))
            for m in ("mse", "mae", "wql", "coverage_80", "coverage_95")
        }
        for k in keys
    }
    for key in keys:
        spread = np.std([r[f"{part}_mse"] for r in groups[key]])
        m = mean[key]
        with_spread = f"{m['mse']:.4f}" + (f" ± {spread:.4f}" if len(groups[key]) > 1 else "")
        lines.append(
            f"| {key[0]} | {key[1]} | {key[2]} | {key[3]} | {with_spread} | {m['mae']:.4f} | {m['wql']:.4f} | "
            f"{100 * m['coverage_80']:.1f} | {100 * m['coverage_95']:.1f} | {len(groups[key])} |"
        )
    lines.append(
        '\n## Averages over the horizons\n\n"Dropped" is the MSE without the windows that a loader leaves out which drops its last, incomplete batch of 512.\n\n'
        "| set | look-back | method | MSE | dropped | MAE | bar | 80 % | 95 % | wQL | best statistical wQL |\n| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for name, lookback, method in dict.fromkeys((k[0], k[1], k[3]) for k in keys):
        horizons = [k for k in keys if (k[0], k[1], k[3]) == (name, lookback, method)]
        if len(horizons) < len(SETS[name].horizons):
            continue
        average = {m: np.mean([mean[k][m] for k in horizons]) for m in mean[horizons[0]]}
        rivals = [np.mean([mean[o]["wql"] for o in keys if o[:2] == (name, lookback) and o[3] == rival]) for rival in STATISTICAL
                  if any(o[:2] == (name, lookback) and o[3] == rival for o in keys)]  # fmt: skip
        kept = [
            np.mean([row["dropped_mse"] for row in groups[k]])
            for k in horizons
            if all(row.get("dropped_mse") for row in groups[k])
        ]
        dropped = f"{np.mean(kept):.4f}" if len(kept) == len(horizons) else ""
        bar = BARS.get((name, lookback), "") if method == "network" else ""
        best = f"{min(rivals):.4f}" if rivals else ""
        lines.append(
            f"| {name} | {lookback} | {method} | {average['mse']:.4f} | {dropped} | {average['mae']:.4f} | {bar} | {100 * average['coverage_80']:.1f} | "
            f"{100 * average['coverage_95']:.1f} | {average['wql']:.4f} | {best} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    arguments = parsed()
    began = time.time()
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / ("choice.jsonl" if arguments.choose else "rows.jsonl")
    try:
        jobs = jobs_to_do(arguments, rows_of(path))
    except UniperceptError as error:
        raise SystemExit(one_line(error)) from error
    print(f"{len(jobs)} forecasts to compute", flush=True)
    compute(jobs, arguments, began + arguments.seconds)
    if not rows_of(path):
        raise SystemExit("no row was computed to its end")
    if arguments.choose:
        write_choice(arguments.output)
    else:
        write_tables(rows_of(path), arguments, time.time() - began)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["etth1", "etth2", "weather_jena", "exchange_rate"])
    parser.add_argument("--lookbacks", type=int, nargs="+", help="default: those of the set's published tables")
    parser.add_argument("--horizons", type=int, nargs="+", help="default: the set's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=["network", *BASELINES])
    parser.add_argument(
        "--settings",
        type=Path,
        help="JSON: settings for all, for a set, for set/look-back; default: OUTPUT/settings.json, then those of the "
        "published table",
    )
    parser.add_argument("--choose", action="store_true", help="let validation choose among CANDIDATES and stop")
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--refit", action="store_true", help="also rows that learned once more, from validation too")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e6, help="after which what is not done is given up")
    return parser.parse_args()


def rows_of(path: Path) -> list[dict]:
    """The rows that were computed to their end."""
    if not path.exists():
        return []
    return [row for row in map(json.loads, path.read_text().splitlines()) if "error" not in row]


def jobs_to_do(arguments: argparse.Namespace, done: list[dict]) -> list[dict]:
    """The forecasts with rows that are missing, in the order of their seeds, so that a seed of everything comes
    first.
    """
    stored = arguments.settings or arguments.output / "settings.json"
    if arguments.settings is None and not stored.exists():
        stored = CHOSEN
    chosen = json.loads(stored.read_text())
    known = {(r["set"], r["lookback"], r["horizon"], r["method"], r["seed"], r.get("candidate")) for r in done}
    methods = ["network"] if arguments.choose else arguments.methods
    jobs = []
    for method, name in itertools.product(methods, arguments.sets):
        folder, horizons = str(folder_of(arguments.data, name)), tuple(arguments.horizons or SETS[name].horizons)
        seeds = arguments.seeds if method == "network" and not arguments.choose else arguments.seeds[:1]
        refit = arguments.refit and method == "network" and not arguments.choose and SETS[name].one_table
        for seed, lookback in itertools.product(seeds, arguments.lookbacks or SETS[name].lookbacks):
            settings = settings_of(name, lookback, chosen) if method == "network" else {}
            candidates = [{"settings": settings}]
            if arguments.choose:
                candidates = [{"settings": {**COMMON, **c}, "candidate": i} for i, c in enumerate(CANDIDATES)]
            for candidate in candidates:
                keys = [(method, seed, candidate.get("candidate"))] + [("network refit", seed, None)] * refit
                judged = [h for h in horizons if any((name, lookback, h, *key) not in known for key in keys)]
                job = {
                    "set": name,
                    "lookback": lookback,
                    "method": method,
                    "seed": seed,
                    "folder": folder,
                    "horizons": horizons,
                    "judged": tuple(judged),
                    "refit": refit,
                    **candidate,
                }
                jobs += [job] if judged else []
    return sorted(jobs, key=lambda job: (job["seed"], job["method"] != "network", -job["lookback"]))


def compute(jobs: list[dict], arguments: argparse.Namespace, stop_at: float) -> None:
    """All jobs, in processes of their own; what is not done by `stop_at` is given up, rows that were written stay."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # whoever ends this process ends the others with it
    context = multiprocessing.get_context("spawn")
    manager = context.Manager()
    lock = manager.Lock()
    shared = (manager.list(jobs), str(arguments.output), arguments.device, arguments.test, lock)
    workers = [context.Process(target=work, args=shared, daemon=True) for _ in range(arguments.processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(max(0.0, stop_at - time.time()))
    lock.acquire(timeout=10)  # nobody is writing a row
    for worker in workers:
        if worker.exitcode is None:
            print("time is up", flush=True)
            worker.kill()
        elif worker.exitcode:
            print(f"a process ended with {worker.exitcode}", flush=True)


def write_choice(output: Path) -> None:
    """settings.json: the candidate of the smallest mean validation error for each set and look-back, of those whose
    horizons are all done.
    """
    found: dict[tuple, list[float]] = {}
    for row in rows_of(output / "choice.jsonl"):
        key = row["set"], row["lookback"], json.dumps(row["settings"])
        found.setdefault(key, []).append(row["validation_mse"])
    most: dict[tuple, int] = {}
    for (name, lookback, _), errors in found.items():
        most[name, lookback] = max(most.get((name, lookback), 0), len(errors))
    whole = [key for key, errors in found.items() if len(errors) == most[key[:2]]]
    best = {"all": COMMON}
    for name, lookback, settings in sorted(whole, key=lambda key: -np.mean(found[key])):  # the best comes last
        best[f"{name}/{lookback}"] = json.loads(settings)
    (output / "settings.json").write_text(json.dumps(best, indent=1) + "\n")


def write_tables(rows: list[dict], arguments: argparse.Namespace, seconds: float) -> None:
    """long_term.md, and all rows as long_term.csv."""
    is_gpu = torch.cuda.is_available() and arguments.device != "cpu"
    device = torch.cuda.get_device_name() if is_gpu else f"CPU, {os.cpu_count()} cores"
    hardware = f"{device}; torch {torch.__version__}, Python {platform.python_version()}, unipercept {__version__}; {seconds:.0f} s with {arguments.processes} processes."
    (arguments.output / "long_term.md").write_text(table(rows, "python " + " ".join(sys.argv), hardware))
    with (arguments.output / "long_term.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
