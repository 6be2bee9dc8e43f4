"""Back-tests: no method sees what comes after its origin, scores are those of the formulas, the choice is
never worse than seasonal naive.
"""

from dataclasses import replace
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.signal import lfilter
from scipy.special import ndtri

from unipercept.errors import InputError
from unipercept.forecasting.arima import Arima
from unipercept.forecasting.backtest import Plan, backtest, plan_origins
from unipercept.forecasting.baselines import Drift, LastPeriod, Naive, SeasonalDrift, SeasonalNaive
from unipercept.forecasting.ces import Ces
from unipercept.forecasting.choose import SPREAD, Choice, _weights, choose, mixed_quantiles
from unipercept.forecasting.cycles import Cycles
from unipercept.forecasting.ets import Ets
from unipercept.forecasting.forecast import forecast_table
from unipercept.forecasting.intervals import Judged, few_rows, widened
from unipercept.forecasting.known import Known
from unipercept.forecasting.linear import Linear
from unipercept.forecasting.mixture import final_mixture
from unipercept.forecasting.prepare import prepare
from unipercept.forecasting.residuals import ErrorQuantiles, Liveliness, step_bands
from unipercept.forecasting.scores import MEDIAN, mean_pinball, score, seasonal_scale
from unipercept.forecasting.settings import QUANTILES
from unipercept.forecasting.smoothing import ExponentialSmoothing, Parameters, run
from unipercept.forecasting.theta import Theta
from unipercept.forecasting.usual import UsualValues
from unipercept.forecasting.week import Week

ORIGINS, HORIZON = [150, 171, 200], 30


