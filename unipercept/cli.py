"""The command line: a thin verb for each thing that `unipercept.api` does (outer ring).

Results go to stdout or to the named file, progress and errors to stderr. Exit status: 0 done, 1 a bug of ours,
2 the caller's mistake (one line says which), 3 a batch some of whose files are bad, 130 stopped with Ctrl-C.
Heavy imports are inside the verbs: `unipercept --help` must not load torch.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unipercept.app.forecaster.cli import app as weather
from unipercept.errors import InputError, NoTrainedHeadError, UniperceptError, one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from unipercept.encode_job import EncodeSummary

DONE, BUG, MISTAKE, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130
SHOWN_FAILURES = 20  # lines on stderr; the file lists all

app = typer.Typer(
    name="unipercept",
    help="One large-kernel ConvNet for pictures, sound, video, point clouds, time series and weather.",
    epilog="Start with: unipercept doctor, unipercept demo -o out/, unipercept encode photos/ -o vectors.parquet",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(weather)

Modality = Annotated[
    str,
    typer.Option(help="auto (by content), image, audio, video, pointcloud, timeseries or weather.", metavar="NAME"),
]
ModelName = Annotated[
    str, typer.Option("--model", "-m", help="A name from `unipercept models`, or a checkpoint file.", metavar="NAME")
]
Device = Annotated[str, typer.Option(help="auto (an accelerator where there is one), cpu, cuda, cuda:1 …")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.", metavar="")]
Inputs = Annotated[list[str], typer.Argument(metavar="INPUT", show_default=False)]


def _version(wanted: bool) -> None:
    if wanted:
        from unipercept import __version__

        typer.echo(f"unipercept {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True, metavar="")
    ] = False,
) -> None:
    """One large-kernel ConvNet for pictures, sound, video, point clouds, time series and weather."""


@app.command(
    epilog="Examples:  unipercept perceive cat.jpg -m unireplknet_t.in1k_224   |   unipercept perceive load.csv --top 10 --plot odd.png"
)
def perceive(
    inputs: Inputs,
    modality: Modality = "auto",
    model: ModelName = "default",
    top: Annotated[int, typer.Option(min=1, help="How many classes, or odd values, to show.")] = 5,
    device: Device = "auto",
    plot: Annotated[
        Path | None, typer.Option(help="Draw the result of a single file (.png).", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what files show: classes, by a model with a trained head (`unipercept models` lists them); in a table of series, what does not fit."""
    from unipercept import api

    _download(model)
    failures: list[tuple[str, str]] = []
    results: list[dict[str, Any]] = []
    if plot is not None and (len(inputs) > 1 or plot.suffix.lower() != ".png"):
        raise InputError(f"--plot draws the result of one file as .png, got {len(inputs)} files and {plot.name}")
    for path in inputs:
        try:
            result = api.perceive(path, modality=modality, model=model, device=device).top(top)
        except (InputError, NoTrainedHeadError) as error:
            if len(inputs) == 1:
                raise
            failures.append((path, one_line(error)))
            continue
        results.append(result.to_dict())
        if plot is not None:
            result.save(plot)
        if not as_json:
            typer.echo(result.to_text())
    if as_json:
        typer.echo(json.dumps(results, ensure_ascii=False))
    _finish(failures)


