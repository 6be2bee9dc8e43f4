"""`encode` over files and folders: vectors as a Parquet dataset that survives a kill (outer ring).

The output is a folder of parts, one a chunk of files, each written whole or not at all; any Parquet reader takes the
folder as one table, in order, at any time. Chunks are cut from the sorted list of files, and a part records what went
into it, so `resume` keeps the parts whose files, model and settings are unchanged and makes the others again: the
vectors are those of an undisturbed run, byte for byte. docs/decisions/0005-encode-job.md says why.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unipercept import __version__
from unipercept.atomic import atomic_path
from unipercept.datasets.folders import DESKTOP_FILES
from unipercept.decoders import Decoders
from unipercept.devices import resolve_device
from unipercept.encode_chunk import EncodedFile, EncodeSettings, FailedFile, content_hash, encode_chunks
from unipercept.errors import InputError, as_text, counted
from unipercept.model_cards import fingerprint, model_card
from unipercept.pipelines.detect import is_zarr
from unipercept.pipelines.files import check_is_name, path_text
from unipercept.processors import n_processors

if TYPE_CHECKING:
    import pyarrow

FILES_PER_PART = 256
JOB_FILE, FAILURES_FILE = "_job.json", "_failures.json"  # readers of Parquet folders pass over names with "_" and "."
METADATA_KEY = b"unipercept.encode"


@dataclass(frozen=True)
class EncodeSummary:
    """The outcome of a job. `failures` lists (path, error) of the files that gave no vector."""

    output: Path
    n_files: int
    n_encoded: int
    n_reused: int
    failures: tuple[tuple[str, str], ...]


def encode_files(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    settings: EncodeSettings | None = None,
    *,
    resume: bool = False,
    files_per_part: int = FILES_PER_PART,
    on_start: Callable[[int], object] | None = None,
    on_file: Callable[[str], object] | None = None,
    on_share: Callable[[float], object] | None = None,
) -> EncodeSummary:
    """Encode files and folder trees into `output`, a Parquet dataset: path, modality, model,
    content_hash, vector, n_maps.

    >>> summary = unipercept.encode_files("photo.png", "vectors.parquet")
    >>> summary.n_encoded, summary.failures
    (1, ())

    Args:
        inputs: one or several: files, folders (searched in sorted order; hidden names and what Windows leaves there are
            skipped) and Zarr folders (one input each).
        output: folder to make; its name ends in .parquet.
        settings: model, modality, device and batch size, with the defaults of `encode`.
        resume: continue where an earlier run into `output` ended; files that changed since are encoded again.
        files_per_part: how much work a kill can cost at most.
        on_start: called once with the number of files.
        on_file: called with each path when it is read, or found done.
        on_share: called with the share of a long file that has been read.

    Raises:
        InputError: nothing to encode, `output` exists (without `resume`), was made with other settings, or holds files
            that are still there and not among the inputs.
        WeightsError: the model cannot be obtained. Bad files raise nothing; they are listed in the summary.
    """
    settings = settings or EncodeSettings()
    output = Path(output)
    paths = list_inputs([inputs] if isinstance(inputs, str | Path) else inputs, skip=output)
    job = _job_record(settings, files_per_part)
    _prepare(output, job, resume=resume)
    _check_nothing_is_lost(output, paths)
    if on_start:
        on_start(len(paths))
    dim = model_card(settings.model).dim
    chunks = [paths[start : start + files_per_part] for start in range(0, len(paths), files_per_part)]
    parts = [output / f"part-{index:05d}.parquet" for index in range(len(chunks))]
    made: dict[Path, dict[str, Any]] = {}
    reused: dict[Path, dict[str, Any]] = {}
    in_progress: deque[Path] = deque()

    def to_do() -> Iterator[list[str]]:
        for part, chunk in zip(parts, chunks, strict=True):
            record = _reusable(part, chunk, on_file) if resume else None
            if record is not None:
                reused[part] = record
                continue
            in_progress.append(part)
            yield chunk

    def failures() -> list[tuple[str, str]]:
        known = made | reused
        return [
            (failed["path"], failed["error"]) for part in parts if part in known for failed in known[part]["failures"]
        ]

    with Decoders(len(paths)) as decoders:
        for vectors in encode_chunks(to_do(), settings, decoders, on_file=on_file, on_share=on_share):
            part = in_progress.popleft()
            made[part] = _write_part(part, vectors, dim)
            if made[part]["failures"]:
                _write_failures(output, failures())
    _write_failures(output, failures())
    _remove_leftovers(output, n_parts=len(chunks))
    n_encoded, n_reused = (sum(len(record["files"]) for record in records.values()) for records in (made, reused))
    return EncodeSummary(output, len(paths), n_encoded, n_reused, tuple(failures()))


def list_inputs(inputs: Sequence[str | Path], *, skip: Path | None = None) -> list[str]:
    """All files of `inputs`, each once: in the order given, folders searched in the order of their names. Vectors that
    an earlier job wrote are no recordings.

    Raises:
        InputError: an input does not exist, or there is no file in any of them.
    """
    found: dict[str, None] = {}
    for given in inputs:
        path = Path(path_text(given))
        if _is_searched(path):
            found.update(dict.fromkeys(_walk(path, skip.resolve() if skip else None, frozenset())))
        elif path.exists() or path.is_symlink() or len(inputs) > 1:  # one of many that is missing is listed as failed
            found[str(path)] = None
        else:
            check_is_name(path)
            raise InputError(f"{path} does not exist; check the spelling")
    if not found:
        raise InputError(f"nothing to encode: no file in {', '.join(map(str, inputs)) or 'an empty list'}")
    return list(found)


def _walk(folder: Path, skip: Path | None, parents: frozenset[tuple[int, int]]) -> Iterator[str]:
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in parents or folder.resolve() == skip:  # a link back to a folder that we are in
        return
    if folder.suffix == ".parquet" and (folder / JOB_FILE).exists():
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        yield str(folder)  # one input, which will be listed as failed; the others go on
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in DESKTOP_FILES:
            continue
        path = folder / entry.name
        if _is_searched(path):
            yield from _walk(path, skip, parents | {identity})
        else:
            yield str(path)


def _is_searched(path: Path) -> bool:
    """A folder, but for a Zarr store. One that may not be entered counts as an input too, and is refused as such."""
    try:
        return path.is_dir() and not is_zarr(path)
    except OSError:
        return False


def _job_record(settings: EncodeSettings, files_per_part: int) -> dict[str, Any]:
    if files_per_part < 1:
        raise InputError(f"files_per_part must be at least 1, got {files_per_part}")
    return {
        "format": "unipercept.encode/1",
        "unipercept": __version__,
        "weights": fingerprint(settings.model),
        "files_per_part": files_per_part,
        **asdict(settings),
        "model": model_card(settings.model).name,
        "device": str(resolve_device(settings.device)),
    }


def _prepare(output: Path, job: dict[str, Any], *, resume: bool) -> None:
    if output.suffix != ".parquet":
        raise InputError(f"encode writes a Parquet dataset; name it like vectors.parquet, got {output.name!r}")
    if output.exists():
        _check_same_job(output, job, resume=resume)
        for leftover in output.glob(".part-*"):  # of a run that was killed while it wrote
            leftover.unlink(missing_ok=True)
        return
    if (output.parent / JOB_FILE).exists():  # whoever reads the outer one would read this too
        raise InputError(f"{output.parent} holds the vectors of another job; name an output outside of it")
    with atomic_path(output) as temporary:
        temporary.mkdir()
        (temporary / JOB_FILE).write_text(json.dumps(job, indent=1) + "\n", encoding="utf-8")


def _check_nothing_is_lost(output: Path, paths: list[str]) -> None:
    """Refuse to resume with inputs that would drop existing vectors; vectors of deleted files may go."""
    wanted = {as_text(path) for path in paths}
    parts = map(_read_record, sorted(output.glob("part-*.parquet")))
    before = [path for record in parts if record for path, _ in record["files"]]
    lost = [path for path in before if path not in wanted and Path(path).exists()]
    if lost:
        raise InputError(
            f"{output} holds {counted(len(lost), 'file', 'files')} that are not among these inputs (the first is {lost[0]}) and "
            "would lose them; give those too, or name another output"
        )


def _check_same_job(output: Path, job: dict[str, Any], *, resume: bool) -> None:
    if not resume:
        raise InputError(f"{output} exists; add --resume to go on with it, or name another output")
    try:
        before = json.loads((output / JOB_FILE).read_text(encoding="utf-8"))
        different = sorted(key for key in job.keys() | before.keys() if job.get(key) != before.get(key))
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{output} was not made by unipercept encode; name another output") from error
    if different:
        changes = ", ".join(f"{key} {before.get(key)!r} before, {job.get(key)!r} now" for key in different)
        raise InputError(f"{output} was made with other settings ({changes}); repeat those, or name another output")


def _reusable(part: Path, chunk: list[str], on_file: Callable[[str], object] | None) -> dict[str, Any] | None:
    """The record in `part`, if it was made from exactly these files and all of them are unchanged; else None."""
    record = _read_record(part)
    if record is None or any(not failed["is_final"] for failed in record["failures"]):
        return None
    if [path for path, _ in record["files"]] != [as_text(path) for path in chunk]:
        return None
    with ThreadPoolExecutor(n_processors()) as pool:
        if list(pool.map(_hash_or_empty, chunk)) != [digest for _, digest in record["files"]]:
            return None
    if on_file:
        for path in chunk:
            on_file(path)
    return record


def _hash_or_empty(path: str) -> str:
    try:
        return content_hash(path)
    except InputError:
        return ""


def _read_record(part: Path) -> dict[str, Any] | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(part).metadata or {}
        record: dict[str, Any] = json.loads(metadata[METADATA_KEY])
    except (OSError, pa.ArrowException, KeyError, ValueError):  # absent, or damaged: it is made again
        return None
    return record


def _write_part(part: Path, outcomes: list[EncodedFile | FailedFile], dim: int) -> dict[str, Any]:
    import pyarrow.parquet as pq

    record = {
        "files": [[as_text(outcome.path), outcome.content_hash] for outcome in outcomes],
        "failures": [
            {"path": as_text(failed.path), "error": failed.error, "is_final": failed.is_final}
            for failed in outcomes
            if isinstance(failed, FailedFile)
        ],
    }
    table = to_table([outcome for outcome in outcomes if isinstance(outcome, EncodedFile)], dim)
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(record)})
    with atomic_path(part) as temporary:
        pq.write_table(table, temporary)
    return record


def to_table(encoded: Sequence[EncodedFile], dim: int) -> pyarrow.Table:
    """One row a file: path, modality, model, content_hash, vector (`dim` float32), n_maps."""
    import numpy as np
    import pyarrow as pa

    vectors = np.concatenate([item.vector.numpy() for item in encoded]) if encoded else np.empty(0, np.float32)
    return pa.table(
        {
            "path": pa.array([as_text(item.path) for item in encoded], pa.string()),
            "modality": pa.array([item.modality for item in encoded], pa.string()),
            "model": pa.array([item.model for item in encoded], pa.string()),
            "content_hash": pa.array([item.content_hash for item in encoded], pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors, pa.float32()), dim),
            "n_maps": pa.array([item.n_maps for item in encoded], pa.int32()),
        }
    )


def _write_failures(output: Path, failures: list[tuple[str, str]]) -> None:
    target = output / FAILURES_FILE
    if not failures:
        target.unlink(missing_ok=True)
        return
    with atomic_path(target) as temporary:
        records = [{"path": path, "error": error} for path, error in failures]
        temporary.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _remove_leftovers(output: Path, n_parts: int) -> None:
    """Parts past the last one: an earlier run had more files."""
    wanted = {f"part-{index:05d}.parquet" for index in range(n_parts)}
    for part in output.glob("part-*.parquet"):
        if part.name not in wanted:
            part.unlink()
