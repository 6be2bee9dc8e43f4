"""Reading states by time, and statistics against plain NumPy."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.app.forecaster.conftest import CHANNELS, waves
from unipercept.app.forecaster import frames as module
from unipercept.app.forecaster.fields import open_fields
from unipercept.app.forecaster.frames import Frames, Statistics
from unipercept.app.forecaster.recipe import _statistics
from unipercept.errors import InputError
from unipercept.pipelines.weather_grid import area_weights
from unipercept.train.distributed import Processes


@pytest.mark.parametrize("block_bytes", [128 << 20, 3 * 4 * 3 * 8 * 16])
def test_statistics_are_those_of_the_whole_period(monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", block_bytes)
    frames = Frames(waves(17), CHANNELS)
    found = frames.statistics(slice(2, 15), 6)
    states = frames.read(range(2, 15)).astype(np.float64)
    weights = area_weights(frames.grid.latitude)[:, None] * np.ones(16)
    weights /= weights.sum()
    mean = (states * weights).sum(axis=(2, 3)).mean(axis=0)
    std = np.sqrt(((states - mean[:, None, None]) ** 2 * weights).sum(axis=(2, 3)).mean(axis=0))
    change = np.sqrt((np.diff(states, axis=0) ** 2 * weights).sum(axis=(2, 3)).mean(axis=0))
    assert np.allclose(found.mean, mean, rtol=1e-12)
    assert np.allclose(found.std, std, rtol=1e-9)
    assert np.allclose(found.change, change, rtol=1e-9)


@pytest.mark.parametrize("block_bytes", [128 << 20, 3 * 4 * 3 * 8 * 16])
def test_the_change_is_that_of_the_models_step(monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", block_bytes)
    frames = Frames(waves(17), CHANNELS)
    states = frames.read(range(17)).astype(np.float64)
    weights = area_weights(frames.grid.latitude)[:, None] / 8 / 16
    expected = np.sqrt((((states[2:] - states[:-2]) ** 2) * weights).sum(axis=(2, 3)).mean(axis=0))
    assert np.allclose(frames.statistics(slice(None), 12).change, expected, rtol=1e-9)
    with pytest.raises(InputError, match="no multiple of the data's 6 h"):
        frames.statistics(slice(None), 9)


def test_a_gap_in_time_is_no_change() -> None:
    gap = waves(20).isel(time=[0, 1, 2, 10, 11, 12])
    without = Frames(gap, CHANNELS).statistics(slice(None), 6)
    states = Frames(gap, CHANNELS).read(range(6)).astype(np.float64)
    weights = area_weights(np.asarray(Frames(gap, CHANNELS).grid.latitude))[:, None] / 8 / 16
    changes = np.diff(states, axis=0)[[0, 1, 3, 4]]
    assert np.allclose(without.change, np.sqrt((changes**2 * weights).sum(axis=(2, 3)).mean(axis=0)), rtol=1e-9)


def test_statistics_of_processes_that_share_the_period_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 3 * 4 * 3 * 8 * 16)
    frames, given = Frames(waves(17), CHANNELS), np.zeros(10)

    def share(rank: int) -> Statistics:
        def total(values: list[float]) -> list[float]:
            given[:] += values
            return given.tolist()

        return frames.statistics(slice(1, 16), 12, SimpleNamespace(rank=rank, count=3, sum=total))

    *_, found = map(share, range(3))  # the last one has what all have given
    alone = frames.statistics(slice(1, 16), 12)
    for name in ("mean", "std", "change"):
        np.testing.assert_allclose(getattr(found, name), getattr(alone, name), rtol=1e-12, err_msg=name)


def test_a_resumed_run_keeps_its_statistics(tmp_path: Path) -> None:
    frames, alone = Frames(waves(17), CHANNELS), Processes(0, 1, torch.device("cpu"))
    asked = slice(0, 12), 6.0, tmp_path / "statistics.json"
    made = _statistics(frames, *asked, False, alone, None)
    frames.statistics = None  # type: ignore[assignment, method-assign]
    assert _statistics(frames, *asked, True, alone, None) == made
    with pytest.raises(TypeError):  # another period has other ones, and is not taken from the file
        _statistics(frames, slice(0, 13), *asked[1:], True, alone, None)


def test_dates_cover_what_they_name() -> None:
    frames = Frames(waves(40, start="2019-12-28"), CHANNELS)
    assert frames.between("2019", "2019") == slice(0, 16)
    assert frames.between("2020-01-01T06", None) == slice(17, 40)
    assert frames.between(None, "2019-12-28") == slice(0, 4)
    with pytest.raises(InputError, match="no state from 2021"):
        frames.between("2021", "2022")
    with pytest.raises(InputError, match="expected a date"):
        frames.between("soon")


def test_what_cannot_be_used_is_named() -> None:
    missing = waves(4)
    missing["2m_temperature"][2, 3, 4] = np.nan
    with pytest.raises(InputError, match="missing or infinite cells in t2m at 2020-01-01T12:00"):
        Frames(missing, CHANNELS).read(range(4))
    with pytest.raises(InputError, match="lacks msl"):
        Frames(waves(4), ("msl",))
    with pytest.raises(InputError, match="repeats or mixes up its times"):
        Frames(waves(4).isel(time=[0, 1, 1]), CHANNELS)
    undated = waves(4).assign_coords(time=np.where(np.arange(4) == 1, np.datetime64("NaT"), waves(4)["time"]))
    with pytest.raises(InputError, match="states without a time"):
        Frames(undated, CHANNELS)
    with pytest.raises(InputError, match="fields without a time"):
        open_fields(undated)
    with pytest.raises(InputError, match="no time axis"):
        Frames(waves(4).drop_vars("time"), CHANNELS)
    with pytest.raises(InputError, match="no state at 2020-01-01T03:00"):
        Frames(waves(4), CHANNELS).at("2020-01-01T03")
    still = waves(4)
    still["2m_temperature"][:] = 280.0
    with pytest.raises(InputError, match="t2m never changes"):
        Frames(still, CHANNELS).statistics(slice(None), 6)
