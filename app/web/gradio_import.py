"""Importing gradio in half the time."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from unipercept.errors import import_optional

WITH_STUBS = "gradio.component_meta"


def import_gradio() -> None:
    """Import gradio without the type stubs that it writes beside each of its components at every import.

    For them it parses its own source, 2.2 of 4.6 processor seconds (gradio 6.31). A gradio that does
    not do so is imported as it is.

    Raises:
        MissingDependencyError: gradio is not installed.
    """
    finder = _WithoutStubs()
    sys.meta_path.insert(0, finder)
    try:
        import_optional("gradio", extra="app")
    finally:
        sys.meta_path.remove(finder)


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
