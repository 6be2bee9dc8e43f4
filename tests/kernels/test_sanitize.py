"""The shapes that compute-sanitizer is given reach each CUDA C++ file that the package ships."""

import importlib
from pathlib import Path

import pytest
import torch

from tests.kernels.depthwise_problems import H200
from unipercept import kernels
from unipercept.kernels.depthwise_conv2d import gpu, gpu_plans


@pytest.fixture
def sanitize(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("sanitize")


def test_each_file_is_promised(sanitize):
    shipped = {path.stem for path in Path(kernels.__file__).parent.rglob("*.cu")}
    assert set().union(*sanitize.FILES.values()) == shipped


@pytest.mark.parametrize("name", ["depthwise", "toeplitz", "small_maps", "strands", "direct"])
def test_the_rules_take_the_files_that_are_promised(name, sanitize, monkeypatch):
    """As on an H200, by the plans alone."""
    reached = set()

    def forward(x, weight, bias, dilation, padding, channels_last, flip, pool=False, tile=None):
        problem, limits = gpu.problem_of(x, tuple(weight.shape[-2:]), dilation, padding), gpu.limits_of(0)
        tile = tile or gpu.forward_tile(problem, *x.shape[:2], limits)
        plan = gpu_plans.forward_plan(problem, *x.shape[:2], tile, limits)
        assert plan.shared_bytes <= limits.shared_bytes
        reached.add(Path(plan.files[-1]).stem)

    def weight_gradient(x, grad, rows, columns, dilation, padding, tile=None):
        problem, limits = gpu.problem_of(x, (rows, columns), dilation, padding), gpu.limits_of(0)
        tile = tile or gpu.weight_gradient_tile(problem, *x.shape[:2], limits)
        plan = gpu_plans.weight_gradient_plan(problem, *x.shape[:2], tile, limits)
        assert plan.shared_bytes <= limits.shared_bytes
        reached.update({Path(plan.files[-1]).stem} | ({"reduce"} if plan.parts > 1 else set()))

    monkeypatch.setattr(gpu, "limits_of", lambda index: H200)
    monkeypatch.setattr(gpu, "forward_gpu", forward)
    monkeypatch.setattr(gpu, "weight_gradient_gpu", weight_gradient)
    monkeypatch.setattr(sanitize, "draw", lambda *shape: torch.zeros(*shape, dtype=torch.bfloat16))
    sanitize.KERNELS[name]()
    assert sanitize.FILES[sanitize.KERNELS[name]] <= reached


def test_blocks_of_strands_take_whole_units_halves_and_rounds(sanitize, monkeypatch):
    """On the few multiprocessors that are said, teams of cuda/strands.cu load a second
    unit, and two blocks share one.
    """
    plans = []

    def forward(x, weight, bias, dilation, padding, channels_last, flip, pool=False):
        problem, limits = gpu.problem_of(x, tuple(weight.shape[-2:])), gpu.limits_of(0)
        tile = gpu.forward_tile(problem, *x.shape[:2], limits)
        plan = gpu_plans.forward_plan(problem, *x.shape[:2], tile, limits)
        units = -(-x.shape[1] // tile.channels) * -(-x.shape[0] // tile.strips)
        plans.append((plan.files, tile.min_blocks, units // plan.blocks, units % plan.blocks))

    monkeypatch.setattr(gpu, "limits_of", lambda index: H200)
    monkeypatch.setattr(gpu, "forward_gpu", forward)
    monkeypatch.setattr(sanitize, "draw", lambda *shape: torch.zeros(*shape, dtype=torch.bfloat16))
    sanitize.strands()
    taken = [plan[1:] for plan in plans if plan[0] == gpu_plans.STRANDS_FILES]
    assert any(whole >= teams for teams, whole, _ in taken)
    assert any(rest for *_, rest in taken)
