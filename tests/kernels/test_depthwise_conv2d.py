"""The depthwise convolution: right against a loop, differentiable, one operator for compilers,
and never silently replaced.
"""

import numpy as np
import pytest
import torch

from unipercept.errors import InputError
from unipercept.kernels import depthwise_conv2d, depthwise_conv2d_with_sums
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
        "zero",
        None,
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
    with pytest.raises(InputError, match="NVIDIA GPU"):
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


@pytest.mark.parametrize("padding", ["circular", "cylinder", "sphere", "sphere_poles"])
@pytest.mark.parametrize(("height", "width", "kernel", "dilation"), [(6, 8, 5, 1), (4, 6, 13, 1), (5, 8, 3, 4)])
def test_what_lies_beyond_the_edge(padding, height, width, kernel, dilation):
    """The padded map is continued cell by cell from the definition, then convolved without padding."""
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    if padding == "sphere_poles":  # a pole is one point, whatever the meridian
        x[:, :, [0, -1]] = x[:, :, [0, -1], :1]
    weight = torch.randn(3, 1, kernel, kernel, dtype=torch.float64)
    reach = kernel // 2 * dilation
    padded = torch.zeros(2, 3, height + 2 * reach, width + 2 * reach, dtype=torch.float64)
    for row in range(-reach, height + reach):
        for column in range(-reach, width + reach):
            place = beyond(row, column, height, width, padding)
            if place is not None:
                padded[:, :, row + reach, column + reach] = x[:, :, place[0], place[1]]
    expected = torch.nn.functional.conv2d(padded, weight, dilation=dilation, groups=3)
    assert torch.allclose(depthwise_conv2d(x, weight, dilation=dilation, padding=padding), expected, atol=1e-12)


def beyond(row, column, height, width, padding):
    """Walk over the edge one cell at a time, as a traveller would."""
    if padding == "circular":
        return row % height, column % width
    if padding == "cylinder":
        return (row, column % width) if 0 <= row < height else None
    while not 0 <= row < height:
        repeated = padding == "sphere_poles"
        row = -row - (not repeated) if row < 0 else 2 * height - 1 - row - repeated
        column += width // 2
    return row, column % width


@pytest.mark.parametrize("padding", ["circular", "cylinder", "sphere", "sphere_poles"])
def test_gradients_are_right_beyond_the_edge(padding):
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: depthwise_conv2d(a, b, dilation=2, padding=padding), (x, weight))


def test_a_turn_of_the_globe_turns_the_output():
    x, weight = torch.randn(1, 2, 6, 8, dtype=torch.float64), torch.randn(2, 1, 5, 5, dtype=torch.float64)
    turned = depthwise_conv2d(x.roll(3, -1), weight, padding="sphere")
    assert torch.equal(turned, depthwise_conv2d(x, weight, padding="sphere").roll(3, -1))


def test_a_sphere_needs_an_opposite_meridian():
    with pytest.raises(InputError, match="even number of columns"):
        depthwise_conv2d(torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3), padding="sphere")
    with pytest.raises(InputError, match="padding must be one of zero"):
        depthwise_conv2d(torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3), padding="reflect")


def test_the_sums_are_those_of_the_output_and_have_gradients():
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    output, sums = depthwise_conv2d_with_sums(x, weight)
    assert torch.allclose(sums, output.sum(dim=(2, 3)))
    assert torch.autograd.gradcheck(depthwise_conv2d_with_sums, (x, weight))


@pytest.mark.parametrize("channels_last", [None, True, False])
@pytest.mark.parametrize("input_last", [True, False])
def test_the_memory_format_is_that_of_the_input_or_what_is_asked(channels_last, input_last):
    x = torch.randn(2, 8, 5, 6).contiguous(memory_format=torch.channels_last if input_last else torch.contiguous_format)
    output = depthwise_conv2d(x, torch.randn(8, 1, 3, 3), channels_last=channels_last)
    wanted = input_last if channels_last is None else channels_last
    assert output.is_contiguous(memory_format=torch.channels_last) == wanted


def test_it_compiles_into_one_graph():
    x, weight = torch.randn(1, 2, 8, 8), torch.randn(2, 1, 3, 3)
    compiled = torch.compile(lambda a, b: depthwise_conv2d(a, b) * 2, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x, weight), depthwise_conv2d(x, weight) * 2)


def test_a_dilated_weight_gradient_in_bfloat16_reads_what_was_written():
    """torch's own is off by 1e30 over channels-last maps on some processors, where memory was used before."""
    x = torch.randn(2, 8, 31, 30, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = torch.randn(8, 1, 3, 3, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = weight.double().requires_grad_()
    depthwise_conv2d(x.double(), exact, dilation=2, implementation="reference").sum().backward()
    for layout in (torch.contiguous_format, torch.channels_last):
        used = [torch.full((n,), 3e38) for n in (1000, 3000, 10000, 50000)]
        del used
        found = weight.clone().requires_grad_()
        result = depthwise_conv2d(x.contiguous(memory_format=layout), found, dilation=2, implementation="reference")
        result.sum().backward()
        assert (found.grad.double() - exact.grad).norm() < 0.02 * exact.grad.norm()
