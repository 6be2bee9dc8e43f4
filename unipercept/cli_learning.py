"""The verbs for training and evaluation: train, evaluate, universal, familiarity, datasets, probe (outer ring)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from unipercept.cli_parts import Device, Json, Resume, Seed, finish, resumable, two_bars, where_drawn
from unipercept.errors import InputError, printable

PANEL = "Learning"

Source = Annotated[
    str,
    typer.Argument(
        metavar="DATASET", help="A folder with one sub-folder per class, or a published data set.", show_default=False
    ),
]
Data = Annotated[Path | None, typer.Option(help="Folder of the published data set.")]
Fold = Annotated[str | None, typer.Option(help="Test fold, for data sets with folds.")]

app = typer.Typer()


@app.command(
    rich_help_panel=PANEL,
    epilog="Examples:\n  unipercept train clips/ -o runs/birds\n  unipercept train esc10 --data esc10/ --fold 2 -o runs/esc",
)
def train(
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run: model, scores, report.html.")],
    data: Data = None,
    fold: Fold = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Initial weights: a model name, a file or a run. Default: from scratch."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Network to train from scratch: unireplknet_a …, small or fine.")
    ] = None,
    tune: Annotated[
        str, typer.Option(help="full, head (backbone frozen) or linear (linear probe of frozen features).")
    ] = "full",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the training split. Default: set by the recipe.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Training settings. Default: chosen by modality; ambience is for stationary sounds (rain, machines, animals)."
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Override a setting of the recipe or the maps, e.g. --set mixup=0.2 --set size=96. Repeatable.",
        ),
    ] = None,
    seed: Seed = 0,
    max_bad_share: Annotated[
        float, typer.Option(min=0, max=1, help="Largest fraction of files that may fail to decode.")
    ] = 0.1,
    resume: Resume = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train and evaluate a classifier on your own recordings (images, audio, videos, point clouds or time series).

    The split is recorded, damaged files are listed, and the report shows learning curves, confusions, the worst
    mistakes and calibration. --resume continues an interrupted run.
    """
    from unipercept.perception.command import parse_settings
    from unipercept.perception.run import SKIPPED_FILE, train_run
    from unipercept.perception.settings import RECIPES

    if tune not in ("full", "head", "linear"):
        raise InputError(f"--tune must be full, head or linear; got {tune!r}")
    overrides, map_overrides = parse_settings(setting or [])
    if recipe is not None and recipe not in RECIPES:
        raise InputError(f"--recipe must be one of {', '.join(RECIPES)}; got {recipe!r}")
    if model is not None:
        overrides |= {"architecture": model}
    if epochs is not None:
        overrides = {"min_steps": 0, **overrides, "epochs": epochs}
    with resumable(), two_bars() as (decoded, stepped):
        summary = train_run(
            source,
            output,
            data=data,
            fold=fold,
            start=start,
            tuning=tune,  # type: ignore[arg-type]
            recipe=RECIPES[recipe] if recipe else None,
            seed=seed,
            resume=resume,
            device=device,
            max_bad_share=max_bad_share,
            overrides=overrides,
            map_overrides=map_overrides,
            tell=lambda line: sys.stderr.write(line + "\n"),  # which a bar takes over: the line appears above it
            on_decode=decoded,
            on_progress=stepped,
        )
    _show_scores(summary.scores, summary.folder, as_json)
    finish(list(summary.skipped), output / SKIPPED_FILE)


