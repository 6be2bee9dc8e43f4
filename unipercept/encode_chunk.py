"""The unit of work of `encode`: a chunk of files becomes a list of vectors (outer ring; any
engine can run it anywhere).

Files are decoded ahead of the backbone, in parallel and in order (decoders.py); maps of one shape are batched across
files. Which maps share a batch depends on the files alone, never on timing, so the same chunk gives the same bytes. A
long file is read piece by piece; no more than `batches.MAX_PENDING` numbers wait for the backbone.

Shapes: B maps of a batch, C channels, H rows, W columns, D width of a vector.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unipercept.decoders import Answer, Decoders
from unipercept.devices import on_cpu
from unipercept.errors import MESSAGE_LIMIT, InputError, UniperceptError, WeightsError, one_line
from unipercept.model_cards import ModelCard, check_model_name, model_card, model_for
from unipercept.models import Model, load_model
from unipercept.pipelines import pipeline_class
from unipercept.pipelines.base import PerceptionModel, Pipeline, unit_vector
from unipercept.pipelines.batches import BATCH_SIZE, Batches, Maps
from unipercept.pipelines.detect import check_input, detect_modality

AUTO = "auto"
HASH_BLOCK = 1 << 20  # bytes
FEW_NUMBERS = 1 << 22  # of a file's maps, all together: what a decoding process hands over, 16 MiB of float32


@dataclass(frozen=True)
class EncodeSettings:
    """The settings that, besides the files, determine the vectors.

    Args:
        model: a name that `unipercept models` lists, or a checkpoint file.
        modality: "auto" (by content), or the one that all files are.
        device: "auto", "cpu", "cuda" …
        batch_size: maps of 224x224 that the backbone sees at once.
    """

    model: str = "default"
    modality: str = AUTO
    device: str = AUTO
    batch_size: int = BATCH_SIZE

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", check_model_name(self.model))
        if not isinstance(self.batch_size, Integral) or self.batch_size < 1:
            raise InputError(f"batch_size must be a whole number of at least 1, got {self.batch_size!r}")
        if self.modality != AUTO:
            pipeline_class(self.modality)


@dataclass(frozen=True)
class EncodedFile:
    """One file as a vector: D float32 of length 1, pooled over `n_maps` maps."""

    path: str
    modality: str
    model: str
    content_hash: str
    vector: Tensor
    n_maps: int


@dataclass(frozen=True)
class FailedFile:
    """A file that gave no vector. `is_final`: its content is at fault, so that trying again is of no use."""

    path: str
    content_hash: str
    error: str
    is_final: bool


def encode_chunk(
    paths: Sequence[str],
    settings: EncodeSettings,
    *,
    on_file: Callable[[str], object] | None = None,
    on_share: Callable[[float], object] | None = None,
    n_workers: int | None = None,
) -> list[EncodedFile | FailedFile]:
    """Encode files; the result depends on their content and on `settings` alone, and keeps their order.

    Args:
        on_file: called with each path once it has been read.
        on_share: called with the share of a long file that has been read.
        n_workers: decoding threads; by default as many as pay (decoders.py). Changes no result.

    Raises:
        WeightsError: the model cannot be obtained at all. A bad file raises nothing: it becomes a `FailedFile`.
    """
    with Decoders(len(paths), n_workers) as decoders:
        return next(encode_chunks([paths], settings, decoders, on_file=on_file, on_share=on_share))


def encode_chunks(
    chunks: Iterable[Sequence[str]],
    settings: EncodeSettings,
    decoders: Decoders,
    *,
    on_file: Callable[[str], object] | None = None,
    on_share: Callable[[float], object] | None = None,
) -> Iterator[list[EncodedFile | FailedFile]]:
    """As `encode_chunk`, for each of several chunks; the next ones are being decoded when one is done."""
    vectors: list[_FileVector | FailedFile] = []
    encoder = _Encoder(settings)
    for opened in _decode_ahead(chunks, settings, decoders):
        if opened is None:
            encoder.flush()
            yield [vector if isinstance(vector, FailedFile) else vector.finish() for vector in vectors]
            vectors = []
            continue
        vectors.append(opened if isinstance(opened, FailedFile) else encoder.collect(opened, decoders, on_share))
        if on_file:
            on_file(opened.path)


@dataclass
class _Opened:
    """A file whose first map is ready; the others are made when asked for."""

    path: str
    modality: str
    content_hash: str
    first: Maps
    rest: Iterator[Maps]
    count: int | None  # of all maps, where the file says it
    is_read: bool = False  # whole, so that `rest` takes no time


def _decode_ahead(
    chunks: Iterable[Sequence[str]], settings: EncodeSettings, decoders: Decoders
) -> Iterator[_Opened | FailedFile | None]:
    """The files in order, and None at the end of each chunk."""
    pipelines = _Pipelines(model_card(settings.model))

    def submit() -> Iterator[Future[_Opened | FailedFile] | None]:
        for chunk in chunks:
            yield from (decoders.submit(_open, path, settings, pipelines, decoders) for path in chunk)
            yield None

    submitted = submit()
    pending = deque(islice(submitted, 2 * decoders.n_workers))
    while pending:
        future = pending.popleft()
        opened = None if future is None else future.result()
        pending.extend(islice(submitted, 1))
        yield opened


def make_pipeline(
    modality: str, card: ModelCard, *, model: PerceptionModel | None = None, config: Any = None
) -> Pipeline[Any]:
    """A pipeline whose maps suit a model: images get the size that it was trained on, unless `config` is given."""
    found: Any = pipeline_class(modality)
    if config is None and card.maps and card.head_modality == modality:
        from unipercept.perception.settings import MapSettings

        config = MapSettings.from_json(card.maps).pipeline_config()
    if config is None and modality == "image":
        from unipercept.pipelines.image import ImageConfig

        config = ImageConfig(size=card.image_size)
    usual = type(found().config)
    if config is not None and not isinstance(config, usual):
        raise TypeError(f"the config of {modality} must be of type {usual.__name__}, got {type(config).__name__}")
    made: Pipeline[Any] = found(model=model) if config is None else found(model=model, config=config)
    return made


class _Pipelines(dict[str, Pipeline[Any]]):
    """One reader a modality; it has no model, since batching is done here."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        self.card = card

    def __missing__(self, modality: str) -> Pipeline[Any]:
        self[modality] = make_pipeline(modality, model_card(model_for(self.card.name, modality)))
        return self[modality]


