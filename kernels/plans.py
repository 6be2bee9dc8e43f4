"""Reusable plans of CPU kernel calls: on small maps, building a call takes Python as long as the kernels take.

A plan belongs to a thread: its programs use that thread's workspaces.
"""

import threading
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unipercept.kernels.llvm import Call, Program
from unipercept.kernels.packed import Unchanged
from unipercept.kernels.workspace import is_kept

MAX_PLANS = 64  # of a thread: four for each model and size of map
_mine = threading.local()

Key = tuple[object, ...]  # what a plan is found by: the addresses and shapes of what comes in, and the threads


class Step(NamedTuple):
    """Calls that run in one go."""

    calls: list[Call]
    is_by_image: bool


class Plan(NamedTuple):
    """Programs, one after the other."""

    programs: list[tuple[Program, bool]]
    weights: Unchanged | None  # None for a single call
    others: list[Tensor]  # beside the weights, what the programs have the addresses of

    def run(self, moving: Sequence[Tensor], threads: int, images: int) -> None:
        """With these instead of the tensors that it was made with."""
        for program, is_by_image in self.programs:
            program.run(moving, threads, images, is_by_image=is_by_image)


def known_plan(key: Key, weights: Sequence[Tensor | None]) -> Plan | None:
    """The plan of an earlier call, if the weights are unchanged; else None."""
    plan = plans().get(key)
    return plan if plan is not None and plan.weights is not None and plan.weights.holds(weights) else None


def new_plan(
    key: Key,
    steps: Sequence[Step],
    moving: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    copied: Sequence[Tensor],
    rooms: Sequence[Tensor],
) -> Plan:
    """Kept for this thread where its memory is, too.

    Args:
        steps: each waits for the one before.
        moving: tensors that come anew with each call.
        weights: all tensors that have to stay as they are.
        copied: those of them whose values went into something else.
        rooms: workspaces.
    """
    given = {t.data_ptr() for t in (*weights, *moving) if t is not None}
    arguments = [a for step in steps for call in step.calls for a in call.arguments]
    others = [a for a in arguments if isinstance(a, Tensor) and a.data_ptr() not in given]
    is_worth_it = all(map(is_kept, rooms)) and not any(w.is_inference() for w in copied)
    kept = plans()
    unchanged = Unchanged(weights, copied, lambda _: kept.pop(key, None)) if is_worth_it else None
    plan = Plan([(Program(step.calls, moving), step.is_by_image) for step in steps], unchanged, others)
    if is_worth_it:
        kept[key] = plan
        if len(kept) > MAX_PLANS:
            kept.pop(next(iter(kept)))
    return plan


def plans() -> dict[Key, Plan]:
    """The plans of this thread."""
    found: dict[Key, Plan] | None = getattr(_mine, "plans", None)
    if found is None:
        found = _mine.plans = {}
    return found


def key_of(x: Tensor, weights: Sequence[Tensor | None]) -> Key:
    return (id(weights[0]), len(weights), x.shape, x.stride(), torch.get_num_threads())
