"""A run of blocks in one launch: its phases on an emulated GPU against float64, and what
it leaves to single launches.
"""

import math
from pathlib import Path

import pytest
import torch

from tests.kernels import emulation
from tests.kernels.emulation import emulated
from unipercept.errors import InputError
from unipercept.kernels import cuda, folded_blocks, llvm
from unipercept.kernels.depthwise_conv2d.gpu_tiles import Limits
from unipercept.kernels.dispatch import watch
from unipercept.kernels.folded_blocks import BlockWeights, gpu, gpu_clusters
from unipercept.kernels.folded_blocks.arrivals import _kept
from unipercept.kernels.folded_blocks.run import NoPlanError, Run, large_blocks

H200 = Limits(132, 232_448, 233_472)
FOLDER = Path(gpu.__file__).parent
# A grid barrier needs all blocks of threads at once, which the emulation does not have: each phase is a launch. And the
# weights' pointers come as a tensor of addresses in place of a struct.
WRAPPER = """
extern "C" void emulated(const T* x, const Chain* chain, u64 large, T* carried, T* mixed, float* squeezed, float* gates, T* hidden,
                         float* squares, float* parts, T* out, int begin, int end) {
  run_blocks(x, *chain, large, carried, mixed, squeezed, gates, hidden, squares, parts, out, nullptr, begin, end);
}
"""

# Each block of threads keeps its shared memory between launches in a tensor of images, where the
# others of its cluster write to it.
CLUSTER = """
static unsigned char* images;
static void cluster_arrive() {}
static void cluster_wait() {}
template <class V> EMU_PLAIN void push(void* own, int rank, V value) {
  const i64 offset = (unsigned char*)own - smem;
  const bool self = rank == (int)(blockIdx.x % RANKS);
  memcpy(self ? own : images + (i64)(blockIdx.x / RANKS * RANKS + rank) * SHARED_BYTES + offset, &value, sizeof value);
}
static void make_bytes_barrier(u64*) {}
static void expect_bytes(u64*, u32) {}
static void wait_bytes(u64*, u32) {}
static void written_for_bulk() {}
static void bulk_copy(void* to, const void* from, u32 bytes, u64*) {
  for (u32 i = 0; i < bytes; i += 16) cp_async_16((char*)to + i, (const char*)from + i, true);
}
EMU_PLAIN void bulk_push(void* own, int rank, const void* from, u32 bytes, u64*) {
  const i64 offset = (unsigned char*)own - smem;        // to another rank: what a rank sent to itself would be lost at the end of its turn
  memcpy(images + (i64)(blockIdx.x / RANKS * RANKS + rank) * SHARED_BYTES + offset, from, bytes);
}
EMU_PLAIN static void copy_image(unsigned char* to, const unsigned char* from) { memcpy(to, from, SHARED_BYTES); }
"""
CLUSTER_WRAPPER = """
extern "C" void emulated(const T* x, const Chain* chain, u64 large, T* carried, float* squeezed, float* squares, T* out,
                         unsigned char* all, int phase, int block) {
  const Places at = {x, carried, out, squeezed, squares};
  unsigned char* own = all + (i64)blockIdx.x * SHARED_BYTES;
  images = all;
  if (threadIdx.x == 0) copy_image(smem, own);
  __syncthreads();
  switch (phase) {
    case 0: start(*chain, large, at); __syncthreads(); fetch_small(*chain, 0); lay_out(large, 0); fetch_first(*chain, 0); break;
    case 1: is_large(large, block) ? mix<LARGE>(*chain, large, at, block) : mix<SMALL>(*chain, large, at, block); break;
    case 2: gate(); break;
    case 3: expand(at, block); __syncthreads(); after_expand(large, block); break;
    case 4: norms(at); break;
    case 5: contract(block); break;
    case 6: collect(at, block); __syncthreads(); fetch_small(*chain, block + 1); if (block + 1 < BLOCKS) lay_out(large, block + 1); fetch_first(*chain, block + 1);
  }
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  if (threadIdx.x == 0) copy_image(own, smem);
}
"""


def weights_of(run, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=1.0):
        return (scale * torch.randn(*shape, generator=generator)).to(run.dtype)

    c, n, r = run.channels, run.hidden, run.squeezed
    return [
        [
            draw(c, 1, k, k, scale=1 / k), draw(c), draw(r, c, scale=c**-0.5), draw(r), draw(c, r, scale=r**-0.5), draw(c),
            draw(n, c, scale=c**-0.5), draw(n), draw(n), draw(c, n, scale=n**-0.5), draw(c),
        ]
        for k in run.kernels
    ]  # fmt: skip


