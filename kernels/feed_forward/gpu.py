"""The feed-forward on NVIDIA GPUs of compute capability 8.0 and higher: the launches of the Triton
kernels, and of those for Hopper.

Inference passes over the hidden tensor, the widest, twice: `expand` writes it after the GELU, together with the sums of
its squares, and `contract` reads it, scales it by GRN's factor on the way into the product, and adds bias and residual.

Shapes: B batch, C channels, H rows, W columns, N hidden channels, M = B H W.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unipercept.kernels.cast import pack, unpacked
from unipercept.kernels.feed_forward import gpu_hopper
from unipercept.kernels.feed_forward import gpu_kernels as kernels
from unipercept.kernels.feed_forward.gpu_tiles import (
    Product,
    Tile,
    default_tile,
    grid,
    images_touched,
    shared_bytes_of,
    shrunk,
    tile_for,
    tiles_of,
)
from unipercept.kernels.feed_forward.reference import RESPONSE_EPS, Norm, Saved, Weights, keeps_grown, sums_by_image
from unipercept.kernels.streams import beside, join

POOL_ELEMENTS = 4096  # of the tile that a program of channel_sums_kernel loads at a time where they are few
POOL_PROGRAMS = 1024  # enough to fill a large GPU several times
MOST_SPLITS = 16  # of a map: gate_kernel loads the sums of all at once
FACTOR_ELEMENTS = 8192  # of the sums that a program of factor_kernel loads at a time
WIDEST = 64  # columns of a program that passes over a map
PASS_ROWS, PASS_LONGEST = 16, 208  # rows that it takes at a time, and in all
MOST_PASSED_IMAGES = 65_535  # of `activate`: they lie along a grid's third dimension
GATE_BYTES = 16384  # of the tile of weights that a program of gate_kernel loads at a time


def feed_forward_gpu(y: Tensor, residual: Tensor, sums: Tensor | None, weights: Weights) -> Tensor:
    """BxHxWxC and the residual of that shape to their BxHxWxC result, in the type of the residual."""
    with on_device_of(y):
        gate = squeeze_excite(y, sums, weights)[1]
        hidden, factor = expand(y, gate, weights)
        return contract(hidden, factor, weights.w2, weights.b2, residual, y.shape, residual.dtype)


def feed_forward_train_gpu(
    y: Tensor, sums: Tensor | None, given: Weights, norm: Norm | None = None
) -> tuple[Tensor, Saved, Tensor]:
    """BxHxWxC to BxHxWxC without the residual, what the backward pass needs, and the weights as `pack` casts them,
    while the map is summed. With a `norm` that of `y` is fed forward; its mean and variance are written here.
    """
    with on_device_of(y):
        by_image = sums_by_image(y)
        with beside(y):
            flat = pack(given, y.dtype)
            weights = Weights(*unpacked(flat, given, y.dtype))  # type: ignore[arg-type]
            bias = passed(weights, weights.beta) if by_image and weights.beta is not None else weights.b2
        partial = map_sums(y, sums, norm)
        join(y)
        mean, gate, squeezed, centre = gate_of(y, partial, weights, norm)
        gated = scaled(y, gate, norm)
        # The passes add the bias: cuBLAS takes longer with it.
        hidden = (gated.view(-1, y.shape[3]) @ weights.w1.T).view(*y.shape[:3], -1)
        if by_image:
            grown = torch.empty_like(hidden)
            factor, norms = response(hidden, grown, weights)
            output = contract(grown, factor, weights.w2, bias, None, y.shape, y.dtype)
        else:
            factor, norms = response(hidden, None, weights)
            grown = grow(hidden, factor, weights)
            output = F.linear(grown, weights.w2, bias)
        kept = grown if keeps_grown(y) else grown.new_empty(0)
        return output, Saved(mean, gate, squeezed, hidden, factor, norms, gated, centre, kept), flat


def response(hidden: Tensor, active: Tensor | None, weights: Weights) -> tuple[Tensor, Tensor]:
    """BxHxWxN before its bias and the GELU, which goes to `active` where that is given, to
    GRN's factor and the norms, BxN.
    """
    rows = rows_of(_size(hidden))
    partial = hidden.new_empty(
        hidden.shape[0] * math.ceil(_size(hidden) / rows), 1, hidden.shape[3], dtype=torch.float32
    )
    activate(hidden, weights.b1, active, partial, rows)
    return factor_of(partial, hidden, weights.gamma, rows, flat=False)


def grow(hidden: Tensor, factor: Tensor, weights: Weights) -> Tensor:
    """BxHxWxN before its bias and the GELU, and GRN's factor, BxN, to GRN's result."""
    grown, beta = torch.empty_like(hidden), weights.beta
    launch(
        kernels.grown_kernel, hidden, weights.b1, factor, factor if beta is None else beta, grown,
        EXACT=hidden.dtype == torch.float32, HAS_BETA=beta is not None,
    )  # fmt: skip
    return grown


def launch(kernel: Any, first: Tensor, *others: Tensor, **constants: Any) -> None:
    """Run a kernel that passes over BxHxWxN `first`, a program for some rows and columns of an image."""
    batch, size, n = first.shape[0], _size(first), first.shape[3]
    rows, columns = rows_of(size), columns_of(n)
    kernel[(math.ceil(size / rows), math.ceil(n / columns), batch)](
        first, *others, size, N=n, ROWS=rows, BLOCK_ROWS=PASS_ROWS, BLOCK_N=columns, **constants, num_warps=4
    )


def passed(weights: Weights, beta: Tensor) -> Tensor:
    """The bias of the second layer, C float32, with GRN's bias, which passes that layer as a constant."""
    channels, n = weights.w2.shape
    bias = beta.new_empty(channels, dtype=torch.float32)
    b2 = beta if weights.b2 is None else weights.b2
    kernels.passed_kernel[(math.ceil(channels / 4),)](
        weights.w2, beta, b2, bias, C=channels, N=n, HAS_BIAS=weights.b2 is not None, num_warps=4
    )
    return bias


