"""How far this process's memory rises while something is done."""

from contextlib import suppress
from pathlib import Path


class PeakMemory:
    """How far this process's memory rises above where it stood when this was made (Linux; elsewhere not known)."""

    def __init__(self) -> None:
        with suppress(OSError):  # starts the kernel's high-water mark afresh
            Path("/proc/self/clear_refs").write_text("5")
        self._start = self._read("VmRSS:")

    def rise_mb(self) -> float | None:
        """MB above the start, None where the system does not tell."""
        peak = self._read("VmHWM:")
        return None if peak is None or self._start is None else max(0.0, peak - self._start)

    def _read(self, field: str) -> float | None:
        with suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith(field):
                    return float(line.split()[1]) / 1024
        return None
