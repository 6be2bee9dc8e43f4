"""The number of usable processors, and a pool of decoding threads that keeps torch's thread count."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Thread

# More threads wait for the interpreter's lock, and the one that feeds the network with them: small pictures are encoded
# on a GPU at 302, 288 and 188 files/s with 4, 8 and 16 (benchmarks/results/encode_throughput.md).
MOST_DECODERS = 8


def n_processors() -> int:
    """Processors that this process may use; in containers and batch systems often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def n_decoders() -> int:
    """Threads that decode files: the processors, up to MOST_DECODERS."""
    return min(n_processors(), MOST_DECODERS)


@contextmanager
def decoding_pool(n_workers: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads in which torch is single-threaded: each would otherwise start as
    many threads as the backbone.
    """
    import torch

    pool = ThreadPoolExecutor(n_workers, "decode", initializer=_use_one_thread, initargs=(torch.get_num_threads(),))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _use_one_thread(usual: int) -> None:
    """Make torch single-threaded in the thread that calls; threads that have not used torch yet get `usual`.

    set_num_threads sets the number of its own thread and of all those to come: another thread sets the latter back, at
    once. Set back when a pool ends, it stayed at 1 where the pools of two requests of a server overlapped.
    """
    import torch

    torch.get_num_threads()  # its first use of torch would otherwise be after this, and take the number for all
    torch.set_num_threads(1)
    other = Thread(target=torch.set_num_threads, args=(usual,))
    other.start()
    other.join()
