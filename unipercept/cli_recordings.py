"""The verbs that read recordings of any kind: perceive, encode, search, explain (outer ring)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unipercept.cli_parts import (
    Device,
    Files,
    Inputs,
    Json,
    Modality,
    ModelName,
    Resume,
    files_bar,
    finish,
    one_bar,
    resumable,
    where_drawn,
    with_path,
)
from unipercept.errors import MESSAGE_LIMIT, InputError, UniperceptError, counted, one_line, printable

if TYPE_CHECKING:
    from rich.progress import TaskID

    from unipercept.encode_job import EncodeSummary

PANEL = "Recordings"

app = typer.Typer()


@app.command(
    rich_help_panel=PANEL,
    epilog="Examples:\n  unipercept perceive cat.jpg -m unireplknet_t.in1k_224\n  unipercept perceive load.csv --top 10 --plot odd.png",
)
def perceive(
    inputs: Files,
    modality: Modality = "auto",
    model: ModelName = "default",
    top: Annotated[int, typer.Option(min=1, help="Number of classes, or anomalies, to show.")] = 5,
    device: Device = "auto",
    plot: Annotated[
        Path | None, typer.Option(help="Plot the result of a single file (.png).", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Classify files with a model that has a trained head (`unipercept models` lists them); in tables of
    time series, find anomalies.
    """
    from unipercept import api

    _download(model)
    failures: list[tuple[str, str]] = []
    results: list[dict[str, Any]] = []
    if plot is not None and (len(inputs) > 1 or plot.suffix.lower() != ".png"):
        raise InputError(
            f"--plot draws the result of one file as .png, got {counted(len(inputs), 'file', 'files')} and {plot.name}"
        )
    with one_bar("", transient=True) as tell:
        shown = Path(inputs[0]).name if len(inputs) == 1 else f"{len(inputs)} files"
        for path, result in api.perceive_files(
            inputs, modality=modality, model=model, device=device, on_progress=lambda share: tell(shown, share)
        ):
            if isinstance(result, UniperceptError):
                if len(inputs) == 1:
                    raise result
                failures.append((path, one_line(result, MESSAGE_LIMIT)))
                continue
            best = result.top(top)
            results.append(best.to_dict())
            if plot is not None:
                best.save(plot)
            if not as_json:
                typer.echo(best.to_text())
    if as_json:
        typer.echo(json.dumps(results, ensure_ascii=False))
    finish(failures)


@app.command(
    rich_help_panel=PANEL,
    epilog="Examples:\n  unipercept encode photos/ talk.wav -o vectors.parquet\n  "
    "unipercept encode photos/ talk.wav -o vectors.parquet --resume",
)
def encode(
    inputs: Inputs,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Parquet data set to write: a folder of parts that reads as one table."),
    ],
    modality: Modality = "auto",
    model: ModelName = "default",
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Maps of 224x224 per batch.")] = 32,
    files_per_part: Annotated[
        int, typer.Option(min=1, help="Files per part; at most this much work is lost when the job is killed.")
    ] = 256,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Encode files and folders, of any modality, as embeddings (read them with pandas.read_parquet).

    Columns: path, modality, model, content_hash, vector, n_maps. Unreadable files are skipped and listed on stderr and
    in _failures.json; the exit status is then 3.
    """
    from unipercept.encode_chunk import EncodeSettings
    from unipercept.encode_job import FAILURES_FILE, encode_files

    settings = EncodeSettings(model, modality, device, batch_size)
    _download(model)
    with resumable(), files_bar() as (start, advance, within):
        summary = encode_files(
            list(inputs),
            output,
            settings,
            resume=resume,
            files_per_part=files_per_part,
            on_start=start,
            on_file=advance,
            on_share=within,
        )
    if summary.n_files == 1 and summary.failures:  # a single bad file is a mistake, not a batch with bad files
        if not resume:
            shutil.rmtree(output)
        raise InputError(with_path(*summary.failures[0]))
    _report(summary, as_json)
    finish(list(summary.failures), output / FAILURES_FILE)


@app.command(rich_help_panel=PANEL, epilog="Example:\n  unipercept search query.wav -i vectors.parquet --top 10")
def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="A recording, of any modality.", show_default=False)],
    index: Annotated[Path, typer.Option("--index", "-i", help="Output of `unipercept encode`.")],
    top: Annotated[int, typer.Option(min=1, help="Number of neighbours.")] = 10,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Find the recordings in an archive that are most similar to a given one (exact search, cosine similarity)."""
    from unipercept.perception.search import search_archive

    found = search_archive(query, index, top=top, device=device)
    if as_json:
        typer.echo(json.dumps([{"path": path, "similarity": value} for path, value in found], ensure_ascii=False))
    else:
        for path, value in found:
            typer.echo(f"{value:7.4f}  {printable(path)}")


@app.command(
    rich_help_panel=PANEL,
    epilog="Examples:\n  unipercept explain clip.wav -o why.png\n  unipercept explain clip.wav -m runs/birds -o why.png",
)
def explain(
    path: Annotated[str, typer.Argument(metavar="INPUT", help="A recording, of any modality.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Image to write (.png).")],
    model: ModelName = "default",
    label: Annotated[str | None, typer.Option(help="Class to explain. Default: the most probable.")] = None,
    device: Device = "auto",
) -> None:
    """Plot the evidence for a label: the places, in time and frequency, frame or view, that add most to its log-odds
    (integrated gradients, compared with a blurred version of the input). For point clouds, series and videos it is a
    rough guide.
    """
    from unipercept import api
    from unipercept.model_cards import tasks_for
    from unipercept.perception.explain import explain_file

    if len(tasks_for(model, api.detect_modality(path))) > 1:  # the head whose labels `perceive` returns
        model = api.perceive(path, model=model, device=device).model
    with one_bar("", transient=True) as tell:
        name = Path(path).name
        found = explain_file(path, model, label=label, device=device, on_progress=lambda share: tell(name, share))
    found.save(output)
    typer.echo(found.to_text())


def _download(model: str) -> None:
    """Bring published weights here, with a bar, before anything waits for them."""
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    from unipercept.model_cards import download

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
        reused = f" ({counted(summary.n_reused, 'file was', 'files were')} done before)" if summary.n_reused else ""
        typer.echo(f"{n_vectors} of {summary.n_files} files encoded{reused}: {summary.output}")
