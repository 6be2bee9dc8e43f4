"""The mean of a map over its cells and its layer norm: the beginning of a classifier's head.

    y = layer_norm(mean of x over H and W) * weight + bias

For one image these are two launches of some microseconds each with little work. Here they are one, and `pooled_logits`
includes the product with the classifier's matrix.

Shapes: B batch, C channels, H rows, W columns, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from unipercept.kernels.dispatch import WATCHED, autocast_dtype, choose_fused, is_watched, why_no_triton

GPU_TYPES = (torch.bfloat16, torch.float16)
MAX_CHANNELS = 4096  # that a program holds in registers, sixteen cells of each at a time


def pooled_norm(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-6, implementation: str | None = None
) -> Tensor:
    """`y` of the module's docstring.

    Args:
        x: BxCxHxW; one launch needs it channels-last.
        weight, bias: C each, in the type of `x`.
        eps: added to the variance.
        implementation: "gpu" for one launch, which runs or raises; "reference" for the two operations. Without it, one
            launch on a GPU in 16-bit types where no gradient, compiler or mode of torch's needs to see the operations.

    Returns:
        BxC in the type of `x`.

    Raises:
        InputError: an unknown implementation, or one launch asked for where it cannot be.
    """
    known = ("reference", "gpu")
    if choose_fused("pooled_norm", known, x, implementation, lambda name: _why_not(x, weight, bias)) == "gpu":
        from unipercept.kernels.pooled_norm.gpu import pooled_norm_gpu  # on first use: a CPU install needs no Triton

        return pooled_norm_gpu(x, weight, bias, eps)
    return F.layer_norm(x.mean(dim=(2, 3)), weight.shape, weight, bias, eps)


def pooled_logits(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    matrix: Tensor,
    offsets: Tensor | None,
    *,
    eps: float = 1e-6,
    implementation: str | None = None,
) -> Tensor:
    """`pooled_norm`, and its products with a matrix: a classifier's head.

    Args:
        x, weight, bias, eps: see `pooled_norm`.
        matrix, offsets: KxC, and K or None, in the type of `x`.
        implementation: "gpu" for one launch, which runs or raises; "reference" for one operation after the
            other, each by the path that its own dispatcher picks. Without it, one launch where `pooled_norm` is
            one and images and classes are few.

    Returns:
        BxK in the type of `x`.

    Raises:
        InputError: an unknown implementation, or one launch asked for where it cannot be.
    """

    def why_not(name: str) -> str | None:
        return _why_not(x, weight, bias) or _why_no_logits(x, matrix, offsets)

    if choose_fused("pooled_logits", ("reference", "gpu"), x, implementation, why_not) == "gpu":
        from unipercept.kernels.pooled_norm.gpu_logits import pooled_logits_gpu

        return pooled_logits_gpu(x, weight, bias, matrix, offsets, eps)
    return F.linear(pooled_norm(x, weight, bias, eps=eps), matrix, offsets)


def _why_no_logits(x: Tensor, matrix: Tensor, offsets: Tensor | None) -> str | None:
    k = matrix.shape[0]
    given = [(matrix, (k, x.shape[1])), (offsets, (k,))]
    if any(t is not None and (t.shape != n or t.dtype != x.dtype or t.device != x.device) for t, n in given) or k == 0:
        return "the matrix does not fit, or is of another type or on another device"
    if is_watched(x, matrix, offsets):
        return WATCHED
    from unipercept.kernels.pooled_norm.gpu_logits import why_not

    return why_not(x, matrix)


def _why_not(x: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    if x.ndim != 4 or not x.numel() or x.shape[1] > MAX_CHANNELS:
        return f"it takes maps of 1 to {MAX_CHANNELS} channels, got {tuple(x.shape)}"
    if not x.is_contiguous(memory_format=torch.channels_last):
        return "the map is not channels-last"
    if any(t.shape != x.shape[1:2] or t.device != x.device or t.dtype != x.dtype for t in (weight, bias)):
        return "the weights do not fit, or are of another type or on another device"
    if autocast_dtype(x) is not None:
        return "autocast is on"
    if is_watched(x, weight, bias):
        return WATCHED
    return why_no_triton(x, GPU_TYPES)
