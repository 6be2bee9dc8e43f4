"""The Compare tab's work: similarity of several recordings, their projection onto a plane, and
nearest neighbours in an archive.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unipercept.app.web import showing
from unipercept.app.web.files import recordings_below, unpack
from unipercept.app.web.job import Job, without_folders
from unipercept.app.web.models_work import usable_model
from unipercept.errors import InputError, UniperceptError, one_line

if TYPE_CHECKING:
    from unipercept.perception.search import Archive

Hits = list[tuple[str, float]]  # paths and cosines, the nearest first

MAX_FILES = 60
FORMULA = ("=", "+", "-", "@")  # what a cell begins with that a spreadsheet computes
MAX_COPIED_BYTES = 200 * 10**6  # of a neighbour that lies in an archive of the operator
OPENED = ("audio", "video", "image")  # kinds with a player, in the order of the page's
MIN_CENTRED = 5  # vectors; of two without their mean each is the other's opposite, whatever they are
THUMBNAIL_PIXELS = 224


@dataclass(eq=False)
class Compared:
    """N recordings of one model. What could not be read is in `failures`: (name, line)."""

    paths: list[Path]
    modalities: list[str]
    vectors: list[NDArray[np.float32]]  # a network's width each: those of other widths cannot be compared
    model: str
    thumbnails: list[bytes] = field(default_factory=list)  # WebP, where they were asked for
    failures: list[tuple[str, str]] = field(default_factory=list)
    networks: set[str] = field(default_factory=set)  # the default model has one for each kind
    files: list[str] = field(default_factory=list)  # to take home, where they were asked for

    @property
    def can_be_centred(self) -> bool:
        """Whether enough vectors of each width are here that their mean is more than themselves."""
        return all(len(rows) >= MIN_CENTRED for rows, _ in self._by_width())

    @property
    def names(self) -> list[str]:
        return [path.name for path in self.paths]

    def similarity(self, *, centred: bool = False) -> NDArray[np.float64]:
        """NxN cosines, missing between vectors of different widths; `centred` takes off what vectors share,
        which hides how they differ.
        """
        found = np.full((len(self.vectors), len(self.vectors)), np.nan)
        for rows, vectors in self._by_width():
            if centred and len(vectors) > 1:
                vectors = vectors - vectors.mean(axis=0)
            unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            found[np.ix_(rows, rows)] = unit @ unit.T
        return found

    def plane(self) -> NDArray[np.float64]:
        """Nx2: the two directions in which the vectors differ most (principal components), signs
        fixed; widths are kept apart.
        """
        width, offset = sum({len(vector) for vector in self.vectors}), 0
        apart = np.zeros((len(self.vectors), width))
        for rows, vectors in self._by_width():
            apart[rows, offset : offset + vectors.shape[1]] = vectors
            offset += vectors.shape[1]
        centred = apart - apart.mean(axis=0)
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

    def write(self, folder: Path) -> list[Path]:
        """The vectors, and their cosines, as tables with a row for each recording."""
        width = max(map(len, self.vectors))
        names = [f"./{name}" if name.startswith(FORMULA) else name for name in self.names]
        vectors = [["file", "modality", *(f"v{i}" for i in range(width))]]
        for name, modality, vector in zip(names, self.modalities, self.vectors, strict=True):
            vectors.append([name, modality, *(f"{x:.9g}" for x in vector)])
        cosines = [["file", *names]]
        for name, row in zip(names, self.similarity(), strict=True):
            cosines.append([name, *("" if np.isnan(x) else f"{x:.6f}" for x in row)])
        written = []
        for what, rows in (("vectors", vectors), ("similarity", cosines)):
            written.append(folder / f"{Path(self.names[0]).stem[:50]}-and-{len(self.names) - 1}-more-{what}.csv")
            with written[-1].open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(rows)
        return written

    def archive(self, width: int) -> Archive:
        """The recordings whose vectors have a width, ready to be searched.

        Raises:
            InputError: there are none.
        """
        from unipercept.perception.search import Archive

        rows = [i for i, vector in enumerate(self.vectors) if len(vector) == width]
        if not rows:
            raise InputError("the archive holds no recording that the query's network can be compared with")
        stacked = np.ascontiguousarray(np.stack([self.vectors[i] for i in rows]), np.float32)
        return Archive([str(self.paths[i]) for i in rows], stacked, self.model)

    def _by_width(self) -> list[tuple[list[int], NDArray[np.float64]]]:
        found = []
        for width in sorted({len(vector) for vector in self.vectors}):
            rows = [i for i, vector in enumerate(self.vectors) if len(vector) == width]
            found.append((rows, np.stack([self.vectors[i] for i in rows]).astype(np.float64)))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: what the API gives."""
        return {
            "files": self.names,
            "modalities": self.modalities,
            "model": self.model,
            "networks": sorted(self.networks),
            "similarity": _plain(self.similarity()),
            "centred_similarity": _plain(self.similarity(centred=True)) if self.can_be_centred else None,
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

    done = Compared([], [], [], model)
    vectors = []
    for number, path in enumerate(paths):
        job.tell(0.05 + 0.9 * number / len(paths), f"{number + 1} of {len(paths)}: {path.name}")
        try:
            found = encode(path, model=model)
            if draws:
                emap = next(iter(pipeline(found.modality).maps(path)))
                done.thumbnails.append(showing.webp(emap.to_image().convert("RGB"), THUMBNAIL_PIXELS))
        except UniperceptError as error:
            done.failures.append((path.name, one_line(without_folders(str(error)))))
            continue
        done.paths.append(path)
        done.modalities.append(found.modality)
        done.networks.add(found.model)
        vectors.append(found.vector.numpy())
    if len(vectors) < at_least:
        reason = f"; {done.failures[0][0]}: {done.failures[0][1]}" if done.failures else ""
        raise InputError(f"at least {at_least} readable recordings are needed, got {len(vectors)}{reason}")
    done.vectors = vectors
    return done


def nearest(query: Path, archive: Archive | Compared, top: int, job: Job) -> Hits:
    """The nearest recordings of an archive, encoded by its own model.

    Raises:
        InputError: the query cannot be read, or the archive's model is not here.
    """
    job.tell(0.9, "reading the query, searching")
    from unipercept.api import encode

    if not isinstance(archive, Compared):
        return archive.nearest(encode(query, model=archive.model or "default").vector.numpy(), top)
    vector = encode(query, model=archive.model).vector.numpy()
    return archive.archive(len(vector)).nearest(vector, top)


def compare_named(paths: Sequence[Path], model: str, job: Job, *, draws: bool = False) -> Compared:
    """As `compare`, by a model that visitors may name."""
    done = compare(paths, usable_model(model), job, draws=draws)
    if draws:
        done.files = [str(path) for path in done.write(job.folder)]
    return done


def search_files(query: Path, paths: Sequence[Path], top: int, job: Job) -> Hits:
    """The nearest of some files."""
    return nearest(query, compare(paths, "default", job, at_least=1), top, job)


def search_zip(query: Path, packed: Path, top: int, max_bytes: int, job: Job) -> Hits:
    """The nearest of the recordings in a zip file, which is unpacked to at most `max_bytes`.

    Raises:
        InputError: the zip file or its recordings cannot be used, or are too many.
    """
    folder = unpack(packed, job.folder / "archive", max_bytes, lambda share: job.tell(0.1 * share, "unpacking"))
    paths = recordings_below(folder, MAX_FILES)
    if len(paths) > MAX_FILES:
        raise InputError(
            f"at most {MAX_FILES} recordings are indexed here; use `unipercept encode` and --index for more"
        )
    return search_files(query, paths, top, job)


def search_archive(query: Path, stored: Path, top: int, job: Job) -> Hits:
    """The nearest in an archive of `unipercept encode`."""
    job.tell(0.05, "opening the archive")
    from unipercept.perception.search import Archive

    return nearest(query, Archive.open(stored), top, job)


@dataclass(frozen=True)
class Opened:
    """A recording for a player: its modality, and the file that the player is given; None where there is none."""

    name: str
    modality: str
    path: Path | None


def open_recording(path: Path, shared: Path, job: Job) -> Opened:
    """A recording in a form that a player takes: a picture is drawn anew, other files outside the folder `shared`
    (the operator's archives) are copied.

    Raises:
        InputError: it is not on this machine any more, cannot be read, or is too large to be copied.
    """
    from unipercept.pipelines.detect import detect_modality

    if not path.exists():
        raise InputError(f"{path.name} is not on this machine any more")
    try:
        modality = detect_modality(path)
        picture = showing.redrawn(path) if modality == "image" else None
    except InputError as error:  # the operator's folders are no visitor's business
        raise InputError(str(error).replace(str(path), path.name)) from error
    if picture is not None:
        drawn = job.folder / f"{path.stem[:60]}.png"
        picture.save(drawn)
        return Opened(path.name, modality, drawn)
    if modality not in OPENED:
        return Opened(path.name, modality, None)
    if path.resolve().is_relative_to(shared):
        return Opened(path.name, modality, path)
    if path.stat().st_size > MAX_COPIED_BYTES:
        raise InputError(f"{path.name} is too large to be opened here")
    return Opened(path.name, modality, Path(copyfile(path, job.folder / path.name)))


def _plain(values: NDArray[np.float64]) -> list[list[float | None]]:
    """Nested lists with None for what is missing: JSON has no NaN."""
    return [[None if np.isnan(x) else round(float(x), 6) for x in row] for row in values]
