"""Depthwise convolution: the contract, its checks, and the one operator that compilers and autograd see.

Shapes: B batch, C channels, H rows, W columns, KH and KW kernel rows and columns.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from unipercept.errors import InputError
from unipercept.kernels.depthwise_conv2d.reference import depthwise_conv2d_reference
from unipercept.kernels.dispatch import choose, note

# A faster path is one more entry here, imported on first use.
_IMPLEMENTATIONS: dict[str, Callable[[Tensor, Tensor, Tensor | None, int], Tensor]] = {
    "reference": depthwise_conv2d_reference
}


def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 1, implementation: str | None = None
) -> Tensor:
    """Convolve each channel with its own kernel, stride 1, zero padding that keeps the size.

    Under autocast the operands take the autocast type, as those of torch's own convolutions do.

    Args:
        x: BxCxHxW.
        weight: Cx1xKHxKW, KH and KW odd; the kernel may be larger than the map.
        bias: C, or None.
        dilation: distance between taps, in cells; at least 1.
        implementation: "reference", "cpu" or "gpu" to force one; it runs or raises.

    Returns:
        BxCxHxW in the type of `x`.

    Raises:
        InputError: shapes, types or devices that do not fit, or an implementation that does not exist here.
    """
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    _check(x, weight, bias, dilation)
    output: Tensor = _operator(x, weight, bias, dilation, choose(_IMPLEMENTATIONS, x, implementation))
    return output


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> None:
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


@torch.library.custom_op("unipercept::depthwise_conv2d", mutates_args=())
def _operator(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, implementation: str) -> Tensor:
    note("depthwise_conv2d", implementation)
    return _IMPLEMENTATIONS[implementation](x, weight, bias, dilation)


@_operator.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, implementation: str) -> Tensor:
    return depthwise_conv2d_reference(x, weight, bias, dilation)  # on fake tensors: shape and strides, no numbers


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, bias, ctx.dilation, _ = inputs
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
    x, weight = ctx.saved_tensors
    padding = [ctx.dilation * (size // 2) for size in weight.shape[-2:]]
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad, x, weight, [weight.shape[0]] if ctx.has_bias else None, [1, 1], padding, [ctx.dilation] * 2, False, [0, 0],
        weight.shape[0], [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias and ctx.needs_input_grad[2]],
    )  # fmt: skip
    return grad_x, grad_weight, grad_bias, None, None


_operator.register_autograd(_backward, setup_context=_setup_context)
