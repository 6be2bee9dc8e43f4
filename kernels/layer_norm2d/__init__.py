"""Layer norm over the channels of a map, with its neighbours in a stem: the bias before and the GELU after.

    y = layer_norm(x + shift over C) * weight + bias,  or the exact GELU of that

Shapes: B batch, C channels, H rows, W columns.
"""

import torch
from torch import Tensor

from unipercept.errors import InputError
from unipercept.kernels.dispatch import call, choose, why_no_triton
from unipercept.kernels.layer_norm2d.reference import layer_norm2d_backward_reference, layer_norm2d_reference

GPU_TYPES = (torch.bfloat16, torch.float16, torch.float32)
MAX_CHANNELS = 8192  # that a program of the GPU kernel holds in registers


def layer_norm2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-6,
    shift: Tensor | None = None,
    gelu: bool = False,
    implementation: str | None = None,
) -> Tensor:
    """`y` of the module's docstring. Computes in float32 at least; on a GPU in one pass over the map.

    Args:
        x: BxCxHxW; channels-last, else it is copied.
        weight, bias: C each, of any floating type.
        eps: added to the variance.
        shift: C, added to `x` first: the bias of the convolution before, which then costs no pass of its own.
        gelu: whether the exact GELU comes after.
        implementation: "reference", "cpu" (its backward pass is the reference's) or "gpu" to
            force one; it runs or raises.

    Returns:
        BxCxHxW in the type of `x`, channels-last.

    Raises:
        InputError: shapes or devices that do not fit, or an implementation that cannot run here.
    """
    channels = x.shape[1] if x.ndim == 4 else None
    for name, given in (("weight", weight), ("bias", bias), ("shift", shift)):
        if given is not None and (given.shape != (channels,) or given.device != x.device):
            raise InputError(
                f"layer_norm2d needs x BxCxHxW and {name} of C values on its device, "
                f"got {tuple(x.shape)} on {x.device} and {tuple(given.shape)} on {given.device}"
            )
    output: Tensor = call(_operator, _forward, x, weight, bias, shift, eps, gelu, implementation or "")[0]
    return output


def _why_not(x: Tensor, name: str) -> str | None:
    if name == "cpu":
        from unipercept.kernels.layer_norm2d import cpu  # on first use: what it needs may not be installed

        return cpu.why_not(x)
    if name != "gpu":
        return None
    if x.shape[1] > MAX_CHANNELS or not x.numel():
        return f"they need a map of 1 to {MAX_CHANNELS} channels, got {tuple(x.shape)}"
    return why_no_triton(x, GPU_TYPES)


def _chosen(x: Tensor, asked: str, known: tuple[str, ...]) -> str:
    return choose("layer_norm2d", known, x, asked, lambda name: _why_not(x, name))


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, eps: float, gelu: bool, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The output; mean and reciprocal standard deviation, BxHxW each."""
    x = x.contiguous(memory_format=torch.channels_last)
    chosen = _chosen(x, implementation, ("reference", "cpu", "gpu"))
    if chosen == "gpu":
        from unipercept.kernels.layer_norm2d.gpu import layer_norm2d_gpu  # on first use: a CPU install needs no Triton

        return layer_norm2d_gpu(x, weight, bias, shift, eps, gelu)
    if chosen == "cpu":
        from unipercept.kernels.layer_norm2d.cpu import layer_norm2d_cpu

        return layer_norm2d_cpu(x, weight, bias, shift, eps, gelu)
    return layer_norm2d_reference(x, weight, bias, shift, eps, gelu)


_operator = torch.library.custom_op("unipercept::layer_norm2d", mutates_args=())(_forward)


@_operator.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, eps: float, gelu: bool, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, rows, columns = x.shape
    output = torch.empty_like(x, memory_format=torch.channels_last)
    mean = x.new_empty(batch, rows, columns, dtype=_wide(x))
    return output, mean, torch.empty_like(mean)


@torch.library.custom_op("unipercept::layer_norm2d_backward", mutates_args=())
def _backward_operator(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    mean: Tensor,
    scale: Tensor,
    gelu: bool,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """Gradient of x; gradients of weight, bias and shift, 3xC."""
    x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    if _chosen(x, "" if implementation == "cpu" else implementation, ("reference", "gpu")) == "gpu":
        from unipercept.kernels.layer_norm2d.gpu import layer_norm2d_backward_gpu

        return layer_norm2d_backward_gpu(grad, x, weight, bias, shift, mean, scale, gelu)
    return layer_norm2d_backward_reference(grad, x, weight, bias, shift, mean, scale, gelu)


@_backward_operator.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    mean: Tensor,
    scale: Tensor,
    gelu: bool,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.channels_last), x.new_empty(3, x.shape[1], dtype=_wide(x))


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, bias, shift, _, ctx.gelu, ctx.implementation = inputs
    ctx.set_materialize_grads(False)  # else zeros would be made for the statistics
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, weight, bias, shift, *output[1:])


def _backward(ctx, grad: Tensor | None, *_):  # type: ignore[no-untyped-def]
    if grad is None:
        return (None,) * 7
    x, weight, bias, shift, mean, scale = ctx.saved_tensors
    grad_x, others = _backward_operator(grad, x, weight, bias, shift, mean, scale, ctx.gelu, ctx.implementation)
    grad_shift = None if shift is None else others[2].to(shift.dtype)
    return grad_x, others[0].to(weight.dtype), others[1].to(bias.dtype), grad_shift, None, None, None


_operator.register_autograd(_backward, setup_context=_setup_context)
