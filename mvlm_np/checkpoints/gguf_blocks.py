"""How GGUF stores numbers: plain types, and blocks of values that share a scale.

    q4_0   32 values in  18 bytes: d (float16), 16 bytes of two 4-bit q      value = d * (q - 8)
    q8_0   32 values in  34 bytes: d (float16), 32 q (int8)                  value = d * q
    q4_k  256 values in 144 bytes: d, dmin (float16), 8 scales s and 8
                                   minima m of 6 bits, 128 bytes of two q    value = d * s * q - dmin * m
    q5_k  256 values in 176 bytes: the same, with 32 bytes of a fifth bit    the same
    q6_k  256 values in 210 bytes: 128 + 64 bytes of q in 4 + 2 bits,
                                   16 scales s (int8), d (float16)           value = d * s * (q - 32)

A block never crosses the end of a row. These are read here, in plain NumPy; the other block types go through
the `gguf` package where it is installed. Decoding follows the format to the bit, so a scale that is not a
finite number gives values that are not either. Source: llama.cpp, ggml-quants.c.
"""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np

from mvlm_np.checkpoints.tensors import PLAIN
from mvlm_np.errors import CheckpointError
from mvlm_np.kernels.pack import Rounded


@dataclass(frozen=True)
class StoredType:
    """A block: `values` numbers of a row in `nbytes` bytes. A plain type is a block of one.

    decode  uint8 (n, nbytes) -> float32 (n, values); None for a plain type, whose name is in `tensors.PLAIN`
    """

    name: str
    values: int
    nbytes: int
    decode: Callable[[np.ndarray], np.ndarray] | None = None


def split_q4_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (n, 18) -> int8 (n, 32), float16 (n, 1). Low nibbles are values 0 to 15, high ones 16 to 31."""
    packed = blocks[:, 2:]
    q = np.concatenate([packed & 15, packed >> 4], axis=1).view(np.int8)
    q -= 8
    return q, blocks[:, :2].view("<f2")


def split_q8_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (n, 34) -> int8 (n, 32), float16 (n, 1)."""
    return blocks[:, 2:].view(np.int8), blocks[:, :2].view("<f2")


