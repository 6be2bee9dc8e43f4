"""`unipercept familiarity`: what is usual to the heads of a file is measured from the sets that it was trained on."""

import dataclasses

import numpy as np
import pytest
import torch

from unipercept import shared_weights
from unipercept.datasets.base import LabelledSet, SetCard, Sound
from unipercept.errors import InputError
from unipercept.perception import measure_familiarity, universal_data
from unipercept.perception.networks import from_scratch
from unipercept.perception.packs import decode, make_pipeline, to_raw
from unipercept.perception.settings import MapSettings, Recipe
from unipercept.perception.universal import UniversalConfig, train_universal
from unipercept.perception.universal_data import TaskSpec
from unipercept.pipelines.base import pool_vector

TASK = TaskSpec("greys", MapSettings("image", size=32), Recipe(), 8)


def made(split, count=40, dark=0):
    """Bright against dark pictures of noise."""
    rng = np.random.default_rng(len(split))
    pictures = rng.integers(0, 60, (count, 32, 32, 3)) + (np.arange(count) % 2 * 150 + dark)[:, None, None, None]
    card = SetCard("greys", "image", "made", "own", True, ("dark", "bright"), ("train",), "", "")
    return LabelledSet(
        card, split, np.arange(count) % 2, tuple(map(str, range(count))), pictures.astype(np.uint8).__getitem__
    )


@pytest.fixture
def weights(monkeypatch, tmp_path):
    def parts(name, folder, fold=None):
        return {part: made(part) for part in ("train", "validation")}, "made"

    monkeypatch.setattr(universal_data, "open_parts", parts)
    monkeypatch.setattr(measure_familiarity, "open_parts", parts)
    monkeypatch.setattr(measure_familiarity, "TASKS", (TASK,))
    config = UniversalConfig(architecture="small", steps=2)
    train_universal("", "", tmp_path, config=config, device="cpu", tasks=(TASK,))
    return tmp_path / "universal.safetensors"


def test_after_it_was_measured_a_file_tells_its_own_pictures_from_others(weights):
    before = shared_weights.read_facts(weights)
    measure_familiarity.measure_familiarity(weights, "", "", device="cpu")
    assert shared_weights.read_facts(weights) == before
    found, network = shared_weights.familiarity(weights, "greys"), shared_weights.task_network(weights, "greys")
    for samples, low, high in (
        (made("validation"), 0.0, 0.1),
        (made("others"), 0.0, 0.4),
        (made("grey", dark=75), 0.9, 1),
    ):
        views = measure_familiarity.familiar_views(network, decode(samples, TASK.maps), TASK.maps, torch.device("cpu"))
        assert low <= float((found.ood_score(*views) > 1).double().mean()) <= high
    with pytest.raises(InputError, match="no task 'smells'"):
        measure_familiarity.measure_familiarity(weights, "", "", only=["smells"])


def test_views_of_packs_are_those_that_the_pipelines_pool():
    torch.manual_seed(0)
    maps = MapSettings("audio", size=32, length=32)
    rng = np.random.default_rng(0)
    sounds = [
        Sound((0.1 * rng.normal(size=n)).astype(np.float32), 16_000) for n in (3_000, 17_000)
    ]  # one window; several
    samples = dataclasses.replace(made("train", 2), read=sounds.__getitem__)
    network = from_scratch(Recipe(), 1, 2).eval()
    vectors, textures = measure_familiarity.familiar_views(network, decode(samples, maps), maps, torch.device("cpu"))
    pipe = make_pipeline(maps)
    for i, sound in enumerate(sounds):
        looked = [pipe.embed(piece) for piece in pipe.split(to_raw(pipe, sound, "audio"))]
        with torch.no_grad():
            views = [measure_familiarity.look_familiar(network, emap.tensor) for emap in looked]
        share = torch.cat([emap.real_share() for emap in looked])
        expected = (torch.cat([texture for _, texture in views]) * share[:, None]).sum(dim=0) / share.sum()
        assert torch.allclose(textures[i], expected, atol=2e-3)
        vector = pool_vector([(pooled, emap.real_share()) for (pooled, _), emap in zip(views, looked, strict=True)])
        assert torch.allclose(vectors[i], vector, atol=2e-3)
