"""Perceive: one file of any modality, seen as people see it and as the network does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from unipercept.app.web import parts, words
from unipercept.app.web.jobs import RefusalError, status
from unipercept.app.web.perceive_drawing import Shown, analyse_and_draw, analyse_json
from unipercept.app.web.perceive_work import AUTO

if TYPE_CHECKING:
    from unipercept.app.web.context import Context

MODALITIES = [AUTO, "image", "audio", "video", "pointcloud", "timeseries", "weather"]
EMPTY = (
    "The recording itself appears here, the picture that the network makes of it (its map), the class that the network "
    "takes it for, and where in the map it sees that."
)


class _Controls(NamedTuple):
    """Inputs of the visitor, the buttons, and what is told below them."""

    file: gr.File
    modality: gr.Dropdown
    model: gr.Dropdown
    run: gr.Button
    cancel: gr.Button
    state: gr.HTML
    examples: gr.Dataset
    facts: gr.HTML

    @property
    def inputs(self) -> list[Any]:
        """The inputs of the endpoint, in its order."""
        return [self.file, self.modality, self.model]


def perceive_tab(context: Context) -> gr.Dropdown:
    """Build the tab; gives the list of models, which is filled later."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            controls = _controls(context.examples.titles())
        with gr.Column(scale=3, min_width=300):
            views = _views()
    outputs = [controls.state, controls.facts, *views]

    async def run_analysis(
        file: str | None, modality: str, model: str, request: gr.Request
    ) -> AsyncIterator[list[Any]]:
        work = partial(analyse_and_draw, _checked(file, modality), modality, model)
        async for update in context.updates("perceive", work, request, _draw, outputs):
            yield update

    async def perceive(
        file: str, modality: str = AUTO, model: str = "default", request: gr.Request | None = None
    ) -> dict[str, Any]:
        """Analyse one recording: labels (with a trained head), vector, axes of the map, time and memory."""
        work = partial(analyse_json, _checked(file, modality), modality, model)
        found: dict[str, Any] = await context.result("perceive", work, request)
        return found

    def take_example(index: int) -> str:
        return str(context.examples.get(context.examples.titles()[index]).path)

    inputs, told = controls.inputs, parts.told_by(controls.state)
    event = gr.on([controls.run.click, controls.file.upload], run_analysis, inputs, outputs, **told, **context.quick)
    chosen = controls.examples.click(take_example, controls.examples, controls.file, **parts.QUIET)
    after = chosen.then(run_analysis, inputs, outputs, **told, **context.quick)
    parts.cancels(controls.cancel, controls.state, [event, after])
    parts.endpoint("perceive", perceive, inputs, **context.quick)
    return controls.model


def _controls(titles: list[str]) -> _Controls:
    file = parts.dropzone("A recording of any kind", "perceive-file")
    with gr.Row():
        kinds = [("find out", AUTO), *((words.kind(name), name) for name in MODALITIES if name != AUTO)]
        modality = gr.Dropdown(kinds, value=AUTO, label="Kind", info="Of the recording", min_width=120)
        model = parts.model_dropdown(min_width=120)
    run, cancel = parts.run_and_cancel("Analyse", "perceive")
    state = parts.status_line("perceive", "Drop a file, or choose an example below.")
    examples = gr.Dataset(
        components=[gr.Textbox(visible=False)], samples=[[title] for title in titles],
        label="Examples", type="index", elem_id="perceive-examples",
    )  # fmt: skip
    return _Controls(file, modality, model, run, cancel, state, examples, parts.html("perceive-facts"))


def _views() -> list[Any]:
    player: dict[str, Any] = {"label": "The recording", "visible": False, "interactive": False}
    return [
        gr.Audio(**player, buttons=["download"]),
        gr.Video(**player, height=300, buttons=["download"]),
        gr.Image(**player, format="png", height=320, buttons=parts.VIEW),
        parts.chart("The recording", "perceive-chart"),
        parts.html("perceive-frames", visible=False),
        parts.figure("Its map, as the network sees it", "perceive-map"),
        parts.html("perceive-labels", words.empty(EMPTY)),
        parts.figure("Evidence for the label", "perceive-evidence"),
        parts.downloads("Vector, map and facts", "perceive-files"),
    ]


def _draw(shown: Shown) -> list[Any]:
    """Values of the status line, the facts and the views, in their order."""
    return [
        status(None, shown.summary),
        shown.facts,
        parts.shown(shown.player if shown.modality == "audio" else None),
        parts.shown(shown.player if shown.modality == "video" else None),
        parts.shown(shown.picture),
        parts.shown(shown.chart),
        parts.shown(shown.frames),
        parts.shown(shown.map_picture),
        shown.labels,
        parts.shown(shown.evidence),
        parts.shown(shown.files),
    ]


def _checked(file: str | None, modality: str) -> Path:
    if not file:
        raise RefusalError("choose a file first")
    if modality not in MODALITIES:
        raise RefusalError(f"the kind must be one of {', '.join(MODALITIES)}")
    return Path(file)
