"""Sets whose split is a list of files: ImageNet-1k, CIFAR, Speech Commands V2,
Kinetics-400, UCF-101, SSv2, AudioSet.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unipercept.datasets.base import LabelledSet, SetCard, SetFile, existing
from unipercept.errors import InputError, one_line

PICTURES = (".jpeg", ".jpg", ".png")
VIDEOS = (".mp4", ".avi", ".webm", ".mkv")
_WORDS = (
    "backward bed bird cat dog down eight five follow forward four go happy house learn left marvin nine no off on one "
    "right seven sheila six stop three tree two up visual wow yes zero"
)
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

IMAGENET = SetCard(
    name="imagenet1k",
    modality="image",
    source="image-net.org, ILSVRC 2012; Russakovsky et al. (2015)",
    licence="ImageNet terms: non-commercial research and education",
    may_train=False,
    class_names=(),
    splits=("train", "val"),
    protocol="top-1 on the 50,000 validation pictures, one centre crop at 224 (0.875)",
    layout="train/n01440764/*.JPEG and val/n01440764/*.JPEG: a folder a class",
    n_samples={"train": 1_281_167, "val": 50_000},
    statistics={"train_mean": (0.485, 0.456, 0.406), "train_std": (0.229, 0.224, 0.225)},
)
CIFAR10 = SetCard(
    name="cifar10",
    modality="image",
    source="www.cs.toronto.edu/~kriz/cifar.html; Krizhevsky (2009)",
    licence="not stated",
    may_train=False,
    class_names=_CIFAR10,
    splits=("train", "test"),
    protocol="top-1 accuracy on the 10,000 test pictures",
    layout="the binary version: data_batch_1.bin to data_batch_5.bin and test_batch.bin",
    n_samples={"train": 50_000, "test": 10_000},
    statistics={"train_mean": (0.4914, 0.4822, 0.4465), "train_std": (0.2470, 0.2435, 0.2616)},
    files=(SetFile("cifar-10-binary.tar.gz", url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"),),
)
CIFAR100 = replace(
    CIFAR10,
    name="cifar100",
    class_names=(),
    layout="the binary version: train.bin, test.bin and fine_label_names.txt",
    files=(SetFile("cifar-100-binary.tar.gz", url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"),),
)
SPEECH_COMMANDS = SetCard(
    name="speech_commands_v2",
    modality="audio",
    source="Warden (2018), Speech Commands version 0.02",
    licence="CC BY 4.0",
    may_train=True,
    class_names=tuple(_WORDS.split()),
    splits=("train", "validation", "test"),
    protocol="accuracy over 35 words on testing_list.txt; validation by validation_list.txt",
    layout="word/*.wav, validation_list.txt and testing_list.txt",
    n_samples={"train": 84_843, "validation": 9_981, "test": 11_005},
    statistics={"train_log_mel_mean": -6.845978, "train_log_mel_std": 5.5654526},
    files=(
        SetFile(
            "speech_commands_v0.02.tar.gz",
            url="http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
        ),
    ),
)
KINETICS400 = SetCard(
    name="kinetics400",
    modality="video",
    source="Kay et al. (2017); lists as in VideoMAE and SlowFast",
    licence="lists CC BY 4.0; the clips belong to their uploaders",
    may_train=False,
    class_names=(),
    splits=("train", "val", "test"),
    protocol="top-1 and top-5 on validation, 5 segments x 3 crops, softmax averaged",
    layout="train.csv, val.csv, test.csv: lines of `path label` (space or comma); paths relative to the folder",
    n_samples={"train": 240_436, "val": 19_796},
)
UCF101 = SetCard(
    name="ucf101",
    modality="video",
    source="www.crcv.ucf.edu/data/UCF101.php; Soomro et al. (2012)",
    licence="not stated",
    may_train=False,
    class_names=(),
    splits=tuple(f"{part}-{number}" for number in (1, 2, 3) for part in ("train", "test")),
    protocol="accuracy, mean over the three published splits",
    layout="ucfTrainTestlist/ (classInd.txt, trainlist01.txt, testlist01.txt ...) and UCF-101/Class/*.avi",
    n_samples={"train-1": 9_537, "test-1": 3_783},
)
SSV2 = SetCard(
    name="something_something_v2",
    modality="video",
    source="Goyal et al. (2017); Qualcomm AI datasets",
    licence="research only, by agreement",
    may_train=False,
    class_names=(),
    splits=("train", "validation"),
    protocol="top-1 and top-5 on validation, 2 segments x 3 crops",
    layout="labels/labels.json, labels/train.json, labels/validation.json and the clips as id.webm under 20bn-something-something-v2/",
    n_samples={"train": 168_913, "validation": 24_777},
)
AUDIOSET = SetCard(
    name="audioset",
    modality="audio",
    source="research.google.com/audioset; Gemmeke et al. (2017)",
    licence="lists CC BY 4.0; the clips belong to their uploaders",
    may_train=False,
    class_names=(),
    splits=("balanced_train", "unbalanced_train", "eval"),
    protocol="mean average precision over 527 classes on the clips of eval that are there",
    layout="class_labels_indices.csv, balanced_train_segments.csv, eval_segments.csv, and clips as SPLIT/YTID.(wav|flac|ogg|mp3)",
    n_samples={"balanced_train": 22_160, "unbalanced_train": 2_041_789, "eval": 20_371},
    is_multilabel=True,
)


def imagenet1k(folder: str | Path, split: str = "train") -> LabelledSet:
    """Paths; classes are the sorted folder names (WordNet ids), as every published model has them."""
    IMAGENET.check_split(split)
    root = existing(folder, split, IMAGENET)
    names = tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir()))
    found = [
        (path, index)
        for index, name in enumerate(names)
        for path in sorted((root / name).iterdir())
        if path.suffix.lower() in PICTURES
    ]
    return _paths(replace(IMAGENET, class_names=names), split, found, root)


def cifar10(folder: str | Path, split: str = "train") -> LabelledSet:
    """32x32x3 uint8."""
    CIFAR10.check_split(split)
    parts = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
    return _cifar(CIFAR10, folder, split, parts, label_bytes=1)


def cifar100(folder: str | Path, split: str = "train") -> LabelledSet:
    """32x32x3 uint8, the hundred fine classes."""
    CIFAR100.check_split(split)
    names = tuple(existing(folder, "fine_label_names.txt", CIFAR100).read_text(encoding="utf-8").split())
    return _cifar(replace(CIFAR100, class_names=names), folder, split, [f"{split}.bin"], label_bytes=2)


def speech_commands_v2(folder: str | Path, split: str = "train") -> LabelledSet:
    """Paths. The speaker (the name's first part) is the group; background noise is left out."""
    SPEECH_COMMANDS.check_split(split)
    root = Path(folder)
    held_out = {
        part: set(existing(root, f"{name}_list.txt", SPEECH_COMMANDS).read_text(encoding="utf-8").split())
        for part, name in (("validation", "validation"), ("test", "testing"))
    }
    words = SPEECH_COMMANDS.class_names
    found = []
    for index, word in enumerate(words):
        for path in sorted((root / word).glob("*.wav")):
            name = f"{word}/{path.name}"
            part = next((part for part, names in held_out.items() if name in names), "train")
            if part == split:
                found.append((path, index))
    chosen = _paths(SPEECH_COMMANDS, split, found, root)
    return replace(chosen, groups=tuple(Path(name).name.partition("_nohash_")[0] for name in chosen.ids))


def kinetics400(folder: str | Path, split: str = "train") -> LabelledSet:
    """Paths. Listed clips that are missing are left out: Kinetics shrinks as videos are taken down."""
    KINETICS400.check_split(split)
    root = Path(folder)
    found = []
    for line in existing(root, f"{split}.csv", KINETICS400).read_text(encoding="utf-8").splitlines():
        parts = re.fullmatch(r"(.+?)[ ,]+(\d+)", line.strip())  # names of clips may hold both signs, too
        if parts is None:
            raise InputError(f"{split}.csv of kinetics400 must hold lines of `path label`, got {line[:60]!r}")
        if (root / parts[1]).is_file():
            found.append((root / parts[1], int(parts[2])))
    count = max((label for _, label in found), default=0) + 1
    names_file = root / "class_names.txt"
    names = (
        tuple(names_file.read_text(encoding="utf-8").splitlines())
        if names_file.is_file()
        else tuple(f"class {i}" for i in range(count))
    )
    return _paths(replace(KINETICS400, class_names=names), split, found, root)


def ucf101(folder: str | Path, split: str = "train-1") -> LabelledSet:
    """Paths. Clips of one group (g01 ... g25: one source video) share a side of each published split."""
    UCF101.check_split(split)
    root, (part, _, number) = Path(folder), split.partition("-")
    lists = root / "ucfTrainTestlist"
    lines = existing(lists, "classInd.txt", UCF101).read_text(encoding="utf-8").splitlines()
    names = tuple(line.split()[1] for line in lines if line.strip())
    found = []
    for line in existing(lists, f"{part}list0{number}.txt", UCF101).read_text(encoding="utf-8").splitlines():
        if line.strip():
            name = line.split()[0]
            found.append((root / "UCF-101" / name, names.index(name.partition("/")[0])))
    chosen = _paths(replace(UCF101, class_names=names), split, found, root)
    return replace(chosen, groups=tuple(name.rpartition("_c")[0] for name in chosen.ids))


def something_something_v2(folder: str | Path, split: str = "train") -> LabelledSet:
    """Paths; the label is the template with its brackets taken off."""
    SSV2.check_split(split)
    root = Path(folder)
    try:
        table = json.loads(existing(root, "labels/labels.json", SSV2).read_text(encoding="utf-8"))
        entries = json.loads(existing(root, f"labels/{split}.json", SSV2).read_text(encoding="utf-8"))
        found = [
            (
                root / "20bn-something-something-v2" / f"{entry['id']}.webm",
                int(table[entry["template"].replace("[", "").replace("]", "")]),
            )
            for entry in entries
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"the labels of {root} are not those of {SSV2.name}: {one_line(error)}") from error
    names = tuple(sorted(table, key=lambda name: int(table[name])))
    return _paths(replace(SSV2, class_names=names), split, found, root)


def audioset(folder: str | Path, split: str = "balanced_train") -> LabelledSet:
    """Paths of the clips that are there; targets are 0/1 for each class."""
    AUDIOSET.check_split(split)
    root = Path(folder)
    with existing(root, "class_labels_indices.csv", AUDIOSET).open(newline="", encoding="utf-8") as file:
        classes = list(csv.DictReader(file))
    position = {row["mid"]: int(row["index"]) for row in classes}
    here = {
        path.stem: path for path in sorted((root / split).glob("*")) if path.suffix in (".wav", ".flac", ".ogg", ".mp3")
    }
    found: list[tuple[Path, NDArray[np.int64]]] = []
    with existing(root, f"{split}_segments.csv", AUDIOSET).open(newline="", encoding="utf-8") as file:
        for row in csv.reader((line for line in file if not line.startswith("#")), skipinitialspace=True):
            if row and row[0] in here:
                target = np.zeros(len(classes), np.int64)
                target[[position[mid] for mid in row[3].split(",")]] = 1
                found.append((here[row[0]], target))
    card = replace(AUDIOSET, class_names=tuple(row["display_name"] for row in classes))
    if not found:
        raise InputError(f"{root / split} holds no clip of {split}_segments.csv; expected {AUDIOSET.layout}")
    return LabelledSet(
        card, split, np.stack([target for _, target in found]), tuple(p.stem for p, _ in found), lambda i: found[i][0]
    )


def _paths(card: SetCard, split: str, found: list[tuple[Path, int]], root: Path) -> LabelledSet:
    if not found:
        raise InputError(f"{root} holds no file of the split {split!r} of {card.name}; expected {card.layout}")
    ids = tuple(path.relative_to(root).as_posix() for path, _ in found)
    targets = np.array([target for _, target in found], np.int64)
    if targets.max() >= len(card.class_names):
        raise InputError(f"{root} has labels up to {targets.max()}, but {len(card.class_names)} class names")
    return LabelledSet(card, split, targets, ids, lambda position: found[position][0])


def _cifar(card: SetCard, folder: str | Path, split: str, parts: list[str], label_bytes: int) -> LabelledSet:
    """Rows of label bytes (the fine one last), then 1024 red, 1024 green and 1024 blue bytes."""
    row = label_bytes + 3 * 32 * 32
    paths = [existing(folder, part, card) for part in parts]
    if any(path.stat().st_size % row for path in paths):
        raise InputError(f"{paths[0]} does not hold whole rows of {row} bytes; expected {card.layout}")
    rows = np.concatenate([np.fromfile(path, np.uint8).reshape(-1, row) for path in paths])
    pictures = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    ids = tuple(f"{split} {i}" for i in range(len(rows)))
    return LabelledSet(card, split, rows[:, label_bytes - 1].astype(np.int64), ids, lambda i: pictures[i])
