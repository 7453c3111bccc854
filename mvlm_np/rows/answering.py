"""Answers many rows with one model: what they have in common is computed once, and several go together.

    rows -> prompt -> picture encoded, once -> joins the batch -> answered -> in the rows' order
                                               4 at a time

A row begins with the keys and values of a row before it, as far as their prompts are the same: the template's
text and the picture, if it is the same one. So the first question about a picture is read whole, and of the
others, together, only what is their own. Then they share each pass over the weights (see `batch`).

Each answer is to the bit what `ask` gives. Where the order of sums depends on how many rows are multiplied at
a time (float weights, and the NumPy backend), rows are therefore asked one after another, and have only the
encoded picture in common.
"""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import exp
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from mvlm_np import memory, prefix
from mvlm_np.answer import Reply, ends_answer
from mvlm_np.batch import Batch, Member
from mvlm_np.errors import GenerationError, UserError
from mvlm_np.generation import Drafted, Settings, log_probabilities, settings_of
from mvlm_np.inputs.conversation import render, stop_string
from mvlm_np.inputs.tokenizer import tokenize_prompt
from mvlm_np.prompt_limits import positions, within_context
from mvlm_np.rows.pictures import Pictures
from mvlm_np.rows.row import Answered, Row
from mvlm_np.session import CHUNK, Session, in_common

if TYPE_CHECKING:
    from mvlm_np.model import MobileVLM

LOG = logging.getLogger(__name__)

TOGETHER = 4  # sequences: the rows of a tile of the kernels
AHEAD = 64  # rows that may be done, or begun, while one before them is not
RESERVE = 64 << 20  # bytes of memory that sequences leave free
WORTH = 16  # positions of a prompt; to read fewer once more is not worth waiting for


def answer(
    model: "MobileVLM",
    rows: Iterable[Row | Answered],
    *,
    together: int = TOGETHER,
    conv_mode: str = "v1",
    schema: object = None,
    pictures: Pictures | None = None,
    **settings: Any,
) -> Iterator[Answered]:
    """Answers rows, in their order. They are taken as they are needed, so there may be any number of them.

    together  how many sequences share a pass over the weights, at most
    schema    a JSON schema that each answer fits, see `constrained.schema`
    pictures  those of this model that were encoded before
    settings  those of `generation.Settings` but for max_new_tokens, which each row has, and beams

    A row that fails holds its error, and the others go on. One that comes as `Answered` is passed on in its
    place. GenerationError, SchemaError, PromptError: settings, schema or conv_mode are wrong.
    """
    checked = check(together, conv_mode, settings)
    model.constraint(schema, checked)
    answering = _Answering(model, pictures or Pictures(model), together, conv_mode, schema, settings)
    return answering.run(rows)


def check(together: int, conv_mode: str, settings: Mapping[str, Any]) -> Settings:
    """The settings of all rows. GenerationError, PromptError: these, or the other two, are wrong."""
    checked = settings_of(settings)
    if "max_new_tokens" in settings:
        raise GenerationError("max_new_tokens", "is given for all rows", "it in each row")
    if checked.num_beams > 1:
        found, fix = f"found {checked.num_beams}", "ask one question at a time for beams"
        raise GenerationError("num_beams", found, "1 for many rows", fix)
    if together < 1:
        raise GenerationError("together", f"found {together}", "at least 1")
    stop_string(conv_mode)
    return checked


class _Taken(Reply):
    """An answer that knows how likely it is."""

    log_probability = 0.0

    def take(self, logits: np.ndarray, drafted: Drafted | None = None) -> int:
        """See `Choice`."""
        token = super().take(logits, drafted)
        self.log_probability += float(log_probabilities(logits)[token])
        return token


class _Work:
    """A row on its way.

    reply   the answer as it grows, once the prompt is there
    member  its place in the batch, while it has one
    done    what came of it
    """

    reply: _Taken
    member: Member | None = None
    done: Answered | None = None

    def __init__(self, row: Row):
        self.row, self.start = row, perf_counter()

    def finish(self) -> None:
        """The answer is complete."""
        reply, self.member = self.reply, None
        chance, seconds = exp(reply.log_probability), perf_counter() - self.start
        self.done = Answered(self.row, reply.text, None, len(reply.tokens), chance, seconds)

    def fail(self, error: Exception) -> None:
        """There is no answer."""
        text = str(error)
        if not isinstance(error, UserError):
            LOG.error("row %s failed", self.row.key, exc_info=error)
            text = f"{type(error).__name__}: {error}"
        text, seconds, self.member = " ".join(text.split()), perf_counter() - self.start, None
        self.done = Answered(self.row, None, text, seconds=seconds)


@dataclass(eq=False)
class _Prompt:
    """A row's prompt, which waits to be read: embeddings x (T, D), and what stands at each position (T,)."""

    work: _Work
    x: np.ndarray
    at: np.ndarray
    room: int


