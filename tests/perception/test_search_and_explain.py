"""Search is exact; an explanation points at what made the difference; a receptive field sits in the middle."""

import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from PIL import Image

from unipercept.api import perceive, pipeline
from unipercept.backbone import UniRepLKNet
from unipercept.datasets import labelled_set
from unipercept.embedding import Axis, EmbeddingMap
from unipercept.errors import InputError
from unipercept.models import load_model
from unipercept.perception.explain import Explanation, evidence
from unipercept.perception.search import Archive, search_archive
from unipercept.results import Labels


def unit(n, d, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_neighbours_are_those_of_a_full_sort_across_blocks(monkeypatch):
    monkeypatch.setattr("unipercept.perception.search.BLOCK_ROWS", 100)
    vectors = unit(1_050, 16)
    archive = Archive([f"{i}.wav" for i in range(1_050)], vectors)
    query = unit(1, 16, seed=9)[0]
    order = np.argsort(-(vectors @ query), kind="stable")[:7]
    found = archive.nearest(query, 7)
    assert [path for path, _ in found] == [f"{i}.wav" for i in order]
    assert found[0][1] == pytest.approx(float(vectors[order[0]] @ query), abs=1e-6)
    assert archive.nearest(vectors[3], 1)[0][0] == "3.wav"


def test_a_folder_of_parts_is_one_archive_and_mixed_models_are_refused(tmp_path):
    folder = tmp_path / "v.parquet"
    folder.mkdir()
    vectors = unit(6, 4)
    for part in range(2):
        rows = vectors[3 * part : 3 * part + 3]
        column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 4)
        names = [f"{3 * part + i}" for i in range(3)]
        pq.write_table(pa.table({"path": names, "vector": column, "model": ["m"] * 3}), folder / f"part-{part}.parquet")
    archive = Archive.open(folder)
    assert np.array_equal(archive.vectors, vectors)
    assert archive.nearest(vectors[4], 1)[0][0] == "4"
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 4)
    pq.write_table(
        pa.table({"path": list("abcdef"), "vector": column, "model": ["m", *"nnnnn"]}), tmp_path / "two.parquet"
    )
    with pytest.raises(InputError, match="one model"):
        Archive.open(tmp_path / "two.parquet")
    with pytest.raises(InputError, match="must be 4 numbers"):
        archive.nearest(unit(1, 5)[0])
    with pytest.raises(InputError, match="does not exist"):
        Archive.open(tmp_path / "absent.parquet")


@pytest.mark.slow
def test_a_million_vectors_are_searched_within_a_second():
    vectors = np.tile(unit(10_000, 320), (100, 1))
    archive = Archive([""] * len(vectors), vectors)
    archive.nearest(vectors[0], 10)
    started = time.perf_counter()
    archive.nearest(vectors[1], 10)
    assert time.perf_counter() - started < 1.0


def test_evidence_is_normalised_and_that_of_the_class_asked_for():
    torch.manual_seed(0)
    network = UniRepLKNet(
        (1, 1, 2, 1), (8, 16, 32, 64), ((3,), (7,), (7, 7), (7,)), in_channels=1, num_classes=3
    ).eval()
    emap = EmbeddingMap(torch.randn(2, 1, 64, 96), "audio", mask=torch.arange(96).expand(2, 64, 96) < 80)
    shares = []
    heat, index, score = evidence(network, emap, on_progress=shares.append)
    assert heat.shape == (2, 64, 96)
    assert heat.amin() == 0
    assert heat.amax() == 1
    assert heat[:, :, 80:].amax() == 0  # padding
    probability = network(emap.tensor).detach().softmax(1).mean(0)
    assert (index, score) == (int(probability.argmax()), pytest.approx(float(probability.amax()), abs=1e-5))
    assert evidence(network, emap, 2)[1] == 2
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_evidence_lies_where_the_input_decides():
    class Corner(torch.nn.Module):
        def forward(self, maps):
            inside = maps[:, 0, 8:12, 40:48].square().mean(dim=(1, 2))
            return torch.stack([inside, 3 * inside.new_ones(len(maps)), maps[:, 1].mean(dim=(1, 2))], dim=1)

    torch.manual_seed(0)
    heat, _, _ = evidence(Corner(), EmbeddingMap(torch.randn(1, 2, 32, 64), "image"), 0)
    assert heat[:, 4:16, 36:52].sum() > 0.95 * heat.sum()


