"""Batch norms of several maps, summed, in training: as after a block's convolutions and after its feed-forward.

    out = residual + scale * gain * sum over t of (x_t - mean_t) / sqrt(variance_t + eps) * weight_t + bias_t

with mean and (biased) variance of each channel over batch, rows and columns. All terms are read once for
their statistics and once for the sum; apart, each norm would also write its own result, and each
addition read and write again.

Source: Ioffe and Szegedy (2015); `scale` is stochastic depth's, Huang et al. (2016), `gain` layer
scale's, Touvron et al. (2021).

Shapes: B batch, C channels, H rows, W columns, T terms.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from unipercept.errors import InputError
from unipercept.kernels.batch_norm_sum.reference import batch_norm_sum_backward_reference, batch_norm_sum_reference
from unipercept.kernels.dispatch import check_no_tangent, choose, is_forced, why_no_triton

GPU_TYPES = (torch.bfloat16, torch.float16, torch.float32)
MOST_TERMS = 6  # that the GPU kernels take: those of a dilated block


def batch_norm_sum(
    xs: Sequence[Tensor],
    weights: Tensor,
    biases: Tensor,
    *,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    gain: Tensor | None = None,
    eps: float = 1e-5,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`out` of the module's docstring.

    Args:
        xs: T maps BxCxHxW, of one type.
        weights, biases: TxC, float32 (float64 where the maps are).
        residual: BxCxHxW of any floating type, or None.
        scale: B factors of the sum of each sample, or None.
        gain: C factors of the sum, in the type of the weights, or None.
        eps: added to the variance.
        implementation: "reference" or "gpu" to force one; it runs or raises.

    Returns:
        BxCxHxW, in the type and memory format of `residual`, else of the maps; means and biased variances, TxC,
        for running statistics, without gradients.

    Raises:
        InputError: shapes or devices that do not fit, a single value a channel, or an
            implementation that cannot run here.
    """
    check_no_tangent("batch_norm_sum", xs[0])
    first = xs[0]
    if first.ndim != 4 or any(x.shape != first.shape or x.dtype != first.dtype or x.device != first.device for x in xs):
        shapes = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in xs)
        raise InputError(f"batch_norm_sum needs maps BxCxHxW of one shape, type and device, got {shapes}")
    if weights.shape != biases.shape or tuple(weights.shape) != (len(xs), first.shape[1]):
        raise InputError(
            f"batch_norm_sum needs weights and biases {(len(xs), first.shape[1])}, got {tuple(weights.shape)} and {tuple(biases.shape)}"
        )
    if first.numel() <= first.shape[1]:
        raise InputError(f"batch statistics need more than one value a channel, got maps {tuple(first.shape)}")
    if residual is not None and residual.shape != first.shape:
        raise InputError(f"batch_norm_sum needs a residual {tuple(first.shape)}, got {tuple(residual.shape)}")
    if scale is not None and tuple(scale.shape) != first.shape[:1]:
        raise InputError(f"batch_norm_sum needs a scale of {first.shape[0]} values, got {tuple(scale.shape)}")
    if gain is not None and tuple(gain.shape) != tuple(first.shape[1:2]):
        raise InputError(f"batch_norm_sum needs a gain of {first.shape[1]} values, got {tuple(gain.shape)}")
    for name, other in (
        ("weights", weights),
        ("biases", biases),
        ("residual", residual),
        ("scale", scale),
        ("gain", gain),
    ):
        if other is not None and other.device != first.device:
            raise InputError(f"batch_norm_sum needs {name} on {first.device}, got {other.device}")
    output: tuple[Tensor, Tensor, Tensor] = _operator(
        list(xs), weights, biases, residual, scale, gain, eps, implementation or ""
    )
    return output


def _chosen(xs: Sequence[Tensor], asked: str) -> str:
    def why_not(name: str) -> str | None:
        if name != "gpu":
            return None
        if len(xs) > MOST_TERMS:
            return f"they take up to {MOST_TERMS} terms, got {len(xs)}"
        if xs[0].dtype == torch.float32 and not is_forced(asked):
            return "float32 was not measured"
        return why_no_triton(xs[0], GPU_TYPES)

    return choose("batch_norm_sum", ("reference", "gpu"), xs[0], asked, why_not)


