"""Training: schedules, rollouts and their gradients, hand-overs, exact resume, two processes as one."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import apart
from tests.app.forecaster.conftest import CHANNELS, tiny_model, waves
from unipercept.app.forecaster import recipe, training, windows
from unipercept.app.forecaster.cascade import Cascade, Stage
from unipercept.app.forecaster.forecast import initial_state
from unipercept.app.forecaster.frames import Frames
from unipercept.app.forecaster.model import ForecastModel
from unipercept.app.forecaster.network import KEPT_BYTES
from unipercept.app.forecaster.rollout_loss import LossSettings, RolloutLoss, channel_weights
from unipercept.app.forecaster.schedules import RolloutSchedule
from unipercept.app.forecaster.training import Phase, TrainingData, collate, train_phases
from unipercept.app.forecaster.windows import HandOverWindows, StateTable, TableWindows, Windows, handed_over
from unipercept.errors import InputError
from unipercept.train.distributed import Processes


@pytest.mark.parametrize(
    ("schedule", "lengths"),
    [
        (RolloutSchedule(2, 4, 3), [2, 2, 2, 3, 3, 3, 4, 4, 4, 4]),
        (RolloutSchedule(mode="list", lengths=(1, 4, 2), every=2, stop=4), [1, 1, 4, 4, 2, 2, 2]),
        (RolloutSchedule(3, 5, mode="loss"), [3, 3, 3]),
    ],
)
def test_schedules_give_the_lengths_that_they_say(schedule: RolloutSchedule, lengths: list[int]) -> None:
    assert [schedule.length(update) for update in range(len(lengths))] == lengths


def test_random_lengths_are_uniform_and_repeat() -> None:
    schedule = RolloutSchedule(1, 4, mode="random", seed=3)
    drawn = [schedule.length(update) for update in range(2000)]
    assert drawn == [schedule.length(update) for update in range(2000)]
    assert np.allclose(np.bincount(drawn)[1:] / 2000, 0.25, atol=0.04)
    with pytest.raises(InputError, match="start <= stop"):
        RolloutSchedule(3, 2)


def test_windows_are_normalised_states_in_a_row(model: ForecastModel, frames: Frames) -> None:
    windows = Windows(frames, model, 3, slice(4, 20))
    assert len(windows) == 16 - 4
    states, season, solar = windows[2]
    expected = model.normalise(torch.from_numpy(frames.read(range(6, 11))))
    assert torch.allclose(states, expected, atol=2e-4)
    assert season.shape == (3, 4)
    assert solar.shape == (3, 0)
    on_disk = Windows(frames, model, 3, slice(4, 20), cache=False)
    assert torch.equal(on_disk[2].states, states)


def test_windows_do_not_cross_gaps_and_know_the_models_step(model: ForecastModel) -> None:
    gap = Frames(waves(30).isel(time=[*range(10), *range(15, 30)]), CHANNELS)
    starts = Windows(gap, model, 2).starts.tolist()
    assert starts == [*range(7), *range(10, 22)]
    coarse = ForecastModel(model.network, model.grid, model.statistics, step_hours=12)
    window = Windows(Frames(waves(30), CHANNELS), coarse, 2)
    assert torch.allclose(
        window[3].states[1], Windows(Frames(waves(30), CHANNELS), model, 2)[window.starts[3]].states[2]
    )
    odd = ForecastModel(model.network, model.grid, model.statistics, step_hours=9)
    with pytest.raises(InputError, match="no multiple of the data's 6 h"):
        Windows(gap, odd, 2)
    with pytest.raises(InputError, match="no 31 states in a row"):
        Windows(gap, model, 29)


def batch_of(model: ForecastModel, frames: Frames, n_steps: int) -> object:
    windows = Windows(frames, model, n_steps)
    return collate([windows[i] for i in (0, 5, 9)])


def test_a_rollout_in_training_is_the_forecast(model: ForecastModel, frames: Frames) -> None:
    batch = batch_of(model, frames, 3)
    found = RolloutLoss(model).rollout(model.network, batch, 3)
    cascade = Cascade([Stage.of(model, 9)])
    for i, start in enumerate((0, 5, 9)):
        state = initial_state(model, frames, frames.times[start + 1])
        for k, following in enumerate(cascade.run(state, 3)):
            # Two ways round in float32: normalised throughout, and through physical units at each step.
            assert torch.allclose(found[k][i], model.normalise(following.latest[0]), atol=1e-3)


def test_the_loss_is_the_weighted_mean_of_the_steps(model: ForecastModel, frames: Frames) -> None:
    batch = batch_of(model, frames, 3)
    loss = RolloutLoss(model, LossSettings(rho="l1", steps="increasing"))
    loss.length = 3
    value, parts = loss(model.network, batch)
    weights = np.diff(np.sin(np.deg2rad(np.linspace(90, -90, 9)))) * -1
    weights = torch.tensor(weights / weights.mean()).float()[:, None]
    each = [
        ((f - batch.states[:, 2 + k]).abs() * weights).mean()
        for k, f in enumerate(loss.rollout(model.network, batch, 3))
    ]
    assert value.item() == pytest.approx(sum((k + 1) * float(e.detach()) for k, e in enumerate(each)) / 6, rel=1e-5)
    assert parts["last_step"].item() == pytest.approx(each[-1].item(), rel=1e-5)


def test_checkpointed_steps_have_the_same_gradients_and_detached_ones_do_not(
    model: ForecastModel, frames: Frames
) -> None:
    batch, gradients = batch_of(model, frames, 3), []
    for settings in (LossSettings(checkpoint=False), LossSettings(), LossSettings(detach_every=1)):
        loss = RolloutLoss(model, settings)
        loss.length = 3
        model.zero_grad()
        loss(model.network, batch)[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.network.parameters()]))
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(gradients[0], gradients[2], rtol=1e-3)


def test_channel_weights_have_mean_one() -> None:
    names, change = ("z500", "z1000", "t2m", "msl"), torch.tensor([0.1, 0.2, 0.4, 0.4])
    pressure = channel_weights(names, LossSettings(channels="pressure"), change)
    assert torch.allclose(pressure / pressure[2], torch.tensor([0.5, 1.0, 1.0, 0.1]))
    slow = channel_weights(names, LossSettings(channels="change"), change)
    assert torch.allclose(slow / slow[3], torch.tensor([16.0, 4.0, 1.0, 1.0]))
    assert float(pressure.mean()) == pytest.approx(1)


@pytest.mark.parametrize("first_lead", [None, 1])
def test_hand_over_states_are_the_earlier_stages_own_forecasts(
    model: ForecastModel, other_model: ForecastModel, frames: Frames, first_lead: int | None
) -> None:
    cascade = Cascade([Stage.of(other_model, 9)])
    windows = HandOverWindows(frames, model, cascade, 4, 2, batch_size=5, first_lead=first_lead, seed=2)
    plain = Windows(frames, model, 6)
    assert len(windows) == len(plain)
    assert first_lead is not None or set(windows.leads) == {4}
    for i in (0, 7):
        lead = int(windows.leads[i])
        states = list(cascade.run(initial_state(other_model, frames, frames.times[i + 1]), lead))
        handed = model.normalise(states[-1].frames[0])
        assert torch.allclose(windows[i].states[:2], handed, atol=1e-3)
        assert torch.equal(windows[i].states[2:], plain[i].states[2 + lead : 4 + lead])
        assert torch.equal(windows[i].season, plain[i].season[lead : lead + 2])


def test_hand_over_states_in_a_file_are_those_in_memory(
    model: ForecastModel, other_model: ForecastModel, frames: Frames, tmp_path: Path
) -> None:
    cascade = Cascade([Stage.of(other_model, 9)])
    kept = HandOverWindows(frames, model, cascade, 4, 2, batch_size=5)
    told: list[tuple[int, int]] = []
    on_disk = HandOverWindows(
        frames, model, cascade, 4, 2, batch_size=5, file=tmp_path / "states", on_progress=lambda *n: told.append(n)
    )
    assert torch.equal(kept.inputs, on_disk.inputs)
    assert told[-1] == (len(kept), len(kept))
    assert list(tmp_path.iterdir()) == []  # nothing is left, even after a kill


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve room")
def test_a_file_of_states_has_all_its_room_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one with holes, whoever filled the disk later ended the training by SIGBUS."""
    room = []
    mapped = np.memmap
    monkeypatch.setattr(np, "memmap", lambda path, *a, **k: (room.append(os.stat(path)), mapped(path, *a, **k))[1])
    alone = Processes(0, 1, torch.device("cpu"))
    assert windows._shared_file(tmp_path / "states", (1 << 18,), alone).shape == (1 << 18,)
    assert room[0].st_blocks * 512 >= 4 << 18

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"no room for 0\.0 GB of forecasts to start from"):
        windows._shared_file(tmp_path / "states", (1 << 18,), alone)
    assert list(tmp_path.iterdir()) == []


