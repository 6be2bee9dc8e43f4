"""Series: a table, forecast with intervals that its own past has tested, and what in that past was odd."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import gradio as gr
import numpy as np

from unipercept.app.web import charts, parts, words
from unipercept.app.web.forecasting import MAX_HORIZON, Foreseen, columns_of, foresee, table_file
from unipercept.app.web.jobs import Job, status

if TYPE_CHECKING:
    from unipercept.app.web.context import Context

T = TypeVar("T")
MAX_SECONDS = 180.0  # to spend on one forecast
SHOWN = 4  # series drawn; the file holds all
BAND, INNER = (0.025, 0.975), (0.1, 0.9)
FITTED_HERE = (
    "No model was trained beforehand: every method, the network among them, is fitted to this table now, and the ones that "
    "forecast its past best are used."
)
EMPTY = "The forecast with its intervals, the back-test that says how far to trust it, and odd values of the past appear here."
PLACEHOLDER = "date,load\n2024-01-01 00:00,50.2\n2024-01-01 01:00,51.0\n…"


def series_tab(context: Context) -> None:
    """Build the tab."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            file = parts.dropzone("A table: CSV, Parquet or Feather", "series-file")
            pasted = gr.Textbox(
                label="… or paste CSV", lines=4, max_lines=8, placeholder=PLACEHOLDER, elem_id="series-paste"
            )
            targets = gr.Dropdown(
                [], multiselect=True, allow_custom_value=True, label="Columns", info="None chosen: all that hold numbers",
                elem_id="series-columns",
            )  # fmt: skip
            horizon = gr.Slider(
                1, MAX_HORIZON, value=48, step=1, label="Steps ahead", elem_id="series-horizon", buttons=[]
            )
            seconds = gr.Slider(
                2, MAX_SECONDS, value=20, step=1, label="Seconds to spend", info="More let the network learn longer",
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

    async def run_forecast(
        file: str | None, pasted: str, targets: Sequence[str], horizon: float, seconds: float, request: gr.Request
    ) -> AsyncIterator[list[Any]]:
        work = _work(file, pasted, targets, horizon, seconds, drawn)
        async for update in context.updates("forecast", work, request, lambda drawn: drawn, outputs, is_long=True):
            yield update

    async def forecast(
        file: str | None = None, table: str = "", targets: list[str] | None = None, horizon: float = 48, seconds: float = 20,
        request: gr.Request | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """What comes next in a table (a file, or CSV text), with quantiles, the back-test, and what was odd in the past."""
        work = _work(file, table, targets or [], horizon, seconds, lambda foreseen, path, job: foreseen.to_dict())
        found: dict[str, Any] = await context.result("forecast", work, request, is_long=True)
        return found

    async def columns(file: str | None, request: gr.Request) -> Any:
        if not file:
            return gr.update(choices=[], value=[])
        names = await context.result("columns", lambda job: columns_of(Path(file), job), request)
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


def _work(
    file: str | None, pasted: str, targets: Sequence[str], horizon: float, seconds: float, then: Callable[[Foreseen, Path, Job], T]
) -> Callable[[Job], T]:  # fmt: skip
    """The work: forecast, and what is made of it in the job's thread."""

    def work(job: Job) -> T:
        path = table_file(file, pasted, job)
        foreseen = foresee(path, list(targets), int(horizon), min(max(float(seconds), 2.0), MAX_SECONDS), job)
        job.tell(0.97, "drawing")
        return then(foreseen, path, job)

    return work


def drawn(foreseen: Foreseen, path: Path, job: Job) -> list[Any]:
    result = foreseen.result
    stem = path.stem[:60]
    written = [str(result.save(job.folder / f"{stem}-forecast{suffix}")) for suffix in (".csv", ".json")]
    written.append(str(result.report(job.folder / f"{stem}-report.html")))
    return [
        status(
            None,
            f"{len(result.time)} steps of {len(result.variables)} series in {result.seconds:.0f} s: {result.model}",
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
            (BAND, "rgba(0,114,178,.25)", "95 %"),
            (INNER, "rgba(0,114,178,.4)", "80 %"),
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
    height = 170 + 190 * len(names)
    charts.styled(figure, height)
    below_label = 1 - 28 / height  # gradio's label lies in the corner, over a legend that fills a phone's width
    figure.update_layout(margin={"t": 96}, legend={"y": below_label, "yref": "container", "yanchor": "top"})
    return figure


def _scores(foreseen: Foreseen) -> str:
    result = foreseen.result
    notices = words.note("; ".join(result.notices[:8]), "plain") if result.notices else ""
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
        f"<p><b>Odd values</b>: {len(foreseen.anomalies):,} of {foreseen.n_checked:,} values lie more than twice as far from the "
        "forecast made before them as its 95 % interval reaches. The oddest:</p>"
    )
    if not foreseen.anomalies:
        return f"<p><b>Odd values</b>: none of {foreseen.n_checked:,}.</p>"
    rows = [
        [one.variable, one.time.replace("T", " ")[:16], f"{one.value:.4g}", f"{one.low:.4g} to {one.high:.4g}"]
        for one in foreseen.anomalies[:8]
    ]
    return head + words.table(["series", "time", "value", "expected"], rows)


def _moments(time: Any) -> Any:
    return np.array([_moment(str(t)) for t in time]) if np.asarray(time).dtype.kind == "M" else np.asarray(time)


def _moment(text: str) -> str:
    return text[:19]
