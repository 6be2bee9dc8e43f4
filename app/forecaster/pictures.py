"""Pictures of weather: maps of fields, of a forecast beside the truth, and animations.
matplotlib is loaded on first use.

Shapes: H rows, W columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from unipercept.app.forecaster.boundary import WIND
from unipercept.app.forecaster.fields import check_same_grid, select_channel
from unipercept.app.forecaster.projection import Array, Projection, cell_corners, coastlines, projection_of
from unipercept.atomic import atomic_path
from unipercept.errors import InputError, import_optional
from unipercept.results.drawing import plain_figure, write_figure

if TYPE_CHECKING:
    import xarray

COLOURS = (
    (re.compile(r"t\d+(\.\d+)?|t|t2m"), "RdYlBu_r"),
    (re.compile(r"[rq]\d+(\.\d+)?|[rq]|tp"), "YlGnBu"),
    (WIND, "PuOr_r"),  # in two colours around 0
)
HOUR = np.timedelta64(1, "h")
MAX_FRAMES = 1000
FRAMES_PER_SECOND = 8


@dataclass(frozen=True)
class Panel:
    """One map: HxW values and how they are coloured; equal limits make maps comparable."""

    title: str
    values: Array
    unit: str
    limits: tuple[float, float]
    colours: str = "viridis"


def draw_map(axes: Any, panel: Panel, latitude: Array, longitude: Array) -> Any:
    """Draw a panel with coastlines and a rim; gives what a colour bar is made of."""
    projection = projection_of(latitude, longitude)
    values = panel.values
    if projection.whole:  # Greenwich in the middle: the cells from 180 degrees on come first
        order = _order(longitude)
        longitude, values = (longitude[order] + 180) % 360 - 180, values[:, order]
        longitude[-1] += 360
    phi, lam = cell_corners(latitude, longitude)
    x, y = projection(lam[None], phi[:, None])
    low, high = panel.limits
    mesh = axes.pcolormesh(x, y, values, cmap=panel.colours, vmin=low, vmax=high, shading="flat", rasterized=True)
    for line_x, line_y in coastlines(projection):
        axes.plot(line_x, line_y, color="black", linewidth=0.5, alpha=0.75)
    _rim(axes, projection, phi, lam, mesh)
    axes.set_title(panel.title, fontsize=10)
    return mesh


def draw_maps(panels: Sequence[Panel], latitude: Array, longitude: Array, title: str = "") -> Any:
    """A figure of panels side by side, three in a row, each with its colour bar."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    shape = _aspect(latitude, longitude)
    figure, axes = new_figure(rows, columns, (5.2 * columns, 5.2 / shape * rows + 0.9 * rows + (0.3 if title else 0)))
    for axis, panel in zip(axes.flat, panels, strict=False):
        mesh = draw_map(axis, panel, latitude, longitude)
        bar = figure.colorbar(mesh, ax=axis, orientation="horizontal", pad=0.04, fraction=0.06, aspect=35)
        bar.set_label(panel.unit, fontsize=9)
        bar.ax.tick_params(labelsize=8)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def plot_fields(
    path: str | Path, dataset: xarray.Dataset, channel: str, time: Any = None, lead_hours: float | None = None
) -> None:
    """A map of a channel: of the given time (or the first), and of a lead where it is a forecast.

    Raises:
        InputError: no such channel, time or lead.
    """
    array = select_channel(dataset, channel)
    chosen, when = _at(array, time, lead_hours)
    values = np.asarray(chosen.values, float)
    grid = dataset["latitude"].values, dataset["longitude"].values
    panel = Panel(
        f"{channel}  {when}", values, array.attrs.get("units", ""), _limits(channel, values), _colours(channel)
    )
    save(draw_maps([panel], *grid), path)


def plot_comparison(
    path: str | Path,
    forecast: xarray.Dataset,
    truth: xarray.Dataset,
    channel: str,
    time: Any = None,
    lead_hours: float | None = None,
) -> None:
    """Forecast, truth and their difference at a valid time, side by side.

    Raises:
        InputError: no such channel, time or lead in either, or another grid.
    """
    check_same_grid("the forecast", forecast, truth)
    chosen, when = _at(select_channel(forecast, channel), time, lead_hours)
    if not {"time", "prediction_timedelta"} <= set(chosen.coords):
        raise InputError("a comparison needs a forecast, with times and leads; leave --truth out to see these fields")
    valid = chosen["time"].values + chosen["prediction_timedelta"].values
    seen, _ = _at(select_channel(truth, channel), valid, None)
    ours, theirs = np.asarray(chosen.values, float), np.asarray(seen.values, float)
    limits, unit = _limits(channel, np.stack([ours, theirs])), str(chosen.attrs.get("units", ""))
    misses = ours - theirs
    most = (float(np.nanquantile(abs(misses), 0.995)) if np.isfinite(misses).any() else 0.0) or 1.0
    panels = [
        Panel("forecast", ours, unit, limits, _colours(channel)),
        Panel("truth", theirs, unit, limits, _colours(channel)),
        Panel("forecast - truth", misses, unit, (-most, most), "RdBu_r"),
    ]
    save(draw_maps(panels, truth["latitude"].values, truth["longitude"].values, f"{channel}  {when}"), path)


