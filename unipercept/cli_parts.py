"""Shared parts of the command-line verbs: exit statuses, options, bars and lists on stderr (outer ring)."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unipercept.errors import MESSAGE_LIMIT, one_line, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

DONE, MISTAKE, SOME_FAILED, INTERRUPTED = 0, 2, 3, 130
SHOWN_FAILURES = 20  # lines on stderr where a file lists all

Modality = Annotated[
    str,
    typer.Option(help="auto (by content), image, audio, video, pointcloud, timeseries or weather.", metavar="NAME"),
]
ModelName = Annotated[
    str, typer.Option("--model", "-m", help="A name from `unipercept models`, or a checkpoint file.", metavar="NAME")
]
Device = Annotated[str, typer.Option(help="auto (an accelerator where there is one), cpu, cuda, cuda:1 …")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the random numbers.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.", metavar="")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.", metavar="")]
Files = Annotated[list[str], typer.Argument(metavar="FILE", help="Of any modality.", show_default=False)]
Inputs = Annotated[
    list[str],
    typer.Argument(metavar="INPUT", help="Files and folders; all that lies in a folder or below.", show_default=False),
]


def where_drawn() -> dict[str, Any]:
    """The console for progress bars: stderr, silent if that is not a terminal. Results printed
    below a bar still go to stdout.
    """
    if not sys.stderr.isatty():
        return {"console": errors(), "disable": True}
    from rich.console import Console

    # A descriptor of its own: descriptor 2 is redirected while C libraries read files, and a bar on it would not move.
    terminal = os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding=sys.stderr.encoding)
    return {"console": Console(file=terminal), "redirect_stdout": sys.stdout.isatty()}


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C ends the verb with its status and a line that says how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        again = shlex.join(word for word in sys.argv[1:] if word != "--resume")
        errors().print(f"stopped; what is done is kept. Continue with: unipercept {again} --resume")
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def one_bar(title: str, *, transient: bool = False) -> Iterator[Any]:
    """A callback (line, share done) that draws a bar on stderr; a transient bar is erased at the end."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, transient=transient, **where_drawn()) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda line, share: bar.update(task, completed=share, description=line)


@contextmanager
def two_bars() -> Iterator[tuple[Any, Any]]:
    """Callbacks (done, total) and (Progress of a fit) that draw two bars on stderr."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, **where_drawn()) as bar:
        first = bar.add_task("decode", total=None)
        tasks: list[TaskID] = []

        def stepped(progress: Any) -> None:
            if not tasks:
                tasks.append(bar.add_task("train", total=progress.total_steps))
            share = progress.validation.get("accuracy")
            text = "train" if share is None else f"train (validation {share:.1%})"
            bar.update(tasks[0], completed=progress.step, description=text)

        yield (lambda done, total: bar.update(first, completed=done, total=total)), stepped


@contextmanager
def counting_bar(what: str, total: int) -> Iterator[Any]:
    """A callback (count=1) that moves a bar of `total` on, on stderr."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, **where_drawn()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count=1: bar.advance(task, count)


def finish(failures: list[tuple[str, str]], listed_in: Path | None = None) -> None:
    """List bad files on stderr, the first few where a file lists all of them; status 3 if there are any."""
    console = errors()
    shown = len(failures) if listed_in is None else SHOWN_FAILURES
    for path, error in failures[:shown]:
        console.print(f"skipped: {with_path(path, error)}")
    if len(failures) > shown:
        console.print(f"skipped: {len(failures) - shown} more; all of them are in {listed_in}")
    if failures:
        raise typer.Exit(SOME_FAILED)


def with_path(path: str, error: str) -> str:
    """An error of one line that names its file, whose line ends it may have folded to blanks."""
    return error if one_line(path, MESSAGE_LIMIT) in error else f"{printable(path)}: {error}"


@contextmanager
def files_bar() -> Iterator[tuple[Any, Any, Any]]:
    """Callbacks (total), (path), (share of the current file) that draw a bar on stderr, if it is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("files"), TimeRemainingColumn())
    with Progress(*columns, **where_drawn()) as bar:
        task = bar.add_task("encode", total=None)
        n_done = 0

        def advance(_path: str) -> None:
            nonlocal n_done
            n_done += 1
            bar.update(task, completed=n_done)

        yield (
            lambda total: bar.update(task, total=total),
            advance,
            lambda share: bar.update(task, completed=n_done + share),
        )


def errors() -> Console:
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
