"""The CUDA kernels of the depthwise convolution: run on an emulated GPU against float64, and
compiled for every architecture.
"""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.kernels import emulation
from tests.kernels.depthwise_problems import A10, H200, ODD_STRANDS, PROBLEMS, RTX_5090
from tests.kernels.emulation import emulated
from unipercept.kernels import cuda
from unipercept.kernels.depthwise_conv2d import gpu, gpu_plans, gpu_tuning
from unipercept.kernels.depthwise_conv2d import gpu_tiles as tiles
from unipercept.kernels.depthwise_conv2d.reference import (
    depthwise_conv2d_reference,
    input_gradient_reference,
    weight_gradient_reference,
)

FOLDER = Path(gpu.__file__).parent
COPIES = Path(__file__).with_name("emulation_bulk.h")
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-20}


def source_of(files):
    """What NVRTC gets, without the prelude and the bulk copies, which the emulator has its own of, and
    without clusters, which it has not.
    """
    left_out = ("prelude.cuh", "cluster.cuh")
    paths = (COPIES if "bulk" in file else FOLDER / file for file in files if Path(file).name not in left_out)
    return "\n".join(path.read_text() for path in paths)


def sizes_of(x):
    """For the emulated copies of boxes of cells, which no map tells the size of the tensor."""
    return dict(zip(("MAP_N", "MAP_C", "MAP_H", "MAP_W"), x.shape, strict=True))


