"""One set of weights for several modalities: shared tensors are shared, tasks come back whole, statistics stay apart."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unipercept.datasets.base import LabelledSet, SetCard
from unipercept.datasets.camera_motion import Studio
from unipercept.errors import InputError, WeightsError
from unipercept.models import load_model
from unipercept.perception import universal, universal_data
from unipercept.perception.networks import from_scratch
from unipercept.perception.packs import MapMaker, decode
from unipercept.perception.settings import MapSettings, Recipe
from unipercept.perception.task import Task
from unipercept.perception.universal import SharedNetwork, UniversalConfig, train_universal
from unipercept.perception.universal_data import TaskSpec
from unipercept.perception.universal_file import extract
from unipercept.weights import layout_of

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

    monkeypatch.setattr(universal_data, "open_parts", parts)


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


def test_the_network_for_small_pictures_works_on_the_pixels_themselves_and_its_file_says_what_it_is():
    network = from_scratch(Recipe(architecture="fine"), 3, 10, has_branches=False).eval()
    sizes = [tuple(found.shape[1:]) for found in network.forward_stages(torch.zeros(1, 3, 112, 112))]
    assert sizes == [(64, 28, 28), (128, 14, 14), (256, 7, 7), (256, 4, 4)]
    layout = layout_of(network.state_dict())
    assert (layout.depths, layout.dims, layout.num_classes) == ((2, 6, 3, 1), (64, 128, 256, 256), 10)
    with pytest.raises(InputError, match="must be one of small, fine, unireplknet_a"):
        from_scratch(Recipe(architecture="coarse"), 3, 10)


def test_a_specialist_may_vary_its_recordings_otherwise_and_its_card_repeats_how(sets, monkeypatch, tmp_path):
    monkeypatch.setattr(universal_data, "TASKS", TASKS)
    config = dataclasses.replace(CONFIG, steps=1)
    changes = {"overrides": {"erasing": 0.4}, "map_overrides": {"size": 48}}
    facts = train_universal("", "", tmp_path, config=config, device="cpu", tasks=TASKS[:1], **changes)
    about = facts["tasks"]["pictures"]
    assert (about["recipe"]["erasing"], about["recipe"]["mixup"], about["maps"]["size"]) == (0.4, 0.0, 48)
    assert "--set size=48 --set erasing=0.4 --only pictures" in (tmp_path / "universal.md").read_text()
    with pytest.raises(InputError, match="takes drop_path from an option of its own"):
        train_universal("", "", tmp_path, config=config, tasks=TASKS, overrides={"drop_path": 0.2})


def test_a_set_without_a_licence_is_refused(monkeypatch, tmp_path):
    parts = {"train": made("pictures", "train", licence=False)}
    monkeypatch.setattr(universal_data, "open_parts", lambda *_args, **_options: (parts, ""))
    with pytest.raises(InputError, match="may not be trained on pictures"):
        train_universal("", "", tmp_path, config=CONFIG, tasks=TASKS[:1])


def test_a_training_goes_on_from_a_file_and_its_card_says_so(sets, tmp_path):
    first = dataclasses.replace(CONFIG, steps=3)
    train_universal("", "", tmp_path / "a", config=first, device="cpu", tasks=TASKS)
    start = tmp_path / "a" / "universal.safetensors"
    still = dataclasses.replace(CONFIG, steps=1, kept=1.0)
    facts = train_universal("", "", tmp_path / "b", config=still, device="cpu", tasks=TASKS, start=start)
    before, after = (load_file(tmp_path / name / "universal.safetensors") for name in "ab")
    assert all(torch.equal(before[key], after[key]) for key in before if "weight" in key and "head" not in key)
    assert facts["before"]["steps"] == 3
    card = (tmp_path / "b" / "universal.md").read_text()
    assert "after 3 steps" in card
    assert "--start BEFORE/universal.safetensors --keep 1.0" in card
    (tmp_path / "none.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match="universal"):
        train_universal("", "", tmp_path / "c", config=still, tasks=TASKS, start=tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="give a universal file"):  # random weights are nothing to keep
        train_universal("", "", tmp_path / "c", config=still, tasks=TASKS)


def test_the_last_training_takes_validation_too_and_pictures_vote_with_their_mirror_image(sets, monkeypatch, tmp_path):
    seen = []
    train = universal._train
    monkeypatch.setattr(
        universal,
        "_train",
        lambda shared, tasks, packs, *rest: (seen.append(packs), train(shared, tasks, packs, *rest))[1],
    )
    task = dataclasses.replace(TASKS[0], recipe=Recipe(flip=0.5))
    config = dataclasses.replace(CONFIG, steps=1)
    chosen = train_universal("", "", tmp_path / "a", config=config, device="cpu", tasks=[task])
    last = train_universal("", "", tmp_path / "b", config=config, device="cpu", tasks=[task], all_train=True)
    assert [packs["pictures"]["train"].ids.count("validation 3") for packs in seen] == [0, 1]
    assert set(chosen["scores"]["pictures"]) == {"validation", "validation, mirrored too"}
    assert not last["scores"]["pictures"]  # nothing is left that it has not seen
    assert "--all" in (tmp_path / "b" / "universal.md").read_text()


def test_clips_are_made_anew_and_take_the_place_of_the_oldest(monkeypatch):
    rng = np.random.default_rng(0)
    studio = Studio.of_arrays([rng.integers(0, 256, (60, 80, 3), dtype=np.uint8) for _ in range(3)], is_varied=True)
    monkeypatch.setattr(universal_data, "POOL", 26)
    monkeypatch.setattr(universal_data, "RENEWED", 13)
    fresh = universal_data.fresh_clips(studio, 16, seed=0)
    pool = universal_data.pool_of(fresh)
    assert (pool.values.shape, pool.targets.bincount().tolist()) == ((26, 48, 16, 16), [2] * 13)
    task = Task(
        pool,
        pool.subset(np.arange(3)),
        MapSettings("video", size=16, folding="stack"),
        Recipe(),
        13,
        torch.device("cpu"),
    )
    task.renew(*fresh(13))
    changed = (task.values[:26] != pool.values).flatten(1).any(dim=1)
    assert changed.tolist() == [True] * 13 + [False] * 13
    task.renew(torch.zeros(14, 48, 16, 16, dtype=torch.uint8), torch.zeros(14, dtype=torch.int64))
    assert (task.values[:26].flatten(1).amax(dim=1) == 0).nonzero().flatten().tolist() == [0, *range(13, 26)]
    assert torch.equal(task.values[26:], pool.values[:3])  # validation stays as it is
