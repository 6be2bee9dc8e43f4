"""The out-of-distribution statistics of the heads of a universal file, measured on the
recordings that they were trained on.

Shapes: R recordings, D width of a vector, C channels of the second stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unipercept import shared_weights
from unipercept.datasets.base import LabelledSet
from unipercept.datasets.everyday import everyday
from unipercept.datasets.processes import CLASSES
from unipercept.devices import resolve_device
from unipercept.errors import InputError
from unipercept.familiarity import Familiarity, fit_familiarity, look_familiar
from unipercept.perception.packs import MapMaker, Packs, decode, joined
from unipercept.perception.settings import MapSettings
from unipercept.perception.splits import open_parts
from unipercept.perception.task import BATCH
from unipercept.perception.universal_data import TASKS

Spread = TypeVar("Spread", LabelledSet, Packs)

N_LOOKED_AT = {"train": 1_000, "validation": 500}  # recordings of a task, spread over it
# Of `processes`, which are generated on request; and as many everyday ones of each class.
SERIES_LOOKED_AT = {"train": 4_000, "validation": 1_000}


def measure_familiarity(
    path: str | Path,
    data: str | Path,
    pictures: str | Path,
    *,
    only: Sequence[str] = (),
    device: str = "auto",
    tell: Callable[[str], object] = lambda line: None,
) -> None:
    """Measure the out-of-distribution statistics of each head of a universal file (or of those in `only`)
    and write them into the file.

    Args:
        path: a file of `train_universal`; it is replaced.
        data: folder that holds the sets' folders.
        pictures: folder of pictures and videos for camera_motion.

    Raises:
        WeightsError: not a universal file.
        InputError: an unknown task, a set that is not where it should be, or weights that the
            validation recordings trained too.
    """
    facts = shared_weights.read_facts(path)
    known = facts["tasks"]
    if facts.get("all_train"):
        raise InputError(
            f"{path} was trained on the validation recordings too (--all); out-of-distribution limits need recordings that did not train"
        )
    specs = {task.name: task for task in TASKS if task.name in known}
    unknown = sorted((set(known) | set(only)) - set(specs))
    if unknown:
        raise InputError(f"{path} has no task {unknown[0]!r} with a set of its own; tasks are {', '.join(specs)}")
    where, found = resolve_device(device), {}
    for name in only or specs:
        spec = specs[name]
        folder = Path(pictures) if name == "camera_motion" else Path(data) / spec.folder
        parts, _ = open_parts(name, folder, fold=spec.fold)
        maps = MapSettings(**known[name]["maps"])
        packs = {part: looked_at(name, part, parts[part], maps) for part in N_LOOKED_AT}
        network = shared_weights.task_network(path, name).to(where)
        found[name] = familiarity_of(network, packs["train"], packs["validation"], maps, where)
        tell(f"{name}: {len(packs['train']):,} training and {len(packs['validation']):,} validation recordings")
    shared_weights.set_familiarity(path, found)


def familiarity_of(
    network: nn.Module, train: Packs, validation: Packs, maps: MapSettings, device: torch.device
) -> Familiarity:
    """The out-of-distribution statistics of a network, in single precision."""
    views = [familiar_views(network, packs, maps, device) for packs in (train, validation)]
    return fit_familiarity(views[0], train.targets, views[1])


def familiar_views(network: nn.Module, packs: Packs, maps: MapSettings, device: torch.device) -> tuple[Tensor, Tensor]:
    """Vectors RxD of length 1 and textures Rx2C of recordings, pooled over items and
    views as the pipelines pool them.
    """
    maker = MapMaker(maps)
    network.eval()
    sums: list[Tensor] = []
    mass = torch.zeros(len(packs), dtype=torch.float64)
    for rows in torch.split(torch.arange(len(packs.values)), BATCH):
        with torch.inference_mode():
            made, share = maker(packs.values[rows].to(device), packs.lengths[rows].to(device))
            views = [view.double().cpu() * share.double().cpu()[:, None] for view in look_familiar(network, made)]
        owners = packs.recording[rows].repeat_interleave(maker.n_views)
        sums = sums or [torch.zeros(len(packs), view.shape[1], dtype=torch.float64) for view in views]
        for total, view in zip(sums, views, strict=True):
            total.index_add_(0, owners, view)
        mass.index_add_(0, owners, share.double().cpu())
    return F.normalize(sums[0], dim=1).float(), (sums[1] / mass.clamp(min=1e-12)[:, None]).float()


def looked_at(name: str, part: str, recordings: LabelledSet | Packs, maps: MapSettings) -> Packs:
    """The train or validation recordings of a task that are measured: a spread of them, and for series also everyday
    ones (datasets/everyday.py).
    """
    is_series = name == "processes"
    count = (SERIES_LOOKED_AT if is_series else N_LOOKED_AT)[part]
    packs = spread(recordings, count) if isinstance(recordings, Packs) else decode(spread(recordings, count), maps)
    if not is_series:
        return packs
    return joined(packs, decode(everyday(part, max(1, len(packs) // len(CLASSES))), maps))


def spread(recordings: Spread, count: int) -> Spread:
    """At most `count` of the recordings, evenly spaced."""
    if len(recordings) <= count:
        return recordings
    return recordings.subset(np.linspace(0, len(recordings) - 1, count).astype(int))
