"""Waiting jobs go by turns, and nobody fills the queue alone."""

from collections import Counter
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")

from unipercept.app.web import turns  # noqa: E402
from unipercept.app.web.guard import address_of  # noqa: E402
from unipercept.app.web.turns import by_turns  # noqa: E402

ADA, BOB, EVE = ("ada", "1"), ("bob", "2"), ("eve", "3")


def ordered(*waiting, at_work=()):
    jobs = [SimpleNamespace(owner=owner, number=number) for number, owner in enumerate(waiting)]
    return [job.number for job in by_turns(jobs, at_work, lambda job: job.owner)]


def test_the_first_job_of_a_visitor_comes_before_the_second_of_another():
    assert ordered(ADA, ADA, ADA, BOB, EVE, BOB) == [0, 3, 4, 1, 5, 2]


def test_a_job_at_work_is_a_turn_taken():
    assert ordered(ADA, ADA, BOB, at_work=[ADA]) == [2, 0, 1]


def test_many_cookies_of_one_address_are_no_advantage():
    crowd = [(f"cookie {n}", "1") for n in range(5)]
    assert ordered(*crowd, BOB) == [0, 5, 1, 2, 3, 4]


def test_turns_that_are_taken_again_change_nothing():
    waiting = [ADA, ADA, BOB, EVE, BOB, ("cookie", "3")]
    once = ordered(*waiting)
    assert ordered(*(waiting[i] for i in once)) == list(range(len(waiting)))


def test_an_address_of_ipv6_is_a_network():
    assert address_of("2001:db8::1") == address_of("2001:db8::ffff:1") != address_of("2001:db8:0:1::1")
    assert address_of("::ffff:192.0.2.1") == address_of("192.0.2.1") == "192.0.2.1"
    assert address_of("testclient") == "testclient"


@pytest.fixture
def busy(server, monkeypatch):
    """A server that begins no job."""
    monkeypatch.setattr(server.queue, "get_events", lambda: None)
    yield server
    for queue in server.queue.event_queue_per_concurrency_id.values():
        queue.queue.clear()


def ask(server, count: int, **settings: object) -> Counter[int]:
    """Calls of one visitor, by the status of their answers."""
    with httpx.Client(base_url=server.url, timeout=30, **settings) as visitor:
        visitor.get("/config")
        calls = [visitor.post("/gradio_api/call/model_card", json={"data": ["default"]}) for _ in range(count)]
    return Counter(call.status_code for call in calls)


def test_a_visitor_and_an_address_have_a_bounded_number_of_waiting_jobs(busy, monkeypatch):
    monkeypatch.setattr(turns, "MOST_OF_VISITOR", 3)
    monkeypatch.setattr(turns, "MOST_OF_ADDRESS", 5)
    assert ask(busy, 5) == {200: 3, 429: 2}
    assert ask(busy, 5) == {200: 2, 429: 3}
    assert ask(busy, 5) == {429: 5}  # a third cookie of the same address
    elsewhere = {"X-Forwarded-For": "192.0.2.1"}  # as a proxy on this machine says
    assert ask(busy, 2, headers=elsewhere) == {200: 2}
    assert 'reason="too many jobs of an address"' in busy.metrics.text()


def test_a_visitor_who_comes_late_waits_for_one_turn_alone(busy):
    assert ask(busy, 4) == {200: 4}
    assert ask(busy, 1, headers={"X-Forwarded-For": "192.0.2.1"}) == {200: 1}
    (queue,) = (queue.queue for queue in busy.queue.event_queue_per_concurrency_id.values() if queue.queue)
    assert [event.request.client.host for event in queue] == ["127.0.0.1", "192.0.2.1", *["127.0.0.1"] * 3]
