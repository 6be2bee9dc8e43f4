"""What visitors take home names what they gave, and nothing of the server's folders."""

import zipfile
from pathlib import Path

import pytest

pytest.importorskip("gradio")

from unipercept.app.web.analysing import AUTO, analyse
from unipercept.app.web.job import Job
from unipercept.app.web.teaching import LEARNS, teach


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


def test_a_forecast(job, recordings):
    from unipercept.app.web.forecasting import foresee
    from unipercept.app.web.foreseeing import draw

    path = recordings["load"]
    foreseen = foresee(path, [], 4, 2.0, job)
    assert foreseen.to_dict()["source"] == "load.csv"
    names_no_folder(draw(foreseen, path, job).files, path.parent)


@pytest.mark.parametrize("learns", LEARNS)
def test_a_training(job, recordings, learns):
    import json

    taught = teach(recordings["classes"], learns, 1, job, 10**8)
    assert (taught.class_names, taught.packed.name) == (("bright", "dark"), "classes-run.zip")
    names_no_folder(taught.files(), job.folder.parent)
    run = json.loads((taught.folder / "run.json").read_text())
    assert (run["source"], run["start"]) == ("classes.zip", LEARNS[learns][0])
    report = (taught.folder / "report.html").read_text()
    assert "--model classes-run" in report
    assert "unipercept evaluate classes-run classes" in report
    assert bool(taught.curve.loss) is (learns != "head")  # a linear probe is solved, not trained step by step


def test_a_training_taken_home_is_a_run(job, recordings, tmp_path):
    from unipercept.api import perceive

    taught = teach(recordings["classes"], "head", 1, job, 10**8)
    with zipfile.ZipFile(taught.packed) as archive:
        archive.extractall(tmp_path / "home")
    for model in ("classes-run", "classes-run/model.safetensors"):
        found = perceive(recordings["dark"], model=str(tmp_path / "home" / model))
        assert set(found.labels) == {"bright", "dark"}
