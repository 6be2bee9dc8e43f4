"""Series made of processes: what the pretrained start learns from. No recorded data.

A batch has one period, so that it is one map. Each series is drawn from: trends (straight, bent at change points, exponential,
saturating, random walks), one or two seasonal profiles (smooth, spiky, drifting in amplitude), ARMA noise with changing
variance and heavy tails, Gaussian processes (random Fourier features of RBF, Matérn and rational quadratic kernels, periodic ones), level shifts,
outliers, and multiplicative, intermittent, censored and counted forms of these.

Sources of the idea: Dooley et al. (2023), ForecastPFN; Ansari et al. (2024), Chronos (KernelSynth).

Shapes: S series, L steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Cycles of calendars at usual sampling (quarters, weeks, months, hours and half hours of a day, weeks of a year) and others between.
PERIODS = (1, 1, 4, 4, 5, 6, 7, 7, 8, 10, 12, 12, 12, 13, 14, 16, 18, 20, 24, 24, 24, 28, 30, 36, 48, 52)


def generate(n_series: int, length: int, period: int, generator: torch.Generator) -> Tensor:
    """SxL series, each of its own process; on the generator's device, float32, of mean about 0 and deviation about 1.

    A half are sums of parts, the others follow from shocks alone.
    """
    parts = n_series // 2
    return torch.cat(
        [_composed(parts, length, period, generator), _innovations(n_series - parts, length, period, generator)]
    )


def _innovations(n_series: int, length: int, period: int, generator: torch.Generator) -> Tensor:
    """Level, slope and season that learn from the same shocks: what exponential smoothing and seasonal ARIMA assume; often as logarithms.

    Source of the form: Hyndman et al. (2008), the innovations state space.
    """
    draw = _Draw(n_series, length, generator)
    shocks = _noise(draw) if draw.integer(0, 3) == 0 else draw.normal(length)
    before = torch.nn.functional.pad(shocks[:, :-1], (1, 0))

    def rate(present: float, most: float) -> Tensor:
        return draw.some(present) * most * draw.uniform(1).square()

    alpha = torch.where(draw.some(0.2) > 0, torch.ones_like(shocks[:, :1]), draw.uniform(1)) * draw.some(0.85)
    level = alpha * before.cumsum(1)
    # a slope that moves, and fades (damped) in some
    moving = rate(0.4, 0.25) * before
    fading = torch.where(draw.some(0.5) > 0, 0.8 + 0.19 * draw.uniform(1), torch.ones_like(alpha))
    first = draw.some(0.6) * draw.normal(1) * torch.exp(draw.normal(1) - 1.5)
    slope = _faded(moving, fading) + first * fading**draw.steps
    # a season whose shape learns, too
    rows = -(-length // period)
    learned = torch.unflatten(torch.nn.functional.pad(shocks, (0, rows * period - length)), 1, (rows, period))
    learned = torch.nn.functional.pad(learned.cumsum(1)[:, :-1], (0, 0, 1, 0)).flatten(1)[:, :length]
    season = draw.some(0.75) * (
        _season(draw, period, steady=True) * torch.exp(draw.normal(1) * 0.9 + 0.5) + rate(0.5, 0.5) * learned
    )
    series = level + slope.cumsum(1) + season + shocks
    centred = series - series.mean(1, keepdim=True)
    swing = centred.abs().amax(1, keepdim=True).clamp(min=1e-3)
    grown = torch.exp(centred / swing * (0.2 + 1.8 * draw.uniform(1)))
    return _unit(torch.where(draw.some(0.35) > 0, grown, series)).nan_to_num(0, 0, 0).clamp(-20, 20)


def _faded(shocks: Tensor, fading: Tensor) -> Tensor:
    """Running sums of SxL in which what is old fades by a factor a step."""
    length = shocks.shape[1]
    response = fading ** torch.arange(length, device=shocks.device, dtype=torch.float32)
    spectrum = torch.fft.rfft(shocks, 2 * length, dim=1) * torch.fft.rfft(response, 2 * length, dim=1)
    found: Tensor = torch.fft.irfft(spectrum, 2 * length, dim=1)[:, :length]
    return found


def _composed(n_series: int, length: int, period: int, generator: torch.Generator) -> Tensor:
    """Trend, seasons, a smooth process and noise, added or multiplied, some spoiled or of another form."""
    draw = _Draw(n_series, length, generator)
    season = _season(draw, period)
    second = _season(draw, period * int(draw.integer(2, 8))) * draw.some(0.25)
    trend = _trend(draw)
    smooth = _gaussian_process(draw, period)
    noise = _noise(draw)
    # how much of each: some series are nothing but season, some nothing but noise

    def share(present: float) -> Tensor:
        return draw.some(present) * torch.exp(0.9 * draw.normal(1))

    total_season = season + 0.6 * second
    level = 0.8 * share(0.75) * trend + 0.7 * share(0.4) * smooth
    base = level + share(0.8) * total_season + 0.45 * share(0.92) * noise
    product = (1 + 0.3 * _unit(level)) * (share(1.0) * total_season + 0.3 * noise) + level
    series = torch.where(draw.some(0.25) > 0, product, base)
    series = series + _shifts(draw) * draw.some(0.15) + _outliers(draw) * draw.some(0.15)
    return _formed(draw, _unit(series))


class _Draw:
    """Random numbers of a batch."""

    def __init__(self, n_series: int, length: int, generator: torch.Generator) -> None:
        self.n, self.length, self.generator, self.device = n_series, length, generator, generator.device
        self.steps = torch.arange(length, device=self.device, dtype=torch.float32)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(self.n, *shape, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.n, *shape, generator=self.generator, device=self.device)

    def some(self, share: float) -> Tensor:
        """Sx1: 1 with this probability, else 0."""
        return (self.uniform(1) < share).float()

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=self.generator, device=self.device))


def _unit(series: Tensor) -> Tensor:
    centred = series - series.mean(1, keepdim=True)
    return centred / centred.std(1, keepdim=True).clamp(min=1e-4)


def _season(draw: _Draw, period: int, steady: bool = False) -> Tensor:
    """A profile that repeats: a few harmonics, or bumps at some phases, or steps; its amplitude may drift unless it is to be steady."""
    most = max(1, min(8, period // 2))
    k = torch.arange(1, most + 1, device=draw.device, dtype=torch.float32)
    decay = 0.3 + 1.7 * draw.uniform(1)
    weight = draw.normal(most, 2) * (k**-decay)[..., None]
    phase = torch.arange(period, device=draw.device, dtype=torch.float32) * (2 * math.pi / period)
    angles = k[:, None] * phase
    harmonic = torch.einsum("sk,kp->sp", weight[..., 0], angles.sin()) + torch.einsum(
        "sk,kp->sp", weight[..., 1], angles.cos()
    )
    centre, width = draw.uniform(1) * 2 * math.pi, 0.15 + 0.8 * draw.uniform(1)
    bump = torch.exp(((phase - centre).cos() - 1) / width.square())
    plateau = ((phase - centre).cos() > draw.uniform(1) * 1.6 - 0.8).float()
    rough = draw.normal(period)
    kind = draw.uniform(1)
    profile = torch.where(
        kind < 0.55, harmonic, torch.where(kind < 0.7, bump, torch.where(kind < 0.85, plateau, rough))
    )
    profile = _unit(profile) if period > 2 else profile
    index = (draw.steps.long() + draw.integer(0, period)) % period
    if steady:
        return profile[:, index]
    amplitude = 1 + draw.some(0.4) * 0.5 * torch.sin(
        draw.steps / draw.length * 2 * math.pi * (0.2 + 1.5 * draw.uniform(1)) + 6.28 * draw.uniform(1)
    )
    found: Tensor = profile[:, index] * amplitude
    return found


def _trend(draw: _Draw) -> Tensor:
    t = draw.steps / draw.length
    straight = draw.normal(1) * 2 * t
    bends = sum(
        (draw.normal(1) * 3 * torch.relu(t - draw.uniform(1)) for _ in range(4)),
        torch.zeros(draw.n, draw.length, device=draw.device),
    )
    growth = torch.expm1(t * (0.5 + 2.5 * draw.uniform(1))) * draw.normal(1)
    saturating = torch.tanh((t - draw.uniform(1)) * (2 + 8 * draw.uniform(1))) * draw.normal(1)
    walk = draw.normal(draw.length).cumsum(1) / math.sqrt(draw.length) * 1.5
    momentum = draw.normal(draw.length).cumsum(1).cumsum(1) / draw.length**1.5 * 1.5
    kind = draw.uniform(1)
    bounds = [(0.2, straight), (0.45, straight + bends), (0.55, growth), (0.65, saturating), (0.9, walk)]
    found: Tensor = momentum
    for bound, form in reversed(bounds):
        found = torch.where(kind < bound, form, found)
    return found


def _gaussian_process(draw: _Draw, period: int, features: int = 48) -> Tensor:
    """Random Fourier features: normal frequencies are an RBF kernel, Student's Matérn, mixed scales rational quadratic."""
    scale = period * torch.exp(-1.2 + 3 * draw.uniform(1))
    frequency = draw.normal(features)
    heavy = (draw.normal(features, 3).square().sum(-1) / 3).sqrt().clamp(min=0.05)
    mixed = torch.exp(0.8 * draw.normal(features))
    kind = draw.uniform(1)
    frequency = (
        torch.where(kind < 0.4, frequency, torch.where(kind < 0.7, frequency / heavy, frequency * mixed)) / scale
    )
    phase, weight = 2 * math.pi * draw.uniform(features), draw.normal(features)
    total = torch.zeros(draw.n, draw.length, device=draw.device)
    for i in range(features):
        total += weight[:, i : i + 1] * torch.cos(frequency[:, i : i + 1] * draw.steps + phase[:, i : i + 1])
    return total * math.sqrt(2 / features)


