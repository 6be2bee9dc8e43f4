"""An EmbeddingMap as a picture and as a notebook card. Imported on first use: Pillow and matplotlib are heavy.

Shapes: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import base64
import io
import math
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL.Image import Image

from unipercept.errors import InputError, shortened

if TYPE_CHECKING:
    from unipercept.embedding import EmbeddingMap

MAX_TILES = 16  # channels, or frames, shown of a map that has more than three channels
PADDING_GREY = 0.5
COLOUR_MAP = "viridis"  # dark to bright, even steps for the eye, readable by the colour-blind


def to_image(emap: EmbeddingMap, index: int = 0) -> Image:
    """Item `index` as an RGB picture; see EmbeddingMap.to_image.

    Raises:
        InputError: there is no such item.
    """
    if not 0 <= index < len(emap):
        raise InputError(f"the map holds items 0 to {len(emap) - 1}, got index {index}")
    channels = emap.tensor[index].detach().float().cpu().numpy()
    real = np.ones(channels.shape[1:], bool) if emap.mask is None else emap.mask[index].cpu().numpy()
    metadata = emap.metadata_of(index)
    if len(channels) == 3:
        picture = _red_green_blue(channels, real, metadata)
    elif emap.modality == "video" and len(channels) % 3 == 0:
        frames = channels.reshape(-1, 3, *channels.shape[1:])[:MAX_TILES]
        picture = _tile([_red_green_blue(frame, real, metadata) for frame in frames])
    else:
        picture = _tile([_coloured(channel, real) for channel in channels[:MAX_TILES]])
    return PillowImage.fromarray((picture * 255).round().astype(np.uint8), "RGB")


def to_html(emap: EmbeddingMap) -> str:
    """A small card for notebooks: the picture beside shape, axes and metadata."""
    rows = [("modality", emap.modality), ("tensor", "×".join(map(str, emap.tensor.shape)) + f" {emap.tensor.dtype}")]
    rows += [
        (name, f"along {axis.dim}: {axis.values[0]:g} to {axis.values[-1]:g} {axis.unit}")
        for name, axis in emap.coords.items()
    ]
    if emap.mask is not None:
        rows.append(("real input", f"{float(emap.mask.float().mean()):.1%}"))
    rows += [(key, shortened(str(value), 80)) for key, value in emap.metadata.items()]
    table = "".join(f"<tr><th style='text-align:left'>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows)
    return (
        "<div style='display:flex;gap:1em;align-items:flex-start'>"
        f"<img alt='{escape(emap.modality)} map' style='max-width:320px;max-height:320px' src='{data_uri(to_image(emap))}'>"
        f"<table>{table}</table></div>"
    )


def data_uri(image: Image) -> str:
    """A picture as a PNG data address, for pages that stand alone."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _red_green_blue(channels: NDArray[Any], real: NDArray[np.bool_], metadata: Any) -> NDArray[Any]:
    mean, std = metadata.get("mean"), metadata.get("std")
    if isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) == 3:
        picture = channels * np.array(std)[:, None, None] + np.array(mean)[:, None, None]
    else:
        picture = np.stack([_scaled(channel, real) for channel in channels])
    picture = np.nan_to_num(np.clip(picture, 0, 1), nan=PADDING_GREY)
    picture[:, ~real] = PADDING_GREY
    shown: NDArray[Any] = picture.transpose(1, 2, 0)
    return shown


def _coloured(channel: NDArray[Any], real: NDArray[np.bool_]) -> NDArray[Any]:
    from matplotlib import colormaps

    picture: NDArray[Any] = colormaps[COLOUR_MAP](_scaled(channel, real))[..., :3]
    picture[~real | ~np.isfinite(channel)] = PADDING_GREY
    return picture


def _scaled(channel: NDArray[Any], real: NDArray[np.bool_]) -> NDArray[Any]:
    """To [0, 1] between the 1st and 99th percentile of the real, finite cells: one odd
    cell must not darken the rest.
    """
    known = channel[real & np.isfinite(channel)]
    if not len(known):
        return np.full_like(channel, PADDING_GREY)
    low, high = np.percentile(known, [1, 99])
    if high <= low:
        low, high = known.min(), known.max()
    scaled: NDArray[Any] = np.clip((np.nan_to_num(channel) - low) / max(high - low, 1e-12), 0, 1)
    return scaled


def _tile(pictures: list[NDArray[Any]]) -> NDArray[Any]:
    """Pictures in reading order, in rows that make the whole as square as can be."""
    height, width, _ = pictures[0].shape
    columns = min(len(pictures), max(1, round(math.sqrt(len(pictures) * height / width))))
    rows = math.ceil(len(pictures) / columns)
    whole = np.ones((rows * height, columns * width, 3))
    for i, picture in enumerate(pictures):
        top, left = i // columns * height, i % columns * width
        whole[top : top + height, left : left + width] = picture
    return whole
