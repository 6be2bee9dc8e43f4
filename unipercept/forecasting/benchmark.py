"""The long-term forecasting benchmark: published splits and scaling, every window one row apart, none dropped.

Validation chooses (settings, the epoch, the intervals' factors); the test split is scored once, at the end. Errors are
those of the field: mean over all windows, steps and variables, on values scaled by the training rows.

`benchmark_network` trains and judges the network, `benchmark_baselines` what needs no training on the set.

Shapes: S series, L past steps, T future steps, V variables.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unipercept.datasets import dataset
from unipercept.datasets.windows import WindowSet
from unipercept.devices import resolve_device
from unipercept.errors import InputError
from unipercept.forecasting import season
from unipercept.forecasting.window_scores import Scores
from unipercept.forecasting.windows import Windows

SPLITS = ("train", "val", "test")
LONG = (96, 192, 336, 720)
LOADER_BATCH = 512  # windows; of ModernTCN's script for ETTh2, whose loader drops the last, incomplete one
HARMONICS = 4  # of the clock features: sine and cosine of the time of day


@dataclass(frozen=True)
class BenchmarkSet:
    """A set of the benchmark.

    `day` is the rows that repeat, for the folding, the clock and the seasonal naive forecast.
    """

    day: int
    horizons: tuple[int, ...] = LONG
    lookbacks: tuple[int, ...] = (512, 96)  # of the published tables
    has_clock: bool = True
    days_a_year: float = 365.25
    one_table: bool = True  # the splits are rows of one table, rather than tables of their own

    def holds_years(self, rows: int) -> bool:
        """Whether so many rows tell a year's season from what is slower: as many cycles as any season asks for."""
        return rows >= season.MIN_CYCLES * self.day * self.days_a_year


SETS = {
    "etth1": BenchmarkSet(24),
    "etth2": BenchmarkSet(24),
    "ettm1": BenchmarkSet(96),
    "ettm2": BenchmarkSet(96),
    "weather_jena": BenchmarkSet(144),
    "exchange_rate": BenchmarkSet(7, has_clock=False, days_a_year=365.25 / 7),  # rows are days, a cycle is a week
    "ili": BenchmarkSet(52, (24, 36, 48, 60), (104, 36), days_a_year=1.0),
    "electricity": BenchmarkSet(24),
    "traffic": BenchmarkSet(24),
    "solar": BenchmarkSet(144),
    "stations_temperature": BenchmarkSet(24, (24,), (48,), has_clock=False, one_table=False),
    "stations_wind": BenchmarkSet(24, (24,), (48,), has_clock=False, one_table=False),  # a file does not say its hours
}


@dataclass(frozen=True)
class Task:
    """The windows of one set at one look-back and horizon, on a device."""

    name: str
    lookback: int
    horizon: int
    splits: dict[str, Windows]
    n_features: int

    @property
    def facts(self) -> BenchmarkSet:
        """The set's."""
        return SETS[self.name]

    def without_features(self) -> Task:
        """The same without what is known in advance."""
        bare = {name: replace(windows, features=None) for name, windows in self.splits.items()}
        return replace(self, splits=bare, n_features=0)

    def stream(self, split: str) -> Windows:
        """Windows of consecutive rows that end with a split's: for the test split those
        from the first of validation on.

        Between the two splits lie windows whose past ends in validation and whose future ends in the test split:
        forecasts that are made before the first test window and come true during the test.
        """
        last, first = self.splits[split], self.splits["val" if self.facts.one_table else split]
        starts = torch.arange(int(first.starts[0]), int(last.starts[-1]) + 1, device=last.starts.device)
        return replace(last, starts=starts, rows=starts, stride=torch.full_like(starts, int(last.stride[0])))

    def before_test(self) -> Windows:
        """All windows whose rows lie before the test split: those of training, of validation, and those that begin
        in one and end in the other.

        Raises:
            InputError: the splits are tables of their own.
        """
        if not self.facts.one_table:
            raise InputError(f"{self.name} has a table for each split; no windows span training and validation")
        training, last = self.splits["train"], int(self.splits["val"].starts[-1])
        starts = torch.arange(int(training.starts[0]), last + 1, device=training.starts.device)
        return replace(training, starts=starts, rows=starts, stride=torch.full_like(starts, int(training.stride[0])))


