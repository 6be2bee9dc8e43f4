"""What visitors take home names what they gave, and nothing of the server's folders."""

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gradio")

from unipercept.app.web.job import Job
from unipercept.app.web.perceive_drawing import analyse_and_draw
from unipercept.app.web.perceive_work import AUTO, analyse
from unipercept.app.web.train_work import LEARNS, train_on_zip


@pytest.fixture
def job(tmp_path):
    folder = tmp_path / "0123456789abcdef0123456789abcdef"
    folder.mkdir()
    return Job(folder)


def contents(path: Path) -> list[bytes]:
    """All that is written in a file, unpacked where it is a zip file."""
    if path.suffix != ".zip":
        return [path.read_bytes()]
    with zipfile.ZipFile(path) as archive:
        return [archive.read(name) for name in archive.namelist()]


def names_no_folder(paths, folder: Path) -> None:
    for path in paths:
        for data in contents(Path(path)):
            assert str(folder).encode() not in data, path
            assert folder.name.encode() not in data, path


@pytest.mark.parametrize("recording", ["picture", "load", "fields"])
def test_a_look(job, recordings, recording):
    analysis = analyse(recordings[recording], AUTO, "default", job)
    names_no_folder(analysis.write(job.folder), recordings[recording].parent)


def test_pictures_to_take_home_are_named_after_the_recording(job, recordings):
    shown = analyse_and_draw(recordings["picture"], AUTO, "default", job)
    pictures = [shown.picture, shown.map_picture, shown.evidence]
    assert [Path(path).name for path in pictures] == [f"picture-{end}.png" for end in ("picture", "map", "evidence")]
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_a_forecast(job, recordings):
    from unipercept.app.web.series_drawing import draw
    from unipercept.app.web.series_work import Anomaly, forecast_series

    path = recordings["load"]
    forecast = forecast_series(path, [], 4, 2.0, job)
    assert forecast.to_dict()["source"] == "load.csv"
    names_no_folder(draw(forecast, path, job).files, path.parent)
    odd = Anomaly("load", np.datetime64("2024-01-10T05:00:00", "ns"), 30.0, 9.0, 11.0)
    forecast = replace(forecast, anomalies=(odd,))
    assert forecast.to_dict()["anomalies"][0]["time"] == "2024-01-10 05:00"
    drawn = draw(forecast, path, job)
    assert "<td" in drawn.anomalies
    assert "2024-01-10 05:00" in drawn.anomalies
    assert "odd" in [trace.name for trace in drawn.chart.data]


@pytest.mark.parametrize("learns", LEARNS)
def test_a_training(job, recordings, learns):
    import json

    trained = train_on_zip(recordings["classes"], learns, 1, job, 10**8)
    assert (trained.class_names, trained.packed.name) == (("bright", "dark"), "classes-run.zip")
    names_no_folder(trained.files(), job.folder.parent)
    run = json.loads((trained.folder / "run.json").read_text())
    assert (run["source"], run["start"]) == ("classes.zip", LEARNS[learns][0])
    report = (trained.folder / "report.html").read_text()
    assert "--model classes-run" in report
    assert "unipercept evaluate classes-run classes" in report
    assert {"./classes/", "--epochs", "classes-run"} <= set(trained.command)
    assert bool(trained.curve.loss) is (learns != "head")  # a linear probe is solved, not trained step by step


def test_a_training_taken_home_is_a_run(job, recordings, tmp_path):
    from unipercept.api import perceive

    trained = train_on_zip(recordings["classes"], "head", 1, job, 10**8)
    with zipfile.ZipFile(trained.packed) as archive:
        archive.extractall(tmp_path / "home")
    for model in ("classes-run", "classes-run/model.safetensors"):
        found = perceive(recordings["dark"], model=str(tmp_path / "home" / model))
        assert set(found.labels) == {"bright", "dark"}


def test_the_evidence_is_that_of_explain_where_the_label_is_most_probable(job, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    from unipercept.perception.explain import explain_file

    rng, rate = np.random.default_rng(1), 16_000
    loud = np.repeat([0.001, 0.3, 0.02], 6 * rate)  # three windows, each with an answer of its own
    soundfile.write(tmp_path / "hiss.wav", loud * rng.normal(size=len(loud)), rate)
    found = analyse(tmp_path / "hiss.wav", AUTO, "default", job)
    expected = explain_file(tmp_path / "hiss.wav", found.model)
    assert found.explanation.label == expected.label == found.labels.labels[0]
    assert found.explanation.score == pytest.approx(found.labels.scores[0])
    assert found.explanation.peaks() == expected.peaks()
    assert found.explanation.notice == expected.notice


def test_the_command_that_gives_the_same_can_be_pasted_whatever_a_file_is_called(job, recordings, tmp_path):
    import re
    import shlex
    from html import unescape

    from unipercept.cli import main

    odd = tmp_path / "-o $(touch owned) '<b>.png"
    odd.write_bytes(recordings["picture"].read_bytes())
    shown = analyse_and_draw(odd, AUTO, "default", job)
    assert "<b>.png" not in shown.labels
    told = unescape(re.search(r"<pre[^>]*>(.*?)</pre>", shown.labels, re.DOTALL)[1]).splitlines()
    assert [shlex.split(line)[:3] for line in told] == [
        ["unipercept", verb, f"./{odd.name}"] for verb in ("perceive", "explain", "encode")
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path)
        for line in told:
            with pytest.raises(SystemExit) as left:
                main(shlex.split(line)[1:])
            assert left.value.code in (0, None), line
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.name.startswith("-o")) == [
        ".parquet",
        ".png",
        ".png",
    ]
    assert not (tmp_path / "owned").exists()


def test_the_picture_on_the_page_is_the_one_that_the_network_reads(tmp_path):
    from PIL import Image

    from unipercept.app.web.showing import redrawn

    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "bits.png")  # Pillow's own conversion clips it to white
    Image.fromarray((ramp / 65535).astype(np.float32)).save(tmp_path / "float.tif")
    for name in ("bits.png", "float.tif"):
        shown = np.asarray(redrawn(tmp_path / name))
        assert np.abs(shown[:, :, 0] - ramp / 257).max() < 1, name
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(redrawn(tmp_path / "clear.png")).min() == 255  # the white that shows through
