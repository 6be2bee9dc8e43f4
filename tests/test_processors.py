"""Threads that decode, and what they leave behind."""

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread

import pytest
import torch

from unipercept.datasets.processes import processes
from unipercept.devices import on_cpu
from unipercept.perception.packs import decode
from unipercept.perception.settings import MapSettings
from unipercept.processors import decoding_pool


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def of_a_thread_started_later():
    with ThreadPoolExecutor(1) as later:
        return later.submit(torch.get_num_threads).result()


def test_decoding_threads_are_single_and_later_ones_are_not(three_threads):
    with decoding_pool(2) as pool:
        assert set(pool.map(lambda _: torch.get_num_threads(), range(8))) == {1}
    assert (torch.get_num_threads(), of_a_thread_started_later()) == (3, 3)


def test_a_training_has_all_threads_after_its_recordings_were_decoded(three_threads):
    decode(processes("", "validation", per_class=1), MapSettings("timeseries"))
    assert (torch.get_num_threads(), of_a_thread_started_later()) == (3, 3)


def test_pools_that_overlap_leave_later_threads_as_they_were(three_threads):
    """Requests of a server: the second one, in a thread of its own, took the first one's single thread for the usual
    number, and left every later request with it."""
    began, ended = Event(), Event()

    def request():
        with decoding_pool(1) as pool:
            pool.submit(int).result()
            began.set()
            ended.wait(10)

    with decoding_pool(1) as first:
        first.submit(int).result()
        second = Thread(target=request)
        second.start()
        began.wait(10)
        assert of_a_thread_started_later() == 3
    ended.set()
    second.join()
    assert of_a_thread_started_later() == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_computes_with_one_thread(three_threads):
    """With more it would wait for OpenMP's, which a fork leaves behind."""
    on_cpu(int)()
    child = os.fork()
    if not child:
        os._exit(torch.get_num_threads())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
