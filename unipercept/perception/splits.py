"""Which recordings are for training, validation and test: as published if the set says so,
else drawn once and recorded.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.atomic import atomic_path
from unipercept.datasets import LABELLED_SETS, labelled_set
from unipercept.datasets.base import LabelledSet
from unipercept.datasets.folders import class_folders, split_folders
from unipercept.errors import InputError, as_text, counted

PARTS = ("train", "validation", "test")
SHARES = {"validation": 0.15, "test": 0.15}
SPLIT_FILE = "split.json"
SHOWN = 5  # names of classes in a line


def open_parts(
    source: str,
    data: str | Path | None = None,
    *,
    fold: str | None = None,
    seed: int = 0,
    run: Path | None = None,
    start: Path | None = None,
) -> tuple[dict[str, LabelledSet], str]:
    """A folder of class folders, or a published set in `data`, as its parts; and a line that says how they were made.

    A folder that contains train/ and test/ (and validation/) keeps these parts. Parts that a folder or a published set
    lacks are drawn from train: stratified by class, with groups and copies of a file kept together.

    Args:
        source: a name of `LABELLED_SETS`, or a folder.
        data: where the published set lies.
        fold: for sets in folds, which one is the test: "2" for train-2 and fold-2. None: that of `run`, or the first.
        run: folder of a run whose recorded split holds, where it names recordings of a folder without parts: drawn
            anew after recordings came or went, test would hold some that trained the run. New ones are in no part.
        start: folder of a run that a training begins with. Its recordings keep their parts, by their names, so that
            none that trained it is in test; new ones are drawn.

    Raises:
        InputError: no such set or folder, or one that cannot train; the line says why.
    """
    if source in LABELLED_SETS:
        return _published(source, data or "", fold or _recorded_fold(source, run), seed)
    if not Path(source).is_dir():
        close = get_close_matches(source, LABELLED_SETS, n=3)
        raise InputError(
            f"{source} {'is a file' if Path(source).exists() else 'does not exist'}; expected a folder with one sub-folder per class, or a published "
            + (f"set: did you mean {' or '.join(close)}?" if close else "set (`unipercept datasets` lists them)")
        )
    below = split_folders(source)
    if below:
        parts = {name: class_folders(path) for name, path in below.items()}
        _check_same_classes(parts)
        how = f"the folders {', '.join(below)} as they are"
        if "test" in below:
            how += _leak(parts["train"], parts["test"])
        first = first_copies([parts["train"].read(i) for i in range(len(parts["train"]))])
        return _with_validation(parts, seed, how, first)
    samples = class_folders(source)
    recorded = _recorded(samples, run)
    if recorded:
        n_new = len(samples) - sum(map(len, recorded.values()))
        more = f"; {counted(n_new, 'new one is', 'new ones are')} in none" if n_new else ""
        return recorded, f"as the run recorded them{more}"
    first = first_copies([samples.read(i) for i in range(len(samples))])
    copies = int(np.sum(first != np.arange(len(samples))))
    kept = _parts_of(samples, start)
    how = f"70/15/15 drawn by class, seed {seed}"
    if (n_kept := int(np.sum(kept >= 0))) and start is not None:
        new = counted(len(samples) - n_kept, "new one is", "new ones are")
        how = f"{n_kept} recordings stay in the parts that {as_text(start.name)} had them in, {new} drawn by class, seed {seed}"
    if copies:
        how += f"; {counted(copies, 'copy of a file stays', 'copies of files stay')} on the side of the original"
    if torn := int(np.sum(samples.targets[first] != samples.targets)):
        how += f"; {torn} of them in another class than the original, so that one of the two labels is wrong"
    parts = draw(samples, PARTS, seed, first, kept)
    return parts, how + _untested(parts)


def first_copies(paths: Sequence[Path]) -> NDArray[np.int64]:
    """For each file the position of the first file with the same bytes: its own position if it is no copy."""
    sizes = [path.stat().st_size for path in paths]
    count, seen = Counter(sizes), dict[str, int]()
    first = np.arange(len(paths))
    for position, path in enumerate(paths):
        if count[sizes[position]] > 1:  # most files need not be read
            first[position] = seen.setdefault(_digest(path), position)
    return first


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # decoding it will report the error
        return str(path)


def _leak(train: LabelledSet, test: LabelledSet) -> str:
    """A warning if the user's own test folder contains copies of training files."""
    paths = [part.read(i) for part in (train, test) for i in range(len(part))]
    known = int(np.sum(first_copies(paths)[len(train) :] < len(train)))
    if not known:
        return ""
    return f"; {known} of the {len(test)} test files are copies of training files, so the test score is too high"


