"""One map spread over processes by longitude: each convolution fetches its halo from its neighbours.

Every process holds all H rows and W / N columns. Depthwise kernels, patches at the poles and nothing else look beyond
their own columns, so a network differs from its sharded form only in them; weights and their names are the same.

Shapes: B batch, C channels, H rows, W columns, N processes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unipercept.app.forecaster.boundary import pad_rows
from unipercept.app.forecaster.network import RowPadding, WeatherNetwork
from unipercept.blocks import DepthwiseConv2d
from unipercept.errors import InputError
from unipercept.kernels import depthwise_conv2d
from unipercept.kernels.depthwise_conv2d.padding import Padding, pad


def shard_columns(network: WeatherNetwork) -> WeatherNetwork:
    """Let `network` run on this process's columns, in place: states, solar and static fields are cut by `own_columns`.

    Gradients of the weights are those of this process's own loss; average them over the processes (as data parallel
    training does) to get those of the mean loss over the whole map.

    Raises:
        InputError: no process group, a region (it does not wrap), or columns that the processes
            and patches do not share out.
    """
    if not dist.is_initialized():
        raise InputError("spreading a map needs a process group; start the program with torchrun")
    config, count = network.config, dist.get_world_size()
    if config.padding == "zero":
        raise InputError("only grids that go round the earth are spread over processes; train a region data parallel")
    if count > 1 and (config.columns % (count * config.patch) or count % 2):
        raise InputError(
            f"{config.columns} columns in patches of {config.patch} cannot be shared by {count} processes; "
            "their number must be even and divide the tokens"
        )
    for module in network.modules():
        if isinstance(module, DepthwiseConv2d):
            module.__class__ = _HaloConv2d  # the same weights under the same names, another way to see beyond the edge
        elif isinstance(module, RowPadding):
            module.__class__ = _SharedRowPadding
    network.static = own_columns(network.static)
    return network


def own_columns(x: Tensor) -> Tensor:
    """This process's columns of a map, the last dimension."""
    return x.chunk(dist.get_world_size(), dim=-1)[dist.get_rank()].contiguous()


class _HaloConv2d(DepthwiseConv2d):
    """A depthwise convolution whose columns continue on the neighbours' maps and, over a
    pole, on the opposite process's.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self.dilation * (size // 2) for size in self.weight.shape[-2:])
        padded = with_halo(x, rows, columns, self.padding)
        y = depthwise_conv2d(padded, self.weight, self.bias, dilation=self.dilation)
        return y[..., rows : rows + x.shape[-2], columns : columns + x.shape[-1]]


class _SharedRowPadding(RowPadding):
    """Rows beyond the poles for this process's columns."""

    def forward(self, x: Tensor, north: int, south: int, signs: Tensor) -> Tensor:
        if north == south == 0:
            return x
        if not self.padding.startswith("sphere"):
            return pad_rows(x, north, south, self.padding, signs)
        whole = pad_rows(_gathered(x), north, south, self.padding, signs)
        return own_columns(whole)


def with_halo(x: Tensor, rows: int, columns: int, padding: Padding) -> Tensor:
    """BxCxHxW/N to BxCx(H + 2 rows)x(W/N + 2 columns): what the kernels' padding gives, cut to this process's columns.

    What travels is 2 `columns` of every process's map and, on a sphere, the rows at the poles.
    """
    height, width, rank, count = x.shape[-2], x.shape[-1], dist.get_rank(), dist.get_world_size()
    if columns > width or rows > height - 2 * int(padding == "sphere_poles"):  # wider than a part: fetch all of the map
        whole = pad(_gathered(x), rows, columns, padding)
        return whole[..., rank * width : rank * width + width + 2 * columns]
    sides = torch.cat([x[..., :columns], x[..., width - columns :]], dim=-1)
    each = _gather(sides)  # [N, B, C, H, 2 columns]
    left, right = each[(rank - 1) % count][..., columns:], each[(rank + 1) % count][..., :columns]
    middle = torch.cat([left, x, right], dim=-1)
    if rows == 0:
        return middle
    if padding == "cylinder":
        return torch.nn.functional.pad(middle, (0, 0, rows, rows))
    return torch.cat(
        [_beyond(x, rows, columns, padding, True), middle, _beyond(x, rows, columns, padding, False)], dim=-2
    )


def _beyond(x: Tensor, rows: int, columns: int, padding: Padding, north: bool) -> Tensor:
    """The `rows` beyond a pole (for circular padding: of the other end), with halo columns."""
    width, rank, count = x.shape[-1], dist.get_rank(), dist.get_world_size()
    skipped = int(padding == "sphere_poles")
    band = (
        x[..., skipped : skipped + rows, :]
        if north
        else x[..., x.shape[-2] - skipped - rows : x.shape[-2] - skipped, :]
    )
    whole = torch.cat(list(_gather(band)), dim=-1).flip(-2).roll(count * width // 2, dims=-1)
    across = torch.arange(rank * width - columns, rank * width + width + columns, device=x.device) % (count * width)
    return whole[..., across]


def _gathered(x: Tensor) -> Tensor:
    """The whole map from every process's columns."""
    return torch.cat(list(_gather(x)), dim=-1)


def _gather(x: Tensor) -> Tensor:
    stacked: Tensor = _Gather.apply(x.contiguous())  # type: ignore[no-untyped-call]
    return stacked


class _Gather(torch.autograd.Function):
    """Every process's tensor, stacked; backwards, the sum over processes of what each made of mine."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad[dist.get_rank()]


def average_gradients(network: nn.Module) -> None:
    """Replace each weight's gradient by its mean over the processes."""
    for parameter in network.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
