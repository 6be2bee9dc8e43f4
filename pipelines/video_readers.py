"""Video files as frames at wanted times, through PyAV or decord, behind one small protocol.

Frames are upright (rotation metadata is applied), RGB, uint8. Of a time t one gets the frame shown at t: the last one
whose presentation time is not after it, so recordings with uneven frame times are sampled rightly.

Shapes: T frames, H rows, W columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError, MissingDependencyError, import_optional
from unipercept.pipelines.files import check_file, open_error
from unipercept.pipelines.quiet import quiet_stderr

Frames = NDArray[np.uint8]

EXPECTED = "video (mp4, mov, avi, webm, mkv)"
MAX_FRAME_PIXELS = 8192 * 8192
DECODED_SHORT_SIDE = 256  # frames are scaled to it while decoding: what a 224 map needs
MAX_PIXEL_ASPECT = 4.0  # pixels longer than that are a damaged header; anamorphic film has 2
ASSUMED_FRAME_RATE = 25.0  # of a stream that gives neither times nor a rate, as FFmpeg assumes
HALF_TICK_SECONDS = 5e-5  # presentation times are rounded to the container's tick, 1/1000 s or finer
LOST_SECONDS, LOST_SHARE = 0.5, 0.1  # more than both of a video without frames at its end: it is damaged
SEEK_SECONDS = 4.0  # a jump ahead of more than this is sought, a shorter one decoded through
SEEK_MARGINS = (
    0.0,
    3.0,
    12.0,
)  # seconds: where a jump ends too late (transport streams), from how much earlier it is tried again


TimedFrame = tuple[float, Any]  # seconds since the first frame, PyAV's frame
_NOWHERE: tuple[Iterator[TimedFrame], TimedFrame | None, TimedFrame | None] = (iter(()), None, None)


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
            InputError: no frame can be decoded, or none for a tenth of the video at its end.
        """

    def close(self) -> None:
        """Close the file and free its memory."""