def _untested(parts: Mapping[str, LabelledSet]) -> str:
    """A warning of classes that have no test recordings, since they have too few."""
    names = parts["train"].card.class_names
    tested = set(parts["test"].targets.tolist()) if "test" in parts else set()
    untested = [name for index, name in enumerate(names) if index not in tested]
    if not untested:
        return ""
    shown = ", ".join(untested[:SHOWN]) + (" …" if len(untested) > SHOWN else "")
    return f"; too few recordings to test {'any class' if not tested else shown}"


def draw(
    samples: LabelledSet,
    parts: tuple[str, ...],
    seed: int,
    first: NDArray[np.int64] | None = None,
    kept: NDArray[np.int64] | None = None,
) -> dict[str, LabelledSet]:
    """Divide a set: each class gives its share to each part, at least one where it can;
    groups and copies stay together. A part that gets nothing is left out.

    Args:
        first: of each sample the position of its first copy, as `first_copies` gives it.
        kept: of each sample the position of its part in `parts`, -1 where it is to be drawn; for sets without groups.

    Raises:
        InputError: a class that cannot be in train and in the next part too.
    """
    rng = np.random.default_rng(seed)
    owner = np.zeros(len(samples), np.int64)
    if samples.groups:
        _draw_groups(samples, parts, owner, rng)
    else:
        first = np.arange(len(samples)) if first is None else first
        is_first = first == np.arange(len(samples))
        given = np.full(len(samples), -1)
        if kept is not None:
            for part in range(len(parts))[::-1]:  # a file that trained trains, in whatever parts its copies were
                given[first[kept == part]] = part
        owner[given > 0] = given[given > 0]
        for target in np.unique(samples.targets):
            _draw_class(np.flatnonzero((samples.targets == target) & is_first), parts, owner, given, rng)
        owner = owner[first]
    missing = set(samples.targets.tolist()) - set(samples.targets[owner == 0].tolist())
    if missing:
        name = samples.card.class_names[min(missing)]
        raise InputError(
            f"all recordings of the class {name!r} belong to one group or are copies of others, so they cannot be in both train and test"
        )
    return {part: samples.subset(np.flatnonzero(owner == i), part) for i, part in enumerate(parts) if i in owner}


def record(parts: Mapping[str, LabelledSet], how: str, folder: Path) -> None:
    """Write which recording is in which part."""
    about = {"set": parts["train"].card.name, "test_split": parts["test"].split if "test" in parts else ""}
    content = {"how": how, **about, **_ids(parts)}
    with atomic_path(folder / SPLIT_FILE) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def run_folder(model: str | Path) -> Path | None:
    """The folder of the run that a model comes from, if it was given as one or as a file in one."""
    path = Path(model)
    folder = path if path.is_dir() else path.parent
    return folder if path.exists() and (folder / SPLIT_FILE).is_file() else None


def n_that_trained(run: Path | None, samples: LabelledSet) -> int:
    """How many of the samples trained a run or chose its weights, by the names that it recorded of the same set."""
    before = _record_of(run)
    known = {*before.get("train", ()), *before.get("validation", ())} if before.get("set") == samples.card.name else ()
    return sum(name in known for name in samples.ids)


