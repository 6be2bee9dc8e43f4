"""Checks of a path before a reader opens it, and the one line for what a reader could not read."""

import os
import re
import stat
from pathlib import Path

from unipercept.errors import InputError, one_line

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/")  # Path has made one slash of two; a drive has a single letter


def check_file(path: str | Path, *, folder: bool = False) -> Path:
    """The path, if it is a readable file with content (or, with `folder`, a folder).

    Pipes and devices are refused: they may never end.

    Raises:
        InputError: it is not; one line says why.
        TypeError: it is no path.
    """
    path = Path(path_text(path))
    check_is_name(path)
    try:
        status = path.stat()
    except FileNotFoundError as error:
        what = "is a link to a file that does not exist" if path.is_symlink() else "does not exist; check the spelling"
        raise InputError(f"{path} {what}") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"cannot open {str(path)!r}: {reason}") from error
    if stat.S_ISDIR(status.st_mode):
        if folder:
            return path
        raise InputError(f"{path} is a folder; expected a file")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is a pipe or a device; save its output to a file first")
    if status.st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); expected a recording")
    if not os.access(path, os.R_OK):
        raise InputError(f"cannot open {path}: permission denied")
    return path


def check_is_name(path: Path) -> None:
    """Refuse a URL, and "-" for standard input."""
    if _ADDRESS.match(path.as_posix()):
        raise InputError(f"{path.as_posix()} is a URL, and nothing is downloaded; download it first and give the file")
    if str(path) == "-":
        raise InputError("standard input is not supported; save it to a file first")


def path_text(path: object) -> str:
    """A path as text.

    Raises:
        InputError: it is empty: Path would take it for the folder that we are in.
        TypeError: it is none.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"expected the path of a file, got {type(path).__name__}; save what is in memory to a file first, or embed it: "
            "pipe.embed(Picture.from_image(image)), and so on with from_array of Waveform, Clip and Cloud"
        )
    if not (text := os.fsdecode(path)):
        raise InputError("a file name is empty; give the path of a file (a variable of the shell that is not set?)")
    return text


def open_error(path: str | Path, expected: str, error: object) -> InputError:
    """The one line for a file that its reader could not read."""
    text = re.sub(r"^\[Errno -?\d+\] ", "", one_line(error))  # not readable, e.g. 1094995529 from FFmpeg
    return InputError(f"cannot read {path} as {expected}: {text}")
