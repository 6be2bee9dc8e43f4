"""Models by name: what each is, its training data, accuracy, licence and limits. No network is built here.

The default, `universal`, is one backbone with a head for each of several tasks; `model_for` says which of its networks
serves a modality. A checkpoint file is a model too, and its card is read from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from unipercept import shared_weights, weights
from unipercept.backbone import VARIANTS
from unipercept.download import record_of, sha256_of
from unipercept.embedding import MODALITIES
from unipercept.errors import InputError

FEWEST_STEPS = {"processes": 60}  # of the series that the head of a task was trained on
UNIVERSAL = "universal"
UNTRAINED = "unireplknet_a"  # for modalities that `universal` was not trained on: weather
SEED = 0  # of the untrained models
CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt")
IMAGENET_1K = "imagenet-1k"
MAX_CARDS = 6  # of checkpoint files, kept

# Which of `universal`'s tasks encodes a modality that has several; `perceive` runs the heads of all of them.
ENCODERS = {"audio": "esc10", "pointcloud": "things3d"}

# Parameters in millions, inference form. Source: UniRepLKNet (arXiv 2410.08049), Table 5.
MILLIONS = {"a": 4.4, "f": 6.2, "p": 10.7, "n": 18.3, "t": 31, "s": 56, "b": 98, "l": 218, "xl": 386}


@dataclass(frozen=True)
class ModelCard:
    """The facts of a model: architecture, training data, accuracy, licence and limits.

    `head_modality` is the modality of its trained head, None without one; `class_names` are the names of its classes,
    or the name of a table of them; `millions` counts the parameters of the inference form; `image_size` is the side in
    pixels of its training images; `sha256` is known for local files, `commit` for files downloaded from the hub.
    """

    name: str
    architecture: str
    weights: str
    trained_on: str
    data_licence: str
    metric: str
    limits: str
    dim: int
    millions: float
    head_modality: str | None = None
    n_classes: int = 0
    class_names: str | tuple[str, ...] = ()
    image_size: int = 224
    sha256: str = ""
    commit: str = ""
    is_untrained: bool = False
    maps: str = ""  # JSON: the settings of its training maps; empty: the pipelines' defaults
    task: str = ""  # of the shipped file
    fewest_steps: int = 0  # of the series that its head was trained on

    def labels(self) -> tuple[str, ...] | None:
        """Class names of the trained head, in the order of its outputs; None without a trained head."""
        if self.head_modality is None:
            return None
        if self.class_names == IMAGENET_1K:
            return imagenet_1k_labels()
        return tuple(self.class_names) or tuple(f"class {index}" for index in range(self.n_classes))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def to_text(self) -> str:
        """One line a fact, for a terminal."""
        head = f"{self.n_classes} classes, {self.head_modality}" if self.head_modality else "none: it encodes only"
        if self.name == UNIVERSAL:
            head = "one a task: " + ", ".join(name for name, card in MODELS.items() if card.task)
        facts = {
            "architecture": self.architecture,
            "parameters": f"{self.millions:g} million (inference form)",
            "vector": f"{self.dim} numbers",
            "head": head,
            "weights": self.weights,
            "commit": self.commit,
            "sha256": self.sha256,
            "trained on": self.trained_on,
            "data licence": self.data_licence,
            "metric": self.metric,
            "limits": self.limits,
        }
        facts = {key: value for key, value in facts.items() if value}
        return "\n".join([self.name, *(f"  {key:<13}{value}" for key, value in facts.items())])


def check_model_name(name: object) -> str:
    """The name of a model, or the path of a checkpoint as text.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(name, str | os.PathLike):
        raise TypeError(f"model must be a name or the path of a checkpoint, got {type(name).__name__}")
    return os.fsdecode(name)


