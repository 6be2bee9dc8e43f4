"""Free Spoken Digit Dataset: ten digits by six speakers, 8 kHz. A tar of `digit_speaker_take.wav`, or their folder.

Split as published: takes 0 to 4 are test, the others train; `validation` is takes 5 to 9, which `train` leaves out
(`train_all` has them). Official test shares its speakers with train; leave-one-speaker-out is `train-without-NAME` and
`only-NAME`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from unipercept.datasets.archives import decode_sound, read_members
from unipercept.datasets.base import LabelledSet, SetCard, SetFile, existing
from unipercept.errors import InputError

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
ARCHIVE = "https://codeload.github.com/Jakobovski/free-spoken-digit-dataset/tar.gz/refs/tags/v1.0.10"
CARD = SetCard(
    name="fsdd",
    modality="audio",
    source="github.com/Jakobovski/free-spoken-digit-dataset",
    licence="CC BY-SA 4.0",
    may_train=True,
    class_names=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    splits=(
        *("train", "validation", "test", "train_all"),
        *(f"{part}{name}" for name in SPEAKERS for part in ("train-without-", "only-")),
    ),
    protocol="accuracy on takes 0-4 of all speakers (easy: same speakers in train); leave-one-speaker-out is harder",
    layout="one .tar(.gz, .xz) of the recordings, or a folder with digit_speaker_take.wav",
    n_samples={"train": 2_400, "validation": 300, "test": 300},
    statistics={"sample_rate": 8_000},
    files=(SetFile("fsdd.tar.gz", url=ARCHIVE),),
)
NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav$")


def fsdd(folder: str | Path, split: str = "train") -> LabelledSet:
    """Recordings as Sound; see the module's text."""
    CARD.check_split(split)
    content = _recordings(Path(folder))
    chosen: list[tuple[str, int, str]] = []
    for path in content:
        match = NAME.search(path)
        if match and _belongs(split, match[2], int(match[3])):
            chosen.append((path, int(match[1]), match[2]))
    if not chosen:
        raise InputError(f"{folder} holds no recording of the split {split!r}; expected {CARD.layout}")
    return LabelledSet(
        CARD,
        split,
        np.array([digit for _, digit, _ in chosen], np.int64),
        tuple(Path(path).name for path, _, _ in chosen),
        lambda position: decode_sound(_bytes(content[chosen[position][0]]), chosen[position][0]),
        tuple(speaker for _, _, speaker in chosen),
    )


def _recordings(folder: Path) -> dict[str, Any]:
    """Name to bytes or path."""
    if folder.is_dir():
        loose = {path.name: path for path in sorted(folder.rglob("*.wav"))}
        if loose:
            return dict(loose)
        archives = sorted(path for path in folder.iterdir() if ".tar" in path.suffixes or path.suffix == ".tar")
        if archives:
            return dict(read_members(archives[0], ".wav"))
    return {"": existing(folder, "fsdd.tar.gz", CARD)}


def _bytes(content: bytes | Path) -> bytes:
    return content.read_bytes() if isinstance(content, Path) else content


def _belongs(split: str, speaker: str, take: int) -> bool:
    if split.startswith("only-"):
        return speaker == split.removeprefix("only-")
    if split.startswith("train-without-"):
        return speaker != split.removeprefix("train-without-")
    return {"test": take < 5, "validation": 5 <= take < 10, "train": take >= 10, "train_all": take >= 5}[split]
