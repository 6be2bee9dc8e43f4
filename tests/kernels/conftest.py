"""Triton's interpreter where there is no GPU.

Triton asks for it when it is imported, so this is set before any test is.
"""

import importlib
import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def triton_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where Triton kernels run: on a GPU, or on the CPU in the interpreter."""
    pytest.importorskip("triton", reason="triton is not installed")
    if torch.cuda.is_available():
        yield "cuda"
        return
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    _mend_interpreter(monkeypatch)
    yield "cpu"


def _mend_interpreter(patch: pytest.MonkeyPatch) -> None:
    """Triton 3.6 takes int() of an array of one element where a loop's bound is not
    constant; NumPy 2.4 refuses that.
    """
    interpreter = importlib.import_module("triton.runtime.interpreter")
    original = interpreter._patch_lang_tensor

    def mended(tensor, scope):
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    patch.setattr(interpreter, "_patch_lang_tensor", mended)
