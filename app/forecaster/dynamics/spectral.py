"""Spherical harmonics on a Gaussian grid in NumPy: transforms, vorticity and divergence from winds, and back.

Shapes: T truncation, M = T + 1 orders m, N = T + 1 degrees n (coefficients with n < m are zero), H Gaussian
latitudes from south to north, W longitudes from 0 degrees east. Coefficients are ...xMxN complex,
fields ...xHxW; leading axes are free.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError

EARTH_RADIUS_M = 6.37122e6  # Williamson et al. (1992), as are the two below
EARTH_ROTATION = 7.292e-5  # rad s-1
GRAVITY = 9.80616  # m s-2
Array = NDArray[Any]


@dataclass(frozen=True)
class SphericalHarmonics:
    """Triangular truncation T on a Gaussian grid of `rows` x `columns`.

    Products of two fields are free of aliasing where columns > 3 T and rows > 1.5 T.

    Raises:
        InputError: the grid is too coarse for the truncation.
    """

    truncation: int = 21
    rows: int = 32
    columns: int = 64

    def __post_init__(self) -> None:
        if self.truncation < 1 or self.rows <= self.truncation or self.columns < 2 * self.truncation + 2:
            raise InputError(
                f"T{self.truncation} needs more than {self.truncation} rows and {2 * self.truncation + 2} columns or more, "
                f"got {self.rows} x {self.columns}"
            )

    @cached_property
    def nodes(self) -> tuple[Array, Array]:
        """Sines of the Gaussian latitudes from south to north, and their quadrature weights, which add up to 2."""
        return np.polynomial.legendre.leggauss(self.rows)

    @cached_property
    def latitude(self) -> Array:
        """H radians."""
        return np.arcsin(self.nodes[0])

    @cached_property
    def longitude(self) -> Array:
        """W radians."""
        return 2 * np.pi * np.arange(self.columns) / self.columns

    @cached_property
    def cos_squared(self) -> Array:
        """Squared cosine of latitude, Hx1."""
        return (1 - self.nodes[0] ** 2)[:, None]

    @cached_property
    def degree(self) -> Array:
        """n along the last axis, 1xN."""
        return np.arange(self.truncation + 1.0)[None]

    @cached_property
    def laplacian(self) -> Array:
        """Eigenvalues of the Laplacian, 1xN, in m-2."""
        return np.asarray(-self.degree * (self.degree + 1) / EARTH_RADIUS_M**2)

    @cached_property
    def inverse_laplacian(self) -> Array:
        """Its inverse; the mean is set to zero."""
        return np.where(self.degree > 0, 1 / np.where(self.degree > 0, self.laplacian, 1), 0.0)

    def damping(self, hours: float, order: int = 4) -> Array:
        """Rate of damping in s-1 that takes the smallest scale in `hours`, as the Laplacian to the power `order`."""
        top = self.truncation * (self.truncation + 1)
        return np.asarray((self.degree * (self.degree + 1) / top) ** order / (hours * 3600))

    @cached_property
    def _legendre(self) -> tuple[Array, Array]:
        return legendre(self.truncation, self.nodes[0])

    @cached_property
    def _synthesis(self) -> tuple[Array, Array]:
        values, slopes = self._legendre
        return np.ascontiguousarray(values.transpose(0, 2, 1)), np.ascontiguousarray(slopes.transpose(0, 2, 1))

    @cached_property
    def _analysis(self) -> tuple[Array, Array, Array]:
        values, slopes = self._legendre
        weights = self.nodes[1][None, :, None]
        by_area = weights / (EARTH_RADIUS_M * self.cos_squared[None])
        return values * weights, values * by_area, slopes * by_area

    def analyse(self, field: Array) -> Array:
        """Field to coefficients."""
        return _apply(self._fourier(field), self._analysis[0])

    def synthesise(self, coefficients: Array) -> Array:
        """Coefficients to a field on the Gaussian grid."""
        return self._fields(_apply(coefficients, self._synthesis[0]), self.columns)

    def curl_and_divergence(self, u_cos: Array, v_cos: Array) -> tuple[Array, Array]:
        """Coefficients of curl and divergence of a vector field that is given times the cosine of latitude."""
        return self.divergence(v_cos, -u_cos), self.divergence(u_cos, v_cos)

    def divergence(self, u_cos: Array, v_cos: Array) -> Array:
        """Coefficients of the divergence alone."""
        _, values, slopes = self._analysis
        return _apply(self._im * self._fourier(u_cos), values) - _apply(self._fourier(v_cos), slopes)

    def winds(self, vorticity: Array, divergence: Array | None = None) -> tuple[Array, Array]:
        """Eastward and northward wind times the cosine of latitude, of the coefficients of vorticity and divergence."""
        values, slopes = self._synthesis
        psi, im = self.inverse_laplacian * vorticity, self._im
        u, v = -_apply(psi, slopes), _apply(im * psi, values)
        if divergence is not None:
            chi = self.inverse_laplacian * divergence
            u, v = u + _apply(im * chi, values), v + _apply(chi, slopes)
        return self._fields(u, self.columns) / EARTH_RADIUS_M, self._fields(v, self.columns) / EARTH_RADIUS_M

    def mean(self, field: Array) -> Array:
        """Area mean over the sphere, exact for what the truncation holds."""
        mean: Array = (field.mean(-1) * self.nodes[1]).sum(-1) / 2
        return mean

    def at(self, latitude: Array, columns: int) -> Synthesis:
        """Exact evaluation on other latitudes (radians, any order) and `columns` longitudes from 0 degrees east."""
        return Synthesis(self, np.asarray(latitude, float), columns)

    @cached_property
    def _im(self) -> Array:
        return 1j * np.arange(self.truncation + 1)[:, None]

    def _fourier(self, field: Array) -> Array:
        return np.fft.rfft(field, axis=-1)[..., : self.truncation + 1].swapaxes(-1, -2) / self.columns

    def _fields(self, waves: Array, columns: int) -> Array:
        full = np.zeros((*waves.shape[:-2], waves.shape[-1], columns // 2 + 1), complex)
        full[..., : self.truncation + 1] = waves.swapaxes(-1, -2)
        return np.fft.irfft(full, columns, axis=-1) * columns


class Synthesis:
    """Fields and winds of coefficients on any latitudes."""

    def __init__(self, harmonics: SphericalHarmonics, latitude: Array, columns: int) -> None:
        if columns < 2 * harmonics.truncation + 2:
            raise InputError(f"T{harmonics.truncation} needs {2 * harmonics.truncation + 2} columns, got {columns}")
        values, slopes = legendre(harmonics.truncation, np.sin(latitude))
        self.harmonics, self.columns = harmonics, columns
        self.cos = np.cos(latitude)[:, None]
        self._values, self._slopes = values.transpose(0, 2, 1), slopes.transpose(0, 2, 1)

    def field(self, coefficients: Array) -> Array:
        """...xHxW."""
        return self.harmonics._fields(_apply(coefficients, self._values), self.columns)

    def winds(self, vorticity: Array) -> tuple[Array, Array]:
        """Nondivergent eastward and northward wind of the coefficients of vorticity; no latitude may be a pole."""
        psi = self.harmonics.inverse_laplacian * vorticity
        u = self.harmonics._fields(-_apply(psi, self._slopes), self.columns)
        v = self.harmonics._fields(_apply(self.harmonics._im * psi, self._values), self.columns)
        return u / (EARTH_RADIUS_M * self.cos), v / (EARTH_RADIUS_M * self.cos)


def legendre(truncation: int, sine: Array) -> tuple[Array, Array]:
    """Associated Legendre functions P, normalised so that their squares integrate to 1, and
    (1 - mu^2) dP/dmu: MxHxN each.

    Source: the three-term recurrence, Belousov (1962); the derivative from neighbouring degrees.
    """
    top = truncation + 1
    values = np.zeros((top, sine.size, top + 1))
    sectoral, cosine = np.full(sine.size, np.sqrt(0.5)), np.sqrt(1 - sine**2)
    for m in range(top):
        if m:
            sectoral = sectoral * cosine * np.sqrt((2 * m + 1) / (2 * m))
        values[m, :, m] = sectoral
        values[m, :, m + 1] = sine * sectoral / _epsilon(m + 1, m)
        for n in range(m + 2, top + 1):
            before = sine * values[m, :, n - 1] - _epsilon(n - 1, m) * values[m, :, n - 2]
            values[m, :, n] = before / _epsilon(n, m)
    slopes = np.zeros((top, sine.size, top))
    for m in range(top):
        for n in range(m, top):
            below = values[m, :, n - 1] if n > m else 0.0
            slopes[m, :, n] = (n + 1) * _epsilon(n, m) * below - n * _epsilon(n + 1, m) * values[m, :, n + 1]
    return values[..., :top].copy(), slopes


def _epsilon(n: int, m: int) -> float:
    return float(np.sqrt((n * n - m * m) / (4.0 * n * n - 1)))


def _apply(waves: Array, matrix: Array) -> Array:
    """For each order, ...xMxK complex times MxKxL real, as one real product."""
    flat = waves.reshape(-1, *waves.shape[-2:]).transpose(1, 0, 2)
    batch = flat.shape[1]
    product = np.concatenate([flat.real, flat.imag], axis=1) @ matrix
    joined: Array = (product[:, :batch] + 1j * product[:, batch:]).transpose(1, 0, 2)
    return joined.reshape(*waves.shape[:-1], matrix.shape[-1])
