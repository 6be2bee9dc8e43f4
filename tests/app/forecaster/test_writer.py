"""Forecast stores: layout, exact resume after a real kill, a full disk, bounded waiting."""

import errno
import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from tests import apart
from tests.app.forecaster.conftest import CHANNELS, tiny_model, waves
from unipercept.app.forecaster.cascade import Cascade, Stage, State, lagged
from unipercept.app.forecaster.cascade_file import load_cascade
from unipercept.app.forecaster.ensemble import EARTH_RADIUS_KM, TendencyNoise, one_step_shares, perturbed_members
from unipercept.app.forecaster.forecast import EnsembleSettings, forecast, initial_state
from unipercept.app.forecaster.frames import Frames, Grid
from unipercept.app.forecaster.model import ForecastModel
from unipercept.app.forecaster.writer import ForecastWriter, progress_file, variables_of
from unipercept.errors import InputError
from unipercept.pipelines.weather_fields import PUYUN69
from unipercept.pipelines.weather_grid import area_weights

TIMES = ["2020-01-02T00", "2020-01-03T12"]


def cascade(model: ForecastModel, other: ForecastModel) -> Cascade:
    return Cascade([Stage.of(model, 2, "short"), Stage.of(other, 9, "medium")])


def test_the_store_is_what_weatherbench_reads(
    model: ForecastModel, other_model: ForecastModel, frames: Frames, tmp_path: Path
) -> None:
    path = forecast(cascade(model, other_model), frames, TIMES, 4, tmp_path / "f.zarr", attributes={"title": "test"})
    with xr.open_zarr(path, decode_timedelta=True) as dataset:
        assert dict(dataset.sizes) == {"time": 2, "prediction_timedelta": 4, "level": 1, "latitude": 8, "longitude": 16}
        assert dataset.geopotential.dims == ("time", "prediction_timedelta", "level", "latitude", "longitude")
        assert dataset["2m_temperature"].dims == ("time", "prediction_timedelta", "latitude", "longitude")
        assert dataset.geopotential.dtype == np.float32
        assert (dataset.prediction_timedelta.values == np.arange(1, 5) * np.timedelta64(6, "h")).all()
        assert (dataset.time.values == np.array(TIMES, "datetime64[ns]")).all()
        assert dataset.geopotential.attrs == {
            "units": "m2 s-2", "standard_name": "geopotential", "long_name": "geopotential"
        }  # fmt: skip
        assert dataset.prediction_timedelta.attrs["standard_name"] == "forecast_period"  # as CF calls it
        assert dataset.level.attrs == {"units": "hPa", "standard_name": "air_pressure", "positive": "down", "axis": "Z"}
        assert [dataset[name].attrs["axis"] for name in ("time", "latitude", "longitude")] == ["T", "Y", "X"]
        assert dataset.attrs["status"] == "complete"
        assert dataset.attrs["stages"] == "short 0-2, medium 2-"
        assert dataset.attrs["models"].split() == [model.fingerprint(), other_model.fingerprint()]
        expected = list(cascade(model, other_model).run(initial_state(model, frames, TIMES[1]), 4))
        for k, state in enumerate(expected):
            fields = dataset.isel(time=1, prediction_timedelta=k)
            found = [
                fields.geopotential.values[0],
                fields["10m_u_component_of_wind"].values,
                fields["2m_temperature"].values,
            ]
            assert np.array_equal(np.stack(found), state.latest[0].numpy())
    assert not progress_file(path).exists()


def test_the_forecast_is_a_weather_source_again(
    model: ForecastModel, other_model: ForecastModel, frames: Frames, tmp_path: Path
) -> None:
    path = forecast(cascade(model, other_model), frames, TIMES[:1], 2, tmp_path / "f.zarr")
    with xr.open_zarr(path, decode_timedelta=True) as dataset:
        again = Frames(dataset.isel(prediction_timedelta=0, drop=True).load(), CHANNELS)
    assert again.grid.matches(frames.grid)


