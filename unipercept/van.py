"""VAN, the visual attention network: four stages of large-kernel attention.

Source: Guo et al. (2022), arXiv 2202.09741.

Module and parameter names follow the official checkpoints, so that these load strictly.

Shapes: B batch, C channels, H rows, W columns, N classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unipercept.blocks import BATCH_NORM_EPS, LAYER_NORM_EPS, DepthwiseConv2d, DropPath, recomputed
from unipercept.errors import InputError
from unipercept.large_kernel_attention import Pointwise, SpatialAttention, initialise

LAYER_SCALE = 1e-2
MLP_RATIOS = (8, 8, 4, 4)
OVERRIDES = frozenset({"depths", "dims", "mlp_ratios", "drop_path_rate"})


@dataclass(frozen=True)
class VANVariant:
    """Sizes of a published model: blocks and channels of the four stages."""

    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]


VAN_VARIANTS: dict[str, VANVariant] = {
    "van_b0": VANVariant((3, 3, 5, 2), (32, 64, 160, 256)),
    "van_b1": VANVariant((2, 2, 4, 2), (64, 128, 320, 512)),
    "van_b2": VANVariant((3, 3, 12, 3), (64, 128, 320, 512)),
    "van_b3": VANVariant((3, 5, 27, 3), (64, 128, 320, 512)),
    "van_b4": VANVariant((3, 6, 40, 3), (64, 128, 320, 512)),
    "van_b5": VANVariant((3, 3, 24, 3), (96, 192, 480, 768)),
    "van_b6": VANVariant((6, 6, 90, 6), (96, 192, 384, 768)),
}


class VANBlock(nn.Module):
    """x + scale * attention(norm(x)), then x + scale * feed-forward(norm(x)); batch norms, learned scales."""

    def __init__(self, channels: int, mlp_ratio: float, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS)
        self.attn = SpatialAttention(channels)
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS)
        self.mlp = _FeedForward(channels, int(channels * mlp_ratio))
        self.layer_scale_1 = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.layer_scale_2 = nn.Parameter(torch.full((channels,), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer_scale_1[:, None, None] * self.attn(self.norm1(x)))
        fed: Tensor = self.drop_path(self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x)))
        return x + fed


class _FeedForward(nn.Module):
    """1x1, depthwise 3x3, GELU, 1x1."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Pointwise(channels, hidden)
        self.dwconv = nn.ModuleDict({"dwconv": DepthwiseConv2d(hidden, 3, bias=True)})  # the official nesting
        self.fc2 = Pointwise(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.dwconv["dwconv"](self.fc1(x))))
        return y


class _PatchEmbedding(nn.Module):
    """An overlapping strided convolution and its batch norm."""

    def __init__(self, in_channels: int, channels: int, size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, size, stride, padding=size // 2)
        self.norm = nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.proj(x))
        return y


