"""The offline demo: six kinds of recordings through the default model, its accuracy on recordings with known
labels, a forecast, and the report.
"""

from __future__ import annotations

import csv
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch

from unipercept.api import pipeline
from unipercept.app.memory import PeakMemory
from unipercept.app.tour.drawing import draw_map, draw_overview, draw_recording, png_bytes
from unipercept.app.tour.forecast import run_forecast
from unipercept.app.tour.inputs import DemoInput, demo_inputs, forecast_recording
from unipercept.app.tour.known import SETS, Answer, ask
from unipercept.atomic import atomic_path
from unipercept.embedding import MODALITIES, EmbeddingMap
from unipercept.errors import InputError, UniperceptError, one_line
from unipercept.forecasting.forecast import ForecastResult
from unipercept.model_cards import UNTRAINED, model_card
from unipercept.page import facts, figure, page, table
from unipercept.pipelines.base import pool_vector

Tell = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Outcome:
    """The outcome for one recording."""

    item: DemoInput
    model: str
    emap: EmbeddingMap
    n_maps: int
    vector: torch.Tensor
    seconds: dict[str, float]  # read, embed, network
    peak_mb: float | None
    picture: bytes
    map_picture: bytes
    said: tuple[str, ...]


def run(output: Path, tell: Tell = lambda line: None) -> list[str]:
    """Write report.html and what it shows into `output`.

    Args:
        tell: called with a line for each step.

    Returns:
        A line for each part that failed; empty where all went well.

    Raises:
        InputError: the folder cannot be made.
    """
    began = time.perf_counter()
    try:
        (output / "maps").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {output}: {one_line(error)}") from error
    outcomes: list[Outcome] = []
    failures: list[str] = []
    inputs = demo_inputs(output / "inputs")
    n_steps = len(inputs) + 2
    for number, item in enumerate(inputs, 1):
        tell(f"[{number}/{n_steps}] {item.modality}: {item.title} ({item.path.name})")
        try:
            outcomes.append(_analysed(item))
        except UniperceptError as error:
            failures.append(f"{item.title}: {one_line(error)}")
            tell(f"    failed: {one_line(error)}")
    tell(f"[{n_steps - 1}/{n_steps}] asking the model about recordings whose truth is known")
    answers: list[Answer] = []
    try:
        answers = ask(output / "inputs")
    except UniperceptError as error:
        failures.append(f"what the heads know: {one_line(error)}")
        tell(f"    failed: {one_line(error)}")
    tell(f"[{n_steps}/{n_steps}] forecasting a saxophone's pressure wave")
    forecast: ForecastResult | None = None
    try:
        forecast = run_forecast(forecast_recording())
    except UniperceptError as error:
        failures.append(f"the forecast: {one_line(error)}")
        tell(f"    failed: {one_line(error)}")
    _write_files(output, outcomes, forecast)
    with atomic_path(output / "report.html") as temporary:
        temporary.write_text(
            _report(outcomes, answers, forecast, failures, time.perf_counter() - began), encoding="utf-8"
        )
    return failures


def _analysed(item: DemoInput) -> Outcome:
    pipe = pipeline(item.modality, device="cpu")
    assert pipe.model is not None
    memory = PeakMemory()
    start = time.perf_counter()
    raw = pipe.read(item.path)
    seconds = {"read": time.perf_counter() - start, "embed": 0.0, "network": 0.0}
    pooled, first_piece, first_map, n_maps = [], None, None, 0
    mark = time.perf_counter()
    for piece in pipe.split(raw):
        seconds["read"] += time.perf_counter() - mark
        mark = time.perf_counter()
        emap = pipe.embed(piece)
        seconds["embed"] += time.perf_counter() - mark
        mark = time.perf_counter()
        pooled.append((pipe.model.pooled(emap), emap.real_share()))
        seconds["network"] += time.perf_counter() - mark
        n_maps += len(emap)
        if first_map is None:
            first_map, first_piece = emap, piece
        mark = time.perf_counter()
    vector = pool_vector(pooled)
    peak = memory.rise_mb()
    assert first_map is not None
    shown = raw if item.modality in ("image", "audio", "timeseries") else first_piece
    picture = png_bytes(draw_recording(item.modality, _with_source(shown, item), first_map))
    said = tuple(first_map.metadata.get("notes", ()))
    return Outcome(
        item, pipe.model.name, first_map, n_maps, vector, seconds, peak, picture, png_bytes(draw_map(first_map)), said
    )


