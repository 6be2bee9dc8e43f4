"""The fast CPU path, in float32: a product of each cell's receptive field with the weights, and the
norm of the rows just computed.

A receptive field is three pieces of three pixels each, contiguous in a channels-last map.

Shapes: B batch, C channels, H rows, W columns of the input, D channels, H' rows and W'
columns of the result, M = H' W'.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from unipercept.kernels.conv_norm2d.cpu_planes import planes_call
from unipercept.kernels.conv_norm2d.cpu_planes import takes as takes_planes
from unipercept.kernels.layer_norm2d.cpu import TOGETHER, CellNorm
from unipercept.kernels.llvm import Call, Kernel, bits, compiled, run, takes_images, vector_width
from unipercept.kernels.llvm import why_not as why_no_llvm
from unipercept.kernels.llvm_writer import Writer
from unipercept.kernels.packed import packed
from unipercept.kernels.product import Rows
from unipercept.kernels.products import Kind, kind_of
from unipercept.kernels.workspace import workspace


def why_not(x: Tensor, parameters: tuple[Tensor | None, ...]) -> str | None:
    """None where this path can take the map, with kernel, shift, weight and bias."""
    given = (x, *(p for p in parameters if p is not None))
    if any(t.device.type != "cpu" or t.dtype != torch.float32 for t in given):
        return "they need float32 on the CPU for map and weights"
    return why_no_llvm()


def conv_norm2d_cpu(
    x: Tensor, w: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, eps: float, gelu: bool
) -> Tensor:
    """BxCxHxW to BxDxH'xW', channels-last."""
    batch, _, height, width = x.shape
    output, threads = x.new_empty(batch, (height + 1) // 2, (width + 1) // 2, len(w)), torch.get_num_threads()
    given = x if takes_planes(x) else x.contiguous(memory_format=torch.channels_last)
    parameters = (w.contiguous(), None if shift is None else shift.contiguous(), weight.contiguous(), bias.contiguous())
    is_by_image = takes_images(batch, threads)
    call, _ = conv_norm_call(given, *parameters, eps, gelu, output, threads, is_by_image)
    run([call], threads, batch, is_by_image=is_by_image)
    return output.permute(0, 3, 1, 2)


def conv_norm_call(
    x: Tensor, w: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, eps: float, gelu: bool, output: Tensor,
    threads: int, is_by_image: bool, own: tuple[bool, bool] = (False, False),
) -> tuple[Call, Tensor]:  # fmt: skip
    """BxCxHxW, channels-last or in planes that are taken, into `output`, BxH'xW'xD, and the workspace used.

    The rest is contiguous.

    `is_by_image`: whether it will be run so. `own`: whether input and output have a place for each thread
    instead of one for each image.
    """
    rows, columns, wide = output.shape[1:]
    if takes_planes(x) and not own[0]:
        return planes_call(x, w, shift, weight, bias, output, threads, eps, gelu, own[1])
    channels, height, width = x.shape[1:]
    kind = kind_of(9 * channels, wide, is_by_image=is_by_image)
    size = kind.block_floats(9 * channels)
    room = workspace(f"conv_norm2d_{channels}_{wide}", threads * size)
    panels = packed(w, _pack(kind))
    pointers = (x, panels, panels if shift is None else shift, weight, bias, output, room)
    kernel = _kernel(channels, wide, shift is not None, gelu, eps, kind)
    return Call(kernel, [*pointers, height, width, rows, columns, size, bits(own)]), room


@cache
def _pack(kind: Kind) -> Callable[[Tensor], Tensor]:
    return lambda weight: kind.pack(weight.permute(0, 2, 3, 1).flatten(1))


@cache
def _kernel(channels: int, wide: int, has_shift: bool, has_gelu: bool, eps: float, kind: Kind) -> Kernel:
    writer = Writer(vector_width())
    _Text(writer, channels, wide, has_shift, has_gelu, eps, kind).write()
    return compiled("conv_norm", writer.module("conv_norm"))


class _Text:
    """The body of the kernel."""

    def __init__(
        self, w: Writer, channels: int, wide: int, has_shift: bool, has_gelu: bool, eps: float, kind: Kind
    ) -> None:
        self.w, self.channels, self.wide = w, channels, wide
        self.x, panels, shift, weight, bias, self.output, room = (w.argument(i, "ptr") for i in range(7))
        self.height, self.width, self.rows, self.columns, size, self.own = (w.argument(i) for i in range(7, 13))
        self.norm = CellNorm(w, wide, weight, bias, None, has_gelu, eps)
        self.cells, block = w.multiply(self.rows, self.columns), w.at(room, w.multiply("%thread", size))
        height = w.multiply(w.subtract("%last", "%first"), self.cells)
        self.product = kind.product(w, panels, shift if has_shift else None, height, 9 * channels, wide, block)

    def write(self) -> None:
        """Tiles of all images, whose cells are one long list, are shared among the threads."""
        w = self.w
        first = w.slot("%first", self.own, 1)
        target = w.at(self.output, w.multiply(w.multiply(first, self.cells), self.wide))

        def norm(first: str, last: str) -> None:
            def write(rows: list[str]) -> None:
                cells = [w.at(target, w.multiply(row, self.wide)) for row in rows]
                self.norm.write(cells, cells)

            w.in_groups(first, last, TOGETHER, write)

        tiles = w.divide(w.add(self.product.height, self.product.n_rows - 1), self.product.n_rows)
        self.product.write(Rows(self._gather, target), w.share(tiles), "0", "1", after=norm)

    def _gather(self, number: str, target: str) -> None:
        """What a cell of the result sees, 3 x 3 x C, with zeros beyond the edge; copies run
        over into what is written later.
        """
        w = self.w
        image, cell = w.add("%first", w.divide(number, self.cells)), w.remainder(number, self.cells)
        place = w.slot(image, self.own, 0)
        source = w.at(self.x, w.multiply(place, w.multiply(w.multiply(self.height, self.width), self.channels)))
        left = w.subtract(w.multiply(w.remainder(cell, self.columns), 2), 1)
        top = w.subtract(w.multiply(w.divide(cell, self.columns), 2), 1)
        is_inside = w.both(w.compare("sge", left, 0), w.compare("slt", w.add(left, 2), self.width))
        for i in range(3):
            row, to = w.add(top, i), w.at(target, 3 * i * self.channels)
            begin = w.at(source, w.multiply(w.add(w.multiply(row, self.width), left), self.channels))
            is_row = w.both(w.compare("sge", row, 0), w.compare("slt", row, self.height))
            is_whole = w.both(is_inside, is_row)
            with w.when(is_whole):
                w.copy(begin, to, 3 * self.channels)
            with w.when(w.value(f"xor i1 {is_whole}, true")):
                for j in range(3):
                    column, offset = w.add(left, j), j * self.channels
                    is_column = w.both(w.compare("sge", column, 0), w.compare("slt", column, self.width))
                    is_pixel = w.both(is_row, is_column)
                    with w.when(is_pixel):
                        w.copy(w.at(begin, offset), w.at(to, offset), self.channels)
                    with w.when(w.value(f"xor i1 {is_pixel}, true")):
                        w.copy(None, w.at(to, offset), self.channels)
