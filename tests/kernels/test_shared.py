"""What several kernels share: casts in one launch, the search for tiles, work on a second stream, captures, and
gradients without operators.
"""

import gc
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import forward_ad

from unipercept.backbone import build_backbone
from unipercept.blocks import Block
from unipercept.errors import InputError
from unipercept.kernels import depthwise_conv2d, dispatch, layer_norm2d
from unipercept.kernels.batch_norm_sum import batch_norm_sum
from unipercept.kernels.cast import STEP, cast_together, pack, packed_size
from unipercept.kernels.dispatch import plain_reference, watch
from unipercept.kernels.measured import Measured, search
from unipercept.kernels.streams import beside, capture, join
from unipercept.kernels.workspace import workspace


def test_a_workspace_is_what_the_kernels_take_it_for_whatever_the_callers_defaults():
    """In half precision its kernels wrote past its end, which ended the process."""
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            room = workspace("of this test", 8)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (room.dtype, room.device.type) == (torch.float32, "cpu")


def test_tensors_are_cast_together():
    given = [torch.randn(3, 4), None, torch.randn(STEP + 1), torch.randn(5).bfloat16(), torch.randn(4, 6).t()]
    assert len(pack(given, torch.bfloat16)) == packed_size(given, torch.bfloat16) == 4 * STEP
    found = cast_together(given, torch.bfloat16)
    for before, after in zip(given, found, strict=True):
        if before is None:
            assert after is None
            continue
        assert after.dtype == torch.bfloat16
        assert after.is_contiguous()
        assert torch.equal(after, before.bfloat16())
    assert found[3] is given[3]
    assert cast_together(given[3:4], torch.bfloat16) == given[3:4]