def _with_source(raw: Any, item: DemoInput) -> Any:
    """The recording with its path, for drawing, if it does not hold the path itself."""
    if item.modality not in ("image", "audio"):
        return raw

    class Source:
        source = str(item.path)

    return Source


def _write_files(output: Path, outcomes: list[Outcome], forecast: ForecastResult | None) -> None:
    for one in outcomes:
        one.emap.save(output / "maps" / f"{one.item.modality}-{one.item.path.stem}.safetensors")
    rows = [
        [one.item.path.name, one.item.modality, one.model, *(f"{x:.9g}" for x in one.vector.tolist())]
        for one in outcomes
    ]
    width = len(outcomes[0].vector) if outcomes else 0
    _write_csv(output / "vectors.csv", ["file", "modality", "model", *(f"v{i}" for i in range(width))], rows)
    first_of_kind = {one.item.modality: one for one in reversed(outcomes)}
    columns = [
        (kind, first_of_kind[kind].picture, first_of_kind[kind].map_picture)
        for kind in MODALITIES
        if kind in first_of_kind
    ]
    if columns:
        with atomic_path(output / "overview.png") as temporary:
            temporary.write_bytes(png_bytes(draw_overview(columns)))
    if forecast is not None:
        forecast.save(output / "forecast.csv")
        forecast.save(output / "forecast.png")


def _write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def _report(
    outcomes: list[Outcome], answers: list[Answer], forecast: ForecastResult | None, failures: list[str], seconds: float
) -> str:
    kinds = len({one.item.modality for one in outcomes})
    card = model_card("default")
    untrained = sorted({one.item.modality for one in outcomes if one.model == UNTRAINED})
    lead = (
        f"<p>{len(outcomes)} recordings of {kinds} modalities were processed by <code>{card.name}</code>, the default model: one large-kernel ConvNet "
        f"({card.architecture}, {card.millions:.1f} million parameters) with one stem per modality, on the CPU of this machine in "
        f"{seconds:.0f} seconds. Each recording was converted to a map with physical axes and encoded as an embedding.</p>"
        f'<p class="notice"><strong>Training data:</strong> {escape(card.trained_on)}. The recordings below show none of its classes: their '
        "embeddings are features transferred from those data sets. The heads are tested further down, on recordings of their classes."
        + (f" {escape(' and '.join(untrained).capitalize())} is encoded by random weights." if untrained else "")
        + "</p>"
    )
    body = "<h2>Recordings and their maps</h2>"
    body += '<div class="grid">' + "".join(_card(one) for one in outcomes) + "</div>"
    if failures:
        body += "<h2>Failures</h2>" + table(["part"], [[line] for line in failures])
    if answers:
        body += _known_section(answers)
    body += (_forecast_section(forecast) if forecast is not None else "") + _machine_section()
    return page("One network, six modalities", lead, body)


