"""Silences C libraries that write to standard error. Their errors reach the user as one-line errors of ours."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0  # running blocks, over all threads
_saved = -1  # a copy of the original descriptor 2, while _inside > 0


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Discard what is written to file descriptor 2 inside the block, e.g. by decord's FFmpeg,
    open3d's ply reader or mpg123.

    Several threads may be inside: the first to enter redirects the descriptor, the last to leave restores it.
    If each saved and restored it, one could save what another had redirected, and standard error would be lost
    for the rest of the process.
    """
    global _inside, _saved
    with _lock:
        if not _inside:
            _saved = os.dup(2)
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                os.dup2(_saved, 2)
                os.close(_saved)
