"""Weather: run the cascade from a chosen start; maps with a lead slider, error against the truth, skill, plumes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from unipercept.app.web import charts, slider, words
from unipercept.app.web.jobs import Done, Job, status
from unipercept.app.web.weather_work import (
    GENERATED,
    MAX_DAYS,
    MAX_MEMBERS,
    MAX_STARTS,
    NO_CASCADE,
    Forecasted,
    WeatherRequest,
    find_cascade,
    map_frames,
    predict,
    start_times,
)

if TYPE_CHECKING:
    from unipercept.app.web.context import Context

STYLES = {"persistence": ("#7a8699", "dash"), "climatology": ("#7a8699", "dot")}


def weather_tab(context: Context) -> dict[str, Any]:
    """Build the tab."""
    own = context.options.weather
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            if find_cascade(context.options.cascade) is None:
                gr.HTML(words.note(NO_CASCADE + "."), elem_id="weather-missing", apply_default_css=False)
            file = gr.File(
                label="Fields to start from: NetCDF, GRIB, or a zipped Zarr folder", height=150, elem_id="weather-file"
            )
            gr.HTML(
                words.note(f"Without a file: {own.name if own else GENERATED}.", good=True), apply_default_css=False
            )
            with gr.Row():
                start = gr.Dropdown(
                    [""], value="", allow_custom_value=True, label="Start", info="UTC; empty: the first", min_width=130
                )
                channel = gr.Textbox(label="Channel", placeholder="z500", info="As z500, t850, u10", min_width=110)
            days = gr.Slider(0.25, MAX_DAYS, value=8, step=0.25, label="Days ahead", elem_id="weather-days")
            with gr.Row():
                starts = gr.Slider(
                    1, MAX_STARTS, value=2, step=1, label="Starts scored", info="A day apart", min_width=120
                )
                members = gr.Slider(
                    1, MAX_MEMBERS, value=1, step=1, label="Members", info="1: no ensemble", min_width=120
                )
            with gr.Row():
                latitude = gr.Number(52, label="Plume at °N", minimum=-90, maximum=90, min_width=90)
                longitude = gr.Number(13, label="°E", minimum=-360, maximum=360, min_width=90)
            climate = gr.Checkbox(False, label="Climatology too", info="Makes a year of weather once: about a minute")
            with gr.Row():
                run = gr.Button("Forecast", variant="primary", min_width=100, elem_id="weather-run")
                cancel = gr.Button("Cancel", min_width=100, elem_id="weather-cancel")
            state = gr.HTML(status(None, "Ready."), elem_id="weather-status", apply_default_css=False)
            example = gr.Button("Example: eight days from generated weather", size="sm", elem_id="weather-example")
        with gr.Column(scale=4, min_width=300):
            maps = slider.slider("weather-maps")
            skill = gr.Plot(label="Skill", visible=False, elem_id="weather-skill")
            plume = gr.Plot(label="Plume", visible=False, elem_id="weather-plume")
            facts = gr.HTML(elem_id="weather-facts", apply_default_css=False)
            files = gr.File(
                label="Forecast and scores",
                file_count="multiple",
                visible=False,
                interactive=False,
                elem_id="weather-files",
            )
    inputs = [file, channel, start, days, starts, members, latitude, longitude, climate]
    outputs = [state, maps, skill, plume, facts, files]

    async def run_weather(
        file: str | None, channel: str, start: str, days: float, starts: float, members: float, latitude: float,
        longitude: float, climate: bool, request: gr.Request,
    ) -> AsyncIterator[list[Any]]:  # fmt: skip
        work = _work(context, file, channel, start, days, starts, members, latitude, longitude, climate, draws=True)
        async for event in context.run("weather", work, request, is_long=True):
            if isinstance(event, Done):
                yield event.value[1]
            else:
                yield [status(event.share, event.text), *[gr.skip()] * 5]

    async def weather_forecast(
        file: str | None = None, channel: str = "", start: str = "", days: float = 8, starts: float = 2, members: float = 1,
        latitude: float = 52, longitude: float = 13, climatology: bool = False, request: gr.Request | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """A forecast of the weather by the cascade: scores beside persistence, and the plume at a place."""
        assert request is not None
        work = _work(
            context, file, channel, start, days, starts, members, latitude, longitude, climatology, draws=False
        )
        found, _ = await context.result("weather", work, request, is_long=True)
        answer: dict[str, Any] = found.to_dict()
        return answer

    async def list_times(file: str | None, request: gr.Request) -> Any:
        def work(job: Job) -> list[str]:
            return start_times(Path(str(file)), own, context.examples.folder, job, 4 * context.options.max_file_bytes)

        times = await context.result("times", work, request)
        return gr.update(choices=["", *times], value="")

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    slow = context.slow("weather")
    file.upload(list_times, file, start, **quiet, **context.quick)
    event = run.click(run_weather, inputs, outputs, **quiet, **slow)
    taken = example.click(lambda: (None, "", "", 8, 2), None, [file, channel, start, days, starts], **quiet)
    after = taken.then(run_weather, inputs, outputs, **quiet, **slow)
    cancel.click(lambda: status(None, "Stopped."), None, state, cancels=[event, after], api_visibility="private")
    gr.Button(visible=False).click(weather_forecast, inputs, gr.JSON(visible=False), api_name="weather", **slow)
    return {}


def _work(
    context: Context, file: str | None, channel: str, start: str, days: float, starts: float, members: float, latitude: float,
    longitude: float, climate: bool, *, draws: bool,
) -> Any:  # fmt: skip
    def work(job: Job) -> tuple[Forecasted, list[Any]]:
        place = (float(latitude or 0), float(longitude or 0))
        wanted = WeatherRequest(
            Path(file) if file else None,
            channel.strip(),
            (start or "").strip(),
            float(days),
            int(starts),
            int(members),
            place,
            bool(climate),
        )
        options = context.options
        found = predict(
            wanted, options.cascade, options.weather, context.examples.folder, job, 4 * options.max_file_bytes
        )
        return found, _drawn(found, job) if draws else []

    return work


def _drawn(found: Forecasted, job: Job) -> list[Any]:
    frames = map_frames(
        found, lambda done, total: job.tell(0.86 + 0.12 * done / total, f"drawing map {done} of {total}")
    )
    stages = [(name, last - first) for name, first, last in found.stages]
    note = f"From {found.init_time} UTC. " + "; then ".join(f"stage {n} for {c} steps" for n, c in stages) + "."
    return [
        status(1.0, f"{len(found.lead_hours)} steps from {found.init_time}"),
        gr.update(value=slider.pictures(frames, stages, note), visible=True),
        gr.update(value=_skill(found) if found.table is not None else None, visible=found.table is not None),
        gr.update(value=_plume(found), visible=True),
        words.facts(_facts(found))
        + ("" if found.table is not None else words.note("No truth is known for these leads: nothing is scored.")),
        gr.update(value=_files(found, job.folder), visible=True),
    ]


def _skill(found: Forecasted) -> Any:
    """RMSE of each model by lead, and the hand-over."""
    figure = charts.new_figure(height=320)
    days: Any = np.asarray(found.table["lead"].values, float) / 24 if found.table is not None else []
    for model, values in found.curves("rmse").items():
        colour, dash = STYLES.get(model, (charts.BLUE, "solid"))
        figure.add_scatter(x=days, y=values, name=model, line={"color": colour, "dash": dash, "width": 2})
    _mark_hand_over(figure, found)
    figure.update_xaxes(title="lead in days")
    figure.update_yaxes(title=f"RMSE of {found.channel} in {found.unit}", rangemode="tozero")
    figure.update_layout(
        title={"text": f"Error against the truth, {found.n_starts} start{'s' if found.n_starts > 1 else ''}, whole grid", "font": {"size": 13}},
        showlegend=True, legend={"orientation": "h", "y": -0.25},
    )  # fmt: skip
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
    figure.update_yaxes(title=f"{found.channel} in {found.unit}")
    where = f"{found.place[0]:.1f}°N {found.place[1]:.1f}°E"
    figure.update_layout(
        title={"text": f"At {where}", "font": {"size": 13}}, showlegend=True, legend={"orientation": "h", "y": -0.28}
    )
    return figure


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
        ("start", f"{found.init_time} UTC"),
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
