"""Video to map: frames sampled by time and folded into one picture: a grid of tiles, strips, or a stack of channels.

Shapes: B batch, C channels, T frames, H rows, W columns of a frame; a map has rows x H by
columns x W cells, a stack H x W.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from unipercept.devices import on_cpu
from unipercept.embedding import Axis, EmbeddingMap
from unipercept.errors import InputError
from unipercept.pipelines.base import PerceptionModel, Pipeline, as_array, check_raw
from unipercept.pipelines.image import CROP_RATIO, IMAGENET_MEAN, IMAGENET_STD
from unipercept.pipelines.video_readers import Frames, open_video

Folding = Literal["grid", "strip", "stack"]


def tile_rows(n_frames: int, rows: int = 0) -> int:
    """Tile rows for T frames: `rows`, or the square root of T.

    Raises:
        InputError: T is no square and no rows are given, or the rows do not divide T.
    """
    if rows == 0 and math.isqrt(n_frames) ** 2 == n_frames:
        return math.isqrt(n_frames)
    if rows < 1 or n_frames % rows:
        raise InputError(f"{n_frames} frames are no square; give `rows` that divides them, got {rows}")
    return rows


@dataclass(frozen=True)
class VideoConfig:
    """How a video becomes maps.

    Args:
        n_frames: T, frames in a map; with `rows` 0 it must be a square.
        size: H and W of each frame after resize and centre crop.
        folding: "grid" lays frames out as tiles (the paper); "strip" is the plain reshape of the released code; "stack"
            puts them behind each other as 3 T channels, so that the first convolution sees how a place changes.
        rows: tile rows of the grid; 0 takes the square root of T.
        segment_seconds: a longer recording is cut into equal segments no longer than this, a map each.
        reader: "auto", "pyav" or "decord".
    """

    n_frames: int = 16
    size: int = 224
    folding: Folding = "grid"
    rows: int = 0
    segment_seconds: float = 64.0
    reader: str = "auto"

    def __post_init__(self) -> None:
        if self.n_frames < 1 or self.size < 1 or self.segment_seconds <= 0:
            raise InputError(
                f"VideoConfig needs n_frames, size and segment_seconds above 0, got {self.n_frames}, {self.size}, {self.segment_seconds:g}"
            )
        if self.folding != "stack":
            tile_rows(self.n_frames, self.rows)
        if self.folding not in get_args(Folding):
            raise InputError(f"folding must be one of {', '.join(get_args(Folding))}; got {self.folding!r}")
        if self.folding == "strip" and self.size % tile_rows(self.n_frames, self.rows):
            raise InputError(f"strips need a size that {tile_rows(self.n_frames, self.rows)} divides, got {self.size}")


@dataclass(frozen=True)
class Clip:
    """A stretch of a video. `frames` are read when a clip is cut out of the file; a whole file holds none yet.

    Args:
        source: the file.
        start, stop: seconds.
        duration: of the whole file, in seconds.
        info: reader, size and frame rate, for the metadata.
        frames: T frames, each HxWx3 uint8, upright.
        times: the second that each was sampled at.
    """

    source: str
    start: float
    stop: float
    duration: float
    info: dict[str, Any]
    frames: tuple[Frames, ...] = ()
    times: tuple[float, ...] = ()

    @staticmethod
    def from_array(frames: "Frames | Tensor", frame_rate: float = 25.0) -> "Clip":
        """A clip of frames in memory, TxHxWx3 uint8.

        Raises:
            InputError: another shape or type, or no positive frame rate.
        """
        frames = as_array(frames)
        if not 0 < frame_rate < math.inf:
            raise InputError(f"frame_rate must be a positive number of frames a second, got {frame_rate}")
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not frames.size:
            raise InputError(f"frames must be TxHxWx3 uint8, got {frames.dtype} of shape {frames.shape}")
        seconds = len(frames) / frame_rate
        times = tuple(i / frame_rate for i in range(len(frames)))
        info = {"reader": "array", "frame_rate": frame_rate, "width": frames.shape[2], "height": frames.shape[1]}
        return Clip("array", 0.0, seconds, seconds, info, tuple(frames), times)


class VideoPipeline(Pipeline[Clip]):
    """Video to maps of T frames, evenly spaced over each segment, normalised as pictures are.

    The axes "y" and "x" say the row and column inside a frame, in pixels of the resized frame; "frame_row" and
    "frame_column" which tile a cell lies in (grid only). The time of each frame is in the metadata: it varies over both
    dimensions, which no one axis can say.
    """

    modality = "video"

    def __init__(self, config: VideoConfig = VideoConfig(), *, model: PerceptionModel | None = None) -> None:
        super().__init__(model)
        self.config = config

    def read(self, path: str | Path) -> Clip:
        """Open a video and check that its first frame can be decoded; `split` reads the frames.

        Raises:
            InputError: no such file, no video, no picture stream, or damaged.
            MissingDependencyError: neither decord nor PyAV is installed.
        """
        video = open_video(path, self.config.reader)
        info = {
            "reader": video.name,
            "frame_rate": video.frame_rate,
            "n_frames": video.n_frames,
            "width": video.width,
            "height": video.height,
        }
        duration = video.duration
        video.close()
        return Clip(str(path), 0.0, duration, duration, info)

    def split(self, raw: Clip) -> Iterator[Clip]:
        """Segments with their frames, one after another: never more than T frames are in memory."""
        if raw.frames:
            yield raw
            return
        video = open_video(raw.source, raw.info["reader"])
        try:
            count = self.count(raw)
            length = (raw.stop - raw.start) / count
            for i in range(count):
                start = raw.start + i * length
                times = frame_times(start, start + length, self.config.n_frames)
                frames = tuple(video.frames_at(times))
                yield replace(raw, start=start, stop=start + length, frames=frames, times=times)
        finally:
            video.close()

    def count(self, raw: Clip) -> int:
        """Segments."""
        return 1 if raw.frames else max(1, math.ceil((raw.stop - raw.start) / self.config.segment_seconds - 1e-9))

    @on_cpu
    def embed(self, raw: Clip) -> EmbeddingMap:
        """One map of a clip's frames; of a whole file, its segments as a batch (bounded by the
        file's length: prefer `maps`).
        """
        check_raw(raw, Clip, "Clip.from_array")
        if not raw.frames:
            return EmbeddingMap.concat([self.embed(clip) for clip in self.split(raw)])
        config = self.config
        chosen = np.linspace(0, len(raw.frames) - 1, config.n_frames).round().astype(int)
        video = torch.stack([self._frame(raw.frames[i]) for i in chosen], dim=1)[None]
        rows = 1 if config.folding == "stack" else tile_rows(config.n_frames, config.rows)
        tensor = fold(video, config.folding, rows)
        metadata = {
            "source": raw.source,
            **raw.info,
            "start_second": raw.start,
            "stop_second": raw.stop,
            "duration_seconds": raw.duration,
            "frame_seconds": [raw.times[i] for i in chosen],
            "distinct_frames": len({id(raw.frames[i]) for i in chosen}),
            "folding": config.folding,
            "rows": rows,
            "n_frames_in_map": config.n_frames,
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
        }
        return EmbeddingMap(tensor, self.modality, self._axes(rows), metadata=metadata)

    def _frame(self, pixels: Frames) -> Tensor:
        """HxWx3 uint8 to a normalised 3 x size x size frame: short side resized (bicubic), centre cropped."""
        size, height, width = self.config.size, *pixels.shape[:2]
        scale = int(size / CROP_RATIO) / min(height, width)
        wide, high = max(size, round(width * scale)), max(size, round(height * scale))
        image = Image.fromarray(pixels)
        if max(wide, high) > 8 * size:  # a ribbon would grow beyond bounds: crop first
            image, wide, high = _crop_ribbon(image, size, scale)
        left, top = (wide - size) // 2, (high - size) // 2
        image = image.resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
        frame = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(three, dtype=torch.float32)[:, None, None] for three in (IMAGENET_MEAN, IMAGENET_STD))
        return (frame - mean) / std

    def _axes(self, rows: int) -> dict[str, Axis]:
        size, columns = self.config.size, self.config.n_frames // rows
        inside = torch.arange(size, dtype=torch.float32) + 0.5
        if self.config.folding == "stack":
            return {"y": Axis("H", inside, "px"), "x": Axis("W", inside, "px")}
        if self.config.folding == "strip":  # columns of a cell belong to `rows` neighbouring rows of the frame
            return {"x": Axis("W", inside.repeat(columns), "px")}
        return {
            "y": Axis("H", inside.repeat(rows), "px"),
            "x": Axis("W", inside.repeat(columns), "px"),
            "frame_row": Axis("H", torch.arange(rows).repeat_interleave(size), "1"),
            "frame_column": Axis("W", torch.arange(columns).repeat_interleave(size), "1"),
        }


def frame_times(start: float, stop: float, n_frames: int) -> tuple[float, ...]:
    """The middles of T equal parts of [start, stop], in seconds."""
    step = (stop - start) / n_frames
    return tuple(start + (i + 0.5) * step for i in range(n_frames))


def fold(video: Tensor, folding: Folding, rows: int) -> Tensor:
    """BxCxTxHxW to one picture BxCx(rows*H)x(columns*W), T = rows * columns, or BxTCxHxW. Exactly undone by `unfold`.

    "grid": frame t is the tile in row t // columns, column t % columns. "strip": the released code's plain reshape to
    rows*H rows: frame t fills H/columns rows of the picture, with `columns` of its own rows side by side. "stack":
    frame t is the channels C t to C t + C - 1; `rows` says nothing.

    Raises:
        InputError: the rows do not divide T, or in "strip" the columns do not divide H.
    """
    if folding == "stack":
        return rearrange(video, "b c t h w -> b (t c) h w")
    _check_fold(video.shape[2], rows, video.shape[3], folding)
    columns = video.shape[2] // rows
    if folding == "grid":
        return rearrange(video, "b c (r k) h w -> b c (r h) (k w)", r=rows)
    return rearrange(video, "b c t (h k) w -> b c (t h) (k w)", k=columns)


def unfold(picture: Tensor, folding: Folding, rows: int, n_frames: int) -> Tensor:
    """The frames BxCxTxHxW of a picture made by `fold`."""
    if folding == "stack":
        return rearrange(picture, "b (t c) h w -> b c t h w", t=n_frames)
    if n_frames % rows:
        raise InputError(f"{rows} rows do not divide {n_frames} frames")
    columns = n_frames // rows
    if folding == "grid":
        return rearrange(picture, "b c (r h) (k w) -> b c (r k) h w", r=rows, k=columns)
    return rearrange(picture, "b c (t h) (k w) -> b c t (h k) w", t=n_frames, k=columns)


def _check_fold(n_frames: int, rows: int, height: int, folding: str) -> None:
    if rows < 1 or n_frames % rows:
        raise InputError(f"{rows} rows do not divide {n_frames} frames")
    if folding == "strip" and height % (n_frames // rows):
        raise InputError(f"strips need a height that {n_frames // rows} divides, got {height}")


def _crop_ribbon(image: Image.Image, size: int, scale: float) -> tuple[Image.Image, int, int]:
    """The middle of a very long picture, as much as the centre crop shows, with its resized width and height."""
    keep = max(1, round(size / scale))
    left, top = max(0, (image.width - keep) // 2), max(0, (image.height - keep) // 2)
    cropped = image.crop((left, top, min(image.width, left + keep), min(image.height, top + keep)))
    return cropped, max(size, round(cropped.width * scale)), max(size, round(cropped.height * scale))
