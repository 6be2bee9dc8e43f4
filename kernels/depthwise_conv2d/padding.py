"""What a convolution sees beyond the edge of the map.

Shapes: B batch, C channels, H rows, W columns.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Padding = Literal["zero", "circular", "cylinder", "sphere", "sphere_poles"]
"""zero: nothing. circular: both axes wrap. cylinder: columns (longitude) wrap, rows end in zeros. sphere: columns wrap,
and beyond a pole the opposite meridian comes, on a grid of cell centres; sphere_poles: the same on a grid whose first
and last rows are the poles themselves, which are not repeated.
"""

PADDINGS: tuple[Padding, ...] = get_args(Padding)


def pad(x: Tensor, rows: int, columns: int, padding: Padding) -> Tensor:
    """BxCxHxW to BxCx(H + 2 rows)x(W + 2 columns). The halo may be larger than the map. On a sphere W is even."""
    if padding == "zero":
        return F.pad(x, (columns, columns, rows, rows))
    height, width = x.shape[-2:]
    if padding != "circular" and columns <= width:  # slices are several times faster than a gather
        if padding == "cylinder":
            return F.pad(_wrapped(x, columns), (0, 0, rows, rows))
        repeated = int(padding == "sphere_poles")
        if rows <= height - 2 * repeated:
            north = x[..., repeated : repeated + rows, :].flip(-2).roll(width // 2, -1)
            south = x[..., height - repeated - rows : height - repeated, :].flip(-2).roll(width // 2, -1)
            return _wrapped(torch.cat([north, x, south], dim=-2), columns)
    across = torch.arange(-columns, width + columns, device=x.device) % width
    down = torch.arange(-rows, height + rows, device=x.device)
    if padding == "cylinder":
        return F.pad(x[..., across], (0, 0, rows, rows))
    if padding == "circular":
        return x[..., down % height, :][..., across]
    repeated = int(padding == "sphere_poles")
    period = max(2 * height - 2 * repeated, 1)
    down = down % period
    beyond = down >= height
    down = torch.where(beyond, period - 1 + repeated - down, down)
    turned = (across[None] + beyond[:, None] * (width // 2)) % width
    return x[..., down[:, None], turned]


def _wrapped(x: Tensor, columns: int) -> Tensor:
    """With columns of the other end at each end."""
    return torch.cat([x[..., x.shape[-1] - columns :], x, x[..., :columns]], dim=-1) if columns else x


def fold_poles(grad: Tensor, rows: int, padding: Padding) -> Tensor:
    """The adjoint of `pad` over the poles, for gradients whose columns already wrap: BxCx(H + 2 rows)xW to BxCxHxW."""
    height, width = grad.shape[-2] - 2 * rows, grad.shape[-1]
    repeated = int(padding == "sphere_poles")
    if (
        rows <= height - 2 * repeated
    ):  # a halo that ends before the other pole: two additions instead of a scatter's atomics
        folded = grad[..., rows : rows + height, :].clone()
        north, south = (
            halo.flip(-2).roll(width // 2, -1) for halo in (grad[..., :rows, :], grad[..., rows + height :, :])
        )
        folded[..., repeated : repeated + rows, :] += north
        folded[..., height - repeated - rows : height - repeated, :] += south
        return folded
    period = max(2 * height - 2 * repeated, 1)
    down = torch.arange(-rows, height + rows, device=grad.device) % period
    beyond = down >= height
    down = torch.where(beyond, period - 1 + repeated - down, down)
    turned = torch.where(beyond[:, None], grad.roll(width // 2, dims=-1), grad)
    return grad.new_zeros(*grad.shape[:2], height, width).index_add_(-2, down, turned)
