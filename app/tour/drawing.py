"""Figures of the demo: a recording as people know it, and its map with physical axes."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from unipercept.axis_words import ReadableAxis, frequency_ticks, readable
from unipercept.embedding import EmbeddingMap
from unipercept.pipelines.pointcloud import PointCloudPipeline
from unipercept.results import BLUE
from unipercept.results.drawing import plain_figure, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.6, 2.7  # inches
PANEL_PIXELS = 460


def draw_map(emap: EmbeddingMap) -> Figure:
    """The first item of a map with its axes in their units."""
    figure = _figure((WIDTH, HEIGHT))
    axes = figure.subplots()
    if emap.modality == "pointcloud":
        colours = replace(emap, tensor=emap.tensor[:, :3])  # without the size, which is one number a view
        axes.imshow(np.concatenate([np.asarray(colours.to_image(i)) for i in range(len(emap))], axis=1))
        label = f"{len(emap)} views: nearness, normal x, normal y as red, green, blue"
        axes.set(xticks=[], yticks=[], xlabel=label)
    elif emap.modality == "video":
        axes.imshow(np.asarray(emap.to_image()))
        axes.set(xticks=[], yticks=[], xlabel="the frames, row by row")
    elif emap.modality == "image" and emap.tensor.shape[1] == 3:
        axes.imshow(np.asarray(emap.to_image()))
        for axis, name in ((axes.yaxis, "y"), (axes.xaxis, "x")):
            _label(axis, readable(emap, name))
    else:
        _draw_field(axes, emap)
    axes.tick_params(labelsize=7)
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)
    return figure


def draw_recording(modality: str, raw: Any, emap: EmbeddingMap) -> Figure | Image.Image:
    """The recording itself: picture, waveform, frames, rendering, curves or a field."""
    if modality == "image":
        return _fitted(Image.open(raw.source).convert("RGB"))
    if modality == "video":
        chosen = [raw.frames[i] for i in np.linspace(0, len(raw.frames) - 1, 4).astype(int)]
        return _fitted(Image.fromarray(np.concatenate([np.concatenate(chosen[:2], 1), np.concatenate(chosen[2:], 1)])))
    if modality == "pointcloud":
        return _fitted(_shaded(PointCloudPipeline().embed(raw)))  # finer than the map that the default model sees
    figure = _figure((WIDTH, HEIGHT))
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)
    if modality == "audio":
        wave, rate = _waveform(raw.source)
        axes.fill_between(np.arange(len(wave)) / rate, -wave, wave, color=BLUE, linewidth=0)
        axes.set_xlabel("seconds", size=8)
    elif modality == "timeseries":
        measured = np.where(raw.observed, raw.values, np.nan)  # a share that was listed late has no line before
        for column, name in list(zip(measured.T, raw.variables, strict=True))[:6]:
            axes.plot(raw.time, column / np.nanmax(np.abs(column)), linewidth=0.9, label=name)
        axes.legend(fontsize=6, frameon=False, ncols=2)
        axes.set_ylabel("share of the largest value", size=8)
    else:
        _draw_wind(axes, raw, emap)
    return figure


def draw_overview(columns: list[tuple[str, bytes, bytes]]) -> Figure:
    """Title, recording and map of a few inputs side by side: recordings above, maps below."""
    figure = _figure((2.3 * len(columns), 3.7))
    grid = figure.subplots(2, len(columns), squeeze=False)
    for column, (title, recording, drawn) in enumerate(columns):
        for row, data in enumerate((recording, drawn)):
            axes = grid[row][column]
            axes.imshow(_on_canvas(Image.open(io.BytesIO(data)).convert("RGB")))
            axes.axis("off")
        grid[0][column].set_title(title, size=10)
    return figure


def png_bytes(picture: Figure | Image.Image) -> bytes:
    """A figure or picture as PNG."""
    buffer = io.BytesIO()
    if isinstance(picture, Image.Image):
        picture.save(buffer, "PNG", optimize=True)
        return buffer.getvalue()
    return png(picture)


def _figure(size: tuple[float, float]) -> Figure:
    """An empty figure, sizes in inches, without global state or a display."""
    return plain_figure(size)


def _draw_field(axes: Any, emap: EmbeddingMap) -> None:
    vertical = next((n for n, a in emap.coords.items() if a.dim == "H"), None)
    horizontal = next((n for n, a in emap.coords.items() if a.dim == "W"), None)
    values = emap.tensor[0, 0].float().numpy().copy()
    if emap.mask is not None:
        values[~emap.mask[0].numpy()] = np.nan
    low, high = np.nanpercentile(values, [1, 99])
    upward = emap.modality == "audio"
    axes.imshow(
        values, aspect="auto", origin="lower" if upward else "upper", vmin=low, vmax=high, interpolation="nearest"
    )
    axes.set_facecolor("#d1d5db")
    for axis, name in ((axes.yaxis, vertical), (axes.xaxis, horizontal)):
        if name == "frequency":
            places, texts = frequency_ticks(emap.coords[name].values.double().numpy())
            axis.set_ticks(places, texts)
            axis.set_label_text("frequency in Hz")
        elif name is not None:
            _label(axis, readable(emap, name))


def _label(axis: Any, read: ReadableAxis) -> None:
    axis.set_ticks(*read.ticks())
    axis.set_label_text(read.label)


def _waveform(path: str, points: int = 900) -> tuple[NDArray[Any], float]:
    """The loudest value in each of some hundred stretches, and stretches a second."""
    from unipercept.pipelines.sound_file import open_sound

    sound = open_sound(path)
    wave = np.concatenate(list(sound.blocks()))
    every = max(1, len(wave) // points)
    peaks = np.abs(wave[: len(wave) // every * every]).reshape(-1, every).max(axis=1)
    return peaks, sound.sample_rate / every


def _draw_wind(axes: Any, raw: Any, emap: EmbeddingMap) -> None:
    """Wind speed in colour where the file has winds, else its first field, over degrees."""
    names = emap.metadata["channels"]
    pairs = [(i, names.index("v" + n[1:])) for i, n in enumerate(names) if n.startswith("u") and "v" + n[1:] in names]
    latitude, longitude = raw.dataset["latitude"].values, raw.dataset["longitude"].values
    if pairs:
        u, v = (raw.values[i] for i in pairs[0])
        values, label = np.hypot(u, v), f"wind speed {names[pairs[0][0]][1:]} hPa in m/s"
    else:
        values, label = raw.values[0], f"{names[0]} in {raw.channels[0].unit}"
    shown = axes.pcolormesh(longitude, latitude, values, shading="nearest", cmap="viridis")
    axes.figure.colorbar(shown, ax=axes).ax.tick_params(labelsize=7)
    axes.set_title(label, size=8)


def _shaded(emap: EmbeddingMap) -> Image.Image:
    """Two views lit from above the viewer's left shoulder."""
    views = []
    for i in range(min(2, len(emap))):
        _, nx, ny = emap.tensor[i, :3].numpy()
        nz = np.sqrt(np.clip(1 - nx**2 - ny**2, 0, 1))
        light = np.clip(-0.4 * -nx + 0.45 * -ny + 0.8 * nz, 0.05, 1)
        hit = emap.mask[i].numpy() if emap.mask is not None else np.ones_like(nx, bool)
        views.append(np.where(hit, light * 235, 255).astype(np.uint8))
    return Image.fromarray(np.concatenate(views, axis=1)).convert("RGB")


def _on_canvas(image: Image.Image) -> Image.Image:
    """The picture in the middle of a white panel, so that panels of different pictures line up."""
    canvas = Image.new("RGB", (PANEL_PIXELS, int(PANEL_PIXELS * HEIGHT / WIDTH)), "white")
    image.thumbnail(canvas.size)
    canvas.paste(image, ((canvas.width - image.width) // 2, (canvas.height - image.height) // 2))
    return canvas


def _fitted(image: Image.Image) -> Image.Image:
    return ImageOps.contain(image, (PANEL_PIXELS, int(PANEL_PIXELS * HEIGHT / WIDTH)))