@app.command(
    epilog="Examples:  unipercept encode photos/ talk.wav -o vectors.parquet   |   "
    "unipercept encode photos/ talk.wav -o vectors.parquet --resume"
)
def encode(
    inputs: Inputs,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Parquet dataset to make: a folder of parts, one table to readers.")
    ],
    modality: Modality = "auto",
    model: ModelName = "default",
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Maps of 224x224 that the backbone sees at once.")] = 32,
    files_per_part: Annotated[int, typer.Option(min=1, help="Files in a part: what a kill can cost at most.")] = 256,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an output that a run left unfinished.", metavar="")
    ] = False,
    as_json: Json = False,
) -> None:
    """Turn files and folders, of any modality, into vectors (read them with pandas.read_parquet).

    Columns: path, modality, model, content_hash, vector, n_maps. Bad files are skipped, listed on stderr and in
    _failures.json beside the parts, and the exit status is 3.
    """
    from unipercept.encode_chunk import EncodeSettings
    from unipercept.encode_job import encode_files

    settings = EncodeSettings(model, modality, device, batch_size)
    _download(model)
    try:
        with _progress() as (start, advance):
            summary = encode_files(
                list(inputs),
                output,
                settings,
                resume=resume,
                files_per_part=files_per_part,
                on_start=start,
                on_file=advance,
            )
    except KeyboardInterrupt:
        again = shlex.join(word for word in sys.argv[1:] if word != "--resume")
        _errors().print(f"stopped; what is done is kept. Go on with: unipercept {again} --resume", highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    if summary.n_files == 1 and summary.failures:  # a single bad file is a mistake, not a batch with bad files
        if not resume:
            shutil.rmtree(output)
        raise InputError(_with_path(*summary.failures[0]))
    _report(summary, as_json)
    _finish(list(summary.failures))


def _download(model: str) -> None:
    """Bring published weights here, with a bar, before anything waits for them."""
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    from unipercept.models import download

    with Progress(*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn(), **_where()) as bar:
        tasks: list[TaskID] = []

        def show(done: int, total: int) -> None:
            if not tasks:
                tasks.append(bar.add_task(model))
            bar.update(tasks[0], completed=done, total=total or None)

        download(model, show)


def _where() -> dict[str, Any]:
    """Bars go to stderr, and nowhere where that is not a terminal."""
    return {"console": _errors(), "disable": not sys.stderr.isatty()}


def _report(summary: EncodeSummary, as_json: bool) -> None:
    n_vectors = summary.n_files - len(summary.failures)
    if as_json:
        record = {
            "output": str(summary.output),
            "n_files": summary.n_files,
            "n_vectors": n_vectors,
            "n_reused": summary.n_reused,
            "failures": [{"path": path, "error": error} for path, error in summary.failures],
        }
        typer.echo(json.dumps(record, ensure_ascii=False))
    else:
        reused = f" ({summary.n_reused} files were done before)" if summary.n_reused else ""
        typer.echo(f"{n_vectors} of {summary.n_files} files encoded{reused}: {summary.output}")


@app.command(
    epilog="Examples:  unipercept forecast load.csv --horizon 24   |   "
    "unipercept forecast sales.csv --horizon 12 --target units --date month -o next.csv --report next.html   |   "
    "unipercept forecast sensors.parquet --horizon 96 --methods linear,smoothing --seconds 20 --json"
)
def forecast(
    series: Annotated[
        str, typer.Argument(metavar="SERIES", help="CSV of any dialect, Parquet or Feather.", show_default=False)
    ],
    horizon: Annotated[int, typer.Option("--horizon", "-H", min=1, help="Steps ahead.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Forecast with its quantiles: .csv, .parquet, .json, .nc or .zarr.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Picture: history, forecast, intervals, back-test (.png, .svg, .pdf).", show_default=False),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="One HTML page: what was found, chosen and why, how far to trust it.", show_default=False),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Column to forecast; give it several times. Default: all numbers.", show_default=False),
    ] = None,
    date: Annotated[str | None, typer.Option(help="Column of times. Default: found.", show_default=False)] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            "--id",
            help="Column that names the series of each row (long format). Default: found.",
            show_default=False,
        ),
    ] = None,
    known: Annotated[
        list[str] | None,
        typer.Option(
            help="Column known in advance (price, holiday, a weather forecast), filled in rows beyond the targets' last; several times. "
            "Default: columns that alone go on so far.",
            show_default=False,
        ),
    ] = None,
    period: Annotated[
        int | None, typer.Option(min=1, help="Steps a cycle. Default: found.", show_default=False)
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help="Of naive, seasonal, drift, smoothing, ets, theta, arima, cycles, usual, linear, network; commas between. Default: all.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="About how long it may take.")] = 120.0,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Forecast a table of series, with error bars that its own past has tested.

    The columns of times, the step between rows, the cycle and the targets are found; gaps, duplicates, clock changes, spikes and codes for
    "missing" are handled and reported. Every method then forecasts the same past stretches as if it had stood there (a back-test); what
    did best, alone or mixed, makes the forecast, and its 80 % and 95 % intervals are set so that they held that often.

    In the output a row is a step: NAME is the median, NAME_q0.1 and NAME_q0.9 bound the 80 % interval, NAME_q0.025 and
    NAME_q0.975 the 95 % interval. More than 20 series, or a table in long format, make a row a step and series.
    """
    from unipercept.forecasting.command import as_json as record
    from unipercept.forecasting.command import check_outputs, parse_methods, summary, write_outputs
    from unipercept.forecasting.forecast import forecast_table

    check_outputs(output, plot, report)
    chosen = parse_methods(methods or [])
    with _one_bar("forecast") as tell:
        result = forecast_table(
            series,
            horizon,
            targets=target or (),
            time=date,
            series=by,
            known=known or (),
            period=period,
            methods=chosen,
            seconds=seconds,
            device=device,
            seed=seed,
            tell=tell,
        )
        written = write_outputs(result, output, plot, report)
    typer.echo(json.dumps(record(result, written), ensure_ascii=False) if as_json else summary(result, written))


@app.command(epilog="Examples:  unipercept models   |   unipercept models unireplknet_t.in1k_224")
def models(
    name: Annotated[str | None, typer.Argument(help="Show the card of one model.")] = None, as_json: Json = False
) -> None:
    """List the models, or show the card of one: what it was trained on, its metric, licence and limits."""
    from unipercept.models import MODELS, UNIVERSAL, is_cached, model_card

    if name is not None:
        card = model_card(name)
        typer.echo(json.dumps(card.to_dict(), ensure_ascii=False) if as_json else card.to_text())
        return
    cards = list(MODELS.values())
    if as_json:
        typer.echo(json.dumps([{**card.to_dict(), "cached": is_cached(card)} for card in cards], ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("model", "vector", "parameters", "head", "trained on", "metric", "data licence", "here"):
        table.add_column(column, no_wrap=column != "trained on", overflow="fold")
    for card in cards:
        head = f"{card.n_classes} classes" if card.head_modality else "its tasks'" if card.name == UNIVERSAL else "none"
        here = "yes" if is_cached(card) else "download"
        metric, licence = card.metric.split(",")[0].partition(" (")[0], card.data_licence.split(":")[0]
        if card.name.partition(".")[0] == UNIVERSAL:  # licences of six sets, and of the whole the figures of its tasks
            metric, licence = ("of its tasks" if card.name == UNIVERSAL else metric), "on the card"
        table.add_row(card.name, str(card.dim), f"{card.millions:g} M", head, card.trained_on, metric, licence, here)
    console = Console()
    console.width = console.width if console.is_terminal else 160  # a pipe has no width
    console.print(table)
    console.print("\nA checkpoint file (.safetensors, .pth) is a model too: -m path/to/file", highlight=False)


@app.command(epilog="Example:  unipercept convert unireplknet_t.pth -o unireplknet_t.safetensors --reparameterize")
def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    reparameterize: Annotated[
        bool, typer.Option("--reparameterize", help="Merge the branches into the fast inference form.", metavar="")
    ] = False,
) -> None:
    """Turn a checkpoint (.pth, read without unpickling code) into safetensors, in training or inference form."""
    from unipercept.weights import convert as convert_weights

    model = convert_weights(checkpoint, output, reparameterized=reparameterize)
    typer.echo(f"{len(model.state_dict())} tensors: {output}")


@app.command(epilog="Example:  unipercept demo -o out/")
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")] = Path("out"),
) -> None:
    """Send six kinds of real input through the network, offline, and write a report with what came out."""
    from unipercept.app.tour import report

    failures = report.run(output, tell=lambda line: typer.echo(line, err=True))
    typer.echo(f"{output / 'report.html'}")
    if failures:
        raise typer.Exit(SOME_FAILED)


@app.command(
    "app",
    epilog="Examples:  unipercept app --open   |   unipercept app --host 0.0.0.0 --auth ada:secret --max-file-size 500MB",
)
def web_app(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    auth: Annotated[
        str | None,
        typer.Option(help="USER:PASSWORD, several with commas, or @FILE; else the variable UNIPERCEPT_APP_AUTH."),
    ] = None,
    root_path: Annotated[str, typer.Option(help="Path below which a proxy shows the page, e.g. /unipercept.")] = "",
    max_file_size: Annotated[str, typer.Option(help="Of one upload, e.g. 200MB.")] = "200MB",
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Recordings that are looked at together; default: one a processor, at most 4."),
    ] = None,
    index: Annotated[
        list[Path] | None, typer.Option("--index", "-i", help="Vectors of `unipercept encode`, to search. Repeatable.")
    ] = None,
    cascade: Annotated[str, typer.Option(help="Trained weather cascade; default is the one shipped.")] = "default",
    weather: Annotated[Path | None, typer.Option(help="Fields for the Weather tab; default: generated.")] = None,
    opens_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.", metavar="")] = False,
) -> None:
    """Serve the web demo: drop any recording and see what one network makes of it. Nothing leaves this machine."""
    from unipercept.app import demo
    from unipercept.app.web.options import AppOptions, parse_auth, parse_bytes

    options = AppOptions(
        host=host,
        port=port,
        auth=parse_auth(auth),
        root_path=root_path.rstrip("/"),
        max_file_bytes=parse_bytes(max_file_size),
        index=tuple(index or ()),
        cascade=cascade,
        weather=weather,
        **({} if concurrency is None else {"concurrency": concurrency}),
    )
    demo.run(options, typer.echo, opens_browser=opens_browser)


@app.command(epilog="Example:  unipercept doctor --json")
def doctor(as_json: Json = False) -> None:
    """Check this machine: libraries, codecs, device, cache; say what is off and the line that mends it."""
    from unipercept.doctor import examine

    checks = examine()
    if as_json:
        typer.echo(json.dumps([check.to_dict() for check in checks], ensure_ascii=False))
    else:
        for check in checks:
            mark = {"ok": "ok  ", "off": "off ", "broken": "BAD "}[check.state]
            typer.echo(
                f"{mark} {check.name:<14}{check.found}" + (f"\n     to mend: {check.remedy}" if check.remedy else "")
            )
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(MISTAKE)


@app.command(
    epilog="Examples:  unipercept train clips/ -o runs/birds   |   unipercept train esc10 --data esc10/ --fold 2 -o runs/esc"
)
def train(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DATASET", help="A folder with a folder a class, or a published set.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run: model, scores, report.html.")],
    data: Annotated[Path | None, typer.Option(help="Where the published set lies.")] = None,
    fold: Annotated[str | None, typer.Option(help="Of a set in folds: the one that is the test.")] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Weights to start from: a name, a file or a run. Default: from scratch."),
    ] = None,
    tune: Annotated[
        str, typer.Option(help="full, head (the rest frozen) or linear (probe of frozen features).")
    ] = "full",
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data; default: the recipe's.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of recipe or maps, e.g. --set mixup=0.2 --set size=96.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    max_bad_share: Annotated[float, typer.Option(min=0, max=1, help="Share of files that may fail to decode.")] = 0.1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.", metavar="")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train a classifier on your own recordings (pictures, sounds, videos or point clouds) and judge it.

    The split is made and recorded, damaged files are listed, the report shows curves, confusions, worst mistakes and
    calibration. A run that is stopped goes on with --resume.
    """
    from unipercept.perception.command import parse_settings
    from unipercept.perception.run import train_run

    if tune not in ("full", "head", "linear"):
        raise InputError(f"--tune must be full, head or linear; got {tune!r}")
    overrides, map_overrides = parse_settings(setting or [])
    if epochs is not None:
        overrides |= {"epochs": epochs, "min_steps": 0}
    try:
        with _two_bars() as (decoded, stepped):
            summary = train_run(
                source,
                output,
                data=data,
                fold=fold,
                start=start,
                tuning=tune,  # type: ignore[arg-type]
                seed=seed,
                resume=resume,
                device=device,
                max_bad_share=max_bad_share,
                overrides=overrides,
                map_overrides=map_overrides,
                tell=lambda line: _errors().print(line),
                on_decode=decoded,
                on_progress=stepped,
            )
    except KeyboardInterrupt:
        again = shlex.join(word for word in sys.argv[1:] if word != "--resume")
        _errors().print(f"stopped; what is done is kept. Go on with: unipercept {again} --resume", highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    _show_scores(summary.scores, summary.folder, as_json)
    _finish(list(summary.skipped))


@app.command(epilog="Example:  unipercept evaluate runs/birds clips/ --votes 4")
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of `unipercept train`.", show_default=False)],
    source: Annotated[str, typer.Argument(metavar="DATASET", show_default=False)],
    data: Annotated[Path | None, typer.Option(help="Where the published set lies.")] = None,
    fold: Annotated[str | None, typer.Option(help="Of a set in folds: the one that is the test.")] = None,
    split: Annotated[str, typer.Option(help="test, validation, train, or all of a folder.")] = "test",
    votes: Annotated[int, typer.Option(min=1, help="Versions of each recording that vote.")] = 1,
    lookback: Annotated[int, typer.Option(min=1, help="Of a forecasting set: past steps of a window.")] = 96,
    horizon: Annotated[
        list[int] | None, typer.Option(min=1, help="Of a forecasting set: future steps; default: the published four.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Judge a trained run on a set: accuracy with its interval, per class, calibration.

    On a set of the long-term forecasting benchmark (etth1, weather_jena …), RUN is repeat, seasonal, drift, smoothing, linear, nlinear,
    pretrained or a file of weights for any series, and every window of the test split counts.
    """
    from unipercept.datasets import DATASETS

    if source in DATASETS:
        from unipercept.forecasting.benchmark import evaluate_series

        rows = evaluate_series(
            str(run), source, data or ".", lookback=lookback, horizons=tuple(horizon or ()), device=device
        )
        if as_json:
            typer.echo(json.dumps([row.to_dict() for row in rows]))
        else:
            typer.echo("\n".join(row.to_text() for row in rows))
        return
    from unipercept.perception.run import evaluate_run

    with _two_bars() as (decoded, _):
        found = evaluate_run(
            run, source, data=data, fold=fold, split=split, votes=votes, device=device, on_decode=decoded
        )
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        typer.echo(_score_line(split, found))
        for name, row in found["per_class"].items():
            typer.echo(f"  {row['recall']:7.2%}  {name} ({row['support']:g})")
    _finish([(name, error) for name, error in found["skipped"]])


@app.command(epilog="Example:  unipercept universal --data data/ --pictures pictures/ -o universal/ --steps 6000")
def universal(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for weights, card and decoded recordings.")],
    data: Annotated[Path, typer.Option(help="Folder with fashion_mnist/, fsdd/, esc10/.")],
    pictures: Annotated[Path, typer.Option(help="Folder of pictures and videos, for camera_motion.")],
    only: Annotated[list[str] | None, typer.Option(help="A task alone: the specialist to compare with.")] = None,
    steps: Annotated[int, typer.Option(min=1)] = 6000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 2e-3,
    architecture: Annotated[str, typer.Option(help="Of the backbone; several tasks must fit 12 MB.")] = "unireplknet_a",
    drop_path: Annotated[float, typer.Option(min=0.0, max=0.9)] = 0.1,
    start: Annotated[Path | None, typer.Option(help="A universal file to go on from.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Validation recordings train too: when nothing is left to choose.", metavar="")
    ] = False,
    shared_statistics: Annotated[
        bool, typer.Option(help="One set of norm statistics for all tasks.", metavar="")
    ] = False,
    test: Annotated[
        bool, typer.Option("--test", help="Judge the test splits too: once, when tuning is done.", metavar="")
    ] = False,
    device: Device = "auto",
) -> None:
    """Train one set of weights for pictures, sounds, clips, clouds and series together, and write its card."""
    from unipercept.perception.universal import UniversalConfig, train_universal

    config = UniversalConfig(
        architecture=architecture,
        steps=steps,
        learning_rate=learning_rate,
        drop_path=drop_path,
        own_statistics=not shared_statistics,
        seed=seed,
    )
    train_universal(
        data,
        pictures,
        output,
        config=config,
        only=only or (),
        device=device,
        judge_test=test,
        all_train=everything,
        start=start,
        tell=lambda line: typer.echo(line, err=True),
    )
    typer.echo(output / "universal.safetensors")


@app.command(epilog="Examples:  unipercept datasets   |   unipercept datasets fsdd --fetch data/fsdd")
def datasets(
    name: Annotated[str | None, typer.Argument(help="Show one set.")] = None,
    fetch: Annotated[Path | None, typer.Option(help="Download the set into this folder, verified.")] = None,
) -> None:
    """List the published sets that can be read, with licence and splits; download one on request."""
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

    with Progress(*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn(), **_where()) as bar:
        task = bar.add_task(name, total=None)
        paths = fetch_set(card, fetch, lambda done, total: bar.update(task, completed=done, total=total or None))
    typer.echo("\n".join(map(str, paths)))


@app.command(epilog="Example:  unipercept search query.wav -i vectors.parquet --top 10")
def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="A recording, of any modality.", show_default=False)],
    index: Annotated[Path, typer.Option("--index", "-i", help="What `unipercept encode` wrote.")],
    top: Annotated[int, typer.Option(min=1, help="How many neighbours.")] = 10,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Find the recordings of an archive that are most like one: exact, by cosine of the vectors."""
    from unipercept.perception.search import search_archive

    found = search_archive(query, index, top=top, device=device)
    if as_json:
        typer.echo(json.dumps([{"path": path, "similarity": value} for path, value in found], ensure_ascii=False))
    else:
        for path, value in found:
            typer.echo(f"{value:7.4f}  {path}")


@app.command(
    epilog="Examples:  unipercept probe runs/birds fsdd --data data/fsdd   |   unipercept probe universal fsdd --data data/fsdd"
)
def probe(
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False)],
    source: Annotated[str, typer.Argument(metavar="DATASET", show_default=False)],
    data: Annotated[Path | None, typer.Option(help="Where the published set lies.")] = None,
    fold: Annotated[str | None, typer.Option(help="Of a set in folds: the one that is the test.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=2, help="At most so many recordings of train and of validation.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Judge a model's frozen vectors: nearest neighbours and a linear probe, beside baselines without a network."""
    from unipercept.perception.probe import compare_vectors

    found = compare_vectors(model, source, data=data, fold=fold, limit=limit, device=device)
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(f"{'vectors':<34}{'numbers':>8}{'5 neighbours':>14}{'linear probe':>14}  95 % interval")
    for name, row in found.items():
        interval = f"{100 * row['probe_95_low']:.1f} to {100 * row['probe_95_high']:.1f}"
        typer.echo(
            f"{name:<34}{row['dim']:>8}{100 * row['neighbours']:>13.2f}%{100 * row['probe']:>13.2f}%  {interval}"
        )


@app.command(
    epilog="Examples:  unipercept explain clip.wav -o why.png   |   unipercept explain clip.wav -m runs/birds -o why.png"
)
def explain(
    path: Annotated[str, typer.Argument(metavar="INPUT", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write (.png).")],
    model: ModelName = "default",
    label: Annotated[str | None, typer.Option(help="Why this class; default: the most probable.")] = None,
) -> None:
    """Show what a model looked at: where in Hz and seconds, in which frame, on which side of a cloud."""
    from unipercept import api
    from unipercept.models import tasks_for
    from unipercept.perception.explain import explain_file

    if len(tasks_for(model, api.detect_modality(path))) > 1:  # of several heads the one that `perceive` listens to
        model = api.perceive(path, model=model).model
    found = explain_file(path, model, label=label)
    found.save(output)
    typer.echo(found.to_text())


def _show_scores(scores: Any, folder: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"run": str(folder), **scores}, ensure_ascii=False))
        return
    for part in ("validation", "test"):
        if part in scores:
            typer.echo(_score_line(part, scores[part]))
    typer.echo(f"{folder / 'report.html'}\nuse it: unipercept perceive FILE --model {folder}")


def _score_line(part: str, found: Any) -> str:
    interval = f"{100 * found['accuracy_95_low']:.1f} to {100 * found['accuracy_95_high']:.1f}"
    error = f"calibration error {100 * found['expected_calibration_error']:.1f} %"
    return f"{part}: {100 * found['accuracy']:.2f} % of {found['n']} (95 % interval {interval}), {error}"


@contextmanager
def _one_bar(title: str) -> Iterator[Any]:
    """A callback (line, share done) that draws a bar on stderr."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"), **_where()) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda line, share: bar.update(task, completed=share, description=line)


@contextmanager
def _two_bars() -> Iterator[tuple[Any, Any]]:
    """Callbacks (done, total) and (Progress of a fit) that draw two bars on stderr."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, **_where()) as bar:
        first = bar.add_task("decode", total=None)
        tasks: list[TaskID] = []

        def stepped(progress: Any) -> None:
            if not tasks:
                tasks.append(bar.add_task("train", total=progress.total_steps))
            share = progress.validation.get("accuracy")
            text = "train" if share is None else f"train (validation {share:.1%})"
            bar.update(tasks[0], completed=progress.step, description=text)

        yield (lambda done, total: bar.update(first, completed=done, total=total)), stepped


def _finish(failures: list[tuple[str, str]]) -> None:
    """List bad files on stderr; status 3 if there are any."""
    console = _errors()
    for path, error in failures[:SHOWN_FAILURES]:
        console.print(f"skipped: {_with_path(path, error)}")
    if len(failures) > SHOWN_FAILURES:
        console.print(f"skipped: {len(failures) - SHOWN_FAILURES} more")
    if failures:
        raise typer.Exit(SOME_FAILED)


def _with_path(path: str, error: str) -> str:
    return error if path in error else f"{path}: {error}"


@contextmanager
def _progress() -> Iterator[tuple[Any, Any]]:
    """Callbacks (total), (path) that draw a bar on stderr; nothing is drawn where it is not a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("files"), TimeRemainingColumn())
    with Progress(*columns, **_where()) as bar:
        task = bar.add_task("encode", total=None)
        yield (lambda total: bar.update(task, total=total)), (lambda _path: bar.advance(task))


def _errors() -> Console:
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, markup=False, highlight=False)


def main(arguments: list[str] | None = None) -> None:
    """Entry point; `arguments` are those of the process unless given.

    Our own errors become one line on stderr and status 2; bugs show their traceback and give 1.
    """
    try:
        status = app(arguments, prog_name="unipercept", standalone_mode=False)
    except UniperceptError as error:
        status = _mistake(one_line(error, limit=1000))
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        status = _mistake(f"{error.filename}: {error.strerror}" if error.filename else one_line(error))
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:  # `unipercept models | head`
        sys.stderr.close()
        status = DONE
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":  # `unipercept` alone: the help has been printed
            sys.exit(MISTAKE)
        command = getattr(getattr(error, "ctx", None), "command_path", "unipercept")
        text = one_line(error.format_message()).rstrip(".")
        status = _mistake(f"{text} (see {command} --help)" if text else f"see {command} --help")
    sys.exit(status if isinstance(status, int) else DONE)


def _mistake(line: str) -> int:
    sys.stderr.write(f"error: {line}\n")
    return MISTAKE
