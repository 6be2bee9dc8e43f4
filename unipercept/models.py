"""Networks by name, ready to run: a backbone in inference form with, perhaps, a trained head,
and its card (model_cards.py).

Shapes: B batch, C channels, H rows, W columns, D width of the pooled features, N classes.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from unipercept import shared_weights, weights
from unipercept.backbone import build_backbone, seed_weights
from unipercept.devices import float32_networks, resolve_device
from unipercept.embedding import EmbeddingMap
from unipercept.errors import InputError, NoTrainedHeadError, printable
from unipercept.familiarity import Familiarity, familiarity_beside, look_familiar
from unipercept.model_cards import SEED, UNIVERSAL, ModelCard, model_card, model_for, with_record
from unipercept.reparam import reparameterize
from unipercept.results import ModelOutput

MAX_LOADED = 6  # networks kept ready at a time; a mixed batch needs one for each modality

_LOADING = Lock()


class Model:
    """A network in inference form with its card. It satisfies `pipelines.base.PerceptionModel`."""

    def __init__(
        self,
        network: nn.Module,
        card: ModelCard,
        device: torch.device,
        familiarity: Familiarity | None = None,
    ) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.card = card
        self.device = device
        self.familiarity = familiarity

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def labels(self) -> tuple[str, ...] | None:
        return self.card.labels()

    def features(self, maps: Tensor) -> Tensor:
        """Pooled features of maps, BxCxHxW: BxD float32 on the CPU."""
        return self._passed(maps)[0].float().cpu()

    def _passed(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features and textures, on the network's device."""
        with torch.inference_mode():
            return look_familiar(self.network, maps.to(self.device, torch.float32))

    def pooled(self, emap: EmbeddingMap) -> Tensor:
        """Pooled features of each item of a map: BxD float32 on the CPU."""
        return self.features(emap.tensor)

    def logits(self, emap: EmbeddingMap) -> Tensor:
        """BxN float32 on the CPU.

        Raises:
            NoTrainedHeadError: the model has no trained head.
        """
        return self.predict(emap).logits

    def predict(self, emap: EmbeddingMap) -> ModelOutput:
        """Pooled features and logits of each item of a map.

        Raises:
            NoTrainedHeadError: the model has no trained head.
        """
        if self.labels is None:
            raise NoTrainedHeadError(f"model {self.name!r} has no trained head: it can encode, but not classify")
        pooled, texture = self._passed(emap.tensor)
        with torch.inference_mode():
            logits: Tensor = self.network.head(pooled)  # type: ignore[operator]
        return ModelOutput(pooled.float().cpu(), logits.float().cpu(), texture.cpu())

    def remarks(self, vector: Tensor, texture: Tensor, emap: EmbeddingMap) -> dict[str, Any]:
        """From a recording's vector (D), texture (2C) and first map: the task of the head, the out-of-distribution
        score, and a notice if that is above 1 or the series is too short. Empty for models without these statistics.
        """
        if self.familiarity is None:
            return {}
        ood_score = float(self.familiarity.ood_score(vector[None], texture[None]))
        found: dict[str, Any] = {"task": self.card.task} if self.card.task else {}
        found["ood_score"] = round(ood_score, 3)
        head = f"the head of {self.card.task}" if self.card.task else "this model"
        n_steps = emap.metadata.get("n_steps", self.card.fewest_steps)
        if n_steps < self.card.fewest_steps:
            seen = f"all that {head} was trained on had {self.card.fewest_steps} or more"
            found["notice"] = f"of {n_steps} steps, while {seen}"
        elif ood_score > 1:
            known = ", ".join(map(printable, self.labels or ()))
            found["notice"] = f"unlike what {head} was trained on; it knows only {known}"
        return found


def load_model(name: str = "default", *, in_channels: int = 3, device: str = "auto") -> Model:
    """A model ready to run, kept for the next call with the same arguments.

    Args:
        name: a key of `MODELS` (of published weights also NAME@REVISION), "default", or a checkpoint file.
        in_channels: channels of the maps it will see. Untrained models that differ in it share all weights but the
            stem's. `universal` chooses its network by it (1 audio, 3 image, 4 point cloud); where the modality is
            known, ask `model_for`.
        device: "auto" (an accelerator where there is one), or a torch device.

    Raises:
        InputError: there is no such model or device, or its weights are for another number of channels.
        WeightsError: the checkpoint does not match, or cannot be obtained.
    """
    card = model_card(name)
    if card.name == UNIVERSAL:
        card = model_card(model_for(UNIVERSAL, {1: "audio", 3: "image", 4: "pointcloud"}.get(in_channels, "")))
    # Decoding threads and servers may ask at the same time. Later callers of a cached model may want gradients, which
    # weights made in inference mode cannot have.
    with _LOADING, float32_networks(), torch.inference_mode(False):
        return _load(card, in_channels, str(resolve_device(device)))


@lru_cache(maxsize=MAX_LOADED)
def _load(card: ModelCard, in_channels: int, device: str) -> Model:
    if card.is_untrained:
        seeded = seed_weights(build_backbone(card.architecture, in_channels=in_channels), SEED)
        return Model(reparameterize(seeded), card, torch.device(device))
    if card.task:
        return _load_task(card, in_channels, torch.device(device))
    path = weights.fetch(card.name) if weights.published(card.name) else Path(card.name)
    state = weights.read_checkpoint(path)
    network = weights.layout_of(state).network(in_channels=in_channels, deploy=True)
    with warnings.catch_warnings():  # the card says that the stem is adapted to other inputs
        warnings.simplefilter("ignore", UserWarning)
        weights.load_state(network, state, str(path))
    return Model(network, with_record(card), torch.device(device), familiarity_beside(path))


def _load_task(card: ModelCard, in_channels: int, device: torch.device) -> Model:
    file = shared_weights.shipped_file()
    network = shared_weights.task_network(file, card.task)
    if network.in_channels != in_channels:
        raise InputError(
            f"model {card.name!r} was trained on maps of {network.in_channels} channels ({card.head_modality}), "
            f"got {in_channels}"
        )
    return Model(network, card, device, shared_weights.familiarity(file, card.task))
