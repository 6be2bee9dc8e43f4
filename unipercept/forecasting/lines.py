"""Lines from the past to the future in closed form, a forecast by themselves.

    future - mean = W_v (past - mean) + deviation * B_v f + c_v mean

with W_v that of a variable: one W for all, pulled towards repeating the mean cycle or the last value, plus a penalised
difference of its own; f is what is known of the first future step, the clock for example; c_v says how far each step
returns to the long-run mean, which is 0 in scaled values.

Everything that is chosen is chosen on validation. Where the rows that are learned from hold several years, lines may
return to the long-run mean, and earlier origins count as much as validation: after parts of the training rows, on those
that follow. In one year a slow return is that year's season, and earlier origins have seen a part of it.

Shapes: N windows, V variables, L past steps, T future steps, F features known in advance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
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
    """What is chosen; each other field from its `CHOICES`."""

    around: str  # what weights are pulled to, of `AROUND`: the mean cycle or the last value
    penalty: float = 0.1  # of the pull, in mean squares of the inputs; infinite: nothing but the pull
    evenness: float = 0.5  # windows count by their deviation to the power of -2 times this
    features: bool = False
    own: float = math.inf  # penalty of what is a variable's own
    level: float = math.inf  # penalty of the return to the long-run mean, in that mean's square; infinite: none


AROUND = ("cycle", "last")
CHOICES: dict[str, tuple[Any, ...]] = {
    "penalty": (0.01, 0.1, 1.0, 10.0, math.inf),
    "evenness": (0.0, 0.5, 1.0),
    "features": (False, True),
    "own": (math.inf, 10.0, 1.0, 0.1),
    "level": (math.inf, 10.0, 1.0, 0.1),
}
FEWEST_CYCLES = 4  # of a look-back that is shorter than the longest
CUTS = (0.5, 0.625, 0.75, 0.875)  # of the training windows: earlier origins, from which the next eighth is forecast
HELD = 0.125


@dataclass(frozen=True)
class Line:
    """The weights; call it on batches of windows, of which it sees the last L past steps."""

    weight: Tensor  # VxLxT, or 1xLxT where no variable has its own
    features: Tensor | None  # VxFxT
    level: Tensor | None  # VxT
    settings: LineSettings

    def __call__(self, batch: Batch) -> Tensor:
        """SxTxV, or of one variable where windows come one variable at a time."""
        past = batch.values[:, batch.lookback - self.weight.shape[1] : batch.lookback].transpose(1, 2)
        mean, deviation = _mean_and_deviation(past)
        known = _first_known(batch)
        known = past.new_zeros(len(past), 1, 0) if known is None else known[:, None]
        parts = past - mean, mean, deviation, known.expand(-1, past.shape[1], -1)
        series = [part.flatten(0, 1) for part in parts]
        places, most = _places(batch.identity.flatten(), self.n_own)
        grouped = [part.new_zeros(self.n_own * most, part.shape[1]).index_copy_(0, places, part) for part in series]
        found = self.of_groups(*(torch.unflatten(part, 0, (self.n_own, most)) for part in grouped))
        return (torch.unflatten(found.flatten(0, 1)[places], 0, past.shape[:2]) + mean).transpose(1, 2)

    @property
    def n_own(self) -> int:
        """Variables that have something of their own; 1 where none has."""
        return max(len(part) for part in (self.weight, self.features, self.level) if part is not None)

    def of_groups(self, centred: Tensor, mean: Tensor, deviation: Tensor, known: Tensor) -> Tensor:
        """VxNxT, the forecast less the mean, of as many windows of each variable: VxNxL, twice VxNx1, and VxNxF.

        V is 1 where no variable has anything of its own.
        """
        found = centred @ self.weight[0] if len(self.weight) == 1 else torch.bmm(centred, self.weight)
        if self.features is not None:
            found = torch.baddbmm(found, known * deviation, self.features)
        if self.level is not None:
            found = torch.baddbmm(found, mean, self.level[:, None])
        return found


def _places(identity: Tensor, variables: int) -> tuple[Tensor, int]:
    """Where each of S series stands when those of a variable stand together, and room is left for as many of each as
    there are of the most frequent one, which is returned too.
    """
    if variables == 1:
        return torch.arange(len(identity), device=identity.device), len(identity)
    so_far = (identity[:, None] == torch.arange(variables, device=identity.device)).cumsum(0)  # SxV
    most = int(so_far[-1].max())
    return identity * most + so_far.gather(1, identity[:, None]).squeeze(1) - 1, most


def lookbacks(longest: int, cycle: int) -> list[int]:
    """Those that lines have: the longest and its halves, while they hold `FEWEST_CYCLES`."""
    found = [longest]
    while found[-1] // 2 >= FEWEST_CYCLES * cycle:
        found.append(found[-1] // 2)
    return found


@torch.no_grad()
def choose_lines(
    training: Windows, validation: Windows, cycle: int, steps: range, *, years: bool = False, most: int = 1000
) -> list[Line]:
    """For each of `AROUND` the line to the future steps `steps` that does best, one choice after
    the other until none is better.

    Each origin counts alike: errors are taken in units of what repeating the window's mean does there,
    or a wild season would decide.

    Args:
        cycle: steps that repeat.
        years: whether training holds several; then lines may return to the long-run mean, and
            earlier origins are judged too.
        most: windows that are looked at, spread over validation; half as many an origin where there are several.
    """
    most = most // 2 if years else most
    cuts = _cuts(training) if years else []
    choices = CHOICES if years else {name: values for name, values in CHOICES.items() if name != "level"}
    sums = {
        evenness: _growing_sums(training, [end for end, _ in cuts], evenness, steps) for evenness in CHOICES["evenness"]
    }
    held = [list(_parts(windows, most)) for windows in (*(later for _, later in cuts), validation)]
    units = [_square(future[:, :, steps.start : steps.stop] for _, future, *_ in parts) for parts in held]
    known: dict[LineSettings, float] = {}

    def error(settings: LineSettings) -> float:
        if settings not in known:
            origins = zip(sums[settings.evenness], held, units, strict=True)
            known[settings] = sum(
                _error(_solve(s, settings, cycle, steps), parts, steps) / u for s, parts, u in origins
            )
        return known[settings]

    lines = []
    for around in AROUND:
        best, before = LineSettings(around=around), None
        while best != before:
            before = best
            for name, values in choices.items():
                if name != "features" or training.features is not None:
                    best = min((replace(best, **{name: value}) for value in values), key=error)
        lines.append(_solve(sums[best.evenness][-1], best, cycle, steps))
    return lines


@torch.no_grad()
def learned_again(line: Line, windows: Windows, cycle: int, steps: range) -> Line:
    """A line with the same settings and look-back, learned from other windows."""
    seen = windows.seeing(line.weight.shape[1])
    return _solve(_sums(seen, line.settings.evenness, steps), line.settings, cycle, steps)


def _cuts(training: Windows) -> list[tuple[int, Windows]]:
    """How many windows end before an origin, and those that are forecast from there on; none where
    training is too short to be cut.
    """
    count, found = len(training.starts), []
    for cut in CUTS:
        first, last = round(cut * count), round((cut + HELD) * count)
        if first - training.horizon >= max(training.lookback, last - first):
            found.append((first - training.horizon + 1, _slice(training, first, last)))
    return found


def _slice(windows: Windows, first: int, last: int) -> Windows:
    return replace(
        windows, starts=windows.starts[first:last], rows=windows.rows[first:last], stride=windows.stride[first:last]
    )


@dataclass(frozen=True)
class _Sums:
    """Normal equations, float64; "beside" are the features and, last, the level."""

    left: Tensor  # VxLxL
    right: Tensor  # VxLxT
    beside_left: Tensor  # Vx(F+1)x(F+1)
    beside_past: Tensor  # Vx(F+1)xL
    beside_right: Tensor  # Vx(F+1)xT

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


def _growing_sums(windows: Windows, ends: list[int], evenness: float, steps: range) -> list[_Sums]:
    """Of the windows before each of the ascending `ends`, and of all."""
    found: list[_Sums] = []
    for first, last in zip([0, *ends], [*ends, len(windows.starts)], strict=True):
        more = _sums(_slice(windows, first, last), evenness, steps)
        found.append(found[-1] + more if found else more)
    return found


def _sums(windows: Windows, evenness: float, steps: range) -> _Sums:
    found: _Sums | None = None
    for past, future, mean, deviation, known in _parts(windows, len(windows.starts)):
        scale = deviation**-evenness
        x, y = ((part * scale).double() for part in (past, future[:, :, steps.start : steps.stop]))
        f = (torch.cat([known * deviation, mean], 2) * scale).double()
        more = _Sums(x.mT @ x, x.mT @ y, f.mT @ f, f.mT @ x, f.mT @ y)
        found = more if found is None else found + more
    assert found is not None
    return found


Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _parts(windows: Windows, most: int) -> Iterator[Parts]:
    """Past VxNxL and future VxNxT less the window's mean, that and the deviation VxNx1, and the features
    of the first future step NxF.
    """
    count, variables = len(windows.starts), windows.n_variables
    device, size = windows.values.device, variables * (windows.lookback + windows.horizon)
    chosen = torch.arange(0, count, max(1, count // most), device=device)
    for part in torch.split(chosen, max(1, CHUNK[device.type] // size)):
        numbers = (
            part if windows.together else (part[:, None] * variables + torch.arange(variables, device=device)).flatten()
        )
        batch = windows.batch(numbers)
        whole = batch.values.transpose(1, 2).reshape(len(part), variables, -1)
        past, future = whole[..., : batch.lookback], whole[..., batch.lookback :]
        mean, deviation = _mean_and_deviation(past)
        known = _first_known(batch)
        known = past.new_zeros(len(part), 0) if known is None else known.reshape(len(part), -1, known.shape[-1])[:, 0]
        past, future, mean, deviation = (
            values.transpose(0, 1) for values in (past - mean, future - mean, mean, deviation)
        )
        yield past, future, mean, deviation, known


def _solve(sums: _Sums, settings: LineSettings, cycle: int, steps: range) -> Line:
    size, device = sums.left.shape[1], sums.left.device
    if settings.around == "cycle":
        start = cycle_mean_weight(size, steps.stop, cycle)[steps.start :].T.double().to(device)
    else:
        start = torch.zeros(size, len(steps), dtype=torch.float64, device=device)
        start[-1] = 1.0
    if math.isinf(settings.penalty):
        return Line(start.float()[None], None, None, replace(settings, features=False, own=math.inf, level=math.inf))
    left, right, inverse = sums.left, sums.right, None
    shown = _shown(settings, sums.beside_left.shape[1] - 1)
    if shown:
        beside_left = sums.beside_left[:, shown][:, :, shown]
        beside_past, beside_right = sums.beside_past[:, shown], sums.beside_right[:, shown]
        inverse = torch.linalg.inv(beside_left + torch.diag_embed(_beside_penalties(sums, settings)[:, shown]))
        held = beside_past.mT @ inverse  # these weights follow from the line's, so they are eliminated
        left, right = left - held @ beside_past, right - held @ beside_right
    eye = torch.eye(size, dtype=torch.float64, device=device)
    power = sums.left.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    all_left, all_right = left.sum(0), right.sum(0)
    pull = settings.penalty * power.sum() * eye
    weight = (start + _solved(all_left + pull, all_right - all_left @ start))[None]
    if not math.isinf(settings.own):
        weight = weight + _solved(left + settings.own * power * eye, right - left @ weight)
    features = level = None
    if inverse is not None:
        beside = (inverse @ (beside_right - beside_past @ weight)).float()
        features = beside[:, : sums.beside_left.shape[1] - 1] if settings.features else None
        level = beside[:, -1] if not math.isinf(settings.level) else None
    return Line(weight.float(), features, level, settings)


def _solved(left: Tensor, right: Tensor) -> Tensor:
    """Of systems that are symmetric and, by their penalty, positive definite: half the work of a general one."""
    return torch.cholesky_solve(right, torch.linalg.cholesky(left))


def _shown(settings: LineSettings, n_features: int) -> list[int]:
    """Which of what stands beside the past is seen."""
    return [*range(n_features * settings.features), *([n_features] if not math.isinf(settings.level) else [])]


def _beside_penalties(sums: _Sums, settings: LineSettings) -> Tensor:
    """Vx(F+1)."""
    power = sums.beside_left.diagonal(dim1=1, dim2=2)
    of_features = FEATURE_PENALTY * power[:, :-1].mean(1, keepdim=True).expand(-1, power.shape[1] - 1)
    return torch.cat([of_features, settings.level * power[:, -1:]], 1)


def _error(line: Line, held: list[Parts], steps: range) -> float:
    """Mean square over windows, steps and variables."""
    return _square(_found(line, *parts) - parts[1][:, :, steps.start : steps.stop] for parts in held)


def _found(line: Line, past: Tensor, future: Tensor, mean: Tensor, deviation: Tensor, known: Tensor) -> Tensor:
    """VxNxT, as `_parts` gives them."""
    return line.of_groups(past, mean, deviation, known.expand(len(past), -1, -1))


def _square(errors: Iterable[Tensor]) -> float:
    total, count = 0.0, 0
    for error in errors:
        total, count = total + float(error.square().sum(dtype=torch.float64)), count + error.numel()
    return total / count


def _mean_and_deviation(past: Tensor) -> tuple[Tensor, Tensor]:
    """SxVx1 each of SxVxL."""
    mean = past.mean(2, keepdim=True)
    return mean, (past.var(2, keepdim=True, correction=0) + QUIET**2).sqrt()


def _first_known(batch: Batch) -> Tensor | None:
    """SxF at the first future step."""
    return None if batch.features is None else batch.features[:, batch.lookback]
