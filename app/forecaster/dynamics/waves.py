"""The wave equation in the plane by leapfrog: data whose truth is exact, stored so that the weather reader takes it.

u_tt = c(x)^2 laplacian(u) - damping u_t. Shapes: T frames, H rows (y), W columns (x); cells of
size 1, c in cells per unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from unipercept.app.forecaster.dynamics.spectral import Array
from unipercept.errors import InputError

if TYPE_CHECKING:
    import xarray

MOST_COURANT = np.sqrt(0.5)  # the scheme is stable below, in two dimensions
SPONGE_CELLS, SPONGE_RATE = 12, 0.5  # absorbing edge: width, and damping at its rim


@dataclass(frozen=True)
class WaveConfig:
    """A run of the wave equation.

    Args:
        edges: "periodic", "reflecting" (u is 0 outside) or "absorbing" (a sponge before a reflecting edge).
        speed: the mean of c.
        speed_variation: relative, of the smooth random c; 0 for a constant.
        damping: rate per unit of time.
        steps_per_frame: steps of the scheme between two frames that are kept.
    """

    rows: int = 64
    columns: int = 64
    edges: Literal["periodic", "reflecting", "absorbing"] = "periodic"
    speed: float = 1.0
    speed_variation: float = 0.0
    damping: float = 0.0
    step: float = 0.5
    steps_per_frame: int = 4
    n_sources: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.edges not in ("periodic", "reflecting", "absorbing"):
            raise InputError(f'edges must be "periodic", "reflecting" or "absorbing", got {self.edges!r}')
        if not 0 <= self.speed_variation < 1 or min(self.rows, self.columns, self.steps_per_frame) < 1:
            raise InputError("speed_variation must lie within 0 and 1, sizes and steps_per_frame must be 1 or more")
        courant = self.speed * (1 + self.speed_variation) * self.step
        if courant > MOST_COURANT:
            raise InputError(f"the step is too long: c dt/dx is {courant:.3g}, stable up to {MOST_COURANT:.3g}")


class WaveEquation:
    """Steps two neighbouring states forwards."""

    def __init__(self, config: WaveConfig) -> None:
        self.config = config
        random = np.random.default_rng(config.seed)
        shape = (config.rows, config.columns)
        self.speed = config.speed * (1 + config.speed_variation * _smooth(random, shape))
        self._courant_squared = (self.speed * config.step) ** 2
        sponge = _sponge(shape) if config.edges == "absorbing" else np.zeros(shape)
        self._drag = (config.damping + sponge) * config.step / 2
        self._random = random

    def initial(self) -> tuple[Array, Array]:
        """Gaussian sources at random places, at rest: the state before and the state now, HxW each."""
        height, width = self.config.rows, self.config.columns
        rows, columns = np.arange(height)[:, None], np.arange(width)[None]
        now = np.zeros((height, width))
        for _ in range(self.config.n_sources):
            y, x, size = self._random.uniform(0, height), self._random.uniform(0, width), self._random.uniform(2, 5)
            away_y = (rows - y + height / 2) % height - height / 2
            away_x = (columns - x + width / 2) % width - width / 2
            now += self._random.normal() * np.exp(-(away_y**2 + away_x**2) / (2 * size**2))
        # At rest: u(-dt) = u(dt), so both are half a step's curvature away from u(0).
        return now + self._courant_squared * self._laplacian(now) / 2, now

    def step(self, before: Array, now: Array) -> tuple[Array, Array]:
        """One step: (now, after)."""
        after = 2 * now - (1 - self._drag) * before + self._courant_squared * self._laplacian(now)
        return now, after / (1 + self._drag)

    def energy(self, before: Array, now: Array) -> float:
        """Of the discrete scheme, which keeps it exactly where there is no damping: <v,
        v / c^2> + <grad u-, grad u>.
        """
        velocity = (now - before) / self.config.step
        return float((velocity**2 / self.speed**2).sum() - (before * self._laplacian(now)).sum()) / 2

    def _laplacian(self, u: Array) -> Array:
        mode = "wrap" if self.config.edges == "periodic" else "constant"
        padded = np.pad(u, 1, mode=mode)  # type: ignore[call-overload]
        around: Array = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * u
        return around


def wave_dataset(config: WaveConfig, n_frames: int) -> xarray.Dataset:
    """Frames of a run as a Dataset (time, latitude, longitude), float32; 10 cells are a degree at the equator.

    Time is stored as dates, an hour to a frame, and the plane as a small region, so that readers of weather take it.
    """
    import xarray as xr

    model = WaveEquation(config)
    before, now = model.initial()
    frames = np.empty((n_frames, config.rows, config.columns), np.float32)
    for i in range(n_frames):
        frames[i] = now
        for _ in range(config.steps_per_frame):
            before, now = model.step(before, now)
    times = np.datetime64("2000-01-01", "ns") + np.arange(n_frames) * np.timedelta64(1, "h")
    y, x = 0.1 * np.arange(config.rows), 0.1 * np.arange(config.columns)
    dims = ("time", "latitude", "longitude")
    attributes = {"source": "synthetic wave equation", "seed": config.seed, "edges": config.edges, "step": config.step}
    return xr.Dataset(
        {"height": (dims, frames[:, ::-1], {"units": "1", "long_name": "displacement"})},
        {"time": times, "latitude": y[::-1], "longitude": x},
        attributes,
    )


def _smooth(random: np.random.Generator, shape: tuple[int, int]) -> Array:
    """A random field within [-1, 1] whose scales are a fifth of the box and more."""
    field = np.fft.fft2(random.normal(size=shape))
    wave_y, wave_x = np.fft.fftfreq(shape[0])[:, None] * shape[0], np.fft.fftfreq(shape[1])[None] * shape[1]
    smooth = np.fft.ifft2(field * np.exp(-(wave_y**2 + wave_x**2) / 8)).real
    return np.asarray(smooth / np.abs(smooth).max())


def _sponge(shape: tuple[int, int]) -> Array:
    rows, columns = (np.minimum(np.arange(n), np.arange(n)[::-1]) for n in shape)
    depth = np.clip(1 - np.minimum(rows[:, None], columns[None]) / SPONGE_CELLS, 0, 1)
    return SPONGE_RATE * depth**2
