"""Generated stores are what the reader takes, resume to the byte, and refuse to be overwritten."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from unipercept.app.forecaster import generate as module
from unipercept.app.forecaster.fields import channel_names, open_fields
from unipercept.app.forecaster.generate import GenerateConfig, generate
from unipercept.errors import InputError

SHORT = GenerateConfig(days=5, spin_up_days=1)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two days each, so that five days take three."""
    monkeypatch.setattr(module, "BLOCK_TIMES", 8)


def test_a_store_has_era5_names_and_says_that_it_is_synthetic(tmp_path: Path) -> None:
    seen: list[None] = []
    (path,) = generate(tmp_path / "w.zarr", SHORT, on_block=lambda: seen.append(None))
    assert len(seen) == SHORT.n_blocks == 3
    data = open_fields(path)
    assert channel_names(data)[:3] == ("z200", "z500", "z850")
    assert {"t2m", "u10", "v10", "msl"} <= set(channel_names(data))
    assert data.attrs["source"] == "synthetic quasi-geostrophic"
    assert data.attrs["Conventions"] == "CF-1.11"
    assert data["latitude"].attrs == {"units": "degrees_north", "standard_name": "latitude", "axis": "Y"}
    assert data["t2m"].attrs["standard_name"] == "air_temperature"
    assert data.sizes["time"] == 20
    assert str(data["time"].values[4])[:13] == "2000-01-02T00"
    assert all(np.isfinite(array.values).all() for array in data.values())


def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = generate(tmp_path / "whole.zarr", SHORT)
    blocks = 0

    def stop() -> None:
        nonlocal blocks
        blocks += 1
        if blocks == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "cut.zarr", SHORT, on_block=stop)
    with pytest.raises(InputError, match="still being written"):
        open_fields(tmp_path / "cut.zarr")
    with pytest.raises(InputError, match="exists; go on with --resume"):
        generate(tmp_path / "cut.zarr", SHORT)
    with pytest.raises(InputError, match="other settings"):
        generate(tmp_path / "cut.zarr", replace(SHORT, seed=5), resume=True)
    seen: list[None] = []
    generate(tmp_path / "cut.zarr", SHORT, resume=True, on_block=lambda: seen.append(None))
    assert len(seen) == 3
    assert xr.open_zarr(tmp_path / "cut.zarr").identical(xr.open_zarr(whole))
    monkeypatch.setattr(module, "_advance", lambda *_: pytest.fail("it was whole"))
    generate(tmp_path / "cut.zarr", SHORT, resume=True)


def test_members_in_two_processes_are_those_of_one(tmp_path: Path) -> None:
    config = replace(SHORT, days=2)
    paths = generate(tmp_path / "many.zarr", config, members=2, workers=2)
    assert [path.name for path in paths] == ["many-000.zarr", "many-001.zarr"]
    (alone,) = generate(tmp_path / "alone.zarr", replace(config, seed=1))
    assert xr.open_zarr(paths[1]).identical(xr.open_zarr(alone))
    assert not xr.open_zarr(paths[0]).equals(xr.open_zarr(alone))


def test_bad_settings_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="days must"):
        GenerateConfig(days=0)
    with pytest.raises(InputError, match="start must be a date"):
        GenerateConfig(start="yesterday")
    with pytest.raises(InputError, match=r"must end in \.zarr"):
        generate(tmp_path / "w.nc", SHORT)
    with pytest.raises(InputError, match="does not exist; create it first"):  # before the spin-up, not after it
        generate(tmp_path / "nowhere" / "w.zarr", SHORT)
