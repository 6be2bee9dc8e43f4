"""The fast CPU path: channels-last maps, in float32 and with zeros beyond the edge.

A thread takes V channels of some rows of an image, copies what they see into a small buffer with zeros around
it, and keeps a row of up to 14 outputs in registers: an input vector is loaded once for a kernel row, and
multiplied with all taps that use it.

Shapes: B batch, C channels, H rows, W columns, KH and KW kernel rows and columns, V floats of a vector, T threads.
"""

from functools import cache

import torch
from torch import Tensor

from unipercept.kernels.llvm import Call, Kernel, bits, compiled, run, takes_images, vector_width
from unipercept.kernels.llvm import why_not as why_no_llvm
from unipercept.kernels.llvm_writer import Writer
from unipercept.kernels.packed import packed
from unipercept.kernels.workspace import workspace

OUTPUTS = {
    16: 14,
    8: 7,
}  # V to columns that are computed at once, and taps that stay in registers beside them; fewer sums
TAPS = {16: 13, 8: 7}  # would wait for themselves (6 and 8: a fifth slower), and 7 divides the maps of 224 pixels
MAX_BUFFER_BYTES = 256 * 1024  # a part of the second-level cache
MIN_TAPS = 81  # 7x7 measured the same as torch, 13x13 two to five times as fast; with sums 3x3 is faster too
FEW_PIECES = 16  # for fewer, rows are shared among the threads too


def why_not(x: Tensor, weight_rows: int, weight_columns: int, padding: str, operation: str) -> str | None:
    """None where this path can take the map."""
    if operation == "weight gradient":
        return "they have no weight gradient"
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return f"they need float32 on the CPU, got {x.dtype} on {x.device}"
    if padding != "zero" or weight_rows > 51 or weight_columns > 51:
        return f"they need zero padding and a kernel up to 51x51, got {padding} and {weight_rows}x{weight_columns}"
    return why_no_llvm() if x.numel() else "the map is empty"


def slower_than_torch(x: Tensor, weight_rows: int, weight_columns: int, has_sums: bool) -> bool:
    """Whether torch's own convolution is at least as fast: for small kernels, and for contiguous
    maps, which this path copies.
    """
    return (weight_rows * weight_columns < MIN_TAPS and not has_sums) or not x.is_contiguous(
        memory_format=torch.channels_last
    )


def depthwise_conv2d_cpu(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, padding: str, channels_last: bool | None
) -> Tensor:
    """BxCxHxW, Cx1xKHxKW and C to BxCxHxW."""
    if channels_last is None:
        channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    output = with_sums_cpu(x, weight, bias, dilation, padding)[0]
    return output if channels_last else output.contiguous()


def with_sums_cpu(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, padding: str) -> tuple[Tensor, Tensor]:
    """The output, channels-last, and its sums BxC over the map."""
    values, threads = x.permute(0, 2, 3, 1).contiguous(), torch.get_num_threads()
    output = torch.empty_like(values)
    is_by_image = takes_images(len(x), threads)
    call, sums = convolution_call(
        values, weight.contiguous(), None if bias is None else bias.contiguous(), dilation, output, threads, is_by_image
    )
    run([call], threads, len(x), is_by_image=is_by_image)
    return output.permute(0, 3, 1, 2), sums.sum(1)[:, : x.shape[1]].contiguous()


