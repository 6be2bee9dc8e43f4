"""Files from a model hub: downloaded on request, resumed, checked, cached; and from the cache alone when offline.

Beside each cached file lies its record, FILE.json: where it came from, the commit that the hub named, its SHA-256. The
first download decides: a file that changes later, here or on the hub, is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from unipercept.atomic import atomic_path
from unipercept.errors import WeightsError, one_line

HUB = "https://huggingface.co"
TIMEOUT_SECONDS = 30.0
ATTEMPTS = 4
BLOCK_BYTES = 1 << 20
COMMIT = re.compile(r"[0-9a-f]{40}")
Progress = Callable[[int, int], None]  # bytes so far, bytes in all (0: unknown)


def cache_folder() -> Path:
    """The folder of downloaded weights: UNIPERCEPT_CACHE, else ~/.cache/unipercept.

    Raises:
        WeightsError: there is no home folder, as for a container's user.
    """
    try:
        return Path(os.environ.get("UNIPERCEPT_CACHE") or Path.home() / ".cache" / "unipercept")
    except RuntimeError as error:
        raise WeightsError(
            "this user has no home folder to keep weights in; set UNIPERCEPT_CACHE to a folder"
        ) from error


def cached_path(repository: str, file: str, revision: str) -> Path:
    """Path of a hub file in the cache, whether it exists or not."""
    return cache_folder() / repository.replace("/", "--") / revision / file


def is_offline() -> bool:
    """Whether UNIPERCEPT_OFFLINE or HF_HUB_OFFLINE forbids the network."""
    return any(
        os.environ.get(name, "0").lower() not in ("", "0", "false") for name in ("UNIPERCEPT_OFFLINE", "HF_HUB_OFFLINE")
    )


def fetch_file(
    repository: str, file: str, *, revision: str = "main", sha256: str | None = None, progress: Progress | None = None
) -> Path:
    """The file from the cache, else downloaded there: resumed after a cut, checked, then moved into place.

    Args:
        repository: owner/name on the hub; UNIPERCEPT_HUB or HF_ENDPOINT names another hub.
        revision: branch, tag or commit.
        sha256: expected hash, beside what the hub announces and what an earlier download recorded.

    Raises:
        WeightsError: offline and not cached, not found, unreachable, incomplete, or of another hash or commit.
    """
    target = cached_path(repository, file, revision)
    if target.is_file():
        _check_cached(target, sha256)
        return target
    url = f"{_hub()}/{repository}/resolve/{revision}/{file}"
    by_hand = f"download {url} by hand and put it at {target}"
    if is_offline():
        raise WeightsError(f"{file} is not in the cache and downloads are off (UNIPERCEPT_OFFLINE); {by_hand}")
    partial = target.with_name(f".{file}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        announced = _download(url, partial, progress)
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(f"cannot download {file}: {one_line(error)}; {by_hand}") from error
    found, commit = sha256_of(partial), announced["commit"]
    try:
        for expected in (sha256, announced["sha256"]):
            if expected and found != expected:
                raise WeightsError(f"{file} is damaged or was changed: SHA-256 {found}, expected {expected}; {by_hand}")
        if COMMIT.fullmatch(revision) and commit and commit != revision:
            raise WeightsError(f"{file}: the hub answered with commit {commit}, not with {revision}; {by_hand}")
        before = record_of(target)
        if before.get("sha256", found) != found:
            raise WeightsError(
                f"{file} at revision {revision!r} is no longer what was first fetched: SHA-256 {found}, then {before['sha256']} "
                f"(commit {before.get('commit') or 'unknown'}); ask for that commit, or delete {_record_path(target)} to accept the new file"
            )
    except WeightsError:
        partial.unlink()
        raise
    _write_record(target, {"url": url, "sha256": found, "commit": commit})
    os.replace(partial, target)
    return target


def record_of(target: Path) -> dict[str, str]:
    """The record of a cached file: `url`, `commit`, `sha256`; empty where there is no record."""
    try:
        found = json.loads(_record_path(target).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def fetch_url(url: str, target: Path, *, sha256: str | None = None, progress: Progress | None = None) -> Path:
    """The file at `url` as `target`: resumed after a cut, also by a later call, checked, then moved into place.

    Raises:
        WeightsError: downloads are off, not found, unreachable, incomplete, or of another hash.
    """
    by_hand = f"download {url} by hand and put it at {target}"
    if is_offline():
        raise WeightsError(f"downloads are off (UNIPERCEPT_OFFLINE); {by_hand}")
    partial = target.with_name(f".{target.name}.part")
    try:
        _download(url, partial, progress)
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(f"cannot download {target.name}: {one_line(error)}; {by_hand}") from error
    found = sha256_of(partial)
    if sha256 and found != sha256:
        partial.unlink()
        raise WeightsError(f"{target.name} is damaged or was changed: SHA-256 {found}, expected {sha256}; {by_hand}")
    os.replace(partial, target)
    return target


def _check_cached(target: Path, sha256: str | None) -> None:
    """Refuse a cached file that is not the recorded one; one that was put there by hand is
    recorded when it is first used.
    """
    found, recorded = sha256_of(target), record_of(target).get("sha256")
    for expected in (sha256, recorded):
        if expected and found != expected:
            raise WeightsError(
                f"{target} is damaged or was changed: SHA-256 {found}, expected {expected}; delete it to fetch it again"
            )
    if not recorded:
        with contextlib.suppress(OSError):  # a cache that others fill may be read-only
            _write_record(target, {"url": "", "sha256": found, "commit": ""})


def _record_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _write_record(target: Path, record: dict[str, str]) -> None:
    with atomic_path(_record_path(target)) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _hub() -> str:
    return (os.environ.get("UNIPERCEPT_HUB") or os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def _download(url: str, partial: Path, progress: Progress | None) -> dict[str, str]:
    """Fill `partial`, going on where it ends, also after a connection that breaks; what the hub said of the file."""
    for attempt in range(ATTEMPTS):
        try:
            return _one_request(url, partial, progress)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is longer than the file: it is of another file
                partial.unlink(missing_ok=True)
            elif error.code < 500:
                raise
            last: Exception = error
        except (OSError, http.client.HTTPException) as error:
            last = error
        if attempt < ATTEMPTS - 1:
            time.sleep(0.2 * 4**attempt)
    raise last


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects and remembers their headers: the hub names hash and commit on the first answer only."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        self.headers |= {key.lower(): value for key, value in headers.items()}
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _one_request(url: str, partial: Path, progress: Progress | None) -> dict[str, str]:
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    redirects = _Redirects()
    with urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT_SECONDS) as answer:
        resumed = answer.status == 206
        start = have if resumed else 0
        length = int(answer.headers.get("Content-Length") or 0)
        total = start + length if length else 0
        done = start
        with partial.open("ab" if resumed else "wb") as file:
            while block := answer.read(BLOCK_BYTES):
                file.write(block)
                done += len(block)
                if progress:
                    progress(done, total)
        headers = {key.lower(): value for key, value in answer.headers.items()} | redirects.headers
    if total and done < total:
        raise ConnectionError(f"the connection closed after {done} of {total} bytes")
    etag = headers.get("x-linked-etag", "").strip('"')
    return {"sha256": etag if len(etag) == 64 else "", "commit": headers.get("x-repo-commit", "")}


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
