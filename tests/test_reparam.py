"""Merging branches, norms and scales changes nothing but the form, and rounds no worse than the reference does."""

import numpy as np
import pytest
import torch

from unipercept.backbone import build_backbone
from unipercept.blocks import BRANCHES, DilatedReparamConv
from unipercept.errors import InputError
from unipercept.reparam import densify, fuse_bn, merge_branches, reparameterize


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter and statistic far from its neutral value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            spread = 0.5 + noise.abs() if name.endswith(("running_var", "gamma")) else 0.3 * noise
            tensor.copy_(spread + 0.5 * float(name.endswith(("norm.weight", "bn.weight"))))
    return model.eval()


@pytest.fixture
def model():
    sizes = {"depths": (1, 2, 2, 2), "dims": (8, 12, 16, 20), "kernel_sizes": ((0,), (3, 5), (7, 9), (13, 17))}
    return randomised(build_backbone("unireplknet_a", **sizes, num_classes=4).double())


@torch.no_grad()
def test_the_merged_model_gives_the_same_output(model):
    x = torch.randn(2, 3, 70, 50, dtype=torch.float64)
    expected = model(x)
    assert (reparameterize(model)(x) - expected).abs().max() < 1e-10 * expected.abs().max()


@torch.no_grad()
def test_synchronised_norms_merge_as_others_and_norms_without_statistics_do_not(model):
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place
    assert torch.allclose(reparameterize(converted)(x), converted(x), rtol=1e-10)
    for other in (torch.nn.GroupNorm(4, 12), torch.nn.BatchNorm2d(12, affine=False)):
        converted.stages[1][0].norm = other
        with pytest.raises(InputError, match=f"can be merged, not {type(other).__name__}"):
            reparameterize(converted)


@torch.no_grad()
def test_merging_twice_changes_nothing(model):
    once = reparameterize(model)
    twice = reparameterize(once)
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True))


def test_the_argument_is_left_alone(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    merged = reparameterize(model.train())
    assert model.training
    assert not merged.training
    assert not model.deploy
    assert merged.deploy
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in merged.parameters()}
    assert not shared


def test_the_result_loads_into_a_model_built_for_inference(model):
    sizes = {"depths": (1, 2, 2, 2), "dims": (8, 12, 16, 20), "kernel_sizes": ((0,), (3, 5), (7, 9), (13, 17))}
    built = build_backbone("unireplknet_a", **sizes, num_classes=4, deploy=True)
    built.load_state_dict(reparameterize(model).state_dict(), strict=True)


@pytest.mark.parametrize("kernel_size", BRANCHES)
@torch.no_grad()
def test_branches_merge_into_one_kernel(kernel_size):
    conv = randomised(DilatedReparamConv(4, kernel_size).double())
    merged = merge_branches(conv)
    x = torch.randn(2, 4, 23, 19, dtype=torch.float64)
    found = torch.nn.functional.conv2d(x, merged.weight, merged.bias, padding=kernel_size // 2, groups=4)
    assert torch.allclose(found, conv(x), atol=1e-11)


@pytest.mark.parametrize("dilation", [1, 2, 3, 7])
def test_a_dense_kernel_does_what_the_dilated_one_did(dilation):
    weight, x = torch.randn(4, 1, 3, 3, dtype=torch.float64), torch.randn(1, 4, 31, 29, dtype=torch.float64)
    dilated = torch.nn.functional.conv2d(x, weight, dilation=dilation, groups=4)
    assert torch.allclose(torch.nn.functional.conv2d(x, densify(weight, dilation), groups=4), dilated)


def test_a_norm_folds_into_a_linear_layer():
    linear, norm = torch.nn.Linear(5, 3).double(), randomised(torch.nn.BatchNorm2d(3).double())
    x = torch.randn(7, 5, dtype=torch.float64)
    folded = fuse_bn(linear.weight, linear.bias, norm)
    expected = norm(linear(x)[:, :, None, None])[:, :, 0, 0]
    assert torch.allclose(x @ folded.weight.T + folded.bias, expected)


@torch.no_grad()
def test_folding_rounds_no_worse_than_the_reference(golden_dir):
    units = np.load(golden_dir / "units.npz")
    for kernel_size in BRANCHES:
        prefix = f"drb{kernel_size}/state/"
        state = {k.removeprefix(prefix): torch.from_numpy(units[k]) for k in units if k.startswith(prefix)}
        if not state:
            pytest.fail(f"units.npz has no {prefix}; it has {sorted({k.split('/')[0] for k in units})}")
        conv = DilatedReparamConv(4, kernel_size)
        conv.load_state_dict(state, strict=True)
        ours = merge_branches(conv.eval()).weight.float()
        exact = merge_branches(conv.double()).weight
        key = next(k for k in units if k.startswith(f"drb{kernel_size}/") and "merged" in k and "bias" not in k)
        theirs = torch.from_numpy(units[key])
        assert (ours - exact).abs().max() <= (theirs - exact).abs().max() + 1e-12
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_the_deploy_state_equals_the_recorded_one(golden_dir):
    from unipercept.weights import build_from_state

    arrays = {
        form: {k: torch.from_numpy(v) for k, v in np.load(golden_dir / f"tiny_edge_{form}_state.npz").items()}
        for form in ("train", "deploy")
    }
    merged = reparameterize(build_from_state(arrays["train"])).state_dict()
    assert merged.keys() == arrays["deploy"].keys()
    for key, expected in arrays["deploy"].items():
        assert (merged[key] - expected).abs().max() <= 1e-5 * expected.abs().max(), key
