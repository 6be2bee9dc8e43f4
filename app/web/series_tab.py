"""Series: a table, forecast with intervals that its own past has tested, and what in that past was odd."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from unipercept.app.web import charts, words
from unipercept.app.web.forecasting import Foreseen, columns_of, foresee, table_file
from unipercept.app.web.jobs import Done, Job, status

if TYPE_CHECKING:
    from unipercept.app.web.context import Context

SHOWN = 4  # series drawn; the file holds all
BAND, INNER = (0.025, 0.975), (0.1, 0.9)
FITTED_HERE = (
    "No model was trained beforehand: every method, the network among them, is fitted to this table now, and the ones that "
    "forecast its past best are used."
)
PLACEHOLDER = "date,load\n2024-01-01 00:00,50.2\n2024-01-01 01:00,51.0\n…"


def series_tab(context: Context) -> dict[str, Any]:
    """Build the tab."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            file = gr.File(label="A table: CSV, Parquet or Feather", height=150, elem_id="series-file")
            pasted = gr.Textbox(
                label="… or paste CSV", lines=4, max_lines=8, placeholder=PLACEHOLDER, elem_id="series-paste"
            )
            targets = gr.Dropdown(
                [],
                multiselect=True,
                allow_custom_value=True,
                label="Columns",
                info="None chosen: all that hold numbers",
            )
            horizon = gr.Slider(1, 720, value=48, step=1, label="Steps ahead", elem_id="series-horizon")
            seconds = gr.Slider(
                2, 180, value=20, step=1, label="Seconds to spend", info="More let the network learn longer"
            )
            with gr.Row():
                run = gr.Button("Forecast", variant="primary", min_width=100, elem_id="series-run")
                cancel = gr.Button("Cancel", min_width=100, elem_id="series-cancel")
            state = gr.HTML(status(None, "Send or paste a table."), elem_id="series-status", apply_default_css=False)
            example = gr.Button(
                "Example: sixty days of hourly load and temperature", size="sm", elem_id="series-example"
            )
            gr.HTML(words.note(FITTED_HERE), apply_default_css=False)
        with gr.Column(scale=3, min_width=300):
            chart = gr.Plot(label="Forecast", visible=False, elem_id="series-chart")
            scores = gr.HTML(elem_id="series-scores", apply_default_css=False)
            odd = gr.HTML(elem_id="series-anomalies", apply_default_css=False)
            files = gr.File(
                label="Forecast and report",
                file_count="multiple",
                visible=False,
                interactive=False,
                elem_id="series-files",
            )
    inputs, outputs = [file, pasted, targets, horizon, seconds], [state, chart, scores, odd, files]

    async def run_forecast(
        file: str | None, pasted: str, targets: Sequence[str], horizon: float, seconds: float, request: gr.Request
    ) -> AsyncIterator[list[Any]]:
        async for event in context.run(
            "forecast", _work(file, pasted, targets, horizon, seconds), request, is_long=True
        ):
            if isinstance(event, Done):
                yield event.value[1]
            else:
                yield [status(event.share, event.text), *[gr.skip()] * 4]

    async def forecast(
        file: str | None = None, table: str = "", targets: list[str] | None = None, horizon: float = 48, seconds: float = 20,
        request: gr.Request | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """What comes next in a table (a file, or CSV text), with quantiles, the back-test, and what was odd in the past."""
        assert request is not None
        work = _work(file, table, targets or [], horizon, seconds)
        foreseen, _ = await context.result("forecast", work, request, is_long=True)
        found: dict[str, Any] = foreseen.to_dict()
        return found

    async def columns(file: str | None, request: gr.Request) -> Any:
        names = await context.result("columns", lambda job: columns_of(Path(str(file)), job), request)
        return gr.update(choices=names, value=[])

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    slow = context.slow("forecast")
    file.upload(columns, file, targets, **quiet, **context.quick)
    event = run.click(run_forecast, inputs, outputs, **quiet, **slow)
    taken = example.click(
        lambda: (str(context.examples.get("A load (time series)").path), []), None, [file, targets], **quiet
    )
    after = taken.then(run_forecast, inputs, outputs, **quiet, **slow)
    cancel.click(lambda: status(None, "Stopped."), None, state, cancels=[event, after], api_visibility="private")
    gr.Button(visible=False).click(forecast, inputs, gr.JSON(visible=False), api_name="forecast", **slow)
    return {}


def _work(file: str | None, pasted: str, targets: Sequence[str], horizon: float, seconds: float) -> Any:
    def work(job: Job) -> tuple[Foreseen, list[Any]]:
        path = table_file(file, pasted, job)
        foreseen = foresee(path, list(targets), int(horizon), min(max(float(seconds), 2.0), 600.0), job)
        job.tell(0.97, "drawing")
        return foreseen, _drawn(foreseen, path, job)

    return work


def _drawn(foreseen: Foreseen, path: Path, job: Job) -> list[Any]:
    result = foreseen.result
    stem = path.stem[:60]
    written = [str(result.save(job.folder / f"{stem}-forecast{suffix}")) for suffix in (".csv", ".json")]
    written.append(str(result.report(job.folder / f"{stem}-report.html")))
    return [
        status(
            1.0, f"{len(result.time)} steps of {len(result.variables)} series in {result.seconds:.0f} s: {result.model}"
        ),
        gr.update(value=_chart(foreseen), visible=True),
        _scores(foreseen),
        _anomalies(foreseen),
        gr.update(value=written, visible=True),
    ]


def _chart(foreseen: Foreseen) -> Any:
    """History, median, intervals, back-test and odd values of the first few series, one above the other."""
    from plotly.subplots import make_subplots

    result = foreseen.result
    names = [escape(str(name)[:60]) for name in result.variables[:SHOWN]]
    figure = make_subplots(rows=len(names), cols=1, shared_xaxes=True, vertical_spacing=0.06, subplot_titles=names)
    ahead, past = _moments(result.time), _moments(result.history_time)
    for i in range(len(names)):
        place, first = {"row": i + 1, "col": 1}, i == 0
        for (low, high), colour, label in (
            (BAND, "rgba(0,114,178,.18)", "95 %"),
            (INNER, "rgba(0,114,178,.30)", "80 %"),
        ):
            edges = np.concatenate([result.quantiles[high][:, i], result.quantiles[low][::-1, i]])
            figure.add_scatter(
                x=np.concatenate([ahead, ahead[::-1]]), y=edges, fill="toself", fillcolor=colour, line={"width": 0}, name=label,
                hoverinfo="skip", legendgroup=label, showlegend=first, **place,
            )  # fmt: skip
        if result.history is not None:
            figure.add_scatter(x=past, y=result.history[:, i], name="history", line={"color": charts.GREY, "width": 1}, legendgroup="h", showlegend=first, **place)  # fmt: skip
        for n, test in enumerate(result.tested):
            figure.add_scatter(
                x=_moments(test.time), y=test.values[:, i], name="back-test", line={"color": charts.ORANGE, "width": 1.2, "dash": "dot"},
                legendgroup="t", showlegend=first and n == 0, **place,
            )  # fmt: skip
        figure.add_scatter(x=ahead, y=result.values[:, i], name="forecast", line={"color": charts.BLUE, "width": 2}, legendgroup="f", showlegend=first, **place)  # fmt: skip
        start = str(past[0]) if len(past) else ""
        odd = [one for one in foreseen.anomalies if one.variable == result.variables[i] and _moment(one.time) >= start][
            :60
        ]
        if odd:
            figure.add_scatter(
                x=[_moment(one.time) for one in odd], y=[one.value for one in odd], mode="markers", name="odd", legendgroup="o",
                marker={"color": "#CC79A7", "size": 7, "symbol": "diamond-open"}, showlegend=first, **place,
            )  # fmt: skip
    charts.styled(figure, height=150 + 190 * len(names))
    figure.update_layout(legend={"orientation": "h", "y": 1.04, "yanchor": "bottom"}, margin={"t": 64})
    return figure


def _scores(foreseen: Foreseen) -> str:
    result = foreseen.result
    notices = "".join(words.note(line, good=True) for line in result.notices[:8])
    if result.backtest is None or result.choice is None:
        return words.note("The history is too short for a back-test: nothing says how good this is.") + notices
    rows = [
        ("chosen: " + result.choice.name, result.choice.score),
        *((one.method.name, one.score) for one in result.backtest.tested),
    ]
    cells = [
        [name, f"{s.mase:.3f}", f"{s.wql:.4f}", *(f"{100 * s.coverage[level]:.0f} %" for level in (0.8, 0.95))]
        for name, s in [rows[0], *sorted(rows[1:], key=lambda row: row[1].wql)]
    ]
    head = f"<p><b>Back-test</b>: {len(result.backtest.plan.scored)} earlier origins, {result.backtest.plan.horizon} steps ahead</p>"
    return (
        head + words.table(["method", "MASE", "weighted quantile loss", "inside 80 %", "inside 95 %"], cells) + notices
    )


def _anomalies(foreseen: Foreseen) -> str:
    if not foreseen.n_checked:
        return ""
    head = (
        f"<p><b>Odd values</b>: {len(foreseen.anomalies):,} places of {foreseen.n_checked:,} values lie more than twice as far from the "
        "forecast made before them as the end of its 95 % interval. The oddest:</p>"
    )
    if not foreseen.anomalies:
        return f"<p><b>Odd values</b>: none of {foreseen.n_checked:,}.</p>"
    rows = [
        [one.variable, one.time.replace("T", " ")[:16], f"{one.value:.4g}", f"{one.low:.4g} to {one.high:.4g}"]
        for one in foreseen.anomalies[:8]
    ]
    return head + (words.table(["series", "time", "value", "expected"], rows) if rows else "")


def _moments(time: Any) -> Any:
    return np.array([_moment(str(t)) for t in time]) if np.asarray(time).dtype.kind == "M" else np.asarray(time)


def _moment(text: str) -> str:
    return text[:19]
