"""Silence for libraries in C that write to standard error themselves. Their errors reach the user as ours, in one line."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0  # blocks that are running, in any thread
_saved = -1  # where standard error went before the first of them


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Send what is written to file descriptor 2 inside the block nowhere: decord's FFmpeg, open3d's ply reader.

    Files are read by several threads: the first to come redirects and the last to go restores. Would each save and restore by itself,
    one could save what another had redirected, and standard error would be gone for good.
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
