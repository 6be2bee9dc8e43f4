"""When the CPU's own kernels run, and which weights they use: packed once, changes seen at once."""

import gc

import pytest
import torch
from torch import Tensor

from tests.kernels.cpu_cases import fed_forward, normal, random_blocks, random_feed_forward, random_stages
from unipercept import build_backbone
from unipercept.errors import InputError
from unipercept.kernels import depthwise_conv2d, folded_blocks, folded_stages, llvm
from unipercept.kernels.dispatch import ENVIRONMENT_VARIABLE, watch
from unipercept.kernels.packed import packed
from unipercept.kernels.plans import plans as plans_of_this_thread

pytestmark = pytest.mark.skipif(llvm.why_not() is not None, reason=f"no CPU kernels: {llvm.why_not()}")


def test_changed_weights_count_at_once():
    x, weight = normal(1, 8, 14, 14).contiguous(memory_format=torch.channels_last), normal(8, 1, 13, 13, seed=1)
    for change in (lambda w: w.mul_(2), lambda w: w.data.mul_(3), lambda w: setattr(w, "data", w.data * 0.5)):
        depthwise_conv2d(x, weight, implementation="cpu")
        change(weight)
        expected = depthwise_conv2d(x, weight, implementation="reference")
        assert torch.allclose(depthwise_conv2d(x, weight, implementation="cpu"), expected, atol=1e-4)


def test_changed_weights_of_a_downsampling_convolution_count_at_once():
    x, stages = normal(1, 3, 37, 70), random_stages(3)
    for name in ("w", "shift", "weight", "bias"):
        for change in (lambda w: w.mul_(2), lambda w: w.data.mul_(-1), lambda w: setattr(w, "data", w.data * 0.5)):
            folded_stages(x, stages, implementation="cpu")
            change(getattr(stages[0].downsample[0], name))
            expected = folded_stages(x, stages, implementation="reference")[-1]
            assert torch.allclose(folded_stages(x, stages, implementation="cpu")[-1], expected, atol=1e-4), name


def test_a_changed_eps_counts_at_once():
    x, stages = normal(1, 3, 37, 70), random_stages(3)
    for eps in (1e-6, 0.5):  # the tensors stay the same
        stages = [stage._replace(downsample=[c._replace(eps=eps) for c in stage.downsample]) for stage in stages]
        found, expected = (folded_stages(x, stages, implementation=name)[-1] for name in ("cpu", "reference"))
        assert torch.allclose(found, expected, atol=1e-4)


def test_changed_weights_of_a_run_of_blocks_count_at_once():
    x, blocks = normal(1, 8, 9, 9).contiguous(memory_format=torch.channels_last), random_blocks(8, 2)
    for name in ("conv_w", "conv_b", "up_b", "w1", "b1", "w2"):
        for change in (lambda w: w.mul_(2), lambda w: w.data.mul_(-1), lambda w: setattr(w, "data", w.data * 0.5)):
            folded_blocks(x, blocks, implementation="cpu")
            change(getattr(blocks[1], name))
            expected = folded_blocks(x, blocks, implementation="reference")
            assert torch.allclose(folded_blocks(x, blocks, implementation="cpu"), expected, atol=1e-4), name


def test_changed_weights_count_at_once_in_inference_mode_too():
    with torch.inference_mode():
        weight = normal(8, 200)
        for row in range(3):
            assert torch.equal(packed(weight, torch.clone), weight)
            weight[row, 7] = 0.5  # of 1600 values


def test_weights_are_packed_once():
    weight, made = normal(4, 5), []

    def pack(w: Tensor) -> Tensor:
        made.append(1)
        return w.clone()

    assert packed(weight, pack) is packed(weight, pack)
    assert len(made) == 1


