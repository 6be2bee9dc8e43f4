"""The product of `product.py` on the matrix registers of AMX, as exact as in float32.

A float32 number is the sum of three of bfloat16, high, middle and low, each of which has the eight bits that
follow those of the one before. Of the nine products of their parts six count: the others are below half a unit of
float32. Sums are float32's.

Both matrices come in pieces of a register, 16 rows of 64 bytes: of A 16 rows by 32 columns of K, of B 16 pairs of
columns of K by 16 columns of N. Column i of 32 is paired with column 16 + i, so that the parts of two vectors are
joined lane by lane. A tile is 32 rows by 32 columns, four registers of sums.

Shapes: M rows, K inner and N outer columns.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from unipercept.kernels.gelu_llvm import gelu
from unipercept.kernels.llvm_writer import Writer
from unipercept.kernels.product import PREFETCHED_BYTES, Product, Rows

SIDE = 16  # rows of a register, and columns of a register of sums
STEP = 32  # columns of K that a register holds
PARTS = 3  # of a number
PAIRS = (
    (0, 2),
    (0, 1),
    (1, 1),
    (1, 0),
    (0, 0),
    (2, 0),
)  # of A's and B's parts, 0 the highest, so that few registers change in between
HALVES = 2  # registers of rows, and of columns, of a tile
# Of eight registers three, one sum at a time: the processor renames them to one or two more than eight, so that each
# that is in use takes the place of a load or product on its way. With four sums a product takes 63 cycles, with two 33
# to 38, with one 29 to 34, of which 16 are its own.
SUMS, A, B = 0, 1, 2
ROWS, COLUMNS = HALVES * SIDE, HALVES * SIDE  # of a tile
LINE_FLOATS = 16  # of a line of the caches, and of a register
REGISTER_FLOATS = SIDE * LINE_FLOATS
# From one register of A to the next: the pieces of a row lie in all sets of the first-level cache then.
PITCH_FLOATS = REGISTER_FLOATS + LINE_FLOATS
STEP_FLOATS_A, STEP_FLOATS_B = PARTS * PITCH_FLOATS, PARTS * REGISTER_FLOATS  # of 16 rows of A and 16 columns of B
TILE_FLOATS = ROWS * COLUMNS  # of its sums
BLOCK_BYTES = 512 * 1024  # of A's rows that meet one panel after the other: a part of the second-level cache
PIECE = 3  # steps of K taken together: a panel's take 18 KB of the first-level cache, as many a tile's rows
FEW_TILES = 4  # sharing the columns brings all rows twice
TOGETHER = 4  # rows that are finished together


def steps(inner: int) -> int:
    """Registers that K columns take."""
    return -(-inner // STEP)


def pack(weight: Tensor) -> Tensor:
    """Float32 NxK as panels of 32 columns, the last of 16 where that is enough; zeros fill up."""
    columns, inner = weight.shape
    rest = torch.nn.functional.pad(weight, (0, -inner % STEP, 0, -columns % SIDE))
    parts = []
    for _ in range(PARTS):
        parts.append(rest.bfloat16())
        rest = rest - parts[-1].float()
    # from part, strip of 16 columns, column of it, step, half of the step, pair to strip,
    # step, part, pair, column, half
    strips = torch.stack(parts).view(PARTS, -1, SIDE, steps(inner), 2, SIDE).permute(1, 3, 0, 5, 2, 4)
    whole = len(strips) // HALVES * HALVES
    panels = strips[:whole].reshape(-1, HALVES, *strips.shape[1:]).transpose(1, 2)
    return torch.cat([panels.flatten(), strips[whole:].flatten()]).view(torch.float32)


def tiles_of_a_block(inner: int) -> int:
    """Tiles whose rows of K are brought together."""
    return max(1, BLOCK_BYTES // (4 * rows_floats(inner)))


def rows_floats(inner: int) -> int:
    """The room that a tile's rows take."""
    return HALVES * steps(inner) * STEP_FLOATS_A


def block_floats(inner: int) -> int:
    """The room that a thread needs for a block, the sums of two tiles, those over pieces of K, and a row."""
    tiles = tiles_of_a_block(inner)
    kept = tiles * TILE_FLOATS if steps(inner) > PIECE else 0
    return tiles * rows_floats(inner) + 2 * TILE_FLOATS + kept + (steps(inner) + 1) * STEP