def test_phases_start_from_no_more_forecasts_than_the_disk_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    monkeypatch.setattr(training, "MAX_HANDED_BYTES", 7 * 4 * 2 * 3 * 8 * 16)
    trained(tmp_path, phases=PHASES[2:], on_preparation=lambda what, done, total: made.append(total))
    assert 0 < max(made) <= 7


def test_states_read_by_workers_train_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = trained(tmp_path / "memory", phases=PHASES[:1])
    monkeypatch.setattr(windows, "MAX_CACHE_BYTES", 0)
    streamed = trained(tmp_path / "stream", phases=PHASES[:1], workers=1)
    assert torch.equal(weights(in_memory), weights(streamed))
    assert json.loads((tmp_path / "stream" / "00-one-step" / "config.json").read_text())["num_workers"] == 1


def test_a_store_whose_chunks_hold_many_times_is_said_to_be_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, n_times in (("many", 8), ("one", 1)):
        waves(24).chunk(time=n_times).to_zarr(tmp_path / name)
    many, one = (Frames(tmp_path / name, CHANNELS) for name in ("many", "one"))
    assert windows.slow_reading(many) is None  # it fits memory
    monkeypatch.setattr(windows, "MAX_CACHE_BYTES", 0)
    assert "hold 8 times" in str(windows.slow_reading(many))
    assert windows.slow_reading(one) is None


