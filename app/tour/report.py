"""The offline demo: six kinds of recordings through one network, a forecast, and a report of what came out."""

from __future__ import annotations

import csv
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unipercept.api import pipeline
from unipercept.app.memory import PeakMemory
from unipercept.app.tour.drawing import draw_map, draw_overview, draw_recording, draw_similarity, png_bytes
from unipercept.app.tour.forecast import HORIZON, LOOKBACK, NETWORK, ForecastDemo, run_forecast
from unipercept.app.tour.inputs import DemoInput, demo_inputs, forecast_recording
from unipercept.app.tour.page import facts, figure, page, table
from unipercept.atomic import atomic_path
from unipercept.embedding import MODALITIES, EmbeddingMap
from unipercept.errors import InputError, UniperceptError, one_line
from unipercept.models import UNTRAINED, model_card
from unipercept.pipelines.base import pool_vector

Tell = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Looked:
    """What came of one recording."""

    item: DemoInput
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
    looked: list[Looked] = []
    failures: list[str] = []
    inputs = demo_inputs(output / "inputs")
    for number, item in enumerate(inputs, 1):
        tell(f"[{number}/{len(inputs) + 1}] {item.modality}: {item.title} ({item.path.name})")
        try:
            looked.append(_look(item))
        except UniperceptError as error:
            failures.append(f"{item.title}: {one_line(error)}")
            tell(f"    failed: {one_line(error)}")
    tell(f"[{len(inputs) + 1}/{len(inputs) + 1}] fitting a forecaster to a saxophone's pressure wave")
    forecast: ForecastDemo | None = None
    try:
        forecast = run_forecast(forecast_recording())
    except UniperceptError as error:
        failures.append(f"the forecast: {one_line(error)}")
        tell(f"    failed: {one_line(error)}")
    _write_files(output, looked, forecast)
    with atomic_path(output / "report.html") as temporary:
        temporary.write_text(_report(looked, forecast, failures, time.perf_counter() - began), encoding="utf-8")
    return failures


def _look(item: DemoInput) -> Looked:
    pipe = pipeline(item.modality, UNTRAINED, "cpu")
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
    return Looked(item, first_map, n_maps, vector, seconds, peak, picture, png_bytes(draw_map(first_map)), said)


def _with_source(raw: Any, item: DemoInput) -> Any:
    """What the drawing needs of a recording that keeps no path of its own."""
    if item.modality not in ("image", "audio"):
        return raw

    class Source:
        source = str(item.path)

    return Source


def centred_similarity(vectors: list[torch.Tensor]) -> NDArray[Any]:
    """Cosine similarity after the mean vector is taken off: what the vectors share would hide how they differ."""
    stacked = torch.stack(vectors).double()
    centred = stacked - stacked.mean(dim=0)
    unit = torch.nn.functional.normalize(centred, dim=1)
    return (unit @ unit.T).numpy()


def _write_files(output: Path, looked: list[Looked], forecast: ForecastDemo | None) -> None:
    for one in looked:
        one.emap.save(output / "maps" / f"{one.item.modality}-{one.item.path.stem}.safetensors")
    rows = [[one.item.path.name, one.item.modality, *(f"{x:.9g}" for x in one.vector.tolist())] for one in looked]
    width = len(looked[0].vector) if looked else 0
    _write_csv(output / "vectors.csv", ["file", "modality", *(f"v{i}" for i in range(width))], rows)
    if len(looked) > 1:
        matrix = centred_similarity([one.vector for one in looked])
        names = [one.item.path.name for one in looked]
        table_rows = [[name, *(f"{x:.4f}" for x in row)] for name, row in zip(names, matrix, strict=True)]
        _write_csv(output / "similarity.csv", ["file", *names], table_rows)
    first_of_kind = {one.item.modality: one for one in reversed(looked)}
    columns = [
        (kind, first_of_kind[kind].picture, first_of_kind[kind].map_picture)
        for kind in MODALITIES
        if kind in first_of_kind
    ]
    if columns:
        with atomic_path(output / "overview.png") as temporary:
            temporary.write_bytes(png_bytes(draw_overview(columns)))
    if forecast is not None:
        forecast.forecast.save(output / "forecast.csv")
        forecast.forecast.save(output / "forecast.png")


