"""Series made of processes: what the pretrained forecaster learns from. No recorded data.

A batch has one period, so that it is one map. Each series is of one of five families:

* composed: trends (straight, bent at change points, exponential, saturating, random walks), one or two seasonal profiles (smooth, spiky, drifting in
  amplitude), ARMA noise with changing variance and heavy tails, a smooth Gaussian process, added or multiplied;
* innovations: level, damped slope and season that learn from the same shocks, as exponential smoothing assumes, often as logarithms;
* seasonal ARIMA: polynomials drawn from their whole admissible regions, integrated up to twice and over a season;
* growth: logarithms of a trend whose rate changes, a business cycle, a season that wanders and shocks;
* kernels: sums and products of draws from linear, squared exponential, rational quadratic, Ornstein-Uhlenbeck and periodic kernels.

Some are mixed with another of the batch, and some are spoiled (level shifts, outliers, values repeated or rounded) or of another form
(skewed, censored, intermittent, counted).

Sources of the ideas: Dooley et al. (2023), ForecastPFN; Ansari et al. (2024), Chronos (KernelSynth, TSMixup).

Shapes: S series, L steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Cycles of calendars at usual sampling, by how common they are (years, quarters, months; weeks, hours and half hours of a day), and others between.
PERIODS = (
    *(1,) * 5, *(4,) * 5, *(12,) * 6, *(7,) * 3, *(24,) * 3, 52, 52,
    2, 3, 5, 6, 8, 10, 13, 14, 16, 18, 20, 28, 30, 36, 48, 60,
)  # fmt: skip


QUARTERS = 4  # steps a year, at most, where what is recorded mostly grows and its shocks are small beside that
GROWING = {1: 0.8, 4: 0.75, 12: 0.15}  # by period: share of series that have such a drift


def generate(n_series: int, length: int, period: int, generator: torch.Generator) -> Tensor:
    """SxL series, each of its own process; on the generator's device, float32, of mean about 0 and deviation about 1."""
    growth = 0.25 if period <= QUARTERS else 0.12
    families: tuple[tuple[float, Callable[[Draw, int], Tensor]], ...] = (
        (0.3 - growth / 2, _composed), (0.38 - growth / 2, _innovations), (0.22, _arima), (growth, _growth), (0.1, _kernels),
    )  # fmt: skip
    bounds, total = [0], 0.0
    for share, _ in families:
        total += share
        bounds.append(round(total * n_series))
    parts = [
        make(Draw(last - first, length, generator, GROWING.get(period, 0.1)), period)
        for (_, make), first, last in zip(families, bounds, bounds[1:], strict=False)
        if last > first
    ]
    draw = Draw(n_series, length, generator)
    series = _mixed(draw, torch.cat(parts))
    if period > QUARTERS:
        series = series + draw.some(0.6) * torch.exp(0.8 * draw.normal(1) - 1.8) * draw.normal(length)
    return _spoiled(draw, series).nan_to_num(0, 0, 0).clamp(-20, 20)


def _mixed(draw: Draw, series: Tensor) -> Tensor:
    """A tenth with a weighted part of another series. Source: TSMixup."""
    other = series[torch.randperm(draw.n, generator=draw.generator, device=draw.device)]
    share = draw.some(0.1) * 0.5 * draw.uniform(1)
    return _unit((1 - share) * series + share * other)


def _spoiled(draw: Draw, series: Tensor) -> Tensor:
    """Levels that shift, outliers, values that repeat and whole numbers, each in some."""
    series = series + _shifts(draw) * draw.some(0.08) + _outliers(draw) * draw.some(0.1)
    scale = torch.exp(0.5 + 3 * draw.uniform(1))
    series = torch.where(draw.some(0.12) > 0, (series * scale).round() / scale, series)
    held = (draw.uniform(draw.length) < 0.15) & (draw.some(0.03) > 0)
    index = torch.where(held, torch.zeros_like(draw.steps), draw.steps).cummax(1).values.long()
    return _unit(series.gather(1, index))


