"""The weight of torch's dense convolution in the layout in which torch takes it fastest."""

import torch
from torch import Tensor

from unipercept.kernels.dispatch import is_watched
from unipercept.kernels.packed import packed


def weight_for_conv2d(x: Tensor, weight: Tensor) -> Tensor:
    """The same values for `torch.nn.functional.conv2d`: on a CPU, without gradients,
    channels-last and kept between calls.

    With a contiguous weight torch reorders it in every call on channels-last maps, which takes as long as the
    convolution where maps are small. Its result is then channels-last, whatever the layout of `x`.
    """
    if x.device.type != "cpu" or weight.dtype != torch.float32 or not weight.is_contiguous() or is_watched(x, weight):
        return weight
    return packed(weight, _channels_last)


def _channels_last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)