def _noise(draw: _Draw) -> Tensor:
    """Noise of AR(1), AR(2) or none; heavy tails and a variance that moves in some."""
    shocks = draw.normal(draw.length)
    tails = (draw.normal(draw.length, 4).square().sum(-1) / 4).sqrt().clamp(min=0.3)
    shocks = torch.where(draw.some(0.25) > 0, shocks / tails, shocks)
    moving = torch.exp(
        0.7 * torch.sin(draw.steps / draw.length * 6.28 * (0.5 + 3 * draw.uniform(1)) + 6.28 * draw.uniform(1))
    )
    shocks = torch.where(draw.some(0.3) > 0, shocks * moving, shocks)
    radius, angle = draw.uniform(1).sqrt() * 0.98, 0.05 + draw.uniform(1) * (math.pi - 0.1)
    n = draw.steps
    swinging = radius**n * torch.sin((n + 1) * angle) / torch.sin(angle)  # impulse response of a pair of complex poles
    fading = torch.where((draw.some(0.15) > 0) & (n % 2 == 1), -1.0, 1.0) * radius**n
    white = (n == 0).float().expand_as(fading)
    kind = draw.uniform(1)
    response = torch.where(kind < 0.3, swinging, torch.where(kind < 0.8, fading, white))
    size = 2 * draw.length  # padded, so that the product of spectra does not wrap around
    spectrum = torch.fft.rfft(shocks, size, dim=1) * torch.fft.rfft(response, size, dim=1)
    return _unit(torch.fft.irfft(spectrum, size, dim=1)[:, : draw.length])


