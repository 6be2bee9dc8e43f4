"""Files of a run: last.pt, from which it goes on exactly, and best.pt, the weights that validated best.

A file appears whole or not at all, and holds tensors, numbers and strings only: it loads with weights_only=True.
"""

import pickle  # noqa: TID251 - only to name the error that weights_only=True raises
from pathlib import Path
from typing import Any

import torch

from unipercept.atomic import atomic_path
from unipercept.errors import InputError, one_line

LAST, BEST = "last.pt", "best.pt"
FORMAT = 1  # of last.pt; raised when its fields change

Checkpoint = dict[str, Any]


def save_checkpoint(content: Checkpoint, path: Path) -> None:
    """Write `content`; a crash or a full disk leaves the file that was there."""
    with atomic_path(path) as temporary:
        torch.save({"format": FORMAT, **content}, temporary)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file that `save_checkpoint` wrote; tensors come on the CPU.

    Raises:
        InputError: no such file, damaged, or of another kind or version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise InputError(f"cannot read the checkpoint {path}: {one_line(error, 150)}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(
            f"{path} is not a checkpoint of fit() in format {FORMAT}; train again, or use the version that wrote it"
        )
    return content
