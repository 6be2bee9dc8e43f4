"""GPUs and convolutions that tests of the depthwise kernels share."""

import math

import torch

from unipercept.kernels.depthwise_conv2d import gpu

H200 = gpu.Limits(132, 232_448, 233_472, bulk_copies=True)
A10 = gpu.Limits(72, 101_376, 102_400)
RTX_5090 = gpu.Limits(170, 101_376, 102_400, bulk_copies=True)

PROBLEMS = [
    gpu.Problem(dtype, height, width, (kernel, kernel), dilation, "zero", layout, layout, math.gcd(width, 8))
    for dtype, height, width, kernel, dilation in [
        (torch.bfloat16, 56, 56, 13, 1), (torch.float16, 7, 7, 13, 1), (torch.bfloat16, 180, 360, 31, 1),
        (torch.float16, 180, 360, 7, 3), (torch.bfloat16, 56, 56, 3, 1), (torch.float32, 28, 28, 13, 1),
        (torch.float32, 91, 180, 31, 1),
    ]
    for layout in (True, False)
]  # fmt: skip
ODD_STRANDS = [  # of an odd number of words each, or of columns
    ((10, 16, 26, 18), (13, 11), 2), ((9, 8, 15, 15), (11, 11), 1), ((8, 8, 9, 9), (13, 13), 1),
]  # fmt: skip
