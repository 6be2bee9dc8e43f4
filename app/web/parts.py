"""Widgets that several tabs share, so that they look and behave alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gradio as gr

from unipercept.app.web.jobs import status

VIEW: list[Any] = ["download", "fullscreen"]  # buttons of a picture
LAST_WORD_SECONDS = 0.5  # what a job that is stopped said last may still be on its way, and would stay on the page
QUIET: dict[str, Any] = {
    "show_progress": "hidden",
    "api_visibility": "private",
}  # of an event: the status line says how far it is


class Filled(NamedTuple):
    """Outputs that a tab fills once the page has been painted."""

    function: Callable[..., Any]
    inputs: list[Any]
    outputs: list[Any]


def html(elem_id: str | None = None, value: str = "", *, visible: bool = True) -> gr.HTML:
    """HTML of ours in the page's own style."""
    return gr.HTML(value, elem_id=elem_id, apply_default_css=False, visible=visible)


def dropzone(label: str, elem_id: str, **settings: Any) -> gr.File:
    """A widget to drop a file on."""
    return gr.File(label=label, height=150, elem_id=elem_id, **settings)


def downloads(label: str, elem_id: str) -> gr.File:
    """Files to take home; hidden until there are any."""
    return gr.File(
        label=label,
        file_count="multiple",
        visible=False,
        interactive=False,
        elem_id=elem_id,
        elem_classes="up-downloads",
    )


def figure(label: str, elem_id: str) -> gr.Image:
    """A drawn picture (`showing.figure_image`); hidden until there is one."""
    return gr.Image(
        label=label,
        visible=False,
        interactive=False,
        format="png",
        buttons=VIEW,
        elem_id=elem_id,
        elem_classes="up-figure",
    )


def chart(label: str, elem_id: str) -> gr.Plot:
    """An interactive chart; hidden until there is one."""
    return gr.Plot(label=label, visible=False, elem_id=elem_id)


def run_and_cancel(label: str, name: str) -> tuple[gr.Button, gr.Button]:
    """The tab's main button and the one beside it, as high where the first has two lines."""
    with gr.Row(equal_height=True):
        run = gr.Button(label, variant="primary", min_width=100, elem_id=f"{name}-run")
        cancel = gr.Button("Cancel", min_width=100, elem_id=f"{name}-cancel", elem_classes="up-cancel")
    return run, cancel


def status_line(name: str, text: str = "") -> gr.HTML:
    """The line with the progress of a job."""
    return html(f"{name}-status", status(None, text))


def told_by(line: gr.HTML) -> dict[str, Any]:
    """Settings of an event that runs a job: the status line shows its place in the queue, then its progress."""
    return {"show_progress": "minimal", "show_progress_on": [line], "api_visibility": "private"}


def cancels(button: gr.Button, line: gr.HTML, events: Sequence[Any]) -> None:
    """Let a button stop what `events` began."""

    async def stopped() -> str:
        await asyncio.sleep(LAST_WORD_SECONDS)
        return status(None, "Stopped.")

    stop = button.click(lambda: status(None, "Stopping."), None, line, cancels=list(events), api_visibility="private")
    stop.then(stopped, None, line, concurrency_limit=None, **QUIET)


def endpoint(
    name: str, function: Callable[..., Any], inputs: Sequence[Any], outputs: Any = None, **limits: Any
) -> None:
    """An action of the JSON API, which no widget of the page calls."""
    made = gr.JSON(visible=False) if outputs is None else outputs
    gr.Button(visible=False).click(function, list(inputs), made, api_name=name, **limits)


def shown(value: Any) -> Any:
    """An update that shows a widget with a value, or hides it where there is none."""
    return gr.update(value=value, visible=value is not None)


def model_dropdown(**settings: Any) -> gr.Dropdown:
    """A list to choose from; it is filled after the page has been painted, since a worker
    has to load the models' cards.
    """
    return gr.Dropdown(
        ["default"], value="default", label="Model", info="On this machine", allow_custom_value=True, **settings
    )
