"""AdamW in few launches: the updates are those of torch's, on every path."""

import copy
from pathlib import Path

import pytest
import torch

from tests.kernels import emulation
from tests.kernels.emulation import emulated
from unipercept.errors import InputError
from unipercept.kernels import cuda
from unipercept.kernels.adamw import AdamW, gpu
from unipercept.kernels.dispatch import watch

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
SHAPES = [(3,), (5, 8, 3, 3), (1,), (gpu.CHUNK + 5,), (2, gpu.CHUNK), (7, 1, 3, 3), (6, 8, 1, 1)]
OPTIONS = {"lr": 0.03, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1}


def parameters(place="cpu", dtype=torch.float32, more=0):
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator) for shape in [*SHAPES, *[(4,)] * more]]
    drawn = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in drawn]
    return [torch.nn.Parameter(t.to(place, dtype)) for t in drawn]


def updated(make, place="cpu", dtype=torch.float32, steps=5, more=0):
    """The weights after some steps; the third has no gradient in one of them."""
    weights = parameters(place, dtype, more)
    optimizer = make(weights)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        for weight in weights:
            gradient = torch.randn(weight.shape, generator=generator) + 0.2
            weight.grad = torch.empty_like(weight).copy_(gradient)
            if 1 in weight.shape[1:]:
                weight.grad = gradient.to(weight)  # as autograd leaves it: other strides in dimensions of one element
        if step == 2:
            weights[2].grad = None
        optimizer.step()
    return [w.detach() for w in weights], optimizer


def by_torch(place="cpu", **options):
    return updated(lambda weights: torch.optim.AdamW(weights, **OPTIONS), place, torch.float64, **options)[0]


def assert_close(found, exact, limit):
    for i, (ours, right) in enumerate(zip(found, exact, strict=True)):
        assert (ours.double() - right).abs().max() <= limit * right.abs().max(), i


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_reference_updates_as_torch_does(dtype):
    with watch() as seen:
        found, _ = updated(lambda weights: AdamW(weights, **OPTIONS), dtype=dtype)
    assert set(seen) == {("adamw", "reference")}
    assert_close(found, by_torch(), 1e-6)


@emulated
def test_the_kernel_computes_what_torch_does():
    """One step from moments that are there, with one gradient at an address that vectors cannot be read from."""
    weights = [w.detach() for w in parameters()]
    generator = torch.Generator().manual_seed(2)
    gradients, means, squares = (
        [torch.empty_like(w).copy_(torch.randn(w.shape, generator=generator).abs()) for w in weights] for _ in range(3)
    )
    gradients[3] = torch.cat([torch.zeros(1), gradients[3]])[1:]
    exact = []
    for w, g, m, v in zip(*([t.double() for t in ts] for ts in (weights, gradients, means, squares)), strict=True):
        mean, square = 0.8 * m + 0.2 * g, 0.99 * v + 0.01 * g * g
        root = (square / (1 - 0.99**4)).sqrt() + 1e-6
        exact.append(w * (1 - 0.03 * 0.1) - 0.03 * mean / (1 - 0.8**4) / root)
    taken = list(zip(weights, gradients, means, squares, strict=True))
    tensors = gpu.tensors_of(taken)
    source = (Path(gpu.__file__).parent / gpu.FILES[0]).read_text() + WRAPPER
    emulation.emulate(
        source, "emulated", (tensors.end[len(weights) - 1],), gpu.THREADS, 0,
        [torch.frombuffer(tensors, dtype=torch.uint8), torch.tensor(4.0), (len(weights), "int"),
         *(n.value for n in gpu.numbers(0.03, (0.8, 0.99), 1e-6, 0.1))],
        {"MOST": gpu.MOST, "CHUNK": gpu.CHUNK, "THREADS": gpu.THREADS, "__grid_constant__": ""},
    )  # fmt: skip
    assert_close(weights, exact, 1e-6)


WRAPPER = """
extern "C" __global__ void emulated(const Tensors* tensors, const float* step, int count, float rate, float keep, float mean, float square,
                                    float kept, float log_mean, float log_square, float eps) {
  adamw(*tensors, step, count, rate, keep, mean, square, kept, log_mean, log_square, eps);
}
"""


@pytest.mark.skipif(cuda.why_no_compiler() is not None, reason="needs NVRTC: pip install nvidia-cuda-nvrtc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_it_compiles(architecture, tmp_path, monkeypatch):
    monkeypatch.setenv("UNIPERCEPT_CACHE", str(tmp_path))
    assert cuda.compiled(gpu.PACKAGE, gpu.FILES, gpu.DEFINES, architecture)


@on_gpu
def test_a_gpu_updates_as_torch_does_and_in_a_graph():
    more = gpu.MOST  # two launches
    with watch() as seen:
        found, _ = updated(lambda weights: AdamW(weights, **OPTIONS), "cuda", more=more)
    assert set(seen) == {("adamw", "gpu")}
    again, optimizer = updated(lambda weights: AdamW(weights, **OPTIONS), "cuda", more=more)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert_close(found, by_torch("cuda", more=more), 1e-6)
    graph = torch.cuda.CUDAGraph()
    optimizer.step()
    with torch.cuda.graph(graph):
        optimizer.step()
    graph.replay()
    _, eager = updated(lambda weights: AdamW(weights, **OPTIONS), "cuda", more=more)
    eager.step()
    eager.step()
    for ours, theirs in zip(optimizer.param_groups[0]["params"], eager.param_groups[0]["params"], strict=True):
        assert torch.equal(ours, theirs)


def test_its_state_is_kept_and_loaded():
    make = lambda weights: AdamW(weights, **OPTIONS)  # noqa: E731
    found, optimizer = updated(make, steps=4)
    weights = [torch.nn.Parameter(w.clone()) for w in found]
    other = make(weights)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # moments are taken over as they are
    for mine, theirs in zip(weights, optimizer.param_groups[0]["params"], strict=True):
        mine.grad = theirs.grad.clone()
    optimizer.step()
    other.step()
    for mine, theirs in zip(weights, optimizer.param_groups[0]["params"], strict=True):
        assert torch.equal(mine, theirs)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="betas between 0 and 1"):
        AdamW(parameters(), betas=(0.9, 1.0))
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.ones(3)
    with pytest.raises(InputError, match="were asked for"):
        AdamW([weight], implementation="gpu").step()