def waves(length=400, width=3, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    phase = np.arange(width)
    return np.sin(2 * np.pi * (np.arange(length)[:, None] + phase) / 24) * (1 + phase) + noise * rng.normal(
        size=(length, width)
    )


def with_gaps(values, share=0.1, seed=1):
    holed = values.copy()
    holed[np.random.default_rng(seed).random(values.shape) < share] = np.nan
    return holed


METHODS = [
    Naive,
    LastPeriod,
    lambda: SeasonalNaive(24),
    lambda: SeasonalDrift(24),
    Drift,
    lambda: ExponentialSmoothing(24),
    lambda: Linear(24),
    lambda: Theta(24),
    lambda: Ets(24),
    lambda: Ces(24, -5.0),
    lambda: Arima(24),
    lambda: Cycles((24, 60), Linear(24)),
    lambda: Cycles((24, 60), Arima(1)),
    lambda: Week(2, Theta(1)),
    lambda: Week(2, Linear(24)),
    lambda: UsualValues(24),
    lambda: Known(np.random.default_rng(2).normal(size=(500, 2, 1)), 24, Linear(24)),
]


@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize("gaps", [False, True, "late"])
def test_what_comes_after_an_origin_changes_no_forecast(make, gaps):
    if make().__class__ is ExponentialSmoothing:
        pytest.importorskip("statsmodels")
    values = with_gaps(waves()) if gaps else waves()
    if gaps == "late":  # one of the series begins after most of what is learned
        values[:120, 1] = np.nan
    method = make()
    method.fit(values[:150], HORIZON, 20.0)
    forecast = method.predict(values, ORIGINS, HORIZON)
    assert forecast.shape[:3] == (3, HORIZON, 3)
    assert np.isfinite(forecast).all()
    for i, origin in enumerate(ORIGINS):
        poisoned = values.copy()
        poisoned[origin:] = 1e6
        np.testing.assert_allclose(method.predict(poisoned, [origin], HORIZON)[0], forecast[i], rtol=1e-9, atol=1e-9)


def test_every_origin_of_a_plan_lies_after_what_was_learned_and_leaves_room_for_its_horizon():
    for rows in (8, 12, 25, 60, 200, 5000):
        for horizon in (1, 6, 24, 96, 720):
            plan = plan_origins(rows, horizon, 5, 6, period=24)
            assert plan.learn_end <= plan.fit_end <= min(plan.scored)
            assert max(plan.scored) + plan.horizon <= rows
            assert max(plan.earlier) + plan.horizon <= plan.fit_end or rows < 4 * horizon or plan.earlier == (2,)
            assert plan.horizon <= horizon
    assert plan_origins(7, 1, 1, 1) is None


def test_origins_meet_every_phase_of_the_cycle():
    plan = plan_origins(17420, 96, 7, 8, period=24)
    assert len({origin % 24 for origin in plan.scored}) > 20


@pytest.mark.parametrize("period", [1, 7, 12, 24, 168])
@pytest.mark.parametrize("rows", [360, 700, 960, 2000])
def test_origins_span_the_scored_part_whatever_the_cycle(rows, period):
    plan = plan_origins(rows, 48, 1, 12, period=period)
    stretch = rows - 48 - plan.fit_end
    assert plan.scored[-1] - plan.scored[0] >= 0.85 * stretch
    assert len(plan.scored) >= min(stretch, 9)


def test_naive_seasonal_and_drift_are_what_they_say():
    values = np.arange(10.0)[:, None]
    assert Naive().predict(values, [5], 3)[0, :, 0].tolist() == [4, 4, 4]
    assert SeasonalNaive(3).predict(values, [6], 5)[0, :, 0].tolist() == [3, 4, 5, 3, 4]
    assert Drift().predict(values, [6], 3)[0, :, 0].tolist() == [6, 7, 8]
    assert SeasonalDrift(3).predict(values, [9], 5)[0, :, 0].tolist() == [9, 10, 11, 12, 13]
    holed = values.copy()
    holed[4] = np.nan
    assert SeasonalNaive(3).predict(holed, [6], 3)[0, :, 0].tolist() == [3, 1, 5]
    assert Drift().predict(holed, [5], 2)[0, :, 0].tolist() == [5, 6]
    assert Drift().predict(values, [2], 2)[0, :, 0].tolist() == [2, 3]


def test_the_last_period_is_found_anew_at_each_origin():
    """As a player changes the note: first 12 steps a cycle, then 17; and no cycle in noise."""
    low, high = np.sin(2 * np.pi * np.arange(600) / 12), np.sin(2 * np.pi * np.arange(600) / 17)
    values = np.concatenate([low, high])[:, None]
    found = LastPeriod().predict(values, [600, 1100], 40)
    np.testing.assert_allclose(found[0, :, 0], np.sin(2 * np.pi * np.arange(600, 640) / 12), atol=1e-6)
    np.testing.assert_allclose(found[1, :, 0], values[1100:1140, 0], atol=1e-6)
    begins_later = np.concatenate([np.full((300, 1), np.nan), values[300:]])
    np.testing.assert_allclose(LastPeriod().predict(begins_later, [600], 40)[0], found[0], atol=1e-6)
    with np.errstate(all="raise"):
        assert np.isnan(LastPeriod().predict(begins_later, [200], 40)).all()
    noise = np.random.default_rng(0).normal(size=(300, 1))
    assert (LastPeriod().predict(noise, [300], 5) == noise[-1]).all()


@pytest.mark.parametrize(("trend", "season"), [(True, False), (False, True), (True, True)])
def test_smoothing_agrees_with_statsmodels(trend, season):
    holtwinters = pytest.importorskip("statsmodels.tsa.holtwinters")
    series = waves(720, 1)[:, 0] + np.arange(720) * 0.01
    model = holtwinters.ExponentialSmoothing(
        series,
        trend="add" if trend else None,
        damped_trend=trend,
        seasonal="add" if season else None,
        seasonal_periods=24 if season else None,
    )
    settings = {"smoothing_level": 0.3, "smoothing_trend": 0.1, "damping_trend": 0.9, "smoothing_seasonal": 0.2}
    used = {
        k: v for k, v in settings.items() if k == "smoothing_level" or (season if k == "smoothing_seasonal" else trend)
    }
    fit = model.fit(optimized=False, **used)
    found = run(series[:, None], [Parameters(0.3, 0.1, 0.2, 0.9, trend, season)], 24 if season else 1, [720], 12)
    # Both start from states of their own, which 720 steps let fade.
    np.testing.assert_allclose(found[0, :, 0], fit.forecast(12), atol=0.05)


def test_wide_tables_share_the_parameters_that_time_allowed():
    pytest.importorskip("statsmodels")
    method = ExponentialSmoothing(24)
    method.fit(waves(200, 40), 12, seconds=0.0)
    assert method.n_estimated == 1
    assert len(method.parameters) == 40


def test_the_scores_are_their_formulas():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(4, 5, 2))
    quantiles = np.sort(rng.normal(size=(4, 5, 2, len(QUANTILES))), axis=-1)
    found = score(quantiles, truth, np.array([1.0, 2.0]))
    median = quantiles[..., QUANTILES.index(0.5)]
    assert found.mase == pytest.approx(
        np.mean([np.abs(truth - median)[..., v].mean() / s for v, s in ((0, 1), (1, 2))])
    )
    deciles = [q for q in QUANTILES if 0.1 <= q <= 0.9]
    losses = [
        np.where(truth >= quantiles[..., QUANTILES.index(q)], q, q - 1) * (truth - quantiles[..., QUANTILES.index(q)])
        for q in deciles
    ]
    assert found.wql == pytest.approx(2 * np.mean([loss.sum() for loss in losses]) / np.abs(truth).sum())
    inside = (truth >= quantiles[..., 1]) & (truth <= quantiles[..., -2])
    assert found.coverage[0.8] == pytest.approx(inside.mean())
    holed = truth.copy()
    holed[0] = np.nan
    assert score(quantiles, holed, np.ones(2)).mae == pytest.approx(np.abs(truth - median)[1:].mean())


