"""Series: a table, forecast with intervals that its own past has tested, and what in that past was odd."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def series_tab(context: Context) -> None:
    """Build the tab."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            file = parts.dropzone("A table: CSV, Excel, Parquet or Feather", "series-file")
            pasted = gr.Textbox(
                label="… or paste CSV", lines=4, max_lines=8, placeholder=PLACEHOLDER, elem_id="series-paste"
            )
            targets = gr.Dropdown(
                [], multiselect=True, allow_custom_value=True, label="Columns", info="None selected: all numeric columns",
                elem_id="series-columns",
            )  # fmt: skip
            horizon = gr.Slider(
                1, MAX_HORIZON, value=48, step=1, label="Steps ahead", elem_id="series-horizon", buttons=[]
            )
            seconds = gr.Slider(
                2, MAX_SECONDS, value=20, step=1, label="Seconds to spend", info="The network trains longer with more",
                buttons=[],
            )  # fmt: skip
            run, cancel = parts.run_and_cancel("Forecast", "series")
            state = parts.status_line("series", "Send or paste a table, or take the example.")
            example = gr.Button(
                "Example: sixty days of hourly load and temperature", size="sm", elem_id="series-example"
            )
            parts.html(value=words.note(FITTED_HERE, "plain"))
        with gr.Column(scale=3, min_width=300):
            chart = parts.chart("Forecast", "series-chart")
            scores = parts.html("series-scores", words.empty(EMPTY))
            odd = parts.html("series-anomalies")
            files = parts.downloads("Forecast and report", "series-files")
    inputs, outputs = [file, pasted, targets, horizon, seconds], [state, chart, scores, odd, files]

    def draw(drawn: Drawn) -> list[Any]:
        return [
            status(None, drawn.summary), parts.shown(drawn.chart), drawn.scores, drawn.anomalies, parts.shown(drawn.files)
        ]  # fmt: skip

    async def run_forecast(
        file: str | None, pasted: str, targets: Sequence[str], horizon: float, seconds: float, request: gr.Request
    ) -> AsyncIterator[list[Any]]:
        work = partial(forecast_and_draw, file, pasted, targets, horizon, seconds)
        async for update in context.updates("forecast", work, request, draw, outputs, is_long=True):
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

    slow = context.slow("forecast")
    file.change(columns, file, targets, **parts.QUIET, **context.quick)
    event = run.click(run_forecast, inputs, outputs, **parts.told_by(state), **slow)
    taken = example.click(
        lambda: (str(context.examples.get("A load (time series)").path), "", []),
        None,
        [file, pasted, targets],
        **parts.QUIET,
    )
    after = taken.then(run_forecast, inputs, outputs, **parts.told_by(state), **slow)
    parts.cancels(cancel, state, [event, after])
    parts.endpoint("forecast", forecast, inputs, **slow)
