"""Who drafts tokens for speculative decoding: n-grams of the text so far, or a small model of its own."""

import reprlib
from itertools import cycle, islice, takewhile
from typing import TYPE_CHECKING

import numpy as np

from mvlm_np import decoder
from mvlm_np.errors import GenerationError, UserError
from mvlm_np.generation import Drafted, Settings, probabilities, refuse_damage, warp
from mvlm_np.inputs.tokenizer import Tokenizer
from mvlm_np.session import CHUNK
from mvlm_np.speculation import Draft

if TYPE_CHECKING:
    from mvlm_np.model import MobileVLM

LENGTHS = (3, 2)  # of the n-grams that are looked for, the longest first


def draft_for(model: "MobileVLM", wanted: "MobileVLM | str | None") -> Draft | None:
    """The draft that is meant by "ngrams", by another model, or by None or "none": nobody.

    UserError: it is none of these, it is a model with other tokens, or this model's logits depend on how many
    rows are computed at once, so that its answers would not be those of plain decoding.
    """
    if wanted is None or (isinstance(wanted, str) and wanted == "none"):
        return None
    other = wanted if isinstance(wanted, type(model)) else None
    if other is None and not (isinstance(wanted, str) and wanted == "ngrams"):
        raise UserError("draft", f"found {reprlib.repr(wanted)}", '"ngrams", a loaded model, or None')
    if not decoder.exact(model.decoder, model.config.decoder, model.ops):
        raise UserError(
            "draft",
            "would change answers of this model by rounding, since it computes with BLAS",
            "int8 or int4 weights and compiled kernels",
            "load it with precision int8 or int4 and backend numba",
        )
    if other is None:
        return Ngrams()
    require_same_tokens(model.tokenizer, other.tokenizer)
    return DraftModel(other, other.decoder.nbytes / model.decoder.nbytes)


def require_same_tokens(tokenizer: Tokenizer, draft: Tokenizer) -> None:
    """UserError: an id of the model's tokenizer stands for something else in the draft's, or for nothing."""
    for i in range(tokenizer.vocab_size):
        wanted = tokenizer.id_to_piece(i)
        found = draft.id_to_piece(i) if i < draft.vocab_size else None
        if found != wanted:
            told = f"token {i} is {'missing' if found is None else reprlib.repr(found)}"
            fix = "take a model that was trained with the same tokenizer"
            raise UserError("draft", told, f"{reprlib.repr(wanted)} as in the model", fix)


class Ngrams:
    """Drafts what followed the last few tokens where they stood before: in prompt, history or answer."""

    cost = 0.0  # some microseconds

    def begin(self, ids: np.ndarray, settings: Settings, known: int) -> None:
        """See `Draft`."""
        self._ids: list[int] = []
        # For each length: what n-gram was followed at which position, the last one if there are several.
        self._followed: dict[int, dict[tuple[int, ...], int]] = {length: {} for length in LENGTHS}

    def propose(self, ids: np.ndarray, n: int) -> list[Drafted]:
        """See `Draft`. Where the text has begun to repeat itself, the repetition goes on."""
        for position in range(len(self._ids), len(ids)):
            for length, followed in self._followed.items():
                followed[tuple(self._ids[-length:])] = position
            self._ids.append(int(ids[position]))
        for length, followed in self._followed.items():
            if start := followed.get(tuple(self._ids[-length:])):
                text = islice(cycle(self._ids[start:]), n)
                return [Drafted(token) for token in takewhile(lambda token: token >= 0, text)]
        return []


class DraftModel:
    """A small model with the same tokens, which drafts one after another. It reads no pictures."""

    def __init__(self, model: "MobileVLM", cost: float):
        self.model, self.cost = model, cost
        self._session = model.session()

    def begin(self, ids: np.ndarray, settings: Settings, known: int) -> None:
        """See `Draft`."""
        self._settings, self._known = settings, known
        self._session.cache.reserve(len(ids) + settings.max_new_tokens)
        # Draws of its own, so that the choice among what it has drawn is independent of them.
        self._rng = np.random.default_rng(settings.seed).spawn(1)[0]

    def propose(self, ids: np.ndarray, n: int) -> list[Drafted]:
        """See `Draft`. There are none beyond the draft's own context."""
        config = self.model.config.decoder
        text, drafted = ids[ids >= 0], list[Drafted]()
        if text.size == 0 or text.max() >= config.vocab_size:
            return drafted
        for _ in range(min(n, config.max_position_embeddings - len(text))):
            try:
                drafted.append(self.draw(self._logits(text)))
            except GenerationError as error:
                raise GenerationError("draft", f"its model failed ({error})") from None
            text = np.append(text, drafted[-1].token)
        return drafted

    def _logits(self, text: np.ndarray) -> np.ndarray:
        """(vocabulary,) of the model, after a text that mostly begins like the one before."""
        session = self._session
        session.set_back(text)
        for start in range(session.cache.length, len(text), CHUNK):
            h = session.forward(self.model.decoder.embed_tokens(text[start : start + CHUNK]))
        logits = np.full(self._known, -np.inf, np.float32)  # what the draft has no row for it never drafts
        own = session.weights.lm_head(h[-1:])[0, : self._known]
        logits[: len(own)] = own
        return logits

    def draw(self, logits: np.ndarray) -> Drafted:
        """What is drafted behind a text, by the model's logits (vocabulary,)."""
        refuse_damage(logits)
        if self._settings.temperature == 0:
            return Drafted(int(logits.argmax()))
        chances = probabilities(warp(logits[None], self._settings)[0])
        return Drafted(int(self._rng.choice(chances.size, p=chances)), chances)
