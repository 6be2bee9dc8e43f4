"""Published sets, one file each: source, licence, splits, statistics. A dictionary one can read."""

from importlib import import_module
from typing import Any

from unipercept.datasets.base import Sample, SampleSet
from unipercept.errors import InputError

DATASETS = {
    "etth1": ("unipercept.datasets.ett", "etth1"),
    "etth2": ("unipercept.datasets.ett", "etth2"),
}


def dataset(name: str, folder: str, split: str = "train", **options: Any) -> SampleSet:
    """Open the split of a published set that lies in `folder`; nothing is downloaded.

    Raises:
        InputError: no such set, split or folder.
    """
    if name not in DATASETS:
        raise InputError(f"dataset must be one of {', '.join(DATASETS)}; got {name!r}")
    module, function = DATASETS[name]
    found: SampleSet = getattr(import_module(module), function)(folder, split, **options)
    return found


__all__ = ["DATASETS", "Sample", "SampleSet", "dataset"]
