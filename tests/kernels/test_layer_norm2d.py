"""Layer norm over channels: torch's own mathematics on every path, with its gradients."""

import pytest
import torch
import torch.nn.functional as F

from unipercept.errors import InputError
from unipercept.kernels import layer_norm2d
from unipercept.kernels.dispatch import watch

SHAPES = [(2, 5, 3, 4), (1, 80, 9, 7), (3, 40, 5, 5), (1, 640, 2, 3), (2, 1, 2, 2)]


def plain(x, weight, bias, shift, gelu):
    """Written with torch's operations, in float64."""
    x = x.double() if shift is None else x.double() + shift.double()[:, None, None]
    y = F.layer_norm(x.permute(0, 2, 3, 1), [x.shape[1]], weight.double(), bias.double(), 1e-6).permute(0, 3, 1, 2)
    return F.gelu(y) if gelu else y


def case(shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(shape, generator=generator) + 5
    weight, bias, shift = (torch.randn(shape[1], generator=generator) for _ in range(3))
    return tuple(t.to(dtype) for t in (x, weight, bias, shift))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gelu", [True, False])
@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("implementation", ["reference", "gpu"])
def test_value_and_gradients(shape, gelu, shifted, implementation, triton_device):
    device = triton_device if implementation == "gpu" else "cpu"
    x, weight, bias, shift = (t.to(device).requires_grad_() for t in case(shape))
    shift = shift if shifted else None
    with watch() as seen:
        y = layer_norm2d(x, weight, bias, shift=shift, gelu=gelu, implementation=implementation)
    assert list(seen) == [("layer_norm2d", implementation)]
    assert y.is_contiguous(memory_format=torch.channels_last)
    inputs = [t for t in (x, weight, bias, shift) if t is not None]
    exact = plain(x, weight, bias, shift, gelu)
    push = torch.randn_like(y)
    expected = torch.autograd.grad(exact, inputs, push.double(), retain_graph=True)
    found = torch.autograd.grad(y, inputs, push)
    assert torch.allclose(y.double(), exact, atol=2e-5)
    for a, b in zip(found, expected, strict=True):
        # Of one channel the gradient is 0, and what is left of rounding comes out times 1 / sqrt(eps) = 1000.
        assert (a.double() - b.double()).norm() <= 1e-4 * b.double().norm() + 2e-4


@pytest.mark.parametrize("implementation", ["reference", "gpu"])
def test_half_precision_is_rounded_once(implementation, triton_device):
    device = triton_device if implementation == "gpu" else "cpu"
    x, weight, bias, shift = (t.to(device) for t in case((2, 40, 5, 6), torch.bfloat16))
    y = layer_norm2d(x, weight, bias, shift=shift, gelu=True, implementation=implementation)
    exact = plain(x, weight, bias, shift, True)
    assert y.dtype == torch.bfloat16
    assert (y.double() - exact).norm() < 2.0**-8 * exact.norm()


def test_it_is_one_well_formed_operator():
    x, weight, bias, shift = (t.double().requires_grad_() for t in case((1, 3, 2, 2)))
    torch.library.opcheck(torch.ops.unipercept.layer_norm2d.default, (x, weight, bias, shift, 1e-6, True, "reference"))
    assert torch.autograd.gradcheck(
        lambda *t: layer_norm2d(t[0], t[1], t[2], shift=t[3], gelu=True), (x, weight, bias, shift)
    )


def test_what_does_not_fit_is_refused():
    x, weight, bias, _ = case((1, 3, 2, 2))
    with pytest.raises(InputError, match="weight of C values"):
        layer_norm2d(x, weight[:2], bias)
    with pytest.raises(InputError, match="BxCxHxW"):
        layer_norm2d(x[0], weight, bias)
