"""Training form to inference form: pure functions, folded in float64 and cast back once.

Shapes: C channels, D output features, E input features, K kernel size. Algebra: Ding et al. (2024), arXiv 2311.15599.
"""

import copy
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unipercept.blocks import Block, DepthwiseConv2d, DilatedReparamConv
from unipercept.errors import InputError


class Folded(NamedTuple):
    """A layer after folding, float64."""

    weight: Tensor
    bias: Tensor


def fuse_bn(weight: Tensor, bias: Tensor | None, norm: nn.Module) -> Folded:
    """A convolution or linear layer (output channels first) followed by a batch norm, as one layer."""
    scale, shift = bn_scale_shift(norm)
    bias64 = torch.zeros_like(shift) if bias is None else bias.double()
    return Folded(weight.double() * scale.view(-1, *[1] * (weight.ndim - 1)), shift + bias64 * scale)


def bn_scale_shift(norm: nn.Module) -> Folded:
    """A batch norm with its running statistics as y = scale * x + shift, C each.

    Raises:
        InputError: it is none, or has no weights or running statistics.
    """
    if not isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm) or norm.weight is None or norm.running_mean is None:
        raise InputError(f"batch norms with weights and running statistics can be merged, not {norm}")
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return Folded(scale, norm.bias.double() - norm.running_mean.double() * scale)


def densify(weight: Tensor, dilation: int) -> Tensor:
    """The kernel without dilation that does the same: `dilation - 1` zeros between taps."""
    rows, columns = ((size - 1) * dilation + 1 for size in weight.shape[-2:])
    dense = weight.new_zeros(*weight.shape[:2], rows, columns)
    dense[:, :, ::dilation, ::dilation] = weight
    return dense


def plain(layer: DepthwiseConv2d) -> Folded:
    """A layer as it is."""
    weight = layer.weight.double()
    return Folded(weight, weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.double())


def merge_branches(conv: DilatedReparamConv) -> Folded:
    """The large kernel and its dilated branches, each with its norm, as one Cx1xKxK kernel with a bias."""
    if not conv.branches:
        return plain(conv.lk_origin)
    merged = fuse_bn(conv.lk_origin.weight, conv.lk_origin.bias, conv.origin_bn)
    size = merged.weight.shape[-1]
    for branch, norm in conv.branch_layers():
        folded = fuse_bn(branch.weight, branch.bias, norm)
        dense = densify(folded.weight, branch.dilation)
        border = (size - dense.shape[-1]) // 2
        merged = Folded(merged.weight + F.pad(dense, [border] * 4), merged.bias + folded.bias)
    return merged


def fold_spatial(block: Block) -> Folded | None:
    """The depthwise convolution of a block with its branches and both norms folded in; None for kernel size 0."""
    layer = block.spatial
    if layer is None:
        return None
    if isinstance(block.dwconv, DilatedReparamConv):
        merged = merge_branches(block.dwconv)
        return fuse_bn(merged.weight, merged.bias, block.norm)
    return fuse_bn(layer.weight, layer.bias, block.norm)


def fold_contract(block: Block) -> Folded:
    """The second linear layer of a block with GRN's bias, the norm after it and the layer scale folded in."""
    norm, beta = block.pwconv2[2], block.response_norm.beta
    assert beta is not None
    # GRN adds beta after its normalisation, so that it passes the linear layer as a constant.
    passed = block.contract.weight.double() @ beta.double().flatten()
    folded = fuse_bn(block.contract.weight, passed, norm)
    if block.gamma is None:
        return folded
    gamma = block.gamma.double()
    return Folded(folded.weight * gamma[:, None], folded.bias * gamma)


Model = TypeVar("Model", bound=nn.Module)


def reparameterize(model: Model) -> Model:
    """A copy of `model` in inference form, in eval mode: dilated branches, norms and layer scale
    are merged into single layers.

    The argument is left unchanged; a second call changes nothing. The two forms give the same output in eval mode
    (running statistics), up to rounding.

    Raises:
        InputError: a block has a layer of another kind, such as an adapter around one, or a norm without statistics.

    >>> model = unipercept.build_backbone("unireplknet_a").eval()
    >>> merged = unipercept.reparameterize(model)
    >>> x = torch.randn(1, 3, 64, 64)
    >>> torch.allclose(model(x), merged(x), atol=1e-4)
    True
    """
    blocks = [block for block in model.modules() if isinstance(block, Block) and not block.deploy]
    with torch.no_grad():
        merged_blocks = {id(block): _merged_block(block) for block in blocks}
    merged = copy.deepcopy(model, merged_blocks).eval()  # the memo: deepcopy takes these as copies already made
    if hasattr(merged, "deploy"):
        setattr(merged, "deploy", True)  # noqa: B010 - the type checker takes a plain assignment for a submodule
    return merged


def _merged_block(block: Block) -> Block:
    for replaced in (block.replaced_layer(), block.replaced_convolution()):
        if replaced is not None:
            raise InputError(
                f"a block can be merged with its own layers alone, not with a {type(replaced).__name__}: merge adapters into "
                "the weights of their layers first"
            )
    like = block.expand.weight
    merged = Block(block.channels, block.kernel_size, block.drop_path.rate, deploy=True).to(like.device, like.dtype)
    merged.se, merged.pwconv1 = copy.deepcopy((block.se, block.pwconv1))
    merged.response_norm.gamma.copy_(block.response_norm.gamma)
    _fill(merged.contract, fold_contract(block))
    spatial = fold_spatial(block)
    if spatial is not None:
        _fill(merged.spatial, spatial)
        _set_as(merged.spatial, block)
    return merged.eval()


def _set_as(layer: nn.Module | None, block: Block) -> None:
    """Give the merged convolution the dilation and padding that those of the block were set to."""
    assert isinstance(layer, DepthwiseConv2d)
    assert block.spatial is not None
    layer.dilation, layer.padding = block.spatial.dilation, block.spatial.padding
    branches = list(block.dwconv.branch_layers()) if isinstance(block.dwconv, DilatedReparamConv) else []
    if branches and (layer.dilation > 1 or any(branch.padding != layer.padding for branch, _ in branches)):
        raise InputError("branches are merged where the large kernel has no dilation and all have the same padding")


def _fill(layer: nn.Module | None, folded: Folded) -> None:
    assert isinstance(layer, nn.Linear | DepthwiseConv2d)
    assert layer.bias is not None
    layer.weight.copy_(folded.weight)
    layer.bias.copy_(folded.bias)
