"""A folder of recordings to an evaluated model: maps as the pipelines make them, exact resume,
refusals, and use of the result.
"""

import json
import re
import shutil
import wave
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import unipercept
from unipercept.datasets import labelled_set
from unipercept.datasets.base import LabelledSet, SetCard
from unipercept.errors import InputError
from unipercept.perception import augment, networks
from unipercept.perception.evaluate import evaluate_run
from unipercept.perception.packs import MapMaker, Packs, decode, make_pipeline, pack, stacked, to_raw
from unipercept.perception.run import train_run
from unipercept.perception.scores import Scores, best_temperature, pooled, wilson
from unipercept.perception.settings import MODALITIES, RECIPES, MapSettings, Recipe
from unipercept.perception.splits import draw
from unipercept.perception.task import Task
from unipercept.train import fit

SMALL_MAPS = {"size": 32}
QUICK = {"epochs": 4, "min_steps": 0, "batch_size": 8}


def write_tone(path, hertz, seconds=0.4, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(int(8000 * seconds)) / 8000
    samples = 0.3 * np.sin(2 * np.pi * hertz * t + rng.uniform(0, 6)) + 0.02 * rng.normal(size=len(t))
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, len(t), "NONE", ""))
        file.writeframes((samples * 32767).astype("<i2").tobytes())


