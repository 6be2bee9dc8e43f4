"""Memory of a process (current use, and peak during some work) and of the machine."""

import ctypes
import os
from contextlib import suppress
from pathlib import Path


class PeakMemory:
    """How far this process's memory rises above where it stood when this was made (Linux; elsewhere not known)."""

    def __init__(self) -> None:
        with suppress(OSError):  # starts the kernel's high-water mark afresh
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        self._start = self._read("VmRSS:")

    def rise_mb(self) -> float | None:
        """MB above the start, None where the system does not tell."""
        peak = self._read("VmHWM:")
        return None if peak is None or self._start is None else max(0.0, peak - self._start)

    @staticmethod
    def _read(field: str) -> float | None:
        found = _status("self", field)
        return None if found is None else found / 2**20


def resident_bytes(pid: int | None = None) -> float | None:
    """Memory of a process, or of this one; None where the system does not tell (not Linux, or no such process)."""
    return _status("self" if pid is None else str(pid), "VmRSS:")


def own_bytes(pid: int) -> float | None:
    """Memory of a process without pages of files, which the system takes back when it needs them; None as above."""
    return _status(str(pid), "RssAnon:")


def machine_bytes() -> float | None:
    """Memory of this machine, or of the container if that has less; None where the system does not tell."""
    found = []
    with suppress(OSError, ValueError, AttributeError):  # a system without sysconf, or without these names
        found.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # none, or "max"
            found.append(float(Path(limit).read_text(encoding="utf-8")))
    return min(found, default=None)


def return_memory() -> None:
    """Give freed memory back to the system (glibc): decoding leaves holes that it would keep."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


def _status(process: str, field: str) -> float | None:
    """A field of /proc in bytes."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(field):
                return float(line.split()[1]) * 1024
    return None
