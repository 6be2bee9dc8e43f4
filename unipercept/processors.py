"""How many processors there are to work with."""

import os


def n_processors() -> int:
    """How many processors this process may use: fewer than the machine has in many containers and batch systems."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
