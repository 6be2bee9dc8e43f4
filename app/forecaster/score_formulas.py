"""Scores of one forecast against one truth, as WeatherBench 2 defines them; the mean over initial times comes later.

Cells without a truth (NaN, as sea surface temperature over land) do not count: means are over the others.

Shapes: V channels, H rows, W columns, M members, R regions, G = H W cells, K zonal wavenumbers. All in float64.
Source: WeatherBench 2, Rasp et al. (2024), and its code 0.2.1; section numbers are those of the weather specification.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError
from unipercept.pipelines.weather_grid import area_weights

Array = NDArray[Any]
TROPICS_DEGREES = 20.0
EVERYWHERE = "global"
Weights = Literal["cell", "cos"]
Box = tuple[float, float, float, float]  # south, north, west, east
EDGE = 1e-4  # degrees within which a cell lies on the edge of a box: coordinates are often stored in float32


def region_masks(
    latitude: Any, longitude: Any, boxes: Mapping[str, Box] | None = None, shares: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """HxW masks of the regions that hold a cell: global, tropics, extratropics, the
    hemispheres beyond 20 degrees, boxes.

    Args:
        shares: further regions by the share, 0 to 1, of each cell that lies in them, such as land: HxW.

    Raises:
        InputError: a box without a cell, or shares outside [0, 1] or not on the grid.
    """
    phi, lam = np.asarray(latitude, float)[:, None], np.asarray(longitude, float)[None]
    masks = {
        EVERYWHERE: phi == phi,
        "tropics": abs(phi) <= TROPICS_DEGREES,
        "extratropics": abs(phi) >= TROPICS_DEGREES,
        "northern-hemisphere": phi >= TROPICS_DEGREES,
        "southern-hemisphere": phi <= -TROPICS_DEGREES,
    }
    full = {name: np.broadcast_to(mask, (phi.size, lam.size)) for name, mask in masks.items()}
    full = {name: mask for name, mask in full.items() if mask.any()}
    for name, (south, north, west, east) in (boxes or {}).items():
        width = 360 if east - west >= 360 else (east - west) % 360  # -180:180 is the whole belt, not a meridian
        inside = (phi >= south - EDGE) & (phi <= north + EDGE) & ((lam - west + EDGE) % 360 <= width + 2 * EDGE)
        if not inside.any():
            raise InputError(
                f"region {name} ({south:g} to {north:g} N, {west:g} to {east:g} E) holds no cell of the grid"
            )
        full[name] = inside
    for name, share in (shares or {}).items():
        share = np.asarray(share, float)
        if share.shape != (phi.size, lam.size):
            raise InputError(f"the mask of {name} must be {phi.size}x{lam.size}, as the grid is; got {share.shape}")
        if not (np.isfinite(share).all() and share.min() >= 0 and share.max() <= 1 and share.any()):
            raise InputError(f"the mask of {name} must hold shares from 0 to 1, not all of them 0")
        full[name] = share
    return full


def region_weights(latitude: Any, masks: Sequence[Array], kind: Weights = "cell") -> Array:
    """RxG weights that add up to 1 in each region: the area of cells, or the cosine of latitude.

    Raises:
        InputError: another kind.
    """
    if kind not in ("cell", "cos"):
        raise InputError(f'weights must be "cell" or "cos", got {kind!r}')
    rows = area_weights(latitude) if kind == "cell" else np.cos(np.deg2rad(np.asarray(latitude, float)))
    weights = np.stack([(mask * rows[:, None]).ravel() for mask in masks])
    return np.asarray(weights / weights.sum(1, keepdims=True))


def area_mean(weights: Array, values: Array) -> Array:
    """RxG weights and GxV values to RxV means over the cells that hold a number; NaN for a region without one."""
    known = np.isfinite(values)
    if known.all():
        return np.asarray(weights @ values)
    area = weights @ known
    total = weights @ np.where(known, values, 0)
    return np.asarray(np.divide(total, area, out=np.full(area.shape, np.nan), where=area > 0))


def deterministic(forecast: Array, truth: Array, climate: Array | None, weights: Array) -> dict[str, Array]:
    """VxHxW fields to scores of RxV (7.2, 7.6): mse, mae, bias, mean and mean square of the truth, and the share of the
    area that has a truth (coverage); with a climatology acc and the activity of both, squared.

    The anomaly correlation is not centred, and the ratio is taken before any mean over times.
    """
    observed = _cells(truth)
    error = _cells(forecast) - observed
    moments = {"mse": error**2, "mae": abs(error), "bias": error, "truth_mean": observed, "truth_squared": observed**2}
    scores = {name: area_mean(weights, values) for name, values in moments.items()}
    scores["coverage"] = 1 - weights @ ~np.isfinite(error)
    if climate is not None:
        theirs = observed - _cells(climate)
        ours = theirs + error
        active, wanted = area_mean(weights, ours**2), area_mean(weights, theirs**2)
        both, product = np.sqrt(active * wanted), area_mean(weights, ours * theirs)
        scores["acc"] = np.divide(product, both, out=np.full(both.shape, np.nan), where=both > 0)
        scores |= {"activity_squared": active, "truth_activity_squared": wanted}
    return scores


def probabilistic(members: Array, truth: Array, weights: Array) -> dict[str, Array]:
    """MxVxHxW and VxHxW to scores of RxV (7.4): fair crps, variance, debiased mse of the mean, energy_score.

    With one member the spread is 0 and crps is the mean absolute error.
    """
    ensemble, observed = np.stack([_cells(member) for member in members]), _cells(truth)
    n_members = len(ensemble)
    skill = abs(ensemble - observed).mean(0)
    error = ensemble.mean(0) - observed
    if n_members == 1:
        zero = 0 * skill
        return {
            "crps": area_mean(weights, skill),
            "variance": area_mean(weights, zero),
            "energy_score": _norm(ensemble[0] - observed, weights),
        }
    ordered = np.sort(ensemble, axis=0)
    rank = (2 * np.arange(1, n_members + 1) - n_members - 1)[:, None, None]
    spread = 2 * (rank * ordered).sum(0) / (n_members * (n_members - 1))  # mean |x_i - x_j| over pairs
    variance = ensemble.var(0, ddof=1)
    distance = np.mean([_norm(member - observed, weights) for member in ensemble], axis=0)
    between = np.mean([_norm(a - b, weights) for a, b in itertools.pairwise(ensemble)], axis=0)
    return {
        "crps": area_mean(weights, skill - spread / 2),
        "variance": area_mean(weights, variance),
        "debiased_mse": area_mean(weights, error**2 - variance / n_members),
        "energy_score": distance - between / 2,
    }


def rank_counts(members: Array, truth: Array, random: np.random.Generator) -> Array:
    """In how many cells the truth lies below, between and above the members, Vx(M+1); ties are broken at random."""
    below = (members < truth).sum(0)
    equal = (members == truth).sum(0)
    rank = below + random.integers(0, equal + 1)
    n_ranks = len(members) + 1
    known = np.isfinite(truth)
    return np.stack([np.bincount(ranks[there], minlength=n_ranks) for ranks, there in zip(rank, known, strict=True)])


def zonal_spectrum(fields: Array, row_weights: Array) -> Array:
    """Power of zonal wavenumbers 0 … W/2, VxK, mean over rows; they add up to the weighted mean square (Parseval).

    Only for grids that go round the earth. NaN for channels with a missing cell.
    """
    columns = fields.shape[-1]
    power = abs(np.fft.rfft(fields, axis=-1) / columns) ** 2
    power[..., 1:] *= 2
    if columns % 2 == 0:
        power[..., -1] /= 2
    return np.asarray(np.einsum("h,vhk->vk", row_weights / row_weights.sum(), power))


def log_spectral_distance(ours: Array, theirs: Array) -> Array:
    """Root mean square of 10 log10(ours / theirs) over wavenumbers from 1, in dB, along the last axis.

    Waves where the truth has less than 1e-7 of its strongest one are rounding or truncated, and do not count. NaN where
    there is no spectrum.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        decibel = 10 * np.log10(ours[..., 1:] / theirs[..., 1:])
    strongest = theirs[..., 1:].max(-1, keepdims=True, initial=0)
    finite = np.isfinite(decibel) & (theirs[..., 1:] > 1e-7 * strongest)
    total = np.where(finite, decibel, 0) ** 2
    distance = np.sqrt(total.sum(-1) / np.maximum(finite.sum(-1), 1))
    return np.where(np.isnan(strongest[..., 0]), np.nan, distance)


