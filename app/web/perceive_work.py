"""The Perceive tab's data: one recording through the pipeline and the network, with the
time and memory of each step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unipercept.app.web.job import Job, without_folders

if TYPE_CHECKING:
    from torch import Tensor

    from unipercept.embedding import EmbeddingMap
    from unipercept.perception.explain import Explanation, NamedPieces
    from unipercept.pipelines import Pipeline
    from unipercept.results import Embedding, Labels

AUTO = "auto"


@dataclass(frozen=True, eq=False)
class Analysis:
    """The outcome for one recording.

    `emap` is the first of `n_maps` maps; `raw` what `read` gave, `piece` its first piece.
    """

    path: Path
    modality: str
    model: str
    raw: Any
    piece: Any
    emap: EmbeddingMap
    n_maps: int
    embedding: Embedding
    labels: Labels | None
    explanation: Explanation | None
    note: str  # about the head, in words
    notice: str  # why the labels are not to be trusted; or ""
    is_trained: bool
    seconds: dict[str, float]
    peak_mb: float | None

    @property
    def stem(self) -> str:
        """What the names of files begin with that are made of the recording."""
        return self.path.stem[:60] or "recording"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: what the API gives."""
        found: dict[str, Any] = {
            "file": self.path.name,
            "modality": self.modality,
            "model": without_folders(self.model),
            "labels": None if self.labels is None else self.labels.to_dict()["labels"][:20],
            "note": f"{self.notice} {self.note}".strip(),
            "is_out_of_distribution": bool(self.notice),
            "vector": self.embedding.vector.tolist(),
            "n_maps": self.n_maps,
            "map": {
                "shape": list(self.emap.tensor.shape),
                "axes": {
                    name: {
                        "along": axis.dim,
                        "from": float(axis.values[0]),
                        "to": float(axis.values[-1]),
                        "unit": axis.unit,
                    }
                    for name, axis in self.emap.coords.items()
                },
            },
            "seconds": {name: round(value, 4) for name, value in self.seconds.items()},
            "peak_mb": self.peak_mb,
        }
        if self.explanation is not None:
            peaks = self.explanation.peaks()
            found["evidence"] = {name: {"at": value, "unit": unit} for name, (value, unit) in peaks.items()}
        return found

    def write(self, folder: Path) -> list[Path]:
        """The files to download: the vector, the map with its axes, and all facts."""
        paths = [folder / f"{self.stem}{end}" for end in (".vector.csv", ".map.safetensors", ".json")]
        vector = self.embedding.vector.tolist()
        paths[0].write_text(
            "feature,value\n" + "".join(f"{i},{x:.9g}\n" for i, x in enumerate(vector)), encoding="utf-8"
        )
        replace(self.emap, metadata={**self.emap.metadata, "source": self.path.name}).save(paths[1])
        paths[2].write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return paths


def analyse(path: Path, modality: str, model: str, job: Job) -> Analysis:
    """Read, embed, encode, name and explain one file.

    Every network with a head for the modality runs once. The first gives the vector; labels and evidence come from the
    one for which the recording is least out of distribution.

    Raises:
        InputError: the file cannot be used, or there is no such modality or model.
    """
    job.tell(0.02, "loading the library")
    from unipercept.api import detect_modality, ood_score, pipeline
    from unipercept.app.memory import PeakMemory
    from unipercept.model_cards import model_card, tasks_for
    from unipercept.perception.explain import explain_named
    from unipercept.pipelines.base import no_head_message
    from unipercept.pipelines.detect import check_input
    from unipercept.results import Embedding

    check_input(path)
    found = detect_modality(path) if modality == AUTO else modality
    memory, clock = PeakMemory(), _Clock(dict.fromkeys(("read", "embed", "network"), 0.0))
    job.tell(0.1, f"reading it as {found}")
    passes = [_pass(pipeline(found, name), path, job, clock) for name in tasks_for(model, found)]
    first = passes[0]
    card, labels, explanation = model_card(first.model), None, None
    note, notice = no_head_message(card.name, found), ""
    heard = [(one.named, one) for one in passes if one.named is not None]
    if heard:
        named, best = min(heard, key=lambda pair: ood_score(pair[0].labels))
        labels = named.labels
        card = model_card(best.model)
        note = without_folders(f"Head of {card.name}, trained on {card.trained_on}. {card.metric}.")
        if reason := labels.metadata.get("notice"):
            notice = f"Do not trust these labels: this is {reason}."
        job.tell(0.92, "evidence")
        explanation = explain_named(
            named, best.pipe, path, best.model, on_progress=lambda share: job.tell(0.92 + 0.03 * share, "evidence")
        )
        clock.stop("explain")
    embedding = Embedding(first.vector, path.name, found, first.model, {"n_maps": first.n_maps})
    job.tell(0.95, "drawing")
    return Analysis(
        path, found, card.name, first.raw, first.piece, first.emap, first.n_maps, embedding, labels, explanation, note,
        notice, not card.is_untrained, clock.seconds, memory.rise_mb(),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Pass:
    """Outputs of one network for the recording. `piece` and `emap` are the first of its pieces and maps."""

    pipe: Pipeline[Any]
    model: str
    raw: Any
    piece: Any
    emap: EmbeddingMap
    n_maps: int
    vector: Tensor
    named: NamedPieces | None


def _pass(pipe: Pipeline[Any], path: Path, job: Job, clock: _Clock) -> _Pass:
    from unipercept.perception.explain import name_pieces
    from unipercept.pipelines.base import pool_vector

    assert pipe.model is not None
    model, raw, n_maps = pipe.model, pipe.read(path), 0
    firsts: list[tuple[Any, EmbeddingMap]] = []

    def maps() -> Iterator[EmbeddingMap]:
        nonlocal n_maps
        for number, piece in enumerate(pipe.split(raw)):
            clock.stop("read")
            job.tell(min(0.85, 0.2 + 0.1 * number), f"piece {number + 1}: map and network")
            emap = pipe.embed(piece)
            clock.stop("embed")
            if not firsts:
                firsts.append((piece, emap))
            n_maps += len(emap)
            yield emap
            clock.stop("network")

    if model.labels is None:
        named, vector = None, pool_vector((model.pooled(emap), emap.real_share()) for emap in maps())
    else:
        named = name_pieces(pipe, maps(), source=str(path))
        vector = named.vector
    clock.stop("network")
    return _Pass(pipe, model.name, raw, *firsts[0], n_maps, vector, named)


class _Clock:
    """Adds the time since the last stop to a step."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.mark = seconds, time.perf_counter()

    def stop(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] = self.seconds.get(step, 0.0) + now - self.mark
        self.mark = now
