"""Keys and values as a cache stores them, and attention that stores the new ones before it reads.

These are the only operations of the model that write to what they are given, the cache. As in `ops`, each
function is the definition of its operation, which a kernel of the same name may replace.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mvlm_np import ops

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

Index = tuple[int | slice | None, ...]


class Stored(NamedTuple):
    """Rows of d numbers in the type of the cache: numbers (..., d); scales float32 (..., 1) for int8, else
    (..., 0)."""

    numbers: np.ndarray
    scales: np.ndarray


def empty(shape: tuple[int, ...], dtype: "DTypeLike") -> Stored:
    """Room for rows of shape[-1] numbers."""
    scales = int(np.dtype(dtype) == np.int8)
    return Stored(np.empty(shape, dtype), np.empty((*shape[:-1], scales), np.float32))


def quantize(x: np.ndarray, dtype: "DTypeLike") -> Stored:
    """Rows (..., d) in the type of the cache.

    float16: the nearest number, and +-65504 for what is larger. int8: a row's scale is max |x| / 127, with
    rounding half to even; a row of scale 0 becomes zeros. Other types: as they are.
    """
    dtype = np.dtype(dtype)
    if dtype == np.int8:
        scales = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
        q = np.rint(x / np.where(scales == 0, 1, scales))
        return Stored(np.clip(q, -127, 127).astype(np.int8), scales)
    if dtype == np.float16:
        x = np.clip(x, -65504, 65504)
    return Stored(x.astype(dtype, copy=False), np.empty((*x.shape[:-1], 0), np.float32))


def dequantize(stored: Stored) -> np.ndarray:
    """The rows as numbers to compute with: float32, or the stored type if that is more precise."""
    numbers, scales = stored
    if numbers.dtype == np.int8:
        return numbers * scales
    return numbers.astype(np.float32) if numbers.dtype == np.float16 else numbers


def part(stored: Stored, index: Index) -> Stored:
    """The rows at an index; a view."""
    return Stored(stored.numbers[index], stored.scales[index])


def store(stored: Stored, index: Index, rows: np.ndarray) -> None:
    """Writes rows at an index, quantised to the type of the cache."""
    stored.numbers[index], stored.scales[index] = quantize(rows, stored.numbers.dtype)


def cached_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, keys: Stored, values: Stored, past: int
) -> np.ndarray:
    """Causal attention of the next T positions of one sequence.

    q (H, T, d), k and v (KV, T, d) -> (H, T, d). keys and values (KV, capacity, d) hold `past` positions;
    k and v are stored behind them first.
    """
    stop = past + q.shape[1]
    for stored, rows in ((keys, k), (values, v)):
        store(stored, np.s_[:, past:stop], rows)
    k, v = (dequantize(part(stored, np.s_[:, :stop])) for stored in (keys, values))
    return ops.attention(q, k, v, causal=True)


def beam_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    keys: Stored,
    values: Stored,
    own_keys: Stored,
    own_values: Stored,
    past: int,
) -> np.ndarray:
    """Attention of the next position of each of several sequences that share their beginning.

    q (H, beams, d), k and v (KV, beams, d) -> (H, beams, d). keys and values (KV, S, d) are the shared
    beginning. own_keys and own_values (beams, KV, capacity, d) hold `past` positions of each sequence's own
    continuation; k and v are stored behind them first.
    """
    for stored, rows in ((own_keys, k), (own_values, v)):
        store(stored, np.s_[:, :, past], rows.swapaxes(0, 1))
    out = np.empty_like(q)
    for b in range(q.shape[1]):
        k, v = (
            np.concatenate([dequantize(shared), dequantize(part(own, np.s_[b, :, : past + 1]))], axis=1)
            for shared, own in ((keys, own_keys), (values, own_values))
        )
        out[:, b : b + 1] = ops.attention(q[:, b : b + 1], k, v, causal=True)
    return out


@dataclass(eq=False)
class Sequences:
    """Several sequences whose next positions are computed together: their rows lie one after another.

    Made anew for each step.

    keys, values  of each sequence, all layers: numbers (L, KV, capacity, d), each with its own capacity and
                  all of one type
    pasts         positions that each of them holds
    counts        rows that belong to each of them: 1 for a decoding step, more for a piece of a prompt
    plan          what the backend finds out in the first layer and needs in all; None before
    """

    keys: Sequence[Stored]
    values: Sequence[Stored]
    pasts: Sequence[int]
    counts: Sequence[int]
    plan: Any = field(default=None, init=False)

    @cached_property
    def rows(self) -> list[slice]:
        """The rows of each sequence."""
        stops = np.cumsum(self.counts).tolist()
        return [slice(stop - count, stop) for stop, count in zip(stops, self.counts, strict=True)]


def several_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, sequences: Sequences, layer: int
) -> np.ndarray:
    """Causal attention of the next positions of several sequences: `cached_attention` of each, in a layer.

    q (H, rows, d), k and v (KV, rows, d) -> (H, rows, d), where `rows` is the sum of the sequences' counts.
    """
    out = np.empty_like(q)
    each = zip(sequences.rows, sequences.keys, sequences.values, sequences.pasts, strict=True)
    for rows, keys, values, past in each:
        stored = part(keys, (layer,)), part(values, (layer,))
        out[:, rows] = cached_attention(q[:, rows], k[:, rows], v[:, rows], *stored, past)
    return out