def test_bands_of_steps_cover_the_horizon_once():
    for horizon in (1, 2, 3, 24, 96, 720):
        bands = step_bands(horizon)
        assert [step for start, stop in bands for step in range(start, stop)] == list(range(horizon))


def test_error_quantiles_cover_what_they_say_and_follow_the_phase():
    rng = np.random.default_rng(0)
    phase = np.arange(3000) % 24
    values = rng.normal(size=(3000, 2)) * np.where(phase < 12, 0.2, 2.0)[:, None]
    lively = Liveliness.of(values[:2000], 24, 200)
    origins = list(range(500, 1900, 17))
    scale = lively.at(values, origins, 24)
    errors = np.stack([values[o : o + 24] for o in origins])
    spread = ErrorQuantiles(errors, scale)
    later = list(range(2000, 2970, 13))
    quantiles = spread.around(np.zeros((len(later), 24, 2)), lively.at(values, later, 24))
    truth = np.stack([values[o : o + 24] for o in later])
    inside = (truth >= quantiles[..., 1]) & (truth <= quantiles[..., -2])
    calm = ((np.asarray(later)[:, None] + np.arange(24)) % 24 < 12)[..., None].repeat(2, axis=2)
    for part in (inside[calm], inside[~calm]):
        assert 0.75 < part.mean() < 0.85


def judged(values, horizon=24, methods=None):
    frame = pd.DataFrame(values, index=pd.date_range("2024-01-01", periods=len(values), freq="h"))
    prepared = prepare(frame, horizon=horizon)
    return backtest(prepared, methods or [Naive(), SeasonalNaive(24), Linear(24)], horizon, seconds=20)


def test_methods_that_hardly_count_are_told_together():
    choice = Choice(("naive", "ETS", "drift", "theta"), np.array([[0.004], [0.7], [0.0], [0.296]]), *[None] * 6)
    assert choice.told_shares() == "70 % ETS, 30 % theta, under 0.5 %: naive"


def test_the_choice_is_never_worse_than_seasonal_naive_at_the_origins_that_chose():
    found = judged(waves(900, 4, noise=1.0))
    choice = choose(found)
    mixed = choice.mixed([one.quantiles for one in found.tested])
    usual = found.named("seasonal naive").quantiles
    loss, reference = (mean_pinball(q, found.truth).mean(axis=(0, 1)) for q in (mixed, usual))
    assert (loss <= reference * 1.0001).all()
    np.testing.assert_allclose(choice.weights.sum(axis=0), 1)


def test_weights_follow_losses():
    """Half the loss weighs more, and what is far behind counts nothing."""
    found = judged(waves(900, 1, noise=0.3))
    choice = choose(found)
    losses = np.array([choice.loss[name] for name in choice.names])
    weights = choice.weights[:, 0]
    assert weights[losses.argmin()] == weights.max()
    assert weights[choice.names.index("naive")] == 0
    kept = weights > 0
    assert (np.argsort(losses[kept]) == np.argsort(-weights[kept])).all()


@pytest.mark.parametrize("windows", [1, 40])
def test_few_windows_leave_weights_to_what_is_usual_and_many_follow_the_losses(windows):
    """What is usually ahead lost by half here: one window does not depose it, forty do."""
    plan = Plan(100, 100, (80,), tuple(range(100, 100 + windows)), 1)
    names, truth = ("drift", "ETS"), np.zeros((windows, 1, 1))
    one = SimpleNamespace(plan=plan, truth=truth, scale=np.ones(1))
    losses = np.repeat(np.array([1.0, 1.5])[:, None, None], windows, axis=1)
    quantiles = [np.zeros((windows, 1, 1, len(QUANTILES)), np.float32)] * 2
    drift, ets = _weights(losses, one, names, quantiles, np.arange(windows))[:, 0]
    assert (ets > drift) if windows == 1 else (ets < 0.2 * drift)