def test_the_launch_on_a_gpu_casts_the_same(triton_device):
    from unipercept.kernels.gpu_cast import MOST, cast_gpu

    given = [torch.randn(1 + i * STEP // 3, device=triton_device) for i in range(MOST + 2)]
    dtype = torch.bfloat16 if triton_device == "cuda" else torch.float16  # the interpreter's bfloat16 rounds otherwise
    flat = torch.full((packed_size(given, dtype),), float("nan"), dtype=dtype, device=triton_device)
    cast_gpu(given, flat)
    begin = 0
    for t in given:
        assert torch.equal(flat[begin : begin + t.numel()], t.to(dtype))
        begin += -(-t.numel() // STEP) * STEP


@torch.no_grad()
def test_torch_counts_the_operations_of_the_plain_reference():
    from torch.utils.flop_counter import FlopCounterMode

    model = build_backbone("unireplknet_a", num_classes=1000, deploy=True).eval()
    with plain_reference(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 224, 224))
    assert counter.get_total_flops() == pytest.approx(1.28e9, rel=1e-3)  # as docs/kernels.md has it


def test_a_gradient_of_the_plain_reference_is_that_of_the_operators():
    torch.manual_seed(0)
    block = Block(16, 7, deploy=True).requires_grad_(False)
    torch.nn.init.normal_(block.response_norm.gamma)
    x = torch.randn(2, 16, 9, 11, requires_grad=True)
    (expected,) = torch.autograd.grad(block(x).square().sum(), x)
    with watch() as seen, plain_reference():
        (found,) = torch.autograd.grad(block(x).square().sum(), x)
    assert set(seen) == {("depthwise_conv2d", "reference"), ("feed_forward", "reference")}
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@dataclass(frozen=True)
class Spot:
    x: int
    y: int


def test_the_search_walks_along_axes_to_the_cheapest():
    def neighbours(spot, axis):
        return [Spot(v, spot.y) if axis == "x" else Spot(spot.x, v) for v in range(6)]

    prepared, reports = [], []
    cost = lambda s: float("inf") if s.x == 5 else 10 + abs(s.x - 3) + abs(s.y - 4)  # noqa: E731
    best, found = search(
        "a problem", Spot(0, 0), ("x", "y"), neighbours, prepared.extend, cost, lambda *r: reports.append(r)
    )
    assert (best, found) == (Spot(3, 4), 10)
    assert len(prepared) == len(set(prepared))
    assert reports[-1] == ("best: a problem", Spot(3, 4), 10)


def test_tiles_of_the_package_give_way_to_those_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIPERCEPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "spots-A_GPU.json").write_text('{"one": {"x": 1, "y": 1}, "two": {"x": 2, "y": 2}}')
    store = Measured("spots", tmp_path, lambda fields: Spot(**fields))
    assert store.find("one", "A GPU") == Spot(1, 1)
    assert store.find("one", "another GPU") is None
    path = store.remember("A GPU", {"two": Spot(3, 3)})
    assert path.parent == tmp_path / "cache" / "kernels"
    assert (store.find("one", "A GPU"), store.find("two", "A GPU")) == (Spot(1, 1), Spot(3, 3))


@pytest.mark.parametrize(
    "place", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def test_what_ran_beside_is_seen_after_joining(place):
    x = torch.randn(512, 512, device=place, dtype=torch.float64)
    with beside(x):
        squared = x @ x
    other = x + 1
    join(x)
    assert torch.equal(squared + other, x @ x + (x + 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_what_ran_beside_a_stream_is_not_overwritten_by_what_runs_beside_another():
    x = torch.ones(1 << 20, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        with beside(x):
            made = x + 1
        join(x)
        torch.cuda._sleep(10**8)  # the next line reads late
        kept = made.clone()
        del made
    with torch.cuda.stream(torch.cuda.Stream()):
        with beside(x):
            other = x + 7
        join(x)
    torch.cuda.synchronize()
    assert torch.equal(kept, x + 1)
    assert torch.equal(other, x + 7)


def test_a_gpu_without_triton_is_told_so_once(monkeypatch):
    monkeypatch.setattr(dispatch, "_has_triton", lambda: False)
    dispatch.say_once.cache_clear()
    on_gpu = SimpleNamespace(dtype=torch.float16, is_cuda=True)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(2):
            assert dispatch.why_no_triton(on_gpu, (torch.float16,)) == "triton is not installed"
    assert ["triton is not installed" in str(w.message) for w in warned] == [True]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_nobody_else_gets_the_stream_of_what_runs_beside():
    x = torch.ones(1, device="cuda")
    with beside(x):
        second = torch.cuda.current_stream()
        y = x + 1
    join(x)
    assert y.item() == 2
    others = {torch.cuda.Stream().cuda_stream for _ in range(64)}  # torch hands out 32, in turn
    assert second.cuda_stream not in others


@pytest.mark.parametrize("collects", [True, False])
def test_nothing_is_collected_during_a_capture(collects, monkeypatch):
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: nullcontext())
    before = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        with capture("a graph", None):
            assert not gc.isenabled()
        assert gc.isenabled() == collects
        with pytest.raises(RuntimeError, match="broken"), capture("a graph", None):
            raise RuntimeError("broken")
        assert gc.isenabled() == collects
    finally:
        (gc.enable if before else gc.disable)()


def test_forward_mode_gradients_are_not_dropped():
    """Operators of torch.library would give none, without a word."""
    x, pushed, direction, weight = *(torch.randn(2, 8, 6, 6) for _ in range(3)), torch.randn(8, 1, 3, 3)
    ones, zeros = torch.ones(8), torch.zeros(8)

    def run(x, implementation=None):
        return layer_norm2d(depthwise_conv2d(x, weight, implementation=implementation), ones, zeros)

    inputs = x.requires_grad_()
    (back,) = torch.autograd.grad(run(inputs), inputs, direction)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), pushed)
        along = forward_ad.unpack_dual(run(dual)).tangent
        assert along is not None
        assert torch.allclose((along * direction).sum(), (back * pushed).sum(), rtol=1e-4)
        with pytest.raises(InputError, match="no forward-mode gradients"):
            run(dual, "cpu")
        with pytest.raises(InputError, match="no forward-mode gradients"):
            batch_norm_sum([dual], ones[None], zeros[None])
        batch_norm_sum([pushed], ones[None], zeros[None])
