"""Scores gathered over initial times and leads, one state at a time: for stored forecasts and during a rollout alike.

Nothing is kept of a field but its scores, one value for each initial time, so that intervals can be drawn from them.

Shapes: N initial times, L leads, R regions, V channels, M members, K wavenumbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unipercept.app.forecaster.score_formulas import (
    Array,
    Box,
    Weights,
    deterministic,
    log_spectral_distance,
    probabilistic,
    rank_counts,
    region_masks,
    region_weights,
    zonal_spectrum,
)
from unipercept.errors import InputError
from unipercept.pipelines.weather_grid import area_weights, grid_facts

if TYPE_CHECKING:
    import xarray

HOUR = np.timedelta64(1, "h")
ROOTS = {
    "rmse": "mse",
    "activity": "activity_squared",
    "truth_activity": "truth_activity_squared",
    "spread": "variance",
}
MEANS = ("mae", "bias", "acc", "crps", "energy_score", "debiased_mse", "coverage")


class ScoreBoard:
    """Collects the scores of one forecaster.

    Args:
        channels: V names.
        latitude, longitude: of the grid, in degrees.
        boxes: regions of the caller beside the usual ones: south, north, west, east.
        shares: further regions by the share of each cell that lies in them, e.g. of a land-sea mask.
        weights: "cell" as WeatherBench 2, or "cos".
        seed: of the tie-breaking in rank histograms.
    """

    def __init__(
        self,
        channels: Sequence[str],
        latitude: Any,
        longitude: Any,
        *,
        boxes: Mapping[str, Box] | None = None,
        shares: Mapping[str, Array] | None = None,
        weights: Weights = "cell",
        seed: int = 0,
    ) -> None:
        self.channels = tuple(channels)
        self.shape = (len(self.channels), len(latitude), len(longitude))
        masks = region_masks(latitude, longitude, boxes, shares)
        self.regions = tuple(masks)
        self.weighting = weights
        self._weights = region_weights(latitude, list(masks.values()), weights)
        self._row_weights = area_weights(latitude)
        self._wraps = grid_facts(np.asarray(latitude), np.asarray(longitude))["wraps"]
        self._random = np.random.default_rng(seed)
        self._scores: dict[str, dict[tuple[int, int], Array]] = {}
        self._spectra: dict[int, list[Any]] = {}
        self._ranks: dict[int, Array] = {}
        self._members = 1

    def add(self, init_time: Any, lead: Any, forecast: Array, truth: Array, climate: Array | None = None) -> None:
        """Score one state: VxHxW, or MxVxHxW for an ensemble, whose mean is what the deterministic scores see.

        Cells where the truth is missing (NaN) do not count, whatever the forecast says there.

        Raises:
            InputError: shapes that do not fit, or a value that is not finite where the truth is known.
        """
        forecast = np.asarray(forecast)
        members = forecast if forecast.ndim == 4 else forecast[None]
        self._check(members[0], truth, climate)
        known = ~np.isnan(truth)
        for name, field in (("forecast", members), ("truth", truth), ("climatology", climate)):
            if field is not None and not (np.isfinite(field) | ~known).all():
                raise InputError(
                    f"the {name} has missing or infinite cells in {self._first_gap(field, known)}, {_hours(lead):g} h "
                    f"from {np.datetime_as_string(np.datetime64(init_time, 'm'))}; fill them first, or leave the "
                    "channel out"
                )
        if not known.all():
            if not known.any(axis=(1, 2)).all():
                raise InputError(
                    f"the truth holds no value of {self.channels[int(known.any(axis=(1, 2)).argmin())]}, "
                    f"{_hours(lead):g} h from {np.datetime_as_string(np.datetime64(init_time, 'm'))}"
                )
            members = np.where(known, members, np.nan)
        key = (_integer(init_time), round(_hours(lead) * 3600))
        mean = members.mean(0, dtype=np.float64)
        found = deterministic(mean, truth, climate, self._weights)
        if len(members) > 1:
            self._members = len(members)
            found |= probabilistic(members, truth, self._weights)
            counts = rank_counts(members, np.asarray(truth), self._random)
            self._ranks[key[1]] = self._ranks.get(key[1], 0) + counts
        for name, values in found.items():
            self._scores.setdefault(name, {})[key] = values
        if self._wraps:
            # A mean over members is smooth by construction: spectra are those of the first member.
            ours, theirs = (zonal_spectrum(np.asarray(x, float), self._row_weights) for x in (members[0], truth))
            sums = self._spectra.setdefault(key[1], [0.0, 0.0, 0])
            self._spectra[key[1]] = [sums[0] + ours, sums[1] + theirs, sums[2] + 1]

    def values(self) -> xarray.Dataset:
        """Scores of every initial time: mse, mae … over (time, lead, region, channel), NaN where none was added."""
        import xarray as xr

        keys = sorted({key for scores in self._scores.values() for key in scores})
        if not keys:
            raise InputError("nothing has been scored: no valid time of the forecast lies in the truth")
        times, leads = sorted({k[0] for k in keys}), sorted({k[1] for k in keys})
        shape = (len(times), len(leads), len(self.regions), len(self.channels))
        data = {}
        for name, scores in self._scores.items():
            values = np.full(shape, np.nan)
            for (time, lead), value in scores.items():
                values[times.index(time), leads.index(lead)] = value
            data[name] = (("time", "lead", "region", "channel"), values)
        return xr.Dataset(
            data,
            {
                "time": np.array(times, "datetime64[ns]"),
                "lead": ("lead", np.array(leads) / 3600, {"units": "h"}),
                "region": list(self.regions),
                "channel": list(self.channels),
            },
            {"weights": self.weighting},
        )

    def table(self) -> xarray.Dataset:
        """Scores over (lead, region, channel): roots are taken after the mean over initial
        times; spectra by wavenumber.

        What begins with `overall_` is over all channels at once, each in units of `truth_std`, the standard deviation
        of its truth over cells, times and leads.
        """
        values = self.values()
        means = values.mean("time")
        table = means[[name for name in MEANS if name in means]]
        for name, squared in ROOTS.items():
            if squared in means:
                table[name] = np.sqrt(means[squared])
        variance = self._truth_variance(means)
        table["truth_std"] = np.sqrt(variance)
        for name, squared in ROOTS.items():
            if squared in means:
                table[f"overall_{name}"] = np.sqrt((means[squared] / variance).mean("channel"))
        if "spread" in table:
            more = np.sqrt(1 + 1 / self._members)  # so that a reliable ensemble of any size has 1
            table["spread_skill"] = more * table["spread"] / table["rmse"]
            table["overall_spread_skill"] = more * table["overall_spread"] / table["overall_rmse"]
        table["n_forecasts"] = values["mse"].isel(region=0, channel=0, drop=True).count("time")
        self._add_spectra(table)
        self._add_winds(table, means)
        return table.assign_attrs(values.attrs)

    def _truth_variance(self, means: xarray.Dataset) -> xarray.DataArray:
        """RxV, missing for channels that never change."""
        moments = means[["truth_mean", "truth_squared"]].mean("lead")
        variance = moments["truth_squared"] - moments["truth_mean"] ** 2
        return variance.where(variance > 0)

    def _add_spectra(self, table: xarray.Dataset) -> None:
        if self._spectra:
            sums = [self._spectra[round(float(lead) * 3600)] for lead in table["lead"]]
            ours, theirs = (np.stack([s[i] / s[2] for s in sums]) for i in (0, 1))
            dims = ("lead", "channel", "wavenumber")
            table["spectrum"], table["truth_spectrum"] = (dims, ours), (dims, theirs)
            table["spectral_distance_db"] = (dims[:2], log_spectral_distance(ours, theirs))
        if self._ranks:
            counts = np.stack([self._ranks[round(float(lead) * 3600)] for lead in table["lead"]])
            table["rank_counts"] = (("lead", "channel", "rank"), counts)

    def _add_winds(self, table: xarray.Dataset, means: xarray.Dataset) -> None:
        """Root of the mean squared length of the wind's error, where both components are there."""
        pairs = {}
        for name in self.channels:
            match = re.fullmatch(r"u(\d+)", name)
            if match and f"v{match[1]}" in self.channels:
                pairs[f"wind{match[1]}"] = (name, f"v{match[1]}")
        if pairs:
            parts = [sum(means["mse"].sel(channel=c, drop=True) for c in pair) for pair in pairs.values()]
            vector = np.sqrt(np.stack([part.values for part in parts], -1))  # type: ignore[union-attr]
            table["vector_wind_rmse"] = (("lead", "region", "wind"), vector)
            table.coords["wind"] = list(pairs)

    def _check(self, member: Array, truth: Array, climate: Array | None) -> None:
        for name, field in (("forecast", member), ("truth", truth), ("climatology", climate)):
            if field is not None and np.shape(field) != self.shape:
                raise InputError(f"{name} must be {self.shape} (channel, latitude, longitude), got {np.shape(field)}")

    def _first_gap(self, fields: Array, known: Array) -> str:
        is_whole = (np.isfinite(fields) | ~known).reshape(-1, *self.shape).all(axis=(0, 2, 3))
        return self.channels[int(np.argmin(is_whole))]


