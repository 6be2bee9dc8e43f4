"""Lines in closed form, their blend with networks, and intervals that follow the stream."""

import math
from dataclasses import replace

import pytest
import torch

from unipercept.forecasting.blend import Blend, _products, best_weights, blend
from unipercept.forecasting.lines import (
    AROUND,
    LineSettings,
    _cuts,
    _growing_sums,
    _solve,
    _sums,
    choose_lines,
    learned_again,
    lookbacks,
)
from unipercept.forecasting.network import SeriesForecast, SeriesForecaster
from unipercept.forecasting.rolling import follow
from unipercept.forecasting.settings import QUANTILES, ForecastConfig
from unipercept.forecasting.window_scores import score
from unipercept.forecasting.windows import Windows

LOOKBACK, CYCLE = 12, 6


def windows(values, first, last, horizon, features=None, together=False):
    """All windows of a TxV table whose future lies in rows [first, last)."""
    rows, variables = values.shape
    starts = torch.arange(first - LOOKBACK, last - horizon - LOOKBACK + 1)
    stride = torch.full_like(starts, rows)
    buffer = values.T.contiguous().flatten()
    return Windows(buffer, None, features, starts, starts, stride, variables, LOOKBACK, horizon, together)


@pytest.fixture
def table():
    """Three variables, each a cycle and a walk."""
    torch.manual_seed(0)
    t = torch.arange(400)
    cycle = torch.sin(2 * torch.pi * t / CYCLE)[:, None] * torch.tensor([1.0, 0.5, 2.0])
    return cycle + 0.1 * torch.randn(400, 3).cumsum(0)


def clock(rows=400):
    angle = 2 * torch.pi * torch.arange(rows) / CYCLE
    return torch.stack([angle.sin(), angle.cos()], 1)


def test_a_line_is_the_ridge_regression_around_its_start(table):
    part, steps = windows(table, LOOKBACK, 300, 4), range(1, 4)
    line = _solve(_sums(part, 0.5, steps), LineSettings("last", penalty=0.1, evenness=0.5), CYCLE, steps)
    batch = part.batch(torch.arange(len(part)))
    past, future = batch.values[:, :LOOKBACK, 0].double(), batch.target[:, 1:, 0].double()
    mean = past.mean(1, keepdim=True)
    scale = (past.var(1, keepdim=True, correction=0) + 0.01) ** 0.25
    x, y = (past - mean) / scale, (future - mean) / scale
    last = torch.zeros(LOOKBACK, 3, dtype=torch.float64)
    last[-1] = 1.0
    pull = (0.1 * x.square().sum(0).mean()).sqrt() * torch.eye(LOOKBACK, dtype=torch.float64)
    stacked = torch.cat([x, pull]), torch.cat([y, pull @ last])  # the penalty as rows of the regression
    torch.testing.assert_close(line.weight[0].double(), torch.linalg.lstsq(*stacked).solution, atol=1e-4, rtol=1e-3)


def test_without_a_penalty_of_its_own_a_variable_has_its_own_regression(table):
    steps, settings = range(4), LineSettings("cycle", penalty=1.0, evenness=0.0, own=1e-9, features=False)
    whole = _solve(_sums(windows(table, LOOKBACK, 300, 4), 0.0, steps), settings, CYCLE, steps)
    alone = windows(table[:, 1:2], LOOKBACK, 300, 4)
    single = _solve(_sums(alone, 0.0, steps), replace(settings, penalty=1e-9, own=math.inf), CYCLE, steps)
    batch = alone.batch(torch.arange(50))
    as_second = replace(batch, identity=torch.ones_like(batch.identity))
    torch.testing.assert_close(whole(as_second), single(batch), atol=1e-3, rtol=1e-3)


def test_an_infinite_penalty_repeats_the_last_value(table):
    part, steps = windows(table, LOOKBACK, 300, 4), range(4)
    line = _solve(_sums(part, 0.0, steps), LineSettings("last", penalty=math.inf), CYCLE, steps)
    batch = part.batch(torch.arange(len(part)))
    torch.testing.assert_close(line(batch), batch.values[:, LOOKBACK - 1 : LOOKBACK].expand(-1, 4, -1))


