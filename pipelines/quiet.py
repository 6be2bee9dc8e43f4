"""Silences C libraries that write to standard error. Their errors reach the user as one-line errors of ours."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.Lock()
_inside = 0  # threads that are in a block; the first one puts the descriptor away, the last one puts it back
_saved = -1


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Discard what is written to file descriptor 2 inside the block, e.g. by decord's FFmpeg open3d's ply reader or mpg123."""
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _inside, _saved
    with _LOCK:
        if not _inside:
            _saved = os.dup(2)
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
        _inside += 1


def _leave() -> None:
    global _inside
    with _LOCK:
        _inside -= 1
        if not _inside:
            os.dup2(_saved, 2)
            os.close(_saved)
