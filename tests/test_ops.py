"""Each op against its torch function: in float64, which is the truth here, and in float32.

Bounds. U is float32's unit roundoff. A sum of n terms in any order is off by at most n U times the sum of
their magnitudes, a product or quotient by U, NumPy's float32 exp by 2.52 units in the last place (5.04 U),
as the release notes of NumPy 1.17 say. Each test adds up what its op does.
Below TINY numbers lose bits one by one ("denormals"), so a result may be off by TINY whatever its size.
torch's float32 result obeys the same bound, so ours is within twice the bound of it.
"""

import inspect
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mvlm_np import ops
from mvlm_np.linear import Dense
from tests.arrays import TINY, U, any_floats, examples, floats32, frozen, seeds, sizes

EXP = 6 * U  # relative error of exp, torch's (1 unit in the last place) and a rounding included
HEAD_SIZES = (8, 16, 32, 64, 80, 128)  # of the MobileVLM family, of the goldens, and of small LLaMAs


def double(*values: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(v.astype(np.float64)) for v in values]


def single(*values: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(v.copy()) for v in values]


def agree(ours: np.ndarray, single: torch.Tensor, double: torch.Tensor, bound: Any) -> None:
    """Ours is float32, within `bound` of torch's float64 result and within twice that of its float32 one."""
    assert ours.dtype == np.float32
    assert ours.shape == tuple(double.shape)
    for theirs, allowed in ((double, bound), (single, 2 * bound)):
        error = np.abs(ours.astype(np.float64) - theirs.double().numpy())
        assert (error <= allowed).all(), f"off by {(error / (allowed + 1e-300)).max():.3g} times the bound"


# ---------------------------------------------------------------- what holds for all of them


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_type_that_goes_in_comes_out_and_no_argument_is_written_to(dtype):
    for name, arguments in examples(dtype).items():
        assert getattr(ops, name)(*arguments).dtype == dtype, name
    for angles in ops.rope_angles(frozen(np.arange(3)), 8, 10000.0):
        assert angles.dtype == np.float32


def test_every_op_is_tested_here():
    public = {n for n, f in vars(ops).items() if inspect.isfunction(f) and f.__module__ == ops.__name__}
    quantised = ("quantize", "group_factors")  # test_ops_quantized.py, test_quantize.py
    public = {n for n in public if not n.startswith(("_", *quantised))}
    assert public == set(examples(np.float32)) | {"rope_angles"}


def test_the_order_of_an_arguments_memory_does_not_matter():
    for name, arguments in examples(np.float64).items():
        turned = [a.T.copy().T if isinstance(a, np.ndarray) else a for a in arguments]
        difference = np.abs(getattr(ops, name)(*arguments) - getattr(ops, name)(*turned)).max()
        assert difference < 1e-14, name  # float64: a few roundings of numbers around 1


# ---------------------------------------------------------------- normalisation


@given(st.data(), st.integers(1, 300), st.sampled_from([1e-6, 1e-5, 1.0]))
def test_layer_norm(data, n, eps):
    x = data.draw(floats32(4, n, largest=1e14))  # torch sums squares before it takes the mean off: 1e17^2 n
    x = frozen(x + data.draw(st.sampled_from([0, 1, 1000])) * np.abs(x).max())  # means far from zero too
    weight, bias = data.draw(floats32(n)), data.draw(floats32(n))
    wide = x.astype(np.float64)
    mean = np.abs(wide).mean(-1, keepdims=True)
    centred = wide - wide.mean(-1, keepdims=True)
    # x - mean is off by d, the norm s = sqrt(variance + eps) by as much (it is 1-Lipschitz in x - mean)
    # and by the roundings of a mean, a root and a quotient: z = centred / s is off by no more than dz.
    d = (n + 2) * U * mean + U * np.abs(centred).max(-1, keepdims=True)
    s = np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    z = np.abs(centred) / s
    dz = d * (1 + z) / np.maximum(s - d, eps**0.5)
    dz += (n / 2 + 6) * U * (z + dz)
    bound = (dz + 2 * U * z) * np.abs(weight) + 2 * U * np.abs(bias) + TINY
    ours = ops.layer_norm(x, weight, bias, eps)
    torch32, torch64 = (
        F.layer_norm(a, (n,), w, b, eps) for a, w, b in (f(x, weight, bias) for f in (single, double))
    )
    agree(ours, torch32, torch64, bound)