def _open(path: str, settings: EncodeSettings, pipelines: _Pipelines, decoders: Decoders) -> _Opened | FailedFile:
    digest = ""
    try:
        answer = decoders.in_process(decode_small, path, settings.model, settings.modality)
        if answer is not None:
            return _opened(path, answer)
        with decoders.in_thread():
            digest = content_hash(path)
            modality = detect_modality(path) if settings.modality == AUTO else settings.modality
            pipeline = pipelines[modality]
            raw = pipeline.read(path)
            maps = map(pipeline.embed, pipeline.split(raw))
            first = next(maps, None)
        if first is None:
            raise InputError(f"nothing to encode: {path} gave no map")
        return _Opened(path, modality, digest, first, maps, pipeline.count(raw))
    except Exception as error:  # whatever a file or its codec does, the other files go on
        return _failed(path, digest, error)


@dataclass(frozen=True)
class _ReadMap:
    """The numbers of a map that another process has made: BxCxHxW, and B shares of real input."""

    tensor: Tensor
    shares: Tensor

    def real_share(self) -> Tensor:
        return self.shares


def decode_small(path: str, model: str, modality: str) -> Answer | None:
    """A file with all of its maps, if these are few, for `_opened` in another process; else None."""
    digest = content_hash(path)
    modality = detect_modality(path) if modality == AUTO else modality
    pipeline = _pipelines_for(model)[modality]
    raw = pipeline.read(path)
    count = pipeline.count(raw)
    arrays, n_numbers = [], 0
    for piece in pipeline.split(raw):
        emap = pipeline.embed(piece)
        arrays += [emap.tensor.numpy(), emap.real_share().numpy()]
        n_numbers += emap.tensor.numel()
        if max(n_numbers, emap.tensor.numel() * (count or 1)) > FEW_NUMBERS:
            return None
    return Answer([modality, digest, count], arrays) if arrays else None


