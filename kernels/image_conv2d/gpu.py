"""The convolution of an image in Triton, forwards and for the weight: products of gathered cells.

What a cell of the result sees of one row of the image, 3 C elements, lies side by side in memory.

Shapes: M cells of the results, BM of a turn, D channels of the result, K = 9 C elements that a cell sees, P parts.
"""
# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_CELLS = 128
PROGRAMS = 528  # of the weight gradient: four to a multiprocessor of an H200; each leaves one set of partial sums


def image_conv2d_gpu(x: Tensor, w: Tensor) -> Tensor:
    """Channels-last BxCxHxW and DxCx3x3 to channels-last BxDxH'xW'."""
    batch, channels, height, width = x.shape
    d, rows, columns = w.shape[0], (height + 1) // 2, (width + 1) // 2
    output = torch.empty((batch, d, rows, columns), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    cells = batch * rows * columns
    with torch.cuda.device_of(x):
        forward_kernel[(triton.cdiv(cells, BLOCK_CELLS),)](
            x, w, output, cells, height, width, rows, columns, *w.stride(), **_sizes(channels, d), num_warps=4
        )
    return output


def weight_gradient_gpu(grad: Tensor, x: Tensor) -> Tensor:
    """Channels-last BxDxH'xW' and BxCxHxW to DxCx3x3, float32. Two runs agree bit for bit."""
    (batch, channels, height, width), (d, rows, columns) = x.shape, grad.shape[1:]
    cells, sizes = batch * rows * columns, _sizes(channels, d)
    programs = min(PROGRAMS, triton.cdiv(cells, BLOCK_CELLS))
    partial = x.new_empty(programs, sizes["BLOCK_K"], d, dtype=torch.float32)
    with torch.cuda.device_of(x):
        weight_gradient_kernel[(programs,)](
            x, grad, partial, cells, height, width, rows, columns, programs, **sizes, num_warps=4
        )
    return partial.sum(dim=0)[: 9 * channels].view(3, 3, channels, d).permute(3, 2, 0, 1)


def _sizes(channels: int, d: int) -> dict[str, Any]:
    """The channels of the result are BLOCK_D and then TAIL more: 32 + 16 waste less than
    the next power of two would.
    """
    main = max(16, 1 << d.bit_length() - 1)
    return {
        "C": channels, "D": d, "BLOCK_M": BLOCK_CELLS, "BLOCK_D": main,
        "TAIL": 0 if d <= main else max(16, triton.next_power_of_2(d - main)),
        "BLOCK_K": max(16, triton.next_power_of_2(9 * channels)),
    }  # fmt: skip


@triton.jit
def seen(x, cells, n_cells, k, height, width, rows, columns, C: tl.constexpr):
    """The inputs of BM output cells, [BM, K]; k counts rows, columns and channels, the last fastest."""
    image, row, column = cells // (rows * columns), cells // columns % rows, cells % columns
    begin = ((image.to(tl.int64) * height + 2 * row - 1) * width + 2 * column - 1) * C
    kernel_row, along = k // (3 * C), k % (3 * C)
    seen_row = (2 * row - 1)[:, None] + kernel_row[None, :]
    seen_column = (2 * column - 1)[:, None] + (along // C)[None, :]
    inside = (seen_row >= 0) & (seen_row < height) & (seen_column >= 0) & (seen_column < width)
    inside = inside & (k < 9 * C)[None, :] & (cells < n_cells)[:, None]
    return tl.load(x + begin[:, None] + (kernel_row * width * C + along)[None, :], mask=inside, other=0.0)


@triton.jit
def taps(w, d, k, stride_d, stride_c, stride_h, stride_w, C: tl.constexpr, D: tl.constexpr):
    """The kernels of channels d of the result, [K, len(d)], in the order of `seen`."""
    tap, c = k // C, k % C
    places = d[None, :] * stride_d + (c * stride_c + tap // 3 * stride_h + tap % 3 * stride_w)[:, None]
    return tl.load(w + places, mask=(k < 9 * C)[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def _columns_forward(
    left, w, output, cells, n_cells, k, d, stride_d, stride_c, stride_h, stride_w, C: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    result = tl.dot(left, taps(w, d, k, stride_d, stride_c, stride_h, stride_w, C, D)).to(output.dtype.element_ty)
    places = output + cells.to(tl.int64)[:, None] * D + d[None, :]
    tl.store(places, result, mask=(cells < n_cells)[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=["n_cells"])
def forward_kernel(
    x, w, output, n_cells, height, width, rows, columns, stride_d, stride_c, stride_h, stride_w,
    C: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, TAIL: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program takes BLOCK_M cells."""
    cells = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    left = seen(x, cells, n_cells, k, height, width, rows, columns, C)
    d = tl.arange(0, BLOCK_D)
    _columns_forward(left, w, output, cells, n_cells, k, d, stride_d, stride_c, stride_h, stride_w, C, D)
    if TAIL > 0:
        d = BLOCK_D + tl.arange(0, TAIL)
        _columns_forward(left, w, output, cells, n_cells, k, d, stride_d, stride_c, stride_h, stride_w, C, D)


@triton.jit
def _pushed(grad, cells, n_cells, d, D: tl.constexpr):
    mask = (cells < n_cells)[:, None] & (d < D)[None, :]
    return tl.load(grad + cells.to(tl.int64)[:, None] * D + d[None, :], mask=mask, other=0.0)


@triton.jit(do_not_specialize=["n_cells", "programs"])
def weight_gradient_kernel(
    x, grad, partial, n_cells, height, width, rows, columns, programs,
    C: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, TAIL: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program takes every `programs`-th tile of BLOCK_M cells: [programs, K, D]."""
    k = tl.arange(0, BLOCK_K)
    d, rest = tl.arange(0, BLOCK_D), BLOCK_D + tl.arange(0, TAIL if TAIL > 0 else 16)
    main = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    tail = tl.zeros((BLOCK_K, TAIL if TAIL > 0 else 16), tl.float32)
    for start in range(tl.program_id(0) * BLOCK_M, n_cells, programs * BLOCK_M):
        cells = start + tl.arange(0, BLOCK_M)
        left = tl.trans(seen(x, cells, n_cells, k, height, width, rows, columns, C))  # [K, BM]
        main = tl.dot(left, _pushed(grad, cells, n_cells, d, D), main)
        if TAIL > 0:
            tail = tl.dot(left, _pushed(grad, cells, n_cells, rest, D), tail)
    here = partial + tl.program_id(0) * (BLOCK_K * D) + k[:, None] * D
    tl.store(here + d[None, :], main, mask=(d < D)[None, :])
    if TAIL > 0:
        tl.store(here + rest[None, :], tail, mask=(rest < D)[None, :])
