"""Depthwise convolutions of one map, each with its batch norm, summed, in training: a dilated
re-parameterised block's first half.

    y = sum over t of (z_t - mean_t) / sqrt(variance_t + eps) * scale_t + shift_t,    z_t = x convolved with kernel t

with mean and (biased) variance of each channel over batch, rows and columns. The fast path never writes a z_t: it takes
the statistics of all in one pass, and the sum is then one convolution, whose kernel is the sum of the kernels, each
times scale_t / sqrt(variance_t + eps).

Sources: Ding et al. (2024), arXiv 2311.15599, for the block; Ioffe and Szegedy (2015) for the norm.

Shapes: B batch, C channels, H rows, W columns, T branches.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from unipercept.errors import InputError
from unipercept.kernels.branch_norm_sum.reference import branch_norm_sum_backward_reference, branch_norm_sum_reference
from unipercept.kernels.dispatch import asked_for, autocast_dtype, check_no_tangent, choose


def branch_norm_sum(
    x: Tensor,
    weights: Sequence[Tensor],
    scales: Tensor,
    shifts: Tensor,
    *,
    dilations: Sequence[int],
    eps: float = 1e-5,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`y` of the module's docstring.

    Padded with zeros, stride 1. Keeps `x` for the backward pass, and nothing else that is large.

    Under autocast `x` takes the autocast type; the weights, rounded to it inside, and their gradients keep theirs.

    Args:
        x: BxCxHxW.
        weights: T kernels Cx1xKxK, K odd, of one floating type: that of `x`, or a wider one.
        scales, shifts: TxC, float32 (float64 where the map is).
        dilations: T distances between taps, in cells.
        eps: added to the variance.
        implementation: "reference" or "gpu" to force one; it runs or raises.

    Returns:
        BxCxHxW in the type of `x`; means and biased variances, TxC, for running statistics, without gradients.

    Raises:
        InputError: shapes or devices that do not fit, a single value a channel, or an
            implementation that cannot run here.
    """
    x = x.to(autocast_dtype(x) or x.dtype)
    check_no_tangent("branch_norm_sum", x)
    _check(x, weights, scales, shifts, dilations)
    output: tuple[Tensor, Tensor, Tensor, Tensor] = _operator(
        x, list(weights), scales, shifts, list(dilations), eps, implementation or ""
    )
    return output[:3]


def is_merged(x: Tensor, kernels: Sequence[int], dilations: Sequence[int]) -> bool:
    """Whether the fast path runs on `x`, as autocast leaves it; elsewhere an operation for each branch is better."""
    if not x.is_cuda or asked_for() not in (None, "gpu"):
        return False
    from unipercept.kernels.branch_norm_sum import gpu  # on first use: a CPU install needs nothing of it

    dtype = autocast_dtype(x) or x.dtype
    last = x.is_contiguous(memory_format=torch.channels_last)
    merges: bool = gpu.merges(x.device.index, dtype, tuple(x.shape[1:]), last, tuple(kernels), tuple(dilations))
    return merges


def _check(x: Tensor, weights: Sequence[Tensor], scales: Tensor, shifts: Tensor, dilations: Sequence[int]) -> None:
    if x.ndim != 4 or any(
        w.shape != (x.shape[1], 1, w.shape[-1], w.shape[-1]) or w.shape[-1] % 2 == 0 for w in weights
    ):
        shapes = ", ".join(str(tuple(w.shape)) for w in weights)
        raise InputError(f"branch_norm_sum needs x BxCxHxW and odd kernels Cx1xKxK, got {tuple(x.shape)} and {shapes}")
    if not weights or len(dilations) != len(weights) or min(dilations) < 1:
        raise InputError(
            f"branch_norm_sum needs a dilation of at least 1 for each of {len(weights)} kernels, got {tuple(dilations)}"
        )
    if any(w.dtype != weights[0].dtype or w.device != x.device for w in weights):
        raise InputError(f"branch_norm_sum needs kernels of one type on {x.device}")
    if tuple(scales.shape) != (len(weights), x.shape[1]) or shifts.shape != scales.shape:
        raise InputError(
            f"branch_norm_sum needs scales and shifts {(len(weights), x.shape[1])}, got {tuple(scales.shape)} and {tuple(shifts.shape)}"
        )
    if any(t.dtype != _wide(x) or t.device != x.device for t in (scales, shifts)):
        raise InputError(
            f"branch_norm_sum needs scales and shifts in {_wide(x)} on {x.device}, got {scales.dtype} on {scales.device} "
            f"and {shifts.dtype} on {shifts.device}"
        )
    if x.numel() <= x.shape[1]:
        raise InputError(f"batch statistics need more than one value a channel, got a map {tuple(x.shape)}")


