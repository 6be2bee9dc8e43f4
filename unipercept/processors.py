"""How many processors there are to work with, and a pool of threads that leaves them to torch afterwards."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


def n_processors() -> int:
    """How many processors this process may use: fewer than the machine has in many containers and batch systems."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def decoding_pool(n_workers: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads in which torch is single-threaded: each would otherwise start as
    many threads as the backbone.
    """
    import torch

    n_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(n_workers, "decode", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        # What a thread sets is also what those get that have not asked yet, this one among them.
        torch.set_num_threads(n_threads)
