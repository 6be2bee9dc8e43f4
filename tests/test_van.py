"""VAN and its attention against arrays that the public reference gave (float64: 1e-9,
float32: 2e-5, gradients 5e-4).
"""

import copy
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from unipercept.backbone import build_backbone
from unipercept.errors import InputError, WeightsError
from unipercept.large_kernel_attention import LargeKernelAttention, SpatialAttention, decomposed, reach
from unipercept.van import VAN, VAN_VARIANTS, VANBlock
from unipercept.weights import save_weights


@pytest.fixture(scope="module")
def golden(shared_golden: Path) -> Path:
    return shared_golden / "van"


def arrays(path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    with np.load(path, allow_pickle=False) as file:
        return {
            key.removeprefix(prefix): torch.from_numpy(file[key])
            for key in file.files
            if key.startswith(prefix) and file[key].dtype.kind in "fi"
        }


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.detach().double() - b.double()).abs().max() / b.double().abs().max())


def tiny(golden: Path) -> VAN:
    model = VAN((3, 3, 5, 2), (16, 32, 40, 64), num_classes=10).eval()
    model.load_state_dict(arrays(golden / "van_b0_tiny_state.npz"))
    return model


@pytest.mark.parametrize("case", ["attn8", "attn12"])
def test_attention_matches_the_reference_forwards_and_backwards(golden: Path, case: str) -> None:
    data = arrays(golden / "lka_attention.npz", f"{case}/")
    state = {key.removeprefix("state/"): value for key, value in data.items() if key.startswith("state/")}
    layer = SpatialAttention(data["input"].shape[1])
    layer.load_state_dict(state)
    assert relative_error(layer.spatial_gating_unit(data["input"]), data["lka_output"]) < 2e-5
    x = data["input"].requires_grad_()
    output = layer(x)
    assert relative_error(output, data["output"]) < 2e-5
    output.square().mean().backward()
    assert relative_error(x.grad, data["grad/input"]) < 5e-4
    for name, parameter in layer.named_parameters():
        assert relative_error(parameter.grad, data[f"grad/param/{name}"]) < 5e-4, name
    assert relative_error(layer.double()(x.double()), data["output64"]) < 1e-9


def test_block_matches_the_reference(golden: Path) -> None:
    data = arrays(golden / "lka_attention.npz", "block8/")
    block = VANBlock(8, 4).eval()
    block.load_state_dict({key.removeprefix("state/"): v for key, v in data.items() if key.startswith("state/")})
    assert relative_error(block(data["input"]), data["output"]) < 2e-5