def _format(x: Tensor) -> torch.memory_format:
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@torch.library.custom_op("unipercept::batch_norm_sum", mutates_args=())
def _operator(
    xs: list[Tensor],
    weights: Tensor,
    biases: Tensor,
    residual: Tensor | None,
    scale: Tensor | None,
    gain: Tensor | None,
    eps: float,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if _chosen(xs, implementation) == "gpu":
        # On first use: a CPU needs no Triton.
        from unipercept.kernels.batch_norm_sum.gpu import batch_norm_sum_gpu as forward
    else:
        forward = batch_norm_sum_reference
    output, means, variances = forward(xs, weights, biases, residual, scale, gain, eps)
    like = xs[0] if residual is None else residual
    return output.to(like.dtype).contiguous(memory_format=_format(like)), means, variances


@_operator.register_fake
def _(xs, weights, biases, residual, scale, gain, eps, implementation):  # type: ignore[no-untyped-def]
    like = xs[0] if residual is None else residual
    output = torch.empty_like(like, memory_format=_format(like))
    statistics = xs[0].new_empty(weights.shape, dtype=_wide(xs[0]))
    return output, statistics, torch.empty_like(statistics)


@torch.library.custom_op("unipercept::batch_norm_sum_backward", mutates_args=())
def _backward_operator(
    grad: Tensor,
    xs: list[Tensor],
    weights: Tensor,
    biases: Tensor,
    means: Tensor,
    variances: Tensor,
    scale: Tensor | None,
    gain: Tensor | None,
    eps: float,
    implementation: str,
) -> list[Tensor]:
    """Gradients of the terms; of the weights, TxC, of each bias, C, and of the gain, C, empty without one."""
    if _chosen(xs, implementation) == "gpu":
        from unipercept.kernels.batch_norm_sum.gpu import batch_norm_sum_backward_gpu as backward
    else:
        backward = batch_norm_sum_backward_reference
    of_xs, *of_others = backward(grad, xs, weights, biases, means, variances, scale, gain, eps)
    return [*(g.contiguous(memory_format=_format(x)) for g, x in zip(of_xs, xs, strict=True)), *of_others]


@_backward_operator.register_fake
def _(grad, xs, weights, biases, means, variances, scale, gain, eps, implementation):  # type: ignore[no-untyped-def]
    return [
        *(torch.empty_like(x, memory_format=_format(x)) for x in xs),
        torch.empty_like(means),
        means.new_empty(means.shape[1]),
        means.new_empty(0 if gain is None else means.shape[1]),
    ]


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    xs, weights, biases, _, scale, gain, ctx.eps, ctx.implementation = inputs
    ctx.format = _format(output[0])
    ctx.set_materialize_grads(False)  # else zeros would be made for the statistics
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*xs, weights, biases, scale, gain, *output[1:])


def _backward(ctx, grad: Tensor | None, *_):  # type: ignore[no-untyped-def]
    *xs, weights, biases, scale, gain, means, variances = ctx.saved_tensors
    if grad is None:
        return [None] * len(xs), *(None,) * 7
    grad = grad.contiguous(memory_format=ctx.format)  # here once, else every preceding block meets the foreign layout
    *of_xs, of_weights, of_bias, of_gain = _backward_operator(
        grad, xs, weights, biases, means, variances, scale, gain, ctx.eps, ctx.implementation
    )
    of_biases = of_bias.to(weights.dtype).expand_as(weights).contiguous()  # each its own: they may be scaled in place
    of_residual = grad if ctx.needs_input_grad[3] else None
    of_gain = None if gain is None else of_gain.to(gain.dtype)
    return of_xs, of_weights.to(weights.dtype), of_biases, of_residual, None, of_gain, None, None


_operator.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op(
    "unipercept::update_running_statistics", mutates_args=("running_means", "running_variances", "counts")
)
def update_running_statistics(
    running_means: list[Tensor], running_variances: list[Tensor], counts: list[Tensor], means: Tensor, variances: Tensor,
    momentum: float, n_values: int,
) -> None:  # fmt: skip
    """Update the running statistics of T batch norms with those of a batch, TxC: one launch on a GPU.

    Args:
        running_means, running_variances: T tensors of C each.
        counts: T scalars, the batches seen.
        means, variances: TxC, biased.
        momentum: the part of the running statistics that is replaced.
        n_values: of a channel.
    """
    unbiased = n_values / (n_values - 1)
    same = all(
        t.dtype == means.dtype == torch.float32 and t.is_contiguous() for t in (*running_means, *running_variances)
    )
    if len(counts) <= MOST_TERMS and same and means.is_cuda and why_no_triton(means, GPU_TYPES) is None:
        from unipercept.kernels.batch_norm_sum.gpu import update_gpu

        update_gpu(running_means, running_variances, counts, means, variances, momentum, unbiased)
        return
    running = [*running_means, *running_variances]
    found = [*means.unbind(), *(variances * unbiased).unbind()]
    torch._foreach_lerp_(running, [f.to(r.dtype) for f, r in zip(found, running, strict=True)], momentum)
    torch._foreach_add_(counts, 1)


@update_running_statistics.register_fake
def _(*_: object) -> None:
    return None