def _innovations(draw: Draw, period: int) -> Tensor:
    """Level, slope and season that learn from the same shocks: what exponential smoothing assumes; often as logarithms.

    Source of the form: Hyndman et al. (2008), the innovations state space.
    """
    length = draw.length
    shocks = torch.where(draw.some(0.3) > 0, _noise(draw), draw.normal(length))
    before = torch.nn.functional.pad(shocks[:, :-1], (1, 0))

    def rate(present: float, most: float) -> Tensor:
        return draw.some(present) * most * draw.uniform(1).square()

    alpha = torch.where(draw.some(0.2) > 0, torch.ones_like(shocks[:, :1]), draw.uniform(1)) * draw.some(0.85)
    level = alpha * before.cumsum(1)
    # a slope that moves, and fades (damped) in some
    moving = rate(0.4, 0.25) * before
    fading = torch.where(draw.some(0.5) > 0, 0.8 + 0.19 * draw.uniform(1), torch.ones_like(alpha))
    first = draw.drift(0.6, -1.5)
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
    return _unit(torch.where(draw.uniform(1) < 0.3 + 0.25 * draw.growing, grown, series))


def _faded(shocks: Tensor, fading: Tensor) -> Tensor:
    """Running sums of SxL in which what is old fades by a factor a step."""
    length = shocks.shape[1]
    response = fading ** torch.arange(length, device=shocks.device, dtype=torch.float32)
    spectrum = torch.fft.rfft(shocks, 2 * length, dim=1) * torch.fft.rfft(response, 2 * length, dim=1)
    found: Tensor = torch.fft.irfft(spectrum, 2 * length, dim=1)[:, :length]
    return found


