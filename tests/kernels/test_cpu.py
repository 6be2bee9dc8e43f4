"""The CPU's own kernels are as exact as torch's, on sizes that divide nothing, with any threads and vectors."""

import os
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.kernels.cpu_cases import fed_forward, normal, random_blocks, random_feed_forward, random_stages
from unipercept.kernels import (
    conv_norm2d,
    depthwise_conv2d,
    depthwise_conv2d_with_sums,
    folded_blocks,
    folded_stages,
    layer_norm2d,
    llvm,
    matrix_product,
    workspace,
)
from unipercept.kernels.dispatch import watch
from unipercept.kernels.feed_forward.reference import Weights
from unipercept.kernels.folded_blocks import BlockWeights
from unipercept.kernels.folded_stages import ConvNormWeights, Stage

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


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm().clamp(min=1e-30))


def assert_as_exact_as_torch(found: Tensor, plain: Tensor, exact: Tensor) -> None:
    assert found.dtype == torch.float32
    # Of few values torch's rounding may be good by chance, on one processor or another: two units in the last place.
    assert error(found, exact) <= 2 * error(plain, exact) + 2 * torch.finfo(torch.float32).eps


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


@pytest.mark.parametrize("batch", [1, 2, 5, 6])
@pytest.mark.parametrize("are_workspaces_kept", [True, False])
def test_a_run_of_blocks_is_as_exact_as_torch_each_time(batch, are_workspaces_kept, threads, monkeypatch):
    if not are_workspaces_kept:
        monkeypatch.setattr(workspace, "MAX_KEPT_FLOATS", 0)
        monkeypatch.setattr(workspace, "_mine", threading.local())
    blocks = random_blocks(20, 3)
    for seed in range(3):
        x, plain, exact = expected_of_blocks(batch, seed)
        assert_as_exact_as_torch(folded_blocks(x, blocks, implementation="cpu"), plain, exact)


@cache
def expected_of_blocks(batch: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A map, and what torch makes of it in float32 and in float64; the same for all threads and workspaces."""
    blocks = random_blocks(20, 3)
    wide = [BlockWeights(*(None if w is None else w.double() for w in block)) for block in blocks]
    x = normal(batch, 20, 30, 17, seed=seed).contiguous(memory_format=torch.channels_last)
    return x, folded_blocks(x, blocks, implementation="reference"), folded_blocks(x.double(), wide)


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
        x, plain, exact = expected_of_stages(batch, memory_format, seed)
        for found, *others in zip(folded_stages(x, stages, implementation="cpu"), plain, exact, strict=True):
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert_as_exact_as_torch(found, *others)


@cache
def expected_of_stages(
    batch: int, memory_format: torch.memory_format, seed: int
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """As `expected_of_blocks`."""
    stages = random_stages(3)
    x = normal(batch, 3, 37, 70, seed=seed).contiguous(memory_format=memory_format)
    plain = folded_stages(x, stages, implementation="reference")
    return x, plain, folded_stages(x.double(), wide_stages(stages))


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_threads_in_different_blocks_do_not_meet(threads):
    """Blocks of unlike kernels divide their workspaces differently, and each thread is in one of its own."""
    kernels = [normal(40, 1, size, size, seed=size, fan=size**2) for size in (13, 3, 13, 3, 3)]
    blocks = [block._replace(conv_w=w) for block, w in zip(random_blocks(40, 5), kernels, strict=True)]
    maps = [normal(6, 40, 14, 14, seed=seed).contiguous(memory_format=torch.channels_last) for seed in range(40)]
    torch.set_num_threads(1)  # torch's own threads would spin
    expected = [folded_blocks(x, blocks, implementation="reference") for x in maps]
    torch.set_num_threads(threads)
    for x, of_torch in zip(maps, expected, strict=True):
        assert torch.allclose(folded_blocks(x, blocks, implementation="cpu"), of_torch, atol=1e-4)


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
