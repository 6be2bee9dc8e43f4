"""Fast operations, each with a reference, a CPU and a GPU implementation behind one interface. Only the public ones.

A folder per operation; `dispatch` chooses the implementation. What the implementations share:
    cuda            CUDA C++ compiled at run time; llvm does so for the CPU, llvm_writer writes its
                    text, llvm_gate is its barrier
    compiled_code   the cache of compiled kernels; measured the one of tuned tiles
    product         the CPU's matrix product on vectors, matrix_product that on matrix registers; products chooses
    packed          weights as the CPU kernels take them; plans and workspace what calls reuse
    gelu_llvm       the CPU kernels' GELU, gpu_gelu that of Triton's
    cast, gpu_cast  several tensors cast in one launch; streams a second CUDA stream
    dense_weight    layout of torch's own convolutions
"""

from unipercept.kernels.batch_norm_sum import batch_norm_sum
from unipercept.kernels.branch_norm_sum import branch_norm_sum
from unipercept.kernels.conv_norm2d import conv_norm2d
from unipercept.kernels.dense_weight import weight_for_conv2d
from unipercept.kernels.depthwise_conv2d import depthwise_conv2d, depthwise_conv2d_with_sums
from unipercept.kernels.feed_forward import feed_forward, feed_forward_train, normed_feed_forward_train
from unipercept.kernels.folded_blocks import folded_blocks
from unipercept.kernels.folded_stages import folded_stages
from unipercept.kernels.image_conv2d import image_conv2d
from unipercept.kernels.layer_norm2d import layer_norm2d
from unipercept.kernels.pooled_norm import pooled_logits, pooled_norm

__all__ = [
    "batch_norm_sum",
    "branch_norm_sum",
    "conv_norm2d",
    "depthwise_conv2d",
    "depthwise_conv2d_with_sums",
    "feed_forward",
    "feed_forward_train",
    "folded_blocks",
    "folded_stages",
    "image_conv2d",
    "layer_norm2d",
    "normed_feed_forward_train",
    "pooled_logits",
    "pooled_norm",
    "weight_for_conv2d",
]
