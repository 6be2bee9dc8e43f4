"""Training of forecasters on windows: one captured graph an update on a GPU, and several networks side by side.

Shapes: S series of a batch, T future steps, V variables, Q quantile levels, R' future cycles, D steps of a cell.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from unipercept.forecasting.least_squares import start_linear_path
from unipercept.forecasting.losses import loss_of, pinball, step_weights, window_weights
from unipercept.forecasting.network import SeriesForecaster
from unipercept.forecasting.window_scores import evaluate
from unipercept.forecasting.windows import Batch, Windows
from unipercept.kernels.streams import capture

MEAN_SHARE = 0.7  # of a time budget; the rest is for the quantiles
MOST_GAP = 2.0  # window deviations between neighbouring levels, at the start
MOST_SPREAD_SERIES = 60_000  # a round; quantiles of fixed features are learned soon
WARM_UP = 3  # updates before the graph is captured
SPREAD_EPOCHS = 4  # rounds
SPREAD_RATE, SPREAD_SHARE = 3.0, 2  # learning rate and series a round, beside those of the rest


@dataclass(frozen=True)
class FitProgress:
    """Handed to `on_progress` after each epoch."""

    epoch: int
    epochs: int  # at most; early stopping and the time budget may end before
    train_loss: float
    validation_loss: float
    seconds: float  # since the start


@dataclass(frozen=True)
class Training:
    """What a training came to; enough to train as long on other windows."""

    history: list[FitProgress]
    windows: int  # that there were, which tells how many updates an epoch has
    updates: int  # whose averaged weights were kept; 0: those of the start
    spread_updates: int  # the same of the quantiles, where they are trained afterwards


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
    """Train `network` in place; at the end it holds the averaged weights that validated best. See `training_steps`."""
    steps = training_steps(
        network, training, validation, seed=seed, seconds=seconds, validation_cap=validation_cap,
        with_spread=with_spread, on_progress=on_progress,
    )  # fmt: skip
    return side_by_side([steps], training.values.device)[0].history


Found = TypeVar("Found")


def side_by_side(trainings: Sequence[Generator[None, None, Found]], device: torch.device) -> list[Found]:
    """What each training returns, an update of each in turn; on a GPU each on a stream of its own,
    since small ones do not fill it.
    """
    streams = [torch.cuda.Stream(device) if device.type == "cuda" else None for _ in trainings]  # type: ignore[no-untyped-call]
    for stream in streams:
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(device))
    found: dict[int, Found] = {}
    while len(found) < len(trainings):
        for i, (steps, stream) in enumerate(zip(trainings, streams, strict=True)):
            if i in found:
                continue
            with nullcontext() if stream is None else torch.cuda.stream(stream):
                try:
                    next(steps)
                except StopIteration as stop:
                    found[i] = stop.value
                    if stream is not None:
                        stream.synchronize()
    return [found[i] for i in range(len(trainings))]


def training_steps(
    network: SeriesForecaster,
    training: Windows,
    validation: Windows | None,
    *,
    seed: int = 0,
    seconds: float | None = None,
    validation_cap: int | None = None,
    with_spread: bool = True,
    horizons: tuple[int, ...] = (),
    line: Tensor | None = None,
    again: Training | None = None,
    on_progress: Callable[[FitProgress], object] | None = None,
) -> Generator[None, None, Training]:
    """The training of `network` in place; pauses after each update.

    Args:
        seconds: budget, after which the best weights so far are kept.
        validation_cap: windows that an epoch is judged on, about.
        with_spread: False leaves quantiles that are trained afterwards as they are.
        horizons: those that are judged, a step counting in each that holds it; none counts steps alike.
        line: TxL that the dense path starts at, where it has been solved for before.
        again: a training whose updates are repeated in number and rates; then nothing is judged.
    """
    config, device = network.config, training.values.device
    n_windows = len(training) if again is None else again.windows
    began, history = time.monotonic(), list[FitProgress]()
    afterwards = config.quantile_weight == 0
    levels = torch.tensor(config.quantiles, device=device)
    counts = step_weights(horizons, training.horizon, device) if horizons else None

    def loss(batch: Batch) -> Tensor:
        return loss_of(batch.forecast(network, with_quantiles=not afterwards), batch, config, levels, counts)

    def judge(candidate: SeriesForecaster) -> float | None:
        if validation is None:
            return None
        scores = evaluate(candidate, validation, cap=validation_cap, with_quantiles=False, steps=counts)
        return scores.selection

    def progress(epoch: int, train_loss: float, validation_loss: float) -> None:
        history.append(FitProgress(epoch, config.epochs, train_loss, validation_loss, time.monotonic() - began))
        if on_progress is not None:
            on_progress(history[-1])

    if line is not None and network.dense is not None:
        network.dense.weight.data.copy_(line)
    elif validation is not None and config.least_squares:
        start_linear_path(network, training, validation)
    network.train()
    spread = set(network.spread.parameters())
    rounds = _Rounds(config.epochs, min(n_windows, config.series_an_epoch), config.patience, config.learning_rate)
    updates = yield from _improved(
        network, training, [p for p in network.parameters() if not (afterwards and p in spread)], rounds, loss, judge,
        starts_well=config.least_squares, seed=seed, progress=progress, exactly=None if again is None else again.updates,
        stop_at=None if seconds is None else began + seconds * (MEAN_SHARE if afterwards else 1.0),
    )  # fmt: skip
    spread_updates = 0
    if afterwards and with_spread:
        stop_at = None if seconds is None else began + seconds
        spread_updates = yield from _spread_steps(
            network, training, validation, levels, seed, validation_cap, stop_at, again
        )
    network.eval()
    return Training(history, n_windows, updates, spread_updates)


def _spread_steps(
    network: SeriesForecaster,
    training: Windows,
    validation: Windows | None,
    levels: Tensor,
    seed: int,
    validation_cap: int | None,
    stop_at: float | None,
    again: Training | None,
) -> Generator[None, None, int]:
    """Train the quantiles of a network whose mean is done, nothing else; returns the updates that were kept."""
    config = network.config
    network.eval()

    def loss(batch: Batch) -> Tensor:
        found = batch.forecast(network)
        assert found.quantiles is not None
        each = pinball(found.quantiles, batch.target, levels).mean(-1) * window_weights(found.deviation, 0.5)
        return (each if batch.target_observed is None else each * batch.target_observed).mean()

    def judge(candidate: SeriesForecaster) -> float | None:
        if validation is None:
            return None
        return evaluate(candidate, validation, cap=(validation_cap or 20_000) // 2).wql

    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    for parameter in network.spread.parameters():
        parameter.requires_grad_(True)
    _start_spread(network, training, levels)
    n_windows = len(training) if again is None else again.windows
    series = min(n_windows, SPREAD_SHARE * config.series_an_epoch, MOST_SPREAD_SERIES)
    rounds = _Rounds(SPREAD_EPOCHS, series, 1, SPREAD_RATE * config.learning_rate)
    updates = yield from _improved(
        network, training, list(network.spread.parameters()), rounds, loss, judge,
        starts_well=False, seed=seed + 1, stop_at=stop_at, exactly=None if again is None else again.spread_updates,
    )  # fmt: skip
    for parameter in learned:
        parameter.requires_grad_(True)
    return updates


@torch.no_grad()
def _start_spread(network: SeriesForecaster, training: Windows, levels: Tensor, n_series: int = 2000) -> None:
    """Set the spread's bias to the quantiles of the training residuals, in window deviations, by
    cycle ahead and step of a cell.
    """
    residuals = []
    for part in torch.split(training.sample(n_series), 500):
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


@dataclass(frozen=True)
class _Rounds:
    """How long and how fast."""

    epochs: int
    series: int  # an epoch
    patience: int  # epochs without a better one before the end
    rate: float


def _improved(
    network: SeriesForecaster,
    training: Windows,
    parameters: list[nn.Parameter],
    rounds: _Rounds,
    loss: Callable[[Batch], Tensor],
    judge: Callable[[SeriesForecaster], float | None],
    *,
    starts_well: bool,
    seed: int,
    stop_at: float | None,
    progress: Callable[[int, float, float], object] | None = None,
    exactly: int | None = None,
) -> Generator[None, None, int]:
    """Updates of `parameters`; at the end the network holds the averaged weights that were judged best.

    Returns after how many updates.

    Args:
        judge: the smaller the better; None where nothing can be judged, and the training loss has to do.
        starts_well: only weights that are judged better than those at the start are kept.
        exactly: so many updates, of which the last weights are kept; nothing is judged.
    """
    device, is_training = training.values.device, network.training
    batch_size = min(network.config.batch_size, rounds.series)
    steps = max(1, rounds.series // batch_size)
    stepper = _Stepper(network, training, parameters, loss, batch_size, steps * rounds.epochs, rounds.rate)
    average, generator = stepper.averaged, torch.Generator(device=device).manual_seed(seed)
    first = judge(average) if starts_well and exactly is None else None
    best, best_state, since = math.inf if first is None else first, copy.deepcopy(average.state_dict()), 0
    kept, late = 0, False
    for epoch in range(rounds.epochs):
        if stepper.done == exactly:
            break
        network.train(is_training)
        total = torch.zeros((), device=device)
        for numbers in _epoch_numbers(len(training), rounds.series, batch_size, steps, generator, device):
            total += stepper.step(numbers)
            yield
            late = exactly is None and stop_at is not None and time.monotonic() > stop_at
            if late or stepper.done == exactly:
                break
        if exactly is not None:
            continue
        judged, mean_loss = judge(average), float(total) / steps
        judged = mean_loss if judged is None else judged
        if progress is not None:
            progress(epoch, mean_loss, judged)
        if judged < best:
            best, since, best_state, kept = judged, 0, copy.deepcopy(average.state_dict()), stepper.done
        else:
            since += 1
        if late or since >= rounds.patience:
            break
    network.load_state_dict(best_state if exactly is None else average.state_dict())
    return stepper.done if exactly is not None else kept


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
    """One update at a time; on a GPU the whole of it is one graph, captured on the stream it is called on, which
    must not be the default one.
    """

    def __init__(
        self,
        network: SeriesForecaster,
        windows: Windows,
        parameters: list[nn.Parameter],
        loss: Callable[[Batch], Tensor],
        batch_size: int,
        total_steps: int,
        rate: float,
    ) -> None:
        config, device = network.config, windows.values.device
        self.windows, self.parameters, self.loss_of = windows, parameters, loss
        self.total, self.done, self.most_rate, self.most_kept = total_steps, 0, rate, config.average
        self.averaged = copy.deepcopy(network).eval()
        for parameter in self.averaged.parameters():
            parameter.requires_grad_(False)
        decayed = [p for p in parameters if p.ndim > 1]
        plain = [p for p in parameters if p.ndim <= 1]
        self.rate = torch.tensor(rate, device=device) if device.type == "cuda" else rate
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=self.rate, betas=(0.9, 0.98), capturable=device.type == "cuda", foreach=True,
        )  # fmt: skip
        places = {parameter: i for i, parameter in enumerate(network.parameters())}
        averaged = list(self.averaged.parameters())
        self.targets: list[Tensor] = [averaged[places[parameter]].detach() for parameter in parameters]
        self.buffers = [(a, b) for a, b in zip(self.averaged.buffers(), network.buffers(), strict=True)]
        self.keep = torch.zeros((), device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.numbers = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.loss = torch.zeros((), device=device)

    def step(self, numbers: Tensor) -> Tensor:
        share = self.done / max(1, self.total - 1)
        warm = min(1.0, (self.done + 1) / max(1, min(100, self.total // 10)))
        rate = self.most_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        keep = min(self.most_kept, (1 + self.done) / (10 + self.done))
        self.done += 1
        self.keep.fill_(1 - keep)
        if isinstance(self.rate, Tensor):
            self.rate.fill_(rate)
            self.numbers.copy_(numbers)
            if self.done <= WARM_UP:
                self._update()
            else:
                if self.graph is None:
                    self.graph = torch.cuda.CUDAGraph()
                    # cuBLAS has a workspace a stream: graphs that were captured on one and
                    # run side by side would share it
                    with capture(self.graph, torch.cuda.current_stream()):
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
        loss = self.loss_of(self.windows.batch(self.numbers))
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