def test_taking_out_the_evidence_changes_the_label_and_taking_out_the_rest_does_not():
    """The other way round with Grad-CAM: a mean of 93 % was left without what it marked most, 80 % without the rest."""
    samples = labelled_set("processes", "", "validation")
    pipe, network = (
        pipeline("timeseries", "universal.processes"),
        load_model("universal.processes", in_channels=1).network,
    )
    left = []
    for position in range(0, len(samples), 80):
        emap = pipe.embed(pipe.read(samples.read(position)))
        heat, found, _ = evidence(network, emap)
        rank = heat.flatten().argsort().argsort().reshape(heat.shape)[:, None] / heat.numel()
        taken = [torch.where(which, emap.tensor.mean(), emap.tensor) for which in (rank >= 0.8, rank < 0.2)]
        left.append(network(torch.cat(taken)).softmax(dim=1)[:, found].detach())
    most, least = torch.stack(left).mean(dim=0)
    assert most < least - 0.1


def test_threads_that_share_a_network_explain_what_each_was_given():
    from concurrent.futures import ThreadPoolExecutor

    torch.manual_seed(0)
    network = UniRepLKNet((1, 1, 2, 1), (8, 16, 24, 32), ((3,), (3,), (3, 3), (3,)), num_classes=3).eval()
    inputs = [EmbeddingMap(torch.randn(1 + n % 2, 3, 32, 32), "image") for n in range(12)]
    alone = [evidence(network, emap) for emap in inputs]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda emap: evidence(network, emap), inputs))
    for (heat, found, _), (heat_together, found_together, _) in zip(alone, together, strict=True):
        assert found == found_together
        assert torch.allclose(heat, heat_together, atol=1e-5)


def test_a_peak_is_said_in_hertz_and_seconds(tmp_path):
    heat = torch.zeros(1, 4, 5)
    heat[0, 1, 3] = 1
    axes = {
        "frequency": Axis("H", torch.tensor([100.0, 200, 400, 800]), "Hz"),
        "time": Axis("W", torch.arange(5) * 0.5, "s"),
    }
    found = Explanation(heat, EmbeddingMap(torch.rand(1, 1, 4, 5), "audio", axes), "bell", 0.9, "x.wav")
    assert found.peaks() == {"frequency": (200.0, "Hz"), "time": (1.5, "s")}
    assert found.to_text() == "x.wav: bell (90.0%); strongest evidence at frequency 200 Hz, time 1.5 s"
    drawn = found.plot().axes[1]
    assert [text.get_text() for text in drawn.get_yticklabels()] == ["100", "200", "500"]
    assert list(drawn.get_yticks()) == [0, 1, pytest.approx(2.25)]
    assert (drawn.get_xlabel(), drawn.get_ylabel()) == ("time in s", "frequency in Hz")
    assert found.save(tmp_path / "why.png").stat().st_size > 1_000
    with pytest.raises(InputError, match="png"):
        found.save(tmp_path / "why.txt")


def test_where_nothing_speaks_for_a_label_no_place_is_said():
    grey = EmbeddingMap(torch.zeros(1, 3, 16, 16), "image")
    heat, _, _ = evidence(load_model("universal.fashion_mnist").network, grey)
    found = Explanation(heat, grey, "bag", 0.2, "x.png")
    assert found.to_text() == "x.png: bag (20.0%); no place speaks more for it than a blurred version does"


def test_the_view_with_the_strongest_evidence_is_said():
    heat = torch.zeros(4, 2, 2)
    heat[2, 0, 1] = 1
    axes = {"y": Axis("H", torch.tensor([0.5, -0.5]), "1"), "x": Axis("W", torch.tensor([-0.5, 0.5]), "1")}
    found = Explanation(heat, EmbeddingMap(torch.rand(4, 3, 2, 2), "pointcloud", axes), "cone", 0.9, "x.ply")
    assert found.to_text().endswith("in view 3 of 4")
    assert found.plot().axes[4].get_title() == "what it saw in view 3 of 4"


