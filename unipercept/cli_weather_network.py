"""`unipercept weather train` and `unipercept weather forecast` (outer ring)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unipercept.cli_parts import Device, Resume, Seed, counting_bar, resumable, where_drawn
from unipercept.errors import InputError

if TYPE_CHECKING:
    from unipercept.train import Progress as PhaseProgress

PRECISIONS = ("float32", "bf16", "fp16")


def register(app: typer.Typer) -> None:
    """Add both verbs to the `weather` group."""
    app.command(
        epilog="Examples:\n  unipercept weather train qg.zarr -o run/\n  unipercept weather train era.nc -o run/ "
        "--channels z500,t850,msl --train 2000:2007 --validation 2008\n  torchrun --nproc-per-node 4 -m unipercept weather train …"
    )(train)
    app.command(
        epilog="Examples:\n  unipercept weather forecast qg.zarr -o forecast.zarr\n  unipercept weather forecast run/ qg.zarr -o forecast.zarr --days 10\n  "
        "unipercept weather forecast run/ qg.zarr -o year.zarr --from 2010-01 --to 2010-12 --every 24\n  "
        "unipercept weather forecast pangu.onnx era5.nc -o f.zarr --days 5"
    )(forecast)


def train(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="NetCDF, Zarr or GRIB with a time axis.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder.")],
    channels: Annotated[str | None, typer.Option(help="Names such as z500,t850,u10. Default: all.")] = None,
    period: Annotated[
        str | None, typer.Option("--train", help="Training period, FIRST:LAST (2000:2007). Default: the first 90 %.")
    ] = None,
    validation: Annotated[str | None, typer.Option(help="Validation period. Default: the rest.")] = None,
    preset: Annotated[str, typer.Option(help="tiny, small or puyun.")] = "tiny",
    updates: Annotated[
        int, typer.Option(min=10, help="One-step updates; rollouts and the second stage are fractions of it.")
    ] = 8000,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows per update, over all processes.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    rollout: Annotated[int, typer.Option(min=1, help="Longest rollout in steps.")] = 4,
    cascade: Annotated[int, typer.Option(min=0, help="Steps of the first stage; 0 trains a single model.")] = 20,
    step_hours: Annotated[float | None, typer.Option(help="Time step in hours. Default: that of the data.")] = None,
    precision: Annotated[
        str, typer.Option(help="Precision of the network: float32, bf16 or fp16; states stay float32.")
    ] = "float32",
    width: Annotated[int | None, typer.Option(help="Network width. Default: that of the preset.")] = None,
    compile_network: Annotated[bool, typer.Option("--compile", help="torch.compile the network.")] = False,
    shard: Annotated[
        bool, typer.Option("--shard", help="Under torchrun: shard weights and optimiser state (FSDP).")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Processes that read data, for each that trains. Default: by cores; none if it fits memory."
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    resume: Resume = False,
) -> None:
    """Train a cascade: single steps, growing rollouts, then a second stage on the first one's forecasts."""
    from unipercept.app.forecaster.frames import Frames
    from unipercept.app.forecaster.recipe import standard_recipe, train_cascade
    from unipercept.app.forecaster.windows import slow_reading

    frames = Frames(data, None if channels is None else _words(channels))
    _say_notes(frames)
    for doubt in filter(None, (*frames.doubts(), slow_reading(frames))):
        typer.echo(f"warning: {doubt}", err=True)
    spans = _spans(frames, period, validation)
    network = {} if width is None else {"width": width}
    recipe = standard_recipe(
        preset, updates=updates, batch_size=batch_size, learning_rate=learning_rate, rollout=rollout,
        hand_over=cascade or 20, medium=cascade > 0, precision=precision, **network,
    )  # fmt: skip
    with resumable(), _training_bars() as (on_progress, on_preparation):
        path = train_cascade(
            frames, output, recipe, train=spans[0], validation=spans[1], step_hours=step_hours, seed=seed,
            device=device, resume=resume, compile_network=compile_network, shard=shard, on_progress=on_progress,
            on_preparation=on_preparation, workers=workers,
        )  # fmt: skip
    typer.echo(f"{path}")