def _write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def _report(looked: list[Looked], forecast: ForecastDemo | None, failures: list[str], seconds: float) -> str:
    kinds = len({one.item.modality for one in looked})
    card = model_card(UNTRAINED)
    lead = (
        f"<p>{len(looked)} recordings of {kinds} kinds went through one large-kernel ConvNet ({card.architecture}, "
        f"{card.millions:.1f} million parameters) on the CPU of this machine in {seconds:.0f} seconds. Each became a map "
        "with physical axes, the same network read every map, and each recording ended as a vector.</p>"
        '<p class="notice"><strong>The network is untrained.</strong> Its weights are drawn from a seed, so its vectors are '
        "reproducible random features: alike maps give alike vectors, and nothing in it knows what a lion is. Only the forecaster "
        "further down was trained, here and now.</p>"
    )
    body = "<h2>What was read, and what the network sees</h2>"
    body += '<div class="grid">' + "".join(_card(one) for one in looked) + "</div>"
    if failures:
        body += "<h2>What failed</h2>" + table(["part"], [[line] for line in failures])
    if len(looked) > 1:
        body += _similarity_section(looked)
    body += (_forecast_section(forecast) if forecast is not None else "") + _machine_section()
    return page("One network, six kinds of recordings", lead, body)


def _card(one: Looked) -> str:
    shape = " × ".join(str(n) for n in one.emap.tensor.shape)
    timing = ", ".join(f"{name} {value:.2f} s" for name, value in one.seconds.items())
    peak = "not known on this system" if one.peak_mb is None else f"{one.peak_mb:.0f} MB above the start"
    pairs = [("file", f"{one.item.path.name}, {_size(one.item.path)}"), ("read", _summary(one))]
    pairs += [
        ("map", f"{shape}; {one.n_maps} in all"),
        ("vector", f"{len(one.vector)} numbers"),
        ("time", timing),
        ("peak memory", peak),
    ]
    pairs += [("noticed", "; ".join(one.said))] if one.said else []
    pictures = figure(one.picture, f"{one.item.title}, the recording", "the recording")
    channels = one.emap.tensor.shape[1]
    shown = f", the first of {channels} channels" if channels > 3 else ""
    pictures += figure(one.map_picture, f"{one.item.title}, its map", f"its map, as the network sees it{shown}")
    heading = f'<h3>{one.item.title}</h3><div class="soft">{one.item.modality} · {one.item.origin}</div>'
    return f'<article>{heading}<div class="pair">{pictures}</div>{facts(pairs)}</article>'


def _summary(one: Looked) -> str:
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


def _similarity_section(looked: list[Looked]) -> str:
    matrix = centred_similarity([one.vector for one in looked])
    titles = [one.item.title for one in looked]
    raw = torch.stack([one.vector for one in looked]).double()
    plain = (raw @ raw.T)[~torch.eye(len(looked), dtype=torch.bool)]
    rest = matrix - 2 * np.eye(len(looked))
    rows = [[one.item.title, titles[int(rest[i].argmax())], f"{rest[i].max():.2f}"] for i, one in enumerate(looked)]
    picture = png_bytes(draw_similarity(matrix, titles))
    return (
        "<h2>How alike the untrained network finds them</h2>"
        f"<p>Before centring, the cosine similarities lie between {float(plain.min()):.2f} and {float(plain.max()):.2f}: random "
        "features share a large common part. Shown is what is left when the mean vector is taken off. Maps of one kind of sensor "
        "look alike, and that is most of what it finds.</p>"
        f'<div class="wide">{figure(picture, "Matrix of similarities between all recordings")}</div>'
        + table(["recording", "nearest", "similarity"], rows)
    )


def _forecast_section(demo: ForecastDemo) -> str:
    order = sorted(demo.errors, key=lambda name: demo.errors[name][0])
    rows = [[name, f"{demo.errors[name][0]:.4f}", f"{demo.errors[name][1]:.4f}"] for name in order]
    place = order.index(NETWORK) + 1
    verdict = (
        "It wins."
        if place == 1
        else f"It comes {('second', 'third', 'fourth')[place - 2]}: <em>{order[0]}</em> does best."
    )
    n = demo.n_windows
    return (
        "<h2>A forecast, fitted on the spot</h2>"
        f"<p>The series is the {demo.source}. A network of the same blocks ({demo.n_parameters:,} parameters) was fitted to the first "
        f"70 % ({n['training']} windows) and tested once on the last 20 % ({n['test']} windows, every one of them): {LOOKBACK} steps in, "
        f"{HORIZON} out, folded by the period of {demo.period} steps that the training part repeats with. Errors are in units of the "
        f"training part's deviation. {verdict} A player changes notes faster than a fit on a few seconds can follow; the "
        "figures stand here so that nobody need trust a drawing.</p>"
        f'<div class="wide">{figure(png_bytes(demo.forecast.plot()), "History, forecast and truth of one test window")}</div>'
        '<p class="soft">The middle window of the test part; time in milliseconds from the first forecast step.</p>'
        + table(["method", "mean squared error", "mean absolute error"], rows)
    )


def _machine_section() -> str:
    from unipercept import __version__

    pairs = [
        ("unipercept", __version__),
        ("Python, torch", f"{platform.python_version()}, {torch.__version__}"),
        ("machine", f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"),
        ("made by", "unipercept demo"),
    ]
    return "<h2>Made with</h2>" + facts(pairs)


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