class MatrixProduct(Product):
    """Writes such a product; arguments and use are those of `Product`."""

    def __init__(
        self, w: Writer, panels: str, bias: str | None, height: str, inner: int, columns: int, block: str
    ) -> None:
        self.w, self.panels, self.bias, self.block = w, panels, bias, block
        self.height, self.inner, self.columns = height, inner, columns
        self.n_rows, self.n_vectors, self.wide = ROWS, HALVES, COLUMNS
        self.n_whole, self.tail = columns // COLUMNS, -(-(columns % COLUMNS) // SIDE)
        self.steps, self.in_block = steps(inner), tiles_of_a_block(inner)
        self.sums = w.at(block, self.in_block * rows_floats(inner))
        self.kept = w.at(self.sums, 2 * TILE_FLOATS)
        self.row = w.at(self.kept, self.in_block * TILE_FLOATS if self.steps > PIECE else 0)

    def write(
        self, rows: Rows, tiles: tuple[str, str], part: str, parts: str, after: Callable[[str, str], None] | None = None
    ) -> None:
        self.w.shape_matrices()
        super().write(rows, tiles, part, parts, after)
        self.w.release_matrices()

    def rows_in(self, tile: str) -> str:
        """How many rows of a tile there are."""
        return self.w.least(ROWS, self.w.subtract(self.height, self.w.multiply(tile, ROWS)))

    def _tiles_of_a_block(self) -> int:
        return self.in_block

    def _bring(self, rows: Rows, begin: str, count: str) -> None:
        """The rows of a block, scaled, as registers of their parts.

        Lines of rows beyond the last stay what they are: only sums that nobody reads see them.
        """
        w, first = self.w, self.w.multiply(begin, ROWS)
        with w.loop(0, w.least(w.multiply(count, ROWS), w.subtract(self.height, first))) as i:
            row = w.add(first, i.index)
            if callable(rows.a):
                rows.a(row, self.row)
                source = self.row
            else:
                source = w.at(rows.a, w.multiply(row, self.inner))
            half = w.multiply(w.divide(i.index, SIDE), rows_floats(self.inner) // HALVES)
            line = w.multiply(w.remainder(i.index, SIDE), LINE_FLOATS)
            self._split(source, rows.scale, w.at(self.block, w.add(half, line)))

    def _split(self, source: str, scale: str | None, target: str) -> None:
        """A row of K to its line of each register."""
        w = self.w

        def step(k: str, masks: tuple[str | None, str | None]) -> None:
            vectors = []
            for place, mask in zip((k, w.add(k, SIDE)), masks, strict=True):
                value = w.load(w.at(source, place), mask)
                if scale is not None:
                    value = w.vector_operation("fmul", value, w.load(w.at(scale, place), mask))
                vectors.append(value)
            begin = w.multiply(w.divide(k, STEP), STEP_FLOATS_A)
            for part, joined in enumerate(w.halves_of_parts(vectors[0], vectors[1], PARTS)):
                w.store_integers(joined, w.at(target, w.add(begin, part * PITCH_FLOATS)))

        whole = self.inner // STEP * STEP
        with w.loop(0, whole, STEP) as k:
            step(k.index, (None, None))
        if rest := self.inner - whole:
            step(str(whole), (w.mask_below(rest), w.mask_below(rest - SIDE)))

    def _panel(self, rows: Rows, start: str, count: str, panel: str, share: tuple[str, str], *, is_tail: bool) -> None:
        """A panel times those tiles of a block that are in the share."""
        before = self.w.multiply(panel, count)
        first, last = self.w.subtract(share[0], before), self.w.subtract(share[1], before)
        own = self.w.most(first, 0), self.w.least(last, count)
        _Panel(self, rows, start, own, self.w.multiply(panel, COLUMNS), is_tail=is_tail).write()


class _Panel:
    """A panel, and what it meets.

    Args:
        product, rows: what this is a part of.
        start: the number of the block's first tile.
        share: the first of the block's tiles to multiply, and the first that is not.
        column: the panel's first.
        is_tail: whether it is narrower.
    """

    def __init__(
        self, product: MatrixProduct, rows: Rows, start: str, share: tuple[str, str], column: str, *, is_tail: bool
    ) -> None:
        w = self.w = product.w
        self.product, self.rows, self.start, self.columns = product, rows, start, product.columns
        self.first, self.last = share
        self.n_vectors = product.tail if is_tail else HALVES
        self.b = w.at(product.panels, w.multiply(column, product.steps * STEP_FLOATS_B // SIDE))
        self.is_asked_for = not is_tail and 2 * PARTS * product.inner * product.columns >= PREFETCHED_BYTES
        self.final = (product.steps - 1) // PIECE * PIECE  # where the last piece of K begins
        self.places = [w.add(column, j * SIDE) for j in range(self.n_vectors)]
        self.masks: list[str | None] = [None] * self.n_vectors
        if is_tail and self.columns % SIDE:
            self.masks[-1] = w.mask_below(self.columns % SIDE)
        self.biases: list[str] | None = None
        if product.bias is not None:
            pairs = zip(self.places, self.masks, strict=True)
            self.biases = [w.load(w.at(product.bias, at), mask) for at, mask in pairs]

    def write(self) -> None:
        """All tiles.

        What comes after the product of one is done beside the product of the next, by units that would idle.
        """
        w = self.w
        if self.final:
            self._pieces()
        wide = w.divide(w.add(self.product.height, ROWS - SIDE - 1), ROWS)  # tiles of more rows than a register has
        wide = w.least(self.last, w.subtract(wide, self.start))
        with w.when(w.compare("slt", self.first, wide)):
            self._last_piece(self.first, HALVES)
            with w.loop(w.add(self.first, 1), wide, carried=self._no_squares()) as tile:
                before = w.subtract(tile.index, 1)
                work, squares = self._finished_in_parts(before), [self._no_squares()]
                self._last_piece(tile.index, HALVES, lambda: squares.append(next(work)))
                tile.next = [w.vector_operation("fadd", *pair) for pair in zip(tile.carried, squares[-1], strict=True)]
            self._add_squares(tile.carried)
            self._finish(w.subtract(wide, 1))
        with w.when(w.compare("slt", w.most(self.first, wide), self.last)):
            half = w.subtract(self.last, 1)
            self._last_piece(half, 1)
            self._finish(half)

    def _pieces(self) -> None:
        """The sums of all pieces of K but the last, kept for each tile."""
        w = self.w
        with w.loop(self.first, self.last) as tile:
            self._piece(tile.index, 0, None)
        with w.loop(PIECE, self.final, PIECE) as k, w.loop(self.first, self.last) as tile:
            self._piece(tile.index, k.index, self._kept(tile.index))

    def _piece(self, tile: str, begin: str | int, kept: str | None) -> None:
        w, is_half = self.w, self.w.compare("sle", self.product.rows_in(self.w.add(self.start, tile)), SIDE)
        with w.when(is_half):
            self._multiply(tile, begin, PIECE, 1, kept, self._kept(tile))
        with w.when(w.value(f"xor i1 {is_half}, true")):
            self._multiply(tile, begin, PIECE, HALVES, kept, self._kept(tile))

    def _last_piece(self, tile: str, n_halves: int, beside: Callable[[], None] | None = None) -> None:
        kept = self._kept(tile) if self.final else None
        self._multiply(tile, self.final, self.product.steps - self.final, n_halves, kept, self._sums(tile), beside)

    def _kept(self, tile: str) -> str:
        """The place of a tile's sums over pieces of K."""
        return self.w.at(self.product.kept, self.w.multiply(tile, TILE_FLOATS))

    def _sums(self, tile: str) -> str:
        """The place of a tile's sums until they are finished, which is beside the next tile."""
        return self.w.at(self.product.sums, self.w.multiply(self.w.remainder(tile, 2), TILE_FLOATS))

    def _multiply(
        self, tile: str, begin: str | int, count: int, n_halves: int, kept: str | None, target: str,
        beside: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """So many steps of K of a tile, added to what is kept, to `target`; `beside` writes what is done in between,
        once after each product of two registers.
        """
        w = self.w
        if self.is_asked_for:
            self._ask_for_a_part(tile, begin)
        of_tile = w.multiply(tile, rows_floats(self.product.inner))
        a = w.at(self.product.block, w.add(of_tile, w.multiply(begin, STEP_FLOATS_A)))
        b = w.at(self.b, w.multiply(begin, self.n_vectors * STEP_FLOATS_B))
        sums = [(i, j) for i in range(n_halves) for j in range(self.n_vectors)]
        for i, j in sums:
            place = i * SIDE * COLUMNS + j * SIDE
            if kept is None:
                w.clear_matrix(SUMS)
            else:
                w.load_matrix(SUMS, w.at(kept, place), 4 * COLUMNS)
            held_a, held_b = (-1, -1), (-1, -1)
            for k, part_a, part_b in ((k, *pair) for k in range(count) for pair in PAIRS):
                if held_a != (k, part_a):
                    of_a = (i * self.product.steps + k) * STEP_FLOATS_A + part_a * PITCH_FLOATS
                    w.load_matrix(A, w.at(a, of_a), 4 * LINE_FLOATS)
                if held_b != (k, part_b):
                    of_b = (k * self.n_vectors + j) * STEP_FLOATS_B + part_b * REGISTER_FLOATS
                    w.load_matrix(B, w.at(b, of_b), 4 * LINE_FLOATS)
                held_a, held_b = (k, part_a), (k, part_b)
                w.multiply_matrices(SUMS, A, B)
                if beside is not None:
                    beside()
            w.store_matrix(SUMS, w.at(target, place), 4 * COLUMNS)

    def _ask_for_a_part(self, tile: str, begin: str | int) -> None:
        """Of the piece of the panel that comes next."""
        w, size = self.w, PIECE * HALVES * STEP_FLOATS_B
        following = w.at(self.b, w.add(w.multiply(begin, HALVES * STEP_FLOATS_B), size))
        part, parts = w.subtract(tile, self.first), w.subtract(self.last, self.first)
        with w.loop(*w.share(str(size // LINE_FLOATS), part, parts)) as line:
            w.prefetch(w.at(following, w.multiply(line.index, LINE_FLOATS)))

    def _no_squares(self) -> list[str]:
        return [self.w.constant(0.0)] * (self.n_vectors if self.rows.squares is not None else 0)

    def _add_squares(self, squares: list[str]) -> None:
        w = self.w
        for at, total in zip(self.places, squares, strict=False):
            assert self.rows.squares is not None
            address = w.at(self.rows.squares, at)
            w.store(w.vector_operation("fadd", w.load(address), total), address)

    def _finish(self, tile: str) -> None:
        """The rows that there are of a tile whose sums are complete."""
        w = self.w
        first = w.multiply(w.add(self.start, tile), ROWS)
        count, squares = w.least(ROWS, w.subtract(self.product.height, first)), self._no_squares()
        end = w.multiply(w.divide(count, TOGETHER), TOGETHER)
        for start, stop, size in (("0", end, TOGETHER), (end, count, 1)):
            with w.loop(start, stop, size, carried=squares) as i:
                vectors = [(w.add(i.index, step), j) for step in range(size) for j in range(self.n_vectors)]
                i.next = self._finish_vectors(self._sums(tile), first, vectors, i.carried)
            squares = i.carried
        self._add_squares(squares)

    def _finished_in_parts(self, tile: str) -> Iterator[list[str]]:
        """All rows of a tile, in as many parts as the last piece of K has pairs of parts;
        gives the sums of squares so far.
        """
        first, squares = self.w.multiply(self.w.add(self.start, tile), ROWS), self._no_squares()
        vectors = [(str(row), j) for row in range(ROWS) for j in range(self.n_vectors)]
        n_parts = HALVES * self.n_vectors * len(PAIRS) * (self.product.steps - self.final)
        for part in range(n_parts):
            begin, end = (len(vectors) * n // n_parts for n in (part, part + 1))
            squares = self._finish_vectors(self._sums(tile), first, vectors[begin:end], squares)
            yield squares

    def _finish_vectors(self, sums: str, first: str, vectors: list[tuple[str, int]], squares: list[str]) -> list[str]:
        """Vectors of a tile, each of a row and a place in it, to the output; the squares with theirs added."""
        w, rows, squares = self.w, self.rows, list(squares)
        for row, j in vectors:
            value = w.load(w.at(sums, w.add(w.multiply(row, COLUMNS), j * SIDE)))
            if self.biases is not None:
                value = w.vector_operation("fadd", value, self.biases[j])
            address = w.add(w.multiply(w.add(first, row), self.columns), self.places[j])
            if rows.residual is not None:
                residual = w.load(w.at(rows.residual, address), self.masks[j])
                value = w.vector_operation("fadd", value, residual)
            if rows.squares is not None:
                value = gelu(w, value)
                squares[j] = w.fma(value, value, squares[j])
            w.store(value, w.at(rows.output, address), self.masks[j])
        return squares
