"""The backward pass of the feed-forward on GPUs, in five passes over tensors of the hidden width (and two forwards).

1. `weight_gradient` reads the hidden tensor H and computes, for each image, T = gelu(H)^T dO, NxC. The factor's gradient is
   the sum over C of T * W2, and dW2 the sum over images of T scaled by the factor: neither GRN's output nor its gradient
   is ever stored.
2. `response_backward`, on BxN: what comes back through the norms.
3. `hidden_gradient` reads H and writes dH = ((dO W2) factor + gelu(H) pull) gelu'(H). (two passes)
4. `weight_gradient` again, with dH^T Y: the gate's gradient from W1, and dW1. (one pass)
5. `gate_backward`, on BxC, then `input_gradient`: dY = (dH W1) gate + what comes back through the mean. (one pass)

Sums over images and tiles go through buffers of partial sums, so that results are the same each time.

Shapes: B batch, C channels, H rows, W columns, N hidden channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unipercept.kernels.feed_forward import gpu_kernels as kernels
from unipercept.kernels.feed_forward.gpu import gate_options, on_device_of, options, power_of_two
from unipercept.kernels.feed_forward.gpu_tiles import Product, Tile, grid, tile_for, tiles_of
from unipercept.kernels.feed_forward.reference import (
    RESPONSE_EPS,
    Gradients,
    Saved,
    Weights,
    finish,
)

SPLIT_PROGRAMS = 264  # two for each multiprocessor of an H200


def feed_forward_backward_gpu(grad: Tensor, y: Tensor, saved: Saved, weights: Weights) -> Gradients:
    """The gradients, given that of the output, BxHxWxC."""
    with on_device_of(y):
        turned_w2, grad_factor = weight_gradient(saved.hidden, grad, saved.factor, weights.w2, scale_wide=True)
        grad_gamma, pull = response_backward(grad_factor, saved.norm, weights.gamma)
        grad_hidden, grad_b1 = hidden_gradient(grad, weights.w2, saved.hidden, saved.factor, pull)
        grad_w1, grad_gate = weight_gradient(grad_hidden, y, saved.gate, weights.w1, scale_wide=False)
        shift, *grad_squeeze = gate_backward(grad_gate, saved, weights)
        grad_y = input_gradient(grad_hidden, weights.w1, saved.gate, shift, y)
        return finish(
            Gradients(y, *weights), grad, grad_y, grad_squeeze, grad_w1, grad_b1, grad_gamma, turned_w2.T.contiguous()
        )


def response_backward(grad_factor: Tensor, norm: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """As in reference.py, from parts of the factor's gradient, PxBxN."""
    parts, batch, n = grad_factor.shape
    pull, grad_gamma = torch.empty_like(norm), torch.empty_like(norm)
    kernels.response_backward_kernel[(batch,)](
        grad_factor,
        norm,
        gamma,
        pull,
        grad_gamma,
        batch,
        parts,
        RESPONSE_EPS,
        N=n,
        BLOCK_N=power_of_two(n),
        num_warps=8,
    )
    return grad_gamma.sum(dim=0), pull


