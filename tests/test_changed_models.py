"""Models that were changed after they were built: hooks, replaced layers and layers that are set otherwise count."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from unipercept.backbone import UniRepLKNet
from unipercept.blocks import Block, DepthwiseConv2d, DilatedReparamConv, through
from unipercept.errors import InputError
from unipercept.hooks import has_hooks_inside
from unipercept.reparam import reparameterize


def test_a_dropped_residual_of_the_inference_form_leaves_the_input():
    torch.manual_seed(0)
    block = randomised(Block(8, 7, drop_path_rate=0.5, deploy=True)).eval()
    x = torch.randn(16, 8, 9, 9)
    change = block(x) - x
    changed = block.train()(x) - x
    dropped = changed.flatten(1).abs().amax(dim=1) == 0
    assert 0 < int(dropped.sum()) < 16
    torch.testing.assert_close(changed[~dropped], 2 * change[~dropped], rtol=1e-4, atol=1e-5)


def randomised(block):
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.3)
    return block


@pytest.mark.parametrize("place", ["downsample_layers.1", "stages.2.1", "head"])
@pytest.mark.parametrize(
    "register", ["register_forward_pre_hook", "register_forward_hook", "register_full_backward_hook"]
)
def test_hooks_of_the_inference_form_are_called_though_it_runs_fused(place, register):
    kernel_sizes = ((3,), (13,), (13, 3), (13,))
    model = UniRepLKNet((1, 1, 2, 1), (8, 16, 24, 32), kernel_sizes, num_classes=3, deploy=True).eval()
    called = []
    getattr(model.get_submodule(place), register)(lambda *_: called.append(place))
    model(torch.zeros(1, 3, 32, 32, requires_grad=True)).sum().backward()
    assert called == [place]


class Adapted(nn.Module):
    """A layer and a small one beside it, as adapters add them."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias
        self.beside = nn.Linear(layer.in_features, layer.out_features)

    def forward(self, x):
        return self.layer(x) + self.beside(x)


INNER = ["dwconv.lk_origin", "se.down", "se", "pwconv1", "pwconv1.1", "act.0", "act.1", "act", "pwconv2.0", "pwconv2"]


@pytest.mark.parametrize("deploy", [False, True])
def test_hooks_of_layers_whose_weights_are_taken_are_called(deploy):
    """They never were: extractors of features and pruning by torch worked on nothing."""
    torch.manual_seed(0)
    model = UniRepLKNet((1, 1, 1, 1), (8, 16, 24, 32), ((3,), (7,), (13,), (13,)), num_classes=3, deploy=deploy)
    model, x = randomised(model.double().train()), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    places = ["downsample_layers.0.0", "downsample_layers.2.1", "norm", *(f"stages.2.0.{name}" for name in INNER)]
    places += [] if deploy else [f"stages.2.0.{name}" for name in ("norm", "dwconv.origin_bn", "pwconv2.2")]
    plain = copy.deepcopy(model)
    expected, called = plain(x), []
    handles = [
        model.get_submodule(place).register_forward_hook(lambda *_, place=place: called.append(place))
        for place in places
    ]
    torch.testing.assert_close(model(x), expected)
    assert sorted(called) == sorted(places)
    for (_, buffer), (name, like) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(buffer, like, msg=name)
    for handle in handles:
        handle.remove()
    called.clear()
    assert torch.equal(model(x), plain(x))
    assert not called


def test_hooks_are_found_in_another_process_and_where_torch_does_not_count_them(monkeypatch):
    """That a module had none when so many were registered here says nothing of a process that counts otherwise."""
    block, x = Block(8, 3, deploy=True).eval(), torch.randn(1, 8, 6, 6)
    block(x)
    n_registered = RemovableHandle.next_id
    block.act[0].register_forward_hook(times_zero)
    copied = copy.deepcopy(block)  # as pickle copies
    monkeypatch.setattr(RemovableHandle, "next_id", n_registered)
    for call in (copied, lambda x: through([copied], x)):
        torch.testing.assert_close(call(x), x + copied.contract.bias.view(1, -1, 1, 1))
    monkeypatch.delattr(RemovableHandle, "next_id")
    assert has_hooks_inside(block)
    assert not has_hooks_inside(Block(8, 3))


def times_zero(module, args, output):
    return 0 * output


