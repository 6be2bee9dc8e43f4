"""The measurements of a run: rows of metrics.csv (one number each), TensorBoard events, and progress for callbacks."""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from unipercept.atomic import atomic_path
from unipercept.errors import import_optional

METRICS = "metrics.csv"


class Record(NamedTuple):
    """One measured number."""

    step: int  # updates done when it was measured
    epoch: int  # from 0
    split: str  # "train" or "validation"
    name: str
    value: float


@dataclass(frozen=True)
class Progress:
    """The progress of a run; `fit` passes one to `on_progress` after each step."""

    step: int  # updates done
    total_steps: int
    epoch: int  # from 0
    loss: float  # of this step's global batch
    learning_rate: float  # of the first parameter group
    samples_per_second: float  # over the steps of this call, all processes together
    eta_seconds: float
    validation: Mapping[str, float] = field(default_factory=dict)  # of the latest validation, empty before it


class History:
    """Records of a run, in memory and, given a folder, appended to metrics.csv and TensorBoard.

    Args:
        folder: the run's folder; None keeps the records in memory only.
        keep_steps: records of later steps are dropped: the run is about to measure them again.
    """

    def __init__(self, folder: Path | None, *, keep_steps: int, tensorboard: bool) -> None:
        self.records: list[Record] = []
        self._path = None if folder is None else folder / METRICS
        self._writer: Any = None
        if self._path is not None:
            if self._path.exists():
                self.records = [record for record in read_metrics(self._path) if record.step <= keep_steps]
            with atomic_path(self._path) as temporary:
                temporary.write_text(_csv([Record._fields, *self.records]), encoding="utf-8")
            if tensorboard:
                module = import_optional("torch.utils.tensorboard", extra="train")
                self._writer = module.SummaryWriter(str(self._path.parent / "tensorboard"), purge_step=keep_steps + 1)

    def add(self, step: int, epoch: int, split: str, values: Mapping[str, float]) -> None:
        """Keep and write one record for each value."""
        new = [Record(step, epoch, split, name, float(value)) for name, value in values.items()]
        self.records += new
        if self._path is not None:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                file.write(_csv(new))
        if self._writer is not None:
            for record in new:
                self._writer.add_scalar(f"{split}/{record.name}", record.value, step)

    def close(self) -> None:
        """Flush what is buffered."""
        if self._writer is not None:
            self._writer.close()


def read_metrics(path: Path) -> list[Record]:
    """Records of a metrics.csv; a last line that a killed process left half written is passed over."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = [line for line in file if line.endswith("\n")]
    return [
        Record(int(row["step"]), int(row["epoch"]), row["split"], row["name"], float(row["value"]))
        for row in csv.DictReader(lines)
    ]


def _csv(rows: Iterable[Iterable[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)  # a float is written so that it reads back exactly
    return buffer.getvalue()
