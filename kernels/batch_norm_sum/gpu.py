"""Sums of batch norms in Triton: two passes over the terms forwards, two backwards.

Maps are matrices of rows (image by image, cell by cell) and channels. Sums over rows go through buffers of partial
sums, in a fixed order: two runs agree bit for bit. Variances are sums of squares around the first row's value, which
keeps them exact where a channel's mean is far from 0.

Shapes: B batch, C channels, M = B H W rows, T terms, P parts, BM and BC the sides of a tile.
"""
# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 792  # of a pass that sums, all terms together: six to a multiprocessor of an H200
TILE_ELEMENTS = 4096  # of one term
MOST_CHANNELS = 256  # of a tile


def batch_norm_sum_gpu(
    xs: Sequence[Tensor], weights: Tensor, biases: Tensor, residual: Tensor | None, scale: Tensor | None,
    gain: Tensor | None, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The sum BxCxHxW, channels-last; means and variances of the terms, TxC."""
    terms, count, channels = [_rows(x) for x in xs], len(xs), xs[0].shape[1]
    cells = xs[0].numel() // channels
    output = torch.empty_like(terms[0], dtype=xs[0].dtype if residual is None else residual.dtype)
    with torch.cuda.device_of(xs[0]):
        means, variances = _statistics(terms)
        tile = _tile(channels, TILE_ELEMENTS if count == 1 else TILE_ELEMENTS // 2)
        sum_kernel[(triton.cdiv(cells, tile["BLOCK_M"]), triton.cdiv(channels, tile["BLOCK_C"]))](
            *_six(terms), weights.contiguous(), biases.contiguous(), means, variances,
            terms[0] if residual is None else _rows(residual), means if scale is None else scale.contiguous(),
            means if gain is None else gain.contiguous(), output, cells, cells // xs[0].shape[0], eps,
            C=channels, COUNT=count, HAS_RESIDUAL=residual is not None, HAS_SCALE=scale is not None,
            HAS_GAIN=gain is not None, **tile, num_warps=4,
        )  # fmt: skip
    return output.permute(0, 3, 1, 2), means, variances


def _statistics(terms: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Means and variances, TxC, of T terms BxHxWxC."""
    count, channels = len(terms), terms[0].shape[3]
    cells = terms[0].numel() // channels
    means, variances = (torch.empty(count, channels, dtype=torch.float32, device=terms[0].device) for _ in range(2))
    tile = _tile(channels, TILE_ELEMENTS // 2)
    parts = _parts(cells, channels, count, tile)
    partial = means.new_empty(count, parts, 2, channels)
    statistics_kernel[(parts, triton.cdiv(channels, tile["BLOCK_C"]), count)](
        *_six(terms), means, partial, cells, parts, C=channels, **tile, num_warps=4
    )
    settle_kernel[(triton.cdiv(channels, 16), count)](
        partial, means, variances, cells, parts, C=channels, BLOCK_C=16, num_warps=4
    )
    return means, variances


def batch_norm_sum_backward_gpu(
    grad: Tensor,
    xs: Sequence[Tensor],
    weights: Tensor,
    biases: Tensor,
    means: Tensor,
    variances: Tensor,
    scale: Tensor | None,
    gain: Tensor | None,
    eps: float,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Gradients of the terms, BxCxHxW; of the weights, TxC, of each bias, C, and of the gain, C, empty without one."""
    terms, count, channels, grad = [_rows(x) for x in xs], len(xs), xs[0].shape[1], _rows(grad)
    cells = grad.numel() // channels
    size = cells // xs[0].shape[0]
    weights, biases = weights.contiguous(), biases.contiguous()
    found = [torch.empty_like(term) for term in terms]
    grad_weights, of_grad, of_term, constant = (torch.empty_like(means) for _ in range(4))
    grad_bias, grad_gains = torch.empty_like(means[0]), means.new_empty(0 if gain is None else count, channels)
    tile = _tile(channels, TILE_ELEMENTS if count == 1 else TILE_ELEMENTS // 4)
    parts, grid_c = _parts(cells, channels, 1, tile), triton.cdiv(channels, tile["BLOCK_C"])
    partial = means.new_empty(parts, 1 + count, channels)
    scales, flags = grad_bias if scale is None else scale.contiguous(), {"COUNT": count, "HAS_SCALE": scale is not None}
    with torch.cuda.device_of(grad):
        gradient_sums_kernel[(parts, grid_c)](
            grad, *_six(terms), means, scales, partial, cells, size, parts, C=channels, **flags, **tile, num_warps=4
        )
        settle_gradients_kernel[(triton.cdiv(channels, 16), count)](
            partial, weights, biases, means if gain is None else gain.contiguous(), means, variances, grad_weights, grad_bias, grad_gains,
            of_grad, of_term, constant, cells, parts, eps,
            C=channels, COUNT=count, HAS_GAIN=gain is not None, BLOCK_C=16, num_warps=4,
        )  # fmt: skip
        gradients_kernel[(triton.cdiv(cells, tile["BLOCK_M"]), grid_c)](
            grad, *_six(terms), *_six(found), of_grad, of_term, constant, scales, cells, size,
            C=channels, **flags, **tile, num_warps=4,
        )  # fmt: skip
    grad_gain = grad_gains.sum(dim=0) if len(grad_gains) > 1 else grad_gains.flatten()
    return [x.permute(0, 3, 1, 2) for x in found], grad_weights, grad_bias, grad_gain


def update_gpu(
    running_means: Sequence[Tensor], running_variances: Sequence[Tensor], counts: Sequence[Tensor], means: Tensor,
    variances: Tensor, momentum: float, unbiased: float,
) -> None:  # fmt: skip
    """See `update_running_statistics`; `unbiased` is what makes a variance so."""
    count, channels = means.shape
    with torch.cuda.device_of(means):
        update_kernel[(triton.cdiv(channels, 256), count)](
            *_six(running_means), *_six(running_variances), *_six(counts), means, variances, momentum, unbiased,
            C=channels, BLOCK_C=256, num_warps=2,
        )  # fmt: skip


def _rows(x: Tensor) -> Tensor:
    """BxCxHxW as contiguous BxHxWxC: a view of channels-last memory."""
    return x.permute(0, 2, 3, 1).contiguous()


def _six(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The kernels take six pointers; those beyond the count are never followed."""
    return [*tensors, *[tensors[0]] * (6 - len(tensors))]


def _tile(channels: int, elements: int) -> dict[str, Any]:
    """Whole rows if they are short; else the widest part that divides them, where that is wide enough to load well."""
    divides = channels & -channels
    block = divides if 64 <= divides <= MOST_CHANNELS else min(triton.next_power_of_2(channels), MOST_CHANNELS)
    return {"BLOCK_M": max(1, elements // block), "BLOCK_C": block}


def _parts(cells: int, channels: int, count: int, tile: dict[str, Any]) -> int:
    """How many programs share the rows of a pass that sums."""
    wanted = max(1, PROGRAMS // (count * triton.cdiv(channels, tile["BLOCK_C"])))
    return int(max(1, min(wanted, triton.cdiv(cells, tile["BLOCK_M"]))))


@triton.jit
def _places(rows, channels, n_rows, C: tl.constexpr):
    """Elements of a tile, and which exist."""
    return rows.to(tl.int64)[:, None] * C + channels[None, :], (rows < n_rows)[:, None] & (channels < C)[None, :]


@triton.jit
def _load(x, places, mask):
    return tl.load(x + places, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _of_channel(values, term, channels, C: tl.constexpr):
    return tl.load(values + term * C + channels, mask=channels < C, other=0.0).to(tl.float32)


@triton.jit
def _chosen(x0, x1, x2, x3, x4, x5, term):
    """The pointer of a term that is known when the program runs."""
    x = x0
    if term == 1:
        x = x1
    if term == 2:
        x = x2
    if term == 3:
        x = x3
    if term == 4:
        x = x4
    if term == 5:
        x = x5
    return x


@triton.jit(do_not_specialize=["n_rows", "parts"])
def statistics_kernel(
    x0,
    x1,
    x2,
    x3,
    x4,
    x5,
    starts,
    partial,
    n_rows,
    parts,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums of x and x^2, less the first row's values, over every `parts`-th tile of rows: [terms,
    parts, 2, C]; and these values.
    """
    part, term = tl.program_id(0), tl.program_id(2)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    x = _chosen(x0, x1, x2, x3, x4, x5, term)
    start = tl.load(x + channels, mask=channels < C, other=0.0).to(tl.float32)
    if part == 0:
        tl.store(starts + term * C + channels, start, mask=channels < C)
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for first in tl.range(part * BLOCK_M, n_rows, parts * BLOCK_M, num_stages=3):
        places, mask = _places(first + tl.arange(0, BLOCK_M), channels, n_rows, C)
        value = tl.where(mask, _load(x, places, mask) - start[None, :], 0.0)
        total += value
        squares += value * value
    here = partial + (term * parts + part) * 2 * C + channels
    tl.store(here, tl.sum(total, axis=0), mask=channels < C)
    tl.store(here + C, tl.sum(squares, axis=0), mask=channels < C)


@triton.jit
def _summed(partial, parts, step, channels, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """The sum of the parts, 64 at a time."""
    total = tl.zeros((64, BLOCK_C), tl.float32)
    for first in tl.range(0, parts, 64, num_stages=3):
        part = first + tl.arange(0, 64)
        mask = (part < parts)[:, None] & (channels < C)[None, :]
        total += tl.load(partial + part[:, None] * step + channels[None, :], mask=mask, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize=["n_rows", "parts"])
def settle_kernel(partial, means, variances, n_rows, parts, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Statistics of each term, whose `means` hold the first row's values."""
    term = tl.program_id(1)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask, own = channels < C, partial + term * parts * 2 * C
    off = _summed(own, parts, 2 * C, channels, C, BLOCK_C) / n_rows
    variance = tl.maximum(_summed(own + C, parts, 2 * C, channels, C, BLOCK_C) / n_rows - off * off, 0.0)
    tl.store(means + term * C + channels, _of_channel(means, term, channels, C) + off, mask=mask)
    tl.store(variances + term * C + channels, variance, mask=mask)


@triton.jit
def _normed(x, weights, biases, means, variances, eps, term: tl.constexpr, places, mask, channels, C: tl.constexpr):
    factor = _of_channel(weights, term, channels, C) / tl.sqrt(_of_channel(variances, term, channels, C) + eps)
    shift = _of_channel(biases, term, channels, C) - _of_channel(means, term, channels, C) * factor
    return _load(x, places, mask) * factor[None, :] + shift[None, :]


@triton.jit(do_not_specialize=["n_rows", "size"])
def sum_kernel(
    x0, x1, x2, x3, x4, x5, weights, biases, means, variances, residual, scale, gain, output, n_rows, size, eps,
    C: tl.constexpr, COUNT: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_GAIN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """output = residual + scale * gain * (sum of the terms' norms)."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    places, mask = _places(rows, channels, n_rows, C)
    total = _normed(x0, weights, biases, means, variances, eps, 0, places, mask, channels, C)
    if COUNT > 1:
        total += _normed(x1, weights, biases, means, variances, eps, 1, places, mask, channels, C)
    if COUNT > 2:
        total += _normed(x2, weights, biases, means, variances, eps, 2, places, mask, channels, C)
    if COUNT > 3:
        total += _normed(x3, weights, biases, means, variances, eps, 3, places, mask, channels, C)
    if COUNT > 4:
        total += _normed(x4, weights, biases, means, variances, eps, 4, places, mask, channels, C)
    if COUNT > 5:
        total += _normed(x5, weights, biases, means, variances, eps, 5, places, mask, channels, C)
    if HAS_GAIN:
        total = total * _of_channel(gain, 0, channels, C)[None, :]
    if HAS_SCALE:
        total = total * tl.load(scale + rows // size, mask=rows < n_rows, other=0.0).to(tl.float32)[:, None]
    if HAS_RESIDUAL:
        total += _load(residual, places, mask)
    tl.store(output + places, total.to(output.dtype.element_ty), mask=mask)


@triton.jit
def _load_gradient(grad, scale, places, mask, rows, n_rows, size, HAS_SCALE: tl.constexpr):
    value = _load(grad, places, mask)
    if HAS_SCALE:
        value = value * tl.load(scale + rows // size, mask=rows < n_rows, other=0.0).to(tl.float32)[:, None]
    return value


@triton.jit
def _store_sum(partial, slot: tl.constexpr, values, channels, C: tl.constexpr):
    tl.store(partial + slot * C + channels, tl.sum(values, axis=0), mask=channels < C)


@triton.jit(do_not_specialize=["n_rows", "size", "parts"])
def gradient_sums_kernel(
    grad, x0, x1, x2, x3, x4, x5, means, scale, partial, n_rows, size, parts,
    C: tl.constexpr, COUNT: tl.constexpr, HAS_SCALE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums of g and of g (x - mean) for each term, over every `parts`-th tile of rows: [parts, 1 + terms, C]."""
    part = tl.program_id(0)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    t0 = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    t1, t2, t3, t4, t5 = t0, t0, t0, t0, t0
    for first in tl.range(part * BLOCK_M, n_rows, parts * BLOCK_M, num_stages=2):
        rows = first + tl.arange(0, BLOCK_M)
        places, mask = _places(rows, channels, n_rows, C)
        g = _load_gradient(grad, scale, places, mask, rows, n_rows, size, HAS_SCALE)
        total += g
        t0 += g * (_load(x0, places, mask) - _of_channel(means, 0, channels, C)[None, :])
        if COUNT > 1:
            t1 += g * (_load(x1, places, mask) - _of_channel(means, 1, channels, C)[None, :])
        if COUNT > 2:
            t2 += g * (_load(x2, places, mask) - _of_channel(means, 2, channels, C)[None, :])
        if COUNT > 3:
            t3 += g * (_load(x3, places, mask) - _of_channel(means, 3, channels, C)[None, :])
        if COUNT > 4:
            t4 += g * (_load(x4, places, mask) - _of_channel(means, 4, channels, C)[None, :])
        if COUNT > 5:
            t5 += g * (_load(x5, places, mask) - _of_channel(means, 5, channels, C)[None, :])
    partial += part * (1 + COUNT) * C
    _store_sum(partial, 0, total, channels, C)
    _store_sum(partial, 1, t0, channels, C)
    if COUNT > 1:
        _store_sum(partial, 2, t1, channels, C)
    if COUNT > 2:
        _store_sum(partial, 3, t2, channels, C)
    if COUNT > 3:
        _store_sum(partial, 4, t3, channels, C)
    if COUNT > 4:
        _store_sum(partial, 5, t4, channels, C)
    if COUNT > 5:
        _store_sum(partial, 6, t5, channels, C)


@triton.jit(do_not_specialize=["n_rows", "parts"])
def settle_gradients_kernel(
    partial, weights, biases, gain, means, variances, grad_weights, grad_bias, grad_gains, of_grad, of_term, constant,
    n_rows, parts, eps, C: tl.constexpr, COUNT: tl.constexpr, HAS_GAIN: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradients of the parameters, that of the gain term by term, [terms, C]; and of each term, dx = of_grad * g +
    of_term * x + constant, all three [terms, C].
    """
    term = tl.program_id(1)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask, step = channels < C, (1 + COUNT) * C
    pushed = _summed(partial, parts, step, channels, C, BLOCK_C)
    along = _summed(partial + (1 + term) * C, parts, step, channels, C, BLOCK_C)
    rate = 1.0 / tl.sqrt(_of_channel(variances, term, channels, C) + eps)
    if HAS_GAIN:
        own = _of_channel(weights, term, channels, C) * along * rate + _of_channel(biases, term, channels, C) * pushed
        tl.store(grad_gains + term * C + channels, own, mask=mask)
        gains = _of_channel(gain, 0, channels, C)
        pushed, along = pushed * gains, along * gains
    if term == 0:
        tl.store(grad_bias + channels, pushed, mask=mask)
    slope = _of_channel(weights, term, channels, C) * rate
    pull = -slope * rate * rate * along / n_rows
    rest = -slope * pushed / n_rows - pull * _of_channel(means, term, channels, C)
    if HAS_GAIN:  # the two sums hold it already
        slope = slope * gains
    tl.store(grad_weights + term * C + channels, along * rate, mask=mask)
    tl.store(of_grad + term * C + channels, slope, mask=mask)
    tl.store(of_term + term * C + channels, pull, mask=mask)
    tl.store(constant + term * C + channels, rest, mask=mask)


@triton.jit
def _store_gradient(
    x, found, g, of_grad, of_term, constant, term: tl.constexpr, places, mask, channels, C: tl.constexpr
):
    result = g * _of_channel(of_grad, term, channels, C)[None, :]
    result += _load(x, places, mask) * _of_channel(of_term, term, channels, C)[None, :]
    result += _of_channel(constant, term, channels, C)[None, :]
    tl.store(found + places, result.to(found.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n_rows", "size"])
def gradients_kernel(
    grad, x0, x1, x2, x3, x4, x5, d0, d1, d2, d3, d4, d5, of_grad, of_term, constant, scale, n_rows, size,
    C: tl.constexpr, COUNT: tl.constexpr, HAS_SCALE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradients of the terms, d0 and on."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    places, mask = _places(rows, channels, n_rows, C)
    g = _load_gradient(grad, scale, places, mask, rows, n_rows, size, HAS_SCALE)
    _store_gradient(x0, d0, g, of_grad, of_term, constant, 0, places, mask, channels, C)
    if COUNT > 1:
        _store_gradient(x1, d1, g, of_grad, of_term, constant, 1, places, mask, channels, C)
    if COUNT > 2:
        _store_gradient(x2, d2, g, of_grad, of_term, constant, 2, places, mask, channels, C)
    if COUNT > 3:
        _store_gradient(x3, d3, g, of_grad, of_term, constant, 3, places, mask, channels, C)
    if COUNT > 4:
        _store_gradient(x4, d4, g, of_grad, of_term, constant, 4, places, mask, channels, C)
    if COUNT > 5:
        _store_gradient(x5, d5, g, of_grad, of_term, constant, 5, places, mask, channels, C)


@triton.jit
def update_kernel(
    m0, m1, m2, m3, m4, m5, v0, v1, v2, v3, v4, v5, n0, n1, n2, n3, n4, n5, means, variances, momentum, unbiased,
    C: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Running statistics of each term, [C], and the number of batches seen."""
    term = tl.program_id(1)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = channels < C
    mean, variance = _chosen(m0, m1, m2, m3, m4, m5, term) + channels, _chosen(v0, v1, v2, v3, v4, v5, term) + channels
    old = tl.load(mean, mask=mask)
    tl.store(mean, old + momentum * (_of_channel(means, term, channels, C) - old), mask=mask)
    old = tl.load(variance, mask=mask)
    tl.store(variance, old + momentum * (_of_channel(variances, term, channels, C) * unbiased - old), mask=mask)
    if tl.program_id(0) == 0:
        count = _chosen(n0, n1, n2, n3, n4, n5, term)
        tl.store(count, tl.load(count) + 1)
