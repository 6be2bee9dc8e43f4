"""Colours, empty figures and time axes that pictures of results share."""

from __future__ import annotations

import io
import textwrap
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# One accent per role, readable on white and by colour-blind readers (Okabe and Ito 2008).
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6B7280"
MAX_PANELS = 6  # variables in one picture


def plain_figure(size: tuple[float, float]) -> Figure:
    """A figure of `size` inches without mathematical text: names of files, columns and classes may contain `$`."""
    from matplotlib.figure import Figure  # the object alone: no global state, no display
    from matplotlib.text import Text

    class PlainFigure(Figure):
        def draw(self, renderer: Any) -> None:
            for text in self.findobj(Text):
                text.set_parse_math(False)
            super().draw(renderer)

    return PlainFigure(figsize=size, layout="constrained")


def empty_figure(height: float, panels: int = 0) -> tuple[Figure, Any]:
    """A figure with its axes; with `panels`, a list of as many that share their x axis."""
    figure = plain_figure((7.2, height))
    if not panels:
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        return figure, axes
    several = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    for axes in several:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, several


def short_dates(axes: Any) -> None:
    """Concise time ticks: the day only under its first hour, the year only under its first month."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    if not isinstance(axes.xaxis.get_major_locator(), AutoDateLocator):  # rows are numbered
        axes.set_xlabel("step")
        return

    class Apart(AutoDateLocator):
        """Ticks every fourth day, counted from the first of each month; a 29th would overlap the next first."""

        def __call__(self) -> list[float]:
            places = [float(place) for place in super().__call__()]  # type: ignore[no-untyped-call]
            gaps = np.diff(places)
            return (
                [p for p, gap in zip(places, [*gaps, np.inf], strict=True) if gap > 0.6 * np.median(gaps)]
                if len(gaps)
                else places
            )

    locator = Apart(minticks=4, maxticks=9)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]


def title_with_notice(title: str, notice: str, width: int = 85) -> str:
    """A title, and below it a notice, in lines of `width` letters."""
    return "\n".join([title, *textwrap.wrap(notice, width)])


def png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as the content of a PNG file."""
    buffer = io.BytesIO()
    write_figure(figure, buffer, dpi, format="png")
    return buffer.getvalue()


def write_figure(figure: Figure, place: Path | io.BytesIO, dpi: int = 150, **settings: Any) -> None:
    """Write a figure, to a file in the format of its suffix; `settings` are those of `savefig`.

    Letters that the font lacks become boxes, without a warning.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(place, dpi=dpi, **settings)