def squeeze_excite(y: Tensor, sums: Tensor | None, weights: Weights) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fields `mean`, `gate`, `squeezed` and `centre` of `Saved`. `sums` saves the pass over `y`."""
    return gate_of(y, map_sums(y, sums), weights)


def map_sums(y: Tensor, sums: Tensor | None, norm: Norm | None = None) -> Tensor:
    """What `gate_of` takes: BxSxC parts of the sums over each map; with a `norm`, whose mean and
    variance are written here, BxSx2xC.
    """
    batch, channels = y.shape[0], y.shape[3]
    if norm is None:
        return channel_sums(y) if sums is None else sums.float().contiguous().view(batch, 1, channels)
    partial = channel_sums(y, moments=True)
    kernels.moments_kernel[(math.ceil(channels / 32),)](
        y, partial, norm.mean, norm.variance, partial.shape[0] * partial.shape[1], batch * _size(y),
        C=channels, BLOCK_C=32, num_warps=8,
    )  # fmt: skip
    return partial


def gate_of(
    y: Tensor, partial: Tensor, weights: Weights, norm: Norm | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same from what `map_sums` left."""
    batch, channels = y.shape[0], y.shape[3]
    mean = y.new_empty(batch, channels, dtype=torch.float32)
    centre = mean.new_empty(0) if norm is None else torch.empty_like(mean)
    gate, squeezed = y.new_empty(batch, channels), mean.new_empty(batch, weights.down_b.numel())
    splits = partial.shape[1]
    of_norm = (mean,) * 4 if norm is None else norm[:4]
    kernels.gate_kernel[(batch,)](
        partial, weights.down_w, weights.down_b, weights.up_w, weights.up_b, mean, gate, squeezed, 1 / _size(y), splits,
        y, *of_norm, centre, 0.0 if norm is None else norm.eps,
        SPLITS=1 << (splits - 1).bit_length(), NORMED=norm is not None, **gate_options(weights.down_w),
    )  # fmt: skip
    return mean, gate, squeezed, centre