def model_card(name: str) -> ModelCard:
    """The card of a model by name, or of a checkpoint file.

    Raises:
        InputError: there is no such model; the message suggests similar names.
    """
    if name == "default":
        name = default_name()
    if name in MODELS:
        return MODELS[name]
    if weights.published(name):  # NAME@REVISION
        return _published_card(name)
    path = Path(name)
    if (path / "model.safetensors").is_file():  # the folder of `unipercept train`
        path = path / "model.safetensors"
        name = str(path)
    if path.suffix in CHECKPOINT_SUFFIXES:
        if not path.is_file():
            raise InputError(f"there is no checkpoint {name}; check the spelling")
        return _checkpoint_card(str(path), path.stat().st_mtime_ns)
    if name and path.is_dir():
        why = (
            "the training has not finished; go on with it (--resume)"
            if (path / "run.json").is_file()
            else "name another"
        )
        raise InputError(f"the folder {name} holds no model.safetensors: {why}")
    close = get_close_matches(name, MODELS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise InputError(
        f"there is no model {name!r}; {hint}`unipercept models` lists them, and a checkpoint file is one too"
    )


def default_name() -> str:
    """`universal`, if its weights are present."""
    return UNIVERSAL if UNIVERSAL in MODELS else UNTRAINED


def tasks_for(name: str, modality: str) -> tuple[str, ...]:
    """The models behind a name that have a head for a modality, the one that encodes it first.

    Only `universal` has several.
    """
    card = model_card(name)
    if card.name != UNIVERSAL:
        return (card.name,)
    found = tuple(n for n, c in MODELS.items() if c.task and c.head_modality == modality)
    order = sorted(found, key=lambda n: n != f"{UNIVERSAL}.{ENCODERS.get(modality, '')}")
    return tuple(order) or (UNTRAINED,)


def model_of_set(name: str, source: str, modality: str) -> str:
    """As `model_for`, but `universal` stands for its network that was trained on the set `source`, if there is one."""
    own = f"{UNIVERSAL}.{source}"
    return own if model_card(name).name == UNIVERSAL and own in MODELS else model_for(name, modality)


def model_for(name: str, modality: str) -> str:
    """The model that a name stands for in a modality: itself, except for `universal`."""
    return tasks_for(name, modality)[0]


def fingerprint(name: str) -> str:
    """An identifier of a model's weights: the hash of its file (published files are fetched), or
    the seed of an untrained one.

    Raises:
        WeightsError: published weights cannot be obtained.
    """
    card = model_card(name)
    if weights.published(card.name):
        path = weights.fetch(card.name)
        return _sha256(str(path), path.stat().st_mtime_ns)
    if card.task or card.name == UNIVERSAL:
        path = shared_weights.shipped_file()
        return _sha256(str(path), path.stat().st_mtime_ns)
    return card.sha256 or card.weights


def download(name: str, progress: Callable[[int, int], None] | None = None) -> None:
    """Bring a model's published weights into the cache, if it has any and they are not there yet.

    Args:
        progress: called with (bytes so far, bytes in all).

    Raises:
        WeightsError: offline, or the download failed.
    """
    card = model_card(name)
    if not is_cached(card):
        weights.fetch(card.name, progress=progress)


def is_cached(card: ModelCard) -> bool:
    """Whether a model can be used without a download."""
    return not weights.published(card.name) or weights.cached_file(card.name) is not None


def with_record(card: ModelCard) -> ModelCard:
    """The card of published weights with hash and commit of the file in the cache; other cards as they are."""
    path = weights.cached_file(card.name)
    found = record_of(path) if path else {}
    return replace(card, sha256=found["sha256"], commit=found.get("commit", "")) if "sha256" in found else card


def _universal_cards() -> dict[str, ModelCard]:
    """Cards of the shipped universal file and of each of its tasks; none if the file is absent."""
    file = shared_weights.shipped_file()
    if not file.is_file():
        return {}
    facts = shared_weights.read_facts(file)
    architecture = facts["config"]["architecture"]
    facts_of_all: dict[str, Any] = {
        "architecture": architecture,
        "weights": f"data/{file.name} of this package",
        "dim": VARIANTS[architecture].dims[-1],
        "millions": _millions(architecture),
    }
    found = {}
    for task, about in facts["tasks"].items():
        found[f"{UNIVERSAL}.{task}"] = ModelCard(
            name=f"{UNIVERSAL}.{task}",
            head_modality=about["maps"]["modality"],
            n_classes=len(about["labels"]),
            class_names=tuple(about["labels"]),
            image_size=about["maps"]["size"] if about["maps"]["modality"] == "image" else 224,
            maps=json.dumps(about["maps"]),
            task=task,
            fewest_steps=FEWEST_STEPS.get(task, 0),
            **{**facts_of_all, **shared_weights.head_text(facts, task)},
        )
    metrics = [f"{card.task} {card.metric.partition(' accuracy')[0]}" for card in found.values()]
    first = next(iter(found.values()))
    untrained = [kind for kind in MODALITIES if kind not in {card.head_modality for card in found.values()}]
    whole = ModelCard(
        name=UNIVERSAL,
        trained_on=", ".join(facts["tasks"]) + ", jointly",
        data_licence=first.data_licence,
        metric="; ".join(metrics),
        limits="its heads know only the classes of these sets, and `perceive` adds a notice to recordings unlike them; "
        "vectors of other recordings are features transferred from these sets; "
        f"modalities it was not trained on ({', '.join(untrained)}) are encoded by the untrained {UNTRAINED}",
        **facts_of_all,
    )
    return {UNIVERSAL: whole, **found}


def _untrained_card(variant: str) -> ModelCard:
    return ModelCard(
        name=variant,
        architecture=variant,
        weights=f"random, seed {SEED}",
        trained_on="nothing: untrained",
        data_licence="none needed",
        metric="none",
        limits="vectors are reproducible random features: near copies lie close, meaning is not captured; no head",
        dim=VARIANTS[variant].dims[-1],
        millions=_millions(variant),
        is_untrained=True,
    )


def _published_card(name: str) -> ModelCard:
    found = weights.published(name)
    assert found is not None
    file, revision = found
    is_1k = file.num_classes == 1000
    return ModelCard(
        name=name,
        architecture=file.variant,
        weights=f"{file.file} of huggingface.co/{weights.REPOSITORY}, revision {revision}; downloaded on first use",
        trained_on=file.trained_on,
        data_licence="ImageNet terms: non-commercial research and education (image-net.org); for the weights see their page",
        metric=f"{file.accuracy}% top-1, ImageNet-1K validation, {file.image_size} px, as published"
        if file.accuracy
        else "none published",
        limits="photographs of ImageNet's classes; maps of other modalities go through a stem adapted from RGB, untrained on them"
        + ("" if is_1k else "; class names of ImageNet-22K are not shipped, classes are numbered"),
        dim=VARIANTS[file.variant].dims[-1],
        millions=_millions(file.variant),
        head_modality="image",
        n_classes=file.num_classes,
        class_names=IMAGENET_1K if is_1k else (),
        image_size=file.image_size,
    )


@lru_cache(maxsize=MAX_CARDS)
def _checkpoint_card(path: str, modified_ns: int) -> ModelCard:
    """The card of a checkpoint file; files of ours hold its facts in their header."""
    layout = weights.layout_of(weights.read_checkpoint(path))
    own = _header(path)
    labels = tuple(str(label) for label in own.get("labels", ()))
    return ModelCard(
        name=path,
        architecture=layout.variant or f"UniRepLKNet of depths {layout.depths} and dims {layout.dims}",
        weights="this file",
        trained_on=str(own.get("trained_on", "not stated in the file")),
        data_licence=str(own.get("data_licence", "not stated in the file")),
        metric=str(own.get("metric", "not stated in the file")),
        limits=str(own.get("limits", f"made for maps of {layout.in_channels} channels")),
        dim=layout.dims[-1],
        millions=_millions(layout.variant) if layout.variant else 0.0,
        head_modality=str(own.get("modality", "image")) if layout.num_classes else None,
        n_classes=layout.num_classes,
        class_names=labels if len(labels) == layout.num_classes else (),
        sha256=_sha256(path, modified_ns),
        maps=str(own.get("maps", "")),
    )


def _header(path: str) -> dict[str, Any]:
    """The facts that `weights.save_weights` wrote into a safetensors file; none in other files."""
    if not path.endswith(".safetensors"):
        return {}
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        facts = json.loads((file.metadata() or {}).get("unipercept", "{}"))
    return facts if isinstance(facts, dict) else {}


@lru_cache
def _sha256(path: str, modified_ns: int) -> str:
    return sha256_of(path)


def _millions(variant: str) -> float:
    return MILLIONS[variant.rpartition("_")[2]]


def imagenet_1k_labels() -> tuple[str, ...]:
    """The 1000 class names of ImageNet-1k in index order; the file states source and licence."""
    table = json.loads((files("unipercept.data") / "imagenet1k_classes.json").read_text(encoding="utf-8"))
    return tuple(name for _, name in table["classes"])


MODELS: Mapping[str, ModelCard] = {
    **_universal_cards(),
    **{variant: _untrained_card(variant) for variant in VARIANTS},
    **{name: _published_card(name) for name in weights.PUBLISHED},
}
