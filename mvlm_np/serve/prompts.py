"""From a request's messages to ids that fit the model's context."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from mvlm_np.config import Config
from mvlm_np.generation import Settings
from mvlm_np.inputs.conversation import Message, joined, render_messages
from mvlm_np.inputs.tokenizer import Tokenizer, tokenize_prompt
from mvlm_np.prompt_limits import positions, within_context
from mvlm_np.serve.requests import Request

LOG = logging.getLogger(__name__)  # of turns that are dropped


@dataclass(frozen=True)
class Prompt:
    """What the decoder is to read.

    ids       -200 for each picture
    pictures  in their order
    length    in positions
    turns     how many questions there are
    settings  the request's, with max_new_tokens cut to what fits
    """

    ids: list[int]
    pictures: tuple[Image.Image, ...]
    length: int
    turns: int
    settings: Settings


def prompt_of(request: Request, conv_mode: str, tokenizer: Tokenizer, config: Config) -> Prompt:
    """The prompt of a request.

    With `drop_oldest`, a chat that leaves no room for the answer (or for a quarter of the context, where the
    answer may be longer) loses its oldest turns, see `forgotten`. Pictures of lost turns stand in the turn
    after them, as in `mvlm chat`, as long as they fit.

    PromptError: the chat cannot be written. PromptTooLong: nor does it fit.
    """
    context = config.decoder.max_position_embeddings
    system, turns = joined(request.messages)
    own = len(turns[-1].pictures)  # which the last question keeps

    def write(turns: Sequence[Message]) -> Prompt:
        messages = [Message("system", system), *turns]
        ids = tokenize_prompt(render_messages(conv_mode, messages), tokenizer)
        pictures = tuple(picture for turn in turns for picture in turn.pictures)
        length = positions(len(ids), len(pictures), config)
        return Prompt(ids, pictures, length, (len(turns) + 1) // 2, request.settings)

    def fits(most: int) -> bool:
        return prompt.length <= most

    whole = prompt = write(turns)
    wanted = min(max(request.settings.max_new_tokens, 1), context // 4)
    if request.drop_oldest and not fits(context - wanted):
        for _ in range(forgotten(turns, write, context - wanted)):
            turns = without_oldest(turns)
        prompt = write(turns)
        while prompt.turns > 1 and not fits(context - wanted):
            turns = without_oldest(turns)
            prompt = write(turns)
        while len(turns[0].pictures) > own and not fits(context - wanted):
            turns = [Message("user", turns[0].text, turns[0].pictures[1:]), *turns[1:]]
            prompt = write(turns)
    limited = within_context(prompt.length, request.settings, config)
    if prompt is not whole:
        LOG.warning(
            "a chat fills the model's context: its %d oldest turns and %d pictures are forgotten",
            whole.turns - prompt.turns,
            len(whole.pictures) - len(prompt.pictures),
        )
    return Prompt(prompt.ids, prompt.pictures, prompt.length, prompt.turns, limited)


def forgotten(turns: Sequence[Message], write: Callable[[Sequence[Message]], Prompt], most: int) -> int:
    """How many turns a chat has lost that takes more than `most` positions.

    Whenever a question made it too long, turns went until it took half of that. So the next few questions
    lose no more, and their prompts begin like the one before, which has been read.
    """
    bare = [Message(turn.role, turn.text) for turn in turns]  # pictures are not lost with their turns
    questions, start = range(0, len(turns), 2), 0
    lost = [write(bare[: i + 1]).length - write(bare[i : i + 1]).length for i in questions]
    for number, i in enumerate(questions):
        length = write(turns[: i + 1]).length
        if length - lost[start] > most:
            while start < number and length - lost[start] > most // 2:
                start += 1
    return start


def without_oldest(turns: Sequence[Message]) -> list[Message]:
    """All turns but the first question and its answer, whose pictures stand in the next one."""
    first, _, second, *rest = turns
    return [Message("user", second.text, first.pictures + second.pictures), *rest]
