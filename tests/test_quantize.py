"""Rounding weights: the rules that `quantize` states, restated in float64."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mvlm_np import ops
from mvlm_np.errors import CheckpointError
from mvlm_np.quantize import (
    LIMITS,
    dequantize,
    find_factors,
    quantize,
    recount,
    round_with,
)
from tests.arrays import U

DENOMINATOR = {"int8": 127, "int4": 8}  # of the plain scale: the largest magnitude over this
SYMMETRIC = st.sampled_from(["int8", "int4"])
QUALITY = st.sampled_from(["high", "fast"])


@st.composite
def weights(draw: st.DrawFn) -> np.ndarray:
    """A matrix whose groups have sizes of their own, from denormals to what float16 can scale."""
    N, K = draw(st.integers(1, 5)), draw(st.integers(1, 80))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    w = rng.standard_normal((N, K))
    exponents = draw(arrays.arrays(np.int32, (N, -(-K // 32)), elements=st.integers(-45, 16)))
    w *= np.repeat(2.0**exponents, 32, axis=1)[:, :K]
    if draw(st.booleans()):
        w[rng.random(w.shape) < 0.5] = 0
    return w.astype(np.float32)


def groups_of(a: np.ndarray) -> list[np.ndarray]:
    """The groups of each row: the last of a row may be shorter."""
    return [row[i : i + 32] for row in a for i in range(0, a.shape[1], 32)]


@given(weights(), SYMMETRIC, QUALITY)
def test_every_weight_becomes_the_nearest_multiple_of_its_scale(
    w: np.ndarray, kind: str, quality: str
) -> None:
    q, scales = quantize(w, kind, quality)
    assert q.dtype == np.int8 and q.shape == w.shape
    assert scales.dtype == np.float16 and scales.shape == (len(w), -(-w.shape[1] // 32))
    least, most = LIMITS[kind]
    for group, kept, scale in zip(groups_of(w), groups_of(q), scales.reshape(-1), strict=True):
        if scale == 0:
            assert not kept.any()
            continue
        exact = group.astype(np.float64) / np.float64(scale)
        # The inverse of the scale and the product with it are rounded, which moves a tie by 2 U of it.
        slack = 3 * U * np.abs(exact)
        assert (np.abs(kept - np.clip(exact, least, most)) <= 0.5 + slack).all()


@given(weights(), SYMMETRIC)
def test_the_plain_scale_makes_the_largest_weight_an_end_of_the_range(w: np.ndarray, kind: str) -> None:
    q, scales = quantize(w, kind, "fast")
    for group, kept, scale in zip(groups_of(w), groups_of(q), scales.reshape(-1), strict=True):
        at = np.abs(group).argmax()
        plain = np.abs(group[at]) / np.float32(127) if kind == "int8" else group[at] / np.float32(-8)
        assert scale == plain.astype(np.float16)
        if abs(scale) >= 2.0**-14:  # a normal float16, which is exact to 2^-11
            assert kept[at] == (-8 if kind == "int4" else np.copysign(127, group[at]))


@pytest.mark.parametrize("quality", ["high", "fast"])
def test_ties_go_to_the_even_number(quality: str) -> None:
    ties = [0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, -3.5]
    w = np.array([[127, *ties]], np.float32)
    q, scales = quantize(w * 2**-9, "int8", quality)
    assert scales[0, 0] == 2**-9
    assert q.tolist() == [[127, 0, 2, 2, 4, 0, -2, -2, -4]]
    # Even the better scales leave this group alone: the ties cancel out.
    w = np.array([[-8, *ties]], np.float32)
    q, scales = quantize(w * 2**-9, "int4", "fast")
    assert scales[0, 0] == 2**-9
    assert q.tolist() == [[-8, 0, 2, 2, 4, 0, -2, -2, -4]]


@given(SYMMETRIC, QUALITY, st.integers(1, 70))
def test_zeros_stay_zeros(kind: str, quality: str, K: int) -> None:
    q, scales = quantize(np.zeros((2, K), np.float32), kind, quality)
    assert not q.any() and not scales.any()


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("quality", ["high", "fast"])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_small_end_of_float16(kind: str, quality: str, sign: int) -> None:
    # 2^-24 is the smallest scale; what is at most half of it rounds to 0 (ties go to even).
    largest = np.float32(sign * DENOMINATOR[kind] * 2.0**-25)
    q, scales = quantize(np.array([[largest, largest / 3]], np.float32), kind, quality)
    assert not q.any() and not scales.any()
    above = np.nextafter(largest, np.float32(sign))
    q, scales = quantize(np.array([[above, 0]], np.float32), kind, quality)
    assert abs(scales[0, 0]) >= 2.0**-24 and q[0, 0] != 0


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("quality", ["high", "fast"])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_large_end_of_float16(kind: str, quality: str, sign: int) -> None:
    # 65504 is the largest scale; from 65520 on, rounding would give infinity.
    too_large = np.float32(sign * DENOMINATOR[kind] * 65520.0)
    below = np.nextafter(too_large, np.float32(0))
    q, scales = quantize(np.array([[below, 0]], np.float32), kind, quality)
    assert abs(scales[0, 0]) == 65504
    assert abs(q[0, 0]) == DENOMINATOR[kind] and q[0, 1] == 0
    with pytest.raises(
        CheckpointError, match=r"down_proj: has a group with the scale 65520, wanted below 65520"
    ):
        quantize(np.array([[0, too_large]], np.float32), kind, quality, "down_proj")


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(kind: str, value: float) -> None:
    w = np.zeros((3, 40), np.float32)
    w[2, 39] = value
    with pytest.raises(CheckpointError, match="up_proj: holds NaN or infinity"):
        quantize(w, kind, where="up_proj")


@given(weights(), SYMMETRIC, QUALITY)
def test_a_group_is_rounded_by_itself(w: np.ndarray, kind: str, quality: str) -> None:
    q, scales = quantize(w, kind, quality)
    for i in range(scales.shape[1]):
        part, part_scales = quantize(w[:, 32 * i : 32 * i + 32], kind, quality)
        np.testing.assert_array_equal(part, q[:, 32 * i : 32 * i + 32])
        np.testing.assert_array_equal(part_scales[:, 0], scales[:, i])


def squared_error(group: np.ndarray, q: np.ndarray, scale: np.float16) -> float:
    return float(np.square(group - q.astype(np.float64) * np.float64(scale)).sum())


@given(weights())
@example(np.full((1, 32), 5.2e5, np.float32))  # where a better scale would be too large for float16
@example(np.array([[-5.2e5, *[5.2e5] * 31]], np.float32))
def test_high_quality_is_at_no_group_worse_than_fast(w: np.ndarray) -> None:
    fast, high = quantize(w, "int4", "fast"), quantize(w, "int4", "high")
    pairs = [(groups_of(q), scales.reshape(-1)) for q, scales in (fast, high)]
    for i, group in enumerate(groups_of(w)):
        before, after = (squared_error(group, qs[i], scales[i]) for qs, scales in pairs)
        # The two were compared as sums of 32 squares in float32, each off by 34 U at most; a weight's own
        # error is off by 2 U of the weight.
        slack = 80 * U * before + 8 * U * np.linalg.norm(group.astype(np.float64)) * np.sqrt(before)
        assert after <= before + slack


def test_high_quality_is_better_for_usual_weights() -> None:
    w = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    found = [dequantize(*quantize(w, "int4", quality)) for quality in ("fast", "high")]
    fast, high = (np.square(w - again).sum() for again in found)
    assert high < 0.92 * fast


@given(weights(), SYMMETRIC, QUALITY)
def test_dequantising_multiplies_by_the_groups_scale(w: np.ndarray, kind: str, quality: str) -> None:
    q, scales = quantize(w, kind, quality)
    found = dequantize(q, scales)
    assert found.dtype == np.float32
    for row, column in np.ndindex(q.shape):
        # 8 bits times float16's 11 are exact in float32.
        assert found[row, column] == int(q[row, column]) * float(scales[row, column // 32])


@given(weights(), SYMMETRIC)
def test_what_lies_on_the_grid_is_kept(w: np.ndarray, kind: str) -> None:
    q, scales = quantize(w, kind, "fast")
    again, scales_again = quantize(dequantize(q, scales), kind, "fast")
    normal = np.repeat(np.abs(scales) >= 2.0**-14, 32, axis=1)[:, : q.shape[1]]
    np.testing.assert_array_equal(again[normal], q[normal])
    np.testing.assert_array_equal(
        scales_again[np.abs(scales) >= 2.0**-14], scales[np.abs(scales) >= 2.0**-14]
    )


# ---------------------------------------------------------------- with minima


@st.composite
def any_weights(draw: st.DrawFn) -> np.ndarray:
    """Of up to three super-blocks, whose groups have means and sizes of their own; some are constant."""
    N, K = draw(st.integers(1, 4)), draw(st.integers(1, 600))
    rng, groups = np.random.default_rng(draw(st.integers(0, 1 << 16))), -(-K // 32)
    means, sizes = (draw(st.sampled_from([0.0, 0.1, 1.0, 100.0])) for _ in range(2))
    mean = means * rng.standard_normal((N, groups)) + draw(st.sampled_from([0, 3, -3])) * means
    size = sizes * 2.0 ** rng.integers(-3, 3, (N, groups)) * (rng.random((N, groups)) < 0.8)
    w = np.repeat(mean, 32, 1)[:, :K] + np.repeat(size, 32, 1)[:, :K] * rng.standard_normal((N, K))
    return (w * 2.0 ** draw(st.integers(-40, 3))).astype(np.float32)


def spread(factors: np.ndarray, K: int) -> np.ndarray:
    return np.repeat(factors.astype(np.float64), 32, axis=1)[:, :K]


@given(any_weights(), QUALITY)
def test_every_weight_becomes_the_nearest_point_of_its_groups_grid(w: np.ndarray, quality: str) -> None:
    (N, K), (q, scales, tops) = w.shape, quantize(w, "uint4", quality)
    groups = -(-K // 32)
    assert [(a.dtype.name, a.shape) for a in (q, scales, tops)] == [
        ("uint8", (N, K)), ("uint8", (N, groups, 2)), ("float16", (N, -(-groups // 8), 2))
    ]  # fmt: skip
    scale, minimum = (spread(f, K) for f in ops.group_factors(scales, tops) if f is not None)
    assert q.max() <= 15
    assert not q[scale == 0].any()
    exact = (w + minimum)[scale != 0] / scale[scale != 0]
    slack = 4 * U * (np.abs(w) + np.abs(minimum))[scale != 0] / np.abs(scale[scale != 0])
    assert (np.abs(q[scale != 0] - np.clip(exact, 0, 15)) <= 0.5 + slack).all()
    # What it stands for: the products are exact, and it is rounded twice.
    found = dequantize(q, scales, tops)
    assert found.dtype == np.float32
    assert (np.abs(found - (q * scale - minimum)) <= 2 * U * (q * np.abs(scale) + np.abs(minimum))).all()


@given(any_weights(), QUALITY)
def test_no_weight_of_uint4_is_off_by_more_than_its_group_and_super_block_allow(
    w: np.ndarray, quality: str
) -> None:
    """Within the grid: half a step. Outside, as far as "high" cuts, and as minima and scales are rounded."""
    q, *factors = quantize(w, "uint4", quality)
    error, K = np.abs(w - dequantize(q, *factors).astype(np.float64)), w.shape[1]
    for start in range(0, K, 256):
        part, off = w[:, start : start + 256], error[:, start : start + 256]
        for row, row_off in zip(part, off, strict=True):
            groups = [row[i : i + 32] for i in range(0, len(row), 32)]
            above = sum(max(float(g.min()), 0) for g in groups)
            below = sum(max(float(-g.max()), 0) for g in groups)
            sign = -1 if above > below else 1
            ends = [(min((sign * g).min(), 0), max((sign * g).max(), (sign * g).min(), 0)) for g in groups]
            widest, lowest = max(high - low for low, high in ends), max(-low for low, _ in ends)
            # 1/255 of the largest, rounded to float16, is what the others are counted in.
            counted = (widest / 15 * 15 + lowest) / 255 * (1 + 2.0**-8) + 16 * 2.0**-24
            cut = 0.6 if quality == "high" else 0.0  # of the width: a better grid may leave its ends
            for i, (low, high) in enumerate(ends):
                most = (high - low) * (1 / 30 + cut) + counted
                assert row_off[32 * i : 32 * i + 32].max() <= most * (1 + 1e-5)


@given(any_weights())
def test_uint4_of_high_quality_is_better_or_as_good(w: np.ndarray) -> None:
    """Up to what scales lose when they are counted in their super-block's, which the choice does not see."""
    fast, high = (
        np.square(w - dequantize(*quantize(w, "uint4", quality)).astype(np.float64)).sum()
        for quality in ("fast", "high")
    )
    counted = (np.abs(w).max() / 127 + 16 * 2.0**-24) ** 2 * w.size
    assert high <= fast + counted