def drawn(module: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, with random numbers in every parameter and running statistic."""
    generator = torch.Generator().manual_seed(0)
    module = module.double().eval()
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.5)
            if "running_var" not in name:
                value.sub_(0.9)
    return module


@torch.no_grad()
def test_a_block_is_its_formula_in_plain_layers() -> None:
    """Here without recorded arrays: equations 1 to 4 of the source, with PyTorch's own convolutions."""
    block = drawn(VANBlock(6, 4))

    def conv(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        dilation = getattr(layer, "dilation", 1)
        dilation = dilation if isinstance(dilation, int) else dilation[0]
        padding, groups = dilation * (layer.weight.shape[-1] // 2), x.shape[1] // layer.weight.shape[1]
        return nn.functional.conv2d(x, layer.weight, layer.bias, padding=padding, dilation=dilation, groups=groups)

    x = torch.randn(2, 6, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gate, mlp = block.attn.spatial_gating_unit, block.mlp
    assert all(layer.bias is not None for layer in block.modules() if hasattr(layer, "weight"))
    normed = block.norm1(x)
    y = nn.functional.gelu(conv(block.attn.proj_1, normed))
    y = y * conv(gate.conv1, conv(gate.conv_spatial, conv(gate.conv0, y)))
    y = x + block.layer_scale_1[:, None, None] * (normed + conv(block.attn.proj_2, y))
    fed = nn.functional.gelu(conv(mlp.dwconv["dwconv"], conv(mlp.fc1, block.norm2(y))))
    expected = y + block.layer_scale_2[:, None, None] * conv(mlp.fc2, fed)
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)


def test_initial_weights_are_he_normal_by_their_fan_out() -> None:
    torch.manual_seed(0)
    network = build_backbone("van_b0", num_classes=100)
    for name, value in network.named_parameters():
        if value.ndim == 4 and value.numel() > 2000:
            fan_out = value.shape[0] * value[0, 0].numel() if value.shape[1] > 1 else value[0].numel()
            assert value.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name
        elif name.endswith(".bias"):
            assert not value.any(), name
    assert network.head.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("padding", ["zero", "sphere"])
@torch.no_grad()
def test_both_convolutions_of_the_attention_see_the_same_edge(padding: str) -> None:
    layer = drawn(LargeKernelAttention(2, 9, 3, padding))
    x = torch.randn(1, 2, 12, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = layer(x.roll(7, dims=-1)).roll(-7, dims=-1)
    assert torch.allclose(turned, layer(x)) == (padding == "sphere")


@pytest.mark.parametrize("case", ["sq64", "odd97x61"])
def test_network_matches_the_reference_at_every_stage(golden: Path, case: str) -> None:
    data, model = arrays(golden / "van_b0_tiny_io.npz"), tiny(golden)
    for i, stage in enumerate(model.forward_stages(data[f"input/{case}"])):
        assert relative_error(stage, data[f"stage{i}_after_norm/{case}"]) < 2e-5
    assert relative_error(model(data[f"input/{case}"]), data[f"logits/{case}"]) < 2e-5
    assert relative_error(model.double()(data[f"input/{case}"].double()), data[f"logits64/{case}"]) < 1e-9


def test_gradients_match_the_reference(golden: Path) -> None:
    data, model = arrays(golden / "van_b0_tiny_io.npz"), tiny(golden)
    x = data["input/sq64"].requires_grad_()
    loss = model(x).square().mean()
    loss.backward()
    assert loss.item() == pytest.approx(float(data["grad_eval/loss"]), rel=1e-5)
    assert relative_error(x.grad, data["grad_eval/input"]) < 5e-4
    for name, parameter in model.named_parameters():
        assert float(parameter.grad.norm()) == pytest.approx(float(data[f"gradnorm_eval/{name}"]), rel=5e-4, abs=1e-9)


@pytest.mark.parametrize("name", VAN_VARIANTS)
def test_published_variants_have_the_official_keys_and_shapes(golden_dir: Path, name: str) -> None:
    expected = json.loads((golden_dir / "van_manifest.json").read_text())[name]
    with torch.device("meta"):
        model = build_backbone(name, num_classes=1000)
    lines = [
        f"{key} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
        for key, value in model.state_dict().items()
    ]
    assert sum(p.numel() for p in model.parameters()) == expected["params"]
    assert hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest() == expected["sha256_sorted"]


def test_stage_maps_have_the_strides_that_feature_info_says() -> None:
    model = build_backbone("van_b0", depths=(1, 1, 1, 1), dims=(4, 8, 12, 16), features_only=True, out_indices=(1, 3))
    assert isinstance(model, VAN)
    maps = model(torch.randn(1, 3, 64, 32))
    assert [tuple(m.shape) for m in maps] == [(1, 8, 8, 4), (1, 16, 2, 1)]
    assert [info["reduction"] for info in model.feature_info] == [4, 8, 16, 32]
    with pytest.raises(InputError, match="always normalised"):
        build_backbone("van_b0", features_only=True, normalize_features=False)


def test_gradient_checkpointing_changes_no_gradient_and_no_statistic() -> None:
    torch.manual_seed(0)
    model = build_backbone("van_b0", depths=(1, 1, 1, 1), dims=(4, 8, 12, 16)).double().train()
    x, gradients = torch.randn(2, 3, 32, 32, dtype=torch.float64), []
    start = copy.deepcopy(model.state_dict())
    for enable in (False, True):
        model.load_state_dict(start)
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(x).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()] + [b.clone() for b in model.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_head_can_be_replaced_and_removed() -> None:
    model = build_backbone("van_b0", depths=(1, 1, 1, 1), dims=(4, 8, 12, 16), num_classes=5).eval()
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 5)
    model.reset_classifier(0)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, model.num_features)


def test_a_saved_van_loads_by_path_and_another_size_is_refused(tmp_path: Path) -> None:
    sizes = {"depths": (1, 1, 1, 1), "dims": (4, 8, 12, 16)}
    model = build_backbone("van_b0", num_classes=3, **sizes)
    save_weights(model, tmp_path / "van.safetensors")
    loaded = build_backbone("van_b0", num_classes=3, pretrained=tmp_path / "van.safetensors", **sizes)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    with pytest.raises(WeightsError, match="does not fit"):
        build_backbone("van_b0", num_classes=3, pretrained=tmp_path / "van.safetensors")


@pytest.mark.parametrize(("kernel_size", "dilation", "expected"), [(21, 3, (5, 7)), (23, 3, (5, 9)), (7, 1, (1, 7))])
def test_decomposition_covers_the_kernel(kernel_size: int, dilation: int, expected: tuple[int, int]) -> None:
    assert decomposed(kernel_size, dilation) == expected
    layer = LargeKernelAttention(2, kernel_size, dilation).double()
    nn.init.ones_(layer.conv0.weight)
    nn.init.ones_(layer.conv_spatial.weight)
    x = torch.zeros(1, 2, 41, 41, dtype=torch.float64)
    x[..., 20, 20] = 1
    seen = layer.conv_spatial(layer.conv0(x))[0, 0, 20] - layer.conv_spatial(layer.conv0(torch.zeros_like(x)))[0, 0, 20]
    assert int(seen.nonzero().max()) - 20 == reach(kernel_size, dilation) >= kernel_size // 2


def test_a_caller_mistake_is_named() -> None:
    with pytest.raises(InputError, match="dilation"):
        decomposed(3, 5)
    assert decomposed(3, 3) == (5, 1)
    for sizes in ({"depths": (0, 1, 1, 1)}, {"dims": (0, 8, 12, 16)}, {"depths": (1, 1, 1)}):
        with pytest.raises(InputError, match="four stages"):
            build_backbone("van_b0", **sizes)
    for sizes in ({"in_channels": 0}, {"num_classes": -1}, {"features_only": True, "out_indices": (4,)}):
        with pytest.raises(InputError, match="in_channels must be at least 1"):
            build_backbone("van_b0", **sizes)
    with pytest.raises(InputError, match="kernel_sizes"):
        build_backbone("van_b0", kernel_sizes=((3,),) * 4)
    with pytest.raises(InputError, match="C = 3"):
        build_backbone("van_b0", depths=(1, 1, 1, 1))(torch.zeros(1, 2, 32, 32))
