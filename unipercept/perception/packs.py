"""Recordings as compact arrays of one shape, and batches of them as maps, on any device.

A recording is decoded once and kept in its form before augmentation: bytes of a picture or of folded frames, samples of
a sound's windows, points of a cloud, the folded cells of a series. `MapMaker` turns a batch into exactly the maps that
the modality's pipeline makes (tests compare them), so a trained model sees what it was trained on.

Shapes: R recordings, I items (windows, segments; mostly one a recording), B batch, V views,
N samples or points, S side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unipercept.datasets.base import LabelledSet, Sound
from unipercept.decoders import Answer, Decoders
from unipercept.embedding import EmbeddingMap
from unipercept.errors import InputError, UniperceptError, one_line
from unipercept.open3d_library import load_open3d
from unipercept.perception.settings import MapSettings
from unipercept.pipelines import pipeline_class
from unipercept.pipelines.audio import Waveform
from unipercept.pipelines.base import Pipeline
from unipercept.pipelines.image import CROP_RATIO, IMAGENET_MEAN, IMAGENET_STD
from unipercept.pipelines.mel import n_frames
from unipercept.pipelines.picture import Picture
from unipercept.pipelines.pointcloud import DEFAULT_VIEWS, Cloud, chosen_points
from unipercept.pipelines.projection import VIEW_ANGLES, depth_map, rotation, shade, splat_radius
from unipercept.pipelines.video import Clip

MAX_WINDOWS = 8  # of one recording, in training and evaluation; evenly spread over a longer one
SOUNDS_LOOKED_AT = 64  # for the window and the rate of a set
LENGTH_STEP = 32  # frames: what a window's length is a multiple of


@dataclass(frozen=True)
class Packs:
    """Decoded recordings.

    Args:
        values: I items: uint8 CxHxW, samples as float32 or int16 (full scale 32768), float32
            Nx3, or float16 1xSxS (series).
        lengths: I numbers of real samples (sounds) or observed cells (series), else as many ones.
        recording: I positions of the recording that an item belongs to, ascending.
        targets: R class indices; -1 of a recording without a class, which trains by its traits alone.
        ids: R names.
        skipped: (name, error) of recordings that could not be decoded.
        traits: IxT numbers that a network is to learn of the items beside their class, NaN
            where unknown (series_traits.py).
        n_quantities: so many of the last traits say with a single 1 what was measured (real series);
            NaN of an item of no quantity.
    """

    values: Tensor
    lengths: Tensor
    recording: Tensor
    targets: Tensor
    ids: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    traits: Tensor | None = None
    n_quantities: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def item_targets(self) -> Tensor:
        """I class indices."""
        return self.targets[self.recording]

    def subset(self, recordings: NDArray[np.int64]) -> Packs:
        """Some of the recordings, in ascending order of `recordings`."""
        place = torch.full((len(self),), -1)
        place[recordings] = torch.arange(len(recordings))
        kept = place[self.recording] >= 0
        return replace(
            self,
            values=self.values[kept],
            lengths=self.lengths[kept],
            recording=place[self.recording][kept],
            targets=self.targets[recordings],
            ids=tuple(self.ids[i] for i in recordings),
            skipped=(),
            traits=None if self.traits is None else self.traits[kept],
        )

    def with_class(self) -> Packs:
        """The recordings that have a class."""
        has_class = self.targets.cpu().numpy() >= 0
        return self if has_class.all() else self.subset(np.flatnonzero(has_class))

    def to(self, device: torch.device) -> Packs:
        """The same on another device."""
        return replace(
            self,
            values=self.values.to(device),
            lengths=self.lengths.to(device),
            recording=self.recording.to(device),
            targets=self.targets.to(device),
            traits=None if self.traits is None else self.traits.to(device),
        )


def joined(first: Packs, second: Packs) -> Packs:
    """The recordings of both, those of `first` before those of `second`."""
    traits = [part.traits for part in (first, second)]
    known = next((found for found in traits if found is not None), None)
    if known is not None:
        traits = [
            known.new_full((len(part.values), known.shape[1]), torch.nan) if found is None else found
            for part, found in zip((first, second), traits, strict=True)
        ]
    return Packs(
        torch.cat([first.values, second.values]),
        torch.cat([first.lengths, second.lengths]),
        torch.cat([first.recording, len(first) + second.recording]),
        torch.cat([first.targets, second.targets]),
        first.ids + second.ids,
        first.skipped + second.skipped,
        None if known is None else torch.cat(traits),  # type: ignore[arg-type]
        max(first.n_quantities, second.n_quantities),
    )


def decode(
    samples: LabelledSet,
    settings: MapSettings,
    *,
    max_bad_share: float = 0.1,
    on_sample: Callable[[int], object] | None = None,
) -> Packs:
    """Decode a set, in parallel, in order.

    Args:
        max_bad_share: share of the recordings that may fail to decode; they are listed in `skipped`.
        on_sample: called with the number of recordings that are done.

    Raises:
        InputError: more fail; the line names the first one.
    """
    pipe, described = make_pipeline(settings), settings.to_json()
    in_files = isinstance(samples.read(0), Path)
    if settings.modality == "pointcloud" and in_files:
        load_open3d()  # before the threads would import it concurrently

    def one(position: int) -> list[tuple[NDArray[Any], int]] | str:
        try:
            recording = samples.read(position)
            answer = decoders.in_process(pack_file, str(recording), described) if in_files else None
            if answer is not None:
                return list(zip(answer.arrays, answer.value, strict=True))
            with decoders.in_thread():
                return pack(pipe, recording, settings)
        except (UniperceptError, OSError) as error:
            return one_line(error)

    items: list[tuple[NDArray[Any], int]] = []
    recording: list[int] = []
    kept: list[int] = []
    skipped: list[tuple[str, str]] = []
    with Decoders(len(samples) if in_files else 0) as decoders:
        for position, made in enumerate(decoders.map(one, range(len(samples)))):
            if isinstance(made, str):
                skipped.append((samples.ids[position], made))
            else:
                items += made
                recording += [len(kept)] * len(made)
                kept.append(position)
            if on_sample:
                on_sample(position + 1)
    check_skipped(skipped, len(samples), max_bad_share)
    return Packs(
        torch.from_numpy(np.stack([values for values, _ in items])),
        torch.tensor([length for _, length in items]),
        torch.tensor(recording),
        torch.from_numpy(samples.targets[kept]),
        tuple(samples.ids[i] for i in kept),
        tuple(skipped),
    )


def check_skipped(skipped: Sequence[tuple[str, str]], n_samples: int, max_bad_share: float) -> None:
    """Raise InputError if more than a share of the recordings, or all of them, could not be decoded."""
    if len(skipped) > max_bad_share * n_samples or len(skipped) == n_samples:
        raise InputError(
            f"{len(skipped)} of {n_samples} recordings cannot be decoded, more than the {max_bad_share:.0%} that may; "
            f"first {skipped[0][0]}: {skipped[0][1]}"
        )


def make_pipeline(settings: MapSettings) -> Pipeline[Any]:
    """The pipeline that makes the maps of a run."""
    return pipeline_class(settings.modality)(config=settings.pipeline_config())  # type: ignore[call-arg]


def pack(pipe: Pipeline[Any], recording: Any, settings: MapSettings) -> list[tuple[NDArray[Any], int]]:
    """The items of one recording: (values, number of real samples)."""
    raw = to_raw(pipe, recording, settings.modality)
    if settings.modality == "pointcloud":
        return [(chosen_points(raw.points, settings.pipeline_config()), 1)]
    if settings.modality == "timeseries":
        return _spread([item for piece in pipe.split(raw) for item in _folded(pipe.embed(piece))])
    pieces = _spread(list(pipe.split(raw)))
    if settings.modality == "audio":
        length = settings.pipeline_config().window_length
        return [_padded(piece.samples.numpy(), length) for piece in pieces]
    return [(as_bytes(pipe.embed(piece)), 1) for piece in pieces]


def pack_file(path: str, described: str) -> Answer:
    """`pack` of a file in another process: arrays, and the numbers of real samples.

    Args:
        described: `MapSettings.to_json()`.
    """
    items = pack(_pipeline_of(described), Path(path), MapSettings.from_json(described))
    return Answer([length for _, length in items], [values for values, _ in items])


@cache
def _pipeline_of(described: str) -> Pipeline[Any]:
    return make_pipeline(MapSettings.from_json(described))


def to_raw(pipe: Pipeline[Any], recording: Any, modality: str) -> Any:
    """A dataset's raw input (see datasets/base.py) as the pipeline's own."""
    if isinstance(recording, str | Path) or modality == "timeseries":
        return pipe.read(recording)
    if isinstance(recording, Sound):
        return Waveform.from_array(recording.samples, recording.sample_rate)
    return {"image": Picture, "video": Clip, "pointcloud": Cloud}[modality].from_array(recording)  # type: ignore[attr-defined]


def as_bytes(emap: EmbeddingMap) -> NDArray[np.uint8]:
    """CxHxW: a picture's or video's map before normalisation. Exact: the pipelines resize bytes to bytes."""
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    frames = emap.tensor[0].reshape(-1, 3, *emap.tensor.shape[2:])
    values = ((frames * std + mean) * 255).flatten(0, 1)
    return np.asarray(values.round().clamp(0, 255).to(torch.uint8).numpy())


def stacked(clips: Tensor, size: int) -> Tensor:
    """Clips BxTxSxSx3 uint8 to items Bx(T 3)x size x size, as the video pipeline stacks
    them where it need not resample.

    Raises:
        InputError: frames that it would resample.
    """
    side = int(size / CROP_RATIO)
    if clips.shape[2:] != (side, side, 3):
        raise InputError(f"frames for maps of {size} must be {side}x{side}x3, got {tuple(clips.shape[2:])}")
    at = (side - size) // 2
    middle = clips[:, :, at : at + size, at : at + size]
    return middle.permute(0, 1, 4, 2, 3).flatten(1, 2).contiguous()


def as_samples(values: Tensor) -> Tensor:
    """Sounds kept as int16 in [-1, 1); anything else as it is."""
    return values.float() / 32_768 if values.dtype == torch.int16 else values


class MapMaker:
    """Batches of items to maps. Differentiable; draws nothing."""

    def __init__(self, settings: MapSettings) -> None:
        self.settings = settings
        self.config = settings.pipeline_config()
        self._constants: dict[tuple[Any, ...], Tensor] = {}
        self._views = torch.stack([rotation(VIEW_ANGLES[view]) for view in DEFAULT_VIEWS])

    def __call__(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """B items to (B V)xCxHxW maps, views of an item side by side, and their (B V) shares of real input."""
        if self.settings.modality == "audio":
            return self._sounds(values, lengths)
        if self.settings.modality == "pointcloud":
            return self._clouds(values)
        if self.settings.modality == "timeseries":
            return values.float(), lengths.float() / self.settings.size**2
        maps = self.normalised(values.float())
        return maps, maps.new_ones(len(maps))

    @property
    def n_views(self) -> int:
        """V."""
        return len(DEFAULT_VIEWS) if self.settings.modality == "pointcloud" else 1

    def normalised(self, pixels: Tensor) -> Tensor:
        """BxCxHxW from 0 to 255, red, green and blue of one frame or more, to the backbone's scale."""
        mean, std = self._kept("mean", IMAGENET_MEAN, pixels), self._kept("std", IMAGENET_STD, pixels)
        frames = pixels.reshape(len(pixels), -1, 3, *pixels.shape[2:]) / 255
        return ((frames - mean[:, None, None]) / std[:, None, None]).reshape(pixels.shape)

    def _kept(self, name: str, values: Any, like: Tensor) -> Tensor:
        """Constants, copied to the device once: a copy per batch would make the host wait for the GPU."""
        key = name, like.device, like.dtype
        if key not in self._constants:
            self._constants[key] = torch.as_tensor(values).to(like)
        return self._constants[key]

    def energies(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """BxN samples to log-mel BxMxT before normalisation, 0 on padding, and BxT bool."""
        config = self.config
        inside = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
        mean = (values * inside).sum(dim=1, keepdim=True) / lengths[:, None]
        made = config.energies((values - mean) * inside)
        at_least = lengths.clamp(min=config.frame_length)
        counts = 1 + torch.div(at_least - config.frame_length, config.hop_length, rounding_mode="floor")
        real = torch.arange(made.shape[1], device=values.device) < counts[:, None]
        return (made * real[:, :, None]).transpose(1, 2), real

    def scaled(self, energies: Tensor) -> Tensor:
        """Log-mel BxMxT to Bx1xMxT maps."""
        mean, std = self.config.normalisation
        scaled: Tensor = ((energies - mean) / (2 * std))[:, None]
        return scaled

    def _sounds(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        energies, real = self.energies(as_samples(values), lengths)
        return self.scaled(energies), real.float().mean(dim=1)

    def _clouds(self, points: Tensor) -> tuple[Tensor, Tensor]:
        size = self.settings.size
        moved = points - points.double().mean(dim=1, keepdim=True).to(points.dtype)
        scale = moved.square().sum(dim=2).amax(dim=1).sqrt().clamp(min=1e-12)
        unit = moved / scale[:, None, None]
        turned = torch.einsum("bnc,vdc->bvnd", unit, self._kept("views", self._views, points))
        picture, hit = shade(depth_map(turned, size, splat_radius(points.shape[1], size)))
        if self.settings.with_scale:
            value = (torch.log2(scale) / 4)[:, None, None, None] * hit
            picture = torch.cat([picture, value[:, :, None]], dim=2)
        return picture.flatten(0, 1), hit.float().mean(dim=(2, 3)).flatten()


def sound_settings(samples: LabelledSet) -> MapSettings:
    """Maps for a set of sounds, from a sample of them: their median sample rate, within 8 to 16 kHz (bins above it
    would stay empty), and a window as long as 95 % of them, up to 10.24 s.
    """
    pipe = make_pipeline(MapSettings("audio", length=1024))
    seconds, rates = [], []
    for position in np.linspace(0, len(samples) - 1, min(SOUNDS_LOOKED_AT, len(samples))).astype(int):
        try:
            raw = to_raw(pipe, samples.read(int(position)), "audio")
        except (UniperceptError, OSError):
            continue
        rates.append(int(raw.metadata["original_sample_rate"]))
        known = raw.metadata.get("duration_second")
        seconds.append(len(raw.samples) / raw.sample_rate if raw.samples is not None else known or 10.24)
    if not seconds:
        return MapSettings("audio")
    rate = int(min(16_000, max(8_000, np.median(rates))))
    frames = n_frames(max(int(float(np.quantile(seconds, 0.95)) * rate), rate // 40), rate // 40, rate // 100)
    return MapSettings("audio", sample_rate=rate, length=min(1024, max(1, -(-frames // LENGTH_STEP)) * LENGTH_STEP))


def _folded(emap: EmbeddingMap) -> list[tuple[NDArray[np.float16], int]]:
    """The variables of a series: cells, and how many of them were observed.

    A spike beyond half precision is cut off there.
    """
    assert emap.mask is not None
    largest = float(np.finfo(np.float16).max)
    cells = emap.tensor.clamp(-largest, largest).half().numpy()
    return list(zip(cells, emap.mask.flatten(1).sum(dim=1).tolist(), strict=True))


def _padded(samples: NDArray[np.float32], length: int) -> tuple[NDArray[np.float32], int]:
    values = np.zeros(length, np.float32)
    kept = min(len(samples), length)
    values[:kept] = samples[:kept]
    return values, kept


def _spread(pieces: Sequence[Any]) -> list[Any]:
    if len(pieces) <= MAX_WINDOWS:
        return list(pieces)
    return [pieces[i] for i in np.linspace(0, len(pieces) - 1, MAX_WINDOWS).round().astype(int)]
