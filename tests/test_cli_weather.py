"""`unipercept weather generate`, `evaluate` and `plot` from end to end, and their one-line errors."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from unipercept.cli import main
from unipercept.datasets.synthetic import weather_state


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["weather", *map(str, arguments)])
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A truth of three days and a forecast that is a little off."""
    folder = tmp_path_factory.mktemp("weather")
    truth = weather_state(n_times=12, rows=16, columns=32)
    truth.to_netcdf(folder / "truth.nc")
    lead = (np.array([6, 12]) * np.timedelta64(1, "h")).astype("timedelta64[ns]")
    steps = [truth.shift(time=-k).isel(time=slice(0, 6)) * 1.001 for k in (1, 2)]
    forecast = xr.concat(steps, "prediction_timedelta").assign_coords(prediction_timedelta=lead)
    for name in forecast:
        forecast[name].attrs = truth[name].attrs
    forecast.to_zarr(folder / "ours.zarr")
    return folder


@pytest.mark.usefixtures("short_spin_up")
def test_a_store_is_generated_and_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.zarr"
    arguments = ("generate", "-o", out, "--days", 1, "--levels", "500")
    assert run(*arguments) == 0
    assert capsys.readouterr().out.strip() == f"4 states: {out}"
    assert run(*arguments) == 2
    assert capsys.readouterr().err == f"error: {out} exists; go on with --resume, or remove it\n"


def test_forecasts_are_scored_beside_persistence(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.nc"
    box = "europe=35:75:-12.5:42.5"
    assert run("evaluate", files / "ours.zarr", "--truth", files / "truth.nc", "-o", out, "--region", box) == 0
    shown = capsys.readouterr().out
    assert "ours" in shown
    assert "persistence" in shown
    assert "weights: cell" in shown
    assert "europe" in xr.open_dataset(out, decode_timedelta=False)["region"].values
    for kind in ("curves", "scorecard", "spectra"):
        assert run("plot", out, "-o", tmp_path / f"{kind}.png", "--kind", kind) == 0
        assert (tmp_path / f"{kind}.png").stat().st_size > 5000


def test_what_was_converted_and_what_cannot_be_right_is_said(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = xr.open_dataset(files / "truth.nc").isel(latitude=slice(None, None, -1))
    temperature = next(name for name in truth if truth[name].attrs["units"] == "K")
    celsius = (truth[temperature] - 273.15).assign_attrs(truth[temperature].attrs)
    wind = next(name for name in truth if truth[name].attrs["units"].startswith("m s"))
    truth.assign({temperature: celsius}).drop_vars(wind).to_netcdf(tmp_path / "truth.nc")
    assert run("evaluate", files / "ours.zarr", "--truth", tmp_path / "truth.nc") == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "note: truth: latitude ran from south to north; turned round"
    assert said[1].startswith("warning: truth: t")
    assert all(line.endswith("which no weather is; check its unit") for line in said[1:-1])
    assert said[-1].startswith("note: not in the truth or not in every forecast, so not scored: u")


def test_maps_are_drawn_of_fields_and_of_forecasts(files: Path, tmp_path: Path) -> None:
    assert run("plot", files / "truth.nc", "-o", tmp_path / "map.png", "--channel", "t2m") == 0
    assert (
        run("plot", files / "ours.zarr", "--truth", files / "truth.nc", "-o", tmp_path / "both.png", "--lead", 6) == 0
    )
    assert run("plot", files / "ours.zarr", "-o", tmp_path / "film.gif", "--frames", 2) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"map.png", "both.png", "film.gif"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("evaluate", "ours.zarr", "--truth", "truth.nc", "-o", "scores.xlsx"), "saved as .nc or .csv"),
        (("evaluate", "truth.nc", "--truth", "truth.nc"), "no forecast"),
        (("evaluate", "ours.zarr", "--truth", "truth.nc", "--region", "europe"), "name=south:north:west:east"),
        (("evaluate", "ours.zarr", "--truth", "truth.nc", "--weights", "area"), '"cell" or "cos"'),
        (("evaluate", "ours.zarr", "--truth", "truth.nc", "--climate-of", "truth.nc"), "whole year"),
        (("plot", "truth.nc", "-o", "a.png", "--channel", "q850"), "no channel q850"),
        (("plot", "ours.zarr", "-o", "a.png", "--lead", "7"), "no lead of 7 h"),
        (("generate", "-o", "a.zarr", "--levels", "ten"), "whole numbers of hPa"),
        (("generate", "-o", "a.zarr", "--levels", "10"), "within 100 and 1000"),
    ],
)
def test_a_mistake_is_one_line(
    files: Path,
    arguments: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(files)
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert not list(files.glob("a.*"))
