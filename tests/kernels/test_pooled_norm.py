"""Mean over cells and layer norm in one launch: against float64 in Triton's interpreter or on a GPU, and what is left to torch."""

import pytest
import torch
import torch.nn.functional as F

from unipercept.errors import InputError
from unipercept.kernels.pooled_norm import pooled_norm


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
    with pytest.raises(InputError, match="one launch"):
        pooled_norm(*given, implementation="gpu")
    with pytest.raises(InputError, match="reference and gpu"):
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
