"""Scores equal slow formulas written out here, to 1e-12, and their identities hold."""

from itertools import combinations, pairwise

import numpy as np
import pytest

from unipercept.app.forecaster import score_formulas as formulas
from unipercept.app.forecaster.scores import ScoreBoard, bootstrap_interval
from unipercept.errors import InputError

LATITUDE, LONGITUDE = np.linspace(90, -90, 9), np.arange(16) * 22.5
CHANNELS = ("z500", "u850", "v850")
SHAPE = (3, 9, 16)
LEAD = np.timedelta64(6, "h")


def weight_of(i: int) -> float:
    """WeatherBench 2's cell area of a row, written out."""
    rising = np.deg2rad(LATITUDE[::-1])
    bounds = [-np.pi / 2, *((rising[1:] + rising[:-1]) / 2), np.pi / 2]
    k = len(LATITUDE) - 1 - i
    return float(np.sin(bounds[k + 1]) - np.sin(bounds[k]))


def slow_mean(field: np.ndarray, inside: np.ndarray | None = None) -> float:
    total = weight = 0.0
    for i in range(field.shape[0]):
        for j in range(field.shape[1]):
            if inside is None or inside[i, j]:
                total += weight_of(i) * field[i, j]
                weight += weight_of(i)
    return total / weight


@pytest.fixture
def fields() -> np.ndarray:
    """Forecast, truth and climate of four initial times."""
    return np.random.default_rng(0).normal(size=(4, 3, *SHAPE)) * 100 + 5e4


def board() -> ScoreBoard:
    return ScoreBoard(CHANNELS, LATITUDE, LONGITUDE, boxes={"europe": (35, 75, -12.5, 42.5)})


def test_deterministic_scores_are_the_formulas_written_out(fields: np.ndarray) -> None:
    scores = board()
    for i, (f, o, c) in enumerate(fields):
        scores.add(np.datetime64("2020-01-01") + np.timedelta64(i, "D"), LEAD, f, o, c)
    table = scores.table().isel(lead=0)
    f, o, c = fields[:, 0], fields[:, 1], fields[:, 2]
    for region, inside in formulas.region_masks(LATITUDE, LONGITUDE, {"europe": (35, 75, -12.5, 42.5)}).items():
        for v, channel in enumerate(CHANNELS):
            found = table.sel(region=region, channel=channel)
            mean = [[slow_mean(x, inside) for x in stack[:, v]] for stack in ((f - o) ** 2, abs(f - o), f - o)]
            expected = {"rmse": np.sqrt(np.mean(mean[0])), "mae": np.mean(mean[1]), "bias": np.mean(mean[2])}
            ratio = [
                slow_mean(a[v] * b[v], inside) / np.sqrt(slow_mean(a[v] ** 2, inside) * slow_mean(b[v] ** 2, inside))
                for a, b in zip(f - c, o - c, strict=True)
            ]
            expected["acc"] = np.mean(ratio)
            expected["activity"] = np.sqrt(np.mean([slow_mean(a[v] ** 2, inside) for a in f - c]))
            for name, value in expected.items():
                assert float(found[name]) == pytest.approx(value, rel=1e-12, abs=1e-12), name
    wind = np.sqrt(np.mean([slow_mean(((a - b)[1:] ** 2).sum(0)) for a, b in zip(f, o, strict=True)]))
    assert float(table["vector_wind_rmse"].sel(region="global", wind="wind850")) == pytest.approx(wind, rel=1e-12)


def test_the_root_is_taken_after_the_mean_over_times(fields: np.ndarray) -> None:
    scores = board()
    for i, error in enumerate((1.0, 3.0)):
        scores.add(np.datetime64("2020-01-01") + np.timedelta64(i, "D"), LEAD, fields[0, 1] + error, fields[0, 1])
    np.testing.assert_allclose(scores.table()["rmse"].values, np.sqrt(5), rtol=1e-9)


def test_a_pole_row_counts_a_little() -> None:
    weights = formulas.region_weights(LATITUDE, [np.ones((9, 16), bool)])[0].reshape(9, 16)
    assert 0 < weights[0, 0] < weights[4, 0] / 10
    assert weights.sum() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("n_members", [2, 5])
