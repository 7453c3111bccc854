"""Questions and answers about the same pictures, turn by turn."""

import logging
from collections.abc import Callable, Iterator
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from mvlm_np.answer import Answer, Reply, ends_answer
from mvlm_np.batch import Batch, Member
from mvlm_np.drafts import draft_for
from mvlm_np.generation import Constraint, Drafted, Settings, settings_of
from mvlm_np.inputs.conversation import IMAGE_MARK, History, pairs, render, stop_string
from mvlm_np.inputs.image import Pictures, as_list
from mvlm_np.inputs.tokenizer import tokenize_prompt
from mvlm_np.prompt_limits import require_room, within_context
from mvlm_np.trace import Watch

if TYPE_CHECKING:
    from mvlm_np.model import MobileVLM

LOG = logging.getLogger(__name__)  # of turns that are dropped


class Chat:
    """A conversation about the same pictures, which are encoded once; earlier turns stay in the cache.

    conv_mode  the prompt template
    history    (question, answer) pairs, or chat messages (see `conversation.pairs`); grown by each turn
    exif       turn photos as their camera noted
    draft      "ngrams" or a small model with the same tokens: what may follow is drafted, and checked several
               tokens at a time, which is faster and gives the same answers; see `drafts.draft_for`
    """

    def __init__(
        self,
        model: "MobileVLM",
        image: Pictures = None,
        conv_mode: str = "v1",
        history: History | None = None,
        exif: bool = True,
        watch: Watch | None = None,
        draft: "MobileVLM | str | None" = None,
    ):
        self.model, self.conv_mode, self.watch = model, conv_mode, watch or Watch()
        self.history = pairs(() if history is None else history)
        self._stop = stop_string(conv_mode)
        self._ended = ends_answer(model.tokenizer, self._stop, model.config.decoder.end_tokens)
        self.draft, self._draft = draft, draft_for(model, draft)
        require_room(len(as_list(image)), conv_mode, model.tokenizer, model.config)
        self.images = model.encode_images(image, exif, self.watch)
        self.session = model.session()
        self.prompt_ids: list[int] = []  # of the last turn, -200 for each picture
        self.answer_ids: list[int] = []  # of the last turn
        self._turns = 0  # how many have begun
        self._leave: Callable[[], None] = _nobody  # takes the last turn out of its batch

    def ask(self, question: str, **settings: Any) -> str:
        """The answer to the next question."""
        return "".join(self.stream(question, **settings))

    def stream(
        self, question: str, forget: bool = True, schema: object = None, **settings: Any
    ) -> Iterator[str]:
        """The answer in pieces. The turn becomes part of the history when the last piece has been taken.

        A stream that is still open when the next one begins ends where it is, and its turn is not kept.

        forget  when the conversation fills the model's context, drop its oldest turns until half of the
                context is free, and log a warning. Without it, a prompt that is too long is a PromptError.
        schema  a JSON schema that the answer is to fit; see `constrained`
        """
        x, at, limited, constraint = self._begin(question, forget, schema, settings)
        return self._reply(question, x, at, limited, constraint, self._turns)

    def join(
        self, batch: Batch, question: str, forget: bool = True, schema: object = None, **settings: Any
    ) -> "Turn":
        """Asks the next question together with others: its answer grows with the batch's steps.

        The turn becomes part of the history with its last token; not if it fails or leaves the batch before.
        It leaves when the next turn begins. Arguments are those of `stream`, but for beams.
        """
        x, at, limited, constraint = self._begin(question, forget, schema, settings)
        turn = Turn(self, question, limited, constraint)
        known = self.model.tokenizer.vocab_size
        turn.member = batch.join(self.session, x, at, turn, limited.max_new_tokens, known)
        self._leave = lambda: batch.leave(turn.member)
        return turn

    def fork(self) -> "Chat":
        """Another conversation that goes on from here. What this one has read is copied, not read again."""
        other = copy(self)
        other.history, other.session, other._leave = list(self.history), self.session.fork(), _nobody
        other._draft = draft_for(self.model, self.draft)  # which follows one text at a time
        return other

    def _begin(
        self, question: str, forget: bool, schema: object, settings: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray, Settings, Constraint | None]:
        """A new turn: its embeddings (T, D), what stands at each position (T,), settings and constraint."""
        checked, context = settings_of(settings), self.model.config.decoder.max_position_embeddings
        history = pairs(self.history)
        ids, length = self._prompt(question, history)
        if forget and context - length < min(checked.max_new_tokens, context // 4):
            while history and 2 * length > context:
                history = without_oldest(history)
                ids, length = self._prompt(question, history)
        x, at = self.model.embed(ids, self.images)
        limited = within_context(length, checked, self.model.config)
        constraint = self.model.constraint(schema, limited)
        if dropped := len(self.history) - len(history):
            LOG.warning(
                "the conversation fills the model's context: its %d oldest turns are forgotten", dropped
            )
            self.history = history
        self.prompt_ids, self.answer_ids = ids, []
        self._turns += 1
        self._leave()
        return x, at, limited, constraint

    def _prompt(self, question: str, history: History) -> tuple[list[int], int]:
        """The next turn's prompt: its ids, and the positions that it takes."""
        ids = tokenize_prompt(
            render(self.conv_mode, question, len(self.images), history), self.model.tokenizer
        )
        return ids, len(ids) + sum(len(image) - 1 for image in self.images)

    def _reply(
        self,
        question: str,
        x: np.ndarray,
        at: np.ndarray,
        settings: Settings,
        constraint: Constraint | None,
        turn: int,
    ) -> Iterator[str]:
        if turn != self._turns:
            return
        answer = Answer(self.model.tokenizer, *([self._stop] if constraint is None else []))
        if turn == 1 and not self.watch.everything and (prefix := self.model.prefix):
            prefix.begin(self.session)
        logits = self.session.prefill(x, at, settings.max_new_tokens, self.watch)
        known, length = self.model.tokenizer.vocab_size, len(self.prompt_ids)
        for token in self.session.generate(
            logits, settings, self._ended, length, self.watch, known, self._draft, constraint
        ):
            self.answer_ids.append(token)
            if piece := answer.push(token):
                yield piece
                if turn != self._turns:  # the cache is another turn's by now
                    return
            if answer.stopped:
                break
        if piece := answer.finish():
            yield piece
        if turn == self._turns:
            self.history.append((question, answer.text))


def _nobody() -> None:
    """Nobody is to leave."""


class Turn(Reply):
    """A question whose answer grows in a batch.

    member  its place in the batch, with the error that ended it, if one did
    """

    member: Member

    def __init__(self, chat: Chat, question: str, settings: Settings, constraint: Constraint | None):
        super().__init__(chat.model.tokenizer, settings, chat._ended, chat._stop, constraint=constraint)
        self._chat, self._question = chat, question
        chat.answer_ids = self.tokens
        if self.ended:
            self._keep()

    def take(self, logits: np.ndarray, drafted: Drafted | None = None) -> int:
        """See `Choice`."""
        token = super().take(logits, drafted)
        if self.ended:
            self._keep()
        return token

    def _keep(self) -> None:
        self._chat.history.append((self._question, self.text))


def without_oldest(history: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """All turns but the first. Pictures that stood in its text stand before the next one's.

    Where that was the last turn, the pictures stand before the question, as `render` has them.
    """
    first, *rest = history
    marks = sum(text.count(IMAGE_MARK) for text in first)
    if marks and rest:
        asked, answered = rest[0]
        rest[0] = f"{IMAGE_MARK}\n" * marks + asked, answered
    return rest
