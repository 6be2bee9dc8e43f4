"""The web demo's entry: `unipercept app` calls `run`.

The page itself is in `web/`; gradio is imported when it is built.
"""

from __future__ import annotations

import socket
import sys
import time
import webbrowser
from collections.abc import Callable
from typing import TYPE_CHECKING

from unipercept.app.web.options import AppOptions
from unipercept.app.web.workers import Workers
from unipercept.errors import InputError, one_line

if TYPE_CHECKING:
    from unipercept.app.web.server import Server


def build(options: AppOptions = AppOptions(), workers: Workers | None = None) -> Server:
    """A server that is not serving yet.

    Raises:
        MissingDependencyError: gradio is not installed.
    """
    from unipercept.app.web.server import Server

    return Server(options, workers)


def run(options: AppOptions, tell: Callable[[str], object], *, opens_browser: bool = False) -> None:
    """Serve the page until Ctrl-C.

    Args:
        tell: called with the line to print once the page can be opened.

    Raises:
        MissingDependencyError: gradio is not installed.
        InputError: the address is not one of this machine, the port is taken, or this is Windows.
    """
    if sys.platform == "win32":
        # Workers inherit a pipe, which Windows has no means for.
        raise InputError("the web demo runs on Linux and macOS; on Windows, in WSL or a container")
    _check_address(options.host, options.port)
    began = time.perf_counter()
    workers = Workers(options.job_bytes)
    workers.start()  # loads torch and the default networks on another processor while gradio is loaded on this one
    server = build(options, workers)

    def started(url: str) -> None:
        shown = url.rstrip("/") + (options.root_path or "") + "/"
        tell(f"{shown}  (ready after {time.perf_counter() - began:.1f} s; Ctrl-C stops it)")
        if opens_browser:
            webbrowser.open(shown)

    server.serve(started)


def _check_address(host: str, port: int) -> None:
    """Bind the address for a moment, so that an error shows at once and not after gradio and torch have been loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: a port just left is free
            probe.bind(address)
            probe.listen()
    except socket.gaierror as error:
        raise InputError(f"--host {host} is no address of this machine: {one_line(error.strerror)}") from error
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}:{port} ({one_line(error.strerror)}); is another program there? Choose one with --port"
        ) from error