class _Answering:
    """One run over rows.

    works   in the rows' order, from the first one that is not done
    prompt  the next one to join the batch
    latest  the session of the last one that has joined
    """

    def __init__(
        self,
        model: "MobileVLM",
        pictures: Pictures,
        together: int,
        conv_mode: str,
        schema: object,
        settings: dict[str, Any],
    ):
        self.model, self.conv_mode, self.schema, self.settings = model, conv_mode, schema, settings
        self.shares = prefix.is_exact(model.decoder, model.config.decoder, model.ops)
        self.together = together if self.shares else 1
        self.stop = stop_string(conv_mode)
        self.ended = ends_answer(model.tokenizer, self.stop, model.config.decoder.end_tokens)
        self.pictures, self.batch = pictures, Batch()
        self.works = deque[_Work]()
        self.prompt: _Prompt | None = None
        self.latest: Session | None = None

    def run(self, rows: Iterable[Row | Answered]) -> Iterator[Answered]:
        """See `answer`."""
        coming, more = iter(rows), True
        try:
            while more or self.works:
                if self.works and (done := self.works[0].done):
                    self.works.popleft()
                    yield done
                elif self.prompt is not None and self._may_join(self.prompt):
                    self._join(self.prompt)
                elif more and self.prompt is None and self._has_place() and len(self.works) < AHEAD:
                    row = next(coming, None)
                    if row is None:
                        more = False
                    else:
                        self._take(row)
                else:
                    self._step()
        finally:
            self.model.give_back()

    def _has_place(self) -> bool:
        return len(self.batch.members) < self.together

    def _take(self, row: Row | Answered) -> None:
        """The next row: its picture is encoded, and its prompt prepared."""
        work = _Work(row.row if isinstance(row, Answered) else row)
        self.works.append(work)
        if isinstance(row, Answered):
            work.done = row
            return
        try:
            self.prompt = self._prompt(work)
        except Exception as error:
            work.fail(error)

    def _prompt(self, work: _Work) -> _Prompt:
        row, model = work.row, self.model
        pictures = int(row.picture is not None)
        ids = tokenize_prompt(render(self.conv_mode, row.question, pictures), model.tokenizer)
        settings = settings_of(self.settings | {"max_new_tokens": row.max_new_tokens})
        settings = within_context(positions(len(ids), pictures, model.config), settings, model.config)
        constraint = model.constraint(self.schema, settings)
        seen = self.pictures.of(row)
        x, at = model.embed(ids, [picture.tokens for picture in seen])
        for picture in seen:
            at[at < 0] = -picture.number
        work.reply = _Taken(model.tokenizer, settings, self.ended, self.stop, constraint=constraint)
        return _Prompt(work, x, at, settings.max_new_tokens)

    def _may_join(self, prompt: _Prompt) -> bool:
        """Whether there is a place, and memory, and nobody is just reading what this prompt begins with."""
        members = self.batch.members
        if not members:
            return True
        reading = [member.session for member in members if len(member.x) > 1]
        return (
            self._has_place()
            and all(in_common(s.ids, prompt.at[:-1]) < s.cache.length + WORTH for s in reading)
            and self._has_memory(prompt)
        )

    def _has_memory(self, prompt: _Prompt) -> bool:
        """Whether there is memory for a row's keys and values beside those of the others."""
        free = memory.available()
        if free is None:
            return True
        members = self.batch.members
        promised = sum(member.session.cache.capacity - member.session.cache.length for member in members)
        needed = promised + len(prompt.at) + prompt.room
        return needed * members[0].session.cache.bytes_per_position + RESERVE <= free

    def _join(self, prompt: _Prompt) -> None:
        """Puts a row into the batch, behind what another one has read of the same prompt."""
        session, work, self.prompt = self.model.session(), prompt.work, None
        try:
            session.cache.reserve(len(prompt.at) + prompt.room)
            self._begin(session, prompt.at)
            known = self.model.tokenizer.vocab_size
            work.member = self.batch.join(session, prompt.x, prompt.at, work.reply, prompt.room, known)
            self.latest = session
            if work.reply.ended:  # as it may have no tokens
                work.finish()
        except Exception as error:
            work.fail(error)

    def _begin(self, session: Session, at: np.ndarray) -> None:
        """Has an empty session stand behind as much of a prompt (T,) as another one has read."""
        read = [member.session for member in self.batch.members] + ([self.latest] if self.latest else [])
        if not self.shares:
            return
        if not read and (stored := self.model.prefix):
            stored.begin(session)
        elif read:
            lengths = [in_common(other.ids[: other.cache.length], at[:-1]) for other in read]
            common = max(lengths)
            cache = read[lengths.index(common)].cache
            session.begin(at[:common], cache.keys, cache.values)

    def _step(self) -> None:
        """One pass through the decoder."""
        works = {work.member: work for work in self.works if work.member is not None}
        for member in self.batch.step(CHUNK):
            work = works[member]
            if member.error is not None:
                work.fail(member.error)
            elif member.ended:
                work.finish()
