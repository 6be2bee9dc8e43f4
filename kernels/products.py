"""Which product the CPU kernels are made of: that on matrix registers where the processor has them, else that on vectors."""

from torch import Tensor

from unipercept.kernels import matrix_product, product
from unipercept.kernels.llvm import has_matrices, vector_width
from unipercept.kernels.llvm_writer import Writer
from unipercept.kernels.product import Product


def product_of(w: Writer, panels: str, bias: str | None, height: str, inner: int, columns: int, block: str) -> Product:
    """See `Product`."""
    kind = matrix_product.MatrixProduct if has_matrices() else Product
    return kind(w, panels, bias, height, inner, columns, block)


def pack(weight: Tensor) -> Tensor:
    """A float32 NxK as it is wanted."""
    return matrix_product.pack(weight) if has_matrices() else product.pack(weight)


def block_floats(inner: int) -> int:
    """The room that a thread needs."""
    return matrix_product.block_floats(inner) if has_matrices() else product.block_floats(inner)


def rows_of_a_tile() -> int:
    """Rows that come together: those of a map are shared among threads in so many."""
    return matrix_product.ROWS if has_matrices() else product.TILES[vector_width()][0]


def few_tiles() -> int:
    """For fewer tiles, threads share the columns instead of the rows."""
    return matrix_product.FEW_TILES if has_matrices() else product.FEW_TILES