def exact(x, blocks):
    """BxCxHxW through the blocks in float64."""
    from unipercept.kernels.depthwise_conv2d.reference import depthwise_conv2d_reference
    from unipercept.kernels.feed_forward.reference import Weights, feed_forward_reference

    x = x.double()
    for conv, conv_bias, *others in ([w.double() for w in block] for block in blocks):
        y = depthwise_conv2d_reference(x, conv, conv_bias, 1, "zero")
        down, down_b, up, up_b, w1, b1, gamma, w2, b2 = others
        weights = Weights(down, down_b, up, up_b, w1, b1, gamma, None, w2, b2)
        x = x + feed_forward_reference(y.permute(0, 2, 3, 1).contiguous(), None, weights)[0].permute(0, 3, 1, 2)
    return x


def emulate(x, run, blocks, limits, sanitize=False):
    plan = gpu.plan_of(run, limits)
    source = "\n".join((FOLDER / file).read_text() for file in gpu.FILES if "prelude" not in file) + WRAPPER
    sizes = gpu.scratch_sizes(run, plan)
    scratch = {name: torch.full((size,), float("nan")) for name, size in sizes.items()}
    scratch |= {name: scratch[name].to(run.dtype) for name in ("carried", "mixed", "hidden")}
    out = torch.full_like(x, float("nan"))
    chain = torch.tensor([w.data_ptr() for block in blocks for w in block])
    between = [scratch[name] for name in ("carried", "mixed", "squeezed", "gates", "hidden", "squares", "parts")]
    for phase in range(plan.phases * len(blocks) + 1):
        emulation.emulate(
            source, "emulated", (limits.multiprocessors,), gpu.THREADS, plan.shared_bytes,
            [x, chain, large_blocks(run.kernels), *between, out, (phase, "int"), (phase + 1, "int")],
            gpu.defines_of(run, plan) | {"__grid_constant__": ""}, sanitize=sanitize,
        )  # fmt: skip
    return out


def emulate_clusters(x, run, blocks, plan, sanitize=False):
    files = (file for file in gpu_clusters.FILES if not file.endswith(("prelude.cuh", "bulk.cuh", "cluster.cuh")))
    source = "\n".join((CLUSTER, *((FOLDER / file).read_text() for file in files), CLUSTER_WRAPPER))
    scratch = {name: torch.full((n,), float("nan")) for name, n in gpu_clusters.scratch_sizes(run, plan).items()}
    carried, out = scratch["carried"].to(run.dtype), torch.full_like(x, float("nan"))
    chain = torch.tensor([w.data_ptr() for block in blocks for w in block])
    grid = plan.clusters(run) * plan.ranks
    images = torch.full((grid * plan.shared_bytes,), 255, dtype=torch.uint8)
    for phase, block in [(0, 0), *((phase, block) for block in range(len(blocks)) for phase in range(1, 7))]:
        emulation.emulate(
            source, "emulated", (grid,), gpu_clusters.THREADS, plan.shared_bytes,
            [x, chain, large_blocks(run.kernels), carried, scratch["squeezed"], scratch["squares"], out, images, (phase, "int"), (block, "int")],
            gpu_clusters.defines_of(run, plan) | {"__grid_constant__": ""}, sanitize=sanitize,
        )  # fmt: skip
    return out


CASES = [
    # batch, channels, height, width, kernels, multiprocessors
    (1, 32, 6, 9, (13, 3), 12),
    (2, 16, 5, 5, (3,), 8),
    (1, 48, 17, 18, (7, 7), 18),
    (1, 64, 3, 4, (5, 5), 20),
]


@emulated
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_run_of_blocks_computes_what_the_blocks_do(case, monkeypatch):
    if case[1] == 64:  # squeeze-excite in a phase of its own
        monkeypatch.setattr(gpu, "GATE_BYTES", 1024)
    batch, channels, height, width, kernels, multiprocessors = case
    run = Run(torch.bfloat16, batch, channels, height, width, 4 * channels, channels // 4, kernels)
    x = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1)).to(run.dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    blocks = weights_of(run)
    found = emulate(x, run, blocks, Limits(multiprocessors, 232_448, 233_472))
    wanted = exact(x, blocks)
    assert not found.isnan().any()
    assert (found.double() - wanted).norm() < 0.01 * wanted.norm()


@emulated
def test_no_phase_races_in_shared_memory(monkeypatch):
    monkeypatch.setattr(gpu, "GATE_BYTES", 256 * 1024)
    run = Run(torch.float16, 1, 16, 4, 6, 64, 4, (5, 3))
    x = torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(2)).half()
    x = x.contiguous(memory_format=torch.channels_last)
    blocks = weights_of(run)
    found = emulate(x, run, blocks, Limits(6, 232_448, 233_472), sanitize=True)
    wanted = exact(x, blocks)
    assert (found.double() - wanted).norm() < 0.002 * wanted.norm()


