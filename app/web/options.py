"""The options of `unipercept app`, in one frozen dataclass."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from unipercept.app.memory import machine_bytes
from unipercept.errors import InputError, one_line
from unipercept.processors import n_processors

MOST_TOGETHER = 4  # unless told otherwise
MIN_JOB_BYTES = 2 * 10**9  # of memory, where a fair share would be less: a worker has 0.5 GB before it begins
AUTH_VARIABLE = "UNIPERCEPT_APP_AUTH"
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


@dataclass(frozen=True)
class AppOptions:
    """Settings of a server.

    Args:
        auth: pairs of user and password; empty lets everybody in.
        root_path: the path below which a proxy shows the page, such as "/unipercept".
        max_file_bytes: of one upload.
        max_job_bytes: memory that a job may take (Linux); None for a fair share of the machine's, see `job_bytes`.
        concurrency: recordings that are looked at together, each in a process of its own; training and weather
            run one at a time beside them.
        job_seconds: how long a quick job may take; `long_job_seconds` is for training and weather.
        keep_seconds: how long the files of a visitor who does nothing are kept.
        index: archives that `unipercept encode` wrote, offered to everybody for search.
        cascade: a trained weather cascade (folder or file), or "default", the one that is shipped.
        weather: fields that the weather tab starts from; None for generated ones.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    auth: tuple[tuple[str, str], ...] = ()
    root_path: str = ""
    max_file_bytes: int = 200 * 10**6
    max_job_bytes: int | None = None
    concurrency: int = field(default_factory=lambda: min(MOST_TOGETHER, n_processors()))
    job_seconds: float = 120.0
    long_job_seconds: float = 1800.0
    keep_seconds: float = 3600.0
    index: tuple[Path, ...] = ()
    cascade: str = "default"
    weather: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError(f"the port must lie within 0 and 65535, got {self.port}")
        if min(self.max_file_bytes, self.concurrency) < 1:
            raise InputError("the largest file and the concurrency must be at least 1")
        if self.max_job_bytes is not None and self.max_job_bytes < 10**9:
            raise InputError(f"a job needs 1GB of memory or more, got {self.max_job_bytes / 1e6:g} MB")
        if self.root_path and not re.fullmatch(r"(/[\w.~-]+)+", self.root_path):
            raise InputError(f"the root path must be such as /unipercept, got {self.root_path!r}")

    @property
    def job_bytes(self) -> float | None:
        """Memory that a job may take: as told, else what each of the quick jobs and one long one would have if they
        shared the machine; None where that is not known.
        """
        if self.max_job_bytes is not None:
            return self.max_job_bytes
        machine = machine_bytes()
        return None if machine is None else max(MIN_JOB_BYTES, machine / (self.concurrency + 1))


def parse_bytes(text: str) -> int:
    """A size such as 200MB or 2GiB in bytes.

    Raises:
        InputError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgG]?[iI]?[bB]?)\s*", text)
    if found is None or found[2].upper() not in UNITS:
        raise InputError(f"a size is written as 200MB or 2GiB, got {text!r}")
    return int(float(found[1]) * UNITS[found[2].upper()])


def parse_auth(text: str | None) -> tuple[tuple[str, str], ...]:
    """Users of the page: `user:password`, several with commas, `@FILE` for a line each, or
    the environment's where None.

    Raises:
        InputError: a user without a password, or a file that cannot be read.
    """
    text = os.environ.get(AUTH_VARIABLE) if text is None else text
    if not text:
        return ()
    if text.startswith("@"):
        try:
            words = Path(text[1:]).read_text(encoding="utf-8").split()
        except OSError as error:
            raise InputError(f"cannot read the users' file {text[1:]}: {one_line(error)}") from error
    else:
        words = text.split(",")
    pairs = [word.partition(":") for word in words if word]
    if not pairs or not all(user and password for user, _, password in pairs):
        raise InputError("--auth takes user:password, several with commas, or @FILE with one a line")
    return tuple((user, password) for user, _, password in pairs)