def convolution_call(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    output: Tensor,
    threads: int,
    is_by_image: bool,
    own: tuple[bool, bool] = (False, False),
) -> tuple[Call, Tensor]:
    """BxHxWxC into `output`, to be run by image or not; sums, a workspace: BxPxC, for each of P parts of the map, C in
    whole vectors. All is contiguous.

    `own`: whether input, and output with its sums, have a place for each thread instead of one for each image.
    """
    rows, columns = weight.shape[-2:]
    batch, height, width, channels = x.shape
    lanes = vector_width()
    vectors = -(-channels // lanes)
    down, across = dilation * (rows // 2), dilation * (columns // 2)
    line = (width + 2 * across) * lanes
    part = _rows_of_a_part(batch * vectors, height, down, line * 4, 1 if is_by_image else threads)
    parts = -(-height // part)
    size = min(part + 2 * down, height) * line
    kind = f"{rows}x{columns}x{dilation}"
    taps, buffer = packed(weight, _pack), workspace(f"depthwise_{kind}", threads * size)
    sums_size = len(output) * parts * vectors * lanes
    sums = workspace(f"depthwise_sums_{kind}", sums_size)[:sums_size].view(len(output), parts, vectors * lanes)
    at_once = min(width, _columns_at_once(width))
    kernel = _kernel(rows, columns, dilation, at_once, width <= OUTPUTS[lanes], bias is not None)
    pointers = (x, taps, taps if bias is None else bias, output, sums, buffer)
    numbers = (height, width, channels, vectors, part, parts, size, bits(own))
    return Call(kernel, [*pointers, *numbers]), sums


def _columns_at_once(width: int) -> int:
    """As even as can be: 28 columns are 14 twice."""
    return -(-width // -(-width // OUTPUTS[vector_width()]))


def _rows_of_a_part(pieces: int, height: int, down: int, line_bytes: int, threads: int) -> int:
    """Rows of output that a thread computes at once: their buffer fits the cache, and all threads have work."""
    part = (
        min(height, max(1, MAX_BUFFER_BYTES // line_bytes - 2 * down))
        if height * line_bytes > MAX_BUFFER_BYTES
        else height
    )
    if threads > 1 and pieces < FEW_PIECES:
        part = min(part, -(-height // threads))
    return part


def _pack(weight: Tensor) -> Tensor:
    """Cx1xKHxKW to C/V x KH x KW x V."""
    lanes = vector_width()
    padded = torch.nn.functional.pad(weight.flatten(1), (0, 0, 0, -weight.shape[0] % lanes))
    return padded.view(-1, lanes, padded.shape[1]).transpose(1, 2).contiguous()


@cache
def _kernel(rows: int, columns: int, dilation: int, at_once: int, is_whole: bool, has_bias: bool) -> Kernel:
    writer = Writer(vector_width())
    _Text(writer, rows, columns, dilation, at_once, is_whole, has_bias).write()
    return compiled("depthwise", writer.module("depthwise"))


class _Text:
    """The body of one convolution. `at_once` outputs of a row stay in registers; `is_whole` where they are the row."""

    def __init__(
        self, w: Writer, rows: int, columns: int, dilation: int, at_once: int, is_whole: bool, has_bias: bool
    ) -> None:
        self.w, self.rows, self.columns, self.dilation = w, rows, columns, dilation
        self.at_once, self.is_whole, self.has_bias = at_once, is_whole, has_bias
        self.down, self.across = dilation * (rows // 2), dilation * (columns // 2)
        pointers = [w.argument(i, "ptr") for i in range(6)]
        self.x, self.taps, self.bias, self.output, self.sums, self.buffers = pointers
        numbers = [w.argument(i) for i in range(6, 14)]
        self.height, self.width, self.channels, self.vectors, self.part, self.parts, self.size, self.own = numbers

    def write(self) -> None:
        w = self.w
        self.buffer = w.at(self.buffers, w.multiply("%thread", self.size))
        self.line = w.multiply(w.add(self.width, 2 * self.across), w.width)
        pieces = w.multiply(self.parts, self.vectors)
        first, last = w.share(w.multiply(w.subtract("%last", "%first"), pieces))
        even = w.divide(self.channels, w.width)
        with w.loop(first, last) as piece:
            vector, rest = w.remainder(piece.index, self.vectors), w.divide(piece.index, self.vectors)
            image, part = w.add("%first", w.divide(rest, self.parts)), w.remainder(rest, self.parts)
            is_even = w.compare("slt", vector, even)
            with w.when(is_even):
                self._piece(vector, image, part, ragged=False)
            with w.when(w.value(f"xor i1 {is_even}, true")):
                self._piece(vector, image, part, ragged=True)

    def _piece(self, vector: str, image: str, part: str, ragged: bool) -> None:
        """V channels of some rows of an image."""
        w = self.w
        channel = w.multiply(vector, w.width)
        mask = w.mask_below(w.subtract(self.channels, channel)) if ragged else None
        plane = w.multiply(w.multiply(self.height, self.width), self.channels)
        places = [w.slot(image, self.own, bit) for bit in range(2)]
        source, target = (
            w.at(start, w.add(w.multiply(place, plane), channel))
            for start, place in zip((self.x, self.output), places, strict=True)
        )
        taps = w.at(self.taps, w.multiply(channel, self.rows * self.columns))
        bias = w.load(w.at(self.bias, channel), mask) if self.has_bias else w.constant(0.0)
        start = w.multiply(part, self.part)
        stop = w.least(w.add(start, self.part), self.height)
        top = w.most(w.subtract(start, self.down), 0)
        self._fill(source, top, w.least(w.add(stop, self.down), self.height), mask)
        with w.loop(start, stop) as row:
            self._row(row.index, top, taps, bias, target, mask)
        total = self._total(target, start, stop, mask)
        place = w.add(w.multiply(w.add(w.multiply(places[1], self.parts), part), self.vectors), vector)
        w.store(total, w.at(self.sums, w.multiply(place, w.width)))

    def _fill(self, source: str, top: str, bottom: str, mask: str | None) -> None:
        """Rows of the map into the buffer, zeros to the left and right."""
        w, zero = self.w, self.w.constant(0.0)
        with w.loop(top, bottom) as row:
            line = w.at(self.buffer, w.multiply(w.subtract(row.index, top), self.line))
            right = w.at(line, w.multiply(w.add(self.width, self.across), w.width))
            for i in range(self.across):
                w.store(zero, w.at(line, i * w.width))
                w.store(zero, w.at(right, i * w.width))
            inner = w.at(line, self.across * w.width)
            begin = w.at(source, w.multiply(w.multiply(row.index, self.width), self.channels))
            with w.loop(0, self.width) as column:
                value = w.load(w.at(begin, w.multiply(column.index, self.channels)), mask)
                w.store(value, w.at(inner, w.multiply(column.index, w.width)))

    def _row(self, row: str, top: str, taps: str, bias: str, target: str, mask: str | None) -> None:
        """One row of output; taps that meet nothing but zeros are left out."""
        w = self.w
        above = w.subtract(self.down, row)  # rows of the kernel's reach that lie above the map, times the dilation
        first = w.most(w.divide(w.add(above, self.dilation - 1), self.dilation), 0)
        below = w.add(w.divide(w.add(w.subtract(w.subtract(self.height, 1), row), self.down), self.dilation), 1)
        last = w.least(below, self.rows)
        places = (row, top, first, last, taps, bias, target, mask)
        if self.is_whole:
            self._tile("0", *places, left=True, right=True)
            return
        final = w.subtract(self.width, self.at_once)
        self._tile("0", *places, left=True, right=False)
        with w.loop(self.at_once, final, self.at_once) as column:
            self._tile(column.index, *places, left=False, right=False)
        self._tile(final, *places, left=False, right=True)

    def _tile(
        self, column: str, row: str, top: str, first: str, last: str, taps: str, bias: str, target: str,
        mask: str | None, *, left: bool, right: bool,
    ) -> None:  # fmt: skip
        """`at_once` outputs of a row from `column` on; `left` and `right` where the map ends there."""
        w = self.w
        with w.loop(first, last, carried=[bias] * self.at_once) as tap:
            offset = w.subtract(w.add(row, w.multiply(tap.index, self.dilation)), w.add(top, self.down))
            line = w.at(self.buffer, w.add(w.multiply(offset, self.line), w.multiply(column, w.width)))
            weights = w.at(taps, w.multiply(tap.index, self.columns * w.width))
            tap.next = self._multiply(line, weights, list(tap.carried), left, right)
        begin = w.add(w.multiply(row, self.width), column)
        for j in range(self.at_once):
            address = w.at(target, w.multiply(w.add(begin, j), self.channels))
            w.store(tap.carried[j], address, mask)

    def _multiply(self, line: str, weights: str, sums: list[str], left: bool, right: bool) -> list[str]:
        """One kernel row, some of its taps at a time, from left to right over the input."""
        w, step = self.w, self.dilation
        lowest = self.across if left else 0
        highest = self.at_once + self.across if right else self.at_once + 2 * self.across
        for start in range(0, self.columns, TAPS[w.width]):
            group = range(start, min(start + TAPS[w.width], self.columns))
            values = {k: w.load(w.at(weights, k * w.width)) for k in group}
            for place in range(lowest, highest):
                meets = [(k, place - k * step) for k in group if 0 <= place - k * step < self.at_once]
                if meets:
                    x = w.load(w.at(line, place * w.width))
                    for k, j in meets:
                        sums[j] = w.fma(x, values[k], sums[j])
        return sums

    def _total(self, target: str, start: str, stop: str, mask: str | None) -> str:
        """The sum of these rows of output, a row at a time so that long sums stay exact."""
        w, zero = self.w, self.w.constant(0.0)
        with w.loop(start, stop, carried=[zero]) as row:
            begin = w.at(target, w.multiply(w.multiply(row.index, self.width), self.channels))
            with w.loop(0, self.width, carried=[zero]) as column:
                value = w.load(w.at(begin, w.multiply(column.index, self.channels)), mask)
                column.next = [w.vector_operation("fadd", column.carried[0], value)]
            row.next = [w.vector_operation("fadd", row.carried[0], column.carried[0])]
        return row.carried[0]
