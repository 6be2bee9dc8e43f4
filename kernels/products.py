"""Which product the CPU kernels use: on vectors, or on matrix registers where the processor
has them and they are faster.

Shapes: K inner and N outer columns.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from unipercept.kernels import matrix_product, product
from unipercept.kernels.llvm import has_matrices
from unipercept.kernels.matrix_product import MatrixProduct
from unipercept.kernels.product import Product

# On Emerald Rapids, at a batch of 8: matrix registers take 0.81 to 0.85 of the vectors' time at K and N of 160 and 640,
# 0.91 to 0.94 at 80 and 320, but 1.05 at 40 and 160, where taking the rows apart weighs, and 1.16 to 1.24 at 320 and
# 1280, whose weights, half as large again, come from the third-level cache.
MIN_WIDTH = 64  # of K and N
MAX_WEIGHT_BYTES = 1024 * 1024


class Kind(NamedTuple):
    """A product, and what goes with it."""

    product: type[Product]
    pack: Callable[[Tensor], Tensor]  # a float32 NxK as it is wanted
    block_floats: Callable[[int], int]  # of K: the room that a thread needs
    rows_of_a_tile: Callable[[], int]  # rows that come together: those of a map are shared among threads in so many
    few_tiles: int  # for fewer, threads share the columns instead of the rows


VECTORS = Kind(Product, product.pack, product.block_floats, product.rows_of_a_tile, product.FEW_TILES)
MATRICES = Kind(
    MatrixProduct, matrix_product.pack, matrix_product.block_floats, lambda: matrix_product.ROWS, matrix_product.FEW_TILES
)  # fmt: skip


def kind_of(inner: int, columns: int, *, is_by_image: bool) -> Kind:
    """That for a product of K and N, to be run by image or not."""
    return MATRICES if has_matrices() and suits_matrices(inner, columns, is_by_image) else VECTORS


def suits_matrices(inner: int, columns: int, is_by_image: bool) -> bool:
    """Whether they are faster. At a batch of 1 weights come from far, and fewer bytes of them are better."""
    weight_bytes = 2 * matrix_product.PARTS * inner * columns
    return is_by_image and min(inner, columns) >= MIN_WIDTH and weight_bytes <= MAX_WEIGHT_BYTES
