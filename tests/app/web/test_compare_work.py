"""Vectors of different networks are kept apart."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gradio")

from unipercept.app.web.compare_work import Compared, open_recording
from unipercept.app.web.job import Job
from unipercept.app.web.words import matrix
from unipercept.errors import InputError


@pytest.fixture
def mixed():
    rng = np.random.default_rng(0)
    vectors = [rng.normal(size=width).astype(np.float32) for width in (4, 4, 6, 6, 4)]
    return Compared([Path(f"{i}.x") for i in range(5)], ["image"] * 5, vectors, "default")


def test_cosines_are_missing_between_widths_and_true_within(mixed):
    found = mixed.similarity()
    assert np.isnan(found[0, 2])
    a, b = mixed.vectors[0], mixed.vectors[4]
    assert found[0, 4] == pytest.approx(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), abs=1e-6)
    assert mixed.to_dict()["similarity"][0][2] is None
    assert "–" in matrix(found, mixed.names)


def test_the_plane_keeps_what_principal_components_keep(mixed):
    places = mixed.plane()
    assert places.shape == (5, 2)
    assert np.allclose(places.mean(axis=0), 0, atol=1e-9)
    assert np.isfinite(places).all()


def test_a_search_looks_among_vectors_of_the_querys_width(mixed):
    assert next(
        path for path, _ in mixed.archive(6).nearest(mixed.vectors[2] / np.linalg.norm(mixed.vectors[2]), 9)
    ) in ("2.x", "3.x")
    with pytest.raises(InputError, match="no recording"):
        mixed.archive(5)


def test_names_of_points_lie_over_no_other_name_and_no_mark():
    import itertools
    import re

    from unipercept.app.web.picking import LETTER, LINE, MARK, plane

    rng = np.random.default_rng(3)
    places = np.concatenate([[[0, 0], [0.99, 1], [1, 1], [1, 0.99]], rng.normal([0.5, 0.5], 0.1, (8, 2))])
    names = [f"recording-{i}.png" for i in range(len(places))]
    drawn = plane(places, names, ["image"] * len(places))
    marks = [(float(x), float(y)) for x, y in re.findall(r"translate\(([\d.]+) ([\d.]+)\)", drawn)]
    texts = re.findall(r'<text x="(-?\d+)" y="(-?\d+)" text-anchor="(\w+)"', drawn)
    boxes = []
    for (x, y), name, (shift, down, side) in zip(marks, names, texts, strict=True):
        left = x + int(shift) - (LETTER * len(name) if side == "end" else 0)
        boxes.append((left, y + int(down) - LINE, left + LETTER * len(name), y + int(down)))
    for a, b in itertools.combinations(boxes, 2):
        assert not (a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])
    for (left, top, right, bottom), (x, y) in itertools.product(boxes, marks):
        assert not (left < x + MARK - 1 and x - MARK + 1 < right and top < y + MARK - 1 and y - MARK + 1 < bottom)


def test_few_vectors_are_not_centred():
    """Two vectors without their mean are opposite, whatever they are."""
    rng = np.random.default_rng(0)
    vectors = [rng.normal(size=4).astype(np.float32) for _ in range(5)]
    few, enough = (Compared([Path(f"{i}.x") for i in range(n)], ["image"] * n, vectors[:n], "default") for n in (2, 5))
    assert few.to_dict()["centred_similarity"] is None
    assert len(enough.to_dict()["centred_similarity"]) == 5


def test_vectors_are_taken_home_and_no_name_is_a_formula(mixed, tmp_path):
    import csv

    mixed.paths[0] = Path("=cmd|calc.x")
    vectors, cosines = ([*csv.reader(path.open())] for path in mixed.write(tmp_path))
    assert [row[0] for row in vectors] == ["file", "./=cmd|calc.x", "1.x", "2.x", "3.x", "4.x"]
    assert [float(x) for x in vectors[1][2:]] == pytest.approx(mixed.vectors[0].tolist())
    assert len(vectors[3]) == 2 + 6
    assert cosines[1][3] == ""  # of different widths
    assert float(cosines[1][5]) == pytest.approx(mixed.similarity()[0, 4], abs=1e-6)


def test_a_recording_is_opened_in_a_worker_as_a_player_takes_it(tmp_path):
    from PIL import Image

    shared, folder = tmp_path / "shared", tmp_path / "job"
    for made in (shared, folder):
        made.mkdir()
    own = shared / "own.wav"
    own.write_bytes(wav())
    Image.new("RGB", (40, 30)).save(tmp_path / "picture.png")
    (tmp_path / "load.csv").write_text("date,load\n2024-01-01,1.5\n2024-01-02,2.5\n")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    picture = open_recording(tmp_path / "picture.png", shared, Job(folder))
    assert (picture.modality, picture.path) == ("image", folder / "picture.png")
    assert open_recording(own, shared, Job(folder)).path == own
    other = tmp_path / "archive.wav"  # of the operator's: what a page is given lies in the visitor's folder
    other.write_bytes(wav())
    assert open_recording(other, shared, Job(folder)).path == folder / "archive.wav"
    assert open_recording(tmp_path / "load.csv", shared, Job(folder)).path is None
    for lost in (tmp_path / "gone.png", tmp_path / "broken.png"):
        with pytest.raises(InputError) as refused:
            open_recording(lost, shared, Job(folder))
        assert str(tmp_path) not in str(refused.value)


def wav() -> bytes:
    import io
    import wave

    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(b"\0\1" * 800)
    return buffer.getvalue()
