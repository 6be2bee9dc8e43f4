"""One recording through the pipeline and the network, with what each step cost: what the Perceive tab draws."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unipercept.app.web.jobs import Job, without_folders
from unipercept.errors import InputError

if TYPE_CHECKING:
    from unipercept.embedding import EmbeddingMap
    from unipercept.perception.explain import Explanation
    from unipercept.results import Embedding, Labels

AUTO = "auto"


@dataclass(frozen=True, eq=False)
class Looked:
    """What came of one recording. `emap` is the first of `n_maps` maps; `raw` what `read` gave, `piece` its first piece."""

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
    is_trained: bool
    is_strange: bool  # unlike all that the head was trained on
    seconds: dict[str, float]
    peak_mb: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: what the API gives."""
        found: dict[str, Any] = {
            "file": self.path.name,
            "modality": self.modality,
            "model": without_folders(self.model),
            "labels": None if self.labels is None else self.labels.to_dict()["labels"][:20],
            "note": self.note,
            "is_strange": self.is_strange,
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
        stem = self.path.stem[:60] or "recording"
        paths = [folder / f"{stem}.vector.csv", folder / f"{stem}.map.safetensors", folder / f"{stem}.json"]
        vector = self.embedding.vector.tolist()
        paths[0].write_text("feature,value\n" + "".join(f"{i},{x:.9g}\n" for i, x in enumerate(vector)))
        replace(self.emap, metadata={**self.emap.metadata, "source": self.path.name}).save(paths[1])
        paths[2].write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return paths


def look(path: Path, modality: str, model: str, job: Job) -> Looked:
    """Read, embed, encode, name and explain one file.

    Raises:
        InputError: the file cannot be used, or there is no such modality or model.
    """
    job.tell(0.02, "loading the library")
    from unipercept.api import detect_modality, perceive, pipeline
    from unipercept.app.memory import PeakMemory
    from unipercept.models import model_card
    from unipercept.perception.explain import explain_file
    from unipercept.pipelines.base import no_head_message, pool_vector
    from unipercept.pipelines.detect import check_input
    from unipercept.results import Embedding, Labels

    check_input(path)
    found = detect_modality(path) if modality == AUTO else modality
    pipe = pipeline(found, model)
    assert pipe.model is not None
    card = model_card(pipe.model.name)
    seconds, memory = dict.fromkeys(("read", "embed", "network"), 0.0), PeakMemory()
    clock = _Clock(seconds)
    job.tell(0.1, f"reading it as {found}")
    raw = pipe.read(path)
    pooled: list[tuple[Any, Any]] = []
    first, n_maps = None, 0
    for piece in _timed(pipe.split(raw), clock):
        job.tell(min(0.85, 0.2 + 0.1 * n_maps), f"piece {len(pooled) + 1}: map and network")
        emap = pipe.embed(piece)
        clock.stop("embed")
        pooled.append((pipe.model.pooled(emap), emap.real_share()))
        clock.stop("network")
        n_maps += len(emap)
        first = first or (piece, emap)
    vector = pool_vector(pooled)
    if first is None:
        raise InputError(f"{path.name} gave nothing to look at")
    labels = explanation = None
    note, is_strange = no_head_message(card.name, found), False
    if pipe.model.labels is not None:
        job.tell(0.87, "naming it")
        # Of several heads the one that knows such recordings best; but `universal` itself tells of a series what is odd in it.
        named = perceive(path, modality=found, model=card.name if found == "timeseries" else model)
        assert isinstance(named, Labels)
        labels = named
        card = model_card(labels.model)
        note = without_folders(f"Head of {card.name}, trained on {card.trained_on}. {card.metric}.")
        if notice := labels.metadata.get("notice"):
            note, is_strange = f"Do not trust these labels: this is {notice}. {note}", True
        clock.stop("name")
        job.tell(0.92, "what it looked at")
        explanation = _explained(explain_file, path, labels.model)
        clock.stop("explain")
    embedding = Embedding(vector, path.name, found, card.name, {"n_maps": n_maps})
    job.tell(0.95, "drawing")
    return Looked(
        path, found, card.name, raw, *first, n_maps, embedding, labels, explanation, note, not card.is_untrained, is_strange,
        seconds, memory.rise_mb(),
    )  # fmt: skip


def _explained(explain_file: Any, path: Path, model: str) -> Explanation | None:
    try:
        found: Explanation = explain_file(path, model)
    except InputError:  # a head that has no spatial evidence to show
        return None
    return found


class _Clock:
    """Adds the time since the last stop to a step."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.mark = seconds, time.perf_counter()

    def stop(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] = self.seconds.get(step, 0.0) + now - self.mark
        self.mark = now


def _timed(pieces: Iterator[Any], clock: _Clock) -> Iterator[Any]:
    for piece in pieces:
        clock.stop("read")
        yield piece
