"""UniRepLKNet's inference form on a CPU against the published form of it, in one process, turn by turn.

    python benchmarks/cpu_model.py [--model unireplknet_a] [--batches 1,8] [--threads 2] [--rounds 31]

The published form is contiguous NCHW throughout, with torch's own operations: the depthwise convolution, permutes
around the linear layers, GELU, GRN and squeeze-excite one by one, layer norms between permutes. Both forms share their
weights. They take turns, so that other work on the machine slows both alike.
"""

import argparse
import copy
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unipercept import build_backbone
from unipercept.backbone import UniRepLKNet
from unipercept.blocks import Block
from unipercept.kernels import llvm
from unipercept.kernels.dispatch import watch

SIZE = 224
BAR = 2.5
WARM_UP = 5


def published(model: UniRepLKNet, x: Tensor) -> Tensor:
    """The model's output, computed as the published code does."""
    for downsample, stage in zip(model.downsample_layers, model.stages, strict=True):
        x = published_downsample(list(downsample), x) if isinstance(downsample, nn.Sequential) else x
        for block in stage:
            x = published_block(block, x)
    return model.forward_head(x)


def published_downsample(layers: list[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            x = F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)
        elif isinstance(layer, nn.LayerNorm):
            last = x.permute(0, 2, 3, 1)
            x = (
                F.layer_norm(last, layer.normalized_shape, layer.weight, layer.bias, layer.eps)
                .permute(0, 3, 1, 2)
                .contiguous()
            )
        else:
            x = layer(x)
    return x


def published_block(block: Block, x: Tensor) -> Tensor:
    layer, se = block.spatial, block.se
    y = F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2, groups=block.channels)
    squeezed = F.relu(F.conv2d(y.mean((2, 3), keepdim=True), se.down.weight, se.down.bias))
    y = y * torch.sigmoid(F.conv2d(squeezed, se.up.weight, se.up.bias))
    y = F.gelu(F.linear(y.permute(0, 2, 3, 1), block.expand.weight, block.expand.bias))
    norm = torch.norm(y, p=2, dim=(1, 2), keepdim=True)
    y = (block.response_norm.gamma * (norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)) + 1) * y
    y = F.linear(y, block.contract.weight, block.contract.bias)
    return x + y.permute(0, 3, 1, 2).contiguous()


def without_depthwise(model: UniRepLKNet, x: Tensor) -> Tensor:
    """The same without its depthwise convolutions: the time of all the rest."""
    convolve = F.conv2d
    try:
        F.conv2d = lambda y, w, *others, groups=1, **more: y if groups > 1 else convolve(y, w, *others, **more)
        return published(model, x)
    finally:
        F.conv2d = convolve


