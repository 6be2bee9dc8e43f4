"""Training for the Train tab: a zip of class folders becomes a run of `unipercept train`, with its curve as it grows."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unipercept.app.web.files import unpack
from unipercept.app.web.jobs import Job
from unipercept.app.web.sessions import Sessions
from unipercept.errors import InputError

MAX_MINUTES = 20.0
MIN_RECORDINGS = 8
# A few dozen recordings make few updates: smaller batches, and an average of weights that does not reach back to the start.
SMALL_SET = {"min_steps": 0, "batch_size": 16, "ema_decay": 0.95}
RUN_NAME = re.compile(r"[0-9a-f]{32}")
FILES = ("model.safetensors", "report.html", "scores.json", "run.json", "split.json")


@dataclass(frozen=True)
class Curve:
    """What was measured so far: (step, loss) and (step, accuracy on validation)."""

    loss: tuple[tuple[int, float], ...]
    accuracy: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Taught:
    """A run that ended. `name` is what `classify` takes."""

    name: str
    folder: Path
    scores: dict[str, Any]
    class_names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    curve: Curve

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: what the API gives."""
        return {
            "run": self.name,
            "classes": list(self.class_names),
            "scores": {part: self.scores[part] for part in ("validation", "test") if part in self.scores},
            "skipped": [{"file": name, "error": line} for name, line in self.skipped],
            "accuracy_curve": [list(point) for point in self.curve.accuracy],
        }


def teach(packed: Path, epochs: int, job: Job, max_bytes: int) -> Taught:
    """Unpack, train the small network from scratch, calibrate and judge it.

    Raises:
        InputError: the archive, its folders or its recordings cannot be used.
    """
    if not 1 <= epochs <= 200:
        raise InputError(f"epochs must lie within 1 and 200, got {epochs}")
    top = unpack(packed, job.folder / "clips", max_bytes, lambda share: job.tell(0.05 * share, "unpacking"))
    job.tell(0.05, "loading the library")
    from unipercept.perception.run import train_run

    output = job.folder / "run"
    loss: list[tuple[int, float]] = []
    accuracy: list[tuple[int, float]] = []

    def decoded(done: int, total: int) -> None:
        job.tell(0.05 + 0.15 * done / max(1, total), f"decoding {done} of {total}")

    def stepped(progress: Any) -> None:
        if progress.step % 5 == 0 or progress.step == progress.total_steps:
            loss.append((progress.step, float(progress.loss)))
        share = progress.validation.get("accuracy")
        if share is not None and (not accuracy or accuracy[-1][1] != share or progress.step - accuracy[-1][0] > 20):
            accuracy.append((progress.step, float(share)))
        text = f"update {progress.step} of {progress.total_steps}, {progress.eta_seconds:.0f} s to go"
        job.tell(0.2 + 0.7 * progress.step / progress.total_steps, text, Curve(tuple(loss), tuple(accuracy)))

    summary = train_run(
        str(top), output, overrides={"epochs": epochs, **SMALL_SET}, on_decode=decoded, on_progress=stepped
    )
    for done in (job.folder / "clips", output / "fit"):  # recordings and checkpoints: nobody asks for them again
        shutil.rmtree(done, ignore_errors=True)
    scores = dict(summary.scores)
    return Taught(
        job.folder.name, output, scores, summary.class_names, summary.skipped, Curve(tuple(loss), tuple(accuracy))
    )


def run_folder(sessions: Sessions, visitor: str, name: str) -> Path:
    """The folder of a visitor's own run.

    Raises:
        InputError: there is none of that name.
    """
    folder = sessions.folder / "work" / visitor / name / "run"
    if not RUN_NAME.fullmatch(name) or not (folder / "model.safetensors").is_file():
        raise InputError("there is no such run of yours; train one first, on this page or with the same client")
    return folder