def gate_options(down_w: Tensor) -> dict[str, int]:
    """Constants of the kernels of the gate, from its RxC weights."""
    squeezed, channels = down_w.shape
    block_r = power_of_two(squeezed)
    tile_bytes, warps = GATE_BYTES, 8
    if block_r > 128:  # else too many turns of a loop, which holds two such tiles in shared memory
        tile_bytes, warps = (4 if shared_bytes_of(down_w.device) >= 160 * 1024 else 2) * GATE_BYTES, 16
    block_c = min(power_of_two(channels), max(16, tile_bytes // down_w.element_size() // block_r))
    return {"C": channels, "R": squeezed, "BLOCK_C": block_c, "BLOCK_R": block_r, "num_warps": warps}


def channel_sums(y: Tensor, moments: bool = False) -> Tensor:
    """Sums over parts of each map: BxHxWxC to BxSxC, float32; or those that `moments_kernel` takes, BxSx2xC."""
    batch, channels, size = y.shape[0], y.shape[3], _size(y)
    block_c = columns_of(channels)
    block_rows = POOL_ELEMENTS // block_c
    groups = math.ceil(channels / block_c)
    splits = max(1, min(math.ceil(size / block_rows), math.ceil(POOL_PROGRAMS / (batch * groups)), MOST_SPLITS))
    partial = y.new_empty(batch, splits, *([2] if moments else []), channels, dtype=torch.float32)
    kernels.channel_sums_kernel[(batch, splits, groups)](
        y, partial, size, splits, C=channels, MOMENTS=moments, BLOCK_ROWS=block_rows, BLOCK_C=block_c, num_warps=4
    )
    return partial


def columns_of(n: int) -> int:
    """How wide a program of a pass over n columns is: the widest power of two that divides n, where one does."""
    divides = n & -n
    return min(divides if divides >= 32 else power_of_two(n), WIDEST)


def expand(y: Tensor, gate: Tensor, weights: Weights, tile: Tile | None = None) -> tuple[Tensor, Tensor]:
    """BxHxWxC times its gate, BxC, through the first layer and the GELU: the hidden tensor
    BxHxWxN; and GRN's factor, BxN.
    """
    batch, size, channels, n = y.shape[0], _size(y), y.shape[3], weights.w1.shape[0]
    if tile is None:
        product = Product("expand", n, channels, size, y.dtype)
        tile = shrunk(tile_for(product, y.device), product, batch)
        if tile.library and batch > MOST_PASSED_IMAGES:
            tile = default_tile(product, shared_bytes_of(y.device))
    hopper = gpu_hopper.takes_expand(y, n)
    if hopper:
        tile = replace(tile, rows=gpu_hopper.ROWS, flat=True)
    elif tile.library:
        tile = replace(tile, rows=rows_of(size))
    span, tiles_m = images_touched(tile, size), tiles_of(tile, batch, size)
    partial = y.new_empty(tiles_m, span, n, dtype=torch.float32)
    if hopper:
        hidden = y.new_empty(*y.shape[:3], n)
        gpu_hopper.expand_gpu(y, gate, weights.w1, weights.b1, hidden, partial)
    elif tile.library:
        hidden = (scaled(y, gate).view(-1, channels) @ weights.w1.T).view(*y.shape[:3], n)
        activate(hidden, weights.b1, hidden, partial, tile.rows)
    else:
        hidden = y.new_empty(*y.shape[:3], n)
        weight = weights.w1 * gate[:, None] if tile.scale_weights else weights.w1
        kernels.expand_kernel[grid(tile, tiles_m, n)](
            y, gate, weight, weights.b1, hidden, partial, size, batch * size, tiles_m,
            K=channels, N=n, SCALE_WEIGHTS=tile.scale_weights, **options(tile, size, y.dtype),
        )  # fmt: skip
    return hidden, factor_of(partial, hidden, weights.gamma, tile.rows, tile.flat)[0]


def factor_of(partial: Tensor, hidden: Tensor, gamma: Tensor, rows: int, flat: bool) -> tuple[Tensor, Tensor]:
    """GRN's factor and the norms, BxN, of sums of squares, as `expand_kernel` leaves them of tiles
    of so many rows of `hidden`.
    """
    batch, n = hidden.shape[0], hidden.shape[3]
    factor, norm = hidden.new_empty(batch, n), hidden.new_empty(batch, n, dtype=torch.float32)
    block_n = power_of_two(n)
    kernels.factor_kernel[(batch,)](
        partial, gamma, factor, norm, _size(hidden), RESPONSE_EPS,
        N=n, BLOCK_N=block_n, BLOCK_M=rows, SPAN=partial.shape[1], FLAT=flat, TILES=max(1, FACTOR_ELEMENTS // block_n),
        num_warps=8,
    )  # fmt: skip
    return factor, norm


def scaled(y: Tensor, gate: Tensor, norm: Norm | None = None) -> Tensor:
    """BxHxWxC, or its batch norm, with each image's channels times its gate, BxC."""
    output, cells = torch.empty_like(y), y.numel() // y.shape[3]
    block_c = power_of_two(y.shape[3])
    block_rows = max(1, POOL_ELEMENTS // block_c)
    kernels.scale_kernel[(math.ceil(cells / block_rows),)](
        y, gate, output, _size(y), cells, *((gate,) * 4 if norm is None else norm[:4]), 0.0 if norm is None else norm.eps,
        C=y.shape[3], NORMED=norm is not None, BLOCK_ROWS=block_rows, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip
    return output


def activate(hidden: Tensor, bias: Tensor, active: Tensor | None, partial: Tensor, rows: int) -> None:
    """The GELU of BxHxWxN plus N to `active`, which may be `hidden`, where that is given; the sums of its squares over
    `rows` at a time, as `expand_kernel` leaves them.
    """
    batch, size, n = hidden.shape[0], _size(hidden), hidden.shape[3]
    columns = columns_of(n)
    kernels.activate_kernel[(math.ceil(size / rows), math.ceil(n / columns), batch)](
        hidden, bias, hidden if active is None else active, partial, size, N=n, STORE=active is not None,
        EXACT=hidden.dtype == torch.float32, ROWS=rows, BLOCK_ROWS=PASS_ROWS, BLOCK_N=columns, num_warps=4,
    )  # fmt: skip


def rows_of(size: int) -> int:
    """How many rows of a map of that size a program of a pass takes: an even share, so
    that few lanes idle at the end.
    """
    tiles = math.ceil(size / PASS_ROWS)
    return PASS_ROWS * math.ceil(tiles / math.ceil(tiles * PASS_ROWS / PASS_LONGEST))


def contract(
    hidden: Tensor, factor: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, shape: torch.Size,
    dtype: torch.dtype, tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """The scaled hidden tensor, BxHxWxN, times CxN weights: BxHxWxC."""
    batch, size, n, k = shape[0], shape[1] * shape[2], weight.shape[0], weight.shape[1]
    if tile is None and residual is not None and gpu_hopper.takes_contract(hidden, residual, n):
        return gpu_hopper.contract_gpu(hidden, factor, weight, bias, residual)
    if tile is None:
        product = Product("contract", n, k, size, hidden.dtype)
        tile = shrunk(tile_for(product, hidden.device), product, batch)
    output = hidden.new_empty(shape, dtype=dtype)
    tiles_m = tiles_of(tile, batch, size)
    if tile.scale_weights:
        weight = weight * factor[:, None]
    kernels.contract_kernel[grid(tile, tiles_m, n)](
        hidden, factor, weight, weight if bias is None else bias, hidden if residual is None else residual, output,
        size, batch * size, tiles_m, K=k, N=n, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None,
        SCALE_WEIGHTS=tile.scale_weights, **options(tile, size, hidden.dtype),
    )  # fmt: skip
    return output


def options(tile: Tile, size: int, dtype: torch.dtype) -> dict[str, Any]:
    """Constants that all matrix products take from their tile."""
    return {
        "BLOCK_M": tile.rows, "BLOCK_N": tile.columns, "TAIL": tile.tail, "BLOCK_K": tile.depth, "GROUP": tile.group,
        "SPAN": images_touched(tile, size), "FLAT": tile.flat, "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
        "num_warps": tile.warps, "num_stages": tile.stages,
    }  # fmt: skip


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _size(y: Tensor) -> int:
    return y.shape[1] * y.shape[2]


def power_of_two(n: int) -> int:
    """The least that is not below n, and at least 16."""
    return max(16, 1 << (n - 1).bit_length())
