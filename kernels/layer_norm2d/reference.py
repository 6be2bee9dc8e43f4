"""The reference in plain PyTorch.

Shapes: B batch, C channels, H rows, W columns.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm2d_reference(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, eps: float, gelu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The output BxCxHxW; mean and reciprocal standard deviation, BxHxW each."""
    wide = _wide(x, shift)
    output, mean, scale = torch.native_layer_norm(wide, [x.shape[1]], weight.to(wide.dtype), bias.to(wide.dtype), eps)
    output = F.gelu(output) if gelu else output
    return output.to(x.dtype).permute(0, 3, 1, 2), mean[..., 0], scale[..., 0]


def layer_norm2d_backward_reference(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    mean: Tensor,
    scale: Tensor,
    gelu: bool,
) -> tuple[Tensor, Tensor]:
    """Gradient of x, BxCxHxW; gradients of weight, bias and shift, 3xC."""
    normal = (_wide(x, shift) - mean[..., None]) * scale[..., None]  # BxHxWxC from here on
    pull = grad.permute(0, 2, 3, 1).to(normal.dtype)
    if gelu:
        before = normal * weight + bias
        pull = pull * (
            0.5 * (1 + torch.erf(before / math.sqrt(2))) + before * torch.exp(-0.5 * before**2) / math.sqrt(2 * math.pi)
        )
    inner = pull * weight
    across = inner.mean(dim=-1, keepdim=True) + normal * (inner * normal).mean(dim=-1, keepdim=True)
    grad_x = (inner - across) * scale[..., None]
    others = torch.stack([(pull * normal).sum(dim=(0, 1, 2)), pull.sum(dim=(0, 1, 2)), grad_x.sum(dim=(0, 1, 2))])
    return grad_x.to(x.dtype).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last), others


def _wide(x: Tensor, shift: Tensor | None) -> Tensor:
    """BxHxWxC with the shift added, in float32 or float64."""
    wide = x.permute(0, 2, 3, 1).to(torch.promote_types(x.dtype, torch.float32)).contiguous()
    return wide if shift is None else wide + shift
