"""Checkpoints load strictly in either form however they are wrapped, and what does not fit is said in one line."""

import json
import warnings

import numpy as np
import pytest
import torch
from safetensors import safe_open

from unipercept.backbone import build_backbone
from unipercept.errors import InputError, WeightsError
from unipercept.reparam import reparameterize
from unipercept.shared_weights import read_facts
from unipercept.weights import (
    PUBLISHED,
    build_from_state,
    convert,
    layout_of,
    load_pretrained,
    load_state,
    read_checkpoint,
    save_weights,
)

SIZES = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "kernel_sizes": ((3,), (7,), (13, 5), (9,))}


def tiny(**settings):
    return build_backbone("unireplknet_a", **{**SIZES, "num_classes": 10, **settings})


@pytest.fixture
def model():
    torch.manual_seed(0)
    return tiny().eval()


def same(a, b) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_a_checkpoint_loads_however_it_is_wrapped(tmp_path, model, wrapper, prefix):
    state = {prefix + k: v for k, v in model.state_dict().items()}
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, tmp_path / "c.pth")
    loaded = tiny()
    load_pretrained(loaded, tmp_path / "c.pth", "unireplknet_a")
    assert same(loaded, model)


def test_safetensors_round_trip_is_exact(tmp_path, model):
    save_weights(model, tmp_path / "m.safetensors", {"seed": 0})
    assert same(build_from_state(read_checkpoint(tmp_path / "m.safetensors")), model)
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert json.loads(file.metadata()["unipercept"]) == {"seed": 0}


def test_a_norm_that_a_file_lacks_is_fresh(model):
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("norm.")}
    with pytest.warns(UserWarning, match="need training"):
        built = build_from_state(state)
    assert torch.equal(built.norm.weight, torch.ones(32))
    assert torch.equal(built.norm.bias, torch.zeros(32))


def test_the_layout_is_read_off_the_weights(model):
    layout = layout_of(model.state_dict())
    assert (layout.depths, layout.dims, layout.kernel_sizes) == tuple(SIZES.values())
    assert (layout.num_classes, layout.in_channels, layout.deploy) == (10, 3, False)
    assert layout_of(reparameterize(model).state_dict()).deploy
    with torch.device("meta"):
        assert layout_of(build_backbone("unireplknet_t").state_dict()).variant == "unireplknet_t"


def test_recorded_weights_load_strictly_in_both_forms(golden_dir):
    for form in ("train", "deploy"):
        state = {k: torch.from_numpy(v) for k, v in np.load(golden_dir / f"tiny_edge_{form}_state.npz").items()}
        assert same(build_from_state(state), build_from_state(build_from_state(state).state_dict()))


