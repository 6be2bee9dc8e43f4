"""The second half of a UniRepLKNet block: the contract, its checks, and the operators that compilers and autograd see.

With Y the depthwise convolution's output and X the block's input, channels last:

    s   = sigmoid(up(relu(down(mean of Y over H and W))))     squeeze-excite gate, BxC
    A   = gelu((Y s) W1^T + b1)                               exact GELU, BxHxWxN
    n   = norm of A over H and W;  g = n / (mean of n over N + 1e-6)       BxN
    O   = ((gamma g + 1) A + beta) W2^T + b2                  BxHxWxC
    out = X + O

In training Y may be a batch norm of X over the batch, which is then never written.

Sources: Ding et al. (2024), arXiv 2311.15599; Hu et al. (2018) for s; Woo et al. (2023), ConvNeXt V2, for g.

Shapes: B batch, C channels, H rows, W columns, R squeezed channels, N hidden channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from unipercept.errors import InputError
from unipercept.kernels.cast import cast_together, dense, pack, packed_size, unpacked
from unipercept.kernels.dispatch import autocast_dtype, call, check_no_tangent, choose, is_forced, why_no_triton
from unipercept.kernels.feed_forward.reference import (
    Gradients,
    Norm,
    Saved,
    Weights,
    feed_forward_backward_reference,
    feed_forward_reference,
    keeps_grown,
    normed_feed_forward_reference,
)

GPU_TYPES = (torch.bfloat16, torch.float16, torch.float32)
MOST_TRAINED_IMAGES = 65_535  # an image each along a grid's third dimension
MOST_HIDDEN = 2_000_000_000  # of an image: passes over it count in 32 bits, some rows beyond its end too


def feed_forward(
    y: Tensor, residual: Tensor,
    se_down_w: Tensor, se_down_b: Tensor, se_up_w: Tensor, se_up_b: Tensor,
    w1: Tensor, b1: Tensor, gamma: Tensor, w2: Tensor, b2: Tensor | None = None,
    *, sums: Tensor | None = None, implementation: str | None = None,
) -> Tensor:  # fmt: skip
    """`out` of the module's docstring, in inference form: without GRN's bias, with the residual.

    Weights of float32 beside a narrower `y` are rounded to its type inside, all at once; their gradients keep their own
    type. Under autocast `y` takes the autocast type; the residual stays as it is.

    Args:
        y: BxHxWxC; contiguous, else it is copied.
        residual: BxHxWxC, any floating type.
        se_down_w, se_down_b: RxC (or RxCx1x1) and R.
        se_up_w, se_up_b: CxR (or CxRx1x1) and C.
        w1, b1: NxC and N.
        gamma: N values in any shape.
        w2, b2: CxN, and C or None.
        sums: BxC, the sums of `y` over H and W where the caller has them: saves one pass over `y`. Gradients flow as if
            they had been taken here.
        implementation: "reference", "cpu" or "gpu" to force one; it runs or raises.

    Returns:
        BxHxWxC in the type of `residual`, contiguous.

    Raises:
        InputError: shapes, types or devices that do not fit, or an implementation that cannot run here.
    """
    y, sums, weights = _prepare(y, sums, (se_down_w, se_down_b, se_up_w, se_up_b, w1, b1, gamma, None, w2, b2))
    if residual.shape != y.shape or residual.device != y.device or not residual.is_floating_point():
        raise InputError(
            f"feed_forward needs a residual {_shape(y)} on {y.device}, got {_shape(residual)} on {residual.device}"
        )
    output: Tensor = call(_inference, _infer, y, residual, sums, *weights[:7], weights.w2, weights.b2, implementation)
    return output


def feed_forward_train(
    y: Tensor,
    se_down_w: Tensor, se_down_b: Tensor, se_up_w: Tensor, se_up_b: Tensor,
    w1: Tensor, b1: Tensor, gamma: Tensor, beta: Tensor | None, w2: Tensor, b2: Tensor | None = None,
    *, sums: Tensor | None = None, implementation: str | None = None,
) -> Tensor:  # fmt: skip
    """`O` of the module's docstring, in the form for training: norm, layer scale, drop path and residual come after it.

    Keeps `y`, that times the gate, and the hidden tensor before its GELU for the backward pass, and nothing else that
    is large. Arguments as for `feed_forward`; `beta` has N values or is None.

    Returns:
        BxHxWxC in the type of `y`, contiguous.

    Raises:
        InputError: as for `feed_forward`.
    """
    y, sums, weights = _prepare(y, sums, (se_down_w, se_down_b, se_up_w, se_up_b, w1, b1, gamma, beta, w2, b2))
    check_no_tangent("feed_forward_train", y)
    output: Tensor = _training(y, sums, *weights, None, None, 0.0, implementation)[0]
    return output


def normed_feed_forward_train(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor,
    se_down_w: Tensor, se_down_b: Tensor, se_up_w: Tensor, se_up_b: Tensor,
    w1: Tensor, b1: Tensor, gamma: Tensor, beta: Tensor | None, w2: Tensor, b2: Tensor | None = None,
    *, eps: float = 1e-5, implementation: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`feed_forward_train` of the batch norm of `x`, BxHxWxC, over batch, rows and columns.

    Arguments as there; what is kept is `x` instead of `y`.

    Args:
        norm_weight, norm_bias: C, float32 (float64 where `x` is).
        eps: added to the variance.

    Returns:
        BxHxWxC in the type of `x`, contiguous; mean and biased variance, C, for running statistics, without gradients.

    Raises:
        InputError: as for `feed_forward`, or a single value a channel.
    """
    x, _, weights = _prepare(x, None, (se_down_w, se_down_b, se_up_w, se_up_b, w1, b1, gamma, beta, w2, b2))
    for name, given in (("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        if given.shape != x.shape[3:] or given.device != x.device or given.dtype != _wide_type(x):
            raise InputError(
                f"feed_forward needs {name} {tuple(x.shape[3:])} in {_wide_type(x)} on {x.device}, got {_shape(given)} in {given.dtype}"
            )
    if x.numel() <= x.shape[3]:
        raise InputError(f"batch statistics need more than one value a channel, got a map {_shape(x)}")
    check_no_tangent("normed_feed_forward_train", x)
    found = _training(x, None, *weights, norm_weight, norm_bias, eps, implementation)
    return found[0], found[-3], found[-2]


def _prepare(
    y: Tensor, sums: Tensor | None, parameters: tuple[Tensor | None, ...]
) -> tuple[Tensor, Tensor | None, Weights]:
    """The arguments, checked, `y` in the autocast type, and without the dimensions of
    size one that modules give them.
    """
    y = y.to(autocast_dtype(y) or y.dtype)
    weights = Weights(*(p if p is None or i in (4, 8) else _squeezed(p, i in (0, 2)) for i, p in enumerate(parameters)))  # type: ignore[arg-type]
    _check(y, sums, weights)
    return y, sums, weights


def _squeezed(parameter: Tensor, is_matrix: bool) -> Tensor:
    if not is_matrix:
        return parameter.flatten()
    return parameter.flatten(1) if parameter.ndim > 2 and parameter[0, 0].numel() == 1 else parameter


def _check(y: Tensor, sums: Tensor | None, weights: Weights) -> None:
    if y.ndim != 4 or 0 in y.shape[1:] or not y.is_floating_point():  # a batch may be empty
        raise InputError(f"feed_forward needs a floating-point y BxHxWxC with cells, got {_shape(y)} in {y.dtype}")
    channels, squeezed, hidden = y.shape[3], weights.down_b.shape[0], weights.b1.shape[0]
    expected = (
        (squeezed, channels), (squeezed,), (channels, squeezed), (channels,), (hidden, channels), (hidden,), (hidden,),
        (hidden,), (channels, hidden), (channels,),
    )  # fmt: skip
    for name, wanted, weight in zip(Weights._fields, expected, weights, strict=True):
        if weight is None:
            continue
        if tuple(weight.shape) != wanted:
            raise InputError(f"feed_forward needs {name} {wanted} beside y {_shape(y)}, got {_shape(weight)}")
        if weight.dtype not in (y.dtype, torch.promote_types(y.dtype, torch.float32)) or weight.device != y.device:
            raise InputError(
                f"feed_forward needs {name} on {y.device} in {y.dtype}, got {weight.device}, {weight.dtype}"
            )
    if sums is not None and (sums.shape != (y.shape[0], channels) or sums.device != y.device):
        raise InputError(
            f"feed_forward needs sums ({y.shape[0]}, {channels}) on {y.device}, got {_shape(sums)} on {sums.device}"
        )


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)


def _chosen(operation: str, y: Tensor, hidden: int, asked: str | None) -> str:
    """The implementation to run; it is chosen inside the operators, so that a compiled
    program runs on either device.
    """

    def why_not(name: str) -> str | None:
        if not len(y):
            return "the batch is empty"
        if name == "cpu":
            from unipercept.kernels.feed_forward import cpu  # on first use: what it needs may not be installed

            return cpu.why_not(y) if operation == "feed_forward" else "they have no training form"
        if name != "gpu":
            return None
        if y.dtype == torch.float32 and not is_forced(asked):
            return "float32 products are left to cuBLAS"
        if operation != "feed_forward" and y.shape[0] > MOST_TRAINED_IMAGES:
            return f"they train on up to {MOST_TRAINED_IMAGES} images at once, got {y.shape[0]}"
        if y.shape[1] * y.shape[2] * hidden > MOST_HIDDEN:
            return f"they take up to {MOST_HIDDEN:,} hidden values an image, got {tuple(y.shape[1:3])} of {hidden}"
        return why_no_triton(y, GPU_TYPES)

    return choose(operation, ("reference", "cpu", "gpu"), y, asked, why_not)


def _infer(
    y: Tensor, residual: Tensor, sums: Tensor | None, down_w: Tensor, down_b: Tensor, up_w: Tensor, up_b: Tensor,
    w1: Tensor, b1: Tensor, gamma: Tensor, w2: Tensor, b2: Tensor | None, implementation: str | None,
) -> Tensor:  # fmt: skip
    chosen = _chosen("feed_forward", y, len(b1), implementation)
    y, given = dense(y), Weights(down_w, down_b, up_w, up_b, w1, b1, gamma, None, w2, b2)
    weights = Weights(*cast_together(given, y.dtype))  # type: ignore[arg-type]
    if chosen == "cpu":
        from unipercept.kernels.feed_forward.cpu import feed_forward_cpu

        return feed_forward_cpu(y, residual.contiguous(), sums, weights)
    if chosen == "gpu":
        from unipercept.kernels.feed_forward.gpu import feed_forward_gpu  # on first use: a CPU install needs no Triton

        return feed_forward_gpu(y, dense(residual), sums, weights)
    output, _ = feed_forward_reference(y, sums, weights)
    return (residual + output).to(residual.dtype).contiguous()


_inference = torch.library.custom_op("unipercept::feed_forward", mutates_args=())(_infer)


@_inference.register_fake
def _(y: Tensor, residual: Tensor, *others) -> Tensor:  # type: ignore[no-untyped-def]
    return residual.new_empty(residual.shape)


@torch.library.custom_op("unipercept::feed_forward_train", mutates_args=())
def _training(
    y: Tensor, sums: Tensor | None, down_w: Tensor, down_b: Tensor, up_w: Tensor, up_b: Tensor, w1: Tensor, b1: Tensor,
    gamma: Tensor, beta: Tensor | None, w2: Tensor, b2: Tensor | None, norm_weight: Tensor | None,
    norm_bias: Tensor | None, eps: float, implementation: str | None,
) -> tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
]:  # fmt: skip
    """The output; the fields of `Saved`; mean and variance of the norm, empty without one; the
    weights as `pack` casts them.
    """
    chosen = _chosen("feed_forward_train", y, len(b1), implementation)
    y, given = dense(y), Weights(down_w, down_b, up_w, up_b, w1, b1, gamma, beta, w2, b2)
    channels = 0 if norm_weight is None else y.shape[3]
    mean, variance = (y.new_empty(channels, dtype=_wide_type(y)) for _ in range(2))
    norm = None
    if norm_weight is not None and norm_bias is not None:
        norm = Norm(norm_weight.contiguous(), norm_bias.contiguous(), mean, variance, eps)
    if chosen == "gpu":
        from unipercept.kernels.feed_forward.gpu import feed_forward_train_gpu

        output, saved, flat = feed_forward_train_gpu(y, sums, given, norm)
        return output, *saved, mean, variance, flat
    flat = pack(given, y.dtype)
    weights = Weights(*unpacked(flat, given, y.dtype))  # type: ignore[arg-type]
    if norm is None:
        output, saved = feed_forward_reference(y, sums, weights)
    else:
        output, saved, mean, variance = normed_feed_forward_reference(y, norm.weight, norm.bias, eps, weights)
    return output.contiguous(), *saved, mean, variance, flat


