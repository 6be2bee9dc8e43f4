"""Score stored forecasts against the truth, compared with persistence and, if given, climatology.

Fields are read lazily, some leads of one initial time at once, so the stores may be larger than memory.

Shapes: V channels, H rows, W columns, M members.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unipercept.app.forecaster.climatology import Climatology
from unipercept.app.forecaster.fields import channel_names, check_same_grid, select_channel, variables_with
from unipercept.app.forecaster.score_formulas import EVERYWHERE, Array, Box, Weights
from unipercept.app.forecaster.scores import ScoreBoard, bootstrap_interval
from unipercept.atomic import atomic_path
from unipercept.errors import InputError
from unipercept.pipelines.weather_units import plain_unit

if TYPE_CHECKING:
    import xarray

PERSISTENCE, CLIMATOLOGY = "persistence", "climatology"
ALL, OVERALL = "all", "overall_"  # how scores over all channels are named in a list of channels, and among variables
DAY_HOURS = 24.0
UNKNOWN = "1"  # the unit of fields that state none
MAX_BLOCK_BYTES = 1 << 30  # of fields in memory, as far as one lead of all forecasts takes less


@dataclass(frozen=True)
class Evaluation:
    """The scores.

    Args:
        table: scores over (model, lead, region, channel); see `ScoreBoard.table`.
        values: mse, mae, … of every initial time over (model, time, lead, region, channel).
    """

    table: xarray.Dataset
    values: xarray.Dataset

    def save(self, path: str | Path) -> None:
        """Write by suffix: .nc keeps everything, .csv the scores by model, lead, region and channel, a line each.

        Raises:
            InputError: another suffix.
        """
        path = Path(path)
        if path.suffix not in (".nc", ".csv"):
            raise InputError(f"scores are saved as .nc or .csv, got {path}")
        with atomic_path(path) as temporary:
            if path.suffix == ".nc":
                per_time = self.values.rename({n: f"{n}_by_time" for n in self.values.data_vars})
                self.table.merge(per_time).to_netcdf(temporary)
            else:
                self.long().to_csv(temporary, index=False)

    def long(self) -> Any:
        """A DataFrame with a row for each model, lead, region and channel; the channel "all" has the overall scores."""
        import pandas as pd

        dims = ("model", "lead", "region")
        flat = [n for n, a in self.table.data_vars.items() if a.dims == (*dims, "channel")]
        overall = {str(n): str(n).removeprefix(OVERALL) for n in self.table if str(n).startswith(OVERALL)}
        rows = self.table[list(overall)].rename(overall).to_dataframe().reset_index().assign(channel=ALL)
        return pd.concat([self.table[flat].to_dataframe().reset_index(), rows], ignore_index=True)

    def verdicts(self) -> list[str]:
        """For each forecast and each of its rivals a sentence: at which leads its global RMSE is lower."""
        table = self.table.sel(region=EVERYWHERE)
        names, days = [str(name) for name in table["model"].values], table["lead"].values / DAY_HOURS
        found = []
        for ours in (name for name in names if name not in (PERSISTENCE, CLIMATOLOGY)):
            for rival in (name for name in names if name != ours):
                first, second = table.sel(model=ours), table.sel(model=rival)
                better = (first["rmse"] < second["rmse"]).transpose("lead", "channel").values
                overall = (first["overall_rmse"] < second["overall_rmse"]).values
                found.append(
                    f"{ours} has a lower RMSE than {rival} over all channels at {_spans(days, overall)}; "
                    f"in every channel at {_spans(days, np.asarray(better.all(1)))}; in {better.sum()} of {better.size} pairs of channel and lead"
                )
        return found


def evaluate(
    forecasts: Mapping[str, xarray.Dataset],
    truth: xarray.Dataset,
    climatology: Climatology | None = None,
    *,
    channels: Sequence[str] | None = None,
    boxes: Mapping[str, Box] | None = None,
    shares: Mapping[str, Array] | None = None,
    weights: Weights = "cell",
    on_forecast: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Score forecasts by name, all on the initial times and leads that every one of them and the truth have.

    Args:
        forecasts: datasets of `open_fields` over (time, prediction_timedelta, …), with `number` for an ensemble.
        truth: a dataset of `open_fields` over time; float32 as it is stored.
        climatology: for the anomaly correlation, the activity and a baseline; None leaves those out.
        channels: which; None for all that forecasts and truth share.
        boxes, shares, weights: regions and weights of cells, as of `ScoreBoard`.
        on_forecast: called for each initial time that has been scored.

    Cells that the truth lacks at all times, such as the sea surface temperature over land, do not count.

    Raises:
        InputError: names, grids or times that do not meet, or missing cells that differ from time to time.
    """
    if not forecasts or {PERSISTENCE, CLIMATOLOGY} & set(forecasts):
        raise InputError(f"name one forecast or more, other than {PERSISTENCE} and {CLIMATOLOGY}")
    truth = truth.squeeze("number", drop=True) if truth.sizes.get("number") == 1 else truth
    for name, forecast in forecasts.items():
        _check_forecast(name, forecast, truth)
    if climatology is not None:
        check_same_grid("the climatology", climatology.dataset, truth)
    chosen = shared_channels(list(forecasts.values()), truth, channels)
    for name, forecast in forecasts.items():
        _check_units(name, forecast, truth, chosen)
    if climatology is not None:
        _check_units("the climatology", climatology.dataset, truth, chosen)
    times, leads = _shared_times(list(forecasts.values()), truth)
    grid = truth["latitude"].values, truth["longitude"].values
    names = [*forecasts, PERSISTENCE, *([CLIMATOLOGY] if climatology else [])]
    boards = {name: ScoreBoard(chosen, *grid, boxes=boxes, shares=shares, weights=weights) for name in names}
    n_states = 1 + sum(forecast.sizes.get("number", 1) for forecast in forecasts.values())
    at_once = max(1, MAX_BLOCK_BYTES // (4 * n_states * int(np.prod(boards[PERSISTENCE].shape))))
    known = set(truth["time"].values.astype("datetime64[ns]").tolist())
    for time in times:
        valid = [lead for lead in leads if int((time + lead).astype("datetime64[ns]").astype("int64")) in known]
        for first in range(0, len(valid), at_once):
            some = np.array(valid[first : first + at_once])
            _score_leads(time, some, forecasts, truth, climatology, boards)
        on_forecast()
    return _gather(boards)


def shared_channels(
    forecasts: Sequence[xarray.Dataset], truth: xarray.Dataset, wanted: Sequence[str] | None
) -> tuple[str, ...]:
    """The channels that forecasts and truth share, or those of them that are wanted.

    Raises:
        InputError: a wanted one is not there, or none.
    """
    sets = [channel_names(dataset) for dataset in (*forecasts, truth)]
    shared = tuple(name for name in sets[0] if all(name in others for others in sets[1:]))
    if wanted is not None:
        missing = [name for name in wanted if name not in shared]
        if missing:
            raise InputError(f"no {', '.join(missing)} in forecast and truth alike; they share {', '.join(shared)}")
        return tuple(wanted)
    if not shared:
        raise InputError("forecast and truth share no channel")
    return shared


def _score_leads(
    time: Any,
    leads: Array,
    forecasts: Mapping[str, xarray.Dataset],
    truth: xarray.Dataset,
    climatology: Climatology | None,
    boards: Mapping[str, ScoreBoard],
) -> None:
    """Some leads of one initial time."""
    channels = boards[PERSISTENCE].channels
    start, truths = _read(truth.sel(time=time), channels), _read(truth.sel(time=time + leads), channels, "time")
    fields = {
        name: _read(forecast.sel(time=time, prediction_timedelta=leads), channels, "prediction_timedelta", "number")
        for name, forecast in forecasts.items()
    }
    gaps = np.isnan(start)
    for i, lead in enumerate(leads):
        changed = (np.isnan(truths[i]) != gaps).any(axis=(1, 2))
        if changed.any():
            raise InputError(
                f"the truth lacks other cells of {channels[int(changed.argmax())]} at {_minute(time)} than at "
                f"{_minute(time + lead)}; scores leave out what is missing at all times, so fill the others first"
            )
        climate = climatology.at(time + lead, channels) if climatology else None
        for name, array in fields.items():
            boards[name].add(time, lead, array[i], truths[i], climate)
        boards[PERSISTENCE].add(time, lead, start, truths[i], climate)
        if climate is not None:
            boards[CLIMATOLOGY].add(time, lead, climate, truths[i], climate)


def _read(dataset: xarray.Dataset, channels: Sequence[str], *dims: str) -> Array:
    """VxHxW after those of `dims` that are there.

    Variables are read whole and taken apart in memory: a level at a time, they would be read once for each of their
    levels; and in numpy, since this runs for each initial time and xarray's `concat` took longer than the scores.
    """
    loaded = variables_with(dataset, channels).load()
    there = [d for d in dims if d in loaded.dims]
    planes = []
    for channel in channels:
        plane = select_channel(loaded, channel)
        plane = plane.expand_dims({d: loaded.sizes[d] for d in there if d not in plane.dims})
        planes.append(plane.variable.transpose(*there, "latitude", "longitude").values)
    return np.stack(planes, axis=len(there))


def _minute(time: Any) -> str:
    return str(np.datetime_as_string(time, "m"))


def _gather(boards: Mapping[str, ScoreBoard]) -> Evaluation:
    import xarray as xr

    names = list(boards)
    tables = xr.concat([b.table() for b in boards.values()], "model", join="outer", coords="minimal", compat="override")
    values = xr.concat(
        [b.values() for b in boards.values()], "model", join="outer", coords="minimal", compat="override"
    )
    tables, values = tables.assign_coords(model=names), values.assign_coords(model=names)
    return Evaluation(_with_intervals(tables, values), values)


def _with_intervals(table: xarray.Dataset, values: xarray.Dataset) -> xarray.Dataset:
    """95 % intervals of the RMSE and of its ratio to the persistence's, where there are enough initial times."""
    if values.sizes["time"] < 4:
        return table
    mse = values["mse"].sel(region=EVERYWHERE).transpose("time", "model", "lead", "channel").values
    reference = list(values["model"].values).index(PERSISTENCE)

    def rmse_and_ratio(samples: Array) -> Array:
        root = np.sqrt(np.nanmean(samples, axis=0))
        return np.stack([root, root / root[reference][None]])

    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a lead that no drawn initial time has
        ends = bootstrap_interval(mse, rmse_and_ratio, n_draws=400)
    dims = ("model", "lead", "channel")
    for name, i in (("rmse", 0), ("rmse_over_persistence", 1)):
        for end, value in zip(("low", "high"), ends, strict=True):
            table[f"{name}_{end}"] = (dims, value[i])
    return table


def _spans(days: Array, chosen: Array) -> str:
    """Runs of chosen leads, e.g. "0.25 to 5, 7 d"."""
    edges = np.flatnonzero(np.diff([0, *chosen.astype(int), 0])).reshape(-1, 2)
    runs = [f"{days[a]:g}" if b == a + 1 else f"{days[a]:g} to {days[b - 1]:g}" for a, b in edges]
    return ", ".join(runs) + " d" if runs else "no lead"


def _check_forecast(name: str, forecast: xarray.Dataset, truth: xarray.Dataset) -> None:
    if not {"time", "prediction_timedelta"} <= set(forecast.dims):
        raise InputError(
            f"{name} is no forecast: expected dimensions time and prediction_timedelta, got {', '.join(map(str, forecast.dims))}"
        )
    if "time" not in truth.dims or "prediction_timedelta" in truth.dims:
        raise InputError("the truth must be fields over time, without leads")
    if "number" in truth.dims:
        raise InputError(f"the truth has {truth.sizes['number']} members; give one of them")
    check_same_grid(name, forecast, truth)


def _check_units(name: str, fields: xarray.Dataset, truth: xarray.Dataset, channels: Sequence[str]) -> None:
    """Refuse fields in another unit: those that are known were converted, others came as they are."""
    for channel in channels:
        ours, theirs = (str(select_channel(part, channel).attrs.get("units", UNKNOWN)) for part in (fields, truth))
        if UNKNOWN not in (ours, theirs) and plain_unit(ours) != plain_unit(theirs):
            raise InputError(f"{channel} is in {ours!r} in {name} and in {theirs!r} in the truth; convert one of them")


def _shared_times(forecasts: Sequence[xarray.Dataset], truth: xarray.Dataset) -> tuple[list[Any], list[Any]]:
    times = set(truth["time"].values.astype("datetime64[ns]").tolist())
    leads = set(forecasts[0]["prediction_timedelta"].values.astype("timedelta64[ns]").tolist())
    for forecast in forecasts:
        times &= set(forecast["time"].values.astype("datetime64[ns]").tolist())
        leads &= set(forecast["prediction_timedelta"].values.astype("timedelta64[ns]").tolist())
    if not times:
        raise InputError("no initial time of the forecasts lies in the truth")
    if not leads - {0}:
        raise InputError("the forecasts share no lead")
    moments = [np.datetime64(t, "ns") for t in sorted(times)]
    return moments, [np.timedelta64(t, "ns") for t in sorted(leads) if t > 0]
