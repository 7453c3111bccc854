"""A decoder in use: the prompt that it has taken in (prefill), and one token after another (decode).

The cache outlives an answer. When the next prompt begins like the positions in the cache (the next turn of a
conversation does), only the rest goes through the decoder. Sessions in a `Batch` go through it together.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Protocol

import numpy as np

from mvlm_np import decoder
from mvlm_np.backend import Ops
from mvlm_np.config import DecoderConfig
from mvlm_np.decoder import DecoderWeights
from mvlm_np.errors import GenerationError, UserError
from mvlm_np.generation import Choice, Settings, Stop, generate
from mvlm_np.kv_cache import BatchCache, BeamCache, KVCache
from mvlm_np.speculation import Draft, speculate
from mvlm_np.trace import Watch, ignore

CHUNK = 512  # positions of a prompt that go through the decoder at a time: it bounds the activations' memory
PIECE = 64  # as many where other sequences wait for their next token meanwhile


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
        Chunk by chunk gives the same logits as all at once: to the bit where weights are int8 or int4 and
        kernels are compiled, else up to the rounding of BLAS.
        """
        self.set_back(ids)
        self.cache.reserve(len(ids) + room)
        starts = range(self.cache.length, len(ids), chunk)
        with watch.phase("prefill", len(starts) * self.config.num_hidden_layers):
            for start in starts:
                h = self.forward(x[start : start + chunk], watch)
            return self.weights.lm_head(h[-1:])[0]

    def fork(self) -> "Session":
        """Another session that stands where this one does, with a cache of its own."""
        other = copy(self)
        other.cache = self.cache.copy()
        return other

    def set_back(self, ids: np.ndarray) -> None:
        """Keeps those first positions of the cache that a prompt (T,) has too; its others are to be computed.

        The last one is always computed, for its logits.
        """
        past = min(self.cache.length, len(ids) - 1)
        if past > 0 and (differs := self.ids[:past] != ids[:past]).any():
            past = int(differs.argmax())
        self.cache.length, self.ids = max(past, 0), ids

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
    ) -> Iterator[int]:
        """The tokens that follow the prompt, one after another; see `generation.generate`.

        known  only ids below this one are chosen, those that the tokenizer has; None: all
        draft  says what may follow; see `speculation`. Beams do without
        """
        refuse_constant(logits)
        steps: Single | Beams
        if draft is not None and settings.num_beams == 1:
            yield from speculate(self, draft, logits, Choice(settings, stop), watch, known)
            return
        if settings.num_beams == 1:
            steps = Single(self, watch, known)
        else:
            steps = Beams(self, settings.num_beams, settings.max_new_tokens, watch, known)
        yield from generate(logits[:known], steps, settings, stop, prompt_length)

    def append(self, tokens: np.ndarray) -> None:
        """Notes the tokens (T,) of the last T positions in the cache."""
        self.ids = np.append(self.ids[: self.cache.length - len(tokens)], tokens)

    def logits(self, tokens: np.ndarray, cache: KVCache | BeamCache) -> np.ndarray:
        """Tokens (T,) behind what is in `cache` -> logits (T, vocabulary)."""
        x = self.weights.embed_tokens(tokens)
        return self.weights.lm_head(decoder.forward(x, self.weights, self.config, cache, self.ops, ignore))


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


# ---------------------------------------------------------------- several sequences


class Chooser(Protocol):
    """What a batch needs to know of an answer: who chooses its tokens. `generation.Choice` is one."""

    tokens: list[int]  # chosen so far
    ended: bool  # whether the answer is complete

    def take(self, logits: np.ndarray) -> int:
        """Chooses a token by the logits (vocabulary,) after the one before, and appends it to `tokens`."""