def random_model(name: str) -> UniRepLKNet:
    """With weights of the size that trained ones have, so that errors mean something."""
    torch.manual_seed(0)
    model = build_backbone(name, num_classes=1000, deploy=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.uniform_(0.1, 0.5)
    return model


def multiplications(model: UniRepLKNet) -> int:
    """Multiply-adds of one image, taps on padding not counted out."""
    count = 0
    with torch.inference_mode():
        x = torch.zeros(1, model.in_channels, SIZE, SIZE)
        for downsample, stage in zip(model.downsample_layers, model.stages, strict=True):
            for layer in downsample if isinstance(downsample, nn.Sequential) else ():
                x = layer(x)
                if isinstance(layer, nn.Conv2d):
                    count += layer.weight[0].numel() * x.numel()
            cells = x.shape[-2] * x.shape[-1]
            count += cells * sum(block.spatial.weight.numel() + 2 * block.expand.weight.numel() for block in stage)
    return count


def multiplications_a_second() -> float:
    """The best rate of a large float32 product on this many threads: what a floor is counted with."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    times = timed([lambda: a @ b], 31)[0]
    return 1024**3 / min(times)


def timed(runs: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each, in turns."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(WARM_UP + rounds):
        for run, kept in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            if turn >= WARM_UP:
                kept.append(time.perf_counter() - start)
    return times


def operations(model: UniRepLKNet, x: Tensor, rounds: int) -> list[str]:
    """A row for each kernel of ours, run one by one, and one for all else: their share of the time."""
    run = llvm.Program.run
    turns: list[list[tuple[str, float]]] = []

    def run_apart(program: llvm.Program, *arguments: Any, **settings: Any) -> None:
        for i, name in enumerate(program.names):
            start = time.perf_counter()
            run(program, *arguments, **settings, alone=i)
            turns[-1].append((name, time.perf_counter() - start))

    def apart() -> None:
        turns.append([])
        try:
            llvm.Program.run = run_apart
            model(x)
        finally:
            llvm.Program.run = run

    whole = statistics.median(timed([lambda: model(x), apart], rounds)[0]) * 1e3
    calls = zip(*turns[WARM_UP:], strict=True)  # each in all turns
    each = [(turn[0][0], statistics.median(seconds for _, seconds in turn) * 1e3) for turn in calls]
    names = list(dict.fromkeys(name for name, _ in each))
    sums = {f"`{name}`": [ms for other, ms in each if other == name] for name in names}
    sums["all else"] = [max(0.0, whole - sum(ms for _, ms in each))]
    return [f"| {len(x)} | {name} | {len(ms)} | {sum(ms):.2f} | {sum(ms) / whole:.0%} |" for name, ms in sums.items()]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--model", default="unireplknet_a")
    arguments.add_argument("--batches", default="1,8")
    arguments.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    arguments.add_argument("--rounds", type=int, default=31)
    arguments.add_argument(
        "--output", type=Path, help="file for the report; results/cpu_model.md holds those of several machines"
    )
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    model = random_model(options.model)
    floor = multiplications(model) / multiplications_a_second() * 1e3
    rows, shares = [], []
    with torch.inference_mode():
        for batch in map(int, options.batches.split(",")):
            x = torch.randn(batch, model.in_channels, SIZE, SIZE)
            rows.append(row(model, x, floor * batch, options.rounds))
            print(rows[-1], flush=True)
            shares += operations(model, x, options.rounds)
    text = report(options, rows, shares)
    print("", text, sep="\n")
    if options.output:
        options.output.write_text(text, encoding="utf-8")


def row(model: UniRepLKNet, x: Tensor, floor: float, rounds: int) -> str:
    with watch() as seen:
        found = model(x)
    paths = ", ".join(sorted({implementation for _, implementation in seen}))
    exact = published(copy.deepcopy(model).double(), x.double())
    plain = published(model, x)
    error, plain_error = ((y.double() - exact).norm() / exact.norm() for y in (found, plain))
    runs = [lambda: published(model, x), lambda: without_depthwise(model, x), lambda: model(x)]
    theirs, less, ours = timed(runs, rounds)
    ratio, rest = (statistics.median(a / b for a, b in zip(times, ours, strict=True)) for times in (theirs, less))
    a, b = statistics.median(theirs) * 1e3, statistics.median(ours) * 1e3
    verdict = "met" if ratio >= BAR else f"missed ({BAR})"
    return (
        f"| {len(x)} | {floor:.1f} | {a:.1f} ({min(theirs) * 1e3:.1f}) | {b:.1f} ({min(ours) * 1e3:.1f}) | {ratio:.2f} | {verdict} | {rest:.2f} "
        f"| {error:.1e} | {plain_error:.1e} | {paths} |"
    )


def report(options: argparse.Namespace, rows: list[str], shares: list[str]) -> str:
    """The tables with what they were measured on."""
    lines = [
        f"# {options.model}, inference form, {SIZE}x{SIZE}, float32, on a CPU",
        "",
        f"{processor()}, {options.threads} threads, vectors of {llvm.vector_width()} floats{', matrix registers' if llvm.has_matrices() else ''}; torch {torch.__version__}; {company()}; "
        f"`python benchmarks/cpu_model.py --model {options.model} --threads {options.threads}`.",
        "",
        "Milliseconds, medians (and the best) of turns; the ratio is the median of those of each turn. Floor: the multiply-adds at the",
        "rate of torch's own product of 1024x1024 matrices. Rest: the ratio where the published form is spared its depthwise convolutions",
        "and ours are not, since torch's time for them differs tenfold between processors. Errors are relative, against the published form",
        "in float64.",
        "",
        "| batch | floor | published | ours | ratio | bar | rest | our error | its error | paths |",
        "| ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | --- |",
        *rows,
        "",
        "Where our time goes, kernel by kernel:",
        "",
        "| batch | kernel | calls | ms | share |",
        "| ---: | --- | ---: | ---: | ---: |",
        *shares,
        "",
    ]
    return "\n".join(lines)


def company() -> str:
    """Whether others had the cores too."""
    load = f"load average {os.getloadavg()[0]:.1f}"
    if os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR):
        return f"{load}, but at real-time priority, so that others waited"
    return f"{load} (where it is above the threads, others had the cores and only the ratio means something)"


def processor() -> str:
    """Its name as the system gives it."""
    information = Path("/proc/cpuinfo")
    names = (
        [
            line.split(":")[1].strip()
            for line in information.read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ]
        if information.exists()
        else []
    )
    name = names[0] if names else platform.machine()
    return name if llvm.why_not() else f"{name} ({llvm.processor()})"


if __name__ == "__main__":
    main()
