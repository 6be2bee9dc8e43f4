"""States of a weather file or store, read by time: the only place of the forecaster that touches fields on disk.

Shapes: T times, V channels, H rows from north to south, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError
from unipercept.pipelines.weather import Fields, WeatherConfig, WeatherPipeline, doubts, read_block
from unipercept.pipelines.weather_grid import area_weights

if TYPE_CHECKING:
    from unipercept.train.distributed import Processes

BLOCK_BYTES = 128 << 20  # fields in memory while statistics are taken
HOUR = np.timedelta64(1, "h")
GRID_TOLERANCE_DEGREES = 1e-3


@dataclass(frozen=True)
class Grid:
    """Positions of the cells: H degrees north, falling, and W degrees east, rising."""

    latitude: tuple[float, ...]
    longitude: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """H, W."""
        return len(self.latitude), len(self.longitude)

    def matches(self, other: Grid) -> bool:
        """Whether the cells are the same, to 0.001 degrees."""
        return self.shape == other.shape and all(
            np.allclose(a, b, rtol=0, atol=GRID_TOLERANCE_DEGREES)
            for a, b in ((self.latitude, other.latitude), (self.longitude, other.longitude))
        )


@dataclass(frozen=True)
class Statistics:
    """Statistics of each channel, V values: area-weighted mean and standard deviation, and
    that of the change over a step.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    change: tuple[float, ...]