@app.command(
    rich_help_panel=PANEL,
    epilog="Examples:\n  unipercept evaluate runs/birds clips/ --votes 4\n  unipercept evaluate universal fsdd --data data/fsdd",
)
def evaluate(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_MODEL", help="Output folder of `unipercept train`, or a model name.", show_default=False
        ),
    ],
    source: Source,
    data: Data = None,
    fold: Fold = None,
    split: Annotated[str, typer.Option(help="test, validation or train; or all, for a folder.")] = "test",
    votes: Annotated[
        int, typer.Option(min=1, help="Test-time augmentation: versions of each recording that vote.")
    ] = 1,
    lookback: Annotated[int, typer.Option(min=1, help="For forecasting data sets: past steps in a window.")] = 96,
    horizon: Annotated[
        list[int] | None,
        typer.Option(min=1, help="For forecasting data sets: future steps. Default: the four published horizons."),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Evaluate a run or model on a data set: accuracy with its confidence interval, per class, calibration.

    On a set of the long-term forecasting benchmark (etth1, weather_jena …), RUN_OR_MODEL is repeat,
    seasonal, drift, smoothing, linear, nlinear, pretrained or a file of weights for any series, and every
    window of the test split counts.
    """
    from unipercept.datasets import DATASETS

    if source in DATASETS:
        from unipercept.forecasting.benchmark_baselines import evaluate_series

        rows = evaluate_series(
            run, source, data or ".", lookback=lookback, horizons=tuple(horizon or ()), device=device
        )
        if as_json:
            typer.echo(json.dumps([row.to_dict() for row in rows]))
        else:
            typer.echo("\n".join(row.to_text() for row in rows))
        return
    from unipercept.perception.evaluate import evaluate_run

    with two_bars() as (decoded, _):
        found = evaluate_run(
            run, source, data=data, fold=fold, split=split, votes=votes, device=device, on_decode=decoded
        )
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        typer.echo(f"{_score_line(split, found)}\nparts: {printable(found['parts'])}")
        typer.echo("   recall  class (recordings)")
        for name, row in found["per_class"].items():
            typer.echo(f"  {row['recall']:7.2%}  {printable(name)} ({row['support']:g})")
    finish([(name, error) for name, error in found["skipped"]])


@app.command(
    rich_help_panel=PANEL,
    epilog="Example:\n  unipercept universal --data data/ --pictures pictures/ -o universal/ --steps 6000",
)
def universal(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for weights, model card and decoded recordings.")
    ],
    data: Annotated[Path, typer.Option(help="Folder with fashion_mnist/, fsdd/, esc10/ and real series.")],
    pictures: Annotated[Path, typer.Option(help="Folder of pictures and videos, for camera_motion.")],
    only: Annotated[
        list[str] | None, typer.Option(help="Train only this task (a specialist, for comparison). Repeatable.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Updates.")] = 6000,
    seed: Seed = 0,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Peak learning rate.")] = 2e-3,
    architecture: Annotated[
        str, typer.Option(help="Backbone; joint weights are limited to 12 MB. fine: for small images.")
    ] = "unireplknet_a",
    drop_path: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Probability of dropping a block (stochastic depth).")
    ] = 0.1,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override an augmentation setting, e.g. --set erasing=0.4. Repeatable."),
    ] = None,
    start: Annotated[Path | None, typer.Option(help="Universal weights to start from.")] = None,
    keep: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Weight of --start in the average of old and new weights.")
    ] = 0.0,
    everything: Annotated[
        bool, typer.Option("--all", help="Train on the validation split too, when no choice depends on it.", metavar="")
    ] = False,
    shared_statistics: Annotated[bool, typer.Option(help="Share norm statistics between tasks.", metavar="")] = False,
    test: Annotated[
        bool, typer.Option("--test", help="Evaluate the test splits too. Use it once, after tuning.", metavar="")
    ] = False,
    resume: Resume = False,
    device: Device = "auto",
) -> None:
    """Train one set of weights for images, audio, videos, point clouds and time series, and write its model card."""
    from unipercept.perception.command import parse_settings
    from unipercept.perception.universal import UniversalConfig, train_universal

    overrides, map_overrides = parse_settings(setting or [])
    config = UniversalConfig(
        architecture=architecture,
        steps=steps,
        learning_rate=learning_rate,
        drop_path=drop_path,
        own_statistics=not shared_statistics,
        kept=keep,
        seed=seed,
    )
    with resumable():
        train_universal(
            data,
            pictures,
            output,
            config=config,
            only=only or (),
            device=device,
            with_test=test,
            all_train=everything,
            resume=resume,
            start=start,
            overrides=overrides,
            map_overrides=map_overrides,
            tell=lambda line: typer.echo(line, err=True),
        )
    typer.echo(output / "universal.safetensors")


@app.command(
    rich_help_panel=PANEL, epilog="Examples:\n  unipercept datasets\n  unipercept datasets fsdd --fetch data/fsdd"
)
def datasets(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show one data set.")] = None,
    fetch: Annotated[Path | None, typer.Option(help="Download the data set into this folder and verify it.")] = None,
) -> None:
    """List the supported published data sets with licence and splits, or download one."""
    from unipercept.datasets import LABELLED_SETS, set_card

    if name is None:
        for known in LABELLED_SETS:
            card = set_card(known)
            typer.echo(f"{known:<24}{card.modality:<12}{card.licence}")
        return
    card = set_card(name)
    if fetch is None:
        typer.echo(card.to_text())
        return
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    from unipercept.datasets.fetch import fetch as fetch_set

    with Progress(*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn(), **where_drawn()) as bar:
        task = bar.add_task(name, total=None)
        paths = fetch_set(card, fetch, lambda done, total: bar.update(task, completed=done, total=total or None))
    typer.echo("\n".join(map(str, paths)))


@app.command(
    rich_help_panel=PANEL,
    epilog="Example:\n  unipercept familiarity universal/universal.safetensors --data data/ --pictures pictures/",
)
def familiarity(
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="Universal weights.", show_default=False)],
    data: Annotated[Path, typer.Option(help="Folder with fashion_mnist/, fsdd/, esc10/.")],
    pictures: Annotated[Path, typer.Option(help="Folder of pictures and videos, for camera_motion.")],
    only: Annotated[list[str] | None, typer.Option(help="Only this task. Repeatable.")] = None,
    device: Device = "auto",
) -> None:
    """Fit the out-of-distribution statistics of universal weights and store them in their file;
    `perceive` uses them for its notices.
    """
    from unipercept.perception.measure_familiarity import measure_familiarity

    measure_familiarity(
        weights, data, pictures, only=only or (), device=device, tell=lambda line: typer.echo(line, err=True)
    )


@app.command(
    rich_help_panel=PANEL,
    epilog="Examples:\n  unipercept probe runs/birds fsdd --data data/fsdd\n  unipercept probe universal fsdd --data data/fsdd",
)
def probe(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A name from `unipercept models`, or a checkpoint file.", show_default=False
        ),
    ],
    source: Source,
    data: Data = None,
    fold: Fold = None,
    limit: Annotated[
        int | None, typer.Option(min=2, help="Use at most this many recordings each from train and validation.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Evaluate a model's frozen embeddings by nearest neighbours and a linear probe, compared with
    baselines without a network.
    """
    from unipercept.perception.probe import compare_vectors

    found = compare_vectors(model, source, data=data, fold=fold, limit=limit, device=device)
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo("accuracy on the test part; the interval is that of the linear probe")
    typer.echo(f"{'vectors':<34}{'numbers':>8}{'5 neighbours':>14}{'linear probe':>14}  95 % interval")
    for name, row in found.items():
        interval = f"{100 * row['probe_95_low']:.1f} to {100 * row['probe_95_high']:.1f}"
        typer.echo(
            f"{name:<34}{row['dim']:>8}{100 * row['neighbours']:>13.2f}%{100 * row['probe']:>13.2f}%  {interval}"
        )


def _show_scores(scores: Any, folder: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"run": str(folder), **scores}, ensure_ascii=False))
        return
    for part in ("validation", "test"):
        if part in scores:
            typer.echo(_score_line(part, scores[part]))
    if "test" not in scores:
        typer.echo(
            "no test recordings: validation chose the weights too, so its accuracy is too high for new recordings"
        )
    typer.echo(f"{folder / 'report.html'}\nuse it: unipercept perceive FILE --model {folder}")


def _score_line(part: str, found: Any) -> str:
    interval = f"{100 * found['accuracy_95_low']:.1f} to {100 * found['accuracy_95_high']:.1f}"
    error = f"calibration error {100 * found['expected_calibration_error']:.1f} %"
    chance = f"a perfectly calibrated model: {100 * found['expected_calibration_error_by_chance']:.1f} %"
    return (
        f"{part} accuracy: {100 * found['accuracy']:.2f} % of {found['n']} (95 % interval {interval}), "
        f"mean over classes {100 * found['mean_class_accuracy']:.2f} %, {error} ({chance})"
    )
