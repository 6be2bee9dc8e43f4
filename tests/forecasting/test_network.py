"""The forecasting network: what its parts promise, whatever its weights."""

import copy

import pytest
import torch
import torch.nn.functional as F

from unipercept.blocks import Block
from unipercept.errors import InputError
from unipercept.forecasting.blocks import MapConv, SeriesBlock, toeplitz
from unipercept.forecasting.network import SeriesForecaster
from unipercept.forecasting.settings import ForecastConfig

SMALL = ForecastConfig(lookback=50, horizon=13, period=12, patch=4, dim=8, blocks=2, kernel_size=7)


def network(config=SMALL, n_variables=3, n_features=0):
    """With weights that are no longer at their start."""
    torch.manual_seed(0)
    made = SeriesForecaster(config, n_variables, n_features).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize(("size", "rows", "columns"), [(13, 22, 6), (13, 4, 36), (7, 1, 9), (3, 5, 5), (17, 3, 2)])
def test_the_matrix_of_a_kernel_is_the_convolution(size, rows, columns):
    weight, x = torch.randn(4, size, size).double(), torch.randn(3, 4, rows, columns).double()
    flat = torch.bmm(x.flatten(2).transpose(0, 1), toeplitz(weight, rows, columns)).transpose(0, 1)
    exact = F.conv2d(x, weight[:, None], padding=size // 2, groups=4)
    torch.testing.assert_close(flat.unflatten(2, (rows, columns)), exact)


def test_large_and_small_maps_are_convolved_alike(monkeypatch):
    conv, x = MapConv(4, 13), torch.randn(2, 4, 9, 8)
    small = conv(x)
    monkeypatch.setattr("unipercept.forecasting.blocks.LARGEST_MATRIX", 1)
    torch.testing.assert_close(conv(x), small, atol=1e-5, rtol=1e-4)


def test_the_merged_kernel_is_the_sum_of_its_branches():
    conv, x = MapConv(3, 9), torch.randn(2, 3, 11, 10)
    parts = F.conv2d(x, conv.weight[:, None], padding=4, groups=3)
    for branch, dilation in zip(conv.branches, (1, 2, 3, 4), strict=True):
        reach = dilation * (branch.shape[-1] // 2)
        parts = parts + F.conv2d(x, branch[:, None], padding=reach, dilation=dilation, groups=3)
    torch.testing.assert_close(conv(x), parts, atol=1e-4, rtol=1e-4)


def test_a_block_passes_gradients_to_every_weight():
    block = SeriesBlock(8, 7, 0.0, 0.1)
    block(torch.randn(4, 8, 5, 3)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in block.parameters())


@pytest.mark.parametrize("rows", [5, 90])  # as a matrix, and as a convolution
@pytest.mark.parametrize("layer_scale", [0.1, None])
def test_norms_that_keep_their_statistics_are_folded_without_a_difference(rows, layer_scale):
    torch.manual_seed(0)
    block = SeriesBlock(8, 7, 0.0, layer_scale).double()
    with torch.no_grad():
        for tensor in (*block.parameters(), block.norm.running_mean, block.pwconv2[2].running_mean):
            tensor.normal_(std=0.5)
        block.norm.running_var.uniform_(0.5, 2)
        block.pwconv2[2].running_var.uniform_(0.5, 2)
    block.eval()
    x, push = torch.randn(4, 8, rows, 8).double(), torch.randn(4, 8, rows, 8).double()
    expected, found = Block.forward(block, x), block(x)
    torch.testing.assert_close(found, expected)
    with torch.inference_mode():
        torch.testing.assert_close(block(x), expected.detach())
    weights = list(block.parameters())
    gradients = (torch.autograd.grad(y, weights, push) for y in (expected, found))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("linear", ["dense", "none"])
@pytest.mark.parametrize("head", ["phase", "flatten"])
def test_forecasts_have_a_step_for_each_of_the_horizon_and_quantiles_that_never_cross(linear, head):
    found = network(SMALL.changed(linear=linear, head=head))(torch.randn(5, 50, 3))
    assert found.point.shape == (5, 13, 3)
    assert found.quantiles.shape == (5, 13, 3, 11)
    assert (found.quantiles.diff(dim=-1) >= 0).all()


def test_variables_do_not_see_each_other_unless_they_mix():
    x = torch.randn(2, 50, 3)
    other = x.clone()
    other[:, :, 2] = torch.randn(2, 50)
    alone, mixed = network(), network(SMALL.changed(mixing=True))
    torch.testing.assert_close(alone(x).point[..., :2], alone(other).point[..., :2])
    assert not torch.allclose(mixed(x).point[..., :2], mixed(other).point[..., :2])


def test_level_and_scale_of_a_window_pass_through():
    model, x = network(SMALL.changed(pull=False, quiet=1e-4)), torch.randn(2, 50, 3)
    there, moved = model(x), model(30 + 7 * x)
    torch.testing.assert_close(moved.point, 30 + 7 * there.point, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(moved.quantiles, 30 + 7 * there.quantiles, atol=1e-3, rtol=1e-3)


def test_what_stands_in_for_a_missing_value_does_not_matter():
    model, x = network(), torch.randn(2, 50, 3)
    observed = torch.rand(2, 50, 3) > 0.3
    filled = torch.where(observed, x, torch.full_like(x, 1e4))
    torch.testing.assert_close(model(x, observed).point, model(filled, observed).point, atol=1e-4, rtol=1e-4)
    none = torch.zeros_like(observed)
    assert model(x, none).quantiles.isfinite().all()


def test_an_effect_of_known_features_is_taken_off_and_put_back():
    """A series that is its features' effect and nothing else is forecast exactly, once the effect is known."""
    model = network(SMALL.changed(pull=False, quiet=1e-6), n_variables=1, n_features=1)
    with torch.no_grad():
        model.effect.fill_(1.0)
    feature = torch.sin(torch.arange(63) * 0.7)
    feature = (feature - feature[:50].mean()) / feature[:50].std(correction=0)
    flat = torch.zeros(1, 50, 1)
    with_effect = model(feature[None, :50, None], None, feature[None, :, None])
    still = model._core(flat[..., 0], None, None, torch.zeros(1, dtype=torch.long), 1, model.horizon)[0]
    torch.testing.assert_close(with_effect.point[0, :, 0], still[0] + feature[50:], atol=1e-4, rtol=1e-4)


def test_untrained_the_linear_path_repeats_the_mean_cycle():
    torch.manual_seed(0)
    model = SeriesForecaster(SMALL.changed(lookback=48, horizon=12, pull=False), 1).eval()
    cycle = torch.randn(12)
    torch.testing.assert_close(model(cycle.repeat(4)[None, :, None]).point[0, :, 0], cycle, atol=0.02, rtol=0.02)


def test_a_copy_is_apart():
    model = network()
    other = copy.deepcopy(model)
    x = torch.randn(1, 50, 3)
    before = model(x).point
    with torch.no_grad():
        other.blocks[0].dwconv.weight.zero_()
    torch.testing.assert_close(model(x).point, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"horizon": 0}, "horizon"), ({"quantiles": (0.1, 0.9)}, "0.5"), ({"quantiles": (0.5, 0.1)}, "ascend")],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        ForecastConfig(**settings)
