"""The first convolution of a stem on the CPU, in float32, from an image's own planes: BxCxHxW to
BxH'xW'xD, with the norm and the GELU.

An image has too few channels for vectors of them: here lanes are neighbouring cells of a row of the result, and sums of
some channels stay in registers over all taps. The three rows that a row of the result sees are copied with their even
and odd columns apart, so that a tap's input is one piece; a cell's norm is then a sum over vectors, and a transposition
brings its channels together at the end.

Shapes: B batch, C channels, H rows, W columns of the input, D channels, H' rows and W' columns of the
result, V floats of a vector.
"""

from functools import cache

from torch import Tensor

from unipercept.kernels.gelu_llvm import gelu
from unipercept.kernels.llvm import Call, Kernel, compiled, vector_width
from unipercept.kernels.llvm_writer import Writer
from unipercept.kernels.packed import packed
from unipercept.kernels.workspace import workspace

MAX_CHANNELS = 4  # beyond, vectors of channels are full enough
MAX_SUMS = {16: 28, 8: 12}  # V to vectors of sums that fit the registers
CELLS = 2  # vectors of cells that are computed at once


def takes(x: Tensor) -> bool:
    """Whether the map BxCxHxW lies in planes, of few enough channels, with a vector of cells in a row of the result."""
    return x.is_contiguous() and x.shape[1] <= MAX_CHANNELS and (x.shape[3] + 1) // 2 >= vector_width()


def planes_call(
    x: Tensor, w: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, output: Tensor, threads: int, eps: float,
    gelu: bool, is_own: bool,
) -> tuple[Call, Tensor]:  # fmt: skip
    """BxCxHxW into `output`, BxH'xW'xD, and the workspace used. All is contiguous.

    `is_own`: whether the output has a place for each thread instead of one for each image.
    """
    (channels, height, width), wide, (rows, columns) = x.shape[1:], w.shape[0], output.shape[1:3]
    size = 3 * channels * _line_floats(columns) + wide * CELLS * vector_width()
    room = workspace(f"conv_norm2d_planes_{channels}_{wide}", threads * size)
    taps = packed(w, _pack)
    pointers = (x, taps, taps if shift is None else shift, weight, bias, output, room)
    kernel = _kernel(channels, wide, shift is not None, gelu, eps)
    return Call(kernel, [*pointers, height, width, rows, columns, size, is_own]), room


