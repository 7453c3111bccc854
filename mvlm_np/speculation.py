"""Speculative decoding: a draft says how the answer may go on, and one pass over the weights checks it.

A step of the decoder reads all weights for one row. A few rows more, those of drafted tokens, cost little
beside that. What follows each drafted token is known with it, so every one that is accepted saves a step.

Nothing of this shows in the answer. A row's logits are the same bits however many rows are computed with it
(`decoder.exact`), and a token is chosen from them as in plain decoding. So greedy answers are those of plain
decoding, and so are sampled ones where the draft has only one idea of how to go on. Where a draft draws its
tokens too, the rule of Leviathan et al. 2023 and Chen et al. 2023 keeps the chances of every token, though
another one may be drawn: `generation.Choice`.
"""

from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mvlm_np.errors import GenerationError
from mvlm_np.generation import Choice, Drafted, Settings
from mvlm_np.trace import Watch

if TYPE_CHECKING:
    from mvlm_np.session import Session

MOST = 3  # drafted tokens that are checked at a time: with the one before them, the four rows of a tile
ROW = 0.04  # what a row more costs, as a part of a step with one row: docs/measurements.md
MEMORY = 0.98  # what was seen n tokens ago counts MEMORY^n


class Draft(Protocol):
    """Says how a text may go on.

    cost  of drafting one token, as a part of what a step of the model costs
    """

    cost: float

    def begin(self, ids: np.ndarray, settings: Settings, known: int) -> None:
        """An answer to the prompt ids (T,) begins, with these settings; only ids below `known` are chosen."""

    def propose(self, ids: np.ndarray, n: int) -> list[Drafted]:
        """At most n tokens, n at least 1, that may follow ids (T,); those below 0 are positions of pictures.

        Within an answer, ids only grow from call to call.
        """


class Pace:
    """How many tokens to draft: it follows from how many were accepted, never from the clock.

    If a share `a` of drafted tokens is accepted, n of them give 1 + a + ... + a^n tokens a step in the mean,
    and the step costs 1 + n (ROW + the draft's cost). Taken is the n that gives most for its cost. It is none
    where that is best, so a draft that is always wrong is soon left alone.

    The share is (accepted + 1/2) / (drafted + 1), counted over the tokens that were checked. What was seen n
    tokens ago counts MEMORY^n, so a draft that was left alone is tried again after a while.
    """

    def __init__(self, cost: float):
        self.cost = ROW + cost
        self.accepted = self.drafted = 0.0

    def see(self, accepted: bool | None) -> None:
        """One more token was chosen; the one drafted for its place was accepted or not, or there was none."""
        self.accepted *= MEMORY
        self.drafted *= MEMORY
        if accepted is not None:
            self.accepted += accepted
            self.drafted += 1

    def tokens(self) -> int:
        """How many tokens to draft now, 0 to MOST."""
        share = (self.accepted + 0.5) / (self.drafted + 1)

        def worth(n: int) -> float:
            return sum(share**i for i in range(n + 1)) / (1 + n * self.cost)

        return max(range(MOST + 1), key=worth)


def speculate(
    session: "Session",
    draft: Draft,
    logits: np.ndarray,
    choice: Choice,
    watch: Watch,
    known: int | None = None,
) -> Iterator[int]:
    """The tokens that follow the session's prompt, with a draft; see `Session.generate`.

    Whenever a token is yielded, the session is as plain decoding would have it: what drafted tokens have left
    in the cache lies behind its length, until they are accepted.
    """
    cache, settings = session.cache, choice.settings
    end = cache.length + settings.max_new_tokens - 1  # plain decoding fills the positions before this one
    pace = Pace(draft.cost)
    draft.begin(session.ids, settings, session.config.vocab_size if known is None else known)
    rows, drafted = logits[None, :known], list[Drafted]()
    while not choice.ended:
        for row, guess in zip_longest(rows, drafted):
            token = choice.take(row, guess)
            accepted = None if guess is None else token == guess.token
            pace.see(accepted)
            watch.count("accepted", int(accepted or 0))
            yield token
            if choice.ended:
                return
            if not accepted:  # as the last one is, behind which nothing is drafted
                break
            cache.length += 1  # its keys and values are there
            session.append(np.array([token]))
        past = cache.length
        n = min(pace.tokens(), end - past - 1)
        with watch.phase("decode"):
            drafted = draft.propose(np.append(session.ids, token), n) if n > 0 else []
            tokens = np.array([token, *(guess.token for guess in drafted)])
            try:
                rows = session.logits(tokens, cache)[:, :known]
            except GenerationError:  # a drafted token's row has NaN, of which plain decoding would not know
                rows, drafted = session.logits(tokens[:1], cache)[:, :known], []
        watch.count("drafted", len(drafted))
        cache.length = past + 1
        session.append(tokens[:1])
