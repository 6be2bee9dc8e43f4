"""Which samples each step, process and accumulated part sees, and how they are loaded.

One order for a seed and an epoch, cut into global batches, each cut into the processes' shares and these
into parts. So the samples of a step do not depend on the number of processes, parts or loaders, and a run
goes on in the middle of an epoch.
"""

from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from unipercept.errors import InputError
from unipercept.train.config import TrainConfig
from unipercept.train.distributed import Processes
from unipercept.train.randomness import mixed_seed, preserved_randomness

Collate = Callable[[list[Any]], Any]

# They hold samples and draw nothing, so reading them needs no seed.
PLAIN_CONTAINERS = (list, tuple, torch.Tensor, np.ndarray, TensorDataset)


@dataclass(frozen=True)
class Part:
    """The samples that one process computes at once."""

    indices: list[int]
    weight: float  # share of the global batch; the weights of a step add up to 1 over all processes
    is_last: bool  # of this process's share: gradients are exchanged after it


class BatchPlan:
    """The global batches of an epoch, for one process."""

    def __init__(self, n_samples: int, config: TrainConfig, processes: Processes) -> None:
        if n_samples < 1:
            raise InputError("the training data hold no sample; check the folder and the split")
        self.n_samples = n_samples
        self.config = config
        self.processes = processes
        self.steps_per_epoch = -(-n_samples // config.batch_size)

    def order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """All sample indices, each once, as epoch number `epoch` sees them."""
        if not self.config.shuffle:
            return np.arange(self.n_samples)
        return np.random.default_rng(mixed_seed(self.config.seed, epoch)).permutation(self.n_samples)

    def parts(self, epoch: int, first_batch: int = 0) -> list[Part]:
        """This process's parts of all batches of the epoch from `first_batch` on."""
        order, size = self.order(epoch), self.config.batch_size
        starts = range(first_batch * size, self.n_samples, size)
        return [part for start in starts for part in self._share(order[start : start + size])]

    def _share(self, batch: np.ndarray[Any, np.dtype[np.int64]]) -> list[Part]:
        share = np.array_split(batch, self.processes.count)[self.processes.rank]
        if len(share) == 0:  # fewer samples than processes: all must still meet, so this one adds nothing
            return [Part([int(batch[0])], 0.0, is_last=True)]
        pieces = np.array_split(share, min(self.config.accumulation_steps, len(share)))
        return [
            Part([int(i) for i in piece], len(piece) / len(batch), is_last=number == len(pieces) - 1)
            for number, piece in enumerate(pieces)
        ]

    def validation_parts(self) -> list[Part]:
        """Every sample once over all processes, in order; `weight` is the number of samples."""
        mine = np.arange(self.n_samples)[self.processes.rank :: self.processes.count]
        if len(mine) == 0:
            return [Part([0], 0.0, is_last=True)]
        size = max(self.config.batch_size // (self.processes.count * self.config.accumulation_steps), 1)
        pieces = [mine[start : start + size] for start in range(0, len(mine), size)]
        return [Part([int(i) for i in piece], float(len(piece)), is_last=False) for piece in pieces]


@runtime_checkable
class BatchSource(Protocol):
    """Samples that lie ready on a device, so that a batch is taken there at once: no process and no copy in between.

    What a batch draws comes from this process's generators, whose state a checkpoint holds; an augmentation that is not
    to depend on the number of processes belongs into a dataset of single samples.
    """

    def __len__(self) -> int: ...
    def batch(self, indices: Sequence[int], /) -> Any:
        """The batch that `collate` would make of these samples."""


class SeededSamples(Dataset[Any]):
    """A dataset whose random augmentations depend on seed, epoch and sample alone: not on
    loaders, processes or a resume.
    """

    def __init__(self, samples: Any, seed: int, epoch: int) -> None:
        self.samples, self.seed, self.epoch = samples, seed, epoch

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.samples, PLAIN_CONTAINERS):
            return self.samples[index]
        with preserved_randomness(mixed_seed(self.seed, self.epoch, index)):
            return self.samples[index]


def load(
    samples: Sized, parts: Sequence[Part], collate: Collate, config: TrainConfig, *, epoch: int, device: torch.device
) -> Iterator[tuple[Part, Any]]:
    """Collated batches on `device`, in the order of `parts`.

    Samples that are a `BatchSource` make their batches themselves: no loader, and no `collate`.
    """
    if isinstance(samples, BatchSource):
        for part in parts:
            yield part, to_device(samples.batch(part.indices), device)
        return
    loader = DataLoader(
        SeededSamples(samples, config.seed, epoch),
        batch_sampler=[part.indices for part in parts],
        collate_fn=collate,
        num_workers=config.num_workers,
        pin_memory=device.type == "cuda",
        # Without its own generator a loader draws from the global one whenever it starts,
        # so a resumed run would differ.
        generator=torch.Generator().manual_seed(mixed_seed(config.seed, epoch)),
    )
    for part, batch in zip(parts, loader, strict=True):
        yield part, to_device(batch, device)


def to_device(batch: Any, device: torch.device) -> Any:
    """Move whatever has tensors in it: tensors, EmbeddingMaps, and tuples, lists, dicts and dataclasses of them."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(to_device(value, device) for value in batch)
    if callable(getattr(batch, "to", None)):
        return batch.to(device)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{name: to_device(getattr(batch, name), device) for name in batch.__dataclass_fields__})
    return batch
