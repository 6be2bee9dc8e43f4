"""The backward pass of the feed-forward on GPUs: products by cuBLAS, and what lies between them in one pass each.

1. dG = dO W2, of the hidden width. `sums_of_products_kernel` sums gelu(H) * dG over each map, H the hidden tensor (kept
   without its bias, which every pass adds): the factor's gradient. dW2 = dO^T G, G = gelu(H) * factor, kept from the
   forward pass. Where maps have many cells for their channels (`sums_by_image`) gelu(H) is kept, and the products are
   taken image by image: dO^T gelu(H), CxN each, hold both gradients, and dG factor = dO (W2 factor), so that nothing
   passes over the hidden width.
2. `response_backward`, on BxN: what comes back through the norms.
3. `hidden_gradient_kernel`: dH = (dG factor + gelu(H) pull) gelu'(H) in the place of dG, and its sums, for b1.
4. dW1 = dH^T P, P = Y gate, and dP = dH W1. `gate_gradient_kernel` sums dP Y over each map; `gate_backward`, on BxC;
   `input_gradient_kernel`: dY = dP gate + what comes back through the mean, in the place of dP.

Where Y is a batch norm of X, the sums are those of dP and of dP (X - mean): the gate's gradient, and all that comes
back through the norm's statistics, is made of them, so that the last pass writes dX.

The hidden width is passed over nine times, or seven. Doing the sums inside the products, on the way in or out,
moves half of these bytes but took longer: docs/kernels/tried.md. Sums over parts go through buffers, so that
results are the same each time.

Shapes: B batch, C channels, H rows, W columns, N hidden channels, M = B H W.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from unipercept.kernels.feed_forward import gpu_backward_kernels as kernels
from unipercept.kernels.feed_forward.gpu import (
    channel_sums,
    columns_of,
    gate_options,
    grow,
    launch,
    on_device_of,
    power_of_two,
    rows_of,
)
from unipercept.kernels.feed_forward.reference import (
    RESPONSE_EPS,
    Gradients,
    Norm,
    Saved,
    Weights,
    sums_by_image,
    typed,
    wide,
)
from unipercept.kernels.streams import beside, join

SQUEEZE_TILE = 32  # of the gradients of squeeze-excite's weights that a program makes


def feed_forward_backward_gpu(
    grad: Tensor, y: Tensor, saved: Saved, weights: Weights, norm: Norm | None, like: Gradients
) -> Gradients:
    """The gradients, given that of the output, BxHxWxC; in the types of `like`."""
    with on_device_of(y):
        grad_hidden, *of_second, grad_gammas, grad_b1s, read = second_layer_backward(grad, saved, weights, like)
        rows = grad_hidden.view(-1, grad_hidden.shape[3])
        with beside(y):
            grad_w1 = (rows.T @ saved.gated.view(-1, y.shape[3])).to(like.w1.dtype)
            grad_gamma, grad_b1 = column_sums(grad_gammas), column_sums(grad_b1s)
        grad_y = (rows @ weights.w1).view_as(y)
        back = gate_backward(gate_gradient(grad_y, y, norm), saved, weights, norm)
        with beside(y):
            of_squeeze = squeeze_gradients(back, saved)
        of_norm = turn_to_input_gradient(grad_y, y, saved.gate, back, norm)
        join(y)
        del read
        return typed(like, (grad_y, *of_squeeze, grad_w1, grad_b1, grad_gamma, *of_second, *of_norm))


def second_layer_backward(
    grad: Tensor, saved: Saved, weights: Weights, like: Gradients
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """The gradient of the hidden tensor; those of GRN's bias, the second layer's weight and bias; parts of
    those of GRN's scale and of the first layer's bias, which are column sums of them; and what is read beside,
    to be kept until they are joined.
    """
    hidden = saved.hidden
    if sums_by_image(grad):
        images = grad.flatten(1, 2)  # BxHWxC
        with beside(grad):
            products = images.mT @ saved.grown.flatten(1, 2)  # BxCxN
            grad_gammas, pull = response_backward(
                factor_gradient(products, weights.w2)[None], saved.norm, weights.gamma
            )
        grad_grown = (images @ scaled_weight(weights.w2, saved.factor)).view_as(hidden)
        join(grad)
        grad_b1s = turn_to_hidden_gradient(grad_grown, hidden, weights.b1, saved.factor, pull, scaled=True)
        with beside(grad):
            grad_sum, grad_beta = sums_of_output(grad, like)
            grad_w2 = weight_gradient(products, saved.factor, grad_sum, weights.beta).to(like.w2.dtype)
        grown = saved.grown
    else:
        rows = grad.view(-1, grad.shape[3])
        grad_grown = (rows @ weights.w2).view_as(hidden)
        grown = saved.grown if saved.grown.numel() else grow(hidden, saved.factor, weights)
        with beside(grad):
            grad_w2 = (rows.T @ grown.view(-1, grown.shape[3])).to(like.w2.dtype)
            grad_sum, grad_beta = sums_of_output(grad, like)
        grad_gammas, pull = response_backward(
            sums_of_products(hidden, weights.b1, grad_grown), saved.norm, weights.gamma
        )
        grad_b1s = turn_to_hidden_gradient(grad_grown, hidden, weights.b1, saved.factor, pull)
    return grad_grown, grad_beta, grad_w2, grad_sum, grad_gammas, grad_b1s, grown


def scaled_weight(weight: Tensor, factor: Tensor) -> Tensor:
    """The second layer's weight, CxN, times the factor of each image, BxN: BxCxN."""
    (batch, n), channels = factor.shape, weight.shape[0]
    output, columns = weight.new_empty(batch, channels, n), columns_of(n)
    kernels.scaled_weight_kernel[(batch, math.ceil(n / columns), math.ceil(channels / 16))](
        weight, factor, output, C=channels, N=n, BLOCK_N=columns, num_warps=4
    )
    return output


