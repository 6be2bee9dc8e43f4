"""gradio's queue with turns: who has the fewest jobs before theirs comes first, and nobody can fill it alone.

Visitors come by their cookies, which a program can make up, so that addresses are counted too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from fastapi import HTTPException
from gradio.blocks import Blocks
from gradio.queueing import Queue

from unipercept.app.web.blocks import visitor_of
from unipercept.app.web.guard import address_of

MOST_WAITING = 200  # jobs of all visitors
MOST_OF_ADDRESS = 120  # of all visitors of one address: a class room, or one program with many cookies
MOST_OF_VISITOR = 40  # as many as gradio's client sends together


class TurnQueue(Queue):
    """A queue whose waiting jobs go by turns: the first of every visitor, then the second of every visitor."""

    on_refusal: Callable[[str], object]

    @classmethod
    def of(cls, page: Blocks, on_refusal: Callable[[str], object]) -> TurnQueue:
        """A queue for a page, with the settings of the one that gradio made: it takes no class of queue.

        Args:
            on_refusal: told the reason of each refusal.
        """
        theirs = page._queue
        made = cls(
            live_updates=theirs.live_updates,
            concurrency_count=theirs.max_thread_count,
            update_intervals=theirs.update_intervals,
            max_size=MOST_WAITING,
            blocks=page,
            default_concurrency_limit=theirs.default_concurrency_limit,
        )
        made.on_refusal = on_refusal
        return made

    async def push(self, body: Any, request: Any, username: str | None) -> Any:
        """As gradio's; a visitor or an address with too many waiting jobs is told so.

        Raises:
            HTTPException: too many of them wait.
        """
        self._refuse_too_many(_owner(request))
        answer = await super().push(body, request, username)
        for name, queue in self.event_queue_per_concurrency_id.items():
            at_work = [e for job in self.active_jobs if job for e in job if e.concurrency_id == name]
            ordered = by_turns(queue.queue, (_owner(e.request) for e in at_work), lambda e: _owner(e.request))
            if ordered != queue.queue:
                queue.queue[:] = ordered
                self.broadcast_estimations(name)
        return answer

    def compute_analytics_summary(self, records: Any) -> dict[str, Any]:
        """Nothing: gradio's page of statistics is off, and would cost more with every call."""
        return {}

    def _refuse_too_many(self, owner: tuple[str, str]) -> None:
        waiting = [_owner(e.request) for queue in self.event_queue_per_concurrency_id.values() for e in queue.queue]
        visitor, address = owner
        line = "wait until some are done"
        if sum(one == visitor for one, _ in waiting) >= MOST_OF_VISITOR:
            self.on_refusal("too many jobs of a visitor")
            raise HTTPException(429, f"{MOST_OF_VISITOR} of your jobs are waiting already; {line}")
        if sum(one == address for _, one in waiting) >= MOST_OF_ADDRESS:
            self.on_refusal("too many jobs of an address")
            raise HTTPException(429, f"{MOST_OF_ADDRESS} jobs of your network address are waiting already; {line}")
        if len(waiting) >= MOST_WAITING:  # gradio refuses it
            self.on_refusal("queue full")


def by_turns(
    waiting: list[Any], at_work: Iterable[tuple[str, str]], owner: Callable[[Any], tuple[str, str]]
) -> list[Any]:
    """Waiting jobs in the order of their turns.

    A job's turn is the number of jobs of its visitor, at work or waiting, that come before it; among equal turns those
    of an address take turns, too.

    Args:
        waiting: jobs, as they are queued.
        at_work: owners of the jobs that are at work.
        owner: gives the visitor and the address of a waiting job.
    """
    of_visitor: Counter[str] = Counter()
    of_address: Counter[tuple[int, str]] = Counter()  # by turn
    keys = []
    for visitor, _ in at_work:
        of_visitor[visitor] += 1
    for job in waiting:
        visitor, address = owner(job)
        turn = of_visitor[visitor]
        keys.append((turn, of_address[turn, address]))
        of_visitor[visitor] += 1
        of_address[turn, address] += 1
    order = sorted(range(len(waiting)), key=lambda i: (*keys[i], i))
    return [waiting[i] for i in order]


def _owner(request: Any) -> tuple[str, str]:
    """The visitor and the address of a request."""
    client = getattr(request, "client", None)
    return visitor_of(request) or "", address_of(client.host if client else "")
