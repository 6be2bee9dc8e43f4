"""Time features: periods, released numbers, the sun."""

import numpy as np
import pytest

from unipercept.app.forecaster.clock import released_time_vector, seasonal, solar_fields, year_fraction

NOON = np.array(["2018-03-20T12"], "datetime64[ns]")


def test_season_and_hour_are_periodic() -> None:
    times = np.array(["2017-01-01T00", "2018-01-01T00", "2018-12-31T23:59:59"], "datetime64[ns]")
    code = seasonal(times)
    assert code.shape == (3, 4)
    assert np.allclose(code[0], [0, 1, 0, 1], atol=1e-6)
    assert np.allclose(code, code[:1], atol=1e-4)
    assert year_fraction(np.array(["2020-07-02T00"], "datetime64[ns]"))[0] == 0.5  # 183 of 366 days


def test_released_vector_has_the_published_order() -> None:
    vector = released_time_vector(np.datetime64("2018-01-01T00"))
    d, h = 365 / 366, 18 / 24
    assert np.allclose(vector[:4], [np.sin(d), np.sin(h), np.cos(d), np.cos(h)])
    assert np.allclose(vector[4:8], [np.sin(1 / 366), 0, np.cos(1 / 366), 1])
    assert vector.dtype == np.float32
    assert vector.shape == (12,)


def test_the_sun_stands_highest_at_local_noon_and_not_at_all_at_night() -> None:
    fields = solar_fields(NOON, [0.0], np.arange(0, 360, 90))[0]
    assert fields[2, 0].tolist() == pytest.approx([1, 0, 0, 0], abs=0.01)


def test_the_polar_day_follows_the_season() -> None:
    june, december = (
        solar_fields(np.array([t], "datetime64[ns]"), [80.0, -80.0], [0.0]) for t in ("2018-06-21", "2018-12-21")
    )
    assert june[0, 2, 0, 0] > 0.2 > june[0, 2, 1, 0] == 0
    assert december[0, 2, 1, 0] > 0.2 > december[0, 2, 0, 0] == 0