def tensors(batch, channels, height, width, kernel, channels_last, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    x, grad = (
        torch.randn(batch, channels, height, width, generator=generator).to(dtype).contiguous(memory_format=memory)
        for _ in range(2)
    )
    weight = (torch.randn(channels, 1, *kernel, generator=generator) / kernel[0]).to(dtype)
    return x, grad, weight, torch.randn(channels, generator=generator).to(dtype)


def assert_close(found, exact, dtype, terms=1):
    """Rounded once at the end, from sums in float32; in float32 itself each of a sum's terms rounds once."""
    assert not found.isnan().any()
    allowed = max(ROUNDING[dtype], math.sqrt(terms) * 2.0**-24)
    assert (found.double() - exact).norm() < allowed * exact.norm()


def run_forward(x, weight, bias, problem, tile, flip=False, limits=H200, **defines):
    batch, channels = x.shape[:2]
    memory = torch.channels_last if problem.channels_last_out else torch.contiguous_format
    y = torch.empty_like(x, memory_format=memory)
    plan = gpu_plans.forward_plan(problem, batch, channels, tile, limits)
    sums = torch.empty(plan.parts, batch, channels)
    numbers = [(value, "int") for value in (*plan.numbers[:4], int(flip), *plan.numbers[4:])]
    outputs = [y, x, y] if plan.files == gpu_plans.STRANDS_FILES else [y]  # tensor maps of units, then of halves
    emulation.emulate(
        source_of(plan.files), "forward", (plan.blocks,), plan.threads, plan.shared_bytes,
        [x, weight, bias, *outputs, sums, *numbers], plan.defines | sizes_of(x) | defines, sanitize=SANITIZE,
    )  # fmt: skip
    return y, sums.sum(dim=0)


def run_weight_gradient(x, grad, kernel, problem, tile, limits=H200, **defines):
    batch, channels = x.shape[:2]
    plan = gpu_plans.weight_gradient_plan(problem, batch, channels, tile, limits)
    partial = torch.empty(max(1, plan.parts), channels, 1, *kernel)
    numbers = [(value, "int") for value in (*plan.numbers, *([] if plan.parts else [1]))]  # a whole gradient in float32
    emulation.emulate(
        source_of(plan.files), "weight_gradient", (plan.blocks,), plan.threads, plan.shared_bytes,
        [x, grad, partial, *numbers], plan.defines | sizes_of(x) | defines, sanitize=SANITIZE,
    )  # fmt: skip
    return partial.sum(dim=0)


SANITIZE = False

CASES = [
    # batch, channels, height, width, kernel, dilation, padding
    (3, 16, 7, 7, (13, 13), 1, "zero"),
    (2, 24, 14, 14, (13, 13), 1, "zero"),
    (1, 8, 28, 28, (13, 13), 1, "zero"),
    (1, 8, 30, 56, (13, 13), 1, "zero"),
    (1, 8, 20, 61, (9, 9), 1, "zero"),
    (2, 8, 9, 14, (7, 7), 3, "zero"),
    (1, 8, 12, 70, (7, 7), 3, "sphere"),
    (2, 8, 3, 4, (17, 17), 1, "zero"),
    (1, 8, 9, 66, (31, 31), 1, "zero"),
    (1, 8, 6, 40, (51, 51), 1, "circular"),
    (2, 8, 10, 12, (5, 11), 1, "zero"),
    (2, 8, 10, 12, (11, 1), 1, "cylinder"),
    (1, 8, 8, 10, (13, 13), 1, "sphere_poles"),
    (2, 40, 9, 11, (3, 3), 1, "zero"),
]


@emulated
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernels_compute_what_the_reference_does(case, channels_last):
    compare_with_reference(case, channels_last, torch.bfloat16)


@emulated
@pytest.mark.parametrize(
    ("case", "channels_last"), [(CASES[i], i % 4 == 0) for i in (0, 2, 4, 6, 8, 9, 11, 13)], ids=str
)
def test_float32_is_exact_to_its_own_rounding(case, channels_last):
    compare_with_reference(case, channels_last, torch.float32)


def compare_with_reference(case, channels_last, dtype):
    batch, channels, height, width, kernel, dilation, padding = case
    x, grad, weight, bias = tensors(batch, channels, height, width, kernel, channels_last, dtype)
    problem = gpu.problem_of(x, kernel, dilation, padding)
    tile = gpu.forward_tile(problem, batch, channels, H200)
    y, sums = run_forward(x, weight, bias, problem, tile)
    exact = depthwise_conv2d_reference(x.double(), weight.double(), bias.double(), dilation, padding)
    assert_close(y, exact, dtype, math.prod(kernel))
    assert torch.allclose(sums.double(), y.double().sum(dim=(2, 3)), rtol=1e-4, atol=1e-3)

    if not padding.startswith("sphere"):
        turned, _ = run_forward(grad, weight, None, problem, tile, flip=True)
        assert_close(
            turned,
            input_gradient_reference(grad.double(), weight.double(), dilation, padding),
            dtype,
            math.prod(kernel),
        )

    found = run_weight_gradient(x, grad, kernel, problem, gpu.weight_gradient_tile(problem, batch, channels, H200))
    exact = weight_gradient_reference(x.double(), grad.double(), *kernel, dilation, padding)
    assert_close(found, exact, torch.float32)


@emulated
@pytest.mark.parametrize(
    ("shape", "kernel", "dilation", "padding", "blocks", "warps"),
    [
        ((1, 2, 70, 70), (7, 7), 3, "zero", 3, 3), ((2, 9, 21, 46), (5, 3), 2, "sphere", 2, 3),
        ((1, 2, 40, 72), (13, 13), 1, "circular", 3, 3), ((1, 3, 17, 34), (7, 7), 1, "sphere_poles", 5, 1),
    ],
    ids=str,
)  # fmt: skip
def test_blocks_walk_down_wide_maps(shape, kernel, dilation, padding, blocks, warps):
    x, grad, weight, bias = tensors(*shape, kernel, False, torch.bfloat16)
    problem = gpu.problem_of(x, kernel, dilation, padding)
    tile = tiles.Tile(1, 1, tiles.STEP, blocks, problem.halo_blocks, warps, walk=True)
    y, sums = run_forward(x, weight, bias, problem, tile)
    assert_close(
        y, depthwise_conv2d_reference(x.double(), weight.double(), bias.double(), dilation, padding), torch.bfloat16
    )
    assert torch.allclose(sums.double(), y.double().sum(dim=(2, 3)), rtol=1e-4, atol=1e-3)
    if not padding.startswith("sphere"):
        y, _ = run_forward(grad, weight, None, problem, tile, flip=True)
        assert_close(y, input_gradient_reference(grad.double(), weight.double(), dilation, padding), torch.bfloat16)


def check_both_directions(x, grad, weight, bias, problem, tile, limits):
    """The forward pass with its sums, and the input gradient, in bfloat16 against float64."""
    y, sums = run_forward(x, weight, bias, problem, tile, limits=limits)
    assert_close(y, depthwise_conv2d_reference(x.double(), weight.double(), bias.double(), 1, "zero"), torch.bfloat16)
    assert torch.allclose(sums.double(), y.double().sum(dim=(2, 3)), rtol=1e-4, atol=1e-3)
    y, _ = run_forward(grad, weight, None, problem, tile, flip=True, limits=limits)
    assert_close(y, input_gradient_reference(grad.double(), weight.double(), 1, "zero"), torch.bfloat16)


SMALL = [((9, 24, 7, 7), (13, 13)), ((8, 8, 3, 8), (5, 7)), ((17, 8, 5, 4), (31, 9)), ((8, 16, 8, 3), (5, 3))]
BY_THREADS, BY_COPY_ENGINE = replace(H200, bulk_copies=False), H200


@emulated
@pytest.mark.parametrize(
    ("limits", "channels_last"), [(BY_THREADS, True), (BY_COPY_ENGINE, True), (BY_COPY_ENGINE, False)]
)
@pytest.mark.parametrize(("shape", "kernel"), SMALL, ids=str)
def test_images_of_small_maps_share_what_is_read(shape, kernel, limits, channels_last):
    x, grad, weight, bias = tensors(*shape, kernel, channels_last, torch.bfloat16)
    problem = gpu.problem_of(x, kernel)
    tile = gpu.forward_tile(problem, *shape[:2], limits)
    files = gpu_plans.SMALL_FILES if limits.bulk_copies else gpu_plans.IMAGES_FILES
    assert gpu_plans.forward_plan(problem, *shape[:2], tile, limits).files == files
    check_both_directions(x, grad, weight, bias, problem, tile, limits)


@emulated
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("shape", "kernel"), [*SMALL, ((41, 24, 7, 7), (13, 13))], ids=str)
def test_images_of_small_maps_are_the_depth_of_a_weights_gradient(shape, kernel, channels_last):
    x, grad, _, _ = tensors(*shape, kernel, channels_last, torch.bfloat16)
    problem = gpu.problem_of(x, kernel)
    tile = gpu.weight_gradient_tile(problem, *shape[:2], H200)
    plan = gpu_plans.weight_gradient_plan(problem, *shape[:2], tile, H200)
    assert plan.files == gpu_plans.SMALL_GRADIENT_FILES
    exact = weight_gradient_reference(x.double(), grad.double(), *kernel, 1, "zero")
    for limits in (H200, replace(H200, multiprocessors=1)):  # one turn or several
        assert_close(run_weight_gradient(x, grad, kernel, problem, tile, limits), exact, torch.float32)


