"""Whether a module has hooks: what takes its weights instead of calling it would leave them out."""

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

# Stands for this process: a module that was pickled in another, or copied, carries another one.
_HERE = object()


def has_hooks(module: nn.Module) -> bool:
    """Whether the module has hooks, which only a call of the module itself runs."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def has_hooks_inside(module: nn.Module) -> bool:
    """Whether a module inside this one has hooks.

    Looked for only if a hook was registered anywhere since the last time that there were none: torch counts them.
    """
    n_registered = getattr(RemovableHandle, "next_id", None)  # not documented by torch: without it, always looked for
    if torch.compiler.is_dynamo_compiling() or n_registered is None:  # or each hook of the process would compile anew
        return _hooks_inside(module)
    place, last = module.__dict__.get("_last_without_hooks", (None, 0))
    if place is _HERE and last == n_registered:
        return False
    found = _hooks_inside(module)
    if not found:
        module.__dict__["_last_without_hooks"] = _HERE, n_registered
    return found


def _hooks_inside(module: nn.Module) -> bool:
    return any(has_hooks(inner) for inner in module.modules() if inner is not module)