class Frames:
    """A weather source whose states can be read by number.

    Args:
        source: a NetCDF or GRIB file, a Zarr folder, or an xarray Dataset.
        channels: which, in which order; None for all.

    Raises:
        InputError: it cannot be read, has no time axis, or its times are missing, repeat or run backwards.
    """

    def __init__(self, source: Any, channels: Sequence[str] | None = None) -> None:
        import xarray as xr

        config = WeatherConfig(channels=None if channels is None else tuple(channels))
        self.fields: Fields = WeatherPipeline(config).read(source)
        self.source = str(source) if isinstance(source, str | Path) else "Dataset"
        dataset = self.fields.dataset
        if isinstance(dataset.indexes.get("time"), xr.CFTimeIndex):  # those with common dates are converted by now
            raise InputError(
                f"{self.source} has times of the {dataset.indexes['time'].calendar} calendar that are no dates of the common one; "
                "convert them first (xarray: convert_calendar)"
            )
        if "time" not in dataset.coords or dataset.coords["time"].dtype.kind != "M":
            raise InputError(f"{self.source} has no time axis with dates; a forecast needs to know when its states are")
        self.times: NDArray[np.datetime64] = np.atleast_1d(dataset["time"].values).astype("datetime64[ns]")
        if np.isnat(self.times).any():
            raise InputError(f"{self.source} has states without a time; drop them")
        if len(self.times) > 1 and (np.diff(self.times) <= np.timedelta64(0, "ns")).any():
            raise InputError(f"{self.source} repeats or mixes up its times; sort them and drop what comes twice")
        self.channels = tuple(channel.name for channel in self.fields.channels)
        self.units = tuple(channel.unit for channel in self.fields.channels)
        self.grid = Grid(
            tuple(dataset["latitude"].values.astype(float).tolist()),
            tuple(dataset["longitude"].values.astype(float).tolist()),
        )

    def __len__(self) -> int:
        return len(self.times)

    def read(self, numbers: Sequence[int]) -> NDArray[np.float32]:
        """TxVxHxW in canonical units.

        Raises:
            InputError: a cell is missing.
        """
        codes: list[str] = []
        block = read_block(self.fields, tuple(int(n) for n in numbers), codes)
        if not np.isfinite(block).all():
            time, channel = np.argwhere(~np.isfinite(block))[0][:2]
            raise InputError(
                f"{self.source} has missing or infinite cells in {self.channels[channel]} at "
                f"{np.datetime_as_string(self.times[numbers[time]], 'm')}; {'; '.join([*codes, 'fill them first'])}"
            )
        return block

    def doubts(self) -> list[str]:
        """A sentence for each channel whose first state cannot be in the unit that the source states."""
        return doubts(self.fields.channels, read_block(self.fields, (0,))[0])

    def at(self, time: Any) -> int:
        """The number of the state of a time.

        Raises:
            InputError: there is none.
        """
        wanted = _moment(time, last=False)
        number = int(np.searchsorted(self.times, wanted))
        if number == len(self) or self.times[number] != wanted:
            first, last = (np.datetime_as_string(t, "m") for t in self.times[[0, -1]])
            raise InputError(
                f"{self.source} has no state at {np.datetime_as_string(wanted, 'm')}; it runs from {first} to {last}"
            )
        return number

    def step_hours(self) -> float:
        """Hours between two states: the most frequent distance.

        Raises:
            InputError: fewer than two states.
        """
        if len(self) < 2:
            raise InputError(f"{self.source} holds one state; at least two are needed")
        values, counts = np.unique(np.diff(self.times), return_counts=True)
        return float(values[counts.argmax()] / HOUR)

    def states_a_step(self, step_hours: float) -> int:
        """How many states lie from the start of a step to its end.

        Raises:
            InputError: a step is no multiple of the distance between two states.
        """
        every = round(step_hours / self.step_hours())
        if every < 1 or abs(every * self.step_hours() - step_hours) > 1e-6:
            raise InputError(
                f"a step of {step_hours:g} h is no multiple of the data's {self.step_hours():g} h; choose another"
            )
        return every

    def between(self, start: Any = None, end: Any = None) -> slice:
        """Numbers of the states from `start` to `end`, both included; None for no limit.

        Raises:
            InputError: none lies there.
        """
        first = 0 if start is None else int(np.searchsorted(self.times, _moment(start, last=False)))
        stop = len(self) if end is None else int(np.searchsorted(self.times, _moment(end, last=True), side="right"))
        if first >= stop:
            known = " to ".join(np.datetime_as_string(t, "D") for t in self.times[[0, -1]])
            raise InputError(f"{self.source} has no state from {start} to {end}; it runs from {known}")
        return slice(first, stop)

    def statistics(
        self,
        span: slice,
        step_hours: float,
        processes: Processes | None = None,
        on_block: Callable[[int, int], None] | None = None,
    ) -> Statistics:
        """Area-weighted moments over the states of `span`, in one pass of bounded memory.

        Args:
            processes: that take a part of the span each.
            on_block: called with how many states are done, of how many, in the first process.

        Raises:
            InputError: a channel is constant, so it cannot be normalised.
        """
        weights = area_weights(np.asarray(self.grid.latitude))[:, None] / self.grid.shape[0] / self.grid.shape[1]
        numbers = range(*span.indices(len(self)))
        step, lag = np.timedelta64(round(step_hours * 3600), "s"), self.states_a_step(step_hours)
        rank, count = (0, 1) if processes is None else (processes.rank, processes.count)
        first, stop = (len(numbers) * r // count for r in (rank, rank + 1))
        n_block = max(2, BLOCK_BYTES // (4 * len(self.channels) * self.grid.shape[0] * self.grid.shape[1]))
        # Squares of departures from a first guess keep their digits.
        shift = (self.read([numbers[0]])[0].astype(np.float64) * weights).sum(axis=(-2, -1))
        sums, n_changes = np.zeros((3, len(self.channels))), 0
        last = self.read(list(numbers[max(0, first - lag) : first])).astype(np.float64) if first else None
        for start in range(first, stop, n_block):
            part = numbers[start : min(start + n_block, stop)]
            block = self.read(list(part)).astype(np.float64)
            departure = block - shift[:, None, None]
            sums[0] += (departure * weights).sum(axis=(0, 2, 3))
            sums[1] += (departure**2 * weights).sum(axis=(0, 2, 3))
            joined = block if last is None else np.concatenate([last, block])
            times = self.times[part.stop - len(joined) : part.stop]
            regular = times[lag:] - times[:-lag] == step  # not across a gap
            sums[2] += ((joined[lag:] - joined[:-lag])[regular] ** 2 * weights).sum(axis=(0, 2, 3))
            n_changes += int(regular.sum())
            last = joined[-lag:]
            if on_block is not None and rank == 0:
                on_block(min((part.stop - numbers[0]) * count, len(numbers)), len(numbers))
        if processes is not None:
            *flat, n_all = processes.sum([*sums.ravel().tolist(), float(n_changes)])
            sums, n_changes = np.reshape(flat, sums.shape), round(n_all)
        mean = sums[0] / len(numbers)
        std = np.sqrt(np.maximum(sums[1] / len(numbers) - mean**2, 0))
        change = np.sqrt(sums[2] / max(n_changes, 1))
        still = [name for name, s, d in zip(self.channels, std, change, strict=True) if not (s > 0 and d > 0)]
        if still:
            raise InputError(f"{self.source}: {', '.join(still)} never changes and cannot be forecast; leave it out")
        return Statistics(tuple((mean + shift).tolist()), tuple(std.tolist()), tuple(change.tolist()))


def _moment(date: Any, last: bool) -> np.datetime64:
    """A date as the first or the last moment that it covers: 2009 ends with its December."""
    try:
        value: Any = np.datetime64(str(date)) if not isinstance(date, np.datetime64) else date
    except ValueError as error:
        raise InputError(f"expected a date such as 2009, 2009-07 or 2009-07-01T12, got {date!r}") from error
    if not last:
        return np.datetime64(value, "ns")
    unit: Any = np.datetime_data(value.dtype)[0]
    following = (value + np.timedelta64(1, unit)).astype("datetime64[ns]")  # one more of its own unit
    return np.datetime64(following - np.timedelta64(1, "ns"))
