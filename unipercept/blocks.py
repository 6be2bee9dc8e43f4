"""The parts of a stage: the dilated re-parameterised convolution, squeeze-excite, GRN, and the block that joins them.

Module and parameter names follow the official checkpoints, so that these load strictly.

Shapes: B batch, C channels, H rows, W columns.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unipercept.batch_norms import (
    stacked_parameters,
    summed_norms,
    take_batch_statistics,
    update_statistics,
    wide_parameters,
)
from unipercept.errors import InputError
from unipercept.hooks import has_hooks, has_hooks_inside
from unipercept.kernels import (
    branch_norm_sum,
    conv_norm2d,
    depthwise_conv2d,
    depthwise_conv2d_with_sums,
    feed_forward,
    feed_forward_train,
    folded_blocks,
    folded_stages,
    layer_norm2d,
    normed_feed_forward_train,
)
from unipercept.kernels.branch_norm_sum import is_merged
from unipercept.kernels.depthwise_conv2d.padding import Padding
from unipercept.kernels.folded_blocks import BlockWeights
from unipercept.kernels.folded_stages import ConvNormWeights, Stage

# Kernel size to (branch kernel, dilation); arXiv 2311.15599, appendix, as the released code has it.
BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 2), (3, 3)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}
PLAIN_KERNELS = (3, 5)
BATCH_NORM_EPS = 1e-5
LAYER_NORM_EPS = 1e-6
GRN_EPS = 1e-6
FFN_RATIO = 4


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a BxCxHxW map."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm2d(x, self.weight, self.bias, eps=self.eps)


class ConvNorm(nn.Sequential):
    """3x3 convolutions of stride 2, each with its norm, and a GELU between them: [conv, norm] or
    [conv, norm, GELU, conv, norm].

    A sequence with the keys of the official files. The norms' kernels also add the
    convolutions' biases and apply the GELU. Where a layer has a hook, was replaced or set otherwise (another stride,
    say), the layers are called one after the other instead.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.calls_layers():
            return cast(Tensor, nn.Sequential.forward(self, x))  # type: ignore[no-untyped-call]
        for w, shift, weight, bias, eps, gelu in self.weights():
            x = conv_norm2d(x, w, shift, weight, bias, eps=eps, gelu=gelu)
        return x

    def calls_layers(self) -> bool:
        """Whether the layers are called, since their weights do not say all that they do."""
        layers = list(self)
        said = len(layers) % 3 == 2 and all(_says_all(layer, DOWNSAMPLING[i % 3]) for i, layer in enumerate(layers))
        return not said or has_hooks_inside(self)

    def weights(self) -> list[ConvNormWeights]:
        """The parameters of each convolution with its norm, as `folded_stages` and `conv_norm2d` take them."""
        layers, found = list(self), []
        for i in range(0, len(layers), 3):
            conv, norm = layers[i], layers[i + 1]
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, LayerNorm2d)
            found.append(ConvNormWeights(conv.weight, conv.bias, norm.weight, norm.bias, norm.eps, i + 2 < len(layers)))
        return found


class DepthwiseConv2d(nn.Module):
    """A KxK convolution of each channel by itself, stride 1, with padding that keeps the size."""

    def __init__(
        self, channels: int, kernel_size: int, dilation: int = 1, bias: bool = False, padding: Padding = "zero"
    ) -> None:
        super().__init__()
        self.dilation, self.padding = dilation, padding
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv2d(x, self.weight, self.bias, dilation=self.dilation, padding=self.padding)