def open_video(path: str | Path, reader: str = "auto") -> VideoReader:
    """Open a video by its header.

    Args:
        reader: "pyav", "decord", or "auto": PyAV where it is installed, else decord.

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
        except InputError as error:  # the first reader's error: PyAV reports more about a file than decord
            failure = failure if isinstance(failure, InputError) else error
    assert failure is not None
    raise failure


class PyAVReader:
    """FFmpeg through PyAV: opens nearly everything, knows rotation, pixel shape and exact presentation times.

    Where the file gives no presentation times (raw H.264, avi with B-frames) frames are counted: frame i is shown at
    i / frame_rate. Such a file is never sought in.
    """

    name = "pyav"

    def __init__(self, path: Path) -> None:
        self._av = import_optional("av", extra="video")
        # Silent. Any other level, PANIC too, calls Python from FFmpeg's threads and can
        # deadlock on closing (PyAV #751).
        self._av.logging.set_level(None)
        self._path = path
        self._open()
        self._check_is_whole()
        self.frame_rate = float(self._stream.average_rate or self._stream.guessed_rate or 0)
        self.n_frames = int(self._stream.frames or 0)
        self._start, self._is_timed = 0.0, True
        self._position = _NOWHERE
        try:
            start, first = next(self._decode(after_seek=False), (0.0, None))
            if first is None:
                raise InputError(f"{path} holds no frame that can be decoded; it may have been cut short")
            is_reordered_avi = self._container.format.name == "avi" and self._stream.codec_context.has_b_frames
            self._start, self._is_timed = start, first.pts is not None and not is_reordered_avi
            self.height, self.width = self._upright(first).shape[:2]
            self.duration = self._find_duration()
        except InputError:
            self.close()
            raise
        except (self._av.FFmpegError, ValueError) as error:
            self.close()
            raise open_error(path, EXPECTED, error) from error

    def frames_at(self, times: Sequence[float]) -> list[Frames]:
        found: list[Frames] = []
        kept: Any = None  # the frame that found[-1] shows: one frame is one array, however often it is shown
        try:
            decoded, shown, following = self._position
            if shown is None or shown[0] > min(times, default=0.0):
                decoded, shown, following = _NOWHERE
            for time in times:
                if following is None or (self._is_timed and following[0] + SEEK_SECONDS < time):
                    decoded = self._decode_from(time)
                    shown = following = next(decoded, None)
                while following is not None and following[0] <= time + HALF_TICK_SECONDS:
                    shown, following = following, next(decoded, None)
                if shown is None:
                    break
                found.append(found[-1] if shown[1] is kept else self._upright(shown[1]))
                kept = shown[1]
                if following is None:
                    break
            self._position = decoded, shown, following  # the next segment goes on from here
        except (self._av.FFmpegError, ValueError) as error:
            following = None
            if not found:
                raise open_error(self._path, EXPECTED, error) from error
        if not found or shown is None:
            raise InputError(f"{self._path} holds no frame that can be decoded; it may have been cut short")
        if following is None:
            self._check_reaches(times[-1], shown)
        return found + [found[-1]] * (len(times) - len(found))

    def _check_reaches(self, time: float, last: TimedFrame) -> None:
        """The last frame that could be decoded is shown until `time`: where that is long, most of it is lost."""
        frame = last[1]
        own = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
        end = last[0] + max(own, 1 / (self.frame_rate or ASSUMED_FRAME_RATE))
        if time > end + max(LOST_SECONDS, LOST_SHARE * self.duration):
            raise InputError(
                f"{self._path} is damaged or was cut short: of {self.duration:.1f} s, none can be decoded after {end:.1f} s"
            )

    def close(self) -> None:
        self._container.close()

    def _open(self) -> None:
        try:
            self._container: Any = self._av.open(str(self._path))
        except (self._av.FFmpegError, ValueError, OSError) as error:
            raise open_error(self._path, EXPECTED, error) from error
        self._stream: Any = self._container.streams.best("video")  # not the cover picture
        if self._stream is None:
            self._container.close()
            raise InputError(f"{self._path} has no picture stream; expected {EXPECTED}")
        self._stream.thread_type = "AUTO"

    def _check_is_whole(self) -> None:
        """A file whose table of frames comes first (mp4 for the web) opens after a download that broke off, and its
        last frame would stand still.
        """
        entries: Any = getattr(self._stream, "index_entries", ())  # an older PyAV has none
        size = self._path.stat().st_size
        if not len(entries) or entries[-1].pos + entries[-1].size <= size:
            return
        missing = next(entry for entry in entries if entry.pos + entry.size > size)
        told = float(self._stream.duration * self._stream.time_base) if self._stream.duration else 0.0
        there = float((missing.timestamp - entries[0].timestamp) * self._stream.time_base)
        self.close()
        raise InputError(
            f"{self._path} was cut short: {there:.1f} s of {told:.1f} s are there; fetch it again, or cut it to what it holds"
        )

    def _decode_from(self, time: float) -> Iterator[TimedFrame]:
        """(seconds since the first frame, frame) from a frame that is shown at `time` or before it."""
        if self._is_timed:
            for margin in SEEK_MARGINS:
                if time <= margin or not self._seek(time - margin):
                    break
                decoded = self._decode(after_seek=True)
                first = next(decoded, None)
                if first is not None and first[0] <= time + HALF_TICK_SECONDS:
                    return itertools.chain([first], decoded)
        return self._decode_from_start()

    def _decode_from_start(self) -> Iterator[TimedFrame]:
        self._reopen()  # not every format can be sought, and to before the first frame least of all
        return self._decode(after_seek=False)

    def _reopen(self) -> None:
        self._container.close()
        self._open()

    def _seek(self, time: float) -> bool:
        try:
            offset = int((self._start + time) / self._stream.time_base)
            self._container.seek(offset, stream=self._stream, backward=True)
        except self._av.FFmpegError:
            return False
        return True

    def _decode(self, after_seek: bool) -> Iterator[TimedFrame]:
        """Frames in the order in which they are shown; after a jump from the first that
        does not lean on one before it.
        """
        is_whole, count = not after_seek, 0
        for packet in self._container.demux(self._stream):
            is_whole = is_whole or packet.is_keyframe
            try:
                frames = packet.decode() if is_whole else ()
            except self._av.error.InvalidDataError:  # as players do, go on with the next
                continue
            for frame in frames:
                if after_seek and frame.is_corrupt:
                    continue
                yield self._time(frame, count), frame
                count += 1

    def _time(self, frame: Any, count: int) -> float:
        if not self._is_timed:
            return count / (self.frame_rate or ASSUMED_FRAME_RATE)
        return float(frame.pts * self._stream.time_base) - self._start if frame.pts is not None else 0.0

    def _upright(self, frame: Any) -> Frames:
        """The frame as it is looked at: pixels square, the short side no more than is needed, turned."""
        if frame.width * frame.height > MAX_FRAME_PIXELS:
            raise InputError(
                f"{self._path} has frames of {frame.width}x{frame.height}; at most {MAX_FRAME_PIXELS} pixels are read"
            )
        aspect = float(self._stream.sample_aspect_ratio or 1)
        aspect = aspect if 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT else 1.0
        width = frame.width * aspect
        scale = min(1.0, DECODED_SHORT_SIDE / min(width, frame.height))
        pixels: Frames = frame.to_ndarray(
            format="rgb24", width=max(1, round(width * scale)), height=max(1, round(frame.height * scale))
        )
        return np.ascontiguousarray(np.rot90(pixels, round(_rotation(frame) / 90) % 4))

    def _find_duration(self) -> float:
        if self._stream.duration and not self._container.format.name.startswith(
            "mpeg"
        ):  # there it is a guess by the bit rate
            return float(self._stream.duration * self._stream.time_base)
        # Matroska and others give the end of the file, or nothing where it was recorded live: the last packets know.
        end = self._container.duration
        if self._is_timed and end and self._seek(float(end / self._av.time_base) - self._start):
            duration = self._end_of_packets()
            if duration > 0:
                return duration
        self._reopen()
        return self._end_of_packets()

    def _end_of_packets(self) -> float:
        last, count, frame_seconds = 0.0, 0, 1 / (self.frame_rate or ASSUMED_FRAME_RATE)
        for packet in self._container.demux(self._stream):
            if packet.pts is not None:
                seconds = float(packet.duration * packet.time_base) if packet.duration else frame_seconds
                last = max(last, float(packet.pts * packet.time_base) + seconds - self._start)
            count += packet.size > 0
        return last if self._is_timed else count * frame_seconds


class DecordReader:
    """decord, for where PyAV is not: turns frames upright and scales them while decoding;
    takes every pixel for square.
    """

    name = "decord"

    def __init__(self, path: Path) -> None:
        decord = import_optional("decord", extra="video")
        decord.logging.set_level(decord.logging.QUIET)
        self._path = path
        with path.open("rb") as file:
            head = file.read(8)
        if head[4:] not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip") and head[:4] != b"\x1aE\xdf\xa3":
            # Tried with 0.6.1: wrong frames of transport and program streams, avi and wmv.
            raise InputError(
                f"decord reads wrong frames of files other than mp4, mov, mkv and webm; read {path} by PyAV"
            )
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


_READERS: dict[str, Any] = {"pyav": PyAVReader, "decord": DecordReader}


def _rotation(frame: Any) -> float:
    """Degrees by which a decoded frame must be turned anticlockwise to stand upright."""
    return float(getattr(frame, "rotation", 0) or 0)
