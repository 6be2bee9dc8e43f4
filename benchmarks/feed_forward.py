"""The second half of UniRepLKNet-T's blocks, GPU: floor, torch eager, torch.compile, and ours.

    python benchmarks/feed_forward.py [--batch 128] [--dtype bfloat16] [--train] [--tune] [--parts]

--train measures forward plus backward of the training form; --tune first looks for the best tiles of each shape in the
form for inference and writes them to the cache folder (minutes); --parts also prints the time of each kernel of that
form. Milliseconds are medians with a cold L2. Errors are relative to float64 on four images, the worst of output and
gradients. The floor is the larger of bytes at 4.3 TB/s, as if only input, residual, output and twice the hidden tensor
were moved (eight times for --train with its seven passes), and operations at 700 TFLOP/s.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from unipercept.kernels import feed_forward, feed_forward_train
from unipercept.kernels.dispatch import watch
from unipercept.kernels.feed_forward.reference import Weights, feed_forward_reference

SHAPES = ((80, 56), (160, 28), (320, 14), (640, 7))  # channels and side of the map, by stage
BYTES_PER_MS = 4.3e9
OPERATIONS_PER_MS = 700e9
SLICE = 4  # images that the error is taken on


def random_case(batch: int, channels: int, side: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Weights]:
    """Maps of unit variance and weights that keep it, on the GPU."""
    generator = torch.Generator("cuda").manual_seed(0)
    squeezed, hidden = channels // 4, 4 * channels

    def normal(*size: int, fan: float = 1.0) -> Tensor:
        return (torch.randn(size, generator=generator, device="cuda") * fan**-0.5).to(dtype)

    weights = Weights(
        normal(squeezed, channels, fan=channels), normal(squeezed), normal(channels, squeezed, fan=squeezed), normal(channels),
        normal(hidden, channels, fan=channels), normal(hidden), normal(hidden), normal(hidden), normal(channels, hidden, fan=hidden),
        normal(channels),
    )  # fmt: skip
    shape = (batch, side, side, channels)
    return normal(*shape), normal(*shape), weights


def floor_ms(y: Tensor, hidden: int, train: bool) -> float:
    """See the module's docstring."""
    rows = y.numel() // y.shape[3]
    passes_wide, passes_narrow, products = (7, 6, 6) if train else (2, 3, 2)
    moved = rows * (passes_wide * hidden + passes_narrow * y.shape[3]) * y.element_size()
    return max(moved / BYTES_PER_MS, products * 2 * rows * hidden * y.shape[3] / OPERATIONS_PER_MS)


def plain(y: Tensor, residual: Tensor, weights: Weights) -> Tensor:
    """What a block computes without fused kernels, for torch's own compiler to fuse."""
    return residual + feed_forward_reference(y, None, weights._replace(beta=None))[0]


def ours(y: Tensor, residual: Tensor, weights: Weights) -> Tensor:
    return feed_forward(y, residual, *weights[:7], weights.w2, weights.b2)


def plain_train(y: Tensor, residual: Tensor, weights: Weights) -> Tensor:
    return feed_forward_reference(y, None, weights)[0]


def ours_train(y: Tensor, residual: Tensor, weights: Weights) -> Tensor:
    return feed_forward_train(y, *weights)


def with_backward(function: Callable[..., Tensor]) -> Callable[..., None]:
    def run(y: Tensor, residual: Tensor, weights: Weights) -> None:
        leaves = [y, *weights]
        torch.autograd.grad(function(y, residual, weights), leaves, residual)

    return run