CLUSTER_CASES = [
    # channels, height, width, kernels, ranks, multiprocessors, type, sanitize
    (32, 6, 9, (13, 3), 4, 32, torch.bfloat16, False),
    (80, 7, 8, (5,), 8, 40, torch.bfloat16, False),  # ten channels a rank; the last cluster owns a row less
    (64, 5, 30, (3, 7), 16, 48, torch.bfloat16, False),  # wider than a thread's outputs
    (16, 4, 6, (5, 3), 2, 20, torch.float16, True),
]


@emulated
@pytest.mark.parametrize("case", CLUSTER_CASES, ids=str)
def test_clusters_compute_what_the_blocks_do(case, monkeypatch):
    channels, height, width, kernels, ranks, multiprocessors, dtype, sanitize = case
    monkeypatch.setattr(gpu_clusters, "RANKS", (ranks,))
    run = Run(dtype, 1, channels, height, width, 4 * channels, channels // 4, kernels)
    plan = gpu_clusters.plan_of(run, Limits(multiprocessors, 232_448, 233_472))
    assert plan.clusters(run) > 1
    x = torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    blocks = weights_of(run)
    wanted = exact(x, blocks)
    found = emulate_clusters(x, run, blocks, plan, sanitize)
    assert (found.double() - wanted).norm() < (0.005 if dtype == torch.bfloat16 else 0.001) * wanted.norm()


STAGES = [(80, 56, (3, 3, 3)), (160, 28, (13, 13, 13)), (320, 14, (13, 3) * 9), (640, 7, (13, 13, 13))]  # UniRepLKNet-T


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_every_phase_is_one_round_on_an_h200(stage):
    channels, side, kernels = stage
    run = Run(torch.bfloat16, 1, channels, side, side, 4 * channels, channels // 4, kernels)
    plan = gpu.plan_of(run, H200)
    rows1, rows2 = math.ceil(run.cells / plan.rows1), math.ceil(run.cells / plan.rows2)
    units = (
        channels // 8 * math.ceil(side / plan.strip),
        rows1 * run.hidden // plan.cols1,
        rows2 * channels // plan.cols2 * plan.splits,
    )
    assert all(64 <= count <= 132 for count in units)
    assert plan.shared_bytes <= H200.shared_bytes


def test_three_stages_go_in_clusters_on_an_h200():
    plans = []
    for channels, side, kernels in STAGES:
        run = Run(torch.bfloat16, 1, channels, side, side, 4 * channels, channels // 4, kernels)
        try:
            plan = gpu_clusters.plan_of(run, H200)
            plans.append((plan.ranks, plan.clusters(run)))
        except NoPlanError:
            plans.append(None)
    assert plans == [(4, 28), (8, 14), (16, 7), None]  # the weights of the last fill 128 shared memories only once


@pytest.mark.skipif(cuda.why_no_compiler() is not None, reason="needs NVRTC: pip install nvidia-cuda-nvrtc")
def test_clusters_compile(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIPERCEPT_CACHE", str(tmp_path))
    run = Run(torch.bfloat16, 1, 160, 14, 14, 640, 40, (3, 5))
    plan = gpu_clusters.plan_of(run, H200)
    defines = gpu_clusters.defines_of(run, plan)  # with a count of bytes that the compiler compares
    assert cuda.compiled(gpu_clusters.PACKAGE, gpu_clusters.FILES, defines, "sm_90a")


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a", "sm_100a"])
@pytest.mark.skipif(cuda.why_no_compiler() is not None, reason="needs NVRTC: pip install nvidia-cuda-nvrtc")
def test_the_kernel_compiles(architecture, tmp_path, monkeypatch):
    monkeypatch.setenv("UNIPERCEPT_CACHE", str(tmp_path))
    run = Run(torch.bfloat16, 1, 48, 14, 14, 192, 12, (3, 5))
    plan = gpu.plan_of(run, Limits(108, 166_912, 167_936))  # the compiler checks the plan's shared memory
    assert cuda.compiled(gpu.PACKAGE, gpu.FILES, gpu.defines_of(run, plan), architecture)


def test_what_does_not_fit_one_round_has_no_plan():
    for batch, channels, side, kernels in (
        (4, 320, 14, (13,)),
        (1, 40, 56, (3,)),
        (1, 1536, 7, (13,)),
        (1, 80, 56, (3, 5, 7)),
    ):
        run = Run(torch.bfloat16, batch, channels, side, side, 4 * channels, channels // 4, kernels)
        with pytest.raises(NoPlanError):
            gpu.plan_of(run, H200)


@pytest.mark.skipif(llvm.why_not() is not None, reason=f"no CPU kernels: {llvm.why_not()}")
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [(2, 16, 5, 6), (1, 21, 14, 14), (9, 33, 7, 1), (1, 40, 29, 31)])
def test_on_a_cpu_they_go_together_and_are_as_exact_as_one_by_one(shape, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    batch, channels, height, width = shape
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(3))
    for kernels in ((3, 13, 5), (9, 3)):
        run = Run(torch.float32, batch, channels, height, width, 4 * channels, channels // 4, kernels)
        blocks = [BlockWeights(*block) for block in weights_of(run)]
        with watch() as seen:
            found = folded_blocks(x, blocks)
        assert list(seen) == [("folded_blocks", "cpu")]
        wanted, plain = exact(x, blocks), folded_blocks(x, blocks, implementation="reference")
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert (found - wanted).norm() <= 2 * (plain - wanted).norm() + 1e-7 * wanted.norm()


def test_on_a_cpu_what_must_be_seen_or_is_not_taken_runs_one_by_one():
    run = Run(torch.float32, 2, 16, 5, 6, 64, 4, (3, 5))
    x = torch.randn(2, 16, 5, 6, generator=torch.Generator().manual_seed(3))
    blocks = [BlockWeights(*block) for block in weights_of(run)]
    with watch() as seen:
        found = folded_blocks(x.requires_grad_(), blocks)
    assert [name for name, _ in seen] == ["depthwise_conv2d", "feed_forward"] * 2
    assert torch.allclose(found.double(), exact(x.detach(), blocks), atol=1e-4)
    assert torch.autograd.grad(found.sum(), x)[0].shape == x.shape
    with pytest.raises(InputError, match="gradient"):
        folded_blocks(x, blocks, implementation="cpu")
    with pytest.raises(InputError, match="w1 must be"):
        folded_blocks(x.detach(), [blocks[0]._replace(w1=blocks[0].w1[1:])], implementation="cpu")
    with pytest.raises(InputError, match="NVIDIA GPU"):
        folded_blocks(x, blocks, implementation="gpu")
    with pytest.raises(InputError, match="reference, cpu, gpu"):
        folded_blocks(x, blocks, implementation="fast")
    with pytest.raises(InputError, match="at least one"):
        folded_blocks(x, [])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("clusters", [True, False])
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_on_a_gpu_one_launch_is_as_exact_as_many(stage, clusters, monkeypatch):
    if not clusters:
        monkeypatch.setattr(gpu_clusters, "launch_of", lambda run, index: None)
    channels, side, kernels = stage
    run = Run(torch.bfloat16, 1, channels, side, side, 4 * channels, channels // 4, kernels)
    x = torch.randn(1, channels, side, side).bfloat16().cuda().contiguous(memory_format=torch.channels_last)
    blocks = [BlockWeights(*(w.cuda() for w in block)) for block in weights_of(run)]
    for block in blocks:
        block.w2.mul_(0.1)  # else eighteen random blocks are chaos, and any rounding grows to the size of the values
    with watch() as seen, torch.no_grad():
        found, launches = folded_blocks(x, blocks), folded_blocks(x, blocks, implementation="reference")
    assert seen[0] == ("folded_blocks", "gpu")
    wanted = exact(x, blocks)
    assert (found.double() - wanted).norm() < 1.2 * (launches.double() - wanted).norm()
    assert torch.equal(found, folded_blocks(x, blocks, implementation="gpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("clusters", [True, False])
def test_on_a_gpu_launches_leave_their_counters_at_zero(clusters, monkeypatch):
    if not clusters:
        monkeypatch.setattr(gpu_clusters, "launch_of", lambda run, index: None)
    run = Run(torch.bfloat16, 1, 80, 56, 56, 320, 20, (3, 3, 3))
    x = torch.randn(1, 80, 56, 56).bfloat16().cuda().contiguous(memory_format=torch.channels_last)
    blocks = [BlockWeights(*(w.cuda() for w in block)) for block in weights_of(run)]
    _kept.clear()
    with torch.no_grad():
        once = folded_blocks(x, blocks, implementation="gpu")
        graphs, captured = [torch.cuda.CUDAGraph() for _ in range(2)], []
        for graph in graphs:
            with torch.cuda.graph(graph):
                captured.append(folded_blocks(folded_blocks(x, blocks), blocks))
        twice = folded_blocks(once, blocks)
        for graph, stream in zip(graphs, (torch.cuda.Stream(), torch.cuda.Stream()), strict=True):
            with torch.cuda.stream(stream):
                for _ in range(3):
                    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(found, twice) for found in captured)
    counters = _kept[x.device]
    assert counters.taken == len(counters.of_stream) + 4  # each captured launch has its own
    assert not counters.zeros.any()
