"""Rounding weights: the rules that `quantize` states, restated in float64."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mvlm_np.errors import CheckpointError
from mvlm_np.quantize import dequantize, quantize
from tests.arrays import U

LIMITS = {8: (-127, 127), 4: (-8, 7)}
DENOMINATOR = {8: 127, 4: 8}  # of the plain scale: the largest magnitude over this
BITS = st.sampled_from([8, 4])
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


@given(weights(), BITS, QUALITY)
def test_every_weight_becomes_the_nearest_multiple_of_its_scale(
    w: np.ndarray, bits: int, quality: str
) -> None:
    q, scales = quantize(w, bits, quality)
    assert q.dtype == np.int8 and q.shape == w.shape
    assert scales.dtype == np.float16 and scales.shape == (len(w), -(-w.shape[1] // 32))
    least, most = LIMITS[bits]
    for group, kept, scale in zip(groups_of(w), groups_of(q), scales.reshape(-1), strict=True):
        if scale == 0:
            assert not kept.any()
            continue
        exact = group.astype(np.float64) / np.float64(scale)
        # The inverse of the scale and the product with it are rounded, which moves a tie by 2 U of it.
        slack = 3 * U * np.abs(exact)
        assert (np.abs(kept - np.clip(exact, least, most)) <= 0.5 + slack).all()


@given(weights(), BITS)
def test_the_plain_scale_makes_the_largest_weight_an_end_of_the_range(w: np.ndarray, bits: int) -> None:
    q, scales = quantize(w, bits, "fast")
    for group, kept, scale in zip(groups_of(w), groups_of(q), scales.reshape(-1), strict=True):
        at = np.abs(group).argmax()
        plain = np.abs(group[at]) / np.float32(127) if bits == 8 else group[at] / np.float32(-8)
        assert scale == plain.astype(np.float16)
        if abs(scale) >= 2.0**-14:  # a normal float16, which is exact to 2^-11
            assert kept[at] == (-8 if bits == 4 else np.copysign(127, group[at]))


@pytest.mark.parametrize("quality", ["high", "fast"])
def test_ties_go_to_the_even_number(quality: str) -> None:
    ties = [0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, -3.5]
    w = np.array([[127, *ties]], np.float32)
    q, scales = quantize(w * 2**-9, 8, quality)
    assert scales[0, 0] == 2**-9
    assert q.tolist() == [[127, 0, 2, 2, 4, 0, -2, -2, -4]]
    # Even the better scales leave this group alone: the ties cancel out.
    w = np.array([[-8, *ties]], np.float32)
    q, scales = quantize(w * 2**-9, 4, "fast")
    assert scales[0, 0] == 2**-9
    assert q.tolist() == [[-8, 0, 2, 2, 4, 0, -2, -2, -4]]


@given(BITS, QUALITY, st.integers(1, 70))
def test_zeros_stay_zeros(bits: int, quality: str, K: int) -> None:
    q, scales = quantize(np.zeros((2, K), np.float32), bits, quality)
    assert not q.any() and not scales.any()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("quality", ["high", "fast"])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_small_end_of_float16(bits: int, quality: str, sign: int) -> None:
    # 2^-24 is the smallest scale; what is at most half of it rounds to 0 (ties go to even).
    largest = np.float32(sign * DENOMINATOR[bits] * 2.0**-25)
    q, scales = quantize(np.array([[largest, largest / 3]], np.float32), bits, quality)
    assert not q.any() and not scales.any()
    above = np.nextafter(largest, np.float32(sign))
    q, scales = quantize(np.array([[above, 0]], np.float32), bits, quality)
    assert abs(scales[0, 0]) >= 2.0**-24 and q[0, 0] != 0


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("quality", ["high", "fast"])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_large_end_of_float16(bits: int, quality: str, sign: int) -> None:
    # 65504 is the largest scale; from 65520 on, rounding would give infinity.
    too_large = np.float32(sign * DENOMINATOR[bits] * 65520.0)
    below = np.nextafter(too_large, np.float32(0))
    q, scales = quantize(np.array([[below, 0]], np.float32), bits, quality)
    assert abs(scales[0, 0]) == 65504
    assert abs(q[0, 0]) == DENOMINATOR[bits] and q[0, 1] == 0
    with pytest.raises(
        CheckpointError, match=r"down_proj: has a group with the scale 65520, wanted below 65520"
    ):
        quantize(np.array([[0, too_large]], np.float32), bits, quality, "down_proj")


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bits: int, value: float) -> None:
    w = np.zeros((3, 40), np.float32)
    w[2, 39] = value
    with pytest.raises(CheckpointError, match="up_proj: holds NaN or infinity"):
        quantize(w, bits, where="up_proj")


@given(weights(), BITS, QUALITY)
def test_a_group_is_rounded_by_itself(w: np.ndarray, bits: int, quality: str) -> None:
    q, scales = quantize(w, bits, quality)
    for i in range(scales.shape[1]):
        part, part_scales = quantize(w[:, 32 * i : 32 * i + 32], bits, quality)
        np.testing.assert_array_equal(part, q[:, 32 * i : 32 * i + 32])
        np.testing.assert_array_equal(part_scales[:, 0], scales[:, i])


def squared_error(group: np.ndarray, q: np.ndarray, scale: np.float16) -> float:
    return float(np.square(group - q.astype(np.float64) * np.float64(scale)).sum())


@given(weights())
@example(np.full((1, 32), 5.2e5, np.float32))  # where a better scale would be too large for float16
@example(np.array([[-5.2e5, *[5.2e5] * 31]], np.float32))
def test_high_quality_is_at_no_group_worse_than_fast(w: np.ndarray) -> None:
    fast, high = quantize(w, 4, "fast"), quantize(w, 4, "high")
    pairs = [(groups_of(q), scales.reshape(-1)) for q, scales in (fast, high)]
    for i, group in enumerate(groups_of(w)):
        before, after = (squared_error(group, qs[i], scales[i]) for qs, scales in pairs)
        # The two were compared as sums of 32 squares in float32, each off by 34 U at most; a weight's own
        # error is off by 2 U of the weight.
        slack = 80 * U * before + 8 * U * np.linalg.norm(group.astype(np.float64)) * np.sqrt(before)
        assert after <= before + slack


def test_high_quality_is_better_for_usual_weights() -> None:
    w = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    fast, high = (np.square(w - dequantize(*quantize(w, 4, quality))).sum() for quality in ("fast", "high"))
    assert high < 0.92 * fast


@given(weights(), BITS, QUALITY)
def test_dequantising_multiplies_by_the_groups_scale(w: np.ndarray, bits: int, quality: str) -> None:
    q, scales = quantize(w, bits, quality)
    found = dequantize(q, scales)
    assert found.dtype == np.float32
    for row, column in np.ndindex(q.shape):
        # 8 bits times float16's 11 are exact in float32.
        assert found[row, column] == int(q[row, column]) * float(scales[row, column // 32])


@given(weights(), BITS)
def test_what_lies_on_the_grid_is_kept(w: np.ndarray, bits: int) -> None:
    q, scales = quantize(w, bits, "fast")
    again, scales_again = quantize(dequantize(q, scales), bits, "fast")
    normal = np.repeat(np.abs(scales) >= 2.0**-14, 32, axis=1)[:, : q.shape[1]]
    np.testing.assert_array_equal(again[normal], q[normal])
    np.testing.assert_array_equal(
        scales_again[np.abs(scales) >= 2.0**-14], scales[np.abs(scales) >= 2.0**-14]
    )
