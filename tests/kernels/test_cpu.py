"""The CPU's own kernels: as exact as torch's, on sizes that divide nothing, and never run or left out unseen."""

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unipercept import build_backbone
from unipercept.errors import InputError
from unipercept.kernels import (
    conv_norm2d,
    depthwise_conv2d,
    depthwise_conv2d_with_sums,
    feed_forward,
    folded_blocks,
    folded_stages,
    layer_norm2d,
    llvm,
    matrix_product,
    workspace,
)
from unipercept.kernels.dispatch import ENVIRONMENT_VARIABLE, watch
from unipercept.kernels.feed_forward.reference import Weights
from unipercept.kernels.folded_blocks import BlockWeights
from unipercept.kernels.folded_stages import ConvNormWeights, Stage
from unipercept.kernels.packed import packed
from unipercept.kernels.plans import plans as plans_of_this_thread

pytestmark = pytest.mark.skipif(llvm.why_not() is not None, reason=f"no CPU kernels: {llvm.why_not()}")


# Batch, channels, rows, columns, kernel rows and columns, dilation.
CONVOLUTIONS = [
    (2, 3, 9, 7, 3, 3, 1),
    (1, 17, 14, 14, 13, 13, 1),
    (2, 33, 29, 31, 13, 13, 1),
    (1, 16, 5, 5, 13, 13, 1),
    (3, 20, 1, 1, 9, 9, 1),
    (1, 16, 40, 1, 7, 7, 3),
    (2, 20, 9, 50, 5, 11, 2),
    (1, 5, 3, 16, 1, 11, 1),
    (1, 2, 60, 70, 51, 51, 1),
    (1, 18, 400, 61, 31, 5, 1),
]
# Batch, rows, columns, channels, hidden channels.
FEED_FORWARDS = [
    (5, 7, 7, 20, 80),
    (3, 14, 14, 12, 40),
    (2, 1, 1, 16, 33),
    (1, 9, 15, 48, 100),
    (3, 3, 2, 3, 5),
    (1, 7, 7, 320, 1280),
    (9, 28, 28, 80, 320),  # more images than are computed together
    (2, 17, 19, 40, 160),  # more cells than hidden channels: the weights are scaled
    (4, 7, 7, 320, 1280),  # more weights than the cache keeps
    (6, 14, 14, 160, 640),  # on matrix registers, where there are any
]


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def normal(*shape: int, seed: int = 0, fan: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * fan**-0.5


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm().clamp(min=1e-30))


def assert_as_exact_as_torch(found: Tensor, plain: Tensor, exact: Tensor) -> None:
    assert found.dtype == torch.float32
    assert error(found, exact) <= 2 * error(plain, exact) + 1e-7


