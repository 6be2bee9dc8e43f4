"""How many steps a rollout in training has, update by update. A pure function of the update, so a resume repeats it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from unipercept.errors import InputError


@dataclass(frozen=True)
class RolloutSchedule:
    """Rollout lengths over the updates of a run.

    Args:
        start, stop: first and longest rollout, in steps.
        every: updates at each length ("linear"), at each entry ("list").
        mode: "linear" grows by one after `every` updates (FuXi's and GraphCast's practice); "list" takes `lengths` in
            turn; "random" draws each update's from `start` to `stop`; "loss" grows when validation stops improving (see
            `train_until_stalled`), and is constant within a run.
        lengths: for "list".
        seed: for "random".

    Raises:
        InputError: lengths that are no rollout.
    """

    start: int = 1
    stop: int = 1
    every: int = 1000
    mode: Literal["linear", "list", "random", "loss"] = "linear"
    lengths: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.start <= self.stop or self.every < 1:
            raise InputError(f"a rollout schedule needs 1 <= start <= stop and every >= 1, got {self}")
        if self.mode not in ("linear", "list", "random", "loss"):
            raise InputError(f"mode must be linear, list, random or loss; got {self.mode!r}")
        if (self.mode == "list") != bool(self.lengths) or min(self.lengths, default=1) < 1:
            raise InputError('lengths of at least 1 belong to mode="list", and to no other')

    @property
    def longest(self) -> int:
        """The longest rollout that comes: what data windows must hold."""
        return max(self.lengths) if self.mode == "list" else self.stop

    def length(self, update: int) -> int:
        """Steps of the rollout in update number `update`, counted from 0."""
        if self.mode == "list":
            return self.lengths[min(update // self.every, len(self.lengths) - 1)]
        if self.mode == "random":
            return int(np.random.default_rng([self.seed, update]).integers(self.start, self.stop + 1))
        if self.mode == "loss":
            return self.start
        return min(self.start + update // self.every, self.stop)