def gate_backward(grad_gate: Tensor, saved: Saved, weights: Weights) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As in reference.py, from parts of the gate's gradient, PxBxC; the first result is the mean's divided by H W."""
    parts, batch, channels = grad_gate.shape
    squeezed, grad_down = (grad_gate.new_empty(batch, weights.down_b.numel()) for _ in range(2))
    shift, grad_up = (grad_gate.new_empty(batch, channels) for _ in range(2))
    kernels.gate_backward_kernel[(batch,)](
        grad_gate, saved.gate, saved.mean, weights.down_w, weights.down_b, weights.up_w, shift, grad_up, grad_down, squeezed,
        batch, parts, 1 / (saved.hidden.shape[1] * saved.hidden.shape[2]),
        PARTS=1 << (parts - 1).bit_length(), **gate_options(weights.down_w),
    )  # fmt: skip
    return shift, grad_down.T @ saved.mean, grad_down.sum(dim=0), grad_up.T @ squeezed, grad_up.sum(dim=0)


def weight_gradient(
    wide: Tensor, narrow: Tensor, scale: Tensor, weight: Tensor, scale_wide: bool, tile: Tile | None = None
) -> tuple[Tensor, Tensor]:
    """NxC gradient of a weight (turned round for the second layer), and parts of that of its input's scale, PxBxN
    (`scale_wide`) or PxBxC, which remain to be summed. Both are float32.

    Args:
        wide: BxHxWxN: the hidden tensor before its GELU (`scale_wide`), or its gradient.
        narrow: BxHxWxC: the gradient of the output, or the input.
        scale: BxN (`scale_wide`) or BxC.
        weight: CxN (`scale_wide`) or NxC.
    """
    batch, n, c = wide.shape[0], wide.shape[3], narrow.shape[3]
    size = wide.shape[1] * wide.shape[2]
    kernel = "second weight" if scale_wide else "first weight"
    tile = tile or tile_for(Product(kernel, c, n, size, wide.dtype), wide.device)
    n_tiles, c_tiles = math.ceil(n / tile.rows), math.ceil(c / (tile.columns + tile.tail))
    per_split = math.ceil(batch / max(1, min(batch, SPLIT_PROGRAMS // (n_tiles * c_tiles))))
    splits = math.ceil(batch / per_split)
    partial = wide.new_empty(splits, n, c, dtype=torch.float32)
    others = (c_tiles, batch, n) if scale_wide else (n_tiles, batch, c)
    scale_partial = wide.new_empty(others, dtype=torch.float32)
    kernels.weight_gradient_kernel[(n_tiles, c_tiles, splits)](
        wide, narrow, scale, weight, partial, scale_partial, size, batch, per_split,
        H=n, C=c, STEP_H=1 if scale_wide else c, STEP_C=n if scale_wide else 1, SCALE_H=scale_wide,
        BLOCK_H=tile.rows, BLOCK_C=tile.columns, TAIL=tile.tail, BLOCK_K=tile.depth,
        PRECISION="ieee" if wide.dtype == torch.float32 else "tf32", num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return partial.sum(dim=0), scale_partial


def hidden_gradient(
    grad: Tensor, weight: Tensor, hidden: Tensor, factor: Tensor, pull: Tensor, tile: Tile | None = None
) -> tuple[Tensor, Tensor]:
    """BxHxWxN gradient of the hidden tensor before its GELU, and its sum over all rows, N float32."""
    batch, size, n, k = hidden.shape[0], hidden.shape[1] * hidden.shape[2], hidden.shape[3], grad.shape[3]
    tile = tile or tile_for(Product("hidden gradient", n, k, size, hidden.dtype), hidden.device)
    tiles_m = tiles_of(tile, batch, size)
    output, partial = torch.empty_like(hidden), hidden.new_empty(tiles_m, n, dtype=torch.float32)
    kernels.hidden_gradient_kernel[grid(tile, tiles_m, n)](
        grad, weight, hidden, factor, pull, output, partial, size, batch * size, tiles_m,
        K=k, N=n, **options(tile, size, hidden.dtype),
    )  # fmt: skip
    return output, partial.sum(dim=0)


def input_gradient(
    grad: Tensor, weight: Tensor, gate: Tensor, shift: Tensor, y: Tensor, tile: Tile | None = None
) -> Tensor:
    """BxHxWxC gradient of the input from that of the hidden tensor, BxHxWxN."""
    batch, size, n, k = y.shape[0], y.shape[1] * y.shape[2], y.shape[3], grad.shape[3]
    tile = tile or tile_for(Product("input gradient", n, k, size, y.dtype), y.device)
    tiles_m, output = tiles_of(tile, batch, size), torch.empty_like(y)
    kernels.input_gradient_kernel[grid(tile, tiles_m, n)](
        grad, weight, gate, shift, output, size, batch * size, tiles_m, K=k, N=n, **options(tile, size, y.dtype)
    )
    return output