STRANDS = [  # batch, channels, rows and columns; kernel; multiprocessors
    ((9, 24, 14, 14), (13, 13), 3), ((25, 8, 14, 14), (13, 13), 1), ((9, 24, 28, 28), (13, 13), 4), ((8, 5, 56, 56), (13, 13), 10),
    ((8, 8, 9, 12), (11, 13), 2), ((8, 8, 32, 32), (13, 13), 8), ((8, 8, 15, 16), (11, 11), 1),
    ((8, 8, 14, 14), (15, 17), 1), ((8, 8, 12, 20), (7, 9), 1), ((9, 8, 28, 28), (17, 17), 1),
]  # fmt: skip


@emulated
@pytest.mark.parametrize(
    ("shape", "kernel", "multiprocessors", "channels_last"),
    [(*case, layout) for layout in (True, False) for case in STRANDS] + [(*case, True) for case in ODD_STRANDS],
    ids=str,
)
def test_strands_of_rows_share_what_is_read(shape, kernel, multiprocessors, channels_last):
    """Maps of two blocks of columns and more; on few multiprocessors blocks take several units
    of work, and halves of some.
    """
    channels = shape[1] if not channels_last else math.ceil(shape[1] / 8) * 8
    x, grad, weight, bias = tensors(shape[0], channels, *shape[2:], kernel, channels_last, torch.bfloat16)
    problem, limits = gpu.problem_of(x, kernel), replace(H200, multiprocessors=multiprocessors)
    tile = gpu.forward_tile(problem, *x.shape[:2], limits if channels_last else replace(limits, multiprocessors=1))
    files = gpu_plans.forward_plan(problem, *x.shape[:2], tile, limits).files
    assert files == (gpu_plans.STRANDS_FILES if channels_last else gpu_plans.STRANDS_FIRST_FILES)
    check_both_directions(x, grad, weight, bias, problem, tile, limits)


@emulated
@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((17, 24, 7, 7), (13, 13)), ((9, 24, 14, 14), (13, 13)), ((9, 24, 28, 28), (13, 13)), ((8, 8, 16, 9), (9, 31)),
        ((8, 16, 7, 16), (11, 7)), ((8, 8, 25, 31), (9, 17)), ((9, 16, 7, 8), (13, 5)),
    ],
    ids=str,
)  # fmt: skip
def test_images_are_the_depth_of_a_weights_gradient(shape, kernel):
    x, grad, _, _ = tensors(*shape, kernel, True, torch.bfloat16)
    problem = gpu.problem_of(x, kernel)
    tile = gpu.weight_gradient_tile(problem, *shape[:2], BY_THREADS)
    assert gpu_plans.weight_gradient_plan(problem, *shape[:2], tile, BY_THREADS).files == gpu_plans.DEPTH_FILES
    exact = weight_gradient_reference(x.double(), grad.double(), *kernel, 1, "zero")
    for limits in (BY_THREADS, replace(BY_THREADS, multiprocessors=1)):  # one turn or several
        assert_close(run_weight_gradient(x, grad, kernel, problem, tile, limits), exact, torch.float32)


