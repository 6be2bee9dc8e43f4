"""Forecasts of the long-term benchmark that need no training on the set: plain ones, linear models, ready weights.

Shapes: S series, L past steps, T future steps, V variables, Q quantile levels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from unipercept.errors import InputError
from unipercept.forecasting.benchmark import SETS, Result, Task, open_task
from unipercept.forecasting.least_squares import normal_equations
from unipercept.forecasting.network import SeriesForecast
from unipercept.forecasting.pretrained import Pretrained, short_cycle
from unipercept.forecasting.published import RATES, train_nlinear
from unipercept.forecasting.scores import MEDIAN
from unipercept.forecasting.settings import QUANTILES
from unipercept.forecasting.window_scores import score
from unipercept.forecasting.windows import Batch, Windows

STATISTICAL = ("repeat", "seasonal", "drift", "smoothing")
BASELINES = (*STATISTICAL, "linear", "nlinear")


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
