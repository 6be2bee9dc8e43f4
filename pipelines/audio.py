"""Sound to log-mel map. H is frequency in Hz, W is time in s (or the other way round, as the paper says it).

Shapes: B batch, C = 1 channel, H rows, W columns, N samples, T frames, M mel bins.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from unipercept.devices import on_cpu
from unipercept.embedding import Axis, EmbeddingMap
from unipercept.errors import InputError
from unipercept.pipelines.base import PerceptionModel, Pipeline, as_array, check_raw
from unipercept.pipelines.mel import LOW_HZ, log_mel, mel_centres, n_frames
from unipercept.pipelines.sound_file import Block, SoundFile, open_sound, resample


class Normalisation(NamedTuple):
    """Mean and standard deviation of a set's log-mel values; the map is (value - mean) / (2 std)."""

    mean: float
    std: float


# Published with the AST recipes, used by UniRepLKNet's audio code.
SPEECH_COMMANDS = Normalisation(-6.845978, 5.5654526)
AUDIOSET = Normalisation(-4.2677393, 4.5689974)
ESC50 = Normalisation(-6.6268077, 5.358466)

MAX_AMPLITUDE = 32.0  # 30 dB above full scale: floating point that holds integers reaches further
MAX_CHANNELS = 64  # of an array; with more, the samples lie along the rows, as soundfile reads them
SHORT_CLIP_MULTIPLE = 128  # frames; a clip shorter than a window is padded up to a multiple of this


@dataclass(frozen=True)
class AudioConfig:
    """How sound becomes a map.

    Args:
        sample_rate: Hz; every input is resampled to it.
        target_length: frames of a window: 1024 (10.24 s, AudioSet), 128 (Speech Commands) or 512 (ESC-50).
        n_mels, frame_length_ms, hop_length_ms, low_hz, high_hz: the filter bank; high_hz None is Nyquist.
        normalisation: mean and standard deviation, e.g. SPEECH_COMMANDS, AUDIOSET, ESC50.
        layout: "frequency_time" (H mel, W time: the released code) or "time_frequency" (the paper).
        pads_to_window: a short clip too becomes a map of `target_length` frames: a network
            trained on such maps needs it.
    """

    sample_rate: int = 16_000
    target_length: int = 1024
    n_mels: int = 128
    frame_length_ms: float = 25.0
    hop_length_ms: float = 10.0
    low_hz: float = LOW_HZ
    high_hz: float | None = None
    normalisation: Normalisation = AUDIOSET
    layout: Literal["frequency_time", "time_frequency"] = "frequency_time"
    pads_to_window: bool = False

    def __post_init__(self) -> None:
        if min(self.sample_rate, self.target_length, self.n_mels) < 1 or self.frame_length < 2 or self.hop_length < 1:
            raise InputError(
                "AudioConfig needs a positive sample_rate, target_length and n_mels, and frames of 2 samples or more, got "
                f"{self.sample_rate}, {self.target_length}, {self.n_mels}, and frames of {self.frame_length} every {self.hop_length}"
            )
        if self.hop_length > self.frame_length:
            raise InputError(
                f"hop_length_ms must be at most frame_length_ms ({self.frame_length_ms:g}), got {self.hop_length_ms:g}"
            )
        if self.layout not in ("frequency_time", "time_frequency"):
            raise InputError(f'layout must be "frequency_time" or "time_frequency", got {self.layout!r}')
        if not self.normalisation[1] > 0:
            raise InputError(f"normalisation needs a positive standard deviation, got {self.normalisation[1]}")

    @property
    def frame_length(self) -> int:
        """Samples in a frame."""
        return int(self.sample_rate * self.frame_length_ms / 1000)

    @property
    def hop_length(self) -> int:
        """Samples from one frame to the next."""
        return int(self.sample_rate * self.hop_length_ms / 1000)

    @property
    def window_length(self) -> int:
        """Samples that give exactly `target_length` frames."""
        return (self.target_length - 1) * self.hop_length + self.frame_length

    def energies(self, waveform: Tensor) -> Tensor:
        """...xN samples to ...xTxM log-mel energies of this filter bank, before normalisation."""
        return log_mel(
            waveform,
            sample_rate=self.sample_rate,
            n_mels=self.n_mels,
            frame_length=self.frame_length,
            hop_length=self.hop_length,
            low_hz=self.low_hz,
            high_hz=self.high_hz,
        )