def animate(
    path: str | Path,
    dataset: xarray.Dataset,
    channel: str,
    *,
    time: Any = None,
    n_frames: int = 40,
    on_frame: Callable[[], None] = lambda: None,
) -> None:
    """A gif or mp4 of a channel: the leads of one forecast, or the times of a data set from `time` on.

    Raises:
        InputError: another suffix, or no such channel or time.
    """
    path = Path(path)
    if path.suffix not in (".gif", ".mp4"):
        raise InputError(f"an animation is saved as .gif or .mp4, got {path}")
    if not 1 <= n_frames <= MAX_FRAMES:
        raise InputError(f"n_frames must lie within 1 and {MAX_FRAMES}, got {n_frames}")
    array = select_channel(dataset, channel)
    moving, labels = _frames(array, time, n_frames)
    limits = _limits(channel, moving)
    grid = dataset["latitude"].values, dataset["longitude"].values
    unit, pictures = str(array.attrs.get("units", "")), []
    figure = draw_maps([Panel(f"{channel}  {labels[0]}", moving[0], unit, limits, _colours(channel))], *grid)
    axes = figure.axes[0]
    mesh = axes.collections[0]
    order = _order(grid[1]) if projection_of(*grid).whole else slice(None)
    for values, label in zip(moving, labels, strict=True):
        mesh.set_array(values[:, order])
        axes.set_title(f"{channel}  {label}", fontsize=10)
        pictures.append(_pixels(figure))
        on_frame()
    with atomic_path(path) as temporary:
        (_write_gif if path.suffix == ".gif" else _write_mp4)(temporary, pictures)


def save(figure: Any, path: str | Path) -> None:
    """Write a figure by suffix (png, pdf, svg), whole or not at all."""
    path = Path(path)
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise InputError(f"a picture is saved as .png, .pdf or .svg, got {path}")
    with atomic_path(path) as temporary:
        write_figure(figure, temporary, 130, bbox_inches="tight")


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Without pyplot: no window, no state that outlives the call."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = plain_figure(size)
    FigureCanvasAgg(figure)
    return figure, np.atleast_2d(np.asarray(figure.subplots(rows, columns, squeeze=False)))


def _rim(axes: Any, projection: Projection, phi: Array, lam: Array, mesh: Any) -> None:
    axes.set_aspect("equal")
    axes.set_axis_off()
    if projection.whole:
        up = np.linspace(-90, 90, 181)
        edge_x, edge_y = projection(
            np.concatenate([np.full(181, 180.0), np.full(181, -180.0)]), np.concatenate([up, up[::-1]])
        )
        mesh.set_clip_path(axes.fill(edge_x, edge_y, facecolor="none", edgecolor="0.3", linewidth=0.8)[0])
        for x, y in _graticule(projection):
            axes.plot(x, y, color="0.3", linewidth=0.25, alpha=0.5)
        axes.set_xlim(edge_x.min() * 1.01, edge_x.max() * 1.01)
        axes.set_ylim(edge_y.min() * 1.01, edge_y.max() * 1.01)
        return
    x, y = projection(lam[[0, -1]], phi[[0, -1]])
    axes.set_xlim(x.min(), x.max())
    axes.set_ylim(y.min(), y.max())
    axes.plot(x[[0, 1, 1, 0, 0]], y[[0, 0, 1, 1, 0]], color="0.3", linewidth=1.2)


def _order(longitude: Array) -> Array:
    """Columns from 180 degrees west on; the first comes again at the end, as the border goes through its cell."""
    order = np.argsort((longitude + 180) % 360, kind="stable")
    return np.append(order, order[0])


def _graticule(projection: Projection) -> list[tuple[Array, Array]]:
    meridians = [projection(np.full(91, lam), np.linspace(-90, 90, 91)) for lam in range(-120, 180, 60)]
    parallels = [projection(np.array([-180.0, 180.0]), np.full(2, phi)) for phi in range(-60, 90, 30)]
    return meridians + parallels