@emulated
def test_one_layout_in_and_the_other_out():
    for channels_last in (True, False):
        x, _, weight, bias = tensors(2, 16, 9, 10, (9, 9), channels_last, torch.float16)
        problem = gpu.problem_of(x, (9, 9), channels_last_out=not channels_last)
        y, _ = run_forward(x, weight, bias, problem, gpu.forward_tile(problem, 2, 16, H200))
        assert y.is_contiguous(memory_format=torch.contiguous_format if channels_last else torch.channels_last)
        exact = depthwise_conv2d_reference(x.double(), weight.double(), bias.double(), 1, "zero")
        assert_close(y, exact, torch.float16)


@emulated
def test_channels_that_fill_no_block():
    x, grad, weight, bias = tensors(2, 13, 8, 9, (7, 7), False, torch.bfloat16)
    problem = gpu.problem_of(x, (7, 7))
    y, _ = run_forward(x, weight, bias, problem, gpu.forward_tile(problem, 2, 13, H200))
    assert_close(y, depthwise_conv2d_reference(x.double(), weight.double(), bias.double(), 1, "zero"), torch.bfloat16)
    found = run_weight_gradient(x, grad, (7, 7), problem, gpu.weight_gradient_tile(problem, 2, 13, H200))
    assert_close(found, weight_gradient_reference(x.double(), grad.double(), 7, 7, 1, "zero"), torch.float32)


LIMITS = {
    "sm_80": replace(H200, bulk_copies=False), "sm_86": A10, "sm_89": A10, "sm_90": H200, "sm_100": H200, "sm_120": RTX_5090
}  # fmt: skip


def plans_for(problem, limits):
    """The forward pass and the weight gradient of a problem."""
    tile = gpu.weight_gradient_tile(problem, 64, 80, limits)
    return {
        "forward": gpu_plans.forward_plan(problem, 64, 80, gpu.forward_tile(problem, 64, 80, limits), limits),
        "weight gradient": gpu_plans.weight_gradient_plan(problem, 64, 80, tile, limits),
    }


@pytest.mark.parametrize("architecture", LIMITS)
def test_no_plan_asks_for_more_shared_memory_than_there_is(architecture):
    limits = LIMITS[architecture]
    for problem in PROBLEMS:
        for operation, plan in plans_for(problem, limits).items():
            assert plan.shared_bytes <= limits.shared_bytes, (operation, problem)


@pytest.mark.skipif(cuda.why_no_compiler() is not None, reason="needs NVRTC: pip install nvidia-cuda-nvrtc")
@pytest.mark.parametrize(
    "architecture",
    [*(pytest.param(f"sm_{n}", marks=pytest.mark.slow) for n in (86, 89, 120)), "sm_80", "sm_90", "sm_100"],
)
@pytest.mark.parametrize("every_problem", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_they_compile_for_every_architecture(every_problem, architecture, tmp_path, monkeypatch):
    """Each kernel for the first problem that takes it, or for every problem, which takes three times as long."""
    monkeypatch.setenv("UNIPERCEPT_CACHE", str(tmp_path))
    # The other architectures take the same branches as their predecessor, and one dtype suffices.
    own_code = architecture in ("sm_80", "sm_90")
    plans = {}
    for problem in PROBLEMS:
        of = problem if every_problem else problem.dtype if own_code else None
        for operation, plan in plans_for(problem, LIMITS[architecture]).items():
            plans.setdefault((operation, plan.files, of), plan)
    for plan in plans.values():
        assert cuda.compiled(gpu.PACKAGE, plan.files, plan.defines, architecture)[:4] == b"\x7fELF"
    assert len(plans) == 2 * len(PROBLEMS) if every_problem else len(plans) >= 8


@emulated
@pytest.mark.parametrize("shape", [(3, 24, 7, 7), (2, 88, 16, 9), (1, 168, 6, 15)], ids=str)
def test_weight_gradients_of_3x3_in_patches(shape):
    x, grad, _, _ = tensors(*shape, (3, 3), True, torch.bfloat16)
    problem = gpu.problem_of(x, (3, 3))
    tile = gpu.weight_gradient_tile(problem, *shape[:2], A10)
    assert gpu_plans.weight_gradient_plan(problem, *shape[:2], tile, A10).files == gpu_plans.PATCHES_FILES
    exact = weight_gradient_reference(x.double(), grad.double(), 3, 3, 1, "zero")
    assert_close(run_weight_gradient(x, grad, (3, 3), problem, tile), exact, torch.float32)


FEW = replace(H200, multiprocessors=2)  # so that blocks go from place to place


@emulated
@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((3, 24, 14, 14), tiles.Rows(4, 2, 7, depth=2)), ((2, 40, 30, 33), tiles.Rows(4, 5, 14, min_blocks=1)),
        ((1, 80, 9, 28), tiles.Rows(2, 14, 14)),
    ],
    ids=str,
)  # fmt: skip
def test_long_rows_of_3x3_come_by_the_copy_engine(shape, tile):
    x, grad, weight, bias = tensors(*shape, (3, 3), True, torch.bfloat16)
    problem = gpu.problem_of(x, (3, 3))
    check_both_directions(x, grad, weight, bias, problem, tile, FEW)


