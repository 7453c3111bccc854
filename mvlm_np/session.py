"""A decoder in use: the prompt that it has taken in (prefill), and one token after another (decode).

The cache outlives an answer. When the next prompt begins like the positions in the cache (the next turn of a
conversation does), only the rest goes through the decoder. Several sessions in use together: `batch`.
"""

from collections.abc import Iterator
from copy import copy

import numpy as np

from mvlm_np import decoder
from mvlm_np.backend import Ops
from mvlm_np.config import DecoderConfig
from mvlm_np.decoder import DecoderWeights
from mvlm_np.errors import GenerationError
from mvlm_np.generation import Choice, Constraint, Settings, Stop, generate
from mvlm_np.kv_cache import BeamCache, KVCache, filled
from mvlm_np.kv_store import Stored
from mvlm_np.speculation import Draft, speculate
from mvlm_np.trace import Watch, ignore

CHUNK = 512  # positions of a prompt that go through the decoder at a time: it bounds the activations' memory


class Session:
    """One sequence: a prompt, and what follows it.

    ids    what stands at each position of the cache: a token's id, or -i for a position of the i-th picture
    cache  the keys and values of those positions, in float32, float16 or int8
    """

    def __init__(self, weights: DecoderWeights, config: DecoderConfig, ops: Ops, cache: str = "float32"):
        self.weights, self.config, self.ops = weights, config, ops
        # What computes in float64 remembers in float64.
        dtype = weights.norm.dtype if cache == "float32" else cache
        self.cache = KVCache(config, 0, np.dtype(dtype))
        self.ids = np.empty(0, np.int64)

    def prefill(
        self, x: np.ndarray, ids: np.ndarray, room: int, watch: Watch, chunk: int = CHUNK
    ) -> np.ndarray:
        """Takes in a prompt, from its first position that is new. Returns the logits after it, (vocabulary,).

        x (T, D) embeddings; ids (T,) as above; room: positions that will be needed after the prompt.
        Chunk by chunk gives the same logits as all at once: to the bit where weights are packed and
        kernels are compiled, else up to the rounding of BLAS.
        """
        self.set_back(ids)
        self.cache.reserve(len(ids) + room)
        starts = range(self.cache.length, len(ids), chunk)
        with watch.phase("prefill", len(starts) * self.config.num_hidden_layers):
            for start in starts:
                h = self.forward(x[start : start + chunk], watch)
            return self.weights.lm_head(h[-1:])[0]

    def begin(self, ids: np.ndarray, keys: Stored, values: Stored) -> None:
        """Has an empty session stand behind positions: their ids (T,), the first T of keys and values."""
        cache, T = self.cache, len(ids)
        cache.reserve(T)
        filled(cache.keys, keys, T)
        filled(cache.values, values, T)
        cache.length, self.ids = T, ids

    def fork(self) -> "Session":
        """Another session that stands where this one does, with a cache of its own."""
        other = copy(self)
        other.cache = self.cache.copy()
        return other

    def set_back(self, ids: np.ndarray) -> None:
        """Keeps those first positions of the cache that a prompt (T,) has too; its others are to be computed.

        The last one is always computed, for its logits.
        """
        self.cache.length, self.ids = in_common(self.ids[: self.cache.length], ids[:-1]), ids

    def forward(self, x: np.ndarray, watch: Watch | None = None) -> np.ndarray:
        """Hidden states (T, D) of the next T positions."""
        trace = watch.within("decoder") if watch else ignore
        return decoder.forward(x, self.weights, self.config, self.cache, self.ops, trace)

    def generate(
        self,
        logits: np.ndarray,
        settings: Settings,
        stop: Stop,
        prompt_length: int,
        watch: Watch,
        known: int | None = None,
        draft: Draft | None = None,
        constraint: Constraint | None = None,
    ) -> Iterator[int]:
        """The tokens that follow the prompt, one after another; see `generation.generate`.

        known  only ids below this one are chosen, those that the tokenizer has; None: all
        draft  says what may follow; see `speculation`. Beams do without
        constraint  what the answer must fit; see `generation.Choice`
        """
        refuse_constant(logits)
        steps: Single | Beams
        if draft is not None and settings.num_beams == 1:
            yield from speculate(self, draft, logits, Choice(settings, stop, constraint), watch, known)
            return
        if settings.num_beams == 1:
            steps = Single(self, watch, known)
        else:
            steps = Beams(self, settings.num_beams, settings.max_new_tokens, watch, known)
        yield from generate(logits[:known], steps, settings, stop, prompt_length, constraint)

    def append(self, tokens: np.ndarray) -> None:
        """Notes the tokens (T,) of the last T positions in the cache."""
        self.ids = np.append(self.ids[: self.cache.length - len(tokens)], tokens)

    def logits(self, tokens: np.ndarray, cache: KVCache | BeamCache) -> np.ndarray:
        """Tokens (T,) behind what is in `cache` -> logits (T, vocabulary)."""
        x = self.weights.embed_tokens(tokens)
        return self.weights.lm_head(decoder.forward(x, self.weights, self.config, cache, self.ops, ignore))


def in_common(one: np.ndarray, other: np.ndarray) -> int:
    """How many ids two sequences have in common at their beginning."""
    n = min(len(one), len(other))
    differs = one[:n] != other[:n]
    return int(differs.argmax()) if differs.any() else n


def refuse_constant(logits: np.ndarray) -> None:
    """GenerationError for the first logits of an answer, (vocabulary,), that prefer no token to any other."""
    if logits.min() == logits.max():
        raise GenerationError(
            "logits",
            "the model computed the same number for every token",
            fix="weights are missing from its files: mvlm inspect --verify says which",
        )


class Single:
    """One continuation: its tokens become part of the session's sequence."""

    def __init__(self, session: Session, watch: Watch, known: int | None):
        self.session, self.watch, self.known = session, watch, known

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """See `generation.Model`."""
        session = self.session
        with self.watch.phase("decode"):
            logits = session.logits(tokens, session.cache)
        session.append(tokens)
        return logits[:, : self.known]

    def reorder(self, parents: np.ndarray) -> None:
        """Never called."""
        raise AssertionError("there is only one continuation")


class Beams:
    """Several continuations side by side; the session stays where the prompt ended."""

    def __init__(self, session: Session, beams: int, room: int, watch: Watch, known: int | None):
        self.session, self.watch, self.known = session, watch, known
        self.cache = BeamCache(session.config, session.cache, beams, room)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """See `generation.Model`."""
        with self.watch.phase("decode"):
            return self.session.logits(tokens, self.cache)[:, : self.known]

    def reorder(self, parents: np.ndarray) -> None:
        """See `generation.Model`."""
        self.cache.reorder(parents)
