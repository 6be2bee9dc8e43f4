"""Layer norm over channels in Triton: one pass forward, one back. torch's own takes a block for each cell, whose few
channels leave most of it idle: 20 times the time of the bytes on the stem's map of an H200.

Shapes: M cells of all images, C channels, BM and BC the sides of a tile.
"""
# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from unipercept.kernels.gpu_gelu import gelu, gelu_and_slope

TILE_ELEMENTS = 4096
BACKWARD_ELEMENTS = 1024  # of a tile backwards, beside the three sums of as many
# Five to a multiprocessor of an H200, as many as their registers allow; each leaves one set of partial sums.
BACKWARD_PROGRAMS = 660


def layer_norm2d_gpu(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, eps: float, gelu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Channels-last BxCxHxW to the same; mean and reciprocal standard deviation, BxHxW each."""
    output = torch.empty_like(x)
    mean, scale = (x.new_empty(x.shape[0], *x.shape[2:], dtype=torch.float32) for _ in range(2))
    block_c, block_m = _tile(x.shape[1], TILE_ELEMENTS)
    cells = mean.numel()
    with torch.cuda.device_of(x):
        forward_kernel[(triton.cdiv(cells, block_m),)](
            x, *_dense(weight, bias, shift), output, mean, scale, cells, eps,
            C=x.shape[1], SHIFTED=shift is not None, GELU=gelu, BLOCK_M=block_m, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    return output, mean, scale


def layer_norm2d_backward_gpu(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    mean: Tensor,
    scale: Tensor,
    gelu: bool,
) -> tuple[Tensor, Tensor]:
    """Gradient of x; gradients of weight, bias and shift, 3xC. Deterministic."""
    grad_x = torch.empty_like(x)
    block_c, block_m = _tile(x.shape[1], BACKWARD_ELEMENTS)
    cells = mean.numel()
    programs = min(triton.cdiv(cells, block_m), BACKWARD_PROGRAMS)
    partial = x.new_empty(programs, 3, x.shape[1], dtype=torch.float32)
    with torch.cuda.device_of(x):
        backward_kernel[(programs,)](
            grad, x, *_dense(weight, bias, shift), mean, scale, grad_x, partial, cells, programs,
            C=x.shape[1], SHIFTED=shift is not None, GELU=gelu, BLOCK_M=block_m, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    return grad_x, partial.sum(dim=0)


def _dense(weight: Tensor, bias: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """As the kernels read them: without gaps, and some pointer where there is no shift."""
    return weight.contiguous(), bias.contiguous(), (bias if shift is None else shift).contiguous()


def _tile(channels: int, elements: int) -> tuple[int, int]:
    block_c = triton.next_power_of_2(channels)
    return block_c, max(1, elements // block_c)


@triton.jit
def _load_cells(x, shift, cells, channels, n_cells, C: tl.constexpr, SHIFTED: tl.constexpr):
    mask = (cells < n_cells)[:, None] & (channels < C)[None, :]
    value = tl.load(x + cells.to(tl.int64)[:, None] * C + channels[None, :], mask=mask, other=0.0).to(tl.float32)
    if SHIFTED:
        value += tl.load(shift + channels, mask=channels < C, other=0.0).to(tl.float32)[None, :]
    return value, mask  # [BM, BC]


@triton.jit(do_not_specialize=["n_cells"])
def forward_kernel(
    x, weight, bias, shift, output, mean, scale, n_cells, eps,
    C: tl.constexpr, SHIFTED: tl.constexpr, GELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A program takes BLOCK_M cells with all their channels."""
    cells = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channels = tl.arange(0, BLOCK_C)
    value, mask = _load_cells(x, shift, cells, channels, n_cells, C, SHIFTED)
    average = tl.sum(value, axis=1) / C
    centred = tl.where(mask, value - average[:, None], 0.0)
    reciprocal = tl.rsqrt(tl.sum(centred * centred, axis=1) / C + eps)
    w = tl.load(weight + channels, mask=channels < C, other=0.0).to(tl.float32)
    b = tl.load(bias + channels, mask=channels < C, other=0.0).to(tl.float32)
    result = centred * reciprocal[:, None] * w[None, :] + b[None, :]
    if GELU:
        result = gelu(result, output.dtype.element_ty == tl.float32)
    tl.store(
        output + cells.to(tl.int64)[:, None] * C + channels[None, :], result.to(output.dtype.element_ty), mask=mask
    )
    tl.store(mean + cells, average, mask=cells < n_cells)
    tl.store(scale + cells, reciprocal, mask=cells < n_cells)


@triton.jit
def _load_turn(grad, x, mean, scale, cells, channels, n_cells, C: tl.constexpr):
    """The inputs of the backward pass for BLOCK_M cells.

    They are loaded one iteration ahead: a load waits for the store before it.
    """
    mask = (cells < n_cells)[:, None] & (channels < C)[None, :]
    places = cells.to(tl.int64)[:, None] * C + channels[None, :]
    pushed = tl.load(grad + places, mask=mask, other=0.0)
    value = tl.load(x + places, mask=mask, other=0.0)
    average = tl.load(mean + cells, mask=cells < n_cells, other=0.0)
    return pushed, value, average, tl.load(scale + cells, mask=cells < n_cells, other=0.0)


@triton.jit(do_not_specialize=["n_cells", "programs"])
def backward_kernel(
    grad, x, weight, bias, shift, mean, scale, grad_x, partial, n_cells, programs,
    C: tl.constexpr, SHIFTED: tl.constexpr, GELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A program takes every `programs`-th tile of BLOCK_M cells and sums what the parameters get on its way."""
    channels = tl.arange(0, BLOCK_C)
    w = tl.load(weight + channels, mask=channels < C, other=0.0).to(tl.float32)
    b = tl.load(bias + channels, mask=channels < C, other=0.0).to(tl.float32)
    s = tl.zeros((BLOCK_C,), tl.float32)
    if SHIFTED:
        s += tl.load(shift + channels, mask=channels < C, other=0.0).to(tl.float32)
    sum_weight = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    sum_bias = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    sum_shift = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    first = tl.program_id(0) * BLOCK_M
    next_grad, next_x, next_mean, next_scale = _load_turn(
        grad, x, mean, scale, first + tl.arange(0, BLOCK_M), channels, n_cells, C
    )
    for start in range(first, n_cells, programs * BLOCK_M):
        cells, pull, value = start + tl.arange(0, BLOCK_M), next_grad.to(tl.float32), next_x.to(tl.float32)
        average, reciprocal = next_mean, next_scale
        next_grad, next_x, next_mean, next_scale = _load_turn(
            grad, x, mean, scale, cells + programs * BLOCK_M, channels, n_cells, C
        )
        mask = (cells < n_cells)[:, None] & (channels < C)[None, :]
        normal = tl.where(mask, (value + s[None, :] - average[:, None]) * reciprocal[:, None], 0.0)
        if GELU:
            pull = pull * gelu_and_slope(normal * w[None, :] + b[None, :], x.dtype.element_ty == tl.float32)[1]
        sum_weight += pull * normal
        sum_bias += pull
        inner = pull * w[None, :]
        average = tl.sum(inner, axis=1) / C
        along = tl.sum(inner * normal, axis=1) / C
        result = tl.where(mask, (inner - average[:, None] - normal * along[:, None]) * reciprocal[:, None], 0.0)
        sum_shift += result
        places = cells.to(tl.int64)[:, None] * C + channels[None, :]
        tl.store(grad_x + places, result.to(grad_x.dtype.element_ty), mask=mask)
    here = partial + tl.program_id(0) * 3 * C + channels
    tl.store(here, tl.sum(sum_weight, axis=0), mask=channels < C)
    tl.store(here + C, tl.sum(sum_bias, axis=0), mask=channels < C)
    tl.store(here + 2 * C, tl.sum(sum_shift, axis=0), mask=channels < C)
