"""The long-term forecasting benchmark: published splits and scaling, every window one row apart, none dropped.

Validation chooses (settings, the epoch, the intervals' factors); the test split is scored once, at the end. Errors are
those of the field: mean over all windows, steps and variables, on values scaled by the training rows.

Shapes: S series, L past steps, T future steps, V variables, Q quantile levels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
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
from unipercept.forecasting.blend import Blend, blend
from unipercept.forecasting.calibration import Calibrator
from unipercept.forecasting.least_squares import RIDGES, Ridge, normal_equations, start_linear_path
from unipercept.forecasting.lines import Line, choose_lines, learned_again, lookbacks
from unipercept.forecasting.network import SeriesForecast, SeriesForecaster
from unipercept.forecasting.pretrained import Pretrained, short_cycle
from unipercept.forecasting.published import RATES, train_nlinear
from unipercept.forecasting.rolling import Forecast, follow
from unipercept.forecasting.scores import MEDIAN
from unipercept.forecasting.settings import QUANTILES, ForecastConfig
from unipercept.forecasting.training import FitProgress, Training, side_by_side, training_steps
from unipercept.forecasting.window_scores import Scores, score
from unipercept.forecasting.windows import Batch, Windows
from unipercept.train.randomness import preserved_randomness

SPLITS = ("train", "val", "test")
LONG = (96, 192, 336, 720)
UPDATES = 4  # of the intervals, a cycle
LOADER_BATCH = 512  # windows; of ModernTCN's script for ETTh2, whose loader drops the last, incomplete one
HARMONICS = 4  # of the clock features: sine and cosine of the time of day


@dataclass(frozen=True)
class BenchmarkSet:
    """A set of the benchmark.

    `day` is the rows that repeat, for the folding, the clock and the seasonal naive forecast.
    """

    day: int
    horizons: tuple[int, ...] = LONG
    has_clock: bool = True
    lookback: int = 512  # of the second table; the first is 96 for all
    days_a_year: float = 365.25

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
    "ili": BenchmarkSet(52, (24, 36, 48, 60), lookback=104, days_a_year=1.0),
    "electricity": BenchmarkSet(24),
    "traffic": BenchmarkSet(24),
    "solar": BenchmarkSet(144),
    "stations_temperature": BenchmarkSet(24, (24,), lookback=48),
    "stations_wind": BenchmarkSet(24, (24,), lookback=48),
}
STATISTICAL = ("repeat", "seasonal", "drift", "smoothing")
BASELINES = (*STATISTICAL, "linear", "nlinear")


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
        last, first = self.splits[split], self.splits["val" if self.is_one_table else split]
        starts = torch.arange(int(first.starts[0]), int(last.starts[-1]) + 1, device=last.starts.device)
        return replace(last, starts=starts, rows=starts, stride=torch.full_like(starts, int(last.stride[0])))

    def before_test(self) -> Windows:
        """All windows whose rows lie before the test split: those of training, of validation, and those that begin
        in one and end in the other.

        Raises:
            InputError: the splits are tables of their own.
        """
        if not self.is_one_table:
            raise InputError(f"{self.name} has a table for each split; no windows span training and validation")
        training, last = self.splits["train"], int(self.splits["val"].starts[-1])
        starts = torch.arange(int(training.starts[0]), last + 1, device=training.starts.device)
        return replace(training, starts=starts, rows=starts, stride=torch.full_like(starts, int(training.stride[0])))

    @property
    def is_one_table(self) -> bool:
        """Whether the splits are rows of one table, rather than tables of their own."""
        return not self.name.startswith("stations")


def open_task(
    name: str, folder: str | Path, lookback: int, horizon: int, *, device: str = "auto", together: bool = False
) -> Task:
    """Read a set's three splits.

    Raises:
        InputError: no such set or folder, or windows that do not fit.
    """
    if name not in SETS:
        raise InputError(f"the long-term benchmark has {', '.join(SETS)}; got {name!r}")
    where, found, features = resolve_device(device), {}, None
    values: Tensor | None = None
    for split in SPLITS:
        whole = _split(name, str(folder), split)
        opened = WindowSet(whole.values, whole.first, whole.last, lookback, horizon)
        if values is None or len(values) != len(opened.values) or name.startswith("stations"):
            values = torch.from_numpy(opened.values).to(where)
            features = clock(len(values), SETS[name].day).to(where) if SETS[name].has_clock else None
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


def without_last_batch(windows: Windows, batch: int = LOADER_BATCH) -> Windows:
    """The windows that a loader gives which drops its last, incomplete batch: what many
    published errors are a mean of.
    """
    count = len(windows.starts) // batch * batch or len(windows.starts)
    return replace(windows, starts=windows.starts[:count], rows=windows.rows[:count], stride=windows.stride[:count])


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
    dropped_mse: float | None = None  # test error of the windows that `without_last_batch` leaves

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


def run_network(
    name: str,
    folder: str | Path,
    config: ForecastConfig,
    *,
    horizons: tuple[int, ...] = (),
    seed: int = 0,
    members: int = 1,
    device: str = "auto",
    judge_test: bool = False,
    refit: bool = False,
    validation_cap: int | None = 8_000,
    seconds: float | None = None,
    on_progress: Callable[[FitProgress], object] | None = None,
) -> tuple[list[Result], Blend]:
    """Train one forecast for all horizons on the training windows, stop, weigh and calibrate on validation, judge.

    The forecast is the weighted mean of lines in closed form, from several look-backs, and of `members` networks, which
    are trained side by side on the longest horizon and differ in their start, the order of the windows and how evenly
    these count, from not at all to the setting. A shorter horizon takes the first steps.

    Args:
        config: its look-back and recipe; the horizon and the period are the set's.
        horizons: none for the set's.
        refit: afterwards learn once more from the rows of training and validation, by what was chosen before: the
            lines' settings, as many updates of the networks, the weights. Rows with "network refit" as method
            follow. Their validation scores and the intervals' first factors are those of the forecast that has
            not learned from validation.
        seconds: budget of the networks' training.

    Returns:
        The rows, and the forecast; with `refit` that of the last rows.
    """
    began = time.monotonic()
    horizons = tuple(sorted(horizons or SETS[name].horizons))
    sizes = name, str(folder), config.lookback, horizons, device, config.clock, config.mixing
    form = _closed_form(*sizes)
    longest, day = form.tasks[-1], SETS[name].day
    training, validation = longest.splits["train"], longest.splits["val"]
    config = config.changed(horizon=horizons[-1], period=config.period or day, pull=form.level is not None)
    own = [config.changed(evenness=config.evenness * share) for share in _shares(members)]
    recipe = _Recipe(own, seed, horizons, validation_cap, seconds, on_progress)
    networks, trainings = recipe.trained(form, training, validation)
    plain = blend(networks, form.lines, [task.splits["val"] for task in form.tasks])
    again = plain
    if refit:
        form = _learned_again(*sizes)
        networks, _ = recipe.trained(form, longest.before_test(), None, trainings)
        again = replace(plain, networks=tuple(networks), lines=tuple(map(tuple, form.lines)))
    count = sum(parameter.numel() for network in networks for parameter in network.parameters())
    epochs = max(len(training.history) for training in trainings)
    alone = min(progress.validation_loss for training in trainings for progress in training.history)
    results = []
    for task in form.tasks:
        factors = calibrate(plain, task, config)
        every = max(1, day // UPDATES)
        rolling = follow(plain, task.stream("val"), factors, config.quantiles, every)
        scored = score(rolling.around(plain), task.splits["val"], config.quantiles)
        for found in (plain, again)[: 1 + refit]:
            test = dropped = None
            if judge_test:
                windows = task.splits["test"]
                online = follow(_switched(plain, found, windows), task.stream("test"), factors, config.quantiles, every)
                test = score(online.around(found), windows, config.quantiles)
                dropped = score(found, without_last_batch(windows), config.quantiles).mse
            method = "network" if found is plain else "network refit"
            results.append(
                Result(
                    name, config.lookback, task.horizon, method, seed, scored, test, epochs, count, time.monotonic() - began,
                    alone, dropped,
                )
            )  # fmt: skip
    return sorted(results, key=lambda result: result.method), again


def _shares(members: int) -> list[float]:
    return [member / (members - 1) for member in range(members)] if members > 1 else [1.0]


@dataclass(frozen=True)
class _Recipe:
    """How the networks of a forecast are trained."""

    configs: list[ForecastConfig]  # a network each
    seed: int
    horizons: tuple[int, ...]
    validation_cap: int | None
    seconds: float | None
    on_progress: Callable[[FitProgress], object] | None

    def trained(
        self, form: _ClosedForm, training: Windows, validation: Windows | None, again: list[Training] | None = None
    ) -> tuple[list[SeriesForecaster], list[Training]]:
        """The networks and what their trainings came to.

        Args:
            again: trainings whose updates are repeated in number; nothing is judged.
        """
        networks, trainings = [], []
        with preserved_randomness(self.seed):
            for member, config in enumerate(self.configs):
                own_seed = self.seed * len(self.configs) + member
                torch.manual_seed(own_seed)
                network = SeriesForecaster(config, training.n_variables, form.tasks[-1].n_features)
                network = network.to(training.values.device)
                if form.level is not None and network.pull is not None:
                    network.pull.data.copy_(form.level)
                networks.append(network)
                trainings.append(
                    training_steps(
                        network, training, validation, seed=own_seed, seconds=self.seconds, validation_cap=self.validation_cap,
                        horizons=self.horizons, line=form.start, again=None if again is None else again[member],
                        on_progress=self.on_progress,
                    )
                )  # fmt: skip
            return networks, side_by_side(trainings, training.values.device)


def _switched(before: Forecast, after: Forecast, test: Windows) -> Forecast:
    """One forecast up to the first row of the test split, another from it on.

    What has learned from validation would be judged there on what it knows, and its intervals would be too narrow.
    """
    if before is after:
        return before
    first = test.rows[0] + test.lookback

    def forecast(batch: Batch) -> SeriesForecast:
        late = (batch.origin >= first)[:, None, None]
        one, other = before(batch), after(batch)
        assert one.quantiles is not None
        assert other.quantiles is not None
        quantiles = torch.where(late[..., None], other.quantiles, one.quantiles)
        return SeriesForecast(torch.where(late, other.point, one.point), quantiles, one.deviation)

    return forecast


@dataclass(frozen=True)
class _ClosedForm:
    """What depends on no seed."""

    tasks: tuple[Task, ...]  # a horizon each
    lines: tuple[list[Line], ...]  # of the steps from the horizon before
    start: Tensor  # TxL, of the networks' dense path
    ridge: Ridge | None  # its settings, where it is solved for by itself
    level: Tensor | None  # VxT, the first lines' return to the long-run mean, where the networks' starts; None: none


@lru_cache(maxsize=8)
def _closed_form(
    name: str, folder: str, lookback: int, horizons: tuple[int, ...], device: str, with_clock: bool, together: bool
) -> _ClosedForm:
    tasks = tuple(open_task(name, folder, lookback, horizon, device=device, together=together) for horizon in horizons)
    if not with_clock:
        tasks = tuple(task.without_features() for task in tasks)
    longest = tasks[-1]
    training, facts = longest.splits["train"], longest.facts
    years = facts.holds_years(len(training.starts) + longest.lookback + longest.horizon - 1)
    lines = tuple(
        [
            line
            for seen in lookbacks(lookback, facts.day)
            for line in choose_lines(
                task.splits["train"].seeing(seen), task.splits["val"].seeing(seen), facts.day, steps, years=years
            )
        ]
        for task, steps in zip(tasks, _stretches(horizons), strict=True)
    )
    if years:
        start, level = _of_lines([first for first, *_ in lines])
        return _ClosedForm(tasks, lines, start, None, level)
    return _ClosedForm(tasks, lines, *_least_squares(longest, training), None)


@lru_cache(maxsize=8)
def _learned_again(
    name: str, folder: str, lookback: int, horizons: tuple[int, ...], device: str, with_clock: bool, together: bool
) -> _ClosedForm:
    """The same settings, learned from training and validation."""
    form = _closed_form(name, folder, lookback, horizons, device, with_clock, together)
    lines = tuple(
        [learned_again(line, task.before_test(), task.facts.day, steps) for line in of_stretch]
        for task, of_stretch, steps in zip(form.tasks, form.lines, _stretches(horizons), strict=True)
    )
    if form.ridge is None:
        start, level = _of_lines([first for first, *_ in lines])
        return replace(form, lines=lines, start=start, level=level)
    start, _ = _least_squares(form.tasks[-1], form.tasks[-1].before_test(), [form.ridge])
    return replace(form, lines=lines, start=start)


def _stretches(horizons: tuple[int, ...]) -> list[range]:
    return [range(first, last) for first, last in zip([0, *horizons], horizons, strict=False)]


def _of_lines(lines: list[Line]) -> tuple[Tensor, Tensor]:
    """TxL, the mean of the variables' weights, and VxT, the return to the long-run mean
    that was solved for with them.
    """
    most = max(1 if line.level is None else len(line.level) for line in lines)
    levels = [line.weight.new_zeros(most, line.weight.shape[2]) if line.level is None else line.level for line in lines]
    return torch.cat([line.weight.mean(0) for line in lines], 1).T, torch.cat(levels, 1)


def _least_squares(task: Task, windows: Windows, among: Sequence[Ridge] = RIDGES) -> tuple[Tensor, Ridge]:
    """TxL, ridge regression of the windows around the mean cycle, and which of `among` validation chose."""
    sizes = ForecastConfig(lookback=task.lookback, horizon=task.horizon, period=task.facts.day, blocks=0)
    carrier = SeriesForecaster(sizes).to(windows.values.device)
    chosen = start_linear_path(carrier, windows, task.splits["val"], among=among)
    assert carrier.dense is not None
    return carrier.dense.weight.detach(), chosen or among[0]


@torch.no_grad()
def calibrate(forecast: Blend, task: Task, config: ForecastConfig, cap: int = 4_000) -> Tensor:
    """Factors of the intervals from validation windows spread over the split."""
    windows = task.splits["val"]
    calibrator = Calibrator(config.quantiles, windows.horizon)
    numbers = torch.arange(0, len(windows), max(1, len(windows) // cap), device=windows.values.device)
    for part in torch.split(
        numbers, max(1, 4_000_000 // (windows.horizon * (windows.n_variables if windows.together else 1)))
    ):
        batch = windows.batch(part)
        quantiles = forecast(batch).quantiles
        assert quantiles is not None
        calibrator.add(quantiles, batch.target)
    return calibrator.factors(len(windows.starts) / windows.horizon)


def run_baseline(task: Task, method: str, *, judge_test: bool = False) -> Result:
    """Score a forecast that needs no network; its quantiles are its validation residuals, in the window's
    deviations, by step and variable.

    Args:
        method: "repeat" (the last value), "seasonal" (the last cycle), "drift" (the window's slope), "smoothing"
            (exponential smoothing of the seasonally adjusted window, its rate chosen on training windows), "linear"
            (least squares of the future on the past, window mean taken off, the same for all variables: RLinear and
            NLinear, without bias, in closed form) or "nlinear" (NLinear, trained as its authors do).

    Raises:
        InputError: no such method.
    """
    if method not in BASELINES:
        raise InputError(f"baselines are {', '.join(BASELINES)}; got {method!r}")
    point = _point_forecast(task, method)
    quantiles = _residual_quantiles(point, task.splits["val"])

    def forecast(batch: Batch) -> SeriesForecast:
        middle = point(batch)
        spread = _deviation(batch).unsqueeze(-1) * quantiles[:, batch.identity].permute(1, 0, 2, 3)
        return SeriesForecast(middle, middle.unsqueeze(-1) + spread)

    validation = score(forecast, task.splits["val"], QUANTILES)
    test = score(forecast, task.splits["test"], QUANTILES) if judge_test else None
    return Result(task.name, task.lookback, task.horizon, method, 0, validation, test)


Point = Callable[[Batch], Tensor]  # SxTxV


def _point_forecast(task: Task, method: str) -> Point:
    horizon, day = task.horizon, min(task.facts.day, task.lookback)
    ahead = torch.arange(horizon, device=task.splits["train"].values.device)
    if method == "repeat":
        return lambda batch: _past(batch)[:, -1:].expand(-1, horizon, -1)
    if method == "seasonal":
        return lambda batch: _past(batch)[:, -day:][:, ahead % day]
    if method == "drift":

        def drift(batch: Batch) -> Tensor:
            past = _past(batch)
            slope = (past[:, -1:] - past[:, :1]) / max(1, past.shape[1] - 1)
            return past[:, -1:] + slope * (ahead + 1)[None, :, None]

        return drift
    if method == "smoothing":
        made = {rate: _smoothing(rate, day, horizon) for rate in (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)}
        sample = {rate: score(_only(f), task.splits["train"], QUANTILES, cap=4000).mse for rate, f in made.items()}
        return made[min(sample, key=lambda rate: sample[rate])]
    if method == "nlinear":
        return train_nlinear(task.splits["train"], task.splits["val"], RATES.get(task.name, min(RATES.values())))
    left, right = normal_equations(task.splits["train"])
    penalty = 1e-6 * left.diagonal().mean() * torch.eye(len(left), dtype=left.dtype, device=left.device)
    weight = torch.linalg.solve(left + penalty, right).float()

    def linear(batch: Batch) -> Tensor:
        past = _past(batch)
        mean = past.mean(1, keepdim=True)
        found: Tensor = ((past - mean).transpose(1, 2) @ weight).transpose(1, 2) + mean
        return found

    return linear


def _smoothing(rate: float, day: int, horizon: int) -> Point:
    """Simple exponential smoothing of the window less its mean cycle, and the cycle put back."""

    def forecast(batch: Batch) -> Tensor:
        past = _past(batch)
        cycles = past.shape[1] // day
        ahead = torch.arange(horizon, device=past.device) % day
        season = torch.zeros_like(past[:, :day])
        if cycles >= 2 and day > 1:
            whole = torch.unflatten(past[:, -cycles * day :], 1, (cycles, day))
            season = (whole - whole.mean(2, keepdim=True)).mean(1)
        age = torch.arange(past.shape[1] - 1, -1, -1, device=past.device)
        weight = rate * (1 - rate) ** age if rate < 1 else (age == 0).float()
        adjusted = past - season[:, (-1 - age) % day]
        level = (adjusted * (weight / weight.sum())[None, :, None]).sum(1, keepdim=True)
        return level + season[:, ahead]

    return forecast


def _residual_quantiles(point: Point, windows: Windows, cap: int = 3000) -> Tensor:
    """TxVxQ: quantiles of the validation residuals over the window's deviation."""
    every = max(1, len(windows.starts) // cap)
    chosen = torch.arange(0, len(windows.starts), every, device=windows.values.device)
    levels = torch.tensor(QUANTILES, device=windows.values.device)
    found = torch.empty(windows.horizon, windows.n_variables, len(QUANTILES), device=windows.values.device)
    for variable in range(windows.n_variables):
        batch = windows.batch(chosen * windows.n_variables + variable)
        residual = ((batch.target - point(batch)) / _deviation(batch))[..., 0]
        found[:, variable] = torch.quantile(residual, levels, dim=0).T
    return found


def _only(point: Point) -> Callable[[Batch], SeriesForecast]:
    def forecast(batch: Batch) -> SeriesForecast:
        return SeriesForecast(point(batch), None)

    return forecast


def _past(batch: Batch) -> Tensor:
    return batch.values[:, : batch.lookback]


def _deviation(batch: Batch) -> Tensor:
    """Sx1xV of the past, kept from zero as in reversible instance norm."""
    return (_past(batch).var(1, keepdim=True, correction=0) + 1e-5).sqrt()


def evaluate_series(
    model: str,
    name: str,
    folder: str | Path,
    *,
    lookback: int = 96,
    horizons: tuple[int, ...] = (),
    device: str = "auto",
) -> list[Result]:
    """Rows of the table for a forecast that needs no training on the set: a baseline by name, or
    weights that take any series.

    Args:
        model: one of `BASELINES`, "pretrained", or a file of such weights.
        horizons: none for the set's.

    Raises:
        InputError: no such model.
        WeightsError: a file of other weights.
    """
    if name not in SETS:
        raise InputError(f"the long-term benchmark has {', '.join(SETS)}; got {name!r}")
    found = []
    for horizon in horizons or SETS[name].horizons:
        task = open_task(name, folder, lookback, horizon, device=device)
        if model in BASELINES:
            found.append(run_baseline(task, model, judge_test=True))
        else:
            found.append(_run_ready(task, model, device))
    return found


def _run_ready(task: Task, model: str, device: str) -> Result:
    """Score weights that were trained elsewhere, as they are."""
    forecaster = Pretrained(short_cycle(task.facts.day), device, None if model == "pretrained" else Path(model))
    where = task.splits["test"].values.device

    def forecast(batch: Batch) -> SeriesForecast:
        levels = (
            torch.from_numpy(forecaster.of_contexts(_past(batch).double().cpu().numpy(), task.horizon))
            .float()
            .to(where)
        )
        return SeriesForecast(levels[..., MEDIAN], levels)

    validation = score(forecast, task.splits["val"], QUANTILES, cap=2000)
    test = score(forecast, task.splits["test"], QUANTILES)
    return Result(task.name, task.lookback, task.horizon, Path(model).stem, 0, validation, test)


__all__ = ["BASELINES", "SETS", "Result", "Task", "evaluate_series", "open_task", "run_baseline", "run_network"]
