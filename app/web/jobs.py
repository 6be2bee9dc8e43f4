"""Long work beside the server's event loop: with progress, cancel and a time-out, and one line for every error."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from typing import Any, Generic, TypeVar

import gradio as gr

from unipercept.app.web.job import SCRATCH, Job, without_folders
from unipercept.app.web.metrics import Metrics
from unipercept.app.web.workers import FailedError
from unipercept.errors import UniperceptError, one_line

T = TypeVar("T")
TICK_SECONDS = 0.1


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
    """Run `work` in a thread, where it waits for a worker, giving its progress as it changes and its value in the end.

    When the consumer goes away (cancel, a closed page) or the time is up, the work is told to stop, and
    its place is free for others. What a job has written that did not end well is deleted.

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
            _tidy(folder, is_wanted=box.error is None and not job.stop.is_set())
            if not loop.is_closed():
                loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=body, name=f"job-{name}", daemon=True).start()
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
        metrics.end(name, outcome, time.monotonic() - began)


def _tidy(folder: Path, *, is_wanted: bool) -> None:
    """Delete what a job has written that nobody gets: all of it, or its scratch and a folder left empty."""
    rmtree(folder / SCRATCH if is_wanted else folder, ignore_errors=True)
    with suppress(OSError):  # it is gone, or holds files that are wanted
        folder.rmdir()


class _Box(Generic[T]):
    """Where a thread leaves its result or error."""

    value: T
    error: BaseException | None = None


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
    text = str(error) if isinstance(error, FailedError) else "".join(traceback.format_exception(error))
    sys.stderr.write(f"error {number} in unipercept app\n{text}")
    return RefusalError(f"something broke here (error {number}); the server's log says more")


def status(share: float | None, text: str) -> str:
    """A line that screen readers announce, with a bar while something is at work (`share` is not None)."""
    bar = "" if share is None else f'<progress max="1" value="{share:.3f}" aria-label="progress"></progress>'
    return f'<div class="up-status" role="status" aria-live="polite">{bar}<span>{escape(text)}</span></div>'
