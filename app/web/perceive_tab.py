"""Perceive: one file of any modality, seen as people see it and as the network does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from unipercept.app.web import parts, showing, words
from unipercept.app.web.jobs import Job, RefusalError, status
from unipercept.app.web.looking import AUTO, look
from unipercept.app.web.models import model_dropdown, usable_model

if TYPE_CHECKING:
    from unipercept.app.web.context import Context
    from unipercept.app.web.looking import Looked
    from unipercept.embedding import EmbeddingMap

MODALITIES = [AUTO, "image", "audio", "video", "pointcloud", "timeseries", "weather"]
EMPTY = (
    "The recording itself, its map as the network sees it, labels where a head is trained, what it looked at, "
    "time, memory and the vector appear here."
)


@dataclass(frozen=True)
class Shown:
    """A look with everything drawn: made in the job's thread, so that the server's loop only passes it on."""

    looked: Looked
    player: Path | None
    picture: Any
    frames: str | None
    chart: Any
    map_picture: Any
    evidence: Any
    files: list[str]


def perceive_tab(context: Context) -> gr.Dropdown:
    """Build the tab; gives the list of models, which is filled later."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            file = parts.dropzone("A recording of any kind", "perceive-file")
            with gr.Row():
                modality = gr.Dropdown(MODALITIES, value=AUTO, label="Kind", info="Found by content", min_width=120)
                model = model_dropdown(min_width=120)
            run, cancel = parts.run_and_cancel("Look", "perceive")
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
            evidence = parts.figure("What it looked at", "perceive-evidence")
            files = parts.downloads("Vector, map and facts", "perceive-files")
    inputs = [file, modality, model]
    outputs = [state, facts, audio, video, image, chart, frames, map_view, labels, evidence, files]

    def draw(shown: Shown) -> list[Any]:
        looked = shown.looked
        return [
            status(None, f"{looked.modality}, {sum(looked.seconds.values()):.2f} s"),
            words.facts(_facts(looked)),
            parts.shown(shown.player if looked.modality == "audio" else None),
            parts.shown(shown.player if looked.modality == "video" else None),
            parts.shown(shown.picture),
            parts.shown(shown.chart),
            parts.shown(shown.frames),
            parts.shown(shown.map_picture),
            _labels(looked),
            parts.shown(shown.evidence),
            parts.shown(shown.files),
        ]

    async def run_look(file: str | None, modality: str, model: str, request: gr.Request) -> AsyncIterator[list[Any]]:
        path, chosen = _checked(file, modality, model)
        work = lambda job: _show(path, modality, chosen, job)  # noqa: E731
        async for update in context.updates("perceive", work, request, draw, outputs):
            yield update

    async def perceive(
        file: str, modality: str = AUTO, model: str = "default", request: gr.Request | None = None
    ) -> dict[str, Any]:
        """What one recording is: labels (with a trained head), the vector, the map's axes, time and memory."""
        path, chosen = _checked(file, modality, model)
        looked: Looked = await context.result("perceive", lambda job: look(path, modality, chosen, job), request)
        return looked.to_dict()

    def take_example(index: int) -> str:
        return str(context.examples.get(context.examples.titles()[index]).path)

    event = gr.on([run.click, file.upload], run_look, inputs, outputs, **parts.told_by(state), **context.quick)
    chosen = examples.click(take_example, examples, file, **parts.QUIET)
    after = chosen.then(run_look, inputs, outputs, **parts.told_by(state), **context.quick)
    parts.cancels(cancel, state, [event, after])
    parts.endpoint("perceive", perceive, inputs, **context.quick)
    return model


def _checked(file: str | None, modality: str, model: str) -> tuple[Path, str]:
    if not file:
        raise RefusalError("choose a file first")
    if modality not in MODALITIES:
        raise RefusalError(f"the kind must be one of {', '.join(MODALITIES)}")
    return Path(file), usable_model(model)


def _show(path: Path, modality: str, model: str, job: Job) -> Shown:
    looked = look(path, modality, model, job)
    files = [str(written) for written in looked.write(job.folder)]
    return Shown(
        looked, showing.player(looked, job.folder), showing.picture(looked), showing.frames(looked), showing.chart(looked),
        showing.map_picture(looked), showing.evidence_picture(looked), files,
    )  # fmt: skip


def _facts(looked: Looked) -> list[tuple[str, str]]:
    shape = " × ".join(str(n) for n in looked.emap.tensor.shape)
    memory = "not known on this system" if looked.peak_mb is None else f"{looked.peak_mb:.0f} MB above the start"
    pairs = [
        ("file", f"{looked.path.name}, {words.size(looked.path.stat().st_size)}"),
        ("kind", looked.modality),
        ("model", looked.model),
        ("map", f"{shape} (B×C×H×W); {looked.n_maps} in all"),
        ("axes", "; ".join(_axis(looked.emap, name) for name in looked.emap.coords) or "cells"),
        ("vector", f"{len(looked.embedding.vector)} numbers, length 1"),
        ("time", ", ".join(f"{name} {value:.2f} s" for name, value in looked.seconds.items())),
        ("peak memory", memory),
    ]
    told = [("noticed", "; ".join(map(str, looked.emap.metadata.get("notes", ()))))]
    return pairs + [pair for pair in told if pair[1]]


def _axis(emap: EmbeddingMap, name: str) -> str:
    """An axis in words: frequency 48.1 to 7,673 Hz."""
    from unipercept.axis_words import readable

    axis = readable(emap, name)
    return f"{name} {axis.text(0)} to {axis.text(-1)} {axis.unit}".strip()


def _labels(looked: Looked) -> str:
    if looked.labels is None:
        untrained = "" if looked.is_trained else " Its weights are random: alike maps give alike vectors, and no more."
        there = " The Series tab forecasts it and finds what is odd." if looked.modality == "timeseries" else ""
        return words.note(f"No labels: {looked.note}.{untrained}{there}")
    top = looked.labels.top(5)
    return (
        f"<p><b>Most probable</b> of {len(looked.labels.labels)} classes</p>"
        + words.bars(list(zip(top.labels, top.scores, strict=True)))
        + words.note(looked.note, "warning" if looked.is_strange else "good")
    )
