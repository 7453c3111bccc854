"""The operations of the model in plain NumPy: each function is the definition of its operation.

A fast kernel may replace a function here, but never redefine it: tests tie every kernel to the function
of the same name. float32 in gives float32 out (and float64 float64); no argument is written to. Shapes
use the letters of docs/glossary.md: T tokens, S positions that are attended to, D decoder width, V vision
width, H heads, KV key-value heads, d head size.
"""

from functools import cache
from math import erf, factorial, pi, sqrt

import numpy as np

from mvlm_np.errors import GenerationError

GROUP = 32  # columns of a quantised matrix that share a scale
SUPER = 8  # groups of a matrix with minima that share what scales and minima are counted in

# ---------------------------------------------------------------- normalisation


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """LayerNorm over the last axis: (x - mean) / sqrt(variance + eps) * weight + bias. Any (..., n)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    centred *= 1 / np.sqrt(variance + eps)
    centred *= weight
    centred += bias
    return centred


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """LLaMA's RMSNorm over the last axis: x / sqrt(mean(x^2) + eps) * weight. Any (..., n)."""
    mean_square = np.square(x).mean(axis=-1, keepdims=True)
    return x * (1 / np.sqrt(mean_square + eps)) * weight


# ---------------------------------------------------------------- activations


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)). Far below zero exp overflows to infinity, and the quotient is the 0 it should be."""
    with np.errstate(over="ignore"):
        e = np.exp(-x)
    e += 1
    return np.divide(1, e, out=e)


def quick_gelu(x: np.ndarray) -> np.ndarray:
    """CLIP's GELU: x * sigmoid(1.702 x)."""
    return x * sigmoid(1.702 * x)


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x), also called swish."""
    return x * sigmoid(x)


def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """LLaMA's gated activation: silu(gate) * up."""
    return silu(gate) * up


def gelu(x: np.ndarray) -> np.ndarray:
    """The exact GELU: x/2 * (1 + erf(x / sqrt 2)). Not the tanh approximation."""
    half = 0.5 * x
    return half + half * _erf(x * (1 / sqrt(2)))


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0)."""
    return np.maximum(x, 0)


def hardsigmoid(x: np.ndarray) -> np.ndarray:
    """clip(x + 3, 0, 6) / 6: MobileNetV3's cheap sigmoid."""
    return np.clip(x + 3, 0, 6) / 6


def hardswish(x: np.ndarray) -> np.ndarray:
    """x * hardsigmoid(x): MobileNetV3's cheap swish."""
    return x * hardsigmoid(x)


# erf is odd, so erf(x) / x is a smooth function of x^2. Past |x| = 4, float32 erf is +-1. This is a
# polynomial in x^2 / 8 - 1, the highest power first, through erf at Chebyshev's 19 points, and within 4e-10
# of it. It is written down, since fitting it gives other last digits on another CPU.
ERF = (
    0.000094038166, -0.000246422015, 0.000173229503, -0.000325519627, 0.001410152893,
    -0.002909712956, 0.004774946221, -0.008384044276, 0.014381038744, -0.022562558293,
    0.033053291696, -0.045744312675, 0.059887829583, -0.074730486797, 0.090208941343,
    -0.107710292886, 0.131675117776, -0.176576235800, 0.353530995643,
)  # fmt: skip


def _erf(x: np.ndarray) -> np.ndarray:
    if x.dtype == np.float64:  # to the last bits, which the series does not reach
        return np.frompyfunc(erf, 1, 1)(x).astype(np.float64)
    wide = np.clip(x.astype(np.float64), -4, 4)
    return (wide * np.polyval(ERF, wide * wide / 8 - 1)).astype(x.dtype)


# ---------------------------------------------------------------- attention


