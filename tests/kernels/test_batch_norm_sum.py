"""Batch norms of several maps, summed: they are torch's own batch norms, on every path, with their gradients.

The Triton kernels run on a GPU where there is one, else in Triton's interpreter.
"""

import pytest
import torch
from torch import nn

from unipercept.batch_norms import summed_norms
from unipercept.blocks import Block, DilatedReparamConv
from unipercept.errors import InputError
from unipercept.kernels import batch_norm_sum
from unipercept.kernels.batch_norm_sum import update_running_statistics
from unipercept.kernels.dispatch import watch

SHAPES = [
    (3, 20, 5, 7, 1),
    (5, 13, 3, 2, 2),
    (2, 64, 9, 9, 6),
    (1, 300, 4, 4, 3),
]  # batch, channels, rows, columns, terms; the last two take the interpreter seconds


def random_case(shape, dtype=torch.float32, offset=0.0):
    batch, channels, rows, columns, terms = shape
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=generator).to(dtype)  # noqa: E731
    xs = [draw(batch, channels, rows, columns) * (1 + t) + offset * (t + 1) for t in range(terms)]
    weights, biases = draw(terms, channels), draw(terms, channels)
    return xs, weights, biases, draw(batch, channels, rows, columns), torch.rand(batch, generator=generator).to(dtype)


def by_modules(xs, weights, biases, residual, scale):
    """What torch's modules make of it, and their statistics."""
    total = 0
    for x, weight, bias in zip(xs, weights, biases, strict=True):
        total = total + nn.functional.batch_norm(x, None, None, weight, bias, training=True)
    if scale is not None:
        total = total * scale.view(-1, 1, 1, 1)
    return total if residual is None else residual + total


def run(function, case, with_residual, with_scale, push, dtype, place="cpu", **options):
    xs, weights, biases, residual, scale = case
    leaves = [
        t.detach().to(place, dtype, copy=True).requires_grad_()
        for t in (*xs, weights, biases, *([residual] if with_residual else []))
    ]
    parts = leaves[: len(xs)], leaves[len(xs)], leaves[len(xs) + 1], leaves[-1] if with_residual else None
    given = scale.to(place, dtype) if with_scale else None
    found = function(*parts[:3], residual=parts[3], scale=given, **options)[0] if options else function(*parts, given)
    found.backward(push.to(place, dtype))
    return [found.detach(), *(leaf.grad for leaf in leaves)]


def error(found, exact):
    return float((found.double().cpu() - exact).norm() / exact.norm())


@pytest.mark.parametrize(
    ("shape", "with_residual", "with_scale"),
    [(shape, True, True) for shape in SHAPES]
    + [
        pytest.param(shape, *without, marks=[pytest.mark.slow] if shape in SHAPES[2:] else [])
        for shape in SHAPES
        for without in ((False, False), (True, False))
    ],
)
@pytest.mark.parametrize("implementation", ["reference", "gpu"])
def test_it_is_a_sum_of_batch_norms_with_its_gradients(triton_device, shape, with_residual, with_scale, implementation):
    case = random_case(shape)
    push = torch.randn(case[3].shape, generator=torch.Generator().manual_seed(1))
    exact = run(by_modules, case, with_residual, with_scale, push, torch.float64)
    plain = run(by_modules, case, with_residual, with_scale, push, torch.float32)
    place = triton_device if implementation == "gpu" else "cpu"
    with watch() as seen:
        found = run(
            batch_norm_sum, case, with_residual, with_scale, push, torch.float32, place, implementation=implementation
        )
    assert list(seen) == [("batch_norm_sum", implementation)] * 2
    for ours, theirs, right in zip(found, plain, exact, strict=True):
        assert error(ours, right) <= 2 * error(theirs, right) + 2e-6


