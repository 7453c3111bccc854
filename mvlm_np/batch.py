"""Several sessions in use together: each step takes all their answers one token further.

The decoder does not know of it: it gets the next rows of all, and a cache that stands for those of all.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mvlm_np import decoder
from mvlm_np.errors import UserError
from mvlm_np.kv_cache import BatchCache
from mvlm_np.session import CHUNK, Session, refuse_constant
from mvlm_np.trace import ignore

PIECE = 64  # positions of prompts that are read in a step, where others wait for their next token meanwhile


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
    packed and kernels are compiled, an answer is to the bit what the sequence would get alone.
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

    def back(self, member: Member) -> None:
        """Takes in a sequence again that has left, at the point where it was."""
        if not member.ended and member not in self.members:
            self.members.append(member)

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
    except Exception as error:  # say, since there is NaN among somebody's numbers
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
