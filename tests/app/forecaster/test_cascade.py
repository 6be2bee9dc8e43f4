"""The cascade's arithmetic: stages by absolute step, restarts, hand-overs. All equalities are bit for bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.app.forecaster.conftest import tiny_model
from unipercept.app.forecaster.cascade import Cascade, Stage, State, lagged
from unipercept.app.forecaster.cascade_file import load_cascade, save_cascade
from unipercept.app.forecaster.forecast import initial_state
from unipercept.app.forecaster.frames import Frames
from unipercept.app.forecaster.model import ForecastModel
from unipercept.errors import InputError, WeightsError


def start(model: ForecastModel, frames: Frames) -> State:
    return initial_state(model, frames, frames.times[5])


def roll(cascade: Cascade, state: State, n: int) -> list[torch.Tensor]:
    return [s.latest.clone() for s in cascade.run(state, n)]


def test_two_stages_of_one_model_are_one_long_stage(model: ForecastModel, frames: Frames) -> None:
    whole = roll(Cascade([Stage.of(model, 10)]), start(model, frames), 8)
    parts = roll(Cascade([Stage.of(model, 3), Stage.of(model, 2), Stage.of(model, 9)]), start(model, frames), 8)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert not torch.equal(whole[0], whole[1])


def test_a_restart_anywhere_goes_on_exactly(
    model: ForecastModel, other_model: ForecastModel, frames: Frames, tmp_path: Path
) -> None:
    def cascade() -> Cascade:
        return Cascade([Stage.of(model, 3), Stage.of(other_model, 3)])

    whole = list(cascade().run(start(model, frames), 7))
    for k in range(1, 7):
        whole[k - 1].save(tmp_path / "state.safetensors")
        again = list(cascade().run(State.load(tmp_path / "state.safetensors"), 7))
        assert [s.step for s in again] == list(range(k + 1, 8))
        assert all(torch.equal(a.frames, b.frames) for a, b in zip(again, whole[k:], strict=True))
        assert all((a.times == b.times).all() for a, b in zip(again, whole[k:], strict=True))


def test_the_next_stage_gets_the_last_two_states_and_nothing_else(
    model: ForecastModel, other_model: ForecastModel, frames: Frames
) -> None:
    short = list(Cascade([Stage.of(model, 3)]).run(start(model, frames), 3))
    handed = State(torch.stack([short[1].latest, short[2].latest], dim=1), short[2].times, 0)
    expected = roll(Cascade([Stage.of(other_model, 1)]), handed, 2)
    found = roll(Cascade([Stage.of(model, 3), Stage.of(other_model, 3)]), start(model, frames), 5)[3:]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_stages_are_chosen_by_the_absolute_step(model: ForecastModel) -> None:
    cascade = Cascade([Stage.of(model, 20, "short"), Stage.of(model, 20, "medium"), Stage.of(model, 20, "long")])
    assert [cascade.stage_index(k) for k in (0, 19, 20, 39, 40, 59, 60, 99)] == [0, 0, 1, 1, 2, 2, 2, 2]
    assert cascade.boundaries == (20, 40)
    assert cascade.describe() == "short 0-20, medium 20-40, long 40-"


def test_one_model_is_in_memory_at_a_time(model: ForecastModel, frames: Frames) -> None:
    loaded: list[str] = []

    def stage(name: str) -> Stage:
        def load() -> ForecastModel:
            loaded.append(name)
            return model

        return Stage(name, 2, load)

    cascade = Cascade([stage("a"), stage("b"), stage("c")])
    for state in cascade.run(start(model, frames), 6):
        assert len(cascade._loaded) == 1
        assert loaded == ["a", "b", "c"][: (state.step + 1) // 2]


def test_blending_grows_the_new_stage_linearly(
    model: ForecastModel, other_model: ForecastModel, frames: Frames
) -> None:
    cascade = Cascade([Stage.of(model, 2), Stage.of(other_model, 5)], blend_steps=1)
    before = list(cascade.run(start(model, frames), 2))[-1]
    mixed = cascade.step(before).latest
    both = [m(before.frames, before.times) for m in (model, other_model)]
    assert torch.allclose(mixed, (both[0] + both[1]) / 2, rtol=1e-6)
    after = cascade.step(State(before.frames, before.times, 3))
    assert torch.equal(after.latest, other_model(before.frames, before.times))
    same = Cascade([Stage.of(model, 2), Stage.of(model, 5)], blend_steps=2)
    plain = roll(Cascade([Stage.of(model, 9)]), start(model, frames), 5)
    for a, b in zip(roll(same, start(model, frames), 5), plain, strict=True):
        assert torch.allclose(a, b, rtol=1e-6)


def test_hooks_change_what_the_next_step_sees(model: ForecastModel, frames: Frames) -> None:
    seen: list[int] = []

    def constrain(state: State) -> State:
        return replace(state, frames=state.frames.clamp(max=1000.0))

    def watch(state: State) -> None:
        seen.append(state.step)

    states = list(Cascade([Stage.of(model, 5)]).run(start(model, frames), 3, [constrain, watch]))
    assert seen == [1, 2, 3]
    assert all(float(s.latest.max()) <= 1000 for s in states)


def test_initial_times_run_as_one_batch(model: ForecastModel, frames: Frames) -> None:
    cascade = Cascade([Stage.of(model, 5)])
    singles = [initial_state(model, frames, frames.times[i]) for i in (3, 9)]
    together = list(cascade.run(lagged(singles), 3))[-1]
    for i, single in enumerate(singles):
        alone = list(cascade.run(single, 3))[-1]
        assert torch.allclose(together.latest[i], alone.latest[0], rtol=1e-5, atol=1e-3)
        assert together.times[i] == alone.times[0]


def test_a_forecast_that_leaves_the_finite_numbers_stops_in_one_line(model: ForecastModel, frames: Frames) -> None:
    def explode(state: State) -> State:
        return replace(state, frames=state.frames * float("inf"))

    with pytest.raises(InputError, match=r"not finite after step 1 \(stage model\)"):
        list(Cascade([Stage.of(model, 5)]).run(start(model, frames), 3, [explode]))


def test_a_cascade_on_disk_is_the_one_in_memory(
    model: ForecastModel, other_model: ForecastModel, frames: Frames, tmp_path: Path
) -> None:
    model.save(tmp_path / "short.safetensors")
    other_model.save(tmp_path / "medium.safetensors")
    entries = [{"name": n, "model": f"{n}.safetensors", "steps": s} for n, s in (("short", 2), ("medium", 4))]
    save_cascade(tmp_path / "cascade.json", entries)
    expected = roll(Cascade([Stage.of(model, 2), Stage.of(other_model, 4)]), start(model, frames), 5)
    found = roll(load_cascade(tmp_path), start(model, frames), 5)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    alone = load_cascade(tmp_path / "short.safetensors")
    assert torch.equal(roll(alone, start(model, frames), 2)[1], expected[1])


def test_a_saved_model_says_the_same_and_has_the_same_fingerprint(
    model: ForecastModel, frames: Frames, tmp_path: Path
) -> None:
    model.card["licence"] = "CC0"
    model.save(tmp_path / "m.safetensors")
    loaded = ForecastModel.load(tmp_path / "m.safetensors")
    state = start(model, frames)
    assert torch.equal(loaded(state.frames, state.times), model(state.frames, state.times))
    assert loaded.fingerprint() == model.fingerprint() != tiny_model(frames, seed=3).fingerprint()
    assert loaded.card == {"licence": "CC0"}
    assert (loaded.units, loaded.channels, loaded.grid) == (model.units, model.channels, model.grid)


def test_before_training_a_model_forecasts_persistence(frames: Frames) -> None:
    model = tiny_model(frames, strength=0.0)
    state = start(model, frames)
    assert torch.equal(model(state.frames, state.times), state.latest)


def test_stochastic_depth_separates_members_and_repeats(model: ForecastModel, frames: Frames, tmp_path: Path) -> None:
    model.save(tmp_path / "m.safetensors")
    state = lagged([start(model, frames)] * 6)
    runs = [
        list(load_cascade(tmp_path / "m.safetensors", stochastic_depth=0.5, seed=seed).run(state, 4))[-1].latest
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert float(runs[0].std(dim=0).max()) > 0
    halfway = list(load_cascade(tmp_path / "m.safetensors", stochastic_depth=0.5, seed=1).run(state, 2))[-1]
    again = list(load_cascade(tmp_path / "m.safetensors", stochastic_depth=0.5, seed=1).run(halfway, 4))[-1]
    assert torch.equal(again.latest, runs[0])


def test_mistakes_are_named(model: ForecastModel, frames: Frames, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one step"):
        Cascade([Stage.of(model, 0)])
    with pytest.raises(InputError, match="needs states Bx2x3x8x16"):
        Cascade([Stage.of(model, 1)]).step(State(torch.zeros(1, 2, 3, 8, 8), frames.times[:1]))
    with pytest.raises(WeightsError, match="no forecast model at"):
        load_cascade(tmp_path / "none.safetensors")
    (tmp_path / "cascade.json").write_text('{"stages": [{"name": "short"}]}')
    with pytest.raises(InputError, match="is no cascade"):
        load_cascade(tmp_path)
    (tmp_path / "m.safetensors").write_bytes(b"nonsense")
    with pytest.raises(WeightsError, match="cannot read"):
        ForecastModel.load(tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="not the model's"):
        initial_state(
            model, Frames(frames.fields.dataset.isel(longitude=slice(0, 8)), frames.channels), frames.times[4]
        )
    with pytest.raises(InputError, match="no state at"):
        initial_state(model, frames, frames.times[0])
    assert np.isfinite(model.mean.numpy()).all()
