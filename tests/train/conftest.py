"""A linear rule with noise, small networks that learn it, and settings: what the tests of training share."""

import random

import numpy as np
import torch
from torch import nn
from torch.nn.functional import mse_loss

from unipercept.train import TrainConfig, seed_everything


class Noisy:
    """Inputs and targets of a linear rule; each read adds noise from all three generators, as an augmentation would."""

    def __init__(self, n: int = 20, noise: float = 0.1) -> None:
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(n, 6, generator=generator, dtype=torch.float64)
        self.y = self.x.sum(1, keepdim=True)
        self.noise = noise
        self.fails_at: int | None = None
        self.reads = 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int):
        self.reads += 1
        if self.reads == self.fails_at:
            raise RuntimeError("the disk went away")
        jitter = random.random() + np.random.rand() + float(torch.rand(()))  # noqa: NPY002 - what transforms use
        return self.x[index] + self.noise * jitter, self.y[index]


def network(*, dropout: float = 0.2) -> nn.Module:
    seed_everything(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 1)).double()


def smooth_network() -> nn.Module:
    """Without statistics over a batch or randomness: what parts and processes may not change."""
    seed_everything(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 1)).double()


def squared(model: nn.Module, batch):
    return mse_loss(model(batch[0]), batch[1])


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


SETTINGS = TrainConfig(
    epochs=4, batch_size=6, learning_rate=0.01, warmup_steps=3, ema_decay=0.9, clip_gradient_norm=1.0
)


def settings(**changes) -> TrainConfig:
    return TrainConfig(**{**vars(SETTINGS), "device": "cpu", **changes})
