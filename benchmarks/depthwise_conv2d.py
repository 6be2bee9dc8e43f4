"""The depthwise convolution on a GPU: floor, what PyTorch takes, ours, for forward and both gradients.

    python benchmarks/depthwise_conv2d.py [-o benchmarks/results/depthwise_conv2d.md] [--dtype float32] [--kernel 3 ...]
                                          [--tune]

Microseconds: medians of a CUDA graph that goes through inputs larger than the L2. The floor moves each byte once at
4.3 TB/s; in float32, which must not touch the tensor cores, it is the products with taps inside the map at 60
TFLOP/s where these take longer. "PyTorch us" is what ours replaces: its own operation on tensors of the same
layout, native on contiguous ones, cuDNN on channels-last ones. "best of PyTorch's" is the fastest of these two and,
forward, an FFT, whatever layout that wants; where it is less than ours in a contiguous row, channels-last tensors
are what to use. Errors are relative to float64 on a slice of channels; `x torch` is the error over that of
PyTorch's native kernel in the same type. Ours runs the path that the dispatcher picks: kernels of its own, or
PyTorch where that is faster. --tune first looks for the best tiles of each shape and layout and writes them to the
cache folder (a quarter of a minute each).
"""

import argparse
import csv
import io
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from gpu_timing import BYTES_PER_US, FLOAT32_OPERATIONS_PER_US, copies, hardware, relative_error, time_us
from torch import Tensor

from unipercept.kernels import depthwise_conv2d  # noqa: F401 - registers the operators
from unipercept.kernels.depthwise_conv2d.reference import (
    depthwise_conv2d_reference,
    input_gradient_reference,
    weight_gradient_reference,
)
from unipercept.kernels.dispatch import watch

SHAPES = [  # batch, channels, height, width, kernel, dilation
    (64, 80, 56, 56, 3, 1), (64, 160, 28, 28, 3, 1), (64, 320, 14, 14, 3, 1), (64, 640, 7, 7, 3, 1),
    (64, 80, 56, 56, 13, 1), (64, 160, 28, 28, 13, 1), (64, 320, 14, 14, 13, 1), (64, 640, 7, 7, 13, 1),
    (1, 512, 180, 360, 7, 3), (1, 512, 180, 360, 31, 1), (64, 160, 28, 28, 5, 1), (64, 160, 28, 28, 7, 1),
]  # fmt: skip
PASSES = ("forward", "input gradient", "weight gradient")
SLICE = 8  # channels and images that the error is taken on
COLUMNS = (
    "shape", "kernel", "pass", "layout", "floor us", "PyTorch us", "path", "ours us", "ours / floor", "PyTorch / ours", "best of PyTorch's", "by",
    "error", "x torch",
)  # fmt: skip


