"""Quasi-geostrophic states as fields with ERA5's names and units: winds, geopotential,
temperature, humidity, the surface.

Geopotential is a standard atmosphere plus the balanced anomaly; between and beyond the three levels it follows the
parabola in log pressure through them, and temperature is its slope, so that the column is hydrostatic. It looks like
ERA5 and is not: attributes say so.

Shapes: as in quasigeostrophic.py; P levels, H rows from north to south, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from unipercept.app.forecaster.dynamics.quasigeostrophic import (
    EPOCH,
    LEVELS_HPA,
    YEAR,
    QuasiGeostrophic,
    land_fraction,
    orography,
)
from unipercept.app.forecaster.dynamics.spectral import Array
from unipercept.errors import InputError

SOURCE = "synthetic quasi-geostrophic"
DEFAULT_LEVELS = (200, 500, 850)  # hPa
OUTERMOST_HPA = (100, 1000)  # the parabola is not to be trusted beyond
GAS_CONSTANT = 287.05  # J kg-1 K-1, dry air
SURFACE_TEMPERATURE, LAPSE_RATE, SURFACE_PRESSURE = 288.15, 0.0065, 1013.25  # ISO 2533: K, K m-1, hPa
TROPOPAUSE_M = 11000.0  # ISO 2533; isothermal above
STANDARD_GRAVITY = 9.80665
FRICTION_ANGLE = np.deg2rad((20.0, 32.0))  # of the wind at 10 m towards low pressure, over sea and land
FRICTION_FACTOR = (0.75, 0.5)
DAY_RANGE_K = 5.0  # half the daily range of 2 m temperature over land
UPPER = {  # variable, short name, unit
    "geopotential": ("z", "m2 s-2"),
    "temperature": ("t", "K"),
    "u_component_of_wind": ("u", "m s-1"),
    "v_component_of_wind": ("v", "m s-1"),
    "relative_humidity": ("r", "%"),
}
SURFACE = {
    "2m_temperature": ("t2m", "K"),
    "10m_u_component_of_wind": ("u10", "m s-1"),
    "10m_v_component_of_wind": ("v10", "m s-1"),
    "mean_sea_level_pressure": ("msl", "Pa"),
}


@dataclass(frozen=True)
class LiftConfig:
    """The grid and the levels on which states are written.

    Args:
        poles: whether the grid has rows at the poles (odd `rows`), or cell centres.
    """

    rows: int = 32
    columns: int = 64
    levels: tuple[int, ...] = DEFAULT_LEVELS
    poles: bool = False

    def __post_init__(self) -> None:
        low, high = OUTERMOST_HPA
        if not self.levels or list(self.levels) != sorted(set(self.levels)):
            raise InputError(f"levels must rise and not repeat, got {self.levels}")
        if not (low <= self.levels[0] and self.levels[-1] <= high):
            raise InputError(f"levels must lie within {low} and {high} hPa, got {self.levels}")

    @property
    def latitude(self) -> Array:
        """Degrees north, falling."""
        if self.poles:
            return np.linspace(90, -90, self.rows)
        return 90 - 180 / self.rows * (np.arange(self.rows) + 0.5)

    @property
    def longitude(self) -> Array:
        """Degrees east from 0."""
        return np.arange(self.columns) * 360 / self.columns


class Lift:
    """Turns states of a model into fields on a grid."""

    def __init__(self, model: QuasiGeostrophic, config: LiftConfig = LiftConfig()) -> None:
        self.model, self.config = model, config
        # The formula for winds divides by the cosine; 1e-4 degrees beside the pole they are the pole's to rounding.
        latitude = np.clip(config.latitude, -90 + 1e-4, 90 - 1e-4)
        self._synthesis = model.harmonics.at(np.deg2rad(latitude), config.columns)
        self._orography = orography(config.latitude[:, None], config.longitude[None])
        self._land = land_fraction(self._orography)
        self._north = np.sin(np.deg2rad(config.latitude))[:, None]
        pressures = np.array([*config.levels, 1000.0])
        self._values, self._slopes = parabola_weights(pressures)
        self._standard_geopotential, self._standard_temperature = standard_atmosphere(pressures)

    def __call__(self, state: Array, time: float) -> dict[str, Array]:
        """Float32 fields by their ERA5 names, PxHxW and HxW, of one state at `time` (seconds since 2000-01-01)."""
        psi = self.model.stream_function(state[0])
        vorticity = self.model.harmonics.laplacian * psi
        u, v = (self._at_levels(x) for x in self._synthesis.winds(vorticity))
        anomaly = self._synthesis.field(self.model.balanced_geopotential(psi))
        z = self._standard_geopotential[:, None, None] + self._at_levels(anomaly)
        slope = np.einsum("pk,kij->pij", self._slopes, anomaly)
        t = self._standard_temperature[:, None, None] - slope / GAS_CONSTANT
        r = np.clip(self._at_levels(self._synthesis.field(state[1]), humid=True), 0, 100)
        upper = {"geopotential": z, "temperature": t, "u_component_of_wind": u, "v_component_of_wind": v}
        fields = {name: array[:-1] for name, array in upper.items()} | {"relative_humidity": r[:-1]}
        fields |= self._surface(z[-1], t[-1], u[-1], v[-1], time)
        return {name: array.astype(np.float32) for name, array in fields.items()}

    def _at_levels(self, three: Array, humid: bool = False) -> Array:
        """KxHxW to (P+1)xHxW. Humidity is not extrapolated: it stays as at the outermost level."""
        if humid:
            position = np.log(np.array([*self.config.levels, 1000.0]))
            weights = np.stack([np.interp(position, np.log(LEVELS_HPA), row) for row in np.eye(3)], -1)
            return np.asarray(np.einsum("pk,kij->pij", weights, three))
        return np.asarray(np.einsum("pk,kij->pij", self._values, three))

    def _surface(self, z: Array, t: Array, u: Array, v: Array, time: float) -> dict[str, Array]:
        """From the fields at 1000 hPa: friction turns and slows the wind, land warms by day and in summer."""
        angle = FRICTION_ANGLE[0] + (FRICTION_ANGLE[1] - FRICTION_ANGLE[0]) * self._land
        factor = FRICTION_FACTOR[0] + (FRICTION_FACTOR[1] - FRICTION_FACTOR[0]) * self._land
        angle = angle * np.sign(self._north)
        hour_angle = 2 * np.pi * (time / 86400 % 1) + np.deg2rad(self.config.longitude)[None]
        cos_latitude = np.sqrt(1 - self._north**2)
        daily = -DAY_RANGE_K * np.cos(hour_angle - np.pi / 6) * cos_latitude  # warmest two hours after noon
        yearly = -8.0 * np.cos(2 * np.pi * (time / YEAR) - 0.5) * self._north
        lower = -LAPSE_RATE * self._orography * 0.8
        return {
            "2m_temperature": t + self._land * (daily + yearly) + lower,
            "10m_u_component_of_wind": factor * (u * np.cos(angle) - v * np.sin(angle)),
            "10m_v_component_of_wind": factor * (u * np.sin(angle) + v * np.cos(angle)),
            "mean_sea_level_pressure": 1e5 * np.exp(z / (GAS_CONSTANT * t)),
        }


def parabola_weights(pressures: Any) -> tuple[Array, Array]:
    """Weights of the three levels in the parabola in log pressure at the given
    pressures, and in its slope: Px3 each.
    """
    nodes, points = np.log(LEVELS_HPA), np.log(np.asarray(pressures, float))
    values, slopes = np.empty((len(points), 3)), np.empty((len(points), 3))
    for k in range(3):
        a, b = np.delete(nodes, k)
        scale = (nodes[k] - a) * (nodes[k] - b)
        values[:, k] = (points - a) * (points - b) / scale
        slopes[:, k] = (2 * points - a - b) / scale
    return values, slopes


def standard_atmosphere(pressures: Any) -> tuple[Array, Array]:
    """Geopotential in m2 s-2 and temperature in K at pressures in hPa, to 20 km. Source: ISO 2533."""
    pressures = np.asarray(pressures, float)
    exponent = GAS_CONSTANT * LAPSE_RATE / STANDARD_GRAVITY
    height = SURFACE_TEMPERATURE / LAPSE_RATE * (1 - (pressures / SURFACE_PRESSURE) ** exponent)
    cold = SURFACE_TEMPERATURE - LAPSE_RATE * TROPOPAUSE_M
    border = SURFACE_PRESSURE * (cold / SURFACE_TEMPERATURE) ** (1 / exponent)
    above = TROPOPAUSE_M + GAS_CONSTANT * cold / STANDARD_GRAVITY * np.log(border / pressures)
    height = np.where(pressures < border, above, height)
    return STANDARD_GRAVITY * height, np.where(pressures < border, cold, SURFACE_TEMPERATURE - LAPSE_RATE * height)


def date_of(seconds: float) -> Any:
    """The date of a model time."""
    return (EPOCH + np.timedelta64(round(seconds), "s")).astype("datetime64[ns]")
