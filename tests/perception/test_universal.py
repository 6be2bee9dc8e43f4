"""One set of weights for several modalities: shared tensors are shared, tasks come back
whole, statistics stay apart.
"""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unipercept import shared_weights
from unipercept.datasets.base import LabelledSet, SetCard
from unipercept.datasets.camera_motion import Studio
from unipercept.datasets.processes import processes
from unipercept.errors import InputError, WeightsError
from unipercept.models import load_model
from unipercept.perception import networks, universal, universal_data
from unipercept.perception.measure_familiarity import measure_familiarity
from unipercept.perception.networks import from_scratch
from unipercept.perception.packs import MapMaker, decode
from unipercept.perception.scores import named, soft_cross_entropy, unexplained
from unipercept.perception.series_traits import N_TRAITS
from unipercept.perception.settings import MapSettings, Recipe
from unipercept.perception.task import Task
from unipercept.perception.universal import UniversalConfig, train_universal
from unipercept.perception.universal_data import TaskSpec
from unipercept.perception.universal_file import extract
from unipercept.perception.universal_network import SharedNetwork
from unipercept.weights import layout_of

TASKS = (
    TaskSpec("pictures", MapSettings("image", size=32), Recipe(), 8),
    TaskSpec("clouds", MapSettings("pointcloud", size=32, n_points=128), Recipe(), 4),
)
ONE_BLOCK_A_STAGE = {**networks.OWN_SIZES["small"], "depths": (1, 1, 1, 1), "kernel_sizes": ((3,), (13,), (13,), (13,))}
CONFIG = UniversalConfig(architecture="small", steps=30, warmup=0.1, learning_rate=3e-3)


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


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A block a stage, and statistics of a few batches: half of the time."""
    monkeypatch.setitem(networks.OWN_SIZES, "small", ONE_BLOCK_A_STAGE)
    monkeypatch.setattr(universal, "SETTLING_BATCHES", 4)


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
    files = [tmp_path / name / "universal.safetensors" for name in "ab"]
    usual = [shared_weights.familiarity(path, "pictures") for path in files]
    assert usual[0] is not None
    assert usual[1] is None  # nothing is left that it has not seen
    with pytest.raises(InputError, match="trained on the validation recordings too"):
        measure_familiarity(files[1], "", "")


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


def test_a_stopped_training_goes_on_to_the_same_bits(sets, monkeypatch, tmp_path):
    monkeypatch.setattr(universal, "SAVED_EVERY", 0.0)
    config = dataclasses.replace(CONFIG, steps=4)
    prepared = universal_data.prepare(TASKS, tmp_path, tmp_path, tmp_path, {}, lambda line: None)
    monkeypatch.setattr(universal, "prepare", lambda *_: prepared)  # threads draw its noise in any order

    def train(name, **options):
        train_universal("", "", tmp_path / name, config=config, device="cpu", tasks=TASKS, **options)
        return load_file(tmp_path / name / "universal.safetensors")

    def stop(line):
        if line.startswith("50 %"):
            raise KeyboardInterrupt

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("halves", tell=stop)
    with pytest.raises(InputError, match="add --resume"):
        train("halves")
    with pytest.raises(InputError, match=r"other settings or sets \(learning_rate\)"):
        other = dataclasses.replace(config, learning_rate=1.0)
        train_universal("", "", tmp_path / "halves", config=other, device="cpu", tasks=TASKS, resume=True)
    told = []
    halves = train("halves", resume=True, tell=told.append)
    assert next(line for line in told if "step" in line).startswith("50 %, step 3")  # not from the beginning
    assert whole.keys() == halves.keys()
    assert all(torch.equal(whole[key], halves[key]) for key in whole)
    assert not (tmp_path / "halves" / "last.pt").exists()


def test_series_without_a_kind_train_by_their_traits_and_leave_no_second_head(monkeypatch, tmp_path):
    def parts(name, folder, fold=None):
        return {part: processes(split=part, per_class=1) for part in ("train", "validation")}, "made"

    monkeypatch.setattr(universal_data, "open_parts", parts)
    task = TaskSpec("processes", MapSettings("timeseries"), Recipe(), 16, blends=16)
    packs, classes, licences = universal_data.prepare([task], tmp_path, tmp_path, tmp_path, {}, lambda line: None)
    train = packs["processes"]["train"]
    assert train.traits.shape == (32, N_TRAITS)
    assert (train.targets < 0).sum() == 16
    assert torch.equal(train.with_class().targets, torch.arange(16))
    config = dataclasses.replace(CONFIG, steps=2)
    seen = []
    told = universal._train
    monkeypatch.setattr(universal, "_train", lambda shared, *rest: (seen.append(shared), told(shared, *rest))[1])
    device = torch.device("cpu")
    facts = universal.train_on_packs([task], packs, classes, licences, tmp_path, config, device)
    assert facts["scores"]["processes"]["validation"]["n"] == 16
    assert seen[0].trait_heads["processes"].weight.abs().max() > 0  # it began at zero
    assert not [key for key in load_file(tmp_path / "universal.safetensors") if "trait" in key]


def test_real_windows_train_by_their_quantity_too_and_leave_no_head_of_it(monkeypatch, tmp_path):
    def parts(name, folder, fold=None):
        return {part: processes(split=part, per_class=1) for part in ("train", "validation")}, "made"

    rng = np.random.default_rng(0)
    records = {name: [rng.normal(size=1_500).cumsum()] for name in ("pressure", "wind", "rain")}
    monkeypatch.setattr(universal_data, "open_parts", parts)
    monkeypatch.setattr(universal_data, "training_records", lambda data: records)
    task = TaskSpec("processes", MapSettings("timeseries"), Recipe(), 16, blends=8, windows=24)
    packs, classes, licences = universal_data.prepare([task], tmp_path, tmp_path, tmp_path, {}, lambda line: None)
    train = packs["processes"]["train"]
    assert (train.traits.shape, train.n_quantities) == ((48, N_TRAITS + 3), 3)
    assert train.traits[:24, -3:].isnan().all()
    assert torch.equal(train.traits[24:, -3:].sum(dim=1), torch.ones(24))
    assert "NOAA" in licences["processes"]
    config, device = dataclasses.replace(CONFIG, steps=2), torch.device("cpu")
    universal.train_on_packs([task], packs, classes, licences, tmp_path, config, device)
    assert not [key for key in load_file(tmp_path / "universal.safetensors") if "trait" in key]


def test_a_named_quantity_costs_its_cross_entropy_and_an_unknown_one_nothing():
    truth = torch.tensor([[0.0, 1.0], [torch.nan, torch.nan], [1.0, 0.0]])
    logits = torch.tensor([[0.0, 2.0], [5.0, -5.0], [1.0, 0.0]])
    expected = torch.nn.functional.cross_entropy(logits[[0, 2]], torch.tensor([1, 0]))
    assert named(logits, truth).item() == pytest.approx(expected.item())
    assert named(logits, torch.full((3, 2), torch.nan)) == 0


def test_what_is_not_explained_of_traits_is_a_share_of_their_variance():
    truth = torch.tensor([[1.0, torch.nan], [3.0, 2.0], [5.0, 4.0]])
    perfect = truth.nan_to_num(nan=100.0)
    assert unexplained(perfect, truth) == 0
    means = torch.tensor([3.0, 3.0]).expand(3, 2)
    assert unexplained(means, truth).item() == pytest.approx(1, abs=1e-2)
    labels = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    assert soft_cross_entropy(torch.randn(2, 2), labels) == 0  # nothing has a class
