"""Weather: run the cascade from a chosen start; maps with a lead slider, error against the truth, skill, plumes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import gradio as gr
import numpy as np

from unipercept.app.web import charts, parts, slider, words
from unipercept.app.web.jobs import Job, status
from unipercept.app.web.weather_maps import map_frames
from unipercept.app.web.weather_work import (
    GENERATED,
    MAX_DAYS,
    MAX_MEMBERS,
    MAX_STARTS,
    Forecasted,
    WeatherRequest,
    choices,
    default_channel,
    predict,
)

if TYPE_CHECKING:
    from unipercept.app.web.context import Context

T = TypeVar("T")
Asked = tuple[
    str | None, str, str, float, float, float, float, float, bool
]  # as the widgets and the endpoint have them
FIRST = ("the first", "")
CLIMATE_INFO = "Of a file that holds a year; without a file, of a year that is made once, in minutes"
EMPTY = "Maps under a lead slider, the error beside persistence, and the plume at a place appear here."
STYLES = {"persistence": ("#7a8699", "dash"), "climatology": ("#7a8699", "dot")}


def weather_tab(context: Context) -> parts.Filled:
    """Build the tab; gives what is filled when the page has been painted."""
    own = context.options.weather
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            file = parts.dropzone("Fields: NetCDF, GRIB or zipped Zarr", "weather-file")
            parts.html(value=words.note(f"Without a file: {own.name if own else GENERATED}.", "plain"))
            with gr.Row():
                start = gr.Dropdown(
                    [FIRST], value="", allow_custom_value=True, label="Start", info="UTC", min_width=120,
                    elem_id="weather-start",
                )  # fmt: skip
                channel = gr.Dropdown(
                    [("z500", "")], value="", allow_custom_value=True, label="Channel", info="Drawn and scored",
                    min_width=120, elem_id="weather-channel",
                )  # fmt: skip
            days = gr.Slider(0.25, MAX_DAYS, value=8, step=0.25, label="Days ahead", elem_id="weather-days", buttons=[])
            with gr.Row():
                starts = gr.Slider(
                    1,
                    MAX_STARTS,
                    value=2,
                    step=1,
                    label="Starts",
                    info="Scored, a day apart",
                    min_width=120,
                    buttons=[],
                )
                members = gr.Slider(
                    1, MAX_MEMBERS, value=1, step=1, label="Members", info="1: no ensemble", min_width=120, buttons=[]
                )
            with gr.Row():
                latitude = gr.Number(52, label="Plume at °N", minimum=-90, maximum=90, min_width=90)
                longitude = gr.Number(13, label="°E", minimum=-360, maximum=360, min_width=90)
            climate = gr.Checkbox(
                False, label="Score against climatology", info=CLIMATE_INFO, elem_id="weather-climatology"
            )
            run, cancel = parts.run_and_cancel("Forecast", "weather")
            state = parts.status_line("weather", "Ready.")
            example = gr.Button("Example: eight days from generated weather", size="sm", elem_id="weather-example")
        with gr.Column(scale=4, min_width=300):
            maps = slider.slider("weather-maps")
            skill = parts.chart("Error and skill", "weather-skill")
            plume = parts.chart("Plume", "weather-plume")
            facts = parts.html("weather-facts", words.empty(EMPTY))
            files = parts.downloads("Forecast and scores", "weather-files")
    inputs = [file, channel, start, days, starts, members, latitude, longitude, climate]
    outputs = [state, maps, skill, plume, facts, files]

    async def run_weather(
        file: str | None, channel: str, start: str, days: float, starts: float, members: float, latitude: float,
        longitude: float, climate: bool, request: gr.Request,
    ) -> AsyncIterator[list[Any]]:  # fmt: skip
        asked = (file, channel, start, days, starts, members, latitude, longitude, climate)
        work = _work(context, asked, _drawn)
        async for update in context.updates("weather", work, request, lambda drawn: drawn, outputs, is_long=True):
            yield update

    async def weather(
        file: str | None = None, channel: str = "", start: str = "", days: float = 8, starts: float = 2, members: float = 1,
        latitude: float = 52, longitude: float = 13, climatology: bool = False, request: gr.Request | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """A forecast of the weather by the cascade: scores beside persistence (and climatology), and the plume at a place."""
        asked = (file, channel, start, days, starts, members, latitude, longitude, climatology)
        work = _work(context, asked, lambda found, job: found.to_dict())
        answer: dict[str, Any] = await context.result("weather", work, request, is_long=True)
        return answer

    async def fill(file: str | None, request: gr.Request) -> list[Any]:
        def work(job: Job) -> tuple[list[str], list[str]]:
            options = context.options
            return choices(
                Path(file) if file else None, options.cascade, options.weather, job, 4 * options.max_file_bytes
            )

        channels, times = await context.result("times", work, request)
        return [
            gr.update(choices=[FIRST, *times], value=""),
            gr.update(choices=channels, value=default_channel(channels)),
        ]

    slow = context.slow("weather")
    file.change(fill, file, [start, channel], **parts.QUIET, **context.quick)
    event = run.click(run_weather, inputs, outputs, **parts.told_by(state), **slow)
    taken = example.click(lambda: (None, "", 8, 2, 1), None, [file, start, days, starts, members], **parts.QUIET)
    after = taken.then(run_weather, inputs, outputs, **parts.told_by(state), **slow)
    parts.cancels(cancel, state, [event, after])
    parts.endpoint("weather", weather, inputs, **slow)
    return parts.Filled(fill, [file], [start, channel])


def _work(context: Context, asked: Asked, then: Callable[[Forecasted, Job], T]) -> Callable[[Job], T]:
    """The work: forecast, and what is made of it in the job's thread."""
    file, channel, start, days, starts, members, latitude, longitude, climatology = asked
    options = context.options

    def work(job: Job) -> T:
        wanted = WeatherRequest(
            Path(file) if file else None, (channel or "").strip(), (start or "").strip(), float(days), int(starts),
            int(members), (float(latitude or 0), float(longitude or 0)), bool(climatology),
        )  # fmt: skip
        shared, max_bytes = context.examples.folder, 4 * options.max_file_bytes
        return then(predict(wanted, options.cascade, options.weather, shared, job, max_bytes), job)

    return work


