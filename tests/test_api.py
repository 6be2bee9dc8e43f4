"""The Python front door."""

from os import PathLike

import numpy as np
import pytest
import torch
from PIL import Image

import unipercept
from unipercept import api, weights
from unipercept.backbone import build_backbone, seed_weights
from unipercept.errors import InputError, NoTrainedHeadError
from unipercept.model_cards import model_for
from unipercept.models import _load
from unipercept.results import Anomalies, Embedding, Labels


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A picture, named as a sound, and a sound, named as data."""
    soundfile = pytest.importorskip("soundfile")
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)).save(folder / "picture.wav", "PNG")
    soundfile.write(folder / "sound.dat", rng.normal(0, 0.1, 24_000), 16_000, format="WAV")
    return folder / "picture.wav", folder / "sound.dat"


def test_mixed_modalities_in_one_call_keep_their_order(recordings):
    results = unipercept.encode([*recordings, recordings[0]])
    assert [result.modality for result in results] == ["image", "audio", "image"]
    for result in results:
        assert isinstance(result, Embedding)
        assert result.vector.shape == (320,)
        assert float(result.vector.norm()) == pytest.approx(1, abs=1e-6)
    assert results[0].similarity(results[2]) == pytest.approx(1, abs=1e-6)


def test_encode_agrees_with_the_pipeline(recordings):
    for path in recordings:
        result = unipercept.encode(path)
        pipe = unipercept.pipeline(result.modality)
        torch.testing.assert_close(pipe.encode(path), result.vector, rtol=0, atol=2e-6)


def test_a_pipeline_reads_embeds_and_takes_a_config(recordings):
    from unipercept.pipelines.image import ImageConfig

    pipe = unipercept.pipeline("image", config=ImageConfig(size=96))
    assert pipe.embed(pipe.read(recordings[0])).tensor.shape == (1, 3, 96, 96)


def test_a_model_without_a_head_says_so(recordings):
    for path in recordings:
        with pytest.raises(NoTrainedHeadError, match="no trained head"):
            unipercept.perceive(path, model="unireplknet_a")


def test_the_default_model_names_what_it_knows_and_says_what_is_out_of_distribution(recordings):
    for path in recordings:
        found = unipercept.perceive(path)
        assert found.model == f"universal.{found.metadata['task']}"
        assert ("notice" in found.metadata) == (found.metadata["ood_score"] > 1)
        assert found.metadata.get("notice", "") in found.to_text()


def test_of_a_series_the_default_model_says_what_does_not_fit(tmp_path):
    path = tmp_path / "load.csv"
    path.write_text(
        "time,load\n" + "".join(f"2020-01-{1 + i // 24:02d} {i % 24:02d}:00,{i % 24}\n" for i in range(240))
    )
    assert unipercept.encode(path).model == model_for("default", "timeseries")
    assert isinstance(unipercept.perceive(path), Anomalies)


def test_a_head_speaks_of_its_own_modality_alone(recordings, tmp_path):
    path = tmp_path / "model.safetensors"
    network = seed_weights(build_backbone("unireplknet_a", num_classes=2))
    weights.save_weights(network, path, {"labels": ["cat", "dog"], "modality": "image"})
    result = unipercept.perceive(recordings[0], model=str(path))
    assert isinstance(result, Labels)
    assert set(result.labels) == {"cat", "dog"}
    assert sum(result.scores) == pytest.approx(1)
    assert unipercept.perceive([recordings[0]], model=str(path)) == [result]
    with pytest.raises(NoTrainedHeadError, match="for audio"):
        unipercept.perceive(recordings[1], model=str(path))


def test_of_several_heads_that_speaks_to_which_the_recording_is_least_out_of_distribution(recordings, monkeypatch):
    scores = {"one": 3.0, "two": 0.5, "three": 2.0}

    class Judging:
        looks_at_maps = False

        def __init__(self, modality, name, device):
            self.modality, self.name = modality, name

        def __call__(self, path):
            found = {"ood_score": scores[self.name]}
            return Labels(("x",), (1.0,), str(path), self.modality, self.name, found)

    monkeypatch.setattr(api, "pipeline", Judging)
    monkeypatch.setattr(api, "tasks_for", lambda model, modality: tuple(scores))
    assert unipercept.perceive(recordings[0]).model == "two"


def test_paths_may_come_from_any_loop(recordings, tmp_path):
    wanted = [result.source for result in unipercept.encode(list(recordings))]
    assert [result.source for result in unipercept.encode(path for path in recordings)] == wanted
    assert [result.source for result in unipercept.encode(np.array(wanted))] == wanted
    assert unipercept.perceive(iter(())) == []


def test_any_object_that_names_a_path_is_one(recordings):
    class Named(PathLike):
        def __fspath__(self):
            return str(recordings[0])

    assert isinstance(unipercept.encode(Named()), Embedding)  # a list of one before
    assert isinstance(unipercept.perceive(Named()), Labels)


def test_a_model_may_be_given_as_a_path(recordings, tmp_path):
    path = tmp_path / "model.safetensors"
    network = seed_weights(build_backbone("unireplknet_a", num_classes=2))
    weights.save_weights(network, path, {"labels": ["cat", "dog"], "modality": "image"})
    assert unipercept.pipeline("image", path).labels() == ("cat", "dog")
    assert unipercept.perceive(recordings[0], model=path).model == str(path)
    assert unipercept.encode(recordings[0], model=path).model == str(path)


@pytest.mark.parametrize("modality", ["image", "audio", "video", "pointcloud", "timeseries", "weather"])
def test_arguments_of_another_type_are_refused_in_one_line(modality):
    pipe = unipercept.pipeline(modality)
    for raw in (np.zeros((4, 4)), torch.zeros(3, 4, 4), None):
        with pytest.raises(TypeError, match=r"which read returns, got (ndarray|Tensor|NoneType)"):
            pipe.embed(raw)
    with pytest.raises(TypeError, match=r"must be of type .*Config, got dict"):
        unipercept.pipeline(modality, config={})
    with pytest.raises(TypeError, match="model must be a name or the path"):
        unipercept.pipeline(modality, model=None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"horizon": "5"}, "horizon must be a whole number of steps, got '5'"),
        ({"horizon": 5, "period": 2.5}, "period must be a whole number"),
        ({"horizon": 5, "period": 10**9}, "period may be at most 100,000 steps"),  # it took as many numbers in memory
        ({"horizon": 5, "seconds": "3"}, "seconds must be a number"),
        ({"horizon": 5, "methods": "season"}, "unknown method 'season'"),
    ],
)
def test_numbers_of_a_forecast_that_are_none_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        unipercept.forecast(np.arange(48.0), **options)


def test_a_horizon_may_be_any_integer_and_a_method_a_single_name():
    series = 10 + np.sin(np.arange(96) * 2 * np.pi / 12)
    result = unipercept.forecast(series, np.int64(3), methods="seasonal", seconds=3)
    assert "3 steps" in result.to_text()


def test_what_cannot_be_used_is_refused(recordings, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        unipercept.encode(tmp_path / "absent.png")
    with pytest.raises(InputError, match="does not exist"):
        unipercept.encode([recordings[0], tmp_path / "absent.png"])
    with pytest.raises(InputError, match="modality must be one of"):
        unipercept.pipeline("smell")
    with pytest.raises(InputError, match="there is no model"):
        unipercept.pipeline("image", model="resnet50")
    with pytest.raises(InputError, match="batch_size"):
        unipercept.encode(recordings[0], batch_size=0)


def test_a_folder_without_a_model_is_not_a_model_misspelt(tmp_path):
    with pytest.raises(InputError, match=r"holds no model.safetensors: name another"):
        unipercept.pipeline("image", model=tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r"the training has not finished; go on with it \(--resume\)"):
        unipercept.pipeline("image", model=tmp_path)


def test_the_modality_can_be_forced(recordings):
    with pytest.raises(InputError):
        unipercept.encode(recordings[0], modality="audio")


def test_every_name_of_the_front_door_is_there():
    assert all(getattr(unipercept, name) is not None for name in unipercept.__all__)
    assert set(dir(unipercept)) >= {"pipeline", "perceive", "encode", "detect_modality", "EmbeddingMap", "Axis"}


@pytest.mark.parametrize("verb", [unipercept.encode, unipercept.perceive, unipercept.detect_modality])
@pytest.mark.parametrize("thing", [3, None, np.zeros((4, 4, 3)), torch.zeros(3)])
def test_what_is_no_path_is_named_in_one_line(verb, thing):
    with pytest.raises(TypeError, match="expected the path of a file, got") as caught:
        verb(thing)
    assert "\n" not in str(caught.value)


@pytest.fixture
def elsewhere():
    """Another default device: one whose tensors hold nothing, so that none may be made there."""
    before = torch.get_default_device()
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(before)


def test_a_default_device_set_by_the_caller_changes_nothing(recordings, tmp_path, elsewhere):
    rng = np.random.default_rng(0)
    np.savetxt(tmp_path / "cloud.xyz", rng.normal(size=(500, 3)))
    np.savetxt(tmp_path / "series.csv", np.sin(np.arange(200) / 4), header="value", comments="")
    paths = [*recordings, tmp_path / "cloud.xyz", tmp_path / "series.csv"]
    kinds = ("image", "audio", "pointcloud", "timeseries")
    options = {"methods": ("seasonal", "linear", "pretrained"), "seconds": 60}
    vectors, forecast = [r.vector for r in unipercept.encode(paths)], unipercept.forecast(paths[3], 12, **options)
    odd = unipercept.perceive(paths[3])
    elsewhere()
    for kind, path, vector in zip(kinds, paths, vectors, strict=True):
        pipe = unipercept.pipeline(kind)
        assert pipe.embed(pipe.read(path)).tensor.device.type == "cpu"
        torch.testing.assert_close(pipe.encode(path), vector, rtol=0, atol=2e-6)
    assert all(torch.equal(r.vector, v) for r, v in zip(unipercept.encode(paths), vectors, strict=True))
    np.testing.assert_array_equal(unipercept.forecast(paths[3], 12, **options).values, forecast.values)
    np.testing.assert_array_equal(unipercept.perceive(paths[3]).size, odd.size)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16])
def test_a_default_type_set_by_the_caller_changes_nothing(recordings, tmp_path, kind):
    """Networks were loaded in it, and failed on their first map."""
    np.savetxt(tmp_path / "cloud.xyz", np.random.default_rng(0).normal(size=(500, 3)))
    paths = [*recordings, tmp_path / "cloud.xyz"]
    vectors = [result.vector for result in unipercept.encode(paths)]
    _load.cache_clear()
    torch.set_default_dtype(kind)
    try:
        again = [result.vector for result in unipercept.encode(paths)]
        pipes = [unipercept.pipeline(name) for name in ("image", "audio", "pointcloud")]
        maps = [pipe.embed(pipe.read(path)).tensor for pipe, path in zip(pipes, paths, strict=True)]
    finally:
        torch.set_default_dtype(torch.float32)
        _load.cache_clear()
    assert all(map(torch.equal, again, vectors))
    assert {one.dtype for one in maps} == {torch.float32}
