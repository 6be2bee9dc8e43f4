"""Each method on series whose best forecast is known, or beside a well-kept library's."""

import inspect
import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.signal import lfilter

from unipercept.cli_forecast import forecast
from unipercept.errors import InputError
from unipercept.forecasting.arima import Arima, Fitted, Orders, _bounded, _polynomials
from unipercept.forecasting.arima import _fitted as fitted_arima
from unipercept.forecasting.ces import Ces
from unipercept.forecasting.cycles import Cycles
from unipercept.forecasting.ets import Ets, Form
from unipercept.forecasting.ets import _errors as ets_errors
from unipercept.forecasting.ets import _polynomials as ets_polynomials
from unipercept.forecasting.filters import begun, continued, expected_deviation, known_stretch, spread_order
from unipercept.forecasting.forecast import forecast_table
from unipercept.forecasting.known import Known, ridge_effects
from unipercept.forecasting.linear import Linear
from unipercept.forecasting.methods import NAMES, Network
from unipercept.forecasting.powers import choose_powers, powered, unpowered
from unipercept.forecasting.prepare import prepare
from unipercept.forecasting.repairs import _without_lone
from unipercept.forecasting.scores import MEDIAN
from unipercept.forecasting.season import Season, seasonal_strength
from unipercept.forecasting.settings import QUANTILES, ForecastConfig
from unipercept.forecasting.theta import Theta
from unipercept.forecasting.usual import UsualValues
from unipercept.forecasting.week import Week, steps_a_day, week_season
from unipercept.pipelines.series_clock import DAY, SECOND, Step

RNG = np.random.default_rng(0)


def ends(method, values, horizon):
    method.fit(values, horizon, 20.0)
    return method.predict(values, [len(values)], horizon)[0]