def _aspect(latitude: Array, longitude: Array) -> float:
    projection = projection_of(latitude, longitude)
    if projection.whole:
        return 2.05
    phi, lam = cell_corners(latitude, longitude)
    x, y = projection(lam[[0, -1]], phi[[0, -1]])
    return float(np.clip(np.ptp(x) / np.ptp(y), 0.5, 4))


def _at(array: xarray.DataArray, time: Any, lead_hours: float | None) -> tuple[xarray.DataArray, str]:
    """HxW at a time and lead, the first member of an ensemble; and both as text."""
    when = ""
    if "number" in array.dims:
        array = array.isel(number=0)
    if "time" in array.dims:
        array = array.isel(time=_position(array, time))
        when = f"{_text(array['time'].values, 'm')} UTC"
    if "prediction_timedelta" in array.dims:
        hours = array["prediction_timedelta"].values / HOUR
        wanted = hours[-1] if lead_hours is None else lead_hours
        near = np.flatnonzero(np.isclose(hours, wanted))
        if not len(near):
            raise InputError(f"no lead of {wanted:g} h; there are {', '.join(f'{h:g}' for h in hours[:12])} …")
        array = array.isel(prediction_timedelta=int(near[0]))
        when += f" + {wanted:g} h{_valid(array)}"
    elif lead_hours is not None:
        raise InputError("a lead was asked for, but this is no forecast")
    return array, when


def _position(array: xarray.DataArray, time: Any) -> int:
    times = array["time"].values.astype("datetime64[ns]")
    if time is None:
        return 0
    try:
        wanted = np.datetime64(time, "ns")
    except ValueError as error:
        raise InputError(f"expected a time such as 2001-01-31T12, got {time!r}") from error
    found = np.flatnonzero(times == wanted)
    if not len(found):
        first, last = (np.datetime_as_string(t, "m") for t in times[[0, -1]])
        raise InputError(f"no field at {np.datetime_as_string(wanted, 'm')}; there are {first} to {last}")
    return int(found[0])


def _frames(array: xarray.DataArray, time: Any, n_frames: int) -> tuple[Array, list[str]]:
    """TxHxW and a label each."""
    if "number" in array.dims:
        array = array.isel(number=0)
    if "prediction_timedelta" in array.dims:
        array = array.isel(time=_position(array, time)) if "time" in array.dims else array
        array = array.isel(prediction_timedelta=slice(0, n_frames))
        began = f"{_text(array['time'].values, 'm')} UTC " if "time" in array.coords else ""
        fields = (array.isel(prediction_timedelta=i) for i in range(array.sizes["prediction_timedelta"]))
        labels = [f"{began}+ {field['prediction_timedelta'].values / HOUR:g} h{_valid(field)}" for field in fields]
        return np.asarray(array.values, float), labels
    if "time" not in array.dims:
        raise InputError("an animation needs times or leads")
    start = _position(array, time)
    array = array.isel(time=slice(start, start + n_frames))
    labels = [f"{_text(t, 'h')} h UTC" for t in array["time"].values]
    return np.asarray(array.values, float), labels


def _valid(array: xarray.DataArray) -> str:
    """When a forecast of one time and lead is valid."""
    if "time" not in array.coords:
        return ""
    return f", valid {_text(array['time'].values + array['prediction_timedelta'].values, 'm')} UTC"


def _text(time: Any, unit: Literal["h", "m"]) -> str:
    return str(np.datetime_as_string(time, unit)).replace("T", " ")


def _limits(channel: str, values: Array) -> tuple[float, float]:
    """Colour limits that all but a few cells lie within; symmetric for winds."""
    if not np.isfinite(values).any():
        raise InputError(f"{channel} holds no number at that time")
    low, high = np.nanquantile(values, [0.002, 0.998])
    if WIND.fullmatch(channel):
        most = max(abs(low), abs(high)) or 1.0
        return -float(most), float(most)
    return (float(low), float(high)) if high > low else (float(low) - 1, float(low) + 1)


def _colours(channel: str) -> str:
    return next((colours for names, colours in COLOURS if names.fullmatch(channel)), "viridis")


def _pixels(figure: Any) -> Array:
    figure.set_dpi(100)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    return pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2].copy()  # codecs want even sizes


def _write_gif(path: Path, pictures: Sequence[Array]) -> None:
    from PIL import Image

    images = [Image.fromarray(p) for p in pictures]
    images[0].save(path, save_all=True, append_images=images[1:], duration=1000 // FRAMES_PER_SECOND, loop=0)


def _write_mp4(path: Path, pictures: Sequence[Array]) -> None:
    av = import_optional("av", extra="video")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