class Member:
    """One sequence of a batch.

    session  its prompt and what follows; nobody else's while the sequence is in the batch
    choice   chooses its tokens, and has those chosen so far
    error    what ended the answer before its time, if anything did
    x        (T, D) what goes through the decoder next: the unread prompt, or the token chosen last
    """

    def __init__(self, session: Session, x: np.ndarray, choice: Chooser, known: int | None):
        self.session, self.choice, self.known, self.x = session, choice, known, x
        self.error: Exception | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing follows, as the answer is complete or has failed."""
        return self.choice.ended or self.error is not None

    def choose(self, logits: np.ndarray) -> None:
        """Takes the next token by the logits (vocabulary,). What goes wrong here ends this answer only."""
        session, logits = self.session, logits[: self.known]
        try:
            if not self.choice.tokens:
                refuse_constant(logits)
            token = np.array([self.choice.take(logits)])
            session.ids = np.append(session.ids, token)
            self.x = session.weights.embed_tokens(token)
        except Exception as error:
            self.error = error


class Batch:
    """Sequences that share each pass over the weights, whose reading takes most of a token's time.

    They join and leave between any two steps (continuous batching). A step takes every answer one token
    further, and reads some more of the prompts that are not read yet (chunked prefill). Where weights are
    int8 or int4 and kernels are compiled, an answer is to the bit what the sequence would get alone.
    Elsewhere it may differ by rounding, since the order of BLAS's sums depends on the number of rows.

    members  the sequences that have not ended, in the order in which they joined

    All sessions are of one model. A batch belongs to one thread; others may use the model meanwhile.
    """

    def __init__(self) -> None:
        self.members: list[Member] = []

    def join(
        self,
        session: Session,
        x: np.ndarray,
        ids: np.ndarray,
        choice: Chooser,
        room: int,
        known: int | None = None,
    ) -> Member:
        """Adds a sequence: a prompt and an answer of up to `room` tokens. Nothing is computed yet.

        x (T, D), ids (T,) and room are those of `Session.prefill`, known is that of `Session.generate`. What
        the session's cache has of the prompt is not read again. Memory for prompt and answer is taken now.
        """
        for member in self.members:
            if member.session is session:
                raise UserError("batch", "found a session that is in it already", "one session a sequence")
            if member.session.weights is not session.weights:
                raise UserError("batch", "found a session of another model", "sessions of one model")
        session.set_back(ids)
        session.cache.reserve(len(ids) + room)
        member = Member(session, x[session.cache.length :], choice, known)
        if not member.ended:
            self.members.append(member)
        return member

    def leave(self, member: Member) -> None:
        """Cancels a sequence, at whatever point it is; what its session has read, it keeps."""
        if member in self.members:
            self.members.remove(member)

    def step(self, piece: int | None = None) -> list[Member]:
        """One pass over the weights. Returns the members whose answers went on, or failed.

        Each of those has one token more, or an `error`. Those that have `ended` are in the batch no more.

        piece  how many positions of prompts are read at most, first those of the sequence that joined first.
               None: 64, so that answers do not pause for long, or 512 if nobody waits for the next token
        """
        parts = [(member, member.x) for member in self.members if len(member.x) == 1]
        if piece is None:
            piece = PIECE if parts else CHUNK
        for member in self.members:
            if len(member.x) > 1 and piece > 0:
                parts.append((member, member.x[:piece]))
                piece -= len(parts[-1][1])
        went_on = compute(parts) if parts else []
        self.members = [member for member in self.members if not member.ended]
        return went_on


def compute(parts: Sequence[tuple[Member, np.ndarray]]) -> list[Member]:
    """Puts the next rows of some members through the decoder. Returns those that chose a token, or failed."""
    sessions, rows = [member.session for member, _ in parts], [rows for _, rows in parts]
    lengths = [session.cache.length for session in sessions]
    complete = [len(rows) == len(member.x) for member, rows in parts]
    try:
        logits = logits_after(sessions, rows, complete)
    except GenerationError as error:  # there is NaN among somebody's numbers
        for session, length in zip(sessions, lengths, strict=True):
            session.cache.length = length
        if len(parts) > 1:  # one at a time, each shows whether it was its own
            return [member for part in parts for member in compute([part])]
        parts[0][0].error = error
        return [parts[0][0]]
    for member, part in parts:
        member.x = member.x[len(part) :]
    choosing = [member for member, _ in parts if not len(member.x)]
    for member, row in zip(choosing, logits, strict=True):
        member.choose(row)
    return choosing


def logits_after(
    sessions: Sequence[Session], rows: Sequence[np.ndarray], wanted: Sequence[bool]
) -> np.ndarray:
    """Computes the next rows of several sessions of one model in one pass over its weights.

    rows[i] (T_i, D), at least one row, are what follows in sessions[i]. Returns the logits (n, vocabulary)
    after the last row of each session for which they are wanted; their caches have grown.
    """
    first, counts = sessions[0], [len(part) for part in rows]
    caches = [session.cache for session in sessions]
    cache = caches[0] if len(caches) == 1 else BatchCache(caches, counts)
    h = decoder.forward(np.concatenate(rows), first.weights, first.config, cache, first.ops, ignore)
    last = np.cumsum(counts)[np.array(wanted)] - 1
    return first.weights.lm_head(h[last]) if len(last) else np.empty((0, first.config.vocab_size), h.dtype)
