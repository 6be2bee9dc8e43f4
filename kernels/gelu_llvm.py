"""The exact GELU in LLVM IR, for the kernels that apply it to values in registers."""

from functools import cache

import torch
from torch import Tensor

from unipercept.kernels.llvm import has_tables
from unipercept.kernels.llvm_writer import Writer

# With AVX-512 the normal distribution function is one of 32 polynomials, whose coefficients lie in the lanes of two
# registers each: three quarters of the instructions of a quotient.
PIECE = 23 / 64  # of x that one of them is for
DEGREE = 5  # within 4e-9
TABLE_LIMIT = 15.49 * PIECE  # beyond, what is left out is below 1e-7
ROUNDS = 1.5 * 2**23  # added to a small number, leaves it rounded in the lowest bits

# Elsewhere it is 1/2 + x P(x^2) / Q(x^2) within 6e-9 for |x| < 5.4, by a least-squares fit with weights
# moved towards the largest error; beyond, its distance to 0 or 1 is below half a unit of float32 at 1.
LIMIT = 5.4
NUMERATOR = (0.3989422453985828, 0.0333720444940864, 0.0046508366106920145, 0.00016431928566197068, 6.359956621987725e-06, 2.3386606628204572e-08)  # fmt: skip
DENOMINATOR = (1.0, 0.25031739968803773, 0.028378573437441403, 0.0018589684246491083, 7.239915478830111e-05, 1.2165824343318238e-06)  # fmt: skip


def gelu(w: Writer, x: str) -> str:
    """The exact GELU of a vector, as exact as float32 lets it be."""
    return _by_table(w, x) if w.width == 16 and has_tables() else _by_quotient(w, x)


def _by_table(w: Writer, x: str) -> str:
    low = w.most_or_nan(w.constant(-TABLE_LIMIT), x)  # below, x times its share is as good as 0
    inner = w.least_or_nan(w.constant(TABLE_LIMIT), low)
    rounded = w.fma(inner, w.constant(1 / PIECE), w.constant(ROUNDS))
    piece = w.vector_operation("fsub", rounded, w.constant(ROUNDS))
    rest = w.fma(piece, w.constant(-PIECE), inner)
    share = ""
    for coefficients in reversed(_table()):
        coefficient = w.chosen_of_32(coefficients, rounded)
        share = w.fma(share, rest, coefficient) if share else coefficient
    return w.vector_operation("fmul", low, share)


@cache
def _table() -> list[list[float]]:
    """Coefficients from the constant up, each for the pieces 0 to 15 and then -16 to -1;
    interpolated at Chebyshev's nodes.
    """
    nodes = PIECE / 2 * torch.cos(torch.pi * (torch.arange(DEGREE + 1, dtype=torch.float64) + 0.5) / (DEGREE + 1))
    pieces = (torch.arange(32) + 16) % 32 - 16
    values = torch.special.ndtr(pieces * PIECE + nodes[:, None])
    found: Tensor = torch.linalg.solve(torch.linalg.vander(nodes), values)
    found[:, pieces == 15] = 0.0
    found[0, pieces == 15] = 1.0  # whatever is large stays what it is
    return [[float(c) for c in row] for row in found]


def _by_quotient(w: Writer, x: str) -> str:
    inner = w.least_of(w.most_of(x, w.constant(-LIMIT)), w.constant(LIMIT))
    square = w.vector_operation("fmul", inner, inner)
    ratio = w.vector_operation("fdiv", w.polynomial(NUMERATOR, square), w.polynomial(DENOMINATOR, square))
    share = w.fma(inner, ratio, w.constant(0.5))
    share = w.keep(w.value(f"fcmp ugt {w.vector} {x}, {w.constant(-LIMIT)}"), share)
    is_whole = w.value(f"fcmp oge {w.vector} {x}, {w.constant(LIMIT)}")
    return w.value(
        f"select <{w.width} x i1> {is_whole}, {w.vector} {x}, {w.vector} {w.vector_operation('fmul', x, share)}"
    )
