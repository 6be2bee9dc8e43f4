"""A process that runs the server's jobs one after the other, so that a decoder that hangs or
crashes affects nothing else.

    python -m unipercept.app.web.worker DESCRIPTOR

The server sends (folder, work) as multiprocessing does, or nothing to stop the work at hand; `work` is called with a
`Job`. The answers are ("told", share, text, news), and at the end ("done", value), ("refused", line), ("failed",
traceback) or ("stopped",). Until the first job comes, what most jobs need is loaded.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from unipercept.app.memory import return_memory
from unipercept.app.web.job import Job, StoppedError
from unipercept.errors import UniperceptError

TELL_SECONDS = 0.05  # between two words of a job
QUIET_SECONDS = 1.0  # without a job, before what only pages need is loaded


class _Desk:
    """Receives jobs while one is running."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._arrived = threading.Event()
        if connection.poll(0):  # started for a job, not in advance
            self._arrived.set()
        self._waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._job: Job | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                message = self._connection.recv_bytes()
                if message:
                    self._waiting.put(message)
                    self._arrived.set()
                elif self._job is not None:
                    self._job.stop.set()
        os._exit(0)  # the server is gone: nobody waits for what is at work

    def warm(self) -> None:
        """Load, in steps of at most a second or two, what most jobs need; a job that comes in between is done first."""
        for step, quiet_seconds in ((_load_library, 0.0), (_load_networks, 0.0), (_load_drawing, QUIET_SECONDS)):
            if self._arrived.wait(quiet_seconds):
                return
            step()

    def serve(self) -> None:
        """Jobs, until the server is gone."""
        while True:
            self._connection.send_bytes(self._answer(self._waiting.get()))
            return_memory()

    def _answer(self, message: bytes) -> Any:
        """What is sent back, packed."""
        try:
            folder, work = ForkingPickler.loads(message)
            self._job = Job(folder, on_tell=self._telling())
            return ForkingPickler.dumps(("done", work(self._job)))
        except StoppedError:
            return ForkingPickler.dumps(("stopped",))
        except UniperceptError as error:
            return ForkingPickler.dumps(("refused", str(error)))
        except BaseException:
            return ForkingPickler.dumps(("failed", traceback.format_exc()))
        finally:
            self._job = None

    def _telling(self) -> Callable[[float, str, Any], None]:
        last = 0.0

        def tell(share: float, text: str, news: Any) -> None:
            nonlocal last
            if time.monotonic() - last > TELL_SECONDS:
                last = time.monotonic()
                self._connection.send(("told", share, text, news))

        return tell


def _load_library() -> None:
    import unipercept.api
    import unipercept.perception.explain  # noqa: F401


def _load_networks() -> None:
    """The default's networks for sounds, whose kernels serve all others, by the shortest sound there is."""
    import torch

    from unipercept.model_cards import tasks_for
    from unipercept.models import load_model

    for name in tasks_for("default", "audio"):
        load_model(name, in_channels=1).features(torch.zeros(1, 1, 128, 128))


def _load_drawing() -> None:
    import matplotlib.figure  # noqa: F401
    import plotly.graph_objects  # noqa: F401


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's; this ends with it
    desk = _Desk(Connection(int(sys.argv[1])))
    desk.warm()
    desk.serve()


if __name__ == "__main__":
    main()
