"""The offline tour: six modalities and a forecast offline, a page that stands alone, and one line for what fails."""

import csv
import re

import numpy as np
import pytest
import torch

from unipercept.app.tour import forecast, inputs, page, report
from unipercept.datasets.synthetic import write_samples
from unipercept.embedding import MODALITIES, EmbeddingMap
from unipercept.errors import InputError


@pytest.fixture(scope="module")
def generated_inputs(tmp_path_factory):
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
        patch.setattr(forecast, "EPOCHS", 1)
        patch.setattr(forecast, "SECONDS", 0.8)
        failures = report.run(output, tell=lines.append)
    return output, failures, lines


def test_a_broken_input_is_one_line_and_the_rest_goes_on(outcome):
    output, failures, lines = outcome
    assert len(failures) == 1
    assert failures[0].startswith("A broken picture: ")
    assert "\n" not in failures[0]
    assert "A broken picture" in (output / "report.html").read_text(encoding="utf-8")
    assert sum(line.startswith("[") for line in lines) == len(MODALITIES) + 2


def test_every_modality_leaves_a_map_that_loads(outcome):
    maps = [EmbeddingMap.load(path) for path in (outcome[0] / "maps").iterdir()]
    assert sorted(emap.modality for emap in maps) == sorted(MODALITIES)


def test_the_vectors_have_length_one(outcome):
    with (outcome[0] / "vectors.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    vectors = np.array([[float(x) for x in row[2:]] for row in rows])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_the_similarities_are_those_of_the_centred_vectors(outcome):
    with (outcome[0] / "vectors.csv").open(newline="", encoding="utf-8") as file:
        vectors = np.array([[float(x) for x in row[2:]] for row in list(csv.reader(file))[1:]])
    with (outcome[0] / "similarity.csv").open(newline="", encoding="utf-8") as file:
        written = np.array([[float(x) for x in row[1:]] for row in list(csv.reader(file))[1:]])
    centred = vectors - vectors.mean(axis=0)
    norms = np.linalg.norm(centred, axis=1)
    np.testing.assert_allclose(written, centred @ centred.T / np.outer(norms, norms), atol=1e-3)


def test_the_page_stands_alone(outcome):
    text = (outcome[0] / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|@import|url\(|https?://", text)
    sources = re.findall(r'src="([^"]{0,30})', text)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert len(sources) == len(re.findall(r'<img alt="[^"]+"', text)), "every picture has a text that stands for it"


def test_the_page_says_that_the_network_is_untrained(outcome):
    assert "untrained" in (outcome[0] / "report.html").read_text(encoding="utf-8")


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


def test_the_forecast_is_decided_by_its_seed_and_measured_over_every_test_window(monkeypatch):
    monkeypatch.setattr(forecast, "EPOCHS", 1)
    monkeypatch.setattr(forecast, "SECONDS", 0.8)
    first, again = forecast.run_forecast(None, seed=1), forecast.run_forecast(None, seed=1)
    assert first.errors == again.errors
    n_steps = round(forecast.SECONDS * 4000)
    assert first.n_windows["test"] == n_steps - int(forecast.SPLIT[1] * n_steps) - forecast.HORIZON + 1
    assert set(first.errors) == {
        "large-kernel network",
        "last period again",
        "last value again",
        "mean of the past",
    }
    assert first.forecast.values.shape == (forecast.HORIZON, 1)


def test_nothing_after_the_training_part_reaches_the_fit(monkeypatch):
    """Two series that differ in their last 30 % alone give the same training windows."""
    seen = []
    monkeypatch.setattr(forecast, "fit", lambda model, pipeline, data, **_: seen.append(torch.stack(data)))
    series = np.sin(np.arange(4000) / 5) + np.random.default_rng(0).normal(size=4000) * 0.1
    other = np.concatenate([series[:2800], series[2800:] * 7 + 3])
    for values in (series, other):
        monkeypatch.setattr(forecast, "_series", lambda _, values=values: (values, 4000.0, "a test"))
        forecast.run_forecast(None)
    assert torch.equal(*seen)


def test_the_seasonal_forecast_finds_each_windows_own_period():
    time = torch.arange(forecast.LOOKBACK + forecast.HORIZON)
    periods = torch.tensor([9, 10, 37])[:, None]
    waves = torch.sin(2 * torch.pi * time / periods) + 0.5 * torch.cos(4 * torch.pi * time / periods)
    past, truth = waves[:, : forecast.LOOKBACK], waves[:, forecast.LOOKBACK :]
    torch.testing.assert_close(forecast._last_period_again(past), truth, atol=1e-4, rtol=0)


def test_text_in_the_page_cannot_become_markup():
    assert "<b>" not in page.table(["<b>"], [["<b>"]]) + page.facts([("<b>", "<b>")])
    assert "<b>" not in page.figure(b"", "<b>", "<b>")


def test_numbers_stand_to_the_right_and_words_to_the_left():
    html = page.table(["name", "error"], [["ours", "0.12"], ["naive", "-1.3"]])
    assert '<td class="n">0.12</td>' in html
    assert "<td>ours</td>" in html