@given(st.data(), st.integers(1, 300), st.sampled_from([1e-6, 1e-5, 1.0]))
def test_rms_norm(data, n, eps):
    x, weight = data.draw(floats32(4, n, largest=1e17)), data.draw(floats32(n))
    ours = ops.rms_norm(x, weight, eps)
    torch32, torch64 = (F.rms_norm(a, (n,), w, eps) for a, w in (f(x, weight) for f in (single, double)))
    # Half the error of the sum of squares (the root halves it), and five more roundings.
    agree(ours, torch32, torch64, (n / 2 + 6) * U * np.abs(torch64.numpy()) + TINY)


# ---------------------------------------------------------------- activations


@given(any_floats(3.4e38))
def test_sigmoid(x):
    y = torch.sigmoid(double(x)[0])
    agree(ops.sigmoid(x), torch.sigmoid(single(x)[0]), y, (EXP + 2 * U) * y.numpy() + TINY)


@given(any_floats(1e38))
def test_quick_gelu(x):
    def theirs(x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)

    # t = 1.702 x is rounded twice, which moves sigmoid by |t| (1 - sigmoid) 2 U, relative to itself.
    t, y = 1.702 * x.astype(np.float64), np.abs(theirs(double(x)[0]).numpy())
    moved = np.abs(t) * torch.sigmoid(torch.from_numpy(-t)).numpy()
    bound = (EXP + 3 * U + 2 * U * moved) * y + (np.minimum(np.abs(x), 104) + 1) * TINY
    agree(ops.quick_gelu(x), theirs(single(x)[0]), theirs(double(x)[0]), bound)


@given(any_floats(1e38))
def test_silu(x):
    y = F.silu(double(x)[0])
    # sigmoid may be off by TINY where it is denormal; below -104 it is 0 in float32.
    bound = (EXP + 3 * U) * np.abs(y.numpy()) + (np.minimum(np.abs(x), 104) + 1) * TINY
    agree(ops.silu(x), F.silu(single(x)[0]), y, bound)


@given(any_floats(1e15), seeds)
def test_swiglu_is_silu_of_the_gate_times_the_other(gate, seed):
    up = np.random.default_rng(seed).standard_normal(gate.shape).astype(np.float32)
    assert np.array_equal(ops.swiglu(gate, frozen(up)), ops.silu(gate) * up)


@given(any_floats(1e38))
def test_gelu(x):
    y = F.gelu(double(x)[0])
    # erf(z) moves by no more than 0.49 for a relative change of z of 1, and z is rounded twice; erf, the
    # product and the sum are rounded once each. Where 1 + erf cancels, the error stays that of |x| / 2.
    bound = 3 * U * np.abs(x.astype(np.float64)) + TINY
    agree(ops.gelu(x), F.gelu(single(x)[0]), y, bound)


@given(any_floats(3.4e38))
def test_relu(x):
    assert np.array_equal(ops.relu(x), F.relu(single(x)[0]).numpy())


@given(any_floats(5e37))  # torch's hardswish multiplies by 6 first
def test_hardsigmoid_and_hardswish(x):
    for ours, theirs in ((ops.hardsigmoid, F.hardsigmoid), (ops.hardswish, F.hardswish)):
        y = theirs(double(x)[0])
        # x + 3, times x, over 6: a rounding each. Near -3 the sum is exact.
        agree(ours(x), theirs(single(x)[0]), y, 3 * U * np.abs(y.numpy()) + TINY)


def test_infinities_have_the_limits_that_torch_gives_them():
    infinity = np.float32([np.inf])
    for name in ("sigmoid", "silu", "gelu", "relu", "hardsigmoid", "hardswish"):
        for x in (infinity, -infinity):
            limit = getattr(F, name)(single(x)[0]).item()
            if np.isfinite(limit) or limit == np.inf:  # -inf times 0 has none
                assert getattr(ops, name)(x).item() == limit, name


# ---------------------------------------------------------------- attention