@_training.register_fake
def _(y: Tensor, sums: Tensor | None, *others):  # type: ignore[no-untyped-def]
    batch, rows, columns, channels = y.shape
    hidden, dtype = others[5].shape[0], _wide_type(y)
    normed = 0 if others[10] is None else channels
    return (
        y.new_empty(y.shape),
        y.new_empty(batch, channels, dtype=dtype),
        y.new_empty(batch, channels),
        y.new_empty(batch, others[1].shape[0], dtype=dtype),
        y.new_empty(batch, rows, columns, hidden),
        y.new_empty(batch, hidden),
        y.new_empty(batch, hidden, dtype=dtype),
        y.new_empty(y.shape),
        y.new_empty((batch, channels) if normed else 0, dtype=dtype),
        y.new_empty((batch, rows, columns, hidden) if keeps_grown(y) else 0),
        *(y.new_empty(normed, dtype=dtype) for _ in range(2)),
        y.new_empty(packed_size(others[:10], y.dtype)),
    )


def _wide_type(y: Tensor) -> torch.dtype:
    return torch.float64 if y.dtype == torch.float64 else torch.float32


@torch.library.custom_op("unipercept::feed_forward_backward", mutates_args=())
def _gradients(
    grad: Tensor, y: Tensor, mean: Tensor, gate: Tensor, squeezed: Tensor, hidden: Tensor, factor: Tensor, norm: Tensor,
    gated: Tensor, centre: Tensor, grown: Tensor, norm_mean: Tensor, norm_variance: Tensor, flat: Tensor, down_w: Tensor,
    down_b: Tensor, up_w: Tensor, up_b: Tensor, w1: Tensor, b1: Tensor, gamma: Tensor, beta: Tensor | None, w2: Tensor, b2: Tensor | None,
    norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float, implementation: str | None,
) -> list[Tensor]:  # fmt: skip
    """The fields of `Gradients` that are not None."""
    chosen = _chosen("feed_forward_backward", y, len(b1), implementation)
    grad, y = dense(grad), dense(y)
    saved = Saved(mean, gate, squeezed, hidden, factor, norm, gated, centre, grown)
    given = Weights(down_w, down_b, up_w, up_b, w1, b1, gamma, beta, w2, b2)
    weights = Weights(*unpacked(flat, given, y.dtype))  # type: ignore[arg-type]
    before = None
    if norm_weight is not None and norm_bias is not None:
        before = Norm(norm_weight.contiguous(), norm_bias.contiguous(), norm_mean, norm_variance, eps)
    if chosen == "gpu":
        from unipercept.kernels.feed_forward.gpu_backward import feed_forward_backward_gpu as backward
    else:
        backward = feed_forward_backward_reference
    like = Gradients(y, *given, norm_weight, norm_bias)
    return [g.contiguous() for g in backward(grad, y, saved, weights, before, like) if g is not None]


