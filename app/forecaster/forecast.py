"""A forecast from a source of analyses to a store on disk: initial states, cascade, members, writer, resume.

Shapes: B members, T input times, V channels, H rows, W columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unipercept.app.forecaster.cascade import Cascade, Hook, State, StepModel, lagged
from unipercept.app.forecaster.ensemble import TENDENCY, TendencyNoise, check_perturbation, perturbed_members
from unipercept.app.forecaster.frames import Frames
from unipercept.app.forecaster.writer import ForecastWriter
from unipercept.errors import InputError
from unipercept.pipelines.weather import doubts

NEVER_NEGATIVE = re.compile(r"[rq]\d+(\.\d+)?|tp")  # humidities and precipitation
IMPLAUSIBLE_DEVIATIONS = 8.0  # of a map's mean from the training mean; seasons and regions stay within 2


@dataclass(frozen=True)
class EnsembleSettings:
    """How members differ; see `perturbed_members`, and `TendencyNoise` for the perturbation "tendency".

    Args:
        amplitude: a share of each channel's standard deviation, or for "tendency" of each step's change.
        relative: for "tendency", what the amplitude is multiplied by in single channels.
        correlation_hours: of "tendency".
    """

    members: int = 1
    perturbation: str = "red"
    amplitude: float = 0.05
    length_km: float = 1000.0
    relative: Mapping[str, float] = field(default_factory=dict)
    correlation_hours: float = 24.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_perturbation(self.perturbation, self.members, self.amplitude)
        if not (self.length_km > 0 and self.correlation_hours > 0):
            raise InputError(
                f"length_km and correlation_hours must be positive, got {self.length_km:g} and {self.correlation_hours:g}"
            )

    def hooks(self, model: StepModel) -> list[Hook]:
        """Hooks that run after each step.

        Raises:
            InputError: a perturbed tendency of a model that takes a single state.
        """
        if self.perturbation != TENDENCY:
            return []
        if model.frames < 2:
            raise InputError(
                "a perturbed tendency needs a model that takes two states or more; choose another --perturbation"
            )
        amplitudes = tuple(self.amplitude * self.relative.get(name, 1.0) for name in model.channels)
        shape = (self.length_km, self.correlation_hours, self.seed)
        return [TendencyNoise(self.members, model.grid, model.step_hours, amplitudes, *shape)]

    def attributes(self) -> dict[str, Any]:
        """For the store of a forecast; plain numbers and text."""
        relative = ", ".join(f"{name} {share:g}" for name, share in self.relative.items())
        return {f"ensemble_{name}": value for name, value in {**vars(self), "relative": relative}.items()}


def initial_state(model: StepModel, frames: Frames, time: Any, device: str | torch.device = "cpu") -> State:
    """The analyses of `time` and the steps before it that the model takes.

    Raises:
        InputError: an analysis is missing, or the source is on another grid.
    """
    if not frames.grid.matches(model.grid):
        raise InputError(
            f"{frames.source} is on a grid of {frames.grid.shape[0]}x{frames.grid.shape[1]} that is not the model's "
            f"({model.grid.shape[0]}x{model.grid.shape[1]}); regrid it first"
        )
    time = np.datetime64(time, "ns")
    step = np.timedelta64(round(model.step_hours * 3600), "s")
    try:
        numbers = [frames.at(time - k * step) for k in range(model.frames - 1, -1, -1)]
    except InputError as error:
        needs = (
            f"; the model starts from {model.frames} states, {model.step_hours:g} h apart" if model.frames > 1 else ""
        )
        raise InputError(f"{error}{needs}") from error
    states = torch.from_numpy(frames.read(numbers))
    _require_plausible(states, model, frames)
    return State(states[None].to(device), np.array([time]))


def _require_plausible(states: Tensor, model: StepModel, frames: Frames) -> None:
    """Refuse fields far from those that the model was trained on: usually their units are mislabelled."""
    statistics = getattr(model, "statistics", None)
    if statistics is None:  # an ONNX graph keeps its statistics to itself
        if found := doubts(frames.fields.channels, states[-1].numpy()):
            raise InputError(f"{frames.source}: {found[0]}")
        return
    means = states.double().mean(dim=(0, -2, -1))
    for name, unit, found, mean, std in zip(
        model.channels, model.units, means.tolist(), statistics.mean, statistics.std, strict=True
    ):
        if abs(found - mean) > IMPLAUSIBLE_DEVIATIONS * std:
            raise InputError(
                f"{frames.source}: {name} is {found:.5g} {unit} on average, where the model was trained on {mean:.5g} ± {std:.2g}; "
                "check its unit and its level"
            )


def not_negative(channels: Sequence[str]) -> Hook:
    """A hook that sets humidities and precipitation below 0, which a network may forecast, to 0. What is written is
    what the next step starts from, so a resumed forecast is exact.
    """
    is_bounded = torch.tensor([NEVER_NEGATIVE.fullmatch(name) is not None for name in channels])[:, None, None]

    def hook(state: State) -> State | None:
        if not bool(is_bounded.any()):
            return None
        latest = torch.where(is_bounded.to(state.frames.device) & (state.latest < 0), 0.0, state.latest)
        return replace(state, frames=torch.cat([state.frames[:, :-1], latest[:, None]], dim=1))

    return hook


def forecast(
    cascade: Cascade,
    frames: Frames,
    times: Sequence[Any],
    n_steps: int,
    output: str | Path,
    *,
    device: str | torch.device = "cpu",
    ensemble: EnsembleSettings | None = None,
    hooks: Sequence[Hook] = (),
    attributes: dict[str, Any] | None = None,
    resume: bool = False,
    batch_size: int = 1,
    on_step: Callable[[int, int], None] | None = None,
) -> Path:
    """Forecast from each of `times`, writing every state as it comes.

    A run that is killed and resumed leaves the same store, bit for bit on the same machine: it continues from the last
    states on disk. At most two states wait for the disk, whatever the length of the forecast.

    Args:
        cascade: its stages make the steps in turn.
        frames: analyses, read with the model's channels.
        times: initial times; `frames` holds these and what the network needs before them.
        n_steps: of each forecast.
        output: Zarr folder to make; see `ForecastWriter`.
        ensemble: None for one forecast without the dimension `number`.
        device: where the networks run.
        hooks: called after each step, after the ensemble's own. They must depend on the state alone, or a resumed
            forecast differs.
        attributes: further ones of the store.
        resume: continue a run that was stopped; without it, `output` must not exist.
        batch_size: initial times that run together.
        on_step: called with a number of initial times and the step that they have reached.

    Raises:
        InputError: initial states are missing, the store exists or is of another forecast, the disk is full.
    """
    if n_steps < 1 or batch_size < 1 or not len(times):
        raise InputError("a forecast needs at least one initial time and one step, and batches of at least one")
    model = cascade.model(0)
    initial_state(model, frames, times[0], device)  # a mistake shows before anything is made
    hooks = [*(ensemble.hooks(model) if ensemble is not None else ()), *hooks, not_negative(model.channels)]
    facts = {
        "models": " ".join(stage.identity for stage in cascade.stages),
        "stages": cascade.describe(),
        "initial_states_from": Path(frames.source).name,
        **({} if ensemble is None else ensemble.attributes()),
        **(attributes or {}),
    }
    leads = [model.step_hours * (k + 1) for k in range(n_steps)]
    writer = ForecastWriter(
        output, channels=model.channels, units=model.units, grid=model.grid, times=times, leads_hours=leads,
        members=None if ensemble is None else ensemble.members, attributes=facts, resume=resume,
    )  # fmt: skip
    try:
        for first in range(0, len(times), batch_size):
            numbers = range(first, min(first + batch_size, len(times)))
            state = _start(cascade, frames, times, device, ensemble, writer, numbers)
            done = {
                number: writer.leads_done(number) for number in numbers
            }  # a batch may have been cut between its times
            for following in cascade.run(state, n_steps, hooks):
                for number, part in zip(numbers, following.latest.chunk(len(numbers)), strict=True):
                    if following.step > done[number]:
                        writer.put(number, following.step - 1, part)
                if on_step is not None:
                    on_step(len(numbers), following.step)
    except BaseException:
        writer.abandon()
        raise
    writer.close()
    return writer.path


def _start(
    cascade: Cascade,
    frames: Frames,
    times: Sequence[Any],
    device: str | torch.device,
    ensemble: EnsembleSettings | None,
    writer: ForecastWriter,
    numbers: Sequence[int],
) -> State:
    """The start of a batch of forecasts, new or resumed: the initial states, overwritten by what is on disk."""
    model, members = cascade.model(0), 1 if ensemble is None else ensemble.members
    initial = []
    for number in numbers:
        state = initial_state(model, frames, times[number], device)
        if ensemble is not None:
            state = perturbed_members(
                state, members, _std(model, frames), model.grid, kind=ensemble.perturbation,
                amplitude=ensemble.amplitude, seed=ensemble.seed, length_km=ensemble.length_km, cascade=cascade,
            )  # fmt: skip
        initial.append(state)
    together = lagged(initial)
    done = min(writer.leads_done(number) for number in numbers)
    if done == 0:
        return together
    leads = range(max(0, done - model.frames), done)
    stored = torch.cat([writer.read_back(number, leads) for number in numbers]).to(device)
    joined = torch.cat([together.frames, stored], dim=1)[:, -model.frames :]
    return State(joined, together.times + done * np.timedelta64(round(model.step_hours * 3600), "s"), done)


def _std(model: StepModel, frames: Frames) -> Tensor:
    statistics = getattr(model, "statistics", None)
    if statistics is not None:
        return torch.tensor(statistics.std)
    block = torch.from_numpy(frames.read([0]))  # an ONNX graph keeps its statistics to itself
    return block[0].std(dim=(-2, -1))
