"""The key-value cache: what attention has to know of earlier positions.

Keys (after RoPE) and values are stored in float32, or in less: float16 takes half the memory and time to
read, int8 with a float32 scale for each position of each head a quarter, plus 1/d. `kv_store.quantize` says
how they are rounded; docs/quantisation.md what that does to the logits.
"""

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING

import numpy as np

from mvlm_np.backend import Ops
from mvlm_np.config import DecoderConfig
from mvlm_np.kv_store import Sequences, Stored, empty, part

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

TYPES = ("float32", "float16", "int8")


def bytes_per_position(config: DecoderConfig, dtype: "DTypeLike") -> int:
    """What one position takes in all layers, keys and values together."""
    dtype = np.dtype(dtype)
    head = config.head_dim * dtype.itemsize + (4 if dtype == np.int8 else 0)
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head


class KVCache:
    """Keys and values of one sequence, preallocated for `capacity` positions.

    keys, values  Stored: numbers (L, KV, capacity, d) of `dtype` and, for int8, scales (L, KV, capacity, 1);
                  memory is taken up as positions are filled
    length        positions filled; setting it back forgets the later ones
    """

    def __init__(self, config: DecoderConfig, capacity: int, dtype: "DTypeLike" = np.float32):
        shape = (config.num_hidden_layers, config.num_key_value_heads, capacity, config.head_dim)
        self.keys, self.values = empty(shape, dtype), empty(shape, dtype)
        self.bytes_per_position = bytes_per_position(config, dtype)
        self.length = 0

    @property
    def capacity(self) -> int:
        """For how many positions there is room."""
        return self.values.numbers.shape[2]

    def reserve(self, capacity: int) -> None:
        """Makes room for at least `capacity` positions; those that are filled are kept."""
        if self.capacity < capacity:
            keys, values = (
                self._empty(capacity),
                self._empty(capacity),
            )  # both, or an error and all is as before
            self.keys = filled(keys, self.keys, self.length)
            self.values = filled(values, self.values, self.length)

    def copy(self) -> "KVCache":
        """Another cache that holds the same positions, with room for no more."""
        other = copy(self)
        other.keys = filled(self._empty(self.length), self.keys, self.length)
        other.values = filled(self._empty(self.length), self.values, self.length)
        return other

    def _empty(self, capacity: int) -> Stored:
        layers, heads, _, d = self.keys.numbers.shape
        return empty((layers, heads, capacity, d), self.keys.numbers.dtype)

    def positions(self, T: int) -> np.ndarray:
        """Positions of the next T tokens."""
        return np.arange(self.length, self.length + T)

    def layer(self, i: int, stop: int | None = None) -> tuple[Stored, Stored]:
        """Keys and values of layer i, of the first `stop` positions or of the whole capacity."""
        return part(self.keys, np.s_[i, :, :stop]), part(self.values, np.s_[i, :, :stop])

    def attend(self, i: int, q: np.ndarray, k: np.ndarray, v: np.ndarray, ops: Ops) -> np.ndarray:
        """Stores layer i's k and v (KV, T, d) behind what is there, and attends to all of it: (H, T, d)."""
        return ops.cached_attention(q, k, v, *self.layer(i), self.length)

    def advance(self, T: int) -> None:
        """All layers have stored T more positions."""
        self.length += T


def filled(to: Stored, stored: Stored, length: int) -> Stored:
    """`to`, with the first positions of what is stored in another one."""
    for new, old in zip(to, stored, strict=True):
        new[:, :, :length] = old[:, :, :length]
    return to


class BatchCache:
    """The caches of several sequences as one, for a step that they take together.

    The next counts[i] rows of the i-th sequence lie behind those of the sequence before it, and go to its
    own cache. Lives for one step.
    """

    def __init__(self, caches: Sequence[KVCache], counts: Sequence[int]):
        self.caches, self.counts = caches, counts
        keys, values = [cache.keys for cache in caches], [cache.values for cache in caches]
        self.sequences = Sequences(keys, values, [cache.length for cache in caches], counts)

    def positions(self, T: int) -> np.ndarray:
        """Positions of the next T tokens, each in its own sequence."""
        each = zip(self.caches, self.counts, strict=True)
        return np.concatenate([cache.positions(count) for cache, count in each])

    def attend(self, i: int, q: np.ndarray, k: np.ndarray, v: np.ndarray, ops: Ops) -> np.ndarray:
        """Stores layer i's k and v (KV, T, d) in their caches; each row attends to its own: (H, T, d)."""
        return ops.several_attention(q, k, v, self.sequences, i)

    def advance(self, T: int) -> None:
        """All layers have stored T more positions."""
        for cache, count in zip(self.caches, self.counts, strict=True):
            cache.advance(count)


class BeamCache:
    """Several continuations of one prompt, one new token each at a time.

    The prompt's cache is shared. A beam's own keys and values are small and follow it when beams are
    re-ordered: Stored with numbers (L, beams, KV, capacity, d).
    """

    def __init__(self, config: DecoderConfig, prompt: KVCache, beams: int, capacity: int):
        self.prompt, self.beams = prompt, beams
        shape = (config.num_hidden_layers, beams, config.num_key_value_heads, capacity, config.head_dim)
        dtype = prompt.keys.numbers.dtype
        self.keys, self.values = empty(shape, dtype), empty(shape, dtype)
        self.length = 0

    def positions(self, T: int) -> np.ndarray:
        """Positions of the next token of each beam: all the same."""
        assert self.beams == T, "one token a beam"
        return np.full(T, self.prompt.length + self.length)

    def attend(self, i: int, q: np.ndarray, k: np.ndarray, v: np.ndarray, ops: Ops) -> np.ndarray:
        """Row b of q (H, beams, d), k and v (KV, beams, d) belongs to beam b."""
        own = part(self.keys, (i,)), part(self.values, (i,))
        return ops.beam_attention(q, k, v, *self.prompt.layer(i, self.prompt.length), *own, self.length)

    def advance(self, T: int) -> None:
        """All layers have stored one more position of each beam."""
        self.length += 1

    def reorder(self, parents: np.ndarray) -> None:
        """Beam b goes on from what was beam parents[b]."""
        n = self.length
        for stored in (*self.keys, *self.values):
            stored[:, :, :, :n] = stored[:, parents, :, :n]
