"""One request on its way, and its answer as far as it has come."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from mvlm_np.answer import Reply
from mvlm_np.batch import Member
from mvlm_np.generation import Constraint, Drafted, Stop, log_probabilities, top
from mvlm_np.inputs.tokenizer import Tokenizer
from mvlm_np.serve.caches import Digest
from mvlm_np.serve.prompts import Prompt
from mvlm_np.serve.requests import Listener, Piece, Request, TokenChance


class Taken(Reply):
    """An answer with the log-probabilities of its tokens, if the request wants them."""

    def __init__(self, tokenizer: Tokenizer, job: "Job", ended: Stop, stop: str):
        prompt, request = job.prompt, job.request
        super().__init__(tokenizer, prompt.settings, ended, stop, *request.stop, constraint=job.constraint)
        self._tokenizer, self._alternatives = tokenizer, request.top_logprobs
        self._shown, self._chances = 0, list[TokenChance]()

    def take(self, logits: np.ndarray, drafted: Drafted | None = None) -> int:
        """See `Choice`."""
        token = super().take(logits, drafted)
        if self._alternatives is not None:
            self._chances.append(chance(self._tokenizer, logits, token, self._alternatives))
        return token

    def piece(self) -> Piece | None:
        """What has come since the last call; None for nothing."""
        text = self.text[self._shown :]
        if not text and not (self.ended and self._chances):
            return None
        self._shown += len(text)
        chances, self._chances = tuple(self._chances), []
        return Piece(text, chances)


def chance(tokenizer: Tokenizer, logits: np.ndarray, token: int, alternatives: int) -> TokenChance:
    """The log-probability of a token, and those of the likeliest ones, by the logits (vocabulary,)."""
    logs = log_probabilities(logits)

    def of(id: int, others: tuple[TokenChance, ...] = ()) -> TokenChance:
        raw = tokenizer.piece_bytes(id)
        text = tokenizer.id_to_piece(id) if id in tokenizer.special_ids else raw.decode(errors="replace")
        return TokenChance(text, raw, float(logs[id]), others)

    best = top(logits, min(alternatives, len(logits))) if alternatives else ()
    return of(token, tuple(of(int(id)) for id in best))


@dataclass(eq=False)
class Job:
    """A request on its way. Nobody but the engine changes it.

    ahead  how many requests were being answered or waited when it came
    """

    request: Request
    prompt: Prompt
    listener: Listener
    unread: Callable[[], int]
    pictures: list[Digest]
    pixels: dict[Digest, np.ndarray]  # of those that were not known when it came
    tokens: dict[Digest, np.ndarray]  # of the others
    came: float
    constraint: Constraint | None  # of its schema
    ahead: int = 0
    cancelled: bool = False
    encoding: Iterator[bool] | None = None
    member: Member | None = None
    reply: Taken | None = None
    last: np.ndarray = field(default_factory=lambda: np.empty(0))  # (1, D) of the prompt's last position
    cached: int = 0
    again: bool = False  # it began like a request before it
    started: float = 0.0
    joined: float = 0.0
    first: float = 0.0
    paused: float | None = None  # since when nobody reads
    looked: Sequence[np.ndarray] = ()

    def let_go(self) -> None:
        """Its pictures, which are large; whoever listened may keep the job."""
        self.encoding, self.pixels, self.tokens = None, {}, {}

    @property
    def positions(self) -> int:
        """Of prompt and answer, at most."""
        return self.prompt.length + self.prompt.settings.max_new_tokens

    @property
    def filled(self) -> int:
        """Positions for which memory has been taken up."""
        return self.member.session.cache.length if self.member else 0
