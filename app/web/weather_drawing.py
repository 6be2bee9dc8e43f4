"""The Weather tab's work: a forecast by the cascade and its drawings, as plain values that need no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unipercept.app.web import charts, words
from unipercept.app.web.job import Job
from unipercept.app.web.weather_maps import map_frames
from unipercept.app.web.weather_work import WeatherRequest, predict

if TYPE_CHECKING:
    from unipercept.app.web.weather_work import Forecasted

STYLES = {"persistence": ("#7a8699", "dash"), "climatology": ("#7a8699", "dot")}


@dataclass(frozen=True)
class Drawn:
    """A forecast as the page shows it: pictures by lead, plotly charts, HTML, and paths of files."""

    summary: str
    maps: list[tuple[str, list[tuple[str, bytes]]]]
    stages: list[tuple[str, int]]  # names, and how many steps each takes
    note: str
    skill: Any
    plume: Any
    place: str
    facts: str
    files: list[str]


def predict_json(wanted: WeatherRequest, job: Job, **given: Any) -> dict[str, Any]:
    """The result for the API; see `predict`, which takes `given`."""
    return predict(wanted, job=job, **given).to_dict()


def predict_and_draw(wanted: WeatherRequest, job: Job, **given: Any) -> Drawn:
    """The result for the page; see `predict`, which takes `given`."""
    found = predict(wanted, job=job, **given)
    maps = map_frames(found, lambda done, total: job.tell(0.86 + 0.12 * done / total, f"drawing map {done} of {total}"))
    stages, start = [(name, last - first) for name, first, last in found.stages], words.moment(found.init_time)
    note = f"From {start} UTC: " + ", then ".join(f"stage {n} for {c} steps" for n, c in stages) + "."
    unscored = (
        "" if found.table is not None else words.note("There is no truth for these lead times, so there are no scores.")
    )
    return Drawn(
        f"{len(found.lead_hours)} steps from {start} UTC", maps, stages, note,
        None if found.table is None else _skill(found), _plume(found), _place(found), words.facts(_facts(found)) + unscored + _commands(found, wanted, given["cascade_path"]),
        _files(found, job.folder),
    )  # fmt: skip


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
    return charts.described(figure, f"RMSE of {', '.join(found.rmse())} by lead, and the skill of the cascade")


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
    return charts.described(figure, f"{found.channel} at {_place(found)} by lead, {len(found.plume)} member(s)")


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
        *([("noticed", "; ".join(found.notes))] if found.notes else []),
        ("cascade", stages),
        ("channels", ", ".join(found.channels[:24])),
    ]
    told = ("data", "training_period", "licence", "metric")
    pairs += [(f"trained: {key.replace('_', ' ')}", str(found.card[key])) for key in told if key in found.card]
    return pairs


def _commands(found: Forecasted, wanted: WeatherRequest, cascade: str) -> str:
    """What forecasts a visitor's fields without the page, with the shipped cascade; "" for others."""
    if wanted.file is None or cascade != "default":
        return ""
    file, starts = (
        words.local(wanted.file.name),
        [str(t) for t in found.forecast["time"].values.astype("datetime64[h]")],
    )
    times = [word for start in starts for word in ("--time", start)]
    length = ["--days", f"{wanted.days:g}", "--members", str(wanted.members)]
    lines = [["weather", "forecast", file, *times, *length, "-o", "forecast.zarr"]]
    if found.table is not None:
        climate = ["--climate-of", file] if wanted.climatology else []
        lines.append(["weather", "evaluate", "forecast.zarr", "--truth", file, *climate, "-o", "scores.csv"])
    return words.commands(*lines)


def _files(found: Forecasted, folder: Path) -> list[str]:
    """The forecast as NetCDF, and the scores as CSV, named after their start."""
    start = str(np.datetime_as_string(np.datetime64(found.init_time), "h"))
    written = [folder / f"forecast-{start}.nc"]
    found.forecast.to_netcdf(written[0])
    if found.table is not None:
        flat = [n for n, a in found.table.data_vars.items() if a.dims == ("model", "lead", "region", "channel")]
        written.append(folder / f"scores-{start}.csv")
        found.table[flat].to_dataframe().reset_index().to_csv(written[1], index=False)
    return [str(path) for path in written]
