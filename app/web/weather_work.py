"""A forecast by the cascade, scored and drawn: the Weather tab's work, on `unipercept.app.forecaster`."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unipercept.app.web.files import unpack
from unipercept.app.web.job import Job
from unipercept.errors import InputError

if TYPE_CHECKING:
    import xarray

    from unipercept.app.forecaster.cascade import Cascade
    from unipercept.app.forecaster.climatology import Climatology
    from unipercept.app.forecaster.frames import Frames

MAX_DAYS, MAX_STARTS, MAX_MEMBERS = 15.0, 8, 12
MAX_LISTED = 400  # times to choose a start from; others can be typed
# Generated weather of years that nothing is trained on (docs/weather.md).
DATA_START, DATA_DAYS, DATA_SEED, SPIN_UP_DAYS = "2081-01-15", 24, 9001, 40
CLIMATE_START, CLIMATE_DAYS, CLIMATE_SEED = "2090-01-01", 365, 9002
GENERATED = "generated weather (a chaotic model of the atmosphere, not ERA5)"
_MAKING = threading.Lock()


@dataclass(frozen=True)
class WeatherRequest:
    """A request for a forecast.

    Args:
        file: fields to start from; None for the server's own.
        start: first initial time; "" for the first with enough truth behind it.
        starts: how many initial times, a day apart, are scored.
        members: of the ensemble; 1 for none.
        place: latitude and longitude of the plume.
        climatology: score against it too.
    """

    file: Path | None
    channel: str = ""
    start: str = ""
    days: float = 5.0
    starts: int = 1
    members: int = 1
    place: tuple[float, float] = (52.0, 13.0)
    climatology: bool = False

    def __post_init__(self) -> None:
        limits = {"days": (0.25, MAX_DAYS), "starts": (1, MAX_STARTS), "members": (1, MAX_MEMBERS)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} must lie within {low} and {high:g}, got {getattr(self, name)}")
        if not -90 <= self.place[0] <= 90 or not -360 <= self.place[1] <= 360:
            raise InputError(f"a place is a latitude within 90 and a longitude within 360 degrees, got {self.place}")


@dataclass(frozen=True, eq=False)
class Forecasted:
    """A forecast and all that is said about it.

    Args:
        stages: name, first and last step of each stage.
        table: scores over (model, lead, region, channel); None without truth.
        plume: MxT values at the place (M members), and `plume_truth` T.
        notes: what was converted or left out of the fields.
    """

    forecast: xarray.Dataset
    truth: xarray.Dataset | None
    channel: str
    channels: tuple[str, ...]
    unit: str
    init_time: str
    lead_hours: tuple[float, ...]
    stages: tuple[tuple[str, int, int], ...]
    table: xarray.Dataset | None
    n_starts: int
    plume: Any
    plume_truth: Any
    place: tuple[float, float]
    source: str
    card: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: what the API gives."""
        return {
            "init_time": self.init_time,
            "channel": self.channel,
            "channels": list(self.channels),
            "unit": self.unit,
            "lead_hours": list(self.lead_hours),
            "stages": [{"name": name, "first_step": first, "last_step": last} for name, first, last in self.stages],
            "rmse": self.rmse(),
            "skill": self.skill(),
            "plume": {
                "latitude": self.place[0],
                "longitude": self.place[1],
                "members": _plain(self.plume),
                "truth": _plain(self.plume_truth),
            },
            "initial_times": self.n_starts,
            "data": self.source,
            "notes": list(self.notes),
        }

    def rmse(self) -> dict[str, list[float | None]]:
        """RMSE of the cascade and its references by lead time, over the whole grid."""
        if self.table is None:
            return {}
        part = self.table["rmse"].sel(region="global", channel=self.channel)
        return {str(model): _plain(part.sel(model=model).values) for model in part["model"].values}

    def skill(self) -> dict[str, list[float | None]]:
        """By reference: the share of its mean squared error that the cascade avoids; 1 is perfect, 0 no better."""
        errors = {model: np.array(values, float) for model, values in self.rmse().items()}
        ours = errors.pop("cascade", None)
        return {} if ours is None else {model: _plain(1 - (ours / theirs) ** 2) for model, theirs in errors.items()}


