"""The report of a run: one self-contained HTML file."""

from __future__ import annotations

import io
import shlex
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unipercept.atomic import atomic_path
from unipercept.datasets.base import LabelledSet
from unipercept.embedding import EmbeddingMap
from unipercept.page import facts, figure, page, table
from unipercept.perception.packs import MapMaker, Packs, make_pipeline, to_raw
from unipercept.perception.scores import Scores
from unipercept.perception.settings import MapSettings
from unipercept.results import BLUE, GREY, ORANGE
from unipercept.results.drawing import plain_figure, png, short_dates
from unipercept.train.history import METRICS, read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_MISTAKES = 12
MAX_NAMED = 30  # classes whose names fit beside a confusion matrix
MAX_LINES = 6  # columns of a series that are drawn


def write_report(
    folder: Path,
    called: str,
    job: Mapping[str, Any],
    scores: Mapping[str, Any],
    part: str,
    found: Scores,
    before: Scores,
    packs: Packs,
    samples: LabelledSet,
    maps: MapSettings,
) -> Path:
    """Write report.html into the run's folder.

    Args:
        called: the folder's name in the commands that are shown.
        part: the part that `found` is of.
        found, before: with and without the calibration.
        packs, samples: the recordings of that part, decoded and as they are, for the pictures of mistakes.
    """
    names = list(job["class_names"])
    score = scores[part]
    title = f"{Path(str(job['source'])).name}: {len(names)} classes, {maps.modality}"
    lead = (
        f"<div class=soft>{escape(job['split'])} · {_counts(job)} · licence of the data: {escape(job['licence'])}</div>"
        f"<p><span class=big>{100 * score['accuracy']:.2f} %</span> accuracy on {score['n']:,} {part} recordings, "
        f"95 % interval {100 * score['accuracy_95_low']:.1f} to {100 * score['accuracy_95_high']:.1f} %; "
        f"mean over classes {100 * score['mean_class_accuracy']:.2f} %; {escape(scores['protocol'])}."
        f"{'' if part == 'test' else ' They chose the weights too: new recordings will be classified less well.'}</p>"
    )
    body = [
        "<h2>Use it</h2>",
        f"<pre>{escape(_commands(called, job, maps))}</pre>",
        "<h2>Training</h2>",
        _curves(folder),
        "<h2>Confusion of classes</h2>",
        f"<div class=natural>{figure(_png(_confusion(found, names)), 'confusion matrix')}</div>",
        _class_table(found, names),
        "<h2>Calibration of the probabilities</h2>",
        _calibration(scores, part, found, before),
        "<h2>Worst mistakes</h2>",
        _mistakes(found, packs, samples, maps, names),
        "<h2>Settings</h2>",
        _settings(job),
    ]
    path = folder / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page(title, lead, "".join(body)), encoding="utf-8")
    return path


def _counts(job: Mapping[str, Any]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in job["counts"].items())


def _commands(run: str, job: Mapping[str, Any], maps: MapSettings) -> str:
    suffix = {"image": "png", "audio": "wav", "video": "mp4", "pointcloud": "ply", "timeseries": "csv"}[maps.modality]
    source = str(job["source"]).removesuffix(".zip")  # an archive sent to the web demo is a folder once it is unpacked
    data = ["--data", str(job["data"])] if job["data"] else []
    commands = (
        ["perceive", f"new.{suffix}", "--model", run],
        ["evaluate", run, source, *data],
        ["encode", "archive/", "--model", run, "-o", "vectors.parquet"],
    )
    return "\n".join(f"unipercept {shlex.join(words)}" for words in commands)


def _curves(folder: Path) -> str:
    path = folder / "fit" / METRICS
    if not path.is_file():
        return "<p>A linear probe is solved directly, so there are no learning curves.</p>"
    records = read_metrics(path)
    is_point = len({r.step for r in records if r.split == "validation"}) == 1
    marker = "o" if is_point else None  # a line through one point is invisible
    drawn = plain_figure((8.6, 2.9))
    left, right = drawn.subplots(1, 2)
    for split, colour in (("train", GREY), ("validation", BLUE)):
        rows = [(r.step, r.value) for r in records if r.split == split and r.name == "loss"]
        if rows:
            width = 1 if split == "train" else 1.8
            left.plot(*zip(*rows, strict=True), color=colour, linewidth=width, marker=marker, label=split)
    rows = [(r.step, 100 * r.value) for r in records if r.name == "accuracy"]
    if rows:
        right.plot(*zip(*rows, strict=True), color=BLUE, linewidth=1.8, marker=marker)
    left.set(xlabel="step", ylabel="loss", title="Loss (train: with augmentation)")
    right.set(xlabel="step", ylabel="accuracy, %", title="Validation accuracy, averaged weights")
    left.legend(frameon=False)
    return figure(_png(drawn), "curves")


def _confusion(found: Scores, names: list[str]) -> Figure:
    counts = found.confusion().numpy()
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    side = min(8.4, 2.4 + 0.42 * len(names))
    drawn = plain_figure((side + 1.2, side))
    axes = drawn.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= MAX_NAMED:
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
        axes.set_yticks(range(len(names)), names)
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=colour)
    axes.set(xlabel="predicted", ylabel="truth")
    drawn.colorbar(image, ax=axes, label="share of the class", shrink=0.7)
    return drawn


def _class_table(found: Scores, names: list[str]) -> str:
    rows = sorted(zip(names, found.per_class(), strict=True), key=lambda pair: pair[1]["f1"])
    cells = [
        (name, f"{row['support']:g}", *(f"{100 * row[key]:.1f}" for key in ("recall", "precision", "f1")))
        for name, row in rows
        if row["support"]
    ]
    return table(("class (worst first)", "recordings", "recall %", "precision %", "F1 %"), cells)


