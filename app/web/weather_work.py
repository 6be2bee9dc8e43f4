"""A forecast by the cascade, scored and drawn: the Weather tab's work, on `unipercept.app.forecaster`."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unipercept.app.web.files import unpack
from unipercept.app.web.jobs import Job
from unipercept.errors import InputError

if TYPE_CHECKING:
    import xarray

    from unipercept.app.forecaster.cascade import Cascade
    from unipercept.app.forecaster.frames import Frames

HOUR = np.timedelta64(1, "h")
MAX_DAYS, MAX_STARTS, MAX_MEMBERS = 15.0, 8, 12
MAX_FRAMES = 41
# Generated weather of years that nothing is trained on (docs/weather.md).
DATA_START, DATA_DAYS, DATA_SEED, SPIN_UP_DAYS = "2081-01-15", 24, 9001, 40
CLIMATE_START, CLIMATE_DAYS, CLIMATE_SEED = "2090-01-01", 365, 9002
GENERATED = "generated weather (a chaotic model of the atmosphere, not ERA5)"
NO_CASCADE = "No trained cascade is on this machine: train one with `unipercept weather train DATA -o RUN` and start the page with --cascade RUN"
_MAKING = threading.Lock()


@dataclass(frozen=True)
class WeatherRequest:
    """What is asked for.

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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: what the API gives."""
        return {
            "init_time": self.init_time,
            "channel": self.channel,
            "channels": list(self.channels),
            "unit": self.unit,
            "lead_hours": list(self.lead_hours),
            "stages": [{"name": name, "first_step": first, "last_step": last} for name, first, last in self.stages],
            "rmse": self.curves("rmse"),
            "plume": {
                "latitude": self.place[0],
                "longitude": self.place[1],
                "members": _plain(self.plume),
                "truth": _plain(self.plume_truth),
            },
            "initial_times": self.n_starts,
            "data": self.source,
        }

    def curves(self, score: str) -> dict[str, list[float | None]]:
        """A score of each model by lead, over the whole grid."""
        if self.table is None or score not in self.table:
            return {}
        part = self.table[score].sel(region="global", channel=self.channel)
        return {str(model): _plain(part.sel(model=model).values) for model in part["model"].values}


def find_cascade(given: str | None) -> Path | None:
    """The cascade that is named, or the one that comes with the package; None where there is none."""
    if given is not None:
        return Path(given)
    from importlib.resources import files

    shipped = Path(str(files("unipercept.app.forecaster"))) / "default"
    return shipped if (shipped / "cascade.json").is_file() else None


def predict(
    wanted: WeatherRequest, cascade_path: str | None, data: Path | None, shared: Path, job: Job, max_bytes: int
) -> Forecasted:
    """Forecast, score where there is truth, and take the plume.

    Args:
        data: the server's own fields; None for generated ones, which are kept in `shared` for all.

    Raises:
        InputError: no cascade, fields that do not fit it, or a time that they lack.
    """
    job.tell(0.01, "loading the library")
    found = find_cascade(cascade_path)
    if found is None:
        raise InputError(NO_CASCADE)
    from unipercept.app.forecaster.cascade_file import chosen_ensemble, load_cascade
    from unipercept.app.forecaster.fields import open_fields, select_channel
    from unipercept.app.forecaster.forecast import forecast
    from unipercept.app.forecaster.frames import Frames

    ensemble, n_stages = chosen_ensemble(found, wanted.members)
    cascade = load_cascade(found, n_stages=n_stages)
    model = cascade.model(0)
    source, said = _source(wanted.file, data, shared, job, max_bytes)
    frames = Frames(source, model.channels)
    n_steps = max(1, round(wanted.days * 24 / model.step_hours))
    times = _starts(frames, wanted, model, n_steps)
    total = n_steps * len(times)

    def stepped(count: int, step: int) -> None:
        job.tell(
            0.3 + 0.45 * min(1.0, (step * count) / total),
            f"step {step} of {n_steps}, stage {_stage_name(cascade, step)}",
        )

    job.tell(0.3, "first step")
    path = forecast(
        cascade,
        frames,
        times,
        n_steps,
        job.folder / "forecast.zarr",
        ensemble=ensemble,
        batch_size=len(times),
        on_step=stepped,
    )
    made, fields = open_fields(path), open_fields(source)
    channel = _channel(wanted.channel, model.channels)
    leads = tuple(model.step_hours * (k + 1) for k in range(n_steps))
    table = _scores(made, fields, wanted, shared, job)
    array = select_channel(made, channel).isel(time=0)
    row, column = (
        _nearest(made[name].values, at, name) for name, at in zip(("latitude", "longitude"), wanted.place, strict=True)
    )
    plume = np.atleast_2d(np.asarray(array.isel(latitude=row, longitude=column).values, float))
    seen = _truth_of(fields, made, channel)
    plume_truth = None if seen is None else np.asarray(seen.isel(latitude=row, longitude=column).values, float)
    ends = (*cascade.boundaries, n_steps)
    stages = [
        (stage.name, first, min(last, n_steps))
        for stage, first, last in zip(cascade.stages, (0, *cascade.boundaries), ends, strict=True)
        if first < n_steps
    ]
    return Forecasted(
        made, fields if seen is not None else None, channel, tuple(model.channels), str(array.attrs.get("units", "")),
        str(np.datetime_as_string(times[0], "h")), leads, tuple(stages), table, len(times), plume, plume_truth,
        (float(made["latitude"].values[row]), float(made["longitude"].values[column])), said, dict(getattr(model, "card", {})),
    )  # fmt: skip


def start_times(file: Path | None, data: Path | None, shared: Path, job: Job, max_bytes: int) -> list[str]:
    """Times that a forecast can start from."""
    from unipercept.app.forecaster.frames import Frames

    source, _ = _source(file, data, shared, job, max_bytes)
    return [str(np.datetime_as_string(time, "h")) for time in Frames(source).times[:400]]


def _source(file: Path | None, data: Path | None, shared: Path, job: Job, max_bytes: int) -> tuple[Path, str]:
    """Fields of the visitor (a NetCDF or GRIB file, or a Zarr folder in a zip file), of the server, or generated ones."""
    if file is not None:
        if zipfile.is_zipfile(file):
            return unpack(file, job.folder / "fields.zarr", max_bytes), file.name
        return file, file.name
    if data is not None:
        return data, data.name
    return generated(
        shared / "weather.zarr", DATA_START, DATA_DAYS, DATA_SEED, SPIN_UP_DAYS, job, 0.02, 0.28
    ), GENERATED


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

    job.tell(low, f"making {days} days of weather (once for all)")
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


def _scores(
    made: xarray.Dataset, fields: xarray.Dataset, wanted: WeatherRequest, shared: Path, job: Job
) -> xarray.Dataset | None:
    from unipercept.app.forecaster.climatology import Climatology, build_climatology
    from unipercept.app.forecaster.evaluate import evaluate
    from unipercept.app.forecaster.fields import open_fields

    climate = None
    if wanted.climatology:
        if wanted.file is not None:
            year = fields
        else:
            stored = generated(
                shared / "year.zarr", CLIMATE_START, CLIMATE_DAYS, CLIMATE_SEED, SPIN_UP_DAYS, job, 0.75, 0.83
            )
            year = open_fields(stored)
        job.tell(0.84, "climatology")
        climate = Climatology(build_climatology(year))
    job.tell(0.85, "scores")
    try:
        return evaluate({"cascade": made}, fields, climate).table
    except InputError:
        if _has_truth(made, fields):
            raise
        return None  # a forecast of what nobody has seen yet


def _has_truth(made: xarray.Dataset, fields: xarray.Dataset) -> bool:
    valid = made["time"].values[0] + made["prediction_timedelta"].values
    return bool(np.isin(valid.astype("datetime64[ns]"), fields["time"].values.astype("datetime64[ns]")).any())


def _truth_of(fields: xarray.Dataset, made: xarray.Dataset, channel: str) -> xarray.DataArray | None:
    """What came in fact at the leads of the first forecast, missing where it is not known."""
    from unipercept.app.forecaster.fields import select_channel

    if not _has_truth(made, fields):
        return None
    valid = (made["time"].values[0] + made["prediction_timedelta"].values).astype("datetime64[ns]")
    array = select_channel(fields, channel)
    found: xarray.DataArray = array.assign_coords(time=array["time"].values.astype("datetime64[ns]")).reindex(
        time=valid
    )
    return found


def map_frames(found: Forecasted, on_frame: Callable[[int, int], object]) -> list[tuple[str, list[tuple[str, bytes]]]]:
    """By lead: a label, and pictures (title, WebP bytes) of the forecast and, where they are known, of truth and error."""
    from unipercept.app.forecaster.fields import select_channel

    array = select_channel(found.forecast, found.channel).isel(time=0)
    if "number" in array.dims:
        array = array.mean("number")
    ours = np.asarray(array.values, float)
    seen = None if found.truth is None else _truth_of(found.truth, found.forecast, found.channel)
    theirs = None if seen is None else np.asarray(seen.values, float)
    limits, colours = _limits(ours, theirs), "PuOr_r" if found.channel[0] in "uv" else "viridis"
    fields: list[tuple[str, Any, tuple[float, float], str]] = [("forecast", ours, limits, colours)]
    if theirs is not None:
        error = ours - theirs
        worst = float(np.nanquantile(abs(error), 0.99)) or 1.0
        fields += [("truth", theirs, limits, colours), ("error", error, (-worst, worst), "RdBu_r")]
    grid = found.forecast["latitude"].values, found.forecast["longitude"].values
    chosen = range(0, len(ours), max(1, -(-len(ours) // MAX_FRAMES)))
    panels = [_Moving(title, values, found.unit, most, style, grid) for title, values, most, style in fields]
    made = []
    for number, k in enumerate(chosen):
        step = round(found.lead_hours[k] / (found.lead_hours[0] or 1))
        label = f"{found.channel}, + {found.lead_hours[k]:g} h ({found.lead_hours[k] / 24:.2f} days), {_stage_of(found, step)}"
        made.append((label, [(panel.title, panel.picture(k)) for panel in panels]))
        on_frame(number + 1, len(chosen))
    return made


class _Moving:
    """One map drawn once, whose colours alone change from lead to lead."""

    def __init__(
        self, title: str, values: Any, unit: str, limits: tuple[float, float], colours: str, grid: tuple[Any, Any]
    ) -> None:
        from unipercept.app.forecaster.pictures import Panel, draw_maps
        from unipercept.app.forecaster.projection import projection_of

        self.title, self.values = title, values
        self.figure = draw_maps([Panel(title, values[0], unit, limits, colours)], *grid)
        self.figure.set_dpi(96)
        self.mesh = self.figure.axes[0].collections[0]
        self.order: Any = slice(None)
        if projection_of(*grid).whole:  # as draw_map lays the columns: from 180 degrees west on, the first twice
            order = np.argsort((grid[1] + 180) % 360, kind="stable")
            self.order = np.append(order, order[0])

    def picture(self, number: int) -> bytes:
        """WebP of one lead."""
        import io

        from PIL import Image

        self.mesh.set_array(np.ma.masked_invalid(self.values[number][:, self.order]))
        self.figure.canvas.draw()
        buffer = io.BytesIO()
        Image.fromarray(np.asarray(self.figure.canvas.buffer_rgba())[..., :3]).save(buffer, "WEBP", quality=82)
        return buffer.getvalue()


def _stage_of(found: Forecasted, step: int) -> str:
    return next((f"stage {name}" for name, first, last in found.stages if first < step <= last), "")


def _stage_name(cascade: Cascade, step: int) -> str:
    return cascade.stages[cascade.stage_index(step - 1)].name


def _channel(wanted: str, channels: Sequence[str]) -> str:
    if not wanted:
        return next((name for name in ("z500", "t850", "t2m", "msl") if name in channels), channels[0])
    if wanted not in channels:
        raise InputError(f"the cascade has no channel {wanted[:30]!r}; it has {', '.join(channels[:24])}")
    return wanted


def _limits(ours: Any, theirs: Any) -> tuple[float, float]:
    values = ours if theirs is None else np.stack([ours, theirs])
    low, high = (float(x) for x in np.nanquantile(values, [0.002, 0.998]))
    return (low, high) if high > low else (low - 1, low + 1)


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
