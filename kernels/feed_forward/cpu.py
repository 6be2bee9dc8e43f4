"""The fast CPU path of the inference form, in float32: one kernel that all threads run together.

The first product scales its rows by squeeze-excite's gate, and adds the bias, applies the GELU and adds up GRN's
squares while a tile is in registers; the second scales by GRN's factor and adds bias and residual. Images are taken a
few at a time, so that their hidden tensor stays in the cache.

Shapes: B batch, C channels, H rows, W columns, M their product, R squeezed channels, N hidden channels, V
floats of a vector, T threads.
"""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from unipercept.kernels.feed_forward.reference import RESPONSE_EPS, Weights
from unipercept.kernels.llvm import Call, Kernel, bits, compiled, run, takes_images, vector_width
from unipercept.kernels.llvm import why_not as why_no_llvm
from unipercept.kernels.llvm_writer import Writer
from unipercept.kernels.packed import packed
from unipercept.kernels.product import Rows, whole_vectors
from unipercept.kernels.products import MATRICES, Kind, kind_of
from unipercept.kernels.workspace import workspace

MAX_HIDDEN_BYTES = 2 * 1024 * 1024  # of the images that are computed together: the second-level caches of two cores
MAX_IMAGE_BYTES = 8 * 1024 * 1024  # of an image that a thread takes alone; more of them would be much memory
FOLDED = 2  # times as many cells as hidden channels: then the weights are scaled instead of the rows
ROWS_TOGETHER = 4  # of squeeze-excite's matrices: their sums wait for themselves otherwise

# exp(x) is 2^n times the exponential series of what is left, at most ln(2) / 2, where its ninth term is 3e-9.
LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # the high part times n is exact
SERIES = (1.0, 1.0, 1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040)


def why_not(y: Tensor) -> str | None:
    """None where this path can take the map."""
    if y.device.type != "cpu" or y.dtype != torch.float32:
        return f"they need float32 on the CPU, got {y.dtype} on {y.device}"
    return why_no_llvm()


def feed_forward_cpu(y: Tensor, residual: Tensor, sums: Tensor | None, weights: Weights) -> Tensor:
    """BxHxWxC to BxHxWxC, with the residual. All that comes in is contiguous."""
    sums = y.sum(dim=(1, 2)) if sums is None else sums.float().contiguous()
    other, output, threads = residual.float(), torch.empty_like(y), torch.get_num_threads()
    is_by_image = takes_whole_images(y, len(weights.b1), threads)
    call = feed_forward_call(y, other, sums[:, None], weights, output, threads, is_by_image)
    run([call], threads, len(y), is_by_image=is_by_image)
    return output.to(residual.dtype)


def takes_whole_images(y: Tensor, hidden: int, threads: int) -> bool:
    """Whether each thread takes images, BxHxWxC, alone: with a hidden tensor of its own."""
    return takes_images(len(y), threads) and 4 * y.shape[1] * y.shape[2] * hidden <= MAX_IMAGE_BYTES