def calls(w: Tensor, kernel: int, dilation: int) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Ours for each pass, of input and gradient of the output."""
    operators = torch.ops.unipercept
    return {
        "forward": lambda x, g: operators.depthwise_conv2d(x, w, None, dilation, "zero", None, ""),
        "input gradient": lambda x, g: operators.depthwise_conv2d_input_gradient(g, w, dilation, "zero", ""),
        "weight gradient": lambda x, g: operators.depthwise_conv2d_weight_gradient(
            x, g, kernel, kernel, dilation, "zero", ""
        ),
    }


def torch_calls(w: Tensor, kernel: int, dilation: int) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """PyTorch's, in whatever layout the inputs have."""
    padding, groups = dilation * (kernel // 2), w.shape[0]

    def backward(x: Tensor, g: Tensor, of_input: bool) -> Tensor:
        return torch.ops.aten.convolution_backward(
            g, x, w, None, [1, 1], [padding] * 2, [dilation] * 2, False, [0, 0], groups, [of_input, not of_input, False]
        )[0 if of_input else 1]

    return {
        "forward": lambda x, g: F.conv2d(x, w, None, padding=padding, dilation=dilation, groups=groups),
        "input gradient": lambda x, g: backward(x, g, True),
        "weight gradient": lambda x, g: backward(x, g, False),
    }


def by_fft(x: Tensor, w: Tensor) -> Tensor:
    """Forward as a product of spectra, float32; what a user of torch.fft would write."""
    (height, width), kernel = x.shape[-2:], w.shape[-1]
    size = [height + kernel - 1, width + kernel - 1]
    spectrum = torch.fft.rfft2(x.float(), s=size) * torch.fft.rfft2(w.float().flip(-2, -1).transpose(0, 1), s=size)
    whole = torch.fft.irfft2(spectrum, s=size)
    return whole[..., kernel // 2 :, kernel // 2 :][..., :height, :width].to(x.dtype)


def errors(x: Tensor, g: Tensor, w: Tensor, kernel: int, dilation: int) -> dict[str, tuple[float, float]]:
    """Ours and PyTorch's against float64, for each pass, on a slice; the sum over images of
    a weight's gradient is whole.
    """
    few = tuple(t[:SLICE, :SLICE].contiguous() for t in (x, g))
    all_images = tuple(t[:, :SLICE].contiguous() for t in (x, g))
    part = w[:SLICE]
    with torch.backends.cudnn.flags(enabled=False):
        exact = {
            "forward": depthwise_conv2d_reference(few[0].double(), part.double(), None, dilation, "zero"),
            "input gradient": input_gradient_reference(few[1].double(), part.double(), dilation, "zero"),
            "weight gradient": weight_gradient_reference(
                *(t.double() for t in all_images), kernel, kernel, dilation, "zero"
            ),
        }
        theirs = {
            name: call(*(all_images if "weight" in name else few))
            for name, call in torch_calls(part, kernel, dilation).items()
        }
    found = {}
    for name, call in calls(w, kernel, dilation).items():
        whole = call(x, g)
        mine = whole[:SLICE] if "weight" in name else whole[:SLICE, :SLICE]
        found[name] = relative_error(mine, exact[name]), relative_error(theirs[name], exact[name])
    return found


def floor_us(shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """The least time that each pass can take."""
    batch, channels, height, width, kernel, dilation = shape
    bytes_us = 2 * math.prod(shape[:4]) * dtype.itemsize / BYTES_PER_US
    if dtype != torch.float32:
        return bytes_us
    reach = range(-(kernel // 2) * dilation, kernel // 2 * dilation + 1, dilation)
    rows, columns = (sum(max(size - abs(r), 0) for r in reach) for size in (height, width))
    return max(bytes_us, 2 * batch * channels * rows * columns / FLOAT32_OPERATIONS_PER_US)


def measure(shape: tuple[int, ...], dtype: torch.dtype) -> list[tuple[object, ...]]:
    """A row for each pass and layout."""
    batch, channels, height, width, kernel, dilation = shape
    w = (torch.randn(channels, 1, kernel, kernel, device="cuda") / kernel).to(dtype)

    def inputs() -> tuple[Tensor, Tensor]:
        x, g = (torch.randn(batch, channels, height, width, device="cuda").to(dtype) for _ in range(2))
        return x, g

    contiguous = copies(inputs, 2 * math.prod(shape[:4]) * dtype.itemsize)
    last = [tuple(t.contiguous(memory_format=torch.channels_last) for t in pair) for pair in contiguous]
    floor = floor_us(shape, dtype)
    wrong = {
        "contiguous": errors(*contiguous[0], w, kernel, dilation),
        "channels last": errors(*last[0], w, kernel, dilation),
    }
    rows = []
    for name in PASSES:
        function = torch_calls(w, kernel, dilation)[name]
        slow = channels * height > 50_000 and kernel > 7
        repeats = 2 if slow else 7
        candidates = {"native": time_us(function, contiguous[:3] if slow else contiguous, repeats)}
        replaced = {"contiguous": candidates["native"], "channels last": math.nan}
        if not slow:  # cuDNN takes a tenth of a second there
            candidates["cuDNN, channels last"] = replaced["channels last"] = time_us(function, last, repeats)
        if name == "forward" and dilation == 1:
            candidates["FFT"] = time_us(lambda x, g: by_fft(x, w), contiguous[:3], 2)
        best = min(candidates, key=lambda key: candidates[key])
        for layout, sets in (("contiguous", contiguous), ("channels last", last)):
            with watch() as seen:
                ours = time_us(calls(w, kernel, dilation)[name], sets)
            path = {"gpu": "own", "reference": "PyTorch"}[seen[-1][1]]
            error, plain = wrong[layout][name]
            rows.append((
                "x".join(map(str, shape[:4])), f"{kernel}" + (f" dilation {dilation}" if dilation > 1 else ""), name, layout,
                f"{floor:.1f}", known(replaced[layout], 1), path, f"{ours:.1f}", f"{ours / floor:.2f}", known(replaced[layout] / ours, 2),
                f"{candidates[best]:.1f}", best, f"{error:.1e}", f"{error / plain:.2f}",
            ))  # fmt: skip
            print("  ".join(rows[-1]), flush=True)
    return rows


def known(number: float, digits: int) -> str:
    return "-" if math.isnan(number) else f"{number:.{digits}f}"


def tune(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The best tiles, into the cache folder."""
    from unipercept.kernels.depthwise_conv2d import gpu_tuning

    *sizes, kernel, dilation = shape
    for memory in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(sizes, device="cuda").to(dtype).contiguous(memory_format=memory)
        report = lambda name, tile, ms: print(f"{1e3 * ms:9.1f} us  {name}  {tile}", flush=True)  # noqa: E731
        print(f"written to {gpu_tuning.tune(x, (kernel, kernel), dilation, report)}", flush=True)


def as_markdown(rows: list[tuple[object, ...]], dtype: str) -> str:
    command = f"python benchmarks/depthwise_conv2d.py --dtype {dtype}"
    lines = [
        f"# Depthwise convolution, {dtype}",
        "",
        f"{hardware()}. `{command}`",
        "",
        str(__doc__).split("\n\n", 2)[2].strip(),
        "",
    ]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in (COLUMNS, ["---"] * len(COLUMNS), *rows)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="write the table there, and as .csv beside it")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--kernel", type=int, nargs="+", help="only these kernel sizes")
    parser.add_argument("--tune", action="store_true")
    arguments = parser.parse_args()
    if arguments.tune and arguments.dtype == "float32":
        parser.error("--tune is for the 16-bit types: float32 takes its tiles from an estimate")
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = True, False
    shapes = [shape for shape in SHAPES if not arguments.kernel or shape[4] in arguments.kernel]
    if arguments.tune:
        for shape in shapes:
            tune(shape, getattr(torch, arguments.dtype))
    rows: list[tuple[object, ...]] = []
    for shape in shapes:
        rows += measure(shape, getattr(torch, arguments.dtype))
        if arguments.output:  # after each shape, so that a run that is cut short leaves what it measured
            arguments.output.write_text(as_markdown(rows, arguments.dtype), encoding="utf-8")
            table = io.StringIO()
            csv.writer(table, lineterminator="\n").writerows([COLUMNS, *rows])
            arguments.output.with_suffix(".csv").write_text(table.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    main()