def predict(
    wanted: WeatherRequest, cascade_path: str, data: Path | None, shared: Path, job: Job, max_bytes: int
) -> Forecasted:
    """Forecast, score where there is truth, and take the plume.

    Args:
        cascade_path: a trained cascade, or "default".
        data: the server's own fields; None for generated ones, which are kept in `shared` for all.

    Raises:
        InputError: fields that do not fit the cascade, or a time that they lack.
        WeightsError: there is no such cascade.
    """
    job.tell(0.01, "loading the library")
    from unipercept.app.forecaster.cascade_file import chosen_ensemble, load_cascade
    from unipercept.app.forecaster.fields import open_fields, select_channel
    from unipercept.app.forecaster.forecast import forecast
    from unipercept.app.forecaster.frames import Frames

    ensemble, n_stages = chosen_ensemble(cascade_path, wanted.members)
    cascade = load_cascade(cascade_path, n_stages=n_stages)
    model = cascade.model(0)
    source, said = _source(wanted.file, data, shared, job, max_bytes)
    frames = Frames(source, model.channels)
    n_steps = max(1, round(wanted.days * 24 / model.step_hours))
    times = _starts(frames, wanted, model, n_steps)
    climate = _climatology(wanted, source, shared, job)
    total = n_steps * len(times)

    def stepped(count: int, step: int) -> None:
        job.tell(
            0.4 + 0.4 * min(1.0, (step * count) / total),
            f"step {step} of {n_steps}, stage {_stage_name(cascade, step)}",
        )

    job.tell(0.4, "first step")
    path = forecast(
        cascade,
        frames,
        times,
        n_steps,
        job.scratch / "forecast.zarr",
        ensemble=ensemble,
        batch_size=len(times),
        on_step=stepped,
    )
    made, fields = open_fields(path), open_fields(source)
    channel = _channel(wanted.channel, model.channels)
    leads = tuple(model.step_hours * (k + 1) for k in range(n_steps))
    job.tell(0.82, "scores")
    table = _scores(made, fields, climate)
    array = select_channel(made, channel).isel(time=0)
    at = {
        name: _nearest(made[name].values, degrees, name)
        for name, degrees in zip(("latitude", "longitude"), wanted.place, strict=True)
    }
    seen = truth_of(fields, made, channel)
    return Forecasted(
        made, fields if seen is not None else None, channel, tuple(model.channels), str(array.attrs.get("units", "")),
        str(np.datetime_as_string(times[0], "h")), leads, _stages(cascade, n_steps), table, len(times),
        np.atleast_2d(np.asarray(array.isel(at).values, float)),
        None if seen is None else np.asarray(seen.isel(at).values, float),
        (float(made["latitude"].values[at["latitude"]]), float(made["longitude"].values[at["longitude"]])),
        said, dict(getattr(model, "card", {})), frames.fields.notes,
    )  # fmt: skip


def _stages(cascade: Any, n_steps: int) -> tuple[tuple[str, int, int], ...]:
    """Name, first and last step of each stage that a forecast of `n_steps` reaches."""
    ends = (*cascade.boundaries, n_steps)
    return tuple(
        (stage.name, first, min(last, n_steps))
        for stage, first, last in zip(cascade.stages, (0, *cascade.boundaries), ends, strict=True)
        if first < n_steps
    )


def choices(
    file: Path | None, cascade_path: str, data: Path | None, job: Job, max_bytes: int
) -> tuple[list[tuple[str, str]], list[str]]:
    """Channels of the cascade with their titles (title, name), and times that a forecast can start from."""
    job.tell(0.1, "reading the times")
    from unipercept.app.forecaster.cascade_file import load_cascade
    from unipercept.app.forecaster.frames import Frames

    model = load_cascade(cascade_path).model(0)
    if file is None and data is None:  # not made yet
        step = np.timedelta64(round(60 * model.step_hours), "m")
        times = np.arange(np.datetime64(DATA_START), np.datetime64(DATA_START) + np.timedelta64(DATA_DAYS, "D"), step)
    else:
        source, _ = _given(file, data, job, max_bytes)
        times = Frames(source).times
    starts = times[max(model.frames - 1, 0) :][:MAX_LISTED]
    return [(channel_title(name), name) for name in model.channels], [
        str(np.datetime_as_string(time, "h")) for time in starts
    ]


def _source(file: Path | None, data: Path | None, shared: Path, job: Job, max_bytes: int) -> tuple[Path, str]:
    """Fields of the visitor or of the server, or generated ones, and what they are called."""
    if file is not None or data is not None:
        return _given(file, data, job, max_bytes)
    path = generated(shared / "weather.zarr", DATA_START, DATA_DAYS, DATA_SEED, SPIN_UP_DAYS, job, 0.02, 0.28)
    return path, GENERATED


def _given(file: Path | None, data: Path | None, job: Job, max_bytes: int) -> tuple[Path, str]:
    """Fields of the visitor (a NetCDF or GRIB file, or a Zarr folder in a zip file), else of the server."""
    if file is None:
        assert data is not None
        return data, data.name
    if zipfile.is_zipfile(file):
        return unpack(file, job.scratch / "fields.zarr", max_bytes), file.name
    return file, file.name


