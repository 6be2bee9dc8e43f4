"""Models by name: what each is, what it was trained on, and the network itself, ready to run.

A model here is a backbone in deploy form with, perhaps, a trained head. One card says the whole truth about it.

Shapes: B batch, C channels, H rows, W columns, D width of the pooled features, N classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unipercept.backbone import VARIANTS, build_backbone
from unipercept.embedding import EmbeddingMap
from unipercept.errors import InputError, NoTrainedHeadError, WeightsError
from unipercept.reparam import reparameterize

DEFAULT = "unireplknet_a"
SEED = 0  # of the untrained models
CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
MAX_LOADED = 4  # networks kept ready at a time; a mixed batch needs one for each number of channels


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
