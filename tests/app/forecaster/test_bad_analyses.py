"""Analyses that cannot be forecast from: one clear line, and nothing is written."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from tests.app.forecaster.conftest import waves
from unipercept.app.forecaster.model import ForecastModel
from unipercept.app.forecaster.writer import progress_file
from unipercept.cli import main

Change = Callable[[xr.Dataset], xr.Dataset]


def with_values(dataset: xr.Dataset, name: str, change: Callable[[xr.DataArray], xr.DataArray]) -> xr.Dataset:
    return dataset.assign({name: change(dataset[name].copy(deep=True))})


def with_a_hole(field: xr.DataArray) -> xr.DataArray:
    field[-1, 3, 3] = np.nan
    return field


FAULTS: dict[str, tuple[Change, str]] = {
    "another level": (lambda d: d.assign_coords(level=("level", [850], {"units": "hPa"})), "lacks z500; it has "),
    "no level": (lambda d: d.drop_vars("geopotential"), "lacks z500; it has "),
    "an unknown unit": (
        lambda d: with_values(d, "2m_temperature", lambda t: t.assign_attrs(units="furlong")),
        "in 'furlong', which is not known for it; expected one of",
    ),
    "a wrong unit": (
        lambda d: with_values(d, "2m_temperature", lambda t: (t - 273.15).assign_attrs(units="K")),
        "on average, where the model was trained on",
    ),
    "0 and 360 degrees": (
        lambda d: xr.concat([d, d.isel(longitude=[1]).assign_coords(longitude=[360.0])], "longitude"),
        "holds the same meridian twice (0 and 360 degrees), with other values of",
    ),
    "dates that do not exist": (
        lambda d: d.assign_coords(
            time=xr.date_range("2020-02-28", periods=d.sizes["time"], freq="6h", calendar="360_day", use_cftime=True)
        ),
        "of the 360_day calendar that are no dates of the common one",
    ),
    "a missing cell": (lambda d: with_values(d, "2m_temperature", with_a_hole), "missing or infinite cells in t2m at"),
    "a code for missing": (
        lambda d: with_values(d, "2m_temperature", lambda t: t.where(t.latitude < 60, -9999.0)),
        "-9999 is taken as a code for missing (t2m); fill them first",
    ),
    "steps of 12 h": (lambda d: d.isel(time=slice(1, None, 2)), "has no state at 2020-01-06T12:00"),
    "half a step": (
        lambda d: d.assign_coords(time=np.r_[d.time.values[:-1], d.time.values[-2] + np.timedelta64(3, "h")]),
        "has no state at 2020-01-06T09:00",
    ),
    "a single state": (lambda d: d.isel(time=[-1]), "; the model starts from 2 states, 6 h apart"),
    "another grid": (lambda d: d.isel(longitude=slice(None, None, 2)), "regrid it first"),
    "times that run backwards": (lambda d: d.isel(time=slice(None, None, -1)), "repeats or mixes up its times"),
}


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    return int(left.value.code or 0)


@pytest.mark.parametrize("fault", FAULTS)
def test_analyses_with_a_fault_are_one_line(
    fault: str, model: ForecastModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change, said = FAULTS[fault]
    change(waves()).to_netcdf(tmp_path / "analyses.nc")
    model.save(tmp_path / "model.safetensors")
    out = tmp_path / "f.zarr"
    code = run(
        "weather", "forecast", tmp_path / "model.safetensors", tmp_path / "analyses.nc", "-o", out, "--days", "0.5"
    )
    error = capfd.readouterr().err
    assert code == 2, error
    assert said in error
    assert error.count("\n") == 1, error
    assert not out.exists()


@pytest.mark.parametrize("verb", ["forecast", "evaluate", "plot"])
def test_a_store_that_is_being_written_is_one_line(
    verb: str, model: ForecastModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    waves().to_zarr(tmp_path / "analyses.zarr")
    unfinished = tmp_path / "unfinished.zarr"
    waves().to_zarr(unfinished)
    progress_file(unfinished).write_text("{}")  # as the writer leaves it
    model.save(tmp_path / "model.safetensors")
    arguments: dict[str, tuple[str | Path, ...]] = {
        "forecast": (tmp_path / "model.safetensors", unfinished, "-o", tmp_path / "f.zarr"),
        "evaluate": (unfinished, "--truth", tmp_path / "analyses.zarr"),
        "plot": (unfinished, "-o", tmp_path / "map.png"),
    }
    assert run("weather", verb, *arguments[verb]) == 2
    error = capfd.readouterr().err
    assert "is still being written, or was left unfinished; finish it first" in error
    assert error.count("\n") == 1, error
    assert not (tmp_path / "f.zarr").exists()
    assert not (tmp_path / "map.png").exists()