def _drawn(found: Forecasted, job: Job) -> list[Any]:
    frames = map_frames(
        found, lambda done, total: job.tell(0.86 + 0.12 * done / total, f"drawing map {done} of {total}")
    )
    stages = [(name, last - first) for name, first, last in found.stages]
    note = (
        f"From {words.moment(found.init_time)} UTC: "
        + ", then ".join(f"stage {n} for {c} steps" for n, c in stages)
        + "."
    )
    return [
        status(None, f"{len(found.lead_hours)} steps from {words.moment(found.init_time)} UTC"),
        gr.update(value=slider.pictures(frames, stages, note), visible=True),
        parts.shown(None if found.table is None else _skill(found)),
        gr.update(value=_plume(found), visible=True, label=f"Plume at {_place(found)}"),
        words.facts(_facts(found))
        + ("" if found.table is not None else words.note("No truth is known for these leads: nothing is scored.")),
        gr.update(value=_files(found, job.folder), visible=True),
    ]


def _skill(found: Forecasted) -> Any:
    """Error of each model by lead, below it the cascade's skill over the others, and the hand-over."""
    from plotly.subplots import make_subplots

    figure = charts.styled(make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08), height=430)
    days: Any = np.asarray(found.table["lead"].values, float) / 24 if found.table is not None else []
    for row, curves in ((1, found.rmse()), (2, found.skill())):
        for model, values in curves.items():
            colour, dash = STYLES.get(model, (charts.BLUE, "solid"))
            figure.add_scatter(
                x=days, y=values, name=model, line={"color": colour, "dash": dash, "width": 2}, showlegend=row == 1,
                row=row, col=1,
            )  # fmt: skip
    _mark_hand_over(figure, found)
    figure.update_xaxes(title="lead in days", row=2, col=1)
    figure.update_yaxes(title=f"RMSE of {found.channel} in {words.unit(found.unit)}", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title="skill over reference", range=[None, 1], row=2, col=1)
    figure.update_layout(showlegend=True)
    return figure


def _plume(found: Forecasted) -> Any:
    figure = charts.new_figure(height=300)
    days = np.asarray(found.lead_hours) / 24
    for i, member in enumerate(found.plume):
        alone = len(found.plume) == 1
        figure.add_scatter(
            x=days, y=member, name="forecast" if alone else "members", legendgroup="members", showlegend=i == 0, mode="lines",
            line={"color": charts.BLUE if alone else "rgba(0,114,178,.45)", "width": 2 if alone else 1},
        )  # fmt: skip
    if len(found.plume) > 1:
        figure.add_scatter(x=days, y=found.plume.mean(axis=0), name="mean", line={"color": charts.BLUE, "width": 2.4})
    if found.plume_truth is not None:
        figure.add_scatter(x=days, y=found.plume_truth, name="truth", line={"color": charts.ORANGE, "width": 2})
    _mark_hand_over(figure, found)
    figure.update_xaxes(title="lead in days")
    figure.update_yaxes(title=f"{found.channel} in {words.unit(found.unit)}")
    figure.update_layout(showlegend=True)
    return figure


def _place(found: Forecasted) -> str:
    latitude, longitude = found.place
    return f"{abs(latitude):.1f}°{'N' if latitude >= 0 else 'S'} {longitude:.1f}°E"


def _mark_hand_over(figure: Any, found: Forecasted) -> None:
    step = found.lead_hours[0] / 24
    for name, first, _ in found.stages[1:]:
        figure.add_vline(
            x=first * step,
            line={"color": charts.ORANGE, "width": 1, "dash": "dot"},
            annotation_text=f"to {name}",
            annotation_font_size=11,
        )


def _facts(found: Forecasted) -> list[tuple[str, str]]:
    stages = "; ".join(f"{name}: steps {first + 1} to {last}" for name, first, last in found.stages)
    pairs = [
        ("start", f"{words.moment(found.init_time)} UTC"),
        (
            "scored",
            "not"
            if found.table is None
            else f"over {found.n_starts} start{'s' if found.n_starts > 1 else ''}, the whole grid",
        ),
        ("data", found.source),
        ("cascade", stages),
        ("channels", ", ".join(found.channels[:24])),
    ]
    told = ("data", "training_period", "licence", "metric")
    pairs += [(f"trained: {key.replace('_', ' ')}", str(found.card[key])) for key in told if key in found.card]
    return pairs


def _files(found: Forecasted, folder: Path) -> list[str]:
    """The forecast as NetCDF, and the scores as CSV."""
    written = [folder / "forecast.nc"]
    found.forecast.to_netcdf(written[0])
    if found.table is not None:
        flat = [n for n, a in found.table.data_vars.items() if a.dims == ("model", "lead", "region", "channel")]
        written.append(folder / "scores.csv")
        found.table[flat].to_dataframe().reset_index().to_csv(written[1], index=False)
    return [str(path) for path in written]
