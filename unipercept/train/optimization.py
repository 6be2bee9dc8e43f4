"""Optimisation: parameter groups, the learning rate of each step, and the averaged weights."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unipercept.errors import InputError, WeightsError
from unipercept.train.config import TrainConfig
from unipercept.train.sharding import own_part, spread_like

ParameterGroup = dict[str, Any]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[ParameterGroup]:
    """Two groups: tensors that decay, and those that do not (1-D tensors and every `.bias`).

    Source: spec of the UniRepLKNet reference, as in most ConvNet recipes. Its GRN parameters are 4-D, so they decay.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (kept if parameter.ndim <= 1 or name.endswith(".bias") else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def prepare_groups(
    model: nn.Module, groups: Iterable[Mapping[str, Any]] | None, config: TrainConfig
) -> list[ParameterGroup]:
    """Groups ready for an optimiser: each with its own peak as `base_lr` = lr * lr_scale (timm's name for layer decay).

    Raises:
        InputError: nothing to train, or groups that leave a trainable parameter out (it would silently stay as it is).
    """
    prepared = []
    for group in parameter_groups(model, config.weight_decay) if groups is None else groups:
        ready = {"weight_decay": config.weight_decay, **group, "params": list(group["params"])}
        ready["base_lr"] = ready.get("lr", config.learning_rate) * ready.get("lr_scale", 1.0)
        ready["lr"] = ready["base_lr"]
        prepared.append(ready)
    grouped = {id(parameter) for group in prepared for parameter in group["params"]}
    left_out = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in grouped]
    if not grouped:
        raise InputError("the model has no parameters to train; set requires_grad on some of them")
    if left_out:
        raise InputError(
            f"the parameter groups leave out {len(left_out)} trainable parameters, {left_out[0]} first; "
            "add them or set their requires_grad to False"
        )
    return prepared


@contextmanager
def settings_kept(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, an optimiser may load a checkpoint's state; its settings stay those of this call."""
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    yield
    for group, setting in zip(optimizer.param_groups, settings, strict=True):
        group.update(setting)


def learning_rate_factor(step: int, total_steps: int, config: TrainConfig) -> float:
    """Share of the peak learning rate that step `step` (from 0) uses; a pure function, so there is no state to resume.

    Linear warm-up (step + 1) / warmup_steps, then final + (1 - final) * (1 + cos(pi * t)) / 2 with t from 0 to 1.

    Source: Loshchilov and Hutter (2017), SGDR, equation 5, without restarts.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    final = config.final_learning_rate / config.learning_rate
    # The last step, not the one after it, gets the final value.
    span = max(total_steps - 1 - config.warmup_steps, 1)
    progress = min((step - config.warmup_steps) / span, 1.0)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


class ExponentialMovingAverage:
    """Averaged tensors: average = d * average + (1 - d) * current, d = min(decay, (1 + n) / (10 + n)).

    The bound lets n early updates forget the random start. Integer tensors are copied.

    Args:
        current: gives the tensors by name, which are trained and loaded in place: a model's `state_dict`, say. It is
            called whenever they are exchanged, because a sharded model then gathers its weights anew.

    Source: Polyak and Juditsky (1992); the bound is that of TensorFlow's ExponentialMovingAverage(num_updates).
    """

    def __init__(self, current: Callable[[], Mapping[str, Tensor]], decay: float) -> None:
        self.current, self.decay = current, decay
        tensors = current()
        self.average = {name: value.detach().clone() for name, value in tensors.items()}
        floating = [name for name, value in tensors.items() if value.is_floating_point()]
        self._floating = [own_part(self.average[n]) for n in floating], [own_part(tensors[n]) for n in floating]
        others = [name for name in tensors if name not in set(floating)]
        self._others = [tensors[n] for n in others], [self.average[n] for n in others]

    @torch.no_grad()
    def update(self, share: float) -> None:
        """Take in the current tensors."""
        torch._foreach_lerp_(*self._floating, share)
        copy_all(*self._others)

    def share(self, n_updates: int) -> float:
        """1 - d after so many updates: that of the current tensors in the new average."""
        return 1 - min(self.decay, (1 + n_updates) / (10 + n_updates))

    @torch.no_grad()
    def update_by(self, share: Tensor) -> None:
        """As `update`, with `share` on the device, where a CUDA graph reads it anew."""
        average, current = self._floating
        difference = torch._foreach_sub(current, average)
        torch._foreach_mul_(difference, share)
        torch._foreach_add_(average, difference)
        copy_all(*self._others)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the current tensors hold their averages; after it, their own values again."""
        own = {name: value.detach().clone() for name, value in self.current().items()}
        copy_state(self.average, self.current())
        try:
            yield
        finally:
            copy_state(own, self.current())

    def load(self, average: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint's average.

        Raises:
            WeightsError: names or shapes that are not the model's.
        """
        copy_state(average, self.average)


@torch.no_grad()
def copy_state(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Copy values by name into tensors that exist.

    Raises:
        WeightsError: names or shapes that differ.
    """
    differing = sorted(source.keys() ^ target.keys()) or [n for n in target if source[n].shape != target[n].shape]
    if differing:
        raise WeightsError(
            f"a checkpoint does not fit the model: {len(differing)} tensors differ, {differing[0]} first"
        )
    for name, value in target.items():
        value.copy_(spread_like(source[name], value))


@torch.no_grad()
def add_all(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    """Add values in order to existing tensors, in a few launches for all pairs of equal strides.

    A single pair with other strides (the gradient of a convolution may be channels-last) would make foreach
    launch every pair by itself.
    """
    pairs = list(zip(target, source, strict=True))
    alike = [(total, part) for total, part in pairs if total.stride() == part.stride() and total.dtype == part.dtype]
    if alike:
        torch._foreach_add_([total for total, _ in alike], [part for _, part in alike])
    for total, part in pairs:
        if total.stride() != part.stride() or total.dtype != part.dtype:
            total.add_(part)


@torch.no_grad()
def copy_all(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    """Copy values in order; one launch for many small tensors where the device can."""
    if source:
        torch._foreach_copy_(list(target), list(source))