def feed_forward_call(
    y: Tensor,
    residual: Tensor,
    sums: Tensor,
    weights: Weights,
    output: Tensor,
    threads: int,
    is_by_image: bool,
    own: tuple[bool, bool, bool] = (False, False, False),
) -> Call:
    """The same into `output`, which must not be the residual, to be run by image or not.

    `sums` is BxPx(at least C): those of each of P parts of the map.

    `own`: whether the input with its sums, the residual and the output have a place for each thread
    instead of one for each image.
    """
    batch, rows, columns, channels = y.shape
    size, squeezed, hidden = rows * columns, len(weights.down_b), len(weights.b1)
    kind = kind_of(channels, hidden, is_by_image=is_by_image)
    tiles = -(-size // kind.rows_of_a_tile())
    teams, together = (threads, 1) if is_by_image else (1, min(batch, max(1, MAX_HIDDEN_BYTES // (4 * size * hidden))))
    wide = whole_vectors(hidden)
    blocks = max(kind.block_floats(channels), kind.block_floats(hidden))
    folds = kind is not MATRICES and size >= FOLDED * hidden
    panels = max(channels * wide, hidden * whole_vectors(channels)) if folds else 0
    room_of_thread = blocks + whole_vectors(channels) + whole_vectors(squeezed) + wide + panels
    room = workspace(
        f"feed_forward_{squeezed}_{hidden}",
        teams * together * size * hidden + threads * (together * wide + room_of_thread),
    )
    first, second = packed(weights.w1, kind.pack), packed(weights.w2, kind.pack)
    pointers = (
        y, residual, sums, weights.down_w, weights.down_b, weights.up_w, weights.up_b, first, weights.b1, weights.gamma,
        second, second if weights.b2 is None else weights.b2, output, room,
    )  # fmt: skip
    numbers = (
        size,
        squeezed,
        tiles,
        teams,
        together,
        int(together * tiles < kind.few_tiles),
        room_of_thread,
        *sums.shape[1:],
        bits(own),
    )
    return Call(_kernel(weights.b2 is not None, channels, hidden, folds, kind), [*pointers, *numbers])


@cache
def _kernel(has_b2: bool, channels: int, hidden: int, folds: bool, kind: Kind) -> Kernel:
    writer = Writer(vector_width())
    _Text(writer, has_b2, channels, hidden, folds, kind).write()
    return compiled("feed_forward", writer.module("feed_forward"))


class _Room(NamedTuple):
    """Addresses within the workspace; all but the first two are a thread's own."""

    hidden: str  # images x M x N, of the threads that share them
    squares: str  # T x images x N in whole vectors, likewise
    block: str
    gate: str  # C
    squeezed: str  # R
    factor: str  # N in whole vectors
    panels: str  # those of the weights at hand, scaled


class _Text:
    """The body of the kernel."""

    def __init__(self, w: Writer, has_b2: bool, channels: int, hidden: int, folds: bool, kind: Kind) -> None:
        self.w, self.channels, self.hidden, self.folds = w, channels, hidden, folds
        self.blocks = max(kind.block_floats(channels), kind.block_floats(hidden))
        pointers = [w.argument(i, "ptr") for i in range(14)]
        self.y, self.residual, self.sums, self.down_w, self.down_b, self.up_w, self.up_b = pointers[:7]
        panels1, b1, self.gamma, panels2, b2, self.output, room = pointers[7:]
        numbers = [w.argument(i) for i in range(14, 24)]
        self.size, self.squeezed, self.tiles, self.teams, self.together, self.by_columns, own = numbers[:7]
        self.parts_of_sums, self.line_of_sums, self.own = numbers[7:]
        self.wide = whole_vectors(hidden)
        self.room = self._divided(room, own)
        self.first = kind.product(w, panels1, b1, self.size, channels, hidden, self.room.block)
        self.second = kind.product(w, panels2, b2 if has_b2 else None, self.size, hidden, channels, self.room.block)

    def _divided(self, room: str, own: str) -> _Room:
        w = self.w
        hidden = w.multiply(w.multiply(self.together, self.size), self.hidden)
        squares = w.at(room, w.multiply(self.teams, hidden))
        team = w.subtract("%thread", "%part")  # the first thread of those that share images
        line = w.multiply(self.together, self.wide)
        own_squares = w.at(squares, w.multiply(team, line))
        mine = w.at(squares, w.multiply(line, w.most("%parts", self.teams)))
        factor = w.at(mine, w.multiply("%thread", own))
        gate = w.at(factor, self.wide)
        squeezed = w.at(gate, whole_vectors(self.channels))
        block = w.at(squeezed, w.whole_vectors(w.add(self.squeezed, w.width - 1)))
        panels = w.at(block, self.blocks)
        return _Room(w.at(room, w.multiply(team, hidden)), own_squares, block, gate, squeezed, factor, panels)

    def write(self) -> None:
        w = self.w
        with w.loop("%first", "%last", self.together) as start:
            images = w.least(self.together, w.subtract("%last", start.index))
            self._clear(images)
            first, last = self._share(w.multiply(images, self.tiles))
            for phase in (self._expand, self._contract):
                with w.loop(0, images) as image:
                    before = w.multiply(image.index, self.tiles)
                    own = w.most(w.subtract(first, before), 0), w.least(w.subtract(last, before), self.tiles)
                    with w.when(w.compare("slt", *own)):
                        phase(w.add(start.index, image.index), image.index, own)
                w.meet()

    def _share(self, tiles: str) -> tuple[str, str]:
        """This part's tiles of all images; all of them where a tile's columns are shared."""
        w, split = self.w, self.w.compare("ne", self.by_columns, 0)
        first, last = w.share(tiles)
        self.part = w.value(f"select i1 {split}, i64 %part, i64 0")
        self.parts = w.value(f"select i1 {split}, i64 %parts, i64 1")
        return w.value(f"select i1 {split}, i64 0, i64 {first}"), w.value(f"select i1 {split}, i64 {tiles}, i64 {last}")

    def _clear(self, images: str) -> None:
        w = self.w
        line = self._squares("%part", "0")
        with w.loop(0, w.multiply(images, self.wide), w.width) as k:
            w.store(w.constant(0.0), w.at(line, k.index))

    def _expand(self, image: str, place: str, tiles: tuple[str, str]) -> None:
        """The first product, for image `image` of the batch and `place` of those that are computed together."""
        w = self.w
        source = w.slot(image, self.own, 0)
        self._gate(w.at(self.sums, w.multiply(source, w.multiply(self.parts_of_sums, self.line_of_sums))))
        if self.folds:
            self.first.scale_panels(self.room.gate, self.room.panels)
        rows = Rows(
            a=w.at(self.y, w.multiply(w.multiply(source, self.size), self.channels)),
            output=w.at(self.room.hidden, w.multiply(w.multiply(place, self.size), self.hidden)),
            residual=None,
            scale=None if self.folds else self.room.gate,
            squares=self._squares("%part", place),
        )
        self.first.write(rows, tiles, self.part, self.parts)

    def _contract(self, image: str, place: str, tiles: tuple[str, str]) -> None:
        """The second product."""
        w = self.w
        self._factor(place)
        if self.folds:
            self.second.scale_panels(self.room.factor, self.room.panels)
        map_ = w.multiply(self.size, self.channels)
        rows = Rows(
            a=w.at(self.room.hidden, w.multiply(w.multiply(place, self.size), self.hidden)),
            output=w.at(self.output, w.multiply(w.slot(image, self.own, 2), map_)),
            residual=w.at(self.residual, w.multiply(w.slot(image, self.own, 1), map_)),
            scale=None if self.folds else self.room.factor,
            squares=None,
        )
        self.second.write(rows, tiles, self.part, self.parts)

    def _squares(self, part: str, place: str) -> str:
        w = self.w
        return w.at(self.room.squares, w.multiply(w.add(w.multiply(part, self.together), place), self.wide))

    def _gate(self, sums: str) -> None:
        """Squeeze-excite: sums, parts x C, to the gate, C."""
        w, gate, squeezed = self.w, self.room.gate, self.room.squeezed
        share = w.spread(w.value(f"fdiv float 1.0, {w.as_float(self.size)}"))

        def average(k: str, mask: str | None) -> None:
            with w.loop(0, self.parts_of_sums, carried=[w.constant(0.0)]) as part:
                more = w.load(w.at(sums, w.add(w.multiply(part.index, self.line_of_sums), k)), mask)
                part.next = [w.vector_operation("fadd", part.carried[0], more)]
            w.store(w.vector_operation("fmul", part.carried[0], share), w.at(gate, k), mask)

        w.each_vector(self.channels, average)
        for r, total in self._products(self.down_w, self.squeezed, gate, self.channels):
            biased = w.value(f"fadd float {total}, {w.scalar(w.at(self.down_b, r))}")
            is_below = w.value(f"fcmp olt float {biased}, 0.0")  # false for NaN, which stays
            bent = w.value(f"select i1 {is_below}, float 0.0, float {biased}")
            w.do(f"store float {bent}, ptr {w.at(squeezed, r)}")
        for c, total in self._products(self.up_w, self.channels, squeezed, self.squeezed):
            w.do(f"store float {total}, ptr {w.at(gate, c)}")

        def bend(k: str, mask: str | None) -> None:
            value = w.vector_operation("fadd", w.load(w.at(self.room.gate, k), mask), w.load(w.at(self.up_b, k), mask))
            w.store(sigmoid(w, value), w.at(self.room.gate, k), mask)

        w.each_vector(self.channels, bend)

    def _products(self, matrix: str, rows: str | int, vector: str, columns: str | int) -> Iterator[tuple[str, str]]:
        """Row and its product with the vector, within a loop over all rows, some at a time:
        the last ones may come again.
        """
        w, last = self.w, self.w.subtract(rows, 1)
        with w.loop(0, rows, ROWS_TOGETHER) as start:
            chosen = [w.least(w.add(start.index, i), last) for i in range(ROWS_TOGETHER)]
            lines = [w.at(matrix, w.multiply(row, columns)) for row in chosen]

            def terms(k: str, mask: str | None, totals: list[str]) -> list[str]:
                value = w.load(w.at(vector, k), mask)
                return [w.fma(w.load(w.at(line, k), mask), value, t) for line, t in zip(lines, totals, strict=True)]

            yield from zip(chosen, w.sums_of(columns, ROWS_TOGETHER, terms), strict=True)

    def _factor(self, place: str) -> None:
        """GRN: the threads' squares, N each, to the factor, N."""
        w, factor = self.w, self.room.factor
        with w.loop(0, self.wide, w.width, carried=[w.constant(0.0)]) as k:
            with w.loop(0, "%parts", carried=[w.constant(0.0)]) as t:
                more = w.load(w.at(self._squares(t.index, place), k.index))
                t.next = [w.vector_operation("fadd", t.carried[0], more)]
            norm = w.square_root(t.carried[0])
            w.store(norm, w.at(factor, k.index))
            k.next = [w.vector_operation("fadd", k.carried[0], norm)]
        mean = w.value(f"fdiv float {w.total(k.carried[0])}, {w.number(self.hidden)}")
        scale = w.spread(w.value(f"fadd float {mean}, {w.number(RESPONSE_EPS)}"))

        def respond(k: str, mask: str | None) -> None:
            response = w.vector_operation("fdiv", w.load(w.at(factor, k)), scale)
            w.store(w.fma(w.load(w.at(self.gamma, k), mask), response, w.constant(1.0)), w.at(factor, k))

        w.each_vector(self.hidden, respond)


def sigmoid(w: Writer, x: str) -> str:
    """1 / (1 + exp(-x)) of a vector."""
    v, n = w.vector, w.width
    negative = w.vector_operation("fsub", w.constant(0.0), x)
    bounded = w.least_of(w.most_of(negative, w.constant(-87.0)), w.constant(87.0))
    power = w.value(f"call {v} @llvm.rint.v{n}f32({v} {w.vector_operation('fmul', bounded, w.constant(LOG2_E))})")
    rest = w.fma(power, w.constant(-LN2_LOW), w.fma(power, w.constant(-LN2_HIGH), bounded))
    whole = w.value(f"fptosi {v} {power} to <{n} x i32>")
    biased = w.value(f"add <{n} x i32> {whole}, <{', '.join(['i32 127'] * n)}>")
    bits = w.value(f"shl <{n} x i32> {biased}, <{', '.join(['i32 23'] * n)}>")
    scale = w.value(f"bitcast <{n} x i32> {bits} to {v}")
    exponential = w.vector_operation("fmul", w.polynomial(SERIES, rest), scale)
    share = w.vector_operation("fdiv", w.constant(1.0), w.vector_operation("fadd", exponential, w.constant(1.0)))
    is_number = w.value(f"fcmp ord {v} {x}, zeroinitializer")
    return w.value(f"select <{n} x i1> {is_number}, {v} {share}, {v} {x}")
