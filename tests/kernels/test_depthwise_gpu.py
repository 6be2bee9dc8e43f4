"""The depthwise convolution on a GPU: right against float64, on the fast path, inside
everything that torch wraps around it.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from unipercept.errors import InputError
from unipercept.kernels import depthwise_conv2d, depthwise_conv2d_with_sums
from unipercept.kernels.depthwise_conv2d import gpu, gpu_plans
from unipercept.kernels.depthwise_conv2d.reference import (
    depthwise_conv2d_reference,
    input_gradient_reference,
    weight_gradient_reference,
)
from unipercept.kernels.dispatch import watch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

CASES = [
    # batch, channels, height, width, kernel, dilation, padding
    (8, 80, 56, 56, 13, 1, "zero"),
    (4, 160, 28, 28, 13, 1, "zero"),
    (15, 40, 28, 28, 13, 1, "zero"),
    (33, 64, 14, 14, 13, 1, "zero"),
    (129, 72, 14, 14, 13, 1, "zero"),
    (67, 40, 28, 28, 13, 1, "zero"),
    (18, 72, 56, 56, 13, 1, "zero"),
    (34, 168, 20, 18, 11, 1, "zero"),
    (65, 64, 7, 7, 13, 1, "zero"),
    (20, 72, 8, 5, 7, 1, "zero"),
    (3, 80, 56, 56, 3, 1, "zero"),
    (5, 640, 7, 7, 3, 1, "zero"),
    (65, 640, 7, 7, 3, 1, "zero"),
    (1, 16, 90, 180, 7, 3, "sphere"),
    (1, 16, 91, 180, 31, 1, "sphere_poles"),
    (2, 8, 3, 5, 17, 1, "zero"),
    (1, 13, 45, 77, 51, 1, "circular"),
    (1024, 8, 2, 3, 5, 1, "cylinder"),
]


def error(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_errors_are_at_most_twice_those_of_plain_torch(case, channels_last, dtype):
    batch, channels, height, width, kernel, dilation, padding = case
    memory = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(batch, channels, height, width, device="cuda", dtype=dtype).contiguous(memory_format=memory)
    weight = (torch.randn(channels, 1, kernel, kernel, device="cuda") / kernel).to(dtype)
    push = torch.randn_like(x)

    def run(x, weight, push, function):
        x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = function(x, weight)
        return y.detach(), *torch.autograd.grad(y, (x, weight), push)

    with watch() as seen:
        found = run(
            x,
            weight,
            push,
            lambda a, b: depthwise_conv2d(a, b, dilation=dilation, padding=padding, implementation="gpu"),
        )
    assert set(seen) == {("depthwise_conv2d", "gpu")}
    assert len(seen) == 3
    with torch.backends.cudnn.flags(enabled=False):
        exact = run(
            x.double(),
            weight.double(),
            push.double(),
            lambda a, b: depthwise_conv2d_reference(a, b, None, dilation, padding),
        )
    plain = run(x, weight, push, lambda a, b: depthwise_conv2d_reference(a, b, None, dilation, padding))
    for ours, theirs, right in zip(found, plain, exact, strict=True):
        assert not ours.isnan().any()
        assert error(ours, right) <= 2 * error(theirs, right) + 1e-6


def test_3x3_takes_the_copy_engine_where_it_gains():
    if not gpu.limits_of(0).bulk_copies:
        pytest.skip("needs compute capability 9.0")
    x, grad = (
        torch.randn(64, 80, 56, 56, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    weight = (torch.randn(80, 1, 3, 3, device="cuda") / 3).bfloat16()
    problem = gpu.problem_of(x, (3, 3))
    assert gpu._forward_launch(problem, 64, 80, 0, None).plan.files == gpu_plans.ROWS_FILES
    assert gpu._forward_launch(problem, 8, 80, 0, None).plan.files == gpu_plans.NARROW_FILES
    assert gpu._weight_gradient_launch(problem, 64, 80, 0, None).plan.files == gpu_plans.OCTETS_FILES
    for dilation, padding in ((2, "zero"), (1, "circular")):
        other = gpu.problem_of(x, (3, 3), dilation, padding)
        for launch in (gpu._forward_launch, gpu._weight_gradient_launch):
            assert launch(other, 64, 80, 0, None).plan.files not in (gpu_plans.ROWS_FILES, gpu_plans.OCTETS_FILES)

    y, sums = depthwise_conv2d_with_sums(x, weight)
    assert error(y, depthwise_conv2d_reference(x.double(), weight.double(), None, 1, "zero")) < 2e-3
    assert torch.allclose(sums, y.float().sum(dim=(2, 3)), rtol=1e-3, atol=1e-2)
    turned = gpu.input_gradient_gpu(grad, weight, 1, "zero")
    assert error(turned, input_gradient_reference(grad.double(), weight.double(), 1, "zero")) < 2e-3
    first, second = (gpu.weight_gradient_gpu(x, grad, 3, 3, 1, "zero") for _ in range(2))
    assert torch.equal(first, second)
    assert error(first, weight_gradient_reference(x.double(), grad.double(), 3, 3, 1, "zero")) < 2e-3


def test_a_cluster_adds_up_its_own_3x3_gradient():
    if not gpu.limits_of(0).bulk_copies:
        pytest.skip("needs compute capability 9.0")
    for batch in (16, 64):
        x, grad = (
            torch.randn(batch, 640, 7, 7, device="cuda", dtype=torch.bfloat16).contiguous(
                memory_format=torch.channels_last
            )
            for _ in range(2)
        )
        plan = gpu._weight_gradient_launch(gpu.problem_of(x, (3, 3)), batch, 640, 0, None).plan
        assert plan.files == gpu_plans.OCTETS_CLUSTERS_FILES
        first, second = (gpu.weight_gradient_gpu(x, grad, 3, 3, 1, "zero") for _ in range(2))
        assert torch.equal(first, second)
        whole = gpu.weight_gradient_parts(x, grad, 3, 3, 1, "zero")
        assert whole.dtype == torch.float32
        assert error(whole[0], weight_gradient_reference(x.double(), grad.double(), 3, 3, 1, "zero")) < 1e-5
        assert torch.equal(whole[0].bfloat16(), first)


def test_the_sums_come_from_the_same_pass():
    x = torch.randn(3, 80, 14, 14, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    for kernel in (3, 13):
        y, sums = depthwise_conv2d_with_sums(x, torch.randn(80, 1, kernel, kernel, device="cuda", dtype=torch.bfloat16))
        assert torch.allclose(sums, y.float().sum(dim=(2, 3)), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(("side", "channels_last"), [(28, False), (28, True), (14, True), (7, True), (7, False)])
def test_gradients_are_the_same_to_the_bit_each_time(side, channels_last):
    memory = torch.channels_last if channels_last else torch.contiguous_format
    x, push = (
        torch.randn(72, 128, side, side, device="cuda", dtype=torch.bfloat16)
        .contiguous(memory_format=memory)
        .requires_grad_()
        for _ in range(2)
    )
    weight = torch.randn(128, 1, 13, 13, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    problem, limits = gpu.problem_of(x, (13, 13)), gpu.limits_of(0)
    expected = {
        ("forward", gpu_plans.IMAGES_FILES): channels_last and side == 7 and not limits.bulk_copies,
        ("forward", gpu_plans.SMALL_FILES): side == 7 and limits.bulk_copies,
        ("forward", gpu_plans.STRANDS_FILES): channels_last and side > 7 and limits.bulk_copies,
        ("forward", gpu_plans.STRANDS_FIRST_FILES): not channels_last and side > 7 and limits.bulk_copies,
        ("weight gradient", gpu_plans.DEPTH_FILES): channels_last and (side > 7 or not limits.bulk_copies),
        ("weight gradient", gpu_plans.SMALL_GRADIENT_FILES): side == 7 and limits.bulk_copies,
    }
    for (operation, files), runs in expected.items():
        plan = gpu_plans.plan_of(operation)(problem, 72, 128, gpu.tile_in_use(operation, problem, 72, 128, 0), limits)
        assert (plan.files == files) == runs
    first, second = (torch.autograd.grad(depthwise_conv2d(x, weight), (x, weight), push) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_thread_that_has_no_context_yet_may_come_first():
    """As autograd's thread does where the first convolution of all is a gradient: the copy
    engine's maps need a context.
    """
    x = torch.randn(64, 64, 7, 7, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(64, 1, 13, 13, device="cuda", dtype=torch.bfloat16)
    expected = depthwise_conv2d(x, weight)
    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(depthwise_conv2d, x, weight).result(), expected)


@pytest.mark.parametrize(("side", "channels", "batch"), [(14, 320, 256), (28, 160, 128), (15, 320, 200)])
def test_an_image_gives_the_same_bits_in_any_batch_of_strands(side, channels, batch):
    """One unit of work a team or several, whole or halves, and first units asked for in either way."""
    x = torch.randn(batch, channels, side, side, device="cuda", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, 1, 13, 13, device="cuda", dtype=torch.bfloat16)
    limits, problem = gpu.limits_of(0), gpu.problem_of(x, (13, 13))
    if not limits.bulk_copies or limits.multiprocessors > 132:
        pytest.skip("strands run from Hopper on, and in order on few multiprocessors")
    plan = gpu_plans.forward_plan(problem, batch, channels, gpu.forward_tile(problem, batch, channels, limits), limits)
    assert plan.files == gpu_plans.STRANDS_FILES
    assert plan.defines["IN_ORDER"]
    whole = depthwise_conv2d(x, weight)
    assert torch.equal(whole[:64], depthwise_conv2d(x[:64], weight))
    assert torch.equal(whole[-64:], depthwise_conv2d(x[-64:], weight))


def test_it_runs_compiled_and_in_a_cuda_graph_and_under_autocast():
    x = torch.randn(2, 16, 14, 14, device="cuda")
    weight = torch.randn(16, 1, 13, 13, device="cuda")
    with torch.autocast("cuda", torch.bfloat16), watch() as seen:
        plain = depthwise_conv2d(x, weight)
        compiled = torch.compile(depthwise_conv2d, fullgraph=True)(x, weight)
    assert plain.dtype == torch.bfloat16
    assert torch.equal(plain, compiled)
    assert set(seen) == {("depthwise_conv2d", "gpu")}
    half, weight = x.bfloat16(), weight.bfloat16()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = depthwise_conv2d(half, weight)
    half.copy_(torch.randn_like(half))
    graph.replay()
    assert torch.equal(captured, depthwise_conv2d(half, weight))


@pytest.mark.parametrize("kernel", [3, 13])
def test_views_may_begin_anywhere(kernel):
    draw = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16)  # noqa: E731
    x = draw(3, 10, 10, 24)[:, 1:, 1:].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    weight, bias, grad = (
        draw(25 * kernel**2)[1:][: 24 * kernel**2].view(24, 1, kernel, kernel),
        draw(25)[1:],
        draw(x.numel() + 1)[1:],
    )
    grad = grad.view(3, 9, 9, 24).permute(0, 3, 1, 2)
    assert {t.data_ptr() % 16 for t in (weight, bias, grad)} == {2}
    found = depthwise_conv2d(x, weight, bias, implementation="gpu")
    assert torch.equal(found, depthwise_conv2d(x, weight.clone(), bias.clone(), implementation="gpu"))
    gradient = gpu.weight_gradient_gpu(x, grad, kernel, kernel, 1, "zero")
    assert torch.equal(gradient, gpu.weight_gradient_gpu(x, grad.clone(), kernel, kernel, 1, "zero"))


def test_it_is_one_well_formed_operator():
    x = torch.randn(1, 8, 9, 9, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(8, 1, 5, 5, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")  # gradients are compared above, in float64
    torch.library.opcheck(
        torch.ops.unipercept.depthwise_conv2d.default, (x, weight, None, 1, "zero", None, ""), test_utils=tests
    )


def test_torch_runs_where_it_is_faster():
    weight = torch.randn(64, 1, 3, 3, device="cuda", dtype=torch.bfloat16)
    small = torch.randn(2, 64, 7, 7, device="cuda", dtype=torch.bfloat16)
    large = torch.randn(2, 64, 56, 56, device="cuda", dtype=torch.bfloat16)
    with watch() as seen:
        depthwise_conv2d(small, weight)
        depthwise_conv2d(small[:, :60].contiguous(), weight[:60])
        depthwise_conv2d(small.contiguous(memory_format=torch.channels_last), weight)
        depthwise_conv2d(large, weight)
    contiguous = "gpu" if gpu.limits_of(0).bulk_copies else "reference"
    assert [name for _, name in seen] == [contiguous, "reference", "gpu", "gpu"]


def test_what_the_kernels_cannot_do_goes_to_torch_or_is_refused():
    x, weight = torch.randn(1, 2, 5, 5, device="cuda").double(), torch.randn(2, 1, 3, 3, device="cuda").double()
    with watch() as seen:
        y = depthwise_conv2d(x, weight)
    assert list(seen) == [("depthwise_conv2d", "reference")]
    assert torch.allclose(y, F.conv2d(x, weight, padding=1, groups=2))
    with pytest.raises(InputError, match="they need bfloat16"):
        depthwise_conv2d(x, weight, implementation="gpu")


@pytest.mark.slow
def test_more_elements_than_32_bits_count():
    x = torch.zeros(2, 8, 12_000, 12_000, device="cuda", dtype=torch.bfloat16)
    x[-1, -1, -1, -1] = 1
    weight = torch.arange(9.0, device="cuda", dtype=torch.bfloat16).view(1, 1, 3, 3).repeat(8, 1, 1, 1)
    y = depthwise_conv2d(x, weight)
    assert y[-1, -1, -2:, -2:].flatten().tolist() == [8, 7, 5, 4]
    assert float(y.float().abs().sum()) == 24


@pytest.mark.parametrize("channels", [7, 16])
@pytest.mark.parametrize("input_last", [True, False])
@pytest.mark.parametrize("channels_last", [None, True, False])
def test_the_result_has_the_layout_that_is_asked_for_whatever_the_channels(channels_last, input_last, channels):
    """Seven were written one layout's way into the other's memory."""
    memory = torch.channels_last if input_last else torch.contiguous_format
    x = torch.randn(2, channels, 14, 14, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=memory)
    weight = torch.randn(channels, 1, 13, 13, device="cuda", dtype=torch.bfloat16)
    wanted = input_last if channels_last is None else channels_last
    found = depthwise_conv2d(x, weight, channels_last=channels_last, implementation="gpu")
    assert found.is_contiguous(memory_format=torch.channels_last if wanted else torch.contiguous_format)
    exact = depthwise_conv2d(x.double(), weight.double(), implementation="reference")
    assert (found.double() - exact).norm() < 2.0**-8 * exact.norm()
