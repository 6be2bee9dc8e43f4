"""The unit of work of `perceive`: several files to the labels of each head (outer ring).

Maps of one shape share a pass of the network, across the windows of a long recording and across files. A file is read
once for all heads with the same map settings. `pipelines.batches` bounds how many maps wait for the network. As in
`encode`, threads decode files ahead of the network, in order; which maps share a batch depends on the files alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from unipercept.decoders import Decoders
from unipercept.embedding import EmbeddingMap
from unipercept.errors import InputError, MissingDependencyError, NoTrainedHeadError, UniperceptError
from unipercept.pipelines.base import HeadOutputs, Pipeline, predict_batch
from unipercept.pipelines.batches import Batches
from unipercept.results import Anomalies, Labels

Heads = tuple[Pipeline[Any], ...]
FILES_FAULT = (InputError, NoTrainedHeadError, MissingDependencyError)


@dataclass(eq=False)
class _Recording:
    """One file: its results so far, and the outputs that are still incomplete."""

    path: str
    said: list[Labels | Anomalies] = field(default_factory=list)
    outputs: list[tuple[Pipeline[Any], HeadOutputs]] = field(default_factory=list)
    error: UniperceptError | None = None

    def is_done(self) -> bool:
        return self.error is not None or not any(outputs.n_expected for _, outputs in self.outputs)

    def outcome(self) -> list[Labels | Anomalies] | UniperceptError:
        if self.error is not None:
            return self.error
        try:
            return self.said + [pipe.conclude(outputs, source=self.path)[0] for pipe, outputs in self.outputs]
        except InputError as error:
            return error


def perceive_chunk(
    paths: Sequence[str],
    heads_of: Callable[[str], Heads],
    *,
    on_progress: Callable[[float], object] | None = None,
) -> Iterator[tuple[str, list[Labels | Anomalies] | UniperceptError]]:
    """Each file with the result of each of its heads, or with the error; in order, as soon as it is done.

    Args:
        heads_of: gives the pipelines, each with a model, for a file by its content; the same
            objects for files of the same kind. Called in several threads.
        on_progress: called with the share that is done.

    Raises:
        WeightsError: a model cannot be obtained at all.
    """
    batches: Batches[Heads, tuple[HeadOutputs, ...]] = Batches(predict_batch)
    waiting: deque[_Recording] = deque()
    with Decoders(len(paths), processes=False) as decoders:
        opened = (decoders.submit(_open, path, heads_of) for path in paths)
        ahead = deque(islice(opened, 2 * decoders.n_workers))
        for number, path in enumerate(paths):
            recording = _Recording(path)
            waiting.append(recording)

            def tell(share: float, done: int = number) -> None:
                if on_progress:
                    on_progress((done + share) / len(paths))

            try:
                others, readings = ahead.popleft().result()
                recording.said = [pipe(path) for pipe in others]
                _queue(recording, readings, batches, decoders, tell)
            except FILES_FAULT as error:
                recording.error = error
            ahead.extend(islice(opened, 1))
            tell(1.0)
            while waiting and waiting[0].is_done():
                yield waiting[0].path, waiting.popleft().outcome()
        batches.flush()
    yield from ((recording.path, recording.outcome()) for recording in waiting)


@dataclass
class _Reading:
    """The maps of a file for the heads that share them; the first is ready, the others are made when asked for."""

    heads: Heads
    first: EmbeddingMap | None
    rest: Iterator[EmbeddingMap]
    count: int | None

    def maps(self, decoders: Decoders) -> Iterator[EmbeddingMap]:
        """All of them; the next one is decoded while the network works on the one before."""
        emap = self.first
        while emap is not None:
            following = decoders.submit(next, self.rest, None)
            try:
                yield emap
            finally:
                emap = following.result()


def _open(path: str, heads_of: Callable[[str], Heads]) -> tuple[list[Pipeline[Any]], list[_Reading]]:
    """The heads that do not look at maps; and for the others, grouped by their map settings, the file's maps."""
    heads = heads_of(path)
    alike: dict[Any, list[Pipeline[Any]]] = {}
    for pipe in heads:
        if pipe.looks_at_maps:
            pipe.labels()  # raises without a head, before a long file is read
            alike.setdefault((pipe.modality, getattr(pipe, "config", None)), []).append(pipe)
    readings = []
    for group in alike.values():
        raw = group[0].read(path)
        maps = map(group[0].embed, group[0].split(raw))
        readings.append(_Reading(tuple(group), next(maps, None), maps, group[0].count(raw)))
    return [pipe for pipe in heads if not pipe.looks_at_maps], readings


def _queue(
    recording: _Recording,
    readings: list[_Reading],
    batches: Batches[Heads, tuple[HeadOutputs, ...]],
    decoders: Decoders,
    tell: Callable[[float], object],
) -> None:
    """Queue the maps of a file for the network."""
    for number, reading in enumerate(readings):
        outputs = tuple(HeadOutputs() for _ in reading.heads)
        recording.outputs += zip(reading.heads, outputs, strict=True)
        for done, emap in enumerate(reading.maps(decoders), 1):
            for one in outputs:
                one.expect(emap)
            batches.add(reading.heads, outputs, emap)
            if reading.count:
                tell((number + min(1.0, done / reading.count)) / len(readings))
