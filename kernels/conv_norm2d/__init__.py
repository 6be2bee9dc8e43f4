"""A 3x3 convolution of stride 2 and the layer norm after it, as at the beginning of a stem.

    y = layer_norm(conv2d(x, w, stride 2, padding 1) + shift over D) * weight + bias,  or the exact GELU of that

An image has so few channels that the convolution takes as long as writing its result; with norm and GELU in the same
pass, that is not read and written again. On a CPU, convolutions of any width gain. On a GPU with clusters, convolutions
of more channels are one launch if there are few cells; the others are left to PyTorch. In training, the convolution of
an image is `image_conv2d`. Norms by themselves are `layer_norm2d`.

Shapes: B batch, C channels, H rows, W columns of the input, D channels of the result.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from unipercept.kernels.dense_weight import weight_for_conv2d
from unipercept.kernels.dispatch import WATCHED, autocast_dtype, choose_fused, is_watched, why_no_triton
from unipercept.kernels.image_conv2d import image_conv2d, takes
from unipercept.kernels.layer_norm2d import layer_norm2d

GPU_TYPES = (torch.bfloat16, torch.float16)
MAX_CHANNELS, MAX_WIDTH = 7, 256  # of the input and of the result


def conv_norm2d(
    x: Tensor,
    w: Tensor,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-6,
    gelu: bool = False,
    implementation: str | None = None,
) -> Tensor:
    """`y` of the module's docstring.

    Args:
        x: BxCxHxW; channels-last, else it is copied, but on a CPU where it has few channels.
        w: DxCx3x3, in the type of `x`.
        shift, weight, bias: D each, of any floating type.
        eps: added to the variance.
        gelu: whether the exact GELU comes after.
        implementation: "gpu" or "cpu" for one pass, which runs or raises; "reference" for the two operations. Without
            it, one pass on a GPU where the input has few channels or the result few cells, and in float32 on a CPU,
            where no gradient, compiler or mode of torch's needs to see the operations.

    Returns:
        BxDxH'xW' in the type of `x`, channels-last.

    Raises:
        InputError: an unknown implementation, or one pass asked for where it cannot be.
    """
    known, others = ("reference", "cpu", "gpu"), (shift, weight, bias)
    chosen = choose_fused("conv_norm2d", known, x, implementation, lambda name: _why_not(x, w, others, gelu, name))
    if chosen != "reference":
        given = x if chosen == "cpu" else x.contiguous(memory_format=torch.channels_last)
        return _one_pass(chosen, x.shape[1])(given, w, shift, weight, bias, eps, gelu)
    x = x.contiguous(memory_format=torch.channels_last)
    convolved = image_conv2d(x, w) if takes(x, w) else F.conv2d(x, weight_for_conv2d(x, w), None, 2, 1)
    return layer_norm2d(convolved, weight, bias, eps=eps, shift=shift, gelu=gelu)


def _one_pass(implementation: str, channels: int) -> Callable[..., Tensor]:
    """The fused implementation, imported on first use: its requirements may not be installed."""
    if implementation == "gpu" and channels > MAX_CHANNELS:
        from unipercept.kernels.conv_norm2d.gpu_few_cells import conv_norm2d_few_cells

        return conv_norm2d_few_cells
    if implementation == "gpu":
        from unipercept.kernels.conv_norm2d.gpu import conv_norm2d_gpu

        return conv_norm2d_gpu
    from unipercept.kernels.conv_norm2d.cpu import conv_norm2d_cpu

    return conv_norm2d_cpu


def _why_not(x: Tensor, w: Tensor, others: tuple[Tensor | None, ...], gelu: bool, implementation: str) -> str | None:
    if w.ndim != 4 or x.ndim != 4 or w.shape[1:] != (x.shape[1], 3, 3) or not x.numel():
        return f"it takes 3x3 kernels for a map that is not empty, got {tuple(w.shape)} and {tuple(x.shape)}"
    if any(t is not None and (t.shape != w.shape[:1] or t.device != x.device) for t in others) or w.device != x.device:
        return "the weights do not fit, or are on another device"
    if w.dtype != x.dtype or autocast_dtype(x) is not None:
        return f"map and kernel are not of one type, or autocast is on: {x.dtype}, {w.dtype}"
    if is_watched(x, w, *others):
        return WATCHED
    if implementation == "gpu":
        return _why_not_gpu(x, w, others, gelu)
    from unipercept.kernels.conv_norm2d import cpu  # on first use: what it needs may not be installed

    return cpu.why_not(x, (w, *others))


def _why_not_gpu(x: Tensor, w: Tensor, others: tuple[Tensor | None, ...], gelu: bool) -> str | None:
    """An image's few channels are for Triton, few cells of more channels for clusters."""
    if x.shape[1] <= MAX_CHANNELS:
        if not 8 <= w.shape[0] <= MAX_WIDTH:
            return f"it takes {MAX_CHANNELS} channels and less to 8 to {MAX_WIDTH}, got {x.shape[1]} to {w.shape[0]}"
        return why_no_triton(x, GPU_TYPES)
    if gelu:
        return "maps of many channels are for a norm without a GELU"
    if not x.is_cuda:
        return f"that needs an NVIDIA GPU, got a tensor on {x.device}"
    from unipercept.kernels.conv_norm2d import gpu_few_cells

    return gpu_few_cells.why_not(x, w, others)
