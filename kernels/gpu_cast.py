"""The launch that casts several tensors on a GPU, in Triton."""
# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from unipercept.kernels.cast import STEP

MOST = 10  # tensors that a launch takes


def cast_gpu(tensors: Sequence[Tensor], flat: Tensor) -> None:
    """Contiguous tensors into `flat`, each from the next multiple of STEP on."""
    begin = 0
    with torch.cuda.device_of(flat):
        for first in range(0, len(tensors), MOST):
            group = tensors[first : first + MOST]
            counts = [t.numel() for t in group]
            steps = [-(-count // STEP) for count in counts]
            ends = [sum(steps[: i + 1]) for i in range(len(steps))]
            more = MOST - len(group)
            cast_kernel[(ends[-1],)](
                *group, *[group[0]] * more, flat[begin:], *ends, *[ends[-1]] * more, *counts, *[0] * more,
                STEP=STEP, num_warps=4,
            )  # fmt: skip
            begin += ends[-1] * STEP


_NUMBERS = [f"{kind}{i}" for kind in "en" for i in range(MOST)]


@triton.jit(do_not_specialize=_NUMBERS)
def cast_kernel(
    x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, output, e0, e1, e2, e3, e4, e5, e6, e7, e8, e9,
    n0, n1, n2, n3, n4, n5, n6, n7, n8, n9, STEP: tl.constexpr,
):  # fmt: skip
    """Tensor i has ni elements and the programs up to ei, STEP elements each."""
    program = tl.program_id(0)
    x, begin, n = x0, 0, n0
    if program >= e0:
        x, begin, n = x1, e0, n1
    if program >= e1:
        x, begin, n = x2, e1, n2
    if program >= e2:
        x, begin, n = x3, e2, n3
    if program >= e3:
        x, begin, n = x4, e3, n4
    if program >= e4:
        x, begin, n = x5, e4, n5
    if program >= e5:
        x, begin, n = x6, e5, n6
    if program >= e6:
        x, begin, n = x7, e6, n7
    if program >= e7:
        x, begin, n = x8, e7, n8
    if program >= e8:
        x, begin, n = x9, e8, n9
    inside = (program - begin) * STEP + tl.arange(0, STEP)
    value = tl.load(x + inside, mask=inside < n, other=0.0)
    tl.store(output + program * STEP + tl.arange(0, STEP), value.to(output.dtype.element_ty))