def gaussian_crps(mean: Array, deviation: Array, truth: Array) -> Array:
    """CRPS of a normal forecast, cell by cell. Source: Gneiting et al. (2005), equation 5."""
    from math import erf

    z = (truth - mean) / deviation
    cumulative = 0.5 * (1 + np.vectorize(erf)(z / np.sqrt(2)))
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return np.asarray(deviation * (z * (2 * cumulative - 1) + 2 * density - 1 / np.sqrt(np.pi)))


def brier(members: Array, truth: Array, threshold: Array | float, weights: Array) -> Array:
    """Brier score of exceeding a threshold, RxV: (share of members above - whether the truth is)^2."""
    share = (members > threshold).mean(0)
    return area_mean(weights, _cells(_where_known((share - (truth > threshold)) ** 2, truth)))


def ignorance(members: Array, truth: Array, threshold: Array | float, weights: Array) -> Array:
    """Logarithmic score of exceeding a threshold, RxV, in nats: -log of the share of members that said what came true.

    Infinite where in some cell no member did, as in WeatherBench 2; the more members, the rarer.

    Source: Benedetti (2010).
    """
    share, is_above = (members > threshold).mean(0), truth > threshold
    with np.errstate(divide="ignore"):
        score = _cells(_where_known(-np.log(np.where(is_above, share, 1 - share)), truth))
    is_infinite = np.isinf(score)
    means = area_mean(weights, np.where(is_infinite, 0, score))
    return np.where((weights > 0).astype(float) @ is_infinite > 0, np.inf, means)


