"""The server's workers: processes that do its jobs, started as they are needed, ended when they hang."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, TypeVar

from unipercept.app.memory import own_bytes, resident_bytes
from unipercept.app.web.job import Job, StoppedError
from unipercept.errors import InputError

T = TypeVar("T")
TICK_SECONDS = 0.05
GRACE_SECONDS = 3.0  # that a job told to stop has for it
WEIGH_SECONDS = 0.25  # between two looks at the memory of a worker
IDLE_SECONDS = 300.0  # after which those that are not needed end; one stays
MANY_LOST = 5  # one after the other: something is wrong with this machine
WELL_AGAIN_SECONDS = 300.0  # after the last was lost: without any jobs nothing else would show it
BROKE_DOWN = (
    "the program that was at work on this broke down: the recording may be damaged, or too large for this machine"
)

TOO_LARGE = "this needs more than the {:.1f} GB of memory that a job may take here; send a smaller recording, or a part"


class FailedError(Exception):
    """A bug in a job; the text is its traceback."""


class Workers:
    """As many processes as there are jobs at a time; each does one job after the other.

    Args:
        max_bytes: memory that a job may take (Linux); None for any.
    """

    def __init__(self, max_bytes: float | None = None) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._all: list[_Worker] = []
        self._lost = self._lost_in_a_row = 0
        self._lost_at = 0.0
        self._is_closed = False

    def start(self) -> None:
        """One in advance, so that the first job finds everything loaded."""
        with self._lock:
            if not self._all:
                self._idle.append(self._new())

    def run(self, work: Callable[[Job], T], job: Job) -> T:
        """Do `work` in a worker; `job` tells what the work tells, and stops it.

        Args:
            work: can be pickled, and so can what it gives.

        Raises:
            InputError: the work's own errors of ours, in their words; or its process broke down, or was too large.
            StoppedError: it was told to stop, and has.
            FailedError: a bug.
        """
        worker = self._take()
        try:
            return worker.do(work, job, self.max_bytes)
        finally:
            self._give_back(worker)

    def rest(self) -> None:
        """End workers that have had nothing to do for a while."""
        now = time.monotonic()
        with self._lock:
            for worker in [w for w in self._idle if now - w.idle_since > IDLE_SECONDS][: len(self._all) - 1]:
                self._idle.remove(worker)
                self._all.remove(worker)
                worker.end()

    def close(self) -> None:
        """End all of them, whatever they do."""
        with self._lock:
            self._is_closed = True
            for worker in self._all:
                worker.end()

    def facts(self) -> dict[str, int]:
        """How many there are, and how many were ended or broke down while they were at work."""
        with self._lock:
            return {"workers": len(self._all), "workers_lost": self._lost}

    @property
    def is_well(self) -> bool:
        """False while one worker after the other is lost."""
        return self._lost_in_a_row < MANY_LOST or time.monotonic() - self._lost_at > WELL_AGAIN_SECONDS

    def resident_bytes(self) -> float:
        """Memory of all workers together (Linux; elsewhere not known, 0)."""
        with self._lock:
            return sum(resident_bytes(worker.pid) or 0.0 for worker in self._all)

    def _take(self) -> _Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()  # the one used last: others may come to rest
                if worker.is_alive:
                    return worker
                self._all.remove(worker)
            return self._new()

    def _new(self) -> _Worker:
        if self._is_closed:
            raise StoppedError
        worker = _Worker()
        self._all.append(worker)
        return worker

    def _give_back(self, worker: _Worker) -> None:
        with self._lock:
            if worker.is_alive:
                self._lost_in_a_row = 0
                worker.idle_since = time.monotonic()
                self._idle.append(worker)
                return
            self._all.remove(worker)
            self._lost += 1
            if not worker.was_too_large:  # that says something of a recording, and nothing of this machine
                self._lost_in_a_row += 1
                self._lost_at = time.monotonic()
            if not self._idle and not self._is_closed and self.is_well:  # the next job need not wait for one
                self._idle.append(self._new())


class _Worker:
    """One process, and our end of the pipe to it."""

    def __init__(self) -> None:
        ours, theirs = Pipe()
        command = [sys.executable, "-P", "-m", "unipercept.app.web.worker", str(theirs.fileno())]
        # It finds what the server finds. Threads that wait for each other sleep: by default they spin, and where
        # several jobs share the processors a look then took 7.2 processor seconds rather than 0.5.
        where = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **where}
        with theirs:  # a session of its own: Ctrl-C in the terminal is for the server alone
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL, start_new_session=True
            )  # fmt: skip
        self._connection = ours
        self.was_too_large = False
        self.idle_since = time.monotonic()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def do(self, work: Callable[[Job], T], job: Job, max_bytes: float | None) -> T:
        """See `Workers.run`. A worker that does not answer any more is ended."""
        try:
            self._connection.send_bytes(ForkingPickler.dumps((Path(job.folder), work)))
            value: T = self._answer(job, max_bytes)
            return value
        except (EOFError, OSError) as error:
            self.end()
            raise InputError(BROKE_DOWN) from error

    def _answer(self, job: Job, max_bytes: float | None) -> Any:
        stopped_at: float | None = None
        weighed_at = 0.0
        while True:
            if max_bytes is not None and time.monotonic() - weighed_at > WEIGH_SECONDS:
                weighed_at = time.monotonic()
                if (own_bytes(self.pid) or 0.0) > max_bytes:
                    self.was_too_large = True
                    self.end()
                    raise InputError(TOO_LARGE.format(max_bytes / 1e9))
            if self._connection.poll(TICK_SECONDS):
                kind, *rest = self._connection.recv()
                if kind == "told":
                    job.share, job.text = rest[0], rest[1]
                    job.news = job.news if rest[2] is None else rest[2]
                elif kind == "done":
                    return rest[0]
                else:
                    raise {"refused": InputError, "failed": FailedError, "stopped": StoppedError}[kind](*rest)
            if job.stop.is_set():
                if stopped_at is None:
                    stopped_at = time.monotonic()
                    self._connection.send_bytes(b"")
                elif time.monotonic() - stopped_at > GRACE_SECONDS:
                    self.end()
                    raise StoppedError

    def end(self) -> None:
        """At once."""
        self._process.kill()
        self._process.wait()
