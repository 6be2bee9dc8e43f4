"""A stem's first convolution with its norm: one pass against float64, and where it is left to two operations."""

import pytest
import torch
import torch.nn.functional as F

from unipercept.errors import InputError
from unipercept.kernels import conv_norm2d
from unipercept.kernels.dispatch import watch


def case(shape, width, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    w = torch.randn(width, shape[1], 3, 3, generator=generator)
    others = (torch.randn(width, generator=generator) for _ in range(3))
    return tuple(t.to(dtype) for t in (x, w, *others))


def exact(x, w, shift, weight, bias, gelu):
    y = F.conv2d(x.double(), w.double(), None if shift is None else shift.double(), 2, 1).permute(0, 2, 3, 1)
    y = F.layer_norm(y, [w.shape[0]], weight.double(), bias.double(), 1e-6).permute(0, 3, 1, 2)
    return F.gelu(y) if gelu else y


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "width", "gelu", "shifted"),
    [((2, 3, 13, 18), 40, True, True), ((1, 1, 16, 7), 64, False, False), ((3, 5, 6, 9), 22, True, True)],
    ids=str,
)
def test_one_pass_is_rounded_once(shape, width, gelu, shifted, dtype, triton_device):
    if triton_device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 as if it were integers; this needs a GPU")
    x, w, shift, weight, bias = (t.to(triton_device) for t in case(shape, width, dtype))
    shift = shift if shifted else None
    with watch() as seen, torch.no_grad():
        y = conv_norm2d(x, w, shift, weight, bias, gelu=gelu, implementation="gpu")
    assert list(seen) == [("conv_norm2d", "gpu")]
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    wanted = exact(x, w, shift, weight, bias, gelu)
    assert y.shape == wanted.shape
    assert (y.double() - wanted).norm() < (2.0**-8 if dtype == torch.bfloat16 else 2.0**-11) * wanted.norm()


def test_gradients_and_wide_maps_take_two_operations():
    x, w, shift, weight, bias = case((2, 3, 9, 8), 16, torch.float32)
    w.requires_grad_()
    with watch() as seen:
        y = conv_norm2d(x, w, shift, weight, bias, gelu=True)
    assert [name for name, _ in seen] == ["layer_norm2d"]
    assert torch.allclose(y.double(), exact(x, w, shift, weight, bias, True), atol=1e-5)
    y.sum().backward()
    assert w.grad is not None
    with pytest.raises(InputError, match="gradient"):
        conv_norm2d(x.bfloat16(), w.bfloat16(), shift, weight, bias, implementation="gpu")
    with pytest.raises(InputError, match="channels"):
        conv_norm2d(
            torch.randn(1, 40, 8, 8), torch.randn(80, 40, 3, 3), None, *torch.randn(2, 80), implementation="gpu"
        )