def test_uint4_is_better_than_int4_for_usual_weights() -> None:
    w = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    errors = {
        (kind, quality): np.square(w - dequantize(*quantize(w, kind, quality))).sum()
        for kind in ("int4", "uint4")
        for quality in ("fast", "high")
    }
    assert errors["uint4", "fast"] < 0.85 * errors["int4", "fast"]
    assert errors["uint4", "high"] < 0.82 * errors["int4", "high"] < 0.82 * errors["uint4", "fast"] / 0.85


@pytest.mark.parametrize("quality", ["high", "fast"])
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 7e-5, -3e4])
def test_constants_are_held(quality: str, value: float) -> None:
    """Both signs, up to float16's rounding of a 255th, of which denormals have fewer bits."""
    w = np.full((2, 300), value, np.float32)
    found = dequantize(*quantize(w, "uint4", quality))
    assert (np.abs(found - w) <= 2.0**-11 * np.abs(w) + 255 * 2.0**-25).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_groups_of_one_sign_use_all_16_values(sign: int) -> None:
    w = sign * (10 + np.random.default_rng(0).random((4, 256))).astype(np.float32)
    q, *factors = quantize(w, "uint4")
    assert {*q.ravel().tolist()} == {*range(16)}
    assert np.abs(w - dequantize(q, *factors)).max() < 1 / 15


