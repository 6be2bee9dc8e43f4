"""Many windows and many files share passes of the network, and say what they say one by one."""

from importlib.util import find_spec
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
from PIL import Image

import unipercept
from unipercept import api
from unipercept.errors import InputError
from unipercept.models import Model
from unipercept.pipelines.batches import Batches
from unipercept.pipelines.image import ImagePipeline
from unipercept.pipelines.pointcloud import PointCloudPipeline
from unipercept.results import Labels


@pytest.fixture
def passes(monkeypatch):
    """(head, maps) of each pass of a network."""
    found, predict = [], Model.predict

    def counted(self, emap):
        found.append((self.name, len(emap)))
        return predict(self, emap)

    monkeypatch.setattr(Model, "predict", counted)
    return found


@pytest.fixture(scope="module")
def minute(tmp_path_factory):
    soundfile = pytest.importorskip("soundfile")
    path = tmp_path_factory.mktemp("sounds") / "minute.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 60 * 16_000).astype(np.float32), 16_000)
    return path


def alone(pipe, path):
    """The labels that the pipeline's head gives when it looks at each map by itself."""
    outputs = [(pipe.model.predict(emap), emap.real_share()) for emap in pipe.maps(path)]
    weight = sum(share for _, share in outputs)
    return sum(output.logits.softmax(dim=1) * share for output, share in outputs)[0] / weight


def test_the_windows_of_a_sound_share_passes_and_each_head_looks_at_each_window_once(minute, passes):
    found = unipercept.perceive(minute)
    by_head = {name: [count for head, count in passes if head == name] for name, _ in passes}
    n_windows = {
        name: sum(1 for _ in unipercept.pipeline("audio", name).maps(minute))
        for name in ("universal.esc10", "universal.fsdd")
    }
    assert {name: sum(counts) for name, counts in by_head.items()} == n_windows
    assert by_head["universal.fsdd"] == [32, n_windows["universal.fsdd"] - 32]
    assert len(by_head["universal.esc10"]) == 1
    passes.clear()
    expected = alone(unipercept.pipeline("audio", found.model), minute)
    assert {count for _, count in passes} == {1}
    torch.testing.assert_close(torch.tensor(found.scores), expected.sort(descending=True)[0], rtol=1e-4, atol=1e-6)


def test_pictures_share_passes_and_bad_ones_cost_the_others_nothing(tmp_path, passes):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (60, 50, 3), dtype=np.uint8)).save(path)
    paths.insert(2, tmp_path / "absent.png")
    results = dict(api.perceive_files(paths))
    assert list(results) == [str(path) for path in paths]
    assert isinstance(results.pop(str(paths[2])), InputError)
    assert passes == [("universal.fashion_mnist", 5)]
    for path, result in results.items():
        assert isinstance(result, Labels)
        apart = unipercept.perceive(path)
        assert isinstance(apart, Labels)
        assert apart.labels == result.labels
        torch.testing.assert_close(torch.tensor(apart.scores), torch.tensor(result.scores), rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="absent"):
        unipercept.perceive(paths)


def test_heads_that_want_the_same_maps_read_a_file_once(tmp_path, passes, monkeypatch):
    path = tmp_path / "cloud.xyz"
    np.savetxt(path, np.random.default_rng(0).normal(size=(500, 3)))
    reads, read = [], PointCloudPipeline.read
    monkeypatch.setattr(PointCloudPipeline, "read", lambda self, path: reads.append(path) or read(self, path))
    found = unipercept.perceive(path)
    assert sorted(passes) == [("universal.shapes3d", 4), ("universal.things3d", 4)]
    assert len(reads) == 1
    by_itself = {
        name: unipercept.pipeline("pointcloud", name)(path) for name in ("universal.shapes3d", "universal.things3d")
    }
    assert found.labels == by_itself[found.model].labels


def test_progress_is_the_share_that_is_done(minute, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "p.png")
    told = []
    unipercept.perceive([minute, tmp_path / "p.png"], on_progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1
    assert len(told) > 20  # pieces, not files
    assert told[0] < 0.05


def test_a_batch_goes_when_it_is_full_and_small_ones_when_too_much_waits(monkeypatch):
    from unipercept.embedding import EmbeddingMap
    from unipercept.pipelines import batches as module

    sent = []
    batches = Batches(lambda network, maps, owners: sent.append((network, tuple(maps.shape), owners)), batch_size=2)
    for owner in "abc":
        batches.add("n", owner, EmbeddingMap(torch.zeros(1, 1, 224, 224), "image"))
    assert sent == [("n", (2, 1, 224, 224), [("a", 1.0), ("b", 1.0)])]
    batches.add("n", "wide", EmbeddingMap(torch.zeros(3, 1, 448, 448), "image"))  # as many cells as two maps, and more
    assert [shape[0] for _, shape, _ in sent] == [2, 1, 1, 1]
    monkeypatch.setattr(module, "MAX_PENDING", 224 * 224)
    batches.add("other", "d", EmbeddingMap(torch.zeros(1, 1, 224, 224), "image"))
    assert [network for network, _, _ in sent[4:]] == ["n", "other"]


def test_files_are_decoded_at_the_same_time(tmp_path, monkeypatch):
    """One after another, in the thread that waits for the network, the first would wait for the second in vain."""
    monkeypatch.setattr("unipercept.decoders.n_processors", lambda: 2)
    together, read = Barrier(2), ImagePipeline.read
    monkeypatch.setattr(ImagePipeline, "read", lambda self, path: (together.wait(20), read(self, path))[1])
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path in paths:
        Image.new("RGB", (20, 20)).save(path)
    assert [path for path, _ in api.perceive_files(paths)] == [str(path) for path in paths]


def test_the_turning_earth_is_no_shaking_camera():
    """Sixteen frames of its 30 s are two seconds apart, and the earth has turned too far between them."""
    gradio = find_spec("gradio")
    if gradio is None or gradio.origin is None:
        pytest.skip("gradio, which carries the film, is not installed")
    found = unipercept.perceive(Path(gradio.origin).parent / "media_assets/videos/world.mp4")
    assert isinstance(found, Labels)
    assert found.labels[0] == "pan left"  # what moves to the right
    assert "notice" not in found.metadata
