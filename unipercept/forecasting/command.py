"""The work of the verb `unipercept forecast` around `forecast_table`: check arguments
before it, write files after it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unipercept.errors import InputError
from unipercept.forecasting.forecast import ForecastResult
from unipercept.forecasting.methods import NAMES
from unipercept.results import SAVED_SUFFIXES

PICTURES = (".png", ".svg", ".pdf")


def check_outputs(source: str | Path, output: Path | None, plot: Path | None, report: Path | None) -> None:
    """Refuse a file that could not be written in the end before minutes are spent on it, and one that is the table.

    Raises:
        InputError: a suffix that is not written, a folder that does not exist or may not be written, the table itself.
    """
    for path, option, suffixes in (
        (output, "--output", SAVED_SUFFIXES),
        (plot, "--plot", PICTURES),
        (report, "--report", (".html", ".htm")),
    ):
        if path is None:
            continue
        if path.suffix.lower() not in suffixes:
            raise InputError(f"{option} {path}: the suffix must be one of {', '.join(suffixes)}")
        if not path.parent.is_dir():
            raise InputError(f"{option} {path}: the folder {path.parent} does not exist; create it first")
        if not os.access(path.parent, os.W_OK):
            raise InputError(f"{option} {path}: the folder {path.parent} may not be written")
        if path.is_dir() and path.suffix.lower() != ".zarr":
            raise InputError(f"{option} {path}: a folder has this name; give another name")
        if path.exists() and Path(source).exists() and path.samefile(source):
            raise InputError(f"{option} {path} is the table itself; name another file")


def parse_methods(words: Sequence[str]) -> tuple[str, ...]:
    """Names of methods, from options that may each hold several between commas.

    Raises:
        InputError: an unknown name.
    """
    names = tuple(name.strip().lower() for word in words for name in word.split(",") if name.strip())
    for name in names:
        if name not in NAMES:
            raise InputError(f"--methods knows {', '.join(NAMES)}; got {name!r}")
    return names


def write_outputs(result: ForecastResult, output: Path | None, plot: Path | None, report: Path | None) -> list[Path]:
    """Write what was asked for; the paths in order."""
    written = []
    if output is not None:
        written.append(result.save(output))
    if plot is not None:
        written.append(result.save_plot(plot))
    if report is not None:
        written.append(result.report(report))
    return written


def summary(result: ForecastResult, written: Sequence[Path]) -> str:
    """For a terminal: what was found, how the methods did, the first steps, where the files are."""
    return "\n".join([result.to_text(), *(["", *(f"wrote {path}" for path in written)] if written else [])])


def as_json(result: ForecastResult, written: Sequence[Path]) -> dict[str, Any]:
    """For other programs."""
    return {**result.to_dict(), "files": [str(path) for path in written]}
