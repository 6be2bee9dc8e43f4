"""Three levels of quasi-geostrophic flow over mountains, driven by a yearly cycle: chaotic weather in NumPy.

Potential vorticity q at 200, 500 and 800 hPa is carried by the wind, relaxed towards a baroclinic state and damped at
the ground; a tracer at each level is carried along and stands for relative humidity. Built as Marshall and Molteni
(1993), with round numbers of our own (weather spec, section 10.2), not their fitted forcing.

Shapes: as in spectral.py; K = 3 levels from the top; a state is ...x2xKxMxN: potential
vorticity without f, then humidity.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from unipercept.app.forecaster.dynamics.shallow_water import runge_kutta
from unipercept.app.forecaster.dynamics.spectral import EARTH_RADIUS_M, EARTH_ROTATION, Array, SphericalHarmonics

LEVELS_HPA = (200, 500, 800)
STEP_SECONDS = 3600.0  # 70 m/s at T21 turns a wave by 0.8 a step; the scheme allows 2.8
DAY = 86400.0
YEAR = 365.25 * DAY
EPOCH = np.datetime64("2000-01-01T00", "s")  # midwinter of the northern hemisphere, near enough


@dataclass(frozen=True)
class QuasiGeostrophicConfig:
    """Constants of the model.

    Jets and drag are chosen for a climate near the earth's: in winter 500 hPa geopotential is 47000 to 49000 m2 s-2 at
    the pole and jets are 40 to 45 m/s at 200 hPa.

    Args:
        radii_m: Rossby radii between the upper and the lower pair of levels.
        relaxation_days: towards the equilibrium thickness.
        drag_days: of the wind at 800 hPa over sea; twice as fast over land.
        damping_hours: in which the smallest scale is damped, eighth order.
        shear: of the equilibrium jets between the levels, in m/s; more makes livelier weather.
        season: share by which the winter jet is stronger than the yearly mean.
        jet_width: half-width of the equilibrium jets in degrees.
        humidity_days: in which humidity returns to its climate.
    """

    truncation: int = 21
    rows: int = 32
    columns: int = 64
    radii_m: tuple[float, float] = (7e5, 4.5e5)
    scale_height_m: float = 9000.0
    relaxation_days: float = 15.0
    drag_days: float = 1.5
    damping_hours: float = 36.0
    shear: tuple[float, float] = (44.0, 38.0)
    season: float = 0.25
    jet_width: float = 12.0
    humidity_days: float = 3.0


class QuasiGeostrophic:
    """The model; times are seconds since 2000-01-01."""

    def __init__(self, config: QuasiGeostrophicConfig = QuasiGeostrophicConfig()) -> None:
        self.config = config
        self.harmonics = SphericalHarmonics(config.truncation, config.rows, config.columns)
        phi, lam = self.harmonics.latitude[:, None], self.harmonics.longitude[None]
        self.orography = orography(np.rad2deg(phi), np.rad2deg(lam))
        self.coriolis = 2 * EARTH_ROTATION * np.sin(phi)
        stretching = 2 * EARTH_ROTATION * np.sin(phi) * self.orography / config.scale_height_m
        zero = np.zeros_like(stretching)
        self._planetary = self.coriolis + np.stack([zero, zero, stretching])
        self._drag = (1 + land_fraction(self.orography)) / (config.drag_days * DAY)
        self._damping = self.harmonics.damping(config.damping_hours)
        self._season_at: tuple[float, Array] | None = None

    @cached_property
    def _inversion(self) -> tuple[Array, Array]:
        """Per degree, the 3x3 matrices from stream functions to potential vorticity and back; the mean is left out."""
        upper, lower = (radius**-2 for radius in self.config.radii_m)
        coupling = np.array([[-upper, upper, 0], [upper, -upper - lower, lower], [0, lower, -lower]])
        forward = self.harmonics.laplacian[0][:, None, None] * np.eye(3) + coupling
        backward = np.zeros_like(forward)
        backward[1:] = np.linalg.inv(forward[1:])
        return forward, backward

    def stream_function(self, vorticity: Array) -> Array:
        """Stream function of potential vorticity, both ...xKxMxN; in m2 s-1."""
        return _by_degree(self._inversion[1], vorticity)

    def potential_vorticity(self, stream_function: Array) -> Array:
        """The inverse of `stream_function`."""
        return _by_degree(self._inversion[0], stream_function)

    def initial_state(self, time: float, seed: int) -> Array:
        """A flow at rest in its equilibrium, with small noise that the instability turns into weather in some weeks."""
        random = np.random.default_rng(seed)
        upper, lower = self._equilibrium(time)
        flow = np.stack([0.6 * upper + 0.6 * lower, 0.2 * (upper + lower), -0.1 * (upper + lower)])
        noise = self.harmonics.analyse(random.normal(size=(3, self.config.rows, self.config.columns))) * 1e-6
        noise[:, 0, 0] = 0
        return np.stack([self.potential_vorticity(flow) + noise, self._dry_climate])

    def tendency(self, state: Array, time: float) -> Array:
        """d(state)/dt."""
        psi = self.stream_function(state[..., 0, :, :, :])
        u, v = self.harmonics.winds(self.harmonics.laplacian * psi)
        carried = self.harmonics.synthesise(state)
        carried[..., 0, :, :, :] += self._planetary
        outflow = self.harmonics.divergence(u[..., None, :, :, :] * carried, v[..., None, :, :, :] * carried)
        change: Array = -outflow - self._damping * state
        change[..., 0, :, :, :] += self._relaxation(psi, time)
        curl = self.harmonics.divergence(v[..., 2, :, :] * self._drag, -u[..., 2, :, :] * self._drag)
        change[..., 0, 2, :, :] -= curl
        change[..., 0, :, 0, 0] = 0
        change[..., 1, :, :, :] += (self._wet_climate(psi) - state[..., 1, :, :, :]) / (self.config.humidity_days * DAY)
        return change

    def run(self, state: Array, time: float, hours: float) -> tuple[Array, float]:
        """State and time after `hours`, a whole number of steps of an hour."""
        for _ in range(round(hours * 3600 / STEP_SECONDS)):
            state = runge_kutta(partial(self.tendency, time=time), state, STEP_SECONDS)  # the season waits for a step
            time += STEP_SECONDS
        return state, time

    def balanced_geopotential(self, stream_function: Array) -> Array:
        """Anomaly of geopotential in linear balance, laplacian(Phi) = div(f grad(psi)); coefficients in m2 s-2."""
        u, v = self.harmonics.winds(self.harmonics.laplacian * stream_function)
        curl = self.harmonics.divergence(v * self.coriolis, -u * self.coriolis)
        return np.asarray(self.harmonics.inverse_laplacian * curl)

    def _relaxation(self, psi: Array, time: float) -> Array:
        rate = 1 / (self.config.relaxation_days * DAY)
        upper_rate, lower_rate = (rate / radius**2 for radius in self.config.radii_m)
        upper, lower = self._equilibrium(time)
        excess_upper = upper_rate * (psi[..., 0, :, :] - psi[..., 1, :, :] - upper)
        excess_lower = lower_rate * (psi[..., 1, :, :] - psi[..., 2, :, :] - lower)
        return np.stack([excess_upper, excess_lower - excess_upper, -excess_lower], -3)

    def _equilibrium(self, time: float) -> Array:
        """Coefficients of psi1 - psi2 and psi2 - psi3 towards which the flow is relaxed; renewed every six hours."""
        slot = np.floor(time / 21600)
        if self._season_at is None or self._season_at[0] != slot:
            self._season_at = (slot, self._equilibrium_of(np.cos(2 * np.pi * slot * 21600 / YEAR)))
        return np.asarray(self._season_at[1])

    def _equilibrium_of(self, winter: float) -> Array:
        """`winter` is 1 in the northern midwinter and -1 half a year later."""
        phi = np.rad2deg(self.harmonics.latitude)
        asymmetry, season, width = self._east_coasts, self.config.season, self.config.jet_width
        north = (1 + season * winter) * np.exp(-(((phi - 38 + 4 * winter) / width) ** 2))
        south = (1 - season * winter) * np.exp(-(((phi + 40 + 4 * winter) / width) ** 2))
        found = []
        for shear in self.config.shear:
            zonal = _stream_function_of_wind(self.harmonics.latitude, shear * (north + south))[:, None]
            local = shear * EARTH_RADIUS_M * asymmetry * (1 + season * winter * np.sign(phi)[:, None]) / 2
            coefficients = self.harmonics.analyse(zonal - local)
            coefficients[0, 0] = 0
            found.append(coefficients)
        return np.stack(found)

    @cached_property
    def _east_coasts(self) -> Array:
        """Where cold continents meet warm seas: the flow's stationary asymmetry, which anchors two storm tracks."""
        phi, lam = np.rad2deg(self.harmonics.latitude)[:, None], np.rad2deg(self.harmonics.longitude)[None]
        return 0.15 * (_bump(phi, lam, 38, 125, 15, 35) + _bump(phi, lam, 42, 290, 15, 30))

    @cached_property
    def _dry_climate(self) -> Array:
        """Humidity without weather, percent: moist tropics and storm tracks, dry subtropics, drier aloft."""
        phi = np.rad2deg(self.harmonics.latitude)
        zonal = 50 + 22 * np.exp(-((phi / 12) ** 2)) + 16 * np.exp(-(((np.abs(phi) - 58) / 18) ** 2))
        levels = np.array([0.6, 0.8, 1.1])[:, None, None]
        sea = 1 - 0.2 * land_fraction(self.orography)
        return self.harmonics.analyse(levels * zonal[:, None] * sea)

    def _wet_climate(self, psi: Array) -> Array:
        """Towards which humidity returns: moister in the cyclonic curves of the flow. 20 percent for 5e-5 s-1."""
        weather = self.harmonics.laplacian * psi
        sign = np.sign(self.harmonics.latitude)[:, None]
        return self._dry_climate + self.harmonics.analyse(4e5 * sign * self.harmonics.synthesise(weather))