def split_heads(x: np.ndarray, heads: int) -> np.ndarray:
    """What each head sees: (T, heads * d) -> (heads, T, d)."""
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def merge_heads(x: np.ndarray) -> np.ndarray:
    """What the heads found, side by side: (heads, T, d) -> (T, heads * d)."""
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def softmax(x: np.ndarray) -> np.ndarray:
    """exp(x) / sum(exp(x)) over the last axis; -inf entries get weight 0."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    e /= e.sum(axis=-1, keepdims=True)
    return e


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> np.ndarray:
    """Scaled dot-product attention with grouped queries.

    q (H, T, d), k and v (KV, S, d), H a multiple of KV: query head h reads key-value head h // (H / KV).
    causal: the queries are the last T of the S positions, and none looks past its own.
    Returns (H, T, d).
    """
    (heads, T, d), (kv_heads, S, _) = q.shape, k.shape
    grouped = (q * d**-0.5).reshape(kv_heads, -1, d)  # (KV, G*T, d): one product per kv head
    future = np.arange(S) > np.arange(S - T, S)[:, None] if causal and T > 1 else None  # (T, S)
    out = np.empty_like(grouped)
    for head in range(kv_heads):  # one head at a time: (G*T, S) scores stay in the processor's cache
        scores = grouped[head] @ k[head].T
        if future is not None:
            np.copyto(scores.reshape(-1, T, S), -np.inf, where=future)
        np.matmul(softmax(scores), v[head], out=out[head])
    return out.reshape(heads, T, d)


def int8_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> np.ndarray:
    """`attention` with both of its products in integers, for a vision tower whose linear layers are int8.

    Groups of 32 that share a scale run along d in queries and keys, and along the positions in the softmax's
    weights and in values. No grouped queries, and causal is False: a tower needs neither.
    """
    assert not causal and q.shape[0] == k.shape[0]
    out = np.empty_like(q)
    for head in range(len(q)):
        scores = quantized_matmul(q[head] * q.shape[2] ** -0.5, *quantize_rows(k[head]))
        out[head] = quantized_matmul(softmax(scores), *quantize_rows(v[head].T))
    return out


def rope_angles(positions: np.ndarray, d: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of the rotary angles, each (T, d/2).

    The published code computes angles in float32 throughout, and its answers depend on it: more
    precise angles miss the goldens. Only the power is taken in float64 and then rounded: for head
    sizes of 8, 16, 32, 64, 80 and 128 that is bit-equal to torch. For others torch's own power may
    be off in its last bit, and by how much depends on the processor. cos and sin of the float32 angle
    are the nearest float32, the same on every processor.
    """
    return _cos_sin(positions.astype(np.float32)[:, None] * rope_frequencies(d, theta))


@cache
def rope_frequencies(d: int, theta: float) -> np.ndarray:
    """The angles of position 1, float32 (d/2,)."""
    exponents = np.arange(0, d, 2, dtype=np.float32) / np.float32(d)
    # By the C library, since NumPy's own power differs from CPU to CPU. Libraries may differ in the last bit
    # of a float64, 2^-52 of the power; that decides nothing unless it is as near to halfway between two
    # float32. With theta 10,000 and any head size up to 256, none is nearer than 2^-38.
    powers = [theta**exponent for exponent in exponents.tolist()]
    return np.float32(1) / np.array(powers).astype(np.float32)


# Half of pi in two parts: the first has so few bits that its products with whole numbers up to 2^20 are
# exact.
HALF_PI, HALF_PI_REST = float.fromhex("0x1.921fb544p+0"), float.fromhex("0x1.0b4611a626331p-34")
# Taylor's series of cos(r) and of sin(r) / r by powers of r^2, the highest first: (9, 2, 1, 1). What is left
# out is below 2e-18 where |r| <= pi / 4.
TAYLOR = np.array([[(-1) ** k / factorial(2 * k + odd) for odd in (0, 1)] for k in range(8, -1, -1)])
TAYLOR = TAYLOR[..., None, None]


