"""Fast operations, each behind one contract with several ways to keep it. The public ones, nothing else."""

from unipercept.kernels.depthwise_conv2d import depthwise_conv2d, depthwise_conv2d_with_sums

__all__ = ["depthwise_conv2d", "depthwise_conv2d_with_sums"]
