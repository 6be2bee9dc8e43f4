"""`unipercept weather`: generate, evaluate and plot; cli_weather_network adds train and forecast (outer ring)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unipercept.cli_parts import Resume, counting_bar, resumable
from unipercept.cli_weather_network import register
from unipercept.errors import InputError

if TYPE_CHECKING:
    import xarray

    from unipercept.app.forecaster.climatology import Climatology
    from unipercept.app.forecaster.evaluate import Evaluation

SHOWN_LEADS = 12  # columns of the table on the terminal; the file has all
SHOWN_SCORES = ("rmse", "acc", "activity", "truth_activity", "crps", "spread_skill")

app = typer.Typer(
    name="weather",
    help="Weather forecasts by a cascade of networks: generate data, train, forecast, verify and plot.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Output = Annotated[Path, typer.Option("--output", "-o", help="File or folder to write.", show_default=False)]
Channels = Annotated[str | None, typer.Option(help="Names separated by commas, such as z500,t850,t2m. Default: all.")]


@app.command(
    epilog="Examples:\n  unipercept weather generate -o train.zarr --days 3650\n  "
    "unipercept weather generate -o members.zarr --days 365 --members 4 --workers 2"
)
def generate(
    output: Output,
    days: Annotated[int, typer.Option(min=1, help="Length in days, 6-hourly. A year takes about a minute.")] = 365,
    start: Annotated[str, typer.Option(help="First date; the seasons follow the calendar.")] = "2000-01-01",
    levels: Annotated[str, typer.Option(help="Pressure levels in hPa, between 100 and 1000.")] = "200,500,850",
    members: Annotated[int, typer.Option(min=1, help="Independent runs: name-000.zarr, name-001.zarr …")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes; each member runs in one.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first member; results are reproducible.")] = 0,
    resume: Resume = False,
) -> None:
    """Generate weather with a chaotic three-level model of the atmosphere; Zarr output with ERA5 names.

    It has storm tracks, seasons, mountains and a diurnal cycle. It is not ERA5, and its attributes say so.
    """
    from unipercept.app.forecaster.dynamics.lift import LiftConfig
    from unipercept.app.forecaster.generate import GenerateConfig
    from unipercept.app.forecaster.generate import generate as make

    config = GenerateConfig(days=days, start=start, seed=seed, lift=LiftConfig(levels=_levels(levels)))
    with resumable(), counting_bar("blocks of 10 days", config.n_blocks * members) as advance:
        paths = make(output, config, members=members, workers=workers, resume=resume, on_block=advance)
    for path in paths:
        typer.echo(f"{config.n_times} states: {path}")


register(app)  # train and forecast, in the order in which they are used


@app.command(
    epilog="Examples:\n  unipercept weather evaluate forecast.zarr --truth test.zarr --climate-of train.zarr -o scores.nc\n  "
    "unipercept weather evaluate short.zarr cascade.zarr --truth test.zarr -o scores.csv"
)
def evaluate(
    forecasts: Annotated[
        list[Path], typer.Argument(metavar="FORECAST", help="Stores that `weather forecast` wrote.", show_default=False)
    ],
    truth: Annotated[Path, typer.Option(help="Verifying analyses: Zarr, NetCDF or GRIB.", show_default=False)],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="scores.nc (all) or scores.csv.")] = None,
    climatology: Annotated[
        Path | None, typer.Option(help="Climatology file (hour, dayofyear, …) in the format of WeatherBench 2.")
    ] = None,
    climate_of: Annotated[
        Path | None,
        typer.Option(help="Compute the climatology from these fields: a year or more, preferably the training data."),
    ] = None,
    channels: Channels = None,
    region: Annotated[
        list[str] | None, typer.Option(help="Additional region: name=south:north:west:east in degrees. Repeatable.")
    ] = None,
    land_mask: Annotated[
        Path | None,
        typer.Option(help="File with lsm or land_sea_mask on the same grid; adds the regions land and sea."),
    ] = None,
    humidity: Annotated[
        str | None,
        typer.Option(help="q or r: convert from the other one, in forecasts, truth and climatology, as the IFS does."),
    ] = None,
    weights: Annotated[str, typer.Option(help="Area weights: cell (exact, as WeatherBench 2) or cos.")] = "cell",
) -> None:
    """Verify forecasts against analyses, compared with persistence and, if given, climatology.

    RMSE, bias, anomaly correlation, activity and spectra (which show blur), and for ensembles CRPS, spread and ranks;
    by lead, region and channel, as WeatherBench 2 defines them.
    """
    from unipercept.app.forecaster.evaluate import evaluate as score
    from unipercept.app.forecaster.evaluate import shared_channels
    from unipercept.app.forecaster.fields import (
        channel_names,
        doubtful_units,
        land_share,
        open_fields,
        sums_since_start,
    )
    from unipercept.app.forecaster.humidity import with_humidity

    if output is not None and output.suffix not in (".nc", ".csv"):
        raise InputError(f"scores are saved as .nc or .csv, got {output}")

    def opens(path: Path) -> Any:
        return open_fields(path) if humidity is None else with_humidity(open_fields(path), humidity)

    opened, observed = {name: opens(path) for name, path in _names(forecasts).items()}, opens(truth)
    if humidity is not None and climatology is not None:
        raise InputError("a climatology of one humidity cannot be made into one of the other; give --climate-of")
    chosen = shared_channels(list(opened.values()), observed, _split(channels))
    climate = _climate(climatology, climate_of, opens, chosen)
    shares = None
    if land_mask is not None:
        land = land_share(land_mask, observed["latitude"].values, observed["longitude"].values)
        shares = {name: share for name, share in (("land", land), ("sea", 1 - land)) if share.any()}
    for name, fields in (*opened.items(), ("truth", observed)):
        if said := fields.attrs.get("conversions"):
            typer.echo(f"note: {name}: {said}", err=True)
        for doubt in (*doubtful_units(fields), *sums_since_start(fields)):
            typer.echo(f"warning: {name}: {doubt}", err=True)
    left_out = {name for fields in opened.values() for name in channel_names(fields)} - set(chosen)
    if channels is None and left_out:
        typer.echo(
            f"note: not in the truth or not in every forecast, so not scored: {', '.join(sorted(left_out))}", err=True
        )
    total = next(iter(opened.values())).sizes.get("time", 1)
    with counting_bar("forecasts", total) as advance:
        result = score(
            opened,
            observed,
            climate,
            channels=chosen,
            boxes=dict(_box(text) for text in region or []),
            shares=shares,
            weights=weights,  # type: ignore[arg-type]
            on_forecast=advance,
        )
    if output is not None:
        result.save(output)
    _print_scores(result)


@app.command(
    epilog="Examples:\n  unipercept weather plot test.zarr -o map.png --channel z500 --time 2011-01-05\n  "
    "unipercept weather plot forecast.zarr --truth test.zarr -o compare.png\n  "
    "unipercept weather plot forecast.zarr -o storm.gif\n  unipercept weather plot scores.nc -o scorecard.png --kind scorecard"
)
def plot(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FIELDS_OR_SCORES",
            help="Weather as NetCDF, Zarr or GRIB, or the scores.nc of `weather evaluate`.",
            show_default=False,
        ),
    ],
    output: Output,
    channel: Annotated[
        str | None,
        typer.Option(help="Maps: one name (default: z500, or the first). Scores: names separated by commas."),
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="Time of the map, or initial time of the forecast. Default: the first.")
    ] = None,
    lead: Annotated[float | None, typer.Option(help="Lead time in hours. Default: the last.")] = None,
    truth: Annotated[Path | None, typer.Option(help="Also plot the truth and the error.")] = None,
    kind: Annotated[str, typer.Option(help="Scores: curves, scorecard or spectra.")] = "curves",
    model: Annotated[str | None, typer.Option(help="Scorecard: forecast to show. Default: the first.")] = None,
    against: Annotated[str, typer.Option(help="Scorecard: reference forecast.")] = "persistence",
    region: Annotated[str, typer.Option(help="Curves and scorecard: region.")] = "global",
    frames: Annotated[int, typer.Option(min=1, help="Animations: number of frames.")] = 40,
) -> None:
    """Plot maps with coastlines, animations (.gif, .mp4) or scores (curves, scorecard, spectra)."""
    from unipercept.app.forecaster import pictures, score_pictures
    from unipercept.app.forecaster.fields import channel_names, open_fields

    if score_pictures.is_scores(source):
        table = score_pictures.open_scores(source)
        chosen = _split(channel)
        if kind == "curves":
            score_pictures.plot_curves(output, table, chosen, region)
        elif kind == "scorecard":
            score_pictures.plot_scorecard(output, table, model, against, region)
        elif kind == "spectra":
            score_pictures.plot_spectra(output, table, chosen, lead)
        else:
            raise InputError(f"kind must be curves, scorecard or spectra, got {kind!r}")
    else:
        dataset = open_fields(source)
        names = channel_names(dataset)
        name = channel or ("z500" if "z500" in names else names[0])
        if output.suffix in (".gif", ".mp4"):
            with counting_bar("frames", frames) as advance:
                pictures.animate(output, dataset, name, time=time, n_frames=frames, on_frame=advance)
        elif truth is not None:
            pictures.plot_comparison(output, dataset, open_fields(truth), name, time, lead)
        else:
            pictures.plot_fields(output, dataset, name, time, lead)
    typer.echo(str(output))


def _levels(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"levels must be whole numbers of hPa with commas, got {text!r}") from error


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _names(paths: list[Path]) -> dict[str, Path]:
    """Each forecast by its file's name; those of one name by their path."""
    stems = [path.stem for path in paths]
    return {path.stem if stems.count(path.stem) == 1 else str(path): path for path in paths}


