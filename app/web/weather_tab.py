"""Weather: run the cascade from a chosen start; maps with a lead slider, error against the truth, skill, plumes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from unipercept.app.web import parts, slider, words
from unipercept.app.web.jobs import as_refusal, status
from unipercept.app.web.weather_drawing import Drawn, predict_and_draw, predict_json
from unipercept.app.web.weather_work import (
    GENERATED,
    MAX_DAYS,
    MAX_MEMBERS,
    MAX_STARTS,
    WeatherRequest,
    choices,
    default_channel,
)
from unipercept.errors import InputError

if TYPE_CHECKING:
    from unipercept.app.web.context import Context

FIRST = ("the first", "")
CLIMATE_INFO = "Of a file that holds a year; without a file, of a year that is made once, in minutes"
EMPTY = (
    "Maps of the forecast appear here, hour by hour; its error beside that of persistence (the weather stays as it is); "
    "and the forecast at one place, its plume."
)


class _Controls(NamedTuple):
    """Inputs of the visitor, and the buttons."""

    file: gr.File
    channel: gr.Dropdown
    start: gr.Dropdown
    days: gr.Slider
    starts: gr.Slider
    members: gr.Slider
    latitude: gr.Number
    longitude: gr.Number
    climate: gr.Checkbox
    run: gr.Button
    cancel: gr.Button
    state: gr.HTML
    example: gr.Button

    @property
    def inputs(self) -> list[Any]:
        """The inputs of the endpoint, in its order."""
        return list(self[:9])


def weather_tab(context: Context) -> parts.Filled:
    """Build the tab; gives what is filled when the page has been painted."""
    options = context.options
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            controls = _controls(options.weather.name if options.weather else GENERATED)
        with gr.Column(scale=4, min_width=300):
            views = _views()
    outputs = [controls.state, *views]
    given: dict[str, Any] = {
        "cascade_path": options.cascade, "data": options.weather, "shared": context.examples.folder,
        "max_bytes": 4 * options.max_file_bytes,
    }  # fmt: skip

    async def run_weather(
        file: str | None, channel: str, start: str, days: float, starts: float, members: float, latitude: float,
        longitude: float, climate: bool, request: gr.Request,
    ) -> AsyncIterator[list[Any]]:  # fmt: skip
        wanted = _request(file, channel, start, days, starts, members, latitude, longitude, climate)
        work = partial(predict_and_draw, wanted, **given)
        async for update in context.updates("weather", work, request, _draw, outputs, is_long=True):
            yield update

    async def weather(
        file: str | None = None, channel: str = "", start: str = "", days: float = 8, starts: float = 2, members: float = 1,
        latitude: float = 52, longitude: float = 13, climatology: bool = False, request: gr.Request | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """A forecast of the weather by the cascade: scores beside persistence (and
        climatology), and the plume at a place.
        """
        wanted = _request(file, channel, start, days, starts, members, latitude, longitude, climatology)
        work = partial(predict_json, wanted, **given)
        answer: dict[str, Any] = await context.result("weather", work, request, is_long=True)
        return answer

    async def fill(file: str | None, request: gr.Request) -> list[Any]:
        path = Path(file) if file else None
        work = partial(choices, path, options.cascade, options.weather, max_bytes=given["max_bytes"])
        channels, times = await context.result("times", work, request)
        return [
            gr.update(choices=[FIRST, *times], value=""),
            gr.update(choices=channels, value=default_channel([name for _, name in channels])),
        ]

    slow, state, filled = context.slow("weather"), controls.state, [controls.start, controls.channel]
    controls.file.change(fill, controls.file, filled, **parts.QUIET, **context.quick)
    event = controls.run.click(run_weather, controls.inputs, outputs, **parts.told_by(state), **slow)
    set_by_example = [controls.file, controls.start, controls.days, controls.starts, controls.members]
    taken = controls.example.click(lambda: (None, "", 8, 2, 1), None, set_by_example, **parts.QUIET)
    after = taken.then(run_weather, controls.inputs, outputs, **parts.told_by(state), **slow)
    parts.cancels(controls.cancel, state, [event, after])
    parts.endpoint("weather", weather, controls.inputs, **slow)
    return parts.Filled(fill, [controls.file], filled)


def _controls(source: str) -> _Controls:
    file = parts.dropzone("Fields: NetCDF, GRIB or zipped Zarr", "weather-file")
    parts.html(
        value=words.note(f"Without a file: {source}. A file must hold every channel of the list below.", "plain")
    )
    with gr.Row():
        start = gr.Dropdown(
            [FIRST],
            value="",
            allow_custom_value=True,
            label="Start",
            info="UTC",
            min_width=200,
            elem_id="weather-start",
        )
        channel = gr.Dropdown(
            [("z500", "")], value="", allow_custom_value=True, label="Channel", info="Drawn and scored",
            min_width=200, elem_id="weather-channel",
        )  # fmt: skip
    days = gr.Slider(0.25, MAX_DAYS, value=8, step=0.25, label="Days ahead", elem_id="weather-days", buttons=[])
    starts = gr.Slider(1, MAX_STARTS, value=2, step=1, label="Starts", info="A day apart; all are scored", buttons=[])
    members = gr.Slider(
        1, MAX_MEMBERS, value=1, step=1, label="Members", info="Of the ensemble; 1 for none", buttons=[]
    )
    with gr.Row():
        latitude = gr.Number(52, label="Plume at °N", minimum=-90, maximum=90, min_width=90)
        longitude = gr.Number(13, label="°E", minimum=-360, maximum=360, min_width=90)
    climate = gr.Checkbox(False, label="Score against climatology", info=CLIMATE_INFO, elem_id="weather-climatology")
    run, cancel = parts.run_and_cancel("Forecast", "weather")
    state = parts.status_line("weather", "Send a file, or take the example.")
    example = gr.Button("Example: eight days from generated weather", size="sm", elem_id="weather-example")
    return _Controls(
        file, channel, start, days, starts, members, latitude, longitude, climate, run, cancel, state, example
    )


def _views() -> list[Any]:
    return [
        slider.slider("weather-maps"),
        parts.chart("Error and skill", "weather-skill"),
        parts.chart("Plume", "weather-plume"),
        parts.html("weather-facts", words.empty(EMPTY)),
        parts.downloads("Forecast and scores", "weather-files"),
    ]


def _draw(drawn: Drawn) -> list[Any]:
    """Values of the status line and the views, in their order."""
    return [
        status(None, drawn.summary),
        gr.update(value=slider.pictures(drawn.maps, drawn.stages, drawn.note), visible=True),
        parts.shown(drawn.skill),
        gr.update(value=drawn.plume, visible=True, label=f"Plume at {drawn.place}"),
        drawn.facts,
        parts.shown(drawn.files),
    ]


def _request(
    file: str | None, channel: str, start: str, days: float, starts: float, members: float, latitude: float,
    longitude: float, climatology: bool,
) -> WeatherRequest:  # fmt: skip
    try:
        return WeatherRequest(
            Path(file) if file else None, (channel or "").strip(), (start or "").strip(), float(days), int(starts),
            int(members), (float(latitude or 0), float(longitude or 0)), bool(climatology),
        )  # fmt: skip
    except InputError as error:
        raise as_refusal(error) from error
