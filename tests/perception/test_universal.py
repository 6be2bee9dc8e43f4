"""One set of weights for several modalities: shared tensors are shared, tasks come back whole, statistics stay apart."""

import dataclasses

import numpy as np
import pytest
import torch

from unipercept.datasets.base import LabelledSet, SetCard
from unipercept.errors import InputError, WeightsError
from unipercept.models import load_model
from unipercept.perception import universal
from unipercept.perception.packs import MapMaker, decode
from unipercept.perception.settings import MapSettings, Recipe
from unipercept.perception.task import N_MEASURES, features_of, measures
from unipercept.perception.universal import SharedNetwork, TaskSpec, UniversalConfig, extract, train_universal

TASKS = (
    TaskSpec("pictures", MapSettings("image", size=32), Recipe(), 8),
    TaskSpec("clouds", MapSettings("pointcloud", size=32, n_points=128), Recipe(), 4),
)
CONFIG = UniversalConfig(architecture="small", steps=100, warmup=0.1, learning_rate=3e-3)


def made(name, split, n=24, licence=True):
    """Bright against dark pictures; flat against long clouds."""
    rng = np.random.default_rng(len(split))
    targets = np.arange(n) % 2

    def read(i):
        if name == "pictures":
            return (rng.integers(0, 80, (32, 32, 3)) + 150 * targets[i]).astype(np.uint8)
        return (rng.normal(size=(128, 3)) * ((1, 1, 0.05) if targets[i] else (1, 0.05, 0.05))).astype(np.float32)

    modality = {"pictures": "image", "clouds": "pointcloud"}[name]
    card = SetCard(name, modality, "made", "own", licence, ("a", "b"), ("train",), "", "")
    return LabelledSet(card, split, targets, tuple(f"{split} {i}" for i in range(n)), read)


@pytest.fixture
def sets(monkeypatch):
    def parts(name, folder, fold=None):
        return {part: made(name, part) for part in ("train", "validation")}, "made"

    monkeypatch.setattr(universal, "open_parts", parts)


def test_both_tasks_are_learnt_and_each_comes_back_as_a_plain_model(sets, tmp_path):
    facts = train_universal("", "", tmp_path, config=CONFIG, device="cpu", tasks=TASKS)
    found = {task.name: facts["scores"][task.name]["validation"]["accuracy"] for task in TASKS}
    assert min(found.values()) > 0.9, found
    assert "| clouds | pointcloud | validation | 24 |" in (tmp_path / "universal.md").read_text()
    path = extract(tmp_path / "universal.safetensors", "clouds", tmp_path / "clouds.safetensors")
    model = load_model(str(path), in_channels=4, device="cpu")
    packs = decode(made("clouds", "validation"), TASKS[1].maps)
    maps, _ = MapMaker(TASKS[1].maps)(packs.values, packs.lengths)
    said = model.network(maps).reshape(24, 4, 2).mean(dim=1).argmax(dim=1)
    assert (said == packs.targets).float().mean() > 0.9
    assert model.labels == ("a", "b")
    with pytest.raises(InputError, match="knows the tasks"):
        extract(tmp_path / "universal.safetensors", "smells", tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="no universal"):
        extract(path, "clouds", tmp_path / "x.safetensors")


@pytest.mark.parametrize("own_statistics", [True, False])
def test_the_trunk_is_one_and_statistics_are_as_told(own_statistics):
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, own_statistics=own_statistics)
    shared = SharedNetwork(TASKS, {"pictures": 2, "clouds": 2}, config, torch.device("cpu"))
    first, second = shared.of("pictures"), shared.of("clouds")
    assert first.stages[1][0].pwconv1[1].weight is second.stages[1][0].pwconv1[1].weight
    assert first.downsample_layers[1][0].weight is second.downsample_layers[1][0].weight
    assert first.downsample_layers[0] is not second.downsample_layers[0]
    shared.train()
    norm = second.stages[0][0].norm
    before = norm.running_mean.clone()
    first(torch.randn(4, 3, 32, 32))
    assert torch.equal(norm.running_mean, before) is own_statistics


def test_features_learn_to_tell_measures_and_the_file_holds_no_ruler(sets, tmp_path):
    """Size means nothing to the classes; the ruler makes the features hold it nevertheless."""
    from safetensors.torch import load_file

    packs = decode(made("clouds", "validation", n=48), TASKS[1].maps)
    sizes = torch.exp(torch.linspace(-2, 2, 48))[torch.randperm(48, generator=torch.Generator().manual_seed(0))]
    packs = dataclasses.replace(packs, values=packs.values * sizes[:, None, None])
    errors = {}
    for measured in (0.0, 2.0):
        task = dataclasses.replace(TASKS[1], recipe=Recipe(resize=8.0), batch_size=8, measured=measured)
        out = tmp_path / str(measured)
        train_universal("", "", out, config=CONFIG, device="cpu", tasks=[task])
        path = extract(out / "universal.safetensors", "clouds", out / "clouds.safetensors")
        vectors = features_of(
            load_model(str(path), in_channels=4, device="cpu").network, packs, task.maps, torch.device("cpu")
        )
        vectors = torch.cat([vectors, torch.ones(48, 1)], dim=1).double()
        wanted = measures(packs.values)[:, :6].double()
        fitted = torch.linalg.solve(
            vectors[:32].T @ vectors[:32] + 1e-3 * torch.eye(vectors.shape[1]), vectors[:32].T @ wanted[:32]
        )
        errors[measured] = float((vectors[32:] @ fitted - wanted[32:]).abs().mean())
        assert not any("ruler" in key for key in load_file(out / "universal.safetensors"))
    assert errors[2.0] < 0.7 * errors[0.0], errors


def test_measures_are_what_a_ruler_says():
    rng = torch.Generator().manual_seed(0)
    box = torch.rand(1, 4000, 3, generator=rng) * torch.tensor([4.0, 1.0, 0.25])
    found = measures(box)
    assert found.shape == (1, N_MEASURES)
    assert torch.allclose(found[0, :3], torch.tensor([1.0, 0.0, -1.0]), atol=0.01)  # logarithms to the base 4
    assert torch.allclose(measures(4 * box)[0, :7] - found[0, :7], torch.ones(7), atol=1e-4)
    assert torch.allclose(found[0, 7:11], torch.tensor([0.0, 0.0, 0.0, 0.5]), atol=0.05)
    assert measures(torch.zeros(2, 5, 3)).isfinite().all()


def test_a_set_without_a_licence_is_refused(monkeypatch, tmp_path):
    parts = {"train": made("pictures", "train", licence=False)}
    monkeypatch.setattr(universal, "open_parts", lambda *_args, **_options: (parts, ""))
    with pytest.raises(InputError, match="may not be trained on pictures"):
        train_universal("", "", tmp_path, config=CONFIG, tasks=TASKS[:1])
