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
PITCH_FLOATS = 272  # from one register of A to the next in the block: a row's lines meet all sets of the first-level cache then
EARLY = True
HALVES = 2  # registers of rows, and of columns, of a tile: its four sums, and two registers each for A and B
ROWS, COLUMNS = HALVES * SIDE, HALVES * SIDE  # of a tile
SUMS_FLOATS = ROWS * COLUMNS
BLOCK_BYTES = 512 * 1024  # of A's rows that meet a panel after the other: a part of the second-level cache
PIECE_STEPS = 5  # of K taken together: a panel's take 30 KB of the first-level cache
PREFETCHED_BYTES = 1024 * 1024  # of a B that does not stay in the second-level cache
LINE_FLOATS = 16  # of a line of the caches
INTERLEAVED = True
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
    return tiles * _tile_floats(inner) + 2 * SUMS_FLOATS + kept + steps(inner) * STEP + STEP


def _tile_floats(inner: int) -> int:
    return HALVES * steps(inner) * PARTS * PITCH_FLOATS


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
        self.kept = w.at(self.sums, 2 * SUMS_FLOATS)
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
            place = w.multiply(w.divide(k, STEP), PARTS * PITCH_FLOATS)
            for part, joined in enumerate(w.halves_of_parts(*vectors, PARTS)):
                w.store_integers(joined, w.at(target, w.add(place, part * PITCH_FLOATS)))

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

        def multiply(
            tile: str, begin: str | int, end: str | int, kept: str | None, target: str, n_halves: int, between: Callable[[], None] | None = None
        ) -> None:
            b = w.at(source, w.multiply(begin, n_vectors * PARTS * REGISTER_FLOATS))
            if not is_tail and 2 * PARTS * self.inner * self.columns >= PREFETCHED_BYTES:
                size = PIECE_STEPS * HALVES * PARTS * REGISTER_FLOATS
                share_of = w.share(str(size // LINE_FLOATS), w.subtract(tile, first), w.subtract(last, first))
                with w.loop(*share_of) as line:
                    w.prefetch(w.at(b, w.add(size, w.multiply(line.index, LINE_FLOATS))))
            place = w.add(w.multiply(tile, _tile_floats(self.inner)), w.multiply(begin, PARTS * PITCH_FLOATS))
            a, many = w.at(self.block, place), w.subtract(end, begin)
            self._multiply(a, b, many if between is None else int(end) - int(begin), n_halves, n_vectors, kept, target, between)

        def of_either(tile: str, *others: str | int | None) -> None:
            is_half = w.compare("sle", self._rows_in(w.add(start, tile)), SIDE)
            with w.when(is_half):
                multiply(tile, *others, 1)
            with w.when(w.value(f"xor i1 {is_half}, true")):
                multiply(tile, *others, HALVES)

        def kept_of(tile: str) -> str:
            return w.at(self.kept, w.multiply(tile, SUMS_FLOATS))

        if final:
            with w.loop(first, last) as tile:
                of_either(tile.index, 0, PIECE_STEPS, None, kept_of(tile.index))
            with w.loop(PIECE_STEPS, final, PIECE_STEPS) as k, w.loop(first, last) as tile:
                place = kept_of(tile.index)
                of_either(tile.index, k.index, w.add(k.index, PIECE_STEPS), place, place)

        def sums_of(tile: str) -> str:
            return w.at(self.sums, w.multiply(w.remainder(tile, 2), SUMS_FLOATS))

        end = _Columns(self, rows, column, n_vectors, is_tail=is_tail)
        if not INTERLEAVED:
            with w.loop(first, last) as tile:
                of_either(tile.index, final, self.steps, kept_of(tile.index) if final else None, sums_of(tile.index))
                end.finish(w.add(start, tile.index), sums_of(tile.index))
            return

        def last_piece(tile: str, n_halves: int, between: Callable[[], None] | None = None) -> None:
            multiply(tile, final, self.steps, kept_of(tile) if final else None, sums_of(tile), n_halves, between)

        wide = w.least(last, w.subtract(w.divide(w.add(self.height, ROWS - SIDE - 1), ROWS), start))
        with w.when(w.compare("slt", first, wide)):
            last_piece(first, HALVES)
            with w.loop(w.add(first, 1), wide, carried=end.no_squares()) as tile:
                before_it = w.subtract(tile.index, 1)
                work = end.pieces(w.add(start, before_it), sums_of(before_it), len(PAIRS) * (self.steps - final))
                last_piece(tile.index, HALVES, work)
                pairs = zip(tile.carried, work.squares, strict=True)
                tile.next = [w.vector_operation("fadd", *pair) for pair in pairs]
            end.add_squares(tile.carried)
            final_tile = w.subtract(wide, 1)
            end.finish(w.add(start, final_tile), sums_of(final_tile))
        with w.when(w.compare("slt", w.most(first, wide), last)):
            half = w.subtract(last, 1)
            last_piece(half, 1)
            end.finish(w.add(start, half), sums_of(half))

    def _rows_in(self, tile: str) -> str:
        """How many rows of a tile there are."""
        return self.w.least(ROWS, self.w.subtract(self.height, self.w.multiply(tile, ROWS)))

    def _multiply(
        self, a: str, b: str, many: str | int, n_halves: int, n_vectors: int, kept: str | None, target: str,
        between: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """So many steps of K of a tile, added to what is kept, to the sums at `target`; `between` writes what is done beside it."""
        w = self.w
        places = [(i, j, HALVES * i + j) for i in range(n_halves) for j in range(n_vectors)]
        for i, j, register in places:
            if kept is None:
                w.clear_matrix(register)
            else:
                w.load_matrix(register, w.at(kept, i * SIDE * COLUMNS + j * SIDE), 4 * COLUMNS)
        if EARLY:
            self._load(a, b, 0, PAIRS[0], places)
        if isinstance(many, int):
            for k in range(many):
                self._step(a, b, k, k + 1 if k + 1 < many else None, places, between)
        else:
            with w.loop(0, many) as loop:
                following = w.least(w.add(loop.index, 1), w.subtract(many, 1))
                self._step(a, b, loop.index, following, places, between)
        for i, j, register in places:
            w.store_matrix(register, w.at(target, i * SIDE * COLUMNS + j * SIDE), 4 * COLUMNS)

    def _load_a(self, a: str, k: str | int, part: int, i: int) -> None:
        w = self.w
        offset = i * (_tile_floats(self.inner) // HALVES) + part * PITCH_FLOATS
        w.load_matrix(4 + i, w.at(a, w.add(w.multiply(k, PARTS * PITCH_FLOATS), offset)), 4 * LINE_FLOATS)

    def _load_b(self, b: str, k: str | int, part: int, j: int, n_vectors: int) -> None:
        w = self.w
        offset = (j * PARTS + part) * REGISTER_FLOATS
        w.load_matrix(6 + j, w.at(b, w.add(w.multiply(k, n_vectors * PARTS * REGISTER_FLOATS), offset)), 4 * LINE_FLOATS)

    def _load(self, a: str, b: str, k: str | int, pair: tuple[int, int], places: list[tuple[int, int, int]]) -> None:
        for i in sorted({i for i, _, _ in places}):
            self._load_a(a, k, pair[0], i)
        n_vectors = 1 + max(j for _, j, _ in places)
        for j in range(n_vectors):
            self._load_b(b, k, pair[1], j, n_vectors)

    def _step(
        self, a: str, b: str, k: str | int, following: str | int | None, places: list[tuple[int, int, int]],
        between: Callable[[], None] | None,
    ) -> None:  # fmt: skip
        """A register's columns of K: the products of the parts that count."""
        w, n_vectors, n_halves = self.w, 1 + max(j for _, j, _ in places), 1 + max(i for i, _, _ in places)
        held: tuple[int, int] = (-1, -1)
        for x, pair in enumerate(PAIRS):
            if not EARLY:
                for i in range(n_halves) if held[0] != pair[0] else ():
                    self._load_a(a, k, pair[0], i)
                for j in range(n_vectors) if held[1] != pair[1] else ():
                    self._load_b(b, k, pair[1], j, n_vectors)
                held = pair
                for i, j, register in places:
                    w.multiply_matrices(register, 4 + i, 6 + j)
            else:
                is_last = x + 1 == len(PAIRS)
                k2, pair2 = (following, PAIRS[0]) if is_last else (k, PAIRS[x + 1])
                a_changes = k2 is not None and (is_last or pair[0] != pair2[0])
                b_changes = k2 is not None and (is_last or pair[1] != pair2[1])
                order = sorted(places) if a_changes and not b_changes else sorted(places, key=lambda p: (p[1], p[0]))
                left = list(order)
                for place in order:
                    i, j, register = place
                    w.multiply_matrices(register, 4 + i, 6 + j)
                    left.remove(place)
                    if a_changes and all(o[0] != i for o in left):
                        assert k2 is not None
                        self._load_a(a, k2, pair2[0], i)
                    if b_changes and all(o[1] != j for o in left):
                        assert k2 is not None
                        self._load_b(b, k2, pair2[1], j, n_vectors)
            if between is not None:
                between()


class _Columns:
    """What comes after the product for the columns of a panel."""

    def __init__(self, product: MatrixProduct, rows: Rows, column: str, n_vectors: int, *, is_tail: bool) -> None:
        w = self.w = product.w
        self.product, self.rows, self.columns = product, rows, product.columns
        self.places = [w.add(column, j * SIDE) for j in range(n_vectors)]
        self.masks: list[str | None] = [None] * n_vectors
        if is_tail and self.columns % SIDE:
            self.masks[-1] = w.mask_below(self.columns % SIDE)
        self.biases: list[str] | None = None
        if product.bias is not None:
            pairs = zip(self.places, self.masks, strict=True)
            self.biases = [w.load(w.at(product.bias, at), mask) for at, mask in pairs]

    def no_squares(self) -> list[str]:
        return [self.w.constant(0.0)] * (len(self.places) if self.rows.squares is not None else 0)

    def add_squares(self, squares: list[str]) -> None:
        w = self.w
        for at, total in zip(self.places, squares, strict=False):
            assert self.rows.squares is not None
            address = w.at(self.rows.squares, at)
            w.store(w.vector_operation("fadd", w.load(address), total), address)

    def vector(self, sums: str, row: str, line: str, j: int) -> str:
        """A row's vector `j`, finished and stored; its row of the output begins at `line`."""
        w, mask = self.w, self.masks[j]
        value = w.load(w.at(sums, w.add(w.multiply(row, COLUMNS), j * SIDE)))
        if self.biases is not None:
            value = w.vector_operation("fadd", value, self.biases[j])
        address = w.add(line, self.places[j])
        if self.rows.residual is not None:
            value = w.vector_operation("fadd", value, w.load(w.at(self.rows.residual, address), mask))
        if self.rows.squares is not None:
            value = gelu(w, value)
        w.store(value, w.at(self.rows.output, address), mask)
        return value

    def finish(self, tile: str, sums: str) -> None:
        """The rows that there are of a tile."""
        w, first, count = self.w, self.w.multiply(tile, ROWS), self.product._rows_in(tile)
        end = w.multiply(w.divide(count, TOGETHER), TOGETHER)
        squares = self.no_squares()
        for start, stop, size in (("0", end, TOGETHER), (end, count, 1)):
            with w.loop(start, stop, size, carried=squares) as i:
                totals = list(i.carried)
                for step in range(size):
                    row = w.add(i.index, step)
                    line = w.multiply(w.add(first, row), self.columns)
                    found = [self.vector(sums, row, line, j) for j in range(len(self.places))]
                    totals = [w.fma(x, x, total) for x, total in zip(found, totals, strict=False)]
                i.next = totals
            squares = i.carried
        self.add_squares(squares)

    def pieces(self, tile: str, sums: str, count: int) -> "_Pieces":
        return _Pieces(self, tile, sums, count)


class _Pieces:
    """All rows of a tile in so many pieces, one each time that this is called."""

    def __init__(self, columns: _Columns, tile: str, sums: str, count: int) -> None:
        self.columns, self.sums, self.squares, self.count = columns, sums, columns.no_squares(), count
        self.first, self.called = columns.w.multiply(tile, ROWS), 0

    def __call__(self) -> None:
        w, columns = self.columns.w, self.columns
        n_vectors = len(columns.places)
        begin, end = (ROWS * n_vectors * i // self.count for i in (self.called, self.called + 1))
        self.called += 1
        for place in range(begin, end):
            row, j = divmod(place, n_vectors)
            line = w.multiply(w.add(self.first, row), columns.columns)
            value = columns.vector(self.sums, str(row), line, j)
            if self.squares:
                self.squares[j] = w.fma(value, value, self.squares[j])
