"""Humidity: saturation at known points, and one kind made of the other and back."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from unipercept.app.forecaster.fields import channel_names, land_share, open_fields
from unipercept.app.forecaster.humidity import (
    relative_humidity,
    saturation_pressure,
    specific_humidity,
    with_humidity,
)
from unipercept.errors import InputError


def test_saturation_is_that_of_measured_tables() -> None:
    """Over water at 0.01, 20 and 30 degrees, over ice at -40: CRC Handbook, to half a percent."""
    found = saturation_pressure(np.array([273.16, 293.15, 303.15, 233.15]))
    np.testing.assert_allclose(found, [611.657, 2339.2, 4246.7, 12.84], rtol=5e-3)


def test_saturation_has_no_step_where_ice_begins() -> None:
    temperature = np.linspace(245, 278, 2000)
    slopes = np.diff(np.log(saturation_pressure(temperature))) / np.diff(temperature)
    assert (slopes > 0).all()
    assert abs(np.diff(slopes)).max() < 2e-3


def test_the_two_humidities_are_inverse() -> None:
    random = np.random.default_rng(0)
    temperature, level = random.uniform(200, 310, 1000), random.uniform(50, 1000, 1000)
    relative = random.uniform(0, 100, 1000) * (saturation_pressure(temperature) < 3e3 * level / 1000)
    again = relative_humidity(specific_humidity(relative, temperature, level), temperature, level)
    np.testing.assert_allclose(again, relative, rtol=1e-12, atol=1e-10)


def _fields() -> xr.Dataset:
    shape, dims = (2, 2, 4, 8), ("time", "level", "latitude", "longitude")
    random = np.random.default_rng(1)
    return xr.Dataset(
        {
            "temperature": (dims, random.uniform(230, 300, shape), {"units": "K"}),
            "relative_humidity": (dims, random.uniform(5, 95, shape), {"units": "%"}),
        },
        {
            "time": np.array(["2020-01-01", "2020-01-02"], "datetime64[ns]"), "level": [500, 850],
            "latitude": [67.5, 22.5, -22.5, -67.5], "longitude": np.arange(8) * 45.0,
        },
    )  # fmt: skip


def test_a_store_of_relative_humidity_can_be_scored_on_specific() -> None:
    fields = open_fields(_fields())
    made = with_humidity(fields, "q")
    assert channel_names(made) == ("t500", "t850", "q500", "q850")
    assert made["q"].attrs["units"] == "kg kg-1"
    assert "made of r" in made.attrs["conversions"]
    np.testing.assert_allclose(with_humidity(made, "r")["r"], fields["r"], rtol=1e-6)
    assert channel_names(with_humidity(fields, "r")) == channel_names(fields)
    with pytest.raises(InputError, match="needs r and t on levels"):
        with_humidity(fields.drop_vars("t"), "q")
    with pytest.raises(InputError, match='must be "q" or "r"'):
        with_humidity(fields, "w")


def test_the_land_mask_is_read_from_any_convention(tmp_path: Path) -> None:
    land = np.linspace(0, 1, 32, dtype="f4").reshape(1, 4, 8)
    mask = xr.Dataset(
        {"lsm": (("valid_time", "latitude", "longitude"), land[:, ::-1])},
        {"valid_time": [0], "latitude": [-67.5, -22.5, 22.5, 67.5], "longitude": np.arange(8) * 45.0},
    )
    mask.to_netcdf(tmp_path / "lsm.nc")
    latitude, longitude = np.array([67.5, 22.5, -22.5, -67.5]), np.arange(8) * 45.0
    np.testing.assert_allclose(land_share(tmp_path / "lsm.nc", latitude, longitude), land[0])
    with pytest.raises(InputError, match="another grid"):
        land_share(tmp_path / "lsm.nc", latitude + 1, longitude)
    mask.rename(lsm="other").to_netcdf(tmp_path / "other.nc")
    with pytest.raises(InputError, match="no land-sea mask"):
        land_share(tmp_path / "other.nc", latitude, longitude)
