"""The fast CPU path: one pass over a channels-last map in float32, a cell at a time while it
is in the first-level cache.

torch takes more than ten times as long for cells of 20 channels, and passes of their own for the
bias before and the GELU after.

Shapes: B batch, C channels, H rows, W columns, V floats of a vector.
"""

from functools import cache

import torch
from torch import Tensor

from unipercept.kernels.gelu_llvm import gelu
from unipercept.kernels.llvm import Call, Kernel, compiled, run, vector_width
from unipercept.kernels.llvm import why_not as why_no_llvm
from unipercept.kernels.llvm_writer import Writer

TOGETHER = 4  # cells whose norms are taken together: one alone waits for its sums


def why_not(x: Tensor) -> str | None:
    """None where this path can take the map."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return f"they need float32 on the CPU, got {x.dtype} on {x.device}"
    return why_no_llvm() if x.numel() else "the map is empty"


def layer_norm2d_cpu(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, eps: float, gelu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The output BxCxHxW; mean and reciprocal standard deviation, BxHxW each."""
    cells = x.permute(0, 2, 3, 1).contiguous()
    weight, bias = weight.float().contiguous(), bias.float().contiguous()
    shift = None if shift is None else shift.float().contiguous()
    output, mean = torch.empty_like(cells), cells.new_empty(cells.shape[:3])
    scale = torch.empty_like(mean)
    channels, count = cells.shape[3], mean.numel()
    before = weight if shift is None else shift
    arguments = (cells, weight, bias, before, output, mean, scale, count, channels)
    run([Call(_kernel(shift is not None, gelu, eps), arguments)], torch.get_num_threads())
    return output.permute(0, 3, 1, 2), mean, scale


@cache
def _kernel(has_shift: bool, has_gelu: bool, eps: float) -> Kernel:
    writer = Writer(vector_width())
    _Text(writer, has_shift, has_gelu, eps).write()
    return compiled("layer_norm", writer.module("layer_norm"))


class _Text:
    """The body of the kernel."""

    def __init__(self, w: Writer, has_shift: bool, has_gelu: bool, eps: float) -> None:
        self.w = w
        self.x, weight, bias, shift, self.output, self.mean, self.scale = (w.argument(i, "ptr") for i in range(7))
        self.count, self.channels = w.argument(7), w.argument(8)
        self.norm = CellNorm(w, self.channels, weight, bias, shift if has_shift else None, has_gelu, eps)

    def write(self) -> None:
        w = self.w
        first, last = w.share(self.count)

        def write(cells: list[str]) -> None:
            begins = [w.multiply(cell, self.channels) for cell in cells]
            found = self.norm.write([w.at(self.x, b) for b in begins], [w.at(self.output, b) for b in begins])
            for cell, (mean, scale) in zip(cells, found, strict=True):
                w.do(f"store float {mean}, ptr {w.at(self.mean, cell)}")
                w.do(f"store float {scale}, ptr {w.at(self.scale, cell)}")

        w.in_groups(first, last, TOGETHER, write)


class CellNorm:
    """Writes the norms of some cells into the function that `w` writes.

    Args:
        w: the function.
        channels: C, fixed or a value of the function.
        weight, bias, shift: addresses of C values each; without a shift nothing comes before the norm.
    """

    def __init__(
        self, w: Writer, channels: str | int, weight: str, bias: str, shift: str | None, has_gelu: bool, eps: float
    ) -> None:
        self.w, self.channels, self.weight, self.bias, self.shift = w, channels, weight, bias, shift
        self.has_gelu, self.eps = has_gelu, eps
        self.share = w.value(f"fdiv float 1.0, {w.as_float(channels)}")

    def write(self, cells: list[str], targets: list[str]) -> list[tuple[str, str]]:
        """From addresses to addresses, which may be the same.

        Mean and reciprocal standard deviation of each, floats.
        """
        w = self.w
        means = [w.value(f"fmul float {total}, {self.share}") for total in self._sums(cells, None)]
        middles, scales = [w.spread(mean) for mean in means], []
        for total in self._sums(cells, middles):
            variance = w.value(f"fadd float {w.value(f'fmul float {total}, {self.share}')}, {w.number(self.eps)}")
            deviation = w.value(f"call float @llvm.sqrt.f32(float {variance})")
            scales.append(w.value(f"fdiv float 1.0, {deviation}"))
        self._write_cells(cells, targets, middles, [w.spread(scale) for scale in scales])
        return list(zip(means, scales, strict=True))

    def _input(self, cell: str, channel: str, mask: str | None) -> str:
        w = self.w
        value = w.load(w.at(cell, channel), mask)
        return (
            value if self.shift is None else w.vector_operation("fadd", value, w.load(w.at(self.shift, channel), mask))
        )

    def _sums(self, cells: list[str], means: list[str] | None) -> list[str]:
        """Of each cell, or of the squares of its distance to its mean. The last vector's idle lanes count as zeros."""
        w = self.w

        def added(channel: str, mask: str | None, totals: list[str]) -> list[str]:
            values = [self._input(cell, channel, mask) for cell in cells]
            if means is None:
                return [w.vector_operation("fadd", *pair) for pair in zip(totals, values, strict=True)]
            distances = [w.vector_operation("fsub", *pair) for pair in zip(values, means, strict=True)]
            if mask is not None:
                distances = [w.keep(mask, distance) for distance in distances]
            return [w.fma(distance, distance, total) for distance, total in zip(distances, totals, strict=True)]

        return w.sums_of(self.channels, len(cells), added)

    def _write_cells(self, cells: list[str], targets: list[str], means: list[str], scales: list[str]) -> None:
        w = self.w

        def write(channel: str, mask: str | None) -> None:
            weight, bias = (w.load(w.at(at, channel), mask) for at in (self.weight, self.bias))
            for cell, target, mean, scale in zip(cells, targets, means, scales, strict=True):
                normal = w.vector_operation(
                    "fmul", w.vector_operation("fsub", self._input(cell, channel, mask), mean), scale
                )
                value = w.fma(normal, weight, bias)
                w.store(gelu(w, value) if self.has_gelu else value, w.at(target, channel), mask)

        w.each_vector(self.channels, write)
