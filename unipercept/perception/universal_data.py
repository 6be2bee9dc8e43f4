"""Data of the joint training: its tasks, their decoded parts, and clips that are rendered while it runs.

Shapes: S side of a map.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unipercept.atomic import atomic_path
from unipercept.datasets.base import LabelledSet, SetCard
from unipercept.datasets.real_series import LICENCE, Records, draw_real, training_records
from unipercept.errors import InputError
from unipercept.perception.packs import Packs, decode, joined, stacked
from unipercept.perception.series_traits import series_traits
from unipercept.perception.settings import RECIPES, MapSettings, Recipe
from unipercept.perception.splits import open_parts
from unipercept.pipelines.image import CROP_RATIO
from unipercept.processors import n_processors

if TYPE_CHECKING:
    from unipercept.datasets.camera_motion import Studio

RENEWED = 520  # clips made at a time
POOL = 13_000  # clips to begin with

Fresh = Callable[[int], tuple[Tensor, Tensor]]  # a number to as many items and their classes, never the same again


@dataclass(frozen=True)
class TaskSpec:
    """A set in the joint training: map settings, augmentation, and recordings per step.

    Args:
        folder: below the data folder.
        weight: factor on its loss.
        every: it takes part in every `every`-th step.
        blends: number of series without a class (datasets/blends.py) that train beside its own. The traits of all of
            them are learnt too.
        windows: number of windows of real series (datasets/real_series.py), without a class either, of which also the
            measured quantity is learnt.
    """

    name: str
    maps: MapSettings
    recipe: Recipe
    batch_size: int
    folder: str = ""
    fold: str | None = None
    weight: float = 1.0
    every: int = 1
    blends: int = 0
    windows: int = 0


CLOTHES = RECIPES["image"].changed(random_augment=1, magnitude=2, shift=0.07, mixup=0.1, cutmix=0.4, erasing=0.3)
SPEECH = RECIPES["audio"].changed(stretch=1.12, gain=6.0)
# What suits long trainings on ambience (benchmarks/esc10.py): greater changes of speed, and
# two clips of a class at once.
AMBIENCE = RECIPES["ambience"].changed(stretch=1.5, within=0.5)
SHOTS = RECIPES["video"].changed(mixup=0.0, random_augment=2, magnitude=2, erasing=0.1)

# Settings of a recipe that the joint training takes from `UniversalConfig` or has a rule of its own for.
NOT_VARIED = (
    *("architecture", "epochs", "min_steps", "batch_size", "learning_rate", "weight_decay", "warmup", "layer_decay"),
    *("drop_path", "ema_decay", "clip_gradient_norm", "seed"),
)

# Only sets with a stated licence that allows distributing trained weights.
TASKS = (
    TaskSpec("fashion_mnist", MapSettings("image", size=112), CLOTHES, 512, "fashion_mnist"),
    TaskSpec("fsdd", MapSettings("audio", size=64, length=96, sample_rate=8_000), SPEECH, 192, "fsdd", every=4),
    TaskSpec("esc10", MapSettings("audio", size=64, length=512), AMBIENCE, 64, "esc10", fold="1", every=2),
    TaskSpec("shapes3d", MapSettings("pointcloud"), RECIPES["pointcloud"].changed(turn="all"), 96, every=2),
    TaskSpec("things3d", MapSettings("pointcloud"), RECIPES["pointcloud"], 96, every=2),
    TaskSpec("camera_motion", MapSettings("video", folding="stack"), SHOTS, 128, ""),
    TaskSpec("processes", MapSettings("timeseries"), Recipe(), 128, "", blends=20_000, windows=20_000),
)


def varied(task: TaskSpec, changes: Mapping[str, Any], map_changes: Mapping[str, Any]) -> TaskSpec:
    """The task with some settings of its recipe and its maps replaced.

    Raises:
        InputError: a setting that the joint training does not take from the recipe.
    """
    fixed = sorted(set(changes) & set(NOT_VARIED))
    if fixed:
        raise InputError(
            f"`universal` takes {', '.join(fixed)} from an option of its own, or not at all; --set varies recordings"
        )
    return replace(task, recipe=task.recipe.changed(**changes), maps=replace(task.maps, **map_changes))


def setting_words(name: str, maps: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[str]:
    """What differs from the task's own settings, as `--set` takes it; nothing of a task that is not in `TASKS`."""
    own = next((task for task in TASKS if task.name == name), None)
    if own is None:
        return []
    usual, found = {**asdict(own.maps), **asdict(own.recipe)}, {**maps, **recipe}
    return [f"{key}={found[key]}" for key in found if key not in NOT_VARIED and found[key] != usual[key]]