def open_task(
    name: str, folder: str | Path, lookback: int, horizon: int, *, device: str = "auto", together: bool = False
) -> Task:
    """Read a set's three splits.

    Raises:
        InputError: no such set or folder, or windows that do not fit.
    """
    if name not in SETS:
        raise InputError(f"the long-term benchmark has {', '.join(SETS)}; got {name!r}")
    where, found, features, facts = resolve_device(device), {}, None, SETS[name]
    values: Tensor | None = None
    for split in SPLITS:
        whole = _split(name, str(folder), split)
        opened = WindowSet(whole.values, whole.first, whole.last, lookback, horizon)
        if values is None or not facts.one_table:
            values = torch.from_numpy(opened.values).to(where)
            features = clock(len(values), facts.day).to(where) if facts.has_clock else None
        found[split] = windows_of(opened, values, features, together)
    return Task(name, lookback, horizon, found, 0 if features is None else features.shape[1])


@lru_cache(maxsize=12)
def _split(name: str, folder: str, split: str) -> WindowSet:
    """Read once for all look-backs and horizons."""
    opened = dataset(name, folder, split, lookback=1, horizon=1)
    assert isinstance(opened, WindowSet)
    return opened


def windows_of(opened: WindowSet, values: Tensor, features: Tensor | None, together: bool = False) -> Windows:
    """The windows of a `WindowSet`, all of them, in its order."""
    starts = torch.arange(len(opened), device=values.device) + opened.first_future - opened.lookback
    stride = torch.full_like(starts, len(values))
    buffer = values.T.contiguous().flatten()
    return Windows(
        buffer, None, features, starts, starts, stride, values.shape[1], opened.lookback, opened.horizon, together
    )


def last_batch(windows: Windows, batch: int = LOADER_BATCH) -> Windows | None:
    """The windows that a loader leaves out which drops its last, incomplete batch; None where nothing is left out, or
    nothing would be left.
    """
    count = len(windows.starts) // batch * batch
    if count in (0, len(windows.starts)):
        return None
    return replace(windows, starts=windows.starts[count:], rows=windows.rows[count:], stride=windows.stride[count:])


def without(whole: Scores, part: Scores) -> float:
    """Mean squared error of the windows that are not in the part."""
    return (whole.mse * whole.n - part.mse * part.n) / (whole.n - part.n)


def clock(rows: int, day: int) -> Tensor:
    """Rows x 2 HARMONICS: sine and cosine of the time of day, known in advance from the row number alone.

    The time of year is left out: a season wants `season.MIN_CYCLES`, and no training split of hourly or
    finer rows holds so many years.
    """
    angle = torch.arange(rows, dtype=torch.float64)[:, None] * (2 * math.pi / day) * torch.arange(1, HARMONICS + 1)
    return torch.cat([angle.sin(), angle.cos()], 1).float()


@dataclass(frozen=True)
class Result:
    """A row of the table."""

    set: str
    lookback: int
    horizon: int
    method: str
    seed: int
    validation: Scores
    test: Scores | None
    epochs: int = 0
    parameters: int = 0
    seconds: float = 0.0
    alone: float | None = None  # validation error of the best network by itself, mean over the horizons
    dropped_mse: float | None = None  # test error without `last_batch`, as many published ones are

    def to_text(self) -> str:
        """A line for a terminal."""
        found, part = (self.test, "test") if self.test is not None else (self.validation, "validation")
        return (
            f"{self.set} {part}, {self.lookback} past and {self.horizon:>3} future steps, {self.method}: MSE {found.mse:.3f}, "
            f"MAE {found.mae:.3f}, wQL {found.wql:.3f}, 80 % covers {100 * found.coverage_80:.1f}, 95 % covers {100 * found.coverage_95:.1f}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Flat, for a table."""
        row: dict[str, Any] = {key: value for key, value in asdict(self).items() if not isinstance(value, dict)}
        row.pop("test", None)
        for part, found in (("validation", self.validation), ("test", self.test)):
            if found is not None:
                row |= {f"{part}_{key}": value for key, value in asdict(found).items()}
        return row