def check_unchanged(parts: Mapping[str, LabelledSet], folder: Path) -> None:
    """Refuse to resume with other recordings: the split is drawn anew, and training recordings could end up in test.

    Raises:
        InputError: recordings came, went or moved to another part.
    """
    try:
        before = json.loads((folder / SPLIT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot resume {folder}: its {SPLIT_FILE} is missing or damaged") from error
    now = _ids(parts)
    if any(before.get(name) != ids for name, ids in now.items()):
        old = {one for name in now for one in before.get(name, ())}
        new = {one for ids in now.values() for one in ids}
        raise InputError(
            f"{folder} was trained on other recordings ({len(new - old)} new, {len(old - new)} gone); "
            "give the same ones to resume, or name another folder"
        )


def _recorded(samples: LabelledSet, run: Path | None) -> dict[str, LabelledSet]:
    """The parts that a run recorded, without what is gone; nothing where it names none of the samples."""
    before = _record_of(run)
    position = {name: i for i, name in enumerate(samples.ids)}
    rows = {part: [position[name] for name in before.get(part, ()) if name in position] for part in PARTS}
    return {part: samples.subset(found, part) for part, found in rows.items() if found}


def _parts_of(samples: LabelledSet, run: Path | None) -> NDArray[np.int64]:
    """Of each sample the position in `PARTS` of the part in which a run recorded its name; -1 if in none."""
    before = _record_of(run)
    part_of = {name: i for i, part in enumerate(PARTS) for name in before.get(part, ())}
    return np.array([part_of.get(name, -1) for name in samples.ids])


def _recorded_fold(name: str, run: Path | None) -> str | None:
    """The test fold of a published set that a run recorded."""
    before = _record_of(run)
    _, dash, fold = str(before.get("test_split", "")).rpartition("-")
    return fold if dash and before.get("set") == name else None


def _record_of(run: Path | None) -> dict[str, Any]:
    """What `record` wrote; nothing where it is missing or damaged."""
    try:
        return dict(json.loads((run / SPLIT_FILE).read_text(encoding="utf-8"))) if run else {}
    except (OSError, ValueError, TypeError):
        return {}


def _ids(parts: Mapping[str, LabelledSet]) -> dict[str, list[str]]:
    return {name: list(part.ids) for name, part in parts.items()}


def _draw_class(
    members: NDArray[np.int64],
    parts: tuple[str, ...],
    owner: NDArray[np.int64],
    given: NDArray[np.int64],
    rng: np.random.Generator,
) -> None:
    free = rng.permutation(members[given[members] < 0])
    trains, taken = int(np.sum(given[members] == 0)), 0
    for i, part in enumerate(parts[1:], start=1):
        count = max(1, round(SHARES[part] * len(members))) - int(np.sum(given[members] == i))
        if count > 0 and taken + count >= len(free) + trains:  # of two, one trains, one validates, none is left to test
            break
        count = min(max(0, count), len(free) - taken)
        owner[free[taken : taken + count]] = i
        taken += count


def _draw_groups(
    samples: LabelledSet, parts: tuple[str, ...], owner: NDArray[np.int64], rng: np.random.Generator
) -> None:
    names = np.array(samples.groups)
    order = rng.permutation(np.unique(names))
    wanted = {i: SHARES[part] * len(samples) for i, part in enumerate(parts) if i}
    for name in order:
        members = names == name
        for i in wanted:
            if np.sum(owner == i) + members.sum() / 2 <= wanted[i]:
                owner[members] = i
                break


def _published(name: str, data: str | Path, fold: str | None, seed: int) -> tuple[dict[str, LabelledSet], str]:
    from unipercept.datasets import set_card

    names = set_card(name).splits
    if "train" in names:
        train, validation, test = "train", next((n for n in ("validation", "val") if n in names), None), "test"
    else:
        folds = [n for n in names if n.startswith("train-")]
        if not folds:
            raise InputError(f"{name} has no train split; it has {', '.join(names)}")
        number = fold or folds[0].removeprefix("train-")
        train, validation = f"train-{number}", None
        test = f"fold-{number}" if f"fold-{number}" in names else f"test-{number}"
    parts = {"train": labelled_set(name, data, train)}
    if validation:
        parts["validation"] = labelled_set(name, data, validation)
    if test in names:
        parts["test"] = labelled_set(name, data, test)
    if set_card(name).is_multilabel:
        raise InputError(f"{name} has several labels a clip; `train` makes classifiers of one label")
    return _with_validation(
        parts, seed, f"published splits of {name} ({', '.join(part.split for part in parts.values())})"
    )


def _with_validation(
    parts: dict[str, LabelledSet], seed: int, how: str, first: NDArray[np.int64] | None = None
) -> tuple[dict[str, LabelledSet], str]:
    if "validation" not in parts:
        parts = {**parts, **draw(parts["train"], ("train", "validation"), seed, first)}
        how += f"; validation is 15 % of train, seed {seed}"
    return {name: parts[name] for name in PARTS if name in parts}, how


def _check_same_classes(parts: Mapping[str, LabelledSet]) -> None:
    wanted = parts["train"].card.class_names
    for name, part in parts.items():
        if part.card.class_names != wanted:
            odd = sorted(set(wanted) ^ set(part.card.class_names))
            raise InputError(f"the folders train and {name} have different classes, {odd[0]!r} first; make them alike")
