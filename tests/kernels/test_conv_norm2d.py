"""A stem's first convolution with its norm: one pass against float64, and where it is left to two operations."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.kernels import emulation
from tests.kernels.emulation import emulated
from unipercept.errors import InputError
from unipercept.kernels import conv_norm2d, cuda
from unipercept.kernels.conv_norm2d import gpu_few_cells
from unipercept.kernels.conv_norm2d.gpu_few_cells import Plan, Size
from unipercept.kernels.dispatch import watch

FOLDER = Path(gpu_few_cells.__file__).parent
# The emulation has no clusters: each phase is a launch, and between the two each block of threads keeps its shared
# memory in a tensor of images, where the others write to it.
CLUSTER = """
static unsigned char* images;
static void prefetch_l2(const void*, u32) {}
static void cluster_arrive() {}
static void cluster_wait() {}
EMU_PLAIN void push(void* own, int rank, float2 value) {
  const i64 offset = (unsigned char*)own - smem;
  const bool self = rank == (int)(blockIdx.x % RANKS);
  memcpy(self ? own : images + (i64)(blockIdx.x / RANKS * RANKS + rank) * SHARED_BYTES + offset, &value, sizeof value);
}
EMU_PLAIN static void copy_image(unsigned char* to, const unsigned char* from, i64 begin, i64 end) { memcpy(to + begin, from + begin, end - begin); }
"""
WRAPPER = """
extern "C" void emulated(const T* x, const T* w, const T* shift, const T* gain, const T* bias, T* out, float eps, unsigned char* all, int phase) {
  unsigned char* own = all + (i64)blockIdx.x * SHARED_BYTES;
  images = all;
  if (phase == 0) {
    ask_ahead(w);
    fetch_vectors(shift, gain, bias);
    product(x, w);
    cp_async_wait<0>();
    __syncthreads();
    measure();
    __syncthreads();
    const int at = AT_STATISTICS + 8 * HIGH * (blockIdx.x % RANKS);
    if (threadIdx.x == 0) copy_image(own, smem, 0, AT_STATISTICS), copy_image(own, smem, at, at + 8 * HIGH), copy_image(own, smem, AT_VECTORS, BYTES);
  } else {
    if (threadIdx.x == 0) copy_image(smem, own, 0, SHARED_BYTES);
    __syncthreads();
    norm(out, eps);
  }
}
"""


def emulate_few_cells(x, w, shift, weight, bias, size, plan, sanitize):
    text = (FOLDER / "cuda/few_cells.cu").read_text()
    x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
    out = torch.full((size.batch, (size.height + 1) // 2, (size.width + 1) // 2, size.results), torch.nan).to(x.dtype)
    images = torch.full((plan.blocks(size) * plan.shared_bytes(size),), 255, dtype=torch.uint8)
    for phase in (0, 1):
        emulation.emulate(
            CLUSTER + text + WRAPPER, "emulated", (plan.blocks(size),), plan.threads, plan.shared_bytes(size),
            [x, w, shift, weight, bias, out, 1e-6, images, (phase, "int")], gpu_few_cells.defines_of(size, plan), sanitize=sanitize,
        )  # fmt: skip
    return out.permute(0, 3, 1, 2)


def case(shape, width, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    w = torch.randn(width, shape[1], 3, 3, generator=generator)
    others = (torch.randn(width, generator=generator) for _ in range(3))
    return tuple(t.to(dtype) for t in (x, w, *others))


def exact(x, w, shift, weight, bias, gelu):
    y = F.conv2d(x.double(), w.double(), None if shift is None else shift.double(), 2, 1).permute(0, 2, 3, 1)
    y = F.layer_norm(y, [w.shape[0]], weight.double(), bias.double(), 1e-6).permute(0, 3, 1, 2)
    return F.gelu(y) if gelu else y


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "width", "gelu", "shifted"),
    [((2, 3, 13, 18), 40, True, True), ((1, 1, 16, 7), 64, False, False), ((3, 5, 6, 9), 22, True, True)],
    ids=str,
)
def test_one_pass_is_rounded_once(shape, width, gelu, shifted, dtype, triton_device):
    if triton_device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 as if it were integers; this needs a GPU")
    x, w, shift, weight, bias = (t.to(triton_device) for t in case(shape, width, dtype))
    shift = shift if shifted else None
    with watch() as seen, torch.no_grad():
        y = conv_norm2d(x, w, shift, weight, bias, gelu=gelu, implementation="gpu")
    assert list(seen) == [("conv_norm2d", "gpu")]
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    wanted = exact(x, w, shift, weight, bias, gelu)
    assert y.shape == wanted.shape
    assert (y.double() - wanted).norm() < (2.0**-8 if dtype == torch.bfloat16 else 2.0**-11) * wanted.norm()


def test_gradients_and_wide_maps_take_two_operations():
    x, w, shift, weight, bias = case((2, 3, 9, 8), 16, torch.float32)
    w.requires_grad_()
    with watch() as seen:
        y = conv_norm2d(x, w, shift, weight, bias, gelu=True)
    assert [name for name, _ in seen] == ["layer_norm2d"]
    assert torch.allclose(y.double(), exact(x, w, shift, weight, bias, True), atol=1e-5)
    y.sum().backward()
    assert w.grad is not None
    with pytest.raises(InputError, match="gradient"):
        conv_norm2d(x.bfloat16(), w.bfloat16(), shift, weight, bias, implementation="gpu")
    with pytest.raises(InputError, match="channels"):
        conv_norm2d(
            torch.randn(1, 3, 8, 8), torch.randn(400, 3, 3, 3), None, *torch.randn(2, 400), implementation="gpu"
        )
    wide = torch.randn(1, 40, 8, 8), torch.randn(80, 40, 3, 3), None, *torch.randn(2, 80)
    with pytest.raises(InputError, match="NVIDIA GPU"):
        conv_norm2d(*wide, implementation="gpu")
    with pytest.raises(InputError, match="GELU"):
        conv_norm2d(*wide, gelu=True, implementation="gpu")


FEW_CELLS = [
    (Size(torch.bfloat16, 1, 8, 9, 6, 32), Plan(1, 1), True),
    (Size(torch.float16, 2, 24, 7, 10, 32), Plan(2, 2), True),  # of a step of four octets a part is beyond the last tap
    (Size(torch.bfloat16, 3, 40, 5, 5, 96), Plan(4, 4), False),
    (Size(torch.bfloat16, 1, 320, 14, 14, 640), Plan(16, 1), False),  # before the last stage, for one image
]


@emulated
@pytest.mark.parametrize("case", FEW_CELLS, ids=str)
def test_few_cells_in_clusters_are_rounded_once(case):
    size, plan, sanitize = case
    x, w, shift, weight, bias = case_of(size)
    for given in (shift, None):
        found = emulate_few_cells(x, w, given, weight, bias, size, plan, sanitize)
        wanted = exact(x, w, given, weight, bias, False)
        assert (found.double() - wanted).norm() < (
            2.0**-8 if size.dtype == torch.bfloat16 else 2.0**-11
        ) * wanted.norm()


def case_of(size):
    return case((size.batch, size.channels, size.height, size.width), size.results, size.dtype)


def test_all_of_a_batch_of_one_goes_in_clusters_on_an_h200():
    sides, dims = (112, 56, 28, 14), (40, 80, 160, 320)
    sizes = [Size(torch.bfloat16, 1, c, n, n, 2 * c) for c, n in zip(dims, sides, strict=True)]
    plans = [gpu_few_cells.plan_of(size, 132) for size in sizes]
    assert [(plan.ranks, plan.tiles) for plan in plans] == [(1, 2), (4, 2), (8, 1), (16, 1)]
    assert all(plan.blocks(size) <= 116 for plan, size in zip(plans, sizes, strict=True))
    assert gpu_few_cells.plan_of(Size(torch.bfloat16, 64, 40, 112, 112, 80), 132) is None
    assert gpu_few_cells.plan_of(Size(torch.bfloat16, 1, 20, 112, 112, 40), 132) is None


@pytest.mark.skipif(cuda.why_no_compiler() is not None, reason="no NVRTC here")
def test_few_cells_compile(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIPERCEPT_CACHE", str(tmp_path))
    size = Size(torch.bfloat16, 1, 320, 14, 14, 640)
    # With a count of bytes that the compiler compares.
    defines = gpu_few_cells.defines_of(size, gpu_few_cells.plan_of(size, 132))
    assert cuda.compiled(gpu_few_cells.PACKAGE, gpu_few_cells.FILES, defines, "sm_90a")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("channels", "side"), [(40, 112), (80, 56), (160, 28), (320, 14), (48, 37)])
def test_on_a_gpu_few_cells_are_one_launch(channels, side, batch):
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("clusters need compute capability 9.0")
    x, w, shift, weight, bias = (t.cuda() for t in case((batch, channels, side, side), 2 * channels, torch.bfloat16))
    with watch() as seen, torch.no_grad():
        y = conv_norm2d(x, w, shift, weight, bias)
    assert list(seen) == [("conv_norm2d", "gpu")]
    assert y.is_contiguous(memory_format=torch.channels_last)
    wanted = exact(x, w, shift, weight, bias, False)
    assert (y.double() - wanted).norm() < 2.0**-8 * wanted.norm()