def _card(one: Outcome) -> str:
    shape = " × ".join(str(n) for n in one.emap.tensor.shape)
    timing = ", ".join(f"{name} {value:.2f} s" for name, value in one.seconds.items())
    peak = "not known on this system" if one.peak_mb is None else f"{one.peak_mb:.0f} MB above the start"
    pairs = [("file", f"{one.item.path.name}, {_size(one.item.path)}"), ("read", _summary(one))]
    pairs += [
        ("map", f"{shape}; {one.n_maps} in all"),
        ("embedding", f"{len(one.vector)} numbers by {one.model}"),
        ("time", timing),
        ("peak memory", peak),
    ]
    pairs += [("notes", "; ".join(one.said))] if one.said else []
    pictures = figure(one.picture, f"{one.item.title}, the recording", "the recording")
    channels = one.emap.tensor.shape[1]
    shown = f", the first of {channels} channels" if channels > 3 else ""
    pictures += figure(one.map_picture, f"{one.item.title}, its map", f"its map, the input of the network{shown}")
    heading = f'<h3>{one.item.title}</h3><div class="soft">{one.item.modality} · {one.item.origin}</div>'
    return f'<article>{heading}<div class="pair">{pictures}</div>{facts(pairs)}</article>'


def _summary(one: Outcome) -> str:
    data = one.emap.metadata
    told = {
        "image": ("original_width", "original_height", "width", "height", "mode", "format"),
        "audio": ("source_sample_rate", "sample_rate", "channels", "duration_seconds", "format", "reader"),
        "video": ("width", "height", "frame_rate", "duration_seconds", "reader"),
        "pointcloud": ("format", "n_triangles", "n_points"),
        "timeseries": ("n_steps", "variables", "start_time", "period"),
        "weather": ("channels", "time", "wraps"),
    }[one.item.modality]
    parts = [f"{key.replace('_', ' ').removeprefix('n ')} {_plain(data[key])}" for key in told if key in data]
    return "; ".join(parts)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value[:6])) + (" …" if len(value) > 6 else "")
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _known_section(answers: list[Answer]) -> str:
    right = sum(one.said == one.truth for one in answers)
    rows = [
        [
            one.path.name,
            one.head,
            one.truth,
            one.said,
            f"{100 * one.score:.1f} %",
            ("right" if one.said == one.truth else "wrong") + (", out of distribution" if one.notice else ""),
        ]
        for one in answers
    ]
    return (
        "<h2>Classification</h2>"
        f"<p>{len(answers)} recordings were generated as those of {', '.join(SETS)}, with proportions and lengths that do not occur in training, "
        f"and written to <code>inputs/</code>. {right} of {len(answers)} were classified correctly; <code>unipercept models</code> gives "
        "the accuracy on whole test sets.</p>"
        + table(["recording", "head", "class", "prediction", "probability", "result"], rows)
    )


def _forecast_section(result: ForecastResult) -> str:
    found, choice = result.backtest, result.choice
    if found is None or choice is None:
        return ""
    rows = [
        ("chosen", choice.score),
        *sorted(((o.method.name, o.score) for o in found.tested), key=lambda row: row[1].sql),
    ]
    cells = [
        [name, f"{s.sql:.3f}", f"{s.mase:.3f}", *(f"{100 * c:.1f} %" for c in s.coverage.values())] for name, s in rows
    ]
    return (
        "<h2>Forecast with back-tested prediction intervals</h2>"
        f"<p>The series is the {escape(result.source)}. <code>unipercept forecast</code> does the same with any table: every method forecasts "
        f"{found.plan.horizon} steps from the same {len(found.plan.scored)} past origins, without seeing later values; the best method, or a blend, "
        f"makes the forecast ({escape(choice.name)}), and its intervals are calibrated to their nominal coverage. Losses are relative to "
        "repeating the last cycle; lower is better. The last steps were held out: the truth in the plot was not seen.</p>"
        f'<div class="wide">{figure(png_bytes(result.plot()), "History, back-test, forecast with intervals, and truth")}</div>'
        + table(
            ["method", "quantile loss (SQL)", "error of the median (MASE)", "coverage, 80 %", "coverage, 95 %"],
            cells,
        )
    )


def _machine_section() -> str:
    from unipercept import __version__

    pairs = [
        ("unipercept", __version__),
        ("Python, torch", f"{platform.python_version()}, {torch.__version__}"),
        ("machine", f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"),
        ("made by", "unipercept demo"),
    ]
    return "<h2>Environment</h2>" + facts(pairs)


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