@emulated
@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((5, 24, 7, 7), tiles.Octets(4, 7, 1, 2, 2, 4)), ((2, 40, 13, 19), tiles.Octets(2, 7, 2, 1, 1, 8)),
        ((2, 64, 9, 28), tiles.Octets(8, 4, 4, 1, 2, 16)), ((1, 80, 8, 30), tiles.Octets(10, 8, 4, 1, 1, 10)),
        ((21, 40, 7, 7), tiles.Octets(4, 7, 1, 2, 2, 16, ranks=1)), ((3, 16, 6, 5), tiles.Octets(2, 6, 1, 3, 1, 4, ranks=1)),
    ],
    ids=str,
)  # fmt: skip
def test_weight_gradients_of_3x3_on_tensor_cores(shape, tile):
    x, grad, _, _ = tensors(*shape, (3, 3), True, torch.bfloat16)
    problem = gpu.problem_of(x, (3, 3))
    exact = weight_gradient_reference(x.double(), grad.double(), 3, 3, 1, "zero")
    assert_close(run_weight_gradient(x, grad, (3, 3), problem, tile, limits=FEW), exact, torch.float32)


@emulated
@pytest.mark.parametrize(("count", "parts"), [(300, 11), (100, 1), (100, 9), (40, 400), (10_001, 3), (10_300, 21)])
def test_parts_of_a_gradient_are_added_up(count, parts):
    share, together = gpu_plans.sum_plan(count, parts)
    partial = torch.randn(parts, count, generator=torch.Generator().manual_seed(0))
    found = torch.full((count,), math.nan)
    emulation.emulate(
        source_of(("cuda/reduce.cu",)), "reduce", (math.ceil(count * share / gpu_plans.SUM_THREADS),), gpu_plans.SUM_THREADS,
        4 * gpu_plans.SUM_THREADS, [partial, found, count, (parts, "int")], {"T": "fp32", "SHARE": share, "TOGETHER": together},
        sanitize=SANITIZE,
    )  # fmt: skip
    assert_close(found, partial.double().sum(dim=0), torch.float32, parts)


@emulated
@pytest.mark.parametrize("operation", ["forward", "weight gradient"])
@pytest.mark.parametrize("kernel", [3, 13])
def test_tiles_that_the_search_tries_are_right(operation, kernel):
    channels = 80 if kernel == 3 else 16
    x, grad, weight, bias = tensors(4, channels, 14, 14, (kernel, kernel), True, torch.bfloat16)
    problem = gpu.problem_of(x, (kernel, kernel))
    start = gpu.rule_of(operation)(problem, 4, channels, H200)
    axes = gpu_tuning.axes_of(start)
    tried = {t for axis in axes for t in gpu_tuning.neighbours(operation, problem, 4, channels, H200, start, axis)}
    assert len(tried) > 6
    exact = depthwise_conv2d_reference(x.double(), weight.double(), bias.double(), 1, "zero")
    if operation != "forward":
        exact = weight_gradient_reference(x.double(), grad.double(), kernel, kernel, 1, "zero")
    for tile in sorted(tried, key=str)[:: len(tried) // 4]:
        if operation == "forward":
            found = run_forward(x, weight, bias, problem, tile)[0]
        else:
            found = run_weight_gradient(x, grad, (kernel, kernel), problem, tile)
        assert_close(found, exact, torch.bfloat16)