@dataclass(frozen=True, eq=False)
class Waveform:
    """Sound in memory, or a file that stays on disk.

    Args:
        samples: N real numbers in [-1, 1], mono; None while the sound stays on disk.
        sample_rate: of `samples`, in Hz.
        file: where the sound comes from, or still lies.
        start_sample: where `samples` start in the whole sound, at `sample_rate`.
        is_window: one of several equal windows of a longer sound, the last of which is padded to full length.
    """

    samples: Tensor | None
    sample_rate: int
    file: SoundFile | None = None
    start_sample: int = 0
    is_window: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_array(samples: "Tensor | np.ndarray[Any, Any]", sample_rate: int, source: str = "") -> "Waveform":
        """Sound from N or channels x N numbers; integers are scaled by their type's range, channels averaged.

        Raises:
            InputError: another shape, no samples, samples that are not finite, or no positive sample rate.
        """
        if not isinstance(samples, Tensor):
            samples = as_array(samples)
            samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)
        waveform = torch.as_tensor(samples)
        if waveform.ndim == 2 and len(waveform) > max(waveform.shape[1], MAX_CHANNELS):
            raise InputError(
                f"sound must be N or channels x N real samples, got {tuple(waveform.shape)}; transpose samples x channels"
            )
        if waveform.ndim == 2:
            waveform = _to_float(waveform).mean(dim=0)
        if waveform.ndim != 1 or not waveform.numel() or waveform.is_complex() or waveform.dtype == torch.bool:
            raise InputError(f"sound must be N or channels x N real samples, got {tuple(samples.shape)}")
        if not sample_rate >= 1:  # NaN too
            raise InputError(f"sample_rate must be a positive number of Hz, got {sample_rate}")
        waveform = _to_float(waveform)
        if not torch.isfinite(waveform).all():
            raise InputError("sound holds samples that are not finite (NaN or infinite); repair it first")
        return Waveform(
            waveform, int(sample_rate), metadata={"source": source, "original_sample_rate": int(sample_rate)}
        )


