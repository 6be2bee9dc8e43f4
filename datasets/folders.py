"""A user's own set: a folder of class folders, in any modality.

Files are listed, not opened; decoding them reports bad ones.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from unipercept.datasets.base import LabelledSet, SetCard
from unipercept.errors import InputError, as_text, counted

SPLIT_NAMES = ("train", "validation", "val", "test")
DESKTOP_FILES = ("thumbs.db", "desktop.ini")  # which Windows leaves in folders of pictures


def class_folders(folder: str | Path) -> LabelledSet:
    """Paths by class. Names that start with a dot or an underscore, and what a file manager leaves, are passed over.

    Raises:
        InputError: no class folders, fewer than two classes, an empty class, a class with one file, or two classes
            whose names differ in upper and lower case alone.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; expected a folder with a folder of recordings for each class")
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not _hidden(entry.name))
    _check_names(root, names)
    top = frozenset({root.resolve()})
    found = [(path, index) for index, name in enumerate(names) for path in _files(root / name, top)]
    _check_counts(root, names, Counter(index for _, index in found))
    card = SetCard(
        name=as_text(root.resolve().name),
        modality="",
        source=as_text(str(root)),
        licence="the owner's",
        may_train=False,
        class_names=tuple(map(as_text, names)),
        splits=("all",),
        protocol="accuracy on a held-out share of the files",
        layout="a folder for each class",
        n_samples={"all": len(found)},
    )
    ids = tuple(as_text(path.relative_to(root).as_posix()) for path, _ in found)
    targets = np.array([target for _, target in found], np.int64)
    return LabelledSet(card, "all", targets, ids, lambda position: found[position][0])


def split_folders(folder: str | Path) -> dict[str, Path]:
    """The folders train, validation (or val) and test of `folder`, where it is laid out like that; else nothing."""
    root = Path(folder)
    found = {name: root / name for name in SPLIT_NAMES if (root / name).is_dir()}
    if "train" not in found or len(found) < 2:
        return {}
    return {("validation" if name == "val" else name): path for name, path in found.items()}


def _files(folder: Path, parents: frozenset[Path]) -> list[Path]:
    """Files in a folder and below. Links are followed, as by `encode`, but for those back to a folder of `parents`."""
    identity = folder.resolve()
    if identity in parents:
        return []
    entries = [entry for entry in folder.iterdir() if not _hidden(entry.name)]
    below = [file for entry in entries if entry.is_dir() for file in _files(entry, parents | {identity})]
    return sorted([entry for entry in entries if entry.is_file()] + below)


def _hidden(name: str) -> bool:
    return name.startswith((".", "_")) or name.lower() in DESKTOP_FILES


def _check_names(root: Path, names: list[str]) -> None:
    if len(names) < 2:
        raise InputError(
            f"{root} holds {counted(len(names), 'class folder', 'class folders')}; expected at least two, each with its recordings: {root}/CLASS/FILE"
        )
    folded: dict[str, str] = {}
    for name in names:
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            raise InputError(
                f"{root} has the classes {other!r} and {name!r}, which differ in case alone; merge or rename"
            )


def _check_counts(root: Path, names: list[str], counts: Counter[int]) -> None:
    empty = [name for index, name in enumerate(names) if counts[index] == 0]
    if empty:
        raise InputError(f"the class {empty[0]!r} of {root} is empty; add recordings or remove the folder")
    single = [name for index, name in enumerate(names) if counts[index] == 1]
    if single:
        raise InputError(
            f"the class {single[0]!r} of {root} has one recording; training and validation need at least two: add some"
        )