def _chosen(x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int], asked: str) -> str:
    def why_not(name: str) -> str | None:
        if name != "gpu":
            return None
        from unipercept.kernels.branch_norm_sum import gpu

        return gpu.why_not(x, [w.shape[-1] for w in weights], dilations)

    return choose("branch_norm_sum", ("reference", "gpu"), x, asked, why_not)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@torch.library.custom_op("unipercept::branch_norm_sum", mutates_args=())
def _operator(
    x: Tensor, weights: list[Tensor], scales: Tensor, shifts: Tensor, dilations: list[int], eps: float,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The sum, channels-last; means, variances; and the sums that the fast path's backward pass needs, else zeros."""
    if _chosen(x, weights, dilations, implementation) == "gpu":
        from unipercept.kernels.branch_norm_sum.gpu import branch_norm_sum_gpu

        return branch_norm_sum_gpu(
            x, [w.contiguous() for w in weights], scales.contiguous(), shifts.contiguous(), dilations, eps
        )
    output, means, variances = branch_norm_sum_reference(x, weights, scales, shifts, dilations, eps)
    kept = means.new_zeros(_kept_shape(weights))
    return output.to(x.dtype).contiguous(memory_format=torch.channels_last), means, variances, kept


def _kept_shape(weights: Sequence[Tensor]) -> tuple[int, int]:
    """Sums of the fast path: of each channel one for each tap, and those of the largest kernel's window."""
    return weights[0].shape[0], sum(w.shape[-1] ** 2 for w in weights) + weights[0].shape[-1] ** 2


@_operator.register_fake
def _(x, weights, scales, shifts, dilations, eps, implementation):  # type: ignore[no-untyped-def]
    statistics = x.new_empty(scales.shape, dtype=_wide(x))
    kept = statistics.new_empty(_kept_shape(weights))
    return torch.empty_like(x, memory_format=torch.channels_last), statistics, torch.empty_like(statistics), kept


@torch.library.custom_op("unipercept::branch_norm_sum_backward", mutates_args=())
def _backward_operator(
    grad: Tensor, x: Tensor, weights: list[Tensor], scales: Tensor, means: Tensor, variances: Tensor, kept: Tensor,
    dilations: list[int], eps: float, implementation: str,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the map, of the norms' weights and biases, TxC, and of the kernels."""
    if _chosen(x, weights, dilations, implementation) == "gpu":
        from unipercept.kernels.branch_norm_sum.gpu import branch_norm_sum_backward_gpu

        weights = [w.contiguous() for w in weights]
        of_x, of_weights, *others = branch_norm_sum_backward_gpu(
            grad, x, weights, scales.contiguous(), means, variances, kept, dilations, eps
        )
    else:
        of_x, of_weights, *others = branch_norm_sum_backward_reference(
            grad, x, weights, scales, means, variances, dilations, eps
        )
    return [of_x.contiguous(memory_format=torch.channels_last), *others, *of_weights]


@_backward_operator.register_fake
def _(grad, x, weights, scales, means, variances, kept, dilations, eps, implementation):  # type: ignore[no-untyped-def]
    return [
        torch.empty_like(x, memory_format=torch.channels_last),
        torch.empty_like(means),
        torch.empty_like(means),
        *(torch.empty_like(w) for w in weights),
    ]


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weights, scales, _, ctx.dilations, ctx.eps, ctx.implementation = inputs
    ctx.set_materialize_grads(False)  # else zeros would be made for the statistics
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, *weights, scales, *output[1:])


def _backward(ctx, grad: Tensor | None, *_):  # type: ignore[no-untyped-def]
    x, *weights, scales, means, variances, kept = ctx.saved_tensors
    if grad is None:
        return None, [None] * len(weights), *(None,) * 5
    of_x, of_scales, of_shifts, *of_weights = _backward_operator(
        grad, x, weights, scales, means, variances, kept, ctx.dilations, ctx.eps, ctx.implementation
    )
    return of_x, of_weights, of_scales.to(scales.dtype), of_shifts.to(scales.dtype), None, None, None


_operator.register_autograd(_backward, setup_context=_setup_context)
