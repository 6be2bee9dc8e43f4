"""The job object that work receives. Like everything that runs in workers, this imports no gradio."""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCRATCH = "scratch"


class StoppedError(Exception):
    """Raised inside a job that was cancelled or is late; never seen by visitors."""


@dataclass
class Job:
    """Passed to the work: reports its progress, and stops it when asked to.

    Args:
        folder: the job's own, for files that the visitor gets; it goes where the job does not end well.
        on_tell: called with what is told, in a worker to pass it on.
    """

    folder: Path
    stop: threading.Event = field(default_factory=threading.Event)
    share: float = 0.0
    text: str = "starting"
    news: Any = None
    on_tell: Callable[[float, str, Any], object] | None = None

    @property
    def scratch(self) -> Path:
        """A folder for what the work alone needs; it goes when the job ends, however that is."""
        made = self.folder / SCRATCH
        made.mkdir(exist_ok=True)
        return made

    def tell(self, share: float, text: str, news: Any = None) -> None:
        """Progress from 0 to 1 in words, perhaps with something to draw; the place where work stops.

        Raises:
            StoppedError: the job was cancelled or is late.
        """
        if self.stop.is_set():
            raise StoppedError
        self.share, self.text = share, text
        if news is not None:
            self.news = news
        if self.on_tell is not None:
            self.on_tell(share, text, news)


def without_folders(text: str) -> str:
    """A message in which files of the temporary folder have their names alone."""
    root = re.escape(str(Path(tempfile.gettempdir()).resolve()))
    return re.sub(rf"{root}/(?:[^/\s:;,'\"]+/)*", "", text)
