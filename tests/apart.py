"""Work in processes of its own, which tests kill, interrupt, measure, or let train together.

They are forked from a process that has imported torch and the rest already: a fresh interpreter takes 3 s of a core for
that, and 2 s more for torch._dynamo, which torch imports when a custom operator is first differentiated. Tests of what
a fresh interpreter does start one by themselves.
"""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["torch", "torch._dynamo", "numpy", "pandas", "xarray", "pytest", "unipercept.api", "unipercept.cli", "unipercept.encode_job", "unipercept.train"]
)  # fmt: skip


def start(
    work: Callable[..., None], *arguments: Any, said: Path, environment: Mapping[str, str] | None = None
) -> BaseProcess:
    """Start `work(*arguments)`, a function of a module; what it and its libraries print goes to the file `said`."""
    process = _FORKS.Process(target=_run, args=(work, arguments, str(said), dict(environment or {})))
    sys.path.append(str(ROOT))  # travels along: the tests are not installed
    try:
        process.start()
    finally:
        sys.path.remove(str(ROOT))
    return process


def run(work: Callable[..., None], *arguments: Any, said: Path, timeout_seconds: float = 120.0) -> int:
    """The exit status of `work`, once it has ended."""
    return finish(start(work, *arguments, said=said), timeout_seconds)


def run_together(
    work: Callable[..., None], *arguments: Any, said: Path, n_processes: int = 2, timeout_seconds: float = 120.0
) -> None:
    """Run `work` in several processes that find each other as those of torchrun do, and
    see that all of them succeed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        start(work, *arguments, said=said.with_name(f"{rank}-{said.name}"), environment={
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n_processes), "LOCAL_WORLD_SIZE": str(n_processes),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        })
        for rank in range(n_processes)
    ]  # fmt: skip
    try:
        statuses = [finish(process, timeout_seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(statuses), [said.with_name(f"{rank}-{said.name}").read_text() for rank in range(n_processes)]


def finish(process: BaseProcess, timeout_seconds: float = 120.0) -> int:
    """Wait for a process; its exit status, as `subprocess` gives it. One that does not end is killed."""
    process.join(timeout_seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    return int(process.exitcode or 0)


def command_line(*arguments: str | Path) -> None:
    """`unipercept ARGUMENTS`, as work for `start`."""
    from unipercept.cli import main

    sys.argv = ["unipercept", *map(str, arguments)]
    main()


def _run(work: Callable[..., None], arguments: tuple[Any, ...], said: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    # Who runs the tests in the background of a shell hands down that Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    work(*arguments)