def test_what_is_out_of_distribution_is_said_where_its_evidence_is_shown(tmp_path):
    from unipercept.perception.explain import explain_file

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8)).save(tmp_path / "noise.png")
    labels, found = perceive(tmp_path / "noise.png"), explain_file(tmp_path / "noise.png", "default")
    assert isinstance(labels, Labels)
    assert found.notice == labels.metadata["notice"]
    assert found.to_text().endswith(found.notice)
    for figure in (found.plot(), labels.plot()):
        assert "unlike what the head of fashion_mnist" in figure.get_suptitle()
    assert found.plot().axes[0].get_aspect() == 1  # a picture is not stretched


def test_the_evidence_is_for_the_label_of_the_whole_recording_where_it_is_most_probable(tmp_path):
    """It was for the label of the first window alone, with its probability (97 % of a label that had 48 %)."""
    from unipercept.perception.explain import explain_file

    time = np.arange(14 * 16_000) / 16_000
    hiss = 0.02 * np.random.default_rng(0).standard_normal(len(time))
    beeps = 0.3 * np.sin(2 * np.pi * 800 * time) * (np.sin(8 * np.pi * time) > 0)
    soundfile.write(tmp_path / "a.wav", np.where(time < 5.2, hiss, hiss + beeps), 16_000)
    whole = perceive(tmp_path / "a.wav", model="universal.esc10")
    assert isinstance(whole, Labels)
    pipe = pipeline("audio", "universal.esc10")
    windows = [pipe.name([emap])[0] for emap in pipe.maps(tmp_path / "a.wav")]
    for label in (None, whole.labels[1]):
        found = explain_file(tmp_path / "a.wav", "universal.esc10", label=label)
        assert found.label == (label or whole.labels[0])
        assert found.score == pytest.approx(whole.scores[whole.labels.index(found.label)], abs=1e-5)
        there = [window.scores[window.labels.index(found.label)] for window in windows]
        assert found.emap.metadata["start_second"] == [5.12 * int(np.argmax(there))]


def test_the_axes_of_a_series_are_said_in_the_units_of_their_labels(tmp_path):
    from unipercept.perception.explain import explain_map
    from unipercept.pipelines.timeseries import TimeSeriesConfig, TimeSeriesPipeline

    rows = "".join(f"{year},{(year * 7) % 5},{year % 3}\n" for year in range(1960, 2023))
    (tmp_path / "table.csv").write_text("year,rain,sun\n" + rows)
    pipe = TimeSeriesPipeline(TimeSeriesConfig(size=64))
    found = explain_map(pipe.embed(pipe.read(tmp_path / "table.csv")), "universal.processes", source="table.csv")
    upper = found.plot().axes[0]
    assert upper.get_title() == "what it saw of rain"
    assert upper.get_xlabel() == "phase in years"
    assert all(0 <= float(text.get_text()) < 63 for text in upper.get_xticklabels())
    assert {text.get_text()[:2] for text in upper.get_yticklabels()} <= {"19", "20"}
    assert "e+" not in found.to_text()


def test_a_folder_without_vectors_is_refused_before_it_is_walked(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("round", "again"):  # whoever follows these links never comes to an end
        (tmp_path / "in" / name).symlink_to(tmp_path)
    with pytest.raises(InputError, match="holds no vectors"):
        search_archive(tmp_path / "query.png", tmp_path / "in")


def test_a_query_of_another_kind_than_the_archive_is_said(tmp_path):
    index = tmp_path / "v.parquet"
    names = {"path": ["a.png"], "model": ["universal.fashion_mnist"]}
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(unit(1, 320).ravel()), 320)
    pq.write_table(pa.table(names | {"vector": vectors}), index)
    (tmp_path / "a.csv").write_text("t,v\n2024-01-01,1\n2024-01-02,2\n2024-01-03,4\n")
    with pytest.raises(InputError, match=r"holds vectors of image files alone, and .*a\.csv is timeseries"):
        search_archive(tmp_path / "a.csv", index)
