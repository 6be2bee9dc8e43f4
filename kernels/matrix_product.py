"""The product of `product.py` on the matrix registers of AMX, as exact as in float32.

A float32 number is the sum of three of bfloat16, high, middle and low, each of which has the eight bits that follow those of the one
before. Of the nine products of their parts six count: the others are below half a unit of float32. Sums are float32's.

Both matrices come in blocks of a register, 16 rows of 64 bytes: of A 16 rows by 32 columns of K, of B 16 pairs of columns of K by 16
columns. Column i of 32 is paired with column 16 + i, so that the parts of two vectors are joined lane by lane.

Shapes: M rows, K inner and N outer columns.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from unipercept.kernels.gelu_llvm import gelu
from unipercept.kernels.llvm_writer import Writer
from unipercept.kernels.product import Product, Rows

SIDE = 16  # rows of a register, and the columns of a register of sums
STEP = 32  # columns of K that a register holds
PARTS = 3  # of a number
REGISTER_FLOATS = 256  # as much memory as a register takes
HALVES = 2  # registers of rows, and of columns, of a tile: its four sums, and two registers each for A and B
ROWS, COLUMNS = HALVES * SIDE, HALVES * SIDE  # of a tile
SUMS_FLOATS = ROWS * COLUMNS
BLOCK_BYTES = 512 * 1024  # of A's rows that meet a panel after the other: a part of the second-level cache
PIECE_STEPS = 5  # of K taken together: a panel's take 30 KB of the first-level cache
PREFETCHED_BYTES = 1024 * 1024  # of a B that does not stay in the second-level cache
LINE_FLOATS = 16  # of a line of the caches
TOGETHER = 4  # rows that are finished together

# Parts of A and B, 0 the highest, in an order that loads 14 registers for 24 products.
PAIRS = ((0, 2), (0, 1), (1, 1), (1, 0), (0, 0), (2, 0))


def steps(inner: int) -> int:
    """Registers that K columns take."""
    return -(-inner // STEP)


def pack(weight: Tensor) -> Tensor:
    """Float32 NxK as panels of 32 columns, the last of 16 where that is enough; zeros fill up."""
    columns, inner = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -inner % STEP, 0, -columns % SIDE))
    parts, rest = [], padded
    for _ in range(PARTS):
        parts.append(rest.bfloat16())
        rest = rest - parts[-1].float()
    # part, 16 columns, column of them, step, half of the step, pair: to 16 columns, step, part, pair, column, half
    strips = torch.stack(parts).view(PARTS, -1, SIDE, steps(inner), 2, SIDE).permute(1, 3, 0, 5, 2, 4)
    whole = len(strips) // HALVES * HALVES
    panels = strips[:whole].unflatten(0, (-1, HALVES)).transpose(1, 2)
    return torch.cat([panels.flatten(), strips[whole:].flatten()]).view(torch.float32)


def tiles_of_a_block(inner: int) -> int:
    """Tiles whose rows of K are brought together."""
    return max(1, BLOCK_BYTES // (4 * _tile_floats(inner)))


def block_floats(inner: int) -> int:
    """The room that a thread needs for a block, the sums of a tile, those over pieces of K and a row."""
    tiles = tiles_of_a_block(inner)
    kept = tiles * SUMS_FLOATS if steps(inner) > PIECE_STEPS else 0
    return tiles * _tile_floats(inner) + SUMS_FLOATS + kept + steps(inner) * STEP + STEP


def _tile_floats(inner: int) -> int:
    return HALVES * steps(inner) * PARTS * REGISTER_FLOATS


class MatrixProduct(Product):
    """Writes such a product; arguments and use are those of `Product`."""

    def __init__(
        self, w: Writer, panels: str, bias: str | None, height: str, inner: int, columns: int, block: str
    ) -> None:
        self.w, self.panels, self.bias, self.block = w, panels, bias, block
        self.height, self.inner, self.columns = height, inner, columns
        self.n_rows, self.n_vectors, self.wide = ROWS, HALVES, COLUMNS
        self.n_whole = columns // COLUMNS
        self.tail = -(-(columns % COLUMNS) // SIDE)
        self.steps, self.in_block = steps(inner), tiles_of_a_block(inner)
        self.sums = w.at(block, self.in_block * _tile_floats(inner))
        self.kept = w.at(self.sums, SUMS_FLOATS)
        self.row = w.at(self.kept, self.in_block * SUMS_FLOATS if self.steps > PIECE_STEPS else 0)

    def write(
        self, rows: Rows, tiles: tuple[str, str], part: str, parts: str, after: Callable[[str, str], None] | None = None
    ) -> None:
        self.w.shape_matrices()
        super().write(rows, tiles, part, parts, after)
        self.w.release_matrices()

    def _tiles_of_a_block(self) -> int:
        return self.in_block

    def _bring(self, rows: Rows, begin: str, count: str) -> None:
        """The rows of a block, scaled, as registers of their parts; those beyond the last stay what they are, and meet nothing that counts."""
        w, first = self.w, self.w.multiply(begin, ROWS)
        with w.loop(0, w.least(w.multiply(count, ROWS), w.subtract(self.height, first))) as i:
            row = w.add(first, i.index)
            source = self.row if callable(rows.a) else w.at(rows.a, w.multiply(row, self.inner))
            if callable(rows.a):
                rows.a(row, self.row)
            half = w.multiply(w.divide(i.index, SIDE), _tile_floats(self.inner) // HALVES)
            line = w.multiply(w.remainder(i.index, SIDE), LINE_FLOATS)
            self._split(source, rows.scale, w.at(self.block, w.add(half, line)))

    def _split(self, source: str, scale: str | None, target: str) -> None:
        """A row of K to its line of each register."""
        w = self.w

        def step(k: str, masks: tuple[str | None, str | None]) -> None:
            vectors = []
            for j, mask in enumerate(masks):
                at = w.add(k, j * SIDE)
                value = w.load(w.at(source, at), mask)
                vectors.append(
                    value if scale is None else w.vector_operation("fmul", value, w.load(w.at(scale, at), mask))
                )
            place = w.multiply(w.divide(k, STEP), PARTS * REGISTER_FLOATS)
            for part, joined in enumerate(w.halves_of_parts(*vectors, PARTS)):
                w.store_integers(joined, w.at(target, w.add(place, part * REGISTER_FLOATS)))

        whole = self.inner // STEP * STEP
        with w.loop(0, whole, STEP) as k:
            step(k.index, (None, None))
        if rest := self.inner - whole:
            step(str(whole), (w.mask_below(rest), w.mask_below(rest - SIDE)))

    def _panel(self, rows: Rows, start: str, count: str, panel: str, share: tuple[str, str], *, is_tail: bool) -> None:
        """A panel times those tiles of a block that are in the share."""
        w, before, column = self.w, self.w.multiply(panel, count), self.w.multiply(panel, COLUMNS)
        n_vectors = self.tail if is_tail else HALVES
        source = w.at(self.panels, w.multiply(column, self.steps * STEP * PARTS // 2))
        first, last = w.most(w.subtract(share[0], before), 0), w.least(w.subtract(share[1], before), count)
        final = (self.steps - 1) // PIECE_STEPS * PIECE_STEPS  # where the last piece of K begins

        def multiply(tile: str, begin: str | int, end: str | int, kept: str | None, target: str) -> None:
            b = w.at(source, w.multiply(begin, n_vectors * PARTS * REGISTER_FLOATS))
            if not is_tail and 2 * PARTS * self.inner * self.columns >= PREFETCHED_BYTES:
                size = PIECE_STEPS * HALVES * PARTS * REGISTER_FLOATS
                share_of = w.share(str(size // LINE_FLOATS), w.subtract(tile, first), w.subtract(last, first))
                with w.loop(*share_of) as line:
                    w.prefetch(w.at(b, w.add(size, w.multiply(line.index, LINE_FLOATS))))
            place = w.add(w.multiply(tile, _tile_floats(self.inner)), w.multiply(begin, PARTS * REGISTER_FLOATS))
            a, many = w.at(self.block, place), w.subtract(end, begin)
            is_half = w.compare("sle", self._rows_in(w.add(start, tile)), SIDE)
            with w.when(is_half):
                self._multiply(a, b, many, 1, n_vectors, kept, target)
            with w.when(w.value(f"xor i1 {is_half}, true")):
                self._multiply(a, b, many, HALVES, n_vectors, kept, target)

        def kept_of(tile: str) -> str:
            return w.at(self.kept, w.multiply(tile, SUMS_FLOATS))

        if final:
            with w.loop(first, last) as tile:
                multiply(tile.index, 0, PIECE_STEPS, None, kept_of(tile.index))
            with w.loop(PIECE_STEPS, final, PIECE_STEPS) as k, w.loop(first, last) as tile:
                place = kept_of(tile.index)
                multiply(tile.index, k.index, w.add(k.index, PIECE_STEPS), place, place)
        with w.loop(first, last) as tile:
            multiply(tile.index, final, self.steps, kept_of(tile.index) if final else None, self.sums)
            self._finish_tile(rows, w.add(start, tile.index), column, n_vectors, is_tail=is_tail)

    def _rows_in(self, tile: str) -> str:
        """How many rows of a tile there are."""
        return self.w.least(ROWS, self.w.subtract(self.height, self.w.multiply(tile, ROWS)))

    def _multiply(
        self, a: str, b: str, many: str, n_halves: int, n_vectors: int, kept: str | None, target: str
    ) -> None:
        """So many steps of K of a tile, added to what is kept, to the sums at `target`."""
        w = self.w
        places = [(i, j, HALVES * i + j) for i in range(n_halves) for j in range(n_vectors)]
        for i, j, register in places:
            if kept is None:
                w.clear_matrix(register)
            else:
                w.load_matrix(register, w.at(kept, i * SIDE * COLUMNS + j * SIDE), 4 * COLUMNS)
        with w.loop(0, many) as k:
            of_a, of_b = (w.multiply(k.index, n * PARTS * REGISTER_FLOATS) for n in (1, n_vectors))
            held: tuple[int | None, int | None] = (None, None)
            for part_a, part_b in PAIRS:
                if held[0] != part_a:
                    for i in range(n_halves):
                        offset = i * _tile_floats(self.inner) // HALVES + part_a * REGISTER_FLOATS
                        w.load_matrix(4 + i, w.at(a, w.add(of_a, offset)), 4 * LINE_FLOATS)
                if held[1] != part_b:
                    for j in range(n_vectors):
                        offset = (j * PARTS + part_b) * REGISTER_FLOATS
                        w.load_matrix(6 + j, w.at(b, w.add(of_b, offset)), 4 * LINE_FLOATS)
                held = part_a, part_b
                for i, j, register in places:
                    w.multiply_matrices(register, 4 + i, 6 + j)
        for i, j, register in places:
            w.store_matrix(register, w.at(target, i * SIDE * COLUMNS + j * SIDE), 4 * COLUMNS)

    def _finish_tile(self, rows: Rows, tile: str, column: str, n_vectors: int, *, is_tail: bool) -> None:
        """What comes after the product, for the rows that there are."""
        w = self.w
        places = [w.add(column, j * SIDE) for j in range(n_vectors)]
        masks: list[str | None] = [None] * n_vectors
        if is_tail and self.columns % SIDE:
            masks[-1] = w.mask_below(self.columns % SIDE)
        biases = None
        if self.bias is not None:
            biases = [w.load(w.at(self.bias, at), mask) for at, mask in zip(places, masks, strict=True)]
        first, count = w.multiply(tile, ROWS), self._rows_in(tile)
        end = w.multiply(w.divide(count, TOGETHER), TOGETHER)
        squares = [w.constant(0.0)] * n_vectors if rows.squares is not None else []
        for start, stop, size in (("0", end, TOGETHER), (end, count, 1)):
            with w.loop(start, stop, size, carried=squares) as i:
                found = []
                for step in range(size):
                    row = w.add(i.index, step)
                    line = w.multiply(w.add(first, row), self.columns)
                    for j, (at, mask) in enumerate(zip(places, masks, strict=True)):
                        value = w.load(w.at(self.sums, w.add(w.multiply(row, COLUMNS), j * SIDE)))
                        if biases is not None:
                            value = w.vector_operation("fadd", value, biases[j])
                        address = w.add(line, at)
                        if rows.residual is not None:
                            value = w.vector_operation("fadd", value, w.load(w.at(rows.residual, address), mask))
                        if rows.squares is not None:
                            value = gelu(w, value)
                        w.store(value, w.at(rows.output, address), mask)
                        found.append(value)
                if squares:
                    totals = list(i.carried)
                    for x, value in enumerate(found):
                        totals[x % n_vectors] = w.fma(value, value, totals[x % n_vectors])
                    i.next = totals
            squares = i.carried
        for at, total in zip(places, squares, strict=False):
            address = w.at(rows.squares, at)
            w.store(w.vector_operation("fadd", w.load(address), total), address)