@pytest.mark.parametrize("implementation", ["reference", "gpu"])
def test_a_gain_is_a_product_with_the_sum(triton_device, implementation):
    xs, weights, biases, residual, scale = random_case((3, 20, 5, 7, 2))
    gain, push = torch.randn(20), torch.randn(residual.shape)

    def run_it(dtype, place, gain_inside):
        leaves = [
            t.detach().to(place, dtype, copy=True).requires_grad_() for t in (*xs, weights, biases, residual, gain)
        ]
        *maps, weight, bias, rest, factor = leaves
        given = {"residual": rest, "scale": scale.to(place, dtype)}
        if gain_inside:
            found = batch_norm_sum(maps, weight, bias, gain=factor, implementation=implementation, **given)[0]
        else:
            found = by_modules(maps, weight * factor, bias * factor, *given.values())
        found.backward(push.to(place, dtype))
        return [found, *(leaf.grad for leaf in leaves)]

    place = triton_device if implementation == "gpu" else "cpu"
    for ours, right in zip(run_it(torch.float32, place, True), run_it(torch.float64, "cpu", False), strict=True):
        assert error(ours.detach(), right.detach()) <= 1e-5
    with pytest.raises(InputError, match="a gain of 20 values"):
        batch_norm_sum(xs, weights, biases, gain=gain[1:])


@pytest.mark.parametrize("place", ["reference", "gpu"])
def test_running_statistics_move_as_those_of_the_modules(triton_device, place):
    modules = [nn.BatchNorm2d(300) for _ in range(3)]
    xs = [torch.randn(2, 300, 3, 3) + i for i in range(3)]
    means = torch.stack([x.mean(dim=(0, 2, 3)) for x in xs])
    variances = torch.stack([x.var(dim=(0, 2, 3), correction=0) for x in xs])
    device = triton_device if place == "gpu" else "cpu"
    given = [
        [getattr(m, n).detach().clone().to(device) for m in modules]
        for n in ("running_mean", "running_var", "num_batches_tracked")
    ]
    if place == "gpu":
        from unipercept.kernels.batch_norm_sum.gpu import update_gpu

        update_gpu(*given, means.to(device), variances.to(device), 0.1, 18 / 17)
    else:
        update_running_statistics(*given, means, variances, 0.1, 18)
        copies = [[t.clone() for t in group] for group in given]
        torch.library.opcheck(update_running_statistics, (*copies, means, variances, 0.1, 18))
    for module, x in zip(modules, xs, strict=True):
        module.train()(x)
    for i, module in enumerate(modules):
        for group, name in zip(given, ("running_mean", "running_var", "num_batches_tracked"), strict=True):
            assert torch.allclose(group[i].cpu(), getattr(module, name), atol=1e-6), name


@pytest.mark.parametrize("implementation", ["reference", "gpu"])
def test_a_mean_far_from_zero_costs_no_digits(triton_device, implementation):
    xs, weights, biases, *_ = random_case((4, 16, 8, 8, 2), offset=1000.0)
    place = triton_device if implementation == "gpu" else "cpu"
    moved = [x.to(place) for x in xs], weights.to(place), biases.to(place)
    _, means, variances = batch_norm_sum(*moved, implementation=implementation)
    for x, mean, variance in zip(xs, means.cpu(), variances.cpu(), strict=True):
        exact = x.double()
        assert torch.allclose(mean.double(), exact.mean(dim=(0, 2, 3)), rtol=1e-6)
        assert torch.allclose(variance.double(), exact.var(dim=(0, 2, 3), correction=0), rtol=1e-3)


