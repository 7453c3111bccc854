"""Mistakes in the prompt, and in putting the picture into it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import sqrt

import numpy as np

from mvlm_np.golden.explain.changes import edit_stage
from mvlm_np.golden.explain.mistake import Variant, mistake
from mvlm_np.golden.explain.parts import Change, Parts
from mvlm_np.golden.explain.scene import Prompt, Scene
from mvlm_np.golden.stages import Stages
from mvlm_np.inputs.conversation import IMAGE_MARK, TEMPLATES, render
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN, tokenize_prompt


def other_ids(detail: str, ids: Callable[[], Sequence[int]]) -> Variant:
    """Other prompt ids, whatever they would be."""
    return Variant("ids", lambda p: replace(p, ids=ids), detail)


def other_texts(prompt: Prompt, texts: Mapping[str, str]) -> Iterator[Variant]:
    """Other texts in the prompt's place, tokenised as they should be; {detail: text}."""
    for detail, text in texts.items():
        if text != prompt.text:
            yield other_ids(detail, partial(tokenize_prompt, text, prompt.tokenizer))


def edit_ids(detail: str, edit: Callable[[list[int], int], list[int]]) -> Variant:
    """The ids that would be, changed: (ids, bos) -> ids."""

    def change(p: Parts) -> Parts:
        before, bos = p.ids, p.config.decoder.bos_token_id
        return replace(p, ids=lambda: edit(list(before()), bos))

    return Variant("ids", change, detail)


@mistake(
    stage="input_ids",
    what="the prompt does not begin with BOS",
    mend="put BOS (id 1) first, once",
)
def bos_missing(scene: Scene) -> Iterator[Variant]:
    yield edit_ids("", lambda ids, bos: ids[1:] if ids[0] == bos else ids)


@mistake(
    stage="input_ids",
    what="BOS stands in the prompt more than once",
    mend="put BOS first, once: each piece of the prompt is tokenised with one, "
    "and the later ones are dropped",
)
def bos_doubled(scene: Scene) -> Iterator[Variant]:
    yield edit_ids("two at the start", lambda ids, bos: [bos, *ids])

    def after_image(ids: list[int], bos: int) -> list[int]:
        return [x for i in ids for x in ([i, bos] if i < 0 else [i])]

    yield edit_ids("one after the picture", after_image)


@mistake(
    stage="input_ids",
    what="the text after the picture begins without SentencePiece's space",
    mend="tokenise each piece of the prompt on its own, with its dummy prefix: "
    "ids 29871, 13 follow the picture",
)
def no_dummy_prefix(scene: Scene) -> Iterator[Variant]:
    if (prompt := scene.prompt) is None:
        return
    tokenizer = prompt.tokenizer
    first, *rest = prompt.text.split(IMAGE_MARK)

    def behind_pictures() -> list[int]:
        return [i for text in rest for i in (IMAGE_TOKEN, *tokenizer.encode_inside(text))]

    def in_no_text() -> list[int]:
        bos = [tokenizer.bos_id] * tokenizer.add_bos
        return bos + tokenizer.encode_inside(first) + behind_pictures()

    yield other_ids("", lambda: tokenizer.encode(first) + behind_pictures())
    yield other_ids("nor does that before it", in_no_text)


@mistake(
    stage="input_ids",
    what="the prompt follows another template",
    mend='template "v1": system text, then " USER: <image>\\n" question " ASSISTANT:"',
)
def wrong_template(scene: Scene) -> Iterator[Variant]:
    if (prompt := scene.prompt) is None:
        return
    images, q = f"{IMAGE_MARK}\n" * prompt.images, prompt.question
    system, asked = TEMPLATES["v1"].system, f"USER: {images}{q}"
    usual = f"{system} {asked} ASSISTANT:"
    texts = {
        name: render(name, q, prompt.images)
        for name in TEMPLATES
        if q or TEMPLATES[name].sep_style != "LLAMA_2"
    }
    texts |= {
        "no system text": f"{asked} ASSISTANT:",
        "no template": f"{images}{q}",
        "no ASSISTANT:": f"{system} {asked}",
        "a space at the end": f"{usual} ",
        "a newline at the end": f"{usual}\n",
        "newlines between the turns": f"{system}\n\n{asked}\nASSISTANT:",
        "one newline between the turns": f"{system}\n{asked}\nASSISTANT:",
        "two spaces before the turns": f"{system}  {asked}  ASSISTANT:",
        "no newline after the picture": usual.replace(f"{IMAGE_MARK}\n", IMAGE_MARK),
        "a space after the picture": usual.replace("\n", " ", prompt.images),
        "</s> before the answer": f"{system} {asked}</s>ASSISTANT:",
        "Human and Assistant": usual.replace("USER:", "Human:").replace("ASSISTANT:", "Assistant:"),
        "ChatML": f"<|im_start|>user\n{images}{q}<|im_end|>\n<|im_start|>assistant\n",
        "no space before the picture": usual.replace(f" {IMAGE_MARK}", IMAGE_MARK),
    }
    yield from other_texts(prompt, texts)


@mistake(
    stage="input_ids",
    what="the picture stands elsewhere in the prompt",
    mend="<image> and a newline stand before the first question",
)
def image_misplaced(scene: Scene) -> Iterator[Variant]:
    if (prompt := scene.prompt) is None or prompt.images != 1:
        return
    bare = prompt.text.replace(f"{IMAGE_MARK}\n", "").replace(IMAGE_MARK, "")
    texts = {
        "before everything": f"{IMAGE_MARK}\n{bare}",
        "before everything, without a newline": IMAGE_MARK + bare,
        "at the end": bare + IMAGE_MARK,
    }
    if prompt.question and prompt.question in bare:
        texts["after the question"] = bare.replace(prompt.question, f"{prompt.question}\n{IMAGE_MARK}")
        texts["after the question, without a newline"] = bare.replace(
            prompt.question, f"{prompt.question}{IMAGE_MARK}"
        )
    yield from other_texts(prompt, texts)


@mistake(
    stage="inputs_embeds",
    what="the image tokens reach the decoder in another order or scale",
    mend="put them in the picture's place row by row, as the projector gives them",
)
def image_tokens_order(scene: Scene) -> Iterator[Variant]:
    if not scene.parts.vision:
        return

    def rows(change: Callable[[np.ndarray], np.ndarray]) -> Change:
        def edit(x: np.ndarray, seen: Stages) -> np.ndarray:
            ids = seen.get("input_ids", scene.stages.get("input_ids"))
            if ids is None or IMAGE_TOKEN not in ids:
                return x
            first, count = list(ids).index(IMAGE_TOKEN), len(x) - len(ids) + 1
            return np.concatenate([x[:first], change(x[first : first + count]), x[first + count :]])

        return edit_stage("inputs_embeds", edit)

    def columns(x: np.ndarray) -> np.ndarray:
        side = round(sqrt(len(x)))
        return x.reshape(side, side, -1).swapaxes(0, 1).reshape(x.shape) if side * side == len(x) else x

    D = scene.parts.config.decoder.hidden_size
    yield Variant("embeds", rows(columns), "column by column")
    yield Variant("embeds", rows(lambda x: x[::-1]), "from the end")
    yield Variant("embeds", rows(lambda x: x * np.float32(sqrt(D))), "times sqrt(D)")
    scale = edit_stage("inputs_embeds", lambda x, _: x * np.float32(sqrt(D)))
    yield Variant("embeds", scale, "all embeddings times sqrt(D), as Gemma has it")
