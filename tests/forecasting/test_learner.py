"""Fit, predict, save and load over arrays."""

import numpy as np
import pytest
import torch

from unipercept.errors import InputError, WeightsError
from unipercept.forecasting.learner import NetworkForecaster
from unipercept.forecasting.settings import ForecastConfig

QUICK = ForecastConfig(lookback=48, dim=8, blocks=1, kernel_size=5, epochs=3, batch_size=64)


def seasonal(rows=300, variables=2, period=12, noise=0.3, seed=0):
    """A cycle with a level of its own for each variable."""
    rng = np.random.default_rng(seed)
    t = np.arange(rows)[:, None]
    cycle = np.sin(2 * np.pi * t / period + np.arange(variables)) * 3
    return 50 + 10 * np.arange(variables) + cycle + noise * rng.normal(size=(rows, variables))


def fitted(values=None, horizon=12, **options):
    return NetworkForecaster(options.pop("config", QUICK)).fit(
        seasonal() if values is None else values, horizon, **{"device": "cpu", "period": 12, **options}
    )


@pytest.fixture(scope="module")
def forecaster():
    return fitted()


def test_a_cycle_is_learned_better_than_repeating_it(forecaster):
    values = seasonal(400, seed=1)
    found = forecaster.predict_point(values[None, 300:348])[0]
    repeated, truth = values[336:348], values[348:360]
    assert np.abs(found - truth).mean() < np.abs(repeated - truth).mean()


def test_quantiles_ascend_and_have_the_levels_that_are_named(forecaster):
    found = forecaster.predict(seasonal()[None, -48:], 12)
    assert found.shape == (1, 12, 2, len(forecaster.quantiles))
    assert (np.diff(found, axis=-1) >= 0).all()
    assert np.isfinite(found).all()


def test_sixty_rows_are_enough():
    found = fitted(seasonal(60, 1)).predict(seasonal(60, 1)[None])
    assert found.shape == (1, 12, 1, 11)
    assert np.abs(found[0, :, 0, 5] - 50).max() < 10


def test_missing_values_are_seen_as_missing():
    values = seasonal()
    values[np.random.default_rng(0).random(values.shape) < 0.2] = np.nan
    model = fitted(values)
    assert np.isfinite(model.predict(values[None])).all()
    assert np.isfinite(model.predict(np.full((1, 30, 2), np.nan))).all()


def test_series_of_unequal_length_share_the_weights_and_keep_their_level():
    tables = [seasonal(150, 1), 1000 * seasonal(90, 1, seed=1), seasonal(20, 1)]
    model = fitted(tables)
    assert model.card["n_series"] == 2  # 20 rows hold no window
    found = model.predict_point(tables[1][None])
    assert 30_000 < found.mean() < 70_000


def test_a_longer_horizon_goes_on_and_grows_no_surer(forecaster):
    found = forecaster.predict(seasonal()[None], 30)
    width = found[0, :, :, -1] - found[0, :, :, 0]
    assert found.shape == (1, 30, 2, 11)
    assert width[12:].mean() > width[:12].mean()


def test_known_features_help_and_are_asked_for():
    rng = np.random.default_rng(0)
    promotion = rng.normal(size=(400, 1))
    values = seasonal(400, 1) + 3 * promotion
    model = fitted(values[:380], calendar=promotion[:380], config=QUICK.changed(epochs=12, learning_rate=5e-3))
    found = model.predict_point(values[None, 320:380], 12, calendar=promotion[None, 320:392])[0]
    without = fitted(values[:380]).predict_point(values[None, 320:380], 12)[0]
    truth = values[380:392]
    assert np.abs(found - truth).mean() < 0.4 * np.abs(without - truth).mean()
    with pytest.raises(InputError, match="calendar must be"):
        model.predict(values[None, 320:380])


def test_a_file_gives_the_same_forecasts(forecaster, tmp_path):
    forecaster.save(tmp_path / "model.safetensors")
    again = NetworkForecaster.load(tmp_path / "model.safetensors", "cpu")
    context = seasonal()[None]
    np.testing.assert_array_equal(again.predict(context, 20), forecaster.predict(context, 20))
    assert again.card == forecaster.card | {
        "config": {**forecaster.card["config"], "quantiles": list(forecaster.quantiles)}
    }


def test_a_fit_can_start_from_a_file(forecaster, tmp_path):
    forecaster.save(tmp_path / "model.safetensors")
    model = fitted(start=tmp_path / "model.safetensors", config=QUICK.changed(epochs=1))
    assert model.card["start"].endswith("model.safetensors")
    with pytest.raises(InputError, match="fitted to 2 variables"):
        fitted(seasonal(variables=3), start=tmp_path / "model.safetensors")


def test_the_same_seed_gives_the_same_forecasts_and_leaves_the_callers_randomness_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = fitted(seed=3), fitted(seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(first.predict(seasonal()[None]), second.predict(seasonal()[None]))


def test_time_is_kept():
    assert (
        fitted(seasonal(2000), seconds=0.5, config=QUICK.changed(epochs=10_000, patience=10_000)).card["seconds"] < 20
    )


def test_wide_tables_are_forecast_in_parts(forecaster, monkeypatch):
    whole = forecaster.predict(seasonal()[None], 12)
    monkeypatch.setattr("unipercept.forecasting.learner.CELLS_AT_ONCE", 1)
    np.testing.assert_allclose(forecaster.predict(seasonal()[None], 12), whole, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "horizon", "message"),
    [
        (np.ones(30), 5, "TxV"),
        (np.full((30, 1), np.nan), 5, "every value is missing"),
        (np.full((30, 1), np.inf), 5, "infinite"),
        (np.ones((1, 1)), 5, "needs at least 14 rows, the longest series has 1"),
        (np.ones((30, 1)), 0, "at least 1"),
        ([np.ones((30, 1)), np.ones((30, 2))], 5, "same V"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_in_one_line(values, horizon, message):
    with pytest.raises(InputError, match=message) as caught:
        fitted(values, horizon)
    assert "\n" not in str(caught.value)


def test_what_is_no_forecaster_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="cannot read"):
        NetworkForecaster.load(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="does not exist"):
        NetworkForecaster.load(tmp_path / "y.safetensors")
    with pytest.raises(InputError, match="not been fitted"):
        NetworkForecaster().predict(np.ones((1, 5, 1)))


def test_constant_series_stay_where_they_are():
    found = fitted(np.full((100, 1), 7.0)).predict(np.full((1, 50, 1), 7.0))
    np.testing.assert_allclose(found[..., 5], 7, atol=0.2)
