"""What a prompt may be: ids of the model's vocabulary, a place for each picture, and room in the context."""

import reprlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mvlm_np.config import Config
from mvlm_np.errors import PromptError, PromptTooLong
from mvlm_np.generation import Settings
from mvlm_np.inputs.conversation import render
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN, Tokenizer, tokenize_prompt
from mvlm_np.projector import image_tokens


def checked_ids(ids: Sequence[int], pictures: int, vocabulary: int) -> np.ndarray:
    """Prompt ids as int64 (n,). PromptError: they are not ids of this vocabulary and so many pictures."""
    try:
        array = np.asarray(ids)
    except ValueError:  # lists of unequal lengths
        array = np.empty(0)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size:
        raise PromptError("ids", f"are not a list of whole numbers but {reprlib.repr(ids)}")
    array = array.astype(np.int64)
    is_image = array == IMAGE_TOKEN
    outside = array[~is_image & ((array < 0) | (array >= vocabulary))]
    if outside.size:
        wanted = f"0 to {vocabulary - 1}, or {IMAGE_TOKEN} for a picture"
        raise PromptError("ids", f"found {outside[0]}", wanted)
    if (places := is_image.sum()) != pictures:
        raise PromptError("ids", f"have places for {places} pictures", f"one for each of the {pictures}")
    return array


def positions(ids: int, pictures: int, config: Config) -> int:
    """How many positions of the decoder a prompt takes, of whose ids some stand for a picture."""
    if pictures == 0 or config.vision is None:
        return ids
    return ids + pictures * (image_tokens(config) - 1)


def within_context(T: int, settings: Settings, config: Config) -> Settings:
    """The settings with max_new_tokens cut to what fits behind a prompt of T positions.

    PromptTooLong: nothing does.
    """
    context = config.decoder.max_position_embeddings
    if context - T < min(1, settings.max_new_tokens):
        raise PromptTooLong(T, context)
    return replace(settings, max_new_tokens=min(settings.max_new_tokens, context - T))


def require_room(pictures: int, conv_mode: str, tokenizer: Tokenizer, config: Config) -> None:
    """PromptError: there are more pictures than the context holds beside an empty question.

    That shows before any is read; encoding one may take seconds.
    """
    context = config.decoder.max_position_embeddings

    def too_many(n: int) -> bool:
        ids = tokenize_prompt(render(conv_mode, "", n), tokenizer)
        return positions(len(ids), n, config) >= context

    if pictures and too_many(pictures):
        most = bisect_left(range(1, pictures), True, key=too_many)
        raise PromptError(
            "pictures",
            f"found {pictures}, which with an empty question take the context's {context} positions or more",
            f"at most {most}",
            "ask about fewer at a time",
        )
