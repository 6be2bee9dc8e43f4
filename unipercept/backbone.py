"""UniRepLKNet: the one network behind every modality. Sources: arXiv 2311.15599 and 2410.08049.

Shapes: B batch, C channels, H rows, W columns, N classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor, nn

from unipercept.blocks import (
    LAYER_NORM_EPS,
    Block,
    ConvNorm,
    DepthwiseConv2d,
    LayerNorm2d,
    recomputed,
    through_stages,
)
from unipercept.errors import InputError
from unipercept.hooks import has_hooks
from unipercept.kernels import pooled_logits, pooled_norm
from unipercept.van import VAN, VAN_VARIANTS, build_van

INITIAL_STD = 0.02
SEEDED_LAYER_SCALE = 0.1
OVERRIDES = frozenset({"depths", "dims", "kernel_sizes", "drop_path_rate", "layer_scale_init_value", "head_init_scale"})


@dataclass(frozen=True)
class Variant:
    """Sizes of a published model: blocks and channels of the four stages, and the repeating
    kernel pattern of the third.
    """

    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]
    stage3_pattern: tuple[int, ...]

    @property
    def kernel_sizes(self) -> tuple[tuple[int, ...], ...]:
        """A tuple a stage, an entry a block: 3 in the first stage, 13 in the second and
        fourth, the pattern in the third.
        """
        first, second, third, fourth = self.depths
        return ((3,) * first, (13,) * second, (self.stage3_pattern * third)[:third], (13,) * fourth)


def _variant(depths: tuple[int, int, int, int], width: int, stage3_pattern: tuple[int, ...]) -> Variant:
    return Variant(depths, (width, 2 * width, 4 * width, 8 * width), stage3_pattern)


VARIANTS: dict[str, Variant] = {
    "unireplknet_a": _variant((2, 2, 6, 2), 40, (13,)),
    "unireplknet_f": _variant((2, 2, 6, 2), 48, (13,)),
    "unireplknet_p": _variant((2, 2, 6, 2), 64, (13,)),
    "unireplknet_n": _variant((2, 2, 8, 2), 80, (13,)),
    "unireplknet_t": _variant((3, 3, 18, 3), 80, (13, 3)),
    "unireplknet_s": _variant((3, 3, 27, 3), 96, (13, 3, 3)),
    "unireplknet_b": _variant((3, 3, 27, 3), 128, (13, 3, 3)),
    "unireplknet_l": _variant((3, 3, 27, 3), 192, (13, 3, 3)),
    "unireplknet_xl": _variant((3, 3, 27, 3), 256, (13, 3, 3)),
}


class UniRepLKNet(nn.Module):
    """A ConvNet of four stages with large depthwise kernels; attributes and methods follow timm's conventions.

    Any H, W >= 1 works: each of the five convolutions of stride 2 maps n to ceil(n / 2). The module names are
    those of the official files.

    Args:
        depths: blocks in each of the four stages.
        dims: channels of each stage.
        kernel_sizes: a tuple a stage, an entry a block; see `Block`.
        in_channels: C of the input.
        num_classes: N of the head; 0 for none.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        layer_scale_init_value: see `Block`.
        deploy: build the inference form.
        has_branches: keep the dilated branches of the training form; without them large kernels train alone, faster.
        head_init_scale: factor on the head's initial weights; 0.001 is published for fine-tuning.

    Raises:
        InputError: sizes that do not fit together.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        kernel_sizes: Sequence[Sequence[int]],
        *,
        in_channels: int = 3,
        num_classes: int = 0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = 1e-6,
        deploy: bool = False,
        has_branches: bool = True,
        head_init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        _check_sizes(depths, dims, kernel_sizes, in_channels, num_classes)
        self.in_channels, self.deploy = in_channels, deploy
        self.grad_checkpointing = False
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu", dtype=torch.float64).tolist())
        self.downsample_layers = nn.ModuleList([_stem(in_channels, dims[0])])
        self.downsample_layers.extend(_downsample(dims[i], dims[i + 1]) for i in range(3))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(dim, k, next(rates), layer_scale_init_value, deploy, has_branches) for k in kernels))
            for dim, kernels in zip(dims, kernel_sizes, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=LAYER_NORM_EPS)
        self.num_features = dims[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]
        self.num_classes = num_classes
        self.head = _linear_or_none(dims[-1], num_classes)
        self.apply(_initialise)
        _scale_head(self.head, head_init_scale)

    def forward_features(self, x: Tensor) -> Tensor:
        """BxCxHxW to the last stage's map, B x dims[3] x ceil(H/32) x ceil(W/32)."""
        return self.forward_stages(x)[-1]

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The map after each of the four stages."""
        _check_input(x, self.in_channels)
        if not (self.grad_checkpointing and self.training and torch.is_grad_enabled()):
            return through_stages(self.downsample_layers, self.stages, x)  # type: ignore[arg-type]
        maps = []
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = downsample(x)
            for block in stage:  # type: ignore[attr-defined]
                x = recomputed(block, x)
            maps.append(x)
        return maps

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to logits BxN, or with `pre_logits` to pooled, normalised features BxD."""
        norm, head = self.norm, self.head
        if type(norm) is not nn.LayerNorm or has_hooks(norm):
            pooled = norm(features.mean(dim=(2, 3)))
            return pooled if pre_logits else cast(Tensor, head(pooled))
        if type(head) is nn.Linear and not pre_logits and not has_hooks(head):
            return pooled_logits(features, norm.weight, norm.bias, head.weight, head.bias, eps=norm.eps)
        pooled = pooled_norm(features, norm.weight, norm.bias, eps=norm.eps)
        return pooled if pre_logits else head(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """BxCxHxW to BxN logits, or to BxD pooled features where there is no head."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh head of `num_classes` in place; 0 for none."""
        self.num_classes = num_classes
        like = self.norm.weight
        self.head = _linear_or_none(self.num_features, num_classes).to(device=like.device, dtype=like.dtype)
        self.head.apply(_initialise)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass: less memory, more time."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that put parameters into groups by depth, as timm's optimizers take them."""
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {
            "stem": r"^downsample_layers\.0",
            "blocks": [(blocks, None), (r"^downsample_layers\.(\d+)", (0,)), (r"^norm|^head", (99999,))],
        }


class FeatureExtractor(nn.Module):
    """The four stage maps of a backbone, each through a channel norm of its own, for dense tasks.

    Its state dict is that of the official detection and segmentation files: `norm0` … `norm3`, no `norm`, no `head`.

    Args:
        backbone: taken over, its head removed.
        out_indices: which stages to return, from 0.
        normalize: False returns the stage maps as they are.
    """

    def __init__(
        self, backbone: UniRepLKNet, out_indices: Sequence[int] = (0, 1, 2, 3), normalize: bool = True
    ) -> None:
        super().__init__()
        if not out_indices or any(i not in range(4) for i in out_indices):
            raise InputError(f"out_indices must name stages 0 to 3, got {tuple(out_indices)}")
        self.out_indices, self.normalize = tuple(out_indices), normalize
        self.downsample_layers, self.stages = backbone.downsample_layers, backbone.stages
        self.in_channels, self.deploy = backbone.in_channels, backbone.deploy
        self.grad_checkpointing = False
        self.feature_info = [backbone.feature_info[i] for i in self.out_indices]
        for i, info in enumerate(backbone.feature_info):
            setattr(self, f"norm{i}", LayerNorm2d(int(info["num_chs"])))

    forward_stages = UniRepLKNet.forward_stages
    set_grad_checkpointing = UniRepLKNet.set_grad_checkpointing

    def forward(self, x: Tensor) -> list[Tensor]:
        """BxCxHxW to the chosen maps, at strides 4, 8, 16, 32."""
        maps = self.forward_stages(x)  # type: ignore[misc]
        if not self.normalize:
            return [maps[i] for i in self.out_indices]
        return [getattr(self, f"norm{i}")(maps[i]) for i in self.out_indices]


@overload
def build_backbone(
    name: str,
    *,
    in_channels: int = ...,
    num_classes: int = ...,
    deploy: bool = ...,
    pretrained: str | Path | Literal[False] | None = ...,
    features_only: Literal[False] = ...,
    **overrides: Any,
) -> UniRepLKNet | VAN: ...
@overload
def build_backbone(
    name: str,
    *,
    in_channels: int = ...,
    num_classes: int = ...,
    deploy: bool = ...,
    pretrained: str | Path | Literal[False] | None = ...,
    features_only: bool,
    out_indices: Sequence[int] = ...,
    normalize_features: bool = ...,
    **overrides: Any,
) -> UniRepLKNet | FeatureExtractor | VAN: ...
def build_backbone(
    name: str,
    *,
    in_channels: int = 3,
    num_classes: int = 0,
    deploy: bool = False,
    pretrained: str | Path | Literal[False] | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    normalize_features: bool = True,
    **overrides: Any,
) -> UniRepLKNet | FeatureExtractor | VAN:
    """Make a backbone by name.

    >>> model = unipercept.build_backbone("unireplknet_a", num_classes=10)
    >>> model(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 10])
    >>> maps = unipercept.build_backbone("unireplknet_a", features_only=True)(torch.zeros(1, 3, 64, 64))
    >>> [tuple(one.shape[1:]) for one in maps]     # channels, rows, columns at strides 4, 8, 16, 32
    [(40, 16, 16), (80, 8, 8), (160, 4, 4), (320, 2, 2)]

    Args:
        name: one of `VARIANTS`, or of `VAN_VARIANTS` (one form for training and inference, no published weights here).
        in_channels: C of the input. Pretrained weights of another C are adapted as timm does, with a warning.
        num_classes: N of the head; 0 for none.
        deploy: build the inference form.
        pretrained: a published name (see `unipercept models`), NAME or NAME@REVISION, or a checkpoint's path; None or
            False for none.
        features_only: return the four stage maps instead (see FeatureExtractor, also for the next two arguments).
        overrides: depths, dims, kernel_sizes, drop_path_rate, layer_scale_init_value, head_init_scale.

    Raises:
        InputError: an unknown name or override, or sizes that do not fit together.
        WeightsError: the pretrained weights do not fit or cannot be obtained.
    """
    if name in VAN_VARIANTS:
        if not normalize_features:
            raise InputError("stage maps of a VAN are always normalised; leave out normalize_features=False")
        return _van(name, in_channels, num_classes, pretrained, features_only, out_indices, overrides)
    if name not in VARIANTS:
        raise InputError(f"backbone must be one of {', '.join((*VARIANTS, *VAN_VARIANTS))}; got {name!r}")
    unknown = sorted(set(overrides) - OVERRIDES)
    if unknown:
        raise InputError(f"build_backbone knows the overrides {', '.join(sorted(OVERRIDES))}; got {', '.join(unknown)}")
    sizes = {"depths": VARIANTS[name].depths, "dims": VARIANTS[name].dims, "kernel_sizes": VARIANTS[name].kernel_sizes}
    model: UniRepLKNet | FeatureExtractor = UniRepLKNet(
        **{**sizes, **overrides},
        in_channels=in_channels,
        num_classes=0 if features_only else num_classes,
        deploy=deploy,
    )
    if features_only:
        assert isinstance(model, UniRepLKNet)
        model = FeatureExtractor(model, out_indices, normalize_features)
    if pretrained is not None and pretrained is not False:
        from unipercept.weights import load_pretrained

        load_pretrained(model, pretrained, name)
    return model


def _van(
    name: str,
    in_channels: int,
    num_classes: int,
    pretrained: str | Path | Literal[False] | None,
    features_only: bool,
    out_indices: Sequence[int],
    overrides: dict[str, Any],
) -> VAN:
    settings = {"in_channels": in_channels, "num_classes": num_classes, "features_only": features_only}
    model = build_van(name, **settings, out_indices=out_indices, **overrides)
    if pretrained is not None and pretrained is not False:
        from unipercept.weights import load_van

        load_van(model, pretrained)
    return model


def layer_decay_groups(
    model: nn.Module, *, weight_decay: float, layer_decay: float = 1.0, n_layers: int = 12
) -> list[dict[str, Any]]:
    """Parameter groups for `unipercept.train.fit`: no decay for 1-D tensors and biases,
    rates that fall towards the stem.

    A parameter of layer i learns at `lr_scale` = layer_decay^(n_layers + 1 - i) of the learning rate. The stem is layer
    0; stage 1 layer 1; the second downsampling layer and stage 2 layer 2; the third downsampling layer 3; the blocks of
    stage 3 are spread evenly from layer 3 to n_layers - 1 (the published 3 + j // 3 for depth 27 and 12 layers); the
    last downsampling layer and stage 4 layer n_layers; the rest n_layers + 1.
    """
    depth = len(model.stages[2])  # type: ignore[index]
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = layer_id(name, depth, n_layers)
        decayed = parameter.ndim > 1 and not name.endswith(".bias")
        settings = {"lr_scale": layer_decay ** (n_layers + 1 - layer), "weight_decay": weight_decay if decayed else 0.0}
        groups.setdefault((layer, decayed), {"params": [], **settings})["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def layer_id(name: str, stage3_depth: int, n_layers: int = 12) -> int:
    """The layer, 0 (stem) to n_layers + 1 (head), of the parameter `name`; see layer_decay_groups."""
    part, _, rest = name.partition(".")
    if part not in ("downsample_layers", "stages"):
        return n_layers + 1
    stage = int(rest.split(".")[0])
    if stage == 2 and part == "stages":
        return 3 + int(rest.split(".")[1]) * (n_layers - 3) // stage3_depth
    if part == "downsample_layers":
        return (0, 2, 3, n_layers)[stage]
    return (1, 2, 3, n_layers)[stage]


def seed_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill `model` with reproducible random weights that make a useful random-feature
    extractor, in place; give it back.

    Each parameter is drawn from a generator keyed by (seed, name), so models that differ only in their input
    channels or classes share all other weights. Weights keep the variance of their input (He et al. 2015), and
    layer scale is 0.1: with the training initialisation (layer scale 1e-6) every block would be the identity and
    all inputs would look alike.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(_seed_of(name, seed))
            leaf = name.rsplit(".", 1)[-1]
            if parameter.ndim < 2 or leaf == "beta":
                parameter.fill_(SEEDED_LAYER_SCALE if leaf == "gamma" else float(leaf == "weight"))
            elif leaf == "gamma":
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
            else:
                std = (2 / parameter[0].numel()) ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model


def adapt_stem(weight: Tensor, in_channels: int) -> Tensor:
    """First-convolution weights (DxCxKxK) for another number of input channels, as timm does.

    To one channel they are summed; to others they are repeated in turn and scaled by C / in_channels. For one channel,
    and for multiples of C, an input of equal channels gives the same output as before.
    """
    old = weight.shape[1]
    if in_channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeated = weight.repeat(1, -(-in_channels // old), 1, 1)[:, :in_channels]
    return repeated * (old / in_channels)


def _seed_of(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little") >> 1


def _stem(in_channels: int, dim: int) -> ConvNorm:
    half = dim // 2
    first = nn.Conv2d(in_channels, half, 3, stride=2, padding=1)
    second = nn.Conv2d(half, dim, 3, stride=2, padding=1)
    return ConvNorm(first, LayerNorm2d(half), nn.GELU(), second, LayerNorm2d(dim))


def _downsample(before: int, after: int) -> ConvNorm:
    return ConvNorm(nn.Conv2d(before, after, 3, stride=2, padding=1), LayerNorm2d(after))


def _linear_or_none(features: int, classes: int) -> nn.Module:
    return nn.Linear(features, classes) if classes else nn.Identity()


def _initialise(module: nn.Module) -> None:
    """Weights of convolutions and linear layers ~ N(0, 0.02), their biases 0; norms keep torch's ones and zeros."""
    if isinstance(module, nn.Conv2d | nn.Linear | DepthwiseConv2d):
        nn.init.trunc_normal_(module.weight, std=INITIAL_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _scale_head(head: nn.Module, scale: float) -> None:
    if isinstance(head, nn.Linear) and scale != 1:
        with torch.no_grad():
            head.weight.mul_(scale)


def _check_sizes(
    depths: Sequence[int],
    dims: Sequence[int],
    kernel_sizes: Sequence[Sequence[int]],
    in_channels: int,
    num_classes: int,
) -> None:
    if not len(depths) == len(dims) == len(kernel_sizes) == 4 or min(depths) < 1:
        raise InputError(
            f"a backbone has four stages; got depths {tuple(depths)}, dims {tuple(dims)}, {len(kernel_sizes)} kernel tuples"
        )
    if tuple(len(kernels) for kernels in kernel_sizes) != tuple(depths):
        raise InputError(
            f"kernel_sizes needs an entry a block, {tuple(depths)}; got {tuple(len(k) for k in kernel_sizes)}; pass both"
        )
    if min(dims) < 4 or in_channels < 1 or num_classes < 0:
        raise InputError(
            f"dims must be at least 4, in_channels at least 1, num_classes at least 0; got {tuple(dims)}, {in_channels}, {num_classes}"
        )


def _check_input(x: Tensor, in_channels: int) -> None:
    if x.ndim != 4 or x.shape[1] != in_channels:
        raise InputError(f"the backbone needs BxCxHxW with C = {in_channels}, got {tuple(x.shape)}")
