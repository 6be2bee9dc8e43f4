"""Lines from the past to the future in closed form, a forecast by themselves.

    future - mean = W_v (past - mean) + deviation * B_v f

with W_v that of a variable: one W for all, pulled towards repeating the mean cycle or the last value, plus a penalised difference
of its own; f is what is known of the first future step, the clock for example. Everything that is chosen is chosen on validation.

Shapes: N windows, V variables, L past steps, T future steps, F features known in advance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unipercept.forecasting.network import cycle_mean_weight
from unipercept.forecasting.windows import Batch, Windows

QUIET = 0.1  # the least deviation of a window, in those of the training rows
FEATURE_PENALTY = 0.01  # of the features' weights, in their mean square
CHUNK = {"cpu": 4_000_000, "cuda": 40_000_000}  # values of a batch


@dataclass(frozen=True)
class LineSettings:
    """What validation chooses; each other field from its `CHOICES`."""

    around: str  # what weights are pulled to, of `AROUND`: the mean cycle or the last value
    penalty: float = 0.1  # of the pull, in mean squares of the inputs; infinite: nothing but the pull
    evenness: float = 0.5  # windows count by their deviation to the power of -2 times this
    features: bool = False
    own: float = math.inf  # penalty of what is a variable's own


AROUND = ("cycle", "last")
CHOICES: dict[str, tuple[Any, ...]] = {
    "penalty": (0.01, 0.1, 1.0, 10.0, math.inf),
    "evenness": (0.0, 0.5, 1.0),
    "features": (False, True),
    "own": (math.inf, 10.0, 1.0, 0.1),
}


@dataclass(frozen=True)
class Line:
    """The weights; call it on batches of windows."""

    weight: Tensor  # VxLxT, or 1xLxT where no variable has its own
    features: Tensor | None  # VxFxT
    settings: LineSettings

    def __call__(self, batch: Batch) -> Tensor:
        """SxTxV, or of one variable where windows come one variable at a time."""
        past = batch.values[:, : batch.lookback]
        mean, deviation = _mean_and_deviation(past)
        return self.of_parts(past - mean, deviation, _first_known(batch), batch.identity) + mean

    def of_parts(self, centred: Tensor, deviation: Tensor, known: Tensor | None, identity: Tensor) -> Tensor:
        """The forecast less the mean."""
        x = centred.transpose(1, 2)  # SxVxL
        if len(self.weight) == 1:
            found = x @ self.weight[0]
        else:
            found = x.new_empty(*x.shape[:2], self.weight.shape[2])
            for v, weight in enumerate(self.weight):
                mine = identity == v
                found[mine] = x[mine] @ weight
        if self.features is not None:
            assert known is not None
            for v, weight in enumerate(self.features):
                mine = identity == v
                effect = (known @ weight)[:, None].expand(-1, x.shape[1], -1)[mine]
                found[mine] += effect * deviation.transpose(1, 2)[mine]
        return found.transpose(1, 2)


@torch.no_grad()
def choose_lines(training: Windows, validation: Windows, cycle: int, steps: range, *, most: int = 1000) -> list[Line]:
    """For each of `AROUND` the line to the future steps `steps` that validates best, one choice after the other until none is better.

    Args:
        cycle: steps that repeat.
        most: validation windows that are looked at, spread over the split.
    """
    sums = {evenness: _sums(training, evenness, steps) for evenness in CHOICES["evenness"]}
    held = list(_parts(validation, most))
    known: dict[LineSettings, float] = {}

    def error(settings: LineSettings) -> float:
        if settings not in known:
            known[settings] = _error(_solve(sums[settings.evenness], settings, cycle, steps), held, steps)
        return known[settings]

    lines = []
    for around in AROUND:
        best, before = LineSettings(around=around), None
        while best != before:
            before = best
            for name, values in CHOICES.items():
                if name != "features" or training.features is not None:
                    best = min((replace(best, **{name: value}) for value in values), key=error)
        lines.append(_solve(sums[best.evenness], best, cycle, steps))
    return lines


@dataclass(frozen=True)
class _Sums:
    """Normal equations, float64."""

    left: Tensor  # VxLxL
    right: Tensor  # VxLxT
    features_left: Tensor  # VxFxF
    features_past: Tensor  # VxFxL
    features_right: Tensor  # VxFxT


def _sums(windows: Windows, evenness: float, steps: range) -> _Sums:
    found: list[Tensor] | None = None
    for past, future, deviation, known in _parts(windows, len(windows.starts)):
        x, y = ((part[:, :, steps.start : steps.stop] if part is future else part) for part in (past, future))
        scale = deviation**-evenness
        x, y = (x * scale).double().transpose(0, 1), (y * scale).double().transpose(0, 1)  # VxNxL
        f = (known[:, None] * deviation * scale).double().transpose(0, 1)
        parts = [x.mT @ x, x.mT @ y, f.mT @ f, f.mT @ x, f.mT @ y]
        found = parts if found is None else [a + b for a, b in zip(found, parts, strict=True)]
    assert found is not None
    return _Sums(*found)


def _parts(windows: Windows, most: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Past NxVxL and future NxVxT less the window's mean, deviation NxVx1, and the features of the first future step NxF."""
    count, variables = len(windows.starts), windows.n_variables
    device, size = windows.values.device, variables * (windows.lookback + windows.horizon)
    chosen = torch.arange(0, count, max(1, count // most), device=device)
    for part in torch.split(chosen, max(1, CHUNK[device.type] // size)):
        numbers = (
            part if windows.together else (part[:, None] * variables + torch.arange(variables, device=device)).flatten()
        )
        batch = windows.batch(numbers)
        past, future = batch.values[:, : batch.lookback], batch.target
        mean, deviation = _mean_and_deviation(past)
        whole = (len(part), variables, -1)
        known = _first_known(batch)
        known = past.new_zeros(len(part), 0) if known is None else known.reshape(len(part), -1, known.shape[-1])[:, 0]
        centred = [(values - mean).transpose(1, 2).reshape(whole) for values in (past, future)]
        yield centred[0], centred[1], deviation.transpose(1, 2).reshape(whole), known


def _solve(sums: _Sums, settings: LineSettings, cycle: int, steps: range) -> Line:
    size, device = sums.left.shape[1], sums.left.device
    if settings.around == "cycle":
        start = cycle_mean_weight(size, steps.stop, cycle)[steps.start :].T.double().to(device)
    else:
        start = torch.zeros(size, len(steps), dtype=torch.float64, device=device)
        start[-1] = 1.0
    if math.isinf(settings.penalty):
        return Line(start.float()[None], None, replace(settings, features=False, own=math.inf))
    left, right, inverse = sums.left, sums.right, None
    if settings.features:
        eye = torch.eye(sums.features_left.shape[1], dtype=torch.float64, device=device)
        power = sums.features_left.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        inverse = torch.linalg.inv(sums.features_left + FEATURE_PENALTY * power * eye)
        held = sums.features_past.mT @ inverse  # the features' weights follow from the line's, so they are eliminated
        left, right = left - held @ sums.features_past, right - held @ sums.features_right
    eye = torch.eye(size, dtype=torch.float64, device=device)
    power = sums.left.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    all_left, all_right = left.sum(0), right.sum(0)
    pull = settings.penalty * power.sum() * eye
    weight = (start + torch.linalg.solve(all_left + pull, all_right - all_left @ start))[None]
    if not math.isinf(settings.own):
        weight = weight + torch.linalg.solve(left + settings.own * power * eye, right - left @ weight)
    features = None
    if inverse is not None:
        features = (inverse @ (sums.features_right - sums.features_past @ weight)).float()
    return Line(weight.float(), features, settings)


def _error(line: Line, held: list[tuple[Tensor, Tensor, Tensor, Tensor]], steps: range) -> float:
    """Mean square over windows, steps and variables."""
    total, count = 0.0, 0
    for past, future, deviation, known in held:
        identity = torch.arange(past.shape[1], device=past.device).expand(len(past), -1)
        found = line.of_parts(past.transpose(1, 2), deviation.transpose(1, 2), known, identity).transpose(1, 2)
        error = found - future[:, :, steps.start : steps.stop]
        total, count = total + float(error.square().sum(dtype=torch.float64)), count + error.numel()
    return total / count


def _mean_and_deviation(past: Tensor) -> tuple[Tensor, Tensor]:
    """Sx1xV each of SxLxV."""
    mean = past.mean(1, keepdim=True)
    return mean, (past.var(1, keepdim=True, correction=0) + QUIET**2).sqrt()


def _first_known(batch: Batch) -> Tensor | None:
    """SxF at the first future step."""
    return None if batch.features is None else batch.features[:, batch.lookback]
