"""UniRepLKNet-T against timm's convnext_tiny on one GPU, and where its time goes: each layer against its floor.

    python benchmarks/gpu_model.py [-o benchmarks/results/gpu_model.md] [--only inference|training] [--autotune]

Images of 224x224, bf16. Inference: batch 128 and batch 1, launched from CUDA graphs, ours in inference form without
compiling, convnext_tiny under torch.compile and eagerly; the graphs take turns, eleven replays a turn, and the median
of fifteen rounds' medians counts. Training: batch 128, forward, backward and AdamW under bf16 autocast; ours in
training form with all dilated branches, the whole step in a CUDA graph; convnext_tiny eager, compiled, and compiled in
a CUDA graph, all with torch's fused AdamW, and the last rows of both with `unipercept.kernels.adamw`. Weights are
random. The picture beside the table is the waterline: the time of each kind of layer in a forward pass of 128 images,
and how much of it the floor explains (bytes at 4.3 TB/s or operations at 700 TFLOP/s, the larger), widest gap first.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpu_timing import BYTES_PER_US, OPERATIONS_PER_US, copies, graph_of, hardware, time_us, turns_us
from torch import Tensor, nn

from unipercept.backbone import VARIANTS, UniRepLKNet, build_backbone, seed_weights
from unipercept.blocks import Block, channels_last
from unipercept.kernels import depthwise_conv2d_with_sums
from unipercept.kernels.adamw import AdamW
from unipercept.kernels.dispatch import watch

BATCH = 128
NAME = "unireplknet_t"


def images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 224, 224, device="cuda").bfloat16().contiguous(memory_format=torch.channels_last)


def convnext() -> nn.Module:
    import timm

    model: nn.Module = timm.create_model("convnext_tiny", num_classes=1000)
    return model.cuda().to(memory_format=torch.channels_last)


def backbone(deploy: bool) -> UniRepLKNet:
    model = seed_weights(build_backbone(NAME, num_classes=1000, deploy=deploy))
    assert isinstance(model, UniRepLKNet)
    return model.cuda().to(memory_format=torch.channels_last)


@torch.inference_mode()
def inference(autotune: bool) -> list[tuple[str, str, str, str]]:
    """Rows: what, milliseconds a batch, those of the quickest and the slowest round, images a second."""
    rows = []
    ours, theirs = backbone(True).eval().bfloat16(), convnext().eval().bfloat16()
    models = {
        f"{NAME}, inference form": ours,
        "convnext_tiny, compiled": torch.compile(theirs),
        "convnext_tiny, eager": theirs,
    }
    if autotune:
        models["convnext_tiny, compiled with max-autotune"] = torch.compile(theirs, mode="max-autotune-no-cudagraphs")
    for batch in (BATCH, 1):
        x = images(batch)
        with watch() as seen:
            ours(x)
        assert {path for _, path in seen} == {"gpu"}, "the fast path was not taken"
        graphs = {}
        for name, model in models.items():
            model(x)
            graphs[name] = graph_of(lambda: model(x))  # noqa: B023 - called at once
        for name, times in turns_us(graphs).items():
            middle, least, most = (us / 1e3 for us in times)
            spread = f"{least:.3f} to {most:.3f}"
            rows.append((f"{name}, batch {batch}", f"{middle:.3f}", spread, f"{batch / middle * 1e3:.0f}"))
    return rows


def training() -> list[tuple[str, str, str, str]]:
    """Rows: what, milliseconds a step, images a second, peak memory in GB."""
    rows = []
    for name, optimizer in (("", None), (", AdamW of ours", AdamW)):
        ours = _training_step(backbone(False).train(), graph=True, make_optimizer=optimizer)
        rows.append(_training_row(f"{NAME}, training form, CUDA graph{name}", ours))
        del ours
    model = convnext().train()
    rows.append(_training_row("convnext_tiny, eager", _training_step(model)))
    compiled = torch.compile(model)
    rows.append(_training_row("convnext_tiny, compiled", _training_step(model, compiled)))
    for name, optimizer in (("", None), (", AdamW of ours", AdamW)):
        theirs = _training_step(model, compiled, graph=True, make_optimizer=optimizer)
        rows.append(_training_row(f"convnext_tiny, compiled, CUDA graph{name}", theirs))
        del theirs
    return rows


def _training_step(
    model: nn.Module,
    run: Callable[..., Any] | None = None,
    graph: bool = False,
    make_optimizer: Callable[..., torch.optim.Optimizer] | None = None,
) -> Callable[[], Any]:
    x, target = torch.randn(BATCH, 3, 224, 224, device="cuda"), torch.randint(1000, (BATCH,), device="cuda")
    x = x.contiguous(memory_format=torch.channels_last)
    if make_optimizer is None:
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True, capturable=graph)
    else:
        optimizer = make_optimizer(model.parameters(), lr=1e-4)

    forward = model if run is None else run  # a compiled model has no truth value

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=not graph):
            loss = F.cross_entropy(forward(x), target)
        loss.backward()
        optimizer.step()

    if not graph:
        return step
    torch.cuda.reset_peak_memory_stats()
    captured = graph_of(step)
    return captured.replay


def _training_row(name: str, step: Callable[[], Any]) -> tuple[str, str, str, str]:
    if "graph" not in name.lower():
        step()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        step()
    times = []
    for _ in range(7):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    milliseconds = sorted(times)[len(times) // 2]
    peak = torch.cuda.max_memory_allocated() / 1e9
    return name, f"{milliseconds:.1f}", f"{BATCH / milliseconds * 1e3:.0f}", f"{peak:.2f}"


@torch.inference_mode()
def waterline() -> list[tuple[str, int, float, float]]:
    """Kind of layer, how many, microseconds of all of them together, and their floor; widest gap first."""
    rows, model = [], backbone(True).eval().bfloat16()
    side = 224
    for stage, (dim, kernels) in enumerate(zip(VARIANTS[NAME].dims, VARIANTS[NAME].kernel_sizes, strict=True)):
        downsample = model.downsample_layers[stage]
        before = 3 if stage == 0 else dim // 2
        rows.append(
            _layer(
                f"stage {stage + 1} downsample",
                1,
                downsample,
                before,
                side,
                _downsample_floor(stage, dim, before, side),
            )
        )
        side = 56 if stage == 0 else side // 2
        cells = BATCH * side * side
        for kernel in sorted(set(kernels)):
            block = next(b for b, k in zip(model.stages[stage], kernels, strict=True) if k == kernel)  # type: ignore[call-overload]
            count = kernels.count(kernel)
            rows.append(
                _layer(
                    f"stage {stage + 1} convolution {kernel}x{kernel}",
                    count,
                    _convolution(block),
                    dim,
                    side,
                    4 * cells * dim / BYTES_PER_US,
                )
            )
        floor = max(2 * cells * 11 * dim / BYTES_PER_US, 16 * cells * dim * dim / OPERATIONS_PER_US)
        rows.append(_layer(f"stage {stage + 1} feed-forward", len(kernels), _feed_forward(block), dim, side, floor))
    return sorted(rows, key=lambda row: row[3] - row[2])


def _downsample_floor(stage: int, dim: int, before: int, side: int) -> float:
    if stage == 0:  # two convolutions, each written, normed: read and written
        return 2 * BATCH * (112 * 112 * dim // 2 * 4 + 56 * 56 * dim * 3 + 3 * 224 * 224) / BYTES_PER_US
    out = BATCH * (side // 2) ** 2 * dim
    return max(2 * (BATCH * side**2 * before + 3 * out) / BYTES_PER_US, 18 * out * before / OPERATIONS_PER_US)


def _convolution(block: Block) -> Callable[[Tensor], Any]:
    layer = block.spatial
    assert layer is not None
    return lambda x: depthwise_conv2d_with_sums(x, layer.weight, layer.bias)


def _feed_forward(block: Block) -> Callable[[Tensor], Any]:
    sums = torch.ones(BATCH, block.channels, device="cuda")
    return lambda x: block._fed_forward(x, x, sums)


def _layer(
    name: str, count: int, call: Callable[[Tensor], Any], channels: int, side: int, floor: float
) -> tuple[str, int, float, float]:
    def make() -> tuple[Tensor]:
        x = torch.randn(BATCH, channels, side, side, device="cuda").bfloat16()
        return (x.contiguous(memory_format=torch.channels_last),)

    sets = copies(make, 2.0 * BATCH * channels * side * side, most=8)
    assert channels_last(sets[0][0]).is_contiguous()
    return name, count, count * time_us(call, sets), count * floor


def draw(rows: list[tuple[str, int, float, float]], path: Path) -> None:
    """Bars of time; the part below the waterline is what the floor explains."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.36 * len(rows) + 1.4), layout="constrained")
    names = [f"{count} x {name}" if count > 1 else name for name, count, _, _ in rows][::-1]
    axes.barh(names, [time for _, _, time, _ in rows][::-1], color="#e08a3c", label="above the floor")
    axes.barh(names, [min(floor, time) for _, _, time, floor in rows][::-1], color="#3b6ea5", label="floor")
    for place, (_, _, time, floor) in enumerate(rows[::-1]):
        axes.text(time, place, f" {time:.0f} us, {time / floor:.1f} x floor", va="center", fontsize=8)
    axes.set_xlim(0, 1.25 * max(time for _, _, time, _ in rows))
    axes.set_xlabel("microseconds in a forward pass of 128 images, bf16")
    axes.set_title(f"{NAME} on {torch.cuda.get_device_name()}: where the time goes")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=130)


