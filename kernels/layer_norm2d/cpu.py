"""The fast CPU path: one pass over a channels-last map in float32, a cell at a time while it is in the first-level cache.

torch takes more than ten times as long for cells of 20 channels, and passes of their own for the bias before and the GELU after.

Shapes: B batch, C channels, H rows, W columns, V floats of a vector.
"""

from functools import cache

import torch
from torch import Tensor

from unipercept.kernels.gelu_llvm import gelu
from unipercept.kernels.llvm import Kernel, compiled, vector_width
from unipercept.kernels.llvm import why_not as why_no_llvm
from unipercept.kernels.llvm_writer import Writer


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
    _kernel(shift is not None, gelu, eps)(
        (
            cells.data_ptr(), weight.data_ptr(), bias.data_ptr(), 0 if shift is None else shift.data_ptr(),
            output.data_ptr(), mean.data_ptr(), scale.data_ptr(), count, channels,
        ),
        torch.get_num_threads(),
    )  # fmt: skip
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
        first, last = w.share(self.count, *w.thread())
        with w.loop(first, last) as cell:
            begin = w.multiply(cell.index, self.channels)
            mean, scale = self.norm.write(w.at(self.x, begin), w.at(self.output, begin))
            w.do(f"store float {mean}, ptr {w.at(self.mean, cell.index)}")
            w.do(f"store float {scale}, ptr {w.at(self.scale, cell.index)}")


class CellNorm:
    """Writes the norm of one cell into the function that `w` writes.

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

    def write(self, cell: str, target: str) -> tuple[str, str]:
        """From one address to the other, which may be the same. Mean and reciprocal standard deviation, floats."""
        w = self.w
        mean = w.value(f"fmul float {self._sum(cell, None)}, {self.share}")
        middle = w.spread(mean)
        variance = w.value(f"fmul float {self._sum(cell, middle)}, {self.share}")
        deviation = w.value(
            f"call float @llvm.sqrt.f32(float {w.value(f'fadd float {variance}, {w.number(self.eps)}')})"
        )
        scale = w.value(f"fdiv float 1.0, {deviation}")
        self._write_cell(cell, target, middle, w.spread(scale))
        return mean, scale

    def _input(self, cell: str, channel: str, mask: str | None) -> str:
        w = self.w
        value = w.load(w.at(cell, channel), mask)
        return value if self.shift is None else w.vector_operation("fadd", value, w.load(w.at(self.shift, channel), mask))

    def _sum(self, cell: str, mean: str | None) -> str:
        """Of the cell, or of the squares of its distance to the mean. The last vector's idle lanes count as zeros."""
        w = self.w

        def added(channel: str, mask: str | None, total: str) -> str:
            value = self._input(cell, channel, mask)
            if mean is None:
                return w.vector_operation("fadd", total, value)
            distance = w.vector_operation("fsub", value, mean)
            if mask is not None:
                distance = w.keep(mask, distance)
            return w.fma(distance, distance, total)

        return w.sum_of(self.channels, added)

    def _write_cell(self, cell: str, target: str, mean: str, scale: str) -> None:
        w = self.w

        def write(channel: str, mask: str | None) -> None:
            distance = w.vector_operation("fsub", self._input(cell, channel, mask), mean)
            normal = w.vector_operation("fmul", distance, scale)
            value = w.fma(normal, w.load(w.at(self.weight, channel), mask), w.load(w.at(self.bias, channel), mask))
            w.store(gelu(w, value) if self.has_gelu else value, w.at(target, channel), mask)

        w.each_vector(self.channels, write)
