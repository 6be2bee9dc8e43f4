"""Interactive charts (plotly): spectrogram, cloud, series, field.

Grounds are clear and ink is grey, so they suit light and dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6B7280"  # as in unipercept.results, which would load torch
MAX_POINTS = 12_000  # of a cloud: more slow a phone down
MAX_STEPS = 3_000  # of a series
MAX_SERIES = 6
INK = "#7a8699"
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: told apart by all eyes


def spectrogram(emap: Any) -> Any:
    """The first window of a sound, log-mel: axes in Hz and s."""
    frequency, seconds = emap.coords["frequency"].values.numpy(), emap.coords["time"].values.numpy()
    values = emap.tensor[0, 0].float().numpy()
    if emap.tensor.shape[2] != len(frequency):  # laid out with time along the rows
        values = values.T
    if emap.mask is not None:
        columns = emap.mask[0].any(dim=0).numpy()
        values, seconds = values[:, columns], seconds[columns]
    step = max(1, values.shape[1] // 1200)
    figure = new_figure(height=300)
    figure.add_heatmap(
        x=_short(seconds[::step]), y=_short(frequency), z=np.round(values[:, ::step], 2).astype(np.float32),
        colorscale="Viridis", colorbar={"title": "log power", "thickness": 10},
        hovertemplate="%{x:.2f} s, %{y:.0f} Hz<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title="time in s")
    figure.update_yaxes(title="frequency in Hz", type="log", tickvals=[100, 200, 500, 1000, 2000, 5000, 10000])
    return described(
        figure,
        f"spectrogram, {seconds[0]:.1f} to {seconds[-1]:.1f} s, {frequency[0]:,.0f} to {frequency[-1]:,.0f} Hz",
    )


def cloud(points: NDArray[Any]) -> Any:
    """Points that one can turn, coloured by height."""
    chosen = points[:: max(1, len(points) // MAX_POINTS)].astype(np.float32)
    figure = new_figure(height=420)
    colours = {"size": 1.7, "color": chosen[:, 2], "colorscale": "Viridis"}
    figure.add_scatter3d(
        x=chosen[:, 0], y=chosen[:, 1], z=chosen[:, 2], mode="markers", marker=colours, hoverinfo="skip"
    )
    axis = {"showbackground": False, "gridcolor": "rgba(128,128,128,.35)", "zeroline": False}
    figure.update_layout(
        scene={"aspectmode": "data", "xaxis": axis, "yaxis": axis, "zaxis": axis}, margin={"l": 0, "b": 0}
    )
    return described(figure, f"{len(chosen):,} of {len(points):,} points in space, coloured by height")


def series(time: Any, values: NDArray[Any], names: Sequence[str]) -> Any:
    """Variables over time, each with an axis of its own, one above the other."""
    from plotly.subplots import make_subplots

    shown = list(names[:MAX_SERIES])
    figure = make_subplots(rows=len(shown), cols=1, shared_xaxes=True, vertical_spacing=0.03)
    step = max(1, len(values) // MAX_STEPS)
    moments = np.asarray(time)[::step]
    if moments.dtype.kind == "M":
        moments = moments.astype("datetime64[ms]").astype(str)
    for i, name in enumerate(shown):
        figure.add_scatter(
            x=moments, y=values[::step, i].astype(np.float32), mode="lines", name=escape(str(name)[:60]),
            line={"width": 1.1, "color": COLOURS[i % len(COLOURS)]}, row=i + 1, col=1,
        )  # fmt: skip
    styled(figure, height=130 + 95 * len(shown))
    figure.update_layout(showlegend=True)
    return described(figure, f"{len(values):,} steps of {', '.join(map(str, shown))}")


def field(values: NDArray[Any], latitude: NDArray[Any], longitude: NDArray[Any], title: str, unit: str) -> Any:
    """A weather field over degrees, with coastlines."""
    rows, columns = (max(1, n // 180) for n in values.shape)
    figure = new_figure(height=360)
    figure.add_heatmap(
        x=_short(longitude[::columns]), y=_short(latitude[::rows]), z=values[::rows, ::columns].astype(np.float32),
        colorscale="Viridis", colorbar={"title": escape(unit), "thickness": 10},
        hovertemplate="%{y:.1f}°N %{x:.1f}°E: %{z:.4g}<extra></extra>",
    )  # fmt: skip
    x, y = _coast(float(longitude.min()), float(longitude.max()))
    figure.add_scatter(
        x=x, y=y, mode="lines", line={"color": "black", "width": 0.8}, hoverinfo="skip", showlegend=False
    )
    figure.update_xaxes(title="longitude in °E", range=[float(longitude.min()), float(longitude.max())])
    figure.update_yaxes(title="latitude in °N", range=[float(latitude.min()), float(latitude.max())])
    figure.update_layout(
        title={"text": escape(title), "font": {"size": 13}, "x": 1, "xanchor": "right", "y": 0.97, "yanchor": "top"}
    )
    return described(
        figure, f"{title} on a map, {np.fmin.reduce(values, None):.4g} to {np.fmax.reduce(values, None):.4g} {unit}"
    )


def styled(figure: Any, height: int = 320) -> Any:
    """Clear ground, grey ink, small margins."""
    figure.update_layout(
        height=height, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font={"color": INK, "size": 12},
        margin={"l": 56, "r": 12, "t": 48, "b": 44}, hovermode="closest", template="none",
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.01, "yanchor": "bottom"},
    )  # fmt: skip
    grid = {"gridcolor": "rgba(128,128,128,.25)", "zerolinecolor": "rgba(128,128,128,.4)", "linecolor": GREY}
    figure.update_xaxes(**grid)
    figure.update_yaxes(**grid, automargin=True)
    return figure


def described(figure: Any, text: str) -> Any:
    """With what a screen reader says of it (`page.NAMES` puts it there)."""
    figure.update_layout(meta={"alt": text})
    return figure


def new_figure(height: int = 320) -> Any:
    """An empty chart in the page's style."""
    import plotly.graph_objects as go

    return styled(go.Figure(), height)


def _short(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)


def _coast(west: float, east: float) -> tuple[list[float | None], list[float | None]]:
    """Coastlines in degrees, as one line with gaps."""
    from unipercept.app.forecaster.projection import Projection, coastlines

    middle = (west + east) / 2
    x: list[float | None] = []
    y: list[float | None] = []
    for line_x, line_y in coastlines(Projection(False, middle, 0.0)):
        x += [*(np.rad2deg(line_x) + middle).round(2).tolist(), None]
        y += [*np.rad2deg(line_y).round(2).tolist(), None]
    return x, y