def _calibration(scores: Mapping[str, Any], part: str, found: Scores, before: Scores) -> str:
    drawn = plain_figure((5.6, 3.4))
    axes = drawn.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    for each, colour, label in ((before, ORANGE, "as trained"), (found, BLUE, "calibrated")):
        bins = each.reliability()
        sizes = [12 + 140 * count / len(each.targets) for _, _, count in bins]
        axes.plot([c for c, _, _ in bins], [a for _, a, _ in bins], color=colour, linewidth=0.5, alpha=0.6)
        axes.scatter([c for c, _, _ in bins], [a for _, a, _ in bins], s=sizes, color=colour)
        axes.plot([], [], "o", color=colour, label=label)  # the legend's dot, of one size
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(-0.05, 1.05))
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    score = scores[part]
    text = (
        f"<p>Logits are divided by a temperature of {scores['temperature']:.3f}, chosen on validation. Expected calibration "
        f"error on {part}: {100 * score['expected_calibration_error_before']:.2f} % as trained, "
        f"<b>{100 * score['expected_calibration_error']:.2f} %</b> calibrated (a perfectly calibrated model would "
        f"show {100 * score['expected_calibration_error_by_chance']:.2f} % on as many recordings); negative log-likelihood "
        f"{before.negative_log_likelihood():.3f} and {score['negative_log_likelihood']:.3f} nats. "
        "The size of a dot is the share of recordings in its bin.</p>"
    )
    return f"<div class=natural>{figure(_png(drawn), 'reliability')}</div>{text}"


def _mistakes(found: Scores, packs: Packs, samples: LabelledSet, maps: MapSettings, names: list[str]) -> str:
    wrong = torch.nonzero(found.predicted != found.targets).flatten()
    if not len(wrong):
        return "<p>None: every recording was classified correctly.</p>"
    confidence = found.probabilities[wrong].amax(dim=1)
    cards = []
    for position in wrong[confidence.argsort(descending=True)][:N_MISTAKES].tolist():
        truth, said = int(found.targets[position]), int(found.predicted[position])
        chance = found.probabilities[position]
        cards.append(
            f"<article>{figure(_drawn(packs, position, samples, maps), packs.ids[position])}"
            f"<b>{escape(names[said])}</b> {100 * float(chance[said]):.0f} %, but it is <b>{escape(names[truth])}</b> "
            f"({100 * float(chance[truth]):.0f} %)<br><span class=soft>{escape(packs.ids[position])}</span></article>"
        )
    grid = "grid" if maps.modality in ("audio", "timeseries") else "grid small"  # plots with axes need more room
    return f"<p>{len(wrong)} of {len(found.targets)} are wrong; the most confident first.</p><div class='{grid}'>{''.join(cards)}</div>"


def _drawn(packs: Packs, position: int, samples: LabelledSet, maps: MapSettings) -> bytes:
    """A recording as the network sees it (picture, frames, spectrogram or rendering), a series as curves; PNG bytes."""
    if maps.modality == "timeseries":
        return _curves_of(samples.read(samples.ids.index(packs.ids[position])), maps)
    row = int(torch.nonzero(packs.recording == position)[0])
    made, share = MapMaker(maps)(packs.values[row : row + 1], packs.lengths[row : row + 1])
    if maps.modality == "audio":
        n_real = max(1, round(float(share) * made.shape[3]))
        return _spectrogram(made[0, 0, :, :n_real], maps)
    if maps.modality == "pointcloud":
        made = torch.cat(list(made[:, :3]), dim=2)[None]
    else:
        made = packs.values[row : row + 1].float() / 255
    is_picture = maps.modality in ("image", "video")
    metadata = {"mean": [0.0] * 3, "std": [1.0] * 3} if is_picture else {}
    picture = EmbeddingMap(made, maps.modality, metadata=metadata).to_image()
    scale = max(1, 256 // max(picture.size))
    buffer = io.BytesIO()
    picture.resize((picture.width * scale, picture.height * scale), 0).save(buffer, "PNG")
    return buffer.getvalue()


def _spectrogram(values: Tensor, maps: MapSettings) -> bytes:
    drawn = plain_figure((4.8, 2.0))
    axes = drawn.subplots()
    hop = maps.pipeline_config().hop_length_ms / 1000
    axes.imshow(
        values.numpy(), origin="lower", aspect="auto", cmap="magma", extent=(0, values.shape[1] * hop, 0, len(values))
    )
    axes.set(xlabel="s", ylabel="mel bin")
    return _png(drawn)


def _curves_of(recording: Any, maps: MapSettings) -> bytes:
    """The first columns of a series, each on its own scale."""
    series = to_raw(make_pipeline(maps), recording, "timeseries")
    drawn = plain_figure((4.8, 2.0))
    axes = drawn.subplots()
    for column in range(min(series.values.shape[1], MAX_LINES)):
        values = np.where(series.observed[:, column], series.values[:, column], np.nan)
        spread = np.nanstd(values) if series.values.shape[1] > 1 else 1.0
        axes.plot(series.time, values / (spread or 1.0), linewidth=1)
    axes.tick_params(labelsize=7)
    short_dates(axes)
    return _png(drawn)


def _settings(job: Mapping[str, Any]) -> str:
    rows = [(f"{group}.{key}", value) for group in ("maps", "recipe", "versions") for key, value in job[group].items()]
    rows = [("source", job["source"]), ("start", job["start"] or "scratch"), ("tuning", job["tuning"]), *rows]
    cells = facts([(key, str(value)) for key, value in rows])
    return f"<details><summary>All settings ({len(rows)})</summary>{cells}</details>"


def _png(drawn: Figure) -> bytes:
    for axes in drawn.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return png(drawn)
