"""The command line: the verbs of cli_*.py under one app, and the exit status of each kind of error (outer ring).

Results go to stdout or to the named file, progress and errors to stderr. Exit status: 0 done, 1 a bug of ours,
2 the caller's mistake (one line says which), 3 a batch some of whose files are bad, 130 stopped with Ctrl-C.
Heavy imports are inside the verbs: `unipercept --help` must not load torch.
"""

from __future__ import annotations

import inspect
import io
import os
import sys
from typing import Annotated

import typer

from unipercept.cli_forecast import app as forecast
from unipercept.cli_learning import app as learning
from unipercept.cli_machine import app as machine
from unipercept.cli_parts import DONE, INTERRUPTED, MISTAKE
from unipercept.cli_recordings import app as recordings
from unipercept.cli_weather import app as weather
from unipercept.errors import MESSAGE_LIMIT, UniperceptError, one_line

app = typer.Typer(
    name="unipercept",
    help="One large-kernel ConvNet for images, audio, video, point clouds, time series and weather.",
    epilog="Start with:\n  unipercept doctor\n  unipercept demo -o out/\n  unipercept encode photos/ -o vectors.parquet",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

for verbs in (recordings, forecast):
    app.add_typer(verbs)
app.add_typer(weather, rich_help_panel="Series and weather")
for verbs in (learning, machine):
    app.add_typer(verbs)
for verbs in (recordings, forecast, weather, learning, machine):
    for verb in verbs.registered_commands:  # lines end where the terminal does, not where those of the source do
        paragraphs = (inspect.getdoc(verb.callback) or "").split("\n\n")
        verb.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


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
    """One large-kernel ConvNet for images, audio, video, point clouds, time series and weather."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point; `arguments` are those of the process unless given.

    Our own errors become one line on stderr and status 2; bugs show their traceback and give 1.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller (2>&-); the next file opened would get its descriptor
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 -- until the process ends
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path need not be text; in JSON too, \udcff stands for such a byte
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = app(arguments, prog_name="unipercept", standalone_mode=False)
    except UniperceptError as error:
        status = _mistake(one_line(error, MESSAGE_LIMIT))
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        status = _mistake(f"{error.filename}: {error.strerror}" if error.filename else one_line(error))
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:  # `unipercept models | head`
        sys.stderr.close()
        status = DONE
    except Exception as error:
        if _is_out_of_memory(error):
            sys.exit(_mistake(f"there is not enough memory for this: {one_line(error)}"))
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":  # `unipercept` alone: the help has been printed
            sys.exit(MISTAKE)
        command = getattr(getattr(error, "ctx", None), "command_path", "unipercept")
        text = one_line(error.format_message()).rstrip(".")
        status = _mistake(f"{text} (see {command} --help)" if text else f"see {command} --help")
    sys.exit(status if isinstance(status, int) else DONE)


def _is_out_of_memory(error: Exception) -> bool:
    """NumPy raises a MemoryError, torch a RuntimeError of its own."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("can't allocate memory", "out of memory")
    )


def _mistake(line: str) -> int:
    sys.stderr.write(f"error: {line}\n")
    return MISTAKE
