"""The verbs for models and their files, this machine, the tour and the web demo (outer ring)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from unipercept.cli_parts import MISTAKE, SOME_FAILED, Json

PANEL = "Models and this machine"
MODEL_COLUMNS = ("model", "vector", "parameters", "head", "trained on", "metric", "data licence", "here")
WRAPPED = {"trained on": 22, "metric": 20}  # columns of that table that may be cut into lines of so many letters

app = typer.Typer()


@app.command(rich_help_panel=PANEL, epilog="Examples:\n  unipercept models\n  unipercept models unireplknet_t.in1k_224")
def models(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Show the card of this model; NAME@REVISION pins published weights."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the models, or show one model card: training data, accuracy, licence and limits."""
    from unipercept.model_cards import MODELS, UNIVERSAL, is_cached, model_card, with_record

    if name is not None:
        card = with_record(model_card(name))
        typer.echo(json.dumps(card.to_dict(), ensure_ascii=False) if as_json else card.to_text())
        return
    cards = list(MODELS.values())
    if as_json:
        typer.echo(json.dumps([{**card.to_dict(), "cached": is_cached(card)} for card in cards], ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    rows = []
    for card in cards:
        head = f"{card.n_classes} classes" if card.head_modality else "its tasks'" if card.name == UNIVERSAL else "none"
        here = "yes" if is_cached(card) else "download"
        metric, licence = card.metric.split(",")[0].partition(" (")[0], card.data_licence.split(":")[0]
        if card.name.partition(".")[0] == UNIVERSAL:  # licences of six sets, and of the whole the figures of its tasks
            metric, licence = ("of its tasks" if card.name == UNIVERSAL else metric), "on the card"
        trained_on = f"{card.task}, jointly with the others" if card.task else card.trained_on
        rows.append((card.name, str(card.dim), f"{card.millions:g} M", head, trained_on, metric, licence, here))
    console = Console()
    console.width = console.width if console.is_terminal else 160  # a pipe has no width
    shown = _columns_that_fit([MODEL_COLUMNS, *rows], console.width)
    table = Table(box=None, pad_edge=False)
    for i in shown:
        table.add_column(MODEL_COLUMNS[i], no_wrap=MODEL_COLUMNS[i] not in WRAPPED, overflow="fold")
    for row in rows:
        table.add_row(*(row[i] for i in shown))
    console.print(table)
    if len(shown) < len(MODEL_COLUMNS):
        left = ", ".join(name for i, name in enumerate(MODEL_COLUMNS) if i not in shown)
        console.print(f"\nNot shown in {console.width} columns: {left}", highlight=False)
    console.print("\nA checkpoint file (.safetensors, .pth) is a model too: -m path/to/file", highlight=False)


def _columns_that_fit(rows: list[tuple[str, ...]], width: int) -> list[int]:
    """Which columns of the table of models a terminal has room for: all, or without those that matter least."""
    wide = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    wide = [min(n, WRAPPED.get(name, n)) for name, n in zip(MODEL_COLUMNS, wide, strict=True)]
    shown = list(range(len(MODEL_COLUMNS)))
    for name in ("data licence", "vector", "trained on", "parameters"):
        if sum(wide[i] for i in shown) + 2 * (len(shown) - 1) <= width:
            break
        shown.remove(MODEL_COLUMNS.index(name))
    return shown


@app.command(
    rich_help_panel=PANEL,
    epilog="Example:\n  unipercept convert unireplknet_t.pth -o unireplknet_t.safetensors --reparameterize",
)
def convert(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A .pth or .safetensors file.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    reparameterize: Annotated[
        bool,
        typer.Option("--reparameterize", help="Merge branches and norms into the faster inference form.", metavar=""),
    ] = False,
) -> None:
    """Convert a checkpoint (.pth, read without executing code) to safetensors, in training or inference form."""
    from unipercept.weights import convert as convert_weights

    model = convert_weights(checkpoint, output, reparameterized=reparameterize)
    typer.echo(f"{len(model.state_dict())} tensors: {output}")


@app.command(rich_help_panel=PANEL, epilog="Example:\n  unipercept demo -o out/")
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")] = Path("out"),
) -> None:
    """Run the default model on six kinds of input, offline, and write a report."""
    from unipercept.app.tour import report

    failures = report.run(output, tell=lambda line: typer.echo(line, err=True))
    typer.echo(f"{output / 'report.html'}")
    if failures:
        raise typer.Exit(SOME_FAILED)


@app.command(
    "app",
    rich_help_panel=PANEL,
    epilog="Examples:\n  unipercept app --open\n  unipercept app --host 0.0.0.0 --auth ada:secret --max-file-size 500MB",
)
def web_app(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 accepts other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 chooses a free one.")] = 7860,
    auth: Annotated[
        str | None,
        typer.Option(
            help="USER:PASSWORD (several separated by commas) or @FILE. Default: the variable UNIPERCEPT_APP_AUTH."
        ),
    ] = None,
    root_path: Annotated[str, typer.Option(help="Path prefix behind a reverse proxy, e.g. /unipercept.")] = "",
    max_file_size: Annotated[
        str, typer.Option(help="Limit for one file, e.g. 200MB; for all of a visitor's files five times that.")
    ] = "200MB",
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Recordings processed in parallel. Default: one per processor, at most 4."),
    ] = None,
    max_job_memory: Annotated[
        str | None,
        typer.Option(help="Memory that a job may take, e.g. 4GB. Default: a fair share of this machine's."),
    ] = None,
    index: Annotated[
        list[Path] | None, typer.Option("--index", "-i", help="Output of `unipercept encode` to search in. Repeatable.")
    ] = None,
    cascade: Annotated[str, typer.Option(help="Trained weather cascade. Default: the shipped one.")] = "default",
    weather: Annotated[Path | None, typer.Option(help="Analyses for the Weather tab. Default: generated.")] = None,
    opens_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.", metavar="")] = False,
) -> None:
    """Serve the web demo. Uploaded recordings stay on this machine."""
    from unipercept.app import demo
    from unipercept.app.web.options import AppOptions, parse_auth, parse_bytes

    options = AppOptions(
        host=host,
        port=port,
        auth=parse_auth(auth),
        root_path=root_path.rstrip("/"),
        max_file_bytes=parse_bytes(max_file_size),
        max_job_bytes=None if max_job_memory is None else parse_bytes(max_job_memory),
        index=tuple(index or ()),
        cascade=cascade,
        weather=weather,
        **({} if concurrency is None else {"concurrency": concurrency}),
    )
    demo.run(options, typer.echo, opens_browser=opens_browser)


@app.command(rich_help_panel=PANEL, epilog="Example:\n  unipercept doctor --json")
def doctor(as_json: Json = False) -> None:
    """Check libraries, codecs, device and cache; list what does not work and how to fix it."""
    from unipercept.doctor import examine

    checks = examine()
    if as_json:
        typer.echo(json.dumps([check.to_dict() for check in checks], ensure_ascii=False))
    else:
        for check in checks:
            mark = {"ok": "ok  ", "off": "off ", "broken": "BAD "}[check.state]
            typer.echo(
                f"{mark} {check.name:<14}{check.found}" + (f"\n     fix: {check.remedy}" if check.remedy else "")
            )
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(MISTAKE)
