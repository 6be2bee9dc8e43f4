"""Weights, gradients and optimiser state spread over the processes (FSDP): each holds a part, and
gathers a block when it needs it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unipercept.errors import InputError
from unipercept.train.distributed import Processes


def sharded(model: nn.Module, processes: Processes) -> nn.Module:
    """A copy of the model on the device of the run, its parameters spread over the processes, block by block.

    A block is an innermost entry of a `ModuleList`; what lies outside of them is gathered together. Every process must
    hold the same weights; the model itself stays as it is.

    Source: Zhao et al. (2023), PyTorch FSDP; `fully_shard` of torch.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    spread = copy.deepcopy(model).to(processes.device)
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    for block in _blocks(spread):
        fully_shard(block, mesh=mesh)
    fully_shard(spread, mesh=mesh)
    return spread


def shared_groups(groups: Iterable[Mapping[str, Any]], model: nn.Module, spread: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups of `model` as groups of the copy that `sharded` made."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    theirs = dict(spread.named_parameters())
    return [{**group, "params": [theirs[names[id(p)]] for p in group["params"]]} for group in groups]


def whole(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gathered tensors, on the CPU where they were spread. All processes must ask together."""
    return {name: gathered(value) for name, value in state.items()}


def gathered(value: Tensor) -> Tensor:
    """The whole of a spread tensor, on the CPU; another as it is."""
    full = getattr(value, "full_tensor", None)
    return value if full is None else full().detach().cpu()


def own_part(value: Tensor) -> Tensor:
    """The part of a tensor that this process holds: a view of it, or the tensor itself if it is not sharded."""
    local = getattr(value, "to_local", None)
    return value if local is None else local()


def spread_like(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, where `like` is spread."""
    if not hasattr(like, "full_tensor") or hasattr(value, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)  # type: ignore[attr-defined]


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Unsharded states of a sharded model and its optimiser, the same in all processes."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True)
    return whole(model.state_dict()), dict(get_optimizer_state_dict(model, optimizer, options=options))


def load_training_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor], state: dict[str, Any]
) -> None:
    """The inverse of `training_state`; every process reads the whole and keeps its part.

    Raises:
        InputError: states of another model, or of a run that was not spread.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    from unipercept.train.optimization import copy_state

    if state.get("param_groups") and not all(isinstance(n, str) for n in state["param_groups"][0]["params"]):
        raise InputError("the run was started without shard; keep it when resuming, or choose another folder")
    copy_state(weights, model.state_dict())
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            yield from (entry for entry in module if not isinstance(entry, nn.ModuleList))
