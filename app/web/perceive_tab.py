"""Perceive: one file of any modality, seen as people see it and as the network does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from unipercept.app.web import showing, words
from unipercept.app.web.jobs import Done, Job, refusal, status
from unipercept.app.web.looking import AUTO, look
from unipercept.app.web.models import known_models, usable_model

if TYPE_CHECKING:
    from unipercept.app.web.context import Context
    from unipercept.app.web.looking import Looked

MODALITIES = [AUTO, "image", "audio", "video", "pointcloud", "timeseries", "weather"]
IDLE = "Drop a file, or choose an example below."


@dataclass(frozen=True)
class Shown:
    """A look with everything drawn: made in the job's thread, so that the server's loop only passes it on."""

    looked: Looked
    player: Path | None
    picture: Any
    frames: list[Any]
    chart: Any
    map_picture: Any
    evidence: Any
    files: list[str]


def perceive_tab(context: Context) -> dict[str, Any]:
    """Build the tab; gives the components that deep links set."""
    view: list[Any] = ["download", "fullscreen"]
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            file = gr.File(label="A recording of any kind", height=150, elem_id="perceive-file")
            with gr.Row():
                modality = gr.Dropdown(MODALITIES, value=AUTO, label="Kind", info="Found by content", min_width=120)
                model = gr.Dropdown(
                    known_models(),
                    value="default",
                    label="Model",
                    info="On this machine",
                    allow_custom_value=True,
                    min_width=120,
                )
            with gr.Row():
                run = gr.Button("Look", variant="primary", min_width=100, elem_id="perceive-run")
                cancel = gr.Button("Cancel", min_width=100, elem_id="perceive-cancel")
            state = gr.HTML(status(None, IDLE), elem_id="perceive-status", apply_default_css=False)
            examples = gr.Dataset(
                components=[gr.Textbox(visible=False)], samples=[[t] for t in context.examples.titles()],
                label="Examples (offline)", type="index", elem_id="perceive-examples",
            )  # fmt: skip
            facts = gr.HTML(elem_id="perceive-facts", apply_default_css=False)
        with gr.Column(scale=3, min_width=300):
            audio = gr.Audio(label="The recording", visible=False, interactive=False, buttons=["download"])
            video = gr.Video(label="The recording", visible=False, interactive=False, height=300, buttons=["download"])
            image = gr.Image(
                label="The recording", visible=False, interactive=False, format="png", height=320, buttons=view
            )
            chart = gr.Plot(label="The recording", visible=False, elem_id="perceive-chart")
            frames = gr.Gallery(
                label="Frames that the network saw",
                visible=False,
                columns=8,
                height=210,
                format="jpeg",
                buttons=["fullscreen"],
            )
            map_view = gr.Image(
                label="Its map, as the network sees it", visible=False, interactive=False, format="png", buttons=view
            )
            labels = gr.HTML(elem_id="perceive-labels", apply_default_css=False)
            evidence = gr.Image(label="What it looked at", visible=False, interactive=False, format="png", buttons=view)
            files = gr.File(
                label="Vector, map and facts",
                visible=False,
                interactive=False,
                file_count="multiple",
                elem_id="perceive-files",
            )
    outputs = [state, facts, audio, video, image, chart, frames, map_view, labels, evidence, files]

    def draw(shown: Shown) -> list[Any]:
        looked = shown.looked
        return [
            status(1.0, f"{looked.modality}, {sum(looked.seconds.values()):.2f} s"),
            words.facts(_facts(looked)),
            gr.update(value=shown.player if looked.modality == "audio" else None, visible=looked.modality == "audio"),
            gr.update(value=shown.player if looked.modality == "video" else None, visible=looked.modality == "video"),
            gr.update(value=shown.picture, visible=shown.picture is not None),
            gr.update(value=shown.chart, visible=shown.chart is not None),
            gr.update(value=shown.frames or None, visible=bool(shown.frames)),
            gr.update(value=shown.map_picture, visible=True),
            _labels(looked),
            gr.update(value=shown.evidence, visible=shown.evidence is not None),
            gr.update(value=shown.files, visible=True),
        ]

    async def run_look(file: str | None, modality: str, model: str, request: gr.Request) -> AsyncIterator[list[Any]]:
        path, chosen = _checked(file, modality, model)
        async for event in context.run("perceive", lambda job: _show(path, modality, chosen, job), request):
            if isinstance(event, Done):
                yield draw(event.value)
            else:
                yield [status(event.share, event.text), *[gr.skip()] * (len(outputs) - 1)]

    async def perceive(
        file: str, modality: str = AUTO, model: str = "default", request: gr.Request | None = None
    ) -> dict[str, Any]:
        """What one recording is: labels (with a trained head), the vector, the map's axes, time and memory."""
        path, chosen = _checked(file, modality, model)
        assert request is not None
        looked: Looked = await context.result("perceive", lambda job: look(path, modality, chosen, job), request)
        return looked.to_dict()

    def take_example(index: int) -> str:
        return str(context.examples.get(context.examples.titles()[index]).path)

    event = gr.on(
        [run.click, file.upload], run_look, [file, modality, model], outputs,
        show_progress="hidden", api_visibility="private", **context.quick,
    )  # fmt: skip
    chosen = examples.click(take_example, examples, file, show_progress="hidden", api_visibility="private")
    after = chosen.then(
        run_look, [file, modality, model], outputs, show_progress="hidden", api_visibility="private", **context.quick
    )
    cancel.click(lambda: status(None, "Stopped."), None, state, cancels=[event, after], api_visibility="private")
    hidden, answer = gr.Button(visible=False), gr.JSON(visible=False)
    hidden.click(perceive, [file, modality, model], answer, api_name="perceive", **context.quick)
    return {"file": file, "inputs": [file, modality, model], "outputs": outputs, "run": run_look}


def _checked(file: str | None, modality: str, model: str) -> tuple[Path, str]:
    if not file:
        raise refusal("choose a file first")
    if modality not in MODALITIES:
        raise refusal(f"the kind must be one of {', '.join(MODALITIES)}")
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
    axes = [
        f"{name} {float(axis.values[0]):,.4g} to {float(axis.values[-1]):,.4g} {axis.unit}".removesuffix(" 1")
        for name, axis in looked.emap.coords.items()
    ]
    memory = "not known on this system" if looked.peak_mb is None else f"{looked.peak_mb:.0f} MB above the start"
    pairs = [
        ("file", f"{looked.path.name}, {words.size(looked.path.stat().st_size)}"),
        ("kind", looked.modality),
        ("model", looked.model),
        ("map", f"{shape} (B×C×H×W); {looked.n_maps} in all"),
        ("axes", "; ".join(axes) or "cells"),
        ("vector", f"{len(looked.embedding.vector)} numbers, length 1"),
        ("time", ", ".join(f"{name} {value:.2f} s" for name, value in looked.seconds.items())),
        ("peak memory", memory),
    ]
    told = [("noticed", "; ".join(map(str, looked.emap.metadata.get("notes", ()))))]
    return pairs + [pair for pair in told if pair[1]]


def _labels(looked: Looked) -> str:
    if looked.labels is None:
        untrained = "" if looked.is_trained else " Its weights are random: alike maps give alike vectors, and no more."
        return words.note(f"No labels: {looked.note}.{untrained}")
    top = looked.labels.top(5)
    return words.bars(list(zip(top.labels, top.scores, strict=True))) + words.note(
        looked.note, good=not looked.is_strange
    )
