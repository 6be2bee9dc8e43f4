"""The gradient of a halved map in Triton: a program takes cells of the result, with the four cells of the map around each.

Row 2 i of the map is seen by row i of the result alone, through the kernel's middle row; row 2 i + 1 by row i through the last and by
row i + 1 through the first. Columns are alike, so that one cell of four gets one product, two get two, and one gets four.

Shapes: M cells of the results, C channels of the map, D of the result; BM, BC and BD the sides of tiles.
"""
# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


def input_gradient_gpu(grad: Tensor, w: Tensor, height: int, width: int) -> Tensor:
    """Channels-last BxDxH'xW' and DxCx3x3 to channels-last BxCxHxW."""
    (batch, d, rows, columns), channels = grad.shape, w.shape[1]
    output = torch.empty(
        (batch, channels, height, width), dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last
    )
    cells, tile = batch * rows * columns, tile_of(channels)
    with torch.cuda.device_of(grad):
        input_gradient_kernel[(triton.cdiv(cells, tile["BLOCK_M"]) * triton.cdiv(channels, tile["BLOCK_C"]),)](
            grad, w, output, cells, height, width, rows, columns, *w.stride(), C=channels, D=d, **tile
        )
    return output


def tile_of(channels: int) -> dict[str, Any]:
    """Found by measuring the stages of UniRepLKNet-T on an H200."""
    return {"BLOCK_M": 128, "BLOCK_C": 64, "BLOCK_D": 32, "num_warps": 8, "num_stages": 3}


@triton.jit
def _taps(w, d, c, tap: tl.constexpr, stride_d, stride_c, stride_h, stride_w, C: tl.constexpr, D: tl.constexpr):
    """Of channels d of the result and c of the map, [BD, BC]."""
    places = d[:, None] * stride_d + c[None, :] * stride_c + tap // 3 * stride_h + tap % 3 * stride_w
    return tl.load(w + places, mask=(d < D)[:, None] & (c < C)[None, :], other=0.0)


@triton.jit(do_not_specialize=["n_cells"])
def input_gradient_kernel(
    grad, w, output, n_cells, height, width, rows, columns, stride_d, stride_c, stride_h, stride_w,
    C: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program takes BLOCK_M cells of the result and BLOCK_C channels of the map; those of the same cells follow each other."""
    tiles: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    cells = tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    image, row, column = cells // (rows * columns), cells // columns % rows, cells % columns
    there = cells < n_cells
    on_right, below = there & (column + 1 < columns), there & (row + 1 < rows)
    even = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)  # even row and column
    right = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)  # even row, odd column
    under = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    odd = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        places = grad + cells.to(tl.int64)[:, None] * D + d[None, :]
        inside = (d < D)[None, :]
        push = tl.load(places, mask=there[:, None] & inside, other=0.0)
        from_right = tl.load(places + D, mask=on_right[:, None] & inside, other=0.0)
        from_below = tl.load(places + columns * D, mask=below[:, None] & inside, other=0.0)
        from_both = tl.load(places + (columns + 1) * D, mask=(on_right & below)[:, None] & inside, other=0.0)
        even = tl.dot(push, _taps(w, d, c, 4, stride_d, stride_c, stride_h, stride_w, C, D), even)
        right = tl.dot(push, _taps(w, d, c, 5, stride_d, stride_c, stride_h, stride_w, C, D), right)
        right = tl.dot(from_right, _taps(w, d, c, 3, stride_d, stride_c, stride_h, stride_w, C, D), right)
        under = tl.dot(push, _taps(w, d, c, 7, stride_d, stride_c, stride_h, stride_w, C, D), under)
        under = tl.dot(from_below, _taps(w, d, c, 1, stride_d, stride_c, stride_h, stride_w, C, D), under)
        odd = tl.dot(push, _taps(w, d, c, 8, stride_d, stride_c, stride_h, stride_w, C, D), odd)
        odd = tl.dot(from_right, _taps(w, d, c, 6, stride_d, stride_c, stride_h, stride_w, C, D), odd)
        odd = tl.dot(from_below, _taps(w, d, c, 2, stride_d, stride_c, stride_h, stride_w, C, D), odd)
        odd = tl.dot(from_both, _taps(w, d, c, 0, stride_d, stride_c, stride_h, stride_w, C, D), odd)
    to = ((image.to(tl.int64) * height + 2 * row) * width + 2 * column) * C
    to = output + to[:, None] + c[None, :]
    kept = there[:, None] & (c < C)[None, :]
    has_right, has_under = kept & (2 * column + 1 < width)[:, None], (2 * row + 1 < height)[:, None]
    tl.store(to, even.to(output.dtype.element_ty), mask=kept)
    tl.store(to + C, right.to(output.dtype.element_ty), mask=has_right)
    tl.store(to + width * C, under.to(output.dtype.element_ty), mask=kept & has_under)
    tl.store(to + (width + 1) * C, odd.to(output.dtype.element_ty), mask=has_right & has_under)