def test_a_training_file_goes_into_an_inference_model(model):
    merged = tiny(deploy=True)
    load_state(merged, model.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.allclose(merged.eval()(x), model(x), atol=1e-5)


def test_an_inference_file_does_not_go_into_a_training_model(model):
    with pytest.raises(WeightsError, match="does not fit"):
        load_state(tiny(), reparameterize(model).state_dict())


def test_a_head_of_other_classes_is_named_and_can_be_left_out(model):
    with pytest.raises(WeightsError, match="head of 10 classes, the model one of 7"):
        load_state(tiny(num_classes=7), model.state_dict())
    headless = tiny(num_classes=0)
    load_state(headless, model.state_dict())
    assert torch.equal(headless.norm.weight, model.norm.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm.bias") is None, "norm.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 left over .extra."),
        (lambda s: s.pop("stages.0.0.se.up.bias"), "1 missing .stages.0.0.se.up.bias."),
        (lambda s: s.update({"stages.0.0.se.up.bias": torch.zeros(3)}), "other shape"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(model, change, message):
    state = dict(model.state_dict())
    change(state)
    if message == "norm.bias":
        with pytest.warns(UserWarning, match="norm.bias"):
            load_state(tiny(), state)
        return
    with pytest.raises(WeightsError, match=message) as caught:
        load_state(tiny(), state)
    assert "\n" not in str(caught.value)


def test_another_number_of_channels_is_adapted_and_said(model):
    grey = tiny(in_channels=1)
    with pytest.warns(UserWarning, match="adapted to 1"):
        load_state(grey, model.state_dict())
    x = torch.randn(1, 1, 64, 64)
    assert torch.allclose(grey.eval()(x), model(x.expand(-1, 3, -1, -1)), atol=1e-5)


def test_a_dense_task_file_goes_into_the_feature_extractor(model):
    extractor = tiny(num_classes=0, features_only=True)
    state = {"backbone." + k: v for k, v in extractor.state_dict().items()} | {"neck.weight": torch.zeros(1)}
    from unipercept.weights import strip_prefixes

    fresh = tiny(num_classes=0, features_only=True)
    load_state(fresh, strip_prefixes(state))
    assert same(fresh, extractor)
    with pytest.warns(UserWarning, match="norm0"):
        load_state(fresh, model.state_dict())


def test_a_dense_task_training_file_keeps_its_norms_in_the_inference_form(model):
    extractor = tiny(num_classes=0, features_only=True).eval()
    with torch.no_grad():
        for i in range(4):
            getattr(extractor, f"norm{i}").weight.normal_()
    merged = tiny(num_classes=0, features_only=True, deploy=True).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_state(merged, extractor.state_dict())
    x = torch.randn(1, 3, 64, 64)
    for a, b in zip(merged(x), extractor(x), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


class Harmful:
    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize(
    "content", [{"model": Harmful()}, Harmful(), [1, 2], {"epoch": 3}, b"text", b"time,load\n1,2\n"]
)
def test_nothing_is_unpickled_and_no_checkpoint_is_one_line(tmp_path, content, capsys):
    path = tmp_path / "c.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch says how to run the code in the file
    assert "unpickled" not in capsys.readouterr().out
    if isinstance(content, bytes):
        assert str(caught.value).endswith("as a checkpoint: it is not one, or it is damaged")


@pytest.mark.parametrize("size", [1 << 62, 4_000_001])
def test_universal_weights_whose_header_lies_about_its_size_are_refused(tmp_path, size):
    (tmp_path / "u.safetensors").write_bytes(size.to_bytes(8, "little") + b'{"__metadata__":{}}')
    with pytest.raises(WeightsError, match="as universal weights"):
        read_facts(tmp_path / "u.safetensors")


def test_another_network_is_refused():
    with pytest.raises(WeightsError, match="not a UniRepLKNet"):
        layout_of({"conv1.weight": torch.zeros(1)})


@pytest.mark.parametrize("merge", [False, True])
def test_convert_writes_a_file_that_gives_the_same_output(tmp_path, model, merge):
    torch.save({"model": model.state_dict()}, tmp_path / "c.pth")
    convert(tmp_path / "c.pth", tmp_path / "c.safetensors", reparameterized=merge)
    loaded = build_from_state(read_checkpoint(tmp_path / "c.safetensors")).eval()
    assert loaded.deploy == merge
    x = torch.randn(1, 3, 64, 64)
    assert torch.allclose(loaded(x), model(x), atol=1e-5)
    with pytest.raises(InputError, match=r"must end in \.safetensors"):
        convert(tmp_path / "c.pth", tmp_path / "c.pt")


def test_published_files_are_those_of_the_hub():
    assert len(PUBLISHED) == 14
    assert PUBLISHED["unireplknet_t.in1k_224"].file == "unireplknet_t_in1k_224_acc83.21.pth"
    assert PUBLISHED["unireplknet_xl.in22k_to_in1k_384"].file == "unireplknet_xl_in22k_to_in1k_384_acc87.96.pth"
    with pytest.raises(InputError, match="are of unireplknet_t, not of unireplknet_a"):
        load_pretrained(tiny(), "unireplknet_t.in1k_224", "unireplknet_a")
    with pytest.raises(InputError, match="pretrained must be"):
        load_pretrained(tiny(), "resnet50", "unireplknet_a")
    for name in ("unireplknet_a", "van_b0"):  # as people write for timm's models
        with pytest.raises(InputError, match=r"pretrained must be .* got (True|'True')"):
            build_backbone(name, pretrained=True)
        build_backbone(name, pretrained=False)
