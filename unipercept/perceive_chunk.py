"""The unit of work of `perceive`: several files to the labels of each head (outer ring).

Maps of one shape share a pass of the network, across the windows of a long recording and across files. A file is read
once for all heads with the same map settings. `pipelines.batches` bounds how many maps wait for the network.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

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
            objects for files of the same kind.
        on_progress: called with the share that is done.

    Raises:
        WeightsError: a model cannot be obtained at all.
    """
    batches: Batches[Heads, tuple[HeadOutputs, ...]] = Batches(predict_batch)
    waiting: deque[_Recording] = deque()
    for number, path in enumerate(paths):
        recording = _Recording(path)
        waiting.append(recording)

        def tell(share: float, done: int = number) -> None:
            if on_progress:
                on_progress((done + share) / len(paths))

        try:
            heads = heads_of(path)
            recording.said = [pipe(path) for pipe in heads if not pipe.looks_at_maps]
            _read(recording, [pipe for pipe in heads if pipe.looks_at_maps], batches, tell)
        except FILES_FAULT as error:
            recording.error = error
        tell(1.0)
        while waiting and waiting[0].is_done():
            yield waiting[0].path, waiting.popleft().outcome()
    batches.flush()
    yield from ((recording.path, recording.outcome()) for recording in waiting)


def _read(
    recording: _Recording,
    heads: list[Pipeline[Any]],
    batches: Batches[Heads, tuple[HeadOutputs, ...]],
    tell: Callable[[float], object],
) -> None:
    """Queue the maps of a file for the network; heads with the same map settings share one reading of the file."""
    alike: dict[Any, list[Pipeline[Any]]] = {}
    for pipe in heads:
        pipe.labels()  # raises without a head, before a long file is read
        alike.setdefault((pipe.modality, getattr(pipe, "config", None)), []).append(pipe)
    for number, group in enumerate(alike.values()):
        outputs = tuple(HeadOutputs() for _ in group)
        recording.outputs += zip(group, outputs, strict=True)
        raw = group[0].read(recording.path)
        count = group[0].count(raw)
        for done, piece in enumerate(group[0].split(raw), 1):
            emap = group[0].embed(piece)
            for one in outputs:
                one.expect(emap)
            batches.add(tuple(group), outputs, emap)
            if count:
                tell((number + min(1.0, done / count)) / len(alike))
