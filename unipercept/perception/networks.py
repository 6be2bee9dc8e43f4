"""The network of a run: built, tuned in full, by its head alone, or by a linear probe, and exported for use.

Shapes: B maps, D width of the pooled features, K classes.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unipercept import shared_weights, weights
from unipercept.backbone import VARIANTS, UniRepLKNet, layer_decay_groups
from unipercept.errors import InputError
from unipercept.model_cards import MODELS, UNIVERSAL, model_for
from unipercept.perception.settings import OWN_SIZES, MapSettings, Recipe

LAYER_SCALE = 0.1  # at the start; the published 1e-6 is for runs of hundreds of epochs
PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # of the probe's squared weights, chosen on validation


def build_network(recipe: Recipe, settings: MapSettings, n_classes: int, start: str | None = None) -> UniRepLKNet:
    """A network with a head of K classes.

    Args:
        start: `universal` (its network for the modality) or one of its tasks (`universal.fsdd`), a checkpoint file, the
            name of published weights, or a run's folder; None: from scratch.

    Raises:
        InputError: no such architecture or start.
        WeightsError: the weights do not fit or cannot be obtained.
    """
    if start is None:
        return from_scratch(recipe, settings.in_channels, n_classes)
    state = _start_state(start, settings.modality)
    network = weights.layout_of(state).network(
        in_channels=settings.in_channels, num_classes=0, drop_path_rate=recipe.drop_path
    )
    with warnings.catch_warnings():  # a stem of other channels is adapted; run.json records the start
        warnings.simplefilter("ignore", UserWarning)
        weights.load_state(network, state, start)
    network.reset_classifier(n_classes)
    return network


def from_scratch(recipe: Recipe, in_channels: int, n_classes: int, *, has_branches: bool = True) -> UniRepLKNet:
    """A network of the recipe's architecture with random weights."""
    return UniRepLKNet(
        **sizes_of(recipe.architecture),
        in_channels=in_channels,
        num_classes=n_classes,
        drop_path_rate=recipe.drop_path,
        layer_scale_init_value=LAYER_SCALE,
        has_branches=has_branches,
    )


def sizes_of(architecture: str) -> dict[str, Any]:
    """Depths, widths and kernels of an architecture.

    Raises:
        InputError: there is no such architecture.
    """
    if architecture in OWN_SIZES:
        return OWN_SIZES[architecture]
    if architecture in VARIANTS:
        variant = VARIANTS[architecture]
        return {"depths": variant.depths, "dims": variant.dims, "kernel_sizes": variant.kernel_sizes}
    raise InputError(f"architecture must be one of {', '.join((*OWN_SIZES, *VARIANTS))}; got {architecture!r}")


def _start_state(start: str, modality: str) -> dict[str, Tensor]:
    if start in MODELS and (start == UNIVERSAL or MODELS[start].task):
        card = MODELS[model_for(start, modality)]
        if not card.task:
            raise InputError(f"{start} was not trained on {modality}; start from scratch")
        return shared_weights.task_state(shared_weights.shipped_file(), card.task)
    return weights.read_checkpoint(weights.fetch(start) if weights.published(start) else weights_file(start))


def weights_file(start: str) -> Path:
    """The file of a model that is named by a file or by a run's folder."""
    path = Path(start)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        known = f"universal, a checkpoint file, a run's folder, or one of {', '.join(weights.PUBLISHED)}"
        raise InputError(f"there is no model {start!r} to start from; expected {known}")
    return path


class FrozenBackbone(nn.Module):
    """A network of which only the head is trained: the rest stays in evaluation mode, batch norms included."""

    def __init__(self, network: UniRepLKNet) -> None:
        super().__init__()
        self.network = network
        network.requires_grad_(False)
        network.head.requires_grad_(True)

    def train(self, mode: bool = True) -> FrozenBackbone:
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, maps: Tensor) -> Tensor:
        logits: Tensor = self.network(maps)
        return logits


def fit_probe(
    train: Tensor, targets: Tensor, validation: Tensor, validation_targets: Tensor, n_classes: int
) -> tuple[Tensor, Tensor, float]:
    """Multinomial logistic regression on frozen features: KxD weights, K biases, and the penalty
    with the best validation score.

    Features are standardised with the statistics of `train`, which are folded into the weights. float64, L-BFGS.

    Source: the linear-probe protocol of Radford et al. (2021), CLIP, section 3.2.
    """
    mean, std = train.double().mean(dim=0), train.double().std(dim=0, correction=0).clamp(min=1e-6)
    x, held_out = ((part.double() - mean) / std for part in (train, validation))
    best: tuple[float, float, Tensor, Tensor] | None = None
    for penalty in PENALTIES:
        weight, bias = _logistic(x, targets, n_classes, penalty)
        logits = held_out @ weight.T + bias
        score = float((logits.argmax(dim=1) == validation_targets).double().mean())
        loss = float(F.cross_entropy(logits, validation_targets))
        if best is None or (score, -loss) > (best[0], -best[1]):
            best = (score, loss, weight, bias)
            chosen = penalty
    assert best is not None
    weight = best[2] / std
    return weight.float(), (best[3] - weight @ mean).float(), chosen


def _logistic(x: Tensor, targets: Tensor, n_classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    weight = x.new_zeros(n_classes, x.shape[1], requires_grad=True)
    bias = x.new_zeros(n_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, targets) + penalty * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def set_head(network: UniRepLKNet, weight: Tensor, bias: Tensor) -> None:
    """Put a linear classifier on the pooled features in place of the head."""
    network.reset_classifier(len(bias))
    with torch.no_grad():
        network.head.weight.copy_(weight)  # type: ignore[operator]
        network.head.bias.copy_(bias)  # type: ignore[operator]


def scale_head(network: UniRepLKNet, temperature: float) -> None:
    """Divide the logits by a temperature, by scaling the head's weights. Source: Guo et al. (2017)."""
    with torch.no_grad():
        network.head.weight.div_(temperature)  # type: ignore[operator]
        network.head.bias.div_(temperature)  # type: ignore[operator]


def layer_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]] | None:
    """Parameter groups with layer decay, or None for the usual two."""
    if recipe.layer_decay == 1.0 or isinstance(network, FrozenBackbone):
        return None
    return layer_decay_groups(network, weight_decay=recipe.weight_decay, layer_decay=recipe.layer_decay)
