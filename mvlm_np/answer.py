"""From generated tokens to the answer's text: where it ends, and what of it may be shown already."""

from collections.abc import Collection

import numpy as np

from mvlm_np.generation import Choice, Constraint, Drafted, Settings, Stop
from mvlm_np.inputs.tokenizer import Tokenizer


def ends_answer(tokenizer: Tokenizer, stop: str, end_tokens: Collection[int]) -> Stop:
    """Upstream's stop rule: an end of sequence, or the stop string among the last ids or in their text.

    Only as many of the last tokens are looked at as the stop string has ids.
    """
    stop_ids = tokenizer.encode(stop)
    if len(stop_ids) > 1 and stop_ids[0] == tokenizer.bos_id:
        stop_ids = stop_ids[1:]

    def ended(generated: list[int]) -> bool:
        if generated[-1] in end_tokens:
            return True
        last = generated[-len(stop_ids) :]
        return last == stop_ids or stop in tokenizer.decode(last)

    return ended


class Answer:
    """The text of an answer while it grows.

    The pieces that `push` and `finish` return add up to the answer without the white space around it and
    without what follows from the first stop string on. What may still turn out to be either is held back.

    stops    of these strings, none of them empty, the one that is complete first ends the text; of several
             that the same character completes, the longest
    text     what has been returned
    stopped  whether there was one
    """

    def __init__(self, tokenizer: Tokenizer, *stops: str):
        self.stops, self.stopped = stops, False
        self.text = ""
        self._decoder = tokenizer.stream()
        self._held = ""

    def push(self, token: int) -> str:
        """Takes the next token; returns the text that is certain now."""
        self._hold(self._decoder.push(token))
        shown = self._held
        if not self.stopped:  # but perhaps one of them has begun
            shown = shown[: len(shown) - max((_begun(shown, stop) for stop in self.stops), default=0)]
        return self._show(shown.rstrip())

    def finish(self) -> str:
        """The rest, once no more tokens come."""
        self._hold(self._decoder.finish())
        rest = self._show(self._held.rstrip())
        self._held = ""
        return rest

    def _hold(self, text: str) -> None:
        if self.stopped:
            return
        self._held += text
        found = [(start + len(stop), start) for stop in self.stops if (start := self._held.find(stop)) >= 0]
        if found:
            _, start = min(found)
            self._held, self.stopped = self._held[:start], True

    def _show(self, piece: str) -> str:
        self._held = self._held[len(piece) :]
        piece = piece if self.text else piece.lstrip()
        self.text += piece
        return piece


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of a stop string."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)


class Reply(Choice):
    """An answer's tokens as they are chosen, and its text.

    ended       the stop rule of the settings, see `ends_answer`
    stops       as for `Answer`: each ends the answer as soon as its text has it
    constraint  see `Choice`; it alone says where the answer ends, so that all of it is shown
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        settings: Settings,
        ended: Stop,
        *stops: str,
        constraint: Constraint | None = None,
    ):
        super().__init__(settings, ended, constraint)
        self._answer = Answer(tokenizer, *(stops if constraint is None else ()))

    @property
    def text(self) -> str:
        """Of the answer, as far as it is certain."""
        return self._answer.text

    @property
    def reason(self) -> str:
        """Why an answer has ended: "stop", or "length", as there was no room for more."""
        return "stop" if self._answer.stopped or (self.tokens and self.stop(self.tokens)) else "length"

    def take(self, logits: np.ndarray, drafted: Drafted | None = None) -> int:
        """See `Choice`."""
        token = super().take(logits, drafted)
        self._answer.push(token)
        self.ended = self.ended or self._answer.stopped
        if self.ended:
            self._answer.finish()
        return token
