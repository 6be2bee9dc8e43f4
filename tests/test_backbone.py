"""The backbone equals the recorded reference, in both forms and all nine sizes, and keeps timm's conventions."""

import copy
import hashlib
import json
import re

import numpy as np
import pytest
import torch

from unipercept.backbone import (
    FeatureExtractor,
    UniRepLKNet,
    _seed_of,
    adapt_stem,
    build_backbone,
    layer_decay_groups,
    layer_id,
    seed_weights,
)
from unipercept.blocks import Block, GlobalResponseNorm
from unipercept.errors import InputError
from unipercept.reparam import reparameterize

CONFIGS = ["tiny_edge", "tiny_allkernels", "tiny_default13"]
SIZES = ["sq64", "odd97x61"]


def relative(a, b) -> float:
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    return float((a - b).abs().max() / b.abs().max())


class Golden:
    """One recorded network: `io` arrays, and models that hold its weights."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name
        self.io = np.load(folder / f"{name}_io.npz")
        self.config = json.loads(str(self.io["meta/config_json"]))

    def state(self, form="train"):
        arrays = np.load(self.folder / f"{self.name}_{form}_state.npz")
        return {key: torch.from_numpy(value) for key, value in arrays.items()}

    def model(self, dtype=torch.float32, deploy=False):
        c = self.config
        model = UniRepLKNet(
            c["depths"],
            c["dims"],
            c["kernel_sizes"],
            in_channels=c["in_chans"],
            num_classes=c["num_classes"],
            layer_scale_init_value=c.get("layer_scale_init_value", 1e-6),
            deploy=deploy,
        )
        model.load_state_dict(self.state("deploy" if deploy else "train"), strict=True)
        return model.to(dtype).eval()

    def input(self, size, dtype=torch.float32):
        return torch.from_numpy(self.io[f"input/{size}"]).to(dtype)


@pytest.fixture(params=CONFIGS)
def golden(request):
    if request.param == "tiny_edge":
        return Golden(request.getfixturevalue("golden_dir"), request.param)
    return Golden(request.getfixturevalue("shared_golden") / "backbone", request.param)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_logits_equal_the_reference(golden, size):
    assert (
        relative(golden.model(torch.float64)(golden.input(size, torch.float64)), golden.io[f"logits64/{size}"]) < 1e-9
    )
    assert relative(golden.model()(golden.input(size)), golden.io[f"logits/{size}"]) < 1e-5


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_every_stage_and_feature_map_equals_the_reference(golden, size):
    model, x = golden.model(), golden.input(size)
    for i, stage in enumerate(model.forward_stages(x)):
        assert relative(stage, golden.io[f"stage{i}/{size}"]) < 1e-5
    features = FeatureExtractor(model)
    norms = {k.removeprefix("outnorm/"): torch.from_numpy(golden.io[k]) for k in golden.io if k.startswith("outnorm/")}
    features.load_state_dict(features.state_dict() | norms)
    for i, feature in enumerate(features.eval()(x)):
        assert relative(feature, golden.io[f"outnorm_stage{i}/{size}"]) < 1e-5


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_the_merged_form_equals_the_reference(golden, size):
    merged = reparameterize(golden.model(torch.float64))
    assert relative(merged(golden.input(size, torch.float64)), golden.io[f"logits64/{size}"]) < 1e-9
    assert relative(reparameterize(golden.model())(golden.input(size)), golden.io[f"logits_deploy/{size}"]) < 1e-5


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_gradients_equal_the_reference(golden, mode):
    model, x = golden.model(torch.float64).train(mode == "train"), golden.input("sq64", torch.float64).requires_grad_()
    loss = model(x).square().mean()
    loss.backward()
    io = golden.io
    if f"grad_{mode}/loss64" not in io:
        pytest.skip("no gradients were recorded for this network")
    assert relative(loss.detach(), io[f"grad_{mode}/loss64"]) < 1e-8
    assert relative(x.grad, io[f"grad_{mode}/input64"]) < 1e-8
    zero = set(json.loads(str(io[f"grad_{mode}/analytically_zero_json"])))
    names = {k.split("/", 1)[1] for k in io if k.startswith(f"gradnorm_{mode}/")}
    assert names | zero == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        if name not in zero:
            assert relative(parameter.grad.norm(), io[f"gradnorm_{mode}/{name}"]) < 1e-8, name


def test_running_statistics_after_a_training_step_equal_the_reference(golden):
    model = golden.model().train()
    model(golden.input("sq64"))
    state = model.state_dict()
    for key in (k for k in golden.io if k.startswith("bn_after_train_step/")):
        assert relative(state[key.split("/", 1)[1]], golden.io[key]) < 1e-5


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("letter", ["a", "f", "p", "n", "t", "s", "b", "l", "xl"])
def test_names_shapes_and_counts_equal_the_published_models(golden_dir, letter, form):
    expected = json.loads((golden_dir / "state_dict_manifest.json").read_text())["variants"][letter][form]
    with torch.device("meta"):
        model = build_backbone(f"unireplknet_{letter}", num_classes=1000, deploy=form == "deploy")
    state = model.state_dict()
    lines = sorted(f"{k} {tuple(v.shape)} {str(v.dtype).removeprefix('torch.')}" for k, v in state.items())
    assert sum(p.numel() for p in model.parameters()) == expected["params"]
    assert len(state) == expected["n_tensors"]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == expected["sha256_sorted"]


def tiny(**overrides):
    settings = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "kernel_sizes": ((3,), (7,), (5, 9), (13,))}
    return build_backbone("unireplknet_a", **{**settings, **overrides})


@pytest.mark.parametrize(("height", "width"), [(1, 1), (97, 61), (384, 128), (33, 224)])
@torch.no_grad()
def test_any_size_of_input_works(height, width):
    maps = tiny().eval().forward_stages(torch.randn(1, 3, height, width))
    for i, stage in enumerate(maps):
        steps = 2 + i
        expected = [-(-n // 2**steps) for n in (height, width)]
        assert list(stage.shape[2:]) == expected


def test_timm_conventions_hold():
    model = tiny(num_classes=7)
    x = torch.randn(2, 3, 64, 64)
    assert model(x).shape == (2, 7)
    features = model.forward_features(x)
    assert features.shape == (2, 32, 2, 2)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert model(x).shape == (2, 32)
    assert [info["reduction"] for info in model.feature_info] == [4, 8, 16, 32]


def timm_groups(model):
    """Parameters by depth, as timm 1.0's `group_with_matcher` reads a matcher: groups of
    numbers, in ascending order.
    """
    matcher, groups = model.group_matcher(), {}
    rules = [((0,), matcher["stem"], None)] + [((1,), pattern, suffix) for pattern, suffix in matcher["blocks"]]
    for name, _ in model.named_parameters():
        for first, pattern, suffix in rules:
            found = re.match(pattern, name)
            if found:
                key = (*first, *(float(part) for part in found.groups()), *(suffix or ()))
                groups.setdefault(key, []).append(name)
                break
        else:
            raise AssertionError(f"{name} is in no group")
    return [groups[key] for key in sorted(groups, key=lambda key: tuple(map(float, key)))]


@pytest.mark.parametrize(
    ("make", "stem", "downsample", "block"),
    [
        (lambda: tiny(num_classes=2), "downsample_layers.0", "downsample_layers.2.", "stages.2.0."),
        (lambda: build_backbone("van_b0", num_classes=2), "patch_embed1", "patch_embed3.", "block3.0."),
    ],
    ids=["unireplknet", "van"],
)
def test_timm_finds_the_layers_in_the_order_of_their_depth(make, stem, downsample, block):
    model = make()
    groups = timm_groups(model)
    assert all(name.startswith(stem) for name in groups[0])
    assert any(name.startswith("head") for name in groups[-1])
    assert model.get_classifier() is model.head
    assert len(groups) == 2 + sum(re.match(r"(stages|block)\d*(\.\d+)+$", n) is not None for n in blocks_of(model))
    (together,) = [group for group in groups if any(name.startswith(block) for name in group)]
    assert any(name.startswith(downsample) for name in together)
    if stem == "patch_embed1":  # a stage's norm comes after its last block, not with the head
        assert {"norm1.weight", "block1.2.norm1.weight"} <= set(groups[3])
        assert {name.split(".")[0] for name in groups[-1]} == {"norm4", "head"}


def blocks_of(model):
    return {
        match[0] for name, _ in model.named_parameters() if (match := re.match(r"(stages\.\d+|block\d+)\.\d+", name))
    }


def test_features_only_gives_the_chosen_maps():
    model = tiny(features_only=True, out_indices=(1, 3))
    maps = model(torch.randn(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == [info["num_chs"] for info in model.feature_info] == [16, 32]
    assert {k.split(".")[0] for k in model.state_dict()} == {
        "downsample_layers",
        "stages",
        "norm0",
        "norm1",
        "norm2",
        "norm3",
    }
    raw = tiny(features_only=True, normalize_features=False)
    assert len(raw(torch.randn(1, 3, 64, 64))) == 4


def test_gradient_checkpointing_changes_no_gradient_and_no_statistic():
    torch.manual_seed(0)
    model, x = tiny(num_classes=3).double().train(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    gradients, start = [], copy.deepcopy(model.state_dict())
    for enable in (False, True):
        model.load_state_dict(start)
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()] + [b.clone() for b in model.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_drop_path_grows_linearly_over_the_blocks():
    model = tiny(drop_path_rate=0.4)
    rates = [block.drop_path.rate for stage in model.stages for block in stage]
    assert rates == pytest.approx(np.linspace(0, 0.4, 5).tolist())
    block = model.train().stages[3][0]
    torch.manual_seed(0)
    x = torch.ones(4000, 1, 1, 1)
    kept = block.drop_path(x)
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    assert kept.mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet50"}, "backbone must be one of"),
        ({"name": "unireplknet_a", "disable_iGEMM": True}, "knows the overrides"),
        ({"name": "unireplknet_a", "depths": (1, 1, 1, 1)}, "an entry a block"),
        ({"name": "unireplknet_a", "depths": (1, 1), "kernel_sizes": ((3,), (3,))}, "four stages"),
        ({"name": "unireplknet_a", "in_channels": 0}, "in_channels at least 1"),
        ({"name": "unireplknet_a", "drop_path_rate": 1.0}, "at least 0 and below 1, got 1"),
        ({"name": "van_b0", "drop_path_rate": -0.1}, "at least 0 and below 1, got -"),
        ({"name": "unireplknet_a", "features_only": True, "out_indices": (4,)}, "stages 0 to 3"),
        ({"name": "unireplknet_a", "features_only": True, "out_indices": ()}, "stages 0 to 3"),
        (
            {"name": "unireplknet_a", "depths": (1, 1, 1, 1), "kernel_sizes": ((4,), (3,), (3,), (3,))},
            "kernel size must be",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        build_backbone(**arguments)


def test_input_of_other_channels_is_refused():
    with pytest.raises(InputError, match="C = 3"):
        tiny()(torch.randn(1, 1, 32, 32))


def test_seeded_models_share_all_but_the_stem():
    one, many = (seed_weights(tiny(in_channels=c)).state_dict() for c in (1, 69))
    assert [k for k in one if not (one[k].shape == many[k].shape and torch.equal(one[k], many[k]))] == [
        "downsample_layers.0.0.weight"
    ]
    other = seed_weights(tiny(in_channels=1), seed=1).state_dict()
    assert not torch.equal(one["stages.0.0.dwconv.weight"], other["stages.0.0.dwconv.weight"])


def test_seeded_weights_are_those_that_stored_vectors_were_made_with():
    state = seed_weights(build_backbone("unireplknet_a")).state_dict()
    for name, value in state.items():
        leaf = name.rsplit(".", 1)[-1]
        if leaf in ("bias", "beta", "running_mean", "num_batches_tracked"):
            assert not value.any(), name
        elif value.ndim < 2:
            assert (value == (0.1 if leaf == "gamma" else 1)).all(), name  # layer scale; norms
        else:  # GRN; convolutions and linear layers
            expected = 0.5 if leaf == "gamma" else (2 / value[0].numel()) ** 0.5
            assert value.std().item() == pytest.approx(expected, rel=5 / value.numel() ** 0.5), name
    assert _seed_of("head.weight", 0) == 2769572589763772722


@torch.no_grad()
def test_seeded_features_tell_unlike_inputs_apart():
    model = reparameterize(seed_weights(build_backbone("unireplknet_a")))
    torch.manual_seed(0)
    ramp = torch.linspace(-2, 2, 96).expand(3, 96, 96)
    stripes = torch.sin(torch.arange(96.0) * 0.8).expand(3, 96, 96)
    noise = torch.randn(3, 96, 96)
    vectors = torch.nn.functional.normalize(
        model(torch.stack([ramp, stripes, noise, noise + 0.05 * torch.randn(3, 96, 96)])), dim=1
    )
    similarity = vectors @ vectors.T
    assert similarity[2, 3] > 0.99
    assert max(similarity[0, 1], similarity[0, 2], similarity[1, 2]) < 0.9


def test_an_adapted_stem_answers_equal_channels_as_before():
    weight = torch.randn(8, 3, 3, 3, dtype=torch.float64)
    x = torch.randn(1, 1, 16, 16, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(x.expand(-1, 3, -1, -1), weight)
    for channels in (1, 3, 6):
        found = torch.nn.functional.conv2d(x.expand(-1, channels, -1, -1), adapt_stem(weight, channels))
        assert torch.allclose(found, expected)


def test_layer_decay_covers_every_parameter_once_as_published():
    with torch.device("meta"):
        model = build_backbone("unireplknet_s", num_classes=10)
    groups = layer_decay_groups(model, weight_decay=0.05, layer_decay=0.8)
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    assert {g["weight_decay"] for g in groups} == {0.0, 0.05}
    assert max(g["lr_scale"] for g in groups) == 1.0
    assert min(g["lr_scale"] for g in groups) == pytest.approx(0.8**13)
    for block in range(27):
        assert layer_id(f"stages.2.{block}.gamma", 27) == 3 + block // 3
    names = ["downsample_layers.0.0.bias", "stages.0.1.gamma", "downsample_layers.1.0.weight", "stages.1.0.gamma"]
    assert [layer_id(n, 27) for n in names] == [0, 1, 2, 2]
    names = ["downsample_layers.2.0.bias", "downsample_layers.3.0.bias", "stages.3.0.gamma", "norm.weight", "head.bias"]
    assert [layer_id(n, 27) for n in names] == [3, 12, 12, 13, 13]
    assert [layer_id(f"downsample_layers.2.{part}.weight", 6) for part in (0, 1)] == [3, 3]
    assert [layer_id(f"stages.2.{block}.gamma", 6, n_layers=9) for block in range(6)] == [3, 4, 5, 6, 7, 8]


def test_half_precision_stays_finite_on_large_activations():
    model = reparameterize(tiny()).to(torch.bfloat16)
    assert torch.isfinite(model(300 * torch.randn(1, 3, 128, 128, dtype=torch.bfloat16))).all()


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize(
    "place", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def test_an_empty_batch_has_empty_results(place, deploy):
    """Such as the crops of a picture in which nothing was found."""
    kernel_sizes = ((3,), (7,), (13,), (13,))
    model = UniRepLKNet((1, 1, 1, 1), (16, 32, 48, 64), kernel_sizes, num_classes=3, deploy=deploy).to(place).eval()
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.zeros(0, 3, 64, 64, device=place, dtype=dtype, requires_grad=True)
        found = model.to(dtype)(x)
        assert (found.shape, found.dtype) == ((0, 3), dtype)
        found.sum().backward()
        assert all(not parameter.grad.any() for parameter in model.parameters())
        with torch.no_grad():
            assert [map_.shape[1] for map_ in model.forward_stages(x)] == [16, 32, 48, 64]


@pytest.mark.parametrize("deploy", [False, True])
def test_shapes_are_known_without_memory(deploy):
    with torch.device("meta"):
        model = UniRepLKNet((1, 1, 1, 1), (8, 16, 24, 32), ((3,), (7,), (13,), (13,)), num_classes=3, deploy=deploy)
        found = model(torch.empty(2, 3, 64, 64))
    assert (found.shape, found.device.type) == ((2, 3), "meta")
    found.sum().backward()
    assert model.stages[1][0].expand.weight.grad.shape == (64, 16)


def test_an_exported_model_takes_other_sizes():
    model = reparameterize(tiny(num_classes=5))
    example = (torch.randn(2, 3, 64, 96),)
    shapes = {"x": {0: torch.export.Dim("batch"), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}}
    exported = torch.export.export(model, example, dynamic_shapes=shapes).module()
    for size in ((2, 3, 64, 96), (3, 3, 128, 64)):
        x = torch.randn(size)
        assert torch.allclose(exported(x), model(x), atol=1e-6)


def test_a_channel_norm_beyond_half_precision_is_no_obstacle_to_grn():
    norm = GlobalResponseNorm(4)
    torch.nn.init.ones_(norm.gamma)
    maps = torch.full((1, 100, 100, 4), 1000.0)  # a norm of 1e5 a channel; the largest half is 65504
    assert torch.equal(norm.half()(maps.half()).float(), 2 * maps)  # equal channels: each norm is 1 of their mean


@pytest.mark.parametrize(
    "place", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_block_in_16_bits_trains(dtype, place):
    torch.manual_seed(0)
    exact, maps = Block(16, 7).train(), torch.randn(4, 16, 9, 7)
    block = copy.deepcopy(exact).to(place, dtype)
    expected, found = exact(maps), block(maps.to(place, dtype).contiguous(memory_format=torch.channels_last))
    assert found.dtype == dtype
    assert (found.float().cpu() - expected).norm() < 0.01 * expected.norm()
    found.float().square().sum().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in block.parameters())