@cache
def _pipelines_for(model: str) -> _Pipelines:
    return _Pipelines(model_card(model))


def _opened(path: str, answer: Answer) -> _Opened:
    numbers = map(torch.from_numpy, answer.arrays)
    maps = (_ReadMap(tensor, shares) for tensor, shares in zip(numbers, numbers, strict=True))
    modality, digest, count = answer.value
    return _Opened(path, modality, digest, next(maps), maps, count, is_read=True)


def _maps(opened: _Opened, decoders: Decoders) -> Iterator[Maps]:
    """All maps of a file; the next one is decoded while the backbone works on the one before."""
    emap: Maps | None = opened.first
    if opened.is_read:
        yield opened.first
        yield from opened.rest
        return
    while emap is not None:
        following = decoders.submit(next, opened.rest, None)
        try:
            yield emap
        finally:
            emap = following.result()


def _failed(path: str, digest: str, error: Exception) -> FailedFile:
    is_ours = isinstance(error, UniperceptError)
    line = one_line(error, MESSAGE_LIMIT) if is_ours else f"{type(error).__name__}: {one_line(error)}"
    return FailedFile(path, digest, line, is_final=isinstance(error, InputError))


@dataclass
class _FileVector:
    """The weighted sum of a file's features so far. It keeps no maps: those of a whole chunk would not fit."""

    path: str
    modality: str
    content_hash: str
    total: Tensor | None = None
    n_maps: int = 0
    model: str = ""

    def add(self, features: Tensor, weight: float, model: str) -> None:
        part = features.double() * weight
        self.total = part if self.total is None else self.total + part
        self.n_maps += 1
        self.model = model

    def finish(self) -> EncodedFile | FailedFile:
        try:
            if self.total is None:
                raise InputError("nothing to encode: the input gave no map")
            vector = unit_vector(self.total)
        except InputError as error:
            return _failed(self.path, self.content_hash, error)
        return EncodedFile(self.path, self.modality, self.model, self.content_hash, vector, self.n_maps)


class _Encoder:
    """Adds the features of maps to the vectors of their files, in batches across files."""

    def __init__(self, settings: EncodeSettings) -> None:
        self.settings = settings
        self._batches: Batches[str, _FileVector] = Batches(self._run, settings.batch_size)

    @on_cpu
    def collect(
        self, opened: _Opened, decoders: Decoders, on_share: Callable[[float], object] | None
    ) -> _FileVector | FailedFile:
        """The vector of a file, all maps of which have been added."""
        vector = _FileVector(opened.path, opened.modality, opened.content_hash)
        try:
            for done, emap in enumerate(_maps(opened, decoders)):
                self._add(vector, emap)
                if on_share and opened.count:
                    on_share(min(1.0, (done + 1) / opened.count))
        except WeightsError:
            raise
        except Exception as error:  # as above
            return _failed(opened.path, opened.content_hash, error)
        return vector

    @on_cpu
    def flush(self) -> None:
        """Run what still waits for its batch."""
        self._batches.flush()

    def _add(self, vector: _FileVector, emap: Maps) -> None:
        name = model_for(self.settings.model, vector.modality)
        self._model(name, emap.tensor.shape[1])  # if it cannot take so many channels, only this file fails
        self._batches.add(name, vector, emap)

    def _run(self, name: str, maps: Tensor, owners: list[tuple[_FileVector, float]]) -> None:
        model = self._model(name, maps.shape[1])
        for (vector, weight), row in zip(owners, model.features(maps), strict=True):
            vector.add(row, weight, model.name)

    def _model(self, name: str, channels: int) -> Model:
        return load_model(name, in_channels=channels, device=self.settings.device)


def content_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes; of a Zarr folder, of its sorted names and their bytes.

    Raises:
        InputError: it is not a file with content.
    """
    path = check_input(path)
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if file != path:
            digest.update(file.relative_to(path).as_posix().encode("utf-8", "surrogateescape") + b"\0")
        try:
            with file.open("rb") as stream:
                while block := stream.read(HASH_BLOCK):
                    digest.update(block)
        except OSError as error:
            raise InputError(f"cannot read {file}: {one_line(error)}") from error
    return digest.hexdigest()