def seconds_of(time: Any) -> float:
    """Seconds from 2000-01-01 to a date."""
    return float((np.datetime64(time, "s") - EPOCH) / np.timedelta64(1, "s"))


def orography(latitude: Array, longitude: Array) -> Array:
    """Smooth mountains in metres where the earth has large ones, for degrees north and east that broadcast."""
    ranges = (  # height, latitude, longitude, half-widths
        (3000, 35, 88, 9, 22),
        (1800, 42, 252, 14, 11),
        (1800, -22, 291, 20, 6),
        (1800, 72, 320, 9, 15),
        (600, 0, 25, 25, 15),
    )
    antarctica = 2200 * np.exp(-(((latitude + 90) / 16) ** 2))
    return antarctica + sum(h * _bump(latitude, longitude, *place) for h, *place in ranges)


def land_fraction(height: Array) -> Array:
    """0 over sea to 1 over land, from the smooth mountains."""
    return np.clip(height / 800, 0, 1)


def _bump(phi: Array, lam: Array, latitude: float, longitude: float, half_height: float, half_width: float) -> Array:
    east = (lam - longitude + 180) % 360 - 180
    return np.exp(-((east / half_width) ** 2) - ((phi - latitude) / half_height) ** 2)


def _stream_function_of_wind(latitude: Array, wind: Array) -> Array:
    """psi whose southward slope is the wind, with the wind brought to rest at the poles."""
    fine = np.linspace(-np.pi / 2, np.pi / 2, 1501)
    u = np.interp(fine, latitude, wind) * np.sqrt(np.maximum(np.cos(fine), 0))
    psi = -EARTH_RADIUS_M * np.concatenate([[0], np.cumsum((u[1:] + u[:-1]) / 2 * np.diff(fine))])
    return np.interp(latitude, fine, psi)


def _by_degree(matrices: Array, levels: Array) -> Array:
    """Nx3x3 times ...x3xMxN, degree by degree."""
    weights = matrices.transpose(1, 2, 0)[:, :, None, :]
    return np.stack([(weights[i] * levels).sum(-3) for i in range(3)], -3)