def split_q4_k(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 (n, 144) -> uint8 (n, 256), scales and minima uint8 (n, 8, 2), d and dmin float16 (n, 1, 2)."""
    return _two_groups_a_run(blocks[:, 16:]), *_nested_scales(blocks)


def split_q5_k(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 (n, 176) -> the same. Bit g of the 32 bytes behind the scales belongs to group g."""
    fifth = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1  # (n, 8, 32)
    q = _two_groups_a_run(blocks[:, 48:]) | fifth.reshape(-1, 256) << 4
    return q, *_nested_scales(blocks)


def _two_groups_a_run(stored: np.ndarray) -> np.ndarray:
    """uint8 (n, 128) -> (n, 256): low nibbles of 32 bytes are one group, the high ones the next."""
    runs = stored.reshape(-1, 4, 1, 32)
    return (runs >> np.array([0, 4], np.uint8)[:, None] & 15).reshape(-1, 256)


def _nested_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima uint8 (n, 8, 2), and d and dmin float16 (n, 1, 2), of the first 16 bytes.

    Of the 12 bytes of scales, the low 6 bits are the scales and minima of the first four groups, and the last
    four bytes the low 4 bits of the others: of a scale in the low nibble, of a minimum in the high one. Their
    upper 2 bits stand above the first four groups' bits.
    """
    first, low = blocks[:, 4:12].reshape(-1, 2, 4), blocks[:, None, 12:16]  # (n, scale or minimum, group)
    others = low >> np.array([0, 4], np.uint8)[:, None] & 15 | first >> 6 << 4
    scales = np.concatenate([first & 63, others], axis=2).swapaxes(1, 2)
    return scales, blocks[:, None, :4].view("<f2")


_SPLITTERS: dict[str, Callable[[np.ndarray], tuple[np.ndarray, ...]]] = {
    "q4_0": split_q4_0, "q8_0": split_q8_0, "q4_k": split_q4_k,
}  # fmt: skip


def split(dtype: str, blocks: np.ndarray) -> Rounded:
    """Rows of blocks, uint8 (N, blocks, bytes), of one of `packed.LOSSLESS` -> q (N, K) and its factors."""
    parts = _SPLITTERS[dtype](blocks.reshape(-1, blocks.shape[-1]))
    return tuple(part.reshape(len(blocks), -1, *part.shape[2:]) for part in parts)


def join(dtype: str, q: np.ndarray, *factors: np.ndarray) -> np.ndarray:
    """The inverse of `split`, for scales and minima of q4_k that fit 6 bits: uint8 (N, blocks, bytes)."""
    values = TYPES_BY_NAME[dtype].values
    blocks = len(q) * q.shape[1] // values
    shapes = [(values,), (1,)] if len(factors) == 1 else [(values,), (8, 2), (1, 2)]
    parts = [a.reshape(blocks, *shape) for a, shape in zip((q, *factors), shapes, strict=True)]
    return _JOINERS[dtype](*parts).reshape(len(q), q.shape[1] // values, -1)


def join_q4_0(q: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The inverse of `split_q4_0`, for q from -8 to 7."""
    nibbles = (q + 8).astype(np.uint8)
    return np.concatenate([_bytes(d), nibbles[:, :16] | nibbles[:, 16:] << 4], axis=1)


def join_q8_0(q: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The inverse of `split_q8_0`."""
    return np.concatenate([_bytes(d), q.view(np.uint8)], axis=1)


def join_q4_k(q: np.ndarray, scales: np.ndarray, tops: np.ndarray) -> np.ndarray:
    """The inverse of `split_q4_k`, for scales and minima up to 63."""
    pairs = scales.swapaxes(1, 2)  # (n, scale or minimum, group)
    first, others = pairs[..., :4], pairs[..., 4:]
    upper, low = first | others >> 4 << 6, others[:, 0] & 15 | others[:, 1] << 4
    runs = q.reshape(-1, 4, 2, 32)
    nibbles = runs[:, :, 0] | runs[:, :, 1] << 4
    parts = _bytes(tops[:, 0]), upper.reshape(-1, 8), low, nibbles.reshape(-1, 128)
    return np.concatenate(parts, axis=1)


_JOINERS: dict[str, Callable[..., np.ndarray]] = {
    "q4_0": join_q4_0, "q8_0": join_q8_0, "q4_k": join_q4_k,
}  # fmt: skip


def _bytes(d: np.ndarray) -> np.ndarray:
    """Scales (n, 1) as float16's uint8 (n, 2), and (n, 2) as (n, 4)."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(d.astype("<f2")).view(np.uint8)


def decode_q4_0(blocks: np.ndarray) -> np.ndarray:
    """uint8 (n, 18) -> float32 (n, 32)"""
    q, d = split_q4_0(blocks)
    return _scaled(d.astype(np.float32), q)


def decode_q8_0(blocks: np.ndarray) -> np.ndarray:
    """uint8 (n, 34) -> float32 (n, 32)"""
    q, d = split_q8_0(blocks)
    return _scaled(d.astype(np.float32), q)


def decode_q4_k(blocks: np.ndarray) -> np.ndarray:
    """uint8 (n, 144) -> float32 (n, 256)"""
    return _less_minima(*split_q4_k(blocks))


def decode_q5_k(blocks: np.ndarray) -> np.ndarray:
    """uint8 (n, 176) -> float32 (n, 256)"""
    return _less_minima(*split_q5_k(blocks))


def _less_minima(q: np.ndarray, scales: np.ndarray, tops: np.ndarray) -> np.ndarray:
    both = _scaled(tops.astype(np.float32), scales)  # (n, 8, 2)
    with np.errstate(invalid="ignore"):
        values = _scaled(both[..., :1], q.reshape(-1, 8, 32)) - both[..., 1:]
    return values.reshape(-1, 256)


def decode_q6_k(blocks: np.ndarray) -> np.ndarray:
    """uint8 (n, 210) -> float32 (n, 256): two halves of 128, each of four runs of 32."""
    low = blocks[:, :128].reshape(-1, 2, 1, 2, 32)  # (n, half, 1, run % 2, 32)
    low = low >> np.array([0, 4], np.uint8)[:, None, None] & 15  # (n, half, run // 2, run % 2, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32)  # (n, half, 1, 32)
    high = high >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3  # (n, half, run, 32)
    q = (low.reshape(high.shape) | high << 4).view(np.int8)
    q -= 32
    scales = _scaled(_float16(blocks[:, 208:]), blocks[:, 192:208].view(np.int8))  # (n, 16)
    return _scaled(scales[:, :, None], q.reshape(-1, 16, 16)).reshape(-1, 256)


def _float16(stored: np.ndarray) -> np.ndarray:
    """uint8 (n, 2) -> float32 (n, 1)."""
    return stored.view("<f2").astype(np.float32)


def _scaled(scale: np.ndarray, q: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # an infinite scale times 0
        return np.multiply(scale, q, dtype=np.float32)


def _decode_by_package(number: int, name: str, blocks: np.ndarray) -> np.ndarray:
    need_package([name])
    from gguf import GGMLQuantizationType, quants

    try:
        return quants.dequantize(np.ascontiguousarray(blocks), GGMLQuantizationType(number))
    except (NotImplementedError, ValueError):  # a type that this release of the package does not know
        raise CheckpointError(
            f"weights of type {name}", "the installed gguf package cannot decode them", fix=_CONVERT
        ) from None


_CONVERT = "or convert the file to Q8_0 or Q4_0 with llama.cpp"


def need_package(names: Iterable[str]) -> None:
    """Raises CheckpointError if one of these types is decoded by the `gguf` package and there is none."""
    foreign = sorted({name for name in names if name in FOREIGN})
    if foreign and importlib.util.find_spec("gguf") is None:
        raise CheckpointError(
            f"weights of type {', '.join(foreign)}",
            "are decoded by the gguf package, which is not installed",
            fix=f"pip install gguf, {_CONVERT}",
        )


# By the format's numbers. Those that are missing were withdrawn.
_PLAIN = {
    0: "float32", 1: "float16", 24: "int8", 25: "int16", 26: "int32", 27: "int64", 28: "float64",
    30: "bfloat16",
}  # fmt: skip
_FOREIGN = {
    3: ("q4_1", 32, 20), 6: ("q5_0", 32, 22), 7: ("q5_1", 32, 24), 10: ("q2_k", 256, 84),
    11: ("q3_k", 256, 110), 16: ("iq2_xxs", 256, 66),
    17: ("iq2_xs", 256, 74), 18: ("iq3_xxs", 256, 98), 19: ("iq1_s", 256, 50), 20: ("iq4_nl", 32, 18),
    21: ("iq3_s", 256, 110), 22: ("iq2_s", 256, 82), 23: ("iq4_xs", 256, 136), 29: ("iq1_m", 256, 56),
    34: ("tq1_0", 256, 54), 35: ("tq2_0", 256, 66), 39: ("mxfp4", 32, 17), 40: ("nvfp4", 64, 36),
}  # fmt: skip
FOREIGN = {name for name, _, _ in _FOREIGN.values()}  # decoded by the gguf package
TYPES = (
    {number: StoredType(name, 1, PLAIN[name].itemsize) for number, name in _PLAIN.items()}
    | {
        2: StoredType("q4_0", 32, 18, decode_q4_0),
        8: StoredType("q8_0", 32, 34, decode_q8_0),
        12: StoredType("q4_k", 256, 144, decode_q4_k),
        13: StoredType("q5_k", 256, 176, decode_q5_k),
        14: StoredType("q6_k", 256, 210, decode_q6_k),
    }
    | {
        number: StoredType(name, values, nbytes, partial(_decode_by_package, number, name))
        for number, (name, values, nbytes) in _FOREIGN.items()
    }
)
TYPES_BY_NAME = {stored.name: stored for stored in TYPES.values()}


def quantize_q4_0(values: np.ndarray) -> np.ndarray:
    """float32 (n, 32) -> uint8 (n, 18), as llama.cpp's reference does it.

    d is a minus eighth of the first value of largest magnitude, so that this value becomes q = 0 and
    the range is -8 to 7 times |d|; q is rounded half up, and saturates at 15. All values finite.
    """
    first = np.abs(values).argmax(axis=1)[:, None]
    d = (np.take_along_axis(values, first, 1) + np.float32(0)) / np.float32(-8)  # -0.0 + 0 is 0, as in C
    q = np.minimum(values * _reciprocal(d) + np.float32(8.5), 15).astype(np.int8)
    return join_q4_0(q - np.int8(8), d)


def quantize_q8_0(values: np.ndarray) -> np.ndarray:
    """float32 (n, 32) -> uint8 (n, 34), as llama.cpp's reference does it.

    d is the largest magnitude over 127; q is rounded half away from zero. All values finite.
    """
    d = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    scaled = values * _reciprocal(d)
    size = np.abs(scaled)
    whole = np.floor(size)
    whole += size - whole >= 0.5  # not floor(size + 0.5), which rounds the float below 0.5 up
    return join_q8_0(np.copysign(whole, scaled).astype(np.int8), d)


def _reciprocal(d: np.ndarray) -> np.ndarray:
    """1 / d; 0 where float32 cannot hold it: for the scale of zeros, and for those that float16 has as 0."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / d
    inverse[np.isinf(inverse)] = 0
    return inverse


QUANTIZERS = {"q4_0": quantize_q4_0, "q8_0": quantize_q8_0}
MAX = {"float16": 65504.0, "q4_0": 65504.0 * 8, "q8_0": 65504.0 * 127}


def encode(dtype: str, values: np.ndarray, where: object) -> np.ndarray:
    """float32 values -> the bytes that a GGUF has for them, uint8 (bytes,).

    dtype   "float32", "float16", "q8_0" or "q4_0"; for the last two the values are whole blocks
    where   names the tensor in errors

    Values that are not finite, or too large for the type, are a CheckpointError.
    """
    if not np.isfinite(values).all():
        raise CheckpointError(where, "has values that are not finite numbers")
    if dtype in QUANTIZERS:
        stored = QUANTIZERS[dtype](values.reshape(-1, 32))
        kept = stored[:, :2].view("<f2")
    else:
        with np.errstate(over="ignore"):
            kept = stored = values.astype("<f2" if dtype == "float16" else "<f4", copy=False)
    if not np.isfinite(kept).all():
        raise CheckpointError(where, f"has values too large for {dtype}", f"at most {MAX[dtype]:g}")
    return stored.reshape(-1).view(np.uint8)
