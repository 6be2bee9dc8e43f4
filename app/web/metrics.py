"""Counters of the server for `/metrics` (Prometheus text) and `/health`."""

from __future__ import annotations

import time
from collections import Counter, deque
from threading import Lock
from typing import Any

KEPT = 1000  # durations of each kind of job, for its percentiles


class Metrics:
    """Counters of jobs and refusals; safe to use from threads."""

    def __init__(self) -> None:
        self.started = time.time()
        self._lock = Lock()
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._refusals: Counter[str] = Counter()
        self._running: Counter[str] = Counter()
        self._seconds: dict[str, deque[float]] = {}

    def begin(self, job: str) -> None:
        with self._lock:
            self._running[job] += 1

    def end(self, job: str, outcome: str, seconds: float) -> None:
        """`outcome`: done, refused, cancelled, late or failed."""
        with self._lock:
            self._running[job] -= 1
            self._outcomes[job, outcome] += 1
            self._seconds.setdefault(job, deque(maxlen=KEPT)).append(seconds)

    def refuse(self, why: str) -> None:
        """A request that was turned away before any job."""
        with self._lock:
            self._refusals[why] += 1

    def health(self, *, is_well: bool = True, **more: Any) -> dict[str, Any]:
        """For load balancers: `ok`, or `degraded` where all is not well."""
        with self._lock:
            facts = {"status": "ok" if is_well else "degraded", "running": sum(self._running.values())}
        return {**facts, "uptime_seconds": round(time.time() - self.started, 1), **more}

    def text(self, **gauges: float) -> str:
        """All of it in Prometheus' text format."""
        with self._lock:
            lines = _block("jobs_total", "counter", "Jobs by kind and outcome.")
            lines += [f'unipercept_jobs_total{{job="{j}",outcome="{o}"}} {n}' for (j, o), n in self._outcomes.items()]
            lines += _block("jobs_running", "gauge", "Jobs at work.")
            lines += [f'unipercept_jobs_running{{job="{job}"}} {n}' for job, n in self._running.items()]
            lines += _block("job_seconds", "summary", f"Seconds of the last {KEPT} jobs of each kind.")
            for job, seconds in self._seconds.items():
                ordered = sorted(seconds)
                for share in (0.5, 0.95):
                    value = ordered[min(len(ordered) - 1, int(share * len(ordered)))]
                    lines.append(f'unipercept_job_seconds{{job="{job}",quantile="{share}"}} {value:.4f}')
            lines += _block("refused_total", "counter", "Requests turned away, by reason.")
            lines += [f'unipercept_refused_total{{reason="{why}"}} {n}' for why, n in self._refusals.items()]
        for name, value in gauges.items():
            lines += [*_block(name, "gauge", name.replace("_", " ") + "."), f"unipercept_{name} {value:g}"]
        return "\n".join(lines) + "\n"


def _block(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP unipercept_{name} {text}", f"# TYPE unipercept_{name} {kind}"]
