"""The Series tab's work: a forecast and its drawings, as plain values that need no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from unipercept.app.web import charts, words
from unipercept.app.web.job import Job
from unipercept.app.web.series_work import MAX_SECONDS, SeriesForecast, forecast_series, table_file

SHOWN = 4  # series drawn; the file holds all
SEEN = 6  # times the horizon: how much of the history is in view at first
BEST = 6  # methods listed; the others are folded away
MEASURES = (
    "MASE: the error of the median, relative to the error of repeating the last cycle; below 1 is better than that. "
    "Weighted quantile loss: the loss of the whole distribution, relative to the values. Inside 80 %: the share of values "
    "that this interval caught."
)
BAND, INNER = (0.025, 0.975), (0.1, 0.9)


@dataclass(frozen=True)
class Drawn:
    """A forecast as the page shows it: a plotly chart, HTML, and paths of files."""

    summary: str
    chart: Any
    scores: str
    anomalies: str
    files: list[str]


def forecast_json(
    file: str | None, pasted: str, targets: Sequence[str], horizon: float, seconds: float, job: Job
) -> dict[str, Any]:
    """The result for the API; see `forecast_series`."""
    return _forecast(table_file(file, pasted, job), targets, horizon, seconds, job).to_dict()


def forecast_and_draw(
    file: str | None, pasted: str, targets: Sequence[str], horizon: float, seconds: float, job: Job
) -> Drawn:
    """The result for the page; see `forecast_series`."""
    path = table_file(file, pasted, job)
    forecast = _forecast(path, targets, horizon, seconds, job)
    job.tell(0.97, "drawing")
    drawn = draw(forecast, path, job)
    chosen = [word for name in targets for word in ("--target", name)]
    stem = words.local(path.stem[:60])
    again = ["forecast", words.local(path.name), "-H", str(int(horizon)), *chosen, "--seconds", f"{seconds:g}"]
    again += ["-o", f"{stem}-forecast.csv", "--report", f"{stem}-report.html"]
    return replace(drawn, anomalies=drawn.anomalies + words.commands(again))


def _forecast(path: Path, targets: Sequence[str], horizon: float, seconds: float, job: Job) -> SeriesForecast:
    return forecast_series(path, list(targets), int(horizon), min(max(float(seconds), 2.0), MAX_SECONDS), job)


def draw(forecast: SeriesForecast, path: Path, job: Job) -> Drawn:
    """The chart, the tables, and files in the job's folder."""
    result, stem = forecast.result, path.stem[:60]
    written = [str(result.save(job.folder / f"{stem}-forecast{suffix}")) for suffix in (".csv", ".json")]
    written.append(str(result.report(job.folder / f"{stem}-report.html")))
    summary = f"{len(result.time)} steps of {len(result.variables)} series in {result.seconds:.0f} s: {result.model}"
    return Drawn(summary, _chart(forecast), _scores(forecast), _anomalies(forecast), written)


def _chart(forecast: SeriesForecast) -> Any:
    """History, median, intervals, back-test and odd values of the first few series, one above the other."""
    from plotly.subplots import make_subplots

    result = forecast.result
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
        odd = [
            one for one in forecast.anomalies if one.variable == result.variables[i] and _moment(str(one.time)) >= start
        ][:60]
        if odd:
            figure.add_scatter(
                x=[_moment(str(one.time)) for one in odd], y=[one.value for one in odd], mode="markers", name="odd", legendgroup="o",
                marker={"color": "#CC79A7", "size": 7, "symbol": "diamond-open"}, showlegend=first, **place,
            )  # fmt: skip
    height = 170 + 190 * len(names)
    charts.styled(figure, height)
    seen = past[-SEEN * len(ahead) :]  # the rest of the history is there when one zooms out
    if 0 < len(seen) < len(past):
        figure.update_xaxes(range=[seen[0], ahead[-1]])
    below_label = 1 - 28 / height  # gradio's label lies in the corner, over a legend that fills a phone's width
    figure.update_layout(margin={"t": 104}, legend={"y": below_label, "yref": "container", "yanchor": "top"})
    shown = ", ".join(result.variables[: len(names)])
    return charts.described(
        figure, f"{shown}: history, back-test, and {len(ahead)} steps ahead with 80 % and 95 % intervals"
    )


def _scores(forecast: SeriesForecast) -> str:
    result = forecast.result
    notices = words.note("; ".join(result.notices[:8]), "plain") if result.notices else ""
    if result.backtest is None or result.choice is None:
        return (
            words.note("The history is too short for a back-test: the accuracy of this forecast is unknown.") + notices
        )
    rows = [
        ("chosen: " + result.choice.name, result.choice.score),
        *((one.method.name, one.score) for one in result.backtest.tested),
    ]
    cells = [
        [name, f"{s.mase:.3f}", f"{s.wql:.4f}", *(f"{100 * s.coverage[level]:.0f} %" for level in (0.8, 0.95))]
        for name, s in [rows[0], *sorted(rows[1:], key=lambda row: row[1].wql)]
    ]
    plan = result.backtest.plan
    head = words.heading("Back-test:", f"{len(plan.scored)} earlier origins, {plan.horizon} steps ahead")
    others = (
        words.folded(f"{len(cells) - BEST - 1} more methods", _methods(cells[BEST + 1 :]))
        if len(cells) > BEST + 1
        else ""
    )
    return head + _methods(cells[: BEST + 1]) + others + f'<p class="up-small">{escape(MEASURES)}</p>' + notices


def _methods(cells: Sequence[Sequence[str]]) -> str:
    return words.table(["method", "MASE", "weighted quantile loss", "inside 80 %", "inside 95 %"], cells)


def _anomalies(forecast: SeriesForecast) -> str:
    if not forecast.n_checked:
        return ""
    if not forecast.anomalies:
        return words.heading("Odd values:", f"none of {forecast.n_checked:,} values")
    head = words.heading(
        "Odd values:",
        f"{len(forecast.anomalies):,} of {forecast.n_checked:,} values lie more than twice as far from the forecast made "
        "before them as its 95 % interval reaches. The oddest:",
    )
    rows = [
        [one.variable, time, f"{one.value:.4g}", f"{one.low:.4g} to {one.high:.4g}"]
        for one, time in list(zip(forecast.anomalies, forecast.anomaly_times(), strict=True))[:8]
    ]
    return head + words.table(["series", "time", "value", "expected"], rows)


def _moments(time: Any) -> Any:
    return np.array([_moment(str(t)) for t in time]) if np.asarray(time).dtype.kind == "M" else np.asarray(time)


def _moment(text: str) -> str:
    return text[:19]