def test_few_windows_take_distances_from_the_network_that_saw_more_errors():
    """Half of them with two windows, and never the median; whatever the weights say."""
    narrow = np.zeros((2, 1, 1, len(QUANTILES))) + ndtri(QUANTILES)
    wide = 5 + 3 * narrow
    found = mixed_quantiles(("ETS", SPREAD), [narrow, wide], np.array([[1.0], [0.0]]), 0.5)
    np.testing.assert_allclose(found[0, 0, 0], 2 * ndtri(QUANTILES), rtol=1e-5)


def test_a_random_walk_is_not_sold_as_predictable():
    walk = np.cumsum(np.random.default_rng(3).normal(size=(1500, 2)), axis=0)
    choice = choose(judged(walk))
    naive = judged(walk).named("naive").score
    assert choice.score.sql < 1.05 * naive.sql


def test_a_series_of_another_kind_gets_its_own_weights():
    """Seven waves and a walk: for the walk alone the last value is clearly the best."""
    values = waves(1500, 8, noise=0.05)
    values[:, 7] = np.cumsum(np.random.default_rng(0).normal(size=1500))
    choice = choose(judged(values, methods=[Naive(), SeasonalNaive(24)]))
    assert choice.names == ("naive", "seasonal naive")
    assert choice.weights[0].argmax() == 7
    assert (choice.weights[1, :7] == 1).all()


def test_few_errors_leave_half_to_the_model():
    """Errors of twelve windows count by half, those of ever more by ever more; where the model
    expects nothing they count alone.
    """
    errors, scale, points = np.random.default_rng(0).normal(size=(40, 4, 2)), np.ones((40, 4, 2)), np.zeros((1, 4, 2))
    deviation = np.stack([np.full(4, 9.0), np.full(4, np.nan)], axis=1)
    alone = ErrorQuantiles(errors, scale).around(points, scale[:1], deviation)
    half = ErrorQuantiles(errors, scale, windows=12.0).around(points, scale[:1], deviation)
    many = ErrorQuantiles(errors, scale, windows=400.0).around(points, scale[:1], deviation)
    np.testing.assert_allclose(half[0, :, 0], alone[0, :, 0] / 2 + 4.5 * ndtri(QUANTILES), atol=1e-9)
    np.testing.assert_allclose(many[0, :, 0, -1] - alone[0, :, 0, -1], 0, atol=0.2)
    np.testing.assert_array_equal(half[0, :, 1], alone[0, :, 1])


def test_a_jump_does_not_count_as_the_product_of_its_error_and_of_the_liveliness_after_it():
    """An error of 50 calm movements, then rows a hundred times as lively: no level lies 5,000 movements away."""
    errors, calm = np.array([0.5, -1.0, 0.8, 50.0])[:, None, None], np.ones((4, 1, 1))
    found = ErrorQuantiles(errors, calm).around(np.zeros((1, 1, 1)), 100 * calm[:1])
    assert found.max() == 3 * 50
    np.testing.assert_allclose(ErrorQuantiles(errors, calm).around(np.zeros((1, 1, 1)), calm[:1]).max(), 50, rtol=0.02)


def test_calibration_covers_on_later_data():
    values = waves(3000, 3, noise=1.0)
    frame = pd.DataFrame(values[:2000], index=pd.date_range("2024-01-01", periods=2000, freq="h"))
    result = forecast_table(frame, 24, methods=("seasonal", "linear"), seconds=20)
    rows = result.prepared.scaled(values)
    origins = list(range(2000, 2970, 11))
    quantiles = result.mixture.quantiles(rows, origins, 24)
    truth = np.stack([rows[o : o + 24] for o in origins])
    found = score(quantiles, truth, seasonal_scale(rows, 24))
    assert 0.77 < found.coverage[0.8] < 0.83
    assert 0.93 < found.coverage[0.95] < 0.975


@pytest.fixture(scope="module")
def livelier():
    """A forecast from 1,000 calm rows, and 1,000 rows after them whose noise is eight times as large."""
    values = waves(2000, 3, noise=0.3)
    values[1000:] += 8 * (values[1000:] - waves(2000, 3, noise=0.0)[1000:])
    frame = pd.DataFrame(values[:1000], index=pd.date_range("2024-01-01", periods=1000, freq="h"))
    result = forecast_table(frame, 24, methods=("seasonal", "linear"), seconds=20)
    return result, result.prepared.scaled(values)