def test_humidity_and_precipitation_are_never_negative(tmp_path: Path) -> None:
    named = {"geopotential": "specific_humidity", "2m_temperature": "total_precipitation"}
    source = waves().rename(named).load()
    for name, unit in (("specific_humidity", "kg kg-1"), ("total_precipitation", "m")):
        centred = source[name] - source[name].mean()
        source[name] = (1e-3 * (centred / abs(centred).max()).clip(0)).assign_attrs(
            units=unit
        )  # 0 in half of the cells
    frames = Frames(source, ("q500", "u10", "tp"))
    model = tiny_model(frames, strength=2.0)
    ensemble = EnsembleSettings(members=2, perturbation="tendency", amplitude=1.0)
    path = forecast(Cascade([Stage.of(model, 9)]), frames, TIMES[:1], 4, tmp_path / "f.zarr", ensemble=ensemble)
    first_step = Cascade([Stage.of(model, 9)]).step(initial_state(model, frames, TIMES[0]))
    unbounded = first_step.latest[0]
    with xr.open_zarr(path, decode_timedelta=True) as dataset:
        for name, channel in (("specific_humidity", 0), ("total_precipitation", 2)):
            assert unbounded[channel].min() < 0
            first = dataset[name].isel(number=0, time=0, prediction_timedelta=0).values.squeeze()
            assert np.array_equal(first, unbounded[channel].clamp(min=0).numpy())
            assert float(dataset[name].min()) == 0
        assert float(dataset["10m_u_component_of_wind"].min()) < 0


def test_levels_share_one_axis_or_are_written_flat() -> None:
    whole = variables_of(PUYUN69.names)
    assert [v.name for v in whole[:2]] == ["geopotential", "temperature"]
    assert whole[0].levels[:2] == (50, 100)
    assert sorted(i for v in whole for i in v.channels) == list(range(69))
    uneven = variables_of(("z500", "t850", "msl"))
    assert [(v.name, v.levels) for v in uneven] == [
        ("geopotential_500", ()), ("temperature_850", ()), ("mean_sea_level_pressure", ())
    ]  # fmt: skip


def forecast_both(folder: Path, pause: float, resume: bool = False) -> None:
    torch.set_num_threads(1)
    forecast(
        load_cascade(folder), Frames(folder / "analyses.nc", ("z500", "u10", "t2m")), TIMES, 6, folder / "f.zarr",
        ensemble=EnsembleSettings(members=3, seed=5, perturbation="tendency", amplitude=0.3), resume=resume,
        on_step=lambda number, step: time.sleep(pause),
    )  # fmt: skip


def prepare(folder: Path, model: ForecastModel, other: ForecastModel) -> None:
    folder.mkdir()
    waves().to_netcdf(folder / "analyses.nc")
    model.save(folder / "short.safetensors")
    other.save(folder / "medium.safetensors")
    stages = [{"name": n, "model": f"{n}.safetensors", "steps": s} for n, s in (("short", 2), ("medium", 9))]
    (folder / "cascade.json").write_text(json.dumps({"stages": stages}))


def test_a_killed_forecast_goes_on_to_the_same_bits(
    model: ForecastModel, other_model: ForecastModel, tmp_path: Path
) -> None:
    for name in ("whole", "killed"):
        prepare(tmp_path / name, model, other_model)
    said = tmp_path / "said.txt"
    assert apart.run(forecast_both, tmp_path / "whole", 0.0, said=said) == 0, said.read_text()
    process = apart.start(forecast_both, tmp_path / "killed", 0.3, said=said)
    progress = progress_file(tmp_path / "killed" / "f.zarr")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # in the middle of the first forecast, past the hand-over
        if progress.exists() and json.loads(progress.read_text())["done"].get("0", 0) >= 3:
            break
        time.sleep(0.02)
    process.kill()
    assert apart.finish(process) == -signal.SIGKILL
    with xr.open_zarr(tmp_path / "killed" / "f.zarr", consolidated=False, decode_timedelta=True) as partial:
        assert partial.attrs["status"] == "being written"
        assert np.isfinite(partial.geopotential.isel(time=0, prediction_timedelta=slice(0, 3))).all()
        assert np.isnan(partial.geopotential.isel(time=1)).all()
    assert apart.run(forecast_both, tmp_path / "killed", 0.0, True, said=said) == 0, said.read_text()
    with (
        xr.open_zarr(tmp_path / "whole" / "f.zarr", decode_timedelta=True) as whole,
        xr.open_zarr(tmp_path / "killed" / "f.zarr", decode_timedelta=True) as resumed,
    ):
        assert whole.sizes["number"] == 3
        assert resumed.attrs["status"] == "complete"
        for name in whole.data_vars:
            assert np.array_equal(whole[name].values, resumed[name].values), name


