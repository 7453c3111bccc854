"""Every stage of one question, from pixel values to logits, as the goldens have them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mvlm_np.answer import ends_answer
from mvlm_np.generation import Settings
from mvlm_np.inputs.conversation import render, stop_string
from mvlm_np.inputs.image import Pictures, as_list
from mvlm_np.inputs.tokenizer import tokenize_prompt
from mvlm_np.prompt_limits import require_room, within_context
from mvlm_np.trace import Recorder, Stages, Watch

if TYPE_CHECKING:
    from mvlm_np.model import MobileVLM


def trace(
    model: "MobileVLM",
    image: Pictures,
    question: str,
    max_new_tokens: int = 24,
    num_beams: int | None = None,
    conv_mode: str = "v1",
    exif: bool = False,
    follow: Sequence[int] | None = None,
    recorder: Callable[[], Recorder] = Recorder,
) -> Stages:
    """Every stage of one question, under the goldens' names and with their leading batch axis of 1.

    `generated_ids` is greedy; with num_beams=n there is `generated_ids_beam{n}` too. `decode.*` has a
    row for each generated id, fed back through the cache one at a time; `follow` names the ids to
    feed in place of this model's own. Of several pictures, the last one's stages are kept. A photo
    is not turned by its EXIF note unless `exif` says so: the published code does not turn it.
    `recorder` makes the recorder of the prompt's stages, and that of each generated token's.
    """
    watch, config = recorder(), model.config.decoder
    require_room(len(as_list(image)), conv_mode, model.tokenizer, model.config)
    images = model.encode_images(image, exif, watch)
    prompt_ids = tokenize_prompt(render(conv_mode, question, len(images)), model.tokenizer)
    watch("input_ids", np.array(prompt_ids, np.int64))
    x, ids = model.embed(prompt_ids, images)
    watch("inputs_embeds", x)
    settings = within_context(len(ids), Settings(max_new_tokens), model.config)
    session = model.session()
    session.prefill(x, ids, settings.max_new_tokens, watch, chunk=len(x))
    hidden = watch.arrays[f"decoder.hidden_states.{config.num_hidden_layers}"]
    watch("logits", logits := model.decoder.lm_head(hidden))

    stop = ends_answer(model.tokenizer, stop_string(conv_mode), config.end_tokens)
    for beams, name in ((1, "generated_ids"), (num_beams, f"generated_ids_beam{num_beams}")):
        if beams is not None:
            chosen = replace(settings, num_beams=beams)
            session.cache.length = len(ids)  # back to where the prompt ends
            known = model.tokenizer.vocab_size
            new = list(session.generate(logits[-1], chosen, stop, len(prompt_ids), Watch(), known))
            watch(name, np.array(new, np.int64))

    fed = watch.arrays["generated_ids"] if follow is None else np.asarray(follow)
    decode = {
        "decode.logits": np.empty((len(fed), config.vocab_size), logits.dtype),
        "decode.hidden_states.1": np.empty((len(fed), config.hidden_size), logits.dtype),
    }
    session.cache.length = len(ids)
    for i in range(len(fed)):
        step = recorder()
        h = session.forward(model.decoder.embed_tokens(fed[i : i + 1]), step)
        decode["decode.logits"][i] = model.decoder.lm_head(h)[0]
        decode["decode.hidden_states.1"][i] = step.arrays["decoder.hidden_states.1"][0]
    return {name: array[None] for name, array in (watch.arrays | decode).items()}
