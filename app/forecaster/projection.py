"""Latitude and longitude to the plane, and coastlines that come with the package.

The earth as a whole is drawn in the Equal Earth projection, a region in the equidistant cylindrical one that is true to
scale in its middle. Shapes: free; degrees in, units of the plane out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.pipelines.weather_grid import grid_facts

Array = NDArray[Any]
EQUAL_EARTH = (1.340264, -0.081106, 0.000893, 0.003796)  # Šavrič, Patterson and Jenny (2018), equation 8
COASTLINES = "coastlines.txt"


@dataclass(frozen=True)
class Projection:
    """How a map is drawn.

    Args:
        whole: the whole earth, or a region.
        centre: longitude in the middle, degrees east.
        middle: latitude that is true to scale, of a region.
    """

    whole: bool
    centre: float = 0.0
    middle: float = 0.0

    def __call__(self, longitude: Any, latitude: Any) -> tuple[Array, Array]:
        """x and y of points; longitudes are taken relative to the centre as they are, not wrapped."""
        lam = np.deg2rad(np.asarray(longitude, float) - self.centre)
        phi = np.deg2rad(np.asarray(latitude, float))
        if not self.whole:
            return lam * np.cos(np.deg2rad(self.middle)), phi + 0 * lam
        a1, a2, a3, a4 = EQUAL_EARTH
        theta = np.arcsin(np.sqrt(3) / 2 * np.sin(phi))
        slope = 9 * a4 * theta**8 + 7 * a3 * theta**6 + 3 * a2 * theta**2 + a1
        x = 2 * np.sqrt(3) * lam * np.cos(theta) / (3 * slope)
        return x, theta * (a1 + a2 * theta**2 + theta**6 * (a3 + a4 * theta**2)) + 0 * lam


def projection_of(latitude: Any, longitude: Any) -> Projection:
    """The projection for a grid: the whole earth if it goes round, else its region."""
    latitude, longitude = np.asarray(latitude, float), np.asarray(longitude, float)
    if grid_facts(latitude, longitude)["wraps"]:
        return Projection(whole=True)
    return Projection(False, float(longitude[0] + longitude[-1]) / 2, float(latitude[0] + latitude[-1]) / 2)


def cell_corners(latitude: Any, longitude: Any) -> tuple[Array, Array]:
    """H + 1 latitudes and W + 1 longitudes between and around the cells; never beyond a pole."""
    return np.clip(_between(np.asarray(latitude, float)), -90, 90), _between(np.asarray(longitude, float))


def coastlines(projection: Projection) -> Iterator[tuple[Array, Array]]:
    """x and y of each line on the map, cut where it leaves one side and comes back on the other."""
    for line in _read_coastlines():
        relative = (line[:, 0] - projection.centre + 180) % 360 - 180
        cuts = np.flatnonzero(abs(np.diff(relative)) > 180) + 1
        for part in np.split(np.arange(len(line)), cuts):
            if len(part) > 1:
                yield projection(relative[part] + projection.centre, line[part, 1])


def _read_coastlines() -> Iterator[Array]:
    text = files("unipercept.app.forecaster").joinpath(COASTLINES).read_text(encoding="utf-8")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            yield np.array([point.split(",") for point in line.split()], float)


def _between(values: Array) -> Array:
    middle = (values[1:] + values[:-1]) / 2
    return np.concatenate([[2 * values[0] - middle[0]], middle, [2 * values[-1] - middle[-1]]])
