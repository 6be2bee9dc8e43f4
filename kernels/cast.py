"""Several tensors to another type, the small ones in one launch: a network has hundreds of them, and autocast casts each by itself."""

from collections.abc import Sequence

import torch
from torch import Tensor

MANY = 16384  # elements that are worth a launch: one for all gives each tensor few blocks


def cast_together(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """The tensors, contiguous and in `dtype`; None stays. For the insides of operators: no gradient flows."""
    found = [None if t is None else t.to(dtype).contiguous() if t.numel() > MANY else t.contiguous() for t in tensors]
    places = [i for i, t in enumerate(found) if t is not None and t.dtype != dtype]
    given = [t for i in places if (t := found[i]) is not None]
    cast = [torch.empty_like(t, dtype=dtype) for t in given]
    if given:
        torch._foreach_copy_(cast, given)
    for place, t in zip(places, cast, strict=True):
        found[place] = t
    return found
