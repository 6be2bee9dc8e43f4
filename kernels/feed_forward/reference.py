"""The reference in plain PyTorch, forward and backward.

Shapes: B batch, C channels, H rows, W columns, R squeezed channels, N hidden channels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unipercept.kernels.batch_norm_sum.reference import batch_norm_sum_backward_reference, batch_norm_sum_reference

RESPONSE_EPS = 1e-6


class Weights(NamedTuple):
    """The parameters of one feed-forward."""

    down_w: Tensor  # RxC
    down_b: Tensor  # R
    up_w: Tensor  # CxR
    up_b: Tensor  # C
    w1: Tensor  # NxC
    b1: Tensor  # N
    gamma: Tensor  # N
    beta: Tensor | None  # N
    w2: Tensor  # CxN
    b2: Tensor | None  # C


class Norm(NamedTuple):
    """A batch norm of the input, with the statistics of the batch."""

    weight: Tensor  # C
    bias: Tensor  # C
    mean: Tensor  # C, wide
    variance: Tensor  # C, wide, biased
    eps: float


class Saved(NamedTuple):
    """Tensors that the backward pass needs besides input and weights.

    The wide ones are float32, or float64 where the input is.
    """

    mean: Tensor  # BxC, wide; of the map that is fed forward
    gate: Tensor  # BxC
    squeezed: Tensor  # BxR, wide; after squeeze-excite's rectifier
    hidden: Tensor  # BxHxWxN, before its bias and the GELU
    factor: Tensor  # BxN, what GRN multiplies with
    norm: Tensor  # BxN, wide
    gated: Tensor  # BxHxWxC, the map times the gate
    centre: Tensor  # BxC, wide; with a batch norm the mean of each input map less that of the batch, else empty
    grown: Tensor  # BxHxWxN where `keeps_grown`, else empty: after GRN, or where `sums_by_image` after the GELU


class Gradients(NamedTuple):
    """Gradients of the input and of each weight; None if there is no such weight."""

    y: Tensor
    down_w: Tensor
    down_b: Tensor
    up_w: Tensor
    up_b: Tensor
    w1: Tensor
    b1: Tensor
    gamma: Tensor
    beta: Tensor | None
    w2: Tensor
    b2: Tensor | None
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None


def keeps_grown(y: Tensor) -> bool:
    """Whether what the second layer saw is kept for the backward pass: a hidden tensor more in
    memory, one less to make anew.
    """
    return y.dtype in (torch.bfloat16, torch.float16)


def sums_by_image(y: Tensor) -> bool:
    """Whether, for a BxHxWxC input, products of maps are summed image by image, CxN for each: they are much
    smaller than the maps then, and hold all that GRN's factor and the second layer's weight get. Else the
    maps are passed over once more.
    """
    return keeps_grown(y) and y.shape[1] * y.shape[2] >= 4 * y.shape[3]


def wide(x: Tensor) -> Tensor:
    """At least float32: sums over a map are taken in it."""
    return x if x.dtype == torch.float64 else x.float()


def feed_forward_reference(y: Tensor, sums: Tensor | None, weights: Weights) -> tuple[Tensor, Saved]:
    """BxHxWxC to BxHxWxC, without the residual."""
    size = y.shape[1] * y.shape[2]
    mean = wide(y).mean(dim=(1, 2)) if sums is None else wide(sums) / size
    squeezed = F.relu(F.linear(mean.to(y.dtype), weights.down_w, weights.down_b))
    gate = F.linear(squeezed, weights.up_w, weights.up_b).sigmoid()
    gated = y * gate[:, None, None]
    hidden = F.linear(gated, weights.w1)
    active = F.gelu(hidden + weights.b1)
    norm = torch.linalg.vector_norm(wide(active), dim=(1, 2))
    response = (norm / (norm.mean(dim=-1, keepdim=True) + RESPONSE_EPS)).to(y.dtype)
    factor = weights.gamma * response + 1
    grown = factor[:, None, None] * active
    if weights.beta is not None:
        grown = grown + weights.beta
    kept = active if sums_by_image(y) else grown if keeps_grown(y) else y.new_empty(0)
    saved = Saved(mean, gate, wide(squeezed), hidden, factor, norm, gated, mean.new_empty(0), kept)
    return F.linear(grown, weights.w2, weights.b2), saved


def normed_feed_forward_reference(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, weights: Weights
) -> tuple[Tensor, Saved, Tensor, Tensor]:
    """The same of the batch norm of `x`, with the weight and bias of the norm; and its mean and variance, C each."""
    y, mean, variance = batch_norm_sum_reference(
        [x.permute(0, 3, 1, 2)], weight[None], bias[None], None, None, None, eps
    )
    output, saved = feed_forward_reference(y.permute(0, 2, 3, 1), None, weights)
    saved = saved._replace(centre=wide(x).mean(dim=(1, 2)) - mean)
    return output, saved, mean[0], variance[0]


def feed_forward_backward_reference(
    grad: Tensor, y: Tensor, saved: Saved, weights: Weights, norm: Norm | None, like: Gradients
) -> Gradients:
    """The gradients by formula, in the wide type throughout, at the end in the types of `like`: the
    input and the weights as given.
    """
    x = y = wide(y)
    if norm is not None:
        y = (y - norm.mean) * (norm.variance + norm.eps).rsqrt() * wide(norm.weight) + wide(norm.bias)
    grad, gate, hidden = wide(grad), wide(saved.gate)[:, None, None], wide(saved.hidden) + wide(weights.b1)
    w1, w2 = wide(weights.w1), wide(weights.w2)
    active, slope = gelu_and_slope(hidden)
    factor = response_factor(saved.norm, wide(weights.gamma))[:, None, None]
    grad_grown = grad @ w2
    grad_gamma, pull = response_backward((grad_grown * active).sum(dim=(1, 2)), saved.norm, wide(weights.gamma))
    grad_hidden = (grad_grown * factor + active * pull[:, None, None]) * slope
    grad_gated = grad_hidden @ w1
    grad_mean, *grad_squeeze = gate_backward((grad_gated * y).sum(dim=(1, 2)), saved, weights)
    grad_y = grad_gated * gate + (grad_mean / (y.shape[1] * y.shape[2]))[:, None, None]
    grad_w1 = torch.einsum("bhwn,bhwc->nc", grad_hidden, y * gate)
    grown = factor * active if weights.beta is None else factor * active + wide(weights.beta)
    grad_w2 = torch.einsum("bhwc,bhwn->cn", grad, grown)
    of_norm: tuple[Tensor | None, Tensor | None] = None, None
    if norm is not None:
        (grad_y,), of_weight, of_bias, _ = batch_norm_sum_backward_reference(
            grad_y.permute(0, 3, 1, 2), [x.permute(0, 3, 1, 2)], norm.weight[None], norm.bias[None], norm.mean[None],
            norm.variance[None], None, None, norm.eps,
        )  # fmt: skip
        grad_y, of_norm = grad_y.permute(0, 2, 3, 1), (of_weight[0], of_bias)
    grad_sum = grad.sum(dim=(0, 1, 2))  # GRN's bias passes the second layer as a constant: its gradient needs no more
    grad_beta = None if like.beta is None else grad_sum @ wide(like.w2)
    grad_b1 = grad_hidden.sum(dim=(0, 1, 2))
    return typed(like, (grad_y, *grad_squeeze, grad_w1, grad_b1, grad_gamma, grad_beta, grad_w2, grad_sum, *of_norm))


def gelu_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    """The exact GELU and its derivative."""
    below = 0.5 * (1 + torch.erf(x * 0.5**0.5))  # the normal distribution function
    return x * below, below + x * torch.exp(-0.5 * x * x) * (2 * torch.pi) ** -0.5


def response_factor(norm: Tensor, gamma: Tensor) -> Tensor:
    """BxN norms of the maps to what GRN multiplies them with."""
    return gamma * norm / (norm.mean(dim=-1, keepdim=True) + RESPONSE_EPS) + 1


def response_backward(product: Tensor, norm: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Through the statistics of GRN.

    With n the norms, D = mean(n) + eps and g = n / D: dL/dn_i = dg_i / D - sum_j(dg_j n_j)
    / (N D^2), and dn/dA = A / n.

    Args:
        product: BxN, the sum over each map of A and the gradient of GRN's output: the gradient of the factor.
        norm: BxN.
        gamma: N.

    Returns:
        The gradient of gamma, N; and BxN, that which times A is the part of A's gradient that comes through the norms
        (0 where a map is 0 throughout, as in `torch.linalg.vector_norm`).
    """
    scale = norm.mean(dim=-1, keepdim=True) + RESPONSE_EPS
    grad_gamma = (product * norm / scale).sum(dim=0)
    grad_response = product * gamma
    shared = (grad_response * norm).mean(dim=-1, keepdim=True) / scale
    grad_norm = (grad_response - shared) / scale
    return grad_gamma, torch.where(norm > 0, grad_norm / norm, 0.0)


def gate_backward(grad_gate: Tensor, saved: Saved, weights: Weights) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """BxC gradient of the gate to those of the mean, BxC, and of the four squeeze-excite parameters."""
    gate, mean = wide(saved.gate), saved.mean
    squeezed = F.relu(F.linear(mean, wide(weights.down_w), wide(weights.down_b)))
    grad_up = grad_gate * gate * (1 - gate)
    grad_down = (grad_up @ wide(weights.up_w)) * (squeezed > 0)
    grad_mean = grad_down @ wide(weights.down_w)
    return grad_mean, grad_down.T @ mean, grad_down.sum(dim=0), grad_up.T @ squeezed, grad_up.sum(dim=0)


def typed(like: Gradients, found: Sequence[Tensor | None]) -> Gradients:
    """The gradients in the types of `like`; None where that has None."""
    cast = (None if x is None or g is None else g.to(x.dtype) for x, g in zip(like, found, strict=True))
    return Gradients(*cast)  # type: ignore[arg-type]