def bootstrap_interval(
    samples: Array,
    statistic: Callable[[Array], Array],
    *,
    level: float = 0.95,
    n_draws: int = 1000,
    block: int | None = None,
    seed: int = 0,
) -> tuple[Array, Array]:
    """Ends of the percentile interval of a statistic over the first axis, from moving blocks drawn with replacement.

    Args:
        samples: N x anything, in the order of time.
        statistic: of N x anything to anything, e.g. the root of the mean.
        block: neighbours that stay together, as weather is correlated; None for the cube root of N, rounded up.

    Source: Kuensch (1989); Wilks (1997) for forecasts.
    """
    samples = np.asarray(samples, float)
    n = len(samples)
    if n < 2 or not 0 < level < 1 or n_draws < 1:
        raise InputError(f"an interval needs 2 samples or more and a level within 0 and 1, got {n} and {level}")
    block = min(n, block or int(np.ceil(n ** (1 / 3))))
    random = np.random.default_rng(seed)
    n_blocks = -(-n // block)
    draws = []
    for _ in range(n_draws):
        starts = random.integers(0, n - block + 1, n_blocks)
        chosen = (starts[:, None] + np.arange(block)).ravel()[:n]
        draws.append(statistic(samples[chosen]))
    tail = (1 - level) / 2
    low, high = np.quantile(np.stack(draws), [tail, 1 - tail], axis=0)
    return low, high


def _hours(lead: Any) -> float:
    return float(np.timedelta64(lead, "s") / HOUR) if not isinstance(lead, int | float) else float(lead)


def _integer(time: Any) -> int:
    return int(np.datetime64(time, "ns").astype("int64"))
