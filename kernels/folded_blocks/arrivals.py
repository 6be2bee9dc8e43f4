"""Counters for launches whose thread blocks wait for each other: 0 before the launch, and reset to 0 by
the last thread block to leave.

Clearing one separately would be another launch, some 2 us in a graph. Launches of one stream follow each other and
share a counter; a captured launch keeps its own for good, since graphs may be replayed concurrently on any streams.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

COUNTERS = 4096  # of a GPU; who comes when all are taken fills one of their own

_lock = threading.Lock()
_kept: dict[torch.device, _Counters] = {}


class _Counters:
    """The counters of one GPU."""

    def __init__(self, device: torch.device) -> None:
        with torch.inference_mode(False):
            self.zeros = torch.zeros(COUNTERS, dtype=torch.int32, device=device)
        torch.cuda.current_stream(device).synchronize()  # other streams use them too
        self.taken = 0
        self.of_stream: dict[int, Tensor] = {}

    def take(self) -> Tensor | None:
        """One that nobody has."""
        if self.taken == COUNTERS:
            return None
        self.taken += 1
        return self.zeros[self.taken - 1 : self.taken]


def arrivals(device: torch.device) -> Tensor:
    """One int32, which is 0, for a launch on the device's current stream."""
    captured = torch.cuda.is_current_stream_capturing()
    stream = torch.cuda.current_stream(device).cuda_stream
    with _lock:
        counters = _kept.get(device)
        if counters is None and not captured:  # what is made in a capture belongs to its graph
            counters = _kept[device] = _Counters(device)
        found = None if counters is None or captured else counters.of_stream.get(stream)
        if found is None and counters is not None:
            found = counters.take()
            if found is not None and not captured:
                counters.of_stream[stream] = found
    return torch.zeros(1, dtype=torch.int32, device=device) if found is None else found
