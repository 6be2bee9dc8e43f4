"""A recording in its natural form, as updates of the page's widgets: player, picture, frames,
rotatable cloud, curves or field.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unipercept.app.web import charts, words
from unipercept.errors import import_optional

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from unipercept.app.web.perceive_work import Analysis

PLAYED = (".wav", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".webm")  # by browsers, as they are
PREVIEW_SECONDS = 60.0
PREVIEW_PIXELS = 1280
FRAME_PIXELS = 160
DPI = 160  # of drawn figures: sharp on a phone


def player(analysis: Analysis, folder: Path) -> Path | None:
    """The file that a player is given: a sound (others than browsers know are written as WAV,
    a minute at most) or a video.
    """
    if analysis.modality == "video":
        return analysis.path
    if analysis.modality != "audio":
        return None
    return analysis.path if analysis.path.suffix.lower() in PLAYED else _as_wav(analysis.path, folder)


def picture(analysis: Analysis) -> Image | None:
    """A picture, drawn anew: nothing of the file but its pixels reaches other viewers."""
    if analysis.modality != "image":
        return None
    return redrawn(analysis.path)


def redrawn(path: Path) -> Image:
    """The pixels of a picture as the network's pipeline reads them (upright, of 16 bits or floating point within their
    range, on white where they are transparent), of a size for the page.
    """
    from PIL import Image

    from unipercept.pipelines.image import ImageConfig
    from unipercept.pipelines.picture import open_picture

    read = open_picture(path, max_pixels=ImageConfig().max_pixels, draft_size=PREVIEW_PIXELS)
    planes = [plane.copy() for plane in read.planes]
    for plane in planes:
        plane.thumbnail((PREVIEW_PIXELS, PREVIEW_PIXELS))
    if planes[0].mode == "F":
        planes = [Image.fromarray(np.asarray(plane).round().clip(0, 255).astype(np.uint8)) for plane in planes]
    return Image.merge("RGB", planes) if len(planes) == 3 else planes[0].convert("RGB")


def frames(analysis: Analysis) -> str | None:
    """The frames that the network saw, each with its time, as HTML."""
    if analysis.modality != "video":
        return None
    from PIL import Image

    seen = zip(analysis.piece.frames, analysis.piece.times, strict=False)
    pictures = [(webp(Image.fromarray(pixels), FRAME_PIXELS), f"{time:.1f} s") for pixels, time in seen]
    return words.thumbnails(pictures, "Frames that the network saw")


def webp(image: Image, side: int | None = None) -> bytes:
    """A picture for the page, no larger than `side` pixels each way."""
    if side is not None:
        image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=82)
    return buffer.getvalue()


def chart(analysis: Analysis) -> Any:
    """A chart where that is what people know: of sounds, clouds, series and fields."""
    raw, piece = analysis.raw, analysis.piece
    if analysis.modality == "audio":
        return charts.spectrogram(analysis.emap)
    if analysis.modality == "pointcloud":
        return charts.cloud(raw.points)
    if analysis.modality == "timeseries":
        return charts.series(raw.time, raw.values, raw.variables)
    if analysis.modality == "weather":
        latitude, longitude = (np.asarray(piece.dataset[name].values, float) for name in ("latitude", "longitude"))
        channel = piece.channels[0]
        values = piece.values if piece.values is not None else raw.values
        when = analysis.emap.metadata.get("time", "")
        title = f"{channel.name}, {words.moment(when)} UTC" if when else channel.name
        return charts.field(np.asarray(values[0]), latitude, longitude, title, words.unit(channel.unit))
    return None


def map_picture(analysis: Analysis) -> Image:
    """The EmbeddingMap as the backbone sees it, with its physical axes."""
    from unipercept.app.tour.drawing import draw_map

    return figure_image(draw_map(analysis.emap))


def evidence_picture(analysis: Analysis) -> Image | None:
    """The evidence for the label, if there is a trained head."""
    return None if analysis.explanation is None else figure_image(analysis.explanation.plot())


def figure_image(figure: Figure) -> Image:
    """A matplotlib figure as a picture without ground, its ink in the grey of the charts: for light and dark pages."""
    from matplotlib.text import Text
    from PIL import Image

    from unipercept.results.drawing import write_figure

    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.tick_params(colors=charts.INK)
        for spine in axes.spines.values():
            spine.set_edgecolor(charts.INK)
    for text in figure.findobj(Text):
        text.set_color(charts.INK)
    buffer = io.BytesIO()
    write_figure(figure, buffer, DPI, format="png", bbox_inches="tight")
    buffer.seek(0)
    opened = Image.open(buffer)
    opened.load()
    return opened


def _as_wav(path: Path, folder: Path) -> Path:
    from unipercept.pipelines.sound_file import open_sound

    soundfile, sound = import_optional("soundfile", extra="audio"), open_sound(path)
    target, left = folder / f"{path.stem[:60]}.wav", int(PREVIEW_SECONDS * sound.sample_rate)
    with soundfile.SoundFile(target, "w", sound.sample_rate, 1) as out:
        for block in sound.blocks():
            out.write(np.asarray(block[:left], np.float32))
            left -= len(block)
            if left <= 0:
                break
    return target
