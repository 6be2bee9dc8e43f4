"""Sets in a tar archive, read without unpacking it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from unipercept.datasets.base import Sound
from unipercept.errors import InputError, import_optional, one_line


def read_members(path: Path, suffix: str) -> dict[str, bytes]:
    """Content of the regular files whose name ends in `suffix`, by name, in sorted order.

    For sets of tens of megabytes: a compressed tar cannot be read by position.

    Raises:
        InputError: the archive is damaged.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(suffix):
                    file = archive.extractfile(member)
                    assert file is not None
                    found[member.name] = file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"cannot read the archive {path}: {one_line(error)}; fetch it again") from error
    return dict(sorted(found.items()))


def decode_sound(content: bytes, name: str) -> Sound:
    """A sound file's bytes as mono samples.

    Raises:
        InputError: they are no sound.
    """
    soundfile: Any = import_optional("soundfile", extra="audio")
    try:
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except (RuntimeError, ValueError) as error:  # soundfile's own error is a RuntimeError
        raise InputError(f"cannot decode {name}: {one_line(error)}") from error
    return Sound(np.ascontiguousarray(samples.mean(axis=1), np.float32), int(rate))
