"""GELU and its slope in Triton, for every kernel that applies it: exact, or for 16-bit types with the normal
distribution function within 1.9e-5.

Values are float32 tiles of any shape.
"""
# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # Triton's interpreter knows no assembly


@triton.jit
def _exp2(x):
    if _INTERPRETED:
        return tl.exp2(x)
    else:  # the hardware's own, in one instruction: what is lost are results below 2^-126
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def _reciprocal(x):
    if _INTERPRETED:
        return 1.0 / x
    else:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def _logistic(x):
    """The normal distribution function within 1.9e-5, as 1 / (1 + exp(-x P(x^2))), in 8 instructions; and x^2 as
    far as P is meant to go. Minimax; beyond |x| = 5 the last P suffices. The erf of CUDA's library takes some 30,
    and would be the bottleneck.
    """
    square = tl.minimum(x * x, 25.0)
    exponent = square * 0.000912575632 - 0.106183332
    return _reciprocal(1.0 + _exp2(x * (exponent * square - 2.30172339))), square


@triton.jit
def _normal(x, EXACT: tl.constexpr):
    """The normal distribution function; for 16-bit types `_logistic`."""
    if EXACT:
        return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        return _logistic(x)[0]


@triton.jit
def gelu(x, EXACT: tl.constexpr):
    return x * _normal(x, EXACT)


@triton.jit
def gelu_and_slope(x, EXACT: tl.constexpr):
    if EXACT:
        below = _normal(x, True)
        return x * below, below + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
    else:
        below, square = _logistic(x)
        rate = square * -0.00316274617 + 0.220802029
        return x * below, below + x * (below - below * below) * (rate * square + 1.59543299)