def factor_gradient(products: Tensor, weight: Tensor) -> Tensor:
    """BxCxN products of output gradient and active map, summed over each map, and the second layer's weight, CxN, to
    the gradient of GRN's factor, BxN.
    """
    batch, channels, n = products.shape
    found, columns = products.new_empty(batch, n, dtype=torch.float32), columns_of(n)
    kernels.factor_gradient_kernel[(batch, math.ceil(n / columns))](
        products, weight, found, C=channels, N=n, BLOCK_N=columns, num_warps=4
    )
    return found


def weight_gradient(products: Tensor, factor: Tensor, grad_sum: Tensor | None, beta: Tensor | None) -> Tensor:
    """Of the same products the gradient of that weight, CxN float32."""
    batch, channels, n = products.shape
    found, columns = products.new_empty(channels, n, dtype=torch.float32), columns_of(n)
    kernels.weight_gradient_kernel[(channels, math.ceil(n / columns))](
        products, factor, found if grad_sum is None else grad_sum, factor if beta is None else beta, found, batch,
        C=channels, N=n, BLOCK_N=columns, HAS_BETA=beta is not None, num_warps=4,
    )  # fmt: skip
    return found


def sums_of_output(grad: Tensor, like: Gradients) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the second layer's bias, C, and of GRN's, N, float32; from that of the output, BxHxWxC."""
    if like.beta is None and like.b2 is None:
        return None, None
    total = column_sums(channel_sums(grad))
    return total, None if like.beta is None else total @ wide(like.w2)


def sums_of_products(hidden: Tensor, bias: Tensor, grad_grown: Tensor) -> Tensor:
    """PxBxN parts of the gradient of GRN's factor, of the hidden tensor before its bias and the
    gradient of GRN's output, BxHxWxN.
    """
    partial = parts_of(hidden)
    launch(kernels.sums_of_products_kernel, hidden, bias, grad_grown, partial, EXACT=hidden.dtype == torch.float32)
    return partial


def turn_to_hidden_gradient(
    grad_grown: Tensor, hidden: Tensor, bias: Tensor, factor: Tensor, pull: Tensor, scaled: bool = False
) -> Tensor:
    """The gradient of GRN's output, BxHxWxN, times its factor if `scaled`, becomes that of the hidden
    tensor; PxBxN parts of its sums.
    """
    partial = parts_of(hidden)
    launch(
        kernels.hidden_gradient_kernel, hidden, bias, grad_grown, factor, pull, partial, EXACT=hidden.dtype == torch.float32,
        SCALED=scaled,
    )  # fmt: skip
    return partial


def gate_gradient(grad: Tensor, y: Tensor, norm: Norm | None) -> Tensor:
    """PxBxC parts of the sums over each map of two BxHxWxC tensors' product; with a `norm` PxBx2xC, see the kernel."""
    partial = parts_of(y, *([] if norm is None else [2]))
    launch(
        kernels.gate_gradient_kernel, grad, y, partial if norm is None else norm.mean, partial, NORMED=norm is not None
    )
    return partial


