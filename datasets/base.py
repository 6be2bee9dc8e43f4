"""The dataset interface: a plain sequence of samples whose inputs are still raw; only pipelines make maps.

A raw input is a path, or in memory: HxWx3 uint8 (picture), `Sound`, TxHxWx3 uint8 (frames), Nx3 (points). Which of them
is a matter of how the set is published; its card says the modality.

Shapes: H rows, W columns, T frames, N samples or points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError


class Sample(NamedTuple):
    """One example. `id` names it for ever: a file, or a position in the published order."""

    input: Any
    target: Any
    id: str


class Sound(NamedTuple):
    """N mono samples in [-1, 1], and their rate in Hz."""

    samples: NDArray[np.float32]
    sample_rate: int


class SampleSet(Protocol):
    """A sized, indexable set of samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@dataclass(frozen=True)
class SetFile:
    """A file of a published set: its name in the set's folder, and where a stable public copy lies."""

    name: str
    sha256: str = ""  # of the file as published; empty where the publisher replaces it from time to time
    url: str = ""  # empty where the set is behind a form or a licence page
    size: int = 0  # bytes, 0: not known


@dataclass(frozen=True)
class SetCard:
    """The facts of a published set.

    Args:
        licence: as the publisher states it, or "not stated".
        may_train: whether weights that are given away may be trained on it: the licence is stated and allows it.
        splits: names in the order train, (validation,) test; for cross-validation the folds' names.
        protocol: how the field reports a number on it.
        n_samples: by split, of the complete set.
        statistics: what scales its inputs, with the split that it was computed on in the name.
        files: the files of the folder; those with `url` can be fetched.
        layout: what the folder must look like, in a line.
    """

    name: str
    modality: str
    source: str
    licence: str
    may_train: bool
    class_names: tuple[str, ...]
    splits: tuple[str, ...]
    protocol: str
    layout: str
    n_samples: Mapping[str, int] = field(default_factory=dict)
    statistics: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[SetFile, ...] = ()
    is_multilabel: bool = False

    def check_split(self, split: str) -> None:
        """Raise InputError where there is no such split."""
        if split not in self.splits:
            raise InputError(f"split of {self.name} must be one of {', '.join(self.splits)}; got {split!r}")

    def to_text(self) -> str:
        """A few lines for a terminal."""
        counts = ", ".join(f"{split} {n:,}" for split, n in self.n_samples.items()) or ", ".join(self.splits)
        lines = {
            "modality": self.modality,
            "classes": f"{len(self.class_names)}" if self.class_names else "read from the files",
            "splits": counts,
            "protocol": self.protocol,
            "licence": self.licence
            + ("" if self.may_train else " (evaluation only: not for weights that are given away)"),
            "source": self.source,
            "folder": self.layout,
        }
        return "\n".join([self.name, *(f"  {key:<10}{value}" for key, value in lines.items())])


@dataclass(frozen=True)
class LabelledSet:
    """Samples that are read when asked for; `targets` are known beforehand, so that splits
    and weights need no decoding.

    Args:
        targets: class index of each sample (or 0/1 of each class, multi-label).
        ids: name of each sample.
        read: position to raw input.
        groups: what must stay on one side of a split (speaker, recording, object); empty: nothing.
    """

    card: SetCard
    split: str
    targets: NDArray[np.int64]
    ids: tuple[str, ...]
    read: Callable[[int], Any]
    groups: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self.ids):
            raise IndexError(index)
        target = self.targets[index]
        return Sample(self.read(index), target if self.card.is_multilabel else int(target), self.ids[index])

    def subset(self, indices: Sequence[int] | NDArray[Any], split: str = "") -> LabelledSet:
        """Some of the samples, in the order of `indices`."""
        chosen = [int(i) for i in indices]
        groups = tuple(self.groups[i] for i in chosen) if self.groups else ()
        return LabelledSet(
            self.card,
            split or self.split,
            self.targets[chosen],
            tuple(self.ids[i] for i in chosen),
            lambda position: self.read(chosen[position]),
            groups,
        )


def bands_of(split: str, n_bands: int) -> list[int]:
    """Positions of the bands of a generated quantity, or of files, that belong to a split: of every five, one is for
    test and one for validation.
    """
    owners = {2: "test", 3: "validation"}
    return [band for band in range(n_bands) if owners.get(band % 5, "train") == split]


def existing(folder: str | Path, name: str, card: SetCard) -> Path:
    """The file of a set.

    Raises:
        InputError: it is missing; the message says what the folder must contain.
    """
    path = Path(folder) / name
    if not path.exists():
        hint = (
            f"fetch it with: unipercept datasets {card.name} --fetch {folder}"
            if card.files and card.files[0].url
            else card.source
        )
        raise InputError(f"{card.name} needs {path}, which is not there; expected {card.layout}; {hint}")
    return path