def test_what_is_known_in_advance_is_used_where_it_helps(table):
    day = torch.tensor([3.0, -2.0, 1.0, 0.0, 4.0, -6.0]).repeat(67)[:400, None]
    noisy = 0.2 * torch.randn(400, 3) + day.roll(1, 0) * torch.where(torch.rand(400, 1) < 0.5, 1.0, 0.0)
    train, held = (windows(noisy, *rows, 4, clock()) for rows in ((LOOKBACK, 280), (280, 400)))
    for line in choose_lines(train, held, CYCLE, range(4)):
        bare = choose_lines(replace(train, features=None), replace(held, features=None), CYCLE, range(4))
        batch = held.batch(torch.arange(len(held)))
        error = [
            (one(batch) - batch.target).square().mean() for one in (line, bare[AROUND.index(line.settings.around)])
        ]
        assert error[0] <= error[1] + 1e-6


def test_a_line_returns_to_the_long_run_mean_where_series_do_and_not_where_they_walk():
    torch.manual_seed(0)
    noise = torch.randn(1200, 3)
    returning, walking = noise.clone(), noise.cumsum(0)
    for t in range(1, 1200):
        returning[t] += 0.97 * returning[t - 1]  # half-way home after 23 steps
    levels = []
    for values in (returning, walking / walking.std(0)):
        train, held = (windows(values, *rows, 24) for rows in ((LOOKBACK, 900), (900, 1200)))
        line = choose_lines(train, held, CYCLE, range(12, 24), years=True)[AROUND.index("last")]
        levels.append(0.0 if line.level is None else float(line.level.mean()))
    assert -0.5 < levels[0] < -0.1  # 1 - 0.97^19 is 0.44, of which a penalty leaves a part
    assert abs(levels[1]) < 0.05


def test_what_an_origin_learns_from_ends_before_it(table):
    training = windows(table, LOOKBACK, 400, 8)
    cuts = _cuts(training)
    assert len(cuts) == 4
    for end, later in cuts:
        first_forecast = int(later.starts[0]) + LOOKBACK
        assert int(training.starts[end - 1]) + LOOKBACK + 8 == first_forecast  # the row after the last that is learned
    steps, ends = range(8), [end for end, _ in cuts]
    for sums, end in zip(_growing_sums(training, ends, 0.5, steps), [*ends, len(training.starts)], strict=True):
        part = windows(table, LOOKBACK, int(training.starts[end - 1]) + LOOKBACK + 8, 8)
        torch.testing.assert_close(sums.left, _sums(part, 0.5, steps).left)


def test_lines_look_back_over_halves_that_hold_four_cycles():
    assert lookbacks(512, 24) == [512, 256, 128]
    assert lookbacks(96, 24) == [96]
    assert lookbacks(512, 144) == [512]


def test_a_line_of_a_shorter_look_back_sees_the_last_steps_alone(table):
    part, steps = windows(table, LOOKBACK, 300, 4, clock()), range(4)
    short, settings = part.seeing(6), LineSettings("last", features=True, own=1.0)
    line = _solve(_sums(short, 0.5, steps), settings, CYCLE, steps)
    numbers = torch.arange(len(part))
    torch.testing.assert_close(line(part.batch(numbers)), line(short.batch(numbers)))
    torch.testing.assert_close(learned_again(line, part, CYCLE, steps).weight, line.weight)
    assert torch.equal(short.batch(numbers).target, part.batch(numbers).target)


