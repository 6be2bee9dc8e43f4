"""Depthwise convolution: the contract, its checks, and the operators that compilers and autograd see.

Shapes: B batch, C channels, H rows, W columns, KH and KW kernel rows and columns.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from unipercept.errors import InputError
from unipercept.kernels.depthwise_conv2d.padding import PADDINGS, Padding
from unipercept.kernels.depthwise_conv2d.reference import (
    depthwise_conv2d_reference,
    input_gradient_reference,
    weight_gradient_reference,
)
from unipercept.kernels.dispatch import autocast_dtype, call, choose, is_forced, say_once


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: int = 1,
    padding: Padding = "zero",
    channels_last: bool | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Convolve each channel with its own kernel, stride 1, padded so that the size stays.

    Under autocast the operands take the autocast type, as those of torch's own convolutions do.

    Args:
        x: BxCxHxW, contiguous or channels-last.
        weight: Cx1xKHxKW, KH and KW odd; the kernel may be larger than the map.
        bias: C, or None.
        dilation: distance between taps, in cells; at least 1.
        padding: what lies beyond the edge, see `Padding`.
        channels_last: memory format of the result; None for that of `x`.
        implementation: "reference", "cpu" or "gpu" to force one; it runs or raises.

    Returns:
        BxCxHxW in the type of `x`.

    Raises:
        InputError: shapes, types or devices that do not fit, or an implementation that does not exist here.
    """
    x, weight, bias = _prepared(x, weight, bias, dilation, padding)
    output: Tensor = call(
        _forward_operator, _forward, x, weight, bias, dilation, padding, channels_last, implementation or ""
    )
    return output


def depthwise_conv2d_with_sums(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: int = 1,
    padding: Padding = "zero",
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """As `depthwise_conv2d`, and the sums BxC of the result over its map, float32 (float64 for
    float64), for squeeze-excite.

    The GPU path takes both in one pass.
    """
    x, weight, bias = _prepared(x, weight, bias, dilation, padding)
    output: tuple[Tensor, Tensor] = call(
        _sums_operator, _forward_with_sums, x, weight, bias, dilation, padding, implementation or ""
    )
    return output


def _prepared(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, padding: Padding
) -> tuple[Tensor, Tensor, Tensor | None]:
    if (dtype := autocast_dtype(x)) is not None:
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    _check(x, weight, bias, dilation, padding)
    return x, weight, bias


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, padding: Padding) -> None:
    if x.ndim != 4 or weight.ndim != 4 or weight.shape[0] != x.shape[1] or weight.shape[1] != 1:
        raise InputError(
            f"depthwise_conv2d needs x BxCxHxW and weight Cx1xKHxKW, got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0 or dilation < 1:
        raise InputError(
            f"depthwise_conv2d needs an odd kernel and a dilation of at least 1, got {tuple(weight.shape[2:])} and {dilation}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"depthwise_conv2d needs a bias of {weight.shape[0]} values, got {tuple(bias.shape)}")
    for name, other in (("weight", weight), ("bias", bias)):
        if other is not None and (other.dtype != x.dtype or other.device != x.device):
            raise InputError(
                f"depthwise_conv2d needs {name} on {x.device} in {x.dtype}, got {other.device}, {other.dtype}"
            )
    if padding not in PADDINGS:
        raise InputError(f"padding must be one of {', '.join(PADDINGS)}; got {padding!r}")
    if padding.startswith("sphere") and x.shape[-1] % 2:
        raise InputError(
            f"padding {padding!r} needs an even number of columns, half of them beyond the pole; got {x.shape[-1]}"
        )


class _Implementation(NamedTuple):
    forward: Callable[..., Tensor]  # x, weight, bias, dilation, padding, channels_last
    with_sums: Callable[..., tuple[Tensor, Tensor]]  # x, weight, bias, dilation, padding
    input_gradient: Callable[..., Tensor]  # grad, weight, dilation, padding
    weight_gradient: Callable[..., Tensor]  # x, grad, rows, columns, dilation, padding


def _implementation(name: str) -> _Implementation:
    if name == "gpu":
        from unipercept.kernels.depthwise_conv2d import gpu  # on first use: a CPU install needs nothing of it

        return _Implementation(
            gpu.depthwise_conv2d_gpu, gpu.with_sums_gpu, gpu.input_gradient_gpu, gpu.weight_gradient_gpu
        )
    if name == "cpu":
        from unipercept.kernels.depthwise_conv2d import cpu

        return _Implementation(
            cpu.depthwise_conv2d_cpu, cpu.with_sums_cpu, _input_gradient_cpu, _weight_gradient_reference
        )
    return _Implementation(
        _forward_reference, _with_sums_reference, _input_gradient_reference, _weight_gradient_reference
    )


def _forward_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, padding: Padding, channels_last: bool | None
) -> Tensor:
    memory = _format(x, channels_last)
    output = depthwise_conv2d_reference(_as_torch_likes(x, weight.shape[-1]), weight, bias, dilation, padding)
    return output.contiguous(memory_format=memory)


def _with_sums_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, padding: Padding
) -> tuple[Tensor, Tensor]:
    output = _forward_reference(x, weight, bias, dilation, padding, None)
    return output, output.sum(dim=(2, 3), dtype=_sum_type(x))


