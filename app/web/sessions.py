"""Ownership and lifetime of visitors' files.

A visitor is identified by a cookie; a file is served to its owner only.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from uuid import uuid4

GRACE_SECONDS = 60.0  # a page that is loaded again keeps its files
STRAY_SECONDS = 900.0  # what an upload cut short may leave


@dataclass
class _Visitor:
    paths: set[str] = field(default_factory=set)
    sent: set[str] = field(default_factory=set)  # those of `paths` that were uploaded
    pages: set[str] = field(default_factory=set)  # open pages, by gradio's session hash
    address: str = ""  # where the last request came from
    seen: float = field(default_factory=time.monotonic)
    closed: float | None = None


class Sessions:
    """The files of every visitor below one temporary folder.

    Args:
        folder: everything that is written for visitors lies in it.
        keep_seconds: files of a visitor who does nothing are kept so long.
    """

    def __init__(self, folder: Path, keep_seconds: float) -> None:
        self.folder = folder.resolve()
        self.keep_seconds = keep_seconds
        self._public: set[str] = set()
        self._visitors: dict[str, _Visitor] = {}
        self._owners: dict[str, set[str]] = defaultdict(set)
        self._lock = Lock()

    @staticmethod
    def visitor(cookie: str) -> str:
        """The name of a visitor: a hash, so that paths and logs do not hold the cookie."""
        return hashlib.sha256(cookie.encode()).hexdigest()[:16]

    def touch(self, visitor: str, page: str | None = None, address: str = "") -> None:
        """A visitor is here, perhaps with a page."""
        with self._lock:
            known = self._visitors.setdefault(visitor, _Visitor())
            known.seen, known.closed, known.address = time.monotonic(), None, address
            if page:
                known.pages.add(page)

    def leave(self, visitor: str, page: str) -> None:
        """A page was closed; after the last one and a minute of grace the files go."""
        with self._lock:
            known = self._visitors.get(visitor)
            if known is not None:
                known.pages.discard(page)
                known.closed = None if known.pages else time.monotonic()

    def publish(self, path: str | Path) -> None:
        """Examples and the page's own files are everybody's."""
        with self._lock:
            self._public.add(str(Path(path).absolute()))

    def own(self, visitor: str, path: str | Path, *, sent: bool = False) -> None:
        """A file was made for a visitor, or `sent` by them. What lies outside the folder is nobody's."""
        absolute = Path(path).absolute()
        if not absolute.is_relative_to(self.folder):
            return
        with self._lock:
            known = self._visitors.setdefault(visitor, _Visitor())
            known.paths.add(str(absolute))
            if sent:
                known.sent.add(str(absolute))
            self._owners[str(absolute)].add(visitor)

    def may_read(self, visitor: str, path: str | Path) -> bool:
        """Whether a visitor may see a file: theirs or everybody's, in the folder, and not by a link out of it."""
        absolute = Path(path).absolute()
        with self._lock:
            known = str(absolute) in self._public or visitor in self._owners.get(str(absolute), ())
        return known and ".." not in Path(path).parts and absolute.resolve().is_relative_to(self.folder)

    def new_folder(self, visitor: str) -> Path:
        """A fresh folder for one job of a visitor."""
        made = self.folder / "work" / visitor / uuid4().hex
        made.mkdir(parents=True)
        return made

    def sent_bytes_of(self, visitor: str) -> int:
        """How much the files take that a visitor has sent."""
        with self._lock:
            paths = list(self._visitors[visitor].sent) if visitor in self._visitors else []
        return sum(_size(Path(path)) for path in paths)

    def sent_bytes_from(self, address: str) -> int:
        """How much the files take that visitors of an address have sent."""
        with self._lock:
            paths = {path for known in self._visitors.values() if known.address == address for path in known.sent}
        return sum(_size(Path(path)) for path in paths)

    def work_bytes_of(self, visitor: str) -> int:
        """How much a visitor's jobs have written."""
        return sum(_size(path) for path in (self.folder / "work" / visitor).rglob("*"))

    def close(self, visitor: str) -> None:
        """Delete all that a visitor has."""
        with self._lock:
            known = self._visitors.pop(visitor, None)
            gone = []
            for path in known.paths if known else ():
                self._owners[path].discard(visitor)
                if not self._owners[path]:
                    del self._owners[path]
                    if path not in self._public:
                        gone.append(path)
        for path in gone:
            _delete(Path(path), self.folder)
        shutil.rmtree(self.folder / "work" / visitor, ignore_errors=True)

    def sweep(self) -> None:
        """Close visitors who left or fell silent, and delete what uploads cut short have left."""
        now = time.monotonic()
        with self._lock:
            late = [
                name
                for name, known in self._visitors.items()
                if (known.closed is not None and now - known.closed > GRACE_SECONDS)
                or (now - known.seen > GRACE_SECONDS and self._has_nothing(name, known))
                or (not known.pages and now - known.seen > self.keep_seconds)
                or now - known.seen > 8 * self.keep_seconds
            ]
        for name in late:
            self.close(name)
        for path in list(self.folder.glob("tmp*")):  # where gradio writes an upload until it is whole
            if path.is_file() and time.time() - path.stat().st_mtime > STRAY_SECONDS:
                path.unlink(missing_ok=True)

    def _has_nothing(self, name: str, known: _Visitor) -> bool:
        """Whether nothing is lost with a visitor: programs without cookies are a new one at every request."""
        return not known.pages and not known.paths and not any((self.folder / "work" / name).glob("*"))

    def counts(self) -> tuple[int, int]:
        """Visitors and open pages."""
        with self._lock:
            return len(self._visitors), sum(len(known.pages) for known in self._visitors.values())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _delete(path: Path, folder: Path) -> None:
    path.unlink(missing_ok=True)
    parent = path.parent
    while parent != folder and parent.is_relative_to(folder):
        try:
            parent.rmdir()
        except OSError:  # others' files lie there
            return
        parent = parent.parent
