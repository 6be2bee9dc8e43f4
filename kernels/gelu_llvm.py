"""The exact GELU in LLVM's text, for the kernels that apply it to what they hold in registers."""

from unipercept.kernels.llvm import has_reciprocal
from unipercept.kernels.llvm_writer import Writer

# The normal distribution function is 1/2 + x P(x^2) / Q(x^2) within 6e-9 for |x| < 5.4, by a least-squares fit with weights
# moved towards the largest error; beyond, its distance to 0 or 1 is below half a unit of float32 at 1.
LIMIT = 5.4
NUMERATOR = (0.3989422453985828, 0.0333720444940864, 0.0046508366106920145, 0.00016431928566197068, 6.359956621987725e-06, 2.3386606628204572e-08)  # fmt: skip
DENOMINATOR = (1.0, 0.25031739968803773, 0.028378573437441403, 0.0018589684246491083, 7.239915478830111e-05, 1.2165824343318238e-06)  # fmt: skip


def gelu(w: Writer, x: str) -> str:
    """The exact GELU of a vector, as exact as float32 lets it be."""
    inner = w.least_of(w.most_of(x, w.constant(-LIMIT)), w.constant(LIMIT))
    square = w.vector_operation("fmul", inner, inner)
    ratio = _quotient(w, w.polynomial(NUMERATOR, square), w.polynomial(DENOMINATOR, square))
    share = w.fma(inner, ratio, w.constant(0.5))
    share = w.keep(w.value(f"fcmp ugt {w.vector} {x}, {w.constant(-LIMIT)}"), share)
    is_whole = w.value(f"fcmp oge {w.vector} {x}, {w.constant(LIMIT)}")
    return w.value(
        f"select <{w.width} x i1> {is_whole}, {w.vector} {x}, {w.vector} {w.vector_operation('fmul', x, share)}"
    )


def _quotient(w: Writer, a: str, b: str) -> str:
    """a / b within an unit or two of float32's last place. A division of 16 floats keeps an Intel core for as long as ten products of them."""
    if not has_reciprocal() or w.width != 16:
        return w.vector_operation("fdiv", a, b)
    guess = w.reciprocal(b)  # within 2^-14, twice as many digits after a step of Newton's
    error = w.fma(w.value(f"fneg {w.vector} {b}"), guess, w.constant(1.0))
    return w.vector_operation("fmul", a, w.fma(guess, error, guess))