def _input_gradient_reference(grad: Tensor, weight: Tensor, dilation: int, padding: Padding) -> Tensor:
    return input_gradient_reference(_as_torch_likes(grad, weight.shape[-1]), weight, dilation, padding)


def _input_gradient_cpu(grad: Tensor, weight: Tensor, dilation: int, padding: Padding) -> Tensor:
    from unipercept.kernels.depthwise_conv2d import cpu

    return cpu.depthwise_conv2d_cpu(grad, weight.flip(-2, -1), None, dilation, padding, None)


def _weight_gradient_reference(
    x: Tensor, grad: Tensor, rows: int, columns: int, dilation: int, padding: Padding
) -> Tensor:
    x, grad = _as_torch_likes(x, columns), _as_torch_likes(grad, columns)
    return weight_gradient_reference(x, grad, rows, columns, dilation, padding)


def _as_torch_likes(x: Tensor, columns: int) -> Tensor:
    """On GPUs torch convolves channels-last maps with kernels of 9 and up several times slower than contiguous ones."""
    return x.contiguous() if x.is_cuda and columns >= 9 else x


def _format(x: Tensor, channels_last: bool | None) -> torch.memory_format:
    if channels_last is None:
        channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def _sum_type(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _chosen(
    operation: str, asked: str, x: Tensor, rows: int, columns: int, dilation: int, padding: str, has_sums: bool = False
) -> _Implementation:
    """Chosen when the operator runs, not when it is traced: sizes are known then, and no size means a recompilation."""

    def why_not(name: str) -> str | None:
        if name == "cpu":
            from unipercept.kernels.depthwise_conv2d import cpu

            reason = cpu.why_not(x, rows, columns, padding, operation)
            if reason is None and not is_forced(asked) and cpu.slower_than_torch(x, rows, columns, has_sums):
                return "PyTorch is faster here"
            return reason
        if name != "gpu":
            return None
        from unipercept.kernels.depthwise_conv2d import gpu, gpu_plans

        reason = gpu.why_not(x, rows, columns, dilation, cast(Padding, padding))
        if reason is not None and not is_forced(asked) and x.is_cuda and x.dtype in gpu_plans.TYPES and x.numel():
            say_once(f"depthwise_conv2d runs on plain PyTorch, much slower for large kernels: {reason}")
        if reason is None and not is_forced(asked) and gpu.slower_than_torch(x, rows, columns, dilation, operation):
            return "PyTorch is faster here"
        return reason

    return _implementation(choose("depthwise_conv2d", ("reference", "cpu", "gpu"), x, asked, why_not))


# torch.library reads the annotations, and knows no Literal: padding is a plain string there.


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    padding: str,
    channels_last: bool | None,
    implementation: str,
) -> Tensor:
    chosen = _chosen("forward", implementation, x, weight.shape[-2], weight.shape[-1], dilation, padding)
    return chosen.forward(x, weight, bias, dilation, padding, channels_last)


