"""Sound files as mono blocks at a requested sample rate, read in pieces whatever their length.

libsndfile (through soundfile) reads wav, flac, ogg (Vorbis, Opus), mp3, aiff, au, caf, w64, rf64 and others. What it
does not know (m4a/AAC, wma, webm, amr, WavPack …) is read through PyAV where that is installed. Blocks hold about a
second; the resampler is libsoxr's streaming one, so where the blocks end leaves no trace in the waveform.

A damaged file is refused, a FLAC that ends early too; a wav that was cut short is read as far as it goes.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError, MissingDependencyError, import_optional
from unipercept.pipelines.files import check_file, open_error
from unipercept.pipelines.quiet import quiet_stderr

Block = NDArray[np.float32]

MAX_BLOCK_VALUES = 1 << 20  # samples times channels in memory at once: 4 MiB
RESAMPLER_QUALITY = "HQ"  # libsoxr's, what librosa calls "soxr_hq": its default
EXPECTED = "sound (wav, flac, ogg, mp3, aiff …)"


@dataclass(frozen=True)
class SoundFile:
    """The header of a sound file. `n_samples` per channel is what the header states, None if it does not."""

    path: Path
    sample_rate: int
    channels: int
    n_samples: int | None
    format: str
    reader: str

    def blocks(self) -> Iterator[Block]:
        """The mean of all channels in [-1, 1], block after block.

        Raises:
            InputError: the file is damaged, or holds values that are not finite.
        """
        read = _soundfile_blocks(self) if self.reader == "soundfile" else _av_blocks(self.path, self.sample_rate)
        for block in read:
            if not np.isfinite(block).all():
                raise InputError(f"{self.path} holds samples that are not finite (NaN or infinite); repair it first")
            yield block


def open_sound(path: str | Path) -> SoundFile:
    """Read the header.

    Raises:
        InputError: the path cannot be read, or is no sound that a reader knows, or is empty.
        MissingDependencyError: soundfile is not installed.
    """
    path = check_file(path)
    soundfile = import_optional("soundfile", extra="audio")
    try:
        with quiet_stderr():  # mpg123, which reads mp3 for libsndfile, has much to say of bytes that are none
            info = soundfile.info(_name(path))
        sound = SoundFile(path, info.samplerate, info.channels, info.frames, info.format, "soundfile")
    except (soundfile.SoundFileError, TypeError) as error:
        opened = _open_av(path)
        if opened is None:
            # TypeError: soundfile takes a file named .raw for samples without a header
            reason = "samples without a header" if isinstance(error, TypeError) else _reason(error)
            raise open_error(path, EXPECTED, reason) from error
        sound = opened
    if sound.n_samples == 0 or sound.sample_rate < 1 or sound.channels < 1:
        raise InputError(f"{path} holds no sound: its header says {sound.n_samples} samples at {sound.sample_rate} Hz")
    return sound


def _reason(error: Exception) -> object:
    """What libsndfile says, but for where it says of a file that is there that it is not:
    mpg123 has found no frame in it.
    """
    said = str(getattr(error, "error_string", error))  # without the path, which our own message names
    return "no sound in it" if "File does not exist or is not a regular file" in said else said


def _name(path: Path) -> str | bytes:
    """A path as libsndfile opens it: on POSIX a name is bytes, which need not be UTF-8."""
    return os.fsencode(path) if os.name == "posix" else str(path)


def resample(blocks: Iterator[Block], from_rate: int, to_rate: int) -> Iterator[Block]:
    """Mono blocks at another sample rate; the same waveform however the input was cut into blocks."""
    if from_rate == to_rate:
        yield from blocks
        return
    soxr = import_optional("soxr", extra="audio")
    stream = soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32", quality=RESAMPLER_QUALITY)
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)


def _soundfile_blocks(sound: SoundFile) -> Iterator[Block]:
    soundfile = import_optional("soundfile", extra="audio")
    block_length = max(1, min(sound.sample_rate, MAX_BLOCK_VALUES // sound.channels))
    buffer = np.empty((block_length, sound.channels), np.float32)
    total = 0
    try:
        with quiet_stderr():
            file = soundfile.SoundFile(_name(sound.path))
        with file:
            while len(block := _quietly_read(file, buffer)):
                total += len(block)
                yield _mean_of_columns(block)
    except soundfile.SoundFileError as error:
        raise open_error(
            sound.path, EXPECTED, f"damaged after {total / sound.sample_rate:.2f} s ({_reason(error)})"
        ) from error
    if sound.format == "FLAC" and sound.n_samples and total < sound.n_samples:  # STREAMINFO gives the exact length
        raise open_error(
            sound.path,
            EXPECTED,
            f"cut short, {total / sound.sample_rate:.2f} s of {sound.n_samples / sound.sample_rate:.2f} s",
        )


def _mean_of_columns(block: Block) -> Block:
    """The mean of samples x channels over channels.

    NumPy's own takes ten times as long over so short a row, with the same result.
    """
    if block.shape[1] >= 8:  # from here on NumPy adds in another order
        mean: Block = block.mean(axis=1)
        return mean
    total = block[:, 0].copy()
    for channel in range(1, block.shape[1]):
        total += block[:, channel]
    total /= np.float32(block.shape[1])
    return total


def _quietly_read(file: Any, buffer: Block) -> Block:
    with quiet_stderr():  # mpg123 again, of frames that are damaged
        block: Block = file.read(out=buffer)
    return block


def _open_av(path: Path) -> SoundFile | None:
    """The header as PyAV sees it; None where PyAV is absent or finds no sound."""
    try:
        av = import_optional("av", extra="video")
    except MissingDependencyError:
        return None
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                return None
            stream = container.streams.audio[0]
            seconds = None if stream.duration is None else float(stream.duration * stream.time_base)
            n_samples = None if seconds is None else round(seconds * stream.rate)
            return SoundFile(path, stream.rate, stream.channels, n_samples, container.format.name, "PyAV")
    except (av.error.FFmpegError, OSError, ValueError):
        return None


def _av_blocks(path: Path, sample_rate: int) -> Iterator[Block]:
    av = import_optional("av", extra="video")
    try:
        with av.open(str(path)) as container:
            # Planar float keeps every channel, so that their mean is ours and not FFmpeg's down-mix.
            to_float = av.AudioResampler(format="fltp", rate=sample_rate)
            for frame in container.decode(audio=0):
                yield from _mean_of_channels(to_float.resample(frame))
            yield from _mean_of_channels(to_float.resample(None))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise open_error(path, EXPECTED, error) from error


def _mean_of_channels(frames: list[Any]) -> Iterator[Block]:
    for frame in frames:
        yield frame.to_ndarray().mean(axis=0, dtype=np.float32)
