"""Training on windows that are cut from series where they lie: on the device, no loader, one captured graph a step on a GPU.

Shapes: S series of a batch, L past steps, T future steps, F features known in advance.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unipercept.errors import InputError
from unipercept.forecasting.network import SeriesForecast, SeriesForecaster
from unipercept.forecasting.settings import ForecastConfig


@dataclass(frozen=True)
class FitProgress:
    """Handed to `on_progress` after each epoch."""

    epoch: int
    epochs: int  # at most; early stopping and the time budget may end before
    train_loss: float
    validation_loss: float
    seconds: float  # since the start


@dataclass(frozen=True)
class Windows:
    """Windows of L + T steps of many series that lie one after the other in one buffer.

    Args:
        values: every series' steps, scaled, missing ones 0; one vector.
        observed: bool beside `values`, or None where nothing is missing.
        features: rows x F, or None.
        starts: first step of each window in `values`, of variable 0.
        rows: first row of each window in `features`, as many as `starts`.
        stride: distance in `values` from a variable to the next.
        n_variables: V; every window exists for each.
        lookback, horizon: L and T.
        together: a window is of all variables, not of one; for networks in which they see each other.
    """

    values: Tensor
    observed: Tensor | None
    features: Tensor | None
    starts: Tensor
    rows: Tensor
    stride: Tensor  # as many as `starts`
    n_variables: int
    lookback: int
    horizon: int
    together: bool = False

    def __len__(self) -> int:
        return len(self.starts) * (1 if self.together else self.n_variables)

    def batch(self, numbers: Tensor) -> Batch:
        """Windows by number: window * V + variable, or window where variables come together."""
        device = self.values.device
        if self.together:
            window = numbers
            variable = torch.arange(self.n_variables, device=device).expand(len(numbers), -1)
        else:
            window, variable = numbers // self.n_variables, (numbers % self.n_variables)[:, None]
        steps = torch.arange(self.lookback + self.horizon, device=device)
        where = (self.starts[window][:, None] + variable * self.stride[window][:, None])[:, None] + steps[:, None]
        observed = None if self.observed is None else self.observed[where]
        features = None if self.features is None else self.features[self.rows[window][:, None] + steps]
        return Batch(self.values[where], observed, features, variable, self.lookback)


@dataclass(frozen=True)
class Batch:
    """Windows, past and future in one."""

    values: Tensor  # Sx(L+T)xV, V = 1 unless variables come together
    observed: Tensor | None
    features: Tensor | None  # Sx(L+T)xF
    identity: Tensor  # SxV
    lookback: int

    def forecast(self, network: SeriesForecaster, *, with_quantiles: bool = True) -> SeriesForecast:
        """What the network says of the future."""
        seen = None if self.observed is None else self.observed[:, : self.lookback]
        past = self.values[:, : self.lookback]
        found: SeriesForecast = network(past, seen, self.features, self.identity, with_quantiles=with_quantiles)
        steps = self.values.shape[1] - self.lookback
        quantiles = None if found.quantiles is None else found.quantiles[:, :steps]
        return SeriesForecast(found.point[:, :steps], quantiles, found.deviation)

    @property
    def target(self) -> Tensor:
        """SxTxV."""
        return self.values[:, self.lookback :]

    @property
    def target_observed(self) -> Tensor | None:
        """SxTxV bool, or None."""
        return None if self.observed is None else self.observed[:, self.lookback :]


def windows_of_table(
    values: Tensor,
    first: int,
    last: int,
    lookback: int,
    horizon: int,
    features: Tensor | None = None,
    together: bool = False,
) -> Windows:
    """All windows of a TxV table without gaps whose future lies in rows [first, last); none dropped."""
    rows, variables = values.shape
    start = max(first, lookback) - lookback
    count = last - horizon - lookback - start + 1
    if count < 1:
        raise InputError(f"rows {first} to {last} hold no window of {lookback} past and {horizon} future steps")
    starts = torch.arange(start, start + count, device=values.device)
    stride = torch.full_like(starts, rows)
    return Windows(
        values.T.contiguous().flatten(), None, features, starts, starts, stride, variables, lookback, horizon, together
    )


def pinball(quantiles: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    """Mean over everything of the quantile loss, twice the pinball loss: equals the absolute error at the median."""
    error = target.unsqueeze(-1) - quantiles
    return 2 * torch.maximum(levels * error, (levels - 1) * error)


def loss_of(found: SeriesForecast, batch: Batch, config: ForecastConfig, levels: Tensor) -> Tensor:
    """What is minimised: the error of the mean, its spectrum's, and that of the quantiles where there are any.

    A window counts by its deviation to the power of -2 `evenness`: squares of the loudest windows would drown the others.
    """
    target, seen = batch.target, batch.target_observed
    error = found.point - target
    if config.loss == "mse":
        each = error.square()
    elif config.loss == "huber":
        each = 2 * torch.nn.functional.huber_loss(found.point, target, reduction="none")
    elif config.loss == "mae":
        each = error.abs()
    else:
        each = 0.5 * error.square() + 0.5 * error.abs()
    weight = window_weights(found.deviation, config.evenness)
    each = each * weight
    if seen is not None:
        share = seen.to(error.dtype).mean().clamp(min=1e-6)
        each, error = each * seen / share, error * seen
    loss = each.mean()
    if found.quantiles is not None:
        spread = pinball(found.quantiles, target, levels).mean(-1) * weight.sqrt()
        loss = loss + (config.quantile_weight or 1.0) * (spread if seen is None else spread * seen / share).mean()
    if config.frequency_weight:
        spectrum = torch.fft.rfft(error * weight.sqrt(), dim=1, norm="ortho")
        loss = loss + config.frequency_weight * spectrum.abs().mean()
    return loss


def window_weights(deviation: Tensor | None, evenness: float) -> Tensor:
    """Sx1xV of mean 1: deviations to the power of -2 evenness; 0 counts squares as they are, 1 in units of the window."""
    if deviation is None or evenness == 0:
        return torch.ones((), device=None if deviation is None else deviation.device)
    weight = deviation.detach() ** (-2 * evenness)
    return weight / weight.mean()


PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # shares of the mean square of the inputs
LEAST_SQUARES_SERIES = 150_000  # windows that the normal equations sum over, at most


@torch.no_grad()
def normal_equations(
    windows: Windows, most: int | None = None, *, evenness: float = 0.0, quiet: float = 0.1, batch_size: int = 4096
) -> tuple[Tensor, Tensor]:
    """LxL and LxT sums over windows, each with its mean taken off: of past times past, and of past times future, float64.

    Windows count by their deviation (`quiet` at least) to the power of -2 `evenness`; those with gaps are left out.
    """
    device, size = windows.values.device, windows.lookback
    left = torch.zeros(size, size, dtype=torch.float64, device=device)
    right = torch.zeros(size, windows.horizon, dtype=torch.float64, device=device)
    every = max(1, len(windows) // most) if most else 1
    for numbers in torch.split(torch.arange(0, len(windows), every, device=device), batch_size):
        batch = windows.batch(numbers)
        past = batch.values[:, : batch.lookback]
        mean = past.mean(1, keepdim=True)
        scale = (past.var(1, keepdim=True, correction=0) + quiet**2).sqrt() ** evenness
        x, y = (((part - mean) / scale).transpose(1, 2).flatten(0, 1) for part in (past, batch.target))
        if batch.observed is not None:
            whole = batch.observed.all(1).flatten()
            x, y = x[whole], y[whole]
        x, y = x.double(), y.double()
        left += x.T @ x
        right += x.T @ y
    return left, right


@torch.no_grad()
def start_linear_path(
    network: SeriesForecaster, training: Windows, validation: Windows, cap: int | None = None
) -> float | None:
    """Set the dense path to ridge regression around the mean cycle; what validates best chooses the penalty, which is returned,
    and how evenly windows count.

    Weights have no bias, so that a forecast follows its window's level and sign. None where there is no such path or too few windows.
    """
    if network.dense is None:
        return None
    start, device = network.dense.weight.T.double(), training.values.device
    eye = torch.eye(training.lookback, dtype=torch.float64, device=device)
    every = max(1, len(validation) // (cap or 4000))
    best, chosen, weight = math.inf, None, None
    for evenness in (0.0, 0.5, 1.0):
        left, right = normal_equations(training, LEAST_SQUARES_SERIES, evenness=evenness, quiet=network.config.quiet)
        power = left.diagonal().mean()
        if not power > 0:
            return None
        for penalty in PENALTIES:
            found = (start + torch.linalg.solve(left + penalty * power * eye, right - left @ start)).float()
            error = _line_error(found, validation, every)
            if error < best:
                best, chosen, weight = error, penalty, found
    if weight is None:
        return None
    network.dense.weight.copy_(weight.T)
    return chosen


def _line_error(weight: Tensor, windows: Windows, every: int) -> float:
    """Sum of squares of a line LxT on every so many windows."""
    error = 0.0
    for numbers in torch.split(torch.arange(0, len(windows), every, device=weight.device), 2048):
        batch = windows.batch(numbers)
        past = batch.values[:, : batch.lookback]
        mean = past.mean(1, keepdim=True)
        missed = ((past - mean).transpose(1, 2) @ weight).transpose(1, 2) + mean - batch.target
        if batch.observed is not None:
            missed = missed * batch.observed.all(1, keepdim=True)
        error += float(missed.double().square().sum())
    return error


def train(
    network: SeriesForecaster,
    training: Windows,
    validation: Windows | None,
    *,
    seed: int = 0,
    seconds: float | None = None,
    validation_cap: int | None = None,
    with_spread: bool = True,
    on_progress: Callable[[FitProgress], object] | None = None,
) -> list[FitProgress]:
    """Train `network` in place; at the end it holds the averaged weights that validated best.

    Args:
        with_spread: False leaves quantiles that are trained afterwards as they are.
    """
    config, device = network.config, training.values.device
    generator = torch.Generator(device=device).manual_seed(seed)
    began = time.monotonic()
    share = MEAN_SHARE if config.quantile_weight == 0 else 1.0
    if validation is not None and config.least_squares:
        start_linear_path(network, training, validation)
    per_epoch = min(len(training), config.series_an_epoch)
    batch_size = min(config.batch_size, per_epoch)
    steps = max(1, per_epoch // batch_size)
    stepper = _Stepper(network, training, batch_size, steps * config.epochs)
    average = stepper.averaged
    best, best_state, since, history = math.inf, copy.deepcopy(average.state_dict()), 0, []
    if validation is not None and config.least_squares:  # the blocks must do better than the line that they start from
        best = evaluate(average, validation, cap=validation_cap, with_quantiles=False).selection
    for epoch in range(config.epochs):
        network.train()
        total = torch.zeros((), device=device)
        for numbers in _epoch_numbers(len(training), per_epoch, batch_size, steps, generator, device):
            total += stepper.step(numbers)
            if seconds is not None and time.monotonic() - began > seconds * share:
                break
        judged = (
            evaluate(average, validation, cap=validation_cap, with_quantiles=False).selection
            if validation is not None
            else float(total) / steps
        )
        spent = time.monotonic() - began
        history.append(FitProgress(epoch, config.epochs, float(total) / steps, judged, spent))
        if on_progress is not None:
            on_progress(history[-1])
        if judged < best:
            best, since, best_state = judged, 0, copy.deepcopy(average.state_dict())
        else:
            since += 1
        if since >= config.patience or (seconds is not None and spent > seconds * share):
            break
    network.load_state_dict(best_state)
    if config.quantile_weight == 0 and with_spread:
        left = None if seconds is None else max(0.0, seconds - (time.monotonic() - began))
        fit_spread(network, training, validation, seed=seed, seconds=left, validation_cap=validation_cap)
    network.eval()
    return history


def fit_spread(
    network: SeriesForecaster,
    training: Windows,
    validation: Windows | None,
    *,
    seed: int = 0,
    seconds: float | None = None,
    validation_cap: int | None = None,
) -> None:
    """Train the quantiles of a network whose mean is done; nothing else changes."""
    config, device = network.config, training.values.device
    network.eval()
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    for parameter in network.spread.parameters():
        parameter.requires_grad_(True)
    levels = torch.tensor(config.quantiles, device=device)
    generator = torch.Generator(device=device).manual_seed(seed + 1)
    _start_spread(network, training, levels)
    optimizer = torch.optim.AdamW(
        network.spread.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    per_epoch = min(len(training), config.series_an_epoch * 2)
    batch_size = min(config.batch_size, per_epoch)
    steps = max(1, per_epoch // batch_size)
    best, best_state, began = math.inf, copy.deepcopy(network.spread.state_dict()), time.monotonic()
    for epoch in range(SPREAD_EPOCHS):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * SPREAD_RATE * (1 - epoch / SPREAD_EPOCHS)
        for numbers in _epoch_numbers(len(training), per_epoch, batch_size, steps, generator, device):
            batch = training.batch(numbers)
            found = batch.forecast(network)
            assert found.quantiles is not None
            loss = pinball(found.quantiles, batch.target, levels).mean(-1) * window_weights(found.deviation, 0.5)
            loss = (loss if batch.target_observed is None else loss * batch.target_observed).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if seconds is not None and time.monotonic() - began > seconds:
                break
        judged = (
            evaluate(network, validation, cap=(validation_cap or 20_000) // 2).wql if validation is not None else 0.0
        )
        if judged < best:
            best, best_state = judged, copy.deepcopy(network.spread.state_dict())
        else:
            break
        if seconds is not None and time.monotonic() - began > seconds:
            break
    network.spread.load_state_dict(best_state)
    for parameter in learned:
        parameter.requires_grad_(True)


@torch.no_grad()
def _start_spread(network: SeriesForecaster, training: Windows, levels: Tensor, n_series: int = 2000) -> None:
    """Set the spread's bias to the quantiles of the training residuals, in window deviations, by cycle ahead and step of a cell."""
    every = max(1, len(training) // n_series) | 1  # odd, so that no variable is passed over
    numbers = torch.arange(0, len(training), every, device=levels.device)
    residuals = []
    for part in torch.split(numbers, 500):
        batch = training.batch(part)
        found = batch.forecast(network, with_quantiles=False)
        assert found.deviation is not None
        error = (batch.target - found.point) / found.deviation
        if batch.target_observed is not None:
            error = error.masked_fill(~batch.target_observed, torch.nan)
        residuals.append(error.transpose(1, 2).flatten(0, 1))
    everything = torch.cat(residuals)
    later, patch = network.config.later_rows(), network.patch
    missing = later * network.period - everything.shape[1]
    folded = torch.unflatten(nn.functional.pad(everything, (0, missing), value=torch.nan), 1, (later, -1, patch))
    cells = folded.permute(1, 3, 0, 2).flatten(2)  # R'xDx(S W)
    found_levels = torch.nanquantile(cells[..., : max(64, 8_000_000 // (later * patch))], levels, dim=2)  # QxR'xD
    ordered = found_levels.permute(1, 2, 0).nan_to_num(0.0)
    gaps = ordered.diff(dim=-1).clamp(min=1e-3, max=MOST_GAP)
    raw = torch.log(torch.expm1(gaps))
    median = network.median
    middle = torch.zeros_like(
        ordered[..., :1]
    )  # the median starts at the mean: residuals of few windows would move it far
    bias = torch.cat([raw[..., :median], middle, raw[..., median:]], -1)
    network.spread.bias.copy_(bias.flatten())
    network.spread.weight.zero_()


MEAN_SHARE = 0.7  # of a time budget; the rest is for the quantiles
MOST_GAP = 2.0  # window deviations between neighbouring levels, at the start
SPREAD_EPOCHS, SPREAD_RATE = 4, 3.0  # rounds, and the learning rate beside that of the rest


def _epoch_numbers(
    available: int, wanted: int, batch_size: int, steps: int, generator: torch.Generator, device: torch.device
) -> Iterator[Tensor]:
    if available <= 4_000_000:
        order = torch.randperm(available, generator=generator, device=device)[:wanted]
    else:  # too many to list: with replacement
        order = torch.randint(available, (wanted,), generator=generator, device=device)
    for i in range(steps):
        yield order[i * batch_size : (i + 1) * batch_size]


class _Stepper:
    """One update at a time; on a GPU the whole of it is one captured graph."""

    def __init__(self, network: SeriesForecaster, windows: Windows, batch_size: int, total_steps: int) -> None:
        self.network, self.windows, self.config = network, windows, network.config
        device = windows.values.device
        self.levels = torch.tensor(self.config.quantiles, device=device)
        self.total, self.done = total_steps, 0
        self.averaged = copy.deepcopy(network).eval()
        for parameter in self.averaged.parameters():
            parameter.requires_grad_(False)
        decayed = [p for p in network.parameters() if p.ndim > 1]
        plain = [p for p in network.parameters() if p.ndim <= 1]
        self.rate = (
            torch.tensor(self.config.learning_rate, device=device)
            if device.type == "cuda"
            else self.config.learning_rate
        )
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": self.config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=self.rate, betas=(0.9, 0.98), capturable=device.type == "cuda", foreach=True,
        )  # fmt: skip
        self.parameters = list(network.parameters())
        self.targets: list[Tensor] = [parameter.detach() for parameter in self.averaged.parameters()]
        self.buffers = [(a, b) for a, b in zip(self.averaged.buffers(), network.buffers(), strict=True)]
        self.keep = torch.zeros((), device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.numbers = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.loss = torch.zeros((), device=device)

    def step(self, numbers: Tensor) -> Tensor:
        share = self.done / max(1, self.total - 1)
        warm = min(1.0, (self.done + 1) / max(1, min(100, self.total // 10)))
        rate = self.config.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        keep = min(self.config.average, (1 + self.done) / (10 + self.done))
        self.done += 1
        self.keep.fill_(1 - keep)
        if isinstance(self.rate, Tensor):
            self.rate.fill_(rate)
            self.numbers.copy_(numbers)
            if self.done <= 3:
                stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    self._update()
                torch.cuda.current_stream().wait_stream(stream)
            else:
                if self.graph is None:
                    self.graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(self.graph):
                        self._update()
                self.graph.replay()
            return self.loss
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.numbers = numbers
        self._update()
        return self.loss

    def _update(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        batch = self.windows.batch(self.numbers)
        found = batch.forecast(self.network, with_quantiles=self.config.quantile_weight > 0)
        loss = loss_of(found, batch, self.config, self.levels)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            current: list[Tensor] = [parameter.detach() for parameter in self.parameters]
            changes = list(torch._foreach_sub(current, self.targets))
            torch._foreach_mul_(changes, self.keep)
            torch._foreach_add_(self.targets, changes)
            for target, buffer in self.buffers:
                target.copy_(buffer)
            self.loss.copy_(loss.detach())


@dataclass(frozen=True)
class Scores:
    """Over all windows, steps and variables, on the scale of the values."""

    mse: float
    mae: float
    wql: float  # twice the pinball loss, mean over the nine deciles, over the mean size of the target
    coverage_80: float
    coverage_95: float
    n: int

    @property
    def selection(self) -> float:
        """What early stopping looks at."""
        return self.mse


@torch.no_grad()
def evaluate(
    network: SeriesForecaster, windows: Windows, *, cap: int | None = None, with_quantiles: bool = True
) -> Scores:
    """Scores of a network on every window (or about `cap` spread over them)."""
    network.eval()
    forecast = lambda batch: batch.forecast(network, with_quantiles=with_quantiles)  # noqa: E731
    return score(forecast, windows, network.config.quantiles, cap=cap)


@torch.no_grad()
def score(
    forecast: Callable[[Batch], SeriesForecast],
    windows: Windows,
    quantiles: tuple[float, ...],
    *,
    batch_size: int | None = None,
    cap: int | None = None,
) -> Scores:
    """Scores of anything that forecasts a batch of windows."""
    device = windows.values.device
    levels = torch.tensor(quantiles, device=device)
    budget = (4_000_000 if device.type == "cpu" else 64_000_000) // (windows.n_variables if windows.together else 1)
    batch_size = batch_size or max(1, budget // (windows.horizon * len(levels)))
    count = len(windows)
    every = max(1, count // cap) if cap else 1
    inner = [i for i, q in enumerate(quantiles) if 0.05 < q < 0.95]
    edges = [min(range(len(quantiles)), key=lambda i: abs(quantiles[i] - x)) for x in (0.1, 0.9, 0.025, 0.975)]
    sums = torch.zeros(6, dtype=torch.float64, device=device)
    total = 0
    for first in range(0, count, batch_size * every):
        numbers = torch.arange(first, min(count, first + batch_size * every), every, device=device)
        batch = windows.batch(numbers)
        found, target, seen = forecast(batch), batch.target, batch.target_observed
        error = found.point - target
        parts = [error.square(), error.abs(), target.abs()]
        if found.quantiles is not None:
            low80, high80, low95, high95 = (found.quantiles[..., i] for i in edges)
            parts += [
                pinball(found.quantiles[..., inner], target, levels[inner]).mean(-1),
                ((low80 <= target) & (target <= high80)).float(),
                ((low95 <= target) & (target <= high95)).float(),
            ]
        if seen is not None:
            parts = [part * seen for part in parts]
        sums[: len(parts)] += torch.stack([part.sum(dtype=torch.float64) for part in parts])
        total += int(seen.sum()) if seen is not None else target.numel()
    mse, mae, size, loss, c80, c95 = (sums / max(1, total)).tolist()
    return Scores(mse, mae, loss / max(size, 1e-12), c80, c95, total)