def ranked_probability(members: Array, truth: Array, thresholds: Sequence[Array | float], weights: Array) -> Array:
    """RPS between thresholds, RxV: the sum over them of (share of members below - whether the truth is)^2.

    Source: Epstein (1969), as WeatherBench 2 has it: a sum, not divided by the number of classes.
    """
    score = sum(((members < limit).mean(0) - (truth < limit)) ** 2 for limit in thresholds)
    return area_mean(weights, _cells(_where_known(np.asarray(score), truth)))


def normal_thresholds(mean: Array, deviation: Array, quantiles: Sequence[float]) -> list[Array]:
    """Climatological quantiles of a normal climate, e.g. its terciles: WeatherBench 2's Gaussian thresholds."""
    from statistics import NormalDist

    return [mean + deviation * NormalDist().inv_cdf(quantile) for quantile in quantiles]


def seeps(
    forecast: Array, truth: Array, dry_share: Array, heavy: Array, weights: Array, dry_limit: float = 2.5e-4
) -> Array:
    """SEEPS of HxW accumulations in metres, R values (7.5); 0 is perfect.

    Args:
        dry_share: climatological share of dry days, HxW; cells outside 0.1 … 0.85 do not count.
        heavy: climatological limit between light and heavy at the valid time, HxW, in metres.
        dry_limit: 2.5e-4 m for 24 hours, 1e-4 m for 6 hours. What equals it exactly is in no class and scores 0.

    Source: Rodwell et al. (2010), in WeatherBench 2's form.
    """
    p1 = np.where((dry_share < 0.1) | (dry_share > 0.85), np.nan, dry_share)
    none = np.zeros_like(p1)
    matrix = [
        [none, 1 / (1 - p1), 4 / (1 - p1)],
        [1 / p1, none, 3 / (1 - p1)],
        [1 / p1 + 3 / (2 + p1), 3 / (2 + p1), none],
    ]
    score = np.where(np.isnan(p1), np.nan, 0.0)
    for row, expected in enumerate(_rain_classes(forecast, heavy, dry_limit)):
        for column, seen in enumerate(_rain_classes(truth, heavy, dry_limit)):
            score = score + np.where(expected & seen, matrix[row][column] / 2, 0.0)
    counted = weights * np.isfinite(score).ravel()
    with np.errstate(invalid="ignore"):
        return np.asarray((counted @ np.nan_to_num(score).ravel()) / counted.sum(1))


def _rain_classes(rain: Array, heavy: Array, dry_limit: float) -> tuple[Array, Array, Array]:
    return rain < dry_limit, (rain > dry_limit) & (rain < heavy), rain >= heavy


def _where_known(score: Array, truth: Array) -> Array:
    """A score of cells, missing where the truth is."""
    return np.where(np.isfinite(truth), score, np.nan)


def _norm(difference: Array, weights: Array) -> Array:
    return np.asarray(np.sqrt(area_mean(weights, difference**2)))


def _cells(fields: Array) -> Array:
    """VxHxW to GxV float64."""
    return np.asarray(fields, np.float64).reshape(len(fields), -1).T