def test_ensemble_scores_are_the_formulas_written_out(fields: np.ndarray, n_members: int) -> None:
    random = np.random.default_rng(1)
    members, truth = random.normal(size=(n_members, *SHAPE)), random.normal(size=SHAPE)
    scores = board()
    scores.add("2020-01-01", LEAD, members, truth)
    found = scores.table().isel(lead=0).sel(region="global")
    for v, channel in enumerate(CHANNELS):
        x, o = members[:, v], truth[v]
        pairs = sum(abs(a - b) for a, b in combinations(x, 2)) * 2 / (n_members * (n_members - 1))
        crps = slow_mean(abs(x - o).mean(0) - pairs / 2)
        variance = slow_mean(((x - x.mean(0)) ** 2).sum(0) / (n_members - 1))
        error = slow_mean((x.mean(0) - o) ** 2)

        def norm(a: np.ndarray) -> float:
            return np.sqrt(slow_mean(a**2))

        energy = np.mean([norm(a - o) for a in x]) - np.mean([norm(a - b) for a, b in pairwise(x)]) / 2
        expected = {
            "crps": crps,
            "spread": np.sqrt(variance),
            "rmse": np.sqrt(error),
            "spread_skill": np.sqrt((1 + 1 / len(members)) * variance / error),
            "debiased_mse": error - variance / n_members,
            "energy_score": energy,
        }
        for name, value in expected.items():
            assert float(found[name].sel(channel=channel)) == pytest.approx(value, rel=1e-12, abs=1e-12), name


def test_overall_scores_take_each_channel_in_its_standard_deviation() -> None:
    random = np.random.default_rng(4)
    scores, pairs = board(), []
    for day in ("2020-01-01", "2020-01-02", "2020-01-03"):
        members, truth = random.normal(3, 2, (4, *SHAPE)), random.normal(3, 2, SHAPE)
        scores.add(day, LEAD, members, truth)
        pairs.append((members, truth))
    found = scores.table().isel(lead=0).sel(region="global")
    ratios, spreads = [], []
    for v in range(len(CHANNELS)):
        mean = np.mean([slow_mean(o[v]) for _, o in pairs])
        variance = np.mean([slow_mean(o[v] ** 2) for _, o in pairs]) - mean**2
        assert float(found["truth_std"][v]) == pytest.approx(np.sqrt(variance), rel=1e-12)
        ratios.append(np.mean([slow_mean((x[:, v].mean(0) - o[v]) ** 2) for x, o in pairs]) / variance)
        spreads.append(np.mean([slow_mean(x[:, v].var(0, ddof=1)) for x, _ in pairs]) / variance)
    assert float(found["overall_rmse"]) == pytest.approx(np.sqrt(np.mean(ratios)), rel=1e-12)
    assert float(found["overall_spread_skill"]) == pytest.approx(
        np.sqrt(5 / 4 * np.mean(spreads) / np.mean(ratios)), rel=1e-12
    )


def test_ranks_of_a_calibrated_ensemble_are_even() -> None:
    random = np.random.default_rng(2)
    counts = sum(
        formulas.rank_counts(random.normal(size=(4, 1, 40, 40)), random.normal(size=(1, 40, 40)), random)
        for _ in range(10)
    )
    np.testing.assert_allclose(counts[0] / counts.sum(), 0.2, atol=0.012)  # 4 standard errors


def test_ranks_of_equal_values_are_shared_out() -> None:
    counts = formulas.rank_counts(np.zeros((3, 1, 60, 60)), np.zeros((1, 60, 60)), np.random.default_rng(0))
    np.testing.assert_allclose(counts[0] / 3600, 0.25, atol=0.03)


def test_a_truth_below_all_members_has_the_first_of_the_ranks() -> None:
    random = np.random.default_rng(0)
    counts = formulas.rank_counts(np.ones((3, 2, 4, 5)), np.stack([np.zeros((4, 5)), np.full((4, 5), 2.0)]), random)
    assert counts.tolist() == [[20, 0, 0, 0], [0, 0, 0, 20]]


def test_one_member_has_the_mean_absolute_error_as_crps(fields: np.ndarray) -> None:
    weights = formulas.region_weights(LATITUDE, [np.ones((9, 16), bool)])
    alone = formulas.probabilistic(fields[0, :1], fields[0, 1], weights)
    np.testing.assert_allclose(
        alone["crps"], formulas.deterministic(fields[0, 0], fields[0, 1], None, weights)["mae"], rtol=1e-13
    )


def test_spectra_add_up_to_the_mean_square(fields: np.ndarray) -> None:
    rows = np.array([weight_of(i) for i in range(9)])
    power = formulas.zonal_spectrum(fields[0, 0], rows)
    np.testing.assert_allclose(power.sum(-1), [slow_mean(f**2) for f in fields[0, 0]], rtol=1e-12)