@pytest.mark.parametrize("shape", CONVOLUTIONS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_convolution_and_its_sums_are_as_exact_as_torch(shape, has_bias, threads):
    batch, channels, rows, columns, down, across, dilation = shape
    x = normal(batch, channels, rows, columns).contiguous(memory_format=torch.channels_last)
    weight, bias = normal(channels, 1, down, across, seed=1), normal(channels, seed=2) if has_bias else None
    wide = (x.double(), weight.double(), None if bias is None else bias.double())
    exact, exact_sums = depthwise_conv2d_with_sums(*wide, dilation=dilation)
    plain, plain_sums = depthwise_conv2d_with_sums(x, weight, bias, dilation=dilation, implementation="reference")
    with watch() as seen:
        found, sums = depthwise_conv2d_with_sums(x, weight, bias, dilation=dilation, implementation="cpu")
    assert list(seen) == [("depthwise_conv2d", "cpu")]
    assert_as_exact_as_torch(found, plain, exact)
    assert_as_exact_as_torch(sums, plain_sums, exact_sums)


@pytest.mark.parametrize("channels_last", [None, True, False])
def test_the_convolution_takes_any_layout_and_gives_the_one_asked_for(channels_last):
    weight = normal(6, 1, 9, 9, seed=1)
    layouts = {
        "contiguous": normal(2, 6, 11, 10),
        "channels last": normal(2, 6, 11, 10).contiguous(memory_format=torch.channels_last),
        "a piece": normal(2, 6, 13, 20)[:, :, 1:-1, ::2],
    }
    for layout, x in layouts.items():
        found = depthwise_conv2d(x, weight, channels_last=channels_last, implementation="cpu")
        assert torch.allclose(found, depthwise_conv2d(x, weight, implementation="reference"), atol=1e-4), layout
        wanted = layout == "channels last" if channels_last is None else channels_last
        assert found.is_contiguous(memory_format=torch.channels_last) == wanted


def random_feed_forward(shape) -> tuple[Tensor, Tensor, Weights]:
    batch, rows, columns, channels, hidden = shape
    squeezed = max(1, channels // 4)
    weights = Weights(
        normal(squeezed, channels, seed=1, fan=channels), normal(squeezed, seed=2),
        normal(channels, squeezed, seed=3, fan=squeezed), normal(channels, seed=4),
        normal(hidden, channels, seed=5, fan=channels), normal(hidden, seed=6), normal(hidden, seed=7), None,
        normal(channels, hidden, seed=8, fan=hidden), normal(channels, seed=9),
    )  # fmt: skip
    return normal(batch, rows, columns, channels), normal(batch, rows, columns, channels, seed=10), weights


def fed_forward(y: Tensor, residual: Tensor, weights: Weights, implementation: str) -> Tensor:
    return feed_forward(y, residual, *weights[:7], weights.w2, weights.b2, implementation=implementation)


@pytest.mark.parametrize("shape", FEED_FORWARDS)
@pytest.mark.parametrize("has_b2", [True, False])
def test_the_feed_forward_is_as_exact_as_torch(shape, has_b2, threads):
    y, residual, weights = random_feed_forward(shape)
    weights = weights if has_b2 else weights._replace(b2=None)
    wide = Weights(*(None if w is None else w.double() for w in weights))
    exact = fed_forward(y.double(), residual.double(), wide, "reference")
    with watch() as seen:
        found = fed_forward(y, residual, weights, "cpu")
    assert list(seen) == [("feed_forward", "cpu")]
    assert_as_exact_as_torch(found, fed_forward(y, residual, weights, "reference"), exact)


# Batch, channels, rows and columns of the input, channels of the result.
@pytest.mark.parametrize(
    "shape",
    [
        (1, 3, 32, 40, 20),
        (2, 3, 33, 63, 48),
        (2, 4, 1, 131, 7),  # in planes
        (2, 20, 13, 9, 40),
        (3, 5, 7, 8, 33),
        (2, 160, 6, 6, 100),
        (3, 160, 5, 7, 320),
        (2, 1, 1, 1, 3),
        (1, 2, 1, 5, 16),
    ],
)
@pytest.mark.parametrize(("gelu", "has_shift"), [(True, False), (False, True)])
def test_the_downsampling_convolution_with_its_norm_is_as_exact_as_torch(shape, gelu, has_shift, threads):
    batch, channels, rows, columns, wide = shape
    x, kernel = normal(batch, channels, rows, columns), normal(wide, channels, 3, 3, seed=1, fan=9 * channels)
    shift, weight, bias = (normal(wide, seed=i) for i in (2, 3, 4))

    def run(implementation, dtype=torch.float32):
        moved = [t.to(dtype) for t in (x, kernel, shift, weight, bias)]
        moved[2] = moved[2] if has_shift else None
        return conv_norm2d(*moved, gelu=gelu, implementation=implementation)

    found = run("cpu")
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_as_exact_as_torch(found, run("reference"), run("reference", torch.float64))


@pytest.mark.parametrize("shape", [(2, 20, 13, 9), (1, 1, 3, 3), (3, 100, 1, 1), (1, 33, 40, 40)])
@pytest.mark.parametrize("gelu", [True, False])
@pytest.mark.parametrize("has_shift", [True, False])
def test_the_layer_norm_is_as_exact_as_torch(shape, gelu, has_shift, threads):
    x, channels = normal(*shape) * 3 + 1, shape[1]
    weight, bias = normal(channels, seed=1), normal(channels, seed=2)
    shift = normal(channels, seed=3) if has_shift else None

    def run(implementation, dtype=torch.float32):
        moved = [None if t is None else t.to(dtype) for t in (x, weight, bias, shift)]
        return layer_norm2d(*moved[:3], shift=moved[3], gelu=gelu, implementation=implementation)

    assert_as_exact_as_torch(run("cpu"), run("reference"), run("reference", torch.float64))


def test_gelu_of_anything_is_that_of_torch():
    """Through a layer norm whose weight is 0: its output is its bias."""
    bias = torch.cat(
        [torch.linspace(-40, 40, 20001), torch.tensor([0.0, -0.0, 3e38, -3e38, torch.inf, torch.nan, 1e-40])]
    )
    found = layer_norm2d(torch.zeros(1, len(bias), 1, 1), torch.zeros_like(bias), bias, gelu=True, implementation="cpu")
    exact, plain = torch.nn.functional.gelu(bias.double()), torch.nn.functional.gelu(bias)
    finite = exact.isfinite()
    assert torch.equal(found.flatten().isfinite(), finite)
    small = finite & (bias.abs() < 100)
    worst = (plain[small].double() - exact[small]).abs().max()
    assert (found.flatten()[small].double() - exact[small]).abs().max() <= 2 * worst


def test_what_is_not_a_number_stays_so():
    y, residual, weights = random_feed_forward((2, 3, 3, 8, 16))
    y[0, 1, 1, 3] = torch.nan
    found = fed_forward(y, residual, weights, "cpu")
    assert found[0].isnan().all()
    assert not found[1].isnan().any()


def test_changed_weights_count_at_once():
    x, weight = normal(1, 8, 14, 14).contiguous(memory_format=torch.channels_last), normal(8, 1, 13, 13, seed=1)
    for change in (lambda w: w.mul_(2), lambda w: w.data.mul_(3), lambda w: setattr(w, "data", w.data * 0.5)):
        depthwise_conv2d(x, weight, implementation="cpu")
        change(weight)
        expected = depthwise_conv2d(x, weight, implementation="reference")
        assert torch.allclose(depthwise_conv2d(x, weight, implementation="cpu"), expected, atol=1e-4)


def random_blocks(channels: int, n_blocks: int) -> list[BlockWeights]:
    _, _, weights = random_feed_forward((1, 1, 1, channels, 4 * channels))
    kernel, bias = normal(channels, 1, 13, 13, seed=20, fan=169), normal(channels, seed=21)
    return [BlockWeights(kernel.clone(), bias, *weights[:7], weights.w2.clone(), weights.b2) for _ in range(n_blocks)]


@pytest.mark.parametrize("batch", [1, 2, 5, 6])
@pytest.mark.parametrize("are_workspaces_kept", [True, False])
def test_a_run_of_blocks_is_as_exact_as_torch_each_time(batch, are_workspaces_kept, threads, monkeypatch):
    if not are_workspaces_kept:
        monkeypatch.setattr(workspace, "MAX_KEPT_FLOATS", 0)
        monkeypatch.setattr(workspace, "_mine", threading.local())
    blocks = random_blocks(20, 3)
    wide = [BlockWeights(*(None if w is None else w.double() for w in block)) for block in blocks]
    for seed in range(3):
        x = normal(batch, 20, 30, 17, seed=seed).contiguous(memory_format=torch.channels_last)
        plain, exact = folded_blocks(x, blocks, implementation="reference"), folded_blocks(x.double(), wide)
        found = folded_blocks(x, blocks, implementation="cpu")
        assert_as_exact_as_torch(found, plain, exact)


def random_stages(channels: int) -> list[Stage]:
    stages = []
    for wide, n_convs in ((20, 2), (24, 1)):
        convs = []
        for i in reversed(range(n_convs)):
            kernel, (shift, weight, bias) = (
                normal(wide >> i, channels, 3, 3, seed=i, fan=9 * channels),
                normal(3, wide >> i),
            )
            convs.append(ConvNormWeights(kernel, shift.clone(), weight.clone(), bias.clone(), 1e-6, i > 0))
            channels = wide >> i
        stages.append(Stage(convs, random_blocks(wide, 4 - n_convs)))
    return stages


def wide_stages(stages: list[Stage]) -> list[Stage]:
    return [
        Stage(
            [ConvNormWeights(*(None if w is None else w.double() for w in h[:4]), *h[4:]) for h in stage.downsample],
            [BlockWeights(*(None if w is None else w.double() for w in block)) for block in stage.blocks],
        )
        for stage in stages
    ]


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("are_workspaces_kept", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_all_stages_are_as_exact_as_torch_each_time(batch, are_workspaces_kept, memory_format, threads, monkeypatch):
    if not are_workspaces_kept:
        monkeypatch.setattr(workspace, "MAX_KEPT_FLOATS", 0)
        monkeypatch.setattr(workspace, "_mine", threading.local())
    stages = random_stages(3)
    for seed in range(3):
        x = normal(batch, 3, 37, 70, seed=seed).contiguous(memory_format=memory_format)
        plain, exact = (
            folded_stages(x, stages, implementation="reference"),
            folded_stages(x.double(), wide_stages(stages)),
        )
        for found, *others in zip(folded_stages(x, stages, implementation="cpu"), plain, exact, strict=True):
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert_as_exact_as_torch(found, *others)


def test_changed_weights_of_a_downsampling_convolution_count_at_once():
    x, stages = normal(1, 3, 37, 70), random_stages(3)
    for name in ("w", "shift", "weight", "bias"):
        for change in (lambda w: w.mul_(2), lambda w: w.data.mul_(-1), lambda w: setattr(w, "data", w.data * 0.5)):
            folded_stages(x, stages, implementation="cpu")
            change(getattr(stages[0].downsample[0], name))
            expected = folded_stages(x, stages, implementation="reference")[-1]
            assert torch.allclose(folded_stages(x, stages, implementation="cpu")[-1], expected, atol=1e-4), name


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_threads_in_different_blocks_do_not_meet(threads):
    """Blocks of unlike kernels divide their workspaces differently, and each thread is in one of its own."""
    kernels = [normal(40, 1, size, size, seed=size, fan=size**2) for size in (13, 3, 13, 3, 3)]
    blocks = [block._replace(conv_w=w) for block, w in zip(random_blocks(40, 5), kernels, strict=True)]
    for seed in range(40):
        x = normal(6, 40, 14, 14, seed=seed).contiguous(memory_format=torch.channels_last)
        expected = folded_blocks(x, blocks, implementation="reference")
        assert torch.allclose(folded_blocks(x, blocks, implementation="cpu"), expected, atol=1e-4)


def test_changed_weights_of_a_run_of_blocks_count_at_once():
    x, blocks = normal(1, 8, 9, 9).contiguous(memory_format=torch.channels_last), random_blocks(8, 2)
    for name in ("conv_w", "conv_b", "up_b", "w1", "b1", "w2"):
        for change in (lambda w: w.mul_(2), lambda w: w.data.mul_(-1), lambda w: setattr(w, "data", w.data * 0.5)):
            folded_blocks(x, blocks, implementation="cpu")
            change(getattr(blocks[1], name))
            expected = folded_blocks(x, blocks, implementation="reference")
            assert torch.allclose(folded_blocks(x, blocks, implementation="cpu"), expected, atol=1e-4), name


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


OTHER_WIDTH = """
import sys
import torch
from unipercept.kernels import llvm
llvm.vector_width = lambda: int(sys.argv[1])
if sys.argv[2:]:
    import matrix_registers
    llvm.has_matrices, llvm._address = lambda: True, matrix_registers.emulated(llvm._address)
    from unipercept.kernels import products
    products.suits_matrices = lambda *_: True
from unipercept.kernels import conv_norm2d, depthwise_conv2d, feed_forward, folded_blocks, layer_norm2d
torch.manual_seed(0)
x, w = torch.randn(2, 21, 15, 14).contiguous(memory_format=torch.channels_last), torch.randn(21, 1, 13, 13)
n = lambda *s: torch.randn(*s) / s[-1] ** 0.5
f = (n(5, 21), n(5), n(21, 5), n(21), n(84, 21), n(84), n(84), n(21, 84), n(21))
y = (torch.randn(2, 5, 7, 21), torch.randn(2, 5, 7, 21))
l = (torch.randn(21), torch.randn(21))
b = [(n(21, 1, 3, 3), n(21), *f), (w / 13, None, *f)]
p, q = torch.randn(2, 3, 9, 70), (n(24, 3, 3, 3), n(24), n(24), n(24))
z = torch.randn(1, 5, 7, 200)  # with weights enough to be taken in pieces
g = (n(5, 200), n(5), n(200, 5), n(200), n(400, 200), n(400), n(400), n(200, 400), n(200))
c = (n(50, 21, 3, 3) / 8, n(50), n(50), n(50))
for run in (
    lambda i: depthwise_conv2d(x, w, implementation=i), lambda i: feed_forward(*y, *f, implementation=i),
    lambda i: layer_norm2d(x, *l, gelu=True, implementation=i), lambda i: conv_norm2d(x, *c, gelu=True, implementation=i),
    lambda i: conv_norm2d(p, *q, gelu=True, implementation=i), lambda i: feed_forward(z, z, *g, implementation=i),
    lambda i: folded_blocks(x, [folded_blocks.__globals__["BlockWeights"](*block) for block in b], implementation=i),
):
    assert torch.allclose(run("cpu"), run("reference"), rtol=5e-6, atol=5e-6)  # two parts of three would be 2e-5 off
"""


def test_a_weight_is_the_sum_of_its_three_parts():
    weight = normal(40, 70)  # two strips of 16 columns are a panel, the third is alone
    strips = matrix_product.pack(weight).view(torch.bfloat16).double().split(3 * 3 * 512 * 2)
    by_step = [strip.view(3, -1, 3, 16, 16, 2) for strip in strips]  # step, strip, part, pair, column, half
    found = torch.cat(by_step, dim=1).sum(dim=2).permute(1, 3, 0, 4, 2).reshape(48, 96)
    assert torch.equal(found[:40, :70], weight.double())
    assert not found[40:].any()
    assert not found[:, 70:].any()


@pytest.mark.parametrize("kind", [["8"], ["16"], ["16", "with matrices"]])
def test_vectors_of_the_other_width_give_the_same(kind):
    """Code for AVX2 runs on processors with AVX-512 too; without it LLVM makes two instructions of one.

    Matrix registers are emulated.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", OTHER_WIDTH, *kind]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