def test_intervals_follow_what_came_true_since(livelier):
    result, rows = livelier
    origins = list(range(1400, 1970, 11))
    truth = np.stack([rows[o : o + 24] for o in origins])
    followed = score(result.mixture.quantiles(rows, origins, 24), truth, seasonal_scale(rows, 24))
    unmoved = replace(result.mixture, end=2000)
    fixed = score(unmoved.quantiles(rows, origins, 24), truth, seasonal_scale(rows, 24))
    assert fixed.coverage[0.8] < 0.75
    assert 0.77 < followed.coverage[0.8] < 0.83
    assert 0.93 < followed.coverage[0.95] < 0.97


def test_intervals_know_nothing_of_later_rows(livelier):
    result, rows = livelier
    changed = rows.copy()
    changed[1500:] = 50.0
    alike = [result.mixture.quantiles(part[:1500], [1200, 1500], 24) for part in (rows, changed)]
    np.testing.assert_array_equal(*alike)
    together = result.mixture.quantiles(changed, [1200, 1500], 24)
    np.testing.assert_allclose(together, alike[0], rtol=1e-6, atol=1e-9)


def test_one_later_forecast_is_as_good_as_many(livelier):
    """Between the end of the history and a single later origin, forecasts are made to be judged by; rows
    may be counted from anywhere.
    """
    result, rows = livelier
    one = result.mixture.quantiles(rows, [1800], 24)
    at_end = result.mixture.quantiles(rows, [1000], 24)
    width = [np.mean(found[..., -1] - found[..., 0]) for found in (one, at_end)]
    assert width[0] > 1.2 * width[1]
    late = result.mixture.quantiles(rows[480:], [1320], 24, moved=-480)
    assert np.mean(late[..., -1] - late[..., 0]) > 1.2 * width[1]


def test_factors_are_quantiles_of_what_was_reached():
    """Forecasts of a normal of half the true deviation need intervals twice as wide."""
    rng = np.random.default_rng(0)
    levels = np.array([NormalDist().inv_cdf(q) for q in QUANTILES])
    quantiles = np.broadcast_to(0.5 * levels, (400, 5, 2, len(QUANTILES)))
    factors = Judged.of(quantiles, rng.normal(size=(400, 5, 2)), np.arange(400)).factors()
    np.testing.assert_allclose(np.delete(factors, 5), 2.0, rtol=0.12)
    assert factors[5] == 1


def test_what_is_calibrated_on_few_alike_errors_covers_new_ones_as_promised():
    """A quantile of so few errors would cover less than its level: of fading weights some six windows are left."""
    levels, horizon, origins = np.array([NormalDist().inv_cdf(q) for q in QUANTILES]), 8, np.arange(0, 240, 2)
    steps = origins[:, None] + np.arange(horizon)
    noise = np.random.default_rng(0).normal(size=(400, 340))
    errors = lfilter([0.51**0.5], [1.0, -0.7], noise, axis=1)  # of deviation 1, neighbours alike
    quantiles = np.broadcast_to(levels, (*steps.shape, 1, len(QUANTILES)))
    covered = np.zeros(2)
    for one in errors:
        factors = Judged.of(quantiles, one[steps][..., None], origins + 5000).factors()
        new = np.abs(one[270:])
        covered += [np.mean(new < (levels * factors)[-2]), np.mean(new < (levels * factors)[-1])]
    np.testing.assert_allclose(covered / len(errors), [0.8, 0.95], atol=0.006)


def test_few_rows_widen_all_intervals_the_more_the_farther_ahead():
    """By 62 times the step over the rows to the power of 2.5; no step counts for more than the rows."""
    levels = np.array([NormalDist().inv_cdf(q) for q in QUANTILES])
    quantiles, truth = np.broadcast_to(levels, (2, 4, 1, len(QUANTILES))), np.zeros((2, 4, 1))
    factors = Judged.of(quantiles, truth, np.array([11, 12])).factors()
    np.testing.assert_allclose(factors[1:5], 1.0)  # too few values to judge by
    assert factors[0] > 1.0
    np.testing.assert_allclose(few_rows(16, 3), [1 + 62 / 1024, 1 + 124 / 1024, 1 + 186 / 1024])
    assert few_rows(4000, 100).max() < 1.001
    assert few_rows(8, 500)[-1] == few_rows(8, 8)[-1] == 1 + 62 / 8**1.5
    result = forecast_table(
        pd.DataFrame({"y": np.random.default_rng(0).normal(size=14).cumsum()}), 6, methods=("naive", "drift"), seconds=3
    )
    width = (result.quantile(0.9) - result.quantile(0.1))[:, 0]
    raw = result.mixture._uncalibrated(result.prepared.values, [14], 6)[0, :, 0]
    spread = (raw[:, -2] - raw[:, 1]) * result.choice.widening[1] * result.prepared.unit[0]
    np.testing.assert_allclose(width, spread * few_rows(14, 6), rtol=1e-6)


