"""The network of the cascade, PuYun-style: patches of two states, large-kernel blocks, the change to the next state.

It sees normalised fields. Sizes and details that the paper does not give are choices of ours (spec: what is known).

Shapes: B batch, T input times, V channels, H rows from north to south, W columns, S static and F solar fields, p patch,
C width, h and w rows and columns of tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unipercept.app.forecaster.boundary import pad_rows, pole_signs
from unipercept.app.forecaster.clock import N_SEASONAL, N_SOLAR
from unipercept.blocks import DepthwiseConv2d, DropPath, LayerNorm2d
from unipercept.errors import InputError
from unipercept.kernels.depthwise_conv2d.padding import PADDINGS, Padding
from unipercept.large_kernel_attention import Pointwise, SpatialAttention

LAYER_SCALE = 1e-2  # as VAN's
SMALL = 0.1  # first weights of the last layer of a "dw" block, which has no layer scale
MAX_INITIAL_STD = 0.08
TIME_WIDTH = 64  # hidden numbers of the time embedding
# Bytes that a block keeps for the backward pass, for each token and channel: in float32 and under bf16 autocast.
# Counted: the tensors that autograd saves in the blocks of the presets (ratio 3 of "dw", 4 of "lka").
KEPT_BYTES = {"dw": (41, 21), "lka": (106, 61)}


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that decides the network's tensors.

    Args:
        channels: names of the V channels; wind components (u500, v10 ...) are vectors at the poles.
        rows, columns: H and W.
        padding: the grid's edge, see `padding_of`.
        patch: p. A grid with poles is padded over them, the rest by repeating its outermost rows.
        width: C.
        groups: blocks in each group; the groups' outputs are joined before recovery.
        attention: "lka" (VAN's, with a feed-forward after it) or "dw" (one large depthwise
            kernel, then 1x1 to 3C and back).
        kernel_size, dilation: of the attention; "dw" has no dilation unless told.
        combine: how a "dw" block joins x and f(x): x + f, x * f, or x + x * f.
        ratio: hidden channels of the feed-forward over C.
        local: whether the feed-forward has a 3x3 depthwise convolution.
        frames: T, input states.
        n_static: S.
        solar: whether local solar time and sunshine enter as fields.
        time: how season and hour enter: "film" (scale and shift after each norm), "channels"
            (constant fields), or "none".
        aggregate: "concat" joins all groups' outputs, "last" takes the last.
        predict: "residual" (persistence plus a scaled change), "projected" (a learned 1x1 of the state
            plus the output) or "direct".
        drop_path_rate: stochastic depth of the last block, growing linearly from the first.

    Raises:
        InputError: sizes or names that do not fit.
    """

    channels: tuple[str, ...]
    rows: int
    columns: int
    padding: Padding = "sphere"
    patch: int = 1
    width: int = 64
    groups: tuple[int, ...] = (6,)
    attention: Literal["lka", "dw"] = "lka"
    kernel_size: int = 21
    dilation: int = 3
    combine: Literal["add", "mul", "mul_add"] = "add"
    ratio: int = 4
    local: bool = True
    frames: int = 2
    n_static: int = 0
    solar: bool = False
    time: Literal["film", "channels", "none"] = "film"
    aggregate: Literal["concat", "last"] = "concat"
    predict: Literal["residual", "projected", "direct"] = "residual"
    drop_path_rate: float = 0.1

    def __post_init__(self) -> None:
        choices = {
            "padding": PADDINGS, "attention": ("lka", "dw"), "combine": ("add", "mul", "mul_add"),
            "time": ("film", "channels", "none"), "aggregate": ("concat", "last"),
            "predict": ("residual", "projected", "direct"),
        }  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}")
        sizes = (self.rows, self.columns, self.patch, self.width, self.frames, self.ratio, *self.groups)
        if not self.channels or not self.groups or min(sizes) < 1 or self.n_static < 0:
            raise InputError("a weather network needs channels, groups, and sizes of at least 1")
        if len(set(self.channels)) != len(self.channels):
            raise InputError(f"channels must differ from each other, got {', '.join(self.channels)}")
        if self.padding != "zero" and self.columns % self.patch:
            raise InputError(
                f"a patch of {self.patch} does not divide the {self.columns} columns round the earth; choose another patch"
            )
        if self.padding.startswith("sphere") and (self.columns // self.patch) % 2:
            raise InputError(
                f"{self.columns} columns in patches of {self.patch} leave an odd number of tokens, which has no opposite meridian"
            )

    @property
    def halo(self) -> tuple[int, int]:
        """Rows added in the north and in the south, so that the patch divides them: as even as possible."""
        missing = -self.rows % self.patch
        return missing // 2, missing - missing // 2

    @property
    def token_padding(self) -> Padding:
        """The grid's padding for tokens, which depends on whether the pole is nearer to the first token's centre or
        edge.
        """
        if not self.padding.startswith("sphere"):
            return self.padding
        pole = 0.0 if self.padding == "sphere_poles" else -0.5
        # Rows from the pole to the first token's centre, averaged over both ends.
        centre = (self.patch - 1) / 2 - sum(self.halo) / 2 - pole
        return "sphere_poles" if centre < self.patch / 4 else "sphere"

    def activation_bytes(self, half: bool) -> int:
        """What training keeps of one sample and step for the backward pass, where nothing is recomputed: an estimate.

        Args:
            half: under autocast to 16 bits.
        """
        tokens = (self.rows + sum(self.halo)) // self.patch * -(-self.columns // self.patch)
        return tokens * self.width * sum(self.groups) * KEPT_BYTES[self.attention][half]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> NetworkConfig:
        """The inverse of `to_dict`.

        Raises:
            InputError: a setting that does not exist.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise InputError(f"a weather network has no setting {', '.join(unknown)}; it was saved by another version")
        lists = {name: tuple(settings[name]) for name in ("channels", "groups") if name in settings}
        return cls(**{**settings, **lists})


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"patch": 1, "width": 64, "groups": (6,), "attention": "lka", "kernel_size": 21, "dilation": 3},
    "small": {"patch": 4, "width": 256, "groups": (12,), "attention": "lka", "kernel_size": 21, "dilation": 3},
    # Width 1024 is our guess; depth, kernel, ratio and patch are those of a third party's re-implementation.
    "puyun": {
        "patch": 8, "width": 1024, "groups": (12, 12, 12, 12), "attention": "dw", "kernel_size": 9, "dilation": 1,
        "ratio": 3,
    },
}  # fmt: skip


def preset(name: str, **settings: Any) -> NetworkConfig:
    """The settings of `PRESETS` with channels, grid and whatever else is given.

    Raises:
        InputError: no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}")
    return NetworkConfig(**{**PRESETS[name], **settings})