def forecast(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] DATA",
            help="MODEL: a trained folder, a model file (.safetensors, .onnx) or cascade.json; default: the shipped cascade, for "
            "generated weather only. DATA: analyses as NetCDF, Zarr or GRIB.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Zarr store to write.")],
    time: Annotated[list[str] | None, typer.Option(help="Initial time. Repeatable. Default: the last.")] = None,
    first: Annotated[str | None, typer.Option("--from", help="First initial time, with --to.")] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last initial time.")] = None,
    every: Annotated[float, typer.Option(help="Hours between initial times from --from to --to.")] = 24.0,
    days: Annotated[float, typer.Option(help="Forecast length in days.")] = 10.0,
    members: Annotated[int, typer.Option(min=1, max=1000, help="Ensemble size.")] = 1,
    perturbation: Annotated[
        str | None,
        typer.Option(
            help="Initial perturbations: red, gaussian, bred or none; or tendency, at every step. Default: set by the cascade, or red."
        ),
    ] = None,
    amplitude: Annotated[
        float | None,
        typer.Option(
            help="Amplitude of the perturbation, relative to each channel's standard deviation or to a step's change. Default: set by the cascade, or 0.05."
        ),
    ] = None,
    stochastic_depth: Annotated[
        float | None,
        typer.Option(min=0, max=0.99, help="Probability with which members drop residual blocks, at every step."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Initial times per batch.")] = 1,
    stages: Annotated[
        int | None,
        typer.Option(min=1, help="Use only the first N stages. Default: all; for ensembles, set by the cascade."),
    ] = None,
    blend: Annotated[
        int | None,
        typer.Option(min=0, help="Steps over which consecutive stages are blended. Default: set by the cascade."),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Precision of the network: float32, bf16 or fp16; states stay float32.")
    ] = "float32",
    seed: Seed = 0,
    device: Device = "auto",
    resume: Resume = False,
) -> None:
    """Run forecasts from analyses and write each state to a Zarr store; --resume continues an interrupted run."""
    from unipercept.app.forecaster.cascade_file import chosen_ensemble, load_cascade
    from unipercept.app.forecaster.forecast import forecast as run
    from unipercept.app.forecaster.frames import Frames
    from unipercept.train.distributed import joined_processes
    from unipercept.train.updates import autocast

    _one_of("precision", precision, PRECISIONS)
    model, data = _model_and_data(sources)
    with resumable(), joined_processes(device) as processes:
        where = processes.device
        given = {"perturbation": perturbation, "amplitude": amplitude}
        ensemble, own_stages = chosen_ensemble(model, members, seed=seed, **given)
        n_stages = own_stages if stages is None else stages
        cascade = load_cascade(model, where, blend, n_stages=n_stages, stochastic_depth=stochastic_depth, seed=seed)
        stage = cascade.model(0)
        frames = Frames(data, stage.channels)
        _say_notes(frames)
        _warn_of_other_weather(stage, frames)
        n_steps = _n_steps(days, stage.step_hours)
        times = _initial_times(frames, time, first, last, every)
        _warn_of_late_steps(load_cascade(model), n_steps, stage.step_hours)
        facts = {"precision": precision, "stochastic_depth": stochastic_depth or 0.0}
        with counting_bar("steps", n_steps * len(times)) as advance, autocast(where.type, precision):
            path = run(
                cascade, frames, times, n_steps, output, device=where, ensemble=ensemble, resume=resume,
                batch_size=batch_size, on_step=lambda count, step: advance(count), attributes=facts,
            )  # fmt: skip
    typer.echo(f"{path}")


def _model_and_data(sources: list[str]) -> tuple[str, str]:
    from unipercept.app.forecaster.cascade_file import DEFAULT

    if len(sources) > 2:
        raise InputError(f"expected [MODEL] DATA, got {len(sources)} paths: {', '.join(sources)}")
    return (sources[0], sources[1]) if len(sources) == 2 else (DEFAULT, sources[0])


def _n_steps(days: float, step_hours: float) -> int:
    """Steps of a forecast: a whole number, one at least."""
    steps = days * 24 / step_hours
    if not (isfinite(steps) and round(steps) >= 1 and abs(steps - round(steps)) <= 1e-6):
        raise InputError(f"--days {days:g} is no whole number of the model's steps of {step_hours:g} h")
    return round(steps)


def _warn_of_other_weather(model: Any, frames: Any) -> None:
    """A model of generated weather says nothing about other weather."""
    from unipercept.app.forecaster.dynamics.lift import SOURCE

    trained_on = getattr(model, "card", {}).get("data", "")
    if trained_on.startswith("generated") and frames.fields.dataset.attrs.get("source") != SOURCE:
        typer.echo(
            f"warning: the model knows nothing but {trained_on}; its forecast of other weather means nothing", err=True
        )


def _warn_of_late_steps(cascade: Any, n_steps: int, step_hours: float) -> None:
    """Stages follow each other up to the steps that they were trained on; the last one would go on for ever."""
    known = sum(stage.n_steps for stage in cascade.stages)
    if len(cascade.stages) > 1 and n_steps > known:
        typer.echo(
            f"warning: the stages of this cascade make {known} steps ({known * step_hours / 24:g} days); what comes later "
            "was never trained, and noise may grow in it",
            err=True,
        )


def _say_notes(frames: Any) -> None:
    """What was converted or left out when the source was opened."""
    for note in frames.fields.notes:
        typer.echo(f"note: {note}", err=True)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{name} must be one of {', '.join(known)}; got {value!r}")


def _words(text: str) -> tuple[str, ...]:
    from unipercept.pipelines.weather_fields import CHANNEL_SETS

    if text in CHANNEL_SETS:
        return CHANNEL_SETS[text].names
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _spans(frames: Any, period: str | None, validation: str | None) -> tuple[slice, slice | None]:
    """Numbers of the states that train and that validate."""
    train = slice(0, round(len(frames) * 0.9)) if period is None else frames.between(*_period(period))
    if validation is not None:
        return train, frames.between(*_period(validation))
    rest = slice(train.stop, len(frames))
    return train, rest if period is None and rest.stop - rest.start > 60 else None


def _period(text: str) -> tuple[str | None, str | None]:
    first, colon, last = text.partition(":")
    if ":" in last:  # times have colons too: 2000-01-01T00:2001-01-01T00 is cut in the middle
        raise InputError(f"expected a period such as 2000:2007 or 2000-01:2007-06, got {text!r}")
    return first or None, (last or None) if colon else (first or None)


def _initial_times(
    frames: Any, times: list[str] | None, first: str | None, last: str | None, every: float
) -> list[Any]:
    import numpy as np

    if times and (first or last):
        raise InputError("give initial times by --time, or by --from and --to, not both")
    if times:
        return [frames.times[frames.at(time)] for time in times]
    if first is None and last is None:
        return [frames.times[-1]]
    chosen = frames.times[frames.between(first, last)]
    if not (isfinite(every) and every > 0):
        raise InputError(f"--every must be a positive number of hours, got {every:g}")
    spacing = np.timedelta64(round(every * 3600), "s")
    return list(chosen[(chosen - chosen[0]) % spacing == np.timedelta64(0, "s")])


@contextmanager
def _training_bars() -> Iterator[tuple[Any, Any]]:
    """Callbacks that draw a bar for each phase, with the loss beside it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, **where_drawn()) as bar:
        tasks: dict[str, Any] = {}

        def show(name: str, done: int, total: int, note: str = "") -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total, note=note)
            bar.update(tasks[name], completed=done, note=note)

        def on_progress(name: str, progress: PhaseProgress) -> None:
            show(name, progress.step, progress.total_steps, f"loss {progress.loss:.4g}")

        yield on_progress, show