@pytest.mark.parametrize(
    "ensemble", [None, EnsembleSettings(2), EnsembleSettings(2, perturbation="tendency", amplitude=0.3)]
)
def test_initial_times_may_run_together(
    model: ForecastModel, other_model: ForecastModel, frames: Frames, tmp_path: Path, ensemble: EnsembleSettings | None
) -> None:
    paths = [
        forecast(cascade(model, other_model), frames, TIMES, 3, tmp_path / f"{n}.zarr", batch_size=n, ensemble=ensemble)
        for n in (1, 2)
    ]
    with xr.open_zarr(paths[0], decode_timedelta=True) as one, xr.open_zarr(paths[1], decode_timedelta=True) as two:
        for name in one.data_vars:
            assert np.allclose(one[name], two[name], rtol=1e-5), name


def simple_writer(path: Path, **settings: object) -> ForecastWriter:
    grid = Grid((45.0, -45.0), (0.0, 180.0))
    return ForecastWriter(
        path, channels=("t2m",), units=("K",), grid=grid, times=["2020-01-01"], leads_hours=[6, 12, 18], **settings
    )


def test_a_full_disk_is_one_line_and_what_was_written_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = simple_writer(tmp_path / "f.zarr")
    writer.put(0, 0, torch.full((1, 1, 2, 2), 1.0))
    write = ForecastWriter._write

    def full(self: ForecastWriter, when: int, lead: int, states: np.ndarray) -> None:
        if lead == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, when, lead, states)

    monkeypatch.setattr(ForecastWriter, "_write", full)
    with pytest.raises(InputError, match=r"the disk is full; 1 states are kept there, go on with --resume") as caught:
        writer.put(0, 1, torch.full((1, 1, 2, 2), 2.0))
        writer.close()
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    again = simple_writer(tmp_path / "f.zarr", resume=True)
    assert again.leads_done(0) == 1
    assert again.read_back(0, [0]).unique().tolist() == [1.0]
    for lead in (1, 2):
        again.put(0, lead, torch.full((1, 1, 2, 2), float(lead)))
    again.close()
    assert again.is_complete


def test_no_more_than_two_states_wait_for_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, waiting, most = simple_writer(tmp_path / "f.zarr"), 0, 0

    def slow(self: ForecastWriter, when: int, lead: int, states: np.ndarray) -> None:
        nonlocal waiting
        time.sleep(0.1)
        waiting -= 1

    monkeypatch.setattr(ForecastWriter, "_write", slow)
    for _ in range(3):
        for lead in range(3):
            writer.put(0, lead, torch.zeros(1, 1, 2, 2))
            waiting += 1
            most = max(most, waiting)
    writer.abandon()
    assert most <= 3  # one on its way to the disk, one in the queue, one just taken