class AudioPipeline(Pipeline[Waveform]):
    """Sound of any length, rate and channel count to log-mel maps of 1 x mel x time.

    A sound of at most one window (`target_length` frames) makes one map, padded up to a multiple of 128 frames; a
    longer one makes windows of `target_length` frames, the last one padded to the same length. Windows follow each
    other frame by frame: they overlap by frame_length - hop_length samples, so that together they hold exactly the
    frames of the whole. Samples after the last whole frame are dropped (Kaldi snips edges), except that a sound shorter
    than one frame is padded with zeros to one.

    The recipe subtracts the mean of the clip from its waveform. Here it is the mean of the window; as Kaldi removes
    each frame's own mean right after, this shows in rounding alone.

    A padded frame is 0 before normalisation, as in the released code, so -mean / (2 std)
    after it; `mask` is False there.
    """

    modality = "audio"

    def __init__(self, config: AudioConfig = AudioConfig(), *, model: PerceptionModel | None = None) -> None:
        super().__init__(model)
        self.config = config

    def read(self, path: str | Path) -> Waveform:
        """Open a sound file. At most one window is loaded and resampled; what is longer stays on disk for `split`."""
        sound = open_sound(path)
        raw = Waveform(None, sound.sample_rate, sound, metadata=_file_metadata(sound))
        seconds = None if sound.n_samples is None else sound.n_samples / sound.sample_rate
        if seconds is None or seconds > self.config.window_length / self.config.sample_rate:
            return raw
        windows = list(islice(self.split(raw), 2))  # two where the header said less than there is
        return windows[0] if len(windows) == 1 else raw

    def split(self, raw: Waveform) -> Iterator[Waveform]:
        """Windows in order, at the pipeline's sample rate; memory is bounded by one window and a second of the file.

        Raises:
            InputError: the file is damaged, holds values that are not finite, no samples at all, or too few a second.
        """
        if raw.samples is not None and self._is_ready(raw):
            yield raw
            return
        config = self.config
        if raw.sample_rate <= 2 * config.low_hz:
            source = raw.metadata.get("source") or "the sound"
            raise InputError(
                f"{source} says that it has {raw.sample_rate} samples a second, which hold nothing above {config.low_hz:g} Hz"
            )
        step = config.target_length * config.hop_length
        pending, start = np.empty(0, np.float32), 0
        for block in resample(_native_blocks(raw), raw.sample_rate, config.sample_rate):
            pending = np.concatenate([pending, block])
            while len(pending) >= config.window_length + config.hop_length:  # at least a frame is left for the next
                yield self._window(raw, pending[: config.window_length], start, is_window=True)
                pending, start = pending[step:], start + step
        yield self._window(raw, pending, start, is_window=start > 0)

    def count(self, raw: Waveform) -> int | None:
        """Windows, by the length that the file's header states."""
        if raw.samples is not None:
            seconds = len(raw.samples) / raw.sample_rate
        elif (stated := raw.metadata.get("duration_second")) is not None:
            seconds = float(stated)
        else:
            return None
        samples = round(seconds * self.config.sample_rate)
        frames = n_frames(samples, self.config.frame_length, self.config.hop_length)
        return max(1, -(-frames // self.config.target_length))

    @on_cpu
    def embed(self, raw: Waveform) -> EmbeddingMap:
        """Log-mel of one window (B = 1, time from the start of the sound), or of all windows of a longer sound.

        In the second case B is their number, the time axis starts at each window's own start, and `start_second` in the
        metadata lists where the windows start. Differentiable with respect to samples that need no resampling.

        Raises:
            InputError: as for `split`; or samples above `MAX_AMPLITUDE`.
        """
        check_raw(raw, Waveform, "Waveform.from_array")
        if raw.samples is not None and self._is_ready(raw):
            return self._embed_window(raw)
        maps = [self._embed_window(window) for window in self.split(raw)]
        if len(maps) == 1:
            return maps[0]
        starts = [start for emap in maps for start in emap.metadata["start_second"]]
        metadata = {**maps[0].metadata, "start_second": starts}  # window 0 starts at 0: its time axis serves for all
        return EmbeddingMap.concat([replace(emap, coords=maps[0].coords, metadata=metadata) for emap in maps])

    def _is_ready(self, raw: Waveform) -> bool:
        assert raw.samples is not None
        frames = n_frames(len(raw.samples), self.config.frame_length, self.config.hop_length)
        return raw.sample_rate == self.config.sample_rate and frames <= self.config.target_length

    def _window(self, raw: Waveform, samples: Block, start: int, *, is_window: bool) -> Waveform:
        if not len(samples):
            source, rate = raw.metadata.get("source") or "the sound", self.config.sample_rate
            raise InputError(f"{source} is too short: not one sample is left of it at {rate} Hz")
        return Waveform(
            torch.from_numpy(samples.copy()), self.config.sample_rate, raw.file, start, is_window, raw.metadata
        )

    def _embed_window(self, window: Waveform) -> EmbeddingMap:
        config = self.config
        assert window.samples is not None
        if not (peak := float(window.samples.detach().abs().max())) <= MAX_AMPLITUDE:
            source = window.metadata.get("source") or "the sound"
            raise InputError(
                f"{source} holds samples as large as {peak:g}; expected [-1, 1]: divide integers by their full scale"
            )
        samples = window.samples - window.samples.mean()
        energies = config.energies(pad(samples, (0, max(0, config.frame_length - len(samples)))))
        frames = len(energies)
        is_full = window.is_window or config.pads_to_window
        width = config.target_length if is_full else _padded_length(frames, config.target_length)
        mean, std = config.normalisation
        values = ((pad(energies, (0, 0, 0, width - frames)) - mean) / (2 * std)).T
        mask = (torch.arange(width, device=values.device) < frames).expand(config.n_mels, width)
        return self._map(values, mask if frames < width else None, window, frames)

    def _map(self, values: Tensor, mask: Tensor | None, window: Waveform, frames: int) -> EmbeddingMap:
        config, width = self.config, values.shape[1]
        centres = (torch.arange(width, dtype=torch.float64) * config.hop_length + config.frame_length / 2).add(
            window.start_sample
        )
        frequency = mel_centres(config.sample_rate, config.n_mels, config.low_hz, config.high_hz)
        rows, columns = ("H", "W") if config.layout == "frequency_time" else ("W", "H")
        if config.layout == "time_frequency":
            values, mask = values.T, None if mask is None else mask.T
        return EmbeddingMap(
            values[None, None],
            self.modality,
            {
                "frequency": Axis(rows, frequency, "Hz"),
                "time": Axis(columns, centres / config.sample_rate, "s"),
            },
            None if mask is None else mask[None].clone(),
            {
                **window.metadata,
                "start_second": [window.start_sample / config.sample_rate],
                "sample_rate": config.sample_rate,
                "frame_length": config.frame_length,
                "hop_length": config.hop_length,
                "mean": config.normalisation[0],
                "std": config.normalisation[1],
                "scaling": "(log-mel - mean) / (2 * std)",
                "layout": config.layout,
            },
        )


def _padded_length(frames: int, target_length: int) -> int:
    """A short clip's frames rounded up to a multiple of 128, at most a window."""
    return min(target_length, -(-frames // SHORT_CLIP_MULTIPLE) * SHORT_CLIP_MULTIPLE)


def _native_blocks(raw: Waveform) -> Iterator[Block]:
    """The sound at its own rate, about a second at a time."""
    if raw.samples is None:
        assert raw.file is not None
        yield from raw.file.blocks()
        return
    samples = raw.samples.detach().cpu().float().numpy()
    for start in range(0, len(samples), raw.sample_rate):
        yield samples[start : start + raw.sample_rate]


def _file_metadata(sound: SoundFile) -> dict[str, Any]:
    return {
        "source": str(sound.path),
        "original_sample_rate": sound.sample_rate,
        "channels": sound.channels,
        "duration_second": None if sound.n_samples is None else sound.n_samples / sound.sample_rate,
        "format": sound.format,
        "reader": sound.reader,
    }


def _to_float(samples: Tensor) -> Tensor:
    """Integers of any type to [-1, 1); floating point stays, at least float32."""
    if samples.is_floating_point():
        return samples if samples.dtype in (torch.float32, torch.float64) else samples.float()
    if samples.dtype == torch.uint8:  # 8-bit sound is unsigned, its silence 128
        return (samples.float() - 128) / 128
    if samples.dtype in (torch.int8, torch.int16, torch.int32):
        return samples.float() / -float(torch.iinfo(samples.dtype).min)
    raise InputError(f"sound must be floating point, uint8, int8, int16 or int32, got {samples.dtype}")