def test_uint4_s_small_and_large_ends() -> None:
    # Below half of 2^-24 nothing is left; a grid counts in 2^-24 at least, so what is above stays.
    tiny = np.full((1, 64), -(2.0**-26), np.float32)
    assert not dequantize(*quantize(tiny, "uint4")).any()
    small = np.full((1, 64), -(2.0**-23), np.float32)
    assert (dequantize(*quantize(small, "uint4")) == small).all()
    too_large = np.float32(65520 * 255.0)
    for sign in (1, -1):
        w = np.zeros((1, 40), np.float32)
        w[0, 39] = sign * np.nextafter(too_large, np.float32(0))
        kept = dequantize(*quantize(w, "uint4"))
        assert np.isfinite(kept).all() and np.abs(kept - w).max() <= 2.0**-11 * too_large
        w[0, 39] = sign * too_large
        with pytest.raises(CheckpointError, match=r"up_proj: has a group with the scale 65520, wanted below"):
            quantize(w, "uint4", where="up_proj")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_uint4_refuses_what_is_not_finite(value: float) -> None:
    w = np.zeros((3, 300), np.float32)
    w[2, 299] = value
    with pytest.raises(CheckpointError, match="up_proj: holds NaN or infinity"):
        quantize(w, "uint4", where="up_proj")


