"""`unipercept weather train` and `forecast` from end to end, and their mistakes in one line."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from tests.app.forecaster.conftest import waves
from unipercept.app.forecaster.model import ForecastModel
from unipercept.cli import main

TRAIN = ["--updates", "12", "--batch-size", "4", "--rollout", "2", "--cascade", "3", "--width", "4", "--device", "cpu"]


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "analyses.zarr"
    waves(200).to_zarr(path)
    return path


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    assert run("weather", "train", data, "-o", folder, *TRAIN) == 0
    return folder


def test_training_leaves_two_stages_and_says_from_what(trained: Path) -> None:
    assert sorted(p.name for p in trained.glob("*.safetensors")) == ["medium.safetensors", "short.safetensors"]
    short, medium = (ForecastModel.load(trained / f"{n}.safetensors") for n in ("short", "medium"))
    assert short.fingerprint() != medium.fingerprint()
    assert medium.card["phases"] == ["hand-over", "replay"]
    assert short.card["data"] == "analyses.zarr"
    assert short.card["training_period"].startswith("2020-01-01T00 to 2020-02-14")
    assert [p.name for p in sorted((trained / "medium").iterdir())] == ["00-hand-over", "01-replay"]


def test_a_trained_folder_forecasts_several_times_and_members(trained: Path, data: Path, tmp_path: Path) -> None:
    command = (
        "weather",
        "forecast",
        trained,
        data,
        "-o",
        tmp_path / "f.zarr",
        "--from",
        "2020-01-10",
        "--to",
        "2020-01-12",
    )
    assert (
        run(*command, "--every", "24", "--days", "1.5", "--members", "2", "--batch-size", "2", "--device", "cpu") == 0
    )
    with xr.open_zarr(tmp_path / "f.zarr", decode_timedelta=True) as found:
        assert dict(found.sizes) == {
            "number": 2, "time": 3, "prediction_timedelta": 6, "level": 1, "latitude": 8, "longitude": 16
        }  # fmt: skip
        assert found.attrs["stages"] == "short 0-3, medium 3-"
        assert all(np.isfinite(found[name]).all() for name in found.data_vars)
    assert run(*command) == 2


def test_the_last_state_is_where_a_forecast_starts_by_default(trained: Path, data: Path, tmp_path: Path) -> None:
    assert (
        run("weather", "forecast", trained / "short.safetensors", data, "-o", tmp_path / "f.zarr", "--days", "0.5") == 0
    )
    with xr.open_zarr(tmp_path / "f.zarr", decode_timedelta=True) as found, xr.open_zarr(data) as source:
        assert found.time.values.tolist() == source.time.values[-1:].tolist()


def test_steps_beyond_those_of_the_stages_are_said(
    trained: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for days, warns in (("1.5", False), ("1.75", True)):  # two stages of three steps of 6 h
        assert run("weather", "forecast", trained, data, "-o", tmp_path / days, "--days", days, "--device", "cpu") == 0
        assert ("make 6 steps (1.5 days)" in capfd.readouterr().err) == warns


def test_mistakes_are_one_line(trained: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "f.zarr"
    mistakes = {
        "no forecast model at": ("forecast", tmp_path / "none", data, "-o", out),
        "no state at 1999": ("forecast", trained, data, "-o", out, "--time", "1999-01-01"),
        "not both": ("forecast", trained, data, "-o", out, "--time", "2020-01-05", "--from", "2020"),
        "device must be": ("forecast", trained, data, "-o", out, "--device", "abacus"),
        "precision must be one of": ("forecast", trained, data, "-o", out, "--precision", "int8"),
        "perturbation must be one of": (
            "forecast",
            trained,
            data,
            "-o",
            tmp_path / "e.zarr",
            "--members",
            "2",
            "--perturbation",
            "blue",
        ),
        "no whole number of the model's steps": ("forecast", trained, data, "-o", out, "--days", "0.1"),
        "lacks msl": ("train", data, "-o", tmp_path / "r", "--channels", "msl"),
        "preset must be one of": ("train", data, "-o", tmp_path / "r", "--preset", "huge"),
        "holds a trained cascade already": ("train", data, "-o", trained, *TRAIN),
        "no multiple of the data's 6 h": ("train", data, "-o", tmp_path / "s", *TRAIN, "--step-hours", "9"),
        "no state from 1990": ("train", data, "-o", tmp_path / "r", "--train", "1990:1991"),
    }
    for message, arguments in mistakes.items():
        assert run("weather", *arguments) == 2, message
        error = capfd.readouterr().err
        assert message in error
        assert error.count("\n") == 1, error
    assert not out.exists()
    assert not (tmp_path / "e.zarr").exists()
