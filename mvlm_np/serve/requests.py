"""What goes between those who ask (the dialects, or Python) and the engine that answers.

A request goes in by `Engine.submit`; what comes of it goes to the request's listener as events, in order and
from the thread that steps the engine: any number of pieces, then `Finished` or `Failed`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mvlm_np.errors import GenerationError, UserError
from mvlm_np.generation import Settings
from mvlm_np.inputs.conversation import Message

STOPS = 4  # stop strings of a request, at most
ALTERNATIVES = 20  # tokens whose log-probabilities a request may have for each place


@dataclass(frozen=True)
class Request:
    """A question to the model, with all that belongs to it. A bad value is a GenerationError.

    messages      the chat; the last one is the user's
    settings      how to generate; beams are not served
    stop          strings that end the answer and are not shown, up to 4
    top_logprobs  so many of the likeliest tokens go with each token's log-probability; None: none is computed
    schema        a JSON schema that the answer is to fit; see `constrained.schema`. Then there is no `stop`
    drop_oldest   an over-long chat loses its oldest turns; else it is a PromptError
    look          whether `Finished` is to say where the pictures were looked at
    client        whose request this is, for fairness: a key or an address
    owner         whose the caches are: what was computed for one owner is of use to no other
    low_priority  waits for all others, at most half of the time for which a request may wait
    """

    messages: tuple[Message, ...]
    settings: Settings = field(default_factory=Settings)
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    schema: Mapping[str, Any] | None = None
    drop_oldest: bool = False
    look: bool = False
    client: str = ""
    owner: str = ""
    low_priority: bool = False

    def __post_init__(self) -> None:
        def require(ok: bool, name: str, wanted: str) -> None:
            if not ok:
                raise GenerationError(name, f"found {getattr(self, name)!r}", wanted)

        text = all(isinstance(stop, str) and stop for stop in self.stop)
        require(text and len(self.stop) <= STOPS, "stop", f"up to {STOPS} strings, none of them empty")
        top = self.top_logprobs is None or 0 <= self.top_logprobs <= ALTERNATIVES
        require(top, "top_logprobs", f"a whole number from 0 to {ALTERNATIVES}")
        if self.settings.num_beams > 1:
            raise GenerationError("num_beams", f"found {self.settings.num_beams}", "1")


@dataclass(frozen=True)
class TokenChance:
    """A token of an answer.

    token    what it adds to the text, U+FFFD for bytes that are no characters by themselves
    raw      the bytes that it adds
    logprob  the natural logarithm of its probability, by the logits as the model gave them
    top      the likeliest tokens in its place, likeliest first
    """

    token: str
    raw: bytes
    logprob: float
    top: tuple["TokenChance", ...] = ()


@dataclass(frozen=True)
class Piece:
    """Some more of the answer: whole characters, never a stop string or a part of one.

    chances  the tokens that have come since the piece before, if the request has `top_logprobs`. What a token
             adds may be in a later piece's text, or none's
    """

    text: str
    chances: tuple[TokenChance, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The answer is complete.

    reason             "stop": the model or a stop string ended it; "length": there was no room for more
    prompt_tokens      positions of the prompt, 144 for each picture
    cached_tokens      how many of them had been read before
    completion_tokens  tokens of the answer, the one that ended it included
    seconds            of "queued", "encode", "prefill", "decode", each from its beginning to its end
    looked             for each picture float32 (12, 12): how much the prompt's last position looked at each
                       part of it, from the top left; nothing where it was not asked for
    """

    reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds: Mapping[str, float]
    looked: Sequence[np.ndarray] = ()


@dataclass(frozen=True)
class Failed:
    """There will be no (more of an) answer. A UserError tells what is wrong; any other error is a bug."""

    error: Exception


Event = Piece | Finished | Failed
Listener = Callable[[Event], None]


class Busy(UserError):
    """The queue is full.

    ahead    how many requests are being answered or wait
    seconds  after which there may be room, by how long they took so far
    """

    def __init__(self, ahead: int, seconds: float):
        self.ahead, self.seconds = ahead, seconds
        super().__init__("server", f"busy, with {ahead} requests before this one", fix="try again later")


class WaitedTooLong(UserError):
    """A request's turn did not come within the time that a request may wait."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        super().__init__("server", f"busy: the request waited {seconds:.0f} s", fix="try again later")


class NotRead(UserError):
    """Nobody took the pieces of an answer for so long that it was given up."""

    def __init__(self, seconds: float):
        super().__init__("answer", f"nobody read on for {seconds:.0f} s", fix="ask again")


class Stopping(UserError):
    """The server stops; it answers nothing more."""

    def __init__(self) -> None:
        super().__init__("server", "is stopping", fix="try again later")


@dataclass(frozen=True)
class CacheStatus:
    """A cache's use so far. hits and misses count look-ups: of a picture, or of a prompt's beginning."""

    entries: int = 0
    bytes: int = 0
    budget: int = 0
    hits: int = 0
    misses: int = 0


@dataclass(frozen=True)
class Status:
    """What an engine is at.

    running, queued  requests
    idle_seconds     how long ago its owner last called `step`, which a stuck one no longer does
    counts           totals since the start: "requests", "finished", "failed", "cancelled", "refused",
                     "prompt_tokens", "cached_tokens", "completion_tokens"
    seconds          totals, as in `Finished`
    """

    running: int
    queued: int
    idle_seconds: float
    counts: Mapping[str, int]
    seconds: Mapping[str, float]
    pictures: CacheStatus
    prefixes: CacheStatus
