"""Padding beyond the edge of a grid: the opposite meridian beyond a pole, the first column after the last.

Shapes: B batch, C channels, H rows from north to south, W columns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unipercept.errors import InputError
from unipercept.kernels.depthwise_conv2d.padding import Padding, pad
from unipercept.pipelines.weather_grid import grid_facts, reaches_poles

WIND = re.compile(r"[uv]\d*m?|10[uv]")
"""East and north components of the horizontal wind: both turn round where a meridian is followed over a pole."""


def padding_of(latitude: Any, longitude: Any) -> Padding:
    """The padding that fits a grid: a sphere with or without rows at the poles, a cylinder
    (a belt), or zero (a region).

    Args:
        latitude: H degrees north, evenly spaced, or those of a Gaussian grid.
        longitude: W degrees east, evenly spaced.

    Raises:
        InputError: a grid over both poles with an odd number of columns.
    """
    facts = grid_facts(latitude, longitude)
    if not facts["wraps"]:
        return "zero"
    if not all(reaches_poles(latitude)):
        return "cylinder"
    if len(longitude) % 2:
        raise InputError(f"a grid over the poles needs an even number of longitudes, got {len(longitude)}; regrid it")
    return "sphere_poles" if facts["has_poles"] else "sphere"


def pole_signs(channels: Sequence[str]) -> Tensor:
    """The factor of each of C channels in its continuation over a pole: +1 for scalars, -1 for wind components."""
    return torch.tensor([-1.0 if WIND.fullmatch(name) else 1.0 for name in channels])


def pad_rows(x: Tensor, north: int, south: int, padding: Padding, signs: Tensor | None = None) -> Tensor:
    """BxCxHxW to BxCx(north + H + south)xW.

    On a sphere rows beyond a pole come from the opposite meridian, vector components with their sign turned (`signs`,
    C). Elsewhere there is nothing to continue with, so the outermost row is repeated.
    """
    if north == south == 0:
        return x
    height = x.shape[-2]
    if padding == "sphere" or padding == "sphere_poles":
        reach = max(north, south)
        padded = pad(x, reach, 0, padding)[..., reach - north : reach + height + south, :]
        if signs is None:
            return padded
        factor = _over_a_pole(height, north, south, padding, x.device)
        sign = signs.to(x).view(-1, 1, 1)
        return torch.where(factor[:, None], padded * sign, padded)
    rows = torch.arange(-north, height + south, device=x.device).clamp(0, height - 1)
    return x[..., rows, :]


def _over_a_pole(height: int, north: int, south: int, padding: Padding, device: torch.device) -> Tensor:
    """Which of the rows -north ... height + south - 1 lie beyond an odd number of poles."""
    period = max(2 * height - 2 * int(padding == "sphere_poles"), 1)
    return torch.arange(-north, height + south, device=device) % period >= height