@given(any_floats(3e37), seeds, st.sampled_from([0, 0.3]))
def test_softmax_with_masked_entries(x, seed, masked):
    x = x.copy()
    hidden = np.random.default_rng(seed).random(x.shape) < masked
    hidden[..., 0] = False  # a row with nothing to look at has no softmax
    x[hidden] = -np.inf
    y = torch.softmax(double(x)[0], -1).numpy()
    # x - max is rounded, which moves its exp by |x - max| U; then the sum of n such, and the quotient.
    below = np.where(hidden, 0, x.max(-1, keepdims=True) - x.astype(np.float64))
    moved = y * np.minimum(below, 104)  # exp of less is 0
    n = x.shape[-1]
    bound = U * (moved + y * moved.sum(-1, keepdims=True)) + (2 * EXP + (n + 2) * U) * y + (n + 1) * TINY
    ours = ops.softmax(frozen(x))
    agree(ours, torch.softmax(single(x)[0], -1), torch.softmax(double(x)[0], -1), bound)
    assert (ours[hidden] == 0).all()


def their_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    T, S = q.shape[1], k.shape[1]
    seen = torch.ones(T, S, dtype=torch.bool)
    if causal:
        seen = seen.tril(S - T)
    return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=seen, enable_gqa=True)[0]


@given(
    st.data(),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(0, 9),
    sizes,
    st.booleans(),
)
def test_attention(data, KV, G, T, earlier, d, causal):
    S = T + earlier
    q = data.draw(floats32(KV * G, T, d, largest=8))
    k, v = data.draw(floats32(KV, S, d, largest=8)), data.draw(floats32(KV, S, d, largest=1e30))
    wide_k, wide_v = (np.repeat(a.astype(np.float64), G, axis=0) for a in (k, v))
    scores = np.abs(q) @ np.abs(wide_k).transpose(0, 2, 1) / d**0.5  # at least the true scores' magnitudes
    # A score is off by (d + 3) U of that, so its exp by expm1 of it; then as softmax, and the mean of v.
    d_score = ((d + 3) * U * scores).max(-1, keepdims=True)
    relative = np.expm1(2 * d_score) + 4 * U * scores.max(-1, keepdims=True) + 2 * EXP + (2 * S + 4) * U
    weights = their_attention(
        *double(q, k), torch.eye(S, dtype=torch.float64).expand(KV, S, S), causal
    ).numpy()
    bound = relative * (weights @ np.abs(wide_v)) + S * TINY * (1 + np.abs(wide_v).sum(1, keepdims=True))
    ours = ops.attention(q, k, v, causal)
    agree(ours, their_attention(*single(q, k, v), causal), their_attention(*double(q, k, v), causal), bound)


@given(st.integers(1, 6), st.integers(0, 5), seeds)
def test_causal_attention_ignores_the_future_exactly(T, earlier, seed):
    rng = np.random.default_rng(seed)
    S = T + earlier
    q, k, v = (rng.standard_normal((2, n, 4)).astype(np.float32) for n in (T, S, S))
    before = ops.attention(q, k, v, True)
    k[:, S - 1], v[:, S - 1] = 1e6, 1e6  # seen by the last query only
    assert np.array_equal(ops.attention(q, k, v, True)[:, : T - 1], before[:, : T - 1])


