"""Block types: decoding equals the gguf package's to the bit; quantising follows llama.cpp's reference."""

from collections.abc import Callable
from fractions import Fraction

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mvlm_np import quantize
from mvlm_np.checkpoints import gguf_blocks
from mvlm_np.checkpoints.gguf_blocks import (
    FOREIGN,
    TYPES,
    StoredType,
    encode,
    join_q4_0,
    join_q4_k,
    join_q8_0,
    need_package,
    quantize_q4_0,
    quantize_q8_0,
    split_q4_0,
    split_q4_k,
    split_q8_0,
)
from mvlm_np.checkpoints.gguf_model import open_gguf
from mvlm_np.checkpoints.safetensors import read_safetensors
from mvlm_np.errors import CheckpointError
from mvlm_np.kernels import pack
from tests.conftest import shared_path

BLOCKS = {number: stored for number, stored in TYPES.items() if stored.decode}
OURS = [number for number, stored in BLOCKS.items() if stored.name not in FOREIGN]


def decoded(stored: StoredType, blocks: np.ndarray) -> np.ndarray:
    assert stored.decode
    return stored.decode(blocks)


@pytest.mark.parametrize("number", OURS)
@given(data=st.data())
def test_decoding_equals_the_package_bit_for_bit_for_any_bytes(number: int, data: st.DataObject) -> None:
    """Any bytes are a block, those with infinite and missing scales included."""
    stored, theirs = BLOCKS[number], gguf.GGMLQuantizationType(number)
    blocks = data.draw(hnp.arrays(np.uint8, (data.draw(st.integers(1, 5)), stored.nbytes)))
    values = decoded(stored, blocks)
    with np.errstate(invalid="ignore"):
        expected = gguf.quants.dequantize(blocks, theirs)
    assert values.dtype == np.float32 and values.shape == (len(blocks), stored.values)
    np.testing.assert_array_equal(values.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("number", OURS)
@pytest.mark.parametrize("scale", [0.0, -0.0, 6e-8, -6.1e-5, 65504.0, -65504.0, float("inf"), float("nan")])
def test_extreme_scales_decode_as_the_package_does(number: int, scale: float) -> None:
    stored = BLOCKS[number]
    blocks = np.random.default_rng(0).integers(0, 256, (8, stored.nbytes), np.uint8)
    at = slice(stored.nbytes - 2, None) if stored.name == "q6_k" else slice(0, 2)
    blocks[:, at] = np.array([scale], np.float16).view(np.uint8)
    if stored.name in ("q4_k", "q5_k"):  # of the minima
        blocks[::2, 2:4] = np.array([scale], np.float16).view(np.uint8)
    with np.errstate(invalid="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(number))
    np.testing.assert_array_equal(decoded(stored, blocks).view(np.uint32), expected.view(np.uint32))
    if not np.isfinite(scale):
        assert not np.isfinite(decoded(stored, blocks)).all()  # passed on, not hidden


@pytest.mark.parametrize("number", OURS)
def test_decoding_takes_read_only_and_strided_blocks(number: int) -> None:
    stored = BLOCKS[number]
    blocks = np.random.default_rng(1).integers(0, 256, (6, stored.nbytes), np.uint8)
    blocks.flags.writeable = False
    np.testing.assert_array_equal(decoded(stored, blocks[::2]), decoded(stored, blocks.copy())[::2])


def test_numbers_and_sizes_are_the_formats() -> None:
    short = {"float": "f", "int": "i", "bfloat": "bf"}
    for number, stored in TYPES.items():
        theirs = gguf.GGMLQuantizationType(number)
        letters = stored.name.rstrip("0123456789")
        assert theirs.name.lower() == short.get(letters, letters) + stored.name.removeprefix(letters)
        assert gguf.GGML_QUANT_SIZES[theirs] == (stored.values, stored.nbytes)


@pytest.mark.parametrize("number", [n for n in BLOCKS if n not in OURS])
def test_other_types_are_decoded_by_the_package(number: int) -> None:
    stored = BLOCKS[number]
    blocks = np.random.default_rng(2).integers(0, 60, (4, stored.nbytes), np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(number))
        values = decoded(stored, blocks)
    assert values.shape == (4, stored.values)
    np.testing.assert_array_equal(values, expected)


def test_without_the_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_blocks.importlib.util, "find_spec", lambda name: None)
    need_package(["float16", "q4_0", "q8_0", "q4_k", "q5_k", "q6_k"])
    for call in (
        lambda: need_package(["q3_k", "q4_0"]),
        lambda: decoded(BLOCKS[11], np.zeros((1, 110), np.uint8)),
    ):
        with pytest.raises(CheckpointError, match=r"type q3_k: .*not installed; pip install gguf"):
            call()


@given(data=st.data())
def test_q4_k_is_held_by_uint4_bit_for_bit(data: st.DataObject) -> None:
    """Whatever is in the blocks: as the package decodes them, and back to the same bytes."""
    n = data.draw(st.integers(1, 3))
    blocks = data.draw(hnp.arrays(np.uint8, (17, n, 144)))
    tops = blocks[..., :4].view(np.float16)
    tops[~np.isfinite(tops)] = data.draw(st.sampled_from([0.0, -0.0, 6e-8, -6e-8, 65504.0, -65504.0]))
    packed = pack.pack("uint4", *gguf_blocks.split("q4_k", blocks))
    found = quantize.dequantize(*pack.unpack(packed))
    expected = gguf.quants.dequantize(blocks.reshape(-1, 144), gguf.GGMLQuantizationType.Q4_K)
    np.testing.assert_array_equal(found.view(np.uint32).ravel(), expected.view(np.uint32).ravel())
    np.testing.assert_array_equal(gguf_blocks.join("q4_k", *pack.unpack(packed)), blocks)


def test_q4_k_is_held_by_uint4_over_many_blocks() -> None:
    rng = np.random.default_rng(0)
    for tops in (rng.standard_normal((20000, 2)), 2.0 ** rng.integers(-24, 16, (20000, 2)), None):
        blocks = rng.integers(0, 256, (20000, 144), np.uint8)
        stored = blocks[:, :4].view(np.float16)
        stored[:] = stored if tops is None else tops
        stored[~np.isfinite(stored)] = 1
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q4_K)
        rounded = gguf_blocks.split("q4_k", blocks.reshape(1000, 20, 144))
        packed = pack.pack("uint4", *rounded)
        found = quantize.dequantize(*pack.unpack(packed)).reshape(-1, 256)
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


