"""What trained a file: the versions that its header or card records, so that the training can be repeated."""

import platform

import torch

from unipercept import __version__


def versions() -> dict[str, str]:
    """Versions of this package, torch and Python."""
    return {"unipercept": __version__, "torch": torch.__version__, "python": platform.python_version()}