def _arima(draw: Draw, period: int) -> Tensor:
    """Seasonal ARIMA (0 to 2, 0 to 2, 0 to 2)(0 or 1, 0 or 1, 0 or 1): shocks through a transfer function on a circle twice as long, then summed.

    Partial autocorrelations are uniform, so that coefficients cover the admissible region; moving averages mostly undo what summing adds.
    """
    size = 2 * draw.length
    z = torch.exp(-2j * math.pi * torch.arange(size // 2 + 1, device=draw.device) / size)
    zs = z**period
    twice = (draw.uniform(1) < 0.08 + 0.25 * draw.growing).float()
    once = torch.maximum(draw.some(0.75), draw.growing)  # summed twice, summed at least once
    seasonal = draw.some(0.8 if period > 1 else 0.0)
    summed_season = seasonal * draw.some(0.6)

    def pair(present: float, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        first = (low + (high - low) * draw.uniform(1)) * draw.some(present)
        second = (draw.uniform(1) * 1.8 - 0.9) * draw.some(0.4) * draw.some(present)
        return first * (1 - second), second

    wide = torch.full_like(once, 0.95)
    phi1, phi2 = pair(0.6, torch.where(once > 0, -0.6 * wide, -0.4 * wide), wide - 0.15 * once)
    theta1, theta2 = pair(0.7, -wide, torch.where(once > 0, 0.4 * wide, wide))
    theta1 = torch.where(twice > 0, -0.4 - 0.57 * draw.uniform(1), theta1)
    theta2 = torch.where(twice > 0, 0.0, theta2)
    season_phi = seasonal * draw.some(0.5) * (draw.uniform(1) * (1.2 - 0.5 * summed_season) - 0.25)
    season_theta = torch.where(summed_season > 0, -0.98 * draw.uniform(1).sqrt(), seasonal * (draw.uniform(1) - 0.5))
    transfer = (1 + theta1 * z + theta2 * z**2) * (1 + season_theta * zs)
    transfer = transfer / ((1 - phi1 * z - phi2 * z**2) * (1 - season_phi * zs))
    shocks = draw.normal(size)
    tails = (draw.normal(size, 4).square().sum(-1) / 4).sqrt().clamp(min=0.3)
    shocks = torch.where(draw.some(0.2) > 0, shocks / tails, shocks)
    series = torch.fft.irfft(torch.fft.rfft(shocks, dim=1) * transfer, size, dim=1)[:, : draw.length]
    swing = torch.exp(draw.normal(1) * 0.8 + 0.7)
    rows = -(-draw.length // period)
    by_season = torch.unflatten(torch.nn.functional.pad(series, (0, rows * period - draw.length)), 1, (rows, period))
    by_season = by_season.cumsum(1).flatten(1)[:, : draw.length]
    series = torch.where(summed_season > 0, by_season, series)
    pattern = seasonal * swing * _season(draw, period, steady=True)
    drift = draw.drift(0.6, -1.2)
    summed = series.cumsum(1)
    slope = draw.drift(1.0, -1.5)
    series = torch.where(
        twice > 0, (0.3 * summed + slope).cumsum(1), torch.where(once > 0, summed + drift * draw.steps, series)
    )
    return _logarithms(draw, _unit(series + pattern), 0.3)


def _growth(draw: Draw, period: int) -> Tensor:
    """Logarithms: a rate of growth that changes now and then or fades, a business cycle, a season that wanders, shocks that stay and shocks that pass."""
    changes = (draw.uniform(draw.length) < torch.exp(-1.5 - 3.5 * draw.uniform(1)) / period).float()
    changes[:, 0] = 1
    index = torch.where(changes > 0, draw.steps, torch.zeros_like(draw.steps)).cummax(1).values.long()
    typical = draw.normal(1) + torch.maximum(draw.some(0.4), 1.2 * draw.growing)
    rates = (typical + 1.2 * draw.normal(draw.length)).gather(1, index)
    fading = torch.where(draw.some(0.3) > 0, 1 - torch.exp(-1 - 3 * draw.uniform(1)) / period, torch.ones_like(typical))
    rates = rates * fading ** (draw.steps - index)
    trend = rates.cumsum(1) / period
    walk = draw.normal(draw.length).cumsum(1) / math.sqrt(period)
    cycle = _gaussian_process(draw, period, features=16)
    profile = _season(draw, period, steady=True) if period > 1 else torch.zeros_like(walk)
    rows = -(-draw.length // period)
    wandering = draw.normal(rows, period).cumsum(1)
    wandering = (wandering - wandering.mean(2, keepdim=True)).flatten(1)[:, : draw.length]
    smoothness = draw.some(0.5)

    def size(present: float, middle: float) -> Tensor:
        return draw.some(present) * torch.exp(0.9 * draw.normal(1) + middle)

    series = size(0.85, 0.0) * trend + size(0.6, -0.7) * walk + size(0.4, -0.5) * cycle
    season = size(0.85, 0.3) * (profile + size(0.5, -2.0) * wandering)
    series = series + season + size(0.9, -0.8) * torch.where(smoothness > 0, _noise(draw), draw.normal(draw.length))
    return _logarithms(draw, _unit(series), 0.7)


def _kernels(draw: Draw, period: int) -> Tensor:
    """Draws from kernels, some multiplied by each other. Source: KernelSynth."""
    smooth, rough = (
        _gaussian_process(draw, period, features=32),
        _gaussian_process(draw, max(1, period // 2), features=32),
    )
    season, other = _season(draw, period), _season(draw, max(2, period // 2))
    line = (draw.steps / draw.length - draw.uniform(1)) * 2 * draw.normal(1)
    memory = torch.exp(-1 / (period * torch.exp(2 * draw.uniform(1) - 0.5)))
    drifting = _unit(_faded(draw.normal(draw.length), memory))

    def size(present: float) -> Tensor:
        return draw.some(present) * torch.exp(0.7 * draw.normal(1))

    series = size(0.5) * line + size(0.5) * smooth + size(0.3) * rough + size(0.3) * drifting + size(0.5) * season
    series = series + size(0.3) * season * smooth + size(0.2) * season * line + size(0.15) * other * drifting
    series = series + size(0.15) * smooth * line + 0.3 * size(0.7) * draw.normal(draw.length)
    return _unit(series)


def _logarithms(draw: Draw, series: Tensor, share: float) -> Tensor:
    """This share of SxL taken for logarithms, of a swing between a few percent and several times the level."""
    swing = series.abs().amax(1, keepdim=True).clamp(min=1e-3)
    grown = torch.exp(series / swing * torch.exp(-1.5 + 2.3 * draw.uniform(1)))
    return _unit(torch.where(draw.uniform(1) < share + 0.2 * draw.growing, grown, series))


def _composed(draw: Draw, period: int) -> Tensor:
    """Trend, seasons, a smooth process and noise, added or multiplied, some of another form."""
    season = _season(draw, period)
    second = _season(draw, period * int(draw.integer(2, 8))) * draw.some(0.2)
    trend = _trend(draw)
    smooth = _gaussian_process(draw, period)
    noise = _noise(draw)
    # how much of each: some series are nothing but season, some nothing but noise

    def share(present: float) -> Tensor:
        return draw.some(present) * torch.exp(0.9 * draw.normal(1))

    total_season = season + 0.6 * second
    lift = torch.exp(0.8 * draw.growing)
    level = 0.8 * lift * share(0.75) * trend + 0.7 * share(0.4) * smooth
    base = level + share(0.8) * total_season / lift + 0.45 * share(0.92) * noise / lift
    product = (1 + 0.3 * _unit(level)) * (share(1.0) * total_season + 0.3 * noise) + level
    series = torch.where(draw.some(0.25) > 0, product, base)
    return _formed(draw, _unit(series))


class Draw:
    """Random numbers of a batch, and which of its series grow."""

    def __init__(self, n_series: int, length: int, generator: torch.Generator, growing: float = 0.0) -> None:
        self.n, self.length, self.generator, self.device = n_series, length, generator, generator.device
        self.steps = torch.arange(length, device=self.device, dtype=torch.float32)
        self.growing = self.some(growing)  # 1 where a drift upwards is larger than shocks

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(self.n, *shape, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.n, *shape, generator=self.generator, device=self.device)

    def some(self, share: float) -> Tensor:
        """Sx1: 1 with this probability, else 0."""
        return (self.uniform(1) < share).float()

    def drift(self, present: float, middle: float) -> Tensor:
        """Sx1, a step, in units of a shock: log-normal in size, `middle` the logarithm of its scale where a series does not grow."""
        size = torch.exp(self.normal(1) + middle + 1.4 * self.growing)
        return torch.maximum(self.some(present), self.growing) * (self.normal(1) + 0.9 * self.growing) * size

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=self.generator, device=self.device))


def _unit(series: Tensor) -> Tensor:
    centred = series - series.mean(1, keepdim=True)
    return centred / centred.std(1, keepdim=True).clamp(min=1e-4)


def _season(draw: Draw, period: int, steady: bool = False) -> Tensor:
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


def _trend(draw: Draw) -> Tensor:
    t = draw.steps / draw.length
    straight = (draw.normal(1) + draw.growing) * 2 * t
    bends = sum(
        (draw.normal(1) * 3 * torch.relu(t - draw.uniform(1)) for _ in range(4)),
        torch.zeros(draw.n, draw.length, device=draw.device),
    )
    growth = torch.expm1(t * (0.5 + 2.5 * draw.uniform(1))) * (draw.normal(1) + draw.growing)
    saturating = torch.tanh((t - draw.uniform(1)) * (2 + 8 * draw.uniform(1))) * draw.normal(1)
    walk = draw.normal(draw.length).cumsum(1) / math.sqrt(draw.length) * 1.5
    momentum = draw.normal(draw.length).cumsum(1).cumsum(1) / draw.length**1.5 * 1.5
    kind = draw.uniform(1)
    bounds = [(0.2, straight), (0.45, straight + bends), (0.55, growth), (0.65, saturating), (0.9, walk)]
    found: Tensor = momentum
    for bound, form in reversed(bounds):
        found = torch.where(kind < bound, form, found)
    return found


def _gaussian_process(draw: Draw, period: int, features: int = 48) -> Tensor:
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


def _noise(draw: Draw) -> Tensor:
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


def _shifts(draw: Draw) -> Tensor:
    where = draw.uniform(1) * draw.length
    back = where + draw.uniform(1) * draw.length
    return ((draw.steps > where) & (draw.steps < back)).float() * draw.normal(1) * 2


def _outliers(draw: Draw) -> Tensor:
    return (draw.uniform(draw.length) < 0.01).float() * draw.normal(draw.length) * 5


def _formed(draw: Draw, series: Tensor) -> Tensor:
    """Some are positive and skewed, cut at a limit, zero most of the time, or whole numbers."""
    kind = draw.uniform(1)
    skewed = _unit(torch.exp((0.3 + 0.7 * draw.uniform(1)) * series.clamp(-4, 4)))
    censored = _unit(torch.maximum(series, torch.quantile(series, 0.35, dim=1, keepdim=True) * draw.uniform(1)))
    rare = (draw.uniform(draw.length) < 0.1 + 0.5 * draw.uniform(1)).float() * torch.exp(0.5 * series.clamp(-4, 4))
    counts = torch.poisson(torch.exp((series * 0.6 + 2 * draw.uniform(1)).clamp(-3, 5)), generator=draw.generator)
    found = torch.where(kind < 0.7, series, torch.where(kind < 0.8, skewed, censored))
    found = torch.where((kind > 0.88) & (kind < 0.94), _unit(rare), found)
    found = torch.where(kind > 0.94, _unit(counts), found)
    return found