# -- Quantising -------------------------------------------------------------------------------------------

finite = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-65504 * 8, max_value=65504 * 8)
rows = hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.just(32)), elements=finite)


def c_q4_0(x: list[np.float32]) -> bytes:
    """quantize_row_q4_0_ref of llama.cpp, read off its C: one block, one float at a time."""
    largest = np.float32(0)
    for v in x:
        if abs(largest) < abs(v):
            largest = v
    d = largest / np.float32(-8)
    inverse = _inverse(d)
    q = [min(15, int(np.float32(v * inverse + np.float32(8.5)))) for v in x]
    return np.float16(d).tobytes() + bytes(q[j] | q[j + 16] << 4 for j in range(16))


def c_q8_0(x: list[np.float32]) -> bytes:
    """quantize_row_q8_0_ref, likewise."""
    d = max(abs(v) for v in x) / np.float32(127)
    inverse = _inverse(d)
    return np.float16(d).tobytes() + bytes(_roundf(v * inverse) % 256 for v in x)


def _inverse(d: np.float32) -> np.float32:
    with np.errstate(all="ignore"):
        inverse = np.float32(1) / d if d else np.float32(0)
    return inverse if np.isfinite(inverse) else np.float32(0)  # undefined in C; the scale is 0 in float16


def _roundf(v: np.float32) -> int:
    """C's roundf: half away from zero, exactly."""
    whole = int(abs(Fraction(float(v))) + Fraction(1, 2))
    return -whole if v < 0 else whole


