"""The command line: a thin verb for each thing that `unipercept.api` does (outer ring); those that learn are in cli_learning.py.

Results go to stdout or to the named file, progress and errors to stderr. Exit status: 0 done, 1 a bug of ours,
2 the caller's mistake (one line says which), 3 a batch some of whose files are bad, 130 stopped with Ctrl-C.
Heavy imports are inside the verbs: `unipercept --help` must not load torch.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unipercept.app.forecaster.cli import app as weather
from unipercept.cli_learning import app as learning
from unipercept.cli_parts import (
    DONE,
    INTERRUPTED,
    MISTAKE,
    SOME_FAILED,
    Device,
    Inputs,
    Json,
    Modality,
    ModelName,
    errors,
    files_bar,
    finish,
    one_bar,
    where_drawn,
    with_path,
)
from unipercept.errors import InputError, NoTrainedHeadError, UniperceptError, one_line

if TYPE_CHECKING:
    from rich.progress import TaskID

    from unipercept.encode_job import EncodeSummary

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
app.add_typer(learning)


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
    finish(failures)


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
        with files_bar() as (start, advance):
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
        errors().print(f"stopped; what is done is kept. Go on with: unipercept {again} --resume", highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    if summary.n_files == 1 and summary.failures:  # a single bad file is a mistake, not a batch with bad files
        if not resume:
            shutil.rmtree(output)
        raise InputError(with_path(*summary.failures[0]))
    _report(summary, as_json)
    finish(list(summary.failures))


def _download(model: str) -> None:
    """Bring published weights here, with a bar, before anything waits for them."""
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    from unipercept.models import download

    with Progress(*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn(), **where_drawn()) as bar:
        tasks: list[TaskID] = []

        def show(done: int, total: int) -> None:
            if not tasks:
                tasks.append(bar.add_task(model))
            bar.update(tasks[0], completed=done, total=total or None)

        download(model, show)


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
    horizon: Annotated[
        int, typer.Option("--horizon", "-H", min=1, max=100_000, help="Steps ahead.", show_default=False)
    ],
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
    static: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of long format that holds one value for each series (region, store type, size), for the network; several times. "
            "Default: columns that do so.",
            show_default=False,
        ),
    ] = None,
    period: Annotated[
        int | None, typer.Option(min=1, help="Steps a cycle. Default: found.", show_default=False)
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help="Of naive, seasonal, drift, smoothing, ets, theta, arima, cycles, usual, linear, pretrained, network; commas between. Default: all.",
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
    with one_bar("forecast") as tell:
        result = forecast_table(
            series,
            horizon,
            targets=target or (),
            time=date,
            series=by,
            known=known or (),
            static=static or (),
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
        trained_on = f"{card.task}, jointly with the others" if card.task else card.trained_on
        table.add_row(card.name, str(card.dim), f"{card.millions:g} M", head, trained_on, metric, licence, here)
    console = Console()
    console.width = console.width if console.is_terminal else 160  # a pipe has no width
    console.print(table)
    console.print("\nA checkpoint file (.safetensors, .pth) is a model too: -m path/to/file", highlight=False)


@app.command(epilog="Example:  unipercept convert unireplknet_t.pth -o unireplknet_t.safetensors --reparameterize")
def convert(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A .pth or .safetensors file.", show_default=False)
    ],
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
