"""The cascade: which model takes which step, and the loop that carries a forecast from state to state.

Shapes: B batch of initial times or members, T input times, V channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unipercept.app.forecaster.frames import Grid
from unipercept.errors import InputError


class StepModel(Protocol):
    """The model of a stage: `ForecastModel`, or an ONNX graph."""

    channels: tuple[str, ...]
    units: tuple[str, ...]
    grid: Grid
    step_hours: float
    frames: int

    def __call__(self, states: Tensor, times: Any, /) -> Tensor:
        """BxTxVxHxW physical states, the last at `times` (B), to BxVxHxW one step later."""

    def fingerprint(self) -> str:
        """An identifier of the model's weights."""


@dataclass(frozen=True)
class Stage:
    """A model and how many steps it takes.

    Args:
        name: for people and for the forecast's attributes, e.g. "short".
        n_steps: steps until the next stage; the last stage continues beyond them.
        load: called before the stage's first step; its model is dropped when the next stage begins.
        identity: which model this is, without loading it: a hash of its file.
    """

    name: str
    n_steps: int
    load: Callable[[], StepModel]
    identity: str = ""

    @classmethod
    def of(cls, model: StepModel, n_steps: int, name: str = "model") -> Stage:
        """A stage of a model that is in memory already."""
        return cls(name, n_steps, lambda: model, model.fingerprint())


@dataclass(frozen=True)
class State:
    """The state of a forecast: all that is needed to continue from here.

    Args:
        frames: BxTxVxHxW in physical units, the latest last.
        times: B, when the latest is.
        step: steps done since the analysis; 0 is the analysis itself.
    """

    frames: Tensor
    times: NDArray[np.datetime64]
    step: int = 0

    @property
    def latest(self) -> Tensor:
        """BxVxHxW."""
        return self.frames[:, -1]

    def save(self, path: Any) -> None:
        """Write it as safetensors: a restart from here is exact."""
        from safetensors.torch import save_file

        from unipercept.atomic import atomic_path

        times = torch.from_numpy(self.times.astype("datetime64[ns]").view(np.int64).copy())
        with atomic_path(path) as temporary:
            save_file(
                {"frames": self.frames.detach().cpu().contiguous(), "times": times, "step": torch.tensor(self.step)},
                temporary,
            )

    @classmethod
    def load(cls, path: Any, device: str | torch.device = "cpu") -> State:
        """The inverse of `save`.

        Raises:
            InputError: it cannot be read.
        """
        from safetensors.torch import load_file

        try:
            content = load_file(path)
            times = content["times"].numpy().view("datetime64[ns]")
            return cls(content["frames"].to(device), times, int(content["step"]))
        except Exception as error:  # safetensors raises its own kind
            raise InputError(f"{path} is not a forecast state that can be gone on from: {error}") from error


Hook = Callable[[State], State | None]
"""Called after each step with the new state; what it returns takes its place (a perturbation,
a constraint), None keeps it.
"""