def test_a_window_has_a_gap_that_another_state_makes_up_for(model: ForecastModel) -> None:
    source = waves(12)
    times = source["time"].values.copy()
    times[5] += np.timedelta64(3, "h")  # 9 h after the state before, 3 h before the next
    starts = Windows(Frames(source.assign_coords(time=times), CHANNELS), model, 1).starts
    assert starts.tolist() == [0, 1, 2, 6, 7, 8, 9]


def test_a_table_gives_the_same_batches_as_the_source(frames: Frames) -> None:
    model = tiny_model(frames, solar=True)
    table, plain = StateTable(frames, model), Windows(frames, model, 3, slice(4, 30), stride=2)
    ready = TableWindows(table, model, 3, plain.starts)
    assert len(ready) == len(plain)
    for found, expected in zip(ready.batch([0, 5, 7]), collate([plain[i] for i in (0, 5, 7)]), strict=True):
        assert torch.equal(found, expected)


def test_a_table_gives_the_same_hand_overs_as_the_source(
    model: ForecastModel, other_model: ForecastModel, frames: Frames
) -> None:
    cascade = Cascade([Stage.of(other_model, 9)])
    plain = HandOverWindows(frames, model, cascade, 4, 2, batch_size=5, first_lead=1, seed=2)
    table, starts = StateTable(frames, model), Windows(frames, model, 6).starts
    handed = handed_over(table, model, cascade, starts, plain.leads, batch_size=7)
    ready = TableWindows(table, model, 2, starts, plain.leads, handed)
    for found, expected in zip(ready.batch([0, 7]), collate([plain[i] for i in (0, 7)]), strict=True):
        # In normalised units; batches of another size round differently in physical units.
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


PHASES = [
    Phase("one-step", 6, 3e-3, batch_size=4, ema_decay=0.9),
    Phase("rollout", 6, 1e-3, RolloutSchedule(1, 3, 2), batch_size=4, loss=LossSettings(rho="l1")),
    Phase("replay", 4, 1e-3, batch_size=4, replay=(1, 4), ema_decay=None),
]


def trained(
    folder: Path,
    seed: int = 0,
    phases: list[Phase] = PHASES,
    resident: bool = False,
    device: str = "cpu",
    **settings: object,
) -> ForecastModel:
    frames = Frames(waves(40), CHANNELS)
    data = TrainingData(frames, slice(0, 30), slice(30, 40), 2)
    model = tiny_model(frames, seed=4, strength=0.0)
    if resident:
        settings["table"] = StateTable(frames, model, device)
    return train_phases(model, data, phases, folder, seed=seed, device=device, **settings)


def weights(model: ForecastModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.network.parameters()])