def _line_floats(columns: int) -> int:
    """The room for a row of the input: a vector that ends with the zero on its left, its odd columns, its even ones."""
    lanes = vector_width()
    return lanes + 2 * -(-columns // lanes) * lanes


def _group(wide: int) -> int:
    """Channels of the result whose sums stay in registers at once: as many as divide D."""
    most = MAX_SUMS[vector_width()] // CELLS
    return max(n for n in range(1, most + 1) if wide % n == 0)


def _pack(weight: Tensor) -> Tensor:
    """DxCx3x3 to groups x C x 3 x 3 x channels of a group."""
    wide, group = len(weight), _group(len(weight))
    return weight.reshape(wide // group, group, -1).transpose(1, 2).contiguous()


@cache
def _kernel(channels: int, wide: int, has_shift: bool, has_gelu: bool, eps: float) -> Kernel:
    writer = Writer(vector_width())
    _Text(writer, channels, wide, has_shift, has_gelu, eps).write()
    return compiled("conv_norm_planes", writer.module("conv_norm_planes"))


class _Text:
    """The body of the kernel."""

    def __init__(self, w: Writer, channels: int, wide: int, has_shift: bool, has_gelu: bool, eps: float) -> None:
        self.w, self.channels, self.wide, self.has_gelu, self.eps = w, channels, wide, has_gelu, eps
        self.group = _group(wide)
        self.x, self.taps, shift, self.weight, self.bias, self.output, room = (w.argument(i, "ptr") for i in range(7))
        self.height, self.width, self.rows, self.columns, size, self.own = (w.argument(i) for i in range(7, 13))
        self.shift = shift if has_shift else None
        self.sums = w.at(room, w.multiply("%thread", size))  # D x cells
        self.lines = w.at(self.sums, wide * CELLS * w.width)
        self.half = w.whole_vectors(w.add(self.columns, w.width - 1))
        self.line = w.add(w.multiply(self.half, 2), w.width)

    def write(self) -> None:
        """Rows of all images, one after the other, are shared among the threads."""
        w = self.w
        first, last = w.share(w.multiply(w.subtract("%last", "%first"), self.rows))
        with w.loop(first, last) as i:
            image, row = w.add("%first", w.divide(i.index, self.rows)), w.remainder(i.index, self.rows)
            self._fill(image, row)
            line = w.add(w.multiply(w.slot(image, self.own, 0), self.rows), row)
            target = w.at(self.output, w.multiply(w.multiply(line, self.columns), self.wide))
            pairs = w.multiply(w.divide(self.columns, CELLS * w.width), CELLS * w.width)
            with w.loop(0, pairs, CELLS * w.width) as cell:
                self._cells(cell.index, target, CELLS)
            with w.loop(pairs, self.columns, w.width) as cell:  # the last ones of a row may come again
                self._cells(w.least(cell.index, w.subtract(self.columns, w.width)), target, 1)

    def _fill(self, image: str, row: str) -> None:
        """What the row sees: three rows of each plane, or zeros beyond its edge."""
        w = self.w
        with w.loop(0, 3 * self.channels) as i:
            plane, above = w.divide(i.index, 3), w.remainder(i.index, 3)
            source = w.subtract(w.add(w.multiply(row, 2), above), 1)
            odd = w.at(self.lines, w.add(w.multiply(i.index, self.line), w.width))
            even = w.at(odd, self.half)
            w.do(f"store float 0.0, ptr {w.at(odd, -1)}")
            is_inside = w.both(w.compare("sge", source, 0), w.compare("slt", source, self.height))
            with w.when(is_inside):
                place = w.add(w.multiply(w.add(w.multiply(image, self.channels), plane), self.height), source)
                self._split(w.at(self.x, w.multiply(place, self.width)), odd, even)
            with w.when(w.value(f"xor i1 {is_inside}, true")), w.loop(0, self.half, w.width) as k:
                w.store(w.constant(0.0), w.at(odd, k.index))
                w.store(w.constant(0.0), w.at(even, k.index))

    def _split(self, source: str, odd: str, even: str) -> None:
        """A row of the image into its odd and its even columns, with a zero on the right where that is an odd one."""
        w = self.w
        whole = w.whole_vectors(w.divide(self.width, 2))
        with w.loop(0, whole, w.width) as k:
            begin = w.at(source, w.multiply(k.index, 2))
            pair = w.load(begin), w.load(w.at(begin, w.width))
            w.store(w.shuffle(*pair, range(1, 2 * w.width, 2)), w.at(odd, k.index))
            w.store(w.shuffle(*pair, range(0, 2 * w.width, 2)), w.at(even, k.index))
        with w.loop(whole, self.columns) as k:
            at = w.multiply(k.index, 2)
            w.do(f"store float {w.scalar(w.at(source, at))}, ptr {w.at(even, k.index)}")
            right = w.scalar(w.at(source, w.least(w.add(at, 1), w.subtract(self.width, 1))))
            is_there = w.compare("slt", w.add(at, 1), self.width)
            w.do(f"store float {w.value(f'select i1 {is_there}, float {right}, float 0.0')}, ptr {w.at(odd, k.index)}")

    def _cells(self, cell: str, target: str, n_vectors: int) -> None:
        """Some vectors of cells from `cell` on: their sums, their norms, and where they go."""
        w = self.w
        with w.loop(0, self.wide // self.group) as group:
            self._taps(cell, group.index, n_vectors)
        self._normalise(n_vectors)
        for j in range(n_vectors):
            self._store(w.at(target, w.multiply(w.add(cell, j * w.width), self.wide)), j)

    def _taps(self, cell: str, group: str, n_vectors: int) -> None:
        """The sums of a group of channels over all taps."""
        w = self.w
        first = w.multiply(group, self.group)
        zeros = w.constant(0.0)
        start = [
            zeros if self.shift is None else w.spread_from(w.at(self.shift, w.add(first, c)))
            for c in range(self.group) for _ in range(n_vectors)
        ]  # fmt: skip
        taps = w.at(self.taps, w.multiply(group, 9 * self.channels * self.group))
        with w.loop(0, 3 * self.channels, carried=start) as line:
            odd = w.at(self.lines, w.add(w.multiply(line.index, self.line), w.width))
            places = [w.at(odd, w.subtract(cell, 1)), w.at(odd, w.add(self.half, cell)), w.at(odd, cell)]
            weights = w.at(taps, w.multiply(line.index, 3 * self.group))
            for k, place in enumerate(places):
                x = [w.load(w.at(place, j * w.width)) for j in range(n_vectors)]
                tap = [w.spread_from(w.at(weights, k * self.group + c)) for c in range(self.group)]
                line.next = [w.fma(x[i % n_vectors], tap[i // n_vectors], s) for i, s in enumerate(line.next)]
        for i, total in enumerate(line.carried):
            channel = w.add(first, i // n_vectors)
            w.store(total, self._sum(channel, i % n_vectors))

    def _sum(self, channel: str | int, j: int) -> str:
        w = self.w
        return w.at(self.sums, w.add(w.multiply(channel, CELLS * w.width), j * w.width))

    def _normalise(self, n_vectors: int) -> None:
        """The norm of each cell over its channels, and the GELU, in place."""
        w, vectors = self.w, range(n_vectors)
        share, zeros = w.constant(1 / self.wide), [w.constant(0.0)] * n_vectors
        with w.loop(0, self.wide, carried=zeros) as c:
            c.next = [w.vector_operation("fadd", c.carried[j], w.load(self._sum(c.index, j))) for j in vectors]
        means = [w.vector_operation("fmul", total, share) for total in c.carried]
        with w.loop(0, self.wide, carried=zeros) as c:
            away = [w.vector_operation("fsub", w.load(self._sum(c.index, j)), means[j]) for j in vectors]
            c.next = [w.fma(away[j], away[j], c.carried[j]) for j in vectors]
        variances = [w.fma(total, share, w.constant(self.eps)) for total in c.carried]
        scales = [w.vector_operation("fdiv", w.constant(1.0), w.square_root(variance)) for variance in variances]
        with w.loop(0, self.wide) as c:
            weight, bias = (w.spread_from(w.at(at, c.index)) for at in (self.weight, self.bias))
            for j in vectors:
                place = self._sum(c.index, j)
                normal = w.vector_operation("fmul", w.vector_operation("fsub", w.load(place), means[j]), scales[j])
                value = w.fma(normal, weight, bias)
                w.store(gelu(w, value) if self.has_gelu else value, place)

    def _store(self, target: str, j: int) -> None:
        """A vector of cells, channel by channel, to channels-last, cell by cell."""
        w = self.w
        for first in range(0, self.wide, w.width):
            count = min(w.width, self.wide - first)
            cells = w.transposed([w.load(self._sum(first + c, j)) for c in range(count)])
            for i, cell in enumerate(cells):
                w.store_first(cell, count, w.at(target, i * self.wide + first))
