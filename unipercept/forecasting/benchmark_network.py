"""The network in the long-term benchmark: trained, weighed with lines and calibrated on validation, judged once; and
learned once more, from validation too.

Shapes: S series, L past steps, T future steps, V variables.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from unipercept.forecasting.benchmark import SETS, Result, Task, last_batch, open_task, without
from unipercept.forecasting.blend import Blend, blend
from unipercept.forecasting.calibration import Calibrator
from unipercept.forecasting.least_squares import RIDGES, Ridge, start_linear_path
from unipercept.forecasting.lines import Line, choose_lines, learned_again, lookbacks
from unipercept.forecasting.network import SeriesForecast, SeriesForecaster
from unipercept.forecasting.rolling import Forecast, follow
from unipercept.forecasting.settings import ForecastConfig
from unipercept.forecasting.training import FitProgress, Training, side_by_side, training_steps
from unipercept.forecasting.window_scores import score
from unipercept.forecasting.windows import Batch, Windows
from unipercept.train.randomness import preserved_randomness

UPDATES = 4  # of the intervals, a cycle


def run_network(
    name: str,
    folder: str | Path,
    config: ForecastConfig,
    *,
    horizons: tuple[int, ...] = (),
    judged: tuple[int, ...] = (),
    seed: int = 0,
    members: int = 1,
    device: str = "auto",
    judge_test: bool = False,
    refit: bool = False,
    validation_cap: int | None = 8_000,
    seconds: float | None = None,
    on_progress: Callable[[FitProgress], object] | None = None,
    on_rows: Callable[[list[Result], Blend], object] | None = None,
    tell: Callable[[str], object] = lambda line: None,
) -> tuple[list[Result], Blend]:
    """Train one forecast for all horizons on the training windows, stop, weigh and calibrate on validation, judge.

    The forecast is the weighted mean of lines in closed form, from several look-backs, and of `members` networks, which
    are trained side by side on the longest horizon and differ in their start, the order of the windows and how evenly
    these count, from not at all to the setting. A shorter horizon takes the first steps.

    Args:
        config: its look-back and recipe; the horizon and the period are the set's.
        horizons: none for the set's.
        judged: of the horizons those that are judged; none for all.
        refit: afterwards learn once more from the rows of training and validation, by what was chosen before: the
            lines' settings, as many updates of the networks, the weights. Rows with "network refit" as method
            follow. Their validation scores and the intervals' first factors are those of the forecast that has
            not learned from validation.
        seconds: budget of the networks' training.
        on_rows: handed the rows of a horizon, and the forecast, as soon as it is judged: the longest takes minutes.
        tell: called with what begins.

    Returns:
        The rows, and the forecast; with `refit` that of the last rows.
    """
    began = time.monotonic()
    horizons = tuple(sorted(horizons or SETS[name].horizons))
    sizes = name, str(folder), config.lookback, horizons, device, config.clock, config.mixing
    tell("choose the lines")
    form = _closed_form(*sizes)
    longest, day = form.tasks[-1], SETS[name].day
    training, validation = longest.splits["train"], longest.splits["val"]
    config = config.changed(horizon=horizons[-1], period=config.period or day, pull=form.level is not None)
    own = [config.changed(evenness=config.evenness * share) for share in _shares(members)]
    recipe = _Recipe(own, seed, horizons, validation_cap, seconds, on_progress)
    tell("train the networks")
    networks, trainings = recipe.trained(form, training, validation)
    tell("weigh lines and networks")
    plain = blend(networks, form.lines, [task.splits["val"] for task in form.tasks])
    again = plain
    if refit:
        tell("learn once more")
        form = _learned_again(*sizes)
        networks, _ = recipe.trained(form, longest.before_test(), None, trainings)
        again = replace(plain, networks=tuple(networks), lines=tuple(map(tuple, form.lines)))
    count = sum(parameter.numel() for network in networks for parameter in network.parameters())
    epochs = max(len(training.history) for training in trainings)
    alone = min(progress.validation_loss for training in trainings for progress in training.history)
    results = []
    for task in (task for task in form.tasks if task.horizon in (judged or horizons)):
        tell(f"judge {task.horizon} steps")
        factors = calibrate(plain, task, config)
        every = max(1, day // UPDATES)
        rolling = follow(plain, task.stream("val"), factors, config.quantiles, every)
        scored = score(rolling.around(plain), task.splits["val"], config.quantiles)
        rows = []
        for found in (plain, again)[: 1 + refit]:
            test = dropped = None
            if judge_test:
                windows = task.splits["test"]
                online = follow(_switched(plain, found, windows), task.stream("test"), factors, config.quantiles, every)
                test = score(online.around(found), windows, config.quantiles)
                last = last_batch(windows)
                dropped = test.mse if last is None else without(test, score(found, last, config.quantiles))
            method = "network" if found is plain else "network refit"
            rows.append(
                Result(
                    name, config.lookback, task.horizon, method, seed, scored, test, epochs, count, time.monotonic() - began,
                    alone, dropped,
                )
            )  # fmt: skip
        if on_rows is not None:
            on_rows(rows, again)
        results += rows
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
    size = max(1, 4_000_000 // (windows.horizon * (windows.n_variables if windows.together else 1)))
    for part in torch.split(windows.sample(cap), size):
        batch = windows.batch(part)
        quantiles = forecast(batch).quantiles
        assert quantiles is not None
        calibrator.add(quantiles, batch.target)
    return calibrator.factors(len(windows.starts) / windows.horizon)
