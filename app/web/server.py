"""The server: FastAPI with `/health` and `/metrics`, gradio below it, the guard before
both, and a sweeper beside them.
"""

from __future__ import annotations

import atexit
import base64
import logging
import os
import secrets
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unipercept.app.memory import resident_bytes, return_memory
from unipercept.app.web.examples import Examples
from unipercept.app.web.gradio_import import import_gradio
from unipercept.app.web.guard import Guard
from unipercept.app.web.metrics import Metrics
from unipercept.app.web.options import AppOptions
from unipercept.app.web.sessions import Sessions
from unipercept.app.web.workers import Workers
from unipercept.errors import InputError

SWEEP_SECONDS = 20.0


class Server:
    """Everything that runs, and its one temporary folder, which goes when it stops."""

    def __init__(self, options: AppOptions, workers: Workers | None = None) -> None:
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read, as those below, when gradio is imported
        os.environ.setdefault("MPLBACKEND", "agg")  # else the first call, in the event loop, loads pyplot and its fonts
        os.environ["HF_HUB_OFFLINE"] = os.environ.get("HF_HUB_OFFLINE", "1")
        sys.modules.setdefault("bokeh", None)  # type: ignore[arg-type]  # else gradio looks for it on the disk, 8 times a call
        self.options = options
        self.folder = Path(tempfile.mkdtemp(prefix="unipercept-app-")).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(self.folder)
        atexit.register(self.delete)
        self.sessions = Sessions(self.folder, options.keep_seconds)
        self.metrics = Metrics()
        self.workers = workers or Workers(options.job_bytes)
        self.examples = Examples(self.folder / "examples", self.sessions.publish)
        self._stop = threading.Event()
        self.app = self._build()
        threading.Thread(target=self._sweep, name="sweeper", daemon=True).start()

    def _build(self) -> Any:
        import_gradio()
        import fastapi
        import gradio as gr
        from fastapi.responses import JSONResponse, PlainTextResponse

        from unipercept.app.web.context import Context
        from unipercept.app.web.page import build_page
        from unipercept.app.web.theme import theme_arguments

        api = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

        def health(request: Any) -> Any:
            visitors, _ = self.sessions.counts()
            facts = self.metrics.health(is_well=self.workers.is_well, visitors=visitors, **self.workers.facts())
            return JSONResponse(facts, status_code=200 if facts["status"] == "ok" else 503)

        def metrics(request: Any) -> Any:
            if not self._is_user(request.headers.get("authorization", "")):
                return PlainTextResponse("sign in", 401, {"WWW-Authenticate": 'Basic realm="unipercept"'})
            visitors, pages = self.sessions.counts()
            memory = (resident_bytes() or 0.0) + self.workers.resident_bytes()
            gauges = {**self.workers.facts(), "resident_bytes": memory}
            return PlainTextResponse(self.metrics.text(visitors=visitors, pages=pages, **gauges))

        api.add_route("/health", health)
        api.add_route("/metrics", metrics)
        page = build_page(Context(self.options, self.examples, self.sessions, self.metrics, self.workers))
        self.queue = page._queue
        app = gr.mount_gradio_app(
            api,
            page,
            "/",
            server_name=self.options.host,
            server_port=self.options.port,
            auth=list(self.options.auth) or None,
            root_path=self.options.root_path or None,
            max_file_size=self.options.max_file_bytes,
            show_error=True,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            run_history=False,
            footer_links=["api"],
            **theme_arguments(),
        )
        self._gradio = next(
            route.app for route in reversed(app.routes) if hasattr(route, "app") and hasattr(route.app, "stop_event")
        )
        for path in self.folder.rglob("*"):  # what the page itself shows
            if path.is_file():
                self.sessions.publish(path)
        return Guard(app, self.sessions, self.metrics, self.options.max_file_bytes, self.options.root_path)

    def _is_user(self, header: str) -> bool:
        """Whether the header of basic authentication names a user; everybody is one where there are none."""
        if not self.options.auth:
            return True
        try:
            user, _, password = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")
        except ValueError:
            return False
        given = f"{user}:{password}".encode()
        return any(secrets.compare_digest(given, f"{u}:{p}".encode()) for u, p in self.options.auth)

    def serve(self, on_start: Callable[[str], object] = lambda url: None) -> None:
        """Serve until the process is told to stop.

        Raises:
            InputError: the port is taken.
        """
        try:
            self._uvicorn(on_start).run()
        except SystemExit as error:  # uvicorn's way to say that it could not bind
            raise InputError(
                f"cannot listen on {self.options.host}:{self.options.port}; is another program there? Choose one with --port"
            ) from error
        finally:
            self.close()

    def start(self) -> str:
        """Serve in a thread, for tests; gives the address."""
        ready = threading.Event()
        url: list[str] = []

        def started(address: str) -> None:
            url.append(address)
            ready.set()

        self._running = self._uvicorn(started)
        threading.Thread(target=self._running.run, name="server", daemon=True).start()
        if not ready.wait(60):
            raise RuntimeError("the server did not start")
        return url[0]

    def close(self) -> None:
        """Stop, and delete the folder."""
        self._stop.set()
        if hasattr(self, "_running"):
            self._running.should_exit = True
        self.delete()

    def delete(self) -> None:
        self.workers.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _uvicorn(self, on_start: Callable[[str], object]) -> Any:
        import uvicorn

        stop, delete = self._end_streams, self.delete

        class Announcing(uvicorn.Server):
            async def startup(self, sockets: Any = None) -> None:
                await super().startup(sockets)
                if self.started:
                    host, port = self.servers[0].sockets[0].getsockname()[:2]
                    on_start(f"http://{host}:{port}/")

            async def shutdown(self, sockets: Any = None) -> None:
                stop()
                await super().shutdown(sockets)
                delete()  # here: after SIGTERM nothing else of ours is run

        config = uvicorn.Config(
            self.app,
            host=self.options.host,
            port=self.options.port,
            log_level="warning",
            lifespan="on",
            timeout_graceful_shutdown=2,
        )
        return Announcing(config)

    def _end_streams(self) -> None:
        """Pages that are open hold connections for ever: let theirs go, and do not log the rest as errors."""
        self._gradio.stop_event.set()
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)

    def _sweep(self) -> None:
        while not self._stop.wait(SWEEP_SECONDS):
            self.sessions.sweep()
            self.workers.rest()
            return_memory()