def _shifts(draw: _Draw) -> Tensor:
    where = draw.uniform(1) * draw.length
    back = where + draw.uniform(1) * draw.length
    return ((draw.steps > where) & (draw.steps < back)).float() * draw.normal(1) * 2


def _outliers(draw: _Draw) -> Tensor:
    return (draw.uniform(draw.length) < 0.01).float() * draw.normal(draw.length) * 5


def _formed(draw: _Draw, series: Tensor) -> Tensor:
    """Some are positive and skewed, cut at a limit, zero most of the time, or whole numbers."""
    kind = draw.uniform(1)
    skewed = _unit(torch.exp((0.3 + 0.7 * draw.uniform(1)) * series.clamp(-4, 4)))
    censored = _unit(torch.maximum(series, torch.quantile(series, 0.35, dim=1, keepdim=True) * draw.uniform(1)))
    rare = (draw.uniform(draw.length) < 0.1 + 0.5 * draw.uniform(1)).float() * torch.exp(0.5 * series.clamp(-4, 4))
    counts = torch.poisson(torch.exp((series * 0.6 + 2 * draw.uniform(1)).clamp(-3, 5)), generator=draw.generator)
    found = torch.where(kind < 0.7, series, torch.where(kind < 0.8, skewed, censored))
    found = torch.where((kind > 0.88) & (kind < 0.94), _unit(rare), found)
    found = torch.where(kind > 0.94, _unit(counts), found)
    return found.nan_to_num(0, 0, 0).clamp(-20, 20)
