"""The convolution between stages in training: value and gradients against float64, on every path."""

import pytest
import torch
import torch.nn.functional as F

from unipercept.errors import InputError
from unipercept.kernels import conv_norm2d, halving_conv2d
from unipercept.kernels.dispatch import watch

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
SHAPES = [((2, 8, 12, 10), 16), ((3, 24, 7, 9), 40), ((1, 16, 1, 4), 8)]  # of the map; channels of the result
LARGE = [((128, 40, 112, 112), 80), ((128, 320, 14, 14), 640)]


def case(shape, width, dtype, place="cpu"):
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(shape, generator=generator), torch.randn(width, shape[1], 3, 3, generator=generator)
    push = torch.randn(shape[0], width, (shape[2] + 1) // 2, (shape[3] + 1) // 2, generator=generator)
    return [t.to(place, dtype) for t in (x, w, push)]


def run(function, x, w, push):
    """The result, and the gradients of the map and the weight."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = function(x, w)
    y.backward(push)
    return [y.detach(), x.grad, w.grad]


def exact(x, w, push):
    return run(lambda x, w: F.conv2d(x, w, None, 2, 1), x.double(), w.double(), push.double())


def error(found, right):
    return float((found.double() - right).norm() / right.norm())


@pytest.mark.parametrize(("shape", "width"), [*SHAPES, *(pytest.param(*c, marks=on_gpu) for c in LARGE)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format], ids=str)
def test_gradients_are_rounded_once(shape, width, dtype, memory, triton_device):
    if triton_device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 as if it were integers; this needs a GPU")
    given = [t.contiguous(memory_format=memory) for t in case(shape, width, dtype, triton_device)]
    with watch() as seen:
        found = run(lambda x, w: halving_conv2d(x, w, implementation="gpu"), *given)
        again = run(lambda x, w: halving_conv2d(x, w, implementation="gpu"), *given)
    assert list(seen) == [("halving_conv2d", "gpu")] * 2
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found[1], again[1])
    for ours, right in zip(found, exact(*given), strict=True):
        assert ours.dtype == dtype
        assert error(ours, right) < (2.0**-8 if dtype == torch.bfloat16 else 2.0**-11)


@pytest.mark.parametrize(("shape", "width"), SHAPES[:2], ids=str)
def test_the_reference_is_torchs_own(shape, width):
    given = case(shape, width, torch.float64)
    for ours, right in zip(run(halving_conv2d, *given), exact(*given), strict=True):
        assert error(ours, right) < 1e-14


@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=on_gpu)])
def test_it_is_a_well_formed_operator(place):
    x, w, _ = case((2, 8, 5, 6), 16, torch.float32 if place == "cpu" else torch.bfloat16, place)
    torch.library.opcheck(torch.ops.unipercept.halving_conv2d.default, (x.requires_grad_(), w.requires_grad_(), ""))


@on_gpu
def test_a_halving_in_training_takes_it_and_compiles():
    x, w, _ = case((4, 40, 32, 32), 80, torch.float32, "cuda")
    others = [torch.ones(80, device="cuda") for _ in range(3)]
    x.requires_grad_()
    for function in (conv_norm2d, torch.compile(conv_norm2d, fullgraph=True)):
        with torch.autocast("cuda", torch.bfloat16), watch() as seen:
            function(x, w, *others).sum().backward()
        assert ("halving_conv2d", "gpu") in seen


def test_what_does_not_fit_is_refused():
    x, w, push = case((2, 12, 5, 6), 8, torch.float32)
    with pytest.raises(InputError, match="of its type"):
        halving_conv2d(x, w.double())
    with pytest.raises(InputError, match="DxCx3x3"):
        halving_conv2d(x[:, :2], w)
    with pytest.raises(InputError, match="multiples of 8"):
        halving_conv2d(x.requires_grad_(), w, implementation="gpu").backward(push)
