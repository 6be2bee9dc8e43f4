"""Fashion-MNIST: 70,000 grey pictures of clothes, 28x28. Files in IDX form, plain, .gz or .xz.

Split: 60,000 train and 10,000 test as published; `validation` is the last 5,000 of train, and `train` the 55,000 before
them (`train_all` is both).
"""

from __future__ import annotations

import gzip
import lzma
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.datasets.base import LabelledSet, SetCard, SetFile, existing
from unipercept.errors import InputError, one_line

N_VALIDATION = 5_000
MIRROR = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
CARD = SetCard(
    name="fashion_mnist",
    modality="image",
    source="github.com/zalandoresearch/fashion-mnist; Xiao et al. (2017)",
    licence="MIT, Zalando SE 2017",
    may_train=True,
    class_names=(
        "T-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
    splits=("train", "validation", "test", "train_all"),
    protocol="top-1 accuracy on the 10,000 test pictures",
    layout="train-images-idx3-ubyte, train-labels-idx1-ubyte and the two t10k- (or test-) files, plain, .gz or .xz",
    n_samples={"train": 55_000, "validation": 5_000, "test": 10_000},
    statistics={"train_mean": 0.28604, "train_std": 0.35302},
    files=tuple(
        SetFile(f"{name}.gz", url=f"{MIRROR}/{name}.gz")
        for name in (
            "train-images-idx3-ubyte",
            "train-labels-idx1-ubyte",
            "t10k-images-idx3-ubyte",
            "t10k-labels-idx1-ubyte",
        )
    ),
)


def fashion_mnist(folder: str | Path, split: str = "train") -> LabelledSet:
    """Pictures as 28x28x3 uint8, grey repeated; see the module's text."""
    CARD.check_split(split)
    parts = ("t10k", "test") if split == "test" else ("train",)
    images = read_idx(_find(folder, parts, "images-idx3-ubyte"), 3)
    labels = read_idx(_find(folder, parts, "labels-idx1-ubyte"), 1).astype(np.int64)
    if len(images) != len(labels):
        raise InputError(f"{folder} holds {len(images)} pictures and {len(labels)} labels; fetch the files again")
    first, last = 0, len(labels)
    if split == "train":
        last -= N_VALIDATION
    elif split == "validation":
        first = last - N_VALIDATION
    half = "test" if split == "test" else "train"
    return LabelledSet(
        CARD,
        split,
        labels[first:last],
        tuple(f"{half} {i}" for i in range(first, last)),
        lambda position: np.repeat(images[first + position][:, :, None], 3, axis=2),
    )


def read_idx(path: Path, n_dimensions: int) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes. Source: the format's description at yann.lecun.com/exdb/mnist.

    Raises:
        InputError: damaged, or of another type or number of dimensions.
    """
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    try:
        with opener(path, "rb") as file:
            content = file.read()
        magic = struct.unpack(">I", content[:4])[0]
        shape = struct.unpack(f">{n_dimensions}I", content[4 : 4 + 4 * n_dimensions])
    except (OSError, EOFError, lzma.LZMAError, struct.error) as error:
        raise InputError(f"cannot read {path} as IDX: {one_line(error)}; fetch it again") from error
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * n_dimensions)
    if magic != 0x0800 + n_dimensions or values.size != int(np.prod(shape)):
        raise InputError(f"{path} must be IDX of unsigned bytes in {n_dimensions} dimensions; fetch it again")
    return values.reshape(shape)


def _find(folder: str | Path, parts: tuple[str, ...], rest: str) -> Path:
    for part in parts:
        for suffix in ("", ".gz", ".xz"):
            path = Path(folder) / f"{part}-{rest}{suffix}"
            if path.is_file():
                return path
    return existing(folder, f"{parts[0]}-{rest}", CARD)