def _box(text: str) -> tuple[str, tuple[float, float, float, float]]:
    name, _, numbers = text.partition("=")
    try:
        south, north, west, east = (float(part) for part in numbers.split(":"))
    except ValueError as error:
        raise InputError(f"a region is name=south:north:west:east in degrees, got {text!r}") from error
    return name, (south, north, west, east)


def _climate(
    file: Path | None, data: Path | None, opens: Callable[[Path], Any], channels: Sequence[str]
) -> Climatology | None:
    from unipercept.app.forecaster.climatology import Climatology, build_climatology, open_climatology

    if file is not None and data is not None:
        raise InputError("give --climatology or --climate-of, not both")
    if file is not None:
        return open_climatology(file)
    return None if data is None else Climatology(build_climatology(opens(data), channels))


def _print_scores(result: Evaluation) -> None:
    """Global RMSE of every model, and the anomaly correlation and activity of the forecasts, by
    lead; then who is better when.
    """
    from rich.console import Console
    from rich.table import Table

    from unipercept.app.forecaster.evaluate import ALL
    from unipercept.app.forecaster.score_pictures import shown_channels

    scores = result.table.sel(region="global")
    leads = scores["lead"].values
    shown = _shown_leads(leads)
    table = Table(box=None, pad_edge=False)
    for column in ("channel", "score", "model", *(f"{leads[i] / 24:g} d" for i in shown)):
        table.add_column(column, justify="left" if column in ("channel", "score", "model") else "right", no_wrap=True)
    for row in _score_rows(scores, (ALL, *shown_channels(result.table, None)), shown):
        table.add_row(*row)
    console = Console()
    console.width = console.width if console.is_terminal else 160
    console.print(table)
    for line in result.verdicts():
        console.print(line)
    for channel in scores["channel"].values:
        share = float(scores["coverage"].isel(model=0).sel(channel=channel).min())
        if share < 1:
            console.print(f"{channel}: over the {share:.1%} of the area where the truth has values")
    counts = scores["n_forecasts"].isel(model=0).values
    console.print(
        f"{int(counts.min())} to {int(counts.max())} forecasts a lead; weights: {result.table.attrs['weights']}; "
        f"{ALL}: each channel in standard deviations of its truth"
    )


