"""A matrix product on the CPU with what comes before and after it, as a part of the kernels that need one.

    O = after((A * scale) B^T),  A: M x K, scale: K, B: N x K

`after` adds the bias, and applies the GELU and adds up squares over M, or adds a residual. A tile of 7 rows by 3 vectors
(6 by 2 with AVX2) stays in registers over all of K; its rows are scaled into a small buffer, and B comes packed in panels.

Shapes: M rows, K inner and N outer columns, V floats of a vector.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from unipercept.kernels.gelu_llvm import gelu
from unipercept.kernels.llvm import vector_width
from unipercept.kernels.llvm_writer import Loop, Writer

TILES = {
    16: (7, 3),
    8: (6, 2),
}  # V to rows and vectors: 7 divides the maps of 224 pixels, and all of it fits the registers

ADDED_IN_TURN = (
    256  # columns of K; their sums are added apart, so that long sums are as exact as those of other libraries
)


class Outer(NamedTuple):
    """What a kernel must know of N when it is written: vectors of the last, narrower panel, and whether the last is filled."""

    tail: int
    is_ragged: bool


def outer(columns: int) -> Outer:
    """N to what a kernel must know of it."""
    width = vector_width()
    return Outer(whole_vectors(columns) // width % TILES[width][1], columns % width != 0)


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


class Rows(NamedTuple):
    """Addresses of one image's rows, and of what goes with them; the first three lines by M, the last two over all of M."""

    a: str  # M x K
    output: str  # M x N
    residual: str | None  # M x N; None for the GELU
    scale: str  # K
    squares: str | None  # N in whole vectors, added to; None without the GELU


class Product:
    """Writes a product into the function that `w` writes.

    Args:
        w: the function.
        panels, bias: addresses of B, packed, and of the bias, N, or None.
        height, inner, columns: M, K and N.
        shape: of N.
        tile: address of a thread's own room for a tile's rows of K, in whole vectors.
    """

    def __init__(
        self, w: Writer, panels: str, bias: str | None, height: str, inner: str, columns: str, shape: Outer, tile: str
    ) -> None:
        self.w, self.panels, self.bias, self.shape, self.tile = w, panels, bias, shape, tile
        self.height, self.inner, self.columns = height, inner, columns
        self.n_rows, self.n_vectors = TILES[w.width]
        self.line = w.whole_vectors(w.add(inner, w.width - 1))
        self.n_whole = w.divide(columns, self.n_vectors * w.width)
        if not shape.tail and shape.is_ragged:  # the last vector of the last panel has idle lanes
            self.n_whole = w.divide(w.add(columns, w.width - 1), self.n_vectors * w.width)
            self.n_whole = w.subtract(self.n_whole, 1)
            self.shape = Outer(self.n_vectors, True)
        self.n_panels = w.add(self.n_whole, int(self.shape.tail > 0))

    def write(self, rows: Rows, tiles: tuple[str, str], panels: tuple[str, str]) -> None:
        """Tiles and panels from the first up to the second number of each pair."""
        with self.w.loop(*tiles) as tile:
            self._tile(rows, tile.index, panels)

    def _tile(self, rows: Rows, index: str, panels: tuple[str, str]) -> None:
        """Rows beyond the last repeat it, and count for nothing."""
        w = self.w
        start, limit = w.multiply(index, self.n_rows), w.subtract(self.height, 1)
        lines = [w.least(w.add(start, i), limit) for i in range(self.n_rows)]
        self._scale([w.at(rows.a, w.multiply(line, self.inner)) for line in lines], rows.scale)
        self.places = [w.multiply(line, self.columns) for line in lines]
        if rows.squares is not None:
            inside = (w.compare("slt", w.add(start, i), self.height) for i in range(self.n_rows))
            self.counts = [w.spread(w.value(f"select i1 {bit}, float 1.0, float 0.0")) for bit in inside]
        with w.loop(panels[0], w.least(panels[1], self.n_whole)) as panel:
            self._panel(rows, panel.index, self.n_vectors, False)
        if self.shape.tail:
            with w.when(w.compare("sgt", panels[1], self.n_whole)):
                self._panel(rows, self.n_whole, self.shape.tail, self.shape.is_ragged)

    def _scale(self, sources: list[str], scale: str) -> None:
        w = self.w
        targets = [w.at(self.tile, w.multiply(self.line, i)) for i in range(self.n_rows)]

        def step(k: str, mask: str | None) -> None:
            factor = w.load(w.at(scale, k), mask)
            for source, target in zip(sources, targets, strict=True):
                w.store(w.vector_operation("fmul", w.load(w.at(source, k), mask), factor), w.at(target, k))

        w.each_vector(self.inner, step)

    def _panel(self, rows: Rows, index: str, n_vectors: int, is_ragged: bool) -> None:
        w = self.w
        column = w.multiply(index, self.n_vectors * w.width)
        source = w.at(self.panels, w.multiply(column, self.inner))
        zeros = [w.constant(0.0)] * (self.n_rows * n_vectors)
        with w.loop(0, self.inner, ADDED_IN_TURN, carried=zeros) as part:
            with w.loop(part.index, w.least(w.add(part.index, ADDED_IN_TURN), self.inner), carried=zeros) as k:
                self._step(source, k, n_vectors)
            part.next = [w.vector_operation("fadd", *pair) for pair in zip(part.carried, k.carried, strict=True)]
        for j in range(n_vectors):
            at = w.add(column, j * w.width)
            mask = w.mask_below(w.subtract(self.columns, at)) if is_ragged and j == n_vectors - 1 else None
            self._finish(rows, [part.carried[i * n_vectors + j] for i in range(self.n_rows)], at, mask)

    def _step(self, source: str, k: Loop, n_vectors: int) -> None:
        """One inner column: its row of the panel times its value in each row of the tile."""
        w = self.w
        line = w.at(source, w.multiply(k.index, n_vectors * w.width))
        b = [w.load(w.at(line, j * w.width)) for j in range(n_vectors)]
        sums = []
        for i in range(self.n_rows):
            spread = w.spread_from(w.at(self.tile, w.add(w.multiply(self.line, i), k.index)))
            sums += [w.fma(spread, b[j], k.carried[i * n_vectors + j]) for j in range(n_vectors)]
        k.next = sums

    def _finish(self, rows: Rows, sums: list[str], column: str, mask: str | None) -> None:
        """What comes after the product, for the rows of one vector of columns."""
        w, total = self.w, self.w.constant(0.0)
        bias = w.constant(0.0) if self.bias is None else w.load(w.at(self.bias, column), mask)
        for i, value in enumerate(sums):
            place = w.add(self.places[i], column)
            found = w.vector_operation("fadd", value, bias)
            if rows.residual is not None:
                found = w.vector_operation("fadd", found, w.load(w.at(rows.residual, place), mask))
            if rows.squares is not None:
                found = gelu(w, found)
                total = w.fma(w.vector_operation("fmul", found, self.counts[i]), found, total)
            w.store(found, w.at(rows.output, place), mask)
        if rows.squares is not None:
            address = w.at(rows.squares, column)
            w.store(w.vector_operation("fadd", w.load(address), total), address)