def airline(rows=180, seed=1):
    """Trend, a cycle of 12 and noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(rows)
    return (0.05 * t + np.sin(2 * np.pi * t / 12) + 0.1 * rng.normal(size=rows))[:, None]


# Pure forms are continued as they are.


@pytest.mark.parametrize("make", [lambda: Theta(12), lambda: Ets(12), lambda: Arima(12)])
def test_a_line_with_a_cycle_goes_on(make):
    values = airline(198)
    forecast = ends(make(), values[:180], 18)
    assert np.abs(forecast - values[180:]).mean() < 0.2  # noise of 0.1, seasonal naive is off by 0.6


def test_two_cycles_at_once_go_on():
    t = np.arange(24 * 7 * 7)
    values = (np.sin(2 * np.pi * t / 24) + np.where(t // 24 % 7 >= 5, -1.0, 0.0) + 0.05 * RNG.normal(size=len(t)))[
        :, None
    ]
    method = Cycles((24.0, 168.0), Linear(24))
    forecast = ends(method, values[:-168], 168)
    assert np.abs(forecast - values[-168:]).mean() < 0.15


def quarter_hours(weeks, noise=0.05, weekend=-1.0, seed=3):
    """A day and a week of steps of 15 minutes; rows x 1."""
    t = np.arange(round(96 * 7 * weeks))
    season = np.sin(2 * np.pi * t / 96) + np.where(t // 96 % 7 >= 5, weekend, 0.0)
    return (season + noise * np.random.default_rng(seed).normal(size=len(t)))[:, None]


@pytest.mark.parametrize("rest", [lambda: Theta(1), lambda: Arima(1), lambda: Linear(96)])
def test_monday_after_a_weekend_seen_twice_is_no_weekend(rest):
    values = quarter_hours(3)
    forecast = ends(Week(96, rest()), values[: 2 * 672], 96)
    assert np.abs(forecast - values[2 * 672 :][:96]).mean() < 0.12
    assert np.abs(ends(Theta(96), values[: 2 * 672], 96) - values[2 * 672 :][:96]).mean() > 0.5


def test_a_week_without_days_of_its_own_is_seven_times_the_same_day():
    """Means of noise are drawn to zero: of three weeks the mean of a phase would be off by 0.17, that of
    a day over all days by 0.07.
    """
    profile = week_season(quarter_hours(3, noise=0.3, weekend=0.0), 96).profile[:, 0]
    day = np.sin(2 * np.pi * np.arange(672) / 96)
    assert np.abs(profile - day).mean() < 0.08
    assert np.abs(profile.reshape(7, 96) - profile.reshape(7, 96).mean(axis=0)).mean() < 0.05


def test_less_than_a_week_and_a_half_has_the_season_of_a_day():
    assert week_season(quarter_hours(1.4), 96).profile.shape == (96, 1)
    assert week_season(quarter_hours(1.5), 96).profile.shape == (672, 1)


def test_a_missing_day_makes_no_season_of_its_own():
    values = quarter_hours(4)
    holed = values.copy()
    holed[2 * 672 + 96 : 2 * 672 + 192] = np.nan  # the third Tuesday
    assert np.abs(week_season(holed, 96).profile - week_season(values, 96).profile).max() < 0.15


def test_steps_that_share_no_day_have_no_week():
    assert steps_a_day(Step("even", DAY // 96)) == 96
    assert steps_a_day(Step("even", 7 * 3600 * SECOND)) is None
    assert steps_a_day(Step("even", DAY)) is None
    assert steps_a_day(Step("month", 1)) is None


def test_a_short_history_gets_few_waves_of_a_long_cycle():
    t = np.arange(700)
    values = np.sin(2 * np.pi * t / 365.25)[:, None]
    forecast = ends(Cycles((7.0, 365.25), Arima(1)), values[:-60], 60)
    assert np.abs(forecast - values[-60:]).max() < 0.1


def test_usual_values_are_quantiles_of_what_was_seen():
    values = RNG.poisson(0.4, (600, 1)).astype(float)
    quantiles = ends(UsualValues(7), values, 5)
    assert quantiles.shape == (5, 1, len(QUANTILES))
    assert (quantiles[..., QUANTILES.index(0.5)] == 0).all()
    assert (quantiles[..., -1] >= 1).all()
    assert (np.diff(quantiles, axis=-1) >= 0).all()


def test_usual_values_tell_phases_apart_where_they_differ():
    values = np.tile([0.0, 10.0], 200)[:, None] + RNG.normal(size=(400, 1))
    median = ends(UsualValues(2), values, 4)[:, 0, QUANTILES.index(0.5)]
    np.testing.assert_allclose(median, [0, 10, 0, 10], atol=1)


# Beside statsmodels.


def test_arima_agrees_with_statsmodels():
    arima = pytest.importorskip("statsmodels.tsa.arima.model")
    y = airline(240)[:, 0]
    orders = Orders(0, 1, 1, 0, 1, 1, False, 12)
    ours = fitted_arima(y, orders)
    theirs = arima.ARIMA(y, order=(0, 1, 1), seasonal_order=(0, 1, 1, 12)).fit()
    method = Arima(12)
    method.models = [ours]
    forecast = method.predict(y[:, None], [240], 12)[0, :, 0]
    # Conditional squares against exact likelihood: not the same estimates, nearly the same forecasts.
    np.testing.assert_allclose(forecast, theirs.forecast(12), atol=0.08)


def test_arima_with_given_coefficients_is_its_formula():
    """AR(1) around a mean: each step keeps the share phi of the distance."""
    method = Arima(1)
    method.models = [Fitted(Orders(1, 0, 0, 0, 0, 0, True, 1), np.array([0.5]), 3.0, 0.0)]
    forecast = method.predict(np.array([[3.0], [7.0]]), [2], 3)[0, :, 0]
    np.testing.assert_allclose(forecast, [5, 4, 3.5])


@pytest.mark.parametrize("seed", range(20))
def test_every_arima_forgets_its_errors(seed):
    """Whatever the search tries is stationary and invertible: a filter that runs away
    does so on rows that come later.
    """
    orders = Orders(3, 0, 3, 1, 0, 1, True, 4)
    ar, ma = _polynomials(_bounded(np.random.default_rng(seed).normal(size=8) * 3, orders), orders)
    for polynomial in (ar, ma):
        assert np.abs(np.roots(polynomial)).max() < 1


@pytest.mark.parametrize(("base", "rates"), [("level", [0.3]), ("damped", [0.3, 0.2, 0.9])])
@pytest.mark.parametrize("season", [False, True])
def test_the_filter_is_the_recursion(base, rates, season):
    """The errors of the polynomials are those of the smoothing equations from the same initial states."""
    m, rng = 4, np.random.default_rng(3)
    y = np.cumsum(rng.normal(size=60)) + 5
    form = Form(base, season, m)
    rates = np.array(rates + [0.2] * season)
    errors, states, _ = ets_errors(y, rates, form, *ets_polynomials(rates, form))
    level, slope, seasons = states[0], states[1] if base != "level" else 0.0, np.zeros(m)
    phi = rates[2] if base == "damped" else 1.0
    beta = rates[0] * rates[1] if base != "level" else 0.0
    gamma = rates[-1] * (1 - rates[0]) if season else 0.0
    for t, value in enumerate(y):
        expected = level + phi * slope + seasons[t % m]
        error = value - expected
        np.testing.assert_allclose(errors[t], error, atol=1e-8)
        level, slope = level + phi * slope + rates[0] * error, phi * slope + beta * error
        seasons[t % m] += gamma * error


def test_ets_is_no_worse_than_statsmodels_where_both_fit():
    holtwinters = pytest.importorskip("statsmodels.tsa.holtwinters")
    theirs_total = ours_total = 0.0
    for seed in range(6):
        y = airline(132, seed)[:, 0]
        theirs = (
            holtwinters.ExponentialSmoothing(
                y[:120], trend="add", damped_trend=True, seasonal="add", seasonal_periods=12
            )
            .fit()
            .forecast(12)
        )
        ours = ends(Ets(12), y[:120, None], 12)[:, 0]
        theirs_total += np.abs(theirs - y[120:]).mean()
        ours_total += np.abs(ours - y[120:]).mean()
    assert ours_total < 1.1 * theirs_total


# Parts.


def test_a_filter_goes_on_as_its_difference_equation():
    forecast = continued(
        np.array([1.0, 2.0]), np.array([0.0, 0.5]), np.array([1.0, -1.0]), np.array([1.0, 0.4]), np.array([2]), 3
    )
    np.testing.assert_allclose(forecast[0], [2.2, 2.2, 2.2])


def test_gaps_are_closed_without_looking_ahead():
    column = np.array([np.nan, 1.0, np.nan, 3.0, np.nan])
    assert begun(column[:, None])[:, 0].tolist() == [1, 1, 1, 3, 3]
    assert known_stretch(column).tolist() == [1, 2, 3]
    assert sorted(spread_order(7)) == list(range(7))


@pytest.mark.parametrize(("value", "kept"), [(40.0, 40.0), (40.1, 20.0), (-10.0, -10.0), (-10.1, 10.0)])
def test_a_value_is_a_lone_spike_two_ranges_of_the_others_beyond_them(value, kept):
    values = np.linspace(10, 20, 21)[:, None] * [1.0, 1.0]
    values[7, 0] = value
    limited = _without_lone(values)
    assert limited[7, 0] == kept
    assert np.array_equal(np.delete(limited, 7, axis=0), np.delete(values, 7, axis=0))
    assert np.array_equal(limited[:, 1], values[:, 1])


def test_the_season_is_that_of_classical_decomposition():
    values = airline(120)
    profile = Season.of(values, 12).profile[:, 0]
    np.testing.assert_allclose(profile, np.sin(2 * np.pi * np.arange(12) / 12), atol=0.1)
    assert seasonal_strength(values[:, 0], 12) > 0.9
    noise = RNG.normal(size=(120, 1))
    assert seasonal_strength(noise[:, 0], 12) < 0.5
    # Half of the variance, in any unit.
    half = 2**0.5 * np.sin(np.arange(4800) * 2 * np.pi / 24) + np.random.default_rng(0).normal(size=4800)
    for unit in (1.0, 1e3):
        assert seasonal_strength(unit * half, 24) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_powers_go_back(power):
    values = RNG.uniform(0.1, 50, (20, 2))
    each = np.full(2, power)
    np.testing.assert_allclose(unpowered(powered(values, each), each), values)


def test_logarithms_are_for_swings_that_grow_with_the_level():
    t = np.arange(200)
    noise = RNG.normal(size=200)
    growing = np.exp(0.02 * t + 0.3 * np.sin(2 * np.pi * t / 12) + 0.05 * noise)
    steady = 100 + 3 * np.sin(2 * np.pi * t / 12) + noise
    assert choose_powers(np.stack([growing, steady, steady - 100], axis=1), 12).tolist() == [0, 1, 1]
    assert choose_powers(growing[:, None], 1).tolist() == [1]  # a trend alone would be continued as an exponential


def test_series_that_were_never_negative_stay_so():
    counts = RNG.poisson(0.3, 300).astype(float)
    prepared = prepare(counts)
    assert (prepared.restored(np.full((4, 1), -50.0)) == 0).all()
    assert (prepare(counts - 1).restored(np.full((4, 1), -50.0)) < 0).all()


# Complex exponential smoothing.


def complex_paths(rows, count, rate, seed=0):
    """Paths of the model itself around a level of 100."""
    rng = np.random.default_rng(seed)
    (a, b), level, change = rate, np.full(count, 100.0), np.full(count, 90.0)
    values = np.empty((rows, count))
    for row in values:
        error = rng.normal(size=count)
        row[:] = level + error
        level, change = level - (1 - b) * change + (a - b) * error, level + (1 - a) * change + (a + b) * error
    return values


def test_ces_finds_the_rate_of_its_own_paths_and_the_errors_that_it_expects():
    values = complex_paths(80, 200, (1.4, 1.005))
    method = Ces(1)
    method.fit(values[:70], 10, 20.0)
    found = np.median([method._rates.real[0], method._rates.imaginary[0]], axis=1)
    assert (np.abs(found - [1.4, 1.005]) < [0.2, 0.01]).all()
    error = values[70:] - method.predict(values, [70], 10)[0]
    np.testing.assert_allclose(np.median(method.deviation(10), axis=1), error.std(axis=1), rtol=0.25)


def test_twice_the_series_is_twice_the_forecast_of_ces_wherever_its_zero_lies():
    values = complex_paths(40, 3, (1.3, 1.02))
    once = ends(Ces(1), values, 6)
    np.testing.assert_allclose(ends(Ces(1), 2 * values, 6), 2 * once)
    np.testing.assert_allclose(ends(Ces(1, -70.0), values - 70, 6), once - 70)


def test_the_season_of_ces_moves_and_goes_on_in_its_phase():
    steps = np.arange(90)
    growing = 50 + 0.05 * steps * np.sin(2 * np.pi * steps / 12)
    values = (growing + 0.05 * RNG.normal(size=90))[:, None]
    method = Ces(12)
    method.fit(values[:78], 12, 20.0)
    error = np.abs(values[78:] - method.predict(values, [78], 12)[0]).mean()
    stays = values[78:] - Season.of(values[:78], 12).at(np.arange(78, 90)) - 50
    assert error < 0.7 * np.abs(stays).mean()


def test_series_that_ces_has_no_time_for_take_the_median_rates():
    values = np.repeat(airline(60), 150, axis=1) * np.linspace(1, 2, 150) + RNG.normal(size=(60, 150))
    method = Ces(12)
    method.fit(values, 4, seconds=0.0)
    rates = np.stack([method._rates.real, method._rates.imaginary, method._rates.season])[:, 0]
    assert 1 < len(np.unique(rates, axis=1).T) < 150
    assert np.isfinite(method.deviation(4)).all()


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_ces_forecasts_what_was_measured_whatever_the_other_methods_see(power):
    measured = 20 + airline(120)
    values = (powered(measured, np.array([power])) - 0.3) / 0.7
    method, plain = Ces(12, -0.3 / 0.7, 0.7, power), Ces(12)
    found, expected = ends(method, values, 12), ends(plain, measured, 12)
    np.testing.assert_allclose(unpowered(0.7 * found + 0.3, np.array([power])), expected, rtol=1e-6)
    level = measured[-12:].mean()  # a deviation is what values rise by; downwards a logarithm has no end
    high, low = (
        powered(part, np.array([power])) / 0.7 for part in (level + plain.deviation(12), np.full((1, 1), level))
    )
    np.testing.assert_allclose(method.deviation(12), high - low, rtol=1e-6)


# Columns known in advance.


def promotions(rows=300, horizon=10, seed=4):
    rng = np.random.default_rng(seed)
    promo = (rng.random(rows) < 0.2).astype(float)
    units = 20 + 5 * np.sin(2 * np.pi * np.arange(rows) / 7) + 8 * promo + 0.5 * rng.normal(size=rows)
    frame = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=rows), "units": units, "promo": promo})
    return frame, units[-horizon:]


def test_columns_that_alone_go_on_are_taken_as_known_in_advance():
    frame, truth = promotions()
    frame.loc[290:, "units"] = np.nan
    prepared = prepare(frame, horizon=10)
    assert prepared.variables == ("units",)
    assert prepared.known_names == ("promo",)
    assert len(prepared) == 290
    assert prepared.known.shape == (300, 1, 1)
    assert len(prepared.time) == 290
    method = Known(prepared.known, 7, Ets(7))
    forecast = prepared.restored(ends(method, prepared.values, 10))[:, 0]
    assert np.abs(forecast - truth).mean() < 1.0  # noise of 0.5; without the promotions 3


@pytest.mark.parametrize("method", ["smoothing", "theta", "linear", "pretrained"])
def test_every_method_that_adds_up_sees_the_known_columns(method):
    if method == "smoothing":
        pytest.importorskip("statsmodels")
    frame, truth = promotions(rows=120)
    frame.loc[110:, "units"] = np.nan
    result = forecast_table(frame, 10, methods=(method,), device="cpu")
    assert np.abs(result.values[:, 0] - truth).mean() < 1.2  # without the promotions 3


def test_known_columns_that_explain_nothing_have_hardly_any_effect():
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(200, 4))
    noise = rng.normal(size=200)
    assert np.abs(ridge_effects(columns, noise) @ columns.T).std() < 0.1
    np.testing.assert_allclose(ridge_effects(columns, 2 * columns[:, 1] + 0.1 * noise), [0, 2, 0, 0], atol=0.05)


def test_rows_too_few_for_effects_leave_the_methods_as_they_are():
    frame, _ = promotions(rows=40)
    many = frame.assign(**{f"x{i}": np.random.default_rng(i).normal(size=40) for i in range(5)})
    frame.loc[30:, "units"] = many.loc[30:, "units"] = np.nan
    alone = forecast_table(frame[["date", "units"]][:30], 10, methods=("theta",))
    told = forecast_table(many, 10, methods=("theta",))
    np.testing.assert_allclose(told.values, alone.values)
    assert any("30 rows are too few to tell effects of 6 known columns" in line for line in told.notices)


def test_known_columns_of_long_format_belong_to_their_series():
    frame, _ = promotions()
    frame.loc[290:, "units"] = np.nan
    other = frame.assign(promo=frame["promo"].shift(3, fill_value=0))
    long = pd.concat([frame.assign(store="a"), other.assign(store="b")])
    prepared = prepare(long, horizon=10, targets=["units"], known=["promo"], series="store")
    assert prepared.variables == ("a", "b")
    np.testing.assert_array_equal(prepared.known[:, 0, 0], frame["promo"])
    np.testing.assert_array_equal(prepared.known[:, 0, 1], other["promo"])


def test_the_network_uses_what_is_known_of_each_series_and_asks_for_it(monkeypatch):
    """A few passes and more time than they can take: a busy machine must not train less."""
    monkeypatch.setattr(
        "unipercept.forecasting.methods.ForecastConfig", partial(ForecastConfig, epochs=3, series_an_epoch=1200)
    )
    rng = np.random.default_rng(1)
    known = rng.normal(size=(310, 1, 2))
    values = np.sin(2 * np.pi * np.arange(300) / 7)[:, None] + 2 * known[:300, 0] + 0.1 * rng.normal(size=(300, 2))
    truth = np.sin(2 * np.pi * np.arange(300, 310) / 7)[:, None] + 2 * known[300:, 0]
    error = []
    for told in (known, None):
        network = Network(7, "cpu", 0, told)
        network.fit(values, 10, seconds=1e6)
        found = network.predict(values, [300], 10)[0, :, :, MEDIAN]
        error.append(np.abs(found - truth).mean(axis=0))
        if told is not None:
            with pytest.raises(InputError, match="end 2 steps before the horizon"):
                network.predict(values, [302], 10)
    assert (error[0] < error[1] / 3).all()


def test_constant_series_do_not_shift_what_is_known_of_the_others():
    frame, truth = promotions()
    frame.loc[290:, "units"] = np.nan
    still = frame.assign(units=np.where(np.arange(300) < 290, 5.0, np.nan), promo=0.0)
    long = pd.concat([still.assign(store="a"), frame.assign(store="b")])
    result = forecast_table(long, 10, targets=["units"], known=["promo"], series="store", methods=("ets",))
    assert result.variables == ("a", "b")
    assert (result.values[:, 0] == 5).all()
    assert np.abs(result.values[:, 1] - truth).mean() < 1.0


def test_known_columns_that_end_too_early_are_refused():
    frame, _ = promotions()
    frame.loc[290:, "units"] = np.nan
    with pytest.raises(InputError, match="'promo' is known for 10 steps beyond"):
        prepare(frame, horizon=12, targets=["units"], known=["promo"])
    with pytest.raises(InputError, match="cannot be forecast and be known"):
        prepare(frame, horizon=2, targets=["promo"], known=["promo"])


def test_a_series_that_ended_is_no_reason_to_take_another_as_known():
    frame, _ = promotions()
    frame.loc[297:, "units"] = np.nan
    prepared = prepare(frame, horizon=10)
    assert prepared.known is None
    assert prepared.variables == ("units", "promo")


# What models expect of their own errors.


def test_a_walk_is_expected_to_stray_with_the_root_of_the_step():
    walk = np.random.default_rng(3).normal(size=(400, 1)).cumsum(axis=0)
    for method in (Arima(1), Ets(1), Theta(1)):
        method.fit(walk, 16, 20.0)
        found = method.deviation(16)
        assert found.shape == (16, 1)
        np.testing.assert_allclose(found[:, 0], np.sqrt(np.arange(1, 17)), rtol=0.2)


def test_the_expected_deviation_is_that_of_the_models_own_paths():
    """An autoregression with a moving part, and paths of it."""
    rng = np.random.default_rng(0)
    ar, ma = np.array([1.0, -1.2, 0.4]), np.array([1.0, 0.5])
    paths = lfilter(ma, ar, 2.0 * rng.normal(size=(20_000, 12)), axis=1)
    np.testing.assert_allclose(expected_deviation(2.0, ar, ma, 12), paths.std(axis=0), rtol=0.02)


def test_other_series_rates_tell_no_deviation():
    values = np.random.default_rng(0).normal(size=(80, 3)).cumsum(axis=0)
    method = Ets(1)
    method.fit(values, 4, seconds=0.0)  # the first is estimated, the others take its rates
    assert np.isfinite(method.deviation(4)).all(axis=0).sum() == 1


def test_help_and_page_name_every_method():
    page = (Path(__file__).resolve().parents[2] / "docs" / "forecasting.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^\| `(\w+)` \|", page.partition("## Methods")[2], flags=re.MULTILINE)) == NAMES
    shown = inspect.signature(forecast).parameters["methods"].annotation
    assert f"{', '.join(NAMES)}." in shown
