"""The web demo under load: clients at once, their latencies, the server's memory, and a long job beside them.

    python benchmarks/web_load.py                        20 clients for 2 minutes, then on to 1000 requests
    python benchmarks/web_load.py --clients 50
    python benchmarks/web_load.py --seconds 20 --clients 4 --requests 50       a try

Loopback only. Every client is a visitor of its own: it sends a picture or a sound and asks `perceive` about it, and now
and then for a model's card. A visitor trains meanwhile. The server is a process of its own; its memory is what /metrics
says. That address waits for no job: how long it takes shows whether the server's event loop is free. How soon the
server is there: benchmarks/web_start.py.
"""

import argparse
import itertools
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx

from unipercept.app.web.examples import Examples

WARM_UP_REQUESTS = 500  # by then every library is loaded and gradio keeps as many sessions as it ever will
TIMEOUT_SECONDS = 120


class Client:
    """One visitor, over plain HTTP."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS)
        self.http.get("/config").raise_for_status()

    def send(self, path: Path) -> dict[str, object]:
        """Upload a file; what a call names it by."""
        with path.open("rb") as file:
            answer = self.http.post("/gradio_api/upload", files={"files": (path.name, file)}).raise_for_status()
        return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}

    def call(self, name: str, *arguments: object) -> str:
        """The last event of an endpoint: "complete" or "error"."""
        made = self.http.post(f"/gradio_api/call/{name}", json={"data": list(arguments)}).raise_for_status()
        text = self.http.get(f"/gradio_api/call/{name}/{made.json()['event_id']}").text
        return re.findall(r"event: (\w+)", text)[-1]


class Load:
    """What all clients did."""

    def __init__(self, url: str, files: list[Path]) -> None:
        self.url, self.files = url, files
        self.seconds: dict[str, list[float]] = {"perceive": [], "model_card": []}
        self.errors: list[str] = []
        self.lock = threading.Lock()
        self.stop = threading.Event()

    @property
    def count(self) -> int:
        return sum(map(len, self.seconds.values()))

    def run(self, number: int) -> None:
        client = Client(self.url)
        for turn in itertools.count(number):
            if self.stop.is_set():
                return
            name = "model_card" if turn % 4 == 3 else "perceive"
            began = time.perf_counter()
            try:
                if name == "perceive":
                    event = client.call(name, client.send(self.files[turn % len(self.files)]), "auto", "default")
                else:
                    event = client.call(name, "default")
            except httpx.HTTPError as error:
                event = f"{type(error).__name__} of {name} after {time.perf_counter() - began:.0f} s: {error}"
            with self.lock:
                self.seconds[name].append(time.perf_counter() - began)
                if event != "complete":
                    self.errors.append(event)


def start_server() -> tuple[subprocess.Popen[str], str, float]:
    """`unipercept app` itself on a free port; the process, its address, and the seconds until it could be opened."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "unipercept", "app", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    line = process.stdout.readline()
    return process, line.split()[0].rstrip("/"), time.perf_counter() - began


def memory(url: str) -> float:
    """Resident MB of the server."""
    text = httpx.get(f"{url}/metrics", timeout=TIMEOUT_SECONDS).text
    return float(re.findall(r"^unipercept_resident_bytes (\S+)", text, re.MULTILINE)[0]) / 1e6


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--requests", type=int, default=1000, help="go on until so many, for the memory")
    parser.add_argument("--at-most", type=float, default=480, help="seconds in all")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        examples = Examples(Path(folder))
        files = [
            examples.get("A lion (image)").path,
            examples.get("A band (audio)").path,
            examples.get("A load (time series)").path,
        ]
        process, url, _ = start_server()
        try:
            report(url, files, examples.class_folders(), arguments)
        finally:
            process.terminate()
            process.wait(20)


def report(url: str, files: list[Path], clips: Path, arguments: argparse.Namespace) -> None:
    load, trained = Load(url, files), []

    def train() -> None:
        visitor = Client(url)
        began = time.perf_counter()
        visitor.http.timeout = httpx.Timeout(600)
        trained.append((visitor.call("train", visitor.send(clips), "network", 10), time.perf_counter() - began))

    threads = [threading.Thread(target=load.run, args=(i,), daemon=True) for i in range(arguments.clients)]
    load_before = os.getloadavg()[0]
    began = time.perf_counter()
    for thread in (*threads, threading.Thread(target=train, daemon=True)):
        thread.start()
    samples: list[tuple[int, float]] = []
    waits: list[float] = []
    timed: dict[str, list[float]] | None = None
    while True:
        time.sleep(2)
        elapsed = time.perf_counter() - began
        asked = time.perf_counter()
        samples.append((load.count, memory(url)))
        waits.append(time.perf_counter() - asked)
        if timed is None and elapsed > arguments.seconds:
            timed = {name: list(values) for name, values in load.seconds.items()}
        if timed is not None and (load.count >= arguments.requests or elapsed > arguments.at_most):
            break
    load.stop.set()
    for thread in threads:
        thread.join(TIMEOUT_SECONDS)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(
        f"web demo under load: {platform.machine()}, {cores} cores, load average {load_before:.1f} before and {os.getloadavg()[0]:.1f} after, "
        f"Python {platform.python_version()}"
    )
    for name, values in timed.items():
        if values:
            print(
                f"{name}: {len(values)} requests of {arguments.clients} clients in {arguments.seconds:.0f} s, "
                f"p50 {statistics.median(values):.2f} s, p95 {percentile(values, 0.95):.2f} s"
            )
    warm = [mb for count, mb in samples if WARM_UP_REQUESTS <= count <= WARM_UP_REQUESTS + 100]
    late = [mb for count, mb in samples if count >= load.count - 100]
    if warm and late:
        before, after = statistics.median(warm), statistics.median(late)
        print(
            f"memory: {before:.0f} MB at request {WARM_UP_REQUESTS}, {after:.0f} MB at request {load.count} ({after / before - 1:+.1%})"
        )
    print(
        f"/metrics, every 2 s: p50 {statistics.median(waits):.2f} s, p95 {percentile(waits, 0.95):.2f} s, worst {max(waits):.2f} s"
    )
    print(f"errors: {len(load.errors)} {load.errors[:3] if load.errors else ''}")
    print(
        f"a visitor trained meanwhile: {trained[0][0] + f' after {trained[0][1]:.0f} s' if trained else 'not done yet'}"
    )


if __name__ == "__main__":
    main()
