"""The packed layouts: each byte where the docstring of `kernels.pack` says, and nothing lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np.kernels import pack
from mvlm_np.quantize import LIMITS

KINDS = st.sampled_from([*pack.KINDS])
SIZES = st.integers(1, 70)
COLUMNS = st.integers(1, 600)  # of up to three super-blocks


def matrix(kind: str, N: int, K: int, seed: int = 0) -> pack.Rounded:
    """Random weights of the whole range, and factors of either sign."""
    rng, groups = np.random.default_rng(seed), -(-K // 32)
    least, most = LIMITS[kind]
    q = rng.integers(least, most + 1, (N, K)).astype(np.uint8 if kind == "uint4" else np.int8)
    if kind == "uint4":
        tops = rng.standard_normal((N, -(-groups // 8), 2)).astype(np.float16)
        return q, rng.integers(0, 256, (N, groups, 2), np.uint8), tops
    return q, rng.standard_normal((N, groups)).astype(np.float16)


@given(KINDS, SIZES, COLUMNS, st.integers(0, 99))
def test_unpacking_gives_back_what_was_packed(kind: str, N: int, K: int, seed: int) -> None:
    rounded = matrix(kind, N, K, seed)
    packed = pack.pack(kind, *rounded)
    assert packed[:3] == (kind, N, K)
    assert [(a.dtype.name, a.shape) for a in packed.arrays] == [*pack.parts(kind, N, K).values()]
    assert all(a.flags.c_contiguous for a in packed.arrays)
    assert packed.nbytes == sum(a.nbytes for a in packed.arrays)
    assert_same(pack.unpack(packed), rounded)


def assert_same(found: pack.Rounded, wanted: pack.Rounded) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@given(SIZES, SIZES)
def test_each_int8_weight_lies_where_it_should(N: int, K: int) -> None:
    w, scales = matrix("int8", N, K)
    _, _, _, values, packed_scales, _ = pack.pack("int8", w, scales)
    for tile, group, chunk, byte in np.ndindex(values.shape):
        row, column = 16 * tile + byte // 4, 32 * group + 4 * chunk + byte % 4
        assert values[tile, group, chunk, byte] == (w[row, column] if row < N and column < K else 0)
    check_rows(packed_scales, scales)


@pytest.mark.parametrize("kind, added", [("int4", 8), ("uint4", 0)])
@given(SIZES, SIZES)
def test_each_weight_of_4_bits_lies_where_it_should(kind: str, added: int, N: int, K: int) -> None:
    w, *factors = matrix(kind, N, K)
    packed = pack.pack(kind, w, *factors)
    for tile, group, chunk, byte in np.ndindex(packed.values.shape):
        row, column = 16 * tile + byte // 4, 32 * group + 8 * chunk + byte % 4
        both = int(packed.values[tile, group, chunk, byte])
        for nibble, k in ((both & 15, column), (both >> 4, column + 4)):
            assert nibble - added == (w[row, k] if row < N and k < K else 0)
    for array, rows in zip(packed.arrays[1:], factors, strict=True):
        check_rows(array, rows)


def check_rows(packed: np.ndarray, rows: np.ndarray) -> None:
    """Factors lie with their 16 rows side by side; rows past the last are 0."""
    for tile, *others, r in np.ndindex(packed.shape):
        row = 16 * tile + r
        assert packed[(tile, *others, r)] == (rows[(row, *others)] if row < len(rows) else 0)


@given(KINDS, SIZES, COLUMNS)
def test_any_strides_and_read_only_arrays_will_do(kind: str, N: int, K: int) -> None:
    rounded = matrix(kind, N, K)
    expected = pack.pack(kind, *rounded)
    strided = [np.asfortranarray(a) for a in rounded]
    for a in strided:
        a.setflags(write=False)
    for found, wanted in zip(pack.pack(kind, *strided).arrays, expected.arrays, strict=True):
        np.testing.assert_array_equal(found, wanted)
    for a in expected.arrays:
        a.setflags(write=False)
    assert_same(pack.unpack(expected), rounded)


@pytest.mark.parametrize("kind, bits", pack.KINDS.items())
def test_whole_tiles_take_as_many_bits_as_is_said(kind: str, bits: float) -> None:
    assert pack.pack(kind, *matrix(kind, 64, 512)).nbytes * 8 == 64 * 512 * bits


@given(KINDS, COLUMNS, st.lists(st.integers(-20, 19), max_size=5))
def test_rows_are_unpacked_as_in_the_whole(kind: str, K: int, ids: list[int]) -> None:
    rounded = matrix(kind, 20, K)
    packed = pack.pack(kind, *rounded)
    chosen = np.array(ids, np.int64)
    assert_same(pack.unpack_rows(packed, chosen), tuple(a[chosen] for a in rounded))
    assert_same(pack.unpack_rows(packed, slice(3, 17)), tuple(a[3:17] for a in rounded))