def _cos_sin(angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of float32 (T, n): computed in float64, and rounded.

    By additions and multiplications alone, which are the same on every CPU; NumPy's cos and sin are not.
    """
    wide = angles.astype(np.float64)
    quarters = np.rint(wide * (2 / pi))  # of a circle
    r = wide - quarters * HALF_PI - quarters * HALF_PI_REST
    square, both = r * r, np.zeros((2, *r.shape))
    for coefficients in TAYLOR:
        both *= square
        both += coefficients
    both[1] *= r
    cos, sin = both.astype(np.float32)
    turned = quarters.astype(np.int64) & 3
    return np.choose(turned, [cos, -sin, -cos, sin]), np.choose(turned, [sin, cos, -sin, -cos])


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotary position embedding in the half-split form: element i is paired with i + d/2.

    x (H, T, d), cos and sin (T, d/2) -> (H, T, d).
    """
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


# ---------------------------------------------------------------- quantised products


def quantize_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Activations in int8: a group of 32 columns shares a scale, max |x| / 127. NaN and infinity are refused.

    x (M, K) -> int8 (M, K), rounding half to even, -127 .. 127; float32 scales (M, groups), where a last
    group may have fewer columns. A group of scale 0 becomes zeros.
    """
    M, K = x.shape
    groups = np.pad(x, ((0, 0), (0, -K % GROUP))).reshape(M, -1, GROUP)
    scales = np.abs(groups).max(axis=-1) / np.float32(127)
    if not np.isfinite(scales).all():
        raise GenerationError(
            "activations", "found NaN or infinity", "finite numbers", "the checkpoint is damaged"
        )
    divisors = np.where(scales == 0, 1, scales)[..., None]
    # A scale may be denormal and so imprecise, hence the clipping.
    q = np.clip(np.rint(groups / divisors), -127, 127).astype(np.int8)
    return q.reshape(M, -1)[:, :K], scales


def quantized_matmul(
    x: np.ndarray, w: np.ndarray, scales: np.ndarray, tops: np.ndarray | None = None
) -> np.ndarray:
    """x W^T with both sides in integers: x (M, K) is rounded by `quantize_rows`. -> float32 (M, N)

    w int8 or uint8 (N, K); scales and tops as `group_factors` takes them. Within a group of 32 columns the
    products add up exactly, as integers, and so do the activations. Everything else is float32, from the
    first group to the last: the sum of products, times its two scales, is added; then the minimum, times the
    activations' sum and scale, is taken off.
    """
    (M, K), N = x.shape, len(w)
    xq, x_scales = quantize_rows(x)
    scale, minimum = group_factors(scales, tops)
    y = np.zeros((M, N), np.float32)
    for g, start in enumerate(range(0, K, GROUP)):
        columns = slice(start, start + GROUP)
        # float32 holds these integers exactly: |sum| <= 32 * 127 * 128 < 2^24.
        xg, wg = xq[:, columns].astype(np.float32), w[:, columns].astype(np.float32)
        x_scale = x_scales[:, g, None]
        y += xg @ wg.T * (x_scale * scale[:, g])
        if minimum is not None:
            y -= minimum[:, g] * (x_scale * xg.sum(1, keepdims=True))
    return y


def group_factors(scales: np.ndarray, tops: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """What a group of 32 columns is rounded by: weight = scale * w - minimum. Both float32 (N, groups).

    scales  float16 or float32 (N, groups): there are no minima; or uint8 (N, groups, 2), scale and minimum
    tops    float16 (N, supers, 2): what 8 groups, a super-block, count their scales and their minima in

    The products are exact: 8 bits times 11.
    """
    if tops is None:
        return scales.astype(np.float32), None
    both = np.repeat(tops.astype(np.float32), SUPER, axis=1)[:, : scales.shape[1]] * scales
    return both[..., 0], both[..., 1]


# ---------------------------------------------------------------- images


def matmul(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x W^T: (M, K) and (N, K) -> (M, N)."""
    return x @ w.T


def patches(pixels: np.ndarray, size: int) -> np.ndarray:
    """Cuts (C, h, w) into squares, row by row: (patches, C*size*size), each in the order of a convolution's
    weight. Rows and columns that do not fill a patch are left out, as a strided convolution does.
    """
    C, rows, cols = pixels.shape[0], pixels.shape[1] // size, pixels.shape[2] // size
    grid = pixels[:, : rows * size, : cols * size].reshape(C, rows, size, cols, size)
    return grid.transpose(1, 3, 0, 2, 4).reshape(rows * cols, C * size * size)


def depthwise_conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, stride: int) -> np.ndarray:
    """Each channel convolved with its own n x n filter, zero padding n // 2.

    x (h, w, C), weight (C, 1, n, n) as in the checkpoint with odd n, bias (C,) or None
    -> (ceil(h / stride), ceil(w / stride), C)
    """
    n = weight.shape[-1]
    h, w, C = x.shape
    padded = np.pad(x, ((n // 2, n // 2), (n // 2, n // 2), (0, 0)))
    out = np.zeros((-(-h // stride), -(-w // stride), C), x.dtype)
    for row in range(n):
        for col in range(n):
            out += padded[row : row + h : stride, col : col + w : stride] * weight[:, 0, row, col]
    if bias is not None:
        out += bias
    return out


def adaptive_avg_pool(x: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """The means of rows x cols nearly equal windows that cover x: (h, w, C) -> (rows, cols, C).

    Window i of n spans floor(i * size / n) to ceil((i + 1) * size / n): they overlap where n does not divide.
    """
    h, w, C = x.shape
    out = np.empty((rows, cols, C), x.dtype)
    for i in range(rows):
        for j in range(cols):
            window = x[i * h // rows : -(-(i + 1) * h // rows), j * w // cols : -(-(j + 1) * w // cols)]
            window.mean(axis=(0, 1), out=out[i, j])
    return out