class DilatedReparamConv(nn.Module):
    """A large depthwise kernel beside dilated small ones, each with its batch norm; summed.

    Merged to one kernel for inference.

    Args:
        has_branches: False leaves the large kernel alone, with a bias: the inference form,
            and a form that trains faster.
    """

    def __init__(self, channels: int, kernel_size: int, has_branches: bool = True) -> None:
        super().__init__()
        self.lk_origin = DepthwiseConv2d(channels, kernel_size, bias=not has_branches)
        self.branches = BRANCHES[kernel_size] if has_branches else ()
        if not has_branches:
            return
        self.origin_bn = nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS)
        for k, r in self.branches:
            self.add_module(f"dil_conv_k{k}_{r}", DepthwiseConv2d(channels, k, dilation=r))
            self.add_module(f"dil_bn_k{k}_{r}", nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS))

    def forward(self, x: Tensor) -> Tensor:
        if not self.branches:
            y: Tensor = self.lk_origin(x)
            return y
        dilated, dilated_norms = zip(*self.branch_layers(), strict=True)
        layers, norms = (self.lk_origin, *dilated), (self.origin_bn, *dilated_norms)
        if has_hooks_inside(self):
            return cast(Tensor, sum(norm(layer(x)) for layer, norm in zip(layers, norms, strict=True)))
        kernels, dilations = [layer.weight.shape[-1] for layer in layers], [layer.dilation for layer in layers]
        are_plain = all(_is_kind(layer, DepthwiseConv2d) and layer.padding == "zero" for layer in layers)
        if not (are_plain and take_batch_statistics(norms) and is_merged(x, kernels, dilations)):
            return summed_norms([layer(x) for layer in layers], norms)
        weights = [layer.weight for layer in layers]
        total, means, variances = branch_norm_sum(
            x, weights, *stacked_parameters(norms), dilations=dilations, eps=norms[0].eps
        )
        update_statistics(norms, means, variances, x.numel() // x.shape[1])
        return total

    def branch_layers(self) -> Iterator[tuple[DepthwiseConv2d, nn.BatchNorm2d]]:
        """Each dilated branch with its norm; none where the large kernel is alone."""
        for k, r in self.branches:
            yield getattr(self, f"dil_conv_k{k}_{r}"), getattr(self, f"dil_bn_k{k}_{r}")


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the map's mean. Source: Hu et al. (2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels // 4, 1)
        self.up = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.up(F.relu(self.down(x.mean(dim=(2, 3), keepdim=True))))
        return x * gate.sigmoid()


class GlobalResponseNorm(nn.Module):
    """GRN on BxHxWxC, with the identity inside. Source: Woo et al. (2023), ConvNeXt V2."""

    def __init__(self, channels: int, bias: bool = True) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()  # a sum of squares overflows half precision on large maps
        norm = torch.linalg.vector_norm(wide, dim=(1, 2), keepdim=True)
        norm = (norm / (norm.mean(dim=-1, keepdim=True) + GRN_EPS)).to(x.dtype)
        y: Tensor = (self.gamma * norm + 1) * x
        return y if self.beta is None else y + self.beta


def channels_last(x: Tensor) -> Tensor:
    """BxCxHxW as contiguous BxHxWxC; of a channels-last map this is a view."""
    return x.permute(0, 2, 3, 1).contiguous()


class DropPath(nn.Module):
    """Stochastic depth: drop a sample's whole residual with probability `rate`, rescale the rest. Training only."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:  # at 1 every sample would be 0 / 0
            raise InputError(f"drop_path_rate must be at least 0 and below 1, got {rate:g}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        scale = self.sample_scale(x)
        return x if scale is None else x * scale.view(-1, *[1] * (x.ndim - 1))

    def sample_scale(self, x: Tensor) -> Tensor | None:
        """Random factors for the B samples, drawn anew; None if nothing is dropped."""
        if not self.training or self.rate == 0:
            return None
        keep = 1 - self.rate
        return x.new_empty(x.shape[0]).bernoulli_(keep) / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class ToChannelsLast(nn.Module):
    """BxCxHxW to BxHxWxC."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class ToChannelsFirst(nn.Module):
    """BxHxWxC to BxCxHxW."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2).contiguous()


# The layers of a `ConvNorm` in turn.
DOWNSAMPLING = (nn.Conv2d, LayerNorm2d, nn.GELU)
# Of a block, those that are called only where one has a hook or is of another kind; operations take their weights.
LAYERS_BY_WEIGHTS = (
    ("se", "down", nn.Conv2d),
    ("se", "up", nn.Conv2d),
    ("pwconv1", "1", nn.Linear),
    ("act", "0", nn.GELU),
    ("act", "1", GlobalResponseNorm),
    ("pwconv2", "0", nn.Linear),
)


class Block(nn.Module):
    """One residual unit: depthwise convolution, squeeze-excite, then a feed-forward with GRN.

    A few operations compute it with the weights of its layers. Where a layer has a hook or was replaced (by an
    adapter, say), the layers are called one after the other instead, which is slower.

    Args:
        channels: C.
        kernel_size: 0 (no convolution), 3 or 5 (plain), or a size in `BRANCHES` from 7 up (dilated re-parameterised).
        drop_path_rate: of this block.
        layer_scale: initial value of the learned scale on the residual; None or <= 0 for none.
        deploy: build the inference form, with norms, branches and layer scale folded away.
        has_branches: in the training form, keep the dilated branches beside a large kernel.

    Raises:
        InputError: another kernel size.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        drop_path_rate: float = 0.0,
        layer_scale: float | None = 1e-6,
        deploy: bool = False,
        has_branches: bool = True,
    ) -> None:
        super().__init__()
        self.channels, self.kernel_size, self.deploy = channels, kernel_size, deploy
        self.dwconv = _spatial_mixer(channels, kernel_size, deploy, has_branches)
        self.norm = nn.Identity() if deploy or kernel_size == 0 else nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS)
        self.se = SqueezeExcite(channels)
        self.pwconv1 = nn.Sequential(ToChannelsLast(), nn.Linear(channels, FFN_RATIO * channels))
        self.act = nn.Sequential(nn.GELU(), GlobalResponseNorm(FFN_RATIO * channels, bias=not deploy))
        self.pwconv2 = nn.Sequential(nn.Linear(FFN_RATIO * channels, channels, bias=deploy), ToChannelsFirst())
        if not deploy:
            self.pwconv2.append(nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS))
        scaled = not deploy and layer_scale is not None and layer_scale > 0
        self.gamma = nn.Parameter(torch.full((channels,), float(layer_scale or 0))) if scaled else None
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        if self.calls_layers():
            y = self.pwconv2(self.act(self.pwconv1(self.se(self.norm(self.dwconv(x))))))
            scaled: Tensor = y if self.gamma is None else y * self.gamma.view(1, -1, 1, 1)
            return cast(Tensor, x + self.drop_path(scaled))
        if self.deploy:
            return self._forward_folded(x)
        y = self._normed_and_fed_forward(self.dwconv(x)).permute(0, 3, 1, 2)
        last = cast(nn.BatchNorm2d, self.pwconv2[2])
        return summed_norms(
            [y], [last], residual=x, layer_scale=self.gamma, sample_scale=self.drop_path.sample_scale(x)
        )

    def _normed_and_fed_forward(self, y: Tensor) -> Tensor:
        """The training form of BxCxHxW, without the norm that comes after it: BxHxWxC."""
        norm = self.norm
        if not isinstance(norm, nn.BatchNorm2d) or not take_batch_statistics([norm]):
            return feed_forward_train(channels_last(norm(y)), *self._pointwise_weights())
        fed, mean, variance = normed_feed_forward_train(
            channels_last(y), *wide_parameters(norm), *self._pointwise_weights(), eps=norm.eps
        )
        update_statistics([norm], mean[None], variance[None], y.numel() // y.shape[1])
        return fed

    def _forward_folded(self, x: Tensor) -> Tensor:
        """The inference form; convolution and squeeze-excite's sums are one pass, the feed-forward is two."""
        layer, sums, y = self.spatial, None, x
        if layer is not None:
            y, sums = depthwise_conv2d_with_sums(
                x, layer.weight, layer.bias, dilation=layer.dilation, padding=layer.padding
            )
        if self.training and self.drop_path.rate > 0:
            dropped: Tensor = self.drop_path(self._fed_forward(y, torch.zeros_like(x), sums))
            return x + dropped
        return self._fed_forward(y, x, sums)

    def _fed_forward(self, y: Tensor, residual: Tensor, sums: Tensor | None) -> Tensor:
        *se_and_first, gamma, _, w2, b2 = self._pointwise_weights()
        down_w, down_b, up_w, up_b, w1, b1 = se_and_first
        y, residual = channels_last(y), channels_last(residual)
        output = feed_forward(y, residual, down_w, down_b, up_w, up_b, w1, b1, gamma, w2, b2, sums=sums)
        return output.permute(0, 3, 1, 2)

    def _pointwise_weights(self) -> tuple[Any, ...]:
        """The weights of squeeze-excite, the two linear layers and GRN, in the order of `feed_forward_train`."""
        se, first, norm, second = self.se, self.expand, self.response_norm, self.contract
        squeeze = (se.down.weight, se.down.bias, se.up.weight, se.up.bias)
        return (*squeeze, first.weight, first.bias, norm.gamma, norm.beta, second.weight, second.bias)

    def calls_layers(self) -> bool:
        """Whether the layers are called, since their weights do not say all that they do."""
        is_replaced = self.replaced_layer() is not None or (self.deploy and self.replaced_convolution() is not None)
        return is_replaced or has_hooks_inside(self)

    def replaced_layer(self) -> nn.Module | None:
        """A layer that computes otherwise than the kind of layer whose weights are taken, or None."""
        modules = cast(dict[str, Any], self._modules)
        for part, name, kind in LAYERS_BY_WEIGHTS:
            layer = modules[part]._modules.get(name, modules[part])
            if not (_is_kind(layer, kind) and (kind is not nn.GELU or layer.approximate == "none")):
                return cast(nn.Module, layer)
        return None

    def replaced_convolution(self) -> nn.Module | None:
        """The same of the depthwise convolution (the large one of a dilated re-parameterised one)."""
        layer = _large(self._modules["dwconv"])
        return None if _is_kind(layer, DepthwiseConv2d if self.kernel_size else nn.Identity) else layer

    def folded_weights(self) -> BlockWeights:
        """The weights of the inference form of a block with a convolution."""
        try:
            return self._folded_weights_by_name()
        except KeyError:  # parametrised weights are no parameters of their layer
            assert self.spatial is not None
            *others, gamma, _, w2, b2 = self._pointwise_weights()
            return BlockWeights._make((self.spatial.weight, self.spatial.bias, *others, gamma, w2, b2))

    def _folded_weights_by_name(self) -> BlockWeights:
        """Past the attributes of modules, which take as long as a small kernel, all in all."""
        layers = cast(dict[str, Any], self._modules)
        spatial = layers["dwconv"]._modules.get("lk_origin", layers["dwconv"])._parameters
        down, up = (layers["se"]._modules[name]._parameters for name in ("down", "up"))
        first, second = (layers[name]._modules[i]._parameters for name, i in (("pwconv1", "1"), ("pwconv2", "0")))
        gamma = layers["act"]._modules["1"]._parameters["gamma"]
        return BlockWeights(
            spatial["weight"], spatial["bias"], down["weight"], down["bias"], up["weight"], up["bias"],
            first["weight"], first["bias"], gamma, second["weight"], second["bias"],
        )  # fmt: skip

    @property
    def expand(self) -> nn.Linear:
        """The first linear layer of the feed-forward."""
        return cast(nn.Linear, self.pwconv1[1])

    @property
    def response_norm(self) -> GlobalResponseNorm:
        """The GRN of the feed-forward."""
        return cast(GlobalResponseNorm, self.act[1])

    @property
    def contract(self) -> nn.Linear:
        """The second linear layer of the feed-forward."""
        return cast(nn.Linear, self.pwconv2[0])

    @property
    def spatial(self) -> DepthwiseConv2d | None:
        """The depthwise convolution (the large one of a dilated re-parameterised one); None for kernel size 0."""
        layer = self.dwconv.lk_origin if isinstance(self.dwconv, DilatedReparamConv) else self.dwconv
        return layer if isinstance(layer, DepthwiseConv2d) else None


def through_stages(
    downsample_layers: Iterable[nn.Module], stages: Iterable[Iterable[nn.Module]], x: Tensor
) -> list[Tensor]:
    """The map after each stage. Stages in inference form are one call of `folded_stages`: on a CPU, one plan."""
    parts = [(downsample, list(stage)) for downsample, stage in zip(downsample_layers, stages, strict=True)]
    if all(_is_plain(downsample) and all(map(_is_folded, blocks)) for downsample, blocks in parts):
        return folded_stages(
            x, [Stage(cast(ConvNorm, d).weights(), [cast(Block, b).folded_weights() for b in s]) for d, s in parts]
        )
    maps = []
    for downsample, blocks in parts:
        x = through(blocks, downsample(x))
        maps.append(x)
    return maps


def through(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    """BxCxHxW through one block after the other.

    Blocks in inference form are one call of `folded_blocks`: perhaps a single launch.
    """
    blocks = list(blocks)
    if all(_is_folded(b) for b in blocks):
        return folded_blocks(x, [cast(Block, b).folded_weights() for b in blocks])
    for block in blocks:
        x = block(x)
    return x


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """A block with activation checkpointing, whose running statistics are still updated only once per batch."""
    if torch.compiler.is_compiling():  # a compiler handles the statistics by itself
        return cast(Tensor, checkpoint(block, x, use_reentrant=False))
    return cast(
        Tensor, checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _buffers_restored(block)))
    )


