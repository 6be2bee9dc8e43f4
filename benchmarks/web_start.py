"""How soon the web demo is there: from the command to a page, to its first paint, and to the first
result of a clip of ten seconds.

    python benchmarks/web_start.py              three starts, one after the other
    python benchmarks/web_start.py --starts 1

Every start is a fresh server and a fresh Chromium (playwright; without it the paint is left out). The first result is
asked for as soon as the page can be opened, and timed until its JSON is there, upload included; also from the command
on. On a machine that does other work too, the processor seconds say more than the clock.
"""

import argparse
import math
import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from web_load import Client, memory, start_server

CLIP_SECONDS, SAMPLE_RATE = 10, 44_100
CHROMIUM_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PAINT = "performance.getEntriesByName('first-contentful-paint').map((entry) => entry.startTime)[0]"


def clip(folder: Path) -> Path:
    """Ten seconds of stereo: a falling tone in noise."""
    import soundfile

    rng, time_ = np.random.default_rng(0), np.arange(CLIP_SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    tone = 0.3 * np.sin(2 * np.pi * (900 * time_ - 30 * time_**2))
    path = folder / "clip.wav"
    soundfile.write(path, np.stack([tone, tone], axis=1) + 0.02 * rng.normal(size=(len(time_), 2)), SAMPLE_RATE)
    return path


def chromium_path() -> str | None:
    """Where Chromium is, if it is."""
    return os.environ.get("UNIPERCEPT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


def first_paint(url: str) -> float | None:
    """Seconds to the first contentful paint in a fresh Chromium; None without playwright or Chromium."""
    found = chromium_path()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if found is None:
        return None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=CHROMIUM_ARGUMENTS)
        page = browser.new_page()
        page.goto(url)
        page.get_by_role("tab", name="Perceive").wait_for()
        seconds = float(page.evaluate(PAINT)) / 1000
        browser.close()
    return seconds


def processor_seconds(pid: int) -> float:
    """What a process and its children have used so far, on all processors; NaN where /proc does not say (not Linux)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    except OSError:
        return math.nan
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(processor_seconds(int(child)) for child in children)


def one_start(path: Path) -> dict[str, float | None]:
    """A server from its command to its end."""
    started = time.perf_counter()
    process, url, startup = start_server()
    try:
        at_start = memory(url)
        found: dict[str, float | None] = {"from the command to a page that can be opened": startup}
        client = Client(url)
        for name in ("first result", "second result"):
            began, used = time.perf_counter(), processor_seconds(process.pid)
            event = client.call("perceive", client.send(path), "auto", "default")
            assert event == "complete", event
            found[name] = time.perf_counter() - began
            found[f"processor seconds of the {name}"] = processor_seconds(process.pid) - used
            if name == "first result":
                found["from the command to the first result"] = time.perf_counter() - started
    finally:
        process.terminate()
        process.wait(20)
    process, url, _ = start_server()
    try:
        found["first paint"] = first_paint(url)
    finally:
        process.terminate()
        process.wait(20)
    return {**found, "memory at start in MB": at_start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = clip(Path(folder))
        rows = [one_start(path) for _ in range(arguments.starts)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(
        f"web demo from cold: {platform.machine()}, {cores} cores, load average {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}; median and worst of {arguments.starts} starts"
    )
    for name in rows[0]:
        values = [row[name] for row in rows if row[name] is not None]
        shown = f"{statistics.median(values):.2f}, {max(values):.2f}" if values else "not measured: no Chromium"
        print(f"{name}: {shown}")


if __name__ == "__main__":
    main()
