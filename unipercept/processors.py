"""The number of usable processors."""

import os


def n_processors() -> int:
    """Processors that this process may use; in containers and batch systems often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