@given(rows)
def test_quantising_is_llama_cpps_reference(values: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        assert quantize_q4_0(values).tobytes() == b"".join(c_q4_0(list(row)) for row in values)
        assert quantize_q8_0(values).tobytes() == b"".join(c_q8_0(list(row)) for row in values)


@given(st.integers(-127, 127).flatmap(lambda q: st.tuples(st.just(q), st.sampled_from([-1, 0, 1]))))
def test_q8_0_rounds_half_away_from_zero_and_not_what_is_just_below(case: tuple[int, int]) -> None:
    q, nudge = case
    half = np.float32(q + 0.5)
    if nudge:
        half = np.nextafter(half, np.float32(nudge * 1000), dtype=np.float32)
    if abs(half) > 127:
        return
    block = np.zeros((1, 32), np.float32)
    block[0, :2] = 127, half  # d = 1
    assert quantize_q8_0(block)[0, 3:4].view(np.int8)[0] == _roundf(half)


@pytest.mark.parametrize(
    "split, join, nbytes",
    [(split_q4_0, join_q4_0, 18), (split_q8_0, join_q8_0, 34), (split_q4_k, join_q4_k, 144)],
)
@given(data=st.data())
def test_blocks_split_and_join_without_a_change(
    split: Callable, join: Callable, nbytes: int, data: st.DataObject
) -> None:
    blocks = data.draw(hnp.arrays(np.uint8, (data.draw(st.integers(1, 4)), nbytes)))
    np.testing.assert_array_equal(join(*split(blocks)), blocks)


def test_zeros_have_a_zero_scale() -> None:
    for sign in (1, -1):
        zeros = np.float32(sign) * np.zeros((1, 32), np.float32)
        assert quantize_q8_0(zeros).tobytes() == bytes(34)
        assert quantize_q4_0(zeros).tobytes() == b"\x00\x80" + b"\x88" * 16  # -0.0, as in C
        np.testing.assert_array_equal(gguf_blocks.decode_q4_0(quantize_q4_0(zeros)), np.zeros((1, 32)))


@given(rows)
def test_q4_0_saturates_and_is_within_half_a_step(values: np.ndarray) -> None:
    """The largest magnitude is at -8; its mirror image would be +8 and saturates at 7: a whole step off."""
    values = values / np.float32(8)
    blocks = quantize_q4_0(values)
    d = np.abs(blocks[:, :2].view(np.float16).astype(np.float64))
    error = np.abs(gguf_blocks.decode_q4_0(blocks).astype(np.float64) - values)
    # d itself is rounded to float16: 2^-11 of it, or half of float16's smallest number, times at most 8.
    assert (error <= d * (1 + 8 * 2.0**-10) + 8 * 2.0**-24).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "q8_0", "q4_0"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_is_not_written(dtype: str, bad: float) -> None:
    values = np.ones(64, np.float32)
    values[40] = bad
    with pytest.raises(CheckpointError, match="w: has values that are not finite numbers"):
        encode(dtype, values, "w")


@pytest.mark.parametrize("dtype, most", [("float16", 65504), ("q8_0", 65504 * 127), ("q4_0", 65504 * 8)])
def test_what_float16_cannot_hold_is_not_written(dtype: str, most: float) -> None:
    values = np.full(32, most, np.float32)
    encode(dtype, values, "w")
    with pytest.raises(CheckpointError, match=f"w: has values too large for {dtype}, wanted at most "):
        encode(dtype, values * np.float32(1.001), "w")


@pytest.mark.parametrize("name", ["llm-Q8_0", "llm-Q4_0-pure"])
def test_every_block_equals_those_of_llama_cpps_quantiser(name: str) -> None:
    made = open_gguf(shared_path(f"goldens/v2-256/gguf/{name}.gguf")).tensors
    source = read_safetensors(shared_path("goldens/v2-256/model.safetensors"))
    compared = 0
    for key, tensor in made.items():
        if tensor.dtype in gguf_blocks.QUANTIZERS:
            stored = encode(tensor.dtype, source[key].float32(), key)
            np.testing.assert_array_equal(stored, tensor.stored().ravel())
            compared += len(tensor.stored())
    assert compared == 51200
