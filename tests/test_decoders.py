"""Threads that decode, and what they leave behind."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from unipercept.datasets.processes import processes
from unipercept.decoders import Decoders
from unipercept.perception.packs import decode
from unipercept.perception.settings import MapSettings


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
    with Decoders(8, 2) as decoders:
        assert set(decoders.map(lambda _: torch.get_num_threads(), range(8))) == {1}
    assert (torch.get_num_threads(), of_a_thread_started_later()) == (3, 3)


def test_a_training_has_all_threads_after_its_recordings_were_decoded(three_threads):
    decode(processes("", "validation", per_class=1), MapSettings("timeseries"))
    assert (torch.get_num_threads(), of_a_thread_started_later()) == (3, 3)
