"""gradio's page with one rule more: a call may name only files of its own visitor, and
what it makes belongs to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Any

import gradio as gr

from unipercept.app.web.guard import COOKIE
from unipercept.app.web.jobs import RefusalError, as_refusal
from unipercept.app.web.sessions import Sessions

UNFIT = "the call's values are not those that this action takes; the page's link Use via API lists them"


class OwnedBlocks(gr.Blocks):
    """Blocks whose files have owners."""

    sessions: Sessions

    async def process_api(self, block_fn: Any, inputs: list[Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As gradio's, between a check of the files that come in and a note of those that go out."""
        visitor = visitor_of(kwargs.get("request"))
        if kwargs.get("iterator") is None:  # one that goes on was checked when it began, and gets no inputs again
            for path in file_paths(inputs):
                self._check(visitor, path)
        try:
            output: dict[str, Any] = await super().process_api(block_fn, inputs, *args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:  # gradio would give its text to the visitor, of however many lines
            raise as_refusal(error) from error
        if visitor is not None:
            for path in file_paths(output.get("data")):
                self.sessions.own(visitor, path)
        return output

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
        """As gradio's, with one line for what the widgets do not take."""
        try:
            values: list[Any] = await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            raise RefusalError(UNFIT) from error
        for widget, value in zip(block_fn.inputs, values, strict=False):
            if isinstance(widget, gr.Dropdown):  # one with values of its own takes anything
                several = value if widget.multiselect else [value]
                if not all(part is None or isinstance(part, str) for part in several or ()):
                    raise RefusalError(UNFIT)
            elif isinstance(value, float) and not isfinite(value):  # within no limits, and yet not outside them
                raise RefusalError(UNFIT)
        return values

    def _check(self, visitor: str | None, path: str) -> None:
        is_sent = path.startswith(("/", "http")) or ":" in path or ".." in path
        if not is_sent:  # the page names a file so until it is sent
            raise RefusalError("the file is still on its way; try again when it is here")
        if visitor is None or path.startswith(("http:", "https:")) or not self.sessions.may_read(visitor, path):
            raise RefusalError("a file of this call is not yours, or is no longer kept; send it again")


def visitor_of(request: Any) -> str | None:
    """The visitor of a call; None if it came without a request."""
    if isinstance(request, list):
        request = request[0] if request else None
    cookies = getattr(request, "cookies", None) or {}
    cookie = cookies.get(COOKIE)
    return Sessions.visitor(cookie) if cookie else None


def file_paths(data: Any) -> Iterator[str]:
    """Paths and addresses of files in what a call brings or gives."""
    if isinstance(data, dict):
        for key in ("path", "url"):
            value = data.get(key)
            if isinstance(value, str) and (
                key == "path" or (value.startswith(("http:", "https:")) and "path" not in data)
            ):
                yield value
        for value in data.values():
            yield from file_paths(value)
    elif isinstance(data, list | tuple):
        for value in data:
            yield from file_paths(value)
    elif hasattr(data, "model_dump"):
        yield from file_paths(data.model_dump())
