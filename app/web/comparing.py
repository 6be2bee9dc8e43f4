"""Several recordings as vectors: how alike they are, where they lie on a plane, and what is nearest in an archive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unipercept.app.web.jobs import Job, without_folders
from unipercept.errors import InputError, UniperceptError, one_line

if TYPE_CHECKING:
    from unipercept.perception.search import Archive

MAX_FILES = 60
THUMBNAIL_PIXELS = 224


@dataclass(eq=False)
class Compared:
    """N recordings of one model. What could not be read is in `failures`: (name, line)."""

    paths: list[Path]
    modalities: list[str]
    vectors: NDArray[np.float32]
    model: str
    thumbnails: list[Any] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    networks: set[str] = field(default_factory=set)  # the default model has one for each kind

    @property
    def names(self) -> list[str]:
        return [path.name for path in self.paths]

    def similarity(self, *, centred: bool = False) -> NDArray[np.float64]:
        """NxN cosines; `centred` takes off what all vectors share, which hides how they differ."""
        vectors = self.vectors.astype(np.float64)
        if centred and len(vectors) > 1:
            vectors = vectors - vectors.mean(axis=0)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = vectors / np.maximum(norms, 1e-12)
        found: NDArray[np.float64] = unit @ unit.T
        return found

    def plane(self) -> NDArray[np.float64]:
        """Nx2: the two directions in which the vectors differ most (principal components), signs fixed."""
        centred = self.vectors.astype(np.float64) - self.vectors.mean(axis=0)
        if len(centred) < 2:
            return np.zeros((len(centred), 2))
        left, strength, _ = np.linalg.svd(centred, full_matrices=False)
        places = np.zeros((len(centred), 2))
        count = min(2, left.shape[1])
        places[:, :count] = left[:, :count] * strength[:count]
        for column in range(count):  # svd leaves the sign open
            if places[np.abs(places[:, column]).argmax(), column] < 0:
                places[:, column] *= -1
        return places

    def archive(self) -> Archive:
        """The same, ready to be searched."""
        from unipercept.perception.search import Archive

        return Archive([str(path) for path in self.paths], np.ascontiguousarray(self.vectors, np.float32), self.model)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: what the API gives."""
        return {
            "files": self.names,
            "modalities": self.modalities,
            "model": self.model,
            "networks": sorted(self.networks),
            "similarity": self.similarity().round(6).tolist(),
            "centred_similarity": self.similarity(centred=True).round(6).tolist(),
            "plane": self.plane().round(6).tolist(),
            "failures": [{"file": name, "error": line} for name, line in self.failures],
        }


def compare(paths: Sequence[Path], model: str, job: Job, *, draws: bool = False, at_least: int = 2) -> Compared:
    """Encode files one by one; bad ones are listed, and the rest goes on.

    Raises:
        InputError: too many files, or fewer than `at_least` that can be read; the line says why the first cannot.
    """
    if len(paths) > MAX_FILES:
        raise InputError(
            f"at most {MAX_FILES} recordings are compared at a time, got {len(paths)}; use `unipercept encode` for more"
        )
    job.tell(0.02, "loading the library")
    from unipercept.api import encode, pipeline

    done = Compared([], [], np.empty((0, 0), np.float32), model)
    vectors = []
    for number, path in enumerate(paths):
        job.tell(0.05 + 0.9 * number / len(paths), f"{number + 1} of {len(paths)}: {path.name}")
        try:
            found = encode(path, model=model)
            thumbnail = None
            if draws:
                emap = next(iter(pipeline(found.modality).maps(path)))
                thumbnail = emap.to_image().convert("RGB")
                thumbnail.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        except UniperceptError as error:
            done.failures.append((path.name, one_line(without_folders(str(error)))))
            continue
        done.paths.append(path)
        done.modalities.append(found.modality)
        done.thumbnails.append(thumbnail)
        done.networks.add(found.model)
        vectors.append(found.vector.numpy())
    if len(vectors) < at_least:
        reason = f"; {done.failures[0][0]}: {done.failures[0][1]}" if done.failures else ""
        raise InputError(f"at least {at_least} readable recordings are needed, got {len(vectors)}{reason}")
    if len({len(vector) for vector in vectors}) > 1:
        raise InputError(
            "these kinds of recordings have vectors of different lengths in this model; compare one kind at a time"
        )
    done.vectors = np.stack(vectors)
    return done


def nearest(query: Path, archive: Archive, top: int, job: Job) -> list[tuple[str, float]]:
    """(path, cosine) of the nearest recordings of an archive, encoded by its own model.

    Raises:
        InputError: the query cannot be read, or the archive's model is not here.
    """
    job.tell(0.1, "reading the query")
    from unipercept.api import encode

    vector = encode(query, model=archive.model or "default").vector.numpy()
    job.tell(0.9, f"searching {len(archive.paths):,} vectors")
    return archive.nearest(vector, top)
