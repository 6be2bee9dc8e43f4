"""Mean over cells and layer norm in one launch: against float64 in Triton's interpreter or on a
GPU, and what is left to torch.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.kernels import emulation
from tests.kernels.emulation import emulated
from unipercept.errors import InputError
from unipercept.kernels import cuda
from unipercept.kernels.dispatch import watch
from unipercept.kernels.pooled_norm import gpu_logits, pooled_logits, pooled_norm


def case(batch, channels, height, width, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, height, width, generator=generator).to(dtype) + 1
    weight, bias = (torch.randn(channels, generator=generator).to(dtype) for _ in range(2))
    return x.contiguous(memory_format=torch.channels_last), weight, bias


def exact(x, weight, bias):
    return F.layer_norm(x.double().mean(dim=(2, 3)), weight.shape, weight.double(), bias.double(), 1e-6)


@pytest.mark.parametrize("shape", [(2, 40, 7, 7), (1, 64, 3, 11), (3, 24, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_one_launch_rounds_once(shape, dtype, triton_device):
    from unipercept.kernels.pooled_norm.gpu import pooled_norm_gpu

    given = [t.to(triton_device) for t in case(*shape, dtype)]
    found, wanted = pooled_norm_gpu(*given, 1e-6), exact(*given)
    assert found.dtype == dtype
    assert (found.double() - wanted).norm() <= torch.finfo(dtype).eps * wanted.norm()


def test_what_one_launch_cannot_do_is_left_to_torch():
    given = case(2, 8, 3, 3, torch.float64)
    assert torch.allclose(pooled_norm(*given), exact(*given))
    with pytest.raises(InputError, match="was asked for, but"):
        pooled_norm(*given, implementation="gpu")
    with pytest.raises(InputError, match="reference, gpu"):
        pooled_norm(*given, implementation="fast")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("batch", [1, 128])
def test_on_a_gpu_it_is_picked(batch):
    given = [t.cuda() for t in case(batch, 640, 7, 7, torch.bfloat16)]
    with torch.no_grad():
        found, two = pooled_norm(*given), pooled_norm(*given, implementation="reference")
    wanted = exact(*given)
    assert (found.double() - wanted).norm() <= 1.2 * (two.double() - wanted).norm()
    assert torch.equal(found, pooled_norm(*given, implementation="gpu"))


def head_case(batch, channels, height, width, classes, dtype, has_offsets=True):
    generator = torch.Generator().manual_seed(1)
    matrix = (torch.randn(classes, channels, generator=generator) / channels**0.5).to(dtype)
    offsets = torch.randn(classes, generator=generator).to(dtype) if has_offsets else None
    return *case(batch, channels, height, width, dtype), matrix, offsets


def exact_logits(x, weight, bias, matrix, offsets):
    return F.linear(exact(x, weight, bias), matrix.double(), None if offsets is None else offsets.double())


@emulated
@pytest.mark.parametrize(
    "shape", [(2, 40, 3, 5, 11), (1, 640, 7, 7, 20), (1, 2056, 1, 3, 9)], ids=str
)  # the last has more octets of channels than threads
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_head_in_one_launch_rounds_as_two_do(shape, dtype):
    batch, channels, height, width, classes = shape
    given = head_case(*shape, dtype, has_offsets=channels != 40)
    found = torch.full((batch, classes), torch.nan, dtype=dtype)
    folder = Path(gpu_logits.__file__).parent
    emulation.emulate(
        (folder / "cuda/logits.cu").read_text(), "pooled_logits", (gpu_logits.blocks(batch, classes),), gpu_logits.THREADS,
        gpu_logits.shared_bytes(channels), [*given, found, 1e-6], gpu_logits.defines_of(dtype, height * width, channels, classes),
        sanitize=channels == 40,
    )  # fmt: skip
    wanted = exact_logits(*given)
    two = pooled_logits(*given, implementation="reference")
    assert (found.double() - wanted).norm() <= 1.2 * (two.double() - wanted).norm() + torch.finfo(
        dtype
    ).eps * wanted.norm()


@pytest.mark.skipif(cuda.why_no_compiler() is not None, reason="no NVRTC here")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_the_head_compiles(architecture, tmp_path, monkeypatch):
    monkeypatch.setenv("UNIPERCEPT_CACHE", str(tmp_path))
    defines = gpu_logits.defines_of(torch.bfloat16, 49, 640, 1000)  # with a count of bytes that the compiler compares
    assert cuda.compiled(gpu_logits.PACKAGE, gpu_logits.FILES, defines, architecture)


def test_a_head_that_one_launch_cannot_do_is_two_operations():
    given = head_case(2, 8, 3, 3, 5, torch.float64)
    assert torch.allclose(pooled_logits(*given), exact_logits(*given))
    with pytest.raises(InputError, match="was asked for, but"):
        pooled_logits(*given, implementation="gpu")
    with pytest.raises(InputError, match="reference, gpu"):
        pooled_logits(*given, implementation="fast")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_head_of_one_image_is_one_launch():
    given = [t.cuda() for t in head_case(1, 640, 7, 7, 1000, torch.bfloat16)]
    with torch.no_grad(), watch() as seen:
        found = pooled_logits(*given)
    assert list(seen) == [("pooled_logits", "gpu")]
    with torch.no_grad():
        two = pooled_logits(*given, implementation="reference")
        wanted = exact_logits(*given)
    assert (found.double() - wanted).norm() <= 1.2 * (two.double() - wanted).norm()
