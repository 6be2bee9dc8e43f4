"""The convolution of an image in training: value and gradients against float64, on every path."""

import pytest
import torch
import torch.nn.functional as F

from unipercept.errors import InputError
from unipercept.kernels import conv_norm2d, image_conv2d
from unipercept.kernels.dispatch import watch

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
SHAPES = [
    ((2, 3, 13, 18), 40),
    ((1, 1, 16, 7), 64),
    ((3, 5, 6, 9), 22),
    ((2, 7, 3, 3), 9),
]  # of the map; channels of the result


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


@pytest.mark.parametrize(("shape", "width"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_value_and_gradients_are_rounded_once(shape, width, dtype, triton_device):
    if triton_device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 as if it were integers; this needs a GPU")
    given = case(shape, width, dtype, triton_device)
    with watch() as seen:
        found = run(lambda x, w: image_conv2d(x, w, implementation="gpu"), *given)
    assert list(seen) == [("image_conv2d", "gpu")] * 2
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    for ours, right in zip(found, exact(*given), strict=True):
        assert ours.dtype == dtype
        assert error(ours, right) < (2.0**-8 if dtype == torch.bfloat16 else 2.0**-11)


@on_gpu
@pytest.mark.parametrize(
    ("shape", "width"), [((1, 5, 33, 57), 40), ((2, 4, 20, 30), 40), ((2, 3, 33, 33), 40)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("offset", [0, 3, 4])
def test_maps_and_gradients_may_begin_anywhere(shape, width, dtype, offset):
    given = case(shape, width, dtype, "cuda")
    moved = []
    for t in given:
        t = t.contiguous(memory_format=torch.channels_last)
        room = torch.full((t.numel() + 8,), torch.nan, dtype=dtype, device="cuda")
        moved.append(torch.as_strided(room, t.shape, t.stride(), offset).copy_(t))
    for ours, right in zip(run(image_conv2d, *moved), exact(*given), strict=True):
        assert error(ours, right) < (2.0**-8 if dtype == torch.bfloat16 else 2.0**-11)


@pytest.mark.parametrize(("shape", "width"), SHAPES[:2], ids=str)
def test_the_reference_is_torchs_own(shape, width):
    given = case(shape, width, torch.float64)
    for ours, right in zip(run(image_conv2d, *given), exact(*given), strict=True):
        assert error(ours, right) < 1e-14


@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=on_gpu)])
def test_it_is_a_well_formed_operator(place):
    x, w, _ = case((2, 3, 5, 6), 8, torch.float32 if place == "cpu" else torch.bfloat16, place)
    torch.library.opcheck(torch.ops.unipercept.image_conv2d.default, (x.requires_grad_(), w.requires_grad_(), ""))


@on_gpu
def test_a_stem_in_training_takes_it_and_compiles():
    x, w, _ = case((4, 3, 64, 64), 40, torch.float32, "cuda")
    others = [torch.ones(40, device="cuda") for _ in range(3)]
    w.requires_grad_()
    for function in (conv_norm2d, torch.compile(conv_norm2d, fullgraph=True)):
        with torch.autocast("cuda", torch.bfloat16), watch() as seen:
            y = function(x, w, *others, gelu=True)
        y.sum().backward()
        assert ("image_conv2d", "gpu") in seen


def test_what_does_not_fit_is_refused():
    x, w, _ = case((2, 3, 5, 6), 8, torch.float32)
    with pytest.raises(InputError, match="of its type"):
        image_conv2d(x, w.double())
    with pytest.raises(InputError, match="DxCx3x3"):
        image_conv2d(x[:, :2], w)
    with pytest.raises(InputError, match="were asked for"):
        image_conv2d(*case((1, 9, 4, 4), 8, torch.bfloat16)[:2], implementation="gpu")
