"""A stem's first convolution with its norm and GELU in Triton: a product of gathered cells,
whole channels in each program.

Shapes: M cells of the results, BM of a program's, D channels of the result, K = 9 C elements that a cell sees.
"""
# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from unipercept.kernels.gpu_gelu import gelu
from unipercept.kernels.image_conv2d.gpu import seen, taps

BLOCK_CELLS = 128


def conv_norm2d_gpu(
    x: Tensor, w: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, eps: float, has_gelu: bool
) -> Tensor:
    """Channels-last BxCxHxW to BxDxH'xW', H' and W' half as many, rounded up."""
    batch, channels, height, width = x.shape
    d, rows, columns = w.shape[0], (height + 1) // 2, (width + 1) // 2
    output = torch.empty((batch, d, rows, columns), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    cells = batch * rows * columns
    main = 1 << d.bit_length() - 1
    tail = 0 if d == main else max(8, triton.next_power_of_2(d - main))
    with torch.cuda.device_of(x):
        conv_norm_kernel[(triton.cdiv(cells, BLOCK_CELLS),)](
            x, w, (bias if shift is None else shift).contiguous(), weight.contiguous(), bias.contiguous(), output,
            cells, height, width, rows, columns, eps, *w.stride(), C=channels, D=d, SHIFTED=shift is not None, GELU=has_gelu, BLOCK_M=BLOCK_CELLS, BLOCK_D=main,
            TAIL=tail, BLOCK_K=max(16, triton.next_power_of_2(9 * channels)), num_warps=4,
        )  # fmt: skip
    return output


@triton.jit
def _shifted(value, shift, columns, D: tl.constexpr, SHIFTED: tl.constexpr):
    if SHIFTED:
        value += tl.load(shift + columns, mask=columns < D, other=0.0).to(tl.float32)[None, :]
    return value


@triton.jit
def _normed(
    centred, reciprocal, weight, bias, output, cells, n_cells, columns, D: tl.constexpr, GELU: tl.constexpr
):  # fmt: skip
    w = tl.load(weight + columns, mask=columns < D, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, mask=columns < D, other=0.0).to(tl.float32)
    result = centred * reciprocal[:, None] * w[None, :] + b[None, :]
    if GELU:
        result = gelu(result, False)
    places = output + cells.to(tl.int64)[:, None] * D + columns[None, :]
    tl.store(places, result.to(output.dtype.element_ty), mask=(cells < n_cells)[:, None] & (columns < D)[None, :])


@triton.jit(do_not_specialize=["n_cells"])
def conv_norm_kernel(
    x, w, shift, weight, bias, output, n_cells, height, width, rows, columns, eps,
    stride_d, stride_c, stride_h, stride_w,
    C: tl.constexpr, D: tl.constexpr, SHIFTED: tl.constexpr, GELU: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr, TAIL: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program takes BLOCK_M cells.

    The channels are BLOCK_D and then TAIL more: 32 + 8 waste nothing where one power of two would waste a third.
    """
    cells = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    left = seen(x, cells, n_cells, k, height, width, rows, columns, C)  # [BM, K]
    main = tl.arange(0, BLOCK_D)
    value = tl.dot(left, taps(w, main, k, stride_d, stride_c, stride_h, stride_w, C, D))
    value = _shifted(value, shift, main, D, SHIFTED)
    total = tl.sum(value, axis=1)
    if TAIL > 0:
        rest = BLOCK_D + tl.arange(0, TAIL)
        tail = tl.dot(left, taps(w, rest, k, stride_d, stride_c, stride_h, stride_w, C, D))
        tail = _shifted(tail, shift, rest, D, SHIFTED)
        total += tl.sum(tail, axis=1)  # what lies beyond D is 0
        tail = tl.where((rest < D)[None, :], tail - (total / D)[:, None], 0.0)
    value -= (total / D)[:, None]
    squares = tl.sum(value * value, axis=1)
    if TAIL > 0:
        squares += tl.sum(tail * tail, axis=1)
    reciprocal = tl.rsqrt(squares / D + eps)
    _normed(value, reciprocal, weight, bias, output, cells, n_cells, main, D, GELU)
    if TAIL > 0:
        _normed(tail, reciprocal, weight, bias, output, cells, n_cells, rest, D, GELU)
