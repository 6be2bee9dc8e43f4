"""Data sets: source, licence, splits, statistics, and readers, in plain dictionaries. Nothing is downloaded unasked.

base            the interface: cards, samples and sets; fetch downloads on request; archives reads what lies in a tar
folders         a user's own set, a folder for each class
listed          sets whose split is a list of files: ImageNet, CIFAR, Speech Commands, Kinetics, UCF-101, SSv2, AudioSet
pictures        fashion_mnist
sounds          fsdd, esc
point clouds    clouds (DALES, BIMNet10, ModelNet, ScanObjectNN); generated: shapes3d, things3d
videos          generated: camera_motion
series          to forecast: ett, long_term and stations, as windows; to embed: real_series
                generated, by kind: processes, and everyday for series of less noise; without a kind: blends
synthetic       small recordings of every modality, for tests and the demo
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from unipercept.datasets.base import LabelledSet, Sample, SampleSet, SetCard, Sound
from unipercept.errors import InputError

DATASETS = {
    "etth1": ("unipercept.datasets.ett", "etth1"),
    "etth2": ("unipercept.datasets.ett", "etth2"),
    "ettm1": ("unipercept.datasets.ett", "ettm1"),
    "ettm2": ("unipercept.datasets.ett", "ettm2"),
    "weather_jena": ("unipercept.datasets.long_term", "weather_jena"),
    "exchange_rate": ("unipercept.datasets.long_term", "exchange_rate"),
    "ili": ("unipercept.datasets.long_term", "ili"),
    "electricity": ("unipercept.datasets.long_term", "electricity"),
    "traffic": ("unipercept.datasets.long_term", "traffic"),
    "solar": ("unipercept.datasets.long_term", "solar"),
    "stations_temperature": ("unipercept.datasets.stations", "stations_temperature"),
    "stations_wind": ("unipercept.datasets.stations", "stations_wind"),
}

# Sets with a card, for classification: module, function, card.
LABELLED_SETS = {
    "fashion_mnist": ("unipercept.datasets.fashion_mnist", "fashion_mnist", "CARD"),
    "imagenet1k": ("unipercept.datasets.listed", "imagenet1k", "IMAGENET"),
    "cifar10": ("unipercept.datasets.listed", "cifar10", "CIFAR10"),
    "cifar100": ("unipercept.datasets.listed", "cifar100", "CIFAR100"),
    "fsdd": ("unipercept.datasets.fsdd", "fsdd", "CARD"),
    "esc10": ("unipercept.datasets.esc", "esc10", "ESC10"),
    "esc50": ("unipercept.datasets.esc", "esc50", "ESC50"),
    "speech_commands_v2": ("unipercept.datasets.listed", "speech_commands_v2", "SPEECH_COMMANDS"),
    "audioset": ("unipercept.datasets.listed", "audioset", "AUDIOSET"),
    "kinetics400": ("unipercept.datasets.listed", "kinetics400", "KINETICS400"),
    "ucf101": ("unipercept.datasets.listed", "ucf101", "UCF101"),
    "something_something_v2": ("unipercept.datasets.listed", "something_something_v2", "SSV2"),
    "dales_objects": ("unipercept.datasets.clouds", "dales_objects", "DALES"),
    "bimnet10": ("unipercept.datasets.clouds", "bimnet10", "BIMNET"),
    "modelnet10": ("unipercept.datasets.clouds", "modelnet10", "MODELNET10"),
    "modelnet40": ("unipercept.datasets.clouds", "modelnet40", "MODELNET40"),
    "scanobjectnn": ("unipercept.datasets.clouds", "scanobjectnn", "SCANOBJECTNN"),
    "shapes3d": ("unipercept.datasets.shapes3d", "shapes3d", "CARD"),
    "things3d": ("unipercept.datasets.things3d", "things3d", "CARD"),
    "processes": ("unipercept.datasets.processes", "processes", "CARD"),
    "camera_motion": ("unipercept.datasets.camera_motion", "camera_motion", "CARD"),
}


def dataset(name: str, folder: str, split: str = "train", **options: Any) -> SampleSet:
    """Open the split of a published set that lies in `folder`; nothing is downloaded.

    Raises:
        InputError: no such set, split or folder.
    """
    if name in LABELLED_SETS:
        return labelled_set(name, folder, split, **options)
    if name not in DATASETS:
        raise InputError(f"dataset must be one of {', '.join([*DATASETS, *LABELLED_SETS])}; got {name!r}")
    module, function = DATASETS[name]
    found: SampleSet = getattr(import_module(module), function)(folder, split, **options)
    return found


def labelled_set(name: str, folder: str | Path, split: str = "train", **options: Any) -> LabelledSet:
    """Open the split of a set with classes.

    Raises:
        InputError: no such set or split, or the folder does not hold it.
    """
    module, function, _ = _entry(name)
    found: LabelledSet = getattr(import_module(module), function)(folder, split, **options)
    return found


def set_card(name: str) -> SetCard:
    """The facts of a set: source, licence, splits, classes.

    Raises:
        InputError: no such set.
    """
    module, _, card = _entry(name)
    found: SetCard = getattr(import_module(module), card)
    return found


def _entry(name: str) -> tuple[str, str, str]:
    if name not in LABELLED_SETS:
        raise InputError(f"dataset must be one of {', '.join(LABELLED_SETS)}; got {name!r}")
    return LABELLED_SETS[name]


__all__ = [
    "DATASETS",
    "LABELLED_SETS",
    "LabelledSet",
    "Sample",
    "SampleSet",
    "SetCard",
    "Sound",
    "dataset",
    "labelled_set",
    "set_card",
]