def _score_rows(scores: xarray.Dataset, channels: Sequence[str], shown: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """Channel, score, model, and the values at the shown leads; rows without any value are left out."""
    from numpy import isfinite

    from unipercept.app.forecaster.evaluate import ALL, OVERALL

    models = [str(name) for name in scores["model"].values]
    for channel, name in itertools.product(channels, SHOWN_SCORES):
        found = scores.get(OVERALL + name) if channel == ALL else scores.get(name)
        if found is None:
            continue
        found = found if channel == ALL else found.sel(channel=channel)
        for model in models[:1] if name == "truth_activity" else models:
            values = found.sel(model=model).values[shown]
            if isfinite(values).any() and not (name != "rmse" and model == "climatology"):
                of = "truth" if name == "truth_activity" else model
                yield channel, name.removeprefix("truth_"), of, *(f"{v:.4g}" for v in values)


def _shown_leads(hours: Any) -> list[int]:
    """Numbers of the leads that the table shows: the first one and whole days, thinned out where they are many."""
    days = [i for i in range(len(hours)) if i == 0 or hours[i] % 24 == 0]
    if len(days) < min(len(hours), SHOWN_LEADS // 2):
        days = list(range(len(hours)))
    step = -(-len(days) // SHOWN_LEADS)
    return sorted({*days[::step], len(hours) - 1})