def test_a_smoothed_forecast_shows_in_activity_and_spectrum(fields: np.ndarray) -> None:
    truth, climate = fields[0, 1], np.full(SHAPE, 5e4)
    smooth = climate + (truth - climate) / 2
    scores = board()
    scores.add("2020-01-01", LEAD, smooth, truth, climate)
    table = scores.table().isel(lead=0)
    np.testing.assert_allclose(table["activity"] / table["truth_activity"], 0.5, rtol=1e-12)
    np.testing.assert_allclose(table["spectral_distance_db"], 10 * np.log10(4), rtol=1e-9)


def test_the_gaussian_crps_is_its_integral() -> None:
    from math import erf

    x = np.linspace(-12, 14, 200001)
    cumulative = 0.5 * (1 + np.vectorize(erf)((x - 1.0) / (1.7 * np.sqrt(2))))
    integral = np.trapezoid((cumulative - (x >= 0.4)) ** 2, x)
    assert float(formulas.gaussian_crps(1.0, 1.7, 0.4)) == pytest.approx(integral, rel=1e-4)


def test_seeps_is_the_matrix_cell_by_cell() -> None:
    random = np.random.default_rng(3)
    rain, seen = random.exponential(2e-3, (2, 9, 16)) * (random.random((2, 9, 16)) < 0.6)
    p1, heavy = random.uniform(0.05, 0.9, (9, 16)), np.full((9, 16), 2e-3)
    p1[4, :2] = 0.1, 0.85  # the bounds count
    total = weight = 0.0
    for i in range(9):
        for j in range(16):
            p = p1[i, j]
            if not 0.1 <= p <= 0.85:
                continue
            matrix = [
                [0, 1 / (1 - p), 4 / (1 - p)],
                [1 / p, 0, 3 / (1 - p)],
                [1 / p + 3 / (2 + p), 3 / (2 + p), 0],
            ]
            f, o = ((0 if x < 2.5e-4 else 2 if x >= 2e-3 else 1) for x in (rain[i, j], seen[i, j]))
            total += weight_of(i) * matrix[f][o] / 2
            weight += weight_of(i)
    weights = formulas.region_weights(LATITUDE, [np.ones((9, 16), bool)])
    assert formulas.seeps(rain, seen, p1, heavy, weights)[0] == pytest.approx(total / weight, rel=1e-12)


def test_a_box_across_greenwich_holds_both_sides() -> None:
    mask = formulas.region_masks(LATITUDE, LONGITUDE, {"europe": (35, 75, -22.5, 42.5)})["europe"]
    assert LATITUDE[mask.any(axis=1)].tolist() == [67.5, 45]
    assert LONGITUDE[mask.any(axis=0)].tolist() == [0, 22.5, 337.5]
    with pytest.raises(InputError, match="holds no cell"):
        formulas.region_masks(LATITUDE, LONGITUDE, {"none": (1, 2, 3, 4)})


@pytest.mark.parametrize(("west", "east"), [(-180, 180), (0, 360), (-200, 200)])
def test_a_belt_is_a_box_of_all_longitudes(west: float, east: float) -> None:
    mask = formulas.region_masks(LATITUDE, LONGITUDE, {"arctic": (60, 90, west, east)})["arctic"]
    assert mask.sum() == 16 * (LATITUDE >= 60).sum()


def test_cells_on_the_edge_of_a_box_belong_to_it() -> None:
    latitude, longitude = np.arange(30, 41) / 10, np.arange(200, 221) / 10
    for kind in (np.float64, np.float32):  # in which 19.9 is less than 19.9
        mask = formulas.region_masks(latitude.astype(kind), longitude.astype(kind), {"box": (3.1, 3.7, 20.1, 21.3)})
        assert mask["box"].sum() == 7 * 13, kind


def test_a_regional_grid_has_no_spectra_and_its_own_regions() -> None:
    scores = ScoreBoard(("z500",), np.arange(55, 29, -2.5), np.arange(-15, 16, 2.5))
    scores.add("2020-01-01", LEAD, np.ones((1, 11, 13)), np.zeros((1, 11, 13)))
    table = scores.table()
    assert "spectrum" not in table
    assert list(table["region"].values) == ["global", "extratropics", "northern-hemisphere"]


def test_states_may_come_in_any_order(fields: np.ndarray) -> None:
    scores, days = board(), [np.datetime64("2020-01-02"), np.datetime64("2020-01-01")]
    for i, (day, hours) in enumerate((day, hours) for day in days for hours in (12, 6)):
        scores.add(day, np.timedelta64(hours, "h"), fields[0, 1] + i, fields[0, 1])
    values = scores.values()
    assert values["time"].values.astype("datetime64[D]").tolist() == sorted(day.item() for day in days)
    assert values["lead"].values.tolist() == [6, 12]
    np.testing.assert_allclose(values["mae"].sel(region="global", channel="z500"), [[3, 2], [1, 0]], rtol=1e-9)


