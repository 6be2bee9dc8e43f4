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
from unipercept.errors import InputError, UniperceptError, one_line

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
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]
Inputs = Annotated[list[str], typer.Argument(metavar="INPUT...", show_default=False)]


def _version(wanted: bool) -> None:
    if wanted:
        from unipercept import __version__

        typer.echo(f"unipercept {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """One large-kernel ConvNet for pictures, sound, video, point clouds, time series and weather."""


@app.command(
    epilog="Examples:  unipercept perceive cat.jpg -m unireplknet_t.in1k_224   |   unipercept perceive *.jpg --top 3 --json"
)
def perceive(
    inputs: Inputs,
    modality: Modality = "auto",
    model: ModelName = "default",
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 5,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Say what files show, by a model with a trained head (`unipercept models` lists them)."""
    from unipercept import api

    _download(model)
    failures: list[tuple[str, str]] = []
    results: list[dict[str, Any]] = []
    for path in inputs:
        try:
            result = api.perceive(path, modality=modality, model=model, device=device).top(top)
        except InputError as error:
            if len(inputs) == 1:
                raise
            failures.append((path, one_line(error)))
            continue
        results.append(result.to_dict())
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
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an output that a run left unfinished.")] = False,
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


@app.command(epilog="Examples:  unipercept models   |   unipercept models unireplknet_t.in1k_224")
def models(
    name: Annotated[str | None, typer.Argument(help="Show the card of one model.")] = None, as_json: Json = False
) -> None:
    """List the models, or show the card of one: what it was trained on, its metric, licence and limits."""
    from unipercept.models import MODELS, is_cached, model_card

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
        head = f"{card.n_classes} classes" if card.head_modality else "none"
        here = "yes" if is_cached(card) else "download"
        metric, licence = card.metric.split(",")[0], card.data_licence.split(":")[0]
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
        bool, typer.Option("--reparameterize", help="Merge the branches into the fast inference form.")
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
    from unipercept.app import demo_report

    failures = demo_report.run(output, tell=lambda line: typer.echo(line, err=True))
    typer.echo(f"{output / 'report.html'}")
    if failures:
        raise typer.Exit(SOME_FAILED)


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
