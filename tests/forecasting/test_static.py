"""Static attributes of series: found or named in long format, as numbers, in the network, and at a later forecast."""

import numpy as np
import pandas as pd
import pytest

from unipercept.errors import InputError
from unipercept.forecasting.attributes import MOST_CATEGORIES, Attributes
from unipercept.forecasting.estimator import TableForecaster
from unipercept.forecasting.learner import NetworkForecaster
from unipercept.forecasting.prepare import prepare
from unipercept.forecasting.settings import ForecastConfig

SMALL = ForecastConfig(dim=8, blocks=1, kernel_size=5, epochs=1, lookback=21, patch=1)


def stores(rows=40, n=6, seed=0) -> pd.DataFrame:
    """Promotions double the sales of malls and do nothing to kiosks."""
    rng = np.random.default_rng(seed)
    parts = []
    for i in range(n):
        promotion = (rng.random(rows) < 0.2).astype(float)
        units = 10 + 3 * np.sin(np.arange(rows) * 2 * np.pi / 7) + 8 * promotion * (i % 2) + rng.normal(size=rows)
        parts.append(
            pd.DataFrame(
                {
                    "date": pd.date_range("2024-01-01", periods=rows),
                    "store": f"S{i}",
                    "units": units,
                    "promotion": promotion,
                    "kind": ("kiosk", "mall")[i % 2],
                    "size": 100.0 * (i + 1),
                    "name": f"Store {i}",
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def test_columns_that_never_change_within_a_series_are_found_and_said():
    prepared = prepare(stores(), targets=["units"])
    assert prepared.variables == ("S0", "S1", "S2", "S3", "S4", "S5")
    assert prepared.attributes.names == ("kind", "size")
    assert prepared.attributes.rows[1] == ("mall", 200.0)
    assert any(line.startswith("static attributes of the series: kind, size") for line in prepared.notices)


def test_they_stay_with_their_series_where_another_column_is_known_in_advance():
    frame = stores()
    frame.loc[frame.date >= "2024-02-05", "units"] = np.nan
    prepared = prepare(frame, horizon=3)
    assert prepared.known_names == ("promotion",)
    assert [row[0] for row in prepared.attributes.rows] == ["kiosk", "mall"] * 3


def test_named_columns_alone_are_taken():
    assert prepare(stores(), targets=["units"], static=["size"]).attributes.names == ("size",)


def test_a_column_that_is_all_there_is_to_forecast_is_no_attribute():
    frame = stores()[["date", "store", "size"]]
    assert prepare(frame).attributes is None


def test_a_wide_table_has_none():
    frame = stores()
    wide = frame.pivot(index="date", columns="store", values="units").reset_index()
    assert prepare(wide).attributes is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"static": ["promotion"]}, "'promotion' is no static attribute: series 'S0' has"),
        ({"static": ["region"]}, "no column 'region'"),
        ({"static": ["units"]}, "'units' cannot be forecast and be static"),
        ({"static": ["kind"], "known": ["kind"]}, "'kind' cannot be known in advance and be static"),
    ],
)
def test_what_is_none_is_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as caught:
        prepare(stores(), targets=["units"], **options)
    assert "\n" not in str(caught.value)


def test_static_columns_of_a_wide_table_are_refused():
    frame = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=30), "y": np.arange(30.0), "kind": "a"})
    with pytest.raises(InputError, match="needs long format"):
        prepare(frame, static=["kind"])


def test_numbers_are_scaled_and_categories_get_a_column_each():
    found = Attributes(("kind", "size"), (("a", 1.0), ("b", 3.0), ("a", None))).encoded()
    np.testing.assert_allclose(found, [[1, 0, -1, 0], [0, 1, 1, 0], [1, 0, 0, 1]])
    skewed = Attributes(("size",), ((1.0,), (10.0,), (100.0,))).encoded()
    np.testing.assert_allclose(np.diff(skewed[:, 0]), np.sqrt(1.5))
    many = Attributes(("kind",), tuple((f"k{i}",) for i in range(200))).encoded()
    assert many.shape == (200, MOST_CATEGORIES + 1)
    assert (many.sum(axis=1) == 1).all()


def test_an_effect_that_differs_by_attribute_is_learned_only_with_it():
    frame = stores(rows=100, n=12)
    values, promotion = (
        frame.pivot(index="date", columns="store", values=name).to_numpy() for name in ("units", "promotion")
    )
    kinds = np.arange(12)[:, None] % 2 * 1.0
    tables, calendar = [column[:, None] for column in values[:86].T], [column[:, None] for column in promotion[:86].T]
    contexts, told = (part.T[..., None] for part in (values[65:86], promotion[65:]))
    errors = []
    for static in (None, kinds):
        given = None if static is None else [row[None] for row in static]
        model = NetworkForecaster(SMALL).fit(tables, 14, period=7, calendar=calendar, static=given, device="cpu")
        each = None if static is None else static[:, None]
        found = model.predict_point(contexts, 14, calendar=told, static=each)
        errors.append(np.abs(found[..., 0].T - values[86:]).mean())
    assert errors[1] < 0.7 * errors[0]


def test_a_network_with_attributes_asks_for_them_and_is_saved_with_them(tmp_path):
    values, static = np.random.default_rng(0).normal(size=(60, 2)), np.array([[1.0, 0.0, 0.5], [0.0, 1.0, -0.5]])
    model = NetworkForecaster(SMALL).fit(values, 5, period=7, static=static, device="cpu")
    context = values[None, -21:]
    found = model.predict(context, static=static)
    with pytest.raises(InputError, match=r"static must be \(2, 3\), got None"):
        model.predict(context)
    model.save(tmp_path / "m.safetensors")
    again = NetworkForecaster.load(tmp_path / "m.safetensors", "cpu")
    np.testing.assert_allclose(again.predict(context, static=static), found, rtol=1e-5)
    with pytest.raises(InputError, match="static must be none"):
        NetworkForecaster(SMALL).fit(values, 5, period=7, device="cpu").predict(context, static=static)
    with pytest.raises(InputError, match="VxA"):
        NetworkForecaster(SMALL).fit(values, 5, static=static[:1], device="cpu")


def test_a_later_table_must_tell_the_same_of_its_series():
    frame = stores()[["date", "store", "units", "kind", "size"]]
    model = TableForecaster(7, methods=("seasonal",), seconds=5).fit(frame[frame.date < "2024-02-05"])
    assert model.predict(history=frame).shape == (7, 6)
    for kind, message in (
        ("mall", "'mall'; it was 'kiosk' in the fit"),
        ("boat", "'boat', which was not seen in the fit"),
    ):
        changed = frame.assign(kind=frame.kind.where(frame.store != "S0", kind))
        with pytest.raises(InputError, match=message) as caught:
            model.predict(history=changed)
        assert "\n" not in str(caught.value)