def test_a_wind_needs_both_components(fields: np.ndarray) -> None:
    scores = ScoreBoard(("z500", "u850", "v500"), LATITUDE, LONGITUDE)
    scores.add("2020-01-01", LEAD, fields[0, 0], fields[0, 1])
    assert "vector_wind_rmse" not in scores.table()


def test_a_forecast_of_the_climate_has_no_anomaly_to_correlate(fields: np.ndarray) -> None:
    weights = formulas.region_weights(LATITUDE, [np.ones((9, 16), bool)])
    with np.errstate(all="raise"):
        found = formulas.deterministic(fields[0, 2], fields[0, 1], fields[0, 2], weights)
    assert np.isnan(found["acc"]).all()
    assert not found["activity_squared"].any()


def test_missing_cells_and_other_shapes_are_refused(fields: np.ndarray) -> None:
    broken = fields[0, 0].copy()
    broken[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="forecast has missing or infinite cells in z500, 6 h from 2020-01-01T00:00"):
        board().add("2020-01-01", LEAD, broken, fields[0, 1])
    members = fields[:, 0].copy()
    members[2, 1, 3, 3] = np.inf
    with pytest.raises(InputError, match="forecast has missing or infinite cells in u850"):
        board().add("2020-01-01", LEAD, members, fields[0, 1])
    with pytest.raises(InputError, match="truth has missing"):
        board().add("2020-01-01", LEAD, fields[0, 1], np.where(np.isnan(broken), np.inf, broken))
    with pytest.raises(InputError, match="truth holds no value of u850"):
        board().add("2020-01-01", LEAD, fields[0, 1], np.stack([broken[0], np.full(SHAPE[1:], np.nan), broken[2]]))
    with pytest.raises(InputError, match="truth must be"):
        board().add("2020-01-01", LEAD, fields[0, 1], broken[:1])


def test_cells_without_a_truth_do_not_count_in_any_score(fields: np.ndarray) -> None:
    """A hole in the truth, whatever the forecast says there: every score is that of the other cells."""
    members, truth, land = fields[:, 0], fields[0, 1], np.zeros(SHAPE, bool)
    land[0, 2:5, 3:9] = True
    weights = formulas.region_weights(LATITUDE, [np.ones(SHAPE[1:], bool)])
    sea = np.where(land[0], 0, weights[0].reshape(SHAPE[1:]))[None] / weights[0][~land[0].ravel()].sum()
    scores, without = board(), board()
    scores.add("2020-01-01", LEAD, members, np.where(land, np.nan, truth))
    without.add("2020-01-01", LEAD, members, truth)
    found, complete = scores.table().isel(lead=0), without.table().isel(lead=0)
    error = members.mean(0) - truth
    shares = (members > 5e4).mean(0), truth > 5e4
    wanted = {
        "mae": abs(error),
        "crps": abs(members - truth).mean(0) - sum(abs(a - b) for a, b in combinations(members, 2)) / 12,
        "debiased_mse": error**2 - members.var(0, ddof=1) / 4,
    }
    found_here, complete = found.sel(region="global"), complete.sel(region="global", channel=["u850", "v850"])
    for name, field in wanted.items():
        assert float(found_here[name].sel(channel="z500")) == pytest.approx((field[0] * sea).sum(), rel=1e-12)
        np.testing.assert_allclose(found_here[name].sel(channel=["u850", "v850"]), complete[name], rtol=1e-12)
    np.testing.assert_allclose(found_here["coverage"], [1 - weights[0][land[0].ravel()].sum(), 1, 1], rtol=1e-15)
    np.testing.assert_array_equal(found["rank_counts"].sum("rank"), (~land).sum((1, 2)))
    expected = (((shares[0] - shares[1]) ** 2)[0] * sea).sum()
    assert formulas.brier(members, np.where(land, np.nan, truth), 5e4, weights)[0, 0] == pytest.approx(
        expected, rel=1e-12
    )


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        low, high = bootstrap_interval(random.normal(size=60), lambda x: x.mean(0), n_draws=200, block=1, seed=trial)
        covered += int(low < 0 < high)
    assert 85 <= covered <= 100


