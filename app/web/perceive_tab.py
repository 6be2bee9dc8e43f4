"""Perceive: one file of any modality, seen as people see it and as the network does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from unipercept.app.web import parts, words
from unipercept.app.web.jobs import RefusalError, status
from unipercept.app.web.perceive_drawing import Shown, analyse_and_draw, analyse_json
from unipercept.app.web.perceive_work import AUTO

if TYPE_CHECKING:
    from unipercept.app.web.context import Context

MODALITIES = [AUTO, "image", "audio", "video", "pointcloud", "timeseries", "weather"]
EMPTY = (
    "The recording itself, its map as the network sees it, labels if a head is trained, the evidence for them, "
    "time, memory and the vector appear here."
)


def perceive_tab(context: Context) -> gr.Dropdown:
    """Build the tab; gives the list of models, which is filled later."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            file = parts.dropzone("A recording of any kind", "perceive-file")
            with gr.Row():
                modality = gr.Dropdown(MODALITIES, value=AUTO, label="Kind", info="Found by content", min_width=120)
                model = parts.model_dropdown(min_width=120)
            run, cancel = parts.run_and_cancel("Analyse", "perceive")
            state = parts.status_line("perceive", "Drop a file, or choose an example below.")
            examples = gr.Dataset(
                components=[gr.Textbox(visible=False)], samples=[[t] for t in context.examples.titles()],
                label="Examples", type="index", elem_id="perceive-examples",
            )  # fmt: skip
            facts = parts.html("perceive-facts")
        with gr.Column(scale=3, min_width=300):
            audio = gr.Audio(label="The recording", visible=False, interactive=False, buttons=["download"])
            video = gr.Video(label="The recording", visible=False, interactive=False, height=300, buttons=["download"])
            image = gr.Image(
                label="The recording", visible=False, interactive=False, format="png", height=320, buttons=parts.VIEW
            )
            chart = parts.chart("The recording", "perceive-chart")
            frames = parts.html("perceive-frames", visible=False)
            map_view = parts.figure("Its map, as the network sees it", "perceive-map")
            labels = parts.html("perceive-labels", words.empty(EMPTY))
            evidence = parts.figure("Evidence for the label", "perceive-evidence")
            files = parts.downloads("Vector, map and facts", "perceive-files")
    inputs = [file, modality, model]
    outputs = [state, facts, audio, video, image, chart, frames, map_view, labels, evidence, files]

    def draw(shown: Shown) -> list[Any]:
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

    async def run_analysis(
        file: str | None, modality: str, model: str, request: gr.Request
    ) -> AsyncIterator[list[Any]]:
        work = partial(analyse_and_draw, _checked(file, modality), modality, model)
        async for update in context.updates("perceive", work, request, draw, outputs):
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

    event = gr.on([run.click, file.upload], run_analysis, inputs, outputs, **parts.told_by(state), **context.quick)
    chosen = examples.click(take_example, examples, file, **parts.QUIET)
    after = chosen.then(run_analysis, inputs, outputs, **parts.told_by(state), **context.quick)
    parts.cancels(cancel, state, [event, after])
    parts.endpoint("perceive", perceive, inputs, **context.quick)
    return model


def _checked(file: str | None, modality: str) -> Path:
    if not file:
        raise RefusalError("choose a file first")
    if modality not in MODALITIES:
        raise RefusalError(f"the kind must be one of {', '.join(MODALITIES)}")
    return Path(file)
