"""Batching of maps of equal shape: a network is two to four times as fast on a batch as on single maps.

Shapes: B maps of a batch, C channels, H rows, W columns.
"""

from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

BATCH_SIZE = 32  # maps of 224x224
BATCH_CELLS = 224 * 224  # larger maps make smaller batches; smaller ones are no more than `batch_size`
MAX_PENDING = 1 << 25  # numbers that wait for the network, all shapes together: 128 MiB of float32

Network = TypeVar("Network", bound=Hashable)
Owner = TypeVar("Owner")


class Maps(Protocol):
    """What a network needs of an EmbeddingMap."""

    @property
    def tensor(self) -> Tensor:
        """BxCxHxW."""

    def real_share(self) -> Tensor:
        """B shares of real input."""


class Batches(Generic[Network, Owner]):
    """Collects maps by network and shape; a full batch is run at once, and all are run when too much is waiting.

    Which maps share a batch depends on what was added alone, never on timing.

    Args:
        run: called with the network, BxCxHxW maps, and of each map its owner and its share of real input.
        batch_size: maps of 224x224 that a network sees at once.
    """

    def __init__(
        self, run: Callable[[Network, Tensor, list[tuple[Owner, float]]], object], batch_size: int = BATCH_SIZE
    ) -> None:
        self._run, self._batch_size = run, batch_size
        self._groups: dict[tuple[Network, tuple[int, ...]], list[tuple[Tensor, Owner, float]]] = {}
        self._n_pending = 0

    def add(self, network: Network, owner: Owner, emap: Maps) -> None:
        """Each item of a map, on its own."""
        shape = tuple(emap.tensor.shape[1:])
        key, cells = (network, shape), shape[1] * shape[2]
        full = max(1, min(self._batch_size, self._batch_size * BATCH_CELLS // cells))
        for item, share in zip(emap.tensor, emap.real_share().tolist(), strict=True):
            group = self._groups.setdefault(key, [])
            group.append((item, owner, share))
            self._n_pending += item.numel()
            if len(group) >= full:
                self._send(key)
        if self._n_pending > MAX_PENDING:
            self.flush()

    def flush(self) -> None:
        """Run everything that is still waiting."""
        for key in list(self._groups):
            self._send(key)

    def _send(self, key: tuple[Network, tuple[int, ...]]) -> None:
        group = self._groups.pop(key)
        self._n_pending -= sum(item.numel() for item, _, _ in group)
        maps = _stacked([item for item, _, _ in group])
        self._run(key[0], maps, [(owner, share) for _, owner, share in group])


def _stacked(items: list[Tensor]) -> Tensor:
    """`torch.stack`, without copying a single one, which may be large, and in this thread alone.

    With all of torch's threads, each would wait for those whose processor decodes meanwhile: on a busy host of 32
    cores, 32 maps took 260 ms, and the network 17 (H200, 2026-11-30).
    """
    if len(items) == 1:
        return items[0][None]
    if all(item.device.type == "cpu" and item.dtype == torch.float32 and not item.requires_grad for item in items):
        return torch.from_numpy(np.stack([item.numpy() for item in items]))
    return torch.stack(items)