def test_what_is_there_is_not_overwritten_and_not_mixed(
    model: ForecastModel, other_model: ForecastModel, frames: Frames, tmp_path: Path
) -> None:
    simple_writer(tmp_path / "f.zarr").abandon()
    with pytest.raises(InputError, match="exists; choose another output"):
        simple_writer(tmp_path / "f.zarr")
    with pytest.raises(InputError, match="was begun with another model"):
        simple_writer(tmp_path / "f.zarr", resume=True, attributes={"models": "other"})
    path = forecast(cascade(model, other_model), frames, TIMES[:1], 1, tmp_path / "g.zarr")
    with pytest.raises(InputError, match="is complete"):
        forecast(cascade(model, other_model), frames, TIMES[:1], 1, path, resume=True)
    with pytest.raises(InputError, match="no state at"):
        forecast(cascade(model, other_model), frames, ["1999-01-01"], 1, tmp_path / "h.zarr")
    assert not (tmp_path / "h.zarr").exists()


@pytest.mark.parametrize("kind", ["gaussian", "red", "bred"])
def test_members_differ_by_the_amplitude_and_the_first_is_the_analysis(
    model: ForecastModel, frames: Frames, kind: str
) -> None:
    state = initial_state(model, frames, TIMES[0])
    std = torch.tensor(model.statistics.std)
    settings = {"kind": kind, "amplitude": 0.1, "cascade": Cascade([Stage.of(model, 9)]), "seed": 3}
    members = perturbed_members(state, 12, std, model.grid, **settings)
    assert torch.equal(members.frames[0], state.frames[0])
    changes = (members.frames[1:] - state.frames) / std[:, None, None]
    assert torch.allclose(changes[:, 0], changes[:, 1], atol=2e-3)  # z's digits in float32
    assert float(changes.square().mean().sqrt()) == pytest.approx(0.1, rel=0.25)
    again = perturbed_members(state, 5, std, model.grid, **settings)
    assert torch.allclose(again.frames, members.frames[:5], rtol=1e-6)


def test_an_ensemble_member_is_the_single_forecast_from_its_state(
    model: ForecastModel, other_model: ForecastModel, frames: Frames, tmp_path: Path
) -> None:
    ensemble = EnsembleSettings(members=4, seed=1)
    path = forecast(cascade(model, other_model), frames, TIMES[:1], 3, tmp_path / "f.zarr", ensemble=ensemble)
    state = initial_state(model, frames, TIMES[0])
    single = list(cascade(model, other_model).run(state, 3))[-1].latest[0, 2]
    with xr.open_zarr(path, decode_timedelta=True) as dataset:
        field = dataset["2m_temperature"].isel(number=0, time=0, prediction_timedelta=2).values
        assert np.allclose(field, single.numpy(), rtol=1e-5)
        assert float(dataset["2m_temperature"].std("number").mean()) > 0.05
        assert dataset.attrs["ensemble_seed"] == 1


def test_a_perturbed_tendency_is_red_in_space_and_time_and_the_same_whatever_runs_together(
    model: ForecastModel,
) -> None:
    members, time = 400, np.datetime64("2020-01-02T00", "ns")
    noise = TendencyNoise(members, model.grid, 6.0, (0.1, 0.2, 9.0), length_km=3000.0, correlation_hours=48.0, seed=7)

    def state(step: int, times: list[np.datetime64], count: int) -> State:
        valid = np.repeat(np.array(times) + step * np.timedelta64(6, "h"), count)
        random = torch.Generator().manual_seed(step)
        return State(torch.randn(len(valid), 2, 3, *model.grid.shape, generator=random), valid, step)

    first, later = (noise.fields(state(step, [time], members)) for step in (2, 10))
    assert not first[0].any()  # member 0 goes without
    assert float(first[1:].std()) == pytest.approx(1, rel=0.03)
    both = float((first * later)[1:].mean())
    assert both == pytest.approx(np.exp(-8 * 6 / 48), abs=0.03)
    row, column = (np.deg2rad(a) for a in (model.grid.latitude, model.grid.longitude))
    chord = 2 * np.cos(row[4]) * np.sin((column[1] - column[0]) / 2) * EARTH_RADIUS_KM
    near = float((first[1:, 4, 0] * first[1:, 4, 1]).mean())
    assert near == pytest.approx(np.exp(-((chord / 3000) ** 2) / 2), abs=0.2)  # 400 members, 256 waves
    together = TendencyNoise(3, model.grid, 6.0, (0.1, 0.2, 9.0), 3000.0, 48.0, 7)
    other = time + np.timedelta64(5, "D")
    found = together.fields(state(2, [other, time], 3))
    assert torch.allclose(found[3:], first[:3], atol=1e-6)
    assert float((found[1:3] - found[4:]).abs().max()) > 0.5  # another initial time has fields of its own
    before = state(2, [time], 3)
    after = together(before)
    change = before.frames[:, 1] - before.frames[:, 0]
    assert torch.equal(after.frames[:, 0], before.frames[:, 0])
    shares = torch.tensor([0.1, 0.2, 9.0])[:, None, None] * first[:3, None]
    assert float(shares.abs().max()) > 1
    assert torch.allclose(after.latest, before.latest + change * shares.clamp(-1, 1), atol=1e-5)


