"""Series with gaps, and exponential smoothing in all its forms."""

import numpy as np
import pandas as pd
import pytest

from unipercept.forecasting import ets_forms
from unipercept.forecasting.arima import Arima
from unipercept.forecasting.ces import Ces
from unipercept.forecasting.cycles import Cycles
from unipercept.forecasting.ets import Ets
from unipercept.forecasting.ets_forms import EtsForms
from unipercept.forecasting.ets_recursion import Rates, State, forms_of, smooth
from unipercept.forecasting.linear import Linear
from unipercept.forecasting.prepare import prepare
from unipercept.forecasting.season import Season, bridged
from unipercept.forecasting.smoothing import ExponentialSmoothing
from unipercept.forecasting.theta import Theta


def ends(method, values, horizon):
    method.fit(values, horizon, 20.0)
    return method.predict(values, [len(values)], horizon)[0]


def hours(rows, seed=0):
    """A day of two peaks about a level that wanders."""
    rng = np.random.default_rng(seed)
    t = np.arange(rows)
    day = np.sin(2 * np.pi * t / 24) + 0.7 * np.sin(4 * np.pi * t / 24 + 1)
    return (3 * day + rng.normal(0, 0.05, rows).cumsum() + rng.normal(0, 0.2, rows))[:, None]


METHODS = {
    "smoothing": lambda: ExponentialSmoothing(24),
    "ets": lambda: Ets(24),
    "ets forms": lambda: EtsForms(24),
    "ces": lambda: Ces(24, zero=-30.0),
    "theta": lambda: Theta(24),
    "arima": lambda: Arima(24),
    "linear": lambda: Linear(24),
    "cycles": lambda: Cycles((24.0,), Linear(24)),
}


# `linear` leaves out targets of which more than three tenths are missing, which three in ten at
# random make about half of them.
CASES = [
    (name, kind)
    for kind in ("three days", "the last hours", "three in ten", "the beginning")
    for name in METHODS
    if (name, kind) != ("linear", "three in ten")
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_gap_costs_little(name, kind):
    values = hours(624)
    past, later = values[:600], values[600:]
    holes = past.copy()
    if kind == "three days":
        holes[430:502] = np.nan
    elif kind == "the last hours":
        holes[-5:] = np.nan
    elif kind == "three in ten":
        holes[np.random.default_rng(1).permutation(600)[:180]] = np.nan
    else:
        holes[:150] = np.nan
    error, least = (np.abs(ends(METHODS[name](), v, 24) - later).mean() for v in (holes, past))
    assert error < least + 0.45  # a day's deviation is 2.6, seasonal naive is off by 0.3 to 0.5


def test_the_season_is_seen_through_gaps():
    values = hours(600)
    holes = values.copy()
    holes[400:472] = np.nan
    holes[np.random.default_rng(2).permutation(600)[:120]] = np.nan
    whole, seen = Season.of(values, 24).profile, Season.of(holes, 24).profile
    assert np.abs(seen - whole).max() < 0.25  # of 9 from the lowest to the highest
    assert np.abs(bridged(holes, 24) - values).mean() < 0.15
    known = np.isfinite(holes)
    np.testing.assert_allclose(bridged(holes, 24)[known], values[known], atol=1e-12)


def test_gaps_closed_by_the_season_do_not_look_ahead():
    holes = hours(300)
    holes[200:230] = np.nan
    season = Season.of(holes[:190], 24)
    later = holes.copy()
    later[230:] += 5
    np.testing.assert_array_equal(season.begun(holes)[:230], season.begun(later)[:230])


# All forms of exponential smoothing


def test_the_forms_are_those_of_autoets():
    assert len(forms_of(positive=True, seasonal=True)) == 15
    assert len(forms_of(positive=True, seasonal=False)) == 6
    assert len(forms_of(positive=False, seasonal=True)) == 6


def test_smoothing_is_its_recursion():
    y = np.array([[2.0], [1.0], [np.nan], [4.0]])
    state = State(np.array([2.0]), np.array([0.5]), np.array([[0.5], [1.5]]))
    rates = Rates(np.array([0.3]), np.array([0.2]), np.array([0.1]), np.array([0.9]))
    level, slope, season, expected = 2.0, 0.5, [0.5, 1.5], []
    for t, value in enumerate(y[:, 0]):
        base, usual = level + 0.9 * slope, season[t % 2]
        expected.append(base * usual)
        error = 0.0 if np.isnan(value) else value - base * usual
        level, season[t % 2] = base + 0.3 * error / usual, usual + 0.1 * error / base
        slope = 0.9 * slope + 0.2 * (level - base)
    found, kept = smooth(y, state, rates, "multiplicative", [4])
    np.testing.assert_allclose(found[:, 0], expected)
    np.testing.assert_allclose([kept[4].level[0], kept[4].slope[0], *kept[4].season[:, 0]], [level, slope, *season])


def test_swings_that_grow_with_the_level_go_on_growing():
    rng = np.random.default_rng(0)
    t = np.arange(132)
    values = ((50 + t) * (1 + 0.4 * np.sin(2 * np.pi * t / 12)) * np.exp(rng.normal(0, 0.02, 132)))[:, None]
    multiplied = np.abs(ends(EtsForms(12), values[:120], 12) - values[120:]).mean()
    added = np.abs(ends(Ets(12), values[:120], 12) - values[120:]).mean()
    assert multiplied < 6 < added * 1.5


def test_twice_the_series_is_twice_the_forecast():
    values = 10 + hours(200, 3)
    one, two = (ends(EtsForms(24), k * values, 24) for k in (1, 2))
    np.testing.assert_allclose(two, 2 * one, rtol=1e-6)


def test_the_expected_deviation_grows_as_errors_do():
    rng = np.random.default_rng(4)
    walk = rng.normal(size=(400, 30)).cumsum(axis=0)
    method = EtsForms(1)
    error = ends(method, walk[:380], 20) - walk[380:]
    expected = method.deviation(20)
    assert expected.shape == (20, 30)
    assert 0.6 < np.sqrt(np.square(error).mean() / np.square(expected).mean()) < 1.4
    assert 0.8 < np.median(expected[0]) < 1.2


def test_series_that_the_forms_have_no_time_for_take_median_rates(monkeypatch):
    monkeypatch.setattr(ets_forms, "SERIES_AT_ONCE", 2)
    values = np.concatenate([hours(300, seed) for seed in range(5)], axis=1)
    method = EtsForms(24)
    method.fit(values[:276], 24, 0.0)
    assert method.n_estimated == 2
    error = np.abs(method.predict(values, [276], 24)[0] - values[276:]).mean(axis=0)
    assert (error < 1.0).all()


def test_a_series_too_short_for_any_form_keeps_its_last_value():
    values = np.full((20, 2), np.nan)
    values[15:, 0], values[:, 1] = [1, 2, 3, 4, 5], np.arange(20)
    forecast = ends(EtsForms(1), values, 3)
    np.testing.assert_allclose(forecast[:, 0], 5)
    assert forecast[-1, 1] > 20


def test_weeks_of_two_and_a_half_years_have_a_year():
    rng = np.random.default_rng(0)
    t = np.arange(130)
    sales = 100 + 60 * np.exp(-((t % 52 - 47) ** 2) / 4) + rng.normal(0, 5, 130)
    frame = pd.DataFrame({"date": pd.date_range("2010-02-05", periods=130, freq="W"), "sales": sales})
    assert prepare(frame, horizon=13).period == 52
