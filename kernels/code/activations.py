"""The activations, element by element, with `exp` and `erf` written so that LLVM can vectorise them."""

import numpy as np

from mvlm_np import ops
from mvlm_np.kernels.code.compile import inline
from mvlm_np.kernels.code.kernel import kernel, reads, writes
from mvlm_np.kernels.code.simd import fma
from mvlm_np.kernels.shapes import ACTIVATED as BLOCK


@kernel(reads(1), writes(1))
def _quick_gelu(first, stop, x, out):
    for block in range(first, stop):
        for i in range(block * BLOCK, _end(x, block)):
            out[i] = quick_gelu_of(x[i])


@kernel(reads(1), writes(1))
def _silu(first, stop, x, out):
    for block in range(first, stop):
        for i in range(block * BLOCK, _end(x, block)):
            out[i] = silu_of(x[i])


@kernel(reads(1), reads(1), writes(1))
def _swiglu(first, stop, gate, up, out):
    for block in range(first, stop):
        for i in range(block * BLOCK, _end(gate, block)):
            out[i] = silu_of(gate[i]) * up[i]


@kernel(reads(1), writes(1))
def _gelu(first, stop, x, out):
    for block in range(first, stop):
        for i in range(block * BLOCK, _end(x, block)):
            out[i] = gelu_of(x[i])


@inline
def _end(x, block):
    return min(len(x), (block + 1) * BLOCK)


# ---------------------------------------------------------------- of one number


@inline
def quick_gelu_of(x):
    return x / (np.float32(1) + exp(np.float32(-1.702) * x))


@inline
def silu_of(x):
    return x / (np.float32(1) + exp(-x))


@inline
def gelu_of(x):
    half = np.float32(0.5) * x
    return fma(half, erf(x * np.float32(0.5**0.5)), half)


# ---------------------------------------------------------------- exp


LOG2_E = np.float32(1.4426950408889634)
# ln 2 in two parts: the first has so few bits that its products with whole numbers are exact.
LN_2, LN_2_REST = np.float32(0.693359375), np.float32(-2.12194440e-4)
# Added to a small number, this leaves no bits behind the point, and the nearest whole one in the last bits.
ROUND = np.float32(1.5 * 2**23)
ROUND_BITS = np.int32(ROUND.view(np.int32))
# (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 2, the highest power first: a least-squares fit, from which exp is
# 3e-9 off, relatively.
POWERS = tuple(map(np.float32, (0.0013814538, 0.0083687454, 0.041668389, 0.16666521, 0.49999994)))


@inline
def exp(x):
    """exp in float32: within 1.01 units in the last place, 0 and infinity where float32 ends; NaN stays."""
    x = np.float32(-104) if x < np.float32(-104) else x
    x = np.float32(89) if x > np.float32(89) else x
    shifted = fma(x, LOG2_E, ROUND)
    n = shifted - ROUND
    r = fma(-n, LN_2_REST, fma(-n, LN_2, x))
    e = np.float32(1) + fma(r * r, _polynomial(POWERS, r), r)
    k = np.float32(shifted).view(np.int32) - ROUND_BITS  # n again; exp(x) = e * 2^k
    half = k >> 1  # 2^k itself may be out of range where exp(x) is not
    return e * _power_of_two(half) * _power_of_two(k - half)


@inline
def _power_of_two(k):
    return np.int32((k + 127) << 23).view(np.float32)


# ---------------------------------------------------------------- erf


# The polynomial that `ops` evaluates, in powers of u = x^2 / 8 - 1: the even and the odd ones, highest first.
EVEN, ODD = ops.ERF[::2], ops.ERF[1::2]


@inline
def erf(x):
    """erf of a float32, computed in float64 and rounded. NaN gives some number."""
    wide = min(max(np.float64(x), -4.0), 4.0)
    u = fma(wide * wide, 0.125, -1.0)
    return np.float32(wide * fma(u, _polynomial(ODD, u * u), _polynomial(EVEN, u * u)))


@inline
def _polynomial(coefficients, x):
    # LLVM unrolls short loops only, and vectorises the loop around this one only if it is unrolled:
    # that is why erf has two polynomials of degree 9 and 8 instead of one of 18.
    s = coefficients[0]
    for c in coefficients[1:]:
        s = fma(s, x, c)
    return s