def test_members_differ_after_a_step_by_what_the_model_errs(model: ForecastModel, frames: Frames) -> None:
    shares = one_step_shares(model, frames, slice(0, 24), n_states=24)
    states = lagged([initial_state(model, frames, time) for time in frames.times[1:23]])
    found = model(states.frames, states.times)
    truth = torch.from_numpy(frames.read(range(2, 24)))
    rows = torch.as_tensor(area_weights(np.asarray(model.grid.latitude)))[:, None]
    error, change = (((found - x).double().square() * rows).mean(dim=(0, 2, 3)) for x in (truth, states.latest))
    assert list(shares.values()) == pytest.approx((error / change).sqrt().tolist(), rel=1e-3)  # z's digits in float32
    noise = TendencyNoise(300, model.grid, 6.0, tuple(shares.values()))
    cascade = Cascade([Stage.of(model, 9)])
    start = initial_state(model, frames, frames.times[1])
    members = noise(cascade.step(State(start.frames.repeat(300, 1, 1, 1, 1), np.repeat(start.times, 300))))
    moved = cascade.step(start).latest - start.latest
    spread = (members.latest[1:].var(0) * rows).mean(dim=(-2, -1)).sqrt()
    expected = (moved[0].square() * rows).mean(dim=(-2, -1)).sqrt() * torch.tensor(list(shares.values()))
    held = torch.tensor(list(shares.values())) < 0.3  # of the others some members meet the limit of 1
    assert torch.allclose(spread[held].float(), expected[held].float(), rtol=0.15)


def test_a_perturbed_tendency_needs_the_state_before(frames: Frames, tmp_path: Path) -> None:
    alone = tiny_model(frames, frames=1)
    settings = EnsembleSettings(2, perturbation="tendency")
    with pytest.raises(InputError, match="takes two states or more"):
        forecast(Cascade([Stage.of(alone, 9)]), frames, TIMES[:1], 1, tmp_path / "f.zarr", ensemble=settings)
    assert not (tmp_path / "f.zarr").exists()


def test_state_of_a_time_is_checked(model: ForecastModel, frames: Frames) -> None:
    state = initial_state(model, frames, TIMES[0])
    with pytest.raises(InputError, match="perturbation must be one of"):
        perturbed_members(state, 2, torch.ones(3), model.grid, kind="blue")
    with pytest.raises(InputError, match="one initial time"):
        perturbed_members(State(state.frames.repeat(2, 1, 1, 1, 1), state.times, 0), 2, torch.ones(3), model.grid)


def test_a_store_that_was_not_begun_in_full_is_not_there(
    model: ForecastModel, other_model: ForecastModel, frames: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ForecastWriter, "_add", stopped)
        forecast(cascade(model, other_model), frames, TIMES[:1], 2, tmp_path / "f.zarr")
    assert not list(tmp_path.iterdir())
    assert forecast(cascade(model, other_model), frames, TIMES[:1], 2, tmp_path / "f.zarr", resume=True).is_dir()
