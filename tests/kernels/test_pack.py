"""The packed layouts: each byte where the docstring of `kernels.pack` says, and nothing lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np.kernels import pack

BITS = st.sampled_from([8, 4])
SIZES = st.integers(1, 70)
LEAST = {8: -127, 4: -8}
MOST = {8: 127, 4: 7}


def matrix(bits: int, N: int, K: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random weights of the whole range, and scales of either sign."""
    rng = np.random.default_rng(seed)
    w = rng.integers(LEAST[bits], MOST[bits] + 1, (N, K)).astype(np.int8)
    return w, rng.standard_normal((N, -(-K // 32))).astype(np.float16)


@given(BITS, SIZES, SIZES, st.integers(0, 99))
def test_unpacking_gives_back_what_was_packed(bits: int, N: int, K: int, seed: int) -> None:
    w, scales = matrix(bits, N, K, seed)
    values, packed_scales = pack.pack(bits, w, scales)
    assert (values.shape, packed_scales.shape) == pack.shapes(bits, N, K)
    assert values.dtype == {8: np.int8, 4: np.uint8}[bits] and packed_scales.dtype == np.float16
    assert values.flags.c_contiguous and packed_scales.flags.c_contiguous
    found, found_scales = pack.unpack(bits, values, packed_scales, N, K)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, w)
    np.testing.assert_array_equal(found_scales.view(np.uint16), scales.view(np.uint16))


@given(SIZES, SIZES)
def test_each_int8_weight_lies_where_it_should(N: int, K: int) -> None:
    w, scales = matrix(8, N, K)
    values, packed_scales = pack.pack(8, w, scales)
    for tile, group, chunk, byte in np.ndindex(values.shape):
        row, column = 16 * tile + byte // 4, 32 * group + 4 * chunk + byte % 4
        assert values[tile, group, chunk, byte] == (w[row, column] if row < N and column < K else 0)
    check_scales(packed_scales, scales)


@given(SIZES, SIZES)
def test_each_int4_weight_lies_where_it_should(N: int, K: int) -> None:
    w, scales = matrix(4, N, K)
    values, packed_scales = pack.pack(4, w, scales)
    for tile, group, chunk, byte in np.ndindex(values.shape):
        row, column = 16 * tile + byte // 4, 32 * group + 8 * chunk + byte % 4
        both = int(values[tile, group, chunk, byte])
        for nibble, k in ((both & 15, column), (both >> 4, column + 4)):
            assert nibble - 8 == (w[row, k] if row < N and k < K else 0)
    check_scales(packed_scales, scales)


def check_scales(packed: np.ndarray, scales: np.ndarray) -> None:
    for tile, group, r in np.ndindex(packed.shape):
        row = 16 * tile + r
        assert packed[tile, group, r] == (scales[row, group] if row < len(scales) else 0)


@given(BITS, SIZES, SIZES)
def test_any_strides_and_read_only_arrays_will_do(bits: int, N: int, K: int) -> None:
    w, scales = matrix(bits, N, K)
    expected = pack.pack(bits, w, scales)
    strided = [np.asfortranarray(a) for a in (w, scales)]
    for a in strided:
        a.setflags(write=False)
    for found, wanted in zip(pack.pack(bits, *strided), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    for a in expected:
        a.setflags(write=False)
    np.testing.assert_array_equal(pack.unpack(bits, *expected, N, K)[0], w)


@pytest.mark.parametrize("bits, per_weight", [(8, 1), (4, 0.5)])
def test_whole_tiles_take_no_more_room_than_their_weights_and_scales(bits: int, per_weight: float) -> None:
    values, scales = pack.pack(bits, *matrix(bits, 64, 96))
    assert values.nbytes == 64 * 96 * per_weight
    assert scales.nbytes == 64 * 3 * 2


@given(BITS, SIZES, st.integers(0, 9))
def test_groups_of_one_row_are_unpacked_as_in_the_whole(bits: int, K: int, row: int) -> None:
    w, scales = matrix(bits, 10, K)
    values, _ = pack.pack(bits, w, scales)
    own = values.reshape(*values.shape[:3], 16, 4)[row // 16, :, :, row % 16]  # (groups, bits, 4)
    np.testing.assert_array_equal(pack.unpack_groups(bits, own).reshape(-1)[:K], w[row])
