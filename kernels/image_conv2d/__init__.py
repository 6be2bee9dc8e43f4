"""A 3x3 convolution of stride 2 of maps with as few channels as an image has, in training.

    y = conv2d(x, w, stride 2, padding 1)

Libraries first pad the channels to eight, and multiply with the padding too. Inference uses `conv_norm2d` instead.

Shapes: B batch, C channels, H rows, W columns of the input, D channels of the result, H' and W'
half of H and W, rounded up.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from unipercept.errors import InputError
from unipercept.kernels.cast import dense
from unipercept.kernels.dispatch import autocast_dtype, check_no_tangent, choose, why_no_triton

GPU_TYPES = (torch.bfloat16, torch.float16)
MAX_CHANNELS, MAX_WIDTH = 7, 256  # of the input and of the result


def image_conv2d(x: Tensor, w: Tensor, *, implementation: str | None = None) -> Tensor:
    """`y` of the module's docstring. Under autocast both arguments take its type.

    Args:
        x: BxCxHxW; channels-last, else it is copied.
        w: DxCx3x3, in the type of `x`.
        implementation: "reference" or "gpu" to force one; it runs or raises.

    Returns:
        BxDxH'xW' in the type of `x`, channels-last.

    Raises:
        InputError: shapes or types that do not fit, or an implementation that cannot run here.
    """
    if (dtype := autocast_dtype(x)) is not None:
        x, w = x.to(dtype), w.to(dtype)
    if x.ndim != 4 or w.shape[1:] != (x.shape[1], 3, 3) or w.dtype != x.dtype or w.device != x.device:
        raise InputError(
            f"image_conv2d needs x BxCxHxW and w DxCx3x3 of its type and device, got {tuple(x.shape)} in {x.dtype} and "
            f"{tuple(w.shape)} in {w.dtype}"
        )
    check_no_tangent("image_conv2d", x)
    output: Tensor = _operator(x, w, implementation or "")
    return output


def takes(x: Tensor, w: Tensor) -> bool:
    """Whether it is faster than PyTorch's: 16-bit types, autocast's included, of few channels on a GPU."""
    casts = autocast_dtype(x)
    fits = (
        x.ndim == 4
        and w.shape[1:] == (x.shape[1], 3, 3)
        and x.numel() > 0
        and (casts is not None or w.dtype == x.dtype)
    )
    return (
        x.is_cuda
        and (casts or x.dtype) in GPU_TYPES
        and fits
        and 1 <= x.shape[1] <= MAX_CHANNELS
        and w.shape[0] <= MAX_WIDTH
    )


def _chosen(x: Tensor, w_shape: torch.Size, asked: str) -> str:
    def why_not(name: str) -> str | None:
        if name != "gpu":
            return None
        if not 1 <= x.shape[1] <= MAX_CHANNELS or w_shape[0] > MAX_WIDTH or not x.numel():
            return f"they take up to {MAX_CHANNELS} channels to {MAX_WIDTH}, got {tuple(x.shape)} to {w_shape[0]}"
        return why_no_triton(x, GPU_TYPES)

    return choose("image_conv2d", ("reference", "gpu"), x, asked, why_not)


@torch.library.custom_op("unipercept::image_conv2d", mutates_args=())
def _operator(x: Tensor, w: Tensor, implementation: str) -> Tensor:
    x = _laid_out(x)
    if _chosen(x, w.shape, implementation) == "gpu":
        from unipercept.kernels.image_conv2d.gpu import image_conv2d_gpu  # on first use: a CPU install needs no Triton

        return image_conv2d_gpu(x, w)
    return F.conv2d(x, w, None, 2, 1).contiguous(memory_format=torch.channels_last)


@_operator.register_fake
def _(x: Tensor, w: Tensor, implementation: str) -> Tensor:
    batch, _, height, width = x.shape
    output = x.new_empty(batch, w.shape[0], (height + 1) // 2, (width + 1) // 2)
    return torch.empty_like(output, memory_format=torch.channels_last)


@torch.library.custom_op("unipercept::image_conv2d_weight_gradient", mutates_args=())
def _weight_gradient(grad: Tensor, x: Tensor, w: Tensor, implementation: str) -> Tensor:
    """Gradient of `w`, in its type and layout."""
    x, grad = _laid_out(x), _laid_out(grad)
    if _chosen(x, w.shape, implementation) == "gpu":
        from unipercept.kernels.image_conv2d.gpu import weight_gradient_gpu

        return torch.empty_like(w).copy_(weight_gradient_gpu(grad, x))
    return torch.empty_like(w).copy_(_gradients(grad, x, w, [False, True, False])[1])


@_weight_gradient.register_fake
def _(grad: Tensor, x: Tensor, w: Tensor, implementation: str) -> Tensor:
    return torch.empty_like(w)


def _laid_out(x: Tensor) -> Tensor:
    """Dense and channels-last; see `dense` for the address."""
    return dense(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


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
    grad_x = _gradients(grad, x, w, [True, False, False])[0] if ctx.needs_input_grad[0] else None
    grad_w = _weight_gradient(grad, x, w, ctx.implementation) if ctx.needs_input_grad[1] else None
    return grad_x, grad_w, None


_operator.register_autograd(_backward, setup_context=_setup_context)
