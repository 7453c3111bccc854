"""A decoder in use: what it has read so far, and one token after another.

The cache outlives an answer. When the next prompt begins like what has been read (the next turn of a
conversation does), only the rest is read.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from mvlm_np import decoder
from mvlm_np.cache import BeamCache, KVCache
from mvlm_np.config import DecoderConfig
from mvlm_np.decoder import DecoderWeights
from mvlm_np.generation import Settings, Stop, generate
from mvlm_np.trace import Watch, ignore

CHUNK = 512  # positions of a prompt that are read at a time, which bounds the memory of the activations


class Session:
    """One sequence being read and continued.

    keys   what stands at each position of the cache: a token's id, or -i for a position of the i-th picture
    cache  the keys and values of those positions, in float32, float16 or int8
    """

    def __init__(self, weights: DecoderWeights, config: DecoderConfig, ops: Any, cache: str = "float32"):
        self.weights, self.config, self.ops = weights, config, ops
        # What computes in float64 remembers in float64.
        dtype = weights.norm.dtype if cache == "float32" else cache
        self.cache = KVCache(config, 0, np.dtype(dtype))
        self.keys = np.empty(0, np.int64)

    def read(
        self, x: np.ndarray, keys: np.ndarray, room: int, watch: Watch, chunk: int = CHUNK
    ) -> np.ndarray:
        """Reads a prompt from its first position that is new. Returns the logits after it, (vocabulary,).

        x (T, D) embeddings, keys (T,) as above, room: positions that will be needed after the prompt.
        Reading chunk by chunk gives the same logits as reading at once, up to the rounding of BLAS.
        """
        same = min(self.cache.length, len(keys) - 1)  # the last position is read again, for its logits
        if same > 0 and (differs := self.keys[:same] != keys[:same]).any():
            same = int(differs.argmax())
        self.cache.length, self.keys = max(same, 0), keys
        self.cache.reserve(len(keys) + room)
        parts = range(self.cache.length, len(keys), chunk)
        with watch.phase("prefill", len(parts) * self.config.num_hidden_layers):
            for start in parts:
                h = self.forward(x[start : start + chunk], watch)
            logits = self.weights.lm_head(h[-1:])[0]
        return logits

    def forward(self, x: np.ndarray, watch: Watch | None = None) -> np.ndarray:
        """Hidden states (T, D) of the next T positions."""
        trace = watch.within("decoder") if watch else ignore
        return decoder.forward(x, self.weights, self.config, self.cache, self.ops, trace)

    def generate(
        self, logits: np.ndarray, settings: Settings, stop: Stop, prompt_length: int, watch: Watch
    ) -> Iterator[int]:
        """Continues what has been read; see `generation.generate`."""
        steps: Single | Beams
        if settings.num_beams == 1:
            steps = Single(self, watch)
        else:
            steps = Beams(self, settings.num_beams, settings.max_new_tokens, watch)
        yield from generate(logits, steps, settings, stop, prompt_length)

    def logits(self, tokens: np.ndarray, cache: KVCache | BeamCache) -> np.ndarray:
        """Feeds tokens (T,) behind `cache` -> logits (T, vocabulary)."""
        x = self.weights.embed_tokens(tokens)
        return self.weights.lm_head(decoder.forward(x, self.weights, self.config, cache, self.ops, ignore))


class Single:
    """One continuation: its tokens become part of what the session has read."""

    def __init__(self, session: Session, watch: Watch):
        self.session, self.watch = session, watch

    def step(self, tokens: np.ndarray) -> np.ndarray:
        session = self.session
        with self.watch.phase("decode"):
            logits = session.logits(tokens, session.cache)
        session.keys = np.append(session.keys[: session.cache.length - 1], tokens)
        return logits

    def reorder(self, parents: np.ndarray) -> None:
        raise AssertionError("there is only one continuation")


class Beams:
    """Several continuations side by side; the session stays where the prompt ended."""

    def __init__(self, session: Session, beams: int, room: int, watch: Watch):
        self.session, self.watch = session, watch
        self.cache = BeamCache(session.config, session.cache, beams, room)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        with self.watch.phase("decode"):
            return self.session.logits(tokens, self.cache)

    def reorder(self, parents: np.ndarray) -> None:
        self.cache.reorder(parents)
