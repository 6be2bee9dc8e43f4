"""Training form to inference form: pure functions, folded in float64 and cast back once.

Shapes: C channels, D output features, E input features, K kernel size. Algebra: Ding et al. (2024), arXiv 2311.15599.
"""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unipercept.blocks import Block, DilatedReparamConv


class Folded(NamedTuple):
    """A layer after folding, float64."""

    weight: Tensor
    bias: Tensor


def fuse_bn(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> Folded:
    """A convolution or linear layer (output channels first) followed by a batch norm, as one layer."""
    scale, shift = bn_scale_shift(norm)
    bias64 = torch.zeros_like(shift) if bias is None else bias.double()
    return Folded(weight.double() * scale.view(-1, *[1] * (weight.ndim - 1)), shift + bias64 * scale)


def bn_scale_shift(norm: nn.BatchNorm2d) -> Folded:
    """A batch norm with its running statistics as y = scale * x + shift, C each."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return Folded(scale, norm.bias.double() - norm.running_mean.double() * scale)


def densify(weight: Tensor, dilation: int) -> Tensor:
    """The kernel without dilation that does the same: `dilation - 1` zeros between taps."""
    rows, columns = ((size - 1) * dilation + 1 for size in weight.shape[-2:])
    dense = weight.new_zeros(*weight.shape[:2], rows, columns)
    dense[:, :, ::dilation, ::dilation] = weight
    return dense


def merge_branches(conv: DilatedReparamConv) -> Folded:
    """The large kernel and its dilated branches, each with its norm, as one Cx1xKxK kernel with a bias."""
    merged = fuse_bn(conv.lk_origin.weight, conv.lk_origin.bias, conv.origin_bn)
    size = merged.weight.shape[-1]
    for branch, norm in conv.branch_layers():
        folded = fuse_bn(branch.weight, branch.bias, norm)
        dense = densify(folded.weight, branch.dilation)
        border = (size - dense.shape[-1]) // 2
        merged = Folded(merged.weight + F.pad(dense, [border] * 4), merged.bias + folded.bias)
    return merged


def fold_block(block: Block) -> dict[str, Folded]:
    """The depthwise convolution and the second linear layer of a block, with norms, GRN bias and layer scale folded in."""
    folded = {}
    if isinstance(block.norm, nn.BatchNorm2d):
        conv = block.dwconv
        if isinstance(conv, DilatedReparamConv):
            weight, bias = merge_branches(conv) if conv.branches else (conv.lk_origin.weight, conv.lk_origin.bias)
        else:
            weight, bias = conv.weight, conv.bias
        folded["dwconv"] = fuse_bn(weight, bias, block.norm)
    linear, norm, response = block.pwconv2[0], block.pwconv2[2], block.act[1]
    # GRN adds beta after its normalisation, so that it passes the linear layer as a constant.
    passed = linear.weight.double() @ response.beta.double().flatten()
    bias = passed if linear.bias is None else passed + linear.bias.double()
    weight, bias = fuse_bn(linear.weight, bias, norm)
    if block.gamma is not None:
        gamma = block.gamma.double()
        weight, bias = weight * gamma[:, None], bias * gamma
    folded["pwconv2"] = Folded(weight, bias)
    return folded


def reparameterize(model: nn.Module) -> nn.Module:
    """A copy of `model` in inference form, in eval mode; the argument is left alone. Doing it twice changes nothing.

    The two forms give the same output in eval mode (running statistics), up to rounding.
    """
    merged = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, block in list(merged.named_modules()):
            if isinstance(block, Block) and not block.deploy:
                merged.set_submodule(name, _merged_block(block))
    if hasattr(merged, "deploy"):
        merged.deploy = True
    return merged


def _merged_block(block: Block) -> Block:
    folded = fold_block(block)
    like = block.pwconv1[1].weight
    merged = Block(block.channels, block.kernel_size, drop_path_rate=block.drop_path.rate, deploy=True)
    merged = merged.to(device=like.device, dtype=like.dtype)
    merged.se, merged.pwconv1 = block.se, block.pwconv1
    merged.act[1].gamma.copy_(block.act[1].gamma)
    for name, (weight, bias) in folded.items():
        layer = merged.pwconv2[0] if name == "pwconv2" else getattr(merged.dwconv, "lk_origin", merged.dwconv)
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return merged.eval()