_forward_operator = torch.library.custom_op("unipercept::depthwise_conv2d", mutates_args=())(_forward)


@_forward_operator.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    padding: str,
    channels_last: bool | None,
    implementation: str,
) -> Tensor:
    return torch.empty_like(x, memory_format=_format(x, channels_last))


def _forward_with_sums(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, padding: str, implementation: str
) -> tuple[Tensor, Tensor]:
    return _chosen("forward", implementation, x, weight.shape[-2], weight.shape[-1], dilation, padding, True).with_sums(
        x, weight, bias, dilation, padding
    )


_sums_operator = torch.library.custom_op("unipercept::depthwise_conv2d_with_sums", mutates_args=())(_forward_with_sums)


@_sums_operator.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, padding: str, implementation: str
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=_format(x, None)), x.new_empty(x.shape[:2], dtype=_sum_type(x))


@torch.library.custom_op("unipercept::depthwise_conv2d_input_gradient", mutates_args=())
def _input_gradient_operator(grad: Tensor, weight: Tensor, dilation: int, padding: str, implementation: str) -> Tensor:
    chosen = _chosen("input gradient", implementation, grad, weight.shape[-2], weight.shape[-1], dilation, padding)
    gradient = chosen.input_gradient(grad, weight, dilation, padding)
    return gradient.contiguous(memory_format=_format(grad, None))


@_input_gradient_operator.register_fake
def _(grad: Tensor, weight: Tensor, dilation: int, padding: str, implementation: str) -> Tensor:
    return torch.empty_like(grad, memory_format=_format(grad, None))


@torch.library.custom_op("unipercept::depthwise_conv2d_weight_gradient", mutates_args=())
def _weight_gradient_operator(
    x: Tensor, grad: Tensor, rows: int, columns: int, dilation: int, padding: str, implementation: str
) -> Tensor:
    return _chosen("weight gradient", implementation, x, rows, columns, dilation, padding).weight_gradient(
        x, grad, rows, columns, dilation, padding
    )


@_weight_gradient_operator.register_fake
def _(x: Tensor, grad: Tensor, rows: int, columns: int, dilation: int, padding: str, implementation: str) -> Tensor:
    return x.new_empty(x.shape[1], 1, rows, columns)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, bias, ctx.dilation, ctx.padding = inputs[:5]
    ctx.implementation = inputs[-1]
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _gradients(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[no-untyped-def]
    x, weight = ctx.saved_tensors
    grad_x = grad_weight = grad_bias = None
    settings = (ctx.dilation, ctx.padding, ctx.implementation)
    if ctx.needs_input_grad[0]:
        grad_x = _input_gradient_operator(grad, weight, *settings)
    if ctx.needs_input_grad[1]:
        grad_weight = _weight_gradient_operator(x, grad, weight.shape[-2], weight.shape[-1], *settings)
    if ctx.has_bias and ctx.needs_input_grad[2]:
        grad_bias = grad.sum(dim=(0, 2, 3))
    return grad_x, grad_weight, grad_bias


def _backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
    return *_gradients(ctx, grad), None, None, None, None


def _sums_backward(ctx, grad: Tensor, grad_sums: Tensor):  # type: ignore[no-untyped-def]
    return *_gradients(ctx, grad + grad_sums[..., None, None].to(grad.dtype)), None, None, None


_forward_operator.register_autograd(_backward, setup_context=_setup_context)
_sums_operator.register_autograd(_sums_backward, setup_context=_setup_context)