def generated(path: Path, start: str, days: int, seed: int, spin_up: int, job: Job, low: float, high: float) -> Path:
    """Weather made once for all visitors; a run that is stopped goes on where it was."""
    from unipercept.app.forecaster.generate import GenerateConfig, generate

    config = GenerateConfig(days=days, start=start, seed=seed, spin_up_days=spin_up)
    blocks = 0

    def block() -> None:
        nonlocal blocks
        blocks += 1
        job.tell(
            low + (high - low) * blocks / config.n_blocks,
            f"making weather, {10 * blocks} of {days} days (once for all)",
        )

    job.tell(low, f"making {days} days of weather (once for all visitors)")
    while not _MAKING.acquire(timeout=0.2):
        job.tell(low, "somebody else's weather is being made; waiting for it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        generate(path, config, resume=True, on_block=block)
    finally:
        _MAKING.release()
    return path


def _starts(frames: Frames, wanted: WeatherRequest, model: Any, n_steps: int) -> list[Any]:
    """Initial times, a day apart, from the one asked for."""
    if wanted.start:
        try:
            first = frames.at(np.datetime64(wanted.start, "ns"))
        except ValueError as error:
            raise InputError(
                f"a start is a time such as {np.datetime_as_string(frames.times[0], 'h')}, got {wanted.start[:40]!r}"
            ) from error
    else:
        first = min(max(model.frames - 1, 0), len(frames) - 1)
    begin = frames.times[first]
    chosen = [begin + np.timedelta64(24 * k, "h") for k in range(wanted.starts)]
    return [time for time in chosen if time <= frames.times[-1]]


def _climatology(wanted: WeatherRequest, source: Path, shared: Path, job: Job) -> Climatology | None:
    """The climatology of the visitor's file, which must hold a year, else of a generated
    year; None if not requested.
    """
    if not wanted.climatology:
        return None
    from unipercept.app.forecaster.climatology import Climatology, build_climatology
    from unipercept.app.forecaster.fields import open_fields

    if wanted.file is None:
        year = (CLIMATE_START, CLIMATE_DAYS, CLIMATE_SEED, SPIN_UP_DAYS)
        source = generated(shared / "year.zarr", *year, job, 0.28, 0.4)
    job.tell(0.4, "climatology")
    return Climatology(build_climatology(open_fields(source)))


def _scores(made: xarray.Dataset, fields: xarray.Dataset, climate: Climatology | None) -> xarray.Dataset | None:
    from unipercept.app.forecaster.evaluate import evaluate

    try:
        return evaluate({"cascade": made}, fields, climate).table
    except InputError:
        if _has_truth(made, fields):
            raise
        return None  # a forecast of what nobody has seen yet


def _has_truth(made: xarray.Dataset, fields: xarray.Dataset) -> bool:
    valid = made["time"].values[0] + made["prediction_timedelta"].values
    return bool(np.isin(valid.astype("datetime64[ns]"), fields["time"].values.astype("datetime64[ns]")).any())


def truth_of(fields: xarray.Dataset, made: xarray.Dataset, channel: str) -> xarray.DataArray | None:
    """The truth at the lead times of the first forecast, missing where unknown."""
    from unipercept.app.forecaster.fields import select_channel

    if not _has_truth(made, fields):
        return None
    valid = (made["time"].values[0] + made["prediction_timedelta"].values).astype("datetime64[ns]")
    array = select_channel(fields, channel)
    found: xarray.DataArray = array.assign_coords(time=array["time"].values.astype("datetime64[ns]")).reindex(
        time=valid
    )
    return found


def _stage_name(cascade: Cascade, step: int) -> str:
    return cascade.stages[cascade.stage_index(step - 1)].name


def channel_title(name: str) -> str:
    """A channel as people call it: z500, geopotential at 500 hPa."""
    from unipercept.app.forecaster.cf import LONG_NAMES
    from unipercept.app.forecaster.writer import UPPER

    level = None if name in LONG_NAMES else UPPER.fullmatch(name)
    found = LONG_NAMES.get(level[1] if level else name)
    if found is None:
        return name
    height = f" at {level[2]} hPa" if level else {"t2m": " at 2 m", "u10": " at 10 m", "v10": " at 10 m"}.get(name, "")
    return f"{name}, {found[1].replace('_', ' ')}{height}"


def default_channel(channels: Sequence[str]) -> str:
    """The one that is drawn unless another is asked for."""
    return next((name for name in ("z500", "t850", "t2m", "msl") if name in channels), channels[0])


def _channel(wanted: str, channels: Sequence[str]) -> str:
    if not wanted:
        return default_channel(channels)
    if wanted not in channels:
        raise InputError(f"the cascade has no channel {wanted[:30]!r}; it has {', '.join(channels[:24])}")
    return wanted


def _nearest(values: Any, at: float, name: str) -> int:
    distance = np.abs(values - at) if name == "latitude" else np.abs((values - at + 180) % 360 - 180)
    return int(np.argmin(distance))


def _plain(values: Any) -> Any:
    """Nested lists with None for what is missing: JSON has no NaN."""
    if values is None:
        return None
    array = np.asarray(values, float)
    if array.ndim > 1:
        return [_plain(row) for row in array]
    return [None if not np.isfinite(x) else round(float(x), 6) for x in array]
