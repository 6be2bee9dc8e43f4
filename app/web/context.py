"""The context of every tab: options, sessions, metrics, and how to run a job for a visitor."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import gradio as gr

from unipercept.app.web.blocks import visitor_of
from unipercept.app.web.examples import Examples
from unipercept.app.web.job import Job
from unipercept.app.web.jobs import Done, Progress, RefusalError, run_job, status
from unipercept.app.web.metrics import Metrics
from unipercept.app.web.options import AppOptions
from unipercept.app.web.sessions import Sessions
from unipercept.app.web.workers import Workers

T = TypeVar("T")
MAX_WORK_BYTES = 2 * 10**9  # that the jobs of one visitor may leave on disk


@dataclass(frozen=True)
class Context:
    """The server's parts that a tab may use."""

    options: AppOptions
    examples: Examples
    sessions: Sessions
    metrics: Metrics
    workers: Workers

    async def run(
        self, name: str, work: Callable[[Job], T], request: gr.Request, *, is_long: bool = False
    ) -> AsyncIterator[Progress | Done[T]]:
        """Run work for the visitor of a request in a worker; see `run_job` and `Workers.run`."""
        visitor = visitor_of(request)
        if visitor is None:
            raise RefusalError("the call came without a request")
        if self.sessions.work_bytes_of(visitor) > MAX_WORK_BYTES:
            raise RefusalError("your results fill your share of this machine; close the page to let them go")
        seconds = self.options.long_job_seconds if is_long else self.options.job_seconds
        folder = self.sessions.new_folder(visitor)
        at_work = partial(self.workers.run, work)
        async for event in run_job(name, at_work, folder=folder, seconds=seconds, metrics=self.metrics):
            yield event

    async def updates(
        self,
        name: str,
        work: Callable[[Job], T],
        request: gr.Request,
        draw: Callable[[T], list[Any]],
        outputs: Sequence[Any],
        *,
        is_long: bool = False,
        draw_news: Callable[[Any], list[Any]] | None = None,
    ) -> AsyncIterator[list[Any]]:
        """Updates of `outputs`, the first of which is the tab's status line, until the work is done.

        Args:
            draw: of what the work gave, a value for each output.
            draw_news: of what it tells on its way, a value for each output but the first.
        """
        same = [gr.skip()] * (len(outputs) - 1)
        try:
            async for event in self.run(name, work, request, is_long=is_long):
                if isinstance(event, Done):
                    yield draw(event.value)
                else:
                    news = same if draw_news is None or event.news is None else draw_news(event.news)
                    yield [status(event.share, event.text), *news]
        except RefusalError as error:  # the message fades; the line beside the button stays
            yield [status(None, error.line), *same]
            raise

    async def result(
        self, name: str, work: Callable[[Job], T], request: gr.Request | None, *, is_long: bool = False
    ) -> T:
        """The value alone: for the JSON API."""
        if request is None:
            raise RefusalError("the call came without a request")
        async for event in self.run(name, work, request, is_long=is_long):
            if isinstance(event, Done):
                return event.value
        raise RefusalError("the job was stopped")

    @property
    def quick(self) -> dict[str, Any]:
        """How many quick jobs run together, over all tabs."""
        return {"concurrency_limit": self.options.concurrency, "concurrency_id": "quick"}

    @staticmethod
    def slow(name: str) -> dict[str, Any]:
        """One at a time, in a queue of its own, so that it blocks nothing else."""
        return {"concurrency_limit": 1, "concurrency_id": name}