class WeatherNetwork(nn.Module):
    """States at t - 1 and t, normalised, to the state at t + 1.

    Args:
        config: its sizes.
        change: standard deviation of a step's change of each channel, in units of the channel's own standard deviation
            (V values): the scale of what a residual prediction adds. None is 1 for all.
        static: SxHxW fields that never change, normalised; kept with the weights.
    """

    change: Tensor
    static: Tensor
    signs: Tensor

    def __init__(self, config: NetworkConfig, change: Tensor | None = None, static: Tensor | None = None) -> None:
        super().__init__()
        n_channels, width = len(config.channels), config.width
        if static is None:
            static = torch.zeros(config.n_static, config.rows, config.columns)
        if tuple(static.shape) != (config.n_static, config.rows, config.columns):
            raise InputError(
                f"static fields must be {config.n_static}x{config.rows}x{config.columns}, got {tuple(static.shape)}"
            )
        self.config, self.grad_checkpointing = config, False
        self.register_buffer("change", torch.ones(n_channels) if change is None else change.clone().float())
        self.register_buffer("static", static.clone().float())
        self.register_buffer("signs", pole_signs(config.channels), persistent=False)
        self.to_rows = RowPadding(config.padding)
        n_inputs = config.frames * n_channels + config.n_static + N_SOLAR * config.solar
        n_inputs += N_SEASONAL * (config.time == "channels")
        self.embed = nn.Conv2d(n_inputs, width, config.patch, stride=config.patch)
        self.embed_time = _TimeEmbedding() if config.time == "film" else None
        rates = iter(
            torch.linspace(0, config.drop_path_rate, sum(config.groups), device="cpu", dtype=torch.float64).tolist()
        )
        self.groups = nn.ModuleList(
            nn.ModuleList(_block(config, next(rates)) for _ in range(depth)) for depth in config.groups
        )
        joined = width * (len(config.groups) if config.aggregate == "concat" else 1)
        self.recover = Pointwise(joined, n_channels * config.patch**2)
        self.project = Pointwise(n_channels, n_channels) if config.predict == "projected" else None
        self.apply(_initialise)
        self._start_small()

    def forward(self, states: Tensor, season: Tensor | None = None, solar: Tensor | None = None) -> Tensor:
        """BxTxVxHxW, Bx4 (`clock.seasonal`) and BxFxHxW (`clock.solar_fields`) to BxVxHxW, all normalised.

        Times are those of the last input state.

        Raises:
            InputError: inputs that do not fit the settings.
        """
        self._check(states, season, solar)
        inputs = self._inputs(states, season, solar)
        # With single cells as tokens the embedding costs nothing, and half precision would round the state itself.
        exact = self.config.patch == 1 and torch.is_autocast_enabled(inputs.device.type)
        with torch.autocast(inputs.device.type, enabled=False) if exact else nullcontext():
            tokens = self.embed(inputs).contiguous(memory_format=torch.channels_last)
        time = None if self.embed_time is None else self.embed_time(season)
        outputs = []
        for group in self.groups:
            for block in group:  # type: ignore[attr-defined]
                recompute = self.grad_checkpointing and torch.is_grad_enabled()
                tokens = checkpoint(block, tokens, time, use_reentrant=False) if recompute else block(tokens, time)
            outputs.append(tokens)
        joined = torch.cat(outputs, dim=1) if self.config.aggregate == "concat" else outputs[-1]
        return self._predict(states[:, -1], self._to_grid(self.recover(joined)))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass: less memory, more time."""
        self.grad_checkpointing = enable

    def _inputs(self, states: Tensor, season: Tensor | None, solar: Tensor | None) -> Tensor:
        """All fields as channels, with whole patches of rows and columns."""
        parts, signs = [states.flatten(1, 2)], [self.signs.repeat(states.shape[1])]
        others = [self.static.expand(states.shape[0], -1, -1, -1)]
        if solar is not None:
            others.append(solar)
        if self.config.time == "channels":
            assert season is not None
            others.append(season[:, :, None, None].expand(-1, -1, *states.shape[-2:]))
        for other in others:
            parts.append(other.to(states.dtype))
            signs.append(self.signs.new_ones(other.shape[1]))
        fields = self.to_rows(torch.cat(parts, dim=1), *self.config.halo, torch.cat(signs))
        beyond = -fields.shape[-1] % self.config.patch  # a region's columns; those round the earth are whole patches
        return F.pad(fields, (0, beyond, 0, 0), mode="replicate") if beyond else fields

    def _to_grid(self, patches: Tensor) -> Tensor:
        """B x V p^2 x h x w to BxVxHxW."""
        fields = F.pixel_shuffle(patches, self.config.patch) if self.config.patch > 1 else patches
        north, south = self.config.halo
        return fields[..., north : fields.shape[-2] - south, : self.static.shape[-1]].contiguous()

    def _predict(self, state: Tensor, output: Tensor) -> Tensor:
        wide = output.to(state.dtype)  # under autocast the state keeps its digits
        if self.config.predict == "residual":
            return state + self.change.to(state.dtype)[:, None, None] * wide
        if self.project is None:
            return wide
        projected: Tensor = self.project(state)
        return wide + projected.to(state.dtype)

    def _start_small(self) -> None:
        """The first prediction is persistence (residual, projected)."""
        for module in self.modules():
            if isinstance(module, DepthwiseBlock):
                module.start_small()
        with torch.no_grad():
            if self.config.predict != "direct":
                self.recover.weight.zero_()
            if self.project is not None:
                self.project.weight.copy_(torch.eye(len(self.config.channels))[:, :, None, None])

    def _check(self, states: Tensor, season: Tensor | None, solar: Tensor | None) -> None:
        expected = (self.config.frames, len(self.config.channels), *self.static.shape[-2:])
        if states.ndim != 5 or tuple(states.shape[1:]) != expected:
            raise InputError(f"states must be Bx{'x'.join(map(str, expected))}, got {tuple(states.shape)}")
        if self.config.time != "none" and (season is None or season.shape != (states.shape[0], N_SEASONAL)):
            raise InputError(f"this network needs the season, {states.shape[0]}x{N_SEASONAL}, see clock.seasonal")
        if self.config.solar != (solar is not None):
            needs = "needs" if self.config.solar else "takes no"
            raise InputError(f"this network {needs} solar fields, see clock.solar_fields")


class RowPadding(nn.Module):
    """`pad_rows` as a module, so that a network whose columns are spread over processes can exchange it."""

    def __init__(self, padding: Padding) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor, north: int, south: int, signs: Tensor) -> Tensor:
        return pad_rows(x, north, south, self.padding, signs)


class Film(nn.Module):
    """Channel norm, then scale and shift by the time. Source: Perez et al. (2018), FiLM. Starts as the norm alone."""

    def __init__(self, channels: int, timed: bool) -> None:
        super().__init__()
        self.norm = LayerNorm2d(channels)
        self.from_time = nn.Linear(TIME_WIDTH, 2 * channels) if timed else None

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        y: Tensor = self.norm(x)
        if self.from_time is None:
            return y
        scale, shift = self.from_time(time)[:, :, None, None].chunk(2, dim=1)
        timed: Tensor = y * (1 + scale.to(y.dtype)) + shift.to(y.dtype)
        return timed


class AttentionBlock(nn.Module):
    """x + scale * attention(norm x), then x + scale * feed-forward(norm x), as in VAN with channel norms."""

    def __init__(self, config: NetworkConfig, drop_path_rate: float) -> None:
        super().__init__()
        width, padding = config.width, config.token_padding
        self.norm1, self.norm2 = Film(width, config.time == "film"), Film(width, config.time == "film")
        self.attention = SpatialAttention(width, config.kernel_size, config.dilation, padding, shortcut=False)
        self.expand = Pointwise(width, config.ratio * width)
        self.local = DepthwiseConv2d(config.ratio * width, 3, bias=True, padding=padding) if config.local else None
        self.contract = Pointwise(config.ratio * width, width)
        self.scale1 = nn.Parameter(torch.full((width, 1, 1), LAYER_SCALE))
        self.scale2 = nn.Parameter(torch.full((width, 1, 1), LAYER_SCALE))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        x = x + self.drop_path(self.scale1 * self.attention(self.norm1(x, time)))
        hidden = self.expand(self.norm2(x, time))
        if self.local is not None:
            hidden = self.local(hidden)
        fed: Tensor = self.drop_path(self.scale2 * self.contract(F.gelu(hidden)))
        return x + fed


class DepthwiseBlock(nn.Module):
    """f = contract(gelu(expand(norm(large depthwise kernel(x))))), joined with x as `combine` says."""

    def __init__(self, config: NetworkConfig, drop_path_rate: float) -> None:
        super().__init__()
        width = config.width
        self.combine = config.combine
        self.spatial = DepthwiseConv2d(width, config.kernel_size, config.dilation, True, config.token_padding)
        self.norm = Film(width, config.time == "film")
        self.expand = Pointwise(width, config.ratio * width)
        self.contract = Pointwise(config.ratio * width, width)
        self.drop_path = DropPath(drop_path_rate)

    def start_small(self) -> None:
        """Near the identity: 48 blocks of full strength, or as many products, would grow without bound."""
        with torch.no_grad():
            self.contract.weight.mul_(SMALL)
            if self.contract.bias is not None:
                self.contract.bias.fill_(float(self.combine == "mul"))

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        y: Tensor = self.contract(F.gelu(self.expand(self.norm(self.spatial(x), time))))
        if self.combine == "mul":
            return x * y
        change: Tensor = self.drop_path(y if self.combine == "add" else x * y)
        return x + change


class _TimeEmbedding(nn.Sequential):
    """Bx4 season and hour to the numbers that each block's FiLM takes."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(N_SEASONAL, TIME_WIDTH), nn.GELU(), nn.Linear(TIME_WIDTH, TIME_WIDTH), nn.GELU())


def _block(config: NetworkConfig, drop_path_rate: float) -> nn.Module:
    return (AttentionBlock if config.attention == "lka" else DepthwiseBlock)(config, drop_path_rate)


def _initialise(module: nn.Module) -> None:
    """Weights that keep the variance, at most N(0, 0.08); biases 0; FiLM starts at scale 1 and shift 0."""
    if isinstance(module, DepthwiseConv2d):
        nn.init.normal_(module.weight, std=(1 / module.weight[0].numel()) ** 0.5)
    elif isinstance(module, nn.Conv2d | nn.Linear):
        fan_in = module.weight[0].numel()
        nn.init.trunc_normal_(module.weight, std=min(MAX_INITIAL_STD, fan_in**-0.5))
    if isinstance(module, DepthwiseConv2d | nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, Film) and module.from_time is not None:
        nn.init.zeros_(module.from_time.weight)
