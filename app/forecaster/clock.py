"""Time as a network sees it: season and hour as numbers for the whole map, local solar time and sunshine as fields.

Shapes: B batch, H rows, W columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

HOUR = np.timedelta64(1, "h")
N_SEASONAL = 4
N_SOLAR = 3


def year_fraction(times: Any) -> NDArray[np.float64]:
    """(day of year - 1 + hour / 24) / days in the year, within [0, 1)."""
    times = np.asarray(times, "datetime64[ns]")
    year = times.astype("datetime64[Y]")
    start, end = year.astype("datetime64[ns]"), (year + np.timedelta64(1, "Y")).astype("datetime64[ns]")
    return np.asarray((times - start) / (end - start), np.float64)


def day_fraction(times: Any) -> NDArray[np.float64]:
    """Share of the UTC day that has passed, within [0, 1)."""
    times = np.asarray(times, "datetime64[ns]")
    return np.asarray((times - times.astype("datetime64[D]")) / np.timedelta64(24, "h"), np.float64)


def seasonal(times: Any) -> Tensor:
    """Sine and cosine of the season and of the UTC hour, Bx4 float32; both are periodic."""
    angles = 2 * np.pi * np.stack([year_fraction(times), day_fraction(times)])
    return torch.from_numpy(
        np.stack([np.sin(angles[0]), np.cos(angles[0]), np.sin(angles[1]), np.cos(angles[1])], -1)
    ).float()


def released_time_vector(time: Any, step_hours: int = 6) -> NDArray[np.float32]:
    """The 12 numbers that the released PuYun and FuXi graphs take for an input state of `time`, float32.

    For t - step, t and t + step: sin d, sin h, cos d, cos h, with d = day of year / 366 and h = hour / 24. There is no
    factor of 2 pi, so this is not periodic; it is kept because those models were trained with it.

    Source: the PuYun plugin for ai-models and the public FuXi repository.
    """
    step = np.timedelta64(step_hours, "h")
    times = np.asarray(time, "datetime64[ns]") + np.array([-1, 0, 1]) * step
    days = (times.astype("datetime64[D]") - times.astype("datetime64[Y]")) / np.timedelta64(1, "D") + 1
    d, h = days / 366, np.floor(day_fraction(times) * 24 + 1e-9) / 24
    return np.stack([np.sin(d), np.sin(h), np.cos(d), np.cos(h)], -1).astype(np.float32).reshape(12)


def solar_fields(times: Any, latitude: Any, longitude: Any) -> Tensor:
    """Sine and cosine of local solar time, and sunshine at the top of the atmosphere over the solar constant: Bx3xHxW.

    Sunshine is max(0, cosine of the zenith angle) with the declination of Spencer (1971) and without the equation of
    time: at most 4 degrees of hour angle off.
    """
    return spread_sun(solar_angles(times), sun_grid(latitude, longitude))


def solar_angles(times: Any) -> Tensor:
    """Sine and cosine of the UTC hour and of the sun's declination, ...x4 float32: what
    `solar_fields` needs of a time.
    """
    gamma, hour = 2 * np.pi * year_fraction(times), 2 * np.pi * day_fraction(times)
    declination = (
        0.006918 - 0.399912 * np.cos(gamma) + 0.070257 * np.sin(gamma) - 0.006758 * np.cos(2 * gamma)
        + 0.000907 * np.sin(2 * gamma) - 0.002697 * np.cos(3 * gamma) + 0.00148 * np.sin(3 * gamma)
    )  # fmt: skip
    angles = np.stack([np.sin(hour), np.cos(hour), np.sin(declination), np.cos(declination)], -1)
    return torch.from_numpy(angles).float()


def sun_grid(latitude: Any, longitude: Any) -> tuple[Tensor, Tensor]:
    """Sine and cosine of latitude, 2xHx1, and of longitude, 2x1xW: what `solar_fields` needs of a grid."""
    phi, lam = (torch.deg2rad(torch.as_tensor(np.asarray(a, float))) for a in (latitude, longitude))
    return torch.stack([phi.sin(), phi.cos()])[..., None].float(), torch.stack([lam.sin(), lam.cos()])[:, None].float()


def spread_sun(angles: Tensor, grid: tuple[Tensor, Tensor]) -> Tensor:
    """`solar_angles` (...x4) over a `sun_grid`: ...x3xHxW."""
    (sin_phi, cos_phi), (sin_lam, cos_lam) = grid
    sin_hour, cos_hour, sin_sun, cos_sun = angles[..., None, None].unbind(-3)
    sine, cosine = sin_hour * cos_lam + cos_hour * sin_lam, cos_hour * cos_lam - sin_hour * sin_lam
    # Hour angle 0 is midnight at Greenwich, so the sun stands highest at pi.
    height = (sin_phi * sin_sun - cos_phi * cos_sun * cosine).clamp(min=0)
    return torch.stack([a.expand(height.shape) for a in (sine, cosine)] + [height], dim=-3)


def position_fields(latitude: Any, longitude: Any) -> Tensor:
    """sin(lat), cos(lat), sin(lon), cos(lon) as 4xHxW float32."""
    phi, lam = np.meshgrid(
        np.deg2rad(np.asarray(latitude, float)), np.deg2rad(np.asarray(longitude, float)), indexing="ij"
    )
    return torch.from_numpy(np.stack([np.sin(phi), np.cos(phi), np.sin(lam), np.cos(lam)])).float()
