"""The network of several tasks: one trunk, a stem a modality, statistics, norm and head a task.

Shapes: B maps, C channels, H rows, W columns, K classes, T traits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unipercept.backbone import UniRepLKNet
from unipercept.perception.networks import from_scratch
from unipercept.perception.settings import Recipe

if TYPE_CHECKING:
    from unipercept.perception.universal import UniversalConfig
    from unipercept.perception.universal_data import TaskSpec


class SharedNetwork(nn.Module):
    """A network for each task. All share the trunk, those of one modality the stem; norm statistics, last norm and head
    are a task's own.

    Args:
        n_classes: of each task.
        config: the trunk's architecture, and what the tasks share.
        n_traits: number of traits, for tasks whose items have them. A second head predicts them; it is not part of the
            task's network, and is not saved with it.
    """

    def __init__(
        self,
        tasks: Sequence[TaskSpec],
        n_classes: Mapping[str, int],
        config: UniversalConfig,
        device: torch.device,
        n_traits: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        recipe = Recipe(architecture=config.architecture, drop_path=config.drop_path)
        stems: dict[str, nn.Module] = {}
        networks: list[UniRepLKNet] = []
        for task in tasks:
            own = from_scratch(
                recipe, task.maps.in_channels, n_classes[task.name], has_branches=config.has_branches
            ).to(device)
            if networks:
                _share_trunk(own, networks[0], config.own_statistics)
            own.downsample_layers[0] = stems.setdefault(task.maps.modality, own.downsample_layers[0])
            networks.append(own)
        self.networks = nn.ModuleDict({task.name: own for task, own in zip(tasks, networks, strict=True)})
        self.trait_heads = nn.ModuleDict(
            {name: nn.Linear(self.of(name).num_features, count).to(device) for name, count in n_traits.items()}
        )

    def of(self, name: str) -> UniRepLKNet:
        """A task's network."""
        found = self.networks[name]
        assert isinstance(found, UniRepLKNet)
        return found

    def reset_trait_head(self, name: str, mean: Tensor) -> None:
        """Initialise the traits' head so that it predicts the T means, whatever the input."""
        nn.init.zeros_(self.trait_heads[name].weight)  # type: ignore[arg-type]
        with torch.no_grad():
            self.trait_heads[name].bias.copy_(mean.nan_to_num())  # type: ignore[operator]

    def learner(self, name: str) -> nn.Module:
        """A task's network for training: its logits, followed by the traits if its items have them."""
        return WithTraits(self.of(name), self.trait_heads[name]) if name in self.trait_heads else self.of(name)


class WithTraits(nn.Module):
    """A network that predicts T traits and K classes from the same features: BxCxHxW to Bx(K + T)."""

    def __init__(self, network: UniRepLKNet, traits: nn.Module) -> None:
        super().__init__()
        self.network, self.traits = network, traits

    def forward(self, maps: Tensor) -> Tensor:
        features = self.network.forward_head(self.network.forward_features(maps), pre_logits=True)
        return torch.cat([self.network.head(features), self.traits(features)], dim=1)


def _share_trunk(network: UniRepLKNet, first: UniRepLKNet, own_statistics: bool) -> None:
    """Put the weights of `first` into all of `network` but its stem, last norm and head."""
    pairs = [(network.stages, first.stages)]
    pairs += [(network.downsample_layers[i], first.downsample_layers[i]) for i in range(1, 4)]  # type: ignore[misc]
    for mine, theirs in pairs:
        for module, like in zip(mine.modules(), theirs.modules(), strict=True):
            module._parameters.update(like._parameters)
            if not own_statistics:
                module._buffers.update(like._buffers)
