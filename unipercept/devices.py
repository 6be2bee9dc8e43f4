"""The one place that decides which device runs a network."""

from __future__ import annotations

import torch

from unipercept.errors import InputError, one_line


def resolve_device(device: str) -> torch.device:
    """The device of a name; "auto" is CUDA if available, then Apple's MPS, else the CPU.

    Raises:
        InputError: torch knows no such device, or this machine has none.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's, by the kind of device that it lacks
        raise InputError(
            f"device must be auto, cpu or an accelerator of this machine; got {device!r}: {one_line(error, 120)}"
        ) from error
    return found