@pytest.fixture(scope="module", autouse=True)
def quick():
    """A block a stage: half of the time."""
    small = {**networks.OWN_SIZES["small"], "depths": (1, 1, 1, 1), "kernel_sizes": ((3,), (13,), (13,), (13,))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(networks.OWN_SIZES, "small", small)
        yield


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    root = tmp_path_factory.mktemp("tones")
    for name, hertz in (("low", 300), ("high", 2000)):
        (root / name).mkdir()
        for i in range(10):
            write_tone(root / name / f"{i}.wav", hertz, seed=i)
    return root


@pytest.fixture(scope="module")
def run(tones, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tones"
    train_run(str(tones), folder, overrides={**QUICK, "epochs": 10}, map_overrides=SMALL_MAPS, device="cpu")
    return folder


def one(modality, recording):
    card = SetCard("one", modality, "here", "own", False, ("a",), ("all",), "", "")
    return LabelledSet(card, "all", np.zeros(1, np.int64), ("it",), lambda _: recording)


def recordings():
    rng = np.random.default_rng(0)
    from unipercept.datasets.base import Sound

    yield "image", rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
    yield "audio", Sound((0.1 * rng.normal(size=9_000)).astype(np.float32), 16_000)
    yield "audio", Sound((0.1 * rng.normal(size=60_000)).astype(np.float32), 16_000)
    yield "video", rng.integers(0, 255, (16, 40, 50, 3), dtype=np.uint8)
    yield "pointcloud", rng.normal(size=(500, 3)).astype(np.float32)


@pytest.mark.parametrize(("modality", "recording"), list(recordings()))
@pytest.mark.parametrize("folding", ["grid", "stack"])
def test_training_sees_the_very_maps_that_the_pipeline_makes(modality, recording, folding):
    settings = MapSettings(modality, size=32, n_points=300, folding=folding)
    packs = decode(one(modality, recording), settings)
    maps, weights = MapMaker(settings)(packs.values, packs.lengths)
    pipe = make_pipeline(settings)
    made = [pipe.embed(piece) for piece in pipe.split(to_raw(pipe, recording, modality))]
    expected = torch.cat([emap.tensor for emap in made])
    # Bytes are exact; log-mel and points differ by the rounding of float32 sums in another order.
    assert torch.allclose(
        maps, expected, atol=0 if modality in ("image", "video") else 2e-3, rtol=1e-3 if modality == "audio" else 1e-5
    )
    assert torch.allclose(weights, torch.cat([emap.real_share() for emap in made]), atol=1e-3)
    assert maps.shape[1] == settings.in_channels


def test_rendered_clips_are_stacked_as_the_pipeline_stacks_a_file():
    clip = np.random.default_rng(0).integers(0, 256, (16, 73, 73, 3), dtype=np.uint8)
    settings = MapSettings("video", folding="stack")
    [(values, _)] = pack(make_pipeline(settings), clip, settings)
    assert np.array_equal(stacked(torch.from_numpy(clip)[None], 64)[0].numpy(), values)
    with pytest.raises(InputError, match="73x73x3"):
        stacked(torch.zeros(1, 16, 72, 72, 3, dtype=torch.uint8), 64)


def test_a_model_of_ones_own_says_what_is_out_of_distribution(run, tones, tmp_path):
    usual = unipercept.perceive(tones / "low" / "0.wav", model=str(run))
    assert usual.metadata["ood_score"] < 2
    path = tmp_path / "noise.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 3200, "NONE", ""))
        file.writeframes((np.random.default_rng(0).normal(size=3_200) * 5_000).astype("<i2").tobytes())
    other = unipercept.perceive(path, model=str(run))
    assert other.metadata["ood_score"] > max(2, 3 * usual.metadata["ood_score"])
    assert "it knows only high, low" in other.metadata["notice"]


def test_a_run_writes_model_scores_and_a_report_that_needs_nothing_else(run, tones):
    scores = json.loads((run / "scores.json").read_text())
    assert scores["test"]["accuracy"] == 1.0
    html = (run / "report.html").read_text()
    assert "unipercept perceive" in html
    assert set(re.findall(r"""(?:src|href)=["']?(\w+):""", html)) == {"data"}
    split = json.loads((run / "split.json").read_text())
    assert len({*split["train"], *split["validation"], *split["test"]}) == 20
    result = unipercept.perceive(tones / "low" / "0.wav", model=str(run))
    assert result.labels[0] == "low"
    assert abs(sum(result.scores) - 1) < 1e-5


@pytest.mark.parametrize("inside", ["", "run", "low/run"])
def test_a_run_among_the_recordings_is_refused_before_anything_is_written(tones, inside):
    before = sorted(tones.rglob("*"))
    with pytest.raises(InputError, match="would count as a class; name a folder outside"):
        train_run(str(tones), tones / inside, device="cpu")
    assert sorted(tones.rglob("*")) == before


def test_a_last_batch_of_one_trains_where_maps_end_as_one_cell(tmp_path):
    for name, level in (("dark", 0), ("bright", 128)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(6):
            pixels = level + np.random.default_rng(i).integers(0, 128, (32, 32, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "set" / name / f"{i}.png")
    found = train_run(
        str(tmp_path / "set"), tmp_path / "run", overrides={**QUICK, "epochs": 2, "batch_size": 7}, map_overrides=SMALL_MAPS, device="cpu",
    )  # fmt: skip
    assert json.loads((tmp_path / "run" / "run.json").read_text())["counts"]["train"] == 8  # a batch of 7 and one of 1
    assert found.scores["test"]["n"] == 2


def test_evaluation_agrees_with_the_run_and_refuses_unknown_classes(run, tones, tmp_path):
    again = evaluate_run(run, str(tones), device="cpu")
    assert again["accuracy"] == json.loads((run / "scores.json").read_text())["test"]["accuracy"]
    assert "2 votes" in evaluate_run(run, str(tones), votes=2, device="cpu")["protocol"]
    for name in ("low", "unknown"):
        (tmp_path / name).mkdir()
        for i in range(2):
            write_tone(tmp_path / name / f"{i}.wav", 300)
    with pytest.raises(InputError, match="does not know the class 'unknown'"):
        evaluate_run(run, str(tmp_path), split="all")


def test_a_run_of_another_version_is_named_and_its_model_is_evaluated(run, tones, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    content = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(content | {"recipe": content["recipe"] | {"magic": 1}}))
    with pytest.raises(
        InputError, match=r"holds no recipe as this version writes it .*magic.*; evaluate .*safetensors"
    ):
        evaluate_run(other, str(tones))
    assert evaluate_run(other / "model.safetensors", str(tones), device="cpu", split="all")["accuracy"] > 0.5


def test_a_shipped_model_is_evaluated_on_recordings_of_its_classes(tmp_path):
    shapes = labelled_set("shapes3d", "", "test")
    for name in ("sphere", "cross"):
        (tmp_path / name).mkdir()
        for position in [i for i in range(len(shapes)) if shapes.ids[i].startswith(name)][:2]:
            points = shapes.read(position)
            np.savetxt(tmp_path / name / f"{position}.xyz", points)
    found = evaluate_run("universal.shapes3d", str(tmp_path), split="all", device="cpu")
    assert (found["n"], found["accuracy"], set(found["per_class"])) == (4, 1.0, {"sphere", "cross"})
    assert evaluate_run("universal.shapes3d", str(tmp_path), split="all", votes=2, device="cpu")["protocol"].endswith(
        "2 votes"
    )
    with pytest.raises(InputError, match="does not say how recordings become its maps"):
        evaluate_run("unireplknet_a", str(tmp_path), split="all")
    with pytest.raises(InputError, match="votes must be at least 1"):
        evaluate_run("universal.shapes3d", str(tmp_path), split="all", votes=0)


def test_a_run_does_not_resume_with_other_recordings(run, tones, tmp_path):
    """As many, of other names: drawn anew, those that trained would come to test."""
    other, folder = tmp_path / "tones", tmp_path / "run"
    shutil.copytree(tones, other)
    shutil.copytree(run, folder)
    settings = {"overrides": {**QUICK, "epochs": 10}, "map_overrides": SMALL_MAPS, "device": "cpu", "resume": True}
    (other / "low" / "3.wav").rename(other / "low" / "33.wav")
    before = (folder / "split.json").read_bytes()
    with pytest.raises(InputError, match=r"other recordings \(1 new, 1 gone\)"):
        train_run(str(other), folder, **settings)
    assert (folder / "split.json").read_bytes() == before


def test_a_killed_run_resumes_to_the_same_bits(tones, tmp_path):
    settings = {"overrides": {**QUICK, "epochs": 2}, "map_overrides": SMALL_MAPS, "device": "cpu"}
    train_run(str(tones), tmp_path / "whole", **settings)

    def kill(progress):
        if progress.step == 3:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train_run(str(tones), tmp_path / "cut", on_progress=kill, **settings)
    with pytest.raises(InputError, match="add --resume"):
        train_run(str(tones), tmp_path / "cut", **settings)
    train_run(str(tones), tmp_path / "cut", resume=True, **settings)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0][1000:] == files[1][1000:]


def test_a_run_ahead_teaches_the_same_as_one_that_waits(tmp_path):
    """What a GPU does, but for the graph."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, (20, 3, 32, 32), generator=generator, dtype=torch.uint8)
    ones = torch.ones(20, dtype=torch.long)
    packs = Packs(values, ones, torch.arange(20), torch.arange(20) % 2, tuple(map(str, range(20))))
    maps, recipe = MapSettings("image", size=32), RECIPES["image"].changed(batch_size=8)
    weights = []
    for ahead in (False, True):
        torch.manual_seed(0)
        network = networks.build_network(recipe, maps, 2)
        task = Task(packs, packs, maps, recipe, 2, torch.device("cpu"))
        config = replace(task.config("cpu", run_ahead=ahead), steps=4)
        result = fit(
            network,
            None,
            task.training_positions(),
            loss=task.loss,
            config=config,
            validation=task.validation_positions(),
            metrics=task.metrics,
        )
        assert len(result.series("loss")[0]) == (1 if ahead else 4)
        weights.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert (weights[0] - weights[1]).norm() < 1e-3 * weights[0].norm()  # AdamW divides what is all rounding by itself


def test_a_probe_and_a_head_start_from_a_run(run, tones, tmp_path):
    for tuning in ("linear", "head"):
        found = train_run(
            str(tones),
            tmp_path / tuning,
            start=str(run),
            tuning=tuning,
            overrides=QUICK,
            map_overrides=SMALL_MAPS,
            device="cpu",
        )
        assert found.scores["test"]["accuracy"] > 0.8
    with pytest.raises(InputError, match="--from"):
        train_run(str(tones), tmp_path / "x", tuning="linear")


def test_bad_files_are_listed_up_to_a_share_and_mixed_modalities_refused(tones, tmp_path):
    brief = {**QUICK, "epochs": 1}
    root = tmp_path / "tones"
    shutil.copytree(tones, root)
    (root / "low" / "3.wav").write_bytes(b"RIFF damaged")
    found = train_run(str(root), tmp_path / "run", overrides=brief, map_overrides=SMALL_MAPS, device="cpu")
    assert [name for name, _ in found.skipped] == ["low/3.wav"]
    for i in range(5):
        (root / "high" / f"{i}.wav").write_bytes(b"RIFF damaged")
    with pytest.raises(InputError, match="cannot be decoded"):
        train_run(str(root), tmp_path / "run2", overrides=brief, map_overrides=SMALL_MAPS, device="cpu")
    with pytest.raises(InputError, match="architecture must be one of"):
        train_run(str(tones), tmp_path / "run2", overrides={"architecture": "resnet"}, device="cpu")
    train_run(str(tones), tmp_path / "run2", overrides=brief, map_overrides=SMALL_MAPS, device="cpu")  # nothing to lose
    Image.new("RGB", (8, 8)).save(tones / "low" / "picture.png")
    try:
        with pytest.raises(InputError, match="mixes modalities"):
            train_run(str(tones), tmp_path / "run3", device="cpu")
    finally:
        (tones / "low" / "picture.png").unlink()


def test_groups_stay_on_one_side_of_a_split():
    card = SetCard("g", "audio", "", "", False, ("a", "b"), ("all",), "", "")
    groups = tuple(f"speaker {i % 8}" for i in range(160))
    samples = LabelledSet(card, "all", np.arange(160) // 80, tuple(map(str, range(160))), lambda i: i, groups)
    parts = draw(samples, ("train", "validation", "test"), 0)
    seen = [set(part.groups) for part in parts.values()]
    assert all(seen)
    assert not seen[0] & seen[1]
    assert not (seen[0] | seen[1]) & seen[2]
    assert sum(len(part) for part in parts.values()) == 160


@pytest.mark.parametrize("modality", MODALITIES)
def test_augmentation_keeps_shapes_and_label_mass(modality):
    torch.manual_seed(0)
    recipe = RECIPES[modality].changed(mixup=0.5, cutmix=0.5)
    labels = augment.one_hot(torch.tensor([0, 1, 2]), 4, recipe.label_smoothing)
    if modality == "audio":
        samples, lengths = torch.randn(3, 500), torch.tensor([500, 300, 100])
        mixed, soft = augment.mix_waveforms(samples, lengths, labels, recipe)
        assert torch.equal(mixed[2, 100:], samples[2, 100:])
        shifted = augment.shift_waveforms(samples, lengths, 0.5)
        assert torch.equal(shifted[1, :300].sort().values, samples[1, :300].sort().values)
    elif modality == "pointcloud":
        points, soft = torch.randn(3, 50, 3), labels
        turned = augment.augment_points(points, Recipe(turn="all"))
        distances = (points - points.mean(1, keepdim=True)).norm(dim=2)
        assert torch.allclose((turned - points.mean(1, keepdim=True)).norm(dim=2), distances, atol=1e-5)
    else:
        pixels = torch.rand(3, 3, 32, 32) * 255
        changed = augment.augment_pictures(pixels, recipe, 4 if modality == "video" else 1)
        assert changed.shape == pixels.shape
        assert 0 <= changed.min() <= changed.max() <= 255
        unchanged = augment.augment_pictures(pixels, Recipe(), 4 if modality == "video" else 1)
        assert torch.allclose(unchanged, pixels, atol=0.01)
        still = torch.rand(3, 1, 3, 16, 16).expand(3, 4, 3, 16, 16).reshape(3, 12, 16, 16) * 255
        changed = augment.augment_pictures(still, recipe.changed(erasing=0.0)).unflatten(1, (4, 3))
        assert torch.equal(changed, changed[:, :1].expand_as(changed))  # what does not move does not start to
        _, soft = augment.mix_pictures(pixels, labels, recipe)
    assert torch.allclose(soft.sum(1), torch.ones(3), atol=1e-6)


def test_temperature_finds_the_one_that_made_the_labels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 3, generator=generator) * 2
    targets = torch.multinomial((logits / 2.5).softmax(1), 1, generator=generator)[:, 0]
    rows = torch.arange(4000)
    assert abs(best_temperature(logits, torch.ones(4000), rows, targets) - 2.5) < 0.25
    calm = Scores(pooled(logits, torch.ones(4000), rows, 4000, 2.5), targets)
    assert calm.calibration_error() < 0.03
    assert int(calm.confusion().sum()) == 4000


def test_a_few_recordings_that_are_all_named_right_do_not_make_a_network_sure_of_everything():
    for n, low, high in ((8, 0.3, 0.7), (10_000, 0.0, 0.2)):
        logits = torch.eye(4).repeat(n // 4, 1) * 2
        found = best_temperature(logits, torch.ones(n), torch.arange(n), logits.argmax(dim=1))
        assert low < found < high


def test_too_sure_and_too_unsure_do_not_cancel_in_the_calibration_error():
    probabilities = torch.tensor([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10)
    targets = torch.tensor([0] * 6 + [1] * 4 + [0] * 9 + [1])  # sure of 0.9, right in 0.6; sure of 0.6, right in 0.9
    assert Scores(probabilities, targets).calibration_error() == pytest.approx(0.3, abs=1e-6)


def test_a_change_of_gain_stays_within_its_decibels():
    changed = augment.change_gain(torch.ones(500, 3), 6.0)
    assert torch.equal(changed, changed[:, :1].expand(500, 3))
    assert 0.5 < changed.min() < 0.55
    assert 1.9 < changed.max() < 2  # 6 dB are a factor of 1.995


@pytest.mark.parametrize("count", [10, 40, 400])
def test_the_calibration_error_by_chance_is_that_of_truths_drawn_from_the_probabilities(count):
    """Ten recordings of a perfect model show 27 %, which looked like a fault of the model."""
    torch.manual_seed(0)
    exact = torch.distributions.Dirichlet(torch.full((5,), 0.3, dtype=torch.float64)).sample((count,))
    drawn = torch.distributions.Categorical(exact).sample((200,))
    found = [Scores(exact, targets).calibration_error() for targets in drawn]
    assert Scores(exact, drawn[0]).calibration_error_by_chance() == pytest.approx(np.mean(found), rel=0.1)


def test_wilson_interval_is_that_of_the_textbook():
    low, high = wilson(81, 263)  # Newcombe (1998), table I, method 3
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_settings_are_checked_and_read_back():
    settings = MapSettings("audio", size=48)
    assert MapSettings.from_json(settings.to_json()) == settings
    with pytest.raises(InputError, match="within"):
        replace(Recipe(), mixup=2.0)
    with pytest.raises(InputError, match="has no holiday"):
        Recipe().changed(holiday=1)
    assert len(pack(make_pipeline(MapSettings("pointcloud")), np.ones((10, 3)), MapSettings("pointcloud"))) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"modality": "image", "size": 100_000},
        {"modality": "video", "size": 2048, "n_frames": 10_000},
        {"modality": "audio", "length": 10**9},
        {"modality": "audio", "sample_rate": 10**9},
        {"modality": "pointcloud", "n_points": 10**10},
    ],
)
def test_settings_that_would_take_all_memory_are_refused(settings):
    """They come out of the file of a model, too."""
    with pytest.raises(InputError, match="a map may have"):
        MapSettings(**settings)
