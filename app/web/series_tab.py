"""Series: a table, forecast with intervals that its own past has tested, and what in that past was odd."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from unipercept.app.web import parts, words
from unipercept.app.web.jobs import status
from unipercept.app.web.series_drawing import Drawn, forecast_and_draw, forecast_json
from unipercept.app.web.series_work import MAX_HORIZON, MAX_SECONDS, columns_of

if TYPE_CHECKING:
    from unipercept.app.web.context import Context

FITTED_HERE = (
    "Methods are fitted to this table now, except one network that was pretrained on generated series. "
    "The methods with the best back-test make the forecast."
)
EMPTY = "The forecast with its intervals, its back-test, and anomalies of the past appear here."
PLACEHOLDER = "date,load\n2024-01-01 00:00,50.2\n2024-01-01 01:00,51.0\n…"


class _Controls(NamedTuple):
    """Inputs of the visitor, and the buttons."""

    file: gr.File
    pasted: gr.Textbox
    targets: gr.Dropdown
    horizon: gr.Slider
    seconds: gr.Slider
    run: gr.Button
    cancel: gr.Button
    state: gr.HTML
    example: gr.Button

    @property
    def inputs(self) -> list[Any]:
        """The inputs of the endpoint, in its order."""
        return list(self[:5])


def series_tab(context: Context) -> None:
    """Build the tab."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            controls = _controls()
        with gr.Column(scale=3, min_width=300):
            views = _views()
    inputs, outputs = controls.inputs, [controls.state, *views]

    async def run_forecast(
        file: str | None, pasted: str, targets: Sequence[str], horizon: float, seconds: float, request: gr.Request
    ) -> AsyncIterator[list[Any]]:
        work = partial(forecast_and_draw, file, pasted, targets, horizon, seconds)
        async for update in context.updates("forecast", work, request, _draw, outputs, is_long=True):
            yield update

    async def forecast(
        file: str | None = None, table: str = "", targets: list[str] | None = None, horizon: float = 48, seconds: float = 20,
        request: gr.Request | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Forecast a table (a file, or CSV text): median, quantiles, back-test, and anomalies of the past."""
        work = partial(forecast_json, file, table, targets or [], horizon, seconds)
        found: dict[str, Any] = await context.result("forecast", work, request, is_long=True)
        return found

    async def columns(file: str | None, request: gr.Request) -> Any:
        if not file:
            return gr.update(choices=[], value=[])
        names = await context.result("columns", partial(columns_of, Path(file)), request)
        return gr.update(choices=names, value=[])

    def take_example() -> tuple[str, str, list[str]]:
        return str(context.examples.get("A load (time series)").path), "", []

    slow, told = context.slow("forecast"), parts.told_by(controls.state)
    controls.file.change(columns, controls.file, controls.targets, **parts.QUIET, **context.quick)
    event = controls.run.click(run_forecast, inputs, outputs, **told, **slow)
    taken = controls.example.click(take_example, None, inputs[:3], **parts.QUIET)
    after = taken.then(run_forecast, inputs, outputs, **told, **slow)
    parts.cancels(controls.cancel, controls.state, [event, after])
    parts.endpoint("forecast", forecast, inputs, **slow)


def _controls() -> _Controls:
    file = parts.dropzone("A table: CSV, Excel, Parquet or Feather", "series-file")
    pasted = gr.Textbox(label="… or paste CSV", lines=4, max_lines=8, placeholder=PLACEHOLDER, elem_id="series-paste")
    targets = gr.Dropdown(
        [], multiselect=True, allow_custom_value=True, label="Columns", info="None selected: all numeric columns",
        elem_id="series-columns",
    )  # fmt: skip
    horizon = gr.Slider(1, MAX_HORIZON, value=48, step=1, label="Steps ahead", elem_id="series-horizon", buttons=[])
    seconds = gr.Slider(
        2,
        MAX_SECONDS,
        value=20,
        step=1,
        label="Seconds to spend",
        info="The network trains longer with more",
        buttons=[],
    )
    run, cancel = parts.run_and_cancel("Forecast", "series")
    state = parts.status_line("series", "Send or paste a table, or take the example.")
    example = gr.Button("Example: sixty days of hourly load and temperature", size="sm", elem_id="series-example")
    parts.html(value=words.note(FITTED_HERE, "plain"))
    return _Controls(file, pasted, targets, horizon, seconds, run, cancel, state, example)


def _views() -> list[Any]:
    return [
        parts.chart("Forecast", "series-chart"),
        parts.html("series-scores", words.empty(EMPTY)),
        parts.html("series-anomalies"),
        parts.downloads("Forecast and report", "series-files"),
    ]


def _draw(drawn: Drawn) -> list[Any]:
    """Values of the status line and the views, in their order."""
    return [
        status(None, drawn.summary), parts.shown(drawn.chart), drawn.scores, drawn.anomalies, parts.shown(drawn.files)
    ]  # fmt: skip