@given(st.data(), st.sampled_from(HEAD_SIZES), st.integers(1, 3), st.integers(1, 5))
def test_rope_is_bit_equal_to_the_published_form(data, d, H, T):
    x = data.draw(floats32(H, T, d, largest=1e30))
    cos, sin = ops.rope_angles(frozen(data.draw(arrays(np.int64, T, elements=st.integers(0, 10**6)))), d, 1e4)
    x_, cos_, sin_ = single(x, np.tile(cos, 2), np.tile(sin, 2))
    turned = torch.cat([-x_[..., d // 2 :], x_[..., : d // 2]], -1)
    assert np.array_equal(ops.rope(x, frozen(cos), frozen(sin)), (x_ * cos_ + turned * sin_).numpy())


def their_angles(positions: np.ndarray, d: int, theta: float) -> np.ndarray:
    inverse = 1.0 / (theta ** (torch.arange(0, d, 2).float() / d))
    return (torch.from_numpy(positions).float()[:, None] * inverse).numpy()


@pytest.mark.parametrize("d", HEAD_SIZES)
def test_rope_angles_are_those_of_torchs_float32_rounded_once(d):
    positions = np.arange(4097)
    angles = their_angles(positions, d, 10000.0).astype(np.float64)
    for found, exact in zip(ops.rope_angles(frozen(positions), d, 10000.0), (np.cos, np.sin), strict=True):
        # Half a unit of float32's last place, and what float64's own cos and sin are off.
        assert (np.abs(found - exact(angles)) <= np.spacing(np.abs(found)) * 0.5 + 2.0**-52).all()


def test_rope_angles_have_the_same_bits_on_every_cpu():
    angles = ops.rope_angles(np.arange(4097), 128, 10000.0)
    assert [sha256(a.tobytes()).hexdigest()[:16] for a in angles] == ["c5e603b9bf909b7f", "0356cbc326b90d65"]


@given(st.integers(1, 128), st.floats(2, 1e7, width=32), st.integers(0, 1 << 20))
def test_rope_angles_of_any_size_are_torchs_but_for_the_last_bit_of_its_power(half, theta, position):
    # torch's power is off by up to 1 unit in the last place (2 U), and by how much depends on the processor;
    # with it the quotient and the product, each rounded on both sides: 6 U of the angle.
    angles = their_angles(np.array([position]), 2 * half, theta).astype(np.float64)
    cos, sin = ops.rope_angles(np.array([position]), 2 * half, theta)
    bound = 6 * U * np.abs(angles) + U
    assert (np.abs(cos - np.cos(angles)) <= bound).all()
    assert (np.abs(sin - np.sin(angles)) <= bound).all()


# ---------------------------------------------------------------- images


@given(st.data(), sizes, sizes, sizes)
def test_matmul(data, M, K, N):
    x, w = data.draw(floats32(M, K)), data.draw(floats32(N, K))
    size = np.abs(x.astype(np.float64)) @ np.abs(w.T)
    agree(ops.matmul(x, w), F.linear(*single(x, w)), F.linear(*double(x, w)), K * (U * size + TINY))


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 20), st.integers(0, 20), seeds)
def test_patches_are_those_of_a_strided_convolution(C, size, more_rows, more_cols, seed):
    pixels = np.random.default_rng(seed).standard_normal((C, size + more_rows, size + more_cols))
    theirs = F.unfold(torch.from_numpy(pixels)[None], size, stride=size)[0].T
    assert np.array_equal(ops.patches(frozen(pixels), size), theirs.numpy())


@given(
    st.data(),
    sizes,
    sizes,
    st.integers(1, 5),
    st.sampled_from([1, 3, 5, 7]),
    st.integers(1, 4),
    st.booleans(),
)
def test_depthwise_conv(data, h, w, C, n, stride, biased):
    x, weight = data.draw(floats32(h, w, C)), data.draw(floats32(C, 1, n, n))
    bias = data.draw(floats32(C)) if biased else None

    def theirs(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        y = F.conv2d(x.permute(2, 0, 1), weight, bias, stride=stride, padding=n // 2, groups=C)
        return y.permute(1, 2, 0)

    def b(f: Any) -> Any:
        return None if bias is None else f(bias)[0]

    # n * n products, added one by one, then the bias.
    size = theirs(*double(np.abs(x), np.abs(weight)), None if bias is None else double(np.abs(bias))[0])
    bound = (n * n + 2) * (U * size.numpy() + TINY)
    ours = ops.depthwise_conv(x, weight, bias, stride)
    agree(ours, theirs(*single(x, weight), b(single)), theirs(*double(x, weight), b(double)), bound)


@given(
    st.data(),
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 5),
    st.integers(1, 16),
    st.integers(1, 16),
)
def test_adaptive_avg_pool(data, h, w, C, rows, cols):
    x = data.draw(floats32(h, w, C, largest=1e30))

    def theirs(x: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(x.permute(2, 0, 1), (rows, cols)).permute(1, 2, 0)

    window = (h // rows + 2) * (w // cols + 2)  # no window has more values
    bound = (window + 1) * U * theirs(double(np.abs(x))[0]).numpy() + window * TINY
    agree(ops.adaptive_avg_pool(x, rows, cols), theirs(single(x)[0]), theirs(double(x)[0]), bound)


# ---------------------------------------------------------------- Dense


@given(st.data(), st.integers(1, 8), sizes, sizes, st.booleans())
def test_a_dense_layer(data, T, K, N, biased):
    x, weight, bias = data.draw(floats32(T, K)), data.draw(floats32(N, K)), data.draw(floats32(N))
    bias = bias if biased else None
    wide = np.abs(x.astype(np.float64)) @ np.abs(weight.T) + (0 if bias is None else np.abs(bias))
    torch32, torch64 = (
        F.linear(*f(x, weight), None if bias is None else f(bias)[0]) for f in (single, double)
    )
    agree(Dense(weight, bias)(x), torch32, torch64, (K + 1) * (U * wide + TINY))
