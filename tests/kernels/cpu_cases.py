"""Random inputs and weights for the tests of the CPU's kernels."""

import torch
from torch import Tensor

from unipercept.kernels import feed_forward
from unipercept.kernels.feed_forward.reference import Weights
from unipercept.kernels.folded_blocks import BlockWeights
from unipercept.kernels.folded_stages import ConvNormWeights, Stage


def normal(*shape: int, seed: int = 0, fan: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * fan**-0.5


def random_feed_forward(shape) -> tuple[Tensor, Tensor, Weights]:
    batch, rows, columns, channels, hidden = shape
    squeezed = max(1, channels // 4)
    weights = Weights(
        normal(squeezed, channels, seed=1, fan=channels), normal(squeezed, seed=2),
        normal(channels, squeezed, seed=3, fan=squeezed), normal(channels, seed=4),
        normal(hidden, channels, seed=5, fan=channels), normal(hidden, seed=6), normal(hidden, seed=7), None,
        normal(channels, hidden, seed=8, fan=hidden), normal(channels, seed=9),
    )  # fmt: skip
    return normal(batch, rows, columns, channels), normal(batch, rows, columns, channels, seed=10), weights


def fed_forward(y: Tensor, residual: Tensor, weights: Weights, implementation: str) -> Tensor:
    return feed_forward(y, residual, *weights[:7], weights.w2, weights.b2, implementation=implementation)


def random_blocks(channels: int, n_blocks: int) -> list[BlockWeights]:
    _, _, weights = random_feed_forward((1, 1, 1, channels, 4 * channels))
    kernel, bias = normal(channels, 1, 13, 13, seed=20, fan=169), normal(channels, seed=21)
    return [BlockWeights(kernel.clone(), bias, *weights[:7], weights.w2.clone(), weights.b2) for _ in range(n_blocks)]


def random_stages(channels: int) -> list[Stage]:
    stages = []
    for wide, n_convs in ((20, 2), (24, 1)):
        convs = []
        for i in reversed(range(n_convs)):
            kernel, (shift, weight, bias) = (
                normal(wide >> i, channels, 3, 3, seed=i, fan=9 * channels),
                normal(3, wide >> i),
            )
            convs.append(ConvNormWeights(kernel, shift.clone(), weight.clone(), bias.clone(), 1e-6, i > 0))
            channels = wide >> i
        stages.append(Stage(convs, random_blocks(wide, 4 - n_convs)))
    return stages
