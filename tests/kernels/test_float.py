"""Each float32 kernel against the op that defines it, computed in float64: that is the truth here.

Bounds. U is float32's unit roundoff: one operation is off by at most U of its result, a sum of n terms in
any order by n U of the sum of their magnitudes, the kernels' exp by 1.01 units in the last place (2.02 U).
Below TINY numbers lose bits one by one ("denormals"), so a result may be off by TINY whatever its size.

The amount of work decides whether threads share it. Here each kernel runs without them and with two of them,
step by step, which must give the same bits.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np import backend, kernels, ops
from mvlm_np.kernels import cpu
from tests.arrays import TINY, U, any_floats, examples, floats32, frozen, seeds, sizes
from tests.kernels.teams import threads

numba = pytest.importorskip("numba")
activations = pytest.importorskip("mvlm_np.kernels.code.activations")
compile = pytest.importorskip("mvlm_np.kernels.code.compile")

FAST = kernels.operations()
CACHED = {"cached_attention", "beam_attention"}  # see test_cached.py
FLOAT = sorted(FAST.keys() & vars(ops).keys() - CACHED - {"rope_angles"})
EXP = 3 * U  # exp and one rounding


def wide(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in arguments)


def forms(call: Callable[[], np.ndarray]) -> Iterator[np.ndarray]:
    """What `call` gives on one thread, and on two that share every step."""
    for size in (1, 2):
        with threads(size):
            yield call()


def agree(name: str, arguments: tuple[Any, ...], bound: Any) -> None:
    """Every form of the kernel is float32 and within `bound` of the truth; threads change no bit."""
    truth = getattr(ops, name)(*wide(arguments))
    alone, two = forms(lambda: FAST[name](*arguments))
    for found in (alone, two):
        assert found.dtype == np.float32
        assert found.shape == truth.shape
        error = np.abs(found - truth)
        assert (error <= bound).all(), f"off by {(error / (bound + 1e-300)).max():.3g} times the bound"
    assert np.array_equal(alone, two)


# ---------------------------------------------------------------- what holds for all of them


@pytest.mark.parametrize("name", sorted(FAST))
def test_a_kernel_has_the_signature_of_its_definition(name: str) -> None:
    assert inspect.signature(FAST[name]) == inspect.signature(getattr(backend.choose("numpy"), name))


@pytest.mark.parametrize("name", FLOAT)
def test_the_docstring_names_the_definition(name: str) -> None:
    assert f"`ops.{name}`" in (FAST[name].__doc__ or "")


@pytest.mark.parametrize("dtype", [np.float64, ">f4"])
@pytest.mark.parametrize("name", FLOAT)
def test_what_is_not_native_float32_is_computed_by_the_definition(name: str, dtype: Any) -> None:
    arguments = [a.astype(dtype) if isinstance(a, np.ndarray) else a for a in examples(np.float32)[name]]
    found, wanted = FAST[name](*arguments), getattr(ops, name)(*arguments)
    assert found.dtype == wanted.dtype
    assert np.array_equal(found, wanted)


def laid_out(a: np.ndarray, way: str, folder: Path) -> np.ndarray:
    """The same numbers elsewhere in memory, read-only."""
    if way == "transposed":
        return frozen(a.T.copy().T)
    if way == "with gaps":
        return frozen(np.repeat(a, 2, axis=-1)[..., ::2])
    if way == "backwards":
        return frozen(a[..., ::-1].copy()[..., ::-1])
    if way == "unaligned":
        return np.frombuffer(b"\0" + a.tobytes(), a.dtype, offset=1).reshape(a.shape)
    path = folder / f"{len(list(folder.iterdir()))}"
    a.tofile(path)
    return np.memmap(path, a.dtype, "r", shape=a.shape)


@pytest.mark.parametrize("way", ["transposed", "with gaps", "backwards", "unaligned", "mapped"])
@pytest.mark.parametrize("name", FLOAT)
def test_how_arrays_lie_in_memory_does_not_matter(name: str, way: str, tmp_path: Path) -> None:
    arguments = examples(np.float32)[name]
    moved = [laid_out(a, way, tmp_path) if isinstance(a, np.ndarray) else a for a in arguments]
    found = FAST[name](*moved)
    assert type(found) is np.ndarray
    assert np.array_equal(found, FAST[name](*arguments))


@pytest.mark.parametrize("name", FLOAT)
def test_the_result_is_new_and_may_be_written_to(name: str) -> None:
    found = FAST[name](*examples(np.float32)[name])
    assert found.flags.writeable
    assert found.flags.c_contiguous


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("layer_norm", (ones(2, 3), ones(4), ones(3), 1e-5)),
        ("layer_norm", (ones(2, 3), ones(3), ones(4), 1e-5)),
        ("rms_norm", (ones(2, 3), ones(4), 1e-5)),
        ("swiglu", (ones(2, 3), ones(2, 4))),
        ("softmax", (ones(2, 0),)),
        ("attention", (ones(4, 2, 8), ones(2, 5, 8), ones(2, 4, 8), True)),
        ("attention", (ones(4, 2, 8), ones(2, 5, 7), ones(2, 5, 7), True)),
        ("attention", (ones(4, 2, 8), ones(3, 5, 8), ones(3, 5, 8), True)),
        ("matmul", (ones(2, 3), ones(2, 4))),
        ("rope", (ones(2, 3, 8), ones(4, 4), ones(4, 4))),
        ("rope", (ones(2, 3, 7), ones(3, 3), ones(3, 3))),
        ("depthwise_conv", (ones(4, 4, 3), ones(2, 1, 3, 3), None, 1)),
        ("depthwise_conv", (ones(4, 4, 3), ones(3, 1, 3, 3), ones(2), 1)),
    ],
)
def test_arguments_that_do_not_fit_are_refused_as_the_definition_does(
    name: str, arguments: tuple[Any, ...]
) -> None:
    with pytest.raises(ValueError) as wanted:
        getattr(ops, name)(*arguments)
    with pytest.raises(ValueError) as found:
        FAST[name](*arguments)
    assert str(found.value) == str(wanted.value)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("layer_norm", (ones(2, 3), ones(1), ones(3), 1e-5)),
        ("rms_norm", (ones(0, 3), ones(3), 1e-5)),
        ("gelu", (ones(0),)),
        ("gelu", (np.float32(2),)),
        ("swiglu", (ones(2, 3), ones(3))),
        ("rope", (ones(2, 3, 8), ones(1, 4), ones(1, 4))),
    ],
)
def test_odd_shapes_that_the_definition_takes_are_computed_by_it(
    name: str, arguments: tuple[Any, ...]
) -> None:
    found, wanted = FAST[name](*arguments), getattr(ops, name)(*arguments)
    assert found.shape == wanted.shape
    assert np.array_equal(found, wanted)


# ---------------------------------------------------------------- normalisation


@given(st.data(), st.integers(1, 300), st.sampled_from([1e-6, 1e-5, 1.0]))
def test_layer_norm(data: Any, n: int, eps: float) -> None:
    x = data.draw(floats32(4, n, largest=1e17))  # squares and their sum stay below float32's 3e38
    x = frozen(x + data.draw(st.sampled_from([0, 1, 1000])) * np.abs(x).max())  # means far from zero too
    weight, bias = data.draw(floats32(n)), data.draw(floats32(n))
    exact = x.astype(np.float64)
    centred = exact - exact.mean(-1, keepdims=True)
    # x - mean is off by d, the norm s = sqrt(variance + eps) by as much (it is 1-Lipschitz in x - mean)
    # and by the roundings of a mean, a root and a quotient: z = centred / s is off by no more than dz.
    d = (n + 2) * U * np.abs(exact).mean(-1, keepdims=True) + U * np.abs(centred).max(-1, keepdims=True)
    s = np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    z = np.abs(centred) / s
    dz = d * (1 + z) / np.maximum(s - d, eps**0.5)
    dz += (n / 2 + 6) * U * (z + dz)
    bound = (dz + 2 * U * z) * np.abs(weight) + 2 * U * np.abs(bias) + TINY
    agree("layer_norm", (x, weight, bias, eps), bound)


@given(st.data(), st.integers(1, 300), st.sampled_from([1e-6, 1e-5, 1.0]))
def test_rms_norm(data: Any, n: int, eps: float) -> None:
    x, weight = data.draw(floats32(4, n, largest=1e17)), data.draw(floats32(n))
    truth = ops.rms_norm(x.astype(np.float64), weight.astype(np.float64), eps)
    # Half the error of the sum of squares (the root halves it), and five more roundings.
    agree("rms_norm", (x, weight, eps), (n / 2 + 6) * U * np.abs(truth) + TINY)


# ---------------------------------------------------------------- activations


def logistic_bound(x: np.ndarray, factor: float) -> np.ndarray:
    """The allowed error of x * sigmoid(factor * x)."""
    x = x.astype(np.float64)
    t = factor * x
    # t is rounded twice unless the factor is 1, which moves 1 + exp(-t) by 2 U |t| sigmoid(-t) of itself.
    moved = 2 * U * np.abs(t) * ops.sigmoid(-t) if factor != 1 else 0
    # Where the sigmoid is a denormal it may be off by TINY; below -104 it is 0 in float32.
    return (EXP + 3 * U + moved) * np.abs(x * ops.sigmoid(t)) + (np.minimum(np.abs(x), 104) + 1) * TINY


def activation_bound(name: str, x: np.ndarray) -> np.ndarray:
    if name == "gelu":
        # erf(z) moves by no more than 0.49 for a relative change of z of 1, and z is rounded twice; erf
        # and the sum are rounded once each. Where 1 + erf cancels, the error stays that of |x| / 2.
        return 3 * U * np.abs(x.astype(np.float64)) + TINY
    return logistic_bound(x, 1.702 if name == "quick_gelu" else 1)


activation = pytest.mark.parametrize("name", ["quick_gelu", "silu", "gelu"])


@activation
@given(any_floats(1e38))
def test_activations(name: str, x: np.ndarray) -> None:
    agree(name, (x,), activation_bound(name, x))


@activation
@pytest.mark.parametrize("n", [1, 15, 17, 4095, 4096, 4097, 3 * 4096 + 5])
def test_activations_of_every_number_of_blocks(name: str, n: int) -> None:
    x = 8 * np.random.default_rng(n).standard_normal(n).astype(np.float32)
    agree(name, (x,), activation_bound(name, x))


@given(any_floats(1e15), seeds)
def test_swiglu(gate: np.ndarray, seed: int) -> None:
    up = frozen(np.random.default_rng(seed).standard_normal(gate.shape).astype(np.float32))
    product = np.abs(ops.swiglu(gate.astype(np.float64), up.astype(np.float64)))
    agree("swiglu", (gate, up), logistic_bound(gate, 1) * np.abs(up) + U * product + TINY)


SPECIAL = frozen(np.array([0, -0.0, 1e-45, -1e-45, 3e38, -3e38, np.inf, -np.inf, np.nan, 1], np.float32))


@activation
def test_activations_treat_what_is_no_number_as_their_definition_does(name: str) -> None:
    with np.errstate(all="ignore"):
        wanted = getattr(ops, name)(SPECIAL)
    found = FAST[name](SPECIAL)
    assert np.array_equal(np.isnan(found), np.isnan(wanted))
    assert np.allclose(found, wanted, rtol=1e-6, atol=TINY, equal_nan=True)


def each(function: Any) -> Callable[[np.ndarray], np.ndarray]:
    """A function of the kernels, applied to each element."""

    @numba.njit
    def loop(x: np.ndarray, out: np.ndarray) -> None:
        for i in range(len(x)):
            out[i] = function(x[i])

    def call(x: np.ndarray) -> np.ndarray:
        out = np.empty_like(x)
        loop(x, out)
        return out

    return call


def test_exp_is_good_to_1_01_units_in_the_last_place_everywhere() -> None:
    magnitudes = np.arange(0, 0x42D20000, 1001, dtype=np.uint32).view(np.float32)  # up to 105
    x = np.concatenate([magnitudes, -magnitudes])
    exact = np.exp(x.astype(np.float64))
    in_range = exact < np.finfo(np.float32).max
    found = each(activations.exp)(x)
    unit = np.spacing(exact[in_range].astype(np.float32)).astype(np.float64)
    assert (np.abs(found[in_range] - exact[in_range]) <= 1.01 * unit).all()
    assert (found[~in_range] == np.inf).all()
    ends = each(activations.exp)(np.array([-np.inf, np.inf, np.nan], np.float32))
    assert np.array_equal(ends, [0, np.inf, np.nan], equal_nan=True)


def test_erf_is_rounded_from_something_more_precise() -> None:
    magnitudes = np.arange(0, 0x7F800000, 4999, dtype=np.uint32).view(np.float32)  # all that are finite
    x = np.concatenate([magnitudes, -magnitudes])
    exact = np.array([math.erf(value) for value in x.tolist()])
    found = each(activations.erf)(x)
    # Half a unit for rounding, and 4e-10 of erf for the polynomial, which is less than a hundredth of a unit.
    unit = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    assert (np.abs(found - exact) <= 0.51 * unit).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_product_and_a_sum_are_joined_where_that_is_written_and_nowhere_else(dtype: type) -> None:
    fma = pytest.importorskip("mvlm_np.kernels.code.simd").fma

    @numba.njit(**compile.OPTIONS)
    def both(x: np.ndarray, y: np.ndarray, apart: np.ndarray, joined: np.ndarray) -> None:
        for i in range(len(x)):
            apart[i] = x[i] * x[i] + y[i]
            joined[i] = fma(x[i], x[i], y[i])

    little = dtype(2.0 ** -(np.finfo(dtype).nmant // 2 + 1))
    x = np.full(40, 1 + little)  # its square is 1 + 2 little + little^2, of which the last is rounded off
    apart, joined = np.empty_like(x), np.empty_like(x)
    both(x, -(1 + 2 * little) * np.ones_like(x), apart, joined)
    assert (apart == 0).all()
    assert (joined == (0 if cpu.INSTRUCTION_SET == "generic" else little * little)).all()


# ---------------------------------------------------------------- attention


@given(any_floats(3e37), seeds, st.sampled_from([0, 0.3]))
def test_softmax_with_masked_entries(x: np.ndarray, seed: int, masked: float) -> None:
    x = x.copy()
    hidden = np.random.default_rng(seed).random(x.shape) < masked
    hidden[..., 0] = False  # a row with nothing to look at has no softmax
    x[hidden] = -np.inf
    y = ops.softmax(x.astype(np.float64))
    # x - max is rounded, which moves its exp by |x - max| U; then the sum of n such, and the quotient.
    below = np.where(hidden, 0, x.max(-1, keepdims=True) - x.astype(np.float64))
    moved = y * np.minimum(below, 104)  # exp of less is 0
    n = x.shape[-1]
    bound = U * (moved + y * moved.sum(-1, keepdims=True)) + (2 * EXP + (n + 2) * U) * y + (n + 1) * TINY
    agree("softmax", (frozen(x),), bound)
    assert (FAST["softmax"](x)[hidden] == 0).all()


def attention_bound(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> np.ndarray:
    _, S, d = k.shape
    group = len(q) // len(k)
    q, k, v = (a.astype(np.float64) for a in (q, k, np.abs(v)))
    scores = (np.abs(q) @ np.abs(k).repeat(group, axis=0).swapaxes(1, 2)).max(-1, keepdims=True) / d**0.5
    # A score is off by (d + 3) U of its terms' magnitudes, so its exp by expm1 of it; then as softmax, and
    # the mean of v.
    relative = np.expm1(2 * (d + 3) * U * scores) + 4 * U * scores + 4 * EXP + (2 * S + 8) * U
    tiny = S * TINY * (1 + v.sum(1, keepdims=True).repeat(group, axis=0))
    return relative * ops.attention(q, k, v, causal) + tiny


@given(
    st.data(),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 30),
    st.integers(0, 20),
    st.sampled_from([16, 32, 80, 1, 7]),  # the last two are computed by the definition
    st.booleans(),
)
def test_attention(data: Any, KV: int, G: int, T: int, earlier: int, d: int, causal: bool) -> None:
    S = T + earlier
    q = data.draw(floats32(KV * G, T, d, largest=8))
    k, v = data.draw(floats32(KV, S, d, largest=8)), data.draw(floats32(KV, S, d, largest=1e30))
    agree("attention", (q, k, v, causal), attention_bound(q, k, v, causal))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("H", "KV", "T", "S", "d"),
    [
        (2, 2, 577, 577, 64),  # the vision encoder's
        (2, 1, 1030, 1100, 16),  # two parts, grouped queries
        (4, 2, 257, 300, 80),  # blocks and tiles that are not full
        (2, 1, 2, 40, 32),
        (4, 2, 1, 256, 128),  # decoding steps
        (4, 1, 1, 257, 80),
    ],
)
def test_attention_of_several_blocks(H: int, KV: int, T: int, S: int, d: int, causal: bool) -> None:
    rng = np.random.default_rng(S)
    projected = rng.standard_normal((T, H, d)).astype(np.float32)
    cache = rng.standard_normal((2, KV, S + 7, d)).astype(np.float32)
    q, (k, v) = projected.transpose(1, 0, 2), cache[:, :, :S]  # laid out as in the model
    agree("attention", (q, k, v, causal), attention_bound(q, k, v, causal))


@pytest.mark.parametrize(("T", "S"), [(1, 300), (30, 40)])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["q", "k", "v"])
def test_attention_passes_nan_on(which: int, T: int, S: int) -> None:
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((2, n, 8)).astype(np.float32) for n in (T, S, S))
    (q, k, v)[which][0, 0, 3] = np.nan
    wanted = ops.attention(q, k, v, True)
    assert np.isnan(wanted).any()
    for found in forms(lambda: FAST["attention"](q, k, v, True)):
        assert np.array_equal(np.isnan(found), np.isnan(wanted))


def test_causal_attention_ignores_the_future_exactly() -> None:
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((2, n, 8)).astype(np.float32) for n in (30, 40, 40))
    before = FAST["attention"](q, k, v, True)
    k[:, 30:], v[:, 30:] = 1e6, 1e6
    assert np.array_equal(FAST["attention"](q, k, v, True)[:, :20], before[:, :20])


def test_more_queries_than_positions_are_left_to_the_definition() -> None:
    q, k = ones(1, 3, 4), ones(1, 2, 4)
    with np.errstate(invalid="ignore"):  # the first query sees nothing: the mean of nothing is NaN
        wanted, found = ops.attention(q, k, k, True), FAST["attention"](q, k, k, True)
    assert np.array_equal(found, wanted, equal_nan=True)


@given(st.data(), st.integers(1, 70), st.integers(1, 3), st.integers(1, 5))
def test_rope(data: Any, half: int, H: int, T: int) -> None:
    x = data.draw(floats32(H, T, 2 * half, largest=1e30))
    cos, sin = ops.rope_angles(data.draw(positions(T)), 2 * half, 1e4)
    both = np.tile(np.abs(x[..., :half]) + np.abs(x[..., half:]).astype(np.float64), 2)
    agree("rope", (x, frozen(cos), frozen(sin)), 3 * U * both + 2 * TINY)  # two products and their sum


@given(st.integers(0, 300), st.integers(1, 70), st.floats(2, 1e7), st.integers(0, 1 << 20))
def test_rope_angles_are_their_definitions_to_the_bit(T: int, half: int, theta: float, first: int) -> None:
    arguments = np.arange(first, first + T), 2 * half, theta
    for found in forms(lambda: np.stack(FAST["rope_angles"](*arguments))):
        assert found.dtype == np.float32
        assert found.tobytes() == np.stack(ops.rope_angles(*arguments)).tobytes()


def positions(T: int) -> st.SearchStrategy[np.ndarray]:
    return st.integers(0, 5000).map(lambda first: np.arange(first, first + T))


# ---------------------------------------------------------------- images


@given(st.data(), sizes, st.integers(1, 300), sizes)
def test_matmul(data: Any, M: int, K: int, N: int) -> None:
    x, w = data.draw(floats32(M, K)), data.draw(floats32(N, K))
    size = ops.matmul(np.abs(x.astype(np.float64)), np.abs(w))
    agree("matmul", (x, w), K * (U * size + TINY))


def test_a_row_of_matmul_depends_on_no_other() -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal((n, 588)).astype(np.float32) for n in (31, 40))
    together = FAST["matmul"](x, w)
    for i in range(len(x)):
        assert np.array_equal(FAST["matmul"](x[i : i + 1], w)[0], together[i])


@given(
    st.data(),
    sizes,
    sizes,
    st.integers(1, 20),
    st.sampled_from([1, 3, 5, 7]),
    st.integers(1, 4),
    st.booleans(),
)
def test_depthwise_conv(data: Any, h: int, w: int, C: int, n: int, stride: int, biased: bool) -> None:
    x, weight = data.draw(floats32(h, w, C)), data.draw(floats32(C, 1, n, n))
    bias = data.draw(floats32(C)) if biased else None
    x64, weight64 = (np.abs(a.astype(np.float64)) for a in (x, weight))
    size = ops.depthwise_conv(
        x64, weight64, None if bias is None else np.abs(bias.astype(np.float64)), stride
    )
    # n * n products, added one by one, then the bias.
    agree("depthwise_conv", (x, weight, bias, stride), (n * n + 2) * (U * size + TINY))


@given(
    st.data(),
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 20),
    st.integers(1, 16),
    st.integers(1, 16),
)
def test_adaptive_avg_pool(data: Any, h: int, w: int, C: int, rows: int, cols: int) -> None:
    x = data.draw(floats32(h, w, C, largest=1e30))
    window = (h // rows + 2) * (w // cols + 2)  # no window has more values
    size = ops.adaptive_avg_pool(np.abs(x.astype(np.float64)), rows, cols)
    agree("adaptive_avg_pool", (x, rows, cols), (window + 1) * U * size + window * TINY)
