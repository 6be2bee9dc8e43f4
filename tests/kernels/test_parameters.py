"""Parameters that are views with gaps between their elements, of the float32 or the 16 bits of the model that has them.

Kernels read parameters through bare pointers, so each operation has to close the gaps first.
"""

import pytest
import torch

from unipercept.errors import InputError
from unipercept.kernels import (
    batch_norm_sum,
    branch_norm_sum,
    conv_norm2d,
    layer_norm2d,
    normed_feed_forward_train,
    pooled_logits,
    pooled_norm,
)

C = 16
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Drawn:
    """Random tensors, which are the same each time, on a device."""

    def __init__(self, device, dtype=torch.float16):
        self.device, self.dtype, self.generator = device, dtype, torch.Generator().manual_seed(0)

    def map(self, *shape):
        return torch.randn(*shape, generator=self.generator).to(self.device, self.dtype)

    def parameters(self, count, size=C, dtype=torch.float32):
        drawn = torch.randn(count, size, generator=self.generator)
        return [p.to(self.device, dtype).requires_grad_(dtype == torch.float32) for p in drawn]


def with_gaps(parameter):
    """Every second element of a tensor whose others are far from it."""
    return torch.stack([parameter, torch.full_like(parameter, 1e3)], dim=-1)[..., 0]


def layer_norm(draw, given):
    x, (weight, bias, shift) = draw.map(2, C, 3, 5), draw.parameters(3)
    y = layer_norm2d(x, given(weight), given(bias), shift=given(shift), implementation="gpu")
    return y, *torch.autograd.grad(y.float().square().sum(), (weight, bias, shift))


def conv_norm(draw, given):
    x, w, (weight, bias, shift) = draw.map(2, 3, 9, 6), draw.map(C, 3, 3, 3), draw.parameters(3)
    with torch.no_grad():
        return (conv_norm2d(x, w, given(shift), given(weight), given(bias), implementation="gpu"),)


def pooled(draw, given):
    x, (weight, bias) = draw.map(2, C, 3, 5), draw.parameters(2, dtype=draw.dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    return (pooled_norm(x, given(weight), given(bias), implementation="gpu"),)


def logits(draw, given):
    x, (weight, bias, offsets), matrix = draw.map(2, C, 3, 5), draw.parameters(3, dtype=draw.dtype), draw.map(C, C)
    x = x.contiguous(memory_format=torch.channels_last)
    return (pooled_logits(x, given(weight), given(bias), matrix, given(offsets), implementation="gpu"),)


def norm_sum(draw, given):
    x, (weight, bias, gain), (scale,) = draw.map(2, C, 3, 5), draw.parameters(3), draw.parameters(1, size=2)
    y = batch_norm_sum(
        [x], given(weight)[None], given(bias)[None], scale=given(scale).detach(), gain=given(gain), implementation="gpu"
    )[0]
    return y, *torch.autograd.grad(y.float().square().sum(), (weight, bias, gain))


def normed_feed_forward(draw, given):
    x, norm = draw.map(2, 3, 5, C), draw.parameters(2)
    shapes = ((4, C), (4,), (C, 4), (C,), (32, C), (32,), (32,), (32,), (C, 32), (C,))
    weights = [draw.map(*shape) / 4 for shape in shapes]
    return normed_feed_forward_train(x, *map(given, norm), *map(given, weights), implementation="gpu")


@pytest.mark.parametrize(
    "operation", [layer_norm, conv_norm, pooled, pytest.param(logits, marks=on_gpu), norm_sum, normed_feed_forward]
)
def test_parameters_may_have_gaps(operation, triton_device):
    dense, gaps = (operation(Drawn(triton_device), given) for given in (torch.clone, with_gaps))
    for expected, found in zip(dense, gaps, strict=True):
        assert torch.equal(found, expected)


def test_norms_of_another_type_or_place_are_refused():
    x, weights, norms = torch.randn(2, 8, 5, 5), [torch.randn(8, 1, 3, 3)], torch.ones(1, 8)
    with pytest.raises(InputError, match=r"scales and shifts in torch\.float32"):
        branch_norm_sum(x, weights, norms.half(), norms, dilations=[1])
    for name in ("gain", "scale"):
        elsewhere = torch.ones(8 if name == "gain" else 2, device="meta")
        with pytest.raises(InputError, match=f"needs {name} on cpu"):
            batch_norm_sum([x], norms, norms, **{name: elsewhere})
