"""Point-cloud sets: DALES objects, BIMNet10, ModelNet10/40 (OFF, h5, txt), ScanObjectNN.

Shapes: N points.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.datasets.base import LabelledSet, SetCard, SetFile, existing
from unipercept.errors import InputError, import_optional, one_line

DALES = SetCard(
    name="dales_objects",
    modality="pointcloud",
    source="github.com/lm2-me/GEO5017Assignment2 (objects cut from DALES Objects, Singer et al. 2021)",
    licence="not stated",
    may_train=False,
    class_names=("building", "car", "fence", "pole", "tree"),
    splits=("train", "test"),
    protocol="accuracy on the 100 test objects; metric scale matters (random forest: 96.4 with, 91.8 without)",
    layout="dales_objects_2048.npz with points (n, 2048, 3) in metres, labels, object_id, split",
    n_samples={"train": 299, "test": 100},
)
BIMNET = SetCard(
    name="bimnet10",
    modality="pointcloud",
    source="github.com/jingdao/BIMNet10",
    licence="not stated",
    may_train=False,
    class_names=("balcony", "beam", "column", "door", "fence", "floor", "roof", "stairs", "wall", "window"),
    splits=("train", "test"),
    protocol="accuracy on the 51 test elements, with a confidence interval and repeated seeds",
    layout="bimnet10_train.h5 and bimnet10_test.h5",
    n_samples={"train": 165, "test": 51},
)
_MODELNET10 = ("bathtub", "bed", "chair", "desk", "dresser", "monitor", "night_stand", "sofa", "table", "toilet")
MODELNET40 = SetCard(
    name="modelnet40",
    modality="pointcloud",
    source="modelnet.cs.princeton.edu; Wu et al. (2015)",
    licence="for academic research; no licence stated",
    may_train=False,
    class_names=(),
    splits=("train", "test"),
    protocol="overall and mean class accuracy on the 2,468 test models",
    layout="class/train/*.off and class/test/*.off, or ply_data_*.h5 with shape_names.txt, or class/*.txt with modelnet40_train.txt",
    n_samples={"train": 9_843, "test": 2_468},
    files=(SetFile("ModelNet40.zip", url="http://modelnet.cs.princeton.edu/ModelNet40.zip"),),
)
MODELNET10 = replace(
    MODELNET40,
    name="modelnet10",
    class_names=_MODELNET10,
    protocol="overall and mean class accuracy on the 908 test models",
    n_samples={"train": 3_991, "test": 908},
    files=(SetFile("ModelNet10.zip", url="http://3dvision.princeton.edu/projects/2014/3DShapeNets/ModelNet10.zip"),),
)
SCANOBJECTNN = SetCard(
    name="scanobjectnn",
    modality="pointcloud",
    source="hkust-vgd.github.io/scanobjectnn; Uy et al. (2019)",
    licence="terms of use by form, research only",
    may_train=False,
    class_names=(
        *("bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed", "pillow"),
        *("sink", "sofa", "toilet"),
    ),
    splits=("train", "test"),
    protocol="overall accuracy, split PB_T50_RS (its files), 2,882 test objects",
    layout="training_objectdataset_augmentedrot_scale75.h5 and test_objectdataset_augmentedrot_scale75.h5",
    n_samples={"train": 11_416, "test": 2_882},
)


def dales_objects(folder: str | Path, split: str = "train") -> LabelledSet:
    """Nx3 float32 in metres."""
    DALES.check_split(split)
    path = existing(folder, "dales_objects_2048.npz", DALES)
    try:
        with np.load(path, allow_pickle=False) as file:
            points, labels, ids, splits = (file[key] for key in ("points", "labels", "object_id", "split"))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot read {path}: {one_line(error)}; expected {DALES.layout}") from error
    chosen = np.flatnonzero(splits == split)
    names = tuple(f"object {ids[i]:03d}" for i in chosen)
    return LabelledSet(
        DALES, split, labels[chosen].astype(np.int64), names, lambda i: points[chosen[i]].astype(np.float32)
    )


def bimnet10(folder: str | Path, split: str = "train") -> LabelledSet:
    """Nx3 float32."""
    BIMNET.check_split(split)
    return _from_h5(BIMNET, split, [existing(folder, f"bimnet10_{split}.h5", BIMNET)])


def modelnet40(folder: str | Path, split: str = "train") -> LabelledSet:
    """Nx3 points from h5 and txt, paths of the meshes from OFF."""
    return _modelnet(MODELNET40, Path(folder), split)


def modelnet10(folder: str | Path, split: str = "train") -> LabelledSet:
    """As modelnet40; out of a folder of ModelNet40 it takes its ten classes."""
    return _modelnet(MODELNET10, Path(folder), split)


def scanobjectnn(folder: str | Path, split: str = "train") -> LabelledSet:
    """2048x3 points, background included, PB_T50_RS."""
    SCANOBJECTNN.check_split(split)
    part = "training" if split == "train" else "test"
    return _from_h5(
        SCANOBJECTNN, split, [existing(folder, f"{part}_objectdataset_augmentedrot_scale75.h5", SCANOBJECTNN)]
    )


def _modelnet(card: SetCard, folder: Path, split: str) -> LabelledSet:
    card.check_split(split)
    h5 = sorted(folder.glob(f"ply_data_{split}*.h5"))
    if h5:
        names = existing(folder, "shape_names.txt", card).read_text(encoding="utf-8").split()
        return _from_h5(replace(card, class_names=tuple(names)), split, h5)
    lists = list(folder.glob(f"modelnet*_{split}.txt"))
    if lists:
        stems = lists[0].read_text(encoding="utf-8").split()
        found = [(folder / stem.rpartition("_")[0] / f"{stem}.txt", stem.rpartition("_")[0]) for stem in stems]
        return _from_paths(card, split, found, as_points=True)
    found = [(path, path.parts[-3]) for path in sorted(folder.glob(f"*/{split}/*.off"))]
    if not found:
        existing(folder, f"chair/{split}", card)
        raise InputError(f"{folder} holds no model of the split {split!r}; expected {card.layout}")
    return _from_paths(card, split, found, as_points=False)


def _from_paths(card: SetCard, split: str, found: list[tuple[Path, str]], *, as_points: bool) -> LabelledSet:
    names = card.class_names or tuple(sorted({name for _, name in found}))
    found = [(path, name) for path, name in found if name in names]
    targets = np.array([names.index(name) for _, name in found], np.int64)
    return LabelledSet(
        replace(card, class_names=names),
        split,
        targets,
        tuple(path.stem for path, _ in found),
        lambda i: _read_txt(found[i][0]) if as_points else found[i][0],
    )


def _read_txt(path: Path) -> NDArray[np.float32]:
    try:
        return np.loadtxt(path, delimiter=",", dtype=np.float32, ndmin=2)[:, :3]
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} as lines of x,y,z: {one_line(error)}") from error


def _from_h5(card: SetCard, split: str, paths: list[Path]) -> LabelledSet:
    points, labels = zip(*(_read_h5(path) for path in paths), strict=True)
    clouds, targets = np.concatenate(points), np.concatenate(labels)
    if targets.max(initial=0) >= len(card.class_names):
        raise InputError(f"{paths[0]} has labels up to {targets.max()}, {card.name} {len(card.class_names)} classes")
    return LabelledSet(card, split, targets, tuple(f"{split} {i}" for i in range(len(targets))), lambda i: clouds[i])


def _read_h5(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    netcdf: Any = import_optional("netCDF4", extra="weather")  # reads any HDF5
    try:
        with netcdf.Dataset(path) as file:
            points = np.asarray(file.variables["data"][:, :, :3], np.float32)
            labels = np.asarray(file.variables["label"][:], np.int64).reshape(-1)
    except (OSError, KeyError, IndexError, RuntimeError) as error:
        raise InputError(f"cannot read {path} as HDF5 with data and label: {one_line(error)}") from error
    return points, labels
