"""The depthwise convolution: right against a loop, differentiable, one operator for compilers, and never silently replaced."""

import numpy as np
import pytest
import torch

from unipercept.errors import InputError
from unipercept.kernels import depthwise_conv2d
from unipercept.kernels.dispatch import ENVIRONMENT_VARIABLE, watch


def by_loop(x, weight, bias, dilation):
    """Float64 from the definition, cell by cell."""
    x, weight = x.double().numpy(), weight.double().numpy()
    _batch, _channels, height, width = x.shape
    rows, columns = weight.shape[-2:]
    out = np.zeros_like(x)
    for i in range(rows):
        for j in range(columns):
            di, dj = (i - rows // 2) * dilation, (j - columns // 2) * dilation
            for y in range(max(0, -di), min(height, height - di)):
                for z in range(max(0, -dj), min(width, width - dj)):
                    out[:, :, y, z] += x[:, :, y + di, z + dj] * weight[None, :, 0, i, j]
    return torch.from_numpy(out + (0 if bias is None else bias.double().numpy()[None, :, None, None]))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 3), (13, 13), (1, 11), (11, 1), (17, 17)])
@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_it_equals_a_loop(rows, columns, dilation, bias):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 9, 7, generator=generator)
    weight = torch.randn(3, 1, rows, columns, generator=generator)
    shift = torch.randn(3, generator=generator) if bias else None
    exact = by_loop(x, weight, shift, dilation)
    assert torch.allclose(
        depthwise_conv2d(x.double(), weight.double(), None if shift is None else shift.double(), dilation=dilation),
        exact,
        atol=1e-12,
    )
    found = depthwise_conv2d(x, weight, shift, dilation=dilation)
    assert (found.double() - exact).norm() < 1e-6 * exact.norm()


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_right(bias):
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, 3, 5, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(3, dtype=torch.float64, requires_grad=True) if bias else None
    assert torch.autograd.gradcheck(lambda a, w, b: depthwise_conv2d(a, w, b, dilation=2), (x, weight, shift))


def test_it_is_one_well_formed_operator():
    arguments = (
        torch.randn(1, 2, 5, 5, requires_grad=True),
        torch.randn(2, 1, 3, 3, requires_grad=True),
        None,
        1,
        "reference",
    )
    torch.library.opcheck(torch.ops.unipercept.depthwise_conv2d.default, arguments)


def test_autocast_computes_in_its_type():
    x, weight = torch.randn(1, 2, 8, 8), torch.randn(2, 1, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert depthwise_conv2d(x, weight).dtype == torch.bfloat16
        assert depthwise_conv2d(x.double(), weight.double()).dtype == torch.float64


def test_what_ran_can_be_seen():
    with watch() as seen:
        depthwise_conv2d(torch.randn(1, 2, 8, 8), torch.randn(2, 1, 3, 3))
    assert list(seen) == [("depthwise_conv2d", "reference")]


def test_what_is_forced_runs_or_raises(monkeypatch):
    x, weight = torch.randn(1, 2, 8, 8), torch.randn(2, 1, 3, 3)
    assert torch.equal(depthwise_conv2d(x, weight, implementation="reference"), depthwise_conv2d(x, weight))
    with pytest.raises(InputError, match="got 'gpu'"):
        depthwise_conv2d(x, weight, implementation="gpu")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "cuda-of-the-future")
    with pytest.raises(InputError, match="cuda-of-the-future"):
        depthwise_conv2d(x, weight)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        ((2, 5, 5), (2, 1, 3, 3), None, "BxCxHxW"),
        ((1, 2, 5, 5), (3, 1, 3, 3), None, "Cx1xKHxKW"),
        ((1, 2, 5, 5), (2, 2, 3, 3), None, "Cx1xKHxKW"),
        ((1, 2, 5, 5), (2, 1, 2, 3), None, "odd kernel"),
        ((1, 2, 5, 5), (2, 1, 3, 3), (3,), "bias of 2"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(x, weight, bias, message):
    with pytest.raises(InputError, match=message):
        depthwise_conv2d(torch.randn(x), torch.randn(weight), None if bias is None else torch.randn(bias))


def test_types_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"weight on cpu in torch\.float32"):
        depthwise_conv2d(torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3).double())
