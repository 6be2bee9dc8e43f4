"""A matrix product on the CPU, with operations fused before and after it, as a part of other kernels.

    O = after((A * scale) B^T),  A: M x K, scale: K, B: N x K

`after` adds the bias, and applies the GELU and adds up squares over M, or adds a residual. A tile of 5 rows by 5
vectors (6 by 2 with AVX2) stays in registers over all of K, or over a piece of it that the first-level cache keeps
of the weights; B comes packed in panels as wide as a tile. The rows of some tiles, a block, are scaled into a
buffer in the second-level cache, and meet one panel after the other. Where M is much more than N, B is scaled
instead, and A is read where it lies.

Shapes: M rows, K inner and N outer columns, V floats of a vector.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from unipercept.kernels.gelu_llvm import gelu
from unipercept.kernels.llvm import vector_width
from unipercept.kernels.llvm_writer import Writer

TILES = {
    16: (5, 5),
    8: (6, 2),
}  # V to rows and vectors: all of it fits the registers, and 80 columns divide the widths of most models

ADDED_IN_TURN = (
    256  # columns of K; their sums are added apart, so that long sums are as exact as those of other libraries
)
# V to what rows scaled together take: a part of the second-level cache; with AVX-512 all of a 7x7 map, so that weights
# come once from further away.
BLOCK_BYTES = {16: 320 * 1024, 8: 96 * 1024}
# V to a panel's bytes beyond which K is taken in pieces, since tiles would fetch it from the
# second-level cache; with AVX2 none are.
MAX_PANEL_BYTES = {16: 80 * 1024, 8: 1 << 60}
PIECE_BYTES = 24 * 1024  # of a panel, at most: it stays in the first-level cache beside other things
PREFETCHED_BYTES = 1024 * 1024  # of a B that does not stay in the second-level cache: its panels are requested ahead
LINE_FLOATS = 16  # of a line of the caches
FEW_TILES = 16  # an eighth would be uneven shares
UNROLLED = 4  # columns of K a turn of the innermost loop, where that divides K


def pack(weight: Tensor) -> Tensor:
    """Float32 NxK as panels of K x columns, the last narrower, N rounded up to whole vectors with zeros."""
    columns, inner = weight.shape
    width = vector_width()
    wide = width * TILES[width][1]
    padded = torch.nn.functional.pad(weight, (0, 0, 0, -columns % width))
    whole = len(padded) // wide * wide
    return torch.cat([padded[:whole].view(-1, wide, inner).transpose(1, 2).flatten(), padded[whole:].t().flatten()])


def whole_vectors(count: int) -> int:
    """`count` rounded up to whole vectors."""
    return -(-count // vector_width()) * vector_width()


def rows_of_a_tile() -> int:
    """Rows that meet a panel together."""
    return TILES[vector_width()][0]


def tiles_of_a_block(inner: int) -> int:
    """Tiles whose rows of K are scaled together."""
    return max(1, BLOCK_BYTES[vector_width()] // (4 * TILES[vector_width()][0] * whole_vectors(inner)))


def block_floats(inner: int) -> int:
    """The room that a thread needs for a block, a vector that copies may run over, and sums over pieces of K."""
    rows = tiles_of_a_block(inner) * TILES[vector_width()][0]
    sums = rows * TILES[vector_width()][1] * vector_width() if piece(inner) < inner else 0
    return rows * whole_vectors(inner) + vector_width() + sums


def piece(inner: int) -> int:
    """Columns of K that are taken together."""
    line = 4 * TILES[vector_width()][1] * vector_width()
    if inner * line <= MAX_PANEL_BYTES[vector_width()]:
        return inner
    pieces = -(-inner * line // PIECE_BYTES)
    return -(-inner // pieces // UNROLLED) * UNROLLED


class Rows(NamedTuple):
    """Addresses of one image's rows, and of what goes with them; the first three lines by
    M, the last two over all of M.
    """

    a: str | Callable[[str, str], None]  # M x K; or what writes the copy of a row (its number) to an address, in order
    output: str  # M x N
    residual: str | None = None  # M x N
    scale: str | None = None  # K; None where a function copies, and where B is scaled
    squares: str | None = None  # N in whole vectors, added to; None without the GELU


class Product:
    """Writes a product into the function that `w` writes.

    Args:
        w: the function.
        panels, bias: addresses of B, packed, and of the bias, N, or None.
        height, inner, columns: M, K and N.
        block: address of a thread's own room of `block_floats(K)`.
    """

    def __init__(
        self, w: Writer, panels: str, bias: str | None, height: str, inner: int, columns: int, block: str
    ) -> None:
        self.w, self.panels, self.bias, self.block = w, panels, bias, block
        self.source, self.line, self.piece = panels, whole_vectors(inner), piece(inner)
        self.height, self.inner, self.columns = height, inner, columns
        self.n_rows, self.n_vectors = TILES[w.width]
        self.wide = self.n_vectors * w.width
        self.n_whole = columns // self.wide  # panels without idle lanes or vectors
        self.tail = -(-(columns % self.wide) // w.width)  # vectors of the panel after them
        self.unrolled = UNROLLED if inner % UNROLLED == 0 else 1

    def write(
        self, rows: Rows, tiles: tuple[str, str], part: str, parts: str, after: Callable[[str, str], None] | None = None
    ) -> None:
        """Tiles from the first up to the second number, or of them what the thread `part` of `parts` has to do.

        `after(first, last)` writes what is done to each block's rows of output, where this thread has all of them.
        """
        w, n_panels = self.w, self.n_whole + (self.tail > 0)
        with w.loop(*tiles, self._tiles_of_a_block()) as block:
            begin = block.index
            count = w.least(self._tiles_of_a_block(), w.subtract(tiles[1], begin))
            self._bring(rows, begin, count)
            first, last = w.share(w.multiply(count, n_panels), part, parts)  # tiles of one panel, then of the next
            end = w.divide(w.add(last, w.subtract(count, 1)), count)
            with w.loop(w.divide(first, count), w.least(end, self.n_whole)) as panel:
                self._panel(rows, begin, count, panel.index, (first, last), is_tail=False)
            if self.tail:
                with w.when(w.compare("sgt", end, self.n_whole)):
                    self._panel(rows, begin, count, str(self.n_whole), (first, last), is_tail=True)
            if after is not None:
                first_row = w.multiply(begin, self.n_rows)
                after(first_row, w.least(w.add(first_row, w.multiply(count, self.n_rows)), self.height))

    def _tiles_of_a_block(self) -> int:
        return tiles_of_a_block(self.inner)

    def _bring(self, rows: Rows, begin: str, count: str) -> None:
        """The rows of a block into the room for it, but those that are read where they lie."""
        w = self.w
        if callable(rows.a):
            with w.loop(0, w.multiply(count, self.n_rows)) as i:
                row = w.least(w.add(w.multiply(begin, self.n_rows), i.index), w.subtract(self.height, 1))
                rows.a(row, w.at(self.block, w.multiply(i.index, whole_vectors(self.inner))))
        elif rows.scale is not None:
            self._scale(rows, rows.a, begin, count)
        else:
            self._copy_last(rows.a, w.add(begin, count))

    def _scale(self, rows: Rows, a: str, start: str, count: str) -> None:
        """The rows of a block, scaled; those beyond the last repeat it, and count for nothing."""
        w, line, scale = self.w, whole_vectors(self.inner), rows.scale
        assert scale is not None
        with w.loop(0, count) as tile:
            sources = [w.at(a, w.multiply(row, self.inner)) for row in self._rows(w.add(start, tile.index))]
            target = w.at(self.block, w.multiply(tile.index, self.n_rows * line))

            def step(k: str, mask: str | None) -> None:
                factor = w.load(w.at(scale, k), mask)
                for i, source in enumerate(sources):
                    scaled = w.vector_operation("fmul", w.load(w.at(source, k), mask), factor)
                    w.store(scaled, w.at(target, w.add(k, i * line)))

            w.each_vector(self.inner, step)

    def scale_panels(self, scale: str, target: str) -> None:
        """B's columns of K times `scale`, K, to `target`, which is B from then on: less work than
        scaling A where M is more than N.
        """
        w = self.w
        with w.loop(0, self.inner) as k:
            factor = w.spread_from(w.at(scale, k.index))
            for panel, n_vectors in enumerate([*[self.n_vectors] * self.n_whole, self.tail]):
                line = w.add(panel * self.inner * self.wide, w.multiply(k.index, n_vectors * w.width))
                for j in range(n_vectors):
                    at = w.add(line, j * w.width)
                    w.store(w.vector_operation("fmul", w.load(w.at(self.source, at)), factor), w.at(target, at))
        self.panels, self.line = target, self.inner

    def _copy_last(self, a: str, end: str) -> None:
        """The rows of the last tile, where it has less than others, which end with the tile `end`."""
        w = self.w
        is_last = w.compare("sgt", w.multiply(end, self.n_rows), self.height)
        with w.when(is_last):
            for i, row in enumerate(self._rows(w.subtract(end, 1))):
                w.copy(w.at(a, w.multiply(row, self.inner)), w.at(self.block, i * self.inner), self.inner)

    def _tile(self, rows: Rows, start: str, tile: str) -> str:
        """Where the rows of a tile of a block lie."""
        w = self.w
        if callable(rows.a) or rows.scale is not None:
            return w.at(self.block, w.multiply(tile, self.n_rows * self.line))
        first = w.multiply(w.add(start, tile), self.n_rows)
        is_whole = w.compare("sle", w.add(first, self.n_rows), self.height)
        return w.value(f"select i1 {is_whole}, ptr {w.at(rows.a, w.multiply(first, self.inner))}, ptr {self.block}")

    def _rows(self, tile: str) -> list[str]:
        w, start, limit = self.w, self.w.multiply(tile, self.n_rows), self.w.subtract(self.height, 1)
        return [w.least(w.add(start, i), limit) for i in range(self.n_rows)]

    def _panel(self, rows: Rows, start: str, count: str, panel: str, share: tuple[str, str], *, is_tail: bool) -> None:
        """A panel times those tiles of a block that are in the share."""
        w, before, column = self.w, self.w.multiply(panel, count), self.w.multiply(panel, self.wide)
        source = w.at(self.panels, w.multiply(column, self.inner))
        first, last = w.most(w.subtract(share[0], before), 0), w.least(w.subtract(share[1], before), count)
        is_ragged = is_tail and self.columns % w.width > 0
        biases = self._biases(column, self.tail if is_tail else self.n_vectors, is_ragged) * self.n_rows
        final = (self.inner - 1) // self.piece * self.piece  # where the last piece of K begins

        def tile_of(tile: str, k: str | int) -> str:
            """The rows of a tile from column `k` on, after asking for a part of the weights that come
            next, where they come from far.
            """
            wide = len(biases) // self.n_rows * w.width
            if not is_tail and 4 * self.inner * self.columns >= PREFETCHED_BYTES:
                following = w.at(source, w.multiply(w.add(k, self.piece), wide))
                self._ask_for_a_part(following, w.subtract(tile, first), w.subtract(last, first))
            return w.at(self._tile(rows, start, tile), k)

        if final:
            self._pieces(source, (first, last), final, biases, tile_of)
        with w.loop(first, last) as tile:
            a = tile_of(tile.index, final)
            sums = self._last_piece(a, source, tile.index, final, biases) if final else self._sums(a, source, biases)
            self._finish(rows, sums, w.add(start, tile.index), column, is_ragged=is_ragged)

    def _biases(self, column: str, n_vectors: int, is_ragged: bool) -> list[str]:
        """What a row's sums start from."""
        w = self.w
        if self.bias is None:
            return [w.constant(0.0)] * n_vectors
        places = [w.add(column, j * w.width) for j in range(n_vectors)]
        masks = [w.mask_below(w.subtract(self.columns, places[-1])) if is_ragged else None]
        return [
            w.load(w.at(self.bias, at), mask) for at, mask in zip(places, [None] * (n_vectors - 1) + masks, strict=True)
        ]

    def _pieces(
        self, source: str, tiles: tuple[str, str], final: int, biases: list[str], tile_of: Callable[[str, str], str]
    ) -> None:
        """The sums of all pieces of K but the last, into the room after the block."""
        w = self.w
        with w.loop(*tiles) as tile:
            for place, bias in zip(self._kept(tile.index, len(biases)), biases, strict=True):
                w.store(bias, place)
        with w.loop(0, final, self.piece) as k, w.loop(*tiles) as tile:
            a = tile_of(tile.index, k.index)
            panel = w.at(source, w.multiply(k.index, len(biases) // self.n_rows * w.width))
            sums = self._part(a, panel, "0", str(self.piece), [w.constant(0.0)] * len(biases))
            for total, place in zip(sums, self._kept(tile.index, len(biases)), strict=True):
                w.store(w.vector_operation("fadd", total, w.load(place)), place)

    def _last_piece(self, a: str, source: str, tile: str, final: int, biases: list[str]) -> list[str]:
        w = self.w
        panel = w.at(source, final * (len(biases) // self.n_rows) * w.width)
        sums = self._part(a, panel, "0", str(self.inner - final), [w.constant(0.0)] * len(biases))
        kept = self._kept(tile, len(biases))
        return [w.vector_operation("fadd", total, w.load(place)) for total, place in zip(sums, kept, strict=True)]

    def _kept(self, tile: str, n_sums: int) -> list[str]:
        """The places of a tile's sums over pieces of K."""
        w, rows = self.w, tiles_of_a_block(self.inner) * self.n_rows
        begin = w.add(rows * whole_vectors(self.inner) + w.width, w.multiply(tile, n_sums * w.width))
        return [w.at(self.block, w.add(begin, i * w.width)) for i in range(n_sums)]

    def _ask_for_a_part(self, weights: str, part: str, parts: str) -> None:
        """Of the piece of a panel that comes next."""
        w, lines = self.w, -(-self.piece * self.wide // LINE_FLOATS)
        first, last = w.share(str(lines), part, parts)
        with w.loop(first, last) as line:
            w.prefetch(w.at(weights, w.multiply(line.index, LINE_FLOATS)))

    def _sums(self, a: str, panel: str, biases: list[str]) -> list[str]:
        """A tile's sums over K, row by row."""
        w = self.w
        if self.inner <= ADDED_IN_TURN:
            return self._part(a, panel, "0", str(self.inner), biases)
        with w.loop(0, self.inner, ADDED_IN_TURN, carried=biases) as part:
            stop = w.least(w.add(part.index, ADDED_IN_TURN), self.inner)
            sums = self._part(a, panel, part.index, stop, [w.constant(0.0)] * len(biases))
            part.next = [w.vector_operation("fadd", *pair) for pair in zip(part.carried, sums, strict=True)]
        return part.carried

    def _part(self, a: str, panel: str, start: str, stop: str, sums: list[str]) -> list[str]:
        """Columns of K from `start` on: each a line of the panel times its value in each row of the tile."""
        w, line, n_vectors = self.w, self.line, len(sums) // self.n_rows
        with w.loop(start, stop, self.unrolled, carried=sums) as k:
            values, weights = w.at(a, k.index), w.at(panel, w.multiply(k.index, n_vectors * w.width))
            for step in range(self.unrolled):
                b = [w.load(w.at(weights, (step * n_vectors + j) * w.width)) for j in range(n_vectors)]
                spread = [w.spread_from(w.at(values, i * line + step)) for i in range(self.n_rows)]
                k.next = [w.fma(spread[x // n_vectors], b[x % n_vectors], total) for x, total in enumerate(k.next)]
        return k.carried

    def _finish(self, rows: Rows, sums: list[str], tile: str, column: str, *, is_ragged: bool) -> None:
        """What comes after the product, vector by vector; with `is_ragged` the last one has idle lanes."""
        w, n_vectors = self.w, len(sums) // self.n_rows
        places = [w.multiply(row, self.columns) for row in self._rows(tile)]
        count = None if rows.squares is None else self._count_of_last(tile)
        for j in range(n_vectors):
            at = w.add(column, j * w.width)
            mask = w.mask_below(w.subtract(self.columns, at)) if is_ragged and j == n_vectors - 1 else None
            found = []
            for value, place in zip(sums[j::n_vectors], places, strict=True):
                found.append(value)
                address = w.add(place, at)
                if rows.residual is not None:
                    found[-1] = w.vector_operation("fadd", found[-1], w.load(w.at(rows.residual, address), mask))
                if rows.squares is not None:
                    found[-1] = gelu(w, found[-1])
                w.store(found[-1], w.at(rows.output, address), mask)
            if rows.squares is not None and count is not None:
                total = w.vector_operation("fmul", w.vector_operation("fmul", found[-1], count), found[-1])
                for value in found[:-1]:
                    total = w.fma(value, value, total)
                address = w.at(rows.squares, at)
                w.store(w.vector_operation("fadd", w.load(address), total), address)

    def _count_of_last(self, tile: str) -> str:
        """How often the last row of a tile counts: 1, less for each repetition of it in the rows before."""
        w = self.w
        beyond = w.subtract(w.add(w.multiply(tile, self.n_rows), self.n_rows), self.height)
        return w.spread(w.as_float(w.subtract(1, w.most(beyond, 0))))
