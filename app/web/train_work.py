"""Training for the Train tab: a zip of class folders becomes a run of
`unipercept train`, with its curve as it grows.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unipercept.app.web.files import unpack
from unipercept.app.web.job import Job
from unipercept.app.web.sessions import Sessions
from unipercept.errors import InputError

if TYPE_CHECKING:
    from unipercept.perception.settings import Tuning

MAX_EPOCHS = 200
# A few dozen recordings make few updates: smaller batches, and an average of weights that does
# not reach back to the start.
SMALL_SET = {"min_steps": 0, "batch_size": 16, "ema_decay": 0.95}
# What learns: by its name in the API, the weights it starts from and which of them are tuned (see `unipercept train`).
LEARNS: dict[str, tuple[str | None, Tuning]] = {
    "network": ("universal", "full"),
    "head": ("universal", "linear"),
    "scratch": (None, "full"),
}
EPOCHS = 10
RUN_NAME = re.compile(r"[0-9a-f]{32}")
MODEL = "model.safetensors"
FILES = (MODEL, "report.html", "scores.json")  # offered one by one beside the whole run as a zip file


@dataclass(frozen=True)
class Curve:
    """Measurements so far: (step, loss) and (step, accuracy on validation)."""

    loss: tuple[tuple[int, float], ...]
    accuracy: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class TrainedRun:
    """A run that ended. `name` is what `classify` takes; `packed` the whole folder as a zip file; `command`
    what trains the same from the unpacked recordings, after `unipercept`.
    """

    name: str
    folder: Path
    packed: Path
    command: tuple[str, ...]
    scores: dict[str, Any]
    class_names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    curve: Curve

    def files(self) -> list[str]:
        """To be taken home, each named after the zip file."""
        named = [self.packed.with_name(f"{self.packed.stem}-{name}") for name in FILES]
        return [str(path) for path in (self.packed, *named)]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: what the API gives."""
        return {
            "run": self.name,
            "classes": list(self.class_names),
            "scores": {part: self.scores[part] for part in ("validation", "test") if part in self.scores},
            "skipped": [{"file": name, "error": line} for name, line in self.skipped],
            "accuracy_curve": [list(point) for point in self.curve.accuracy],
        }


def train_on_zip(packed: Path, learns: str, epochs: int, job: Job, max_bytes: int) -> TrainedRun:
    """Unpack, train, calibrate and evaluate.

    Args:
        learns: a key of `LEARNS`.

    Raises:
        InputError: the archive, its folders or its recordings cannot be used, or an argument.
    """
    if learns not in LEARNS:
        raise InputError(f"what learns must be one of {', '.join(LEARNS)}, got {learns[:40]!r}")
    if not 1 <= epochs <= MAX_EPOCHS:
        raise InputError(f"epochs must lie within 1 and {MAX_EPOCHS}, got {epochs}")
    top = unpack(packed, job.scratch / "clips", max_bytes, lambda share: job.tell(0.05 * share, "unpacking"))
    job.tell(0.05, "loading the library")
    from unipercept.perception.run import train_run

    output, called, told = job.folder / "run", f"{packed.stem[:60]}-run", _Progress(job)
    start, tuning = LEARNS[learns]
    summary = train_run(
        str(top),
        output,
        start=start,
        tuning=tuning,
        overrides={"epochs": epochs, **SMALL_SET},
        names=(packed.name, called),
        on_decode=told.decoded,
        on_progress=told.stepped,
    )
    shutil.rmtree(output / "fit", ignore_errors=True)  # checkpoints: nobody asks for them again
    packed_run = _zipped(output, job.folder / f"{called}.zip")
    for name in FILES:  # by links: the model takes its place on the disk once
        packed_run.with_name(f"{called}-{name}").hardlink_to(output / name)
    return TrainedRun(
        job.folder.name, output, packed_run, _command(packed.stem, called, learns, epochs), dict(summary.scores), summary.class_names,
        summary.skipped, told.curve(),
    )  # fmt: skip


def _command(stem: str, called: str, learns: str, epochs: int) -> tuple[str, ...]:
    start, tuning = LEARNS[learns]
    given = [] if start is None else ["--from", start]
    settings = [word for name, value in SMALL_SET.items() for word in ("--set", f"{name}={value}")]
    words = [*given, "--tune", tuning, "--epochs", str(epochs), *settings, "-o", called]
    return ("train", f"./{stem}/", *words)


class _Progress:
    """Progress of a training as a job's, and its curve."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.loss: list[tuple[int, float]] = []
        self.accuracy: list[tuple[int, float]] = []

    def curve(self) -> Curve:
        return Curve(tuple(self.loss), tuple(self.accuracy))

    def decoded(self, done: int, total: int) -> None:
        self.job.tell(0.05 + 0.15 * done / max(1, total), f"decoding {done} of {total}")
        if done == total:
            self.job.tell(0.2, "learning")

    def stepped(self, progress: Any) -> None:
        if progress.step % 5 == 0 or progress.step == progress.total_steps or not self.loss:
            self.loss.append((progress.step, float(progress.loss)))
        share, seen = progress.validation.get("accuracy"), self.accuracy
        if share is not None and (not seen or seen[-1][1] != share or progress.step - seen[-1][0] > 20):
            seen.append((progress.step, float(share)))
        text = f"update {progress.step} of {progress.total_steps}, {progress.eta_seconds:.0f} s to go"
        self.job.tell(0.2 + 0.7 * progress.step / progress.total_steps, text, self.curve())


def _zipped(folder: Path, target: Path) -> Path:
    """A folder as a zip file that unpacks to a folder of the zip file's name."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"{target.stem}/{path.name}")
    return target


def run_folder(sessions: Sessions, visitor: str, name: str) -> Path:
    """The folder of a visitor's own run.

    Raises:
        InputError: there is none of that name.
    """
    folder = sessions.folder / "work" / visitor / name / "run"
    if not RUN_NAME.fullmatch(name) or not (folder / MODEL).is_file():
        raise InputError("there is no such run of yours; train one first, on this page or with the same client")
    return folder