@contextmanager
def _buffers_restored(block: nn.Module) -> Iterator[None]:
    """Restores all buffers of the block when the context ends."""
    before = [buffer.clone() for buffer in block.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, kept in zip(block.buffers(), before, strict=True):
                buffer.copy_(kept)


def _is_plain(downsample: nn.Module) -> bool:
    """Whether the downsampling layer is fully described by its weights."""
    return type(downsample) is ConvNorm and not has_hooks(downsample) and not downsample.calls_layers()


def _says_all(layer: Any, kind: type[nn.Module]) -> bool:
    """Whether the weights of a layer of a `ConvNorm` say all that it does."""
    if not _is_kind(layer, kind):
        return False
    if kind is nn.Conv2d:
        settings = layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode
        return settings == ((2, 2), (1, 1), (1, 1), 1, "zeros")
    return kind is not nn.GELU or layer.approximate == "none"


def _is_kind(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is of that kind, or computes as one does (with parametrised weights, say)."""
    return type(layer) is kind or type(layer).forward is kind.forward


def _is_folded(block: nn.Module) -> bool:
    """Whether the block is fully described by its weights: inference form, no stochastic depth, no hooks."""
    return (
        type(block) is Block
        and block.deploy
        and block.kernel_size > 0
        and block.replaced_convolution() is None
        and _pads_zeros(_large(block._modules["dwconv"]))
        and not (block.training and block.drop_path.rate > 0)
        and not has_hooks(block)
        and block.replaced_layer() is None
        and not has_hooks_inside(block)
    )


def _large(mixer: Any) -> Any:
    """The large convolution of a dilated re-parameterised one; another layer as it is."""
    return mixer._modules["lk_origin"] if type(mixer) is DilatedReparamConv else mixer


def _pads_zeros(layer: DepthwiseConv2d) -> bool:
    """Whether it is a convolution without dilation and with zeros beyond the map."""
    return layer.dilation == 1 and layer.padding == "zero"


def _spatial_mixer(channels: int, kernel_size: int, deploy: bool, has_branches: bool) -> nn.Module:
    if kernel_size == 0:
        return nn.Identity()
    if kernel_size in PLAIN_KERNELS:
        return DepthwiseConv2d(channels, kernel_size, bias=deploy)
    if kernel_size in BRANCHES:
        return DilatedReparamConv(channels, kernel_size, has_branches and not deploy)
    raise InputError(
        f"kernel size must be 0, {', '.join(str(k) for k in sorted({*PLAIN_KERNELS, *BRANCHES}))}; got {kernel_size}"
    )
