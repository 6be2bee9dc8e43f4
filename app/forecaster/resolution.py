"""A trained model extended to a finer grid: patches as wide in degrees as before, their kernels
resampled, the body unchanged.

Shapes: V channels, C width, p and q old and new patch.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from unipercept.app.forecaster.clock import position_fields
from unipercept.app.forecaster.frames import Grid
from unipercept.app.forecaster.model import ForecastModel
from unipercept.app.forecaster.network import WeatherNetwork
from unipercept.errors import InputError

N_POSITION = 4


def extended(model: ForecastModel, grid: Grid, patch: int, static: Tensor | None = None) -> ForecastModel:
    """The model on `grid` with patches of `patch` cells, to be fine-tuned there with a small learning rate.

    From 0.25 to 0.1 degrees: patch 8 becomes 20. A field that is constant over the old cells gives the same tokens as
    before, and recovered fields keep their mean over every area.

    Args:
        static: further static fields on the new grid, where the model has some beside its position.

    Raises:
        InputError: patches that are not as wide in degrees as before, or static fields that are missing.
    """
    config = model.network.config
    old_pitch = config.patch * abs(model.grid.longitude[1] - model.grid.longitude[0])
    new_pitch = patch * abs(grid.longitude[1] - grid.longitude[0])
    if abs(old_pitch - new_pitch) > 1e-3 * old_pitch:
        raise InputError(
            f"patches were {old_pitch:g} degrees wide and would be {new_pitch:g}; choose patch {patch * old_pitch / new_pitch:g}"
        )
    fields = _static(config.n_static, grid, static)
    fresh = replace(config, rows=grid.shape[0], columns=grid.shape[1], patch=patch)
    network = WeatherNetwork(fresh, model.network.change, fields)
    state = dict(model.network.state_dict())
    share = overlaps(config.patch, patch)
    state["embed.weight"] = torch.einsum("ocij,qi,rj->ocqr", state["embed.weight"].double(), share, share).float()
    mean = share / share.sum(dim=1, keepdim=True)
    for name in ("recover.weight", "recover.bias"):
        kernels = state[name].double().view(len(config.channels), config.patch, config.patch, -1)
        resampled = torch.einsum("vijc,qi,rj->vqrc", kernels, mean, mean).float()
        state[name] = resampled.reshape(len(config.channels) * patch**2, *state[name].shape[1:])
    state["static"] = network.static
    network.load_state_dict(state)
    card = {**model.card, "resolution": f"patch {config.patch} resampled to {patch}, body unchanged"}
    return ForecastModel(
        network, grid, model.statistics, step_hours=model.step_hours, units=model.units, card=card
    ).eval()


def overlaps(old: int, new: int) -> Tensor:
    """new x old float64: the share of each old cell that lies in each new one, both cut from the same stretch."""
    edges_old, edges_new = torch.arange(old + 1) / old, torch.arange(new + 1) / new
    edges_old, edges_new = edges_old.double(), edges_new.double()
    low = torch.maximum(edges_new[:-1, None], edges_old[None, :-1])
    high = torch.minimum(edges_new[1:, None], edges_old[None, 1:])
    return (high - low).clamp(min=0) * old


def _static(count: int, grid: Grid, static: Tensor | None) -> Tensor | None:
    if count == 0:
        return None
    further = 0 if static is None else static.shape[0]
    if count == further:
        return static
    if count != N_POSITION + further:
        raise InputError(
            f"the model has {count - N_POSITION} static fields beside its position; give them on the new grid"
        )
    position = position_fields(grid.latitude, grid.longitude)
    return position if static is None else torch.cat([position, static.float()])
