"""Importing gradio in half the time, and a look whether it is one that the demo can stand before."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from unipercept.errors import MissingDependencyError, import_optional

WITH_STUBS = "gradio.component_meta"
WRITTEN_FOR = "6.31"
# What turns.py, blocks.py and server.py override or read beside gradio's documented interface: functions by module
# and name, with the arguments and attributes that stand in their code. One that is called no more would let visitors
# open each other's files, and say nothing.
RELIED_ON: dict[tuple[str, str], set[str]] = {
    ("gradio.blocks", "Blocks.process_api"): {"block_fn", "inputs", "request", "iterator", "preprocess_data"},
    ("gradio.blocks", "Blocks.preprocess_data"): {"block_fn", "inputs"},
    ("gradio.queueing", "Queue.__init__"): {
        "live_updates", "update_intervals", "max_thread_count", "default_concurrency_limit",
        "active_jobs", "event_queue_per_concurrency_id",
    },
    ("gradio.queueing", "Queue.push"): {"body", "request", "username", "queue", "broadcast_estimations"},
    ("gradio.queueing", "Queue.compute_analytics_summary"): {"records"},
    ("gradio.queueing", "Event.__init__"): {"request", "concurrency_id"},
    ("gradio.routes", "App.__init__"): {"stop_event"},
}  # fmt: skip


def import_gradio() -> None:
    """Import gradio without the type stubs that it writes beside each of its components at every import.

    For them it parses its own source, 2.2 of 4.6 processor seconds (gradio 6.31). A gradio that does
    not do so is imported as it is.

    Raises:
        MissingDependencyError: gradio is not installed, or its insides are others than the demo relies on.
    """
    finder = _WithoutStubs()
    sys.meta_path.insert(0, finder)
    try:
        gradio = import_optional("gradio", extra="app")
    finally:
        sys.meta_path.remove(finder)
    for (module, name), words in RELIED_ON.items():
        lacking = words - _words_of(sys.modules.get(module), name)
        if lacking:
            raise MissingDependencyError(
                f"the web demo was written for gradio {WRITTEN_FOR}, and {module}.{name} of gradio {gradio.__version__} "
                f"lacks {min(lacking)}; install it with: pip install 'gradio=={WRITTEN_FOR}.*'"
            )


def _words_of(module: ModuleType | None, name: str) -> set[str]:
    """Arguments, and attributes that are read or set, in the code of a method; none where it is not there."""
    owner, _, method = name.partition(".")
    found: Callable[..., Any] | None = getattr(getattr(module, owner, None), method, None)
    code = getattr(found, "__code__", None)
    return set() if code is None else {*code.co_varnames[: code.co_argcount], *code.co_names}


class _WithoutStubs(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname == WITH_STUBS else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_replace(module: ModuleType) -> None:
            run(module)
            if hasattr(module, "create_or_modify_pyi"):
                setattr(module, "create_or_modify_pyi", lambda *arguments: None)  # noqa: B010 - no name that a type checker knows

        spec.loader.exec_module = run_and_replace  # type: ignore[method-assign]
        return spec
