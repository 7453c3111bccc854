"""From generated tokens to the answer's text: where it ends, and what of it may be shown already."""

from collections.abc import Collection

from mvlm_np.generation import Stop
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
    without the stop string and what follows it. What may still turn out to be either is held back.
    """

    def __init__(self, tokenizer: Tokenizer, stop: str):
        self.stop = stop
        self.text = ""  # what has been returned
        self._decoder = tokenizer.stream()
        self._held = ""

    def push(self, token: int) -> str:
        """Takes the next token; returns the text that is certain now."""
        self._held += self._decoder.push(token)
        shown = self._held.partition(self.stop)[0]
        if len(shown) == len(self._held):  # no stop string so far, but perhaps the beginning of one
            begun = next((n for n in range(len(self.stop), 0, -1) if shown.endswith(self.stop[:n])), 0)
            shown = shown[: len(shown) - begun]
        return self._show(shown.rstrip())

    def finish(self) -> str:
        """The rest, once no more tokens come."""
        self._held += self._decoder.finish()
        rest = self._show(self._held.partition(self.stop)[0].rstrip())
        self._held = ""
        return rest

    def _show(self, piece: str) -> str:
        self._held = self._held[len(piece) :]
        piece = piece if self.text else piece.lstrip()
        self.text += piece
        return piece