def prepare(
    tasks: Sequence[TaskSpec],
    data: Path,
    pictures: Path,
    output: Path,
    fresh: Mapping[str, Fresh],
    tell: Callable[[str], object],
) -> tuple[dict[str, dict[str, Packs]], dict[str, list[str]], dict[str, str]]:
    """Each task's parts, decoded or from the cache in `output`; its class names; its licence.

    Raises:
        InputError: a set is missing, or its licence forbids that weights are given away.
    """
    packs: dict[str, dict[str, Packs]] = {}
    classes, licences = {}, {}
    (output / "cache").mkdir(exist_ok=True)
    for task in tasks:
        folder = pictures if task.name == "camera_motion" else data / task.folder
        parts, how = open_parts(task.name, folder, fold=task.fold)
        card = parts["train"].card
        if not card.may_train:
            raise InputError(f"weights that are given away may not be trained on {task.name} (licence: {card.licence})")
        classes[task.name], licences[task.name] = list(card.class_names), card.licence
        packs[task.name] = {}
        for part, samples in parts.items():
            started = time.monotonic()
            cache = output / "cache" / f"{task.name}-{part}-{task.fold or ''}.safetensors"
            renewed = part == "train" and task.name in fresh
            found = pool_of(fresh[task.name]) if renewed else _cached(cache, samples, task.maps)
            if part == "train" and task.blends:
                blends = _cached(
                    cache.with_name(f"{task.name}-blends.safetensors"), blends_of(card, task.blends), task.maps
                )
                found = joined(
                    replace(found, traits=traits_of(samples)),
                    replace(
                        blends, targets=torch.full((len(blends),), -1), traits=traits_of(blends_of(card, task.blends))
                    ),
                )
            if part == "train" and task.windows:
                found = beside_real(found, training_records(data), task.windows, task.maps)
                licences[task.name] += f"; real series beside them: {LICENCE}"
            packs[task.name][part] = found
            tell(f"{task.name} {part}: {len(found):,} recordings ({how}), {time.monotonic() - started:.1f} s")
    return packs, classes, licences


def blends_of(card: SetCard, count: int, seed: int = 0) -> LabelledSet:
    """`count` series without a class, with lengths of the train split; their targets are meaningless."""
    from unipercept.datasets.blends import blend
    from unipercept.datasets.processes import measured, series_length

    def read(position: int) -> NDArray[np.float64]:
        rng = np.random.default_rng([seed, len(card.splits), position])
        return measured(blend(series_length("train", rng), rng), rng)[:, None]

    ids = tuple(f"blend {i}" for i in range(count))
    return LabelledSet(card, "train", np.zeros(count, np.int64), ids, read)


def beside_real(generated: Packs, records: Records, count: int, maps: MapSettings, seed: int = 0) -> Packs:
    """Generated series with traits, followed by `count` windows of real ones, whose quantities are known too."""
    rng = np.random.default_rng([seed, 2])
    windows, quantities = zip(*(draw_real(records, rng) for _ in range(count)), strict=True)
    made = real_packs(windows, quantities, maps, len(records))
    assert generated.traits is not None
    unknown = generated.traits.new_full((len(generated.values), len(records)), torch.nan)
    return joined(replace(generated, traits=torch.cat([generated.traits, unknown], dim=1)), made)


def real_packs(windows: Sequence[Any], quantities: Sequence[int], maps: MapSettings, n_quantities: int) -> Packs:
    """Windows as items without a class; their traits are followed by Q numbers, 1 for the quantity and 0 elsewhere."""
    card = SetCard("real_series", "timeseries", "", LICENCE, True, (), ("train",), "", "")
    ids = tuple(f"window {i}" for i in range(len(windows)))
    samples = LabelledSet(card, "train", np.full(len(windows), -1), ids, lambda i: windows[i][:, None])
    named = torch.nn.functional.one_hot(torch.tensor(quantities), n_quantities).float()
    made = decode(samples, maps)
    return replace(made, traits=torch.cat([traits_of(samples), named], dim=1), n_quantities=n_quantities)


def traits_of(samples: LabelledSet) -> Tensor:
    """RxT traits of series of one window and one column."""
    with ThreadPoolExecutor(n_processors()) as pool:
        rows = pool.map(lambda i: series_traits(samples.read(i)[:, 0]), range(len(samples)))
        return torch.from_numpy(np.stack(list(rows)))


def fresh_of(tasks: Sequence[TaskSpec], pictures: Path, seed: int, device: torch.device) -> dict[str, Fresh]:
    """camera_motion clips rendered on the training device; a CPU is too slow for that and uses the train split."""
    from unipercept.datasets.camera_motion import Studio

    found = [task for task in tasks if task.name == "camera_motion"]
    if not found or device.type == "cpu":
        return {}
    return {"camera_motion": fresh_clips(Studio(pictures, "train", device), found[0].maps.size, seed)}


def fresh_clips(studio: Studio, size: int, seed: int) -> Fresh:
    """Stacked clips of a studio for maps of a size, all classes alike."""
    from unipercept.datasets.camera_motion import CLASSES

    rng = np.random.default_rng([seed, 1])

    def make(count: int) -> tuple[Tensor, Tensor]:
        targets = np.arange(count) % len(CLASSES)
        clips = studio.clips(targets, rng, size=int(size / CROP_RATIO))
        return stacked(clips, size), torch.from_numpy(targets)

    return make


def pool_of(fresh: Fresh) -> Packs:
    """Recordings to begin with."""
    made = [fresh(RENEWED) for _ in range(POOL // RENEWED)]
    values = torch.cat([values for values, _ in made]).cpu()
    count = len(values)
    ones, rows = torch.ones(count, dtype=torch.int64), torch.arange(count)
    return Packs(values, ones, rows, torch.cat([t for _, t in made]), tuple(f"made {i}" for i in rows.tolist()))


def _cached(cache: Path, samples: Any, maps: MapSettings) -> Packs:
    """Decoded recordings from the cache, if they were made of the same names with the same settings."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    key = json.dumps([maps.to_json(), list(samples.ids)])
    if cache.is_file():
        with safe_open(str(cache), framework="pt") as file:
            if (file.metadata() or {}).get("key") == key:
                values, lengths = file.get_tensor("values"), file.get_tensor("lengths")
                return Packs(values, lengths, file.get_tensor("recording"), file.get_tensor("targets"), samples.ids)
    made = decode(samples, maps)
    if not made.skipped:
        found = {"values": made.values, "lengths": made.lengths, "recording": made.recording, "targets": made.targets}
        with atomic_path(cache) as temporary:
            save_file(found, temporary, metadata={"key": key})
    return made
