"""Shallow water on the sphere, spectral, and the standard cases of Williamson et al. (1992): a check of the dynamics.

Shapes: as in spectral.py; a state is ...x3xMxN: vorticity, divergence, geopotential of the
free surface over the ground.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from unipercept.app.forecaster.dynamics.spectral import (
    EARTH_RADIUS_M,
    EARTH_ROTATION,
    GRAVITY,
    Array,
    SphericalHarmonics,
)

TWELVE_DAYS = 12 * 86400
SOLID_BODY = 2 * np.pi * EARTH_RADIUS_M / TWELVE_DAYS  # m s-1: once around in twelve days


@dataclass(frozen=True, eq=False)
class ShallowWater:
    """d(vorticity)/dt = -div[(vorticity + f) v] and so on, in vorticity-divergence form, stepped
    by fourth-order Runge-Kutta.

    Args:
        step_seconds: 1200 suits T21, 600 T42.
        damping_hours: in which the smallest scale is damped (eighth order); None for none.
        ground: geopotential of the mountains, HxW, or 0.
        coriolis: HxW or Hx1; None for the earth's.
    """

    harmonics: SphericalHarmonics = field(default_factory=SphericalHarmonics)
    step_seconds: float = 1200
    damping_hours: float | None = 6
    ground: Array | float = 0.0
    coriolis: Array | None = None

    @cached_property
    def _coriolis(self) -> Array:
        return 2 * EARTH_ROTATION * self.harmonics.nodes[0][:, None] if self.coriolis is None else self.coriolis

    @cached_property
    def _damping(self) -> Array | float:
        if self.damping_hours is None:
            return 1.0
        return np.exp(-self.step_seconds * self.harmonics.damping(self.damping_hours))

    def state(self, u: Array, v: Array, geopotential: Array) -> Array:
        """Spectral state of winds and geopotential on the grid."""
        cos = np.sqrt(self.harmonics.cos_squared)
        curl, divergence = self.harmonics.curl_and_divergence(u * cos, v * cos)
        return np.stack([curl, divergence, self.harmonics.analyse(geopotential)], -3)

    def fields(self, state: Array) -> tuple[Array, Array, Array]:
        """Winds and geopotential on the grid."""
        u, v = self.harmonics.winds(state[..., 0, :, :], state[..., 1, :, :])
        cos = np.sqrt(self.harmonics.cos_squared)
        return u / cos, v / cos, self.harmonics.synthesise(state[..., 2, :, :])

    def tendency(self, state: Array) -> Array:
        """d(state)/dt."""
        vorticity, divergence, geopotential = (state[..., i, :, :] for i in range(3))
        u, v = self.harmonics.winds(vorticity, divergence)
        absolute = self.harmonics.synthesise(vorticity) + self._coriolis
        depth = self.harmonics.synthesise(geopotential)
        curl, flux = self.harmonics.curl_and_divergence(u * absolute, v * absolute)
        _, outflow = self.harmonics.curl_and_divergence(u * depth, v * depth)
        energy = self.harmonics.analyse(depth + self.ground + (u * u + v * v) / (2 * self.harmonics.cos_squared))
        return np.stack([-flux, curl - self.harmonics.laplacian * energy, -outflow], -3)

    def run(self, state: Array, hours: float) -> Array:
        """The state after `hours`, a whole number of steps."""
        for _ in range(round(hours * 3600 / self.step_seconds)):
            state = runge_kutta(self.tendency, state, self.step_seconds) * self._damping
        return state

    def mass(self, state: Array) -> Array:
        """Mean geopotential of the layer."""
        return self.harmonics.mean(self.fields(state)[2])

    def energy(self, state: Array) -> Array:
        """Mean of kinetic and potential energy of a column, over the density, in m3 s-2."""
        u, v, geopotential = self.fields(state)
        depth, ground = geopotential / GRAVITY, self.ground / GRAVITY
        potential = GRAVITY * ((depth + ground) ** 2 - ground**2) / 2
        return self.harmonics.mean(depth * (u * u + v * v) / 2 + potential)


def runge_kutta(tendency: Callable[[Array], Array], state: Array, step: float) -> Array:
    """One step of the classical fourth-order scheme."""
    first = tendency(state)
    second = tendency(state + step / 2 * first)
    third = tendency(state + step / 2 * second)
    fourth = tendency(state + step * third)
    after: Array = state + step / 6 * (first + 2 * second + 2 * third + fourth)
    return after


def steady_flow(
    harmonics: SphericalHarmonics, angle: float = 0.0, speed: float = SOLID_BODY, geopotential: float = 2.94e4
) -> tuple[Array, Array, Array, Array]:
    """Case 2, an exact steady state: u, v, geopotential, and the Coriolis parameter that belongs to the tilted axis.

    Case 1 uses its winds, case 5 all of it with other numbers.
    """
    phi, lam = harmonics.latitude[:, None], harmonics.longitude[None]
    u = speed * (np.cos(phi) * np.cos(angle) + np.cos(lam) * np.sin(phi) * np.sin(angle))
    v = -speed * np.sin(lam) * np.sin(angle) + 0 * phi
    height = -np.cos(lam) * np.cos(phi) * np.sin(angle) + np.sin(phi) * np.cos(angle)
    depth = geopotential - (EARTH_RADIUS_M * EARTH_ROTATION * speed + speed**2 / 2) * height**2
    return u, v, depth, 2 * EARTH_ROTATION * height


def cosine_bell(harmonics: SphericalHarmonics, longitude: float = 1.5 * np.pi, latitude: float = 0.0) -> Array:
    """Case 1: a bell of 1000 m, its radius a third of the earth's."""
    phi, lam = harmonics.latitude[:, None], harmonics.longitude[None]
    cos_distance = np.sin(latitude) * np.sin(phi) + np.cos(latitude) * np.cos(phi) * np.cos(lam - longitude)
    distance = EARTH_RADIUS_M * np.arccos(np.clip(cos_distance, -1, 1))
    radius = EARTH_RADIUS_M / 3
    return np.where(distance < radius, 500 * (1 + np.cos(np.pi * distance / radius)), 0.0)


