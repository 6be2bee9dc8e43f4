"""Work that takes a while: in a thread of its own, with progress, cancel and a time-out, and one line for what goes wrong."""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from secrets import token_hex
from typing import Any, Generic, TypeVar

import gradio as gr

from unipercept.app.web.metrics import Metrics
from unipercept.errors import UniperceptError, one_line

T = TypeVar("T")
TICK_SECONDS = 0.1


class StoppedError(Exception):
    """Raised inside a job that was cancelled or is late; never seen by visitors."""


@dataclass
class Job:
    """What the work is given: it tells how far it is, and stops where it is told to.

    Args:
        folder: the visitor's own, for files that the work writes.
    """

    folder: Path
    stop: threading.Event = field(default_factory=threading.Event)
    share: float = 0.0
    text: str = "waiting"
    news: Any = None

    def tell(self, share: float, text: str, news: Any = None) -> None:
        """Progress from 0 to 1 in words, perhaps with something to draw; the place where work stops.

        Raises:
            StoppedError: the job was cancelled or is late.
        """
        if self.stop.is_set():
            raise StoppedError
        self.share, self.text = share, text
        if news is not None:
            self.news = news


@dataclass(frozen=True)
class Progress:
    """How far a job is. `news` is what it told last."""

    share: float
    text: str
    news: Any


@dataclass(frozen=True)
class Done(Generic[T]):
    """A job that ended well."""

    value: T


async def run_job(
    name: str, work: Callable[[Job], T], *, folder: Path, seconds: float, metrics: Metrics
) -> AsyncIterator[Progress | Done[T]]:
    """Run `work` in a thread, giving its progress as it changes and its value in the end.

    When the consumer goes away (cancel, a closed page) the work is told to stop. Work that does not stop in time is left
    behind: its place is free for others, and `/metrics` counts it.

    Raises:
        RefusalError: the work failed or is late.
    """
    job, box, began = Job(folder), _Box[T](), time.monotonic()
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    outcome = "cancelled"
    metrics.begin(name)

    def body() -> None:
        try:
            box.value = work(job)
        except BaseException as error:
            box.error = error
        finally:
            if box.is_left_behind:
                metrics.abandon(-1)
            elif not loop.is_closed():
                loop.call_soon_threadsafe(ended.set)

    thread = threading.Thread(target=body, name=f"job-{name}", daemon=True)
    thread.start()
    try:
        told: tuple[float, str, Any] | None = None
        while not ended.is_set():
            if time.monotonic() - began > seconds:
                outcome = "late"
                raise RefusalError(f"this took more than {seconds:g} s and was stopped; try a shorter recording")
            now = (job.share, job.text, job.news)
            if now != told:
                told = now
                yield Progress(*now)
            try:
                await asyncio.wait_for(ended.wait(), TICK_SECONDS)
            except TimeoutError:
                continue
        if box.error is not None:
            outcome = "refused" if isinstance(box.error, UniperceptError) else "failed"
            raise as_refusal(box.error)
        outcome = "done"
        yield Done(box.value)
    finally:
        job.stop.set()
        if thread.is_alive() and outcome in ("late", "cancelled"):
            box.is_left_behind = True
            metrics.abandon(+1)
        metrics.end(name, outcome, time.monotonic() - began)


class _Box(Generic[T]):
    """Where a thread leaves what came of it."""

    value: T
    error: BaseException | None = None
    is_left_behind = False


class RefusalError(gr.Error):
    """One line for the visitor. gradio draws messages as HTML, so the message is escaped; `line` is not."""

    def __init__(self, line: str) -> None:
        self.line = one_line(line, limit=400)
        super().__init__(escape(self.line, quote=False), print_exception=False, title="That did not work")


def as_refusal(error: BaseException) -> RefusalError:
    """Our own errors in their words, without the server's paths; bugs under a number that stands in the log too."""
    if isinstance(error, UniperceptError):
        return RefusalError(without_folders(str(error)))
    number = token_hex(4)
    sys.stderr.write(f"error {number} in unipercept app\n" + "".join(traceback.format_exception(error)))
    return RefusalError(f"something broke here (error {number}); the server's log says more")


def without_folders(text: str) -> str:
    """A message in which files of the temporary folder have their names alone."""
    root = re.escape(str(Path(tempfile.gettempdir()).resolve()))
    return re.sub(rf"{root}/(?:[^/\s:;,'\"]+/)*", "", text)


def status(share: float | None, text: str) -> str:
    """A line that screen readers announce, with a bar while something is at work (`share` is not None)."""
    bar = "" if share is None else f'<progress max="1" value="{share:.3f}" aria-label="progress"></progress>'
    return f'<div class="up-status" role="status" aria-live="polite">{bar}<span>{escape(text)}</span></div>'
