"""A series as a picture and back, exactly: by its period, or by the plain reshape of the reference.

Shapes: B series, L steps, P period, R cycles, D features a step, H rows, W columns.
"""

import math

import torch
from einops import rearrange
from torch import Tensor

from unipercept.errors import InputError


def dominant_period(series: Tensor, max_period: int | None = None) -> int:
    """The period, in steps, of the strongest frequency of BxL series together; 1 where nothing repeats.

    The amplitude spectrum of each series, with its straight line taken out and its variance set to 1, is averaged over
    the series; the period is the whole number nearest to L over the strongest frequency. At least two cycles must fit.

    Source: Wu et al. (2023), TimesNet, equation 1, with the straight line taken out first.
    """
    length = series.shape[1]
    if length < 4:
        return 1
    steps = torch.linspace(-1, 1, length, dtype=torch.float64)
    centred = series.double() - series.double().mean(dim=1, keepdim=True)
    centred = centred - (centred * steps).sum(dim=1, keepdim=True) / steps.square().sum() * steps
    scale = centred.std(dim=1, keepdim=True)
    varies = scale[:, 0] > 1e-9 * series.double().abs().amax(dim=1).clamp(min=1e-30)
    if not varies.any():
        return 1
    amplitude = torch.fft.rfft(centred[varies] / scale[varies]).abs().mean(dim=0)
    first = 2 if max_period is None else max(2, math.ceil(length / max_period))
    if len(amplitude) <= first:
        return 1
    return max(1, round(length / (first + int(amplitude[first:].argmax()))))


def fold_period(series: Tensor, period: int) -> tuple[Tensor, Tensor]:
    """BxL to BxRxP: a row a cycle, a column a phase; and RxP bool, False on the cells after
    the last step, which hold 0.

    Raises:
        InputError: the period is below 1.
    """
    if period < 1:
        raise InputError(f"a period is at least 1 step, got {period}")
    length = series.shape[1]
    cycles = max(1, -(-length // period))
    padded = torch.nn.functional.pad(series, (0, cycles * period - length))
    real = torch.arange(cycles * period) < length
    return rearrange(padded, "b (r p) -> b r p", p=period), rearrange(real, "(r p) -> r p", p=period)


def unfold(folded: Tensor, length: int) -> Tensor:
    """BxRxP or Bx1xHxW back to the first L numbers of each series, BxL: both folds lay them row by row."""
    return folded.flatten(1)[:, :length]


def square_sides(cells: int) -> tuple[int, int]:
    """H and W, H <= W, with the fewest cells that hold `cells` and no side more than twice
    the other, most square first.

    48 * 768 cells give 192 x 192, as in the reference. A prime number gets a few cells of padding.

    Raises:
        InputError: there are no cells.
    """
    if cells < 1:
        raise InputError(f"a picture needs at least one cell, got {cells}")
    root = math.isqrt(cells - 1) + 1
    candidates = [(h, -(-cells // h)) for h in range(max(1, root - root // 4), root + 1)]
    return min(((min(h, w), max(h, w)) for h, w in candidates), key=lambda s: (s[0] * s[1], s[1] - s[0]))


def fold_square(embedded: Tensor) -> tuple[Tensor, Tensor]:
    """BxLxD, each step embedded in D features, to Bx1xHxW by a plain reshape; and HxW bool, False on padding.

    Source: the released time-series code of UniRepLKNet, where 48 x 768 becomes 192 x 192.
    """
    cells = embedded.shape[1] * embedded.shape[2]
    height, width = square_sides(cells)
    flat = torch.nn.functional.pad(embedded.flatten(1), (0, height * width - cells))
    real = (torch.arange(height * width) < cells).reshape(height, width)
    return flat.reshape(-1, 1, height, width), real
