"""Maps of a forecast by lead, for the slider of the Weather tab: what is forecast, what came, and the difference."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unipercept.app.web.showing import webp
from unipercept.app.web.weather_work import channel_title, truth_of
from unipercept.app.web.words import unit

if TYPE_CHECKING:
    from unipercept.app.web.weather_work import Forecasted

MAX_FRAMES = 41
FONT_SIZE = 13  # three maps share a row of the page


def map_frames(found: Forecasted, on_frame: Callable[[int, int], object]) -> list[tuple[str, list[tuple[str, bytes]]]]:
    """For each lead time: a label, and pictures (title, WebP bytes) of the forecast and, where they
    are known, of truth and error.
    """
    from unipercept.app.forecaster.fields import select_channel

    array = select_channel(found.forecast, found.channel).isel(time=0)
    ours = np.asarray((array.mean("number") if "number" in array.dims else array).values, float)
    chosen = range(0, len(ours), max(1, -(-len(ours) // MAX_FRAMES)))
    panels, title = _panels(found, ours), channel_title(found.channel)
    made = []
    for number, k in enumerate(chosen):
        step = round(found.lead_hours[k] / (found.lead_hours[0] or 1))
        label = f"{title}, + {found.lead_hours[k]:g} h ({found.lead_hours[k] / 24:.2f} days), {_stage_of(found, step)}"
        made.append((label, [(panel.title, panel.picture(k)) for panel in panels]))
        on_frame(number + 1, len(chosen))
    return made


def _panels(found: Forecasted, ours: NDArray[Any]) -> list[_Moving]:
    """The forecast and, where they are known, the truth in the same colours and the error in its own."""
    seen = None if found.truth is None else truth_of(found.truth, found.forecast, found.channel)
    theirs = None if seen is None else np.asarray(seen.values, float)
    limits, colours = _limits(ours, theirs), "PuOr_r" if found.channel[0] in "uv" else "viridis"
    fields = [("forecast", ours, limits, colours)]
    if theirs is not None:
        error = ours - theirs
        worst = float(np.nanquantile(abs(error), 0.99)) or 1.0
        fields += [("truth", theirs, limits, colours), ("error", error, (-worst, worst), "RdBu_r")]
    grid = found.forecast["latitude"].values, found.forecast["longitude"].values
    return [_Moving(title, values, unit(found.unit), most, style, grid) for title, values, most, style in fields]


class _Moving:
    """One map drawn once, whose colours alone change from lead to lead."""

    def __init__(
        self, title: str, values: Any, unit: str, limits: tuple[float, float], colours: str, grid: tuple[Any, Any]
    ) -> None:
        from matplotlib.ticker import MaxNLocator

        from unipercept.app.forecaster.pictures import Panel, draw_maps
        from unipercept.app.forecaster.projection import projection_of

        self.title, self.values = title, values
        self.figure = draw_maps([Panel("", values[0], unit, limits, colours)], *grid)
        self.figure.set_dpi(96)
        map_, bar = self.figure.axes
        bar.xaxis.label.set_fontsize(FONT_SIZE)
        bar.tick_params(labelsize=FONT_SIZE)
        bar.xaxis.set_major_locator(MaxNLocator(4))
        self.mesh = map_.collections[0]
        self.order: Any = slice(None)
        if projection_of(*grid).whole:  # as draw_map lays the columns: from 180 degrees west on, the first twice
            order = np.argsort((grid[1] + 180) % 360, kind="stable")
            self.order = np.append(order, order[0])

    def picture(self, number: int) -> bytes:
        """WebP of one lead."""
        from PIL import Image

        self.mesh.set_array(np.ma.masked_invalid(self.values[number][:, self.order]))
        self.figure.canvas.draw()
        return webp(Image.fromarray(np.asarray(self.figure.canvas.buffer_rgba())[..., :3]))


def _stage_of(found: Forecasted, step: int) -> str:
    return next((f"stage {name}" for name, first, last in found.stages if first < step <= last), "")


def _limits(ours: Any, theirs: Any) -> tuple[float, float]:
    values = ours if theirs is None else np.stack([ours, theirs])
    low, high = (float(x) for x in np.nanquantile(values, [0.002, 0.998]))
    return (low, high) if high > low else (low - 1, low + 1)
