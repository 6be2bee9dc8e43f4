"""Nearest neighbours in an archive of vectors: exact, block by block, without an index to build or maintain.

Shapes: M vectors of the archive, D numbers each, K neighbours.
"""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError, one_line

BLOCK_ROWS = 131_072  # of 320 float32: 168 MB


class Archive:
    """The vectors that `unipercept encode` wrote, ready to be searched again and again.

    Args:
        paths: M names.
        vectors: MxD float32 of length 1.
        model: the one that made them.
    """

    def __init__(self, paths: list[str], vectors: NDArray[np.float32], model: str = "") -> None:
        if vectors.ndim != 2 or len(paths) != len(vectors):
            raise InputError(f"an archive needs M paths and MxD vectors, got {len(paths)} and {vectors.shape}")
        self.paths, self.vectors, self.model = paths, vectors, model

    @staticmethod
    def open(index: str | Path, model: str | None = None) -> Archive:
        """Read a Parquet folder or file.

        Args:
            model: keep only the vectors of this model; None if the archive has a single one.

        Raises:
            InputError: it cannot be read, lacks path, vector and model, is empty, or mixes models.
        """
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        _check_is_archive(index)
        try:
            table = pq.read_table(index, columns=["path", "vector", "model"])
        except (OSError, pa.ArrowException, KeyError) as error:
            raise InputError(
                f"cannot read {index} as vectors of `unipercept encode`: {one_line(error, 160)}"
            ) from error
        models = table["model"].unique().to_pylist()
        if model is not None and model in models:
            table, models = table.filter(pc.equal(table["model"], model)), [model]
        if len(table) == 0 or len(models) != 1:
            raise InputError(f"{index} must hold vectors of one model, got {len(table)} vectors of {models or 'none'}")
        return Archive(table["path"].to_pylist(), _matrix(table["vector"]), models[0])

    def nearest(self, query: NDArray[np.float32], top: int = 10) -> list[tuple[str, float]]:
        """(path, cosine) of the K nearest, nearest first; of equal ones the earlier.

        Raises:
            InputError: a vector of another width, or `top` below 1.
        """
        if query.shape != self.vectors.shape[1:] or top < 1:
            raise InputError(
                f"the query must be {self.vectors.shape[1]} numbers and top at least 1, got {query.shape}, {top}"
            )
        best: list[tuple[float, int]] = []
        for start in range(0, len(self.vectors), BLOCK_ROWS):
            similarity = self.vectors[start : start + BLOCK_ROWS] @ query
            count = min(top, len(similarity))
            threshold = np.partition(similarity, -count)[-count]
            rows = np.flatnonzero(similarity >= threshold)
            best = heapq.nlargest(top, [*best, *((float(similarity[i]), -(start + int(i))) for i in rows)])
        return [(self.paths[-negative], value) for value, negative in best]


def search_archive(
    query: str | Path, index: str | Path, *, top: int = 10, device: str = "auto"
) -> list[tuple[str, float]]:
    """The recordings of an archive that are most similar to a given one: (path, cosine).

    The query is encoded by the archive's own model. `universal` encodes each modality with a network of its own, so
    only recordings of the query's modality are compared.

    Raises:
        InputError: archive or query cannot be read, or the archive's model is not here.
    """
    from unipercept.api import encode
    from unipercept.model_cards import UNIVERSAL, UNTRAINED, model_card
    from unipercept.pipelines.detect import detect_modality

    models = _models(index)
    if len(models) > 1 and all(model == UNTRAINED or model.startswith(f"{UNIVERSAL}.") for model in models):
        asked = encode(query, model=UNIVERSAL, device=device)
        return Archive.open(index, asked.model).nearest(asked.vector.numpy(), top)
    archive = Archive.open(index)
    if archive.model.startswith(f"{UNIVERSAL}."):
        held, asked_for = model_card(archive.model).head_modality, detect_modality(query)
        if held != asked_for:
            raise InputError(
                f"{index} holds vectors of {held} files alone, and {query} is {asked_for}; encode files of that kind too"
            )
    return archive.nearest(encode(query, model=archive.model, device=device).vector.numpy(), top)


def _models(index: str | Path) -> list[str]:
    """Names of the models in an archive; empty if it cannot be read, which `Archive.open` reports."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    _check_is_archive(index)  # pyarrow would walk through all that lies below another folder
    try:
        return [str(name) for name in pq.read_table(index, columns=["model"])["model"].unique().to_pylist()]
    except (OSError, pa.ArrowException, KeyError):
        return []


def _check_is_archive(index: str | Path) -> None:
    if not Path(index).exists():
        raise InputError(f"{index} does not exist; check the spelling")
    if Path(index).is_dir() and not any(Path(index).glob("*.parquet")):
        raise InputError(f"{index} holds no vectors; name the folder that `unipercept encode` wrote")


def _matrix(column: Any) -> NDArray[np.float32]:
    """A column of fixed-size lists as MxD, without a copy where it is one chunk."""
    chunks = [chunk.flatten().to_numpy().reshape(len(chunk), -1) for chunk in column.chunks if len(chunk)]
    found = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
    return np.ascontiguousarray(found, np.float32)