def milliseconds(run: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return float(do_bench(run, warmup=25, rep=100, return_mode="median"))


def results(
    function: Callable[..., Tensor], y: Tensor, residual: Tensor, weights: Weights, train: bool
) -> list[Tensor]:
    """The output of the slice; with `train` also the gradients, the residual being that of the output."""
    y, residual = y[:SLICE].detach().requires_grad_(train), residual[:SLICE].detach()
    leaves = [y, *(w.detach().requires_grad_(train) for w in weights if w is not None)]
    output = function(y, residual, Weights(*leaves[1:]))
    return [output.detach(), *(torch.autograd.grad(output, leaves, residual) if train else ())]


def worst_error(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest relative error among some tensors."""
    return max(float((f.double() - e).norm() / e.norm()) for f, e in zip(found, exact, strict=True))


def measure(y: Tensor, residual: Tensor, weights: Weights, train: bool) -> None:
    """One line of the table."""
    functions = {"eager": plain_train, "ours": ours_train} if train else {"eager": plain, "ours": ours}
    functions["compiled"] = torch.compile(functions["eager"], dynamic=False)
    wide = Weights(*(None if w is None else w.double() for w in weights))
    exact = results(functions["eager"], y.double(), residual.double(), wide, train)
    errors = {
        name: worst_error(results(functions[name], y, residual, weights, train), exact) for name in ("eager", "ours")
    }
    times = {}
    for name, function in functions.items():
        if train:
            for leaf in (y, *weights):
                leaf.requires_grad_()
            times[name] = milliseconds(lambda f=with_backward(function): f(y, residual, weights))
        else:
            with torch.no_grad():
                times[name] = milliseconds(lambda f=function: f(y, residual, weights))
    floor = floor_ms(y, weights.b1.numel(), train)
    print(
        f"{y.shape[3]:4d} {y.shape[1]:3d}x{y.shape[2]:<3d} {floor:8.3f} {times['eager']:8.3f} {times['compiled']:9.3f} "
        f"{times['ours']:8.3f} {times['ours'] / floor:6.2f} {times['compiled'] / times['ours']:6.2f} "
        f"{errors['eager']:10.1e} {errors['ours']:9.1e}",
        flush=True,
    )


def print_parts(y: Tensor, weights: Weights) -> None:
    """Each product with the tile in use; `expand` includes the small kernel that makes GRN's factor."""
    from unipercept.kernels.feed_forward.gpu import channel_sums, squeeze_excite
    from unipercept.kernels.feed_forward.gpu_tiles import tile_for
    from unipercept.kernels.feed_forward.gpu_tuning import products

    with torch.no_grad():
        sums = y.float().sum(dim=(1, 2))
        print(f"     channel sums {milliseconds(lambda: channel_sums(y)):.3f}, gate {milliseconds(lambda: squeeze_excite(y, sums, weights)):.3f}")  # fmt: skip
        for product, run in products(y, weights):
            tile = tile_for(product, y.device)
            print(f"     {product}: {milliseconds(lambda r=run, t=tile: r(t)):.3f}  {tile}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3, 4], help="which of the four stages")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/feed_forward.py measures a GPU, and there is none here")
        return
    form = "training, forward and backward" if arguments.train else "inference"
    print(f"feed-forward, {form}, batch {arguments.batch}, {arguments.dtype}, {torch.cuda.get_device_name()}, torch {torch.__version__}")  # fmt: skip
    cases = []
    for channels, side in (SHAPES[stage - 1] for stage in arguments.stages):
        case = random_case(arguments.batch, channels, side, getattr(torch, arguments.dtype))
        cases.append(case)
        if arguments.tune:
            from unipercept.kernels.feed_forward.gpu_tuning import tune

            report = lambda name, tile, ms: print(f"  {ms:.4f} ms  {name}  {tile}", flush=True)  # noqa: E731
            with torch.no_grad():
                print(f"  written to {tune(case[0], case[2], report)}")
    print("   C   map       floor    eager  compiled     ours  /floor  gain  err eager  err ours   (ms)")
    for y, residual, weights in cases:
        with watch() as seen:
            measure(y, residual, weights, arguments.train)
        assert {name for _, name in seen} == {"gpu"}, "ours is to be the Triton kernels"
        if arguments.parts:
            print_parts(y, weights)


if __name__ == "__main__":
    main()