def test_variables_together_or_one_by_one_are_forecast_alike(table):
    parts = [windows(table, LOOKBACK, 300, 4, clock(), together) for together in (False, True)]
    settings = LineSettings("cycle", own=0.1, features=True, level=1.0)
    line = _solve(_sums(parts[0], 0.5, range(4)), settings, CYCLE, range(4))
    alone, whole = parts[0].batch(torch.arange(30)), parts[1].batch(torch.arange(10))
    torch.testing.assert_close(line(alone).reshape(10, 3, 4).transpose(1, 2), line(whole), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("own", [0.1, math.inf])
def test_every_series_goes_through_the_weights_of_its_variable_in_whatever_order_they_come(table, own):
    part = windows(table, LOOKBACK, 300, 4, clock())
    line = _solve(_sums(part, 0.5, range(4)), LineSettings("cycle", own=own, features=True, level=1.0), CYCLE, range(4))
    batch = part.batch(torch.tensor([5, 0, 3, 7, 6, 9, 300, 2, 12]))  # of variable 0 six, of 1 and 2 the rest
    for i, v in enumerate(batch.identity[:, 0].tolist()):
        past = batch.values[i, :LOOKBACK, 0].double()
        mean, deviation = past.mean(), (past.var(correction=0) + 0.01).sqrt()
        expected = (past - mean) @ line.weight[v if len(line.weight) > 1 else 0].double() + mean * (1 + line.level[v])
        expected = expected + deviation * (batch.features[i, LOOKBACK].double() @ line.features[v].double())
        torch.testing.assert_close(line(batch)[i, :, 0].double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("together", [False, True])
def test_error_products_are_means_over_each_half_of_validation(table, together):
    held, steps = windows(table, LOOKBACK, 301, 4, None, together), range(1, 4)
    line = _solve(_sums(windows(table, LOOKBACK, 300, 4), 0.5, steps), LineSettings("cycle", own=0.1), CYCLE, steps)
    config = ForecastConfig(lookback=LOOKBACK, horizon=4, period=CYCLE, patch=2, dim=8, blocks=1, kernel_size=3)
    network = SeriesForecaster(config, 3).eval()
    members = Blend((network,), ((line,),), (steps,), torch.ones(1, 2))
    halves = _products(members, 0, steps, held)
    for found, numbers in zip(halves, torch.arange(len(held)).chunk(2), strict=True):
        batch = held.batch(numbers)
        with torch.no_grad():
            points = torch.stack([line(batch), batch.forecast(network).point[:, 1:]])
        errors = (points - batch.target[:, 1:]).flatten(1).double()
        torch.testing.assert_close(found, errors @ errors.T / errors.shape[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("members", [2, 3, 11])
def test_no_other_weights_blend_better(members):
    torch.manual_seed(members)
    errors = torch.randn(members, 500, dtype=torch.float64) + torch.randn(500, dtype=torch.float64)
    products = errors @ errors.T / 500
    best = best_weights(products, 0.02)
    assert (best >= 0).all()
    assert abs(float(best.sum()) - 1) < 1e-9
    pulled = products + 0.02 * products.diagonal().mean() * torch.eye(members, dtype=torch.float64)
    others = torch.distributions.Dirichlet(torch.ones(members, dtype=torch.float64)).sample((300,))
    assert ((others @ pulled * others).sum(1) >= best @ pulled @ best - 1e-12).all()


def test_members_that_are_alike_are_blended_as_one():
    same, other = torch.randn(2, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = torch.stack([same, same, other])
    weight = best_weights(errors @ errors.T / 500)
    alone = best_weights(errors[1:] @ errors[1:].T / 500)
    torch.testing.assert_close(weight[:2].sum(), alone[0])
    torch.testing.assert_close(weight[2], alone[1])


def test_a_blend_takes_each_stretch_from_its_own_lines_and_keeps_quantiles_in_order(table):
    train, held = ([windows(table, *rows, h) for h in (3, 8)] for rows in ((LOOKBACK, 280), (280, 400)))
    stretches = (range(3), range(3, 8))
    lines = [choose_lines(a, b, CYCLE, steps) for a, b, steps in zip(train, held, stretches, strict=True)]
    config = ForecastConfig(lookback=LOOKBACK, horizon=8, period=CYCLE, patch=2, dim=8, blocks=1, kernel_size=3)
    found = blend([SeriesForecaster(config, 3).eval()], lines, held)
    batch = held[1].batch(torch.arange(20))
    forecast = found(batch)
    network = batch.forecast(found.networks[0]).point
    second = [line(batch) for line in lines[1]]
    expected = sum(w * part for w, part in zip(found.weights[1], [*second, network[:, 3:]], strict=True))
    torch.testing.assert_close(forecast.point[:, 3:], expected)
    assert (forecast.quantiles.diff(dim=-1) >= 0).all()
    short = held[0].batch(torch.arange(20))
    torch.testing.assert_close(found(short).point, forecast.point[:, :3])


@pytest.mark.parametrize("together", [False, True])
def test_a_batch_too_large_for_memory_goes_through_the_network_in_parts(table, together, monkeypatch):
    config = ForecastConfig(lookback=LOOKBACK, horizon=8, period=CYCLE, patch=2, dim=8, blocks=1, kernel_size=3)
    network = SeriesForecaster(config.changed(mixing=together), 3, 2).eval()
    for weight in (network.head.weight, network.spread.weight, network.effect, network.mix):
        if weight is not None:
            torch.nn.init.normal_(weight, std=0.1)
    batch = windows(table, LOOKBACK, 300, 8, clock(), together).batch(torch.arange(25))
    seen, forward = [], network.forward
    monkeypatch.setattr(network, "forward", lambda x, *rest, **more: seen.append(len(x)) or forward(x, *rest, **more))
    with torch.no_grad():
        whole = batch.forecast(network)
        monkeypatch.setattr("unipercept.forecasting.windows.AT_ONCE", 11 * network.widest * (3 if together else 1))
        parts = batch.forecast(network)
    assert seen == [25, 11, 11, 3]
    torch.testing.assert_close(parts, whole)
    assert batch.forecast(network).point.requires_grad
    assert seen[-1] == 25  # with gradients all is held anyway


def narrow(batch):
    """Zero, with intervals of a normal of deviation 1."""
    spread = torch.special.ndtri(torch.tensor(QUANTILES)).expand(*batch.target.shape, -1)
    return SeriesForecast(torch.zeros_like(batch.target), spread)


def test_intervals_widen_when_the_series_becomes_wilder():
    torch.manual_seed(0)
    values = torch.randn(3000, 2)
    values[1000:] *= 2
    stream = windows(values, LOOKBACK, 3000, 8)
    rolling = follow(narrow, stream, torch.ones(8, len(QUANTILES)), QUANTILES, every=4)
    late = stream.batch(torch.arange(2 * 2000, len(stream)))
    found = rolling.around(narrow)(late).quantiles
    covered = ((found[..., 1] < late.target) & (late.target < found[..., -2])).float().mean()
    assert abs(float(covered) - 0.8) < 0.02
    assert (rolling.factors[:240].mean((0, 1, 2)) - 1).abs().max() < 0.1  # what was right stays right on the whole


def test_coverage_holds_though_calm_and_wild_stretches_alternate_while_a_forecast_waits():
    torch.manual_seed(0)
    rows = torch.arange(6000)
    values = torch.randn(6000, 2) * torch.where(rows % 400 < 200, 1.0, 2.0)[:, None]  # half as long as the lead
    stream = windows(values, LOOKBACK, 6000, 200)
    rolling = follow(narrow, stream, torch.ones(8, len(QUANTILES)), QUANTILES, every=10)
    late = stream.batch(torch.arange(2 * 2000, len(stream), 3))
    found = rolling.around(narrow)(late).quantiles
    for low, high, share in ((1, -2, 0.8), (0, -1, 0.95)):
        covered = ((found[..., low] < late.target) & (late.target < found[..., high])).float().mean()
        assert abs(float(covered) - share) < 0.02


def test_nothing_that_comes_after_a_forecast_changes_its_intervals():
    torch.manual_seed(0)
    values, horizon, row = torch.randn(600, 2), 8, 300
    other = values.clone()
    other[row:] += 50.0
    rollings = [
        follow(narrow, windows(v, LOOKBACK, 600, horizon), torch.ones(8, len(QUANTILES)), QUANTILES, every=3)
        for v in (values, other)
    ]
    until = int((rollings[0].rows <= row).sum())
    assert torch.equal(rollings[0].factors[:until], rollings[1].factors[:until])
    assert not torch.equal(rollings[0].factors[until:], rollings[1].factors[until:])


@pytest.mark.parametrize("variables", [1, 3, 6, 7])
@pytest.mark.parametrize("most", [5, 40, 97, 10_000])
def test_a_sample_of_windows_is_of_all_variables_alike_and_of_all_rows(variables, most):
    held = windows(torch.randn(400, variables), LOOKBACK, 400, 8)
    numbers = held.sample(most)
    counts = torch.bincount(numbers % variables, minlength=variables)
    assert counts.max() - counts.min() <= 1  # a step of 21 windows met the first of seven variables alone
    assert len(numbers) <= max(most * 2, 1) or most >= len(held)
    rows = (numbers // variables).unique()
    assert rows[-1] >= len(held.starts) * (1 - 1.5 / len(numbers)) - 1
    assert torch.equal(held.sample(None), torch.arange(len(held)))


def test_windows_of_all_variables_are_sampled_by_row():
    held = windows(torch.randn(400, 6), LOOKBACK, 400, 8, together=True)
    assert torch.equal(held.sample(40), torch.arange(0, len(held), len(held) // 40))


def test_scores_of_a_part_of_the_windows_are_of_every_variable():
    torch.manual_seed(0)
    held = windows(torch.randn(600, 3) * torch.tensor([1.0, 3.0, 9.0]), LOOKBACK, 600, 8)
    zero = lambda batch: SeriesForecast(torch.zeros_like(batch.target), None)  # noqa: E731
    capped, whole = (score(zero, held, QUANTILES, cap=cap).mse for cap in (len(held) // 6, None))
    assert abs(capped / whole - 1) < 0.2  # of the first variable alone it would be a thirtieth
