"""Models by name: what the card says is what is loaded."""

import json

import pytest
import torch

from unipercept import weights
from unipercept.backbone import VARIANTS, build_backbone
from unipercept.devices import resolve_device
from unipercept.embedding import EmbeddingMap
from unipercept.errors import InputError, NoTrainedHeadError, WeightsError
from unipercept.model_cards import MODELS, fingerprint, imagenet_1k_labels, is_cached, model_card, model_for, tasks_for
from unipercept.models import load_model
from unipercept.reparam import reparameterize

MAPS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_the_default_model_is_the_universal_one_and_each_modality_gets_its_network():
    assert model_card("default") == MODELS["universal"]
    expected = {
        "image": "universal.fashion_mnist",
        "audio": "universal.esc10",
        "pointcloud": "universal.things3d",
        "video": "universal.camera_motion",
        "timeseries": "universal.processes" if "universal.processes" in MODELS else "unireplknet_a",
        "weather": "unireplknet_a",
    }
    assert {modality: model_for("default", modality) for modality in expected} == expected
    assert tasks_for("default", "audio") == ("universal.esc10", "universal.fsdd")
    assert model_for("unireplknet_t", "audio") == "unireplknet_t"
    assert "unireplknet_a" in model_card("default").limits


def test_a_task_of_the_universal_model_is_a_model_that_knows_what_is_out_of_distribution():
    model = load_model("universal.shapes3d", in_channels=4)
    assert model.labels == model_card("universal.shapes3d").labels()
    features = model.features(torch.randn(3, 4, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert features.shape == (3, 320)
    assert model.familiarity is not None
    content, texture = model.familiarity.content, model.familiarity.texture
    usual, still = content.means[0] * content.scale, texture.means[0] * texture.scale
    emap = EmbeddingMap(torch.zeros(1, 4, 8, 8), "pointcloud")
    assert model.remarks(usual, still, emap) == {"task": "shapes3d", "ood_score": 0.0}
    assert "it knows only sphere, box" in model.remarks(-usual, still, emap)["notice"]
    assert "it knows only sphere, box" in model.remarks(usual, still + 100, emap)["notice"]
    assert fingerprint("universal.shapes3d") == fingerprint("universal")
    with pytest.raises(InputError, match="4 channels"):
        load_model("universal.shapes3d", in_channels=3)


def test_an_untrained_model_says_so():
    card = model_card("unireplknet_a")
    assert card.labels() is None
    assert card.is_untrained
    assert "untrained" in card.to_text()
    assert "random, seed 0" in card.to_text()
    with pytest.raises(NoTrainedHeadError, match="no trained head"):
        load_model("unireplknet_a").logits(EmbeddingMap(MAPS, "image"))


def test_vectors_of_the_untrained_model_are_reproducible_and_as_wide_as_the_card_says():
    model = load_model("unireplknet_a")
    features = model.features(MAPS)
    assert features.shape == (2, model.card.dim)
    assert features.dtype == torch.float32
    load_model.__globals__["_load"].cache_clear()
    assert torch.equal(load_model("unireplknet_a").features(MAPS), features)


def test_a_model_is_loaded_once():
    assert load_model("default", in_channels=1) is load_model("universal.esc10", in_channels=1)


def test_a_model_that_inference_mode_loads_serves_gradients_later():
    with torch.inference_mode():
        model = load_model("unireplknet_a", in_channels=5)  # no other test's
    x = torch.zeros(1, 5, 64, 64, requires_grad=True)
    model.network(x).sum().backward()
    assert x.grad is not None


def test_models_of_other_channels_share_all_but_the_stem():
    one, three = (load_model("unireplknet_a", in_channels=n).network.state_dict() for n in (1, 3))
    different = [
        name for name in one if one[name].shape != three[name].shape or not torch.equal(one[name], three[name])
    ]
    assert different == ["downsample_layers.0.0.weight"]


@pytest.mark.parametrize("name", MODELS)
def test_every_card_agrees_with_the_weights_table(name):
    card = MODELS[name]
    assert card.name == name
    assert card.dim == VARIANTS[card.architecture].dims[-1]
    assert json.loads(json.dumps(card.to_dict()))["name"] == name
    assert all((card.trained_on, card.data_licence, card.metric, card.limits, card.weights, card.millions))
    if card.task:
        assert len(card.labels() or ()) == card.n_classes
    elif name in weights.PUBLISHED:
        assert card.labels() is not None
        assert len(card.labels() or ()) == weights.PUBLISHED[name].num_classes
    else:
        assert is_cached(card)


def test_the_class_names_are_a_thousand_different_ones_in_ilsvrc_order():
    labels = imagenet_1k_labels()
    assert len(set(labels)) == 1000
    assert [labels[i] for i in (0, 1, 134, 281, 291, 517, 999)] == ["tench", "goldfish", "crane (bird)", "tabby", "lion", "crane (machine)", "toilet tissue"]  # fmt: skip


@pytest.mark.parametrize("form", ["training.pth", "training.safetensors", "deploy.safetensors"])
def test_a_checkpoint_file_is_a_model(tmp_path, form):
    network = build_backbone("unireplknet_a", num_classes=7).eval()
    path = tmp_path / form
    if path.suffix == ".pth":
        torch.save({"model": network.state_dict()}, path)
    else:
        saved = reparameterize(network) if form.startswith("deploy") else network
        weights.save_weights(saved, path, {"labels": list("abcdefg"), "modality": "audio", "metric": "90 % top-1"})
    model = load_model(str(path))
    logits = model.logits(EmbeddingMap(MAPS, "image"))
    torch.testing.assert_close(logits, network(MAPS).detach(), rtol=1e-4, atol=1e-5)
    assert model.labels == (
        tuple("abcdefg") if path.suffix == ".safetensors" else tuple(f"class {i}" for i in range(7))
    )
    assert model.card.head_modality == ("audio" if path.suffix == ".safetensors" else "image")
    assert len(fingerprint(str(path))) == 64


def test_a_checkpoint_that_changes_is_another_model(tmp_path):
    path = tmp_path / "a.safetensors"
    prints = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        weights.save_weights(build_backbone("unireplknet_a"), path)
        prints.add(fingerprint(str(path)))
    assert len(prints) == 2


def test_a_name_that_is_not_there_is_refused_with_the_nearest_ones(tmp_path):
    with pytest.raises(InputError, match="did you mean unireplknet_t"):
        model_card("unireplknet_tt")
    with pytest.raises(InputError, match="there is no checkpoint"):
        model_card(str(tmp_path / "absent.pth"))
    (tmp_path / "bad.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsError, match="cannot read"):
        model_card(str(tmp_path / "bad.pth"))


def test_published_weights_that_are_not_here_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIPERCEPT_CACHE", str(tmp_path))
    monkeypatch.setenv("UNIPERCEPT_OFFLINE", "1")
    assert not is_cached(MODELS["unireplknet_a.in1k_224"])
    with pytest.raises(WeightsError, match=r"unireplknet_a_in1k_224_acc77\.03\.pth"):
        load_model("unireplknet_a.in1k_224")


def test_an_absent_device_is_refused():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("gpu", "cuda:99", "meta:x", ""):
        with pytest.raises(InputError, match="device must be"):
            resolve_device(name)