class Cascade:
    """Models in turn, chosen by the absolute step, so that a restart at any step is exact.

    At a hand-over the next model receives only the last states of the one before. One model is in memory at a time.

    Args:
        stages: in order.
        blend_steps: from a hand-over on, mix the two models' forecasts over so many steps, the new one's share growing
            linearly; 0 for none. Both models are then in memory during those steps.
        seed: of models that draw random numbers (stochastic depth): those of step k depend only on seed and k. None if
            they draw none.

    Raises:
        InputError: no stage, or one of no steps.
    """

    def __init__(self, stages: Sequence[Stage], blend_steps: int = 0, seed: int | None = None) -> None:
        if not stages or min(stage.n_steps for stage in stages) < 1 or blend_steps < 0:
            raise InputError("a cascade needs stages of at least one step each, and blend_steps of 0 or more")
        self.stages, self.blend_steps, self.seed = tuple(stages), blend_steps, seed
        self._loaded: dict[int, StepModel] = {}

    @property
    def boundaries(self) -> tuple[int, ...]:
        """The first step of each stage but the first."""
        return tuple(int(n) for n in np.cumsum([stage.n_steps for stage in self.stages])[:-1])

    def stage_index(self, step: int) -> int:
        """Which stage takes step number `step` (0 leads from the analysis to the first forecast)."""
        return int(np.searchsorted(self.boundaries, step, side="right"))

    def model(self, index: int) -> StepModel:
        """The model of a stage, loaded on first use."""
        if index not in self._loaded:
            self._release(keep=() if self.blend_steps == 0 else (index - 1,))
            self._loaded[index] = self.stages[index].load()
        return self._loaded[index]

    @torch.inference_mode()
    def step(self, state: State) -> State:
        """The state one step later.

        Raises:
            InputError: states that do not fit the model, or a forecast that is no longer finite.
        """
        index = self.stage_index(state.step)
        model = self.model(index)
        _check(state, model)
        with self._drawing(state.step):
            following = model(state.frames, state.times)
        share = self._share(state.step, index)
        if share < 1:
            following = torch.lerp(self.model(index - 1)(state.frames, state.times), following, share)
        elif index - 1 in self._loaded:
            self._release(keep=(index,))
        times = state.times + np.timedelta64(round(model.step_hours * 3600), "s")
        frames = torch.cat([state.frames[:, 1:], following[:, None].to(state.frames)], dim=1)
        return State(frames, times, state.step + 1)

    def run(self, state: State, until_step: int, hooks: Sequence[Hook] = ()) -> Iterator[State]:
        """States after each step up to number `until_step`, hooks applied. Only the current state is kept.

        Raises:
            InputError: a forecast that is no longer finite; the states before it have been given.
        """
        while state.step < until_step:
            state = self.step(state)
            for hook in hooks:
                state = hook(state) or state
            if not bool(torch.isfinite(state.latest).all()):
                raise InputError(
                    f"the forecast is not finite after step {state.step} (stage {self.stages[self.stage_index(state.step - 1)].name}); "
                    "check the initial state's units and the model"
                )
            yield state

    def describe(self) -> str:
        """Stages and their steps, e.g. "short 0-20, medium 20-"."""
        starts = (0, *self.boundaries)
        ends = (*map(str, self.boundaries), "")
        return ", ".join(f"{s.name} {a}-{b}" for s, a, b in zip(self.stages, starts, ends, strict=True))

    @contextmanager
    def _drawing(self, step: int) -> Iterator[None]:
        if self.seed is None:
            yield
            return
        with torch.random.fork_rng():
            torch.manual_seed(int(np.random.SeedSequence([self.seed, step]).generate_state(1)[0]))
            yield

    def _share(self, step: int, index: int) -> float:
        """Weight of the stage's own forecast when it is blended with the stage before it."""
        if index == 0 or self.blend_steps == 0:
            return 1.0
        return min((step - self.boundaries[index - 1] + 1) / (self.blend_steps + 1), 1.0)

    def _release(self, keep: Sequence[int]) -> None:
        for index in [i for i in self._loaded if i not in keep]:
            del self._loaded[index]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def lagged(states: Sequence[State]) -> State:
    """Several states as one batch, e.g. forecasts from earlier analyses that are valid now.

    Raises:
        InputError: they stand at different steps.
    """
    if len({state.step for state in states}) != 1:
        raise InputError("states that run together must stand at the same step")
    frames = torch.cat([state.frames for state in states])
    return State(frames, np.concatenate([state.times for state in states]), states[0].step)


def _check(state: State, model: StepModel) -> None:
    expected = (model.frames, len(model.channels), *model.grid.shape)
    if state.frames.ndim != 5 or tuple(state.frames.shape[1:]) != expected:
        raise InputError(f"the model needs states Bx{'x'.join(map(str, expected))}, got {tuple(state.frames.shape)}")
    if len(state.times) != state.frames.shape[0]:
        raise InputError(f"{state.frames.shape[0]} states come with {len(state.times)} times")
