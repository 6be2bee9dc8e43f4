"""Mean over cells and layer norm in Triton: a program an image, whole channels in each.

Shapes: CELLS of an image, C channels, BLOCK_M cells at a time, BLOCK_C channels, a power of two.
"""
# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_CELLS = 16


def pooled_norm_gpu(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Channels-last BxCxHxW to BxC."""
    batch, channels, height, width = x.shape
    output = x.new_empty(batch, channels)
    with torch.cuda.device_of(x):
        pooled_norm_kernel[(batch,)](
            x, weight.contiguous(), bias.contiguous(), output, height * width, eps, C=channels, BLOCK_M=BLOCK_CELLS,
            BLOCK_C=triton.next_power_of_2(channels), num_warps=16,
        )  # fmt: skip
    return output


@triton.jit
def pooled_norm_kernel(
    x, weight, bias, output, n_cells, eps, C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr
):
    image = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_C)
    inside = columns < C
    total = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for first in range(0, n_cells, BLOCK_M):
        cells = first + tl.arange(0, BLOCK_M)
        seen = (cells < n_cells)[:, None] & inside[None, :]
        total += tl.load(x + (image * n_cells + cells)[:, None] * C + columns[None, :], mask=seen, other=0.0).to(
            tl.float32
        )
    pooled = tl.sum(total, axis=0) / n_cells  # what lies beyond C is 0
    mean = tl.sum(pooled, axis=0) / C
    centred = tl.where(inside, pooled - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=0) / C + eps)
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + image * C + columns, (centred * scale * w + b).to(output.dtype.element_ty), mask=inside)