def turn_to_input_gradient(
    grad: Tensor, y: Tensor, gate: Tensor, back: GateBackward, norm: Norm | None
) -> tuple[Tensor | None, Tensor | None]:
    """The gradient of the gated map, BxHxWxC, becomes that of the input; the gradients
    of the norm's weight and bias.
    """
    if norm is None:
        launch(kernels.input_gradient_kernel, grad, y, gate, back.shift, *(back.shift,) * 4, NORMED=False)
        return None, None
    batch, channels = gate.shape
    found = [torch.empty_like(norm.mean) for _ in range(5)]
    kernels.norm_backward_kernel[(math.ceil(channels / 32),)](
        back.norm_sums, norm.weight, norm.variance, *found, batch, y.numel() // channels, norm.eps,
        C=channels, BLOCK_C=32, num_warps=8,
    )  # fmt: skip
    launch(kernels.input_gradient_kernel, grad, y, gate, back.shift, *found[2:], norm.mean, NORMED=True)
    return found[0], found[1]


def parts_of(x: Tensor, *between: int) -> Tensor:
    """Room for what `launch` sums over parts of each map: BxHxWxN to PxBx...xN, float32."""
    size = x.shape[1] * x.shape[2]
    return x.new_empty(math.ceil(size / rows_of(size)), x.shape[0], *between, x.shape[3], dtype=torch.float32)


def response_backward(grad_factor: Tensor, norm: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """As in reference.py, from parts of the factor's gradient, PxBxN; gamma's gradient is still that of each image."""
    parts, batch, n = grad_factor.shape
    pull, grad_gammas = torch.empty_like(norm), torch.empty_like(norm)
    kernels.response_backward_kernel[(batch,)](
        grad_factor,
        norm,
        gamma,
        pull,
        grad_gammas,
        batch,
        parts,
        RESPONSE_EPS,
        N=n,
        BLOCK_N=power_of_two(n),
        num_warps=8,
    )
    return grad_gammas, pull


class GateBackward(NamedTuple):
    """Of squeeze-excite backwards, all float32; what the gradients of its weights are made of among it."""

    shift: Tensor  # BxC, what each cell gets through the mean
    up: Tensor  # BxC, the gradient before the sigmoid
    down: Tensor  # BxR, that before the rectifier
    norm_sums: Tensor  # Bx2xC, see the kernel; empty without a batch norm


def gate_backward(grad_gate: Tensor, saved: Saved, weights: Weights, norm: Norm | None) -> GateBackward:
    """From parts of the gate's gradient, as `gate_gradient` leaves them."""
    parts, batch, channels = len(grad_gate), *saved.gate.shape
    down = torch.empty_like(saved.squeezed)
    shift, up = (grad_gate.new_empty(batch, channels) for _ in range(2))
    norm_sums = grad_gate.new_empty(0 if norm is None else batch, 2, channels)
    of_norm = (shift,) * 3 if norm is None else (norm.weight, norm.bias, norm.variance)
    kernels.gate_backward_kernel[(batch,)](
        grad_gate, saved.gate, saved.squeezed, weights.down_w, weights.up_w, shift, up, down, batch, parts, saved.hidden.shape[1] * saved.hidden.shape[2], *of_norm, saved.centre, norm_sums,
        0.0 if norm is None else norm.eps,
        PARTS=1 << (parts - 1).bit_length(), NORMED=norm is not None, **gate_options(weights.down_w),
    )  # fmt: skip
    return GateBackward(shift, up, down, norm_sums)


def squeeze_gradients(back: GateBackward, saved: Saved) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Those of squeeze-excite's weights and biases, RxC, R, CxR and C, float32."""
    (batch, channels), squeezed = back.up.shape, back.down.shape[1]
    found = (
        back.up.new_empty(squeezed, channels), back.up.new_empty(squeezed), back.up.new_empty(channels, squeezed),
        back.up.new_empty(channels),
    )  # fmt: skip
    tiles = math.ceil(channels / SQUEEZE_TILE) * math.ceil(squeezed / SQUEEZE_TILE)
    kernels.squeeze_gradients_kernel[(tiles, 2)](
        back.down,
        saved.mean,
        back.up,
        saved.squeezed,
        *found,
        batch,
        C=channels,
        R=squeezed,
        BLOCK=SQUEEZE_TILE,
        num_warps=4,
    )
    return found


def column_sums(x: Tensor) -> Tensor:
    """Sums over all but the last dimension of a float32 tensor that is wide rather than long."""
    n = x.shape[-1]
    output = x.new_empty(n)
    kernels.column_sums_kernel[(math.ceil(n / 32),)](x, output, x.numel() // n, N=n, num_warps=4)
    return output