@given(any_weights(), QUALITY)
def test_a_super_block_is_rounded_by_itself(w: np.ndarray, quality: str) -> None:
    q, scales, tops = quantize(w, "uint4", quality)
    for i in range(tops.shape[1]):
        part, part_scales, part_tops = quantize(w[:, 256 * i : 256 * i + 256], "uint4", quality)
        np.testing.assert_array_equal(part, q[:, 256 * i : 256 * i + 256])
        np.testing.assert_array_equal(part_scales, scales[:, 8 * i : 8 * i + 8])
        np.testing.assert_array_equal(part_tops[:, 0], tops[:, i])


@given(any_weights(), st.sampled_from(["int8", "int4", "uint4"]), st.integers(0, 99))
def test_rounding_takes_its_two_steps_apart_and_columns_in_any_order(
    w: np.ndarray, kind: str, seed: int
) -> None:
    """As a calibrated rounding needs it: first what groups are rounded by, then columns, one at a time."""
    q, *factors = quantize(w, kind)
    found = find_factors(w, kind)
    for a, b in zip(found, factors, strict=True):
        np.testing.assert_array_equal(a, b)
    scale, minimum = ops.group_factors(*found)
    for column in np.random.default_rng(seed).permutation(w.shape[1])[:9]:
        own = slice(column // 32, column // 32 + 1)
        one = w[:, column : column + 1]
        rounded = round_with(one, kind, scale[:, own], None if minimum is None else minimum[:, own])
        np.testing.assert_array_equal(rounded, q[:, column : column + 1])


@given(any_weights())
def test_recounting_keeps_what_fits_and_the_rest_nearly(w: np.ndarray) -> None:
    fitting = quantize(w, "uint4", whole=63)
    assert fitting[1].max() <= 63
    for a, b in zip(recount(fitting, 63), fitting, strict=True):
        np.testing.assert_array_equal(a, b)
    before = quantize(w, "uint4")
    after = recount(before, 63)
    assert after[1].max() <= 63 and [a.dtype for a in after] == [a.dtype for a in before]
    scale, minimum = ops.group_factors(*before[1:])
    assert minimum is not None
    moved = np.abs(dequantize(*before) - dequantize(*after).astype(np.float64))
    # A scale and a minimum move by half of a 63rd of the largest, and a weight then by a step of its own.
    for i in range(0, scale.shape[1], 8):
        part, columns = np.s_[:, i : i + 8], np.s_[:, 32 * i : 32 * i + 256]
        largest = 15 * np.abs(scale[part]).max(1) + np.abs(minimum[part]).max(1)
        bound = largest / 63 + np.abs(scale[part]).max(1) + 64 * 2.0**-24
        assert (moved[columns] <= bound[:, None] * 1.01).all()


FOUR_BITS = st.sampled_from(["int4", "uint4"])


@given(any_weights(), FOUR_BITS, st.floats(1e-6, 1e6))
def test_columns_that_all_count_the_same_change_nothing(w: np.ndarray, kind: str, value: float) -> None:
    found = quantize(w, kind, importance=np.full(w.shape[1], value))
    for a, b in zip(found, quantize(w, kind), strict=True):
        np.testing.assert_array_equal(a, b)


@given(st.integers(1, 300), FOUR_BITS, st.integers(0, 99))
def test_columns_that_count_more_are_held_better(K: int, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w, importance = rng.standard_normal((64, K)).astype(np.float32), np.exp(2 * rng.standard_normal(K))
    factors = find_factors(w, kind, importance=importance)
    q, *same = quantize(w, kind, importance=importance)
    for a, b in zip(factors, same, strict=True):
        np.testing.assert_array_equal(a, b)

    def error(*rounded: np.ndarray) -> float:
        return float((np.square(w - dequantize(*rounded)) @ importance).sum())

    assert error(q, *factors) <= error(*quantize(w, kind)) * (1 + 1e-6)
