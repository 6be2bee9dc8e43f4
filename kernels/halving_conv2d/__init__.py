"""A 3x3 convolution of stride 2 of maps with many channels, as it halves them between stages, in training.

    y = conv2d(x, w, stride 2, padding 1)

Forwards and for the weight PyTorch's runs; the gradient of the map is four products, one for each parity of row and column, which
libraries take several times as long for. Images, of few channels, are `image_conv2d`'s.

Shapes: B batch, C channels, H rows, W columns of the input, D channels of the result, H' and W' half of H and W, rounded up.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from unipercept.errors import InputError
from unipercept.kernels.dispatch import choose, note, why_no_triton

GPU_TYPES = (torch.bfloat16, torch.float16)
VECTOR = 8  # channels that a load takes at once: both widths are multiples of it
SLOWER = 160  # channels of the map where cuDNN takes 71 us and this 83 (28x28, batch 128); 237 and 184, 196 and 120, 82 and 57 at the others


def halving_conv2d(x: Tensor, w: Tensor, *, implementation: str | None = None) -> Tensor:
    """`y` of the module's docstring. Under autocast both arguments take its type.

    Args:
        x: BxCxHxW; channels-last, else it is copied.
        w: DxCx3x3, in the type of `x`.
        implementation: "reference" or "gpu" to force one for the gradient of `x`; it runs or raises.

    Returns:
        BxDxH'xW' in the type of `x`, channels-last.

    Raises:
        InputError: shapes or types that do not fit; in the backward pass, an implementation that cannot run here.
    """
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, w = x.to(dtype), w.to(dtype)
    if x.ndim != 4 or w.shape[1:] != (x.shape[1], 3, 3) or w.dtype != x.dtype or w.device != x.device:
        raise InputError(
            f"halving_conv2d needs x BxCxHxW and w DxCx3x3 of its type and device, got {tuple(x.shape)} in {x.dtype} and "
            f"{tuple(w.shape)} in {w.dtype}"
        )
    output: Tensor = _operator(x, w, implementation or "")
    return output


def takes(x: Tensor, w: Tensor) -> bool:
    """Whether it is faster than PyTorch's: where the map wants a gradient, in 16-bit types, autocast's included, on a GPU."""
    casts = torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype(x.device.type) if casts else x.dtype
    fits = x.ndim == 4 and w.shape[1:] == (x.shape[1], 3, 3) and x.numel() > 0 and (casts or w.dtype == x.dtype)
    wanted = torch.is_grad_enabled() and x.requires_grad
    return (
        x.is_cuda
        and wanted
        and dtype in GPU_TYPES
        and fits
        and w.shape[0] % VECTOR == x.shape[1] % VECTOR == 0
        and x.shape[1] != SLOWER
    )


def _chosen(grad: Tensor, w: Tensor, asked: str) -> str:
    def why_not(name: str) -> str | None:
        if name != "gpu":
            return None
        if w.shape[0] % VECTOR or w.shape[1] % VECTOR or not grad.numel():
            return f"they take multiples of {VECTOR} channels, got {w.shape[1]} to {w.shape[0]}"
        return why_no_triton(grad, GPU_TYPES)

    name = choose(("reference", "gpu"), grad, asked, why_not)
    note("halving_conv2d", name)
    return name


@torch.library.custom_op("unipercept::halving_conv2d", mutates_args=())
def _operator(x: Tensor, w: Tensor, implementation: str) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, w, None, 2, 1).contiguous(memory_format=torch.channels_last)


@_operator.register_fake
def _(x: Tensor, w: Tensor, implementation: str) -> Tensor:
    batch, _, height, width = x.shape
    output = x.new_empty(batch, w.shape[0], (height + 1) // 2, (width + 1) // 2)
    return torch.empty_like(output, memory_format=torch.channels_last)


@torch.library.custom_op("unipercept::halving_conv2d_input_gradient", mutates_args=())
def _input_gradient(grad: Tensor, x: Tensor, w: Tensor, implementation: str) -> Tensor:
    """Channels-last BxCxHxW; of `x` only the shape counts."""
    grad = grad.contiguous(memory_format=torch.channels_last)
    if _chosen(grad, w, implementation) == "gpu":
        from unipercept.kernels.halving_conv2d.gpu import (
            input_gradient_gpu,
        )  # on first use: a CPU install needs no Triton

        return input_gradient_gpu(grad, w, x.shape[2], x.shape[3])
    return _gradients(grad, x, w, [True, False, False])[0].contiguous(memory_format=torch.channels_last)


@_input_gradient.register_fake
def _(grad: Tensor, x: Tensor, w: Tensor, implementation: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _gradients(grad: Tensor, x: Tensor, w: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Torch's."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad, x, w, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1, wanted
    )
    return found


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, w, ctx.implementation = inputs
    ctx.save_for_backward(x, w)


def _backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
    x, w = ctx.saved_tensors
    grad = grad.contiguous(memory_format=torch.channels_last)
    grad_x = _input_gradient(grad, x, w, ctx.implementation) if ctx.needs_input_grad[0] else None
    grad_w = _gradients(grad, x, w, [False, True, False])[1] if ctx.needs_input_grad[1] else None
    return grad_x, grad_w, None


_operator.register_autograd(_backward, setup_context=_setup_context)
