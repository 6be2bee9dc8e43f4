"""The verb that forecasts a table of series (outer ring)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from unipercept.cli_parts import Device, Json, Seed, one_bar

app = typer.Typer()


@app.command(
    rich_help_panel="Series and weather",
    epilog="Examples:\n  unipercept forecast load.csv --horizon 24\n  "
    "unipercept forecast sales.csv --horizon 12 --target units --date month -o next.csv --report next.html\n  "
    "unipercept forecast sensors.parquet --horizon 96 --methods linear,smoothing --seconds 20 --json",
)
def forecast(
    series: Annotated[
        str,
        typer.Argument(
            metavar="SERIES", help="CSV of any dialect, Excel (.xlsx), Parquet or Feather.", show_default=False
        ),
    ],
    horizon: Annotated[
        int, typer.Option("--horizon", "-H", min=1, max=100_000, help="Steps ahead.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Forecast and quantiles as .csv, .parquet, .json, .nc or .zarr.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Plot of history, forecast, intervals and back-test (.png, .svg, .pdf).", show_default=False),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="HTML report: what was detected, which methods were chosen, and the back-test.", show_default=False
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Column to forecast. Repeatable. Default: all numeric columns.", show_default=False),
    ] = None,
    date: Annotated[str | None, typer.Option(help="Column of times. Default: detected.", show_default=False)] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            "--id",
            help="Column that identifies the series of each row (long format). Default: detected.",
            show_default=False,
        ),
    ] = None,
    known: Annotated[
        list[str] | None,
        typer.Option(
            help="Covariate known in advance (price, holiday, a weather forecast), given in rows beyond the last target. Repeatable. "
            "Default: columns that alone extend that far.",
            show_default=False,
        ),
    ] = None,
    static: Annotated[
        list[str] | None,
        typer.Option(
            help="Static attribute: in long format, a column with one value per series (region, store type, size), used by the network. Repeatable. "
            "Default: detected.",
            show_default=False,
        ),
    ] = None,
    period: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Steps per cycle. Default: detected.", show_default=False)
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help="Methods to back-test, separated by commas: naive, seasonal, drift, smoothing, ets, ces, theta, arima, cycles, week, usual, linear, pretrained, network. Default: all.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Approximate time limit.")] = 120.0,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Forecast a table of time series, with prediction intervals calibrated by back-testing.

    The time column, the step, the cycle and the targets are detected; gaps, duplicates, clock changes, spikes and codes
    for missing values are handled and reported. Every method is back-tested on the same past windows. The best one, or
    a blend, makes the forecast, and its 80 % and 95 % intervals are calibrated to have had that coverage.

    The output has one row per step: NAME is the median, NAME_q0.1 and NAME_q0.9 bound the 80 % interval,
    NAME_q0.025 and NAME_q0.975 the 95 % interval. With more than 20 series, or a table in long format, it has
    one row per step and series.
    """
    from unipercept.forecasting.command import as_json as record
    from unipercept.forecasting.command import check_outputs, parse_methods, summary, write_outputs
    from unipercept.forecasting.forecast import forecast_table

    check_outputs(series, output, plot, report)
    chosen = parse_methods(methods or [])
    with one_bar("forecast") as tell:
        result = forecast_table(
            series,
            horizon,
            targets=target or (),
            time=date,
            series=by,
            known=known or (),
            static=static or (),
            period=period,
            methods=chosen,
            seconds=seconds,
            device=device,
            seed=seed,
            tell=tell,
        )
        written = write_outputs(result, output, plot, report)
    typer.echo(json.dumps(record(result, written), ensure_ascii=False) if as_json else summary(result, written))
