"""Models by name: what each is, what it was trained on, and the network itself, ready to run.

A model here is a backbone in inference form with, perhaps, a trained head. One card says the whole truth about it.

Shapes: B batch, C channels, H rows, W columns, D width of the pooled features, N classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from unipercept.backbone import VARIANTS, UniRepLKNet, build_backbone, seed_weights
from unipercept.embedding import EmbeddingMap
from unipercept.errors import InputError, NoTrainedHeadError, one_line
from unipercept.reparam import reparameterize

DEFAULT = "unireplknet_a"
SEED = 0  # of the untrained models
CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt")
IMAGENET_1K = "imagenet-1k"
MAX_LOADED = 4  # networks kept ready at a time; a mixed batch needs one for each number of channels

_LOADING = Lock()

# Parameters in millions, inference form. Source: UniRepLKNet (arXiv 2410.08049), Table 5.
MILLIONS = {"a": 4.4, "f": 6.2, "p": 10.7, "n": 18.3, "t": 31, "s": 56, "b": 98, "l": 218, "xl": 386}


@dataclass(frozen=True)
class ModelCard:
    """What a model is and what it can be trusted with.

    `head_modality` is the modality whose classes its trained head names, or None without one.
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
    class_names: str = ""
    n_classes: int = 0
    sha256: str = ""
    is_untrained: bool = False

    def labels(self) -> tuple[str, ...] | None:
        """Class names of the trained head, in the order of its outputs; None without a trained head."""
        if self.head_modality is None:
            return None
        if self.class_names == IMAGENET_1K:
            return imagenet_1k_labels()
        return tuple(f"class {index}" for index in range(self.n_classes))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def to_text(self) -> str:
        """One line a fact, for a terminal."""
        head = f"{self.n_classes} classes, {self.head_modality}" if self.head_modality else "none: it encodes only"
        facts = {
            "architecture": self.architecture,
            "parameters": f"{self.millions:g} million (inference form)",
            "vector": f"{self.dim} numbers",
            "head": head,
            "weights": self.weights,
            "trained on": self.trained_on,
            "data licence": self.data_licence,
            "metric": self.metric,
            "limits": self.limits,
        }
        return "\n".join([self.name, *(f"  {key:<13}{value}" for key, value in facts.items())])


class Model:
    """A network in inference form with its card. It satisfies `pipelines.base.PerceptionModel`."""

    def __init__(self, network: nn.Module, card: ModelCard, device: torch.device) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.card = card
        self.device = device

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def labels(self) -> tuple[str, ...] | None:
        return self.card.labels()

    def features(self, maps: Tensor) -> Tensor:
        """Pooled features of maps, BxCxHxW: BxD float32 on the CPU."""
        with torch.inference_mode():
            x = maps.to(self.device, torch.float32)
            pooled: Tensor = self.network.forward_head(self.network.forward_features(x), pre_logits=True)  # type: ignore[operator]
            return pooled.float().cpu()

    def pooled(self, emap: EmbeddingMap) -> Tensor:
        """Pooled features of each item of a map: BxD float32 on the CPU."""
        return self.features(emap.tensor)

    def logits(self, emap: EmbeddingMap) -> Tensor:
        """BxN float32 on the CPU.

        Raises:
            NoTrainedHeadError: the model has no trained head.
        """
        if self.labels is None:
            raise NoTrainedHeadError(f"model {self.name!r} has no trained head: it can encode, not name what it sees")
        with torch.inference_mode():
            logits: Tensor = self.network(emap.tensor.to(self.device, torch.float32))
            return logits.float().cpu()


def model_card(name: str) -> ModelCard:
    """The card of a model by name, or of a checkpoint file.

    Raises:
        InputError: there is no such model; the line names those that there are.
    """
    if name == "default":
        name = DEFAULT
    if name in MODELS:
        return MODELS[name]
    path = Path(name)
    if path.suffix in CHECKPOINT_SUFFIXES:
        return _checkpoint_card(check_file(path))
    close = get_close_matches(name, MODELS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise InputError(
        f"there is no model {name!r}; {hint}`unipercept models` lists them, and a checkpoint file is one too"
    )


def load_model(name: str = "default", *, in_channels: int = 3, device: str = "auto") -> Model:
    """A model ready to run, kept for the next call with the same arguments.

    Args:
        name: a key of `MODELS`, "default", or a checkpoint file.
        in_channels: channels of the maps it will see. Untrained models of different numbers share all but the stem.
        device: "auto" (an accelerator where there is one), or a torch device.

    Raises:
        InputError: there is no such model or device, or its weights are for another number of channels.
        WeightsError: the checkpoint does not match, or cannot be had.
    """
    card = model_card(name)
    with _LOADING:  # decoding threads and servers may ask at the same time
        return _load(card.name, in_channels, str(resolve_device(device)), card)


def resolve_device(device: str) -> torch.device:
    """ "auto" is CUDA where there is one, then Apple's MPS, else the CPU. The one place where this is decided.

    Raises:
        InputError: torch knows no such device, or this machine has none.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device must be auto, cpu or an accelerator of this machine; got {device!r}: {one_line(error, 120)}"
        ) from error
    return found


def fingerprint(name: str) -> str:
    """What decides a model's weights: the hash of its file, or the seed of an untrained one."""
    card = model_card(name)
    return card.sha256 or card.weights


@lru_cache(maxsize=MAX_LOADED)
def _load(name: str, in_channels: int, device: str, card: ModelCard) -> Model:
    network = build_backbone(
        card.architecture,
        in_channels=in_channels,
        num_classes=card.n_classes,
        pretrained=None if card.is_untrained else name,
    )
    assert isinstance(network, UniRepLKNet)
    if card.is_untrained:
        seed_weights(network, SEED)
    return Model(reparameterize(network), card, torch.device(device))


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
        millions=MILLIONS[variant.rpartition("_")[2]],
        is_untrained=True,
    )


def imagenet_1k_labels() -> tuple[str, ...]:
    """The 1000 class names of ImageNet-1k in index order; source and licence stand in the file."""
    table = json.loads((files("unipercept.data") / "imagenet1k_classes.json").read_text(encoding="utf-8"))
    return tuple(name for _, name in table["classes"])


MODELS: Mapping[str, ModelCard] = {variant: _untrained_card(variant) for variant in VARIANTS}