class VAN(nn.Module):
    """A ConvNet of four stages; attributes and methods follow timm's conventions, as UniRepLKNet's do.

    Each stage ends with a layer norm over the channels; its output is the stage's map and the next stage's input.

    Args:
        depths: blocks in each stage.
        dims: channels of each stage.
        mlp_ratios: hidden channels of each stage's feed-forward, in multiples of its own.
        in_channels: C of the input.
        num_classes: N of the head; 0 for none.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        features_only: `forward` returns the stage maps of `out_indices` instead.

    Raises:
        InputError: sizes that do not fit together.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        mlp_ratios: Sequence[float] = MLP_RATIOS,
        *,
        in_channels: int = 3,
        num_classes: int = 0,
        drop_path_rate: float = 0.0,
        features_only: bool = False,
        out_indices: Sequence[int] = (0, 1, 2, 3),
    ) -> None:
        super().__init__()
        _check_sizes(depths, dims, mlp_ratios, in_channels, num_classes, out_indices)
        self.in_channels, self.num_classes = in_channels, 0 if features_only else num_classes
        self.out_indices = tuple(out_indices) if features_only else None
        self.grad_checkpointing = False
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu", dtype=torch.float64).tolist())
        before = (in_channels, *dims)
        for i, (depth, dim, ratio) in enumerate(zip(depths, dims, mlp_ratios, strict=True)):
            self.add_module(f"patch_embed{i + 1}", _PatchEmbedding(before[i], dim, *((7, 4) if i == 0 else (3, 2))))
            self.add_module(f"block{i + 1}", nn.ModuleList(VANBlock(dim, ratio, next(rates)) for _ in range(depth)))
            self.add_module(f"norm{i + 1}", nn.LayerNorm(dim, eps=LAYER_NORM_EPS))
        self.num_features = dims[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**i, "module": f"norm{i + 1}"} for i, dim in enumerate(dims)
        ]
        self.head: nn.Module = nn.Linear(dims[-1], self.num_classes) if self.num_classes else nn.Identity()
        self.apply(initialise)

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The normalised map of each stage, at strides 4, 8, 16, 32."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise InputError(f"the backbone needs BxCxHxW with C = {self.in_channels}, got {tuple(x.shape)}")
        x = x.contiguous(memory_format=torch.channels_last)
        maps = []
        for i in range(1, 5):
            x = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                checkpointed = self.grad_checkpointing and self.training and torch.is_grad_enabled()
                x = recomputed(block, x) if checkpointed else block(x)
            x = getattr(self, f"norm{i}")(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            maps.append(x)
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """BxCxHxW to the last stage's map."""
        return self.forward_stages(x)[-1]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to logits BxN, or with `pre_logits` to pooled features BxD."""
        pooled = features.mean(dim=(2, 3))
        logits: Tensor = self.head(pooled)
        return pooled if pre_logits else logits

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """BxCxHxW to logits BxN, to pooled features BxD where there is no head, or to the stage maps."""
        maps = self.forward_stages(x)
        if self.out_indices is not None:
            return [maps[i] for i in self.out_indices]
        return self.forward_head(maps[-1])

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh head of `num_classes` in place; 0 for none."""
        self.num_classes = num_classes
        like = next(self.parameters())
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head = head.to(device=like.device, dtype=like.dtype).apply(initialise)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass: less memory, more time."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that put parameters into groups by depth, as timm's optimizers take them."""
        blocks = r"^block(\d+)" if coarse else r"^block(\d+)\.(\d+)"
        lasts = [len(getattr(self, f"block{stage}")) - 1 for stage in (1, 2, 3)]
        ends = [(rf"^norm{i}\.", (i,) if coarse else (i, last)) for i, last in enumerate(lasts, 1)]  # of stages
        return {
            "stem": r"^patch_embed1",
            "blocks": [(blocks, None), (r"^patch_embed(\d+)", (0,)), *ends, (r"^norm|^head", (99999,))],
        }


def build_van(name: str, **settings: Any) -> VAN:
    """A published VAN by name; `settings` are those of `VAN`, and override its sizes.

    Raises:
        InputError: an unknown name or setting.
    """
    if name not in VAN_VARIANTS:
        raise InputError(f"VAN must be one of {', '.join(VAN_VARIANTS)}; got {name!r}")
    known = OVERRIDES | {"in_channels", "num_classes", "features_only", "out_indices"}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise InputError(f"{name} knows the settings {', '.join(sorted(known))}; got {', '.join(unknown)}")
    variant = VAN_VARIANTS[name]
    return VAN(**{"depths": variant.depths, "dims": variant.dims, **settings})


def _check_sizes(
    depths: Sequence[int],
    dims: Sequence[int],
    mlp_ratios: Sequence[float],
    in_channels: int,
    num_classes: int,
    out_indices: Sequence[int],
) -> None:
    if not len(depths) == len(dims) == len(mlp_ratios) == 4 or min(depths) < 1 or min(dims) < 1:
        raise InputError(
            f"VAN has four stages; got depths {tuple(depths)}, dims {tuple(dims)}, mlp_ratios {tuple(mlp_ratios)}"
        )
    if in_channels < 1 or num_classes < 0 or not out_indices or any(i not in range(4) for i in out_indices):
        raise InputError(
            "in_channels must be at least 1, num_classes at least 0 and out_indices among 0 to 3; "
            f"got {in_channels}, {num_classes}, {tuple(out_indices)}"
        )