def table(columns: tuple[str, ...], rows: list[Any]) -> str:
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (columns, ["---"] * len(columns), *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="write the tables there, and the picture beside it")
    parser.add_argument(
        "--only",
        choices=("inference", "training"),
        help="one half; the output keeps the other half's tables as they are",
    )
    parser.add_argument(
        "--autotune", action="store_true", help="convnext_tiny with torch's max-autotune too: minutes of compiling"
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    tables = _tables(arguments.output) if arguments.output and arguments.only else {}

    def done(columns: tuple[str, ...], rows: list[Any]) -> None:
        tables[columns[0]] = table(columns, rows)
        print(tables[columns[0]], flush=True)
        if arguments.output:
            about = (
                f"# {NAME} on a GPU",
                f"{hardware()}. `python benchmarks/gpu_model.py`",
                str(__doc__).split("\n\n", 2)[2],
            )
            shown = (tables[name] for name in ("inference", "training", "layer") if name in tables)
            arguments.output.write_text("\n\n".join((*map(str.strip, about), *shown)) + "\n", encoding="utf-8")

    if arguments.only != "training":
        done(("inference", "ms", "rounds", "images / s"), inference(arguments.autotune))
        layers = waterline()
        if arguments.output:
            draw(layers, arguments.output.with_suffix(".png"))
        rows = [(name, count, f"{us:.0f}", f"{floor:.0f}", f"{us / floor:.2f}") for name, count, us, floor in layers]
        done(("layer", "count", "us", "floor us", "ratio"), rows)
    if arguments.only != "inference":
        done(("training", "ms", "images / s", "peak GB"), training())


def _tables(path: Path) -> dict[str, str]:
    """Those of an earlier run, by the first column's name."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return {part.split("|", 2)[1].strip(): part for part in text.strip().split("\n\n") if part.startswith("| ")}


if __name__ == "__main__":
    main()