@_gradients.register_fake
def _(grad: Tensor, y: Tensor, *others):  # type: ignore[no-untyped-def]
    return [x.new_empty(x.shape) for x in (y, *others[12:24]) if x is not None]


def _all_gradients(found: list[Tensor], y: Tensor, given: Sequence[Tensor | None]) -> Gradients:
    """The gradients that `_gradients` returned, with None for those it left out."""
    each = iter(found)
    return Gradients(*(None if x is None else next(each) for x in (y, *given)))  # type: ignore[arg-type]


def _setup_training(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    y, _, *given, ctx.eps, ctx.implementation = inputs
    ctx.set_materialize_grads(False)  # else the hidden tensor's, which nobody has, would be made of zeros
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(y, *output[1:], *given)


def _backward_training(ctx, grad: Tensor | None, *_):  # type: ignore[no-untyped-def]
    if grad is None:
        return (None,) * 16
    y, *kept = ctx.saved_tensors
    saved, given = kept[:12], kept[12:]
    found = _gradients(grad, y, *saved, *given, ctx.eps, ctx.implementation)
    grad_y, *others = _all_gradients(found, y, given)
    return grad_y, None, *others, None, None


_training.register_autograd(_backward_training, setup_context=_setup_training)


def _setup_inference(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    y, residual, sums, *weights, ctx.implementation = inputs
    ctx.residual_dtype = residual.dtype
    ctx.save_for_backward(y, sums, *weights)


def _backward_inference(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
    """This form keeps nothing large: the hidden tensor is computed anew."""
    y, sums, *parts = ctx.saved_tensors
    given = (*parts[:7], None, *parts[7:], None, None)  # no bias of GRN, no norm
    _, *saved = _training(y, sums, *given, 0.0, ctx.implementation)
    found = _gradients(grad.to(y.dtype), y, *saved, *given, 0.0, ctx.implementation)
    gradients = _all_gradients(found, y, given)
    return gradients.y, grad, None, *gradients[1:8], *gradients[9:11], None


_inference.register_autograd(_backward_inference, setup_context=_setup_inference)
