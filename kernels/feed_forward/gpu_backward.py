"""The backward pass of the feed-forward on GPUs: four products by cuBLAS, and what lies between them in one pass each.

1. dG = dO W2, of the hidden width. `grown_kernel` reads it and the hidden tensor H: writes G = gelu(H) * factor, and sums
   gelu(H) * dG over each map, the factor's gradient. dW2 = dO^T G.
2. `response_backward`, on BxN: what comes back through the norms.
3. `hidden_gradient_kernel`: dH = (dG factor + gelu(H) pull) gelu'(H) in the place of dG, and its sums, for b1.
4. dW1 = dH^T (Y gate) and dP = dH W1. `gate_gradient_kernel` sums dP Y over each map; `gate_backward`, on BxC;
   `input_gradient_kernel`: dY = dP gate + what comes back through the mean, in the place of dP.

The hidden width is passed over ten times. Doing the sums inside the products, on the way in or out, moves half of these bytes
but took longer: docs/kernels.md. Sums over parts go through buffers, so that results are the same each time.

Shapes: B batch, C channels, H rows, W columns, N hidden channels, M = B H W.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from unipercept.kernels.feed_forward import gpu_kernels as kernels
from unipercept.kernels.feed_forward.gpu import (
    PASS_ROWS,
    channel_sums,
    column_sums,
    columns_of,
    gate_options,
    on_device_of,
    power_of_two,
    rows_of,
    scaled,
)
from unipercept.kernels.feed_forward.reference import RESPONSE_EPS, Gradients, Saved, Weights, finish
from unipercept.kernels.streams import beside, join


def feed_forward_backward_gpu(grad: Tensor, y: Tensor, saved: Saved, weights: Weights, like: Gradients) -> Gradients:
    """The gradients, given that of the output, BxHxWxC; in the types of `like`."""
    with on_device_of(y):
        rows, hidden = grad.view(-1, grad.shape[3]), saved.hidden
        grad_grown = (rows @ weights.w2).view_as(hidden)
        grown, grad_factor = grow(hidden, grad_grown, saved.factor)
        with beside(y):
            grad_w2 = rows.T @ grown.view(-1, grown.shape[3])
            grad_sum = column_sums(channel_sums(grad))
        grad_gamma, pull = response_backward(grad_factor, saved.norm, weights.gamma)
        grad_b1 = turn_to_hidden_gradient(grad_grown, hidden, saved.factor, pull)
        grad_hidden = grad_grown.view(-1, hidden.shape[3])
        gated = scaled(y, saved.gate).view(-1, y.shape[3])
        with beside(y):
            grad_w1 = grad_hidden.T @ gated
        grad_y = (grad_hidden @ weights.w1).view_as(y)
        shift, *grad_squeeze = gate_backward(gate_gradient(grad_y, y), saved, weights)
        launch(kernels.input_gradient_kernel, grad_y, saved.gate, shift)
        join(y)
        return finish(
            like,
            grad_sum,
            grad_y,
            grad_squeeze,
            grad_w1.float(),
            grad_b1,
            grad_gamma,
            grad_w2.float(),
        )


def grow(hidden: Tensor, grad_grown: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """BxHxWxN hidden tensor before its GELU, gradient of GRN's output, and BxN factor, to GRN's output and PxBxN parts of the
    factor's gradient."""
    grown, partial = torch.empty_like(hidden), parts_of(hidden)
    launch(kernels.grown_kernel, hidden, grad_grown, factor, grown, partial, EXACT=hidden.dtype == torch.float32)
    return grown, partial


def turn_to_hidden_gradient(grad_grown: Tensor, hidden: Tensor, factor: Tensor, pull: Tensor) -> Tensor:
    """The gradient of GRN's output, BxHxWxN, becomes that of the hidden tensor; its sum over all rows, N float32."""
    partial = parts_of(hidden)
    launch(
        kernels.hidden_gradient_kernel, hidden, grad_grown, factor, pull, partial, EXACT=hidden.dtype == torch.float32
    )
    return column_sums(partial)


def gate_gradient(grad: Tensor, y: Tensor) -> Tensor:
    """PxBxC parts of the sums over each map of two BxHxWxC tensors' product."""
    partial = parts_of(y)
    launch(kernels.gate_gradient_kernel, grad, y, partial)
    return partial


def parts_of(x: Tensor) -> Tensor:
    """Room for what `launch` sums over parts of each map: BxHxWxN to PxBxN, float32."""
    size = x.shape[1] * x.shape[2]
    return x.new_empty(math.ceil(size / options(x)["ROWS"]), x.shape[0], x.shape[3], dtype=torch.float32)


def launch(kernel: Any, first: Tensor, *others: Tensor, **constants: Any) -> None:
    """Run a kernel that passes over BxHxWxN `first`, a program for some rows and columns of an image."""
    batch, size, n = first.shape[0], first.shape[1] * first.shape[2], first.shape[3]
    chosen = options(first)
    grid = (math.ceil(size / chosen["ROWS"]), math.ceil(n / chosen["BLOCK_N"]), batch)
    kernel[grid](first, *others, size, N=n, **chosen, **constants, num_warps=4)


def options(x: Tensor) -> dict[str, int]:
    """How a program passes over BxHxWxN `x`."""
    size = x.shape[1] * x.shape[2]
    return {"ROWS": rows_of(size), "BLOCK_ROWS": PASS_ROWS, "BLOCK_N": columns_of(x.shape[3])}


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
    return column_sums(grad_gamma), pull


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
    return shift, grad_down.T @ saved.mean, column_sums(grad_down), grad_up.T @ squeezed, column_sums(grad_up)