@pytest.mark.parametrize("deploy", [False, True])
def test_a_replaced_layer_is_called_and_never_merged(deploy):
    torch.manual_seed(0)
    block, x = Block(8, 3, deploy=deploy, layer_scale=1.0).eval(), torch.randn(2, 8, 6, 6)
    block.pwconv1[1] = Adapted(block.pwconv1[1])
    block.act[0], block.se = nn.ReLU(), nn.Identity()
    y = block.pwconv2(block.act(block.pwconv1(block.norm(block.dwconv(x)))))
    for call in (block, lambda x: through([block], x)):
        torch.testing.assert_close(call(x), x + y)
    if not deploy:
        with pytest.raises(InputError, match="its own layers alone, not with a Identity"):
            reparameterize(block)


@pytest.mark.parametrize("size", [3, 7])
@pytest.mark.parametrize("deploy", [False, True])
def test_a_replaced_convolution_is_called_and_never_merged(deploy, size):
    """In the inference form it was left out."""
    torch.manual_seed(0)
    block, x = randomised(Block(8, size, deploy=deploy, layer_scale=1.0)).eval(), torch.randn(2, 8, 6, 6)
    block.dwconv = nn.Conv2d(8, 8, size, padding=size // 2, groups=8)
    y = block.pwconv2(block.act(block.pwconv1(block.se(block.norm(block.dwconv(x))))))
    if block.gamma is not None:
        y = y * block.gamma.view(-1, 1, 1)
    for call in (block, lambda x: through([block], x)):
        torch.testing.assert_close(call(x), x + y)
    if not deploy:
        with pytest.raises(InputError, match="its own layers alone, not with a Conv2d"):
            reparameterize(block)


SETTINGS = [
    ("downsample_layers.3.0", "stride", (1, 1)),
    ("downsample_layers.0.0", "padding_mode", "circular"),
    ("downsample_layers.0.2", "approximate", "tanh"),
    ("downsample_layers.2.1", "eps", 0.5),
    ("stages.1.0.act.0", "approximate", "tanh"),
    ("stages.0.0.dwconv", "dilation", 2),
    ("stages.1.0.dwconv.lk_origin", "padding", "circular"),
]


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize(("place", "name", "value"), SETTINGS, ids=lambda value: str(value))
def test_what_a_layer_was_set_to_counts(place, name, value, deploy):
    """Strides changed for dense prediction and paddings for a globe had no effect."""
    torch.manual_seed(0)
    model = UniRepLKNet((1, 1, 1, 1), (8, 16, 24, 32), ((3,), (7,), (13,), (13,)), num_classes=3, deploy=deploy)
    model, x = randomised(model.double()).eval(), torch.randn(1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        before = model.forward_features(x)
        setattr(model.get_submodule(place), name, value)
        found = model.forward_features(x)
        for module in model.modules():
            module.register_forward_hook(lambda *_: None)  # all layers are called
        expected = model.forward_features(x)
        assert found.shape == expected.shape
        assert (found - expected).norm() <= 1e-12 * expected.norm()
        assert found.shape != before.shape or (found - before).norm() >= 1e-6 * before.norm()


def test_a_merged_block_pads_and_dilates_as_before():
    torch.manual_seed(0)
    x = torch.randn(1, 8, 20, 20)
    for size, name, value in ((3, "dilation", 2), (3, "padding", "circular"), (7, "padding", "circular")):
        block = randomised(Block(8, size, layer_scale=1.0)).eval()
        for layer in block.modules():
            if isinstance(layer, DepthwiseConv2d):
                setattr(layer, name, value)
        torch.testing.assert_close(reparameterize(block)(x), block(x))
    block.spatial.padding = "zero"
    with pytest.raises(InputError, match="the same padding"):
        reparameterize(block)


def test_branches_whose_norms_differ_keep_their_own_ways():
    torch.manual_seed(0)
    conv = DilatedReparamConv(8, 7).train()
    conv.origin_bn.momentum, conv.dil_bn_k3_2.eps = 0.5, 0.1
    like, x = copy.deepcopy(conv), torch.randn(4, 8, 9, 9)
    expected = like.origin_bn(like.lk_origin(x))
    for layer, norm in like.branch_layers():
        expected = expected + norm(layer(x))
    torch.testing.assert_close(conv(x), expected)
    for name, buffer in like.named_buffers():
        torch.testing.assert_close(dict(conv.named_buffers())[name], buffer)
