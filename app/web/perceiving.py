"""The Perceive tab's work: the analysis of a recording and its drawings, as plain values that need no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unipercept.app.web import showing, words
from unipercept.app.web.cards import usable_model
from unipercept.app.web.job import Job
from unipercept.app.web.looking import AUTO, look
from unipercept.errors import InputError

if TYPE_CHECKING:
    from unipercept.app.web.looking import Looked
    from unipercept.embedding import EmbeddingMap
    from unipercept.results import Labels


@dataclass(frozen=True)
class Shown:
    """A look as the page shows it: pictures, a plotly chart, HTML, and paths of files."""

    modality: str
    summary: str
    facts: str
    player: Path | None
    picture: Any
    frames: str | None
    chart: Any
    map_picture: Any
    labels: str
    evidence: Any
    files: list[str]


def look_and_tell(path: Path, modality: str, model: str, job: Job) -> dict[str, Any]:
    """What the API gives; see `look`."""
    return look(path, modality, usable_model(model), job).to_dict()


def look_and_draw(path: Path, modality: str, model: str, job: Job) -> Shown:
    """What the page shows; see `look`."""
    looked = look(path, modality, usable_model(model), job)
    files = [str(written) for written in looked.write(job.folder)]
    return Shown(
        looked.modality, f"{looked.modality}, {sum(looked.seconds.values()):.2f} s", words.facts(_facts(looked)),
        showing.player(looked, job.folder), showing.picture(looked), showing.frames(looked), showing.chart(looked),
        showing.map_picture(looked), _labels(looked), showing.evidence_picture(looked), files,
    )  # fmt: skip


@dataclass(frozen=True)
class Named:
    """What a visitor's own model says of a recording: HTML and a picture."""

    summary: str
    labels: str
    evidence: Any


def name_and_tell(path: Path, run: Path, job: Job) -> dict[str, Any]:
    """What the API gives of a recording that a run is tried on."""
    return _named(path, run, job).to_dict()


def name_and_draw(path: Path, run: Path, job: Job) -> Named:
    """What the page shows of it."""
    looked = _named(path, run, job)
    assert looked.labels is not None
    return Named(f"{path.name}: {looked.labels.labels[0]}", _bars(looked.labels), showing.evidence_picture(looked))


def _named(path: Path, run: Path, job: Job) -> Looked:
    looked = look(path, AUTO, str(run), job)
    if looked.labels is None:
        raise InputError(f"this is {looked.modality}, and the model knows another kind of recording")
    return looked


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
    return _bars(looked.labels) + words.note(looked.note, "warning" if looked.is_strange else "good")


def _bars(labels: Labels) -> str:
    top = labels.top(5)
    found = list(zip(top.labels, top.scores, strict=True))
    return f"<p><b>Most probable</b> of {len(labels.labels)} classes</p>{words.bars(found)}"