def transport(harmonics: SphericalHarmonics, tracer: Array, u: Array, v: Array, hours: float, step: float) -> Array:
    """Coefficients of a tracer after advection by steady winds on the grid, in flux form."""
    cos = np.sqrt(harmonics.cos_squared)

    def tendency(state: Array) -> Array:
        field = harmonics.synthesise(state)
        return -harmonics.curl_and_divergence(u * cos * field, v * cos * field)[1]

    for _ in range(round(hours * 3600 / step)):
        tracer = runge_kutta(tendency, tracer, step)
    return tracer


def cone_mountain(harmonics: SphericalHarmonics, height: float = 2000.0) -> Array:
    """Case 5: the geopotential of a cone of `height` metres at 30 degrees north, 270 degrees east."""
    phi, lam = harmonics.latitude[:, None], harmonics.longitude[None]
    radius = np.pi / 9
    distance = np.sqrt((lam - 1.5 * np.pi) ** 2 + (phi - np.pi / 6) ** 2)
    return GRAVITY * height * (1 - np.minimum(distance, radius) / radius)


def rossby_haurwitz(harmonics: SphericalHarmonics, wave: int = 4) -> tuple[Array, Array, Array]:
    """Case 6: u, v and geopotential of the Rossby-Haurwitz wave, which turns eastwards and keeps its shape."""
    omega = strength = 7.848e-6
    phi, lam = harmonics.latitude[:, None], harmonics.longitude[None]
    cos, sin, a = np.cos(phi), np.sin(phi), EARTH_RADIUS_M
    u = a * omega * cos + a * strength * cos ** (wave - 1) * (wave * sin**2 - cos**2) * np.cos(wave * lam)
    v = -a * strength * wave * cos ** (wave - 1) * sin * np.sin(wave * lam)
    r1, r2 = wave + 1, wave + 2
    zonal = omega / 2 * (2 * EARTH_ROTATION + omega) * cos**2 + strength**2 / 4 * cos ** (2 * wave) * (
        r1 * cos**2 + (2 * wave**2 - wave - 2) - 2 * wave**2 / cos**2
    )
    first = (
        2 * (EARTH_ROTATION + omega) * strength / (r1 * r2) * cos**wave * ((wave**2 + 2 * wave + 2) - r1**2 * cos**2)
    )
    second = strength**2 / 4 * cos ** (2 * wave) * (r1 * cos**2 - r2)
    waves = zonal + first * np.cos(wave * lam) + second * np.cos(2 * wave * lam)
    return u, v, GRAVITY * 8000 + a**2 * waves