@pytest.mark.parametrize(("n", "level", "n_draws"), [(1, 0.95, 10), (5, 1.0, 10), (5, 0.0, 10), (5, 0.95, 0)])
def test_an_interval_of_nothing_is_refused(n: int, level: float, n_draws: int) -> None:
    with pytest.raises(InputError, match="needs 2 samples"):
        bootstrap_interval(np.arange(float(n)), lambda x: x.mean(0), level=level, n_draws=n_draws)


def test_blocks_widen_the_interval_of_correlated_samples() -> None:
    samples = np.repeat(np.random.default_rng(0).normal(size=20), 10)
    width = [np.subtract(*bootstrap_interval(samples, lambda x: x.mean(0), block=b)[::-1]) for b in (1, 20)]
    assert width[1] > 2 * width[0]


def test_ignorance_is_the_logarithm_of_what_was_said_of_what_came_true() -> None:
    members = np.array([0.0, 1.0, 2.0, 3.0])[:, None, None, None] * np.ones((4, 1, 2, 2))
    truth, everywhere = np.array([[[5.0, 5.0], [-5.0, 5.0]]]), np.full((1, 4), 0.25)
    expected = -(3 * np.log(0.25) + np.log(0.75)) / 4  # one of four lies above 2.5
    assert formulas.ignorance(members, truth, 2.5, everywhere)[0, 0] == pytest.approx(expected, rel=1e-12)
    # No member said 3.5, in a cell of the second region.
    weights = np.array([[0.0, 0.5, 0.5, 0.0], [0.25, 0.25, 0.25, 0.25]])
    truth = np.array([[[5.0, 1.0], [1.0, 1.0]]])
    assert formulas.ignorance(members, truth, 3.5, weights)[:, 0].tolist() == [0.0, np.inf]


def test_brier_is_the_squared_error_of_the_share_above():
    members = np.array([0.0, 1.0, 2.0, 3.0])[:, None, None, None] * np.ones((4, 1, 2, 2))
    truth, everywhere = np.array([[[5.0, 5.0], [-5.0, 5.0]]]), np.full((1, 4), 0.25)
    expected = (3 * 0.75**2 + 0.25**2) / 4  # one of four lies above 2.5
    assert formulas.brier(members, truth, 2.5, everywhere)[0, 0] == pytest.approx(expected, rel=1e-12)


def test_what_equals_a_threshold_does_not_exceed_it():
    members = np.array([2.0, 2.0, 2.0, 3.0])[:, None, None, None] * np.ones((4, 1, 1, 2))
    truth, everywhere = np.array([[[2.0, 3.0]]]), np.full((1, 2), 0.5)
    assert formulas.brier(members, truth, 2.0, everywhere)[0, 0] == pytest.approx((0.25**2 + 0.75**2) / 2)
    assert formulas.ignorance(members, truth, 2.0, everywhere)[0, 0] == pytest.approx(-np.log(0.75 * 0.25) / 2)


def test_rps_of_many_thresholds_is_the_crps_of_the_step_function() -> None:
    random = np.random.default_rng(0)
    members, truth = random.normal(size=(5, 2, 3, 4)), random.normal(size=(2, 3, 4))
    spacing, weights = 1e-3, np.full((1, 12), 1 / 12)
    found = spacing * formulas.ranked_probability(members, truth, np.arange(-6, 6, spacing), weights)
    pairs = abs(members[:, None] - members[None]).mean((0, 1))
    expected = (abs(members - truth).mean(0) - pairs / 2).reshape(2, -1).mean(1)
    assert np.allclose(found[0], expected, atol=2 * spacing)


def test_normal_terciles_part_a_normal_climate_in_three() -> None:
    low, high = formulas.normal_thresholds(np.full(1, 10.0), np.full(1, 2.0), [1 / 3, 2 / 3])
    drawn = np.random.default_rng(0).normal(10, 2, 100_000)
    assert [np.mean(drawn < low), np.mean(drawn < high)] == pytest.approx([1 / 3, 2 / 3], abs=5e-3)


def test_land_counts_by_its_share_of_each_cell() -> None:
    latitude, longitude = np.array([45.0, -45.0]), np.array([0.0, 180.0])
    land = np.array([[1.0, 0.5], [0.0, 0.0]])
    masks = formulas.region_masks(latitude, longitude, shares={"land": land})
    weights = formulas.region_weights(latitude, list(masks.values()))[list(masks).index("land")]
    assert np.allclose(weights, [2 / 3, 1 / 3, 0, 0])
    for wrong, message in (
        (land[:1], "must be 2x2"),
        (land * 2, "shares from 0 to 1"),
        (land * 0, "not all of them 0"),
    ):
        with pytest.raises(InputError, match=message):
            formulas.region_masks(latitude, longitude, shares={"land": wrong})
