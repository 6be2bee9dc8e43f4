"""The offline tour: six modalities and a forecast offline, a page that stands alone, and one line for what fails."""

import csv
import re

import numpy as np
import pytest

import unipercept
from unipercept import page
from unipercept.app.tour import forecast, inputs, known, report
from unipercept.datasets.synthetic import write_samples
from unipercept.embedding import MODALITIES, EmbeddingMap
from unipercept.errors import InputError
from unipercept.model_cards import model_card


@pytest.fixture(scope="module")
def generated_inputs(tmp_path_factory, open3d):
    """One generated recording of every modality, and a picture that is none."""
    for library in ("soundfile", "av", "xarray", "netCDF4", "pandas"):
        pytest.importorskip(library)
    folder = tmp_path_factory.mktemp("inputs")
    items = [
        inputs.DemoInput(path, modality, f"A <{modality}>", "generated")
        for modality, path in write_samples(folder).items()
    ]
    broken = folder / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    return [*items, inputs.DemoInput(broken, "image", "A broken picture", "generated")]


@pytest.fixture(scope="module")
def outcome(generated_inputs, tmp_path_factory):
    """The folder, the failures and the lines of one run."""
    output, lines = tmp_path_factory.mktemp("out"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "demo_inputs", lambda folder: generated_inputs)
        patch.setattr(report, "forecast_recording", lambda: None)
        patch.setattr(forecast, "METHODS", ("naive", "seasonal", "linear"))
        patch.setattr(forecast, "SECONDS", 0.5)
        patch.setattr(known, "PER_SET", 2)
        failures = report.run(output, tell=lines.append)
    return output, failures, lines


def test_a_broken_input_is_one_line_and_the_rest_goes_on(outcome):
    output, failures, lines = outcome
    assert len(failures) == 1
    assert failures[0].startswith("A broken picture: ")
    assert "\n" not in failures[0]
    assert "A broken picture" in (output / "report.html").read_text(encoding="utf-8")
    assert sum(line.startswith("[") for line in lines) == len(MODALITIES) + 3


def test_every_modality_leaves_a_map_that_loads(outcome):
    maps = [EmbeddingMap.load(path) for path in (outcome[0] / "maps").iterdir()]
    assert sorted(emap.modality for emap in maps) == sorted(MODALITIES)


def test_the_vectors_have_length_one(outcome):
    with (outcome[0] / "vectors.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    vectors = np.array([[float(x) for x in row[3:]] for row in rows])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_the_page_stands_alone(outcome):
    text = (outcome[0] / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|@import|url\(|https?://", text)
    sources = re.findall(r'src="([^"]{0,30})', text)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert len(sources) == len(re.findall(r'<img alt="[^"]+"', text)), "every picture has a text that stands for it"


def test_the_page_says_what_is_trained_on_what_and_what_is_not(outcome):
    text = (outcome[0] / "report.html").read_text(encoding="utf-8")
    assert model_card("default").trained_on in text
    assert "Weather is encoded by random weights" in text


def test_the_heads_answer_for_recordings_whose_truth_is_known(outcome):
    """Three of four at the least: chance is a tenth or less."""
    right = re.search(
        r"(\d+) of (\d+) were classified correctly", (outcome[0] / "report.html").read_text(encoding="utf-8")
    )
    assert right is not None
    assert int(right[1]) >= 0.75 * int(right[2]) > 0
    assert len(list((outcome[0] / "inputs").iterdir())) == int(right[2])


def test_the_forecast_and_the_overview_are_files_too(outcome):
    for name in ("forecast.csv", "forecast.png", "overview.png"):
        assert (outcome[0] / name).stat().st_size > 0


def test_a_folder_that_cannot_be_made_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        report.run(tmp_path / "file" / "out")


def test_without_packages_that_carry_media_all_inputs_are_generated(tmp_path, monkeypatch):
    pytest.importorskip("soundfile")
    pytest.importorskip("xarray")
    monkeypatch.setattr(inputs, "find_spec", lambda name: None)
    items = inputs.demo_inputs(tmp_path)
    assert sorted(item.modality for item in items) == sorted(MODALITIES)
    assert all("generated" in item.origin and item.path.is_file() for item in items)
    assert inputs.forecast_recording() is None


def test_the_last_steps_are_kept_back_from_the_forecast(monkeypatch):
    """Two series that differ in their last steps alone give the same forecast, beside their own truth."""
    monkeypatch.setattr(forecast, "METHODS", ("seasonal", "linear"))
    series = np.sin(np.arange(2000) / 5) + np.random.default_rng(0).normal(size=2000) * 0.1
    found = []
    for values in (series, np.concatenate([series[: -forecast.HORIZON], series[-forecast.HORIZON :] * 7 + 3])):
        monkeypatch.setattr(forecast, "_series", lambda _, values=values: (values, 4000.0, "a test"))
        found.append(forecast.run_forecast(None))
        assert found[-1].truth is not None
        assert np.array_equal(found[-1].truth[:, 0], values[-forecast.HORIZON :])
    assert np.array_equal(found[0].values, found[1].values)


def test_text_in_the_page_cannot_become_markup():
    assert "<b>" not in page.table(["<b>"], [["<b>"]]) + page.facts([("<b>", "<b>")])
    assert "<b>" not in page.figure(b"", "<b>", "<b>")


def test_numbers_stand_to_the_right_and_words_to_the_left():
    html = page.table(["name", "error"], [["ours", "0.12"], ["naive", "-1.3"]])
    assert '<td class="n">0.12</td>' in html
    assert "<td>ours</td>" in html


def test_the_map_of_a_picture_is_drawn_in_the_pictures_own_pixels(tmp_path):
    from PIL import Image

    from unipercept.app.tour.drawing import draw_map

    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    pipe = unipercept.pipeline("image")
    emap = pipe.embed(pipe.read(tmp_path / "a.png"))
    axes = draw_map(emap).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x in px", "y in px")
    last = max(int(label.get_text().replace(",", "")) for label in axes.get_xticklabels())
    assert emap.tensor.shape[-1] < last <= 640


def test_the_map_of_fields_is_drawn_in_degrees_whatever_their_number(tmp_path):
    xarray = pytest.importorskip("xarray")
    from unipercept.app.tour.drawing import draw_map

    levels, latitude, longitude = [850, 500, 250], np.linspace(90, -90, 19), np.arange(0, 360, 10.0)
    values = np.random.default_rng(0).normal(5e4, 1e3, (3, 19, 36))
    coords = {"level": levels, "latitude": latitude, "longitude": longitude}
    xarray.Dataset({"z": (tuple(coords), values, {"units": "m**2 s**-2"})}, coords).to_netcdf(tmp_path / "three.nc")
    emap = next(iter(unipercept.pipeline("weather").maps(tmp_path / "three.nc")))
    assert emap.tensor.shape[1] == 3  # as many as a picture has
    axes = draw_map(emap).axes[0]
    assert axes.get_xlabel().startswith("longitude in ")
    assert axes.get_ylabel().startswith("latitude in ")
