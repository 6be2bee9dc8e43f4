"""Video files as frames at wanted times, through decord or PyAV, behind one small protocol.

Frames are upright (rotation metadata is applied), RGB, uint8. Of a time t one gets the frame shown at t: the last one
whose presentation time is not after it, so recordings with uneven frame times are sampled rightly.

Shapes: T frames, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError, MissingDependencyError, import_optional
from unipercept.pipelines.base import check_file, open_error
from unipercept.pipelines.quiet import quiet_stderr

if TYPE_CHECKING:
    from collections.abc import Iterator

Frames = NDArray[np.uint8]

EXPECTED = "video (mp4, mov, avi, webm, mkv)"
MAX_FRAME_PIXELS = 8192 * 8192
DECODED_SHORT_SIDE = 256  # decord scales to it while decoding: what a 224 map needs
HALF_TICK_SECONDS = 5e-5  # presentation times are rounded to the container's tick, 1/1000 s or finer
SEEK_SECONDS = 4.0  # a jump ahead of more than this is sought, a shorter one decoded through


class VideoReader(Protocol):
    """An open video. `times` gives no more than the reader knows; both readers below know duration and size."""

    name: str
    duration: float  # seconds
    frame_rate: float  # mean, frames a second
    height: int  # upright
    width: int
    n_frames: int  # by the header; 0 where it says nothing

    def frames_at(self, times: Sequence[float]) -> list[Frames]:
        """The frame shown at each time (seconds, rising), HxWx3. Near the end the last readable frame is repeated.

        Raises:
            InputError: no frame can be decoded.
        """

    def close(self) -> None:
        """Give the file and its memory back."""


def open_video(path: str | Path, reader: str = "auto") -> VideoReader:
    """Open a video by its header.

    Args:
        reader: "decord", "pyav", or "auto": decord where it is installed and can open the file, else PyAV.

    Raises:
        InputError: the file is missing, is no video, has no picture stream, or is damaged.
        MissingDependencyError: no reader is installed.
    """
    if reader not in _READERS and reader != "auto":
        raise InputError(f"reader must be auto, {', '.join(_READERS)}; got {reader!r}")
    path = check_file(path)
    names = list(_READERS) if reader == "auto" else [reader]
    failure: Exception | None = None
    for name in names:
        try:
            opened: VideoReader = _READERS[name](path)
            return opened
        except MissingDependencyError as error:
            failure = failure or error
        except InputError as error:
            failure = error
    assert failure is not None
    raise failure


class PyAVReader:
    """FFmpeg through PyAV: opens nearly everything, knows rotation and exact presentation times."""

    name = "pyav"

    def __init__(self, path: Path) -> None:
        self._av = import_optional("av", extra="video")
        # Silent. Any other level, PANIC too, calls Python from FFmpeg's threads and can deadlock on closing (PyAV #751).
        self._av.logging.set_level(None)
        self._path = path
        try:
            self._container: Any = self._av.open(str(path))
            stream = next(iter(self._container.streams.video), None)
        except (self._av.FFmpegError, ValueError, OSError) as error:
            raise open_error(path, EXPECTED, error) from error
        if stream is None:
            self._container.close()
            raise InputError(f"{path} has no picture stream; expected {EXPECTED}")
        self._stream = stream
        stream.thread_type = "AUTO"
        self._start = float((stream.start_time or 0) * stream.time_base)
        self.frame_rate = float(stream.average_rate or 0)
        self.n_frames = int(stream.frames or 0)
        self.duration = self._find_duration()
        try:
            self.height, self.width = self.frames_at([0.0])[0].shape[:2]
        except InputError:
            self.close()
            raise

    def frames_at(self, times: Sequence[float]) -> list[Frames]:
        found: list[Frames] = []
        kept: Any = None  # the frame that found[-1] shows: one frame is one array, however often it is shown
        try:
            decoded: Iterator[Any] = iter(())
            shown = following = None
            for time in times:
                if following is None or self._time(following) + SEEK_SECONDS < time:
                    decoded = self._decode_from(time)
                    shown = following = next(decoded, None)
                while following is not None and self._time(following) <= time + HALF_TICK_SECONDS:
                    shown, following = following, next(decoded, None)
                if shown is None:
                    break
                found.append(found[-1] if shown is kept else self._upright(shown))
                kept = shown
                if following is None:
                    break
        except (self._av.FFmpegError, ValueError) as error:
            if not found:
                raise open_error(self._path, EXPECTED, error) from error
        if not found:
            raise InputError(f"{self._path} holds no frame that can be decoded; it may have been cut short")
        return found + [found[-1]] * (len(times) - len(found))

    def close(self) -> None:
        self._container.close()

    def _decode_from(self, time: float) -> Iterator[Any]:
        offset = int((self._start + max(time, 0.0)) / self._stream.time_base)
        self._container.seek(offset, stream=self._stream, backward=True)
        return iter(self._container.decode(self._stream))

    def _time(self, frame: Any) -> float:
        return float(frame.pts * self._stream.time_base) - self._start if frame.pts is not None else 0.0

    def _upright(self, frame: Any) -> Frames:
        if frame.width * frame.height > MAX_FRAME_PIXELS:
            raise InputError(
                f"{self._path} has frames of {frame.width}x{frame.height}; at most {MAX_FRAME_PIXELS} pixels are read"
            )
        quarter_turns = round(_rotation(frame) / 90) % 4
        short = min(frame.width, frame.height)
        if short > DECODED_SHORT_SIDE:
            scale = DECODED_SHORT_SIDE / short
            frame = frame.reformat(width=round(frame.width * scale), height=round(frame.height * scale), format="rgb24")
        pixels: Frames = frame.to_ndarray(format="rgb24")
        return np.ascontiguousarray(np.rot90(pixels, quarter_turns))

    def _find_duration(self) -> float:
        if self._stream.duration:
            return float(self._stream.duration * self._stream.time_base)
        if self._container.duration:
            return float(self._container.duration / self._av.time_base)
        return float(self.n_frames / self.frame_rate) if self.frame_rate else 0.0


class DecordReader:
    """decord: fast random access; turns frames upright and scales them while decoding."""

    name = "decord"

    def __init__(self, path: Path) -> None:
        decord = import_optional("decord", extra="video")
        decord.logging.set_level(decord.logging.QUIET)
        self._path = path
        try:
            with quiet_stderr():
                probe = decord.VideoReader(str(path), num_threads=1)
                height, width = probe[0].shape[:2]
                del probe
                scale = min(1.0, DECODED_SHORT_SIDE / min(height, width))
                self.height, self.width = max(1, round(height * scale)), max(1, round(width * scale))
                self._reader: Any = decord.VideoReader(str(path), num_threads=1, height=self.height, width=self.width)
                self._times: NDArray[np.float64] = self._reader.get_frame_timestamp(range(len(self._reader)))
        except Exception as error:  # decord raises its own kinds, and RuntimeError, for a damaged file
            raise open_error(path, EXPECTED, error) from error
        self.n_frames = len(self._reader)
        self._times = self._times - self._times[0, 0]
        self.duration = float(self._times[-1, 1])
        self.frame_rate = float(self._reader.get_avg_fps())

    def frames_at(self, times: Sequence[float]) -> list[Frames]:
        order = np.argsort(self._times[:, 0], kind="stable")
        indices = order[
            np.searchsorted(self._times[order, 0], np.asarray(times) + HALF_TICK_SECONDS, side="right") - 1
        ].clip(0)
        try:
            with quiet_stderr():
                distinct, which = np.unique(indices, return_inverse=True)
                batch = list(self._reader.get_batch(distinct.tolist()).asnumpy())
                self._reader.seek(0)  # lets the decoder drop what it holds: 2.2 GB after one frame of a 30 s 720p clip
        except Exception as error:
            raise open_error(self._path, EXPECTED, error) from error
        return [batch[i] for i in which]

    def close(self) -> None:
        del self._reader


_READERS: dict[str, Any] = {"decord": DecordReader, "pyav": PyAVReader}


def _rotation(frame: Any) -> float:
    """Degrees by which a decoded frame must be turned anticlockwise to stand upright."""
    return float(getattr(frame, "rotation", 0) or 0)
