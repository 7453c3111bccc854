"""Questions and answers about the same pictures, turn by turn."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mvlm_np.answer import Answer, ends_answer
from mvlm_np.generation import Settings
from mvlm_np.inputs.conversation import render, stop_string
from mvlm_np.inputs.image import Pictures
from mvlm_np.inputs.tokenizer import tokenize_prompt
from mvlm_np.trace import Watch

if TYPE_CHECKING:
    from mvlm_np.model import MobileVLM

History = Sequence[tuple[str, str]]  # earlier questions and their answers


class Chat:
    """A conversation about the same pictures, which are encoded once; earlier turns stay in the cache.

    conv_mode  the prompt template
    history    (question, answer) pairs, grown by each turn
    exif       turn photos as their camera noted
    """

    def __init__(
        self,
        model: "MobileVLM",
        image: Pictures = None,
        conv_mode: str = "v1",
        history: History | None = None,
        exif: bool = True,
        watch: Watch | None = None,
    ):
        self.model, self.conv_mode, self.watch = model, conv_mode, watch or Watch()
        self.history = list(history or [])
        self._stop = stop_string(conv_mode)
        self._ended = ends_answer(model.tokenizer, self._stop, model.config.decoder.eos_token_id)
        self.images = model.encode_images(image, exif, self.watch)
        self.session = model.session()
        self.prompt_ids: list[int] = []  # of the last turn, -200 for each picture
        self.answer_ids: list[int] = []  # of the last turn

    def ask(self, question: str, **settings: Any) -> str:
        """The answer to the next question."""
        return "".join(self.stream(question, **settings))

    def stream(self, question: str, **settings: Any) -> Iterator[str]:
        """The answer in pieces. The turn becomes part of the history when the last piece has been taken."""
        checked = Settings(**settings)
        prompt = render(self.conv_mode, question, len(self.images), self.history)
        self.prompt_ids, self.answer_ids = tokenize_prompt(prompt, self.model.tokenizer), []
        x, ids = self.model.embed(self.prompt_ids, self.images)
        return self._reply(question, x, ids, self.model.within_context(len(ids), checked))

    def _reply(self, question: str, x: np.ndarray, ids: np.ndarray, settings: Settings) -> Iterator[str]:
        answer = Answer(self.model.tokenizer, self._stop)
        logits = self.session.prefill(x, ids, settings.max_new_tokens, self.watch)
        for token in self.session.generate(logits, settings, self._ended, len(self.prompt_ids), self.watch):
            self.answer_ids.append(token)
            if piece := answer.push(token):
                yield piece
        if piece := answer.finish():
            yield piece
        self.history.append((question, answer.text))