@pytest.mark.parametrize(
    ("device", "resident"),
    [
        ("cpu", False),
        ("cpu", True),
        pytest.param("cuda", True, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
    ],
)
def test_a_run_that_is_stopped_anywhere_ends_with_the_same_bits(tmp_path: Path, device: str, resident: bool) -> None:
    whole = trained(tmp_path / "whole", resident=resident, device=device)
    for stop in (3, 9, 14):
        done = 0

        def interrupt(phase: str, progress: object, stop: int = stop) -> None:
            nonlocal done
            done += 1
            if done == stop:
                os.kill(os.getpid(), 2)  # Ctrl-C

        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / f"stopped-{stop}", resident=resident, device=device, on_progress=interrupt)
        resumed = trained(tmp_path / f"stopped-{stop}", resident=resident, device=device, resume=True)
        assert torch.equal(weights(whole), weights(resumed)), stop


def test_blocks_are_computed_again_where_their_activations_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = [Phase("rollout", 3, 1e-2, RolloutSchedule(2, 2, 1), batch_size=4, drop_path_rate=0.5)]
    model = trained(tmp_path / "plain", phases=phases)
    assert not model.network.grad_checkpointing
    needed = training.activation_bytes(model, phases[0], 4, 1)
    assert needed == 4 * 8 * 16 * 4 * KEPT_BYTES["lka"][0]  # samples, cells, width, bytes
    monkeypatch.setattr(training, "device_bytes", lambda device: 2.0 * needed)
    frugal = trained(tmp_path / "frugal", phases=phases)
    assert frugal.network.grad_checkpointing
    assert torch.equal(weights(model), weights(frugal))


def test_a_rollout_that_does_not_fit_is_not_kept_on_the_device(
    model: ForecastModel, frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = recipe.standard_recipe("tiny", updates=10, batch_size=4, rollout=4)
    longest = 4 * 4 * model.network.config.activation_bytes(half=False)
    alone = Processes(0, 1, torch.device("cuda"))
    for memory, fits in ((3.0 * longest, True), (2.0 * longest, False)):  # four tenths of it may be taken
        monkeypatch.setattr(recipe, "device_bytes", lambda device, memory=memory: memory)
        assert recipe._fits(frames, alone, model, plan) == fits


def test_training_learns_waves_that_travel(tmp_path: Path) -> None:
    phases = [Phase("one-step", 150, 1e-2, batch_size=8, ema_decay=None, weight_decay=0.0, validate_every=50)]
    frames = Frames(waves(60), CHANNELS)
    model = tiny_model(frames, strength=0.0, width=8, drop_path_rate=0.0)
    data = TrainingData(frames, slice(0, 45), slice(45, 60), 1)
    windows = Windows(frames, model, 1, data.validation)
    batch = collate([windows[i] for i in range(len(windows))])
    before = float(RolloutLoss(model)(model.network, batch)[0].detach())
    train_phases(model, data, phases, tmp_path, device="cpu")
    after = float(RolloutLoss(model)(model.network, batch)[0].detach())
    assert after < 0.2 * before  # before: persistence
    assert json.loads((tmp_path / "00-one-step" / "phase.json").read_text())["updates"] == 150


def test_rollouts_grow_while_validation_improves(tmp_path: Path) -> None:
    phase = Phase("dynamic", 3, 1e-3, RolloutSchedule(1, 2, mode="loss"), batch_size=4, ema_decay=None)
    trained(tmp_path, phases=[phase])
    parts = sorted(p.name for p in (tmp_path / "00-dynamic").iterdir() if p.is_dir())
    assert parts[0] == "steps-01-part-0"
    assert any(p.startswith("steps-02") for p in parts)
    again = trained(tmp_path, phases=[replace(phase)], resume=True)
    assert torch.equal(weights(again), weights(ForecastModel.load(tmp_path / "00-dynamic" / "model.safetensors")))


def train_without_chance(folder: Path, shard: bool = False) -> ForecastModel:
    torch.set_num_threads(1)
    return trained(folder, phases=[replace(phase, drop_path_rate=0.0) for phase in PHASES], shard=shard)


@pytest.mark.parametrize("way", ["replicate", pytest.param("shard", marks=pytest.mark.slow)])
def test_two_processes_train_as_one(tmp_path: Path, way: str) -> None:
    apart.run_together(train_without_chance, tmp_path / "two", way == "shard", said=tmp_path / "said.txt")
    one = train_without_chance(tmp_path / "one")
    two = ForecastModel.load(tmp_path / "two" / "02-replay" / "model.safetensors")
    # Sums in another order: float32's rounding, grown by AdamW's division in sixteen updates.
    assert torch.allclose(weights(one), weights(two), rtol=1e-3, atol=2e-5)
