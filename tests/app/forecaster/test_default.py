"""The shipped cascade: it is found without a name, says what it is, and forecasts generated weather."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

from unipercept.app.forecaster.cascade import lagged
from unipercept.app.forecaster.cascade_file import DEFAULT, DEFAULT_FOLDER, chosen_ensemble, load_cascade
from unipercept.app.forecaster.forecast import EnsembleSettings, initial_state
from unipercept.app.forecaster.frames import Frames
from unipercept.app.forecaster.generate import GenerateConfig, member_dataset
from unipercept.app.forecaster.model import ForecastModel
from unipercept.cli import app
from unipercept.errors import InputError


@pytest.fixture(scope="module")
def weather() -> xr.Dataset:
    """Eight days of a run that no training saw, young but lively: the jets have begun to break."""
    return member_dataset(GenerateConfig(days=8, spin_up_days=25, seed=4321, start="2095-02-01"))


def test_the_default_is_small_and_says_what_it_knows() -> None:
    assert sum(path.stat().st_size for path in DEFAULT_FOLDER.iterdir()) < 8e6
    cascade = load_cascade(DEFAULT)
    assert cascade.describe() == "short 0-20, medium 20-"
    for index in (0, 1):
        model = cascade.model(index)
        assert isinstance(model, ForecastModel)
        assert model.card["data"].startswith("generated")
    assert "generated weather" in (DEFAULT_FOLDER / "card.md").read_text()
    ensemble, n_stages = chosen_ensemble(DEFAULT, 20)
    assert ensemble is not None
    assert (ensemble.members, ensemble.perturbation) == (20, "tendency")
    assert set(ensemble.relative) == set(cascade.model(0).channels)
    assert load_cascade(DEFAULT, n_stages=n_stages).describe() == "short 0-"
    other, _ = chosen_ensemble(DEFAULT, 20, perturbation="red")
    assert other == EnsembleSettings(20)  # the default's numbers are for another kind
    assert chosen_ensemble(DEFAULT, 1) == (None, None)
    with pytest.raises(InputError, match="has 2 stages"):
        load_cascade(DEFAULT, n_stages=3)


@pytest.mark.parametrize(
    "text", ["{", '{"ensemble": 3}', '{"ensemble": {"members": 1}}', '{"ensemble": {"amplitude": "x"}}']
)
def test_an_ensemble_that_a_file_does_not_describe_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "cascade.json").write_text(text)
    with pytest.raises(InputError, match="ensemble may hold amplitude, correlation_hours, length_km") as caught:
        chosen_ensemble(tmp_path, 5)
    assert "\n" not in str(caught.value)


def test_the_default_beats_persistence_by_far_on_weather_it_has_not_seen(weather: xr.Dataset) -> None:
    frames, cascade = Frames(weather), load_cascade(DEFAULT)
    model = cascade.model(0)
    assert isinstance(model, ForecastModel)
    numbers = [1, 8, 15]
    states = lagged([initial_state(model, frames, frames.times[n]) for n in numbers])
    errors = {}
    for state in cascade.run(states, 12):
        if state.step in (1, 4, 12):
            truth = torch.from_numpy(frames.read([n + state.step for n in numbers]))
            ours, persistence = (
                ((model.normalise(x) - model.normalise(truth)).square().mean()).sqrt()
                for x in (state.latest, torch.from_numpy(frames.read(numbers)))
            )
            errors[state.step] = float(ours / persistence)
    assert errors[1] < 0.35
    assert errors[4] < 0.35
    assert errors[12] < 0.6


def test_a_forecast_needs_no_model_named(weather: xr.Dataset, tmp_path: Path) -> None:
    weather.to_netcdf(tmp_path / "weather.nc")
    arguments = ["weather", "forecast", str(tmp_path / "weather.nc"), "-o", str(tmp_path / "f.zarr"), "--days", "0.5"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found = xr.open_zarr(tmp_path / "f.zarr")
    assert found.sizes["prediction_timedelta"] == 2
    assert "warning" not in result.output
    other = weather.assign_attrs(source="a real reanalysis")
    other.to_netcdf(tmp_path / "other.nc")
    result = CliRunner().invoke(
        app, [*arguments[:2], str(tmp_path / "other.nc"), *arguments[3:4], str(tmp_path / "g.zarr"), *arguments[5:]]
    )
    assert result.exit_code == 0
    assert "means nothing" in result.output
    result = CliRunner().invoke(app, [*arguments[:3], "a", "b", *arguments[3:]])
    assert isinstance(result.exception, InputError) or result.exit_code == 2


def test_fields_in_another_unit_than_they_say_are_refused(weather: xr.Dataset) -> None:
    wrong = weather.copy()
    wrong["mean_sea_level_pressure"] = (weather["mean_sea_level_pressure"] / 100).assign_attrs(units="Pa")
    model = load_cascade(DEFAULT).model(0)
    with pytest.raises(InputError, match=r"msl is 1.* Pa on average.*check its unit"):
        initial_state(model, Frames(wrong), np.datetime64("2095-02-03"))
