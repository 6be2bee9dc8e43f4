"""The Perceive tab's work: the analysis of a recording and its drawings, as plain values that need no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unipercept.app.web import showing, words
from unipercept.app.web.job import Job
from unipercept.app.web.models_work import usable_model
from unipercept.app.web.perceive_work import AUTO, analyse
from unipercept.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from unipercept.app.web.perceive_work import Analysis
    from unipercept.embedding import EmbeddingMap


@dataclass(frozen=True)
class Shown:
    """A look as the page shows it: paths of pictures, a plotly chart, HTML, and paths of files."""

    modality: str
    summary: str
    facts: str
    player: Path | None
    picture: str | None
    frames: str | None
    chart: Any
    map_picture: str | None
    labels: str
    evidence: str | None
    files: list[str]


def analyse_json(path: Path, modality: str, model: str, job: Job) -> dict[str, Any]:
    """The result for the API; see `analyse`."""
    return analyse(path, modality, usable_model(model), job).to_dict()


def analyse_and_draw(path: Path, modality: str, model: str, job: Job) -> Shown:
    """The result for the page; see `analyse`."""
    analysis = analyse(path, modality, usable_model(model), job)
    files = [str(written) for written in analysis.write(job.folder)]
    kept = partial(_kept, analysis, job.folder)
    return Shown(
        analysis.modality, f"{words.kind(analysis.modality)}, {sum(analysis.seconds.values()):.2f} s", words.facts(_facts(analysis)),
        showing.player(analysis, job.folder), kept("picture", showing.picture(analysis)), showing.frames(analysis), showing.chart(analysis),
        kept("map", showing.map_picture(analysis)), _labels(analysis) + _commands(analysis, modality),
        kept("evidence", showing.evidence_picture(analysis)), files,
    )  # fmt: skip


@dataclass(frozen=True)
class Named:
    """Labels of a recording by a visitor's own model: HTML and the path of a picture."""

    summary: str
    labels: str
    evidence: str | None


def name_json(path: Path, run: Path, job: Job) -> dict[str, Any]:
    """The result for the API when a run is tried on a recording."""
    return _named(path, run, job).to_dict()


def name_and_draw(path: Path, run: Path, job: Job) -> Named:
    """The same for the page."""
    analysis = _named(path, run, job)
    assert analysis.labels is not None
    return Named(
        f"{path.name}: {analysis.labels.labels[0]}",
        _bars(analysis),
        _kept(analysis, job.folder, "evidence", showing.evidence_picture(analysis)),
    )


def _named(path: Path, run: Path, job: Job) -> Analysis:
    analysis = analyse(path, AUTO, str(run), job)
    if analysis.labels is None:
        raise InputError(f"this is {words.kind(analysis.modality)}, and the model knows another kind of recording")
    return analysis


def _kept(analysis: Analysis, folder: Path, what: str, picture: Image | None) -> str | None:
    """The path of a picture as a file, whose name one can tell from others in a folder of downloads."""
    if picture is None:
        return None
    path = folder / f"{analysis.stem}-{what}.png"
    picture.save(path)
    return str(path)


def _facts(analysis: Analysis) -> list[tuple[str, str]]:
    shape = " × ".join(str(n) for n in analysis.emap.tensor.shape[1:])
    maps = f"{analysis.n_maps:,} maps" if analysis.n_maps > 1 else "one map"
    memory = "not known on this system" if analysis.peak_mb is None else f"{analysis.peak_mb:.0f} MB above the start"
    pairs = [
        ("file", f"{analysis.path.name}, {words.size(analysis.path.stat().st_size)}"),
        ("kind", words.kind(analysis.modality)),
        ("model", analysis.model),
        ("map", f"{maps} of {shape} (channels × rows × columns)"),
        ("axes", "; ".join(_axis(analysis.emap, name) for name in analysis.emap.coords) or "cells"),
        ("vector", f"{len(analysis.embedding.vector)} numbers, length 1"),
        ("time", ", ".join(f"{name} {value:.2f} s" for name, value in analysis.seconds.items())),
        ("peak memory", memory),
    ]
    told = [("noticed", "; ".join(map(str, analysis.emap.metadata.get("notes", ()))))]
    return pairs + [pair for pair in told if pair[1]]


def _axis(emap: EmbeddingMap, name: str) -> str:
    """An axis in words: frequency 48.1 to 7,673 Hz."""
    from unipercept.axis_words import readable

    axis = readable(emap, name)
    return f"{name} {axis.text(0)} to {axis.text(-1)} {axis.unit}".strip()


def _labels(analysis: Analysis) -> str:
    if analysis.labels is None:
        untrained = (
            "" if analysis.is_trained else " Its weights are random: similar maps give similar vectors, no more."
        )
        there = " The Series tab forecasts it and finds anomalies." if analysis.modality == "timeseries" else ""
        return words.note(f"No labels: {analysis.note}.{untrained}{there}")
    return _bars(analysis) + words.note(analysis.note, "plain" if analysis.notice else "good")


def _commands(analysis: Analysis, modality: str) -> str:
    """What gives the labels, the evidence and the vector without the page."""
    file, stem = words.local(analysis.path.name), words.local(analysis.stem)
    read_as = [] if modality == AUTO else ["--modality", modality]
    lines = [["encode", file, *read_as, "-m", analysis.embedding.model, "-o", f"{stem}.parquet"]]
    if analysis.labels is not None:
        lines[:0] = [
            ["perceive", file, *read_as, "-m", analysis.model],
            ["explain", file, "-m", analysis.model, "-o", f"{stem}-evidence.png"],
        ]
    return words.commands(*lines)


def _bars(analysis: Analysis) -> str:
    """The labels with their probabilities, below the notice where there is one."""
    assert analysis.labels is not None
    top = analysis.labels.top(5)
    found = list(zip(top.labels, top.scores, strict=True))
    if analysis.notice:
        head, told = words.note(analysis.notice), "Closest"
    else:
        head, told = "", "Most probable"
    head += words.heading(told, f"of its {len(analysis.labels.labels)} classes")
    return head + words.bars(found, doubtful=bool(analysis.notice))
