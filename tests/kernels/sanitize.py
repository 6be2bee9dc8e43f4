"""The CUDA kernels once each on small maps, for compute-sanitizer on a machine with a GPU:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python tests/kernels/sanitize.py [NAME ...]
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool racecheck python tests/kernels/sanitize.py [NAME ...]

Without torch's cache each tensor is an allocation of its own, beyond which nothing goes unseen. Values are
compared in the tests. On few multiprocessors, where that is said, so that blocks of small maps take several pieces
of work in turn. Each line of what is written names the CUDA kernels that ran up to there; one that FILES promises
and that did not is an error.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from test_branch_norm_sum import THIRTEEN, run, tensors
from test_conv_norm2d import case
from test_folded_blocks import weights_of
from torch import Tensor

from unipercept.kernels import branch_norm_sum, conv_norm2d, cuda, image_conv2d
from unipercept.kernels.adamw import AdamW
from unipercept.kernels.depthwise_conv2d import gpu as convolution
from unipercept.kernels.depthwise_conv2d.gpu_tiles import STEP, Octets, Patches, Rows, Tile
from unipercept.kernels.feed_forward import gpu_hopper
from unipercept.kernels.folded_blocks import BlockWeights, folded_blocks, gpu_clusters
from unipercept.kernels.folded_blocks import gpu as folded
from unipercept.kernels.pooled_norm import pooled_logits, pooled_norm

LAST = torch.channels_last


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda").bfloat16()


def depthwise() -> None:
    """3x3, and wide maps."""
    for channels, height, width in ((40, 14, 14), (24, 9, 11), (64, 7, 7), (64, 14, 14), (32, 28, 28), (80, 56, 56)):
        x, grad = (draw(3, channels, height, width).contiguous(memory_format=LAST) for _ in range(2))
        weight = draw(channels, 1, 3, 3)
        convolution.forward_gpu(x, weight, draw(channels), 1, "zero", None, flip=False, pool=True)
        convolution.weight_gradient_gpu(x, grad, 3, 3, 1, "zero")
    if convolution.limits_of(0).bulk_copies:
        for shape, rows in (((64, 80, 9, 56), Rows(4, 7, 9)), ((5, 24, 14, 14), Rows(4, 2, 7, depth=2))):
            x = draw(*shape).contiguous(memory_format=LAST)
            weight = draw(shape[1], 1, 3, 3)
            convolution.forward_gpu(x, weight, draw(shape[1]), 1, "zero", None, flip=False, pool=True, tile=rows)
        for shape, octets in (
            ((5, 16, 13, 19), Octets(2, 7, 2, 1, 1, 8)), ((9, 80, 7, 7), Octets(10, 7, 1, 2, 2, 10)),
            ((21, 72, 7, 7), Octets(4, 7, 1, 2, 2, 16, ranks=5)), ((45, 32, 6, 5), Octets(4, 6, 1, 2, 2, 8, ranks=2)),
        ):  # fmt: skip
            x, grad = (draw(*shape).contiguous(memory_format=LAST) for _ in range(2))
            convolution.weight_gradient_gpu(x, grad, 3, 3, 1, "zero", octets)
    x, grad = (draw(3, 64, 14, 14).contiguous(memory_format=LAST) for _ in range(2))
    convolution.weight_gradient_gpu(x, grad, 3, 3, 1, "zero", Patches(16, 8))
    for kernel, dilation in ((7, 3), (31, 1)):
        x = draw(1, 3, 50, 144)
        halo = convolution.problem_of(x, (kernel, kernel), dilation).halo_blocks
        tile = Tile(1, 1, STEP, 9, halo, 2, walk=True)
        weight = draw(3, 1, kernel, kernel)
        convolution.forward_gpu(x, weight, None, dilation, "zero", None, flip=False, pool=True, tile=tile)


def toeplitz() -> None:
    """13x13, in both layouts, with images enough for kernels that multiply them and too few."""
    for channels, side in ((16, 28), (32, 14)):
        for batch, memory in ((9, LAST), (3, LAST), (9, torch.contiguous_format)):
            x, grad = (draw(batch, channels, side, side).contiguous(memory_format=memory) for _ in range(2))
            convolution.forward_gpu(x, draw(channels, 1, 13, 13), None, 1, "zero", None, flip=False, pool=True)
            convolution.weight_gradient_gpu(x, grad, 13, 13, 1, "zero")
    with limited(bulk_copies=False):  # as before Hopper
        x, grad = (draw(9, 16, 7, 7).contiguous(memory_format=LAST) for _ in range(2))
        convolution.forward_gpu(x, draw(16, 1, 13, 13), None, 1, "zero", None, flip=False, pool=True)
        convolution.weight_gradient_gpu(x, grad, 13, 13, 1, "zero")


def small_maps() -> None:
    """Maps of one block of columns in either layout, the last channels and images fewer than a block takes."""
    for shape, kernel in (((9, 24, 7, 7), 13), ((17, 16, 8, 5), 5), ((9, 16, 7, 7), 3)):
        for memory in (LAST, torch.contiguous_format):
            x, grad = (draw(*shape).contiguous(memory_format=memory) for _ in range(2))
            for flip in (False, True):
                weight = draw(shape[1], 1, kernel, kernel)
                convolution.forward_gpu(x, weight, draw(shape[1]), 1, "zero", None, flip, pool=True)
            convolution.weight_gradient_gpu(x, grad, kernel, kernel, 1, "zero")


def strands() -> None:
    """13x13 and 11x11, where rows are strands: whole units of work, halves of some, and rounds of a team."""
    with limited(multiprocessors=3):
        for shape, kernel in (
            ((9, 72, 14, 14), 13),
            ((9, 40, 28, 28), 11),
            ((9, 24, 14, 14), 11),
            ((9, 24, 20, 20), 9),
        ):
            x = draw(*shape).contiguous(memory_format=LAST)
            for flip in (False, True):
                convolution.forward_gpu(
                    x, draw(shape[1], 1, kernel, kernel), draw(shape[1]), 1, "zero", None, flip, pool=True
                )
    with limited(multiprocessors=1):
        for shape, kernel in (((9, 17, 14, 14), 13), ((9, 5, 28, 28), 11), ((8, 5, 56, 56), 13), ((9, 3, 15, 16), 13)):
            for flip in (False, True):
                weight = draw(shape[1], 1, kernel, kernel)
                convolution.forward_gpu(draw(*shape), weight, draw(shape[1]), 1, "zero", None, flip, pool=True)


def limited(**changes: int) -> AbstractContextManager[object]:
    """As on a GPU that has fewer of these."""
    limits = replace(convolution.limits_of(0), **changes)
    return patch.object(convolution, "limits_of", lambda index: limits)


def direct() -> None:
    """Float32, both layouts, whole maps and parts of them, all paddings."""
    for shape, kernel, dilation, padding in (
        ((3, 16, 14, 14), 13, 1, "zero"), ((2, 8, 40, 70), 7, 3, "circular"), ((9, 24, 7, 7), 5, 1, "zero"), ((1, 8, 18, 36), 31, 1, "cylinder"),
        ((2, 8, 24, 48), 3, 1, "sphere"), ((1, 3, 70, 66), 13, 1, "zero"),
    ):  # fmt: skip
        for memory in (LAST, torch.contiguous_format):
            x, grad = (draw(*shape).float().contiguous(memory_format=memory) for _ in range(2))
            weight, bias = draw(shape[1], 1, kernel, kernel).float(), draw(shape[1]).float()
            convolution.forward_gpu(x, weight, bias, dilation, padding, None, flip=False, pool=True)
            convolution.weight_gradient_gpu(x, grad, kernel, kernel, dilation, padding)


def adamw() -> None:
    """A step of tensors of many sizes."""
    weights = [torch.nn.Parameter(draw(*shape).float()) for shape in ((5,), (4097, 3), (80, 1, 13, 13), (1,))]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer = AdamW(weights, lr=1e-3)
    for _ in range(2):
        optimizer.step()


def stem() -> None:
    for shape, width in (((2, 3, 13, 18), 40), ((1, 1, 16, 7), 64), ((3, 5, 6, 9), 22)):
        arguments = (t.cuda() for t in case(shape, width, torch.bfloat16))
        with torch.no_grad():
            conv_norm2d(*arguments, gelu=True, implementation="gpu")


def few_cells() -> None:
    """A convolution of stride 2 and its norm, in clusters of 1 to 16 blocks, with a tile that is not full."""
    for shape in ((1, 40, 57, 56), (2, 80, 29, 28), (1, 160, 14, 14), (1, 320, 7, 7)):
        arguments = (t.cuda() for t in case(shape, 2 * shape[1], torch.bfloat16))
        with torch.no_grad():
            conv_norm2d(*arguments, implementation="gpu")


def expand() -> None:
    """The feed-forward's first product on Hopper."""
    for channels, size in ((80, 200), (160, 196), (320, 196)):
        hidden = torch.empty(3, 1, size, 4 * channels, device="cuda", dtype=torch.bfloat16)
        partial = torch.empty(-(-3 * size // gpu_hopper.ROWS), 2, 4 * channels, device="cuda")
        weights = draw(4 * channels, channels), draw(4 * channels)
        gpu_hopper.expand_gpu(draw(3, 1, size, channels), draw(3, channels), *weights, hidden, partial)


def contract() -> None:
    """The second, in tiles that touch two images and more."""
    for channels, size, images in ((160, 200, 3), (320, 196, 3), (640, 49, 9)):
        weights = draw(channels, 4 * channels), draw(channels)
        hidden, residual = draw(images, 1, size, 4 * channels), draw(images, 1, size, channels)
        gpu_hopper.contract_gpu(hidden, draw(images, 4 * channels), *weights, residual)


def branches() -> None:
    """One by one inside a kernel: statistics, merge, and both gradients."""
    branches_of(((5, 8, 7, 7), (34, 8, 14, 14), (3, 8, 28, 28)))


def cells() -> None:
    """Statistics and gradients of small maps from products of their cells, some lower than the kernels reach."""
    branches_of(((33, 16, 7, 7), (34, 16, 14, 14), (33, 16, 4, 4), (35, 16, 2, 2), (32, 16, 3, 9)))


def wide_cells() -> None:
    """Statistics of larger maps from products of their cells."""
    branches_of(((33, 16, 28, 28),))


def branches_of(shapes: tuple[tuple[int, ...], ...]) -> None:
    kernels, dilations = THIRTEEN
    for shape in shapes:
        inputs = tensors(*shape, kernels, torch.bfloat16)
        inputs = (t.cuda() if torch.is_tensor(t) else [w.cuda() for w in t] for t in inputs)
        run(branch_norm_sum, *inputs, dilations, implementation="gpu")


def clusters() -> None:
    """Blocks of a batch of one in one launch, in clusters where the GPU has them."""
    for channels, side, kernels in ((80, 56, (3, 3)), (160, 28, (13, 13)), (320, 14, (13, 3)), (640, 7, (13, 13))):
        shape = folded.Run(torch.bfloat16, 1, channels, side, side, 4 * channels, channels // 4, kernels)
        weights = [BlockWeights(*(w.cuda() for w in block)) for block in weights_of(shape)]
        x = draw(1, channels, side, side).contiguous(memory_format=LAST)
        with torch.no_grad():
            folded_blocks(x, weights, implementation="gpu")


def blocks() -> None:
    """The same without clusters."""
    with patch.object(gpu_clusters, "launch_of", lambda run, index: None):
        clusters()


def image() -> None:
    """The image's convolution in training, and the gradient of its weight."""
    for shape, width in (((2, 3, 13, 18), 40), ((1, 1, 16, 7), 64), ((3, 5, 6, 9), 22)):
        x, w = draw(*shape), draw(width, shape[1], 3, 3).requires_grad_()
        image_conv2d(x, w, implementation="gpu").float().sum().backward()


def head() -> None:
    """Mean over cells and norm, and a matrix of classes."""
    for batch, channels, height, width in ((1, 640, 7, 7), (3, 64, 3, 11)):
        x = draw(batch, channels, height, width).contiguous(memory_format=LAST)
        with torch.no_grad():
            pooled_norm(x, draw(channels), draw(channels), implementation="gpu")
            for classes in (10, 37):
                matrix = draw(classes, channels), draw(classes)
                pooled_logits(x, draw(channels), draw(channels), *matrix, implementation="gpu")


# On Hopper: what each reaches of the CUDA C++ that the package ships.
FILES: dict[Callable[[], None], set[str]] = {
    depthwise: {"narrow", "rows", "octets", "octets_clusters", "patches", "reduce", "walk"},
    toeplitz: {"toeplitz", "images", "depth"},
    small_maps: {"small_maps", "small_maps_gradient"},
    strands: {"strands", "strands_first"},
    direct: {"direct"},
    stem: set(),
    few_cells: {"few_cells"},
    expand: {"expand"},
    contract: {"contract"},
    branches: {"branches", "branch_norms"},
    cells: {"gram", "digest", "matrices"},
    wide_cells: {"shifted", "digest_wide"},
    clusters: {"clusters"},
    blocks: {"blocks"},
    image: set(),
    head: {"logits"},
    adamw: {"adamw"},
}
KERNELS = {kernel.__name__: kernel for kernel in FILES}


def main() -> None:
    torch.manual_seed(0)
    for name in sys.argv[1:] or KERNELS:
        KERNELS[name]()
        torch.cuda.synchronize()
        ran = {(Path(files[-1]).stem, function) for _, files, function, *_ in cuda._loaded}
        sys.stdout.write(f"{name}: ran {', '.join(sorted(f'{file}.cu ({function})' for file, function in ran))}\n")
        sys.stdout.flush()
        missing = FILES[KERNELS[name]] - {file for file, _ in ran}
        if missing and torch.cuda.get_device_capability() >= (9, 0):
            raise SystemExit(f"{name} does not reach {sorted(missing)}")


if __name__ == "__main__":
    main()