def test_parametrised_weights_are_those_that_count():
    model = build_backbone(
        "unireplknet_a", deploy=True, depths=(1, 1, 1, 1), kernel_sizes=((3,), (13,), (13,), (13,))
    ).eval()
    x = normal(1, 3, 64, 64)

    class Twice(torch.nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    with torch.no_grad():
        plain = model(x)
        layer = model.stages[1][0].expand
        torch.nn.utils.parametrize.register_parametrization(layer, "weight", Twice())
        with watch() as seen:
            doubled = model(x)
        torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
        assert ("folded_stages", "cpu") in seen
        assert not torch.allclose(doubled, plain)
        assert torch.equal(model(x), doubled)


def test_the_plans_of_a_model_go_with_it():
    blocks = random_blocks(8, 2)
    plans = plans_of_this_thread()
    before = set(plans)
    folded_blocks(normal(1, 8, 9, 9), blocks, implementation="cpu")
    assert len(set(plans) - before) == 1
    del blocks
    gc.collect()
    assert set(plans) <= before


def test_threads_take_whole_images_where_few_of_them_would_idle():
    assert [images for images in range(1, 12) if llvm.takes_images(images, 2)] == [2, 4, 6, 8, 9, 10, 11]
    assert all(llvm.takes_images(images, 1) for images in range(1, 12))


def test_an_inference_model_runs_on_the_fast_path_and_training_does_not():
    model = build_backbone("unireplknet_a", deploy=True).eval()
    x = normal(1, 3, 64, 64)
    with watch() as seen, torch.inference_mode():
        found = model(x)
    ran = set(seen)
    assert ran == {("folded_stages", "cpu")}
    with watch() as seen:
        model.double()(x.double())
    assert {implementation for _, implementation in seen} == {"reference"}
    expected = model(x.double())
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_gradients_flow_through_the_fast_path():
    x = normal(1, 8, 14, 14).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = normal(8, 1, 13, 13, seed=1).requires_grad_()
    push = normal(1, 8, 14, 14, seed=2)
    with watch() as seen:
        found = torch.autograd.grad(depthwise_conv2d(x, weight), (x, weight), push)
    expected = torch.autograd.grad(depthwise_conv2d(x, weight, implementation="reference"), (x, weight), push)
    assert next(implementation for _, implementation in seen) == "cpu"
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-3)


def test_the_operators_are_well_formed_on_this_path():
    x = normal(2, 5, 9, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = normal(5, 1, 9, 9, seed=1).requires_grad_()
    operators = torch.ops.unipercept
    with watch() as seen:
        torch.library.opcheck(operators.depthwise_conv2d.default, (x, weight, None, 1, "zero", None, ""))
        torch.library.opcheck(operators.depthwise_conv2d_with_sums.default, (x, weight, None, 1, "zero", ""))
        norm = (x, normal(5, seed=2), normal(5, seed=3), None, 1e-6, True, "")
        torch.library.opcheck(operators.layer_norm2d.default, norm)
    assert {("depthwise_conv2d", "cpu"), ("layer_norm2d", "cpu")} <= set(seen)


def test_an_inference_model_compiles_into_one_graph():
    model = build_backbone(
        "unireplknet_a", deploy=True, depths=(1, 1, 1, 1), kernel_sizes=((3,), (13,), (13,), (13,))
    ).eval()
    x = normal(1, 3, 64, 64)
    with torch.inference_mode():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        with watch() as seen:
            found = compiled(x)
        assert torch.allclose(found, model(x), atol=1e-5)  # compiled, the downsampling convolutions are torch's
    assert ("feed_forward", "cpu") in seen


def test_what_is_forced_runs_or_raises(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "cpu")
    x, weight = normal(1, 8, 5, 5), normal(8, 1, 3, 3)
    with watch() as seen:
        depthwise_conv2d(x, weight)
    assert list(seen) == [("depthwise_conv2d", "cpu")]
    with pytest.raises(InputError, match="float32 on the CPU"):
        depthwise_conv2d(x.double(), weight.double())
    with pytest.raises(InputError, match="zero padding"):
        depthwise_conv2d(x, weight, padding="circular")
    monkeypatch.setattr(llvm, "_has_llvmlite", lambda: False)
    with pytest.raises(InputError, match="llvmlite"):
        depthwise_conv2d(x, weight)


def test_without_llvmlite_torch_runs(monkeypatch):
    monkeypatch.setattr(llvm, "_has_llvmlite", lambda: False)
    y, residual, weights = random_feed_forward((1, 3, 3, 8, 16))
    with watch() as seen:
        fed_forward(y, residual, weights, "")
    assert list(seen) == [("feed_forward", "reference")]
