"""Maps are projected as published, coastlines lie where they must, and every kind of picture is a file that opens."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from unipercept.app.forecaster import pictures, score_pictures
from unipercept.app.forecaster.evaluate import evaluate
from unipercept.app.forecaster.fields import open_fields
from unipercept.app.forecaster.projection import Projection, _read_coastlines, cell_corners, coastlines
from unipercept.datasets.synthetic import weather_state
from unipercept.errors import InputError


@pytest.fixture(scope="module")
def state() -> object:
    return open_fields(weather_state(n_times=12, rows=16, columns=32))


@pytest.fixture(scope="module")
def scores_file(tmp_path_factory: pytest.TempPathFactory, state: object) -> Path:
    lead = (np.array([6, 12, 18]) * np.timedelta64(1, "h")).astype("timedelta64[ns]")
    base = state.isel(time=slice(0, 6)).load()  # type: ignore[attr-defined]
    forecast = base.expand_dims(prediction_timedelta=lead) * 0.999
    for name in forecast:
        forecast[name].attrs = state[name].attrs  # type: ignore[index]
    path = tmp_path_factory.mktemp("scores") / "scores.nc"
    evaluate({"ours": open_fields(forecast)}, state).save(path)  # type: ignore[arg-type]
    return path


def test_equal_earth_keeps_areas() -> None:
    """A cell of the map is as large as on the sphere, everywhere."""
    phi, lam = np.linspace(-85, 85, 200), np.array([10.0, 10.1])
    x, y = Projection(whole=True)(lam[None], phi[:, None])
    width = ((x[1:, 1] - x[1:, 0]) + (x[:-1, 1] - x[:-1, 0])) / 2
    area = width * np.diff(y.mean(1))
    sphere = np.diff(np.sin(np.deg2rad(phi))) * np.deg2rad(0.1)
    np.testing.assert_allclose(area, sphere, rtol=2e-4)


def test_equal_earth_has_the_published_shape() -> None:
    x, _ = Projection(whole=True)(180.0, 0.0)
    _, y = Projection(whole=True)(0.0, 90.0)
    assert float(x / y) == pytest.approx(2.05458, abs=1e-4)  # Šavrič et al. (2018): width to height


def test_coastlines_pass_by_known_capes() -> None:
    points = np.concatenate(list(_read_coastlines()))
    assert abs(points[:, 0]).max() <= 180
    for cape in ((18.5, -34.1), (-5.6, 36.0), (-67.3, -55.9), (142.5, -10.7)):  # Good Hope, Tarifa, Horn, York
        assert np.hypot(*(points - cape).T).min() < 1.5


def test_no_coastline_crosses_the_map_from_side_to_side() -> None:
    for centre in (0.0, 150.0):
        for x, _ in coastlines(Projection(whole=True, centre=centre)):
            assert abs(np.diff(x)).max() < 1.0


def test_cells_end_at_the_poles() -> None:
    phi, lam = cell_corners([90.0, 0.0, -90.0], [0.0, 120.0, 240.0])
    np.testing.assert_allclose(phi, [90, 45, -45, -90])
    np.testing.assert_allclose(lam, [-60, 60, 180, 300])


@pytest.mark.parametrize("name", ["map.png", "map.pdf", "film.gif"])
def test_pictures_of_fields_are_files_of_their_kind(tmp_path: Path, state: object, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".gif":
        pictures.animate(path, state, "t2m", n_frames=3)  # type: ignore[arg-type]
        assert Image.open(path).n_frames == 3  # type: ignore[attr-defined]
    else:
        pictures.plot_fields(path, state, "z500", "2024-01-01T06")  # type: ignore[arg-type]
        assert path.stat().st_size > 5000
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_an_animation_can_be_a_video(tmp_path: Path, state: object) -> None:
    av = pytest.importorskip("av")
    pictures.animate(tmp_path / "film.mp4", state, "u500", n_frames=4)  # type: ignore[arg-type]
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 4


def test_every_picture_of_scores_opens(tmp_path: Path, scores_file: Path) -> None:
    assert score_pictures.is_scores(scores_file)
    table = score_pictures.open_scores(scores_file)
    np.testing.assert_allclose(table["lead"], [6, 12, 18])
    score_pictures.plot_curves(tmp_path / "curves.png", table)
    score_pictures.plot_scorecard(tmp_path / "card.png", table)
    score_pictures.plot_spectra(tmp_path / "spectra.png", table, ["z500"])
    for path in tmp_path.iterdir():
        assert np.asarray(Image.open(path).convert("L")).std() > 10


def test_mistakes_are_one_line(tmp_path: Path, state: object, scores_file: Path) -> None:
    table = score_pictures.open_scores(scores_file)
    with pytest.raises(InputError, match="no scores of theirs"):
        score_pictures.plot_scorecard(tmp_path / "a.png", table, against="theirs")
    with pytest.raises(InputError, match="no lead of 7 h"):
        score_pictures.plot_spectra(tmp_path / "a.png", table, lead_hours=7)
    with pytest.raises(InputError, match="no field at 1999"):
        pictures.plot_fields(tmp_path / "a.png", state, "z500", "1999-01-01")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="lie on different grids"):
        pictures.plot_comparison(tmp_path / "a.png", state, state.isel(latitude=slice(1, 9)), "z500")  # type: ignore[arg-type,attr-defined]
    with pytest.raises(InputError, match="a comparison needs a forecast"):
        pictures.plot_comparison(tmp_path / "a.png", state, state, "z500")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"saved as \.gif or \.mp4"):
        pictures.animate(tmp_path / "a.avi", state, "z500")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_colours_are_those_of_the_quantity_and_a_forecast_says_when_it_is_valid() -> None:
    assert [pictures._colours(name) for name in ("t850", "t2m", "tp", "q700", "u100m", "v10", "ustar", "vis", "tcwv")] == [
        "RdYlBu_r", "RdYlBu_r", "YlGnBu", "YlGnBu", "PuOr_r", "PuOr_r", "viridis", "viridis", "viridis"
    ]  # fmt: skip
    assert pictures._limits("vis", np.array([1.0, 2.0])) == pytest.approx((1.002, 1.998))
    array = xr.DataArray(
        np.zeros((1, 2, 2, 2)),
        {
            "time": [np.datetime64("2020-02-28T18", "ns")],
            "prediction_timedelta": np.array([6, 12]) * np.timedelta64(1, "h").astype("m8[ns]"),
        },
        ("time", "prediction_timedelta", "latitude", "longitude"),
    )
    assert pictures._at(array, None, 12.0)[1] == "2020-02-28 18:00 UTC + 12 h, valid 2020-02-29 06:00 UTC"
