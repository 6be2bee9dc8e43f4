"""ESC-50 and its subset ESC-10: environmental sounds of 5 s in five folds.

Layouts: ESC-50 as published (meta/esc50.csv beside audio/), whose column esc10 marks the subset; or ESC-10 as first
published, folders of class (`001_dog_bark`) with `fold-id-take.ogg`, in a tar or unpacked. Clips of one recording share
a fold, so the folds are never mixed: `fold-2` is the test of the second round, `train-2` all the others.
"""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unipercept.datasets.archives import decode_sound, read_members
from unipercept.datasets.base import LabelledSet, SetCard, SetFile, existing
from unipercept.errors import InputError

FOLDS = (1, 2, 3, 4, 5)
SPLITS = (*(f"train-{fold}" for fold in FOLDS), *(f"fold-{fold}" for fold in FOLDS), "all")
ESC50 = SetCard(
    name="esc50",
    modality="audio",
    source="github.com/karolpiczak/ESC-50; Piczak (2015)",
    licence="CC BY-NC 3.0",
    may_train=False,
    class_names=(),
    splits=SPLITS,
    protocol="accuracy, five-fold cross-validation on the published folds",
    layout="meta/esc50.csv and audio/*.wav",
    n_samples={"all": 2_000},
    files=(SetFile("esc50.zip", url="https://codeload.github.com/karolpiczak/ESC-50/zip/refs/heads/master"),),
)
ESC10 = SetCard(
    name="esc10",
    modality="audio",
    source="github.com/karolpiczak/ESC-10; Piczak (2015)",
    licence="CC BY 3.0 for the set; clips CC0, CC BY, 2 of CC Sampling+; authors in ATTRIBUTION.md",
    may_train=True,
    class_names=(
        *("dog bark", "rain", "sea waves", "baby cry", "clock tick", "person sneeze", "helicopter", "chainsaw"),
        *("rooster", "fire crackling"),
    ),
    splits=SPLITS,
    protocol="accuracy, cross-validation over the published folds that are there",
    layout="a tar of class folders (001_dog_bark/1-100032-A.ogg), or the folders, or the ESC-50 layout",
    n_samples={"all": 400},
)
NAME = re.compile(r"(\d{3})[^/]*/(\d)-(\w+)-\w+\.(?:ogg|wav)$")


def esc50(folder: str | Path, split: str = "train-1") -> LabelledSet:
    """The 50 classes; input: paths."""
    return _from_table(Path(folder), split, ESC50, only_esc10=False)


def esc10(folder: str | Path, split: str = "train-1") -> LabelledSet:
    """The ten classes; input: Sound from a tar, paths from folders."""
    ESC10.check_split(split)
    folder = Path(folder)
    if (folder / "meta" / "esc50.csv").is_file():
        return _from_table(folder, split, ESC10, only_esc10=True)
    clips: dict[str, Any] = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*.ogg"))}
    archives = sorted(folder.glob("*.tar*")) if folder.is_dir() else []
    if not clips:
        clips = dict(read_members(archives[0] if archives else existing(folder, "esc10.tar", ESC10), ".ogg"))
    chosen: list[tuple[str, int, str]] = []
    for name in clips:
        match = NAME.search(name)
        if match and _belongs(split, int(match[2])):
            chosen.append((name, int(match[1]) - 1, match[3]))
    return _set(ESC10, split, chosen, folder, clips)


def _set(
    card: SetCard, split: str, chosen: list[tuple[str, int, str]], folder: Path, clips: dict[str, Any]
) -> LabelledSet:
    if not chosen:
        raise InputError(f"{folder} holds no clip of the split {split!r} of {card.name}; expected {card.layout}")

    def read(position: int) -> Any:
        name = chosen[position][0]
        content = clips[name]
        return decode_sound(content, name) if isinstance(content, bytes) else content

    targets = np.array([target for _, target, _ in chosen], np.int64)
    return LabelledSet(
        card, split, targets, tuple(name for name, _, _ in chosen), read, tuple(group for _, _, group in chosen)
    )


def _from_table(folder: Path, split: str, card: SetCard, *, only_esc10: bool) -> LabelledSet:
    card.check_split(split)
    with existing(folder, "meta/esc50.csv", card).open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if not only_esc10 or row["esc10"] == "True"]
    names = {int(row["target"]): row["category"].replace("_", " ") for row in rows}
    order = sorted(names)
    card = replace(card, class_names=tuple(names[target] for target in order))
    chosen = [
        (row["filename"], order.index(int(row["target"])), row["src_file"])
        for row in rows
        if _belongs(split, int(row["fold"]))
    ]
    return _set(card, split, chosen, folder, {name: folder / "audio" / name for name, _, _ in chosen})


def _belongs(split: str, fold: int) -> bool:
    part, _, number = split.partition("-")
    return part == "all" or (fold == int(number)) == (part == "fold")