def test_a_method_that_runs_away_is_not_heard():
    result = forecast_table(waves(300, 2), 12, methods=("naive", "seasonal", "theta"))
    calm = result.mixture.quantiles(result.prepared.values, [300], 12)

    class Wild(Naive):
        def predict(self, values, origins, horizon):
            return super().predict(values, origins, horizon) * 1e9

    parts = (*result.mixture.parts, (Wild(), result.mixture.parts[0][1], None))
    weights = np.concatenate([result.mixture.weights, np.ones((1, 2))])
    disturbed = replace(result.mixture, parts=parts, weights=weights)
    np.testing.assert_allclose(disturbed.quantiles(result.prepared.values, [300], 12), calm)


class OfItsSeries(Naive):
    """Forecasts only as many series as it was fitted to, as networks do."""

    name = "of its series"

    def fit(self, values, horizon, seconds):
        self.width = values.shape[1]

    def predict(self, values, origins, horizon):
        assert values.shape[1] == self.width
        return super().predict(values, origins, horizon)


def test_a_method_too_slow_to_learn_anew_speaks_for_the_series_that_it_was_tested_on():
    table = np.insert(waves(300, 2), 1, 5.0, axis=1)
    found = judged(table, methods=[OfItsSeries()])
    assert found.columns.tolist() == [0, 2]
    found = replace(found, tested=(replace(found.tested[0], seconds=1e9),))
    mixture = final_mixture(found.prepared, found, choose(found), seconds=1)
    quantiles = found.prepared.restored(mixture.quantiles(found.prepared.values, [300], 12)[0])
    np.testing.assert_allclose(quantiles[:, 1], 5.0, rtol=1e-6)
    np.testing.assert_allclose(quantiles[:, [0, 2], MEDIAN], np.broadcast_to(table[-1, [0, 2]], (12, 2)), rtol=1e-5)
    assert (quantiles[:, [0, 2], 0] < quantiles[:, [0, 2], -1]).all()


def test_after_a_test_on_a_sample_every_series_is_learned(monkeypatch):
    monkeypatch.setattr("unipercept.forecasting.backtest.MAX_BYTES", 10_000)
    values = waves(400, 100)
    found = judged(values, methods=[OfItsSeries()])
    assert len(found.columns) < 100
    found = replace(found, tested=(replace(found.tested[0], seconds=1e9),))
    mixture = final_mixture(found.prepared, found, choose(found), seconds=1)
    assert mixture.parts[0][0].width == 100
    assert mixture.parts[0][2] is None
    assert np.isfinite(mixture.quantiles(found.prepared.values, [400], 12)).all()


def test_widening_keeps_the_median_and_the_order():
    quantiles = np.sort(np.random.default_rng(0).normal(size=(3, 4, 2, len(QUANTILES))), axis=-1)
    factors = np.linspace(3, 0.5, len(QUANTILES))
    wide = widened(quantiles, np.where(np.arange(len(QUANTILES)) == 5, 1.0, factors))
    assert (np.diff(wide, axis=-1) >= 0).all()


def test_a_method_that_cannot_learn_is_named_and_the_others_go_on():
    class Broken(Naive):
        name = "broken"

        def fit(self, values, horizon, seconds):
            raise InputError("it is Sunday")

    found = judged(waves(200, 1), methods=[Broken(), Naive()])
    assert found.failed == ("broken: it is Sunday",)
    assert [one.method.name for one in found.tested] == ["naive"]


def test_a_table_too_wide_for_memory_is_tested_on_a_sample(monkeypatch):
    monkeypatch.setattr("unipercept.forecasting.backtest.MAX_BYTES", 10_000)
    values = waves(400, 100)
    result = forecast_table(values, 12, methods=("naive", "seasonal"))
    assert len(result.backtest.columns) == 64
    assert result.values.shape == (12, 100)
    assert any("even sample of 64 of 100 series" in line for line in result.notices)