def test_gradients_of_the_reference_are_right():
    xs, weights, biases, residual, scale = random_case((2, 3, 2, 3, 2), torch.float64)
    inputs = [t.requires_grad_() for t in (*xs, weights, biases, residual)]

    def function(x0, x1, weights, biases, residual):
        return batch_norm_sum([x0, x1], weights, biases, residual=residual, scale=scale)[0]

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("implementation", ["reference", "gpu"])
def test_it_is_a_well_formed_operator(triton_device, implementation):
    place = triton_device if implementation == "gpu" else "cpu"
    xs, weights, biases, residual, scale = random_case((2, 8, 1, 2, 2))
    xs = [x.to(place).contiguous(memory_format=torch.channels_last).requires_grad_() for x in xs]
    others = [t.to(place).requires_grad_() for t in (weights, biases, residual)]
    gain = torch.randn(8, device=place).requires_grad_()
    for given in (None, gain):
        arguments = (xs, *others, scale.to(place), given, 1e-5, implementation)
        torch.library.opcheck(torch.ops.unipercept.batch_norm_sum.default, arguments)


def test_the_result_has_the_type_of_the_residual(triton_device):
    xs, weights, biases, residual, _ = random_case((2, 8, 3, 3, 2), torch.float16)
    arguments = [x.to(triton_device) for x in xs], weights.float().to(triton_device), biases.float().to(triton_device)
    for implementation in ("gpu",):
        found, *_ = batch_norm_sum(
            *arguments, residual=residual.float().to(triton_device), implementation=implementation
        )
        assert found.dtype == torch.float32
        assert batch_norm_sum(*arguments, implementation=implementation)[0].dtype == torch.float16


def test_maps_that_do_not_fit_are_refused():
    xs, weights, biases, residual, scale = random_case((2, 8, 3, 3, 2))
    with pytest.raises(InputError, match="one shape, type and device"):
        batch_norm_sum([xs[0], xs[1].double()], weights, biases)
    with pytest.raises(InputError, match=r"biases \(2, 8\), got \(2, 8\) and \(1, 8\)"):
        batch_norm_sum(xs, weights, biases[:1])
    with pytest.raises(InputError, match="residual"):
        batch_norm_sum(xs, weights, biases, residual=residual[:1])
    with pytest.raises(InputError, match="scale of 2 values"):
        batch_norm_sum(xs, weights, biases, scale=scale[:1])
    with pytest.raises(InputError, match="more than one value a channel"):
        batch_norm_sum([torch.zeros(1, 8, 1, 1)], weights[:1], biases[:1])


def test_a_block_trains_as_its_modules_would_apart():
    """Outputs, gradients and running statistics of a dilated block in training, against the
    same norms called one by one.
    """
    torch.manual_seed(0)
    block = Block(8, 9, layer_scale=0.5).double().train()
    twin = Block(8, 9, layer_scale=0.5).double().train()
    twin.load_state_dict(block.state_dict())
    x = torch.randn(3, 8, 7, 6, dtype=torch.float64)

    def apart(block, x):
        conv = block.dwconv
        y = conv.origin_bn(conv.lk_origin(x))
        for branch, norm in conv.branch_layers():
            y = y + norm(branch(x))
        y = block.norm(y)
        gate = block.se(y)
        y = block.pwconv2(block.act(block.pwconv1(gate)))
        return x + y * block.gamma.view(1, -1, 1, 1)

    push = torch.randn_like(x)
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    together, separate = block(first), apart(twin, second)
    together.backward(push)
    separate.backward(push)
    assert torch.allclose(together, separate, atol=1e-10)
    assert torch.allclose(first.grad, second.grad, atol=1e-10)
    for (name, ours), theirs in zip(block.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-9), name
    for (name, ours), theirs in zip(block.named_buffers(), twin.buffers(), strict=True):
        assert torch.allclose(ours.double(), theirs.double(), atol=1e-12), name


def test_norms_that_are_frozen_or_of_another_kind_run_as_they_are():
    conv = DilatedReparamConv(4, 7).train()
    for norm in conv.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    x = torch.randn(2, 4, 6, 6)
    with watch() as seen:
        frozen = conv(x)
        assert torch.allclose(frozen, conv.eval()(x), atol=1e-6)
        summed_norms([x], [nn.BatchNorm2d(4, momentum=None)])
    assert not [name for name, _ in seen if name == "batch_norm_sum"]
